//! From rows to postings, a block of rows at a time. What comes out depends on the rows and
//! their scales alone, so that verification can build a block again and compare.

use std::ops::Range;

use rayon::prelude::*;

use super::{bound_of, bound_value, check_block_items, round_up, Chunk, Postings, POSITIONS};
use crate::codes::RowsView;
use crate::control::Control;
use crate::search::Scales;
use crate::{Error, Result};

/// Rows between two looks at the control.
const ROWS_A_CHECK: usize = 4096;

/// The lists of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockLists {
    /// Twice the latent, and one more for the list of negative values; ascending.
    pub keys: Vec<u32>,
    /// The number of chunks of each list.
    pub lengths: Vec<u32>,
    /// The chunks of all lists.
    pub chunks: Vec<Chunk>,
    /// The largest norm of a row's bounds, rounded up.
    pub norm: f32,
}

/// The lists of the rows `range`, which are a block of `block_items`.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Interrupted`].
pub fn block_lists(
    rows: &RowsView<'_>,
    scales: &Scales<'_>,
    range: Range<usize>,
    block_items: usize,
    control: &Control,
) -> Result<BlockLists> {
    // an entry sorts by list, then by descending bound, then by position
    let mut entries: Vec<u64> = Vec::new();
    for (position, row) in range.enumerate() {
        if position % ROWS_A_CHECK == 0 {
            control.check()?;
        }
        let scale = scales.get(row);
        if scale == 0.0 {
            continue;
        }
        let pairs = rows.pairs(row);
        entries
            .try_reserve(pairs.len())
            .map_err(|_| out_of_memory(entries.len() * size_of::<u64>()))?;
        for (latent, value) in pairs {
            // a latent of 2^31 and more, as only a damaged file holds, is no query's
            let weight = scale * value;
            let Some(bound) = bound_of(weight).filter(|_| value != 0.0 && latent >> 31 == 0) else {
                continue;
            };
            let bound = bound.max(1); // a product that vanished is not nothing
            let key = 2 * latent + u32::from(weight.is_sign_negative());
            let low = u32::from(u16::MAX - bound) << 16 | position as u32;
            entries.push(u64::from(key) << 32 | u64::from(low));
        }
    }
    entries.sort_unstable();
    let mut lists = BlockLists {
        keys: Vec::new(),
        lengths: Vec::new(),
        chunks: Vec::new(),
        norm: 0.0,
    };
    let mut squares = vec![0.0f64; block_items];
    lists
        .chunks
        .try_reserve(entries.len() / POSITIONS)
        .map_err(|_| out_of_memory(entries.len() / POSITIONS * size_of::<Chunk>()))?;
    for list in entries.chunk_by(|a, b| a >> 32 == b >> 32) {
        lists.keys.push((list[0] >> 32) as u32);
        lists.lengths.push(list.len().div_ceil(POSITIONS) as u32);
        for entries in list.chunks(POSITIONS) {
            let mut chunk = [block_items as u16; POSITIONS + 1];
            chunk[0] = u16::MAX - (entries[0] >> 16) as u16;
            let bound = f64::from(bound_value(chunk[0]));
            for (position, entry) in chunk[1..].iter_mut().zip(entries) {
                *position = *entry as u16;
                squares[usize::from(*position)] += bound * bound;
            }
            lists.chunks.push(chunk);
        }
    }
    let largest = squares.iter().fold(0.0, |a: f64, &b| a.max(b)).sqrt();
    lists.norm = round_up(largest);
    Ok(lists)
}

/// The postings of all rows. Runs on the current rayon pool; progress counts rows.
///
/// # Errors
/// [`Error::Argument`] where `block_items` is out of range or there are more lists or chunks
/// than 32 bits count; [`Error::OutOfMemory`], [`Error::Interrupted`].
pub fn build(
    rows: &RowsView<'_>,
    scales: &Scales<'_>,
    block_items: usize,
    control: &Control,
) -> Result<Postings> {
    check_block_items(block_items)?;
    let n = rows.len();
    let blocks: Vec<_> = (0..n)
        .step_by(block_items)
        .map(|start| start..n.min(start + block_items))
        .collect();
    let blocks = blocks
        .into_par_iter()
        .map(|range| {
            let items = range.len() as u64;
            let lists = block_lists(rows, scales, range, block_items, control)?;
            control.advance(items);
            Ok(lists)
        })
        .collect::<Result<Vec<_>>>()?;
    assemble(blocks, block_items)
}

