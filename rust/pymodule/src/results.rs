//! What a search found, as arrays.

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use sparse_retrieval::search::Hit;
use sparse_retrieval::Error;

/// Scores and ids, a row a query.
pub type Results<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray2<i64>>);

/// The arrays of what [`flatten`] returned.
pub fn results(
    py: Python<'_>,
    n_queries: usize,
    scores: Vec<f64>,
    ids: Vec<i64>,
    found: usize,
) -> PyResult<Results<'_>> {
    let shape = [n_queries, found];
    Ok((
        scores.into_pyarray(py).reshape(shape)?,
        ids.into_pyarray(py).reshape(shape)?,
    ))
}

/// Scores and ids of all queries, one after the other, and the number of hits of each. Where
/// queries have different numbers, as they exclude different ones, -inf and -1 fill the rest.
pub fn flatten(
    hits: &[Vec<Hit>],
    ids: Option<&[i64]>,
) -> sparse_retrieval::Result<(Vec<f64>, Vec<i64>, usize)> {
    let found = hits.iter().map(Vec::len).max().unwrap_or(0);
    let total = hits.len() * found;
    let (mut scores, mut named) = (Vec::new(), Vec::new());
    let out_of_memory = |_| Error::OutOfMemory {
        what: "search results",
        bytes: total.saturating_mul(16),
    };
    scores.try_reserve_exact(total).map_err(out_of_memory)?;
    named.try_reserve_exact(total).map_err(out_of_memory)?;
    for hits in hits {
        for hit in hits {
            scores.push(hit.score + 0.0); // -0 becomes 0
            named.push(ids.map_or(hit.position as i64, |ids| ids[hit.position as usize]));
        }
        scores.resize(scores.len() + found - hits.len(), f64::NEG_INFINITY);
        named.resize(named.len() + found - hits.len(), -1);
    }
    Ok((scores, named, found))
}
