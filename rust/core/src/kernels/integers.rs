//! Rows of a rank coding as the integers that the pass works on: of each nonzero the line of its
//! latent in a tile and an 8-bit level. What else the pass wants to know of a row is a sum over
//! its levels, whatever the caller puts into the upper bits of their entries.

use crate::codes::RankedLayout;

use super::tile::TILE;

/// Where a row is written.
#[derive(Debug)]
pub struct IntegerRow<'a> {
    /// Of each nonzero the byte at which its latent's line begins in a tile.
    pub lines: &'a mut [u32],
    /// Its level.
    pub levels: &'a mut [i8],
}

/// [`Kernels::integer_row`](super::Kernels::integer_row) in plain Rust.
pub fn integer_row(
    layout: &RankedLayout,
    entries: &[u64],
    row: &[u8],
    dim: u32,
    out: IntegerRow<'_>,
) -> u64 {
    let width = layout.width();
    let (lines, more_lines) = out.lines.split_at_mut(width);
    let (levels, more_levels) = out.levels.split_at_mut(width);
    more_lines.fill(dim * TILE as u32);
    more_levels.fill(0);
    let line_of = |latent: u32| latent.min(dim) * TILE as u32;
    let mut sum = 0u64;
    let mut take = |entry: u64, level: &mut i8| {
        *level = entry as i8;
        sum = sum.wrapping_add(entry >> 8);
    };
    if layout.is_words() {
        let bits = layout.latent_bits();
        let mask = (1u32 << bits) - 1;
        // all ranks have as many levels: 2^(16 - bits) with their signs
        let a_rank = 1usize << (16 - bits);
        let words = row
            .chunks_exact(2)
            .map(|word| u16::from_le_bytes([word[0], word[1]]));
        // on its own this is a loop that compilers vectorise
        for (line, word) in lines.iter_mut().zip(words.clone()) {
            *line = line_of(u32::from(word) & mask);
        }
        let of_ranks = entries.chunks_exact(a_rank);
        for ((word, entries), level) in words.zip(of_ranks).zip(levels) {
            take(entries[usize::from(word >> bits)], level);
        }
    } else {
        for (rank, (line, level)) in lines.iter_mut().zip(levels).enumerate() {
            let (latent, index) = layout.indexed_field(row, rank);
            *line = line_of(latent);
            take(entries[index], level);
        }
    }
    sum
}