/// Puts the lists of all blocks in the order of latent, sign and block.
fn assemble(blocks: Vec<BlockLists>, block_items: usize) -> Result<Postings> {
    let mut latents: Vec<u32> = Vec::new();
    for block in &blocks {
        latents.extend(block.keys.iter().map(|key| key / 2));
        latents.sort_unstable();
        latents.dedup();
    }
    let total: usize = blocks.iter().map(|block| block.chunks.len()).sum();
    let too_many = || Error::argument(format!("{total} chunks of postings; 32 bits count fewer"));
    u32::try_from(total).map_err(|_| too_many())?;
    let n_starts = (2 * latents.len())
        .checked_mul(blocks.len())
        .and_then(|lists| lists.checked_add(1))
        .ok_or_else(too_many)?;
    let norms = blocks.iter().map(|block| block.norm).collect();
    let mut starts = Vec::new();
    let mut chunks: Vec<Chunk> = Vec::new();
    starts
        .try_reserve_exact(n_starts)
        .map_err(|_| out_of_memory(n_starts * size_of::<u32>()))?;
    chunks
        .try_reserve_exact(total)
        .map_err(|_| out_of_memory(total * size_of::<Chunk>()))?;
    // where each block is: its next list, and the first chunk of that
    let mut next = vec![(0usize, 0usize); blocks.len()];
    for &latent in &latents {
        for key in [2 * latent, 2 * latent + 1] {
            for (block, (list, start)) in blocks.iter().zip(&mut next) {
                starts.push(chunks.len() as u32);
                if block.keys.get(*list) == Some(&key) {
                    let end = *start + block.lengths[*list] as usize;
                    chunks.extend_from_slice(&block.chunks[*start..end]);
                    (*list, *start) = (*list + 1, end);
                }
            }
        }
    }
    starts.push(chunks.len() as u32);
    Ok(Postings {
        latents,
        starts,
        chunks,
        norms,
        block_items,
    })
}

fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory {
        what: "postings",
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::super::bound_value;
    use super::*;
    use crate::codes::{pack, Codes, ValueKind};
    use proptest::prelude::*;

    proptest! {
        /// Every nonzero is in the one list that it belongs to, under a bound, and nowhere else.
        #[test]
        fn lists_hold_every_nonzero_once_by_descending_bound(
            rows in proptest::collection::vec(
                proptest::collection::btree_map(0u32..20, -10.0f32..10.0, 0..12), 0..60),
            block_items in 1usize..40,
        ) {
            let mut indptr = vec![0i64];
            let (mut latents, mut values) = (Vec::new(), Vec::new());
            for row in &rows {
                latents.extend(row.keys().copied());
                values.extend(row.values().copied());
                indptr.push(latents.len() as i64);
            }
            let codes = Codes::from_csr(&indptr, &latents, &values, 20).unwrap();
            let control = Control::new();
            let packed = pack(codes.view(), ValueKind::Int8, &control).unwrap();
            let view = packed.view().unwrap();
            let scales = Scales::Float32(&packed.steps);
            let postings = build(&view, &scales, block_items, &control).unwrap();
            let postings = postings.view(rows.len()).unwrap();
            let mut expected = Vec::new();
            for row in 0..rows.len() {
                for (latent, level) in view.pairs(row) {
                    let weight = level * f64::from(packed.steps[row]);
                    if weight != 0.0 {
                        expected.push((latent, weight < 0.0, row, weight.abs()));
                    }
                }
            }
            let mut found = 0;
            let mut squares = vec![0.0; rows.len()];
            for (slot, &latent) in postings.latents().iter().enumerate() {
                for is_negative in [false, true] {
                    for block in 0..postings.n_blocks() {
                        let mut last = f32::INFINITY;
                        for chunk in postings.list(slot, is_negative, block) {
                            prop_assert!(bound_value(chunk[0]) <= last);
                            last = bound_value(chunk[0]);
                            let real = chunk[1..].iter().filter(|&&p| usize::from(p) != block_items);
                            for &position in real {
                                let row = block * block_items + usize::from(position);
                                let matching = expected.iter().filter(|e| {
                                    (e.0, e.1, e.2) == (latent, is_negative, row)
                                        && e.3 <= f64::from(last)
                                });
                                prop_assert_eq!(matching.count(), 1);
                                squares[row] += f64::from(last).powi(2);
                                found += 1;
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(found, expected.len());
            for (block, squares) in squares.chunks(block_items).enumerate() {
                let largest = squares.iter().fold(0.0f64, |a, &b| a.max(b)).sqrt();
                let norm = f64::from(postings.norm(block));
                prop_assert!(norm >= largest && norm <= largest * (1.0 + 2f64.powi(-23)));
            }
        }
    }
}
