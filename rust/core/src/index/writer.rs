//! Building a file of any number of items in memory that does not grow with them.
//!
//! Rows are packed as they come and spilled; [`IndexWriter::finish`] puts the file together
//! beside its target and renames it. Until then the target is as it was; a writer that is
//! dropped or killed leaves it so. Where values are coded by rank, the first rows are held until
//! there are enough to learn the codebooks from.
//!
//! The file depends on the items and the options, not on how items are cut into batches. It is
//! the one that [`Index::build`] and [`Index::save`] make of the same codes, wherever the
//! codebooks were learnt from all rows, given, or not needed.

use std::path::Path;
use std::sync::Arc;

use super::batch::{Batch, Coding};
use super::build::{check_dictionary, resolve_modes, Sections};
use super::column::Place;
use super::ids::{check_each, check_unique, Ids, OwnedIds};
use super::spool::{Frame, Spool};
use super::{BuildOptions, DictionaryData, Index, ValueCoding};
use crate::codes::levels::SAMPLE_ROWS;
use crate::codes::{learn_layout, CodesView, MagnitudeBits, RankedLayout, RowLengths, ValueKind};
use crate::control::Control;
use crate::format::{
    lock::WriteLock, scales_of, section, Bytes, Cosines, Disk, Dtype, Header, RowsHeader,
    SystemDisk,
};
use crate::search::Atoms;
use crate::{Error, Result};

/// Rows that are packed and spilled at a time.
const ROWS_A_BATCH: usize = 1 << 14;

/// How the codebooks of rank-coded values come about.
#[derive(Debug, Clone)]
pub struct Codebooks {
    /// Those of another index, where given; nothing is learnt then.
    pub given: Option<RankedLayout>,
    /// Rows that they are learnt from: the first ones.
    pub sample_rows: usize,
    /// Nonzeros of the longest row to come, where that is not to be found out from the sample.
    pub longest: Option<usize>,
    /// Nonzeros of the shortest row to come that is not empty, likewise.
    pub shortest: Option<usize>,
}

impl Default for Codebooks {
    fn default() -> Self {
        Self {
            given: None,
            sample_rows: SAMPLE_ROWS,
            longest: None,
            shortest: None,
        }
    }
}

/// A dictionary with memory of its own.
#[derive(Debug, Clone)]
struct OwnedDictionary {
    rows: Vec<f32>,
    d: usize,
}

/// Writes an index file from batches of codes.
pub struct IndexWriter {
    bits: Option<MagnitudeBits>,
    codebooks: Codebooks,
    dictionary: Option<OwnedDictionary>,
    frame: Frame,
    state: State,
    place: Place,
    is_broken: bool,
    /// Released last: fields are dropped in their order.
    _lock: WriteLock,
}

/// Rows are held until codebooks are there, then spilled.
enum State {
    Sampling(Sample, Box<Coding>),
    Spooling(Box<Spool>),
}

/// Codes that are held, with their ids.
#[derive(Default)]
struct Sample {
    indptr: Vec<u64>,
    latents: Vec<u32>,
    values: Vec<f32>,
    ids: Option<OwnedIds>,
}

impl IndexWriter {
    /// Begins a file at `path`, over `dim` latents. `options.ids` must be none: they come with
    /// the rows.
    ///
    /// # Errors
    /// [`Error::Argument`] where options do not fit each other, [`Error::Locked`] where another
    /// writer is at work on the path, [`Error::Io`].
    pub fn new(
        path: &Path,
        dim: usize,
        options: &BuildOptions<'_>,
        codebooks: Codebooks,
    ) -> Result<Self> {
        Self::on(Arc::new(SystemDisk), path, dim, options, codebooks)
    }

