//! Clusters are made: spherical k-means of the decoded rows, without decoding them.
//!
//! A row's inner product with a centroid `c` is a sum over its nonzeros, `sum_j value_j (W c)_j`,
//! so rows are compared with 32 centroids at a time through a tile of `W C^T`: 32 terms a
//! comparison instead of 384. A centroid moves to `W^T` of the sum of its members' codes.
//!
//! Deterministic under the seed: sums have one order on every CPU, and work is divided between
//! threads without changing any.

use rayon::prelude::*;

use super::coarse::quantise;
use super::{sketch, Clusters, MAX_SUBSPACES};
use crate::codes::RowsView;
use crate::control::Control;
use crate::kernels::clusters::{Vectors, COLUMNS, SKETCH_BYTES, SKETCH_LEVELS, SKETCH_ROWS};
use crate::kernels::Kernels;
use crate::search::{Atoms, Scales};
use crate::{Error, Result};

/// Clusters by default: this many times the square root of the number of rows. At 99% of the
/// exact top 100 of a million rows 4,096 clusters let 7% of the rows be looked at, 1,024 let 21%.
const CLUSTERS_A_ROOT: f64 = 4.0;
/// Rows that learn, for each cluster.
const SAMPLE_A_CLUSTER: usize = 48;
/// Rounds of Lloyd's algorithm: the mean cosine gains less than .002 in any later one.
const ROUNDS: usize = 6;
/// Rows that learn the codebooks of sketches: 1,024 for each of 16 levels.
const SKETCH_SAMPLE: usize = 1 << 14;
/// Rows that one task assigns.
const ROWS_A_TASK: usize = 1024;
/// What tiles may take together, in bytes; more clusters are assigned in several passes.
const TILES_BYTES: usize = 64 << 20;

/// How clusters are made.
#[derive(Debug, Clone, Copy)]
pub struct ClusterOptions {
    /// How many; by default 4 times the square root of the number of rows.
    pub clusters: Option<usize>,
    /// Where the random numbers start.
    pub seed: u64,
    /// The kernels to compute with; clusters do not depend on which.
    pub kernels: Kernels,
}

/// What is clustered.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    /// Rows.
    pub rows: RowsView<'a>,
    /// Their scales in embedding space.
    pub scales: Scales<'a>,
    /// The dictionary that decodes them.
    pub atoms: Atoms<'a>,
}

/// Clusters and sketches in memory, as [`super::ClusterParts`] borrows them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // see ClusterParts
pub struct Clustered {
    pub centroids: Vec<i8>,
    pub scales: Vec<[f32; 2]>,
    pub starts: Vec<u32>,
    pub rows: Vec<u32>,
    pub book: Vec<f32>,
    pub subspaces: usize,
    pub sketches: Vec<u8>,
}

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

