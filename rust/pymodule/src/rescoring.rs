//! Rescoring against vectors that Python has fetched. Of indexes it knows nothing: positions are
//! whatever the caller counts by.

use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use sparse_retrieval::search::rescore::{rescore as core_rescore, Numbers, Originals};
use sparse_retrieval::search::Metric;

use crate::error::to_python;
use crate::gate::gate;
use crate::results::flatten;

/// Vectors of some items; of half precision as the bits of their numbers.
#[derive(FromPyObject)]
pub enum Vectors<'py> {
    Float16(PyReadonlyArray2<'py, u16>),
    Float32(PyReadonlyArray2<'py, f32>),
    Float64(PyReadonlyArray2<'py, f64>),
}

impl Vectors<'_> {
    /// The numbers, as the core takes them.
    fn numbers(&self) -> PyResult<Numbers<'_>> {
        Ok(match self {
            Self::Float16(rows) => Numbers::Float16(rows.as_slice()?),
            Self::Float32(rows) => Numbers::Float32(rows.as_slice()?),
            Self::Float64(rows) => Numbers::Float64(rows.as_slice()?),
        })
    }
}

/// Scores and positions, a row a query.
type Best<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray2<i64>>);

/// Scores candidates against vectors that have been fetched, and keeps the best.
#[pyfunction]
#[pyo3(signature = (candidates, queries, k, *, metric, positions, rows, vectors, threads))]
#[allow(clippy::too_many_arguments)] // rescoring.py names each of them
pub fn rescore<'py>(
    py: Python<'py>,
    candidates: PyReadonlyArray2<'py, i64>,
    queries: PyReadonlyArray2<'py, f64>,
    k: usize,
    metric: &str,
    positions: PyReadonlyArray1<'py, u64>,
    rows: PyReadonlyArray1<'py, u64>,
    vectors: Vectors<'py>,
    threads: Option<usize>,
) -> PyResult<Best<'py>> {
    // copied: another thread may write to the array while this one is detached
    let asked = queries.as_slice()?.to_vec();
    let (n, d) = queries.as_array().dim();
    let metric = Metric::from_name(metric).map_err(to_python)?;
    // not copied: rescoring.py has made these, and no other code holds them
    let wanted = candidates.as_slice()?;
    let rows = rows.as_slice()?;
    let originals = Originals::new(positions.as_slice()?, vectors.numbers()?, d)
        .and_then(|originals| originals.of_rows(rows))
        .map_err(to_python)?;
    let (scores, best, found) = gate(py, threads, None, |control| {
        let hits = core_rescore(&originals, &asked, wanted, metric, k, control)?;
        flatten(&hits)
    })?;
    let shape = [n, found];
    let scores = scores.into_pyarray(py).reshape(shape)?;
    Ok((scores, best.into_pyarray(py).reshape(shape)?))
}
