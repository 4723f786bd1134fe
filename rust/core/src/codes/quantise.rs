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
//! Complete rows, which have every latent, have a codebook for each latent, and each value takes the
//! level nearest to it: they are for atoms at right angles, where no error makes up for another.
//! Which level is nearest depends on what values are divided by, and the scale is stored anyway,
//! so a few divisors are tried and the one is kept whose levels point most nearly where the values
//! do (as extended RaBitQ does on its grid: Gao et al., arXiv:2409.09913).
//!
//! Deterministic: a row depends on the codebooks and itself alone.

use rayon::prelude::*;

use super::ranked::{latent_bits_of, max_magnitude_bits, RankedLayout};
use super::CodesView;
use crate::control::Control;
use crate::{Error, Result};

/// Rows that codebooks are learnt from: more change the third digit of a level.
pub const SAMPLE_ROWS: usize = 1 << 16;
/// Rounds of Lloyd's algorithm; levels move by less than 1e-3 after some 20.
const LLOYD_ROUNDS: usize = 30;
/// Passes over the ranks of a row: a third changed recall by less than 0.0002.
const SWEEPS: usize = 2;
/// What the norm of a complete row is multiplied by, in turn, for the divisor of its values. On
/// directions at random these seven gain .004 of recall@100 at 4 bits a value; 1 is the first, so
/// that it is kept among equals.
const NORMS_TRIED: [f64; 7] = [1.0, 0.98, 1.03, 0.95, 1.06, 0.92, 1.1];
/// How many more bits than the mean a rank may get: one more is worth it for a variance 4 times as
/// large, so that this is for 16,000 times the variance of the mean. Above all that `Average` allows.
const MORE_BITS: u8 = 7;
/// Rows that one task packs.
const ROWS_A_TASK: usize = 256;

/// How many bits magnitudes take.
#[derive(Debug, Clone, PartialEq)]
pub enum MagnitudeBits {
    /// The same number at every rank.
    Uniform(u8),
    /// This many a rank on average, spent where they lessen the error most.
    Average(f64),
    /// This many a latent on average, for rows that have every latent: a complete coding.
    Complete(f64),
}

