//! Matching pursuit of one item: choose the atom most correlated with what is left of the item,
//! take it off, repeat; every few atoms fit all values anew by least squares and go on from that
//! residual. With a refit after every atom this is orthogonal matching pursuit.
//!
//! Mallat & Zhang, "Matching pursuits with time-frequency dictionaries" (1993); Pati, Rezaiifar &
//! Krishnaprasad, "Orthogonal matching pursuit" (1993); the Gram form is Rubinstein, Zibulevsky &
//! Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal matching
//! pursuit" (2008).
//!
//! What was tried, for s = 4096, d = 384, k = 32 on one core of a Zen 4 server that was busy with
//! other work, so to 10% at best. CPU time a row by `benches/bench_encoding.py`: K in int8 75 us,
//! int16 88, float32 136, where numpy's projection alone takes 33. Shares of profiles along the
//! way, in us a row: the projection in float32 33, in 16-bit integers 16; the atoms' inner
//! products 35 one pair at a time, 16 four pairs at a time, 10 in tiles of 4 x 2; the item's with
//! each atom as it is chosen 7, with those of the atoms next to nothing; waiting for rows that
//! are not fetched ahead, about 4. A copy of the start that finds the maxima on its way: nothing.
//!
//! Not tried: correlations in 16 bits, for half the time of taking rows off them (20 us).
//!
//! Not tried, and believed not to pay: letting blocks of correlations wait until a bound says
//! that they may hold the maximum. Every row has to be read all the same, for the next refit.

use super::blocks::{self, flat, Block, Entry};
use super::gram::Rows;
use super::refit::Refit;
use crate::kernels::Kernels;

/// A correlation, or a value, at or below this is nothing: items and atoms have unit norm, so
/// float32 products of a few hundred terms are off by about 1e-7.
pub const NOTHING: f32 = 1e-6;

/// A residual of at most this squared norm is nothing left: float32 inner products are off by
/// about 1e-7, and so is the residual's squared norm that follows from them.
pub const RECONSTRUCTED: f64 = 1e-6;

/// The atoms, row-major (s, d), with the compiled loops that serve this CPU.
#[derive(Clone, Copy)]
pub struct Atoms<'a> {
    /// Rows of unit norm.
    pub rows: &'a [f32],
    /// Width of a row.
    pub d: usize,
    /// The version of the loops that runs.
    pub kernels: Kernels,
}

impl Atoms<'_> {
    /// Atom `latent`.
    pub fn row(&self, latent: usize) -> &[f32] {
        &self.rows[latent * self.d..(latent + 1) * self.d]
    }
}

/// What one thread needs to encode items one after another without allocating.
#[derive(Default)]
pub struct Workspace {
    pub(super) correlations: Vec<Block<f32>>,
    pub(super) maxima: Vec<u32>,
    /// Chosen latents in the order they were chosen.
    pub(super) support: Vec<usize>,
    /// Inner products of the item and each of `support` that was settled.
    targets: Vec<f32>,
    /// Over the atoms of `support` that were settled.
    pub(super) refit: Refit,
    inner_products: Vec<f32>,
    /// The item's entries once it is done.
    pub entries: Vec<(u32, f32)>,
    /// Cosine of the item and its decoded code.
    pub cosine: f64,
}

impl Workspace {
    /// Empties the support and takes on `start` as the correlations.
    fn begin(&mut self, kernels: Kernels, start: &[Block<f32>]) {
        self.begin_empty();
        self.correlations.clear();
        self.correlations.extend_from_slice(start);
        self.maxima.resize(start.len(), 0);
        blocks::block_maxima(kernels, &self.correlations, &mut self.maxima);
    }

    pub(super) fn begin_empty(&mut self) {
        self.support.clear();
        self.targets.clear();
        self.refit.clear();
        self.entries.clear();
        self.cosine = 0.0;
    }

    /// Takes `latent` into the support.
    pub(super) fn choose(&mut self, latent: usize) {
        self.support.push(latent);
    }

    /// Brings the refit of `item` up to the support, with exact inner products; true if nothing
    /// is left of it. Atoms chosen after nothing was left leave the support.
    pub(super) fn settle(&mut self, atoms: Atoms, item: &[f32]) -> bool {
        let (size, new) = (self.support.len(), self.refit.len());
        self.targets.resize(size, 0.0);
        self.inner_products.resize((size - new) * size, 0.0);
        blocks::inner_products(
            atoms.kernels,
            (atoms.rows, atoms.d),
            item,
            &self.support,
            &mut self.targets[new..],
            &mut self.inner_products,
        );
        for t in new..size {
            let products = &self.inner_products[(t - new) * size..][..t + 1];
            self.refit.push(self.targets[t], products);
            if 1.0 - self.refit.explained() <= RECONSTRUCTED {
                self.support.truncate(t + 1);
                self.targets.truncate(t + 1);
                return true;
            }
        }
        false
    }

    /// Fits the values on the settled support and keeps those that are something as entries.
    pub(super) fn finish(&mut self) {
        let values = self.refit.solve();
        self.entries.extend(
            (self.support.iter().zip(values))
                .map(|(&latent, &value)| (latent as u32, value as f32))
                .filter(|(_, value)| value.abs() > NOTHING),
        );
        // Least squares: the residual is orthogonal to the decoded code, whose squared norm is
        // thus its inner product with the item.
        self.cosine = self.refit.explained().clamp(0.0, 1.0).sqrt();
    }
}

/// Encodes one item by pursuit, leaving its entries in `work`.
///
/// `start` holds W x, to choose by: it may be coarse. The support grows to `k` atoms at most; it
/// stays smaller when nothing is left of the item, or when atoms chosen before are chosen again so often that `k` further
/// steps were spent. Values are refitted whenever the support reaches a multiple of
/// `refit_every`, and at the end.
pub fn pursue<E: Entry>(
    atoms: Atoms,
    gram: &Rows<E>,
    item: &[f32],
    start: &[Block<f32>],
    k: usize,
    refit_every: usize,
    work: &mut Workspace,
) {
    work.begin(atoms.kernels, start);
    let mut rows = Vec::with_capacity(k);
    for _ in 0..2 * k {
        let latent = blocks::argmax(atoms.kernels, &work.correlations, &work.maxima);
        let correlation = flat(&work.correlations)[latent];
        if correlation.abs() <= NOTHING {
            break;
        }
        let (step, row) = gram.row(latent);
        blocks::prefetch(row);
        if !work.support.contains(&latent) {
            blocks::prefetch(atoms.row(latent)); // read when the support is settled
            work.choose(latent);
            if work.support.len() == k {
                break;
            }
            if work.support.len().is_multiple_of(refit_every) {
                if work.settle(atoms, item) {
                    break;
                }
                rows.clear();
                let values = work.refit.solve();
                for (&latent, &value) in work.support.iter().zip(values) {
                    let (step, row) = gram.row(latent);
                    rows.push((value as f32 * step, row));
                }
                blocks::rebuild(
                    atoms.kernels,
                    &mut work.correlations,
                    &mut work.maxima,
                    start,
                    &rows,
                );
                blocks::clear(
                    atoms.kernels,
                    &mut work.correlations,
                    &mut work.maxima,
                    &work.support,
                );
                continue;
            }
        }
        blocks::subtract(
            atoms.kernels,
            &mut work.correlations,
            &mut work.maxima,
            row,
            correlation * step,
        );
        blocks::clear(
            atoms.kernels,
            &mut work.correlations,
            &mut work.maxima,
            &[latent],
        );
    }
    work.settle(atoms, item);
    work.finish();
}
