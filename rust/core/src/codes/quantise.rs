//! Codebooks and levels of rank-coded rows.
//!
//! 1. Magnitudes at each rank, relative to the row's norm, are clustered into `2^bits` levels
//!    (Lloyd 1982, Max 1960) over a sample of the rows.
//! 2. The levels of a row are chosen by coordinate descent on what counts, the distance of the
//!    decoded rows: with the Gram matrix `G` of the row's atoms, values `v` and scale `s`,
//!    `(v - s l)^T G (v - s l)`. One level's error is then made up for by the others. Without a
//!    dictionary `G` is the identity, and the nearest level is the best.
//! 3. The scale is the least-squares factor `s = <v, l>_G / <l, l>_G`.
//!
//! Where `v` are the least-squares values of an item `x` on its support, as pursuit with a refit
//! leaves them, `x - W^T v` is orthogonal to every atom of the support, so that this distance
//! differs from that of `x` by a constant: the scale is then the one computed from `x` itself.
//!
//! Deterministic: a row depends on the codebooks and itself alone.

use rayon::prelude::*;

use super::ranked::{latent_bits_of, RankedLayout, MAX_MAGNITUDE_BITS};
use super::CodesView;
use crate::control::Control;
use crate::{Error, Result};

/// Rows that codebooks are learnt from: more change the third digit of a level.
pub const SAMPLE_ROWS: usize = 1 << 16;
/// Rounds of Lloyd's algorithm; levels move by less than 1e-3 after some 20.
const LLOYD_ROUNDS: usize = 30;
/// Passes over the ranks of a row: a third changed recall by less than 0.0002.
const SWEEPS: usize = 2;
/// Rows that one task packs.
const ROWS_A_TASK: usize = 256;

/// How many bits magnitudes take.
#[derive(Debug, Clone, PartialEq)]
pub enum MagnitudeBits {
    /// The same number at every rank.
    Uniform(u8),
    /// This many a rank on average, spent where they lessen the error most.
    Average(f64),
}

/// Rank-coded rows, owned.
#[derive(Debug, Clone)]
pub struct RankedRows {
    /// Where fields lie, and the levels.
    pub layout: RankedLayout,
    /// The rows, one after the other.
    pub data: Vec<u8>,
    /// What a row's levels are multiplied by; 0 for an empty row.
    pub scales: Vec<f32>,
    /// Cosine of each decoded row before and after quantisation; 0 for an empty row.
    pub cosines: Vec<f64>,
}

impl RankedRows {
    /// The mean of the cosines, over rows that are not zero.
    pub fn mean_cosine(&self) -> f64 {
        let nonempty = self.scales.iter().filter(|&&scale| scale != 0.0).count();
        // folded from 0: the sum of no number would be -0, which JSON tells from 0
        self.cosines.iter().fold(0.0, |sum, cosine| sum + cosine) / nonempty.max(1) as f64
    }
}

/// How many nonzeros rows have: what a coding by rank must be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLengths {
    /// Of the longest row, at least 1: every row is stored as wide.
    pub longest: usize,
    /// Of the shortest row that is not empty: from this rank on one level must be 0. (An empty
    /// row has scale 0 and needs none.)
    pub shortest: usize,
}

impl RowLengths {
    /// Those of these codes.
    pub fn of(codes: CodesView<'_>) -> Self {
        let lengths = (0..codes.len()).map(|row| codes.span(row).len());
        let longest = lengths.clone().fold(1, usize::max);
        Self {
            longest,
            shortest: lengths
                .filter(|&length| length > 0)
                .fold(longest, usize::min),
        }
    }
}

/// Atoms for the Gram matrices: their rows, and the width of one.
pub type AtomRows<'a> = (&'a [f32], usize);

