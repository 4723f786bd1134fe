//! The index as a Python class.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use sparse_retrieval::codes::RankedLayout;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{
    BuildOptions, DictionaryData, Ids, Index as CoreIndex, OwnedIds, ValueCoding,
};
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::{Hit, Metric, Mode, Queries, Request};
use sparse_retrieval::Error;

use crate::codes;
use crate::error::to_python;
use crate::gate::gate;
use crate::ids;

type Results<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyAny>);

/// Rows, scales, ids and dictionary, in memory or mapped.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct Index {
    core: Arc<CoreIndex>,
}

#[pymethods]
impl Index {
    /// Builds an index from canonical codes.
    #[staticmethod]
    #[pyo3(signature = (
        indptr, latents, values, dim, *, dictionary, mean, ids, metric, value_bits, modes, unit_items,
        reconstruction_cosine, metadata, threads, progress
    ))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn build(
        py: Python<'_>,
        indptr: PyReadonlyArray1<'_, u64>,
        latents: PyReadonlyArray1<'_, u32>,
        values: PyReadonlyArray1<'_, f32>,
        dim: usize,
        dictionary: Option<PyReadonlyArray2<'_, f32>>,
        mean: Option<PyReadonlyArray1<'_, f32>>,
        ids: Option<&Bound<'_, PyAny>>,
        metric: &str,
        value_bits: f64,
        modes: Vec<String>,
        unit_items: bool,
        reconstruction_cosine: Option<f64>,
        metadata: Option<String>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let codes = codes::view(&indptr, &latents, &values, dim)?;
        let modes = modes
            .iter()
            .map(|mode| Mode::from_name(mode))
            .collect::<Result<Vec<_>, _>>()
            .map_err(to_python)?;
        let dictionary = dictionary_data(&dictionary, &mean)?;
        let ids = ids.map(ids::owned).transpose()?;
        let options = BuildOptions {
            metric: Metric::from_name(metric).map_err(to_python)?,
            values: ValueCoding::from_bits(value_bits).map_err(to_python)?,
            item_norm: if unit_items {
                ItemNorm::Original
            } else {
                ItemNorm::Decoded
            },
            reconstruction_cosine,
            modes: &modes,
            dictionary,
            ids: ids.as_ref().map(OwnedIds::view),
            metadata: metadata.as_deref(),
        };
        let core = gate(py, threads, progress, |control| {
            CoreIndex::build(codes, &options, control)
        })?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// Opens a file.
    #[staticmethod]
    #[pyo3(signature = (path, *, mmap))]
    fn open(py: Python<'_>, path: PathBuf, mmap: bool) -> PyResult<Self> {
        let core = gate(py, Some(1), None, |control| {
            CoreIndex::open(&path, mmap, control)
        })?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// Writes a file.
    #[pyo3(signature = (path))]
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        gate(py, Some(1), None, |control| self.core.save(&path, control))
    }

    /// Reads everything and raises IndexFormatError for the first thing wrong.
    #[pyo3(signature = ())]
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        gate(py, Some(1), None, |control| self.core.verify(control))
    }

    /// Searches with dense queries.
    #[pyo3(signature = (queries, k, *, mode, k_row, threads, progress))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn search_dense<'py>(
        &self,
        py: Python<'py>,
        queries: PyReadonlyArray2<'py, f64>,
        k: usize,
        mode: &str,
        k_row: Option<usize>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        // copied: another thread may write to the array while this one is detached
        let rows = queries.as_slice()?.to_vec();
        let queries = Queries::Dense {
            rows: &rows,
            d: queries.as_array().ncols(),
        };
        let asked = Asked { k, mode, k_row };
        self.search(py, &queries, &asked, threads, progress)
    }

    /// Searches with canonical codes.
    #[pyo3(signature = (indptr, latents, values, dim, k, *, mode, k_row, threads, progress))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn search_codes<'py>(
        &self,
        py: Python<'py>,
        indptr: PyReadonlyArray1<'py, u64>,
        latents: PyReadonlyArray1<'py, u32>,
        values: PyReadonlyArray1<'py, f32>,
        dim: usize,
        k: usize,
        mode: &str,
        k_row: Option<usize>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        let queries = Queries::Codes(codes::view(&indptr, &latents, &values, dim)?);
        let asked = Asked { k, mode, k_row };
        self.search(py, &queries, &asked, threads, progress)
    }

    fn __len__(&self) -> usize {
        self.core.len()
    }

    /// Number of latents.
    #[getter]
    fn dim(&self) -> usize {
        self.core.dim()
    }

    /// Width of the dictionary, or None.
    #[getter]
    fn embedding_dim(&self) -> Option<usize> {
        self.core.atoms().map(|atoms| atoms.d())
    }

    /// Name of the metric.
    #[getter]
    fn metric(&self) -> &'static str {
        self.core.metric().name()
    }

    /// Bits of a value.
    #[getter]
    fn value_bits(&self) -> f64 {
        self.core.value_bits()
    }

    /// Bits of magnitude of each rank, or None.
    #[getter]
    fn magnitude_bits(&self) -> Option<Vec<u32>> {
        let bits = self.core.magnitude_bits()?;
        Some(bits.iter().map(|&bits| u32::from(bits)).collect())
    }

    /// Whether cosine takes the norm of every item for 1.
    #[getter]
    fn unit_items(&self) -> bool {
        self.core.item_norm() == ItemNorm::Original
    }

    /// Mean cosines: of items and codes, and of codes before and after quantisation.
    #[getter]
    fn cosines(&self) -> (Option<f64>, Option<f64>) {
        let cosines = self.core.cosines();
        (cosines.reconstruction, cosines.quantisation)
    }

    /// Nonzeros of every row, or None.
    #[getter]
    fn width(&self) -> Option<u64> {
        self.core.width()
    }

    /// Names of the modes.
    #[getter]
    fn modes(&self) -> Vec<&'static str> {
        self.core.modes().iter().map(|mode| mode.name()).collect()
    }

    /// The program that built it.
    #[getter]
    fn writer(&self) -> &str {
        self.core.writer()
    }

    /// True where rows are read from a mapped file.
    #[getter]
    fn is_mapped(&self) -> bool {
        self.core.is_mapped()
    }

    /// Bytes of rows and scales an item.
    #[getter]
    fn bytes_per_item(&self) -> f64 {
        self.core.bytes_per_item()
    }

    /// The ids, or None; a copy.
    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        ids::to_python(py, self.core.all_ids())
    }

    /// The user's JSON, or None.
    #[getter]
    fn metadata(&self) -> Option<String> {
        self.core
            .metadata()
            .map(|json| String::from_utf8_lossy(json).into_owned())
    }

    /// The atoms, or None; a copy.
    #[getter]
    fn dictionary<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray2<f32>>>> {
        self.core
            .atoms()
            .map(|atoms| {
                let flat = atoms.rows().to_vec().into_pyarray(py);
                flat.reshape([atoms.len(), atoms.d()])
            })
            .transpose()
    }

    /// What is added to every decoded item, or None; a copy.
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> Option<Bound<'py, numpy::PyArray1<f32>>> {
        self.core.mean().map(|mean| mean.to_vec().into_pyarray(py))
    }

    /// Name, dtype, shape, bytes and growth of every section.
    #[pyo3(signature = ())]
    fn sections<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.core
            .sections()
            .into_iter()
            .map(|section| {
                let entry = PyDict::new(py);
                entry.set_item("name", section.name)?;
                entry.set_item("dtype", section.dtype)?;
                entry.set_item("shape", section.shape)?;
                entry.set_item("bytes", section.bytes)?;
                entry.set_item("grows", section.grows)?;
                Ok(entry)
            })
            .collect()
    }
}

