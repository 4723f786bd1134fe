//! The integer pass: small integer weights of 64 queries at once against rows of small integer
//! levels. What it says of a row is exact integer arithmetic, compared in single precision;
//! what that proves about the row's score is the business of `search::batch`.
//!
//! Every instruction set computes the same sums, so the same rows pass.

use std::ops::Range;

use super::integers::IntegerRow;
use super::Kernels;
use crate::codes::RankedLayout;
use crate::{Error, Result};

/// Queries of a tile: one cache line of 8-bit weights a latent.
pub const TILE: usize = 64;

/// Nonzeros that a kernel takes at a time.
pub const GROUP: usize = 4;

/// The largest magnitude of a weight and of a level.
pub const MOST: i8 = 127;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; TILE]);

/// How a kernel works on a line: element `slot` of its sums is that of query `order[slot]`, whose
/// weights are that byte of a line, and `bias` is added to every weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileLayout {
    pub(super) order: [u8; TILE],
    pub(super) bias: u8,
}

impl TileLayout {
    /// Numbers of queries in the order of slots.
    pub(super) fn to_slots<T: Copy>(self, of_queries: &[T; TILE]) -> [T; TILE] {
        self.order.map(|query| of_queries[usize::from(query)])
    }
}

/// Weights of up to [`TILE`] queries, one line a latent, and a last line of zeros to which
/// nonzeros that stand for nothing point.
#[derive(Debug, Clone)]
pub struct Tile {
    lines: Vec<Line>,
    layout: TileLayout,
    offsets: [i32; TILE],
}

impl Tile {
    /// A tile of zeros for `dim` latents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(dim: usize, layout: TileLayout) -> Result<Self> {
        let mut lines = Vec::new();
        lines
            .try_reserve_exact(dim + 1)
            .map_err(|_| Error::OutOfMemory {
                what: "integer weights of queries",
                bytes: (dim + 1).saturating_mul(TILE),
            })?;
        lines.resize(dim + 1, Line([layout.bias; TILE]));
        Ok(Self {
            lines,
            layout,
            offsets: [0; TILE],
        })
    }

    /// Writes the weights of a latent, one a query, each at most [`MOST`] in magnitude.
    ///
    /// # Panics
    /// Where the tile has no such latent, or a weight is -128.
    pub fn set_weights(&mut self, latent: usize, weights: &[i8; TILE]) {
        assert!(latent + 1 < self.lines.len());
        assert!(weights.iter().all(|&weight| weight >= -MOST));
        for (byte, &weight) in self.lines[latent].0.iter_mut().zip(weights) {
            *byte = (weight as u8).wrapping_add(self.layout.bias);
        }
    }

    /// The weights of a latent.
    pub fn weights(&self, latent: usize) -> [i8; TILE] {
        let bias = self.layout.bias;
        self.lines[latent]
            .0
            .map(|byte| byte.wrapping_sub(bias) as i8)
    }

    /// Sets what the sums of each query start from, before all shifts.
    pub fn set_offsets(&mut self, offsets: &[i32; TILE]) {
        self.offsets = self.layout.to_slots(offsets);
    }

    /// True where `rows` have the tile's dim, and both were made for a kernel of this layout.
    pub(super) fn fits(&self, rows: &IntegerRows, layout: TileLayout) -> bool {
        self.lines.len() == rows.dim as usize + 1
            && self.layout == layout
            && rows.bias == i32::from(layout.bias)
    }

    pub(super) fn lines(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    /// The line that begins at a byte.
    pub(super) fn line(&self, start: u32) -> &[u8; TILE] {
        &self.lines[start as usize / TILE].0
    }

    pub(super) fn offsets(&self) -> &[i32; TILE] {
        &self.offsets
    }
}

/// Some groups of a row, and by how many bits the sums so far are shifted before them: levels
/// of later groups may stand for less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// How many groups; `usize::MAX` for all that follow.
    pub groups: usize,
    /// Bits.
    pub shift: u32,
}

/// A block of rows as integers.
///
/// Keeps the promises on which kernels rely: `starts` ascend and end at the number of groups,
/// and every line begins at a multiple of [`TILE`] that is at most `dim * TILE`.
#[derive(Debug, Clone)]
pub struct IntegerRows {
    dim: u32,
    bias: i32,
    steps: Vec<Step>,
    /// Of each nonzero, the byte at which its latent's line begins in a tile, so that kernels need
    /// not multiply.
    lines: Vec<u32>,
    levels: Vec<i8>,
    /// How many of those belong to rows; the others are left from rows before, or will be written.
    used: usize,
    /// In groups; one more than there are rows.
    starts: Vec<u32>,
    /// What the sums of a row start from, before all shifts.
    offsets: Vec<i32>,
    scales: Vec<f32>,
    /// Of all steps together.
    shift: u32,
}

