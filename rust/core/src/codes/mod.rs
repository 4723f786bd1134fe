//! Codes: short sparse rows over the latents, in memory.
//!
//! [`Codes`] and [`CodesView`] are the validated compressed-sparse-row form that everything
//! else trusts; [`pack()`] and [`pack_ranked`] turn it into the packed rows that an index stores and
//! scans. Knows
//! nothing of files, queries or scores.

pub(crate) mod levels;
pub mod pack;
pub mod quantise;
pub mod ranked;
mod row_quantiser;
mod rows;

pub use levels::RowLengths;
pub use pack::{pack, PackedRows};
pub use quantise::{learn_layout, pack_ranked, pack_with_layout, MagnitudeBits, RankedRows};
pub use ranked::RankedLayout;
pub use row_quantiser::AtomRows;
pub(crate) use rows::{latent_of, value_of};
pub use rows::{RowCoding, RowFormat, RowSpan, RowsView, ValueKind};

use std::ops::Range;

use crate::{Error, Result};

/// The largest number of latents: SIMD gathers index with signed 32-bit numbers.
pub const MAX_DIM: usize = i32::MAX as usize;

/// Codes in canonical form: in each row the latents ascend strictly and no value is zero, NaN
/// or infinite.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    indptr: Vec<u64>,
    latents: Vec<u32>,
    values: Vec<f32>,
    dim: usize,
}

/// [`Codes`] borrowed: rows `i` are `latents[indptr[i]..indptr[i + 1]]` and the same of
/// `values`.
#[derive(Debug, Clone, Copy)]
pub struct CodesView<'a> {
    indptr: &'a [u64],
    latents: &'a [u32],
    values: &'a [f32],
    dim: usize,
}

/// What may stand for a latent in input: any integer that fits an `i64`.
pub trait LatentIndex: Copy + Sync {
    /// The same number, signed.
    fn to_i64(self) -> i64;
}

macro_rules! latent_index {
    ($($int:ty),*) => {$(
        impl LatentIndex for $int {
            fn to_i64(self) -> i64 {
                i64::from(self)
            }
        }
    )*};
}
latent_index!(u16, i32, u32, i64);

/// Refuses a number of latents outside 1 to [`MAX_DIM`].
pub fn check_dim(dim: usize) -> Result<()> {
    if dim == 0 || dim > MAX_DIM {
        return Err(Error::argument(format!(
            "dim is {dim}; expected 1 to {MAX_DIM} latents"
        )));
    }
    Ok(())
}

impl Codes {
    /// Validates a compressed sparse row matrix and brings it into canonical form: rows are
    /// sorted by latent and stored zeros are dropped.
    ///
    /// # Errors
    /// [`Error::Argument`], with the row, where `indptr` does not start at 0, ascend and end at
    /// the number of values, a latent is not in `0..dim`, a value is NaN or infinite, or two
    /// nonzero values of a row have the same latent.
    pub fn from_csr<I: LatentIndex>(
        indptr: &[i64],
        latents: &[I],
        values: &[f32],
        dim: usize,
    ) -> Result<Self> {
        check_dim(dim)?;
        check_indptr(indptr, latents.len(), values.len())?;
        let mut codes = Self {
            indptr: Vec::with_capacity(indptr.len()),
            latents: Vec::with_capacity(latents.len()),
            values: Vec::with_capacity(values.len()),
            dim,
        };
        codes.indptr.push(0);
        let mut row_pairs = Vec::new();
        for (row, bounds) in indptr.windows(2).enumerate() {
            // check_indptr has shown that the bounds ascend from 0 to the number of values
            let (start, end) = (bounds[0] as usize, bounds[1] as usize);
            row_pairs.clear();
            for (&latent, &value) in latents[start..end].iter().zip(&values[start..end]) {
                let latent = latent.to_i64();
                if latent < 0 || latent >= dim as i64 {
                    return Err(Error::argument(format!(
                        "row {row} has latent {latent}; expected 0 to {} (dim is {dim})",
                        dim - 1
                    )));
                }
                if !value.is_finite() {
                    return Err(Error::argument(format!(
                        "row {row}, latent {latent}: the value is {value}; values must be finite \
                         in float32"
                    )));
                }
                if value != 0.0 {
                    row_pairs.push((latent as u32, value));
                }
            }
            if !row_pairs.is_sorted_by_key(|pair| pair.0) {
                row_pairs.sort_by_key(|pair| pair.0);
            }
            if let Some(twice) = row_pairs.windows(2).find(|two| two[0].0 == two[1].0) {
                return Err(Error::argument(format!(
                    "row {row} has latent {} more than once; each latent of a row must be given \
                     once",
                    twice[0].0
                )));
            }
            codes.latents.extend(row_pairs.iter().map(|pair| pair.0));
            codes.values.extend(row_pairs.iter().map(|pair| pair.1));
            codes.indptr.push(codes.latents.len() as u64);
        }
        Ok(codes)
    }

