//! Exact search of complete rows, which have every latent: a block of them becomes a matrix of
//! single precision, is multiplied by the weights of all queries, and rows that may be among the
//! best are scored in double precision. The result is that of [`super::scan()`], bit for bit.
//!
//! Rows of hundreds of small values are what the integer pass of [`super::batch`] bounds badly: its
//! error grows with the sum of magnitudes. Here it is that of single precision.
//!
//! # The bound
//!
//! With levels `l_r` (exact in single precision), weights `u_r` and `h = max |u_r|`, what is
//! multiplied are `w_r`, `u_r / h` rounded: off by at most `2^-24 |u_r| / h`, or by `2^-150` where
//! that is subnormal. A sum of `s` products in any order, fused or not, is off by at most
//! `s 2^-24 / (1 - s 2^-24)` times `sum |l_r w_r|` (Higham, Accuracy and Stability, section 3.1),
//! beside `2^-149` for each product that underflows. With `s` at most 2^16 and the inequality of
//! Cauchy and Schwarz, the computed sum `C` and `sum l_r u_r / h` differ by at most
//!
//! `E = 1.02 (s + 4) 2^-24 L |w| + 2^-60 L`, `L^2 = sum (largest |l_r| of any row)^2`.
//!
//! The slack of 1.02 covers roundings of `E` itself and those of the score in double precision,
//! which are 2^29 times smaller; the last term covers what underflows, for `L` of at least 2^-50.
//! `scale h (C + E)`, rounded up, is then above the score, and `scale h (C - E)`, rounded down,
//! below it. Rows are looked through in single precision first, with `E + 2^-22 L |w|`: that is more
//! than the two roundings of `scale (C + E)` take away.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use super::candidates::{rounded_down, rounded_up, Candidate, Candidates, SharedThreshold};
use super::integer::largest_of;
use super::scan::{row_ranges, scan, Scales, ScanRows};
use super::{Hit, Selection, TopK, WeightSource};
use crate::codes::{RankedLayout, RowCoding};
use crate::control::Control;
use crate::gemm::rows_by_columns;
use crate::kernels::{decode_rank, WeightTable};
use crate::threads::try_map;
use crate::Result;

/// Queries that are multiplied at once.
const QUERIES_A_WAVE: usize = 64;
/// Fewer are multiplied one by one: a product of matrices works on eight and more.
const LEAST_QUERIES: usize = 4;
/// Numbers of a block of rows: 256 KB, which a second-level cache holds.
const BLOCK_NUMBERS: usize = 1 << 16;
/// Rows of a block at most.
const MOST_ROWS: usize = 256;
/// Rows that are decoded at a time: they stay in the first-level cache while rank after rank is read.
const ROWS_A_STRIP: usize = 32;
/// Numbers whose products neither overflow nor lose more than the bound allows for.
const SOUND: Range<f64> = 1e-100..1e100;
const SOUND_LEVELS: Range<f64> = 1e-15..1e15;
/// Above what is lost where a product of single precision becomes subnormal.
const VANISHING: f64 = 1e-30;
/// Rows whose products are compared at a time.
const ROWS_A_LOOK: usize = 16;

/// True where this is the way of exact search: rows are complete.
pub fn pays(data: &ScanRows<'_>) -> bool {
    matches!(data.rows.coding(), RowCoding::Ranked(layout) if layout.is_complete())
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
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let Some(decoder) = Decoder::new(data) else {
        return scan(data, source, k, selection, control);
    };
    let n_queries = source.queries.len();
    selection.check(data.rows.len(), n_queries)?;
    let k = k.min(selection.count(data.rows.len()));
    let mut tables = (0..QUERIES_A_WAVE.min(n_queries))
        .map(|_| WeightTable::zeros(&data.rows))
        .collect::<Result<Vec<_>>>()?;
    let mut found = Vec::with_capacity(n_queries);
    for first in (0..n_queries).step_by(QUERIES_A_WAVE) {
        let n = QUERIES_A_WAVE.min(n_queries - first);
        let tables = &mut tables[..n];
        source.fill(tables, first, control)?;
        let wave = Wave {
            data,
            source,
            decoder: &decoder,
            weights: Weights::new(tables, &decoder),
            tables,
            first,
            k,
            selection,
            thresholds: (0..n).map(|_| SharedThreshold::new()).collect(),
        };
        found.extend(wave.run(control)?);
        control.advance(n as u64);
    }
    Ok(found)
}

/// How rows become numbers of single precision.
struct Decoder<'a> {
    layout: &'a RankedLayout,
    /// In the order of the layout's signed levels.
    levels: Vec<f32>,
    /// `L`.
    norm: f64,
}