impl Items<'_> {
    /// The nonzeros of a row with what they are worth; a latent without an atom, as only a
    /// damaged file holds, is left out.
    fn terms(&self, row: usize) -> impl Iterator<Item = (u32, f64)> + use<> {
        let (scale, n_atoms) = (self.scales.get(row), self.atoms.len());
        self.rows
            .pairs(row)
            .into_iter()
            .filter(move |&(latent, level)| (latent as usize) < n_atoms && level != 0.0)
            .map(move |(latent, level)| (latent, level * scale))
    }

    /// Clusters the rows and makes their sketches. Progress counts rows, each twice, and those
    /// that learn once a round. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] for no cluster, more clusters than rows, or more rows than 32 bits
    /// count; [`Error::Interrupted`].
    pub fn cluster(&self, options: &ClusterOptions, control: &Control) -> Result<Clustered> {
        let n = self.rows.len();
        check_rows(n)?;
        let wanted = options.clusters.unwrap_or_else(|| {
            let wanted = CLUSTERS_A_ROOT * (n as f64).sqrt();
            // 16 rows a cluster, so that routing does not cost more than it saves
            (wanted as usize).min(n / 16).max(1)
        });
        if wanted == 0 || wanted > n.max(1) {
            return Err(Error::argument(format!(
                "{wanted} clusters for {n} items; expected 1 to {n}"
            )));
        }
        let kernels = options.kernels;
        let mut random = Random::new(options.seed);
        let learnt = self.learn(wanted, &mut random, kernels, control)?;
        let all: Vec<u32> = (0..n as u32).collect();
        let best = self.assign(&all, &learnt, kernels, control)?;
        let (starts, rows) = grouped(&all, &best, wanted);
        let (centroids, units) = self.quantised(&learnt);
        let scales = with_shares(&units, &starts, &rows, &best);
        let shape = sketch::shape(self.atoms.d());
        debug_assert!(shape.0 <= MAX_SUBSPACES);
        let residuals = Residuals {
            items: self,
            centroids: &centroids,
            scales: &scales,
            owners: &best,
            padded: shape.0 * shape.1,
        };
        let sample: Vec<f32> = (0..n.min(SKETCH_SAMPLE))
            .into_par_iter()
            .flat_map_iter(|i| residuals.of(rows[i * n / n.min(SKETCH_SAMPLE)] as usize))
            .collect();
        let book = sketch::learn(&sample, shape, &mut random, kernels, control)?;
        let sketches = residuals.sketches(&rows, &book, shape, kernels, control)?;
        Ok(Clustered {
            centroids,
            scales,
            starts,
            rows,
            book,
            subspaces: shape.0,
            sketches,
        })
    }

    /// Puts the rows into clusters that other rows of the same dictionary have made, each into
    /// that of the nearest centroid, with sketches of the same codebooks: nothing is learnt.
    /// Progress counts rows, each twice. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] for more rows than 32 bits count, or clusters of another width;
    /// [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn join(
        &self,
        clusters: &Clusters<'_>,
        kernels: Kernels,
        control: &Control,
    ) -> Result<Clustered> {
        let (n, d) = (self.rows.len(), self.atoms.d());
        check_rows(n)?;
        if clusters.is_empty() || clusters.centroids.len() != clusters.len() * d {
            return Err(Error::argument(format!(
                "{} clusters do not hold centroids of width {d}",
                clusters.len()
            )));
        }
        let units: Vec<f32> = clusters.scales.iter().map(|scales| scales[0]).collect();
        let centroids: Vec<f32> = clusters
            .centroids
            .chunks_exact(d)
            .zip(&units)
            .flat_map(|(levels, &unit)| levels.iter().map(move |&c| unit * f32::from(c)))
            .collect();
        let all: Vec<u32> = (0..n as u32).collect();
        let best = self.assign(&all, &centroids, kernels, control)?;
        let (starts, rows) = grouped(&all, &best, clusters.len());
        let scales = with_shares(&units, &starts, &rows, &best);
        let width = clusters.book.len() / SKETCH_LEVELS / clusters.subspaces;
        let shape = (clusters.subspaces, width);
        let residuals = Residuals {
            items: self,
            centroids: clusters.centroids,
            scales: &scales,
            owners: &best,
            padded: shape.0 * shape.1,
        };
        let sketches = residuals.sketches(&rows, clusters.book, shape, kernels, control)?;
        Ok(Clustered {
            centroids: clusters.centroids.to_vec(),
            scales,
            starts,
            rows,
            book: clusters.book.to_vec(),
            subspaces: shape.0,
            sketches,
        })
    }

    /// Unit centroids, one after the other.
    fn learn(
        &self,
        wanted: usize,
        random: &mut Random,
        kernels: Kernels,
        control: &Control,
    ) -> Result<Vec<f32>> {
        let (n, d) = (self.rows.len(), self.atoms.d());
        let mut sample: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.min(wanted.saturating_mul(SAMPLE_A_CLUSTER)) {
            sample.swap(i, i + random.below(n - i));
        }
        sample.truncate(wanted.saturating_mul(SAMPLE_A_CLUSTER));
        let mut centroids = vec![0.0f32; wanted * d];
        for (centroid, &row) in centroids.chunks_exact_mut(d).zip(&sample) {
            self.unit_sum(&[row], centroid);
        }
        sample.sort_unstable();
        for _ in 0..ROUNDS {
            let best = self.assign(&sample, &centroids, kernels, control)?;
            let (starts, members) = grouped(&sample, &best, wanted);
            let is_alive: Vec<bool> = centroids
                .par_chunks_exact_mut(d)
                .zip(starts.par_windows(2))
                .map(|(centroid, range)| {
                    self.unit_sum(&members[range[0] as usize..range[1] as usize], centroid)
                })
                .collect();
            // a cluster without members starts again at a row
            for (centroid, is_alive) in centroids.chunks_exact_mut(d).zip(is_alive) {
                if !is_alive && !sample.is_empty() {
                    self.unit_sum(&[sample[random.below(sample.len())]], centroid);
                }
            }
        }
        Ok(centroids)
    }

    /// The sum of decoded rows at norm 1, through the sum of their codes. False where it is 0.
    fn unit_sum(&self, rows: &[u32], out: &mut [f32]) -> bool {
        let mut code = vec![0.0f64; self.atoms.len()];
        for &row in rows {
            for (latent, value) in self.terms(row as usize) {
                code[latent as usize] += value;
            }
        }
        let terms = (0u32..).zip(code).filter(|term| term.1 != 0.0);
        let mut sum = vec![0.0f64; out.len()];
        self.atoms.decode(terms, &mut sum);
        let norm = crate::kernels::norm(&sum);
        let is_usable = norm > 0.0 && norm.is_finite();
        for (out, x) in out.iter_mut().zip(sum) {
            *out = if is_usable { (x / norm) as f32 } else { 0.0 };
        }
        is_usable
    }

    /// For each row the nearest centroid, and the inner product with it.
    fn assign(
        &self,
        rows: &[u32],
        centroids: &[f32],
        kernels: Kernels,
        control: &Control,
    ) -> Result<Vec<(f32, u32)>> {
        let (s, d) = (self.atoms.len(), self.atoms.d());
        let tiles_at_once = (TILES_BYTES / (s * COLUMNS * size_of::<f32>())).max(1);
        let mut best = vec![(f32::NEG_INFINITY, 0u32); rows.len()];
        let mut first = 0u32;
        for centroids in centroids.chunks(tiles_at_once * COLUMNS * d) {
            let tiles: Vec<Vec<f32>> = centroids
                .par_chunks(COLUMNS * d)
                .map(|centroids| {
                    control.check()?;
                    Ok(self.tile(centroids, kernels))
                })
                .collect::<Result<_>>()?;
            best.par_chunks_mut(ROWS_A_TASK)
                .zip(rows.par_chunks(ROWS_A_TASK))
                .try_for_each_init(Vectors::default, |vectors, (best, rows)| {
                    vectors.clear();
                    for &row in rows {
                        let terms = self.terms(row as usize);
                        vectors.push(terms.map(|(latent, value)| (latent, value as f32)));
                    }
                    for (tile, first) in tiles.iter().zip((first..).step_by(COLUMNS)) {
                        control.check()?;
                        kernels.best_of_tile(vectors, tile, first, best);
                    }
                    Ok::<_, Error>(())
                })?;
            first += (centroids.len() / d) as u32;
        }
        control.advance(rows.len() as u64);
        Ok(best)
    }

    /// `W C^T` for up to 32 centroids; missing ones repeat the first, which wins its ties.
    fn tile(&self, centroids: &[f32], kernels: Kernels) -> Vec<f32> {
        let (s, d) = (self.atoms.len(), self.atoms.d());
        let mut columns = vec![0.0f32; d * COLUMNS];
        for column in 0..COLUMNS {
            let centroid = if column * d < centroids.len() {
                column
            } else {
                0
            };
            for (i, &x) in centroids[centroid * d..(centroid + 1) * d]
                .iter()
                .enumerate()
            {
                columns[i * COLUMNS + column] = x;
            }
        }
        let mut tile = vec![0.0f32; s * COLUMNS];
        kernels.multiply_tile(self.atoms.rows(), &columns, &mut tile);
        tile
    }

    /// Centroids in 8 bits, and their units.
    fn quantised(&self, centroids: &[f32]) -> (Vec<i8>, Vec<f32>) {
        let d = self.atoms.d();
        let mut levels = vec![0i8; centroids.len()];
        let units = levels
            .chunks_exact_mut(d)
            .zip(centroids.chunks_exact(d))
            .map(|(levels, centroid)| quantise(centroid, levels))
            .collect();
        (levels, units)
    }
}

