//! From codes to an index in memory: packing, scales, sections.

use std::collections::BTreeMap;

use half::f16;
use rayon::prelude::*;

use super::ids::{check_ids, Ids};
use super::scale_unit::{scale_unit, to_half};
use super::Index;
use crate::codes::{
    pack, pack::fits_u32, pack_ranked, ranked::MAX_COMPLETE_BITS, CodesView, MagnitudeBits,
    PackedRows, RankedLayout, RankedRows, RowCoding, RowsView, ValueKind,
};
use crate::control::Control;
use crate::format::{
    scales_of, section, Bytes, Cosines, Dtype, Header, ItemNorm, PostingsHeader, RowsHeader,
    SectionHeader,
};
use crate::kernels::{norm, POSITIONS};
use crate::search::{postings, Atoms, Metric, Mode};
use crate::{Error, Result};

/// Rows whose norms one task computes: milliseconds of work in embedding space.
const ROWS_A_TASK: usize = 1024;

/// A dictionary as it is given: `n_atoms` rows of width `d`, and perhaps a mean.
#[derive(Debug, Clone, Copy)]
pub struct DictionaryData<'a> {
    /// The rows, one after the other.
    pub rows: &'a [f32],
    /// Width of a row.
    pub d: usize,
    /// What is added to every decoded item, `d` numbers. It adds the same to all scores of a
    /// query, so it goes with inner products and with unit items only.
    pub mean: Option<&'a [f32]>,
}

/// How values are to be stored.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueCoding {
    /// Themselves.
    Float32,
    /// Levels of a uniform grid of 16 bits.
    Int16,
    /// Levels of a uniform grid of 8 bits.
    Int8,
    /// A sign and a few bits, by rank.
    Ranked(MagnitudeBits),
}

impl ValueCoding {
    /// The coding that takes so many bits a value, sign included: 32, 16, 8, or 1 to 7 for a
    /// coding by rank, whole for as many at every rank, else for that many on average.
    ///
    /// # Errors
    /// [`Error::Argument`] for other numbers.
    pub fn from_bits(bits: f64) -> Result<Self> {
        match bits {
            32.0 => Ok(Self::Float32),
            16.0 => Ok(Self::Int16),
            8.0 => Ok(Self::Int8),
            _ if (1.0..=7.0).contains(&bits) && bits.fract() == 0.0 => {
                Ok(Self::Ranked(MagnitudeBits::Uniform(bits as u8 - 1)))
            }
            _ if (1.0..=7.0).contains(&bits) => {
                Ok(Self::Ranked(MagnitudeBits::Average(bits - 1.0)))
            }
            _ => Err(Error::argument(format!(
                "value_bits is {bits}; expected 32, 16, 8, or 1 to 7"
            ))),
        }
    }
}

impl ValueCoding {
    /// The coding of rows that have every latent, which takes so many bits a value on average, sign
    /// included.
    ///
    /// # Errors
    /// [`Error::Argument`] for bits that are not 1 to 12.
    pub fn complete_from_bits(bits: f64) -> Result<Self> {
        let most = f64::from(MAX_COMPLETE_BITS + 1);
        if (1.0..=most).contains(&bits) {
            Ok(Self::Ranked(MagnitudeBits::Complete(bits - 1.0)))
        } else {
            Err(Error::argument(format!(
                "value_bits is {bits}; complete codes take 1 to {most}"
            )))
        }
    }

    /// The coding of rows of this layout.
    pub fn of_layout(layout: &RankedLayout) -> Self {
        let bits = layout.magnitude_bits();
        let sum: f64 = bits.iter().map(|&bits| f64::from(bits)).sum();
        let mean = sum / bits.len() as f64;
        Self::Ranked(if layout.is_complete() {
            MagnitudeBits::Complete(mean)
        } else {
            MagnitudeBits::Average(mean)
        })
    }
}

/// How an index is built.
#[derive(Debug, Clone)]
pub struct BuildOptions<'a> {
    /// What scores are.
    pub metric: Metric,
    /// How values are stored.
    pub values: ValueCoding,
    /// What cosine takes for the norm of an item in embedding space.
    pub item_norm: ItemNorm,
    /// Mean cosine of items and their codes, where it is known; kept for people.
    pub reconstruction_cosine: Option<f64>,
    /// The modes to serve; empty for the usual ones: sparse without a dictionary, dense and
    /// reconstructed with one.
    pub modes: &'a [Mode],
    /// The dictionary, for the modes that need one.
    pub dictionary: Option<DictionaryData<'a>>,
    /// What items are called, where not by their positions; unique, not -1.
    pub ids: Option<Ids<'a>>,
    /// JSON of the user's own.
    pub metadata: Option<&'a str>,
    /// Postings for the mode sparse, so many items a block; the usual number is
    /// [`BLOCK_ITEMS`](crate::search::postings::BLOCK_ITEMS).
    pub postings: Option<usize>,
}

