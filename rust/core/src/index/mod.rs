//! What a user holds: rows, scales, ids and a dictionary, over owned or mapped bytes.
//!
//! [`Index::build`] makes one from codes, [`Index::save`] and [`Index::open`] move it through a
//! file, [`Index::search`] asks it. An index never changes; it may be shared between threads.

mod batch;
mod build;
mod check;
mod clusters;
mod column;
mod delta;
mod derived;
mod fetch;
mod id_spool;
pub mod ids;
mod live;
mod merge;
mod part;
mod replay;
mod scale_unit;
mod seen;
mod snapshot;
mod snapshot_search;
mod spool;
mod writer;

pub use build::{BuildOptions, DictionaryData, ValueCoding};
pub use clusters::Tuned;
pub use fetch::codes_of;
pub use ids::{check_ids, Id, Ids, Order, OwnedIds, Strings, Unsigned};
pub use live::{replayed, LiveIndex};
pub use merge::merge;
pub use snapshot::Snapshot;
pub use writer::{Codebooks, IndexWriter};

use std::path::Path;
use std::sync::{Arc, OnceLock};

use half::f16;

use crate::codes::{RankedLayout, RowCoding, RowFormat, RowSpan, RowsView, ValueKind};
use crate::control::Control;
use crate::error::FormatProblem;
use crate::format::{
    self, section, Bytes, Cosines, Disk, Dtype, FilePart, Header, ItemNorm, SectionData,
    SectionHeader,
};
use crate::search::approximate::CoarseAtoms;
use crate::search::{
    self, postings::PostingsView, Atoms, Guesses, Hit, Metric, Mode, Plan, Queries, Request,
    Scales, ScanRows, Way, WeightSource,
};
use crate::{Error, Result};

/// An index: rows over latents, and what it takes to score them.
#[derive(Debug, Clone)]
pub struct Index {
    header: Header,
    metric: Metric,
    modes: Vec<Mode>,
    sections: Vec<(&'static str, Bytes)>,
    /// Where the fields of rows lie, where values are rank-coded.
    layout: Option<RankedLayout>,
    /// Atoms in single precision, where they are stored in half: made when first asked for,
    /// and shared by indexes that share their dictionary.
    wide_atoms: Arc<OnceLock<Vec<f32>>>,
    /// Rows by ascending id, where the file does not say: made when first asked for.
    made_order: OnceLock<Option<Vec<u64>>>,
    /// Atoms in 8 bits, for approximate search: made when first asked for.
    coarse_atoms: OnceLock<CoarseAtoms>,
    /// How searches of postings, and integer passes, have guessed; shared by clones.
    guesses: Arc<Guesses>,
    guesses_of_batches: Arc<Guesses>,
    /// The file behind it, where there is one.
    file: Option<FilePart>,
}

/// A section as [`Index::sections`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionInfo {
    /// Its name.
    pub name: String,
    /// The type of its numbers.
    pub dtype: String,
    /// Numbers along each axis.
    pub shape: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
    /// True where its size grows with the number of items.
    pub grows: bool,
}

