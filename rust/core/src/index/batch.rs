//! Rows packed by the coding of an index, on their way into it: into a file that is written, a
//! delta in memory, or a journal. Rows stand without padding, so that they fit any width.

use crate::codes::{
    pack, pack_with_layout, CodesView, RankedLayout, RowCoding, RowSpan, RowsView, ValueKind,
};
use crate::control::Control;
use crate::format::section;
use crate::search::Atoms;
use crate::{Error, Result};

use super::build::inverse_norms;
use super::ids::{Ids, OwnedIds};
use super::Index;

/// How rows are packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Coding {
    /// Number of latents.
    pub dim: usize,
    /// How values are stored.
    pub kind: ValueKind,
    /// Where the fields of rows lie, where values are rank-coded.
    pub layout: Option<RankedLayout>,
    /// The sections of scales, in the order of [`section::ALL`].
    pub scales: Vec<&'static str>,
}

impl Coding {
    /// Bytes of a plain nonzero.
    pub fn nonzero_bytes(&self) -> usize {
        crate::codes::RowFormat::new(self.dim, self.kind).nonzero_bytes()
    }
}

/// Packed rows.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Number of rows.
    pub n: usize,
    /// Nonzeros of each row, where rows are plain.
    pub lengths: Vec<u32>,
    /// The rows, one after the other.
    pub rows: Vec<u8>,
    /// Scales, section by section as [`Coding::scales`] lists them; not yet rounded to f16.
    pub scales: Vec<Vec<f64>>,
    /// What the rows are called; none where by their positions.
    pub ids: Option<OwnedIds>,
    /// Cosine of each row before and after quantisation, where that is known.
    pub cosines: Vec<f64>,
    /// How many of these are of rows that are not zero.
    pub nonempty: u64,
}

impl Batch {
    /// No rows, with ids, and so many sections of scales.
    pub fn none(n_scales: usize, are_strings: bool) -> Self {
        Self {
            scales: vec![Vec::new(); n_scales],
            ids: Some(OwnedIds::none(are_strings)),
            ..Self::default()
        }
    }

    /// Packs codes.
    ///
    /// # Errors
    /// [`Error::Argument`] where a row does not fit the coding; [`Error::OutOfMemory`],
    /// [`Error::Interrupted`].
    pub fn pack(
        codes: CodesView<'_>,
        coding: &Coding,
        atoms: Option<Atoms<'_>>,
        ids: Option<Ids<'_>>,
        control: &Control,
    ) -> Result<Self> {
        let mut batch = Self {
            n: codes.len(),
            ids: ids.map(|ids| {
                let mut owned = OwnedIds::none(ids.are_strings());
                (0..ids.len()).for_each(|i| owned.push(ids, i));
                owned
            }),
            ..Self::default()
        };
        if let Some(layout) = &coding.layout {
            let gram = atoms.map(|atoms| (atoms.rows(), atoms.d()));
            let packed = pack_with_layout(codes, layout.clone(), gram, control)?;
            let view = RowsView::new(RowCoding::Ranked(layout), batch.n, coding.dim, &packed.data)?;
            batch.add_scales(coding, &packed.scales, &view, atoms, control)?;
            let bytes = packed.data.len();
            batch
                .rows
                .try_reserve_exact(bytes)
                .map_err(|_| Error::OutOfMemory {
                    what: "rows to add",
                    bytes,
                })?;
            batch.rows.extend_from_slice(&packed.data);
            batch.cosines = packed.cosines;
            let nonempty = packed.scales.iter().filter(|&&scale| scale != 0.0);
            batch.nonempty = nonempty.count() as u64;
        } else {
            let packed = pack(codes, coding.kind, control)?;
            let view = packed.view()?;
            batch.add_scales(coding, &packed.steps, &view, atoms, control)?;
            for row in 0..codes.len() {
                batch.push_plain(&view, row, codes.span(row).len());
            }
        }
        Ok(batch)
    }

    fn add_scales(
        &mut self,
        coding: &Coding,
        steps: &[f32],
        view: &RowsView<'_>,
        atoms: Option<Atoms<'_>>,
        control: &Control,
    ) -> Result<()> {
        for &name in &coding.scales {
            let scales = if name == section::SCALES_STEP {
                steps.iter().map(|&step| f64::from(step)).collect()
            } else {
                let atoms = atoms.filter(|_| name == section::SCALES_EMBEDDING);
                let norms = inverse_norms(view, steps, atoms, control)?;
                norms.into_iter().map(f64::from).collect()
            };
            self.scales.push(scales);
        }
        Ok(())
    }