impl IntegerRows {
    /// No rows yet, over `dim` latents. `shifts` are those before each group of four nonzeros,
    /// 0 where there are more groups.
    ///
    /// # Panics
    /// Where `dim` is not below 2^25, the first shift is not 0, or all together are more than 7:
    /// what a row's bias comes to must be a whole number before them.
    pub fn new(dim: usize, shifts: &[u32], layout: TileLayout) -> Self {
        assert!(dim < 1 << 25, "lines begin at 32-bit numbers");
        let mut steps = vec![Step {
            groups: 0,
            shift: 0,
        }];
        assert!(shifts.first().is_none_or(|&shift| shift == 0));
        let shift: u32 = shifts.iter().sum();
        assert!(shift <= 7 && u32::from(layout.bias).is_multiple_of(1 << shift));
        for &shift in shifts {
            if shift > 0 {
                steps.push(Step { groups: 0, shift });
            }
            steps.last_mut().expect("has one").groups += 1;
        }
        steps.last_mut().expect("has one").groups = usize::MAX;
        Self {
            dim: dim as u32,
            bias: i32::from(layout.bias),
            steps,
            lines: Vec::new(),
            levels: Vec::new(),
            used: 0,
            starts: vec![0],
            offsets: Vec::new(),
            scales: Vec::new(),
            shift,
        }
    }

    /// Takes all rows out.
    pub fn clear(&mut self) {
        self.used = 0;
        self.starts.truncate(1);
        self.offsets.clear();
        self.scales.clear();
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// True where there is no row.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Adds a row of `width` nonzeros, which `write` fills with latents and levels (they are
    /// zeros before); it returns what the row's sums start from, before all shifts, and its scale.
    ///
    /// A latent beyond the dim becomes a nonzero that adds nothing.
    pub fn push(&mut self, width: usize, write: impl FnOnce(&mut [u32], &mut [i8]) -> (i32, f32)) {
        let start = self.used;
        let (offset, scale) = self.grow(width, write);
        let mut sum = 0i32;
        let mut rest = &self.levels[start..self.used];
        for step in &self.steps {
            let (part, behind) = rest.split_at(rest.len().min(step.groups.saturating_mul(GROUP)));
            sum = (sum << step.shift) + part.iter().map(|&level| i32::from(level)).sum::<i32>();
            rest = behind;
        }
        self.finish(offset, scale, sum);
    }

    /// Adds rows of a rank coding. `entries` has one for each of the layout's signed levels: its
    /// lowest 8 bits are the integer level, and the sum of the others over a row's nonzeros is given to
    /// `finish`, with the number of the row. That returns what the row's sums start from, before
    /// all shifts, the row's scale, and the sum of its levels, each shifted as those before it are.
    ///
    /// # Panics
    /// As [`Kernels::integer_row`].
    pub fn push_ranked<'r>(
        &mut self,
        kernels: Kernels,
        layout: &RankedLayout,
        entries: &[u64],
        rows: impl Iterator<Item = &'r [u8]>,
        mut finish: impl FnMut(usize, u64) -> (i32, f32, i32),
    ) {
        let stride = layout.width().next_multiple_of(GROUP);
        // a kernel writes this much; what it writes too much the next row writes over
        let written = Kernels::integer_row_room(layout);
        for (number, row) in rows.enumerate() {
            let start = self.used;
            self.make_room(start + written);
            let out = IntegerRow {
                lines: &mut self.lines[start..start + written],
                levels: &mut self.levels[start..start + written],
            };
            let sums = kernels.integer_row(layout, entries, row, self.dim, out);
            self.used = start + stride;
            let (offset, scale, sum) = finish(number, sums);
            self.finish(offset, scale, sum);
        }
    }

    /// Writes the nonzeros of another row.
    fn grow<T>(&mut self, width: usize, write: impl FnOnce(&mut [u32], &mut [i8]) -> T) -> T {
        let start = self.used;
        let end = start + width.next_multiple_of(GROUP);
        self.make_room(end);
        self.used = end;
        self.lines[start..end].fill(0);
        self.levels[start..end].fill(0);
        let (lines, padding) = self.lines[start..end].split_at_mut(width);
        let written = write(lines, &mut self.levels[start..start + width]);
        let dim = self.dim;
        for line in lines {
            *line = (*line).min(dim) * TILE as u32;
        }
        padding.fill(dim * TILE as u32);
        written
    }

    fn make_room(&mut self, end: usize) {
        if self.levels.len() < end {
            self.levels.resize(end, 0);
            self.lines.resize(end, self.dim * TILE as u32);
        }
    }

