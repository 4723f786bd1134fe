//! The index as a Python class.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sparse_retrieval::codes::RankedLayout;
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{
    merge as core_merge, BuildOptions, DictionaryData, Index as CoreIndex, LiveIndex, OwnedIds,
    Snapshot, Tuned, ValueCoding,
};
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::approximate::build::ClusterOptions;
use sparse_retrieval::search::{Approximate, Metric, Mode, Queries, Request, Selection};

use crate::codes;
use crate::error::to_python;
use crate::gate::{gate, gate_short};
use crate::ids;
use crate::results::{flatten, results, Results};
use crate::selection::{Bitmap, Excluded, ExcludedIds, Filter};

/// Rows, scales, ids and dictionary, in memory or mapped.
#[pyclass(module = "sparse_retrieval._native", frozen)]
pub struct Index {
    pub(crate) live: LiveIndex,
    /// Whether its file was mapped, where there is one: to open it again.
    mapped: bool,
}

#[pymethods]
impl Index {
    /// Builds an index from canonical codes.
    #[staticmethod]
    #[pyo3(signature = (
        indptr, latents, values, dim, *, dictionary, mean, ids, metric, value_bits, complete,
        modes, unit_items, reconstruction_cosine, metadata, postings, threads, progress
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
        complete: bool,
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
        let dictionary = dictionary_data(&dictionary, &mean)?;
        let ids = ids.map(ids::owned).transpose()?;
        let options = BuildOptions {
            metric: Metric::from_name(metric).map_err(to_python)?,
            values: value_coding(value_bits, complete).map_err(to_python)?,
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
            postings,
        };
        let core = gate(py, threads, progress, |control| {
            CoreIndex::build(codes, &options, control)
        })?;
        Ok(Self {
            live: LiveIndex::new(core),
            mapped: false,
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
        let snapshot = self.live.snapshot();
        let core = gate(py, threads, progress, |control| {
            let index = snapshot.without_changes(control)?;
            index.with_postings(block_items, control)
        })?;
        Ok(self.remade(core))
    }

    /// Opens a file.
    #[staticmethod]
    #[pyo3(signature = (path, *, mmap))]
    fn open(py: Python<'_>, path: PathBuf, mmap: bool) -> PyResult<Self> {
        let live = gate(py, Some(1), None, |control| {
            LiveIndex::open(&path, mmap, control)
        })?;
        Ok(Self { live, mapped: mmap })
    }

    /// Writes a file.
    #[pyo3(signature = (path))]
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        gate(py, Some(1), None, |control| self.live.save(&path, control))
    }