/// A dictionary of Python, borrowed.
pub fn dictionary_data<'a>(
    rows: &'a Option<PyReadonlyArray2<'_, f32>>,
    mean: &'a Option<PyReadonlyArray1<'_, f32>>,
) -> PyResult<Option<DictionaryData<'a>>> {
    rows.as_ref()
        .map(|rows| {
            Ok(DictionaryData {
                rows: rows.as_slice()?,
                d: rows.as_array().ncols(),
                mean: mean.as_ref().map(|mean| mean.as_slice()).transpose()?,
            })
        })
        .transpose()
}

/// What a search is asked for, whatever its queries are.
struct Asked<'a> {
    k: usize,
    mode: &'a str,
    k_row: Option<usize>,
}

impl Index {
    /// The codebooks, where values are coded by rank.
    pub fn layout(&self) -> Option<RankedLayout> {
        self.core.layout().cloned()
    }

    fn search<'py>(
        &self,
        py: Python<'py>,
        queries: &Queries<'_>,
        asked: &Asked<'_>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        let mode = Mode::from_name(asked.mode).map_err(to_python)?;
        // read while attached: os.environ is written under the interpreter's lock
        let kernels = Kernels::from_environment().map_err(to_python)?;
        let request = Request {
            mode,
            k: asked.k,
            k_row: asked.k_row,
            kernels,
        };
        let core = &self.core;
        let (scores, ids, found) = gate(py, threads, progress, |control| {
            let hits = core.search(queries, &request, control)?;
            flatten(&hits, core.all_ids())
        })?;
        let shape = [scores.len() / found.max(1), found];
        let shape = if found == 0 {
            [queries.len(), 0]
        } else {
            shape
        };
        let ids = match core.all_ids() {
            Ids::Strings(strings) => {
                let texts = ids
                    .iter()
                    .map(|&position| usize::try_from(position).ok().map(|row| strings.get(row)));
                PyList::new(py, texts.collect::<Vec<_>>())?.into_any()
            }
            _ => ids.into_pyarray(py).reshape(shape)?.into_any(),
        };
        Ok((scores.into_pyarray(py).reshape(shape)?, ids))
    }
}

/// Scores and ids (positions where ids are strings) of all queries, one after the other, and the
/// number of hits of each, which is the same for all unless a damaged file scored NaN: then rows
/// are filled with -inf and -1.
fn flatten(
    hits: &[Vec<Hit>],
    ids: Ids<'_>,
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
            named.push(ids.number(hit.position as usize));
        }
        scores.resize(scores.len() + found - hits.len(), f64::NEG_INFINITY);
        named.resize(named.len() + found - hits.len(), -1);
    }
    Ok((scores, named, found))
}