/// Packs codes as rank-coded rows, each as wide as the longest, with codebooks of their own.
///
/// # Errors
/// As [`learn_layout`] and [`pack_with_layout`].
///
/// # Panics
/// Where `atoms` are given and a latent has none.
pub fn pack_ranked(
    codes: CodesView<'_>,
    bits: &MagnitudeBits,
    atoms: Option<AtomRows<'_>>,
    control: &Control,
) -> Result<RankedRows> {
    let layout = learn_layout(codes, bits, RowLengths::of(codes), control)?;
    pack_with_layout(codes, layout, atoms, control)
}

/// Learns the codebooks of rows whose lengths are as `lengths` says.
///
/// # Errors
/// [`Error::Argument`] for more than 65,536 latents or bits out of range;
/// [`Error::Interrupted`].
///
/// # Panics
/// Where a row is longer than the longest.
pub fn learn_layout(
    codes: CodesView<'_>,
    bits: &MagnitudeBits,
    lengths: RowLengths,
    control: &Control,
) -> Result<RankedLayout> {
    let latent_bits = latent_bits_of(codes.dim())?;
    let width = lengths.longest;
    let samples = Samples::draw(codes, lengths);
    control.check()?;
    let magnitude_bits = match *bits {
        MagnitudeBits::Uniform(bits) if bits <= MAX_MAGNITUDE_BITS => vec![bits; width],
        MagnitudeBits::Average(average) if (0.0..=7.0).contains(&average) => {
            samples.allocate((average * width as f64).floor() as usize, control)?
        }
        ref other => {
            return Err(Error::argument(format!(
                "{other:?} bits of magnitude; expected 0 to {MAX_MAGNITUDE_BITS}"
            )))
        }
    };
    let levels: Vec<f32> = (0..width)
        .into_par_iter()
        .map(|rank| samples.codebook(rank, magnitude_bits[rank]).0)
        .collect::<Vec<_>>()
        .concat();
    control.check()?;
    RankedLayout::new(latent_bits, magnitude_bits, levels)
}

/// Packs codes as rank-coded rows of a given layout.
///
/// # Errors
/// [`Error::Argument`] for a row that has more nonzeros than ranks, or fewer where the next
/// rank has no level of 0; [`Error::OutOfMemory`], [`Error::Interrupted`].
///
/// # Panics
/// Where `atoms` are given and a latent has none.
pub fn pack_with_layout(
    codes: CodesView<'_>,
    layout: RankedLayout,
    atoms: Option<AtomRows<'_>>,
    control: &Control,
) -> Result<RankedRows> {
    let n = codes.len();
    check_lengths(codes, &layout)?;
    let bytes = n
        .checked_mul(layout.row_bytes())
        .ok_or_else(|| out_of_memory(usize::MAX))?;
    let mut data: Vec<u8> =
        bytemuck::allocation::try_zeroed_vec(bytes).map_err(|()| out_of_memory(bytes))?;
    let mut scales = vec![0.0f32; n];
    let mut cosines = vec![0.0f64; n];
    data.par_chunks_mut(ROWS_A_TASK * layout.row_bytes())
        .zip(scales.par_chunks_mut(ROWS_A_TASK))
        .zip(cosines.par_chunks_mut(ROWS_A_TASK))
        .enumerate()
        .try_for_each(|(task, ((data, scales), cosines))| {
            control.check()?;
            let mut row = RowQuantiser::new(&layout);
            for (i, out) in data.chunks_exact_mut(layout.row_bytes()).enumerate() {
                let (latents, values) = codes.row(task * ROWS_A_TASK + i);
                (scales[i], cosines[i]) = row.quantise(latents, values, atoms, out);
            }
            control.advance(scales.len() as u64);
            Ok::<(), Error>(())
        })?;
    Ok(RankedRows {
        layout,
        data,
        scales,
        cosines,
    })
}

