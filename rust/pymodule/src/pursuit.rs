//! Encoding by pursuit and learning of dictionaries, as two Python classes.
//!
//! Batches are copied before the interpreter is released: another thread may write to the
//! array meanwhile, and a copy costs a thousandth of encoding it.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sparse_retrieval::pursuit::encoder::{Encoder, Method, Options};
use sparse_retrieval::pursuit::gram::Precision;
use sparse_retrieval::pursuit::update::{extrapolated, Learner};

use crate::error::to_python;
use crate::gate::gate;

type EncodedArrays<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<f32>>,
);

/// A dictionary's atoms with their Gram matrix, ready to encode.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct PursuitEncoder {
    core: Arc<Encoder>,
}

#[pymethods]
impl PursuitEncoder {
    #[new]
    #[pyo3(signature = (atoms, *, gram, memory_limit_bytes, threads))]
    fn new(
        py: Python<'_>,
        atoms: PyReadonlyArray2<'_, f32>,
        gram: &str,
        memory_limit_bytes: u64,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let precision = Precision::from_name(gram).map_err(to_python)?;
        let d = atoms.as_array().ncols();
        let atoms = atoms.as_slice()?.to_vec();
        let core = gate(py, threads, None, move |control| {
            Encoder::new(&atoms, d, precision, memory_limit_bytes, control)
        })?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// Codes of a batch: indptr, latents, values, and each row's reconstruction cosine.
    #[pyo3(signature = (x, *, k, method, refit_every, normalise, first_row, threads, progress))]
    #[allow(clippy::too_many_arguments)] // the Python function names each of them
    fn encode<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        k: usize,
        method: &str,
        refit_every: usize,
        normalise: bool,
        first_row: u64,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<EncodedArrays<'py>> {
        let items = self.copied(&x)?;
        let options = Options {
            k,
            method: Method::from_name(method, refit_every).map_err(to_python)?,
            normalise,
            first_row,
        };
        let encoded = gate(py, threads, progress, |control| {
            self.core.encode(&items, options, control)
        })?;
        Ok((
            encoded.indptr.into_pyarray(py),
            encoded.latents.into_pyarray(py),
            encoded.values.into_pyarray(py),
            encoded.cosines.into_pyarray(py),
        ))
    }
}

impl PursuitEncoder {
    fn copied(&self, x: &PyReadonlyArray2<'_, f32>) -> PyResult<Vec<f32>> {
        let columns = x.as_array().ncols();
        if columns != self.core.width() {
            return Err(PyValueError::new_err(format!(
                "x has {columns} columns, the dictionary's atoms have {}; encode embeddings of \
                 the model that the dictionary was learnt from",
                self.core.width()
            )));
        }
        Ok(x.as_slice()?.to_vec())
    }
}

/// Atoms one step further in the direction of the last round.
#[pyfunction]
#[pyo3(signature = (atoms, previous, *, momentum))]
pub fn extrapolated_atoms<'py>(
    py: Python<'py>,
    atoms: PyReadonlyArray2<'py, f32>,
    previous: PyReadonlyArray2<'py, f32>,
    momentum: f32,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let shape = atoms.as_array().dim();
    if previous.as_array().dim() != shape {
        return Err(PyValueError::new_err(
            "atoms and previous differ in shape; expected those of two rounds",
        ));
    }
    let next = extrapolated(atoms.as_slice()?, previous.as_slice()?, shape.1, momentum);
    next.into_pyarray(py).reshape([shape.0, shape.1])
}

/// One round of learning a dictionary: batches are added, then the atoms are solved for.
#[pyclass(module = "sparse_retrieval._native")]
pub struct DictionaryRound {
    encoder: Arc<Encoder>,
    learner: Option<Learner>,
}

#[pymethods]
impl DictionaryRound {
    #[new]
    #[pyo3(signature = (encoder, *, memory_limit_bytes))]
    fn new(encoder: &PursuitEncoder, memory_limit_bytes: u64) -> PyResult<Self> {
        let learner = Learner::new(&encoder.core, memory_limit_bytes).map_err(to_python)?;
        Ok(Self {
            encoder: encoder.core.clone(),
            learner: Some(learner),
        })
    }

    /// Encodes a batch by pursuit and adds it to the round's sums.
    #[pyo3(signature = (x, *, k, refit_every, first_row, threads, progress))]
    #[allow(clippy::too_many_arguments)] // the Python function names each of them
    fn add(
        &mut self,
        py: Python<'_>,
        x: PyReadonlyArray2<'_, f32>,
        k: usize,
        refit_every: usize,
        first_row: u64,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let wrapped = PursuitEncoder {
            core: self.encoder.clone(),
        };
        let items = wrapped.copied(&x)?;
        let options = Options {
            k,
            method: Method::Pursuit { refit_every },
            normalise: true,
            first_row,
        };
        let learner = self.learner.as_mut().ok_or_else(finished)?;
        gate(py, threads, progress, |control| {
            learner.add(&self.encoder, &items, options, control)
        })
    }

    /// Solves for the new atoms, shape (s, d), and says how the round went.
    #[pyo3(signature = (*, regularisation, threads))]
    fn finish<'py>(
        &mut self,
        py: Python<'py>,
        regularisation: f64,
        threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyArray2<f32>>, Bound<'py, PyDict>)> {
        let learner = self.learner.take().ok_or_else(finished)?;
        let encoder = &self.encoder;
        let round = gate(py, threads, None, |control| {
            learner.finish(encoder, regularisation, control)
        })?;
        let report = PyDict::new(py);
        report.set_item("cosine", round.cosine)?;
        report.set_item("items", round.items)?;
        report.set_item("usage", round.usage.into_pyarray(py))?;
        report.set_item("unused", round.unused)?;
        report.set_item("duplicates", round.duplicates)?;
        let shape = [encoder.len(), encoder.width()];
        Ok((round.atoms.into_pyarray(py).reshape(shape)?, report))
    }
}

fn finished() -> PyErr {
    PyRuntimeError::new_err("this round is finished; start another one")
}
