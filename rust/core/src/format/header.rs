//! The JSON header: its fields, and the checks that need the header alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{section, ALIGNMENT, PREFIX_BYTES};
use crate::codes::ranked::{latent_bits_of, max_magnitude_bits, row_bytes};
use crate::codes::{RowFormat, ValueKind, MAX_DIM};
use crate::error::FormatProblem;
use crate::kernels::POSITIONS;
use crate::search::approximate::{MAX_SUBSPACES, SUBSPACE_STEP};
use crate::search::postings::MAX_BLOCK_ITEMS;
use crate::search::{Metric, Mode};

/// The type of a section's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the variants are their own names
pub enum Dtype {
    U8,
    U16,
    U32,
    U64,
    I64,
    F16,
    F32,
}

impl Dtype {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 => 2,
            Self::U32 | Self::F32 => 4,
            Self::U64 | Self::I64 => 8,
        }
    }

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// The type of this name, where it is one that this release knows.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::U8,
            Self::U16,
            Self::U32,
            Self::U64,
            Self::I64,
            Self::F16,
            Self::F32,
        ]
        .into_iter()
        .find(|dtype| dtype.name() == name)
    }
}

/// How values are stored, as the file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // see ValueKind
pub enum ValueName {
    Float32,
    Int16,
    Int8,
    Ranked,
}

impl From<ValueKind> for ValueName {
    fn from(kind: ValueKind) -> Self {
        match kind {
            ValueKind::Float32 => Self::Float32,
            ValueKind::Int16 => Self::Int16,
            ValueKind::Int8 => Self::Int8,
            ValueKind::Ranked => Self::Ranked,
        }
    }
}

impl From<ValueName> for ValueKind {
    fn from(name: ValueName) -> Self {
        match name {
            ValueName::Float32 => Self::Float32,
            ValueName::Int16 => Self::Int16,
            ValueName::Int8 => Self::Int8,
            ValueName::Ranked => Self::Ranked,
        }
    }
}

/// What the rows are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsHeader {
    /// Number of rows.
    pub count: u64,
    /// Number of latents.
    pub dim: u64,
    /// 16 or 32; where values are ranked, as few as hold every latent, at most 16, or 0 where
    /// rows have every latent, in order.
    pub latent_bits: u32,
    /// How values are stored.
    pub values: ValueName,
    /// Nonzeros of every row, or null where `row_offsets` says.
    pub width: Option<u64>,
    /// Bits of magnitude of each rank, where values are ranked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitude_bits: Option<Vec<u8>>,
}

/// One entry of the table of sections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SectionHeader {
    /// Its name, once a file.
    pub name: String,
    /// The type of its numbers; a string, since an unknown section may have an unknown type.
    pub dtype: String,
    /// Numbers along each axis.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// XXH3 (64 bits) of its bytes, 16 hexadecimal digits.
    pub checksum: String,
    /// A reader that does not know the section must refuse the file.
    pub required: bool,
    /// What a number of an f16 section of scales is multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<f64>,
}

impl SectionHeader {
    /// The byte after the last one.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

/// What cosine takes for the norm of an item in embedding space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemNorm {
    /// The norm of the decoded item: scores are cosines with decoded items.
    #[default]
    Decoded,
    /// 1: codes encode unit embeddings, and scores estimate cosines with these.
    Original,
}

/// How well the stored rows decode, for people.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cosines {
    /// Mean cosine of items and their codes before quantisation, as told by who made the codes.
    pub reconstruction: Option<f64>,
    /// Mean cosine of codes before and after quantisation, both decoded where there is a
    /// dictionary.
    pub quantisation: Option<f64>,
}

/// How postings are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostingsHeader {
    /// Rows of a block.
    pub block_items: u64,
}

/// The header of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The program that wrote it, for people.
    pub writer: String,
    /// What the rows are.
    pub rows: RowsHeader,
    /// What scores are.
    pub metric: String,
    /// What cosine takes for the norm of an item in embedding space.
    #[serde(default)]
    pub item_norm: ItemNorm,
    /// How well the rows decode.
    #[serde(default)]
    pub cosines: Cosines,
    /// The modes that the file serves, each with the section of its scales, or null for 1.
    pub modes: BTreeMap<String, Option<String>>,
    /// True where the ids ascend, so that they need no `id_order` to be found by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ids_ascend: bool,
    /// How postings are laid out, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postings: Option<PostingsHeader>,
    /// The sections, by ascending offset.
    pub sections: Vec<SectionHeader>,
}

