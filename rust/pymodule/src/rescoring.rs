//! Vectors that Python has fetched, for rescoring.

use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use sparse_retrieval::search::rescore::Numbers;

/// Vectors of some items; of half precision as the bits of their numbers.
#[derive(FromPyObject)]
pub enum Vectors<'py> {
    Float16(PyReadonlyArray2<'py, u16>),
    Float32(PyReadonlyArray2<'py, f32>),
    Float64(PyReadonlyArray2<'py, f64>),
}

impl Vectors<'_> {
    /// The numbers, as the core takes them.
    pub fn numbers(&self) -> PyResult<Numbers<'_>> {
        Ok(match self {
            Self::Float16(rows) => Numbers::Float16(rows.as_slice()?),
            Self::Float32(rows) => Numbers::Float32(rows.as_slice()?),
            Self::Float64(rows) => Numbers::Float64(rows.as_slice()?),
        })
    }
}