/// Refuses rows that the layout cannot hold.
fn check_lengths(codes: CodesView<'_>, layout: &RankedLayout) -> Result<()> {
    let width = layout.width();
    // rows may end at a rank only if all ranks from there on can say 0
    let shortest = (0..width)
        .rev()
        .find(|&rank| layout.levels()[layout.levels_of(rank).start] != 0.0)
        .map_or(0, |rank| rank + 1);
    for row in 0..codes.len() {
        let length = codes.span(row).len();
        if length > width {
            return Err(Error::argument(format!(
                "row {row} has {length} nonzeros, the codebooks are for {width}; cut codes with \
                 .top({width}), or learn the codebooks for more"
            )));
        }
        if length > 0 && length < shortest {
            return Err(Error::argument(format!(
                "row {row} has {length} nonzeros, but the codebooks were learnt from rows of at \
                 least {shortest}, so that later ranks have no level of 0; learn them from rows \
                 as short, or for as short ones"
            )));
        }
    }
    Ok(())
}

fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory {
        what: "packed rows",
        bytes,
    }
}

/// Magnitudes of a sample of the rows relative to each row's norm, by rank, ascending.
struct Samples {
    by_rank: Vec<Vec<f32>>,
    /// From this rank on some row has ended, so that one level must be 0.
    shortest: usize,
}

impl Samples {
    fn draw(codes: CodesView<'_>, lengths: RowLengths) -> Self {
        let stride = codes.len().div_ceil(SAMPLE_ROWS).max(1);
        let mut by_rank = vec![Vec::new(); lengths.longest];
        let mut ranked = Vec::new();
        for row in (0..codes.len()).step_by(stride) {
            let (_, values) = codes.row(row);
            let norm = values
                .iter()
                .map(|&value| f64::from(value).powi(2))
                .sum::<f64>()
                .sqrt();
            ranked.clear();
            ranked.extend(values.iter().map(|value| value.abs()));
            ranked.sort_unstable_by(|a, b| b.total_cmp(a));
            for (rank, &magnitude) in ranked.iter().enumerate() {
                by_rank[rank].push((f64::from(magnitude) / norm) as f32);
            }
        }
        by_rank
            .par_iter_mut()
            .for_each(|sample| sample.sort_unstable_by(f32::total_cmp));
        Self {
            by_rank,
            shortest: lengths.shortest,
        }
    }

    /// Levels of a rank, ascending, and the sum of squared errors that they leave.
    ///
    /// A rank that no row of the sample reaches, but a row outside it may, has the levels of the
    /// last one that is reached.
    fn codebook(&self, rank: usize, bits: u8) -> (Vec<f32>, f64) {
        let reached = self.by_rank[..=rank].iter().rev();
        let sample = reached
            .into_iter()
            .find(|sample| !sample.is_empty())
            .unwrap_or(&self.by_rank[rank]);
        let n_levels = 1usize << bits;
        let padded = rank >= self.shortest;
        let free = n_levels - usize::from(padded);
        let mut levels = vec![0.0; usize::from(padded)];
        levels.extend(lloyd_max(sample, free));
        let mut error = 0.0;
        let mut at = usize::from(padded);
        for &magnitude in sample {
            while at + 1 < n_levels && magnitude > (levels[at] + levels[at + 1]) / 2.0 {
                at += 1;
            }
            // with a single level of 0 there is nothing else to choose
            let level = levels[at.min(n_levels - 1)];
            error += f64::from(magnitude - level).powi(2);
        }
        (levels, error)
    }

    /// Bits of each rank, `budget` in all: one by one to the rank whose error the next bit
    /// lessens most. Errors fall convexly with bits, so that greedy is best.
    fn allocate(&self, budget: usize, control: &Control) -> Result<Vec<u8>> {
        let errors: Vec<Vec<f64>> = self
            .by_rank
            .par_iter()
            .enumerate()
            .map(|(rank, _)| {
                control.check()?;
                Ok((0..=MAX_MAGNITUDE_BITS)
                    .map(|bits| self.codebook(rank, bits).1)
                    .collect())
            })
            .collect::<Result<_>>()?;
        let mut bits = vec![0u8; self.by_rank.len()];
        for _ in 0..budget {
            let gain = |rank: usize| {
                let at = usize::from(bits[rank]);
                (at < usize::from(MAX_MAGNITUDE_BITS))
                    .then(|| errors[rank][at] - errors[rank][at + 1])
            };
            let best = (0..bits.len())
                .filter_map(|rank| Some((gain(rank)?, rank)))
                // of equal gains the lower rank: max_by keeps the last of equal ones
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            match best {
                Some((_, rank)) => bits[rank] += 1,
                None => break,
            }
        }
        Ok(bits)
    }
}

