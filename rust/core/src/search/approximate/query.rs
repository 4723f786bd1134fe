//! An approximate search of a query: route, sketch, rescore.

use std::cmp::Ordering;

use rayon::prelude::*;

use super::sketch::Table;
use super::{Approximate, Clusters, CoarseAtoms};
use crate::control::Control;
use crate::kernels::clusters::{SKETCH_BYTES, SKETCH_ROWS};
use crate::kernels::{prefetch, RoughQuery, WeightTable, ROUGH_ROWS};
use crate::search::latents::LatentSet;
use crate::search::rough::RoughRows;
use crate::search::scan::ROWS_AHEAD;
use crate::search::{Hit, ScanRows, Selection, TopK, WeightSource};
use crate::{Error, Result};

/// Cache lines of the next cluster's sketches that are asked for while this one is looked at;
/// those that follow are found by the CPU itself.
const LINES_AHEAD: usize = 16;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Rows that are copied together to be scored.
const ROWS_A_COPY: usize = 32 * ROUGH_ROWS;

/// How much a sketch counts beside the centroid. Quantising shortens what a row has beyond its
/// centroid; for a query of no relation the mean error is 0 at 1, but of the rows that matter,
/// which lie in the query's direction, it takes too much. 1.3 keeps .982 of the exact top 100 where
/// 1 keeps .973 (a million rows, 256 clusters, 800 rescored); 1.1 to 1.5 differ by .005.
const SKETCH_GAIN: f64 = 1.3;

/// The best k rows of each query among those that the setting lets it find; always k of them,
/// or all that the selection admits, where they are fewer. Runs on the current rayon pool, one
/// query a task; a single query on the calling thread, in a pool or not.
///
/// Where rows are left out by a selection, clusters are visited until as many admitted rows were
/// seen as shall be rescored, so that a strict filter does not cost recall.
///
/// # Errors
/// As [`crate::search::scan()`].
pub fn search(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    (clusters, coarse): (Clusters<'_>, &CoarseAtoms),
    setting: Approximate,
    k: usize,
    selection: Selection<'_>,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    setting.check()?;
    selection.check(data.rows.len(), source.queries.len())?;
    // what a selection may leave at most; exclusions are counted as they are met
    let k = k.min(selection.count(data.rows.len()));
    let asked = Asked {
        data,
        source,
        clusters: &clusters,
        coarse,
        rough: RoughRows::new(data),
        setting,
        k,
        selection,
    };
    let answer = |scratch: &mut Option<Scratch>, query| {
        control.check()?;
        let scratch = match scratch {
            Some(scratch) => scratch,
            None => scratch.insert(Scratch::new(data)?),
        };
        let hits = asked.search(query, scratch)?;
        control.advance(1);
        Ok(hits)
    };
    match source.queries.len() {
        // on this thread: handing it to another costs as much as the search
        1 => Ok(vec![answer(&mut None, 0)?]),
        n => (0..n).into_par_iter().map_init(|| None, answer).collect(),
    }
}

/// What one thread works with.
struct Scratch {
    table: WeightTable,
    /// Which latents the rows to score hold, and their list.
    known: LatentSet,
    wanted: Vec<u32>,
    levels: Vec<i16>,
    routes: Vec<i32>,
    order: Vec<(f32, u32)>,
    /// The bytes of some rows to score, and their sums.
    bytes: Vec<u8>,
    sums: Vec<i32>,
    sketch: Table,
    candidates: Candidates,
}

impl Scratch {
    fn new(data: &ScanRows<'_>) -> Result<Self> {
        Ok(Self {
            table: WeightTable::zeros(&data.rows)?,
            known: LatentSet::new(data.rows.dim()),
            wanted: Vec::new(),
            levels: Vec::new(),
            routes: Vec::new(),
            order: Vec::new(),
            bytes: Vec::new(),
            sums: Vec::new(),
            sketch: Table::default(),
            candidates: Candidates::default(),
        })
    }
}

/// All but the queries.
struct Asked<'a> {
    data: &'a ScanRows<'a>,
    source: &'a WeightSource<'a>,
    clusters: &'a Clusters<'a>,
    coarse: &'a CoarseAtoms,
    /// Where rows can be scored by 16-bit weights.
    rough: Option<RoughRows<'a>>,
    setting: Approximate,
    k: usize,
    selection: Selection<'a>,
}

