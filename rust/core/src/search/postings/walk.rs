//! Exact search through postings.
//!
//! # Why it is exact
//!
//! Let `t` run over the latents that query and row share, `u_t` be the query's weights, and
//! `w_t` the row's values times its scale; the score is `sum u_t w_t`. A list that the walk adds
//! holds only terms with `u_t w_t > 0`, each under a bound `b >= |w_t|`.
//!
//! 1. *Sums bound scores.* With unit `e`, a posting adds `c = 1 + floor(p)` where `p` is
//!    `(|u| / e) * b` in float32, the weight `|u| / e` having been raised by 2^-20 first. That
//!    outweighs the two roundings of 2^-24, so `c >= u_t w_t / e` (a product that vanishes in
//!    float32 is below 1, and 1 is added), and `e` times a row's sum is at least the sum `P` of
//!    its positive terms.
//! 2. *Rounding of scores.* The score as computed in double precision has at most `2 T + 10`
//!    roundings in any path, for `T` terms of the query (products with weights of 0 add
//!    nothing), so it is below `P (1 + g) - N (1 - g)` with the sum `N >= 0` of the magnitudes
//!    of its negative terms and `g < 2^-40` for `T` up to [`MAX_TERMS`]: negative terms, however
//!    large, can only lower it. So a score of at least `h > 0` needs `P >= h (1 - 2^-39)`, and a
//!    sum, which is an integer, of at least `h (1 - 2^-38) / e` rounded up.
//! 3. *Caps.* A single gain is cut at `1 + floor(cap)`, with `cap` at least the sum that is
//!    asked for, so a row that is cut is found all the same.
//! 4. *No overflow.* `e` is chosen so that no sum exceeds what it can hold, 255 or 65,535: no
//!    row gains more than all largest gains together, cut, nor, by the inequality of Cauchy and
//!    Schwarz, more than the norm of the query times the largest norm of a row's bounds, which
//!    is kept for each block. The second is the smaller by far, and makes units finer.
//! 5. *What is not found.* Rows of positive score share a latent with the query, so they are in
//!    a list. Where fewer than k rows have a positive score, those of score 0 by ascending
//!    position and then those of negative score follow: rows are scanned from the first on until
//!    k are found (`fill_up`).
//! 6. *Guesses.* Thresholds are known late: of a million rows the first block of 65,472 has a
//!    k-th best far below that of all, and most rows that were scored were scored for that. So
//!    rows are also left out by a guess ([`Query::rank_of_guess`]), of which nothing is believed: a row
//!    that is left out has a score below it, so the k best that were found are those of all rows
//!    if the k-th of them reaches every guess. Otherwise the query is walked again without, from
//!    the score that k rows have been found to reach.
//!
//! 7. *Bounds of rows.* A score of at least `h > 0` needs a sum of at least `h (1 - 2^-39) / e` (1
//!    and 2), so a row whose gains were not cut scores at most `e` times its sum times `1 + 2^-38`
//!    ([`Units::bound`]). Rows whose sums reach guess and threshold are held with this bound and
//!    scored at the end, or after a block where nothing is guessed, the largest bounds first,
//!    until what k of them reach is above every bound that is left.
//!
//! Rows are scored by the same kernel as in a scan, so scores have the same bits. Thresholds are
//! scores of rows that were scored: they only decide what is left out, and never leave out a row
//! of the best k. So results do not depend on the order of blocks or on threads.

use std::cell::Cell;
use std::ops::Range;

use super::query::{Query, Term};
use super::scratch::{Held, Rest, Scratch};
use super::units::{Units, CAP, MARGIN, NO_CAP, ROUNDED};
use super::{bound_value, Chunk, PostingsView};
use crate::control::Control;
use crate::kernels::{add_list, prefetch, prefetch_far, Sum, WeightTable, SUMS};
use crate::search::weights::sparse_weights;
use crate::search::{Guesses, Hit, Queries, ScanRows, Selection, TopK, WeightSource};
use crate::threads::{self, try_map};
use crate::{Error, Result};

/// The most nonzeros of a query that is walked; others are scanned for. Each may cost a unit of
/// 65,536 to rounding, so with this many most of the resolution is left.
pub const MAX_TERMS: usize = 1 << 13;

/// The most nonzeros of a query whose sums have 8 bits; each costs a unit of 256.
const NARROW_TERMS: usize = 64;

/// Tasks a thread, where one query's blocks are shared out.
const TASKS_A_THREAD: usize = 2;

/// Rows from whose sums the first threshold is guessed: reading all sums for every step of a
/// bisection took a sixth of a query's time on 62,666 rows (Zen 4).
const ROWS_A_SAMPLE: usize = 4096;

