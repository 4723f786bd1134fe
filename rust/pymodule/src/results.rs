//! What a search found, as arrays.

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyList;
use sparse_retrieval::index::Snapshot;
use sparse_retrieval::search::Hit;
use sparse_retrieval::Error;

/// Scores, a row a query, and ids: an array of the same shape, or, where ids are strings, a list
/// of all of them, one query after the other.
pub type Results<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyAny>);

/// Scores and positions of all queries, one after the other, and how many each has.
pub type Found = (Vec<f64>, Vec<i64>, usize);

/// The arrays of what [`flatten`] returned: ids where `by_id` asks for them, else positions.
pub fn results<'py>(
    py: Python<'py>,
    n_queries: usize,
    snapshot: &Snapshot,
    by_id: bool,
    found: Found,
) -> PyResult<Results<'py>> {
    let (scores, mut ids, found) = found;
    let shape = [n_queries, found];
    let scores = scores.into_pyarray(py).reshape(shape)?;
    if by_id && snapshot.ids_are_strings() {
        let texts = ids
            .iter()
            .map(|&position| snapshot.id_text(usize::try_from(position).ok()?));
        let texts = PyList::new(py, texts.collect::<Vec<_>>())?;
        return Ok((scores, texts.into_any()));
    }
    if by_id {
        for id in &mut ids {
            if let Ok(position) = usize::try_from(*id) {
                *id = snapshot.id_number(position);
            }
        }
    }
    Ok((scores, ids.into_pyarray(py).reshape(shape)?.into_any()))
}

/// Scores and positions of all queries, one after the other, and the number of hits of each.
/// Where queries have different numbers, as they exclude different ones, -inf and -1 fill the
/// rest.
pub fn flatten(hits: &[Vec<Hit>]) -> sparse_retrieval::Result<Found> {
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
            named.push(hit.position as i64);
        }
        scores.resize(scores.len() + found - hits.len(), f64::NEG_INFINITY);
        named.resize(named.len() + found - hits.len(), -1);
    }
    Ok((scores, named, found))
}