    /// The codes, borrowed.
    pub fn view(&self) -> CodesView<'_> {
        CodesView {
            indptr: &self.indptr,
            latents: &self.latents,
            values: &self.values,
            dim: self.dim,
        }
    }

    /// The row bounds, latents and values, given away.
    pub fn into_parts(self) -> (Vec<u64>, Vec<u32>, Vec<f32>) {
        (self.indptr, self.latents, self.values)
    }
}

impl<'a> CodesView<'a> {
    /// A view of arrays that are in canonical form already; everything is checked again, in one
    /// pass without copies, so that what reaches the packing is sound whoever made it.
    ///
    /// # Errors
    /// [`Error::Argument`], as [`Codes::from_csr`], and where a row is not canonical.
    pub fn new(
        indptr: &'a [u64],
        latents: &'a [u32],
        values: &'a [f32],
        dim: usize,
    ) -> Result<Self> {
        check_dim(dim)?;
        let bounds_ascend = indptr.first() == Some(&0)
            && indptr.is_sorted()
            && indptr.last() == Some(&(latents.len() as u64))
            && latents.len() == values.len();
        if !bounds_ascend {
            return Err(Error::argument(
                "indptr must start at 0, ascend and end at the number of latents and of values",
            ));
        }
        let view = Self {
            indptr,
            latents,
            values,
            dim,
        };
        for row in 0..view.len() {
            let (latents, values) = view.row(row);
            let canonical = latents.is_sorted_by(|a, b| a < b)
                && latents.last().is_none_or(|&last| (last as usize) < dim)
                && values
                    .iter()
                    .all(|&value| value.is_finite() && value != 0.0);
            if !canonical {
                return Err(Error::argument(format!(
                    "row {row} is not canonical: latents must ascend below {dim}, values must be \
                     finite and not zero"
                )));
            }
        }
        Ok(view)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.indptr.len() - 1
    }

    /// True where there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of latents of the code space.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of nonzeros in all rows.
    pub fn nnz(&self) -> usize {
        (self.indptr[self.len()] - self.indptr[0]) as usize
    }

    /// The rows `range` of these.
    ///
    /// # Panics
    /// Where `range` leaves the rows.
    pub fn rows(&self, range: Range<usize>) -> Self {
        Self {
            indptr: &self.indptr[range.start..=range.end],
            ..*self
        }
    }

    /// Where row `row` stands in the arrays of latents and values, which rows cut out by
    /// [`CodesView::rows`] share with the others.
    pub fn span(&self, row: usize) -> Range<usize> {
        self.indptr[row] as usize..self.indptr[row + 1] as usize
    }

    /// Latents and values of row `row`.
    pub fn row(&self, row: usize) -> (&'a [u32], &'a [f32]) {
        let span = self.span(row);
        (&self.latents[span.clone()], &self.values[span])
    }
}

