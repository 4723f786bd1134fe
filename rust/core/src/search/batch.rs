//! Exact search for many queries at once: an integer pass over all rows finds the few that may
//! be among the best, and only those are scored in double precision.
//!
//! The pass is cheaper a query than a scan because a row's nonzeros are read once for 64
//! queries, whose 8-bit weights of a latent are one cache line. What it says of a row has a
//! proven error bound (see [`super::integer`]), so the result is that of [`super::scan`], bit
//! for bit.

use std::ops::Range;

use rayon::prelude::*;

use super::candidates::{Candidate, Candidates, SharedThreshold};
use super::integer::{IntegerQuery, RowCoder, RowError};
use super::{Hit, ScanRows, Selection, TopK, WeightSource};
use crate::control::Control;
use crate::kernels::{IntegerRows, Kernels, Passed, Tile, WeightTable, TILE};
use crate::Result;

/// Rows that are made integers at a time, for all tiles to pass over: at 32 nonzeros 160 KB.
const ROWS_A_BLOCK: usize = 1024;
/// Rows between looks at thresholds that others have raised.
const ROWS_A_LOOK: usize = 256;
/// Queries that are in flight at once; with eight tiles making rows integers is a few percent.
const QUERIES_A_WAVE: usize = 8 * TILE;
/// Tasks a thread; more of them even out, but each starts with a threshold to find.
const TASKS_A_THREAD: usize = 2;
/// Fewer rows than these are not worth a task.
const LEAST_ROWS_A_TASK: usize = 8 * ROWS_A_BLOCK;
/// The most bytes of weights that a tile may have; with more latents lines are rarely reused.
const LARGEST_TILE: usize = 16 << 20;

/// True where the pass pays: enough queries, rows and latents for the tile, and a k that leaves
/// most rows behind.
pub fn is_worth_it(data: &ScanRows<'_>, n_queries: usize, k: usize) -> bool {
    n_queries >= LEAST_QUERIES
        && (data.rows.dim() + 1).saturating_mul(TILE) <= LARGEST_TILE
        && data.rows.len() >= 512
        && k <= data.rows.len() / 8
}

/// Fewer queries leave too much of a tile empty.
const LEAST_QUERIES: usize = 3;

/// As [`super::scan`].
///
/// # Errors
/// As [`super::scan`].
pub fn search(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let Some(coder) = RowCoder::new(*data) else {
        return super::scan(data, source, k, Selection::ALL, control);
    };
    let n_queries = source.queries.len();
    let k = k.min(data.rows.len());
    let mut tables = (0..QUERIES_A_WAVE.min(n_queries))
        .map(|_| WeightTable::zeros(&data.rows))
        .collect::<Result<Vec<_>>>()?;
    let mut found = Vec::with_capacity(n_queries);
    for first in (0..n_queries).step_by(QUERIES_A_WAVE) {
        let tables = &mut tables[..QUERIES_A_WAVE.min(n_queries - first)];
        source.fill(tables, first, control)?;
        let wave = Wave::new(data, &coder, tables, k, source.kernels)?;
        found.extend(wave.run(control)?);
        control.advance(tables.len() as u64);
    }
    Ok(found)
}

/// Queries in flight.
struct Wave<'a> {
    data: &'a ScanRows<'a>,
    coder: &'a RowCoder<'a>,
    tables: &'a [WeightTable],
    kernels: Kernels,
    k: usize,
    tiles: Vec<Tile>,
    /// `None` where no bound holds for a query; all rows are then scored.
    queries: Vec<Option<IntegerQuery>>,
    thresholds: Vec<SharedThreshold>,
}

impl<'a> Wave<'a> {
    fn new(
        data: &'a ScanRows<'a>,
        coder: &'a RowCoder<'a>,
        tables: &'a [WeightTable],
        k: usize,
        kernels: Kernels,
    ) -> Result<Self> {
        let queries: Vec<_> = tables
            .par_iter()
            .map(|table| IntegerQuery::new(table.weights(), coder))
            .collect();
        let tiles = queries
            .par_chunks(TILE)
            .map(|queries| {
                let mut tile = Tile::zeros(data.rows.dim(), kernels.tile_layout())?;
                for (slot, query) in queries.iter().enumerate() {
                    if let Some(query) = query {
                        tile.set_query(slot, query.weights.iter().copied(), query.error);
                    }
                }
                Ok(tile)
            })
            .collect::<Result<Vec<_>>>()?;
        let thresholds = tables.iter().map(|_| SharedThreshold::new()).collect();
        Ok(Self {
            data,
            coder,
            tables,
            kernels,
            k,
            tiles,
            queries,
            thresholds,
        })
    }

