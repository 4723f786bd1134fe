//! Exact search for many queries at once: an integer pass over all rows finds the few that may
//! be among the best, and only those are scored in double precision.
//!
//! The pass is cheaper a query than a scan because a row's nonzeros are read once for 64
//! queries, whose 8-bit weights of a latent are one cache line. What it says of a row has a
//! proven error bound (see [`super::integer`]), so the result is that of [`super::scan()`], bit
//! for bit.

use std::ops::Range;

use rayon::prelude::*;

use super::candidates::{Candidate, Candidates, Settled, SharedThreshold};
use super::exact::ExactWeights;
use super::gathered::gather;
use super::guesses::Guesses;
use super::integer::{RowCoder, RowError};
use super::latents::LatentSet;
use super::tiles::QueryTiles;
use super::{Hit, ScanRows, Selection, TopK, WeightSource};
use crate::control::Control;
use crate::kernels::{IntegerRows, Passed, Tile, WeightTable, TILE};
use crate::memory::OwnedSlice;
use crate::Result;

/// Rows that are made integers at a time, for all tiles to pass over: at 32 nonzeros 320 KB, which
/// with a tile of 4,096 latents fit in the second-level cache.
const ROWS_A_BLOCK: usize = 2048;
/// Rows between looks at thresholds that others have raised.
const ROWS_A_LOOK: usize = 256;
/// Rows of a sample, times the root of the number of all: more of them cost more than they save.
const SAMPLE: f64 = 8.0;
/// Runs of a sample of rows that memory may not hold.
const RUNS: usize = 128;
/// Fewer rows are not drawn from.
const LEAST_STRIDE: usize = 16;
/// One query in so many may have been guessed wrong: it takes its whole tile over all rows again.
const QUERIES_A_MISS: usize = 256;
/// Queries in flight; with eight tiles making rows integers is a few percent, and what is kept of
/// so many queries still fits in a third-level cache.
const QUERIES_A_WAVE: usize = 8 * TILE;
/// What copies of candidates may take: of 512 queries with k = 100 it is 10 to 20 MB, and each part of
/// this size is a passage over the rows. Rows that take no more themselves are not copied.
const COPIES_BYTES: usize = 64 << 20;
/// Rows scored between looks at whether the search was cancelled.
const ROWS_A_CHECK: usize = 4096;
/// Tasks a thread; more of them even out, but each starts with a threshold to find.
const TASKS_A_THREAD: usize = 2;
/// Fewer rows than these are not worth a task.
const LEAST_ROWS_A_TASK: usize = 4 * ROWS_A_BLOCK;
/// The most bytes of weights that a tile may have; with more latents lines are rarely reused.
const LARGEST_TILE: usize = 16 << 20;
/// Fewer queries leave too much of a tile empty.
const LEAST_QUERIES: usize = 3;
/// Fewer rows are scanned before a tile is made.
const LEAST_ROWS: usize = 512;
/// What share of rows must be allowed, and may be wanted, for the pass to pay.
const SHARE: usize = 8;

/// What speaks against a pass for so few queries. `None` where they are enough.
pub fn too_few(n_queries: usize) -> Option<String> {
    (n_queries < LEAST_QUERIES)
        .then(|| format!("{n_queries} of the {TILE} queries that one pass answers"))
}

/// What speaks against a pass, however many queries there are: too few rows, too many latents, or
/// a k or a selection that leaves little to drop. `None` where it pays.
pub fn objection(data: &ScanRows<'_>, k: usize, selection: Selection<'_>) -> Option<String> {
    let n = data.rows.len();
    let tile = (data.rows.dim() + 1).saturating_mul(TILE);
    let allowed = selection.count(n);
    if n < LEAST_ROWS {
        Some("few rows".into())
    } else if k > n / SHARE {
        Some(format!("k = {k} leaves few rows to drop"))
    } else if allowed < n / SHARE {
        Some("a filter that allows few rows".into())
    } else if tile > LARGEST_TILE {
        Some(format!(
            "{} latents, too many for the cache",
            data.rows.dim()
        ))
    } else {
        None
    }
}