    /// Reads everything and raises IndexFormatError for the first thing wrong.
    #[pyo3(signature = ())]
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        gate(py, Some(1), None, |control| self.live.verify(control))
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
        filter: Option<Bound<'py, PyAny>>,
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
        filter: Option<Bound<'py, PyAny>>,
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
        filter: Option<Bound<'_, PyAny>>,
        approximate: Option<(usize, usize)>,
    ) -> PyResult<(&'static str, String)> {
        let snapshot = self.live.snapshot();
        let filter = filter.as_ref().map(Filter::copied).transpose()?;
        let allowed = filter
            .map(|filter| filter.in_snapshot(&snapshot))
            .transpose()
            .map_err(to_python)?;
        let request = Request {
            k_row,
            selection: Selection {
                // where there are changes, it counts items of base and additions together
                allowed: allowed.as_deref().filter(|_| snapshot.is_base()),
                exclusions: None,
            },
            approximate: approximate.map(|(clusters, rerank)| Approximate { clusters, rerank }),
            kernels: Kernels::from_environment().map_err(to_python)?,
            ..Request::new(Mode::from_name(mode).map_err(to_python)?, k)
        };
        let plan = snapshot.base().explain(n_queries, &request);
        let plan = plan.map_err(to_python)?;
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
        let snapshot = self.live.snapshot();
        let core = gate(py, threads, progress, |control| {
            let index = snapshot.without_changes(control)?;
            index.with_clusters(&options, control)
        })?;
        Ok(self.remade(core))
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
        let core = self.unchanged()?.base().with_tuned(tuned);
        Ok(self.remade(core.map_err(to_python)?))
    }

    /// The tuned setting as a dict, or None.
    #[getter]
    fn tuned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(tuned) = self.base().tuned().map_err(to_python)? else {
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
        self.base().n_clusters()
    }

    /// What the items at these positions decode to.
    #[pyo3(signature = (positions))]
    fn decoded<'py>(
        &self,
        py: Python<'py>,
        positions: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let positions = positions.as_slice()?;
        let rows = self.base().decoded(positions).map_err(to_python)?;
        let d = rows.len() / positions.len().max(1);
        rows.into_pyarray(py).reshape([positions.len(), d])
    }

    /// The index as it is now: positions mean the same in all calls of what is returned.
    #[pyo3(signature = ())]
    fn frozen(&self) -> Self {
        Self {
            live: self.live.frozen(),
            mapped: self.mapped,
        }
    }

    /// Where items at ascending positions stand among all.
    #[pyo3(signature = (positions))]
    fn ranks<'py>(
        &self,
        py: Python<'py>,
        positions: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let snapshot = self.live.snapshot();
        let ranks = snapshot.ranks(positions.as_slice()?).map_err(to_python)?;
        Ok(ranks.into_pyarray(py))
    }

    /// The ids of items at these positions.
    #[pyo3(signature = (positions))]
    fn ids_at<'py>(
        &self,
        py: Python<'py>,
        positions: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        // never None: ids of their own memory are not positions
        let snapshot = self.live.snapshot();
        let ids = snapshot.ids_at(positions.as_slice()?).map_err(to_python)?;
        ids::to_python(py, ids.view())
    }

    /// The items of these ids, as a bitmap.
    #[pyo3(signature = (ids, *, what))]
    fn bitmap(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, what: &str) -> PyResult<Bitmap> {
        let ids = ids::owned(ids)?;
        let snapshot = self.live.snapshot();
        let core = gate(py, None, None, |_| snapshot.bitmap(&ids, what))?;
        Ok(Bitmap {
            core: Arc::new(core),
            moment: Some(snapshot.moment()),
        })
    }

    /// Adds items.
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
        gate(py, threads, None, |control| {
            let ids = ids.as_ref().map(OwnedIds::view);
            self.live.add(codes, ids, control)
        })
    }

    /// Replaces items.
    #[pyo3(signature = (indptr, latents, values, dim, ids, *, threads))]
    #[allow(clippy::too_many_arguments)] // the Python class names each of them
    fn update(
        &self,
        py: Python<'_>,
        indptr: PyReadonlyArray1<'_, u64>,
        latents: PyReadonlyArray1<'_, u32>,
        values: PyReadonlyArray1<'_, f32>,
        dim: usize,
        ids: &Bound<'_, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let codes = codes::view(&indptr, &latents, &values, dim)?;
        let ids = ids::owned(ids)?;
        gate(py, threads, None, |control| {
            self.live.update(codes, ids.view(), control)
        })
    }

    /// Removes items.
    #[pyo3(signature = (ids))]
    fn remove(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let ids = ids::owned(ids)?;
        gate(py, Some(1), None, |_| self.live.remove(&ids))
    }

    /// Makes changes durable.
    #[pyo3(signature = ())]
    fn commit(&self, py: Python<'_>) -> PyResult<u64> {
        gate(py, Some(1), None, |_| self.live.commit())
    }

    /// Reads the file again.
    #[pyo3(signature = (*, discard))]
    fn reload(&self, py: Python<'_>, discard: bool) -> PyResult<bool> {
        gate(py, Some(1), None, |control| {
            self.live.reload(discard, control)
        })
    }

    /// The codes of items: indptr, latents and values.
    #[pyo3(signature = (ids))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<codes::CanonicalArrays<'py>> {
        let ids = ids::owned(ids)?;
        let snapshot = self.live.snapshot();
        let found = gate(py, Some(1), None, |_| snapshot.get(&ids))?;
        let (indptr, latents, values) = found.into_parts();
        Ok((
            indptr.into_pyarray(py),
            latents.into_pyarray(py),
            values.into_pyarray(py),
        ))
    }

    /// The embeddings that items decode to, shape (n, d).
    #[pyo3(signature = (ids))]
    fn reconstruct<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let ids = ids::owned(ids)?;
        let snapshot = self.live.snapshot();
        let (rows, d) = gate(py, Some(1), None, |control| {
            snapshot.reconstruct(&ids, control)
        })?;
        rows.into_pyarray(py).reshape([ids.len(), d])
    }

    /// Whether an item has this id, for each of them.
    #[pyo3(signature = (ids))]
    fn contains(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let ids = ids::owned(ids)?;
        let snapshot = self.live.snapshot();
        let found = (0..ids.len()).map(|i| snapshot.position(ids.get(i)).is_some());
        Ok(found.collect())
    }

    /// Items added and removed since the file was written, whether something waits for a commit,
    /// and bytes of the journal.
    #[pyo3(signature = ())]
    fn changes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = self.live.snapshot();
        // a save of another thread may hold them for long
        let (uncommitted, journal_bytes) =
            py.detach(|| (self.live.is_pending(), self.live.journal_bytes().0));
        let entry = PyDict::new(py);
        entry.set_item("added", snapshot.n_added())?;
        entry.set_item("removed", snapshot.n_removed())?;
        entry.set_item("uncommitted", uncommitted)?;
        entry.set_item("journal_bytes", journal_bytes)?;
        Ok(entry)
    }

    /// Whether the file was mapped when it was opened.
    #[getter]
    fn opened_mapped(&self) -> bool {
        self.mapped
    }

    fn __len__(&self) -> usize {
        self.live.snapshot().len()
    }

    /// Number of latents.
    #[getter]
    fn dim(&self) -> usize {
        self.base().dim()
    }

    /// Width of the dictionary, or None.
    #[getter]
    fn embedding_dim(&self) -> Option<usize> {
        self.base().atoms().map(|atoms| atoms.d())
    }

    /// Name of the metric.
    #[getter]
    fn metric(&self) -> &'static str {
        self.base().metric().name()
    }

    /// Bits of a value.
    #[getter]
    fn value_bits(&self) -> f64 {
        self.base().value_bits()
    }

    /// True where every item has every latent, and rows do not say which.
    #[getter]
    fn is_complete(&self) -> bool {
        self.base().layout().is_some_and(RankedLayout::is_complete)
    }

    /// Bits of magnitude of each rank, or None.
    #[getter]
    fn magnitude_bits(&self) -> Option<Vec<u32>> {
        let base = self.base();
        let bits = base.magnitude_bits()?;
        Some(bits.iter().map(|&bits| u32::from(bits)).collect())
    }

    /// Whether cosine takes the norm of every item for 1.
    #[getter]
    fn unit_items(&self) -> bool {
        self.base().item_norm() == ItemNorm::Original
    }

    /// Mean cosines: of items and codes, and of codes before and after quantisation.
    #[getter]
    fn cosines(&self) -> (Option<f64>, Option<f64>) {
        let cosines = self.base().cosines();
        (cosines.reconstruction, cosines.quantisation)
    }

    /// Nonzeros of every row, or None.
    #[getter]
    fn width(&self) -> Option<u64> {
        self.base().width()
    }

    /// Names of the modes.
    #[getter]
    fn modes(&self) -> Vec<&'static str> {
        let snapshot = self.live.snapshot();
        snapshot
            .base()
            .modes()
            .iter()
            .map(|mode| mode.name())
            .collect()
    }

    /// The program that built it.
    #[getter]
    fn writer(&self) -> String {
        self.base().writer().to_owned()
    }

    /// True where rows are read from a mapped file.
    #[getter]
    fn is_mapped(&self) -> bool {
        self.base().is_mapped()
    }

    /// Bytes of rows and scales an item.
    #[getter]
    fn bytes_per_item(&self) -> f64 {
        self.base().bytes_per_item()
    }

    /// Items of a block of postings, or None where there are none.
    #[getter]
    fn postings_block_items(&self) -> Option<usize> {
        let base = self.base();
        base.postings().map(|postings| postings.block_items())
    }

    /// The ids, or None; a copy.
    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let ids = self.live.snapshot().ids();
        match ids {
            Some(ids) => ids::to_python(py, ids.view()),
            None => Ok(None),
        }
    }

    /// The user's JSON, or None.
    #[getter]
    fn metadata(&self) -> Option<String> {
        self.base()
            .metadata()
            .map(|json| String::from_utf8_lossy(json).into_owned())
    }

    /// The atoms, or None; a copy.
    #[getter]
    fn dictionary<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray2<f32>>>> {
        self.base()
            .atoms()
            .map(|atoms| {
                let flat = atoms.rows().to_vec().into_pyarray(py);
                flat.reshape([atoms.len(), atoms.d()])
            })
            .transpose()
    }

    /// What is added to every decoded item, or None; a copy.
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f32>>> {
        self.base()
            .mean()
            .map(|mean| mean.to_vec().into_pyarray(py))
    }

    /// Name, dtype, shape, bytes and growth of every section.
    #[pyo3(signature = ())]
    fn sections<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.base()
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

