//! Rough scores of rank-coded rows for one query: sums of 16-bit weights times 16-bit levels.
//!
//! The [`super::tile`] pass needs many queries to pay; this one is for a single query. Here, too,
//! every instruction set computes the same integers; what they prove about scores is the business
//! of `search::rough`.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::codes::RankedLayout;

/// Rows that a kernel takes at a time.
pub const ROUGH_ROWS: usize = 16;

/// The most signed levels of a rank that is looked up in registers: a sign and four bits.
pub const ROUGH_LEVELS: usize = 32;

/// One rank in so many may have more: those are looked up one by one.
const RANKS_A_WIDE_ONE: usize = 6;

/// Signed levels that a register of bytes holds.
pub const HALF_LEVELS: usize = 16;

/// The levels of two ranks, byte by byte: of the first [`HALF_LEVELS`] of each rank and of those
/// after them the lower and the upper bytes of the one rank and then of the other.
pub(super) type LevelBytes = [[[u8; HALF_LEVELS]; 4]; 2];

/// Ranks that are unpacked at a time.
pub(super) const GROUP: usize = 8;

/// Bytes that a half of a group is read with.
pub(super) const HALF_BYTES: usize = 16;

/// How eight fields are read: each half of a group lies in 16 bytes from its start on.
#[derive(Debug, Clone)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct GroupRead {
    /// Where the 16 bytes of each half start; they end within the row.
    pub starts: [usize; 2],
    /// Of each field its four bytes, counted from the start of its half.
    pub bytes: [u8; 4 * GROUP],
    /// Bits of the four bytes below the field.
    pub shifts: [u32; GROUP],
    /// Bits of sign and magnitude, above the latent.
    pub masks: [u32; GROUP],
}

/// A query, and how rows of one layout are read for it.
///
/// Keeps the promises on which kernels rely: there are `2^latent_bits` weights and whole groups
/// of ranks, and reads stay within a row.
#[derive(Debug, Clone)]
pub struct RoughQuery<'a> {
    layout: &'a RankedLayout,
    weights: Vec<i16>,
    /// In the order of the layout's signed levels.
    in_order: Vec<i16>,
    /// Ranks with more than [`ROUGH_LEVELS`] of them.
    wide: Vec<usize>,
    /// Two ranks each, [`ROUGH_LEVELS`] signed levels of the one and then of the other; zeros for
    /// those of wide ranks.
    levels: Vec<[i16; 2 * ROUGH_LEVELS]>,
    /// The same.
    level_bytes: Vec<LevelBytes>,
    reads: Vec<GroupRead>,
}

impl<'a> RoughQuery<'a> {
    /// A query that weighs latent `i` with `weights[i]`, 0 where there is none, for rows of
    /// `layout`, whose signed levels (in the layout's order) are read as `levels`.
    ///
    /// # Panics
    /// Where [`RoughQuery::can_read`] denies it, there are more weights than latents in the layout's bits, or not one level a signed
    /// level of the layout (which has one of 0 at the end, for padding).
    pub fn new(layout: &'a RankedLayout, weights: &[i16], levels: &[i16]) -> Self {
        assert!(Self::can_read(layout));
        let latents = 1usize << layout.latent_bits();
        assert!(weights.len() <= latents);
        assert_eq!(levels.len(), layout.signed_levels().len());
        let [offsets, shifts, masks, bases] = layout.groups();
        let mut padded = weights.to_vec();
        padded.resize(latents, 0);
        let mut pairs = vec![[0; 2 * ROUGH_LEVELS]; offsets.len() / 2];
        let wide: Vec<usize> = wide_ranks(layout).collect();
        for (rank, (&base, &mask)) in bases.iter().zip(masks).enumerate() {
            let (base, n) = (base as usize, mask as usize + 1);
            if n > ROUGH_LEVELS {
                continue;
            }
            let first = (rank % 2) * ROUGH_LEVELS;
            pairs[rank / 2][first..first + n].copy_from_slice(&levels[base..base + n]);
        }
        let reads = (0..offsets.len())
            .step_by(GROUP)
            .map(|first| {
                // a field starts at most nine bytes after the first of its half, so its four
                // bytes are within the sixteen from there; padding has an offset of 0
                let last = layout.row_bytes() - HALF_BYTES;
                let half = |half: usize| (offsets[first + 4 * half] as usize).min(last);
                let starts = [half(0), half(1)];
                GroupRead {
                    starts,
                    bytes: std::array::from_fn(|i| {
                        let start = starts[i / HALF_BYTES];
                        let offset = (offsets[first + i / 4] as usize).max(start);
                        (offset - start + i % 4) as u8
                    }),
                    shifts: std::array::from_fn(|i| shifts[first + i] as u32),
                    // of a wide rank the first level is looked up, which is 0 as all of them are
                    masks: std::array::from_fn(|i| match masks[first + i] as u32 {
                        mask if mask < ROUGH_LEVELS as u32 => mask,
                        _ => 0,
                    }),
                }
            })
            .collect();
        Self {
            layout,
            weights: padded,
            in_order: levels.to_vec(),
            wide,
            level_bytes: pairs.iter().map(bytes_of).collect(),
            levels: pairs,
            reads,
        }
    }

