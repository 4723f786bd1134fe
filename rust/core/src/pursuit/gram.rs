//! The Gram matrix K = W Wᵀ of a dictionary's atoms, as pursuit reads it: whole rows, one after
//! each choice of an atom. It is what bounds the speed of pursuit (a row of 4,096 float32 is
//! 16 KB, read once an atom chosen), so it may be kept in fewer bits for choosing atoms; values
//! are always fitted with exact inner products of the atoms. Knows nothing of items.

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::blocks::{blocks_for, flat_mut, Block, Entry, BLOCK};
use crate::control::Control;
use crate::gemm;
use crate::{Error, Result};

/// How the Gram matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes an entry.
    Float32,
    /// 2 bytes an entry: 16-bit integers with a step a row, errors below 1.6e-5.
    Int16,
    /// 1 byte an entry: 8-bit integers with a step a row, errors below 4e-3. Atoms are chosen
    /// with correlations that are off by less than one part in a hundred of the largest.
    Int8,
    /// No Gram matrix: correlations are computed anew from the residual after each choice.
    Free,
}

impl Precision {
    /// The precision called `name`: "float32", "int16", "int8" or "free".
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::Float32),
            "int16" => Ok(Self::Int16),
            "int8" => Ok(Self::Int8),
            "free" => Ok(Self::Free),
            _ => Err(Error::argument(format!(
                "gram is {name:?}; expected \"float32\", \"int16\", \"int8\" or \"free\""
            ))),
        }
    }

    /// Bytes that the Gram matrix of `atoms` atoms takes, [`u64::MAX`] where that overflows.
    pub fn bytes(self, atoms: usize) -> u64 {
        let entry = match self {
            Self::Float32 => 4,
            Self::Int16 => 2,
            Self::Int8 => 1,
            Self::Free => return 0,
        };
        (atoms as u64)
            .checked_mul((blocks_for(atoms) * BLOCK) as u64)
            .and_then(|entries| entries.checked_mul(entry))
            .unwrap_or(u64::MAX)
    }
}

/// Rows of K, an entry of type `E` times the step of its row.
pub struct Rows<E> {
    entries: Vec<Block<E>>,
    steps: Vec<f32>,
    blocks: usize,
}

impl<E: Entry> Rows<E> {
    /// Row `latent` and the number that its entries are to be multiplied by.
    #[inline]
    pub fn row(&self, latent: usize) -> (f32, &[Block<E>]) {
        let start = latent * self.blocks;
        (
            self.steps[latent],
            &self.entries[start..start + self.blocks],
        )
    }
}

/// K in one of its precisions.
pub enum Gram {
    /// See [`Precision::Float32`].
    Float32(Rows<f32>),
    /// See [`Precision::Int16`].
    Int16(Rows<i16>),
    /// See [`Precision::Int8`].
    Int8(Rows<i8>),
    /// See [`Precision::Free`].
    Free,
}

impl Gram {
    /// K of `atoms` (s, d), row-major, built on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] if it takes more than `limit_bytes`, [`Error::OutOfMemory`] if the
    /// system does not give that much, [`Error::Interrupted`].
    pub fn new(
        atoms: &[f32],
        d: usize,
        precision: Precision,
        limit_bytes: u64,
        control: &Control,
    ) -> Result<Self> {
        let s = atoms.len() / d;
        let bytes = precision.bytes(s);
        if bytes > limit_bytes {
            return Err(Error::argument(format!(
                "the Gram matrix of {s} atoms takes {bytes} bytes as {precision:?} but the limit \
                 is {limit_bytes}; raise the limit, ask for fewer bits (int8 takes {}), or do \
                 without it (gram=\"free\": no memory, slower)",
                Precision::Int8.bytes(s)
            )));
        }
        Ok(match precision {
            Precision::Float32 => Self::Float32(build(atoms, d, control, |_, values, out| {
                out.copy_from_slice(values);
                1.0
            })?),
            Precision::Int16 => Self::Int16(build(atoms, d, control, |latent, values, out| {
                let step = step_of(latent, values, f32::from(i16::MAX));
                for (out, value) in out.iter_mut().zip(values) {
                    *out = (value / step).round() as i16; // saturates on the diagonal
                }
                step
            })?),
            Precision::Int8 => Self::Int8(build(atoms, d, control, |latent, values, out| {
                let step = step_of(latent, values, f32::from(i8::MAX));
                for (out, value) in out.iter_mut().zip(values) {
                    *out = (value / step).round() as i8; // saturates on the diagonal
                }
                step
            })?),
            Precision::Free => Self::Free,
        })
    }
}

/// The step that lets the largest entry beside the diagonal reach `top`. The diagonal itself
/// does not count: pursuit sets a chosen atom's own correlation to zero without reading it.
fn step_of(latent: usize, values: &[f32], top: f32) -> f32 {
    let largest = (values.iter().enumerate())
        .filter(|&(other, _)| other != latent)
        .fold(0f32, |largest, (_, value)| largest.max(value.abs()));
    if largest > 0.0 {
        largest / top
    } else {
        1.0
    }
}

/// Rows computed together: enough for the matrix product to be efficient, few enough that a
/// float32 panel of them stays small beside K and that a cancelled build ends soon.
const PANEL: usize = 64;

fn build<E: Entry>(
    atoms: &[f32],
    d: usize,
    control: &Control,
    store: impl Fn(usize, &[f32], &mut [E]) -> f32 + Sync,
) -> Result<Rows<E>> {
    let s = atoms.len() / d;
    let blocks = blocks_for(s);
    let mut entries = zeroed_blocks::<E>(s * blocks)?;
    let mut steps = vec![1f32; s];
    entries
        .par_chunks_mut(PANEL * blocks)
        .zip(steps.par_chunks_mut(PANEL))
        .enumerate()
        .try_for_each(|(panel, (entries, steps))| {
            control.check()?;
            let first = panel * PANEL;
            let mut values = vec![0f32; steps.len() * s];
            let rows = &atoms[first * d..(first + steps.len()) * d];
            gemm::rows_by_rows(rows, atoms, d, &mut values, s);
            for (i, step) in steps.iter_mut().enumerate() {
                let out = flat_mut(&mut entries[i * blocks..(i + 1) * blocks]);
                *step = store(first + i, &values[i * s..(i + 1) * s], &mut out[..s]);
            }
            Ok::<(), Error>(())
        })?;
    Ok(Rows {
        entries,
        steps,
        blocks,
    })
}

/// Zero blocks, or an error where the system has not that much memory.
pub fn zeroed_blocks<T: Zeroable>(blocks: usize) -> Result<Vec<Block<T>>> {
    bytemuck::allocation::try_zeroed_slice_box(blocks)
        .map(Vec::from)
        .map_err(|()| Error::OutOfMemory {
            what: "a Gram matrix or a batch of correlations",
            bytes: blocks.saturating_mul(size_of::<Block<T>>()),
        })
}