/// As [`super::scan()`].
///
/// # Errors
/// As [`super::scan()`].
pub fn search(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    guesses: &Guesses,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    search_with_room(data, source, k, selection, COPIES_BYTES, guesses, control)
}

/// The same, where copies of candidates may take `room` bytes.
///
/// # Errors
/// As [`super::scan()`].
pub fn search_with_room(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    room: usize,
    guesses: &Guesses,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let Some(coder) = RowCoder::new(*data) else {
        return super::scan(data, source, k, selection, control);
    };
    let n_queries = source.queries.len();
    selection.check(data.rows.len(), n_queries)?;
    let k = k.min(selection.count(data.rows.len()));
    let mut found = Vec::with_capacity(n_queries);
    for first in (0..n_queries).step_by(QUERIES_A_WAVE) {
        let queries = first..n_queries.min(first + QUERIES_A_WAVE);
        let n = queries.len() as u64;
        let wave = Wave::new(data, source, &coder, queries, k, selection)?;
        found.extend(wave.run(room, guesses, control)?);
        control.advance(n);
    }
    Ok(found)
}

/// Queries in flight.
struct Wave<'a> {
    data: &'a ScanRows<'a>,
    source: &'a WeightSource<'a>,
    coder: &'a RowCoder<'a>,
    selection: Selection<'a>,
    k: usize,
    queries: Range<usize>,
    /// `None` in sparse mode.
    embeddings: Option<OwnedSlice<f64>>,
    tiled: QueryTiles,
    thresholds: Vec<SharedThreshold>,
}

impl<'a> Wave<'a> {
    fn new(
        data: &'a ScanRows<'a>,
        source: &'a WeightSource<'a>,
        coder: &'a RowCoder<'a>,
        queries: Range<usize>,
        k: usize,
        selection: Selection<'a>,
    ) -> Result<Self> {
        let embeddings = source.embeddings(queries.clone())?;
        let layout = source.kernels.tile_layout();
        let tiled = match &embeddings {
            Some(embeddings) => QueryTiles::from_embeddings(embeddings, source, coder, layout)?,
            None => {
                let mut table = WeightTable::zeros(&data.rows)?;
                QueryTiles::from_codes(queries.clone(), source, coder, &mut table, layout)?
            }
        };
        Ok(Self {
            data,
            source,
            coder,
            selection,
            k,
            thresholds: queries.clone().map(|_| SharedThreshold::new()).collect(),
            queries,
            embeddings,
            tiled,
        })
    }

    fn run(&self, room: usize, guesses: &Guesses, control: &Control) -> Result<Vec<Vec<Hit>>> {
        let n = self.queries.len();
        let mut ranges = self.ranges().into_iter();
        let may_guess = ranges.any(|range| Sampling::new(range.len(), self.k).is_some())
            && guesses.hold(n, QUERIES_A_MISS);
        let n_guessed = if may_guess { n } else { 0 };
        let guessed: Vec<_> = (0..n_guessed).map(|_| SharedThreshold::new()).collect();
        let mut settled = self.settled(&vec![true; n], &guessed, control)?;
        let missed: Vec<bool> = settled.iter().map(|of_query| of_query.missed).collect();
        let n_missed = missed.iter().filter(|&&missed| missed).count();
        if n_missed > 0 {
            guesses.miss(n_missed);
            for (threshold, of_query) in self.thresholds.iter().zip(&settled) {
                threshold.raise(of_query.threshold);
            }
            let again = self.settled(&missed, &[], control)?;
            for ((of_query, again), missed) in settled.iter_mut().zip(again).zip(missed) {
                if missed {
                    *of_query = again;
                }
            }
        }
        let mut candidates: Vec<Option<Vec<u64>>> = settled
            .into_iter()
            .zip(&self.tiled.errors)
            .map(|(of_query, error)| of_query.rows.filter(|_| error.is_some()))
            .collect();
        if self.data.rows.bytes().len() <= room {
            return self.best_of(0, candidates, |_| Place::of(self.data), control);
        }
        let mut found = Vec::with_capacity(candidates.len());
        while !candidates.is_empty() {
            let some = candidates.drain(..self.copied_at_once(&candidates, room));
            let mut some: Vec<_> = some.collect();
            let (copies, each) = gather(self.data, &mut some, room, control)?;
            let place = |query: usize| {
                let copies = &copies[query / each];
                Place {
                    data: copies.data(self.data),
                    positions: Some(copies.positions()),
                }
            };
            found.extend(self.best_of(found.len(), some, place, control)?);
        }
        Ok(found)
    }

