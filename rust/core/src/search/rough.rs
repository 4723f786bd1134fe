//! Exact search for one query: rough scores of all rows in 16-bit integers, then scores in double
//! precision of the few rows that may be among the best.
//!
//! What the integer pass of [`super::batch`] is for many queries, this is for one. The result is
//! that of [`super::scan()`], bit for bit.
//!
//! # The bound
//!
//! It is that of [`super::integer`] with other units. With `v_r = g (l_r + a_r)` and
//! `u_r = h (w_r + b_r)`, both integers rounded to nearest, `|b_r| <= 1/2`, and
//!
//! `score / (g h S) = sum l_r w_r + sum a_r w_r + sum (v_r / g) b_r`,
//!
//! so it is at most `E = sum A_r W_r + 1/2 sum V_r / g` away from the integer sum: `A_r` is the
//! largest `|a_r|` of rank `r` in any row, in descending order, `W_r` the r-th largest `|w|` of all
//! latents (the latents of a row differ), and `V_r` the largest level of rank `r`. `E` is one
//! number for all rows, and it is small because integers of 16 bits are fine: `g` and `h` are
//! chosen so that no sum exceeds 2^30.
//!
//! `fl(fl(I + E) S)` is compared with the threshold over `g h`, rounded down. Roundings of single
//! precision change it by a factor within `1 +- 2^-22`, for which `E` has a slack of `2^-21` of the
//! largest sum. Rows are scored in double precision where a scale is not sound.

use std::ops::Range;

use super::candidates::{rounded_down, SharedThreshold};
use super::integer::largest_of;
use super::scan::{row_ranges, scan, Scales, ScanRows};
use super::weights::{keep_table, table_for};
use super::{Hit, Selection, TopK, WeightSource};
use crate::codes::{RankedLayout, RowCoding};
use crate::control::Control;
use crate::kernels::{Isa, Kernels, RoughQuery, RoughScales, WeightTable, ROUGH_ROWS};
use crate::threads::try_map;
use crate::Result;

/// Rows whose rough scores are held at a time.
const ROWS_A_LOOK: usize = 16 * ROUGH_ROWS;
/// The largest integer sum, and what levels of a row add up to at most: both integers then have
/// 13 to 15 bits.
const LARGEST_SUM: f64 = (1u32 << 30) as f64;
const LARGEST_LEVELS: f64 = (1u32 << 17) as f64;
/// The largest weight and the largest level.
const MOST: f64 = i16::MAX as f64;
/// Units that do not under- or overflow.
const SOUND_UNITS: Range<f64> = 1e-200..1e200;

/// True where this is faster than scoring every row, as was measured: rank-coded rows, with AVX-512
/// or AVX2 or, where fields are words, without either.
pub fn pays(data: &ScanRows<'_>, kernels: Kernels) -> bool {
    let RowCoding::Ranked(layout) = data.rows.coding() else {
        return false;
    };
    let is_faster = match kernels.isa() {
        Isa::Avx512 | Isa::Avx2 => true,
        Isa::Scalar => layout.is_words(),
    };
    is_faster && RoughQuery::can_read(layout)
}

/// Levels as integers.
#[derive(Debug)]
pub(super) struct RoughRows<'a> {
    layout: &'a RankedLayout,
    /// In the order of the layout's signed levels.
    levels: Vec<i16>,
    /// `g`.
    unit: f64,
    /// The largest |a_r| of every rank, descending.
    roundings: Vec<f64>,
    /// `sum V_r / g`.
    most: f64,
}

