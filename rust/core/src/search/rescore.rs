//! The candidates of each query, scored against the vectors that their codes stand for.
//!
//! Codes are a few dozen bytes an item and stay in memory; the vectors lie elsewhere, and the
//! caller fetches those of the candidates alone. Knows nothing of where they were fetched from.
//! Sums are in double precision and in the order of [`crate::kernels`], so scores are the same
//! on every CPU; equal ones are ordered by position, as in any other search.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use super::{Hit, Metric, TopK};
use crate::control::Control;
use crate::kernels::{dot, norm};
use crate::{Error, Result};

/// The numbers of some vectors, row by row.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// The bits of half-precision numbers.
    Float16(&'a [u16]),
    /// Single precision.
    Float32(&'a [f32]),
    /// Double precision.
    Float64(&'a [f64]),
}

impl Numbers<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Float16(numbers) => numbers.len(),
            Self::Float32(numbers) => numbers.len(),
            Self::Float64(numbers) => numbers.len(),
        }
    }

    /// Row `row` of width `d` in double precision; `narrow` is room to work in.
    fn widen(&self, row: usize, narrow: &mut [f32], wide: &mut [f64]) {
        let d = wide.len();
        let at = row * d..(row + 1) * d;
        let singles = match self {
            Self::Float64(numbers) => return wide.copy_from_slice(&numbers[at]),
            Self::Float32(numbers) => &numbers[at],
            Self::Float16(bits) => {
                bits[at]
                    .reinterpret_cast::<f16>()
                    .convert_to_f32_slice(narrow);
                &*narrow
            }
        };
        for (wide, &single) in wide.iter_mut().zip(singles) {
            *wide = f64::from(single);
        }
    }
}

/// Vectors that have been fetched.
#[derive(Debug, Clone, Copy)]
pub struct Originals<'a> {
    /// Of which items, ascending.
    positions: &'a [u64],
    /// Which rows they were before they were fetched: for messages.
    rows: &'a [u64],
    numbers: Numbers<'a>,
    d: usize,
}

impl<'a> Originals<'a> {
    /// The vectors, `d` numbers each, of the items at these positions.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is not one vector a position, or positions do not ascend.
    pub fn new(positions: &'a [u64], numbers: Numbers<'a>, d: usize) -> Result<Self> {
        if d == 0 || positions.len().checked_mul(d) != Some(numbers.len()) {
            return Err(Error::argument(format!(
                "{} numbers are not {} vectors of {d}",
                numbers.len(),
                positions.len()
            )));
        }
        if !positions.is_sorted_by(|a, b| a < b) {
            return Err(Error::argument("positions of vectors do not ascend"));
        }
        Ok(Self {
            positions,
            rows: positions,
            numbers,
            d,
        })
    }

    /// The same, where they were other rows than their positions say.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is not one row a position.
    pub fn of_rows(self, rows: &'a [u64]) -> Result<Self> {
        if rows.len() != self.positions.len() {
            return Err(Error::argument(format!(
                "{} rows for {} positions",
                rows.len(),
                self.positions.len()
            )));
        }
        Ok(Self { rows, ..self })
    }
}

/// The best `k` of each query's candidates, best first, ties by lower position.
///
/// `queries` are embeddings, row by row; the candidates of query `q` are the positions
/// `candidates[q * len..(q + 1) * len]` with `len` the same for all, -1 standing for none. Runs
/// on the current rayon pool.
///
/// # Errors
/// [`Error::Argument`] where queries have another width than the vectors, a candidate's vector
/// has not been fetched, or one of those fetched holds NaN, infinity or a number beyond single
/// precision; [`Error::Interrupted`].
pub fn rescore(
    originals: &Originals<'_>,
    queries: &[f64],
    candidates: &[i64],
    metric: Metric,
    k: usize,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let d = originals.d;
    let n_queries = queries.len() / d;
    if n_queries * d != queries.len() || n_queries == 0 {
        let queries = queries.len();
        return match queries {
            0 => Ok(Vec::new()),
            _ => Err(Error::argument(format!(
                "{queries} numbers are no whole queries of {d} columns"
            ))),
        };
    }
    let each = candidates.len() / n_queries;
    check_numbers(originals)?;
    queries
        .par_chunks_exact(d)
        .enumerate()
        .map(|(q, query)| {
            control.check()?;
            let candidates = &candidates[q * each..(q + 1) * each];
            Ok(best_of(originals, query, candidates, metric, k)?.into_sorted())
        })
        .collect()
}