impl<'a> Decoder<'a> {
    /// `None` where rows are not complete, or levels or scales are out of the range that the bound
    /// is for.
    fn new(data: &ScanRows<'a>) -> Option<Self> {
        let RowCoding::Ranked(layout) = data.rows.coding() else {
            return None;
        };
        let largest =
            (0..layout.width()).map(|rank| largest_of(&layout.levels()[layout.levels_of(rank)]));
        let norm = largest
            .map(|level| f64::from(level).powi(2))
            .sum::<f64>()
            .sqrt();
        let is_sound = layout.is_complete()
            && SOUND_LEVELS.contains(&norm)
            && SOUND.contains(&data.scales.unit());
        is_sound.then(|| Self {
            layout,
            levels: layout.signed_levels().iter().map(|&l| l as f32).collect(),
            norm,
        })
    }
}

/// The weights of a wave, as they are multiplied.
struct Weights {
    /// `w`, a query's after the other's, each as long as a row.
    rows: Vec<f32>,
    /// Of each query; `None` where nothing is known of its scores.
    bounds: Vec<Option<Bound>>,
}

/// What is known of a query's products.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// `h`.
    unit: f64,
    /// `E`.
    error: f64,
    /// The same for comparisons in single precision.
    coarse: f32,
}

impl Weights {
    fn new(tables: &[WeightTable], decoder: &Decoder<'_>) -> Self {
        // rows that are read to a rank have fewer places than there are latents
        let width = decoder.layout.width();
        let mut rows = vec![0.0; tables.len() * width];
        let bounds = tables
            .iter()
            .zip(rows.chunks_exact_mut(width))
            .map(|(table, row)| {
                let weights = &table.weights()[..width];
                let unit = weights.iter().fold(0.0f64, |most, u| most.max(u.abs()));
                if !SOUND.contains(&unit) {
                    return None;
                }
                let mut squares = 0.0;
                for (w, u) in row.iter_mut().zip(weights) {
                    *w = (u / unit) as f32;
                    squares += f64::from(*w).powi(2);
                }
                let most = decoder.norm * squares.sqrt();
                let relative = 1.02 * (width as f64 + 4.0) * f64::powi(2.0, -24);
                let error = most * relative + decoder.norm * f64::powi(2.0, -60);
                Some(Bound {
                    unit,
                    error,
                    coarse: rounded_up(error + most * f64::powi(2.0, -22)),
                })
            })
            .collect();
        Self { rows, bounds }
    }
}

/// Queries in flight.
struct Wave<'a> {
    data: &'a ScanRows<'a>,
    source: &'a WeightSource<'a>,
    decoder: &'a Decoder<'a>,
    weights: Weights,
    tables: &'a [WeightTable],
    first: usize,
    k: usize,
    selection: Selection<'a>,
    thresholds: Vec<SharedThreshold>,
}