impl<'a> RoughRows<'a> {
    /// `None` where the kernel cannot read the rows, or levels are all 0.
    pub fn new(data: &ScanRows<'a>) -> Option<Self> {
        let RowCoding::Ranked(layout) = data.rows.coding() else {
            return None;
        };
        if !RoughQuery::can_read(layout) {
            return None;
        }
        let largest = f64::from(largest_of(layout.levels()));
        let sum: f64 = (0..layout.width())
            .map(|rank| f64::from(largest_of(&layout.levels()[layout.levels_of(rank)])))
            .sum();
        let unit = (sum / LARGEST_LEVELS).max(largest / MOST);
        if !SOUND_UNITS.contains(&unit) {
            return None;
        }
        let signed = layout.signed_levels();
        let levels: Vec<i16> = signed
            .iter()
            .map(|level| (level / unit).round_ties_even() as i16)
            .collect();
        let bases = layout.groups()[3];
        let mut roundings: Vec<f64> = (0..layout.width())
            .map(|rank| {
                let base = bases[rank] as usize;
                let of_rank = base..base + 2 * layout.levels_of(rank).len();
                of_rank.fold(0.0f64, |rounding, i| {
                    rounding.max((signed[i] / unit - f64::from(levels[i])).abs())
                })
            })
            .collect();
        roundings.sort_unstable_by(|a, b| b.total_cmp(a));
        Some(Self {
            layout,
            levels,
            unit,
            roundings,
            most: sum / unit,
        })
    }

    /// A query with these weights, whose sums order rows as their scores do but for rounding; `None`
    /// where all weights are 0 or units are not sound.
    pub fn coarse(&self, weights: &[f64]) -> Option<RoughQuery<'a>> {
        let (rounded, _) = self.rounded(weights)?;
        Some(RoughQuery::new(self.layout, &rounded, &self.levels))
    }

    /// Weights as integers, and their unit `h`; `None` where all are 0 or units are not sound.
    fn rounded(&self, weights: &[f64]) -> Option<(Vec<i16>, f64)> {
        let largest = weights
            .iter()
            .fold(0.0f64, |largest, weight| largest.max(weight.abs()));
        let most = (LARGEST_SUM / (self.most + self.layout.width() as f64))
            .floor()
            .min(MOST);
        let unit = largest / most;
        if !SOUND_UNITS.contains(&unit) || !SOUND_UNITS.contains(&(unit * self.unit)) {
            return None;
        }
        // `round_ties_even` is a call a number where the compiler may not use SSE 4.1. A number below
        // 2^51 added to this loses all but its integer, which is then in the lowest bits.
        const ROUNDING: f64 = 1.5 * (1u64 << 52) as f64;
        let rounded = weights
            .iter()
            .map(|weight| (weight / unit + ROUNDING).to_bits() as i16)
            .collect();
        Some((rounded, unit))
    }

    /// A query with these weights, its `E` and its `g h`; `None` where all weights are 0 or units
    /// are not sound.
    fn query(&self, weights: &[f64]) -> Option<(RoughQuery<'a>, f32, f64)> {
        let (rounded, unit) = self.rounded(weights)?;
        let mut magnitudes: Vec<u16> = rounded.iter().map(|w| w.unsigned_abs()).collect();
        let ranks = self.roundings.len().min(magnitudes.len());
        if ranks < magnitudes.len() {
            magnitudes.select_nth_unstable_by(ranks, |a, b| b.cmp(a));
            magnitudes.truncate(ranks);
        }
        magnitudes.sort_unstable_by(|a, b| b.cmp(a));
        let of_levels: f64 = self
            .roundings
            .iter()
            .zip(&magnitudes)
            .map(|(rounding, &w)| rounding * f64::from(w))
            .sum();
        // quotients are off by 2^-52 of at most MOST: far below what the slack leaves
        let slack = 2.0 + LARGEST_SUM * f64::powi(2.0, -20);
        let error = (of_levels + 0.5 * self.most + slack).ceil();
        let query = RoughQuery::new(self.layout, &rounded, &self.levels);
        Some((query, error as f32, unit * self.unit))
    }
}

/// As [`super::scan()`]; one query after the other.
///
/// # Errors
/// As [`super::scan()`].
pub fn search(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let Some(rows) = RoughRows::new(data) else {
        return scan(data, source, k, selection, control);
    };
    let n_queries = source.queries.len();
    selection.check(data.rows.len(), n_queries)?;
    let k = k.min(selection.count(data.rows.len()));
    let mut tables = [table_for(&data.rows)?];
    let mut found = Vec::with_capacity(n_queries);
    for query in 0..n_queries {
        source.fill(&mut tables, query, control)?;
        let [table] = &tables;
        let one = OneQuery {
            data,
            layout: rows.layout,
            kernels: source.kernels,
            rough: rows.query(table.weights()),
            table,
            k,
            selection,
            query,
            threshold: SharedThreshold::new(),
        };
        found.push(one.run(control)?);
        control.advance(1);
    }
    let [table] = tables;
    keep_table(table, &data.rows);
    Ok(found)
}

