//! What a search may return, as Python hands it over.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use sparse_retrieval::index::{OwnedIds, Snapshot};
use sparse_retrieval::search::{Bitmap as CoreBitmap, Exclusions};
use sparse_retrieval::{Error, Result};

use crate::error::to_python;
use crate::ids;

/// A set of positions, one bit each.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct Bitmap {
    pub(crate) core: Arc<CoreBitmap>,
    /// The moment of the index that it was made for, where it was made from ids.
    pub(crate) moment: Option<u64>,
}

#[pymethods]
impl Bitmap {
    #[new]
    #[pyo3(signature = (packed, n))]
    fn new(packed: PyReadonlyArray1<'_, u8>, n: usize) -> PyResult<Self> {
        let core = CoreBitmap::from_packed(n, packed.as_slice()?).map_err(to_python)?;
        Ok(Self {
            core: Arc::new(core),
            moment: None,
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

/// A filter of Python, copied before the interpreter is let go.
#[derive(Clone)]
pub enum Filter {
    /// Bits, and the moment of the index that they are for, where that is known.
    Bits(Arc<CoreBitmap>, Option<u64>),
    /// Ids.
    Ids(OwnedIds),
}

impl Filter {
    /// Copies ids, shares bits.
    pub fn copied(filter: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bits) = filter.cast::<Bitmap>() {
            let bits = bits.get();
            return Ok(Self::Bits(Arc::clone(&bits.core), bits.moment));
        }
        Ok(Self::Ids(ids::owned(filter)?))
    }

    /// The items that it allows at one moment of an index.
    pub fn in_snapshot(self, snapshot: &Snapshot) -> Result<Arc<CoreBitmap>> {
        match self {
            Self::Bits(_, Some(moment)) if moment != snapshot.moment() => Err(Error::argument(
                "the index has changed since this bitmap was made from ids; make it again",
            )),
            Self::Bits(bits, _) => Ok(bits),
            Self::Ids(ids) => Ok(Arc::new(snapshot.bitmap(&ids, "filter")?)),
        }
    }
}

/// Ids that each query excludes: where each query's list starts, and all lists.
pub type ExcludedIds<'py> = (PyReadonlyArray1<'py, u64>, Bound<'py, PyAny>);

/// The same, copied before the interpreter is let go.
#[derive(Clone)]
pub struct Excluded {
    starts: Vec<usize>,
    ids: OwnedIds,
}

impl Excluded {
    /// Copies the arrays.
    pub fn copied(excluded: &ExcludedIds<'_>) -> PyResult<Self> {
        let (starts, excluded) = excluded;
        Ok(Self {
            starts: starts.as_slice()?.iter().map(|&at| at as usize).collect(),
            ids: ids::owned(excluded)?,
        })
    }

    /// Their positions at one moment of an index.
    pub fn in_snapshot(self, snapshot: &Snapshot) -> Result<Exclusions> {
        let positions = snapshot.positions_of(&self.ids, "exclude")?;
        Exclusions::new(self.starts, positions)
    }
}