    /// The same, on a given disk.
    ///
    /// # Errors
    /// As [`IndexWriter::new`].
    pub fn on(
        disk: Arc<dyn Disk>,
        path: &Path,
        dim: usize,
        options: &BuildOptions<'_>,
        codebooks: Codebooks,
    ) -> Result<Self> {
        crate::codes::check_dim(dim)?;
        options.check_mean()?;
        options.check_metadata()?;
        if options.ids.is_some() || options.postings.is_some() || codebooks.sample_rows == 0 {
            return Err(Error::argument(
                "a writer takes ids with the rows, a sample of at least 1 row, and makes no \
                 postings: give them to the opened file",
            ));
        }
        let atoms = options
            .dictionary
            .map(|dictionary| check_dictionary(dictionary, dim))
            .transpose()?;
        let (kind, bits) = match &options.values {
            ValueCoding::Float32 => (ValueKind::Float32, None),
            ValueCoding::Int16 => (ValueKind::Int16, None),
            ValueCoding::Int8 => (ValueKind::Int8, None),
            ValueCoding::Ranked(bits) => (ValueKind::Ranked, Some(bits.clone())),
        };
        let frame = frame(options, kind, atoms)?;
        let mut coding = Coding {
            dim,
            kind,
            layout: None,
            scales: wanted_scales(&frame.header),
        };
        if let Some(layout) = &codebooks.given {
            let expected = crate::codes::ranked::latent_bits_of(dim)?;
            let fits = match layout.is_complete() {
                true => layout.width() == dim,
                false => layout.latent_bits() == expected,
            };
            if kind != ValueKind::Ranked || !fits {
                return Err(Error::argument(format!(
                    "codebooks are for values coded by rank over latents of {} bits, the items \
                     have {kind:?} values over {dim} latents ({expected} bits)",
                    layout.latent_bits()
                )));
            }
            coding.layout = Some(layout.clone());
        } else if kind == ValueKind::Ranked {
            crate::codes::ranked::latent_bits_of(dim)?;
        }
        if path.is_dir() {
            let error = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(Error::io("write", path, error));
        }
        let place = Place {
            disk,
            target: path.to_owned(),
        };
        let lock = WriteLock::take(path)?;
        let is_ready = kind != ValueKind::Ranked || coding.layout.is_some();
        Ok(Self {
            bits,
            codebooks,
            dictionary: options.dictionary.map(|dictionary| OwnedDictionary {
                rows: dictionary.rows.to_vec(),
                d: dictionary.d,
            }),
            frame,
            state: if is_ready {
                State::Spooling(Box::new(Spool::new(coding, place.clone())))
            } else {
                State::Sampling(Sample::default(), Box::new(coding))
            },
            place,
            is_broken: false,
            _lock: lock,
        })
    }

    /// Number of items so far.
    pub fn len(&self) -> u64 {
        match &self.state {
            State::Sampling(sample, _) => sample.len() as u64,
            State::Spooling(spool) => spool.len(),
        }
    }

    /// True where there is no item yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes items, with ids for all of them or for none. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] where codes are over other latents, a row does not fit codebooks that
    /// were learnt or given, ids do not fit, or one is known to be given twice; [`Error::Io`], [`Error::OutOfMemory`],
    /// [`Error::Interrupted`]. Rows before the faulty one may have been taken, so the writer
    /// refuses to go on after an error.
    pub fn add(
        &mut self,
        codes: CodesView<'_>,
        ids: Option<Ids<'_>>,
        control: &Control,
    ) -> Result<()> {
        self.check_sound()?;
        let dim = match &self.state {
            State::Sampling(_, coding) => coding.dim,
            State::Spooling(spool) => spool.coding().dim,
        };
        if codes.dim() != dim {
            return Err(Error::argument(format!(
                "codes are over {} latents, the file is for {dim}",
                codes.dim()
            )));
        }
        if let Some(ids) = ids {
            if ids.len() != codes.len() {
                return Err(Error::argument(format!(
                    "{} ids for {} items; expected one for each",
                    ids.len(),
                    codes.len()
                )));
            }
            check_each(ids, self.len())?;
            check_unique(ids, self.len())?;
        }
        let taken = self.take(codes, ids, control);
        self.is_broken = taken.is_err();
        taken
    }