/// Rows of a block that are scanned at once where the walk leaves places free.
const ROWS_A_SCAN: usize = 512;

/// One query in so many may be walked twice before fewer are answered with a guess: each costs a walk, and of
/// one a guess that holds saves a twentieth for the 10 best, a quarter for the 100 best and more
/// than half for the 1,000 best (a million rows, Zen 3).
const QUERIES_A_MISS: usize = 8;

/// Rows that are scored, at least, before it is looked what they leave out.
const ROWS_A_STEP: usize = 16;

/// Rows that a task holds before it scores them, or twice k where that is more.
const MOST_HELD: usize = 4096;

thread_local! {
    /// The last task's scratch; its sums and weights are 0. Making them anew costs as much as
    /// walking a small index.
    static KEPT: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// The best `k` rows of each query that the selection admits, as
/// [`scan()`](super::super::scan()) finds them.
///
/// Runs on the current rayon pool, or [`alone`](crate::threads::alone).
///
/// # Errors
/// [`Error::Argument`] for `k = 0` queries that are no codes or do not fit the selection, [`Error::OutOfMemory`],
/// [`Error::Interrupted`].
///
/// # Panics
/// Where the postings are of another number of rows, or a query has another dim.
pub fn walk(
    postings: &PostingsView<'_>,
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    guesses: &Guesses,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let Queries::Codes(codes) = source.queries else {
        return Err(Error::argument("postings answer codes, got dense queries"));
    };
    if k == 0 {
        return Err(Error::argument("k is 0; expected at least 1"));
    }
    let n = data.rows.len();
    selection.check(n, codes.len())?;
    assert_eq!(codes.dim(), data.rows.dim());
    assert_eq!(postings.n_blocks(), n.div_ceil(postings.block_items()));
    let walk = Walk {
        postings,
        data,
        source,
        k: k.min(selection.count(n)),
        selection,
        control,
        guesses,
    };
    let ranges = walk.block_ranges(codes.len());
    let queries = (0..codes.len()).collect();
    try_map(queries, |query| walk.answer(query, &ranges))
}

/// A block whose lists are added up.
struct Added<'a, S> {
    rows: Range<usize>,
    units: Units,
    /// Those of the rows, and some more that stand for none.
    sums: &'a mut [S],
}

/// All that the tasks of a search share.
struct Walk<'a> {
    postings: &'a PostingsView<'a>,
    data: &'a ScanRows<'a>,
    source: &'a WeightSource<'a>,
    k: usize,
    selection: Selection<'a>,
    control: &'a Control,
    guesses: &'a Guesses,
}

impl<'a> Walk<'a> {
    /// Ranges of blocks for the tasks of a query: one, unless there are more threads than
    /// queries.
    fn block_ranges(&self, n_queries: usize) -> Vec<Range<usize>> {
        let threads = threads::width();
        let blocks = self.postings.n_blocks();
        let tasks = if threads == 1 || n_queries >= TASKS_A_THREAD * threads {
            1
        } else {
            (TASKS_A_THREAD * threads).div_ceil(n_queries.max(1))
        };
        let size = blocks.div_ceil(tasks).max(1);
        (0..blocks)
            .step_by(size)
            .map(|start| start..blocks.min(start + size))
            .collect()
    }

    fn answer(&self, query: usize, ranges: &[Range<usize>]) -> Result<Vec<Hit>> {
        let mut asked = self.query(query, ranges.len() > 1);
        let mut top = TopK::new(self.k);
        if let Some(asked) = &mut asked {
            top = self.ranges(asked, ranges)?;
            if asked.is_guess_above(&top) {
                self.guesses.miss(1);
                asked.go_without(&top);
                top = self.ranges(asked, ranges)?;
            }
        }
        if top.len() < self.k {
            let found_positive = asked.is_some();
            top = self.in_scratch(query, |scratch| {
                self.fill_up(query, top, found_positive, &scratch.rest.table)
            })?;
        }
        self.control.advance(1);
        Ok(top.into_sorted())
    }

    /// The best k of the rows of positive score that reach every guess.
    fn ranges(&self, query: &Query<'_>, ranges: &[Range<usize>]) -> Result<TopK> {
        let tops = try_map(ranges.iter().collect(), |range| {
            self.in_scratch(query.number, |scratch| {
                let Scratch { narrow, wide, rest } = scratch;
                let whole = "made with SUMS";
                if query.terms.len() <= NARROW_TERMS {
                    let sums = (&mut narrow[..]).try_into().expect(whole);
                    self.range::<u8>(query, range, sums, rest)
                } else {
                    let sums = (&mut wide[..]).try_into().expect(whole);
                    self.range::<u16>(query, range, sums, rest)
                }
            })
        })?;
        let mut top = TopK::new(self.k);
        tops.into_iter().for_each(|of_range| top.merge(of_range));
        top.tighten();
        Ok(top)
    }