impl Index {
    /// Opens a file: maps it, or, where `mapped` is false, reads it whole.
    ///
    /// Reads the header only; see [`Index::verify`] for the rest.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn open(path: &Path, mapped: bool, control: &Control) -> Result<Self> {
        Self::from_file(format::read_file(path, mapped, control)?)
            .map_err(|error| error.in_file(path))
    }

    /// An index over a file that has been read.
    ///
    /// # Errors
    /// [`Error::Format`] where the sections do not make up an index.
    pub fn from_file(file: FilePart) -> Result<Self> {
        let sections = section::ALL
            .into_iter()
            .filter_map(|name| Some((name, file.section(name)?)))
            .collect();
        Self::from_parts(file.header().clone(), sections, Some(file))
    }

    fn from_parts(
        header: Header,
        sections: Vec<(&'static str, Bytes)>,
        file: Option<FilePart>,
    ) -> Result<Self> {
        let bad = |error: Error| FormatProblem::Header {
            offset: format::PREFIX_BYTES,
            reason: error.to_string(),
        };
        let metric = Metric::from_name(&header.metric).map_err(bad)?;
        let modes = header
            .modes
            .keys()
            .map(|name| Mode::from_name(name))
            .collect::<Result<Vec<_>>>()
            .map_err(bad)?;
        let mut index = Self {
            header,
            metric,
            modes,
            sections,
            layout: None,
            wide_atoms: Arc::default(),
            made_order: OnceLock::new(),
            coarse_atoms: OnceLock::new(),
            guesses: Arc::default(),
            guesses_of_batches: Arc::default(),
            file,
        };
        if let Some(bits) = &index.header.rows.magnitude_bits {
            let levels = index
                .section(section::LEVELS)
                .ok_or_else(|| missing(section::LEVELS))?
                .numbers()
                .to_vec();
            let latent_bits = index.header.rows.latent_bits;
            index.layout = Some(RankedLayout::new(latent_bits, bits.clone(), levels).map_err(bad)?);
        }
        index.try_rows(index.layout.as_ref()).map_err(bad)?;
        Ok(index)
    }

    /// Writes the index to a file, beside it and then in its place.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`]; the target is then as it was.
    pub fn save(&self, path: &Path, control: &Control) -> Result<()> {
        format::write_file(path, self.header.clone(), &self.section_data(), control)
    }

    /// The same through a given disk, where the caller holds the lock of the path.
    fn write(&self, disk: &dyn Disk, path: &Path, control: &Control) -> Result<()> {
        let data = self.section_data();
        let sections = format::streamed(path, &data, control);
        format::write_streamed(disk, path, self.header.clone(), sections, control)
    }

    fn section_data(&self) -> Vec<SectionData<'_>> {
        self.sections
            .iter()
            .map(|(name, bytes)| {
                let entry = self
                    .header
                    .section(name)
                    .expect("every section is in the header");
                SectionData {
                    name,
                    dtype: Dtype::from_name(&entry.dtype)
                        .expect("dtypes of known sections are known"),
                    shape: entry.shape.clone(),
                    required: entry.required,
                    unit: entry.unit,
                    bytes: bytes.as_slice(),
                }
            })
            .collect()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.header.rows.count as usize
    }

    /// True where there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of latents.
    pub fn dim(&self) -> usize {
        self.header.rows.dim as usize
    }

    /// What scores are.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The modes that this index was built for.
    pub fn modes(&self) -> &[Mode] {
        &self.modes
    }

    /// How values are stored.
    pub fn value_kind(&self) -> ValueKind {
        self.header.rows.values.into()
    }

    /// Bits of a value, sign included; the mean over the ranks where they differ.
    pub fn value_bits(&self) -> f64 {
        match (self.value_kind(), &self.layout) {
            (ValueKind::Ranked, Some(layout)) => {
                let bits = layout.magnitude_bits();
                1.0 + bits.iter().map(|&bits| f64::from(bits)).sum::<f64>() / bits.len() as f64
            }
            (ValueKind::Int8, _) => 8.0,
            (ValueKind::Int16, _) => 16.0,
            _ => 32.0,
        }
    }

    /// Bits of magnitude of each rank, where values are rank-coded.
    pub fn magnitude_bits(&self) -> Option<&[u8]> {
        self.layout.as_ref().map(RankedLayout::magnitude_bits)
    }

    /// Where fields lie and what levels are, where values are rank-coded.
    pub fn layout(&self) -> Option<&RankedLayout> {
        self.layout.as_ref()
    }

    /// What cosine takes for the norm of an item in embedding space.
    pub fn item_norm(&self) -> ItemNorm {
        self.header.item_norm
    }

    /// How well the rows decode.
    pub fn cosines(&self) -> Cosines {
        self.header.cosines
    }

    /// Nonzeros of every row, or `None` where rows differ.
    pub fn width(&self) -> Option<u64> {
        self.header.rows.width
    }

    /// The program that built it.
    pub fn writer(&self) -> &str {
        &self.header.writer
    }

    /// True where rows are read from a mapped file.
    pub fn is_mapped(&self) -> bool {
        self.section(section::ROWS).is_some_and(Bytes::is_mapped)
    }

    /// What items are called.
    pub fn all_ids(&self) -> Ids<'_> {
        if let Some(numbers) = self.ids() {
            return Ids::Numbers(numbers);
        }
        match (
            self.unsigned(section::ID_OFFSETS),
            self.section(section::ID_BYTES),
        ) {
            (Some(offsets), Some(bytes)) => Ids::Strings(Strings::new(offsets, bytes.as_slice())),
            _ => Ids::Positions(self.len()),
        }
    }

    /// The position of the item with this id: O(log n), where the file holds an order of ids or
    /// says that they ascend, as all do whose writer knew of either. Otherwise the first call
    /// makes an order, 8 bytes an item in memory.
    pub fn position(&self, id: Id<'_>) -> Option<usize> {
        let ids = self.all_ids();
        let order = self.stored_order().unwrap_or_else(|| {
            let made = self
                .made_order
                .get_or_init(|| (!ids.ascend()).then(|| ids.sorted()));
            made.as_deref()
                .map_or(Order::Ascending, |rows| Order::Rows(Unsigned::Wide(rows)))
        });
        ids.find(id, order)
    }

    /// The order of ids, as far as the file says.
    fn stored_order(&self) -> Option<Order<'_>> {
        if self.header.ids_ascend || matches!(self.all_ids(), Ids::Positions(_)) {
            return Some(Order::Ascending);
        }
        self.unsigned(section::ID_ORDER).map(Order::Rows)
    }

    fn unsigned(&self, name: &str) -> Option<Unsigned<'_>> {
        let bytes = self.section(name)?;
        Some(match self.header.section(name)?.dtype.as_str() {
            narrow if narrow == Dtype::U32.name() => Unsigned::Narrow(bytes.numbers()),
            _ => Unsigned::Wide(bytes.numbers()),
        })
    }

    /// The ids, where items have other names than their positions, and these are numbers.
    pub fn ids(&self) -> Option<&[i64]> {
        self.section(section::IDS).map(Bytes::numbers)
    }

    /// The user's JSON, where there is some.
    pub fn metadata(&self) -> Option<&[u8]> {
        self.section(section::METADATA).map(Bytes::as_slice)
    }

    /// The dictionary, where there is one.
    pub fn atoms(&self) -> Option<Atoms<'_>> {
        let bytes = self.section(section::DICTIONARY)?;
        let entry = self.header.section(section::DICTIONARY)?;
        let d = *entry.shape.get(1)? as usize;
        if entry.dtype != Dtype::F16.name() {
            return Atoms::new(bytes.numbers(), d).ok();
        }
        let halves: &[f16] = bytes.numbers();
        let rows = self
            .wide_atoms
            .get_or_init(|| halves.iter().map(|half| half.to_f32()).collect());
        Some(Atoms::new(rows, d).ok()?.with_halves(halves))
    }

    /// What is added to every decoded item, where there is something.
    pub fn mean(&self) -> Option<&[f32]> {
        self.section(section::MEAN).map(Bytes::numbers)
    }

    /// The rows.
    pub fn rows(&self) -> RowsView<'_> {
        self.try_rows(self.layout.as_ref())
            .expect("from_parts has tried it on the same bytes")
    }

    fn try_rows<'a>(&'a self, layout: Option<&'a RankedLayout>) -> Result<RowsView<'a>> {
        let rows = &self.header.rows;
        let data = self
            .section(section::ROWS)
            .ok_or_else(|| missing(section::ROWS))?;
        let coding = match (layout, rows.width) {
            (Some(layout), _) => RowCoding::Ranked(layout),
            (None, Some(width)) => {
                RowCoding::Plain(self.row_format(), RowSpan::Fixed(width as usize))
            }
            (None, None) => RowCoding::Plain(self.row_format(), self.row_offsets()?),
        };
        RowsView::new(coding, self.len(), self.dim(), data.as_slice())
    }

    fn row_format(&self) -> RowFormat {
        RowFormat::new(self.dim(), self.value_kind())
    }

    fn row_offsets(&self) -> Result<RowSpan<'_>> {
        let offsets = self
            .section(section::ROW_OFFSETS)
            .ok_or_else(|| missing(section::ROW_OFFSETS))?;
        Ok(match self.header.section(section::ROW_OFFSETS) {
            Some(entry) if entry.dtype == Dtype::U32.name() => {
                RowSpan::Offsets32(offsets.numbers())
            }
            _ => RowSpan::Offsets64(offsets.numbers()),
        })
    }

    /// The scales of a mode.
    pub fn scales(&self, mode: Mode) -> Scales<'_> {
        match self.header.modes.get(mode.name()) {
            Some(Some(name)) => self.scales_in(name),
            _ => Scales::One,
        }
    }

    /// The scales of a section; 1 where there is none.
    fn scales_in(&self, name: &str) -> Scales<'_> {
        match (self.section(name), self.header.section(name)) {
            (Some(bytes), Some(entry)) => match entry.unit {
                Some(unit) => Scales::Float16(bytes.numbers(), unit),
                None => Scales::Float32(bytes.numbers()),
            },
            _ => Scales::One,
        }
    }

    /// What the header of its file says, or would say.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How rows are packed.
    fn coding(&self) -> batch::Coding {
        let scales = [
            section::SCALES_STEP,
            section::SCALES_CODE,
            section::SCALES_EMBEDDING,
        ];
        batch::Coding {
            dim: self.dim(),
            kind: self.value_kind(),
            layout: self.layout.clone(),
            scales: scales
                .into_iter()
                .filter(|name| self.section(name).is_some())
                .collect(),
        }
    }

    /// The checksum of the file's header; 0 where there is no file.
    fn identity(&self) -> u64 {
        self.file.as_ref().map_or(0, FilePart::identity)
    }

    /// A section with its entry of the header.
    fn entry(&self, name: &str) -> Option<(SectionHeader, Bytes)> {
        let entry = self.header.section(name)?.clone();
        Some((entry, self.section(name)?.clone()))
    }

    /// What the unit of a section of scales is a power of two times of: 1, or, in a file by an
    /// early writer, which took any number as unit, that unit.
    fn scale_reference(&self, name: &str) -> f64 {
        let unit = self.header.section(name).and_then(|entry| entry.unit);
        unit.filter(|unit| unit.log2().fract() != 0.0)
            .unwrap_or(1.0)
    }

    /// Tells the system that mapped rows will not be read again soon.
    fn release(&self, rows: std::ops::Range<usize>) {
        for (name, bytes) in &self.sections {
            let grows = ![
                section::LEVELS,
                section::DICTIONARY,
                section::MEAN,
                section::METADATA,
            ]
            .contains(name);
            if grows && !self.is_empty() {
                // about where they lie; what is released too early is read again
                let at = |row: usize| {
                    (bytes.as_slice().len() as u128 * row as u128 / self.len() as u128) as usize
                };
                bytes.release(at(rows.start)..at(rows.end));
            }
        }
    }

    /// The postings, where there are some.
    pub fn postings(&self) -> Option<PostingsView<'_>> {
        let block_items = self.header.postings?.block_items as usize;
        PostingsView::new(
            self.section(section::POSTINGS_LATENTS)?.numbers(),
            self.section(section::POSTINGS_STARTS)?.numbers(),
            self.section(section::POSTINGS)?.numbers(),
            self.section(section::POSTINGS_NORMS)?.numbers(),
            block_items,
            self.len(),
        )
        .ok()
    }

    /// True where every mode's scale of a row is 0.
    fn row_is_empty(&self, row: usize) -> bool {
        self.modes
            .iter()
            .all(|&mode| self.scales(mode).get(row) == 0.0)
    }

    fn section(&self, name: &str) -> Option<&Bytes> {
        self.sections
            .iter()
            .find(|section| section.0 == name)
            .map(|section| &section.1)
    }

    /// All sections with their sizes.
    pub fn sections(&self) -> Vec<SectionInfo> {
        self.header
            .sections
            .iter()
            .map(|entry| SectionInfo {
                name: entry.name.clone(),
                dtype: entry.dtype.clone(),
                shape: entry.shape.clone(),
                bytes: entry.length,
                grows: ![
                    section::LEVELS,
                    section::DICTIONARY,
                    section::MEAN,
                    section::METADATA,
                    section::SKETCH_LEVELS,
                    section::TUNED,
                ]
                .contains(&entry.name.as_str()),
            })
            .collect()
    }

    /// Bytes of rows and scales divided by the number of items; what an item costs, without
    /// its id. 0 where there is no item.
    pub fn bytes_per_item(&self) -> f64 {
        let counted = [
            section::ROWS,
            section::ROW_OFFSETS,
            section::SCALES_STEP,
            section::SCALES_CODE,
            section::SCALES_EMBEDDING,
        ];
        let bytes: u64 = self
            .header
            .sections
            .iter()
            .filter(|entry| counted.contains(&entry.name.as_str()))
            .map(|entry| entry.length)
            .sum();
        if self.is_empty() {
            0.0
        } else {
            bytes as f64 / self.len() as f64
        }
    }

    /// Reads everything: checksums of the file, where there is one, then rows, offsets, scales,
    /// ids and dictionary for content that no writer makes.
    ///
    /// # Errors
    /// [`Error::Format`] with the first thing wrong, [`Error::Interrupted`].
    pub fn verify(&self, control: &Control) -> Result<()> {
        let outcome = match &self.file {
            Some(file) => file.verify(control),
            None => Ok(()),
        }
        .and_then(|()| check::check_content(self, control));
        match self.file.as_ref().and_then(FilePart::path) {
            Some(path) => outcome.map_err(|error| error.in_file(path)),
            None => outcome,
        }
    }

    /// The best `k` items of each query as positions, best first, ties by lower position; all
    /// that the request's selection admits, where they are fewer. With `k_row`, only the first
    /// `k_row` nonzeros of each row are read: the coarser code that its prefix is. Runs on the
    /// current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] where the index was not built for the mode, queries and mode or widths
    /// do not fit, or [`Request::check`] finds a 0; [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn search(
        &self,
        queries: &Queries<'_>,
        request: &Request<'_>,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        let mut found = self.search_rows(queries, request, control)?;
        self.add_mean(&mut found, queries, request)?;
        Ok(found)
    }

    /// The same, before what the dictionary's mean adds to all scores of a query.
    fn search_rows(
        &self,
        queries: &Queries<'_>,
        request: &Request<'_>,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        let Request {
            mode,
            k,
            k_row,
            selection,
            approximate,
            ..
        } = *request;
        self.check_queries(queries, mode)?;
        request.check()?;
        let prefix = self.prefix(k_row);
        let data = self.scanned(prefix.as_ref(), request)?;
        let source = self.weight_source(queries, request);
        let postings = self.postings();
        let plan = search::plan::plan(&data, queries.len(), request, postings.is_some());
        let passes = !matches!(plan.way, Way::Postings | Way::Clusters);
        let rows = self.section(section::ROWS).filter(|_| passes);
        let _in_order = rows.and_then(Bytes::read_in_order);
        match (plan.way, postings, approximate) {
            (Way::Clusters, _, Some(setting)) => {
                let parts = self.approximate_for(mode)?;
                search::approximate::search(&data, &source, parts, setting, k, selection, control)
            }
            (Way::Postings, Some(postings), _) => {
                let guesses = &*self.guesses;
                search::walk(&postings, &data, &source, k, selection, guesses, control)
            }
            (Way::RoughScan, ..) => search::rough::search(&data, &source, k, selection, control),
            (Way::Product, ..) => search::product::search(&data, &source, k, selection, control),
            (Way::IntegerPass, ..) => {
                let guesses = &*self.guesses_of_batches;
                search::batch::search(&data, &source, k, selection, guesses, control)
            }
            _ => search::scan(&data, &source, k, selection, control),
        }
    }

    /// Adds what the dictionary's mean adds to every score of a query.
    fn add_mean(
        &self,
        found: &mut [Vec<Hit>],
        queries: &Queries<'_>,
        request: &Request<'_>,
    ) -> Result<()> {
        if let Some(mean) = self.mean().filter(|_| request.mode.needs_dictionary()) {
            let source = self.weight_source(queries, request);
            let constants = source.inner_products_with(mean)?;
            for (hits, constant) in found.iter_mut().zip(constants) {
                hits.iter_mut().for_each(|hit| hit.score += constant);
                // of a damaged mean: what is no number is no score, here as in a scan
                hits.retain(|hit| !hit.score.is_nan());
            }
        }
        Ok(())
    }

    fn weight_source<'a>(
        &'a self,
        queries: &Queries<'a>,
        request: &Request<'_>,
    ) -> WeightSource<'a> {
        WeightSource {
            queries: *queries,
            mode: request.mode,
            metric: self.metric,
            // made ready where they are needed alone
            atoms: request
                .mode
                .needs_dictionary()
                .then(|| self.atoms())
                .flatten(),
            mean: self.mean(),
            kernels: request.kernels,
        }
    }

    /// How a search of `n_queries` queries would go.
    ///
    /// # Errors
    /// As [`Index::search`], for the request alone.
    pub fn explain(&self, n_queries: usize, request: &Request<'_>) -> Result<Plan> {
        self.planned(n_queries, request, |plan, _| plan)
    }

    /// What `of` says of the plan of a request and the rows that are scanned for it.
    fn planned<T>(
        &self,
        n_queries: usize,
        request: &Request<'_>,
        of: impl FnOnce(Plan, &ScanRows<'_>) -> T,
    ) -> Result<T> {
        self.check_mode(request.mode)?;
        request.check()?;
        let prefix = self.prefix(request.k_row);
        let data = self.scanned(prefix.as_ref(), request)?;
        let has_postings = self.postings().is_some();
        let plan = search::plan::plan(&data, n_queries, request, has_postings);
        Ok(of(plan, &data))
    }

    /// About how long one query takes, as [`search::plan::look_ups`] says; `None` also where the
    /// request is at fault, or where the first search has the dictionary to prepare.
    pub(super) fn look_ups(&self, queries: &Queries<'_>, request: &Request<'_>) -> Option<usize> {
        let d = if request.mode.needs_dictionary() {
            let entry = self.header.section(section::DICTIONARY)?;
            let is_ready = entry.dtype != Dtype::F16.name() || self.wide_atoms.get().is_some();
            is_ready.then(|| entry.shape.get(1).copied()).flatten()? as usize
        } else {
            0
        };
        let listed = match (self.postings(), queries) {
            (Some(postings), Queries::Codes(codes)) if codes.len() == 1 => {
                postings.listed(codes.row(0))
            }
            _ => None,
        };
        self.planned(1, request, |plan, data| {
            search::plan::look_ups(plan.way, data, request.k, d, listed)
        })
        .ok()?
    }

    /// The layout of rows that are read as if they had so many nonzeros.
    fn prefix(&self, k_row: Option<usize>) -> Option<RankedLayout> {
        Some(self.layout.as_ref()?.prefix(k_row?))
    }

    fn scanned<'a>(
        &'a self,
        prefix: Option<&'a RankedLayout>,
        request: &Request<'_>,
    ) -> Result<ScanRows<'a>> {
        Ok(ScanRows {
            rows: self
                .try_rows(prefix.or(self.layout.as_ref()))?
                .with_ranks(request.k_row.unwrap_or(usize::MAX)),
            scales: self.scales(request.mode),
        })
    }

    fn check_mode(&self, mode: Mode) -> Result<()> {
        if !self.modes.contains(&mode) {
            let built: Vec<_> = self.modes.iter().map(|mode| mode.name()).collect();
            let dictionary = if mode.needs_dictionary() && self.atoms().is_none() {
                " and a dictionary"
            } else {
                ""
            };
            return Err(Error::argument(format!(
                "this index was built for {built:?}, not for mode {:?}; build it with \
                 modes=[.., {:?}]{dictionary}",
                mode.name(),
                mode.name(),
            )));
        }
        Ok(())
    }

    fn check_queries(&self, queries: &Queries<'_>, mode: Mode) -> Result<()> {
        self.check_mode(mode)?;
        match *queries {
            Queries::Codes(codes) if codes.dim() != self.dim() => Err(Error::argument(format!(
                "queries are codes over {} latents, the index has {}; encode them with the \
                 model that encoded the items",
                codes.dim(),
                self.dim()
            ))),
            Queries::Dense { d, .. } if self.atoms().is_some_and(|atoms| atoms.d() != d) => {
                Err(Error::argument(format!(
                    "queries have {d} columns, this index holds a dictionary for {}; embed them \
                     with the model that made the items",
                    self.atoms().map_or(0, |atoms| atoms.d())
                )))
            }
            _ => Ok(()),
        }
    }
}

fn missing(name: &str) -> Error {
    FormatProblem::MissingSection {
        section: name.into(),
    }
    .into()
}