fn check_rows(n: usize) -> Result<()> {
    if u32::try_from(n).is_err() {
        return Err(Error::argument(format!(
            "{n} items are too many for the clusters of one index; cut it into shards of less \
             than 2^32"
        )));
    }
    Ok(())
}

/// The units of centroids, each with the mean share that its rows have of it.
fn with_shares(units: &[f32], starts: &[u32], rows: &[u32], best: &[(f32, u32)]) -> Vec<[f32; 2]> {
    units
        .iter()
        .zip(starts.windows(2))
        .map(|(&unit, range)| {
            let members = &rows[range[0] as usize..range[1] as usize];
            let sum: f64 = members
                .iter()
                .map(|&row| f64::from(best[row as usize].0))
                .sum();
            let share = (sum / members.len().max(1) as f64) as f32;
            [unit, if share.is_finite() { share } else { 0.0 }]
        })
        .collect()
}

/// Rows cluster by cluster, in their order within each, and where clusters start.
fn grouped(rows: &[u32], best: &[(f32, u32)], clusters: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; clusters + 1];
    for &(_, cluster) in best {
        starts[cluster as usize + 1] += 1;
    }
    for cluster in 0..clusters {
        starts[cluster + 1] += starts[cluster];
    }
    let mut next = starts.clone();
    let mut out = vec![0u32; rows.len()];
    for (&row, &(_, cluster)) in rows.iter().zip(best) {
        let at = &mut next[cluster as usize];
        out[*at as usize] = row;
        *at += 1;
    }
    (starts, out)
}