/// The base of a snapshot that is kept for as long as it is looked at.
struct Base(Arc<Snapshot>);

impl std::ops::Deref for Base {
    type Target = CoreIndex;

    fn deref(&self) -> &CoreIndex {
        self.0.base()
    }
}

/// How values are stored, by their bits.
pub fn value_coding(bits: f64, complete: bool) -> Result<ValueCoding, sparse_retrieval::Error> {
    if complete {
        ValueCoding::complete_from_bits(bits)
    } else {
        ValueCoding::from_bits(bits)
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
    filter: Option<Filter>,
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
        filter: Option<Bound<'_, PyAny>>,
        exclude: Option<ExcludedIds<'_>>,
        approximate: Option<(usize, usize)>,
    ) -> PyResult<Self> {
        Ok(Self {
            k,
            mode,
            k_row,
            filter: filter.as_ref().map(Filter::copied).transpose()?,
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
    /// What it was opened from or built of.
    fn base(&self) -> Base {
        Base(self.live.snapshot())
    }

    /// The index, which must have no changes.
    fn unchanged(&self) -> PyResult<Arc<Snapshot>> {
        let snapshot = self.live.snapshot();
        if snapshot.is_base() {
            return Ok(snapshot);
        }
        Err(PyValueError::new_err(
            "this index has changes, which the clusters do not hold; save it, and tune the opened \
             file",
        ))
    }

    /// The same index with other sections.
    fn remade(&self, core: CoreIndex) -> Self {
        Self {
            live: LiveIndex::new(core),
            mapped: self.mapped,
        }
    }

    /// The codebooks, where values are coded by rank.
    pub fn layout(&self) -> Option<RankedLayout> {
        self.base().layout().cloned()
    }

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
        // one moment of the index: for the search, what it may return, and what that is called
        let snapshot = self.live.snapshot();
        let by_id = asked.by_id;
        let request = Request {
            mode,
            k: asked.k,
            k_row: asked.k_row,
            selection: Selection::ALL,
            approximate: asked.approximate,
            kernels,
        };
        let search = |filter: Option<Filter>, exclude: Option<Excluded>, control: &Control| {
            let allowed = filter
                .map(|filter| filter.in_snapshot(&snapshot))
                .transpose()?;
            let exclusions = exclude
                .map(|excluded| excluded.in_snapshot(&snapshot))
                .transpose()?;
            let selection = Selection {
                allowed: allowed.as_deref(),
                exclusions: exclusions.as_ref(),
            };
            let request = Request {
                selection,
                ..request
            };
            let hits = snapshot.search(queries, &request, control)?;
            flatten(&hits)
        };
        sparse_retrieval::threads::check(threads).map_err(to_python)?;
        // how long a filter takes is not known before it is read
        let is_plain = asked.filter.is_none() && asked.exclude.is_none();
        let is_short = (is_plain || asked.approximate.is_some())
            && snapshot.is_short(queries, &request, threads);
        let (filter, exclude) = (asked.filter, asked.exclude);
        let mut found = None;
        if is_short {
            let (filter, exclude) = (filter.clone(), exclude.clone());
            found = gate_short(py, |control| search(filter, exclude, control))?;
        }
        let found = match found {
            Some(found) => found,
            None => gate(py, threads, progress, |control| {
                search(filter, exclude, control)
            })?,
        };
        results(py, queries.len(), &snapshot, by_id, found)
    }
}

/// Joins files into one and returns the number of items.
#[pyfunction]
#[pyo3(signature = (paths, out, *, progress))]
pub fn merge(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    out: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<u64> {
    gate(py, Some(1), progress, |control| {
        core_merge(&paths, &out, control)
    })
}