    /// True where rows have 16 bytes or more and say their latents, and few ranks have more than
    /// [`ROUGH_LEVELS`] signed levels: none where fields are words.
    pub fn can_read(layout: &RankedLayout) -> bool {
        let wide = wide_ranks(layout).count();
        let is_narrow =
            wide == 0 || !layout.is_words() && wide * RANKS_A_WIDE_ONE <= layout.width();
        layout.row_bytes() >= HALF_BYTES && is_narrow && !layout.is_complete()
    }

    /// What the wide ranks of a row add to its sum.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn wide_sum(&self, row: &[u8]) -> i32 {
        let product = |&rank: &usize| {
            let (latent, index) = self.layout.indexed_field(row, rank);
            i32::from(self.weights[latent as usize]) * i32::from(self.in_order[index])
        };
        self.wide.iter().map(product).sum()
    }

    /// Adds what the wide ranks add, if there are any.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn add_wide(&self, rows: &[u8], out: &mut [i32]) {
        if !self.wide.is_empty() {
            for (row, out) in rows.chunks_exact(self.row_bytes()).zip(out) {
                *out += self.wide_sum(row);
            }
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.layout.row_bytes()
    }

    pub(super) fn layout(&self) -> &RankedLayout {
        self.layout
    }

    pub(super) fn weights(&self) -> &[i16] {
        &self.weights
    }

    pub(super) fn levels(&self) -> &[[i16; 2 * ROUGH_LEVELS]] {
        &self.levels
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn level_bytes(&self) -> &[LevelBytes] {
        &self.level_bytes
    }

    /// True where a rank has more than [`HALF_LEVELS`] levels.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn has_many_levels(&self) -> bool {
        let narrow = HALF_LEVELS as u32;
        self.reads
            .iter()
            .any(|read| read.masks.iter().any(|&mask| mask >= narrow))
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn reads(&self) -> &[GroupRead] {
        &self.reads
    }
}

/// Ranks with more than [`ROUGH_LEVELS`] signed levels.
fn wide_ranks(layout: &RankedLayout) -> impl Iterator<Item = usize> + '_ {
    let masks = layout.groups()[2].iter().enumerate();
    masks
        .filter(|(_, &mask)| mask as usize >= ROUGH_LEVELS)
        .map(|(rank, _)| rank)
}

/// The levels of two ranks, byte by byte.
fn bytes_of(levels: &[i16; 2 * ROUGH_LEVELS]) -> LevelBytes {
    std::array::from_fn(|half| {
        std::array::from_fn(|byte| {
            std::array::from_fn(|i| {
                let at = byte / 2 * ROUGH_LEVELS + half * HALF_LEVELS + i;
                levels[at].to_le_bytes()[byte % 2]
            })
        })
    })
}

