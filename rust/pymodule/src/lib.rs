//! What Python sees of the Rust core: conversion of arguments and results, detaching from the
//! interpreter, mapping of errors. No logic of its own.
//!
//! `_native.pyi` in the Python package documents every name below and is checked against this
//! module by stubtest.
#![deny(unsafe_code)]

mod codes;
mod error;
mod gate;
mod ids;
mod index;
mod pursuit;
mod rescoring;
mod results;
mod selection;
mod writer;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use sparse_retrieval::kernels::Kernels;

/// Profile, version and instruction sets.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    info.set_item("profile", profile)?;
    let available: Vec<_> = Kernels::available()
        .iter()
        .map(|kernels| kernels.isa().name())
        .collect();
    info.set_item("isa_available", available)?;
    let chosen = Kernels::from_environment().map_err(error::to_python)?;
    info.set_item("isa", chosen.isa().name())?;
    info.set_item("threads", sparse_retrieval::threads::default_threads())?;
    Ok(info)
}

/// Calls of this process that wait for their turn or run.
#[pyfunction]
fn calls_in_flight() -> usize {
    sparse_retrieval::threads::calls()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add(
        "IndexFormatError",
        module.py().get_type::<error::IndexFormatError>(),
    )?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(calls_in_flight, module)?)?;
    module.add_function(wrap_pyfunction!(codes::canonical_codes, module)?)?;
    module.add_class::<index::Index>()?;
    module.add_function(wrap_pyfunction!(index::merge, module)?)?;
    module.add_function(wrap_pyfunction!(rescoring::rescore, module)?)?;
    module.add_class::<writer::IndexWriter>()?;
    module.add_class::<selection::Bitmap>()?;
    module.add_function(wrap_pyfunction!(pursuit::extrapolated_atoms, module)?)?;
    module.add_class::<pursuit::DictionaryRound>()?;
    module.add_class::<pursuit::PursuitEncoder>()?;
    Ok(())
}
