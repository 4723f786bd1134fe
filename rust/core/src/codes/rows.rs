//! Packed rows as they lie in memory or in a file, borrowed.
//!
//! A row holds first its latents, then its values, each little-endian and unaligned:
//! `[latent; m][value; m]`. Its nonzeros stand in rank order, that is by descending |value|,
//! equal ones by ascending latent, so that a prefix of the ranks is a coarser code of the
//! same item. Either every row has the same width (shorter ones are filled with latent 0,
//! value 0, which adds nothing to any score) or `offsets` says where each starts.

use std::ops::Range;

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
}

impl ValueKind {
    /// The kind that takes this many bits.
    ///
    /// # Errors
    /// [`Error::Argument`] for other numbers than 32, 16 and 8.
    pub fn from_bits(bits: u32) -> Result<Self> {
        match bits {
            32 => Ok(Self::Float32),
            16 => Ok(Self::Int16),
            8 => Ok(Self::Int8),
            _ => Err(Error::argument(format!(
                "value_bits is {bits}; expected 32, 16 or 8"
            ))),
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        self.bytes() as u32 * 8
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Int16 => 2,
            Self::Int8 => 1,
        }
    }

    /// The largest level, or `None` where values are not levels.
    pub fn max_level(self) -> Option<f32> {
        match self {
            Self::Float32 => None,
            Self::Int16 => Some(32767.0),
            Self::Int8 => Some(127.0),
        }
    }
}

/// How a nonzero is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowFormat {
    /// 16 where latents are below 65,536, else 32.
    pub latent_bits: u32,
    /// The form of values.
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

    /// Bytes of a nonzero.
    pub fn nonzero_bytes(self) -> usize {
        self.latent_bytes() + self.value.bytes()
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

/// Packed rows, borrowed from memory or from a mapped file.
///
/// Every access is safe for any content of the bytes: a span that does not lie in `data`, as a
/// damaged file may hold, reads as an empty row.
#[derive(Debug, Clone, Copy)]
pub struct RowsView<'a> {
    format: RowFormat,
    span: RowSpan<'a>,
    n: usize,
    dim: usize,
    nonzeros: usize,
    data: &'a [u8],
}

impl<'a> RowsView<'a> {
    /// `n` rows over `dim` latents.
    ///
    /// # Errors
    /// [`Error::Argument`] where `data` or the offsets have not the length that `n` asks for.
    /// What they hold is not read.
    pub fn new(
        format: RowFormat,
        span: RowSpan<'a>,
        n: usize,
        dim: usize,
        data: &'a [u8],
    ) -> Result<Self> {
        let sound = match span {
            RowSpan::Fixed(width) => n
                .checked_mul(width)
                .and_then(|nonzeros| nonzeros.checked_mul(format.nonzero_bytes()))
                .is_some_and(|bytes| bytes == data.len()),
            RowSpan::Offsets32(offsets) => Some(offsets.len()) == n.checked_add(1),
            RowSpan::Offsets64(offsets) => Some(offsets.len()) == n.checked_add(1),
        };
        if !sound || !data.len().is_multiple_of(format.nonzero_bytes()) {
            return Err(Error::argument(format!(
                "{n} rows do not fit {} bytes of nonzeros with {span:?}",
                data.len()
            )));
        }
        Ok(Self {
            format,
            span,
            n,
            dim,
            nonzeros: data.len() / format.nonzero_bytes(),
            data,
        })
    }

    /// How nonzeros are stored.
    pub fn format(&self) -> RowFormat {
        self.format
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

    /// The width that all rows have, where they have one.
    pub fn width(&self) -> Option<usize> {
        match self.span {
            RowSpan::Fixed(width) => Some(width),
            _ => None,
        }
    }

    /// Where the nonzeros of row `row` stand in `data`, made to lie inside it.
    #[inline(always)]
    fn nonzeros_of(&self, row: usize) -> Range<usize> {
        let (start, end) = match self.span {
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

    /// Bytes of the latents and of the values of row `row`; the first is a whole number of
    /// latents, the second the same number of values.
    #[inline(always)]
    pub fn row(&self, row: usize) -> (&'a [u8], &'a [u8]) {
        let nonzeros = self.nonzeros_of(row);
        let bytes = self.format.nonzero_bytes();
        let row = &self.data[nonzeros.start * bytes..nonzeros.end * bytes];
        row.split_at(nonzeros.len() * self.format.latent_bytes())
    }

    /// Row `row` as (latent, stored value) pairs in rank order; levels are not yet multiplied
    /// by the row's step. The slow, obvious reading, for norms, verification and tests.
    pub fn pairs(&self, row: usize) -> impl Iterator<Item = (u32, f32)> + 'a {
        let format = self.format;
        let (latents, values) = self.row(row);
        latents
            .chunks_exact(format.latent_bytes())
            .zip(values.chunks_exact(format.value.bytes()))
            .map(move |(latent, value)| {
                let latent = match *latent {
                    [a, b] => u32::from(u16::from_le_bytes([a, b])),
                    [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                    _ => unreachable!("latents have 2 or 4 bytes"),
                };
                let value = match *value {
                    [a] => f32::from(i8::from_le_bytes([a])),
                    [a, b] => f32::from(i16::from_le_bytes([a, b])),
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    _ => unreachable!("values have 1, 2 or 4 bytes"),
                };
                (latent, value)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_whose_offsets_are_damaged_reads_as_empty() {
        let format = RowFormat::new(10, ValueKind::Int8);
        let data = [1, 0, 2, 0, 5, 6, 3, 0, 7];
        let view = RowsView::new(format, RowSpan::Offsets32(&[0, 2, 1, 9]), 3, 10, &data).unwrap();
        assert_eq!(view.pairs(0).collect::<Vec<_>>(), vec![(1, 5.0), (2, 6.0)]);
        assert_eq!(view.pairs(1).count(), 0);
        assert_eq!(view.pairs(2).count(), 0);
    }

    #[test]
    fn lengths_that_do_not_match_the_rows_are_refused() {
        let format = RowFormat::new(10, ValueKind::Int8);
        assert!(RowsView::new(format, RowSpan::Fixed(2), 2, 10, &[0; 12]).is_ok());
        assert!(RowsView::new(format, RowSpan::Fixed(2), 2, 10, &[0; 11]).is_err());
        assert!(RowsView::new(format, RowSpan::Fixed(usize::MAX), 2, 10, &[0; 12]).is_err());
        assert!(RowsView::new(format, RowSpan::Offsets32(&[0]), 1, 10, &[]).is_err());
        assert!(RowsView::new(format, RowSpan::Offsets64(&[0, 0]), 1, 10, &[0; 4]).is_err());
    }

    #[test]
    fn latents_take_16_bits_up_to_65536_of_them() {
        assert_eq!(RowFormat::new(65_536, ValueKind::Int8).latent_bits, 16);
        assert_eq!(RowFormat::new(65_537, ValueKind::Int8).latent_bits, 32);
    }
}
