//! The index as a Python class.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{
    BuildOptions, DictionaryData, Index as CoreIndex, Tuned, ValueCoding,
};
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::approximate::build::ClusterOptions;
use sparse_retrieval::search::rescore::{rescore, Originals};
use sparse_retrieval::search::{
    Approximate, Bitmap as CoreBitmap, Metric, Mode, Queries, Request, Selection,
};

use crate::codes;
use crate::error::to_python;
use crate::gate::{gate, gate_short};
use crate::rescoring::Vectors;
use crate::results::{flatten, results, Results};
use crate::selection::{Bitmap, Excluded, ExcludedIds};

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
        reconstruction_cosine, metadata, postings, threads, progress
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
        ids: Option<PyReadonlyArray1<'_, i64>>,
        metric: &str,
        value_bits: f64,
        modes: Vec<String>,
        unit_items: bool,
        reconstruction_cosine: Option<f64>,
        metadata: Option<String>,
        postings: Option<usize>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let codes = codes::view(&indptr, &latents, &values, dim)?;
        let modes = modes
            .iter()
            .map(|mode| Mode::from_name(mode))
            .collect::<Result<Vec<_>, _>>()
            .map_err(to_python)?;
        let dictionary = dictionary
            .as_ref()
            .map(|rows| {
                Ok::<_, PyErr>(DictionaryData {
                    rows: rows.as_slice()?,
                    d: rows.as_array().ncols(),
                    mean: mean.as_ref().map(|mean| mean.as_slice()).transpose()?,
                })
            })
            .transpose()?;
        let ids = ids.as_ref().map(|ids| ids.as_slice()).transpose()?;
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
            ids,
            metadata: metadata.as_deref(),
            postings,
        };
        let core = gate(py, threads, progress, |control| {
            CoreIndex::build(codes, &options, control)
        })?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// The same index with postings.
    #[pyo3(signature = (block_items, *, threads, progress))]
    fn with_postings(
        &self,
        py: Python<'_>,
        block_items: usize,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let core = gate(py, threads, progress, |control| {
            self.core.with_postings(block_items, control)
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
    #[pyo3(signature = (
        queries, k, *, mode, k_row, filter, exclude, approximate, positions, threads, progress
    ))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn search_dense<'py>(
        &self,
        py: Python<'py>,
        queries: PyReadonlyArray2<'py, f64>,
        k: usize,
        mode: &str,
        k_row: Option<usize>,
        filter: Option<PyRef<'py, Bitmap>>,
        exclude: Option<ExcludedIds<'py>>,
        approximate: Option<(usize, usize)>,
        positions: bool,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        // copied: another thread may write to the array while this one is detached
        let rows = queries.as_slice()?.to_vec();
        let queries = Queries::Dense {
            rows: &rows,
            d: queries.as_array().ncols(),
        };
        let asked = Asked::new(k, mode, k_row, filter, exclude, approximate)?.named(!positions);
        self.search(py, &queries, asked, threads, progress)
    }

    /// Searches with canonical codes.
    #[pyo3(signature = (
        indptr, latents, values, dim, k, *, mode, k_row, filter, exclude, approximate, positions,
        threads, progress
    ))]
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
        filter: Option<PyRef<'py, Bitmap>>,
        exclude: Option<ExcludedIds<'py>>,
        approximate: Option<(usize, usize)>,
        positions: bool,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        let queries = Queries::Codes(codes::view(&indptr, &latents, &values, dim)?);
        let asked = Asked::new(k, mode, k_row, filter, exclude, approximate)?.named(!positions);
        self.search(py, &queries, asked, threads, progress)
    }

    /// The way that a search would go, and why.
    #[pyo3(signature = (n_queries, k, *, mode, k_row, filter, approximate))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn explain(
        &self,
        n_queries: usize,
        k: usize,
        mode: &str,
        k_row: Option<usize>,
        filter: Option<PyRef<'_, Bitmap>>,
        approximate: Option<(usize, usize)>,
    ) -> PyResult<(&'static str, String)> {
        let filter = filter.map(|filter| filter.core.clone());
        let request = Request {
            k_row,
            selection: Selection {
                allowed: filter.as_deref(),
                exclusions: None,
            },
            approximate: approximate.map(|(clusters, rerank)| Approximate { clusters, rerank }),
            ..Request::new(Mode::from_name(mode).map_err(to_python)?, k)
        };
        let plan = self.core.explain(n_queries, &request).map_err(to_python)?;
        Ok((plan.way.name(), plan.reason))
    }

    /// The same index with clusters for approximate search.
    #[pyo3(signature = (*, clusters, seed, threads, progress))]
    fn with_clusters(
        &self,
        py: Python<'_>,
        clusters: Option<usize>,
        seed: u64,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let options = ClusterOptions {
            clusters,
            seed,
            kernels: Kernels::from_environment().map_err(to_python)?,
        };
        let core = gate(py, threads, progress, |control| {
            self.core.with_clusters(&options, control)
        })?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// The same index with another tuned setting.
    #[pyo3(signature = (*, clusters, rerank, target, reached, k))]
    fn with_tuned(
        &self,
        clusters: u32,
        rerank: u32,
        target: f64,
        reached: f64,
        k: u32,
    ) -> PyResult<Self> {
        let tuned = Tuned {
            clusters,
            rerank,
            target,
            reached,
            k,
        };
        let core = self.core.with_tuned(tuned).map_err(to_python)?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// The tuned setting as a dict, or None.
    #[getter]
    fn tuned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(tuned) = self.core.tuned().map_err(to_python)? else {
            return Ok(None);
        };
        let entry = PyDict::new(py);
        entry.set_item("clusters", tuned.clusters)?;
        entry.set_item("rerank", tuned.rerank)?;
        entry.set_item("target", tuned.target)?;
        entry.set_item("reached", tuned.reached)?;
        entry.set_item("k", tuned.k)?;
        Ok(Some(entry))
    }

    /// Number of clusters; 0 where there are none.
    #[getter]
    fn n_clusters(&self) -> usize {
        self.core.n_clusters()
    }

    /// What the items at these positions decode to.
    #[pyo3(signature = (positions))]
    fn decoded<'py>(
        &self,
        py: Python<'py>,
        positions: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let positions = positions.as_slice()?;
        let rows = self.core.decoded(positions).map_err(to_python)?;
        let d = rows.len() / positions.len().max(1);
        rows.into_pyarray(py).reshape([positions.len(), d])
    }

    /// Scores candidates against vectors that have been fetched, and keeps the best.
    #[pyo3(signature = (candidates, queries, k, *, positions, vectors, threads))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn rescore<'py>(
        &self,
        py: Python<'py>,
        candidates: PyReadonlyArray2<'py, i64>,
        queries: PyReadonlyArray2<'py, f64>,
        k: usize,
        positions: PyReadonlyArray1<'py, u64>,
        vectors: Vectors<'py>,
        threads: Option<usize>,
    ) -> PyResult<Results<'py>> {
        let asked = queries.as_slice()?.to_vec(); // others may write to them, as in search_dense
        let d = queries.as_array().ncols();
        // not copied: rescoring.py has made these, and no other code holds them
        let wanted = candidates.as_slice()?;
        let originals =
            Originals::new(positions.as_slice()?, vectors.numbers()?, d).map_err(to_python)?;
        let (scores, ids, found) = gate(py, threads, None, |control| {
            let metric = self.core.metric();
            let hits = rescore(&originals, &asked, wanted, metric, k, control)?;
            flatten(&hits, self.core.ids())
        })?;
        results(py, queries.as_array().nrows(), scores, ids, found)
    }

    /// The items of these ids, as a bitmap.
    #[pyo3(signature = (ids, *, what))]
    fn bitmap(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i64>,
        what: &str,
    ) -> PyResult<Bitmap> {
        let ids = ids.as_slice()?.to_vec();
        let core = gate(py, None, None, |_| {
            let positions = self.core.positions(&ids, what)?;
            CoreBitmap::from_positions(self.core.len(), positions)
        })?;
        Ok(Bitmap {
            core: Arc::new(core),
        })
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

    /// Items of a block of postings, or None where there are none.
    #[getter]
    fn postings_block_items(&self) -> Option<usize> {
        self.core.postings().map(|postings| postings.block_items())
    }

    /// The ids, or None; a copy.
    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> Option<Bound<'py, numpy::PyArray1<i64>>> {
        self.core.ids().map(|ids| ids.to_vec().into_pyarray(py))
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

/// What a search is asked for, whatever its queries are.
struct Asked<'a> {
    k: usize,
    mode: &'a str,
    k_row: Option<usize>,
    filter: Option<Arc<CoreBitmap>>,
    exclude: Option<Excluded>,
    approximate: Option<Approximate>,
    /// Whether items are returned by their ids, and not by their positions.
    by_id: bool,
}

