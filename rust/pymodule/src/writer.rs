//! The streaming writer as a Python class.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use numpy::{PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{
    BuildOptions, Codebooks, IndexWriter as CoreWriter, OwnedIds, ValueCoding,
};
use sparse_retrieval::search::{Metric, Mode};

use crate::codes;
use crate::error::to_python;
use crate::gate::gate;
use crate::ids;
use crate::index::{dictionary_data, value_coding, Index};

/// Writes an index file from batches.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct IndexWriter {
    /// None once the file is finished or given up, and while a call is at work on it.
    core: Mutex<Option<CoreWriter>>,
}

#[pymethods]
impl IndexWriter {
    /// Begins a file.
    #[new]
    #[pyo3(signature = (
        path, dim, *, dictionary, mean, metric, value_bits, complete, modes, unit_items,
        reconstruction_cosine, metadata, codebooks, codebook_sample, longest, shortest
    ))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn new(
        py: Python<'_>,
        path: PathBuf,
        dim: usize,
        dictionary: Option<PyReadonlyArray2<'_, f32>>,
        mean: Option<PyReadonlyArray1<'_, f32>>,
        metric: &str,
        value_bits: f64,
        complete: bool,
        modes: Vec<String>,
        unit_items: bool,
        reconstruction_cosine: Option<f64>,
        metadata: Option<String>,
        codebooks: Option<PyRef<'_, Index>>,
        codebook_sample: usize,
        longest: Option<usize>,
        shortest: Option<usize>,
    ) -> PyResult<Self> {
        let modes = modes
            .iter()
            .map(|mode| Mode::from_name(mode))
            .collect::<Result<Vec<_>, _>>()
            .map_err(to_python)?;
        let given = match &codebooks {
            Some(index) => Some(index.layout().ok_or_else(|| {
                PyValueError::new_err(
                    "codebooks is an index whose values are not coded by rank; pass one built \
                     with value_bits below 8",
                )
            })?),
            None => None,
        };
        let values = match &given {
            Some(layout) => ValueCoding::of_layout(layout),
            None => value_coding(value_bits, complete).map_err(to_python)?,
        };
        let options = BuildOptions {
            metric: Metric::from_name(metric).map_err(to_python)?,
            values,
            item_norm: if unit_items {
                ItemNorm::Original
            } else {
                ItemNorm::Decoded
            },
            reconstruction_cosine,
            modes: &modes,
            dictionary: dictionary_data(&dictionary, &mean)?,
            ids: None,
            metadata: metadata.as_deref(),
            postings: None,
        };
        let codebooks = Codebooks {
            given,
            sample_rows: codebook_sample,
            longest,
            shortest,
        };
        let core = gate(py, Some(1), None, |_| {
            CoreWriter::new(&path, dim, &options, codebooks)
        })?;
        Ok(Self {
            core: Mutex::new(Some(core)),
        })
    }

    /// Takes items.
    #[pyo3(signature = (indptr, latents, values, dim, *, ids, threads))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn add(
        &self,
        py: Python<'_>,
        indptr: PyReadonlyArray1<'_, u64>,
        latents: PyReadonlyArray1<'_, u32>,
        values: PyReadonlyArray1<'_, f32>,
        dim: usize,
        ids: Option<&Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let codes = codes::view(&indptr, &latents, &values, dim)?;
        let ids = ids.map(ids::owned).transpose()?;
        let mut core = self.take()?;
        let added = gate(py, threads, None, |control| {
            core.add(codes, ids.as_ref().map(OwnedIds::view), control)
        });
        *self.core.lock().unwrap_or_else(PoisonError::into_inner) = Some(core);
        added
    }

    /// Puts the file together and returns the number of items.
    #[pyo3(signature = ())]
    fn finish(&self, py: Python<'_>) -> PyResult<u64> {
        let core = self.take()?;
        gate(py, Some(1), None, |control| core.finish(control))
    }

    /// Gives up: what was spilled is gone, the target as it was.
    #[pyo3(signature = ())]
    fn abort(&self) {
        drop(
            self.core
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    fn __len__(&self) -> PyResult<usize> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(core.as_ref().map_or(0, |core| core.len() as usize))
    }
}

impl IndexWriter {
    fn take(&self) -> PyResult<CoreWriter> {
        self.core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| {
                PyValueError::new_err(
                    "this writer is finished, or another thread is using it; a writer serves one \
                     thread at a time",
                )
            })
    }
}