    /// What is left of all rows for each query that is asked. What is guessed of them is shared in
    /// `guessed`; nothing is where that is empty.
    fn settled(
        &self,
        asked: &[bool],
        guessed: &[SharedThreshold],
        control: &Control,
    ) -> Result<Vec<Settled>> {
        let passes = self
            .ranges()
            .into_par_iter()
            .map(|range| self.pass(range, asked, guessed, control))
            .collect::<Result<Vec<_>>>()?;
        let mut candidates = vec![Candidates::new(self.k); self.queries.len()];
        for pass in passes {
            for (all, some) in candidates.iter_mut().zip(pass) {
                all.merge(some);
            }
        }
        Ok(candidates
            .into_par_iter()
            .map(Candidates::settled)
            .collect())
    }

    /// How many of the first queries' rows are copied at a time; at least one's.
    fn copied_at_once(&self, candidates: &[Option<Vec<u64>>], room: usize) -> usize {
        let mut rows = 0;
        candidates
            .iter()
            .take_while(|some| {
                rows += some.as_ref().map_or(0, Vec::len);
                self.coder.longest_row().saturating_mul(rows) <= room
            })
            .count()
            .max(1)
    }

    /// The best of the candidates of queries, or, for `None`, of all rows, from query `first` of
    /// the wave on. The candidates of the i-th of them lie in `place(i)`.
    fn best_of<'p>(
        &self,
        first: usize,
        candidates: Vec<Option<Vec<u64>>>,
        place: impl Fn(usize) -> Place<'p> + Sync,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        let candidates = self.with_tables(candidates, |query, rows, table| {
            rows.map(|rows| self.narrow(first + query, &place(query), rows, table, control))
                .transpose()
        })?;
        let exact = match &self.embeddings {
            Some(embeddings) => {
                let latents: Vec<Vec<u32>> = candidates
                    .par_iter()
                    .enumerate()
                    .map(|(query, rows)| self.latents(&place(query), rows.as_deref()))
                    .collect();
                let d = self.source.dictionary()?.d();
                let embeddings = &embeddings[first * d..(first + candidates.len()) * d];
                let weights = ExactWeights::new(self.source, embeddings, &latents, control)?;
                Some((latents, weights))
            }
            None => None,
        };
        self.with_tables(candidates, |query, candidates, table| {
            if let Some((latents, weights)) = &exact {
                weights.fill(query, &latents[query], table.weights_mut());
            } else {
                let query = self.queries.start + first + query;
                self.source.fill_code(query, table);
            }
            let found = match candidates {
                Some(rows) => self.best(&place(query), &rows, table, control),
                None => self.best_of_all(first + query, table, control),
            };
            table.weights_mut().fill(0.0);
            found
        })
    }

    /// Does something for each query with a table of zeros, which must be zeros again after.
    fn with_tables<T: Send, R: Send>(
        &self,
        of_queries: Vec<T>,
        each: impl Fn(usize, T, &mut WeightTable) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        of_queries
            .into_par_iter()
            .enumerate()
            .map_init(
                || None,
                |table: &mut Option<WeightTable>, (query, of_query)| {
                    if table.is_none() {
                        *table = Some(WeightTable::zeros(&self.data.rows)?);
                    }
                    each(query, of_query, table.as_mut().expect("made above"))
                },
            )
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

    /// Candidates of the queries that are asked among a range of rows.
    fn pass(
        &self,
        range: Range<usize>,
        asked: &[bool],
        guessed: &[SharedThreshold],
        control: &Control,
    ) -> Result<Vec<Candidates>> {
        let mut block = Block::new(self.coder.rows(self.source.kernels.tile_layout()));
        // a mapped file that memory does not hold is not to be read here and there
        let is_far = self.data.rows.bytes().len() > COPIES_BYTES;
        let sampling = Sampling::new(range.len(), self.k).filter(|_| !guessed.is_empty());
        if let Some(sampling) = sampling {
            let mut drawn = vec![Candidates::new(sampling.rank); self.queries.len()];
            for positions in sampling.rows(&range, is_far).chunks(ROWS_A_BLOCK) {
                block.positions.clear();
                block.positions.extend_from_slice(positions);
                self.pass_block(&mut block, asked, &[], &[], &mut drawn, control)?;
            }
            for (guess, of_query) in guessed.iter().zip(drawn) {
                guess.raise(of_query.reached());
            }
        }
        let mut candidates = vec![Candidates::new(self.k); self.queries.len()];
        for start in range.clone().step_by(ROWS_A_BLOCK) {
            let rows = start..range.end.min(start + ROWS_A_BLOCK);
            if !self.selection.block_has_any(rows.clone()) {
                continue;
            }
            block.positions.clear();
            block.positions.extend(rows);
            let thresholds = &self.thresholds;
            self.pass_block(
                &mut block,
                asked,
                thresholds,
                guessed,
                &mut candidates,
                control,
            )?;
        }
        Ok(candidates)
    }

    /// All tiles over some rows. Nothing is shared where `thresholds` is empty.
    fn pass_block(
        &self,
        block: &mut Block,
        asked: &[bool],
        thresholds: &[SharedThreshold],
        guessed: &[SharedThreshold],
        candidates: &mut [Candidates],
        control: &Control,
    ) -> Result<()> {
        let kernels = self.source.kernels;
        let Block {
            positions,
            rows,
            errors,
            passed,
        } = block;
        self.coder.fill(kernels, positions, rows, errors);
        for (number, tile) in self.tiled.tiles.iter().enumerate() {
            control.check()?;
            let of_tile = number * TILE..candidates.len().min((number + 1) * TILE);
            if !asked[of_tile.clone()].contains(&true) {
                continue;
            }
            let mut part = TilePass {
                wave: self,
                first: of_tile.start,
                asked: &asked[of_tile.clone()],
                thresholds: thresholds.get(of_tile.clone()).unwrap_or_default(),
                guessed: guessed.get(of_tile.clone()).unwrap_or_default(),
                candidates: &mut candidates[of_tile],
                positions,
                errors,
            };
            part.run(tile, rows, passed);
        }
        Ok(())
    }

    /// Those of a query's candidates that its rough weights leave: nearly the best k alone,
    /// which have fewer latents for which exact weights must be made.
    fn narrow(
        &self,
        query: usize,
        place: &Place<'_>,
        candidates: Vec<u64>,
        table: &mut WeightTable,
        control: &Control,
    ) -> Result<Vec<u64>> {
        let (Some((rough, off)), Some(l1)) = (self.tiled.rough(query), self.coder.largest_l1())
        else {
            return Ok(candidates);
        };
        if candidates.len() <= self.k {
            return Ok(candidates);
        }
        for (to, &from) in table.weights_mut().iter_mut().zip(rough) {
            *to = f64::from(from);
        }
        let mut scored = Vec::with_capacity(candidates.len());
        self.scores(&place.data, &candidates, table, control, |row, score| {
            // roundings of the double-precision sums are far below 2^-40 of l1 |u|
            let scale = place.data.scales.get(row as usize);
            let error = off * (1.0 + f64::powi(2.0, -20)) * l1 * scale;
            scored.push((score - error, score + error, row));
        })?;
        let (_, kth, _) = scored.select_nth_unstable_by(self.k - 1, |a, b| b.0.total_cmp(&a.0));
        let threshold = kth.0;
        table.weights_mut().fill(0.0);
        scored.retain(|(_, upper, _)| *upper >= threshold);
        let mut rows: Vec<u64> = scored.into_iter().map(|(.., row)| row).collect();
        rows.sort_unstable();
        Ok(rows)
    }

    /// Latents that some rows have, or, for `None`, all, ascending.
    fn latents(&self, place: &Place<'_>, rows: Option<&[u64]>) -> Vec<u32> {
        let dim = self.data.rows.dim();
        let Some(rows) = rows else {
            return (0..dim as u32).collect();
        };
        let mut set = LatentSet::new(dim);
        for &row in rows {
            set.add_row(&place.data.rows, row as usize);
        }
        let mut latents = Vec::new();
        set.drain_into(&mut latents);
        latents
    }

    /// Calls `each` with some rows and their scores by a table.
    fn scores(
        &self,
        data: &ScanRows<'_>,
        rows: &[u64],
        table: &WeightTable,
        control: &Control,
        mut each: impl FnMut(u64, f64),
    ) -> Result<()> {
        for some in rows.chunks(ROWS_A_CHECK) {
            control.check()?;
            data.score_each(self.source.kernels, table, some, &mut each);
        }
        Ok(())
    }

    /// The best of some rows.
    fn best(
        &self,
        place: &Place<'_>,
        rows: &[u64],
        table: &WeightTable,
        control: &Control,
    ) -> Result<Vec<Hit>> {
        let mut top = TopK::new(self.k);
        self.scores(&place.data, rows, table, control, |row, score| {
            let position = place.positions.map_or(row, |stood| stood[row as usize]);
            top.push(score, position);
        })?;
        Ok(top.into_sorted())
    }

    /// The best of all rows.
    fn best_of_all(
        &self,
        query: usize,
        table: &WeightTable,
        control: &Control,
    ) -> Result<Vec<Hit>> {
        let mut top = TopK::new(self.k);
        let n = self.data.rows.len() as u64;
        let query = self.queries.start + query;
        for start in (0..n).step_by(ROWS_A_BLOCK) {
            let admitted: Vec<u64> = (start..n.min(start + ROWS_A_BLOCK as u64))
                .filter(|&row| self.selection.admits(query, row))
                .collect();
            self.scores(self.data, &admitted, table, control, |row, score| {
                top.push(score, row);
            })?;
        }
        Ok(top.into_sorted())
    }
}