    fn finish(&mut self, offset: i32, scale: f32, sum: i32) {
        self.starts.push((self.used / GROUP) as u32);
        // whole: the bias is a multiple of 2^shift (new)
        self.offsets
            .push(offset - ((self.bias * sum) >> self.shift));
        self.scales.push(scale);
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn groups(&self, row: usize) -> Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    pub(super) fn lines(&self) -> &[u32] {
        &self.lines
    }

    pub(super) fn levels(&self) -> &[i8] {
        &self.levels
    }

    pub(super) fn offset(&self, row: usize) -> i32 {
        self.offsets[row]
    }

    /// The scale of a row.
    pub fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }
}

/// A row of which some query's sum reached its threshold.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct PassedRow {
    /// The scaled sums of all slots.
    pub sums: [f32; TILE],
    /// Bit `slot` is set where the sum reached the threshold.
    pub mask: u64,
    pub row: u32,
}

impl PassedRow {
    const NONE: Self = Self {
        sums: [0.0; TILE],
        mask: 0,
        row: 0,
    };
}

/// Rows that passed, each with the sums of the queries it passed for.
///
/// A kernel writes every row to the next place, and moves on where some query passed: without a
/// branch, since rows pass at random and the work on later ones has begun by then.
#[derive(Debug, Clone)]
pub struct Passed {
    rows: Vec<PassedRow>,
    len: usize,
    /// Of the kernel that wrote last.
    order: [u8; TILE],
}

impl Passed {
    /// How many may wait before they must be taken: 10 KB, beside lines of weights in a first-level
    /// cache.
    const ROOM: usize = 32;

    /// None yet.
    pub fn new() -> Self {
        Self {
            // and one that is not kept
            rows: vec![PassedRow::NONE; Self::ROOM + 1],
            len: 0,
            order: PLAIN.order,
        }
    }

    /// Takes all out: (row of the block, query of the tile, scaled sum).
    pub fn drain(&mut self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let len = std::mem::take(&mut self.len);
        let order = &self.order;
        self.rows[..len].iter().flat_map(move |passed| {
            let mut rest = passed.mask;
            std::iter::from_fn(move || {
                let slot = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                let query = usize::from(order[slot]);
                Some((passed.row as usize, query, passed.sums[slot]))
            })
        })
    }

    pub(super) fn set_order(&mut self, layout: TileLayout) {
        assert_eq!(self.len, 0);
        self.order = layout.order;
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= Self::ROOM
    }

    /// Where a row is to be written.
    pub(super) fn next(&mut self) -> &mut PassedRow {
        &mut self.rows[self.len]
    }

    /// Keeps the row that was written where its mask is not 0.
    pub(super) fn keep(&mut self) {
        self.len += usize::from(self.rows[self.len].mask != 0);
    }
}

impl Default for Passed {
    fn default() -> Self {
        Self::new()
    }
}

/// The layout of the plain kernel: nothing is moved.
pub const PLAIN: TileLayout = {
    let mut order = [0; TILE];
    let mut slot = 0;
    while slot < TILE {
        order[slot] = slot as u8;
        slot += 1;
    }
    TileLayout { order, bias: 0 }
};

/// [`Kernels::pass_rows`](super::Kernels::pass_rows) in plain Rust.
pub fn pass_rows(
    tile: &Tile,
    rows: &IntegerRows,
    range: Range<usize>,
    thresholds: &[f32; TILE],
    passed: &mut Passed,
) -> usize {
    for row in range.clone() {
        let mut sums = tile.offsets().map(|of_query| of_query + rows.offset(row));
        let groups = rows.groups(row);
        let mut next = groups.start;
        for step in rows.steps() {
            sums.iter_mut().for_each(|sum| *sum <<= step.shift);
            let end = groups.end.min(next.saturating_add(step.groups));
            let nonzeros = next * GROUP..end * GROUP;
            let levels = &rows.levels()[nonzeros.clone()];
            for (&line, &level) in rows.lines()[nonzeros].iter().zip(levels) {
                let level = i16::from(level);
                for (sum, &weight) in sums.iter_mut().zip(tile.line(line)) {
                    // at most 127 * 127
                    *sum += i32::from(i16::from(weight as i8) * level);
                }
            }
            next = end;
        }
        let scale = rows.scale(row);
        let next = passed.next();
        next.row = row as u32;
        next.sums = sums.map(|sum| sum as f32 * scale);
        next.mask = (next.sums.iter().zip(thresholds).enumerate())
            .map(|(slot, (scaled, threshold))| u64::from(scaled >= threshold) << slot)
            .sum();
        passed.keep();
        if passed.is_full() {
            return row + 1;
        }
    }
    range.end
}
