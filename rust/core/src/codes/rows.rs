//! Packed rows as they lie in memory or in a file, borrowed: plain or rank-coded.
//!
//! A plain row holds first its latents, then its values, each little-endian and unaligned:
//! `[latent; m][value; m]`. Its nonzeros stand in rank order, that is by descending |value|,
//! equal ones by ascending latent, so that a prefix of the ranks is a coarser code of the
//! same item. Either every row has the same width (shorter ones are filled with latent 0,
//! value 0, which adds nothing to any score) or `offsets` says where each starts.

use std::ops::Range;

use super::ranked::RankedLayout;
use crate::{Error, Result};

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueKind {
    /// The value itself.
    Float32,
    /// A level of -32767 to 32767, times the row's step.
    Int16,
    /// A level of -127 to 127, times the row's step.
    Int8,
    /// A sign and a few bits, looked up in the codebook of the nonzero's rank.
    Ranked,
}

impl ValueKind {
    /// The largest level of a uniform grid, or `None` where values are not on one.
    pub fn max_level(self) -> Option<f32> {
        match self {
            Self::Float32 | Self::Ranked => None,
            Self::Int16 => Some(32767.0),
            Self::Int8 => Some(127.0),
        }
    }

    /// True where a row's values are its levels times a step, so that scores need a scale.
    pub fn has_step(self) -> bool {
        self != Self::Float32
    }
}

/// How a nonzero of a plain row is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowFormat {
    /// 16 where latents are below 65,536, else 32.
    pub latent_bits: u32,
    /// The form of values; not [`ValueKind::Ranked`].
    pub value: ValueKind,
}

impl RowFormat {
    /// The smallest format for latents below `dim`.
    pub fn new(dim: usize, value: ValueKind) -> Self {
        Self {
            latent_bits: if dim <= 1 << 16 { 16 } else { 32 },
            value,
        }
    }

    /// Bytes of a latent.
    pub fn latent_bytes(self) -> usize {
        self.latent_bits as usize / 8
    }

    /// Bytes of a value.
    pub fn value_bytes(self) -> usize {
        match self.value {
            ValueKind::Float32 => 4,
            ValueKind::Int16 => 2,
            ValueKind::Int8 => 1,
            ValueKind::Ranked => unreachable!("rank-coded rows have a RankedLayout"),
        }
    }

    /// Bytes of a nonzero.
    pub fn nonzero_bytes(self) -> usize {
        self.latent_bytes() + self.value_bytes()
    }
}