struct OneQuery<'a> {
    data: &'a ScanRows<'a>,
    layout: &'a RankedLayout,
    kernels: Kernels,
    /// The query in integers, `E` and `g h`; `None` where every row is scored.
    rough: Option<(RoughQuery<'a>, f32, f64)>,
    table: &'a WeightTable,
    k: usize,
    selection: Selection<'a>,
    query: usize,
    threshold: SharedThreshold,
}

impl OneQuery<'_> {
    fn run(&self, control: &Control) -> Result<Vec<Hit>> {
        let ranges = row_ranges(self.data.rows.len(), 1);
        let tops = try_map(ranges, |range| self.best_of(range, control))?;
        let mut best = TopK::new(self.k);
        tops.into_iter().for_each(|top| best.merge(top));
        Ok(best.into_sorted())
    }

    fn best_of(&self, range: Range<usize>, control: &Control) -> Result<TopK> {
        let mut top = TopK::new(self.k);
        let mut look = Look::new();
        for (number, start) in range.clone().step_by(ROWS_A_LOOK).enumerate() {
            if number % 16 == 0 {
                control.check()?;
            }
            let rows = start..range.end.min(start + ROWS_A_LOOK);
            if !self.selection.block_has_any(rows.clone()) {
                continue;
            }
            let threshold = top.threshold().max(f64::from(self.threshold.get()));
            match &self.rough {
                Some(rough)
                    if threshold > f64::NEG_INFINITY
                        && self.reach(rough, rows.clone(), threshold, &mut look) =>
                {
                    for &row in &look.reached {
                        let row = start + usize::from(row);
                        if self.selection.admits(self.query, row as u64) {
                            top.push(self.data.score(self.kernels, self.table, row), row as u64);
                        }
                    }
                }
                _ => self.score_all(rows, &mut look.scores, &mut top),
            }
            if top.len() >= self.k + (self.k / 8).max(8) {
                top.tighten();
            }
            self.threshold.raise(rounded_down(top.threshold()));
        }
        Ok(top)
    }

    /// Finds the rows whose score may reach a threshold; false where nothing is known of one.
    fn reach(
        &self,
        (query, error, unit): &(RoughQuery<'_>, f32, f64),
        rows: Range<usize>,
        threshold: f64,
        look: &mut Look,
    ) -> bool {
        let scales = match self.data.scales {
            Scales::One => RoughScales::One,
            Scales::Float32(scales) => RoughScales::Single(&scales[rows.clone()]),
            Scales::Float16(scales, _) => RoughScales::Half(&scales[rows.clone()]),
        };
        let of_scales = self.data.scales.unit();
        let least = rounded_down(threshold / (unit * of_scales));
        let sums = &mut look.sums[..rows.len()];
        let bytes = self.data.rows.ranked_rows(self.layout, rows);
        self.kernels.rough_sums(query, bytes, sums);
        look.reached.clear();
        SOUND_UNITS.contains(&of_scales)
            && self
                .kernels
                .rough_reached(sums, scales, *error, least, &mut look.reached)
    }

    fn score_all(&self, rows: Range<usize>, scores: &mut [f64], top: &mut TopK) {
        let scores = &mut scores[..rows.len()];
        self.kernels
            .score_rows(&self.data.rows, rows.clone(), self.table, scores);
        self.data.scales.apply(rows.clone(), scores);
        for (&score, row) in scores.iter().zip(rows.start as u64..) {
            if score >= top.threshold() && self.selection.admits(self.query, row) {
                top.push(score, row);
            }
        }
    }
}

/// What is known of the rows that are looked at.
struct Look {
    sums: [i32; ROWS_A_LOOK],
    scores: [f64; ROWS_A_LOOK],
    reached: Vec<u16>,
}

impl Look {
    fn new() -> Self {
        Self {
            sums: [0; ROWS_A_LOOK],
            scores: [0.0; ROWS_A_LOOK],
            reached: Vec::with_capacity(ROWS_A_LOOK),
        }
    }
}
