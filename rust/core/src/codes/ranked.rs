//! Rank-coded rows: a nonzero is its latent, a sign and a few bits of magnitude, looked up in a
//! codebook of its rank.
//!
//! Nonzeros stand by descending magnitude, and that order is information: it narrows what the
//! magnitude at each rank can be, so a codebook of its own for each rank makes three bits
//! almost lossless. A [`RankedLayout`] says where the bits of each rank lie and what they mean.
//! How codebooks and levels are chosen is in `quantise`.
//!
//! Rows that have every latent need not say which: their fields stand in the order of the
//! latents, with a codebook of its own for each latent. Such a layout has no bits of latent and is
//! called complete.

use std::ops::Range;

use crate::{Error, Result};

/// The most bits of a magnitude: with 16 bits of latent and a sign a field then has 24 bits,
/// which a load of 32 bits holds at any position in its first byte.
pub const MAX_MAGNITUDE_BITS: u8 = 7;

/// The most bits of a magnitude in a complete row: codebooks double with every bit, and beyond
/// this one they would weigh as much as the rows of a small index.
pub const MAX_COMPLETE_BITS: u8 = 11;

/// The most bits of a magnitude beside so many bits of latent.
pub fn max_magnitude_bits(latent_bits: u32) -> u8 {
    if latent_bits == 0 {
        MAX_COMPLETE_BITS
    } else {
        MAX_MAGNITUDE_BITS
    }
}

/// Ranks that kernels take at a time.
const GROUP: usize = 8;

/// Where the fields of a row lie, and the level of each.
///
/// Field `r` has `latent_bits` bits of latent, lowest first, one sign bit (1 is negative), and
/// `magnitude_bits[r]` bits that choose a level of rank `r`. Fields follow each other without
/// gaps, from the lowest bit of the first byte; a row ends at a whole byte and has at least 4.
/// Without bits of latent, field `r` is that of latent `r`.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedLayout {
    latent_bits: u32,
    magnitude_bits: Vec<u8>,
    /// Levels of all ranks, one rank after the other, as the file holds them.
    levels: Vec<f32>,
    row_bytes: usize,
    is_words: bool,
    /// One entry a rank, padded to whole groups with fields that read a level of 0.
    offsets: Vec<i32>,
    shifts: Vec<i32>,
    signed_masks: Vec<i32>,
    bases: Vec<i32>,
    /// Levels by sign and magnitude; the last entry is 0, for the padding.
    signed_levels: Vec<f64>,
}

impl RankedLayout {
    /// The layout of rows with `magnitude_bits.len()` nonzeros, complete where `latent_bits` is 0.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is no rank, bits are out of range, or there are not
    /// `sum 2^bits` finite levels.
    pub fn new(latent_bits: u32, magnitude_bits: Vec<u8>, levels: Vec<f32>) -> Result<Self> {
        let most_bits = max_magnitude_bits(latent_bits);
        let sound = latent_bits <= 16
            && !magnitude_bits.is_empty()
            && magnitude_bits.iter().all(|&bits| bits <= most_bits)
            && magnitude_bits.len() <= 1 << 16;
        let n_levels: usize = magnitude_bits
            .iter()
            .map(|&bits| 1usize << (bits & 15))
            .sum();
        if !sound || levels.len() != n_levels || levels.iter().any(|level| !level.is_finite()) {
            return Err(Error::argument(format!(
                "a rank-coded row needs at most 16 bits of latent (got {latent_bits}), at most \
                 {most_bits} bits of magnitude a rank (got {magnitude_bits:?}) and \
                 {n_levels} finite levels (got {})",
                levels.len()
            )));
        }
        let row_bytes = row_bytes(latent_bits, &magnitude_bits);
        let mut layout = Self {
            latent_bits,
            magnitude_bits,
            levels,
            row_bytes,
            is_words: false,
            offsets: Vec::new(),
            shifts: Vec::new(),
            signed_masks: Vec::new(),
            bases: Vec::new(),
            signed_levels: Vec::new(),
        };
        layout.index_fields();
        Ok(layout)
    }

    fn index_fields(&mut self) {
        self.is_words = self.width().is_multiple_of(GROUP)
            && self
                .magnitude_bits
                .iter()
                .all(|&bits| self.latent_bits + 1 + u32::from(bits) == 16)
            && self.row_bytes == 2 * self.width();
        let mut first_bit = 0;
        let mut first_level = 0;
        for &bits in &self.magnitude_bits {
            // the last fields are read from the row's last four bytes, never beyond them
            let byte = (first_bit / 8).min(self.row_bytes - 4);
            self.offsets.push(byte as i32);
            self.shifts.push((first_bit - 8 * byte) as i32);
            self.signed_masks.push((2i32 << bits) - 1);
            self.bases.push(self.signed_levels.len() as i32);
            let levels = &self.levels[first_level..first_level + (1 << bits)];
            // the index is sign, then magnitude: bit 0 is the sign
            for &level in levels {
                self.signed_levels
                    .extend([f64::from(level), -f64::from(level)]);
            }
            first_level += levels.len();
            first_bit += (self.latent_bits + 1) as usize + usize::from(bits);
        }
        let zero = self.signed_levels.len() as i32;
        self.signed_levels.push(0.0);
        for _ in self.width()..self.width().next_multiple_of(GROUP) {
            self.offsets.push(0);
            self.shifts.push(0);
            self.signed_masks.push(0);
            self.bases.push(zero);
        }
    }

