//! From codes to an index in memory: packing, scales, sections.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{check_ids, Index};
use crate::codes::{pack, pack::fits_u32, CodesView, PackedRows, RowsView, ValueKind};
use crate::control::Control;
use crate::format::scales_of;
use crate::format::{section, Bytes, Dtype, Header, RowsHeader, SectionHeader};
use crate::kernels::norm;
use crate::search::{Atoms, Metric, Mode};
use crate::{Error, Result};

/// Rows whose norms one task computes: milliseconds of work in embedding space.
const ROWS_A_TASK: usize = 1024;

/// A dictionary as it is given: `n_atoms` rows of width `d`.
#[derive(Debug, Clone, Copy)]
pub struct DictionaryData<'a> {
    /// The rows, one after the other.
    pub rows: &'a [f32],
    /// Width of a row.
    pub d: usize,
}

/// How an index is built.
#[derive(Debug, Clone)]
pub struct BuildOptions<'a> {
    /// What scores are.
    pub metric: Metric,
    /// How values are stored.
    pub value: ValueKind,
    /// The modes to serve; empty for the usual ones: sparse without a dictionary, dense and
    /// reconstructed with one.
    pub modes: &'a [Mode],
    /// The dictionary, for the modes that need one.
    pub dictionary: Option<DictionaryData<'a>>,
    /// What items are called, where not by their positions; unique, not -1.
    pub ids: Option<&'a [i64]>,
    /// JSON of the user's own.
    pub metadata: Option<&'a str>,
}

impl Index {
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
        if let Some(ids) = options.ids {
            check_ids(ids, codes.len())?;
        }
        if let Some(metadata) = options.metadata {
            serde_json::from_str::<serde::de::IgnoredAny>(metadata)
                .map_err(|error| Error::argument(format!("metadata is not JSON: {error}")))?;
        }
        let packed = pack(codes, options.value, control)?;
        let (format, width) = (packed.format, packed.width);
        let mut sections = Sections::default();
        let wanted: BTreeMap<String, Option<&'static str>> = modes
            .iter()
            .map(|&mode| {
                (
                    mode.name().into(),
                    scales_of(mode, options.metric, options.value),
                )
            })
            .collect();
        let view = packed.view()?;
        for name in [section::SCALES_CODE, section::SCALES_EMBEDDING] {
            if wanted.values().any(|&scales| scales == Some(name)) {
                let atoms = atoms.filter(|_| name == section::SCALES_EMBEDDING);
                let scales = match options.metric {
                    Metric::InnerProduct => packed.steps.clone(),
                    Metric::Cosine => inverse_norms(&view, atoms, control)?,
                };
                sections.add(name, Dtype::F32, vec![codes.len() as u64], &scales)?;
            }
        }
        sections.add_rows(packed)?;
        if let Some(atoms) = atoms {
            let shape = vec![atoms.len() as u64, atoms.d() as u64];
            sections.add(section::DICTIONARY, Dtype::F32, shape, atoms.rows())?;
        }
        if let Some(ids) = options.ids {
            sections.add(section::IDS, Dtype::I64, vec![ids.len() as u64], ids)?;
        }
        if let Some(metadata) = options.metadata.map(str::as_bytes) {
            let shape = vec![metadata.len() as u64];
            sections.add(section::METADATA, Dtype::U8, shape, metadata)?;
        }
        sections.sort();
        let header = Header {
            writer: concat!("sparse_retrieval ", env!("CARGO_PKG_VERSION")).into(),
            rows: RowsHeader {
                count: codes.len() as u64,
                dim: codes.dim() as u64,
                latent_bits: format.latent_bits,
                values: format.value.into(),
                width: width.map(|width| width as u64),
            },
            metric: options.metric.name().into(),
            modes: wanted
                .into_iter()
                .map(|(mode, scales)| (mode, scales.map(String::from)))
                .collect(),
            sections: sections.headers,
        };
        Self::from_parts(header, sections.data, None)
    }
}

/// Sections in memory, each with its entry of the header.
#[derive(Default)]
struct Sections {
    headers: Vec<SectionHeader>,
    data: Vec<(&'static str, Bytes)>,
}

impl Sections {
    fn add<T: bytemuck::NoUninit>(
        &mut self,
        name: &'static str,
        dtype: Dtype,
        shape: Vec<u64>,
        numbers: &[T],
    ) -> Result<()> {
        self.push(name, dtype, shape, Bytes::copy_of(numbers)?);
        Ok(())
    }

    fn push(&mut self, name: &'static str, dtype: Dtype, shape: Vec<u64>, bytes: Bytes) {
        self.headers.push(SectionHeader {
            name: name.into(),
            dtype: dtype.name().into(),
            shape,
            // where a section goes and what it hashes to is known when it is written
            offset: 0,
            length: bytes.as_slice().len() as u64,
            checksum: String::new(),
            required: name != section::METADATA,
        });
        self.data.push((name, bytes));
    }

    /// Into the order in which they are listed and written.
    fn sort(&mut self) {
        let place = |name: &str| section::ALL.iter().position(|&known| known == name);
        self.headers.sort_by_key(|header| place(&header.name));
        self.data.sort_by_key(|section| place(section.0));
    }

    fn add_rows(&mut self, packed: PackedRows) -> Result<()> {
        let shape = vec![packed.data.len() as u64];
        self.push(
            section::ROWS,
            Dtype::U8,
            shape,
            Bytes::from_vec(packed.data),
        );
        if packed.width.is_none() {
            let shape = vec![packed.offsets.len() as u64];
            let last = packed.offsets.last().map_or(0, |&last| last as usize);
            if fits_u32(last) {
                let narrow: Vec<u32> = packed.offsets.iter().map(|&o| o as u32).collect();
                self.add(section::ROW_OFFSETS, Dtype::U32, shape, &narrow)?;
            } else {
                self.add(section::ROW_OFFSETS, Dtype::U64, shape, &packed.offsets)?;
            }
        }
        Ok(())
    }
}

fn resolve_modes(options: &BuildOptions<'_>) -> Result<Vec<Mode>> {
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

fn check_dictionary(dictionary: DictionaryData<'_>, dim: usize) -> Result<Atoms<'_>> {
    let atoms = Atoms::new(dictionary.rows, dictionary.d)?;
    if atoms.len() != dim {
        return Err(Error::argument(format!(
            "the dictionary has {} atoms, the codes have {dim} latents; pass the dictionary that \
             made the codes",
            atoms.len()
        )));
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

/// 1 / norm of every row, in embedding space where atoms are given; 0 for a zero row.
fn inverse_norms(
    rows: &RowsView<'_>,
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
                let pairs = rows.pairs(task * ROWS_A_TASK + i);
                match atoms {
                    Some(atoms) => atoms.decode(pairs, &mut vector),
                    None => {
                        vector.clear();
                        vector.extend(pairs.map(|pair| f64::from(pair.1)));
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