impl Header {
    /// The section of this name.
    pub fn section(&self, name: &str) -> Option<&SectionHeader> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Columns of the dictionary.
    fn embedding_dim(&self) -> Option<u64> {
        self.section(section::DICTIONARY)?.shape.get(1).copied()
    }

    /// Checks all that the header alone can show: names, counts, types and shapes of known
    /// sections, and that the sections tile the file.
    ///
    /// # Errors
    /// The [`FormatProblem`] of the first MUST that is broken.
    pub fn check(
        &self,
        sections_start: u64,
        file_bytes: u64,
        header_offset: u64,
    ) -> Result<(), FormatProblem> {
        let bad = |reason: String| FormatProblem::Header {
            offset: header_offset,
            reason,
        };
        let rows = &self.rows;
        if rows.dim == 0 || rows.dim > MAX_DIM as u64 {
            return Err(bad(format!(
                "rows.dim is {}, expected 1 to {MAX_DIM}",
                rows.dim
            )));
        }
        let values = ValueKind::from(rows.values);
        let is_complete = values == ValueKind::Ranked && rows.latent_bits == 0;
        let expected = match values {
            ValueKind::Ranked if is_complete => {
                if rows.width != Some(rows.dim) || rows.dim > 1 << 16 {
                    return Err(bad(format!(
                        "rows.latent_bits is 0 with width {:?}, expected rows of all {} latents, \
                         65536 at most",
                        rows.width, rows.dim
                    )));
                }
                0
            }
            ValueKind::Ranked => {
                latent_bits_of(rows.dim as usize).map_err(|error| bad(error.to_string()))?
            }
            _ => RowFormat::new(rows.dim as usize, values).latent_bits,
        };
        if rows.latent_bits != expected {
            return Err(bad(format!(
                "rows.latent_bits is {}, expected {expected} for dim {} and {:?} values",
                rows.latent_bits, rows.dim, rows.values
            )));
        }
        let bits = rows.magnitude_bits.as_deref();
        let most_bits = max_magnitude_bits(rows.latent_bits);
        let bits_fit = match values {
            ValueKind::Ranked => bits.is_some_and(|bits| {
                Some(bits.len() as u64) == rows.width && bits.iter().all(|&bits| bits <= most_bits)
            }),
            _ => bits.is_none(),
        };
        if !bits_fit {
            return Err(bad(format!(
                "rows.magnitude_bits is {bits:?} with width {:?}, expected one number of 0 to \
                 {most_bits} a rank for ranked values, else none",
                rows.width
            )));
        }
        if rows.width == Some(0) {
            return Err(bad("rows.width is 0, expected at least 1 or null".into()));
        }
        let metric = Metric::from_name(&self.metric).map_err(|error| bad(error.to_string()))?;
        if self.modes.is_empty() {
            return Err(bad("modes is empty, expected at least one".into()));
        }
        for section in &self.sections {
            let digits = section.checksum.as_bytes();
            let hexadecimal = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
            if digits.len() != 16 || !digits.iter().all(hexadecimal) {
                return Err(bad(format!(
                    "the checksum of section `{}` is {:?}, expected 16 lower-case hexadecimal \
                     digits",
                    section.name, section.checksum
                )));
            }
        }
        self.check_tiling(sections_start, file_bytes)?;
        self.check_postings()?;
        self.check_shapes()?;
        if self.section(section::MEAN).is_some() {
            if self.section(section::DICTIONARY).is_none() {
                return Err(FormatProblem::MissingSection {
                    section: section::DICTIONARY.into(),
                });
            }
            if metric == Metric::Cosine && self.item_norm == ItemNorm::Decoded {
                return Err(bad(
                    "a mean with cosines of decoded items, expected item_norm original".into(),
                ));
            }
        }
        for (name, scales) in &self.modes {
            let mode = Mode::from_name(name).map_err(|error| bad(error.to_string()))?;
            let expected = scales_of(mode, metric, values, self.item_norm);
            if scales.as_deref() != expected {
                return Err(bad(format!(
                    "modes.{name} is {scales:?}, expected {expected:?} for {} and {:?}",
                    self.metric, rows.values
                )));
            }
            for needed in [
                expected,
                mode.needs_dictionary().then_some(section::DICTIONARY),
            ] {
                if let Some(needed) = needed.filter(|needed| self.section(needed).is_none()) {
                    return Err(FormatProblem::MissingSection {
                        section: needed.into(),
                    });
                }
            }
        }
        Ok(())
    }