impl Wave<'_> {
    fn run(&self, control: &Control) -> Result<Vec<Vec<Hit>>> {
        let n = self.tables.len();
        let ranges = row_ranges(self.data.rows.len(), n);
        let passes = try_map(ranges, |range| self.pass(range, control))?;
        let mut candidates = vec![Candidates::new(self.k); n];
        for pass in passes {
            for (all, some) in candidates.iter_mut().zip(pass) {
                all.merge(some);
            }
        }
        let of_queries = candidates.into_iter().enumerate().collect();
        try_map(of_queries, |(query, candidates): (usize, Candidates)| {
            let is_known = self.weights.bounds[query].is_some();
            match candidates.settled().rows.filter(|_| is_known) {
                Some(rows) => Ok(self.best_of(query, &rows)),
                None => self.best_of_all(query, control),
            }
        })
    }

    /// Candidates of each query among a range of rows.
    fn pass(&self, range: Range<usize>, control: &Control) -> Result<Vec<Candidates>> {
        let layout = self.decoder.layout;
        let n = self.tables.len();
        let mut candidates = vec![Candidates::new(self.k); n];
        let a_block = (BLOCK_NUMBERS / layout.width()).clamp(1, MOST_ROWS);
        let mut decoded = vec![0.0f32; a_block * layout.width()];
        let mut products = vec![0.0f32; a_block * n];
        let mut scales = vec![1.0f32; a_block];
        for start in range.clone().step_by(a_block) {
            control.check()?;
            let rows = start..range.end.min(start + a_block);
            if !self.selection.block_has_any(rows.clone()) {
                continue;
            }
            let bytes = self.data.rows.ranked_rows(layout, rows.clone());
            let products = &mut products[..rows.len() * n];
            self.multiply(bytes, &mut decoded[..rows.len() * layout.width()], products);
            let scales = &mut scales[..rows.len()];
            match self.data.scales {
                Scales::One => {}
                Scales::Float32(all) => scales.copy_from_slice(&all[rows.clone()]),
                Scales::Float16(all, _) => all[rows.clone()].convert_to_f32_slice(scales),
            }
            for (query, candidates) in candidates.iter_mut().enumerate() {
                let products = &products[query * rows.len()..(query + 1) * rows.len()];
                self.take(query, rows.start, products, scales, candidates);
            }
        }
        Ok(candidates)
    }

    /// `products[q * m + i]` of query `q` and row `i` of `m`; `decoded` is room for the block.
    fn multiply(&self, bytes: &[u8], decoded: &mut [f32], products: &mut [f32]) {
        let Decoder { layout, levels, .. } = self.decoder;
        let (n, width) = (self.tables.len(), layout.width());
        let m = products.len() / n;
        for first in (0..m).step_by(ROWS_A_STRIP) {
            let strip = first..m.min(first + ROWS_A_STRIP);
            let bytes = &bytes[strip.start * layout.row_bytes()..strip.end * layout.row_bytes()];
            for rank in 0..width {
                let column = &mut decoded[rank * m..(rank + 1) * m][strip.clone()];
                decode_rank(layout, rank, levels, bytes, column);
            }
        }
        if n >= LEAST_QUERIES {
            return rows_by_columns(&self.weights.rows, decoded, width, products);
        }
        products.fill(0.0);
        let queries = self.weights.rows.chunks_exact(width);
        for (weights, products) in queries.zip(products.chunks_exact_mut(m)) {
            for (weight, column) in weights.iter().zip(decoded.chunks_exact(m)) {
                for (product, level) in products.iter_mut().zip(column) {
                    *product += level * weight;
                }
            }
        }
    }

    /// Takes the rows of a block, from row `first` on, that may be among the best of a query.
    fn take(
        &self,
        query: usize,
        first: usize,
        products: &[f32],
        scales: &[f32],
        candidates: &mut Candidates,
    ) {
        let Some(bound) = self.weights.bounds[query] else {
            return;
        };
        let shared = &self.thresholds[query];
        candidates.raise(shared.get());
        let of_scales = self.data.scales.unit();
        let least = f64::from(candidates.threshold()) / (bound.unit * of_scales);
        // below this a product may vanish
        let least = if least.abs() < VANISHING {
            -VANISHING as f32
        } else {
            rounded_down(least)
        };
        let reaches = |(&product, &scale): (&f32, &f32)| scale * (product + bound.coarse) >= least;
        let looks = products.chunks(ROWS_A_LOOK).zip(scales.chunks(ROWS_A_LOOK));
        for (look, (products, scales)) in looks.enumerate() {
            // without branches, for several rows at once
            let any = products.iter().zip(scales).map(reaches);
            if !any.fold(false, |any, reached| any | reached) {
                continue;
            }
            for (i, &product) in products.iter().enumerate() {
                if reaches((&product, &scales[i])) {
                    let row = first + look * ROWS_A_LOOK + i;
                    self.take_row(query, row, f64::from(product), bound, candidates);
                }
            }
        }
    }

    fn take_row(
        &self,
        query: usize,
        row: usize,
        product: f64,
        bound: Bound,
        candidates: &mut Candidates,
    ) {
        let factor = self.data.scales.get(row) * bound.unit;
        let candidate = Candidate {
            row: row as u64,
            upper: rounded_up(factor * (product + bound.error)),
            lower: rounded_down(factor * (product - bound.error)),
        };
        let may_be = candidate.upper >= candidates.threshold() && self.admits(query, row);
        if may_be && candidates.push(candidate) {
            self.thresholds[query].raise(candidates.threshold());
        }
    }

    fn admits(&self, query: usize, row: usize) -> bool {
        self.selection.admits(self.first + query, row as u64)
    }

    fn best_of(&self, query: usize, rows: &[u64]) -> Vec<Hit> {
        let mut top = TopK::new(self.k);
        let table = &self.tables[query];
        let kernels = self.source.kernels;
        self.data
            .score_each(kernels, table, rows, |row, score| top.push(score, row));
        top.into_sorted()
    }

    fn best_of_all(&self, query: usize, control: &Control) -> Result<Vec<Hit>> {
        let mut top = TopK::new(self.k);
        for row in 0..self.data.rows.len() {
            if row % MOST_ROWS == 0 {
                control.check()?;
            }
            if self.admits(query, row) {
                let score = self
                    .data
                    .score(self.source.kernels, &self.tables[query], row);
                top.push(score, row as u64);
            }
        }
        Ok(top.into_sorted())
    }
}