impl BuildOptions<'_> {
    pub(super) fn check_mean(&self) -> Result<()> {
        let has_mean = self.dictionary.is_some_and(|given| given.mean.is_some());
        if has_mean && self.metric == Metric::Cosine && self.item_norm == ItemNorm::Decoded {
            return Err(Error::argument(
                "a dictionary with a mean does not go with cosines of decoded items; pass \
                 unit_items=True (codes of unit rows) or metric=\"inner_product\"",
            ));
        }
        Ok(())
    }

    pub(super) fn check_metadata(&self) -> Result<()> {
        if let Some(metadata) = self.metadata {
            serde_json::from_str::<serde::de::IgnoredAny>(metadata)
                .map_err(|error| Error::argument(format!("metadata is not JSON: {error}")))?;
        }
        Ok(())
    }
}

impl Index {
    /// The program, as the header names it.
    pub(super) const PROGRAM: &'static str =
        concat!("sparse_retrieval ", env!("CARGO_PKG_VERSION"));

    /// Builds an index from codes. Runs on the current rayon pool; progress counts rows, each
    /// once for packing and once for each set of scales.
    ///
    /// # Errors
    /// [`Error::Argument`] where the parts do not fit each other; [`Error::OutOfMemory`],
    /// [`Error::Interrupted`].
    pub fn build(
        codes: CodesView<'_>,
        options: &BuildOptions<'_>,
        control: &Control,
    ) -> Result<Self> {
        let modes = resolve_modes(options)?;
        let atoms = options
            .dictionary
            .map(|dictionary| check_dictionary(dictionary, codes.dim()))
            .transpose()?;
        let mean = options.dictionary.and_then(|dictionary| dictionary.mean);
        options.check_mean()?;
        if let Some(ids) = options.ids {
            check_ids(ids, codes.len())?;
        }
        options.check_metadata()?;
        let stored = Stored::pack(codes, &options.values, atoms, control)?;
        let kind = stored.kind();
        let mut sections = Sections::default();
        let wanted: BTreeMap<String, Option<&'static str>> = modes
            .iter()
            .map(|&mode| {
                let scales = scales_of(mode, options.metric, kind, options.item_norm);
                (mode.name().into(), scales)
            })
            .collect();
        let view = stored.view(&codes)?;
        for name in [
            section::SCALES_STEP,
            section::SCALES_CODE,
            section::SCALES_EMBEDDING,
        ] {
            if wanted.values().any(|&scales| scales == Some(name)) {
                let atoms = atoms.filter(|_| name == section::SCALES_EMBEDDING);
                let scales = match name {
                    section::SCALES_STEP => stored.steps().to_vec(),
                    _ => inverse_norms(&view, stored.steps(), atoms, control)?,
                };
                sections.add_scales(name, scales.len(), |i| f64::from(scales[i]), kind, 1.0)?;
            }
        }
        let (rows_header, quantisation) = stored.header(&codes);
        stored.add_to(&mut sections)?;
        if let Some(atoms) = atoms {
            sections.add_atoms(atoms)?;
            if let Some(mean) = mean {
                sections.add(section::MEAN, Dtype::F32, vec![mean.len() as u64], mean)?;
            }
        }
        let ids_ascend = match options.ids {
            Some(ids) => sections.add_ids(ids)?,
            None => false,
        };
        if let Some(metadata) = options.metadata.map(str::as_bytes) {
            let shape = vec![metadata.len() as u64];
            sections.add(section::METADATA, Dtype::U8, shape, metadata)?;
        }
        sections.sort();
        let header = Header {
            writer: Self::PROGRAM.into(),
            rows: rows_header,
            item_norm: options.item_norm,
            cosines: Cosines {
                reconstruction: options.reconstruction_cosine,
                quantisation,
            },
            metric: options.metric.name().into(),
            modes: wanted
                .into_iter()
                .map(|(mode, scales)| (mode, scales.map(String::from)))
                .collect(),
            ids_ascend,
            postings: None,
            sections: sections.headers,
        };
        let index = Self::from_parts(header, sections.data, None)?;
        match options.postings {
            Some(block_items) => index.with_postings(block_items, control),
            None => Ok(index),
        }
    }