impl MagnitudeBits {
    /// True where rows are to have every latent.
    pub fn are_complete(&self) -> bool {
        matches!(self, Self::Complete(_))
    }
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
    let of_dim = latent_bits_of(codes.dim())?;
    let (latent_bits, width, samples) = if bits.are_complete() {
        (0, codes.dim(), Samples::by_latent(codes))
    } else {
        (of_dim, lengths.longest, Samples::draw(codes, lengths))
    };
    control.check()?;
    let most = max_magnitude_bits(latent_bits);
    let magnitude_bits = match *bits {
        MagnitudeBits::Uniform(bits) if bits <= most => vec![bits; width],
        MagnitudeBits::Average(average) | MagnitudeBits::Complete(average)
            if (0.0..=f64::from(most)).contains(&average) =>
        {
            let budget = (average * width as f64).floor() as usize;
            // codebooks of many bits take long to learn, and are only for the largest variances
            samples.allocate(budget, most.min(average as u8 + MORE_BITS), control)?
        }
        ref other => {
            return Err(Error::argument(format!(
                "{other:?} bits of magnitude; expected 0 to {most}"
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
    if layout.is_complete() {
        // a latent that a row lacks has value 0, and the level nearest to it
        return match codes.dim() {
            dim if dim == layout.width() => Ok(()),
            dim => Err(Error::argument(format!(
                "codes over {dim} latents, the codebooks are for rows of all {}",
                layout.width()
            ))),
        };
    }
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
    /// Ranks may have many levels.
    is_spread: bool,
}

impl Samples {
    fn draw(codes: CodesView<'_>, lengths: RowLengths) -> Self {
        let stride = codes.len().div_ceil(SAMPLE_ROWS).max(1);
        let mut by_rank = vec![Vec::new(); lengths.longest];
        let mut ranked = Vec::new();
        for row in (0..codes.len()).step_by(stride) {
            let (_, values) = codes.row(row);
            let norm = norm_of(values);
            ranked.clear();
            ranked.extend(values.iter().map(|value| value.abs()));
            ranked.sort_unstable_by(|a, b| b.total_cmp(a));
            for (rank, &magnitude) in ranked.iter().enumerate() {
                by_rank[rank].push((f64::from(magnitude) / norm) as f32);
            }
        }
        Self::sorted(by_rank, lengths.shortest, false)
    }

    /// The same by latent, a value of 0 where a row lacks one.
    fn by_latent(codes: CodesView<'_>) -> Self {
        let stride = codes.len().div_ceil(SAMPLE_ROWS).max(1);
        let mut by_latent = vec![Vec::new(); codes.dim()];
        let mut dense = vec![0.0f32; codes.dim()];
        for row in (0..codes.len()).step_by(stride) {
            let (latents, values) = codes.row(row);
            let norm = norm_of(values);
            if norm == 0.0 {
                continue;
            }
            dense.fill(0.0);
            for (&latent, &value) in latents.iter().zip(values) {
                dense[latent as usize] = (f64::from(value.abs()) / norm) as f32;
            }
            for (sample, &magnitude) in by_latent.iter_mut().zip(&dense) {
                sample.push(magnitude);
            }
        }
        let width = by_latent.len();
        Self::sorted(by_latent, width, true)
    }

    fn sorted(mut by_rank: Vec<Vec<f32>>, shortest: usize, is_spread: bool) -> Self {
        by_rank
            .par_iter_mut()
            .for_each(|sample| sample.sort_unstable_by(f32::total_cmp));
        Self {
            by_rank,
            shortest,
            is_spread,
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
        levels.extend(lloyd_max(sample, free, self.is_spread));
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

    /// Bits of each rank, `budget` in all and `most` a rank: one by one to the rank whose error the next bit
    /// lessens most. Errors fall convexly with bits, so that greedy is best.
    fn allocate(&self, budget: usize, most: u8, control: &Control) -> Result<Vec<u8>> {
        let errors: Vec<Vec<f64>> = self
            .by_rank
            .par_iter()
            .enumerate()
            .map(|(rank, _)| {
                control.check()?;
                Ok((0..=most).map(|bits| self.codebook(rank, bits).1).collect())
            })
            .collect::<Result<_>>()?;
        let mut bits = vec![0u8; self.by_rank.len()];
        for _ in 0..budget {
            let gain = |rank: usize| {
                let at = usize::from(bits[rank]);
                (at < usize::from(most)).then(|| errors[rank][at] - errors[rank][at + 1])
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
///
/// They start from quantiles, or `spread`: many levels would not reach the tails in some rounds.
fn lloyd_max(sorted: &[f32], n_levels: usize, spread: bool) -> Vec<f32> {
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
    let mut levels: Vec<f32> = if spread {
        spread_levels(sorted, n_levels)
    } else {
        (0..n_levels)
            .map(|i| sorted[(2 * i + 1) * sorted.len() / (2 * n_levels)])
            .collect()
    };
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

/// Levels that are as dense as the cube root of the sample's density, which is best where there are
/// many (Panter and Dite 1951).
fn spread_levels(sorted: &[f32], n_levels: usize) -> Vec<f32> {
    /// Between two quantiles the density is taken for constant.
    const QUANTILES: usize = 64;
    let last = sorted.len() - 1;
    let quantile = |i: usize| sorted[i * last / QUANTILES];
    // a stretch of width w holds 1 / QUANTILES of the sample: its share of the levels goes with
    // w (1 / w)^(1/3)
    let mut sums = vec![0.0f64];
    for i in 0..QUANTILES {
        let width = f64::from(quantile(i + 1) - quantile(i));
        sums.push(sums[i] + width.powi(2).cbrt());
    }
    let all = sums[QUANTILES];
    (0..n_levels)
        .map(|level| {
            let target = all * (level as f64 + 0.5) / n_levels as f64;
            let after = sums.partition_point(|&sum| sum <= target);
            let i = after.clamp(1, QUANTILES) - 1;
            let share = (target - sums[i]) / (sums[i + 1] - sums[i]).max(f64::MIN_POSITIVE);
            quantile(i) + (quantile(i + 1) - quantile(i)) * share.min(1.0) as f32
        })
        .collect()
}

/// What levels are to values: `<l, l>` and `<v, l>`.
#[derive(Debug, Clone, Copy)]
struct Fit {
    squared: f64,
    crossed: f64,
}

impl Fit {
    /// Worse than levels that are all 0.
    const NONE: Self = Self {
        squared: 0.0,
        crossed: f64::NEG_INFINITY,
    };

    /// The cosine with values of this norm; 0 for levels that point nowhere.
    fn cosine(self, norm: f64) -> f64 {
        if self.squared > 0.0 {
            self.crossed / (self.squared.sqrt() * norm)
        } else {
            self.crossed.min(0.0)
        }
    }

    /// The least-squares factor.
    fn scale(self) -> f64 {
        if self.squared > 0.0 {
            self.crossed / self.squared
        } else {
            0.0
        }
    }
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
    /// Of a complete row: its values by latent, and what lies between the levels of each.
    dense: Vec<f64>,
    middles: Vec<f32>,
    tried: Vec<u32>,
}

impl<'a> RowQuantiser<'a> {
    fn new(layout: &'a RankedLayout) -> Self {
        let middle = |pair: &[f32]| (pair[0] + pair[1]) / 2.0;
        let middles = if layout.is_complete() {
            // one more than lies between, so that they stand where the levels do
            let levels = layout.levels();
            let between = levels.windows(2).map(middle);
            between.chain([f32::INFINITY]).collect()
        } else {
            Vec::new()
        };
        Self {
            layout,
            dense: Vec::new(),
            middles,
            tried: Vec::new(),
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
        if self.layout.is_complete() {
            return self.quantise_complete(latents, values, out);
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

    /// Writes a complete row and returns its scale and the cosine before and after; (0, 0) where
    /// all values are 0.
    fn quantise_complete(&mut self, latents: &[u32], values: &[f32], out: &mut [u8]) -> (f32, f64) {
        let norm = norm_of(values);
        if norm == 0.0 {
            return (0.0, 0.0);
        }
        self.dense.clear();
        self.dense.resize(self.layout.width(), 0.0);
        for (&latent, &value) in latents.iter().zip(values) {
            self.dense[latent as usize] = f64::from(value);
        }
        let mut best = Fit::NONE;
        for tried in NORMS_TRIED {
            let fit = self.choose(norm * tried);
            if fit.cosine(norm) > best.cosine(norm) {
                best = fit;
                std::mem::swap(&mut self.chosen, &mut self.tried);
            }
        }
        for (latent, (&value, &index)) in self.dense.iter().zip(&self.chosen).enumerate() {
            self.layout
                .set_field(out, latent, latent as u32, value < 0.0, index);
        }
        let cosine = best.cosine(norm).max(0.0);
        (best.scale().clamp(0.0, f64::from(f32::MAX)) as f32, cosine)
    }

    /// Puts the levels nearest to the values of a complete row over `divisor` into `tried`.
    fn choose(&mut self, divisor: f64) -> Fit {
        let mut fit = Fit {
            squared: 0.0,
            crossed: 0.0,
        };
        self.tried.clear();
        let mut first = 0;
        for (&value, &bits) in self.dense.iter().zip(self.layout.magnitude_bits()) {
            let n = 1usize << bits;
            let magnitude = (value / divisor).abs() as f32;
            let middles = &self.middles[first..first + n - 1];
            let index = middles.partition_point(|&middle| middle < magnitude);
            let level = f64::from(self.layout.levels()[first + index]);
            fit.squared += level * level;
            fit.crossed += level * value.abs();
            self.tried.push(index as u32);
            first += n;
        }
        fit
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

/// The norm of a row.
fn norm_of(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
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
