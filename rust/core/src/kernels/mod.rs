//! The only hot loops: scores of packed rows, projections onto atoms, the integer pass, sums over
//! postings, sketches.
//!
//! One table of functions an instruction set, chosen once a search, never a row. A [`Kernels`]
//! can be had only through the check that this CPU has its instructions, so holding one is
//! the proof, and its methods are safe.
//!
//! # One order of additions
//!
//! Every score and projection is defined over eight lanes: term `i` is added to lane `i % 8` in ascending
//! `i`, and at the end lane pairs are added as a tree, 4 apart, then 2, then 1. Products and
//! sums are IEEE double precision, each rounded on its own (no fused multiply-add). Any
//! instruction set can follow that order, so all of them return the same bits. Look-ups bound
//! these loops, not arithmetic: double precision costs nothing here. What is faster is integer
//! arithmetic ([`tile`], postings, sketches), which is exact and so has no order; what it proves
//! about a score is the business of `search`.
//!
//! Products of a float32 or integer value and a float32 weight are exact in double precision.

pub mod clusters;
mod decode;
mod generic;
mod integers;
#[cfg(test)]
mod oracle;
mod postings;
mod rough;
pub mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use half::f16;

use crate::codes::{RankedLayout, RowCoding, RowsView};
use crate::{Error, Result};

pub use decode::decode_rank;
use generic::LANES;
pub use generic::{dot, norm};
use integers::IntegerRow;
pub use postings::{
    add_list, bound_value, prefetch, prefetch_far, Chunk, Reached, Sum, POSITIONS, SUMS,
};
pub use rough::{RoughQuery, RoughScales, ROUGH_LEVELS, ROUGH_ROWS};
pub use tile::{IntegerRows, Passed, Tile, TileLayout, TILE};

/// The environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "SPARSE_RETRIEVAL_ISA";

/// The most queries that [`Kernels::project`] takes at once: an atom is read once for them.
pub const PROJECT_QUERIES: usize = 4;

/// An instruction set for which there are kernels, from the plainest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the target's baseline has.
    Scalar,
    /// AVX2, with F16C.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
}

impl Isa {
    /// All of them, plainest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Its name, as [`ISA_VARIABLE`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// Weights of the latents, padded so that no latent that a row can hold reads out of bounds:
/// in rank-coded rows to a power of two, with 16 bits a latent to 65,536 entries, with 32-bit ones by
/// one entry of 0 at which larger latents are clamped. A hostile file is safe by construction, not by checks in the loop.
#[derive(Debug, Clone)]
pub struct WeightTable {
    entries: Vec<f64>,
    is_wide: bool,
    dim: usize,
}

impl WeightTable {
    /// A table of zeros for these rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(rows: &RowsView<'_>) -> Result<Self> {
        let (dim, is_wide) = (rows.dim(), rows.has_wide_latents());
        let padded = Self::padded(rows);
        assert!(padded >= dim);
        let entries =
            bytemuck::allocation::try_zeroed_vec(padded).map_err(|()| Error::OutOfMemory {
                what: "a table of query weights",
                bytes: padded * size_of::<f64>(),
            })?;
        Ok(Self {
            entries,
            is_wide,
            dim,
        })
    }

    /// True where [`WeightTable::zeros`] would make a table like this one for these rows.
    pub fn is_for(&self, rows: &RowsView<'_>) -> bool {
        self.entries.len() == Self::padded(rows) && self.dim == rows.dim()
    }

    /// Entries that every latent of such rows needs.
    fn padded(rows: &RowsView<'_>) -> usize {
        match rows.coding() {
            // the latents of rows that are read to a rank are still all of them
            RowCoding::Ranked(layout) => layout.nameable().max(rows.dim()),
            RowCoding::Plain(..) if rows.has_wide_latents() => rows.dim() + 1,
            RowCoding::Plain(..) => 1 << 16,
        }
    }

    /// The weights of the latents, without the padding.
    pub fn weights(&self) -> &[f64] {
        &self.entries[..self.dim]
    }

    /// The same, to be written.
    pub fn weights_mut(&mut self) -> &mut [f64] {
        &mut self.entries[..self.dim]
    }
}

