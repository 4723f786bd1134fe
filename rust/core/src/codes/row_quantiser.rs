//! The levels and the scale of one row, given the codebooks.

use super::levels::norm_of;
use super::ranked::RankedLayout;

/// Atoms for the Gram matrices: their rows, and the width of one.
pub type AtomRows<'a> = (&'a [f32], usize);

/// Passes over the ranks of a row: a third changed recall by less than 0.0002.
const SWEEPS: usize = 2;
/// What the norm of a complete row is multiplied by, in turn, for the divisor of its values. On
/// directions at random these seven gain .004 of recall@100 at 4 bits a value; 1 is the first, so
/// that it is kept among equals.
const NORMS_TRIED: [f64; 7] = [1.0, 0.98, 1.03, 0.95, 1.06, 0.92, 1.1];

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
pub(super) struct RowQuantiser<'a> {
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
    pub(super) fn new(layout: &'a RankedLayout) -> Self {
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
    pub(super) fn quantise(
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