/// What is drawn from `n` rows to see what the best `k` of them reach.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sampling {
    /// One row of so many.
    stride: usize,
    /// The rank among the rows drawn that hardly so many of the best k take.
    rank: usize,
}

impl Sampling {
    /// `None` where it is not worth it.
    fn new(n: usize, k: usize) -> Option<Self> {
        let stride = n / ((SAMPLE * (n as f64).sqrt()) as usize).max(1);
        // their number has `expected` as its mean, and is above the rank once in a million times
        let expected = k as f64 / stride.max(1) as f64;
        let rank = (expected + 4.5 * expected.sqrt() + 4.0).ceil() as usize;
        (stride >= LEAST_STRIDE && rank <= k / 4).then_some(Self { stride, rank })
    }

    /// The rows of a range that are drawn. They stand evenly, so that it does not matter if rows
    /// that are alike lie together; or, where `is_far`, in a few runs.
    fn rows(self, range: &Range<usize>, is_far: bool) -> Vec<usize> {
        let run = if is_far {
            (range.len() / self.stride).div_ceil(RUNS)
        } else {
            1
        };
        let starts = range.clone().step_by(self.stride * run);
        starts
            .flat_map(|start| start..range.end.min(start + run))
            .collect()
    }
}

/// Where candidates lie: among all rows, or as copies of some.
struct Place<'a> {
    data: ScanRows<'a>,
    /// Where the rows stood that were copied.
    positions: Option<&'a [u64]>,
}