impl Asked<'_> {
    fn search(&self, query: usize, scratch: &mut Scratch) -> Result<Vec<Hit>> {
        if self.k == 0 {
            return Ok(Vec::new());
        }
        let embedding = self
            .source
            .embeddings(query..query + 1)?
            .ok_or_else(|| Error::argument("approximate search compares embeddings, not codes"))?;
        let embedding = &embedding[..];
        let unit = self.route(embedding, scratch);
        scratch
            .sketch
            .fill(embedding, self.clusters.book, self.clusters.subspaces);
        scratch.candidates.begin(self.setting.rerank.max(self.k));
        self.visit(query, unit, scratch);
        self.rescore(embedding, unit, scratch)
    }

    /// Compares the query with all centroids and puts the nearest first. Returns the unit of the
    /// query's levels.
    fn route(&self, embedding: &[f64], scratch: &mut Scratch) -> f64 {
        let largest = embedding.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        // sums of d products of 127 and a level stay below 2^31
        let most = (i32::MAX as usize / (127 * embedding.len())).min(i16::MAX as usize) as f64;
        let unit = if largest > 0.0 { largest / most } else { 1.0 };
        scratch.levels.clear();
        let levels = embedding.iter().map(|x| (x / unit).round() as i16);
        scratch.levels.extend(levels);
        scratch.routes.clear();
        scratch.routes.resize(self.clusters.len(), 0);
        let kernels = self.source.kernels;
        kernels.route(
            self.clusters.centroids,
            &scratch.levels,
            &mut scratch.routes,
        );
        scratch.order.clear();
        let order = scratch.routes.iter().zip(self.clusters.scales).zip(0..);
        let order = order.map(|((&route, scale), cluster)| (route as f32 * scale[0], cluster));
        scratch.order.extend(order);
        let first = self.setting.clusters.min(scratch.order.len());
        if first < scratch.order.len() {
            scratch.order.select_nth_unstable_by(first, nearer);
        }
        scratch.order[..first].sort_unstable_by(nearer);
        unit
    }

    /// Rows that have to be seen, however few clusters are asked for.
    fn least_rows(&self) -> usize {
        if self.selection.is_all() {
            self.k
        } else {
            self.k.max(self.setting.rerank)
        }
    }

    /// Looks at the sketches of the nearest clusters.
    fn visit(&self, query: usize, unit: f64, scratch: &mut Scratch) {
        let least = self.least_rows();
        let mut seen = 0;
        for visited in 0..scratch.order.len() {
            if visited >= self.setting.clusters && seen >= least {
                break;
            }
            if visited == self.setting.clusters {
                scratch.order[visited..].sort_unstable_by(nearer);
            }
            if let Some(&(_, ahead)) = scratch.order.get(visited + 1) {
                self.prefetch_cluster(ahead as usize);
            }
            let cluster = scratch.order[visited].1 as usize;
            seen += self.visit_cluster(query, cluster, unit, scratch);
        }
    }

    /// Asks for the first sketches of a cluster and the list of its rows.
    fn prefetch_cluster(&self, cluster: usize) {
        let range = self.clusters.range(cluster);
        let block_bytes = self.clusters.subspaces * SKETCH_BYTES;
        let first = range.start / SKETCH_ROWS * block_bytes;
        let sketches = &self.clusters.sketches[first..];
        let ahead = sketches.chunks(LINE_BYTES).take(LINES_AHEAD);
        ahead.for_each(prefetch);
        prefetch(bytemuck::cast_slice(&self.clusters.rows[range]));
    }

    /// Returns how many rows the selection admits; the best become candidates.
    fn visit_cluster(
        &self,
        query: usize,
        cluster: usize,
        unit: f64,
        scratch: &mut Scratch,
    ) -> usize {
        let clusters = self.clusters;
        let [centroid_unit, share] = clusters.scales[cluster].map(f64::from);
        let route = f64::from(scratch.routes[cluster]) * unit * centroid_unit * share;
        // `as` saturates; 2^30 leaves room for the sum
        let base =
            ((route / SKETCH_GAIN / scratch.sketch.unit).round() as i32).clamp(-(1 << 30), 1 << 30);
        let range = clusters.range(cluster);
        let table = &scratch.sketch;
        let is_all = self.selection.is_all();
        if is_all && base + table.max_sum < scratch.candidates.least {
            return range.len();
        }
        let mut seen = 0;
        let mut sums = [0u16; SKETCH_ROWS];
        let block_bytes = clusters.subspaces * SKETCH_BYTES;
        for block in range.start / SKETCH_ROWS..range.end.div_ceil(SKETCH_ROWS) {
            let first = block * SKETCH_ROWS;
            let mut mask = bits_from(range.start.saturating_sub(first))
                & !bits_from(range.end.saturating_sub(first));
            if !is_all {
                mask = self.admitted(query, first, mask);
            }
            seen += mask.count_ones() as usize;
            let least = scratch.candidates.least.saturating_sub(base);
            if mask == 0 || least > table.max_sum {
                continue;
            }
            let bytes = &clusters.sketches[block * block_bytes..][..block_bytes];
            mask &= self.source.kernels.sketch_sums(
                bytes,
                &table.bytes,
                least.max(0) as u16, // at most max_sum, which is below 2^16
                &mut sums,
            );
            while mask != 0 {
                let row = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let score = base + i32::from(sums[row]);
                scratch.candidates.push(score, clusters.rows[first + row]);
            }
        }
        seen
    }

    /// Those bits of `mask` whose rows the selection admits.
    fn admitted(&self, query: usize, first: usize, mask: u32) -> u32 {
        let rows = &self.clusters.rows[first..];
        rows.iter()
            .take(SKETCH_ROWS)
            .enumerate()
            .filter(|&(bit, &row)| {
                let row = row as usize;
                mask >> bit & 1 == 1
                    && row < self.data.rows.len()
                    && self.selection.admits(query, row as u64)
            })
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    /// Scores the best candidates as exact search does.
    fn rescore(&self, embedding: &[f64], unit: f64, scratch: &mut Scratch) -> Result<Vec<Hit>> {
        scratch.candidates.close(self.data.rows.len());
        // coarse scores are off by some thousandths of the query's norm: a few ranks
        let wanted = self.k + (self.k / 4).max(16);
        if scratch.candidates.rows.len() > 2 * wanted {
            self.keep_best_by_coarse_weights(wanted, unit, scratch);
        }
        for &row in &scratch.candidates.rows {
            scratch.known.add_row(&self.data.rows, row as usize);
        }
        scratch.wanted.clear();
        scratch.known.drain_into(&mut scratch.wanted);
        self.source
            .fill_latents(embedding, &scratch.wanted, &mut scratch.table)?;
        Ok(self.best(self.k, &scratch.candidates.rows, &scratch.table))
    }

    /// Leaves those candidates that score best with weights from 8-bit atoms: all weights of
    /// these cost a tenth of exact ones for the latents of a thousand rows.
    fn keep_best_by_coarse_weights(&self, wanted: usize, unit: f64, scratch: &mut Scratch) {
        let kernels = self.source.kernels;
        let atoms = self.coarse;
        scratch.routes.clear();
        scratch.routes.resize(atoms.units.len(), 0);
        kernels.route(&atoms.levels, &scratch.levels, &mut scratch.routes);
        let weights = scratch.table.weights_mut();
        for ((weight, &route), &atom_unit) in
            weights.iter_mut().zip(&scratch.routes).zip(&atoms.units)
        {
            *weight = f64::from(route) * unit * f64::from(atom_unit);
        }
        let query = self.rough.as_ref().and_then(|rows| rows.coarse(weights));
        let best = match query {
            Some(query) => self.best_by_rough_sums(wanted, &query, scratch),
            None => self.best(wanted, &scratch.candidates.rows, &scratch.table),
        };
        scratch.candidates.rows.clear();
        let rows = best.into_iter().map(|hit| hit.position as u32);
        scratch.candidates.rows.extend(rows);
    }

    /// The best of the candidates by their rough sums: a third of the time of scores in double
    /// precision. Rows are copied to where a kernel reads several at once.
    fn best_by_rough_sums(
        &self,
        wanted: usize,
        query: &RoughQuery<'_>,
        scratch: &mut Scratch,
    ) -> Vec<Hit> {
        let (data, rows) = (self.data, &scratch.candidates.rows);
        let mut top = TopK::new(wanted);
        for first in (0..rows.len()).step_by(ROWS_A_COPY) {
            let part = &rows[first..rows.len().min(first + ROWS_A_COPY)];
            scratch.bytes.clear();
            for (i, &row) in (first..).zip(part) {
                if let Some(&ahead) = rows.get(i + ROWS_AHEAD) {
                    data.prefetch(ahead as usize);
                }
                let bytes = data.rows.row_bytes(row as usize);
                scratch.bytes.extend_from_slice(bytes);
            }
            // rows of zeros fill the last block
            let padded = part.len().next_multiple_of(ROUGH_ROWS);
            scratch.bytes.resize(padded * query.row_bytes(), 0);
            scratch.sums.resize(padded, 0);
            let kernels = self.source.kernels;
            kernels.rough_sums(query, &scratch.bytes, &mut scratch.sums);
            for (&row, &sum) in part.iter().zip(&scratch.sums) {
                let score = f64::from(sum) * data.scales.get(row as usize);
                top.push(score, u64::from(row));
            }
        }
        top.into_sorted()
    }

    /// The best of some rows, with the weights of a table.
    fn best(&self, k: usize, rows: &[u32], table: &WeightTable) -> Vec<Hit> {
        let mut top = TopK::new(k);
        self.data
            .score_each(self.source.kernels, table, rows, |row, score| {
                top.push(score, row);
            });
        top.into_sorted()
    }
}