fn check_indptr(indptr: &[i64], n_latents: usize, n_values: usize) -> Result<()> {
    if n_latents != n_values {
        return Err(Error::argument(format!(
            "{n_latents} latents but {n_values} values; each nonzero needs one of both"
        )));
    }
    if indptr.first() != Some(&0) {
        return Err(Error::argument(format!(
            "indptr starts with {}; expected 0",
            indptr.first().map_or("nothing".to_owned(), i64::to_string)
        )));
    }
    if let Some(row) = indptr.windows(2).position(|two| two[0] > two[1]) {
        return Err(Error::argument(format!(
            "indptr falls from {} to {} at row {row}; it must ascend (a count beyond 2^31 in 32 \
             bits wraps around: use 64-bit indptr)",
            indptr[row],
            indptr[row + 1]
        )));
    }
    let last = indptr[indptr.len() - 1];
    if last != n_values as i64 {
        return Err(Error::argument(format!(
            "indptr ends at {last}, but there are {n_values} values"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_sorted_and_without_stored_zeros() {
        let codes = Codes::from_csr(
            &[0, 3, 3, 5],
            &[7i64, 2, 5, 0, 0],
            &[1.0, -2.0, 0.0, 0.0, 4.0],
            8,
        )
        .unwrap();
        let view = codes.view();
        assert_eq!(view.row(0), (&[2u32, 7][..], &[-2.0f32, 1.0][..]));
        assert_eq!(view.row(1), (&[][..], &[][..]));
        assert_eq!(view.row(2), (&[0u32][..], &[4.0f32][..]));
        assert_eq!((view.len(), view.nnz(), view.dim()), (3, 3, 8));
    }

    #[test]
    fn rows_that_are_cut_out_are_those_of_the_whole() {
        let codes =
            Codes::from_csr(&[0, 1, 3, 3, 4], &[1i64, 0, 2, 3], &[1.0, 2.0, 3.0, 4.0], 4).unwrap();
        let cut = codes.view().rows(1..4).rows(0..3);
        assert_eq!((cut.len(), cut.nnz()), (3, 3));
        for row in 0..3 {
            assert_eq!(cut.row(row), codes.view().row(row + 1));
        }
        assert_eq!((cut.rows(3..3).len(), cut.rows(3..3).nnz()), (0, 0));
    }

    #[test]
    fn each_fault_is_refused_with_its_row() {
        let fault = |indptr: &[i64], latents: &[i64], values: &[f32]| {
            Codes::from_csr(indptr, latents, values, 4)
                .unwrap_err()
                .to_string()
        };
        assert!(fault(&[0, 1, 2], &[1, 4], &[1.0, 1.0]).contains("row 1 has latent 4"));
        assert!(fault(&[0, 1, 2], &[1, -1], &[1.0, 1.0]).contains("row 1 has latent -1"));
        assert!(fault(&[0, 1, 2], &[1, 2], &[1.0, f32::NAN]).contains("row 1, latent 2"));
        assert!(fault(&[0, 0, 2], &[2, 2], &[1.0, 1.0]).contains("row 1 has latent 2 more"));
        assert!(fault(&[0, 2, 1], &[1], &[1.0]).contains("at row 1"));
        assert!(fault(&[1, 1], &[1], &[1.0]).contains("starts with 1;"));
        assert!(fault(&[0, 2], &[1], &[1.0]).contains("ends at 2"));
        assert!(fault(&[0, 1], &[1], &[]).contains("1 latents but 0 values"));
        assert!(Codes::from_csr::<i64>(&[0], &[], &[], 0).is_err());
        assert!(Codes::from_csr::<i64>(&[0], &[], &[], MAX_DIM + 1).is_err());
    }

    #[test]
    fn a_view_refuses_rows_that_are_not_canonical() {
        assert!(CodesView::new(&[0, 2], &[1, 3], &[1.0, 2.0], 4).is_ok());
        assert!(CodesView::new(&[0, 2], &[3, 1], &[1.0, 2.0], 4).is_err());
        assert!(CodesView::new(&[0, 2], &[1, 1], &[1.0, 2.0], 4).is_err());
        assert!(CodesView::new(&[0, 2], &[1, 4], &[1.0, 2.0], 4).is_err());
        assert!(CodesView::new(&[0, 2], &[1, 3], &[1.0, 0.0], 4).is_err());
        assert!(CodesView::new(&[0, 3], &[1, 3], &[1.0, 2.0], 4).is_err());
        assert!(CodesView::new(&[], &[], &[], 4).is_err());
    }
}
