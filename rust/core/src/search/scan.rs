//! Exact search by a full scan: every row is scored for every query, in blocks of rows that
//! stay in the cache while a group of queries passes over them.
//!
//! How the work is cut into tasks depends on the machine and the number of threads; what comes
//! out does not, because scores are defined row by row and [`TopK`] keeps a set.

use std::ops::Range;

use half::f16;

use super::weights::{keep_table, table_for};
use super::{Hit, Queries, Selection, TopK, WeightSource};
use crate::codes::RowsView;
use crate::control::Control;
use crate::kernels::{prefetch, Kernels, WeightTable};
use crate::threads::{self, try_map};
use crate::{Error, Result};

/// Rows of a block: at 32 nonzeros of 6 bytes 100 KB, which a second-level cache holds.
const ROWS_A_BLOCK: usize = 512;
/// Queries that pass over a block in turn: 8 tables of 4,096 weights are 256 KB.
const QUERIES_A_GROUP: usize = 8;
/// Queries whose tables are held at once.
const QUERIES_A_WAVE: usize = 64;
/// Rows below which a task is not worth its overhead.
const LEAST_ROWS_A_TASK: usize = 4 * ROWS_A_BLOCK;
/// Rows between two allowed ones that are scored with them rather than stepped over.
const SPAN_GAP: usize = 8;
/// What the candidates of a wave may take, in bytes; fewer queries are in flight at a large k.
const WAVE_BYTES: usize = 256 << 20;

/// What the sums of rows are multiplied by.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// Nothing: every scale is 1.
    One,
    /// One number a row.
    Float32(&'a [f32]),
    /// One number a row, in units of the second.
    Float16(&'a [f16], f64),
}

impl Scales<'_> {
    /// How many there are, where they are not all 1.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::One => None,
            Self::Float32(scales) => Some(scales.len()),
            Self::Float16(scales, _) => Some(scales.len()),
        }
    }

    /// True where there are scales, and they are for no row.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The scale of a row.
    #[inline]
    pub fn get(&self, row: usize) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Float32(scales) => f64::from(scales[row]),
            Self::Float16(scales, unit) => f64::from(scales[row]) * unit,
        }
    }

    /// What the stored scales are multiples of.
    pub(super) fn unit(&self) -> f64 {
        match self {
            Self::One | Self::Float32(_) => 1.0,
            Self::Float16(_, unit) => *unit,
        }
    }

    /// Asks the memory for the scale of a row.
    fn prefetch(&self, row: usize) {
        match self {
            Self::One => {}
            Self::Float32(scales) => prefetch(bytemuck::bytes_of(&scales[row])),
            Self::Float16(scales, _) => prefetch(bytemuck::bytes_of(&scales[row])),
        }
    }

    /// Multiplies the sums of these rows by their scales.
    pub(super) fn apply(&self, rows: Range<usize>, sums: &mut [f64]) {
        match self {
            Self::One => {}
            _ => {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum *= self.get(row);
                }
            }
        }
    }
}

/// What is scanned: rows, and what each row's sum is multiplied by (1 where there is none).
#[derive(Debug, Clone, Copy)]
pub struct ScanRows<'a> {
    /// The packed rows.
    pub rows: RowsView<'a>,
    /// One scale a row.
    pub scales: Scales<'a>,
}

/// Rows asked for ahead of the one that is scored or copied, where they may stand anywhere.
pub(in crate::search) const ROWS_AHEAD: usize = 8;

impl ScanRows<'_> {
    /// The score of one row, by the weights of a table.
    #[inline]
    pub(super) fn score(&self, kernels: Kernels, table: &WeightTable, row: usize) -> f64 {
        let mut sum = [0.0];
        kernels.score_rows(&self.rows, row..row + 1, table, &mut sum);
        sum[0] * self.scales.get(row)
    }

    /// Asks the memory for a row and its scale.
    #[inline]
    pub(in crate::search) fn prefetch(&self, row: usize) {
        prefetch(self.rows.row_bytes(row));
        self.scales.prefetch(row);
    }

    /// Calls `each` with rows that may stand anywhere, and their scores.
    pub(super) fn score_each<P: Copy + Into<u64>>(
        &self,
        kernels: Kernels,
        table: &WeightTable,
        positions: &[P],
        mut each: impl FnMut(u64, f64),
    ) {
        for &first in positions.iter().take(ROWS_AHEAD) {
            self.prefetch(first.into() as usize);
        }
        for (i, &position) in positions.iter().enumerate() {
            if let Some(&ahead) = positions.get(i + ROWS_AHEAD) {
                self.prefetch(ahead.into() as usize);
            }
            let position = position.into();
            each(position, self.score(kernels, table, position as usize));
        }
    }
}

