//! Codebooks of rank-coded rows: how many bits each rank gets, and which levels they stand for.
//!
//! Magnitudes at each rank, relative to the row's norm, are clustered into `2^bits` levels (Lloyd
//! 1982, Max 1960) over a sample of the rows. Knows nothing of rows that are packed.

use rayon::prelude::*;

use super::CodesView;
use crate::control::Control;
use crate::Result;

/// Rows that codebooks are learnt from: more change the third digit of a level.
pub const SAMPLE_ROWS: usize = 1 << 16;
/// Rounds of Lloyd's algorithm; levels move by less than 1e-3 after some 20.
const LLOYD_ROUNDS: usize = 30;

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

/// Magnitudes of a sample of the rows relative to each row's norm, by rank, ascending.
pub(super) struct Samples {
    by_rank: Vec<Vec<f32>>,
    /// From this rank on some row has ended, so that one level must be 0.
    shortest: usize,
    /// Ranks may have many levels.
    is_spread: bool,
}

impl Samples {
    pub(super) fn draw(codes: CodesView<'_>, lengths: RowLengths) -> Self {
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
    pub(super) fn by_latent(codes: CodesView<'_>) -> Self {
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
    pub(super) fn codebook(&self, rank: usize, bits: u8) -> (Vec<f32>, f64) {
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
    pub(super) fn allocate(&self, budget: usize, most: u8, control: &Control) -> Result<Vec<u8>> {
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

/// The norm of a row.
pub(super) fn norm_of(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}