/// The order of clusters: the larger product first, then the lower number.
fn nearer(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// All bits from this one on.
fn bits_from(bit: usize) -> u32 {
    u32::MAX.checked_shl(bit as u32).unwrap_or(0)
}

/// The rows with the best sums so far, ties by lower position; cut back by selection, as
/// [`TopK`] is.
#[derive(Debug, Default)]
struct Candidates {
    wanted: usize,
    /// Score above position, both so that a larger key is a better candidate.
    keys: Vec<u64>,
    /// A lower score is not among the wanted.
    least: i32,
    rows: Vec<u32>,
}

impl Candidates {
    fn begin(&mut self, wanted: usize) {
        self.wanted = wanted;
        self.keys.clear();
        self.least = i32::MIN;
    }

    fn push(&mut self, score: i32, row: u32) {
        if score >= self.least {
            let rank = score.cast_unsigned() ^ 1 << 31;
            self.keys.push(u64::from(rank) << 32 | u64::from(!row));
            if self.keys.len() >= self.wanted.saturating_mul(2) {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.keys.len() > self.wanted {
            let (_, &mut worst, _) = self
                .keys
                .select_nth_unstable_by(self.wanted - 1, |a, b| b.cmp(a));
            self.least = ((worst >> 32) as u32 ^ 1 << 31).cast_signed();
            self.keys.truncate(self.wanted);
        }
    }

    /// Leaves the wanted in `rows`, by ascending position and each once, without those that do
    /// not exist.
    fn close(&mut self, n: usize) {
        self.cut();
        self.rows.clear();
        self.rows.extend(self.keys.iter().map(|&key| !(key as u32)));
        self.rows.sort_unstable();
        self.rows.dedup();
        self.rows
            .truncate(self.rows.partition_point(|&row| (row as usize) < n));
    }
}