    /// The same index with postings, with which the mode sparse is searched faster and no less
    /// exactly. Shares the memory of everything else with this one. Runs on the current rayon
    /// pool; progress counts rows.
    ///
    /// # Errors
    /// [`Error::Argument`] where the index was not built for the mode sparse, or `block_items` is
    /// out of range; [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn with_postings(&self, block_items: usize, control: &Control) -> Result<Self> {
        if !self.modes.contains(&Mode::Sparse) {
            return Err(Error::argument(
                "postings serve the mode \"sparse\", and this index was not built for it; build it \
                 with modes=[.., \"sparse\"]",
            ));
        }
        let scales = self.scales(Mode::Sparse);
        let built = postings::build(&self.rows(), &scales, block_items, control)?;
        let mut index = self.clone();
        let mut sections = Sections {
            headers: std::mem::take(&mut index.header.sections),
            data: std::mem::take(&mut index.sections),
        };
        let is_postings = |name: &str| name.starts_with(section::POSTINGS);
        sections.headers.retain(|entry| !is_postings(&entry.name));
        sections.data.retain(|section| !is_postings(section.0));
        let (latents, starts) = (built.latents.len() as u64, built.starts.len() as u64);
        let shape = vec![built.chunks.len() as u64, POSITIONS as u64 + 1];
        sections.add(section::POSTINGS, Dtype::U16, shape, &built.chunks)?;
        let norms = vec![built.norms.len() as u64];
        sections.add(section::POSTINGS_NORMS, Dtype::F32, norms, &built.norms)?;
        sections.add(
            section::POSTINGS_STARTS,
            Dtype::U32,
            vec![starts],
            &built.starts,
        )?;
        sections.add(
            section::POSTINGS_LATENTS,
            Dtype::U32,
            vec![latents],
            &built.latents,
        )?;
        sections.sort();
        index.header.sections = sections.headers;
        index.sections = sections.data;
        index.header.postings = Some(PostingsHeader {
            block_items: block_items as u64,
        });
        Ok(index)
    }
}

/// Sections in memory, each with its entry of the header.
#[derive(Default)]
pub(super) struct Sections {
    pub(super) headers: Vec<SectionHeader>,
    pub(super) data: Vec<(&'static str, Bytes)>,
}

impl Sections {
    pub(super) fn add<T: bytemuck::NoUninit>(
        &mut self,
        name: &'static str,
        dtype: Dtype,
        shape: Vec<u64>,
        numbers: &[T],
    ) -> Result<()> {
        self.push(name, dtype, shape, None, Bytes::copy_of(numbers)?);
        Ok(())
    }

    /// Scales: in half precision beside rank-coded values, whose error is far above that of a
    /// scale (2^-11), else in single precision.
    /// Units are `reference` times a power of two.
    pub(super) fn add_scales(
        &mut self,
        name: &'static str,
        n: usize,
        scale: impl Fn(usize) -> f64,
        kind: ValueKind,
        reference: f64,
    ) -> Result<()> {
        let shape = vec![n as u64];
        if kind != ValueKind::Ranked {
            let scales: Vec<f32> = (0..n).map(|i| scale(i) as f32).collect();
            return self.add(name, Dtype::F32, shape, &scales);
        }
        let unit = scale_unit((0..n).map(&scale).fold(0.0, f64::max), reference);
        let halves: Vec<f16> = (0..n).map(|i| to_half(scale(i), unit)).collect();
        self.push(
            name,
            Dtype::F16,
            shape,
            Some(unit),
            Bytes::copy_of(&halves)?,
        );
        Ok(())
    }

    /// Ids, and the order to find them by where they do not ascend; true where they do.
    pub(super) fn add_ids(&mut self, ids: Ids<'_>) -> Result<bool> {
        let n = ids.len() as u64;
        match ids {
            Ids::Positions(_) => return Ok(false),
            Ids::Numbers(numbers) => self.add(section::IDS, Dtype::I64, vec![n], numbers)?,
            Ids::Strings(strings) => {
                let mut bytes = Vec::new();
                let mut offsets = vec![0u64];
                for i in 0..strings.len() {
                    bytes.extend_from_slice(strings.bytes(i));
                    offsets.push(bytes.len() as u64);
                }
                self.add_unsigned(section::ID_OFFSETS, &offsets, bytes.len())?;
                let shape = vec![bytes.len() as u64];
                self.push(
                    section::ID_BYTES,
                    Dtype::U8,
                    shape,
                    None,
                    Bytes::from_vec(bytes),
                );
            }
        }
        if ids.ascend() {
            return Ok(true);
        }
        self.add_unsigned(section::ID_ORDER, &ids.sorted(), ids.len())?;
        Ok(false)
    }