    fn check_sound(&self) -> Result<()> {
        if self.is_broken {
            return Err(Error::argument(
                "this writer has failed and cannot go on; make a new one",
            ));
        }
        Ok(())
    }

    fn take(
        &mut self,
        codes: CodesView<'_>,
        ids: Option<Ids<'_>>,
        control: &Control,
    ) -> Result<()> {
        let mut first = 0;
        while first < codes.len() {
            control.check()?;
            if let State::Sampling(sample, _) = &mut self.state {
                let room = self.codebooks.sample_rows - sample.len();
                let last = codes.len().min(first + room);
                sample.push(codes, ids, first..last)?;
                if sample.len() == self.codebooks.sample_rows {
                    self.learn(control)?;
                }
                first = last;
            } else {
                let last = codes.len().min(first + ROWS_A_BATCH);
                self.pack(codes.rows(first..last), ids, first..last, control)?;
                first = last;
            }
        }
        Ok(())
    }

    /// Codebooks from the rows that are held, which are then spilled.
    fn learn(&mut self, control: &Control) -> Result<()> {
        let State::Sampling(sample, coding) = &mut self.state else {
            return Ok(());
        };
        let (sample, mut coding) = (std::mem::take(sample), Coding::clone(coding));
        let codes = sample.view(coding.dim)?;
        let mut lengths = RowLengths::of(codes);
        lengths.longest = lengths.longest.max(self.codebooks.longest.unwrap_or(1));
        if let Some(shortest) = self.codebooks.shortest {
            lengths.shortest = lengths.shortest.min(shortest);
        }
        let bits = self.bits.as_ref().expect("only rank coding samples");
        coding.layout = Some(learn_layout(codes, bits, lengths, control)?);
        self.state = State::Spooling(Box::new(Spool::new(coding, self.place.clone())));
        let ids = sample.ids.as_ref().map(OwnedIds::view);
        for first in (0..codes.len()).step_by(ROWS_A_BATCH) {
            let last = codes.len().min(first + ROWS_A_BATCH);
            self.pack(codes.rows(first..last), ids, first..last, control)?;
        }
        Ok(())
    }

    fn pack(
        &mut self,
        codes: CodesView<'_>,
        ids: Option<Ids<'_>>,
        rows: std::ops::Range<usize>,
        control: &Control,
    ) -> Result<()> {
        let State::Spooling(spool) = &mut self.state else {
            unreachable!("rows are packed once there are codebooks")
        };
        let atoms = match &self.dictionary {
            Some(dictionary) => Some(Atoms::new(&dictionary.rows, dictionary.d)?),
            None => None,
        };
        let mut batch = Batch::pack(codes, spool.coding(), atoms, None, control)
            .map_err(|error| in_rows(error, spool.len()))?;
        batch.ids = ids.map(|ids| {
            let mut owned = OwnedIds::none(ids.are_strings());
            rows.for_each(|row| owned.push(ids, row));
            owned
        });
        spool.push(&batch)
    }

    /// Puts the file together, in the place of what was there.
    ///
    /// # Errors
    /// [`Error::Argument`] where ids are not unique, or the writer has failed before;
    /// [`Error::Io`], [`Error::Interrupted`]: the target is then as it was.
    pub fn finish(mut self, control: &Control) -> Result<u64> {
        self.check_sound()?;
        self.learn(control)?;
        let State::Spooling(spool) = self.state else {
            unreachable!("learn leaves none sampling")
        };
        let mut frame = self.frame;
        frame.header.cosines.quantisation = spool.quantisation();
        if let Some(layout) = &spool.coding().layout {
            let mut levels = Sections::default();
            let shape = vec![layout.levels().len() as u64];
            levels.add(section::LEVELS, Dtype::F32, shape, layout.levels())?;
            frame.fixed.extend(levels.into_entries());
        }
        let n = spool.len();
        spool.finish(frame, control)?;
        Ok(n)
    }
}