fn best_of(
    originals: &Originals<'_>,
    query: &[f64],
    candidates: &[i64],
    metric: Metric,
    k: usize,
) -> Result<TopK> {
    let d = originals.d;
    let (mut narrow, mut vector) = (vec![0.0f32; d], vec![0.0f64; d]);
    let mut query = query.to_vec();
    if metric == Metric::Cosine {
        let norm = length(&query);
        if norm > 0.0 {
            query.iter_mut().for_each(|x| *x /= norm);
        }
    }
    let mut top = TopK::new(k);
    for &candidate in candidates.iter().filter(|&&candidate| candidate >= 0) {
        let position = candidate as u64;
        let row = originals.positions.binary_search(&position).map_err(|_| {
            Error::argument(format!("the vector of position {position} was not fetched"))
        })?;
        originals.numbers.widen(row, &mut narrow, &mut vector);
        let product = dot(&query, &vector);
        let score = match metric {
            Metric::InnerProduct => product,
            Metric::Cosine => match length(&vector) {
                0.0 => 0.0,
                norm => product / norm,
            },
        };
        top.push(score, position);
    }
    Ok(top)
}

/// The norm; of numbers whose squares neither vanish nor overflow without scaling them first.
fn length(vector: &[f64]) -> f64 {
    let square = dot(vector, vector);
    if (1e-200..1e200).contains(&square) {
        square.sqrt()
    } else {
        norm(vector)
    }
}

/// Refuses NaN, infinities and numbers beyond single precision, naming the first row with one.
fn check_numbers(originals: &Originals<'_>) -> Result<()> {
    let d = originals.d;
    let bad = (0..originals.positions.len())
        .into_par_iter()
        .with_min_len(64)
        .map_init(
            || (vec![0.0f32; d], vec![0.0f64; d]),
            |(narrow, wide), row| {
                originals.numbers.widen(row, narrow, wide);
                let at = wide
                    .iter()
                    .position(|x| x.is_nan() || x.abs() > f64::from(f32::MAX))?;
                Some((row, at, wide[at]))
            },
        )
        .find_first(Option::is_some)
        .flatten();
    match bad {
        None => Ok(()),
        Some((row, column, number)) => Err(Error::argument(format!(
            "rescore row {} holds {number} in column {column}; expected finite numbers within \
             float32",
            originals.rows[row]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(numbers: Numbers<'_>, metric: Metric) -> Vec<(u64, f64)> {
        let originals = Originals::new(&[3, 4, 9], numbers, 2).unwrap();
        let found = rescore(
            &originals,
            &[3.0, 4.0],
            &[9, -1, 4, 3],
            metric,
            2,
            &Control::new(),
        );
        let hits = found.unwrap().remove(0);
        hits.iter().map(|hit| (hit.position, hit.score)).collect()
    }

    #[test]
    fn every_width_of_number_gives_the_same_scores() {
        let singles = [1.0f32, 0.5, -2.0, 0.25, 0.0, 0.0];
        let halves = singles.map(|x| f16::from_f32(x).to_bits());
        let doubles = singles.map(f64::from);
        for (metric, expected) in [
            (Metric::InnerProduct, [(3, 5.0), (9, 0.0)]),
            (Metric::Cosine, [(3, 5.0 / 5.0 / 1.25f64.sqrt()), (9, 0.0)]),
        ] {
            let found = scores(Numbers::Float32(&singles), metric);
            for ((position, score), (at, wanted)) in found.iter().zip(expected) {
                assert_eq!(*position, at);
                assert!((score - wanted).abs() < 1e-15, "{score} {wanted}");
            }
            assert_eq!(scores(Numbers::Float16(&halves), metric), found);
            assert_eq!(scores(Numbers::Float64(&doubles), metric), found);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let numbers = Numbers::Float64(&[1.0, 2.0, f64::NAN, 4.0]);
        Originals::new(&[1], numbers, 3).unwrap_err();
        Originals::new(&[2, 1], numbers, 2).unwrap_err();
        Originals::new(&[1, 1], numbers, 2).unwrap_err();
        let originals = Originals::new(&[1, 7], numbers, 2).unwrap();
        let rescore = |queries: &[f64], candidates: &[i64]| {
            rescore(
                &originals,
                queries,
                candidates,
                Metric::Cosine,
                1,
                &Control::new(),
            )
        };
        let message = |queries, candidates| rescore(queries, candidates).unwrap_err().to_string();
        assert!(message(&[1.0, 1.0], &[1]).contains("row 7 holds NaN in column 0"));
        assert!(message(&[1.0], &[1]).contains("no whole queries of 2 columns"));
        assert!(rescore(&[], &[]).unwrap().is_empty());
        let sound = Numbers::Float64(&[1.0, 2.0]);
        let originals = Originals::new(&[5], sound, 2).unwrap();
        let absent = super::rescore(
            &originals,
            &[1.0, 1.0],
            &[6],
            Metric::Cosine,
            1,
            &Control::new(),
        );
        assert!(absent.unwrap_err().to_string().contains("position 6"));
    }
}