    fn run(&self, control: &Control) -> Result<Vec<Vec<Hit>>> {
        let passes = self
            .ranges()
            .into_par_iter()
            .map(|range| self.pass(range, control))
            .collect::<Result<Vec<_>>>()?;
        let mut candidates: Vec<Candidates> = vec![Candidates::new(self.k); self.tables.len()];
        for pass in passes {
            for (all, some) in candidates.iter_mut().zip(pass) {
                all.merge(some);
            }
        }
        candidates
            .into_par_iter()
            .zip(&self.queries)
            .zip(self.tables)
            .map(|((candidates, query), table)| {
                match candidates.into_rows().filter(|_| query.is_some()) {
                    Some(rows) => self.score(rows, table, control),
                    None => self.score(0..self.data.rows.len() as u64, table, control),
                }
            })
            .collect()
    }

    fn ranges(&self) -> Vec<Range<usize>> {
        let n = self.data.rows.len();
        let threads = rayon::current_num_threads();
        let tasks = if threads == 1 {
            1
        } else {
            TASKS_A_THREAD * threads
        };
        let size = n
            .div_ceil(tasks)
            .max(LEAST_ROWS_A_TASK)
            .next_multiple_of(ROWS_A_BLOCK);
        (0..n)
            .step_by(size)
            .map(|start| start..n.min(start + size))
            .collect()
    }

    /// Candidates of every query among a range of rows.
    fn pass(&self, range: Range<usize>, control: &Control) -> Result<Vec<Candidates>> {
        let mut candidates: Vec<Candidates> = vec![Candidates::new(self.k); self.tables.len()];
        let mut rows = self.coder.rows(self.kernels.tile_layout());
        let mut errors = Vec::new();
        let mut passed = Passed::new();
        for start in range.clone().step_by(ROWS_A_BLOCK) {
            let block = start..range.end.min(start + ROWS_A_BLOCK);
            self.coder.fill(block.clone(), &mut rows, &mut errors);
            for (number, tile) in self.tiles.iter().enumerate() {
                control.check()?;
                let of_tile = number * TILE..candidates.len().min((number + 1) * TILE);
                let mut part = TilePass {
                    wave: self,
                    first_query: of_tile.start,
                    candidates: &mut candidates[of_tile],
                    errors: &errors,
                    start,
                };
                part.run(tile, &rows, &mut passed);
            }
        }
        Ok(candidates)
    }

    /// The best of some rows, by their scores.
    fn score(
        &self,
        rows: impl IntoIterator<Item = u64>,
        table: &WeightTable,
        control: &Control,
    ) -> Result<Vec<Hit>> {
        let mut top = TopK::new(self.k);
        for (i, position) in rows.into_iter().enumerate() {
            if i % 4096 == 0 {
                control.check()?;
            }
            let row = position as usize;
            let mut score = [0.0];
            self.kernels
                .score_rows(&self.data.rows, row..row + 1, table, &mut score);
            top.push(score[0] * self.data.scales.get(row), position);
        }
        Ok(top.into_sorted())
    }
}

/// One tile over one block.
struct TilePass<'a> {
    wave: &'a Wave<'a>,
    first_query: usize,
    candidates: &'a mut [Candidates],
    errors: &'a [RowError],
    /// Position of the block's first row.
    start: usize,
}

impl TilePass<'_> {
    fn run(&mut self, tile: &Tile, rows: &IntegerRows, passed: &mut Passed) {
        let mut thresholds = [f32::INFINITY; TILE];
        let mut next = 0;
        while next < rows.len() {
            for (slot, candidates) in self.candidates.iter_mut().enumerate() {
                let is_open = self.wave.queries[self.first_query + slot].is_some();
                thresholds[slot] = f32::INFINITY;
                if is_open && !candidates.overflowed() {
                    candidates.raise(self.wave.thresholds[self.first_query + slot].get());
                    thresholds[slot] = candidates.threshold();
                }
            }
            let look = next..rows.len().min(next + ROWS_A_LOOK);
            next = self
                .wave
                .kernels
                .pass_rows(tile, rows, look, &thresholds, passed);
            for (row, slot, upper) in passed.drain() {
                self.take(row, slot, upper);
            }
        }
        for (row, _) in self
            .errors
            .iter()
            .enumerate()
            .filter(|(_, error)| error.always)
        {
            for candidates in &mut *self.candidates {
                candidates.push(Candidate {
                    row: (self.start + row) as u64,
                    upper: f32::INFINITY,
                    lower: f32::NEG_INFINITY,
                });
            }
        }
    }

    fn take(&mut self, row: usize, slot: usize, upper: f32) {
        let error = &self.errors[row];
        let query = self.wave.queries[self.first_query + slot].as_ref();
        if error.always {
            return; // is taken as one of which nothing is known
        }
        let width = 2 * (error.error + query.map_or(0, |query| query.error));
        // 4 roundings in single precision, each within 2^-24 of a number that is at most this
        let rounding = (upper.abs() + width as f32 * error.scale) * (1.0 / (1 << 21) as f32);
        let candidate = Candidate {
            row: (self.start + row) as u64,
            upper,
            lower: upper - width as f32 * error.scale - rounding,
        };
        if self.candidates[slot].push(candidate) {
            self.wave.thresholds[self.first_query + slot].raise(self.candidates[slot].threshold());
        }
    }
}