    /// The query's terms; `None` where it cannot be walked.
    fn query(&self, query: usize, several_tasks: bool) -> Option<Query<'a>> {
        let Queries::Codes(codes) = self.source.queries else {
            return None;
        };
        let terms: Vec<_> = sparse_weights(&codes, query, self.source.metric)
            .filter_map(|(latent, weight)| {
                let slot = self.postings.slot(latent)?;
                let starts = self.postings.starts_of(slot, weight < 0.0);
                prefetch(bytemuck::cast_slice(starts));
                Some(Term {
                    weight: weight.abs(),
                    starts,
                })
            })
            .collect();
        (terms.len() <= MAX_TERMS).then(|| {
            Query::new(
                query,
                terms,
                self.can_guess() && self.guesses.hold(1, QUERIES_A_MISS),
                several_tasks,
            )
        })
    }

    /// Whether there may be a part of the rows that lets expect anything of the others.
    fn can_guess(&self) -> bool {
        self.k > 1 && self.postings.n_blocks() > 1
    }

    /// Runs `work` with a scratch whose table holds the query's weights.
    fn in_scratch<T>(
        &self,
        query: usize,
        work: impl FnOnce(&mut Scratch) -> Result<T>,
    ) -> Result<T> {
        let Queries::Codes(codes) = self.source.queries else {
            unreachable!("walk has refused dense queries")
        };
        let block_items = self.postings.block_items();
        let kept = KEPT.take().filter(|kept| {
            // another block size would read sums that a damaged file may have left
            kept.rest.block_items == block_items && kept.rest.table.is_for(&self.data.rows)
        });
        let mut scratch = match kept {
            Some(kept) => kept,
            None => Scratch::new(self.data, block_items)?,
        };
        let weights = scratch.rest.table.weights_mut();
        for (latent, weight) in sparse_weights(&codes, query, self.source.metric) {
            weights[latent as usize] = weight;
        }
        // on an error the scratch, whose sums may not be 0, is dropped
        let done = work(&mut scratch)?;
        let weights = scratch.rest.table.weights_mut();
        for &latent in codes.row(query).0 {
            weights[latent as usize] = 0.0;
        }
        if !self.data.rows.has_wide_latents() {
            KEPT.set(Some(scratch));
        }
        Ok(done)
    }

    /// The best k of the rows of positive score in a range of blocks.
    fn range<S: Sum>(
        &self,
        query: &Query<'_>,
        blocks: &Range<usize>,
        sums: &mut [S; SUMS],
        scratch: &mut Rest,
    ) -> Result<TopK> {
        let mut top = TopK::new(self.k);
        let mut lists = Vec::with_capacity(query.terms.len());
        (scratch.seen, scratch.due) = (0, 0);
        // all at once, so that they are waited for together
        for term in &query.terms {
            self.prefetch(term, blocks.start);
        }
        for block in blocks.clone() {
            self.control.check()?;
            let rows = self.rows_of(block);
            if self.selection.block_has_any(rows.clone()) {
                self.block(query, block, &mut lists, &mut top, sums, scratch);
            }
            scratch.seen += self.selection.count_about(rows);
            let is_much = scratch.held.len() > MOST_HELD.max(self.k.saturating_mul(2));
            if !query.has_guess() || is_much {
                self.settle(query, &mut top, scratch);
            } else if scratch.seen >= scratch.due {
                self.guess(query, scratch.seen, &mut top, scratch);
            }
        }
        self.settle(query, &mut top, scratch);
        Ok(top)
    }

    fn rows_of(&self, block: usize) -> Range<usize> {
        let items = self.postings.block_items();
        block * items..self.data.rows.len().min((block + 1) * items)
    }

    /// Adds up a block and takes note of the rows that are to be scored.
    fn block<S: Sum>(
        &self,
        query: &Query<'_>,
        block: usize,
        lists: &mut Vec<(f64, &'a [Chunk])>,
        top: &mut TopK,
        sums: &mut [S; SUMS],
        scratch: &mut Rest,
    ) {
        let Some(units) = self.lists_of::<S>(query, block, query.aim(top), lists) else {
            return;
        };
        for (weight, list) in lists {
            add_list(list, units.of(*weight), units.cap, sums);
        }
        // the place of what fills chunks
        let items = self.postings.block_items();
        sums[items] = S::default();
        // beyond the rows there is something in the sums of a damaged file only
        let mut added = Added {
            rows: self.rows_of(block),
            units,
            sums: &mut sums[..(items + 1).next_multiple_of(64).min(SUMS)],
        };
        if query.aim(top) == 0.0 {
            self.begin(query, &mut added, top, scratch);
        }
        let least = S::of(units.least(query.aim(top)));
        self.hold(query, &mut added, least, true, scratch);
    }

    /// Takes note of the rows whose sums are at least `least`; with `clear`, all sums are 0
    /// afterwards.
    fn hold<S: Sum>(
        &self,
        query: &Query<'_>,
        added: &mut Added<'_, S>,
        least: S,
        clear: bool,
        scratch: &mut Rest,
    ) {
        scratch.found.clear();
        let kernels = self.source.kernels;
        kernels.find_at_least(added.sums, least, clear, &mut scratch.found);
        for reached in &scratch.found {
            let row = added.rows.start + usize::from(reached.place);
            if row < added.rows.end && self.selection.admits(query.number, row as u64) {
                scratch.held.push(Held {
                    bound: added.units.bound(reached.sum),
                    row: row as u64,
                    is_scored: false,
                });
            }
        }
    }

    /// Asks for a term's list of a block, if there is one, as [`add_list`] does for those of the
    /// blocks that follow. The lists of terms lie far apart: without all this, waiting for them was
    /// half of a query's time (a million rows, 140 MB of postings).
    fn prefetch(&self, term: &Term<'_>, block: usize) {
        if let Some(&[start, end]) = term
            .starts
            .get(block..block + 2)
            .and_then(|s| s.first_chunk())
        {
            prefetch_far(bytemuck::cast_slice(self.postings.chunks(start, end)));
        }
    }

    /// The lists of a block that can add to a score; `None` where they cannot reach `aim`
    /// together.
    fn lists_of<S: Sum>(
        &self,
        query: &Query<'_>,
        block: usize,
        aim: f64,
        lists: &mut Vec<(f64, &'a [Chunk])>,
    ) -> Option<Units> {
        lists.clear();
        let (mut capped, mut squares, mut heaviest) = (0.0, 0.0, 0.0f64);
        let cap = if aim > 0.0 {
            (CAP * aim).min(NO_CAP)
        } else {
            NO_CAP
        };
        for term in &query.terms {
            let (start, end) = (term.starts[block], term.starts[block + 1]);
            let list = self.postings.chunks(start, end);
            if let Some(first) = list.first() {
                let most = term.weight * f64::from(bound_value(first[0]));
                capped += most.min(cap);
                squares += term.weight * term.weight;
                heaviest = heaviest.max(term.weight);
                lists.push((term.weight, list));
            }
        }
        // what a sum can be: all lists at their largest, or as Cauchy and Schwarz say
        // the sign, which no writer sets, is ignored, as that of a bound
        let norm = f64::from(self.postings.norm(block)).abs();
        let by_norm = squares.sqrt() * norm * ROUNDED;
        let reach = capped.min(by_norm);
        (!lists.is_empty() && reach >= aim * MARGIN)
            .then(|| Units::new(f64::from(S::MOST), reach, cap, lists.len(), heaviest))
    }

    /// Finds a first guess, or else a first threshold, in the sums of a block.
    fn begin<S: Sum>(
        &self,
        query: &Query<'_>,
        added: &mut Added<'_, S>,
        top: &mut TopK,
        scratch: &mut Rest,
    ) {
        let seen = scratch.seen + self.selection.count_about(added.rows.clone());
        if let Some(rank) = self.rank_of_guess(query, seen) {
            self.hold_largest(query, added, self.wanted(rank), scratch);
            self.guess(query, seen, top, scratch);
        }
        if query.aim(top) == 0.0 {
            self.hold_largest(query, added, self.k, scratch);
            self.settle(query, top, scratch);
        }
    }

    /// Raises the guess to what `seen` rows, of which the best are held or scored, let expect of
    /// the k-th best score of all; forgets the rows that don't reach it.
    fn guess(&self, query: &Query<'_>, seen: usize, top: &mut TopK, scratch: &mut Rest) {
        scratch.due = 2 * seen;
        let Some(rank) = self.rank_of_guess(query, seen) else {
            return;
        };
        self.score_best(self.wanted(rank), top, scratch);
        if let Some(score) = top.score_of(rank) {
            query.raise_guess(score);
            scratch.held.retain(|row| row.bound >= score);
        }
    }

    /// How many rows are scored for the `rank`-th best score of them all: bounds order rows
    /// otherwise than scores.
    fn wanted(&self, rank: usize) -> usize {
        self.k.min(rank + rank / 2 + 4)
    }

    /// The rank among the best of `seen` rows whose score the k-th best of all is expected to
    /// reach; `None` where there is nothing to guess.
    fn rank_of_guess(&self, query: &Query<'_>, seen: usize) -> Option<usize> {
        let all = self.selection.count(self.data.rows.len());
        let part = (seen > 0).then(|| seen as f64 / all as f64);
        query.rank_of_guess(self.k, part?)
    }

    /// Takes note of the rows with the `wanted` largest sums and of some more, and takes them out
    /// of the sums.
    fn hold_largest<S: Sum>(
        &self,
        query: &Query<'_>,
        added: &mut Added<'_, S>,
        wanted: usize,
        scratch: &mut Rest,
    ) {
        let sums = &added.sums[..added.rows.len()];
        let kernels = self.source.kernels;
        let count = |sums: &[S], least: i32| kernels.count_at_least(sums, S::of(least));
        if count(sums, 1) < wanted {
            return;
        }
        // bisection for the largest sum that their share of these rows reach among the first ones
        let few = &sums[..sums.len().min(ROWS_A_SAMPLE)];
        let share = (wanted * few.len()).div_ceil(sums.len()) + 1;
        let (mut least, mut above) = (1, S::MOST as i32);
        while least < above {
            let middle = least + (above - least + 1) / 2;
            if count(few, middle) >= share {
                least = middle;
            } else {
                above = middle - 1;
            }
        }
        // and down from there until as many of all rows reach it
        while count(sums, least) < wanted {
            least = (least * 7 / 8).max(1);
        }
        self.hold(query, added, S::of(least), false, scratch);
        for reached in &scratch.found {
            added.sums[usize::from(reached.place)] = S::default();
        }
    }

    /// Scores the rows held, those of the largest bounds first: mostly they are the best, and
    /// what they reach leaves most others out.
    fn settle(&self, query: &Query<'_>, top: &mut TopK, scratch: &mut Rest) {
        let mut step = self.k;
        while !scratch.held.is_empty() {
            self.score_best(step, top, scratch);
            top.tighten();
            query.raise(top);
            let reached = query.threshold(top);
            scratch
                .held
                .retain(|row| !row.is_scored && row.bound >= reached);
            step = (self.k / 2).max(ROWS_A_STEP);
        }
    }

    /// Scores the `n` rows of the largest bounds that are held, or all, and takes those whose
    /// score is positive.
    fn score_best(&self, n: usize, top: &mut TopK, scratch: &mut Rest) {
        let Rest {
            held, rows, table, ..
        } = scratch;
        if n < held.len() && n > 0 {
            held.select_nth_unstable_by(n - 1, |a, b| b.bound.total_cmp(&a.bound));
        }
        rows.clear();
        let best = held.iter_mut().take(n).filter(|row| !row.is_scored);
        rows.extend(best.map(|row| {
            row.is_scored = true;
            row.row
        }));
        let kernels = self.source.kernels;
        self.data.score_each(kernels, table, rows, |row, score| {
            if score > 0.0 {
                top.push(score, row);
            }
        });
    }

    /// Fills `top` up to k rows, of which it holds all of positive score if `found_positive`.
    fn fill_up(
        &self,
        query: usize,
        mut top: TopK,
        found_positive: bool,
        table: &WeightTable,
    ) -> Result<TopK> {
        let n = self.data.rows.len();
        let mut missing = self.k - top.len();
        let mut scores = [0.0; ROWS_A_SCAN];
        for start in (0..n).step_by(ROWS_A_SCAN) {
            self.control.check()?;
            let rows = start..n.min(start + ROWS_A_SCAN);
            if !self.selection.block_has_any(rows.clone()) {
                continue;
            }
            let scores = &mut scores[..rows.len()];
            let kernels = self.source.kernels;
            kernels.score_rows(&self.data.rows, rows.clone(), table, scores);
            self.data.scales.apply(rows.clone(), scores);
            for (&score, row) in scores.iter().zip(rows) {
                let is_known = found_positive && score > 0.0;
                if is_known || !self.selection.admits(query, row as u64) {
                    continue;
                }
                top.push(score, row as u64);
                if found_positive && score == 0.0 {
                    missing -= 1;
                    if missing == 0 {
                        // what follows scores no more and stands at higher positions
                        return Ok(top);
                    }
                }
            }
        }
        Ok(top)
    }
}