impl<'a> Asked<'a> {
    fn new(
        k: usize,
        mode: &'a str,
        k_row: Option<usize>,
        filter: Option<PyRef<'_, Bitmap>>,
        exclude: Option<ExcludedIds<'_>>,
        approximate: Option<(usize, usize)>,
    ) -> PyResult<Self> {
        Ok(Self {
            k,
            mode,
            k_row,
            filter: filter.map(|filter| filter.core.clone()),
            exclude: exclude.as_ref().map(Excluded::copied).transpose()?,
            approximate: approximate.map(|(clusters, rerank)| Approximate { clusters, rerank }),
            by_id: true,
        })
    }

    fn named(self, by_id: bool) -> Self {
        Self { by_id, ..self }
    }
}

impl Index {
    fn search<'py>(
        &self,
        py: Python<'py>,
        queries: &Queries<'_>,
        asked: Asked<'_>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Results<'py>> {
        let mode = Mode::from_name(asked.mode).map_err(to_python)?;
        // read while attached: os.environ is written under the interpreter's lock
        let kernels = Kernels::from_environment().map_err(to_python)?;
        let is_short = asked.approximate.is_some() && queries.len() == 1;
        let work = |control: &Control| {
            let exclusions = asked
                .exclude
                .map(|excluded| excluded.in_index(&self.core))
                .transpose()?;
            let request = Request {
                mode,
                k: asked.k,
                k_row: asked.k_row,
                selection: Selection {
                    allowed: asked.filter.as_deref(),
                    exclusions: exclusions.as_ref(),
                },
                approximate: asked.approximate,
                kernels,
            };
            let hits = self.core.search(queries, &request, control)?;
            flatten(&hits, self.core.ids().filter(|_| asked.by_id))
        };
        let (scores, ids, found) = if is_short {
            gate_short(py, work)?
        } else {
            gate(py, threads, progress, work)?
        };
        results(py, queries.len(), scores, ids, found)
    }
}