    fn check_tiling(&self, sections_start: u64, file_bytes: u64) -> Result<(), FormatProblem> {
        let mut end = sections_start;
        for (i, section) in self.sections.iter().enumerate() {
            if self.sections[..i].iter().any(|s| s.name == section.name) {
                return Err(FormatProblem::DuplicateSection {
                    section: section.name.clone(),
                });
            }
            let expected = end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
            if section.offset != expected {
                return Err(FormatProblem::SectionOffset {
                    section: section.name.clone(),
                    got: section.offset,
                    expected,
                    alignment: ALIGNMENT,
                });
            }
            end = section.end().unwrap_or(u64::MAX);
            if end > file_bytes {
                return Err(FormatProblem::SectionPastEnd {
                    section: section.name.clone(),
                    offset: section.offset,
                    end,
                    file: file_bytes,
                });
            }
        }
        if end != file_bytes {
            return Err(FormatProblem::FileLength {
                got: file_bytes,
                expected: end,
            });
        }
        Ok(())
    }

    fn check_shapes(&self) -> Result<(), FormatProblem> {
        let rows = &self.rows;
        for section in &self.sections {
            if !section::ALL.contains(&section.name.as_str()) {
                if section.required {
                    return Err(FormatProblem::UnknownSection {
                        section: section.name.clone(),
                    });
                }
                continue;
            }
            let (dtypes, shape): (&[Dtype], &[Option<u64>]) = match section.name.as_str() {
                section::ROWS => (&[Dtype::U8], &[None]),
                section::ROW_OFFSETS => (&[Dtype::U32, Dtype::U64], &[rows.count.checked_add(1)]),
                section::SCALES_STEP | section::SCALES_CODE | section::SCALES_EMBEDDING => {
                    (&[Dtype::F32, Dtype::F16], &[Some(rows.count)])
                }
                section::LEVELS => (&[Dtype::F32], &[Some(rows.n_levels())]),
                section::DICTIONARY => (&[Dtype::F32, Dtype::F16], &[Some(rows.dim), None]),
                section::MEAN => (&[Dtype::F32], &[self.embedding_dim()]),
                section::IDS => (&[Dtype::I64], &[Some(rows.count)]),
                section::ID_OFFSETS => (&[Dtype::U32, Dtype::U64], &[rows.count.checked_add(1)]),
                section::ID_ORDER => (&[Dtype::U32, Dtype::U64], &[Some(rows.count)]),
                section::CLUSTER_CENTROIDS => {
                    (&[Dtype::U8], &[self.clusters(), self.embedding_dim()])
                }
                section::CLUSTER_SCALES => (&[Dtype::F32], &[self.clusters(), Some(2)]),
                section::CLUSTER_STARTS => (
                    &[Dtype::U32],
                    &[self.clusters().and_then(|n| n.checked_add(1))],
                ),
                section::CLUSTER_ROWS => (&[Dtype::U32], &[Some(rows.count)]),
                section::SKETCH_LEVELS => (&[Dtype::F32], &[None, None, Some(16)]),
                section::SKETCHES => (
                    &[Dtype::U8],
                    &[Some(rows.count.div_ceil(32)), self.subspaces(), Some(16)],
                ),
                section::POSTINGS_LATENTS => (&[Dtype::U32], &[None]),
                section::POSTINGS_STARTS => (&[Dtype::U32], &[self.n_starts()]),
                section::POSTINGS_NORMS => (&[Dtype::F32], &[self.n_blocks()]),
                section::POSTINGS => (&[Dtype::U16], &[None, Some(POSITIONS as u64 + 1)]),
                _ => (&[Dtype::U8], &[None]), // id_bytes, metadata and tuned
            };
            check_shape(section, dtypes, shape)?;
            let is_scaled =
                section.dtype == Dtype::F16.name() && section.name != section::DICTIONARY;
            if is_scaled
                != section
                    .unit
                    .is_some_and(|unit| unit > 0.0 && unit.is_finite())
            {
                return Err(FormatProblem::SectionShape {
                    section: section.name.clone(),
                    got: format!("{} with unit {:?}", section.dtype, section.unit),
                    expected: "a positive unit for f16 scales, none for others".into(),
                });
            }
        }
        self.check_ids()?;
        self.check_clusters()?;
        self.check_rows()
    }