impl Sample {
    fn len(&self) -> usize {
        self.indptr.len().saturating_sub(1)
    }

    fn push(
        &mut self,
        codes: CodesView<'_>,
        ids: Option<Ids<'_>>,
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        if self.indptr.is_empty() {
            self.indptr.push(0);
            self.ids = ids.map(|ids| OwnedIds::none(ids.are_strings()));
        }
        let fits = match (&self.ids, ids) {
            (None, None) => true,
            (Some(held), Some(ids)) => held.view().are_strings() == ids.are_strings(),
            _ => false,
        };
        if !fits && !rows.is_empty() {
            return Err(Error::argument(format!(
                "from item {} on ids are not of one kind; give numbers for all items, strings for \
                 all, or no ids",
                self.len()
            )));
        }
        for row in rows {
            let (latents, values) = codes.row(row);
            self.latents.extend_from_slice(latents);
            self.values.extend_from_slice(values);
            self.indptr.push(self.latents.len() as u64);
            if let (Some(held), Some(ids)) = (&mut self.ids, ids) {
                held.push(ids, row);
            }
        }
        Ok(())
    }

    fn view(&self, dim: usize) -> Result<CodesView<'_>> {
        let indptr: &[u64] = if self.indptr.is_empty() {
            &[0]
        } else {
            &self.indptr
        };
        CodesView::new(indptr, &self.latents, &self.values, dim)
    }
}

/// The same error, where rows are counted from `first` on.
fn in_rows(error: Error, first: u64) -> Error {
    match error {
        Error::Argument(message) if first > 0 => {
            Error::Argument(format!("counted from item {first}: {message}"))
        }
        other => other,
    }
}

/// The sections of scales that the modes of a header name.
fn wanted_scales(header: &Header) -> Vec<&'static str> {
    let named = |name: &&str| {
        header
            .modes
            .values()
            .any(|scales| scales.as_deref() == Some(name))
    };
    [
        section::SCALES_STEP,
        section::SCALES_CODE,
        section::SCALES_EMBEDDING,
    ]
    .into_iter()
    .filter(named)
    .collect()
}

/// All that the options say of a file.
fn frame(options: &BuildOptions<'_>, kind: ValueKind, atoms: Option<Atoms<'_>>) -> Result<Frame> {
    let modes = resolve_modes(options)?;
    let mut sections = Sections::default();
    if let Some(atoms) = atoms {
        sections.add_atoms(atoms)?;
        if let Some(DictionaryData {
            mean: Some(mean), ..
        }) = options.dictionary
        {
            sections.add(section::MEAN, Dtype::F32, vec![mean.len() as u64], mean)?;
        }
    }
    if let Some(metadata) = options.metadata.map(str::as_bytes) {
        let bytes = Bytes::from_vec(metadata.to_vec());
        sections.push(
            section::METADATA,
            Dtype::U8,
            vec![metadata.len() as u64],
            None,
            bytes,
        );
    }
    let header = Header {
        writer: Index::PROGRAM.into(),
        rows: RowsHeader {
            count: 0,
            dim: 1,
            latent_bits: 16,
            values: kind.into(),
            width: None,
            magnitude_bits: None,
        },
        metric: options.metric.name().into(),
        item_norm: options.item_norm,
        cosines: Cosines {
            reconstruction: options.reconstruction_cosine,
            quantisation: None,
        },
        modes: modes
            .iter()
            .map(|&mode| {
                let scales = scales_of(mode, options.metric, kind, options.item_norm);
                (mode.name().into(), scales.map(String::from))
            })
            .collect(),
        ids_ascend: false,
        postings: None,
        sections: Vec::new(),
    };
    Ok(Frame {
        unit_references: vec![1.0; wanted_scales(&header).len()],
        header,
        fixed: sections.into_entries(),
    })
}