/// Where rows start, counted in nonzeros.
#[derive(Debug, Clone, Copy)]
pub enum RowSpan<'a> {
    /// Every row has this many nonzeros.
    Fixed(usize),
    /// Row `i` has the nonzeros `offsets[i]..offsets[i + 1]`.
    Offsets32(&'a [u32]),
    /// The same, for more nonzeros than 32 bits count.
    Offsets64(&'a [u64]),
}

/// What rows are made of.
#[derive(Debug, Clone, Copy)]
pub enum RowCoding<'a> {
    /// Latents, then values.
    Plain(RowFormat, RowSpan<'a>),
    /// One bit field a rank.
    Ranked(&'a RankedLayout),
}

/// Packed rows, borrowed from memory or from a mapped file.
///
/// Every access is safe for any content of the bytes: a span that does not lie in `data`, as a
/// damaged file may hold, reads as an empty row.
#[derive(Debug, Clone, Copy)]
pub struct RowsView<'a> {
    coding: RowCoding<'a>,
    n: usize,
    dim: usize,
    nonzeros: usize,
    ranks: usize,
    data: &'a [u8],
}

impl<'a> RowsView<'a> {
    /// `n` rows over `dim` latents.
    ///
    /// # Errors
    /// [`Error::Argument`] where `data` or the offsets have not the length that `n` asks for.
    /// What they hold is not read.
    pub fn new(coding: RowCoding<'a>, n: usize, dim: usize, data: &'a [u8]) -> Result<Self> {
        let (sound, unit) = match coding {
            RowCoding::Plain(format, span) => {
                let unit = format.nonzero_bytes();
                let sound = match span {
                    RowSpan::Fixed(width) => n
                        .checked_mul(width)
                        .and_then(|nonzeros| nonzeros.checked_mul(unit))
                        .is_some_and(|bytes| bytes == data.len()),
                    RowSpan::Offsets32(offsets) => Some(offsets.len()) == n.checked_add(1),
                    RowSpan::Offsets64(offsets) => Some(offsets.len()) == n.checked_add(1),
                };
                (sound, unit)
            }
            RowCoding::Ranked(layout) => {
                let bytes = n.checked_mul(layout.row_bytes());
                (bytes == Some(data.len()), layout.row_bytes())
            }
        };
        if !sound || !data.len().is_multiple_of(unit) {
            return Err(Error::argument(format!(
                "{n} rows do not fit {} bytes coded as {coding:?}",
                data.len()
            )));
        }
        Ok(Self {
            coding,
            n,
            dim,
            nonzeros: match coding {
                RowCoding::Plain(..) => data.len() / unit,
                RowCoding::Ranked(layout) => n * layout.width(),
            },
            ranks: usize::MAX,
            data,
        })
    }

    /// The same rows, read as if they ended after `ranks` nonzeros. A rank-coded view is cut by
    /// [`RankedLayout::prefix`] instead.
    pub fn with_ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// The most nonzeros of a row that are read.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// What rows are made of.
    #[inline(always)]
    pub fn coding(&self) -> RowCoding<'a> {
        self.coding
    }

    /// True where latents may exceed 65,535.
    pub fn has_wide_latents(&self) -> bool {
        matches!(self.coding, RowCoding::Plain(format, _) if format.latent_bits != 16)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// True where there is no row.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Number of latents.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of nonzeros stored, padding included.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// Where the nonzeros of a row of a plain coding are; nowhere, if the offsets are damaged.
    #[inline(always)]
    fn span(&self, span: RowSpan<'a>, row: usize) -> Range<usize> {
        let (start, end) = match span {
            RowSpan::Fixed(width) => (row * width, (row + 1) * width),
            RowSpan::Offsets32(offsets) => (offsets[row] as usize, offsets[row + 1] as usize),
            RowSpan::Offsets64(offsets) => (offsets[row] as usize, offsets[row + 1] as usize),
        };
        if start <= end && end <= self.nonzeros {
            start..end
        } else {
            0..0
        }
    }

    /// Row `row` of a plain coding: bytes of its latents and of its values; the first is a whole
    /// number of latents, the second the same number of values.
    #[inline(always)]
    pub fn plain_row(
        &self,
        format: RowFormat,
        span: RowSpan<'a>,
        row: usize,
    ) -> (&'a [u8], &'a [u8]) {
        let nonzeros = self.span(span, row);
        let bytes = format.nonzero_bytes();
        let data = &self.data[nonzeros.start * bytes..nonzeros.end * bytes];
        let (latents, values) = data.split_at(nonzeros.len() * format.latent_bytes());
        let read = nonzeros.len().min(self.ranks);
        (
            &latents[..read * format.latent_bytes()],
            &values[..read * format.value_bytes()],
        )
    }

    /// Row `row` of a rank coding: all its bytes.
    #[inline(always)]
    pub fn ranked_row(&self, layout: &RankedLayout, row: usize) -> &'a [u8] {
        &self.data[row * layout.row_bytes()..(row + 1) * layout.row_bytes()]
    }

    /// Some rows of a rank coding, one after the other.
    pub fn ranked_rows(&self, layout: &RankedLayout, rows: Range<usize>) -> &'a [u8] {
        &self.data[rows.start * layout.row_bytes()..rows.end * layout.row_bytes()]
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// All bytes of row `row`.
    #[inline]
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        match self.coding {
            RowCoding::Plain(format, span) => {
                let nonzeros = self.span(span, row);
                let bytes = format.nonzero_bytes();
                &self.data[nonzeros.start * bytes..nonzeros.end * bytes]
            }
            RowCoding::Ranked(layout) => self.ranked_row(layout, row),
        }
    }

    /// Calls `each` with the latents of row `row` that are below the dim.
    #[inline]
    pub fn for_each_latent(&self, row: usize, mut each: impl FnMut(usize)) {
        let dim = self.dim;
        let mut known = |latent: u32| {
            if (latent as usize) < dim {
                each(latent as usize);
            }
        };
        match self.coding {
            RowCoding::Plain(format, span) => {
                let (bytes, _) = self.plain_row(format, span, row);
                let latents = bytes.chunks_exact(format.latent_bytes());
                latents.for_each(|latent| known(latent_of(latent)));
            }
            RowCoding::Ranked(layout) if layout.is_words() => {
                let mask = (1u32 << layout.latent_bits()) - 1;
                let words = self.ranked_row(layout, row).chunks_exact(2);
                words.for_each(|word| known(latent_of(word) & mask));
            }
            RowCoding::Ranked(layout) => {
                let bytes = self.ranked_row(layout, row);
                (0..layout.width()).for_each(|rank| known(layout.raw_field(bytes, rank).0));
            }
        }
    }

    /// Row `row` as (latent, level) pairs in rank order; levels are not yet multiplied by the
    /// row's scale. The slow, obvious reading, for norms, verification and tests.
    pub fn pairs(&self, row: usize) -> Vec<(u32, f64)> {
        match self.coding {
            RowCoding::Plain(format, span) => {
                let (latents, values) = self.plain_row(format, span, row);
                latents
                    .chunks_exact(format.latent_bytes())
                    .zip(values.chunks_exact(format.value_bytes()))
                    .map(|(latent, value)| (latent_of(latent), value_of(value)))
                    .collect()
            }
            RowCoding::Ranked(layout) => {
                let bytes = self.ranked_row(layout, row);
                (0..layout.width())
                    .map(|rank| layout.field(bytes, rank))
                    .collect()
            }
        }
    }
}