    /// Strings come in two sections, and items have one kind of ids.
    fn check_ids(&self) -> Result<(), FormatProblem> {
        let has = |name: &str| self.section(name).is_some();
        let pair = [section::ID_OFFSETS, section::ID_BYTES];
        if let (Some(_), Some(missing)) = (
            pair.iter().find(|name| has(name)),
            pair.iter().find(|name| !has(name)),
        ) {
            return Err(FormatProblem::MissingSection {
                section: (*missing).into(),
            });
        }
        if has(section::IDS) && has(section::ID_OFFSETS) {
            return Err(FormatProblem::DuplicateSection {
                section: section::ID_OFFSETS.into(),
            });
        }
        if has(section::ID_ORDER) && !has(section::IDS) && !has(section::ID_OFFSETS) {
            return Err(FormatProblem::MissingSection {
                section: section::IDS.into(),
            });
        }
        Ok(())
    }

    /// Clusters of approximate search.
    fn clusters(&self) -> Option<u64> {
        let scales = self.section(section::CLUSTER_SCALES)?;
        scales.shape.first().copied()
    }

    /// Subspaces of sketches.
    fn subspaces(&self) -> Option<u64> {
        let levels = self.section(section::SKETCH_LEVELS)?;
        levels.shape.first().copied()
    }

    /// The sections of approximate search come together, and sketches hold whole embeddings.
    fn check_clusters(&self) -> Result<(), FormatProblem> {
        let has = |name: &&str| self.section(name).is_some();
        if !section::CLUSTERS.iter().any(&has) {
            return Ok(());
        }
        let needed = section::CLUSTERS.iter().chain([&section::DICTIONARY]);
        if let Some(missing) = needed.clone().find(|name| !has(name)) {
            return Err(FormatProblem::MissingSection {
                section: (*missing).into(),
            });
        }
        let levels = self.section(section::SKETCH_LEVELS).map(|s| &s.shape);
        let (d, shape) = (self.embedding_dim(), levels.map(Vec::as_slice));
        let fits = match (d, shape) {
            (Some(d), Some(&[subspaces, width, _])) => {
                (1..=MAX_SUBSPACES as u64).contains(&subspaces)
                    && subspaces.is_multiple_of(SUBSPACE_STEP as u64)
                    && width > 0
                    && subspaces
                        .checked_mul(width)
                        .is_some_and(|padded| padded >= d)
            }
            _ => false,
        };
        if !fits {
            return Err(FormatProblem::SectionShape {
                section: section::SKETCH_LEVELS.into(),
                got: format!("of shape {shape:?}"),
                expected: format!(
                    "a multiple of {SUBSPACE_STEP} subspaces, at most {MAX_SUBSPACES}, that hold \
                     {d:?} numbers"
                ),
            });
        }
        Ok(())
    }

    /// Postings come whole or not at all, and serve the mode "sparse".
    fn check_postings(&self) -> Result<(), FormatProblem> {
        let names = [
            section::POSTINGS_LATENTS,
            section::POSTINGS_STARTS,
            section::POSTINGS_NORMS,
            section::POSTINGS,
        ];
        let bad = |reason: String| FormatProblem::Header {
            offset: PREFIX_BYTES,
            reason,
        };
        let Some(postings) = self.postings else {
            return match names.iter().find(|name| self.section(name).is_some()) {
                Some(name) => Err(bad(format!(
                    "there is a section `{name}` but no `postings.block_items`"
                ))),
                None => Ok(()),
            };
        };
        if let Some(name) = names.iter().find(|name| self.section(name).is_none()) {
            return Err(FormatProblem::MissingSection {
                section: (*name).into(),
            });
        }
        if postings.block_items == 0 || postings.block_items > MAX_BLOCK_ITEMS as u64 {
            return Err(bad(format!(
                "postings.block_items is {}, expected 1 to {MAX_BLOCK_ITEMS}",
                postings.block_items
            )));
        }
        if !self.modes.contains_key(Mode::Sparse.name()) {
            return Err(bad(
                "postings without the mode sparse, which they serve".into()
            ));
        }
        Ok(())
    }

    /// Blocks of postings.
    fn n_blocks(&self) -> Option<u64> {
        // check_postings has refused blocks of 0 items
        Some(self.rows.count.div_ceil(self.postings?.block_items))
    }

    /// Starts of lists: one for each latent in use, sign and block, and one more.
    fn n_starts(&self) -> Option<u64> {
        let latents = self.section(section::POSTINGS_LATENTS)?.shape.first()?;
        let blocks = self.rows.count.div_ceil(self.postings?.block_items);
        latents.checked_mul(2)?.checked_mul(blocks)?.checked_add(1)
    }

