//! Codes from Python: validation into canonical form, and views of arrays that are canonical.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use sparse_retrieval::codes::{Codes, CodesView, LatentIndex};

use crate::error::to_python;
use crate::gate::gate;

/// Row bounds, latents and values.
pub type CanonicalArrays<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<f32>>,
);

/// Validates a compressed sparse row matrix and returns it in canonical form.
#[pyfunction]
#[pyo3(signature = (indptr, latents, values, dim))]
pub fn canonical_codes<'py>(
    py: Python<'py>,
    indptr: PyReadonlyArray1<'py, i64>,
    latents: &Bound<'py, PyAny>,
    values: PyReadonlyArray1<'py, f32>,
    dim: usize,
) -> PyResult<CanonicalArrays<'py>> {
    let codes = if let Ok(latents) = latents.extract::<PyReadonlyArray1<'py, i64>>() {
        canonical(py, &indptr, &latents, &values, dim)
    } else if let Ok(latents) = latents.extract::<PyReadonlyArray1<'py, i32>>() {
        canonical(py, &indptr, &latents, &values, dim)
    } else if let Ok(latents) = latents.extract::<PyReadonlyArray1<'py, u32>>() {
        canonical(py, &indptr, &latents, &values, dim)
    } else {
        Err(PyTypeError::new_err(
            "latents must be a 1-D array of int32, uint32 or int64",
        ))
    }?;
    let (indptr, latents, values) = codes.into_parts();
    Ok((
        indptr.into_pyarray(py),
        latents.into_pyarray(py),
        values.into_pyarray(py),
    ))
}

fn canonical<I: LatentIndex + numpy::Element>(
    py: Python<'_>,
    indptr: &PyReadonlyArray1<'_, i64>,
    latents: &PyReadonlyArray1<'_, I>,
    values: &PyReadonlyArray1<'_, f32>,
    dim: usize,
) -> PyResult<Codes> {
    let (indptr, latents, values) = (indptr.as_slice()?, latents.as_slice()?, values.as_slice()?);
    // the arrays may be written by another thread while the interpreter is free: Codes::from_csr
    // reads each number once and keeps its own copy, so what it returns is sound all the same
    gate(py, Some(1), None, move |_| {
        Codes::from_csr(indptr, latents, values, dim)
    })
}

/// Codes as Python's SparseCodes holds them, copied or borrowed for one call.
pub fn view<'a>(
    indptr: &'a PyReadonlyArray1<'_, u64>,
    latents: &'a PyReadonlyArray1<'_, u32>,
    values: &'a PyReadonlyArray1<'_, f32>,
    dim: usize,
) -> PyResult<CodesView<'a>> {
    CodesView::new(
        indptr.as_slice()?,
        latents.as_slice()?,
        values.as_slice()?,
        dim,
    )
    .map_err(to_python)
}