type ScoreRows = unsafe fn(&RowsView<'_>, Range<usize>, &WeightTable, &mut [f64]);
type ProjectSome<A> = unsafe fn(&[A], usize, &[u32], &[f64], &mut [f64]);
type ProjectSomeWide = unsafe fn(&[f64], usize, u32, &[u32], &[f64], &mut [f64]);
type IntegerRowKernel = unsafe fn(&RankedLayout, &[u64], &[u8], u32, IntegerRow<'_>) -> u64;
type PassRows = unsafe fn(&Tile, &IntegerRows, Range<usize>, &[f32; TILE], &mut Passed) -> usize;
type RoughSums = unsafe fn(&RoughQuery<'_>, &[u8], &mut [i32]);
type RoughReached = unsafe fn(&[i32], RoughScales<'_>, f32, f32, &mut Vec<u16>) -> bool;
type ProjectHalves = unsafe fn(&[f16], &[f64], &mut [f64]);
type Project = unsafe fn(&[f32], &[f64], usize, &mut [&mut [f64]]);

/// The kernels of one instruction set that this CPU has.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    score_rows: ScoreRows,
    project: Project,
    project_halves: ProjectHalves,
    sums: postings::SumKernels,
    project_some: ProjectSome<f32>,
    project_some_halves: ProjectSome<f16>,
    project_some_wide: ProjectSomeWide,
    integer_row: IntegerRowKernel,
    pass_rows: PassRows,
    rough_sums: RoughSums,
    rough_reached: RoughReached,
    tile_layout: TileLayout,
}

impl Kernels {
    /// The kernels of `isa`, or `None` where this CPU lacks it.
    pub fn of(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self {
                isa,
                score_rows: generic::score_rows,
                project: generic::project,
                project_halves: generic::project_halves,
                sums: postings::PLAIN,
                project_some: generic::project_some,
                project_some_halves: generic::project_some,
                project_some_wide: generic::project_from,
                integer_row: integers::integer_row,
                pass_rows: tile::pass_rows,
                rough_sums: rough::sums,
                rough_reached: rough::reached,
                tile_layout: tile::PLAIN,
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86_64::avx2::is_available().then_some(Self {
                isa,
                score_rows: x86_64::avx2::score_rows,
                project: x86_64::avx2::project,
                project_halves: x86_64::avx2::project_halves,
                sums: x86_64::sums::AVX2,
                project_some: x86_64::avx2::project_some,
                project_some_halves: x86_64::avx2::project_some,
                project_some_wide: x86_64::avx2::project_from::<f64, false>,
                integer_row: integers::integer_row,
                pass_rows: x86_64::tile_avx2::pass_rows,
                rough_sums: x86_64::rough_avx2::sums,
                rough_reached: x86_64::rough_avx2::reached,
                tile_layout: x86_64::tile_avx2::LAYOUT,
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86_64::avx512::is_available().then(|| {
                // the first CPUs with AVX-512 have no VNNI, but all of them have AVX2
                let (pass_rows, tile_layout): (PassRows, _) = if x86_64::tile_avx512::is_available()
                {
                    (x86_64::tile_avx512::pass_rows, x86_64::tile_avx512::LAYOUT)
                } else {
                    (x86_64::tile_avx2::pass_rows, x86_64::tile_avx2::LAYOUT)
                };
                Self {
                    isa,
                    score_rows: x86_64::avx512::score_rows,
                    project: x86_64::avx512::project,
                    project_halves: x86_64::avx512::project_halves,
                    sums: x86_64::sums::AVX512,
                    project_some: x86_64::avx512::project_some,
                    project_some_halves: x86_64::avx512::project_some,
                    project_some_wide: x86_64::avx512::project_from::<f64, false>,
                    integer_row: x86_64::avx512::integer_row,
                    pass_rows,
                    rough_sums: x86_64::rough_avx512::sums,
                    rough_reached: x86_64::rough_avx512::reached,
                    tile_layout,
                }
            }),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }

    /// Every instruction set that this CPU has, plainest first.
    pub fn available() -> Vec<Self> {
        Isa::ALL.into_iter().filter_map(Self::of).collect()
    }

    /// The widest that this CPU has.
    pub fn best() -> Self {
        Isa::ALL
            .into_iter()
            .rev()
            .find_map(Self::of)
            .expect("Isa::Scalar is always available")
    }

    /// The instruction set that [`ISA_VARIABLE`] names, or the best one where it is not set.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name, or one that this CPU lacks.
    pub fn from_environment() -> Result<Self> {
        let Some(name) = std::env::var_os(ISA_VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(Self::best());
        };
        let names = Isa::ALL.map(Isa::name).join(", ");
        let isa = Isa::ALL
            .into_iter()
            .find(|isa| name.to_str() == Some(isa.name()))
            .ok_or_else(|| {
                Error::argument(format!(
                    "{ISA_VARIABLE} is {name:?}; expected one of {names}, or unset"
                ))
            })?;
        Self::of(isa).ok_or_else(|| {
            Error::argument(format!(
                "{ISA_VARIABLE} asks for {}, which this CPU lacks; it has {}",
                isa.name(),
                Self::available()
                    .iter()
                    .map(|kernels| kernels.isa.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))
        })
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Scores rows: `out[i] = sum_r table[latent_r] * level_r` over the ranks `r` of row
    /// `rows.start + i`, in the order of the module's head.
    ///
    /// # Panics
    /// Where the range leaves the rows, `out` has another length than the range, or the table
    /// was made for another row format.
    pub fn score_rows(
        self,
        rows: &RowsView<'_>,
        range: Range<usize>,
        table: &WeightTable,
        out: &mut [f64],
    ) {
        assert!(range.start <= range.end && range.end <= rows.len());
        assert_eq!(out.len(), range.len());
        assert_eq!(table.is_wide, rows.has_wide_latents());
        assert_eq!(table.entries.len(), WeightTable::padded(rows));
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels). The
        // range lies in the rows, and no latent of the rows' width can index beyond the table:
        // WeightTable::zeros, the only maker of tables, padded it for that width.
        unsafe { (self.score_rows)(rows, range, table, out) }
    }

    /// How [`Kernels::pass_rows`] wants the weights of a [`Tile`] to lie.
    pub fn tile_layout(self) -> TileLayout {
        self.tile_layout
    }

    /// Reads a row of a rank coding: each nonzero's line, that of `dim` where the latent is larger,
    /// and its level, the lowest 8 bits of its entry. Behind the layout's width levels are 0 and
    /// lines any. Returns the sum of the entries without those bits, cut to 64 bits.
    ///
    /// # Panics
    /// Where `row` has not the layout's bytes, `entries` not one for each of its signed levels, `out`
    /// not the room of [`Kernels::integer_row_room`], or `dim` is not below 2^25.
    pub(super) fn integer_row(
        self,
        layout: &RankedLayout,
        entries: &[u64],
        row: &[u8],
        dim: u32,
        out: IntegerRow<'_>,
    ) -> u64 {
        assert_eq!(row.len(), layout.row_bytes());
        assert_eq!(entries.len(), layout.signed_levels().len());
        assert!(dim < 1 << 25);
        let room = Self::integer_row_room(layout);
        assert!(out.lines.len() == room && out.levels.len() == room);
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels), and the
        // lengths were just checked.
        unsafe { (self.integer_row)(layout, entries, row, dim, out) }
    }

    /// How many nonzeros [`Kernels::integer_row`] writes: whole groups of eight.
    pub(super) fn integer_row_room(layout: &RankedLayout) -> usize {
        layout.width().next_multiple_of(LANES)
    }

    /// The integer pass over `range` of `rows`: for each row and each query of the tile, the
    /// sum of `level * weight` over the row's nonzeros, what the row and the query start from
    /// added, becomes a float32 (rounded to nearest) and is multiplied by the row's scale; where
    /// that reaches the query's threshold it is put into `passed`. Ends early where `passed` is
    /// full. Returns the first row that was not looked at.
    ///
    /// The caller keeps sums below 2^31.
    ///
    /// # Panics
    /// Where the range leaves the rows, tile and rows have other dims or layouts, or `passed` was
    /// not drained.
    pub fn pass_rows(
        self,
        tile: &Tile,
        rows: &IntegerRows,
        range: Range<usize>,
        thresholds: &[f32; TILE],
        passed: &mut Passed,
    ) -> usize {
        assert!(range.start <= range.end && range.end <= rows.len());
        assert!(tile.fits(rows, self.tile_layout));
        passed.set_order(self.tile_layout);
        let thresholds = &self.tile_layout.to_slots(thresholds);
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels); the
        // range lies in the rows, and tile and rows fit each other and the kernel.
        unsafe { (self.pass_rows)(tile, rows, range, thresholds, passed) }
    }

    /// Rough scores of rank-coded rows, which stand one after the other: `out[i]` is the sum of
    /// `weight * level` over the ranks of row `i`, as the query reads them. The caller keeps sums
    /// below 2^31.
    ///
    /// # Panics
    /// Where `rows` has not the bytes of `out.len()` rows.
    pub fn rough_sums(self, query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
        assert_eq!(Some(rows.len()), out.len().checked_mul(query.row_bytes()));
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels), and the
        // lengths were just checked.
        unsafe { (self.rough_sums)(query, rows, out) }
    }

    /// Adds to `out` the rows whose rough sum, plus `error`, times the row's scale is at least
    /// `least`, all in single precision. False where a scale is negative, NaN or so large or small
    /// that single precision says nothing; `out` then holds a part.
    ///
    /// # Panics
    /// Where there are not as many scales as sums, or more than 2^16.
    pub fn rough_reached(
        self,
        sums: &[i32],
        scales: RoughScales<'_>,
        error: f32,
        least: f32,
        out: &mut Vec<u16>,
    ) -> bool {
        assert!(scales.fits(sums.len()) && sums.len() <= 1 << 16);
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels), and the
        // lengths were just checked.
        unsafe { (self.rough_reached)(sums, scales, error, least, out) }
    }

    /// Projects queries onto atoms: `out[q][a] = sum_i atoms[a * d + i] * queries[q * d + i]`,
    /// in the order of the module's head.
    ///
    /// # Panics
    /// Where there are more than [`PROJECT_QUERIES`] queries, `d` is 0, `out` has not one slice
    /// a query, or a slice of it not one number an atom.
    pub fn project(self, atoms: &[f32], queries: &[f64], d: usize, out: &mut [&mut [f64]]) {
        assert!(d > 0 && atoms.len().is_multiple_of(d));
        assert!(out.len() <= PROJECT_QUERIES);
        assert_eq!(queries.len(), out.len() * d);
        assert!(out.iter().all(|out| out.len() == atoms.len() / d));
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels).
        unsafe { (self.project)(atoms, queries, d, out) }
    }

    /// Projects one query onto atoms in half precision: `out[a]` is what [`Kernels::project`] gives
    /// for the same atoms in single precision. Only half as much memory is read; on an instruction
    /// set that converts slowly it is no gain, see [`Kernels::likes_halves`].
    ///
    /// # Panics
    /// Where the query is empty, or `atoms` has not a query's length for each number of `out`.
    pub fn project_halves(self, atoms: &[f16], query: &[f64], out: &mut [f64]) {
        assert!(!query.is_empty());
        assert_eq!(Some(atoms.len()), out.len().checked_mul(query.len()));
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels), and the
        // lengths were just checked.
        unsafe { (self.project_halves)(atoms, query, out) }
    }

    /// True where [`Kernels::project_halves`] is faster than [`Kernels::project`].
    pub fn likes_halves(self) -> bool {
        self.isa != Isa::Scalar
    }

    /// How many of the sums are at least `least`.
    pub fn count_at_least<S: Sum>(self, sums: &[S], least: S) -> usize {
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels).
        unsafe { S::count(&self)(sums, least) }
    }

    /// Appends all sums of at least `least` by ascending place; with `clear`, all sums are 0
    /// afterwards.
    ///
    /// # Panics
    /// Where there are more than [`SUMS`] sums.
    pub fn find_at_least<S: Sum>(
        self,
        sums: &mut [S],
        least: S,
        clear: bool,
        found: &mut Vec<Reached>,
    ) {
        assert!(sums.len() <= SUMS);
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels).
        unsafe { S::find(&self)(sums, least, clear, found) }
    }

    /// Projects one query onto some atoms: `out[i]` is what [`Kernels::project`] gives for the
    /// query and atom `latents[i]`.
    ///
    /// # Panics
    /// Where `d` is 0, a latent has no atom, the query has not `d` numbers, or `out` not one a
    /// latent.
    pub fn project_some(
        self,
        atoms: &[f32],
        d: usize,
        latents: &[u32],
        query: &[f64],
        out: &mut [f64],
    ) {
        assert!(d > 0 && query.len() == d && out.len() == latents.len());
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels); lengths
        // were just checked, and atoms are taken as checked slices.
        unsafe { (self.project_some)(atoms, d, latents, query, out) }
    }

    /// [`Kernels::project_some`] for atoms in half precision, of which half as much memory is read;
    /// a gain where [`Kernels::likes_halves`] says so.
    ///
    /// # Panics
    /// As [`Kernels::project_some`].
    pub fn project_some_halves(
        self,
        atoms: &[f16],
        d: usize,
        latents: &[u32],
        query: &[f64],
        out: &mut [f64],
    ) {
        assert!(d > 0 && query.len() == d && out.len() == latents.len());
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels); lengths
        // were just checked, and atoms are taken as checked slices.
        unsafe { (self.project_some_halves)(atoms, d, latents, query, out) }
    }

    /// [`Kernels::project_some`] for atoms in double precision, the first of which is that of
    /// latent `first`. For the same numbers it gives the same, sooner, since none are converted.
    ///
    /// # Panics
    /// As [`Kernels::project_some`].
    pub fn project_some_wide(
        self,
        atoms: &[f64],
        d: usize,
        first: u32,
        latents: &[u32],
        query: &[f64],
        out: &mut [f64],
    ) {
        assert!(d > 0 && query.len() == d && out.len() == latents.len());
        // SAFETY: the CPU has the instructions (Self::of is the only way to a Kernels); lengths
        // were just checked, and atoms are taken as checked slices.
        unsafe { (self.project_some_wide)(atoms, d, first, latents, query, out) }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_clusters;