    /// Takes the first `length` nonzeros of a plain row.
    fn push_plain(&mut self, view: &RowsView<'_>, row: usize, length: usize) {
        let RowCoding::Plain(format, span) = view.coding() else {
            unreachable!("a rank-coded view has no plain rows")
        };
        let (latents, values) = view.plain_row(format, span, row);
        self.rows
            .extend_from_slice(&latents[..length * format.latent_bytes()]);
        self.rows
            .extend_from_slice(&values[..length * format.value_bytes()]);
        self.lengths.push(length as u32);
    }

    /// Copies rows of an index as they are stored, with their ids where they have some or
    /// `with_ids` asks for them.
    pub fn copied(
        index: &Index,
        rows: impl Iterator<Item = usize> + Clone,
        with_ids: bool,
    ) -> Self {
        let coding = index.coding();
        let view = index.rows();
        let mut batch = Self {
            n: rows.clone().count(),
            ..Self::default()
        };
        for row in rows.clone() {
            match view.coding() {
                RowCoding::Ranked(layout) => {
                    batch.rows.extend_from_slice(view.ranked_row(layout, row));
                }
                RowCoding::Plain(_, span) => {
                    let length = unpadded(&view, span, row);
                    batch.push_plain(&view, row, length);
                }
            }
        }
        for name in coding.scales {
            let scales = index.scales_in(name);
            batch
                .scales
                .push(rows.clone().map(|row| scales.get(row)).collect());
        }
        let ids = index.all_ids();
        if with_ids || !matches!(ids, Ids::Positions(_)) {
            let mut owned = OwnedIds::none(ids.are_strings());
            rows.for_each(|row| owned.push(ids, row));
            batch.ids = Some(owned);
        }
        batch
    }

    /// Appends the rows of another batch of the same coding and kind of ids.
    ///
    /// # Panics
    /// Where they are not of the same.
    pub fn append(&mut self, other: &Self) {
        assert_eq!(self.scales.len(), other.scales.len());
        assert_eq!(self.ids.is_some(), other.ids.is_some());
        self.n += other.n;
        self.lengths.extend_from_slice(&other.lengths);
        self.rows.extend_from_slice(&other.rows);
        for (scales, more) in self.scales.iter_mut().zip(&other.scales) {
            scales.extend_from_slice(more);
        }
        if let (Some(ids), Some(more)) = (&mut self.ids, &other.ids) {
            (0..more.len()).for_each(|i| ids.push(more.view(), i));
        }
        self.cosines.extend_from_slice(&other.cosines);
        self.nonempty += other.nonempty;
    }
}

/// Nonzeros of a plain row without its padding.
fn unpadded(view: &RowsView<'_>, span: RowSpan<'_>, row: usize) -> usize {
    let pairs = view.pairs(row);
    match span {
        RowSpan::Fixed(_) => pairs
            .iter()
            .rposition(|&pair| pair != (0, 0.0))
            .map_or(0, |last| last + 1),
        _ => pairs.len(),
    }
}

/// Refuses an index whose rows cannot stand in one file with those of another.
///
/// # Errors
/// [`Error::Argument`] with what differs.
pub fn check_alike(first: &Index, other: &Index, what: &str) -> Result<()> {
    let differs = |name: &str, hint: &str| {
        Err(Error::argument(format!(
            "{what} differs from the first in its {name}; {hint}"
        )))
    };
    let (a, b) = (first.header(), other.header());
    if a.rows.dim != b.rows.dim {
        return differs("number of latents", "only codes of one model can be joined");
    }
    if a.metric != b.metric || a.item_norm != b.item_norm || a.modes != b.modes {
        return differs("metric, item_norm or modes", "build both with the same");
    }
    if first.coding() != other.coding() {
        return differs(
            "coding of values",
            "build shards with the codebooks of the first (codebooks=)",
        );
    }
    let same_atoms = match (first.atoms(), other.atoms()) {
        (Some(a), Some(b)) => a.d() == b.d() && a.rows() == b.rows(),
        (a, b) => a.is_none() && b.is_none(),
    };
    if !same_atoms || first.mean() != other.mean() {
        return differs("dictionary", "only codes of one dictionary can be joined");
    }
    let (a, b) = (first.all_ids(), other.all_ids());
    if a.are_strings() != b.are_strings() {
        return differs(
            "kind of ids",
            "ids are numbers in all files or strings in all",
        );
    }
    Ok(())
}