impl<'a> Place<'a> {
    fn of(data: &ScanRows<'a>) -> Self {
        Self {
            data: *data,
            positions: None,
        }
    }
}

/// Some rows as integers, and room for what passes.
struct Block {
    positions: Vec<usize>,
    rows: IntegerRows,
    errors: Vec<RowError>,
    passed: Passed,
}

impl Block {
    fn new(rows: IntegerRows) -> Self {
        Self {
            positions: Vec::with_capacity(ROWS_A_BLOCK),
            rows,
            errors: Vec::new(),
            passed: Passed::new(),
        }
    }
}

/// One tile over one block.
struct TilePass<'a> {
    wave: &'a Wave<'a>,
    /// The tile's first query in the wave.
    first: usize,
    /// Which of its queries are asked.
    asked: &'a [bool],
    /// What k rows are known to reach, or nothing.
    thresholds: &'a [SharedThreshold],
    /// What is guessed that k rows reach, or nothing.
    guessed: &'a [SharedThreshold],
    candidates: &'a mut [Candidates],
    /// Where the block's rows stand.
    positions: &'a [usize],
    errors: &'a [RowError],
}

impl TilePass<'_> {
    fn run(&mut self, tile: &Tile, rows: &IntegerRows, passed: &mut Passed) {
        let mut next = 0;
        while next < rows.len() {
            let thresholds = self.thresholds();
            let look = next..rows.len().min(next + ROWS_A_LOOK);
            let kernels = self.wave.source.kernels;
            next = kernels.pass_rows(tile, rows, look, &thresholds, passed);
            for (row, query, upper) in passed.drain() {
                self.take(row, query, upper);
            }
        }
        for row in 0..self.errors.len() {
            if self.errors[row].always {
                for query in 0..self.candidates.len() {
                    self.push(row, query, f32::INFINITY, f32::NEG_INFINITY);
                }
            }
        }
    }

    fn thresholds(&mut self) -> [f32; TILE] {
        let mut thresholds = [f32::INFINITY; TILE];
        for (query, candidates) in self.candidates.iter_mut().enumerate() {
            let query_in_wave = self.first + query;
            let has_bounds = self.wave.tiled.errors[query_in_wave].is_some();
            if self.asked[query] && has_bounds && !candidates.overflowed() {
                if let Some(reached) = self.thresholds.get(query) {
                    candidates.raise(reached.get());
                }
                if let Some(guessed) = self.guessed.get(query) {
                    candidates.raise_guess(guessed.get());
                }
                thresholds[query] = candidates.aim();
            }
        }
        thresholds
    }

    fn take(&mut self, row: usize, query: usize, upper: f32) {
        let error = self.errors[row];
        let Some(of_query) = self.wave.tiled.errors[self.first + query] else {
            return;
        };
        if error.always {
            return; // is pushed as one of which nothing is known
        }
        let width = 2.0 * (error.error as f32 + of_query as f32) * error.scale;
        // roundings in single precision, each within 2^-24 of a number that is at most this
        let rounding = (upper.abs() + width) * f32::powi(2.0, -21);
        self.push(row, query, upper, upper - width - rounding);
    }

    fn push(&mut self, row: usize, query: usize, upper: f32, lower: f32) {
        let row = self.positions[row] as u64;
        let query_in_wave = self.first + query;
        let selection = self.wave.selection;
        if !selection.is_all() && !selection.admits(self.wave.queries.start + query_in_wave, row) {
            return;
        }
        let candidates = &mut self.candidates[query];
        if candidates.push(Candidate { row, upper, lower }) {
            if let Some(reached) = self.thresholds.get(query) {
                reached.raise(candidates.threshold());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_evenly_in_its_range_or_in_runs() {
        let range = 1000..1_001_000;
        for is_far in [false, true] {
            let sampling = Sampling::new(range.len(), 100).unwrap();
            let rows = sampling.rows(&range, is_far);
            assert!(rows.is_sorted_by(|a, b| a < b) && range.contains(&rows[rows.len() - 1]));
            assert!((8000..8200).contains(&rows.len()), "{}", rows.len());
            assert_eq!(sampling.rank, 9);
            let runs = 1 + rows.windows(2).filter(|two| two[1] > two[0] + 1).count();
            let expected = if is_far { 125..=RUNS + 1 } else { 8000..=8200 };
            assert!(expected.contains(&runs), "{runs} runs");
            let in_first_tenth = rows.iter().filter(|&&row| row < 101_000).count();
            assert!((740..=870).contains(&in_first_tenth), "{in_first_tenth}");
        }
        // a few of the best of so many rows are all that a sample would have
        assert_eq!(Sampling::new(1_000_000, 10), None);
        assert_eq!(Sampling::new(10_000, 100), None);
        assert_eq!(Sampling::new(0, 100), None);
    }
}