    /// Numbers up to `largest`, in 32 bits where they fit.
    pub(super) fn add_unsigned(
        &mut self,
        name: &'static str,
        numbers: &[u64],
        largest: usize,
    ) -> Result<()> {
        let shape = vec![numbers.len() as u64];
        if fits_u32(largest) {
            let narrow: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
            self.add(name, Dtype::U32, shape, &narrow)
        } else {
            self.add(name, Dtype::U64, shape, numbers)
        }
    }

    /// Atoms: in half precision where that loses nothing, as it does for atoms that were rounded
    /// to it before anything was encoded with them.
    pub(super) fn add_atoms(&mut self, atoms: Atoms<'_>) -> Result<()> {
        let shape = vec![atoms.len() as u64, atoms.d() as u64];
        let is_exact = |&a: &f32| f16::from_f32(a).to_f32() == a;
        if atoms.rows().iter().all(is_exact) {
            let halves: Vec<f16> = atoms.rows().iter().map(|&a| f16::from_f32(a)).collect();
            self.add(section::DICTIONARY, Dtype::F16, shape, &halves)
        } else {
            self.add(section::DICTIONARY, Dtype::F32, shape, atoms.rows())
        }
    }

    pub(super) fn push(
        &mut self,
        name: &'static str,
        dtype: Dtype,
        shape: Vec<u64>,
        unit: Option<f64>,
        bytes: Bytes,
    ) {
        self.headers.push(SectionHeader {
            name: name.into(),
            dtype: dtype.name().into(),
            shape,
            // where a section goes and what it hashes to is known when it is written
            offset: 0,
            length: bytes.as_slice().len() as u64,
            checksum: String::new(),
            required: !section::OPTIONAL.contains(&name),
            unit,
        });
        self.data.push((name, bytes));
    }

    /// A section as another index has it.
    pub(super) fn push_entry(&mut self, name: &'static str, entry: SectionHeader, bytes: Bytes) {
        self.headers.push(entry);
        self.data.push((name, bytes));
    }

    /// Each with its entry of the header.
    pub(super) fn into_entries(self) -> Vec<(SectionHeader, Bytes)> {
        let bytes = self.data.into_iter().map(|section| section.1);
        self.headers.into_iter().zip(bytes).collect()
    }

    /// Into the order in which they are listed and written.
    pub(super) fn sort(&mut self) {
        let place = |name: &str| section::ALL.iter().position(|&known| known == name);
        self.headers.sort_by_key(|header| place(&header.name));
        self.data.sort_by_key(|section| place(section.0));
    }
}

/// Packed rows of either kind.
enum Stored {
    Plain(PackedRows),
    Ranked(RankedRows),
}

impl Stored {
    fn pack(
        codes: CodesView<'_>,
        values: &ValueCoding,
        atoms: Option<Atoms<'_>>,
        control: &Control,
    ) -> Result<Self> {
        let plain = |kind| Ok(Self::Plain(pack(codes, kind, control)?));
        match values {
            ValueCoding::Float32 => plain(ValueKind::Float32),
            ValueCoding::Int16 => plain(ValueKind::Int16),
            ValueCoding::Int8 => plain(ValueKind::Int8),
            ValueCoding::Ranked(bits) => {
                let atoms = atoms.map(|atoms| (atoms.rows(), atoms.d()));
                Ok(Self::Ranked(pack_ranked(codes, bits, atoms, control)?))
            }
        }
    }

    fn kind(&self) -> ValueKind {
        match self {
            Self::Plain(packed) => packed.format.value,
            Self::Ranked(_) => ValueKind::Ranked,
        }
    }