/// Levels of a sorted sample: means of the samples nearest to them.
fn lloyd_max(sorted: &[f32], n_levels: usize) -> Vec<f32> {
    if n_levels == 0 {
        return Vec::new();
    }
    if sorted.is_empty() {
        return vec![0.0; n_levels];
    }
    let mut sums = Vec::with_capacity(sorted.len() + 1);
    sums.push(0.0f64);
    for &x in sorted {
        sums.push(sums[sums.len() - 1] + f64::from(x));
    }
    let mut levels: Vec<f32> = (0..n_levels)
        .map(|i| sorted[(2 * i + 1) * sorted.len() / (2 * n_levels)])
        .collect();
    for _ in 0..LLOYD_ROUNDS {
        let mut start = 0;
        for i in 0..n_levels {
            let end = match levels.get(i + 1) {
                Some(&next) => {
                    let middle = (levels[i] + next) / 2.0;
                    start.max(sorted.partition_point(|&x| x <= middle))
                }
                None => sorted.len(),
            };
            if end > start {
                levels[i] = ((sums[end] - sums[start]) / (end - start) as f64) as f32;
            }
            start = end;
        }
        levels.sort_unstable_by(f32::total_cmp);
    }
    levels
}

/// Quantises rows one by one, reusing its buffers.
struct RowQuantiser<'a> {
    layout: &'a RankedLayout,
    ranked: Vec<(u32, f32)>,
    gathered: Vec<f32>,
    gram: Vec<f64>,
    /// Chosen level of each rank: its index in the codebook, and its signed value.
    chosen: Vec<u32>,
    levels: Vec<f64>,
    residual: Vec<f64>,
}

impl<'a> RowQuantiser<'a> {
    fn new(layout: &'a RankedLayout) -> Self {
        Self {
            layout,
            ranked: Vec::new(),
            gathered: Vec::new(),
            gram: Vec::new(),
            chosen: Vec::new(),
            levels: Vec::new(),
            residual: Vec::new(),
        }
    }

    /// Writes a row and returns its scale and the cosine before and after; (0, 0) for a row
    /// without nonzeros.
    fn quantise(
        &mut self,
        latents: &[u32],
        values: &[f32],
        atoms: Option<AtomRows<'_>>,
        out: &mut [u8],
    ) -> (f32, f64) {
        if values.is_empty() {
            return (0.0, 0.0);
        }
        self.ranked.clear();
        self.ranked
            .extend(latents.iter().copied().zip(values.iter().copied()));
        self.ranked
            .sort_unstable_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
        self.fill_gram(atoms);
        let norm = self
            .ranked
            .iter()
            .map(|pair| f64::from(pair.1).powi(2))
            .sum::<f64>()
            .sqrt();
        self.chosen.clear();
        self.levels.clear();
        for rank in 0..self.ranked.len() {
            let (index, level) = self.nearest(rank, f64::from(self.ranked[rank].1) / norm);
            self.chosen.push(index);
            self.levels.push(level);
        }
        let mut scale = self.best_scale().unwrap_or(norm);
        if atoms.is_some() {
            for _ in 0..SWEEPS {
                self.sweep(scale);
                scale = self.best_scale().unwrap_or(norm);
            }
        }
        for (rank, (&(latent, _), &index)) in self.ranked.iter().zip(&self.chosen).enumerate() {
            let negative = self.levels[rank] < 0.0;
            self.layout.set_field(out, rank, latent, negative, index);
        }
        // ranks beyond the row's end: latent 0, level 0, which `Samples::codebook` put first
        (scale.clamp(0.0, f64::from(f32::MAX)) as f32, self.cosine())
    }