/// The best `k` rows of each query among those that the selection admits, or all of them where
/// they are fewer; best first, ties by lower position.
///
/// Runs on the current rayon pool, or [`alone`](crate::threads::alone).
///
/// # Errors
/// [`Error::Argument`] for `k = 0` or where queries, mode and selection do not fit, with
/// [`Error::OutOfMemory`] and [`Error::Interrupted`].
///
/// # Panics
/// Where `scales` has not one number a row, or a query's code has another dim than the rows.
pub fn scan(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let queries = source.queries;
    if k == 0 {
        return Err(Error::argument("k is 0; expected at least 1"));
    }
    assert!(data.scales.len().is_none_or(|n| n == data.rows.len()));
    if let Queries::Codes(codes) = queries {
        assert_eq!(codes.dim(), data.rows.dim());
    }
    selection.check(data.rows.len(), queries.len())?;
    let k = k.min(selection.count(data.rows.len()));
    let mut found: Vec<Vec<Hit>> = Vec::new();
    reserve(&mut found, queries.len())?;

    let ranges = row_ranges(data.rows.len(), queries.len());
    let hit_bytes = (2 * k).saturating_mul(ranges.len()).max(1) * size_of::<Hit>();
    let wave = (WAVE_BYTES / hit_bytes)
        .clamp(1, QUERIES_A_WAVE)
        .min(queries.len().max(1));
    let mut tables = vec![table_for(&data.rows)?];
    for _ in 1..wave {
        tables.push(WeightTable::zeros(&data.rows)?);
    }

    for first in (0..queries.len()).step_by(wave) {
        let tables = &mut tables[..wave.min(queries.len() - first)];
        source.fill(tables, first, control)?;
        let tasks: Vec<_> = tables
            .chunks(QUERIES_A_GROUP)
            .zip((first..).step_by(QUERIES_A_GROUP))
            .flat_map(|group| ranges.iter().map(move |range| (group, range.clone())))
            .collect();
        let tops = try_map(tasks, |((tables, first), range)| {
            let admitted = Admitted { selection, first };
            scan_range(data, tables, range, k, admitted, source.kernels, control)
        })?;
        // each group of queries has one task a range, in the order of the ranges
        let mut merged = vec![TopK::new(k); tables.len()];
        for (task, group) in tops.into_iter().enumerate() {
            let first = task / ranges.len() * QUERIES_A_GROUP;
            for (top, all) in group.into_iter().zip(&mut merged[first..]) {
                all.merge(top);
            }
        }
        found.extend(try_map(merged, |top| Ok(top.into_sorted()))?);
        control.advance(tables.len() as u64);
    }
    keep_table(tables.swap_remove(0), &data.rows);
    Ok(found)
}

fn reserve<T>(vector: &mut Vec<T>, n: usize) -> Result<()> {
    vector.try_reserve_exact(n).map_err(|_| Error::OutOfMemory {
        what: "search results",
        bytes: n.saturating_mul(size_of::<T>()),
    })
}

/// Ranges of rows for tasks: enough of them that every thread has some, whatever the number of
/// queries, and at least one.
pub(super) fn row_ranges(n: usize, n_queries: usize) -> Vec<Range<usize>> {
    let threads = threads::width();
    let groups = n_queries.div_ceil(QUERIES_A_GROUP).max(1);
    let wanted = if threads == 1 {
        1
    } else {
        (4 * threads).div_ceil(groups)
    };
    let size = n
        .div_ceil(wanted)
        .max(LEAST_ROWS_A_TASK)
        .next_multiple_of(ROWS_A_BLOCK);
    let mut ranges: Vec<_> = (0..n)
        .step_by(size)
        .map(|start| start..n.min(start + size))
        .collect();
    if ranges.is_empty() {
        ranges.push(0..0);
    }
    ranges
}

/// What a group of queries may return; `first` is the group's first query.
#[derive(Clone, Copy)]
struct Admitted<'a> {
    selection: Selection<'a>,
    first: usize,
}

/// The best k of a range of rows for each query of a group.
fn scan_range(
    data: &ScanRows<'_>,
    tables: &[WeightTable],
    range: Range<usize>,
    k: usize,
    admitted: Admitted<'_>,
    kernels: Kernels,
    control: &Control,
) -> Result<Vec<TopK>> {
    let mut tops: Vec<TopK> = tables.iter().map(|_| TopK::new(k)).collect();
    let mut scores = [0.0f64; ROWS_A_BLOCK];
    let mut spans = Vec::new();
    for start in range.clone().step_by(ROWS_A_BLOCK) {
        control.check()?;
        let block = start..range.end.min(start + ROWS_A_BLOCK);
        spans.clear();
        admitted.selection.spans(block, SPAN_GAP, &mut spans);
        for ((table, top), query) in tables.iter().zip(&mut tops).zip(admitted.first..) {
            for span in &spans {
                let scores = &mut scores[..span.len()];
                kernels.score_rows(&data.rows, span.clone(), table, scores);
                data.scales.apply(span.clone(), scores);
                for (score, position) in scores.iter().zip(span.start as u64..) {
                    if *score >= top.threshold() && admitted.selection.admits(query, position) {
                        top.push(*score, position);
                    }
                }
            }
        }
    }
    Ok(tops)
}