/// The latent in 2 or 4 bytes.
pub(crate) fn latent_of(bytes: &[u8]) -> u32 {
    match *bytes {
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("latents have 2 or 4 bytes"),
    }
}

/// The value in 1, 2 or 4 bytes.
pub(crate) fn value_of(bytes: &[u8]) -> f64 {
    match *bytes {
        [a] => f64::from(i8::from_le_bytes([a])),
        [a, b] => f64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => unreachable!("values have 1, 2 or 4 bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_whose_offsets_are_damaged_reads_as_empty() {
        let format = RowFormat::new(10, ValueKind::Int8);
        let data = [1, 0, 2, 0, 5, 6, 3, 0, 7];
        let view = RowsView::new(
            RowCoding::Plain(format, RowSpan::Offsets32(&[0, 2, 1, 9])),
            3,
            10,
            &data,
        )
        .unwrap();
        assert_eq!(view.pairs(0), [(1, 5.0), (2, 6.0)]);
        assert_eq!(view.pairs(1), []);
        assert_eq!(view.pairs(2), []);
        assert_eq!(view.with_ranks(1).pairs(0), [(1, 5.0)]);
    }

    #[test]
    fn lengths_that_do_not_match_the_rows_are_refused() {
        let format = RowFormat::new(10, ValueKind::Int8);
        assert!(
            RowsView::new(RowCoding::Plain(format, RowSpan::Fixed(2)), 2, 10, &[0; 12]).is_ok()
        );
        assert!(
            RowsView::new(RowCoding::Plain(format, RowSpan::Fixed(2)), 2, 10, &[0; 11]).is_err()
        );
        assert!(RowsView::new(
            RowCoding::Plain(format, RowSpan::Fixed(usize::MAX)),
            2,
            10,
            &[0; 12]
        )
        .is_err());
        assert!(RowsView::new(
            RowCoding::Plain(format, RowSpan::Offsets32(&[0])),
            1,
            10,
            &[]
        )
        .is_err());
        assert!(RowsView::new(
            RowCoding::Plain(format, RowSpan::Offsets64(&[0, 0])),
            1,
            10,
            &[0; 4]
        )
        .is_err());
    }

    #[test]
    fn latents_take_16_bits_up_to_65536_of_them() {
        assert_eq!(RowFormat::new(65_536, ValueKind::Int8).latent_bits, 16);
        assert_eq!(RowFormat::new(65_537, ValueKind::Int8).latent_bits, 32);
    }
}