    /// The index and signed value of the level that is nearest to `target`, with its sign.
    fn nearest(&self, rank: usize, target: f64) -> (u32, f64) {
        let levels = &self.layout.levels()[self.layout.levels_of(rank)];
        let magnitude = target.abs() as f32;
        let index = (0..levels.len() - 1)
            .find(|&i| magnitude <= (levels[i] + levels[i + 1]) / 2.0)
            .unwrap_or(levels.len() - 1);
        let level = f64::from(levels[index]);
        (index as u32, if target < 0.0 { -level } else { level })
    }

    /// `gram[i * k + j] = <atom_i, atom_j>`, the identity where there are no atoms.
    fn fill_gram(&mut self, atoms: Option<AtomRows<'_>>) {
        let k = self.ranked.len();
        self.gram.clear();
        self.gram.resize(k * k, 0.0);
        let Some((rows, d)) = atoms else {
            (0..k).for_each(|i| self.gram[i * k + i] = 1.0);
            return;
        };
        self.gathered.clear();
        for &(latent, _) in &self.ranked {
            let start = latent as usize * d;
            self.gathered.extend_from_slice(&rows[start..start + d]);
        }
        for i in 0..k {
            for j in 0..=i {
                let product = dot(
                    &self.gathered[i * d..(i + 1) * d],
                    &self.gathered[j * d..(j + 1) * d],
                );
                self.gram[i * k + j] = product;
                self.gram[j * k + i] = product;
            }
        }
    }

    /// Inner product of two vectors over the support, under the Gram matrix.
    fn product(&self, a: impl Fn(usize) -> f64, b: impl Fn(usize) -> f64) -> f64 {
        let k = self.ranked.len();
        (0..k)
            .map(|i| a(i) * (0..k).map(|j| self.gram[i * k + j] * b(j)).sum::<f64>())
            .sum()
    }

    fn value(&self, rank: usize) -> f64 {
        f64::from(self.ranked[rank].1)
    }

    /// `<v, l> / <l, l>`, or `None` where levels decode to nothing or against the values.
    fn best_scale(&self) -> Option<f64> {
        let squared = self.product(|i| self.levels[i], |j| self.levels[j]);
        let crossed = self.product(|i| self.value(i), |j| self.levels[j]);
        let scale = crossed / squared;
        (squared > 0.0 && scale > 0.0 && scale.is_finite()).then_some(scale)
    }

    /// One pass of coordinate descent: each rank in turn takes the level that leaves the least
    /// distance, the others held.
    fn sweep(&mut self, scale: f64) {
        let k = self.ranked.len();
        self.residual.clear();
        for i in 0..k {
            let row = &self.gram[i * k..(i + 1) * k];
            self.residual.push(
                row.iter()
                    .enumerate()
                    .map(|(j, g)| g * (self.value(j) - scale * self.levels[j]))
                    .sum(),
            );
        }
        for rank in 0..k {
            let curvature = self.gram[rank * k + rank];
            if curvature <= 0.0 {
                continue;
            }
            let target = self.levels[rank] + self.residual[rank] / (scale * curvature);
            let (index, level) = self.nearest(rank, target);
            let change = (level - self.levels[rank]) * scale;
            if change != 0.0 {
                for (residual, g) in self
                    .residual
                    .iter_mut()
                    .zip(&self.gram[rank * k..(rank + 1) * k])
                {
                    *residual -= change * g;
                }
            }
            self.chosen[rank] = index;
            self.levels[rank] = level;
        }
    }

    fn cosine(&self) -> f64 {
        let levels = self.product(|i| self.levels[i], |j| self.levels[j]);
        let values = self.product(|i| self.value(i), |j| self.value(j));
        let crossed = self.product(|i| self.value(i), |j| self.levels[j]);
        let norms = (levels * values).sqrt();
        if norms > 0.0 {
            crossed / norms
        } else {
            0.0
        }
    }
}

/// An inner product in sixteen single-precision lanes, in one order on every CPU.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f32; 16];
    let (whole_a, whole_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = whole_a
        .remainder()
        .iter()
        .zip(whole_b.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in whole_a.zip(whole_b) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(rest)
}