/// Scales of rows, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum RoughScales<'a> {
    /// Every scale is 1.
    One,
    /// One number a row.
    Single(&'a [f32]),
    /// One number a row.
    Half(&'a [f16]),
}

impl<'a> RoughScales<'a> {
    /// True where there are as many as rows.
    pub(super) fn fits(&self, n: usize) -> bool {
        match self {
            Self::One => true,
            Self::Single(scales) => scales.len() == n,
            Self::Half(scales) => scales.len() == n,
        }
    }

    /// Those of some rows.
    fn part(&self, rows: Range<usize>) -> Self {
        match self {
            Self::One => Self::One,
            Self::Single(scales) => Self::Single(&scales[rows]),
            Self::Half(scales) => Self::Half(&scales[rows]),
        }
    }
}

/// Scales other than 0 that single precision holds to full relative precision, with room for
/// products.
pub(super) const SOUND_SCALES: Range<f32> = 1e-25..1e25;

/// [`Kernels::rough_reached`](super::Kernels::rough_reached) in plain Rust.
pub fn reached(
    sums: &[i32],
    scales: RoughScales<'_>,
    error: f32,
    least: f32,
    out: &mut Vec<u16>,
) -> bool {
    let reaches = |sum: i32, scale: f32| (sum as f32 + error) * scale >= least;
    for first in (0..sums.len()).step_by(ROUGH_ROWS) {
        let rows = first..sums.len().min(first + ROUGH_ROWS);
        let mut wide = [1.0f32; ROUGH_ROWS];
        let wide = &mut wide[..rows.len()];
        match scales.part(rows.clone()) {
            RoughScales::One => {}
            RoughScales::Single(scales) => wide.copy_from_slice(scales),
            RoughScales::Half(scales) => scales.convert_to_f32_slice(wide),
        }
        let is_sound = |scale: &f32| *scale == 0.0 || SOUND_SCALES.contains(scale);
        if !wide.iter().all(is_sound) {
            return false;
        }
        // most rows do not; asking without a branch a row is what compilers vectorise
        let rows = sums[rows].iter().zip(&*wide);
        let any = rows.clone().fold(0, |any, (&sum, &scale)| {
            any | i32::from(reaches(sum, scale))
        });
        if any != 0 {
            let those = (first as u16..)
                .zip(rows)
                .filter(|(_, (&sum, &scale))| reaches(sum, scale));
            out.extend(those.map(|(row, _)| row));
        }
    }
    true
}

/// [`Kernels::rough_sums`](super::Kernels::rough_sums) in plain Rust.
pub fn sums(query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
    let layout = query.layout();
    if layout.is_words() {
        return word_sums(query, rows, out);
    }
    for (row, out) in rows.chunks_exact(layout.row_bytes()).zip(out) {
        let mut sum = 0i32;
        for rank in 0..layout.width() {
            let (latent, index) = layout.indexed_field(row, rank);
            sum += i32::from(query.weights()[latent as usize]) * i32::from(query.in_order[index]);
        }
        *out = sum;
    }
}

/// The same where fields are words.
fn word_sums(query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
    let bits = query.layout().latent_bits();
    let weights = query.weights();
    let mask = weights.len() - 1;
    for (row, out) in rows.chunks_exact(query.row_bytes()).zip(out) {
        let mut sum = 0i32;
        for (words, levels) in row.chunks_exact(4).zip(query.levels()) {
            let words = u32::from_le_bytes([words[0], words[1], words[2], words[3]]);
            for half in 0..2 {
                let word = (words >> (16 * half)) as usize & 0xffff;
                // a word has at most five bits above the latent (RoughQuery::new)
                let level = levels[half as usize * ROUGH_LEVELS + (word >> bits) % ROUGH_LEVELS];
                sum += i32::from(weights[word & mask]) * i32::from(level);
            }
        }
        *out = sum;
    }
}