    fn view(&self, codes: &CodesView<'_>) -> Result<RowsView<'_>> {
        match self {
            Self::Plain(packed) => packed.view(),
            Self::Ranked(packed) => RowsView::new(
                RowCoding::Ranked(&packed.layout),
                codes.len(),
                codes.dim(),
                &packed.data,
            ),
        }
    }

    fn steps(&self) -> &[f32] {
        match self {
            Self::Plain(packed) => &packed.steps,
            Self::Ranked(packed) => &packed.scales,
        }
    }

    /// What the header says of the rows, and the mean cosine that quantisation left.
    fn header(&self, codes: &CodesView<'_>) -> (RowsHeader, Option<f64>) {
        let (latent_bits, width, magnitude_bits, cosine) = match self {
            Self::Plain(packed) => (packed.format.latent_bits, packed.width, None, None),
            Self::Ranked(packed) => (
                packed.layout.latent_bits(),
                Some(packed.layout.width()),
                Some(packed.layout.magnitude_bits().to_vec()),
                Some(packed.mean_cosine()),
            ),
        };
        let header = RowsHeader {
            count: codes.len() as u64,
            dim: codes.dim() as u64,
            latent_bits,
            values: self.kind().into(),
            width: width.map(|width| width as u64),
            magnitude_bits,
        };
        (header, cosine)
    }

    fn add_to(self, sections: &mut Sections) -> Result<()> {
        let (data, offsets, levels) = match self {
            Self::Plain(packed) => (packed.data, packed.offsets, Vec::new()),
            Self::Ranked(packed) => (packed.data, Vec::new(), packed.layout.levels().to_vec()),
        };
        let shape = vec![data.len() as u64];
        sections.push(section::ROWS, Dtype::U8, shape, None, data.into());
        if !levels.is_empty() {
            let shape = vec![levels.len() as u64];
            sections.add(section::LEVELS, Dtype::F32, shape, &levels)?;
        }
        if let Some(&last) = offsets.last() {
            sections.add_unsigned(section::ROW_OFFSETS, &offsets, last as usize)?;
        }
        Ok(())
    }
}

pub(super) fn resolve_modes(options: &BuildOptions<'_>) -> Result<Vec<Mode>> {
    let has_dictionary = options.dictionary.is_some();
    let mut modes = match (options.modes, has_dictionary) {
        ([], false) => vec![Mode::Sparse],
        ([], true) => vec![Mode::Dense, Mode::Reconstructed],
        (modes, _) => modes.to_vec(),
    };
    modes.sort_unstable();
    modes.dedup();
    if let Some(mode) = modes
        .iter()
        .find(|mode| mode.needs_dictionary() && !has_dictionary)
    {
        return Err(Error::argument(format!(
            "mode {:?} needs a dictionary; pass dictionary=, or build for modes=[\"sparse\"]",
            mode.name()
        )));
    }
    Ok(modes)
}

pub(super) fn check_dictionary(dictionary: DictionaryData<'_>, dim: usize) -> Result<Atoms<'_>> {
    let atoms = Atoms::new(dictionary.rows, dictionary.d)?;
    if atoms.len() != dim {
        return Err(Error::argument(format!(
            "the dictionary has {} atoms, the codes have {dim} latents; pass the dictionary that \
             made the codes",
            atoms.len()
        )));
    }
    if let Some(mean) = dictionary.mean {
        if mean.len() != dictionary.d || mean.iter().any(|m| !m.is_finite()) {
            return Err(Error::argument(format!(
                "the dictionary's mean has {} numbers; expected {} finite ones",
                mean.len(),
                dictionary.d
            )));
        }
    }
    if let Some(at) = dictionary.rows.iter().position(|a| !a.is_finite()) {
        return Err(Error::argument(format!(
            "the dictionary holds {} in atom {}, column {}; atoms must be finite",
            dictionary.rows[at],
            at / dictionary.d,
            at % dictionary.d
        )));
    }
    Ok(atoms)
}

/// 1 / norm of every row, in embedding space where atoms are given; 0 for a zero row, which,
/// where rows have steps, is one whose step is 0: what fills a rank-coded row may be no zeros.
pub(super) fn inverse_norms(
    rows: &RowsView<'_>,
    steps: &[f32],
    atoms: Option<Atoms<'_>>,
    control: &Control,
) -> Result<Vec<f32>> {
    let mut scales = vec![0.0f32; rows.len()];
    scales
        .par_chunks_mut(ROWS_A_TASK)
        .enumerate()
        .try_for_each(|(task, scales)| {
            let mut vector = atoms.map_or_else(Vec::new, |atoms| vec![0.0; atoms.d()]);
            for (i, scale) in scales.iter_mut().enumerate() {
                if i % 64 == 0 {
                    control.check()?;
                }
                let row = task * ROWS_A_TASK + i;
                if steps.get(row) == Some(&0.0) {
                    continue;
                }
                let pairs = rows.pairs(row);
                match atoms {
                    Some(atoms) => atoms.decode(pairs, &mut vector),
                    None => {
                        vector.clear();
                        vector.extend(pairs.iter().map(|pair| pair.1));
                    }
                }
                let norm = norm(&vector);
                // a norm beyond float32's range gives the nearest scale that is finite
                *scale = if norm > 0.0 {
                    ((1.0 / norm) as f32).min(f32::MAX)
                } else {
                    0.0
                };
            }
            control.advance(scales.len() as u64);
            Ok::<(), Error>(())
        })?;
    Ok(scales)
}