/// What rows have beyond their centroids.
struct Residuals<'a> {
    items: &'a Items<'a>,
    centroids: &'a [i8],
    scales: &'a [[f32; 2]],
    /// The cluster of each row.
    owners: &'a [(f32, u32)],
    padded: usize,
}

impl Residuals<'_> {
    fn of(&self, row: usize) -> Vec<f32> {
        let d = self.items.atoms.d();
        let mut x = vec![0.0f64; d];
        self.items.atoms.decode(self.items.terms(row), &mut x);
        let cluster = self.owners[row].1 as usize;
        let [unit, share] = self.scales[cluster].map(f64::from);
        let centroid = &self.centroids[cluster * d..(cluster + 1) * d];
        let mut out: Vec<f32> = x
            .iter()
            .zip(centroid)
            .map(|(x, &c)| (x - unit * share * f64::from(c)) as f32)
            .collect();
        out.resize(self.padded, 0.0);
        out
    }

    fn sketches(
        &self,
        rows: &[u32],
        book: &[f32],
        (subspaces, width): (usize, usize),
        kernels: Kernels,
        control: &Control,
    ) -> Result<Vec<u8>> {
        debug_assert_eq!(book.len(), subspaces * width * SKETCH_LEVELS);
        let block_bytes = subspaces * SKETCH_BYTES;
        let bytes = rows.len().div_ceil(SKETCH_ROWS) * block_bytes;
        let mut sketches =
            bytemuck::allocation::try_zeroed_vec(bytes).map_err(|()| Error::OutOfMemory {
                what: "sketches",
                bytes,
            })?;
        sketches
            .par_chunks_mut(block_bytes)
            .zip(rows.par_chunks(SKETCH_ROWS))
            .try_for_each_init(
                || vec![0u8; subspaces],
                |codes, (block, rows)| {
                    control.check()?;
                    for (i, &row) in rows.iter().enumerate() {
                        kernels.nearest_levels(&self.of(row as usize), book, width, codes);
                        sketch::write(block, i, codes);
                    }
                    control.advance(rows.len() as u64);
                    Ok::<_, Error>(())
                },
            )?;
        Ok(sketches)
    }
}
