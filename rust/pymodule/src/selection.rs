//! What a search may return, as Python hands it over.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use sparse_retrieval::index::Index as CoreIndex;
use sparse_retrieval::search::{Bitmap as CoreBitmap, Exclusions};
use sparse_retrieval::Result;

use crate::error::to_python;

/// A set of positions, one bit each.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct Bitmap {
    pub(crate) core: Arc<CoreBitmap>,
}

#[pymethods]
impl Bitmap {
    #[new]
    #[pyo3(signature = (packed, n))]
    fn new(packed: PyReadonlyArray1<'_, u8>, n: usize) -> PyResult<Self> {
        let core = CoreBitmap::from_packed(n, packed.as_slice()?).map_err(to_python)?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    fn __len__(&self) -> usize {
        self.core.len()
    }

    /// How many positions are in it.
    #[getter]
    fn count(&self) -> usize {
        self.core.count()
    }

    /// Its bits, lowest first; a copy.
    #[getter]
    fn packed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        self.core.to_packed().into_pyarray(py)
    }
}

/// Ids that each query excludes: where each query's list starts, and all lists.
pub type ExcludedIds<'py> = (PyReadonlyArray1<'py, u64>, PyReadonlyArray1<'py, i64>);

/// The same, copied before the interpreter is let go.
pub struct Excluded {
    starts: Vec<usize>,
    ids: Vec<i64>,
}

impl Excluded {
    /// Copies the arrays.
    pub fn copied(excluded: &ExcludedIds<'_>) -> PyResult<Self> {
        let (starts, ids) = excluded;
        Ok(Self {
            starts: starts.as_slice()?.iter().map(|&at| at as usize).collect(),
            ids: ids.as_slice()?.to_vec(),
        })
    }

    /// Their positions in an index.
    pub fn in_index(self, index: &CoreIndex) -> Result<Exclusions> {
        let positions = index.positions(&self.ids, "exclude")?;
        Exclusions::new(self.starts, positions)
    }
}
