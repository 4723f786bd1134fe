//! One round of learning a dictionary: codes of all items by pursuit, then the atoms that
//! reconstruct the items best from those codes, in closed form (the method of optimal
//! directions: Engan, Aase & Husoy, 1999), with atoms that serve nobody put to better use.

use rayon::prelude::*;

use super::encoder::{Encoder, Options};
use super::normal::Normal;
use super::worst::Worst;
use super::{cholesky, items};
use crate::control::Control;
use crate::gemm;
use crate::{Error, Result};

/// Two atoms whose cosine is above this in magnitude count as one, and the one that fewer
/// items use is replaced.
pub const DUPLICATE: f32 = 0.99;

/// An atom that turned away from where it was before the last round by more than this cosine
/// was replaced, or leapt: its last step says nothing of the next.
const SAME_ATOM: f32 = 0.7;

/// Atoms one step further in the direction of the last round, `momentum` times as far, of unit
/// norm: alternating least squares creeps, since each half is solved as if the other were
/// right, and its steps point the same way round after round (Nesterov's extrapolation).
///
/// Measured on 62,666 text embeddings (d = 384, s = 4096, k = 32, 8 rounds; recall@100 of 1,000
/// queries, by which these few settings were also compared): momentum 0 gives .8963 and .8965
/// for seeds 0 and 1, 0.8 gives .9074 and .9070. From another start, with 0.8 at .9088: 0.9
/// gives .9083; measuring the step from the extrapolated atoms instead of from the solved
/// ones, .9014 at 0.5, .9049 at 1, and it diverges at 2.
pub fn extrapolated(atoms: &[f32], previous: &[f32], d: usize, momentum: f32) -> Vec<f32> {
    assert_eq!(atoms.len(), previous.len());
    let mut out = atoms.to_vec();
    for ((out, now), before) in out
        .chunks_exact_mut(d)
        .zip(atoms.chunks_exact(d))
        .zip(previous.chunks_exact(d))
    {
        let cosine: f32 = now.iter().zip(before).map(|(a, b)| a * b).sum();
        if cosine < SAME_ATOM {
            continue;
        }
        for ((out, now), before) in out.iter_mut().zip(now).zip(before) {
            *out = now + momentum * (now - before);
        }
        let norm = (out.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()).sqrt();
        for value in out {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
    out
}

/// Gathers a round's sums, batch by batch.
pub struct Learner {
    normal: Normal,
    worst: Worst,
    cosine_sum: f64,
    items: u64,
}

/// What a round gave.
#[derive(Clone, Debug)]
pub struct Round {
    /// The new atoms, row-major, of unit norm.
    pub atoms: Vec<f32>,
    /// Mean cosine of the items and their codes decoded with the atoms before the update;
    /// zero rows are left out.
    pub cosine: f64,
    /// Items that were not zero.
    pub items: u64,
    /// Items whose code held each atom.
    pub usage: Vec<u64>,
    /// Atoms replaced because no item used them.
    pub unused: u64,
    /// Atoms replaced because they nearly equalled another.
    pub duplicates: u64,
}

impl Learner {
    /// A round over no items yet, for atoms like those of `encoder`.
    ///
    /// # Errors
    /// As [`Normal::new`].
    pub fn new(encoder: &Encoder, limit_bytes: u64) -> Result<Self> {
        Ok(Self {
            normal: Normal::new(encoder.len(), encoder.width(), limit_bytes)?,
            // An eighth of the atoms is more than any round but a failing one replaces.
            worst: Worst::new((encoder.len() / 8).max(16), encoder.width()),
            cosine_sum: 0.0,
            items: 0,
        })
    }

    /// Encodes a batch (n, d) and adds it to the sums.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn add(
        &mut self,
        encoder: &Encoder,
        batch: &[f32],
        options: Options,
        control: &Control,
    ) -> Result<()> {
        let options = Options {
            normalise: true,
            ..options
        };
        let codes = encoder.encode(batch, options, control)?;
        let d = encoder.width();
        let (unit, norms) = items::normalised(batch, d, options.first_row, "the items")?;
        self.normal.add(&unit, &codes, control)?;
        for (row, item) in unit.chunks_exact(d).enumerate() {
            if norms[row] > 0.0 {
                self.items += 1;
                self.cosine_sum += f64::from(codes.cosines[row]);
                self.worst
                    .offer(item, &codes, row, options.first_row, encoder.atoms());
            }
        }
        Ok(())
    }

    /// Solves for the new atoms: W <- normalise((A^T A + l I)^-1 (A^T X + l W)) with l =
    /// `regularisation` * trace(A^T A) / s, then replaces unused and near-duplicate atoms by
    /// the residuals of the worst reconstructed items.
    ///
    /// # Errors
    /// [`Error::Argument`] if no item was added that is not zero, [`Error::Interrupted`].
    pub fn finish(
        self,
        encoder: &Encoder,
        regularisation: f64,
        control: &Control,
    ) -> Result<Round> {
        let (s, d) = (encoder.len(), encoder.width());
        let mut normal = self.normal;
        let trace: f64 = (0..s).map(|j| normal.codes_by_codes[j * s + j]).sum();
        if trace <= 0.0 {
            return Err(Error::argument(
                "every item is zero; a dictionary is learnt from items with a direction",
            ));
        }
        let ridge = regularisation * trace / s as f64;
        for j in 0..s {
            normal.codes_by_codes[j * s + j] += ridge;
        }
        for (sum, &entry) in normal.codes_by_items.iter_mut().zip(encoder.atoms()) {
            *sum += ridge * f64::from(entry);
        }
        cholesky::solve(
            &mut normal.codes_by_codes,
            &mut normal.codes_by_items,
            s,
            control,
        )?;
        let mut atoms = unit_rows(&normal.codes_by_items, d, encoder.atoms());
        let duplicates = duplicates(&atoms, d, &normal.usage, control)?;
        let mut residuals = self.worst.into_residuals();
        let (mut unused, mut replaced_duplicates) = (0, 0);
        for j in 0..s {
            if normal.usage[j] != 0 && !duplicates[j] {
                continue;
            }
            let Some(residual) = residuals.next() else {
                break;
            };
            atoms[j * d..(j + 1) * d].copy_from_slice(&residual);
            if normal.usage[j] == 0 {
                unused += 1;
            } else {
                replaced_duplicates += 1;
            }
        }
        Ok(Round {
            atoms,
            cosine: self.cosine_sum / self.items.max(1) as f64,
            items: self.items,
            usage: normal.usage,
            unused,
            duplicates: replaced_duplicates,
        })
    }
}

/// Rows scaled to unit norm; a row that vanished keeps its former direction.
fn unit_rows(rows: &[f64], d: usize, former: &[f32]) -> Vec<f32> {
    let mut out = former.to_vec();
    for (out, row) in out.chunks_exact_mut(d).zip(rows.chunks_exact(d)) {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm > 1e-12 {
            for (out, value) in out.iter_mut().zip(row) {
                *out = (value / norm) as f32;
            }
        }
    }
    out
}

/// Which atoms nearly equal one that more items use (on equal use: one before them).
fn duplicates(atoms: &[f32], d: usize, usage: &[u64], control: &Control) -> Result<Vec<bool>> {
    const PANEL: usize = 64;
    let s = usage.len();
    let panels: Vec<Vec<bool>> = atoms
        .par_chunks(PANEL * d)
        .enumerate()
        .map(|(panel, rows)| {
            control.check()?;
            let mut cosines = vec![0f32; rows.len() / d * s];
            gemm::rows_by_rows(rows, atoms, d, &mut cosines, s);
            Ok((cosines.chunks_exact(s).enumerate())
                .map(|(i, cosines)| {
                    let mine = panel * PANEL + i;
                    let precedes = |other: usize| {
                        (usage[other], std::cmp::Reverse(other))
                            > (usage[mine], std::cmp::Reverse(mine))
                    };
                    (cosines.iter().enumerate())
                        .any(|(other, cosine)| cosine.abs() > DUPLICATE && precedes(other))
                })
                .collect())
        })
        .collect::<Result<_>>()?;
    Ok(panels.concat())
}