    /// The same rows, read as if they ended after `ranks` nonzeros.
    pub fn prefix(&self, ranks: usize) -> Self {
        let ranks = ranks.clamp(1, self.width());
        let kept: usize = self.magnitude_bits[..ranks]
            .iter()
            .map(|&bits| 1usize << bits)
            .sum();
        let mut layout = Self {
            latent_bits: self.latent_bits,
            magnitude_bits: self.magnitude_bits[..ranks].to_vec(),
            levels: self.levels[..kept].to_vec(),
            row_bytes: self.row_bytes,
            is_words: false,
            offsets: Vec::new(),
            shifts: Vec::new(),
            signed_masks: Vec::new(),
            bases: Vec::new(),
            signed_levels: Vec::new(),
        };
        layout.index_fields();
        layout
    }

    /// Nonzeros of a row.
    pub fn width(&self) -> usize {
        self.magnitude_bits.len()
    }

    /// True where rows have every latent, in order.
    pub fn is_complete(&self) -> bool {
        self.latent_bits == 0
    }

    /// Latents that a field, or what fills the last group, can name: `0` to one less.
    pub(crate) fn nameable(&self) -> usize {
        if self.is_complete() {
            self.width().next_multiple_of(GROUP)
        } else {
            1 << self.latent_bits
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bits of a latent.
    pub fn latent_bits(&self) -> u32 {
        self.latent_bits
    }

    /// Bits of magnitude of each rank.
    pub fn magnitude_bits(&self) -> &[u8] {
        &self.magnitude_bits
    }

    /// Levels of all ranks, one rank after the other.
    pub fn levels(&self) -> &[f32] {
        &self.levels
    }

    /// Where the levels of `rank` stand among [`RankedLayout::levels`].
    pub fn levels_of(&self, rank: usize) -> Range<usize> {
        let first: usize = self.magnitude_bits[..rank]
            .iter()
            .map(|&bits| 1usize << bits)
            .sum();
        first..first + (1 << self.magnitude_bits[rank])
    }

    /// The latent and the signed level of `rank` in a row of [`RankedLayout::row_bytes`] bytes.
    #[inline(always)]
    pub fn field(&self, row: &[u8], rank: usize) -> (u32, f64) {
        let (latent, index) = self.indexed_field(row, rank);
        (latent, self.signed_levels[index])
    }

    /// The latent of `rank`, and the index of its level among [`RankedLayout::signed_levels`].
    #[inline(always)]
    pub(crate) fn indexed_field(&self, row: &[u8], rank: usize) -> (u32, usize) {
        let (latent, rest) = self.raw_field(row, rank);
        let signed = rest as i32 & self.signed_masks[rank];
        (latent, (self.bases[rank] + signed) as usize)
    }

    /// The latent of `rank`, and above it sign and magnitude with whatever bits follow them.
    #[inline(always)]
    pub(crate) fn raw_field(&self, row: &[u8], rank: usize) -> (u32, u32) {
        let offset = self.offsets[rank] as usize;
        let bytes: [u8; 4] = row[offset..offset + 4].try_into().expect("four bytes");
        let field = u32::from_le_bytes(bytes) >> self.shifts[rank];
        let latent = if self.is_complete() {
            rank as u32
        } else {
            field & ((1 << self.latent_bits) - 1)
        };
        (latent, field >> self.latent_bits)
    }

    /// Writes a field into a zeroed row. In a complete one `latent` is the rank.
    pub fn set_field(&self, row: &mut [u8], rank: usize, latent: u32, negative: bool, level: u32) {
        debug_assert!(!self.is_complete() || latent as usize == rank);
        let latent = if self.is_complete() { 0 } else { latent };
        let field =
            latent | u32::from(negative) << self.latent_bits | level << (self.latent_bits + 1);
        let offset = self.offsets[rank] as usize;
        let slot: &mut [u8] = &mut row[offset..offset + 4];
        let old = u32::from_le_bytes(slot.try_into().expect("four bytes"));
        slot.copy_from_slice(&(old | field << self.shifts[rank]).to_le_bytes());
    }

    /// True where every field is a whole 16-bit word and groups are full, which kernels read
    /// faster.
    pub(crate) fn is_words(&self) -> bool {
        self.is_words
    }

    /// Offsets, shifts, masks of sign and magnitude, and bases of the levels, of all ranks;
    /// whole groups of eight. Offsets are at most `row_bytes - 4`, shifts at most 31, and
    /// `base + mask` is an index of [`RankedLayout::signed_levels`].
    pub(crate) fn groups(&self) -> [&[i32]; 4] {
        [&self.offsets, &self.shifts, &self.signed_masks, &self.bases]
    }

    /// Levels by base, magnitude and sign.
    pub(crate) fn signed_levels(&self) -> &[f64] {
        &self.signed_levels
    }
}

/// Bytes of a row with these bits.
pub fn row_bytes(latent_bits: u32, magnitude_bits: &[u8]) -> usize {
    let bits: usize = magnitude_bits
        .iter()
        .map(|&bits| latent_bits as usize + 1 + usize::from(bits))
        .sum();
    bits.div_ceil(8).max(4)
}

/// Bits that hold every latent below `dim`.
///
/// # Errors
/// [`Error::Argument`] for more than 65,536 latents.
pub fn latent_bits_of(dim: usize) -> Result<u32> {
    if dim > 1 << 16 {
        return Err(Error::argument(format!(
            "rank-coded values (value_bits below 8) are for at most 65536 latents, got {dim}; use \
             value_bits=8"
        )));
    }
    Ok(dim.next_power_of_two().trailing_zeros().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn latent_bits_are_just_enough() {
        for (dim, bits) in [(1, 1), (2, 1), (3, 2), (4096, 12), (4097, 13), (65_536, 16)] {
            assert_eq!(latent_bits_of(dim).unwrap(), bits);
        }
        assert!(latent_bits_of(65_537).is_err());
    }

    #[test]
    fn sixteen_bit_fields_are_words_and_others_are_not() {
        let levels = vec![1.0; 8 * 8];
        assert!(RankedLayout::new(12, vec![3; 8], levels.clone())
            .unwrap()
            .is_words());
        assert!(!RankedLayout::new(13, vec![3; 8], levels.clone())
            .unwrap()
            .is_words());
        assert!(!RankedLayout::new(12, vec![3; 8], levels)
            .unwrap()
            .prefix(7)
            .is_words());
    }

    #[test]
    fn unsound_layouts_are_refused() {
        assert!(RankedLayout::new(0, vec![0], vec![1.0, 1.0]).is_err());
        assert!(RankedLayout::new(0, vec![12], vec![1.0; 1 << 12]).is_err());
        assert!(RankedLayout::new(17, vec![0], vec![1.0]).is_err());
        assert!(RankedLayout::new(4, vec![8], vec![1.0; 256]).is_err());
        assert!(RankedLayout::new(4, vec![255], vec![1.0; 128]).is_err());
        assert!(RankedLayout::new(4, vec![1], vec![1.0]).is_err());
        assert!(RankedLayout::new(4, vec![0], vec![f32::NAN]).is_err());
        assert!(RankedLayout::new(4, vec![], vec![]).is_err());
    }

    proptest! {
        #[test]
        fn fields_come_back_as_they_were_written(
            (latent_bits, bits) in (0u32..=16).prop_flat_map(|latent_bits| (
                Just(latent_bits),
                proptest::collection::vec(0u8..=max_magnitude_bits(latent_bits), 1..40),
            )),
            seed in any::<u64>(),
        ) {
            let n_levels: usize = bits.iter().map(|&b| 1usize << b).sum();
            let levels: Vec<f32> = (0..n_levels).map(|i| i as f32 + 1.0).collect();
            let layout = RankedLayout::new(latent_bits, bits.clone(), levels).unwrap();
            let mut row = vec![0u8; layout.row_bytes()];
            let mut state = seed;
            let mut expected = Vec::new();
            for (rank, &b) in bits.iter().enumerate() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let latent = match latent_bits {
                    0 => rank as u32,
                    _ => (state >> 33) as u32 & ((1 << latent_bits) - 1),
                };
                let negative = state >> 20 & 1 == 1;
                let level = (state >> 40) as u32 & ((1 << b) - 1);
                layout.set_field(&mut row, rank, latent, negative, level);
                let value = f64::from(layout.levels()[layout.levels_of(rank)][level as usize]);
                expected.push((latent, if negative { -value } else { value }));
            }
            let got: Vec<_> = (0..bits.len()).map(|rank| layout.field(&row, rank)).collect();
            prop_assert_eq!(&got, &expected);
            let half = layout.prefix(bits.len().div_ceil(2));
            let got: Vec<_> = (0..half.width()).map(|rank| half.field(&row, rank)).collect();
            prop_assert_eq!(&got[..], &expected[..half.width()]);
        }
    }
}