    fn check_rows(&self) -> Result<(), FormatProblem> {
        let rows = self
            .section(section::ROWS)
            .ok_or_else(|| FormatProblem::MissingSection {
                section: section::ROWS.into(),
            })?;
        if let Some(bits) = &self.rows.magnitude_bits {
            let row_bytes = row_bytes(self.rows.latent_bits, bits) as u64;
            return if self.rows.count.checked_mul(row_bytes) == Some(rows.length) {
                Ok(())
            } else {
                Err(FormatProblem::SectionShape {
                    section: rows.name.clone(),
                    got: format!("{} bytes", rows.length),
                    expected: format!("{} rows of {row_bytes} bytes", self.rows.count),
                })
            };
        }
        let format = RowFormat::new(self.rows.dim as usize, self.rows.values.into());
        let nonzero_bytes = format.nonzero_bytes() as u64;
        let expected = match self.rows.width {
            Some(width) => {
                let bytes = self
                    .rows
                    .count
                    .checked_mul(width)
                    .and_then(|nonzeros| nonzeros.checked_mul(nonzero_bytes));
                (bytes != Some(rows.length)).then(|| {
                    format!(
                        "{} rows of {width} nonzeros of {nonzero_bytes} bytes",
                        self.rows.count
                    )
                })
            }
            None => {
                if self.section(section::ROW_OFFSETS).is_none() {
                    return Err(FormatProblem::MissingSection {
                        section: section::ROW_OFFSETS.into(),
                    });
                }
                (!rows.length.is_multiple_of(nonzero_bytes))
                    .then(|| format!("a whole number of nonzeros of {nonzero_bytes} bytes"))
            }
        };
        expected.map_or(Ok(()), |expected| {
            Err(FormatProblem::SectionShape {
                section: rows.name.clone(),
                got: format!("{} bytes", rows.length),
                expected,
            })
        })
    }
}

impl RowsHeader {
    /// Levels of all ranks together.
    fn n_levels(&self) -> u64 {
        let bits = self.magnitude_bits.as_deref().unwrap_or_default();
        bits.iter().map(|&bits| 1u64 << bits.min(63)).sum()
    }
}

/// The section that holds the scales of a mode; `None` where every scale is 1.
///
/// An inner product needs a scale only where values are levels, and it is the same in either
/// space. A cosine needs the norm of the item in the space of the mode, unless that is known
/// to be 1: then it is an inner product of the normalised query.
pub fn scales_of(
    mode: Mode,
    metric: Metric,
    value: ValueKind,
    item_norm: ItemNorm,
) -> Option<&'static str> {
    let step = value.has_step().then_some(section::SCALES_STEP);
    match (metric, mode, item_norm) {
        (Metric::InnerProduct, _, _) => step,
        (Metric::Cosine, Mode::Sparse, _) => Some(section::SCALES_CODE),
        (Metric::Cosine, _, ItemNorm::Original) => step,
        (Metric::Cosine, _, ItemNorm::Decoded) => Some(section::SCALES_EMBEDDING),
    }
}

fn check_shape(
    section: &SectionHeader,
    dtypes: &[Dtype],
    shape: &[Option<u64>],
) -> Result<(), FormatProblem> {
    let wrong = || FormatProblem::SectionShape {
        section: section.name.clone(),
        got: format!(
            "{} of shape {:?} in {} bytes",
            section.dtype, section.shape, section.length
        ),
        expected: format!(
            "{} of shape [{}]",
            dtypes
                .iter()
                .map(|d| d.name())
                .collect::<Vec<_>>()
                .join(" or "),
            shape
                .iter()
                .map(|axis| axis.map_or("any".into(), |n| n.to_string()))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let dtype = dtypes
        .iter()
        .find(|dtype| dtype.name() == section.dtype)
        .ok_or_else(wrong)?;
    let fits = shape.len() == section.shape.len()
        && shape
            .iter()
            .zip(&section.shape)
            .all(|(expected, got)| expected.is_none_or(|expected| expected == *got));
    let bytes = section
        .shape
        .iter()
        .try_fold(dtype.bytes(), |bytes, &axis| bytes.checked_mul(axis));
    // an empty dictionary would divide by its width of 0
    let empty_dictionary = section.name == super::section::DICTIONARY && bytes == Some(0);
    if !fits || bytes != Some(section.length) || empty_dictionary {
        return Err(wrong());
    }
    Ok(())
}
