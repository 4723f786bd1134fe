//! Ids between Python and the core: arrays of int64, or lists of strings.

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use sparse_retrieval::index::{Ids, OwnedIds};

/// Ids of Python, copied.
pub fn owned(ids: &Bound<'_, PyAny>) -> PyResult<OwnedIds> {
    if let Ok(numbers) = ids.extract::<PyReadonlyArray1<'_, i64>>() {
        return Ok(OwnedIds::Numbers(numbers.as_slice()?.to_vec()));
    }
    let list = ids
        .cast::<PyList>()
        .map_err(|_| PyTypeError::new_err("ids must be a 1-D array of int64 or a list of str"))?;
    let mut offsets = Vec::with_capacity(list.len() + 1);
    let mut bytes = Vec::new();
    offsets.push(0);
    for item in list {
        // a lone surrogate has no UTF-8: the error of Python says so
        bytes.extend_from_slice(item.cast::<PyString>()?.to_cow()?.as_bytes());
        offsets.push(bytes.len() as u64);
    }
    Ok(OwnedIds::Strings(offsets, bytes))
}

/// Ids for Python: None where they are the positions.
pub fn to_python<'py>(py: Python<'py>, ids: Ids<'_>) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(match ids {
        Ids::Positions(_) => None,
        Ids::Numbers(numbers) => Some(numbers.to_vec().into_pyarray(py).into_any()),
        Ids::Strings(strings) => {
            let texts = (0..strings.len()).map(|i| strings.get(i));
            Some(PyList::new(py, texts.collect::<Vec<_>>())?.into_any())
        }
    })
}
