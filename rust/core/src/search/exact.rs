//! Exact weights of many queries, of each for the latents that its candidates have. One by one,
//! queries would read most of the dictionary each, from a cache far away. So a few atoms at a time
//! are widened to double precision, where a first-level cache holds them, and multiplied with
//! some queries, which a second-level cache holds.

use std::ops::Range;

use rayon::prelude::*;

use super::WeightSource;
use crate::control::Control;
use crate::memory::OwnedSlice;
use crate::{Error, Result};

/// Bytes of atoms in double precision that stay in a first-level cache beside a query.
const NEAR_BYTES: usize = 24 << 10;
/// Bytes of queries that stay in a second-level cache.
const QUERIES_BYTES: usize = 384 << 10;
/// Atoms of a task.
const ATOMS_A_BLOCK: usize = 256;

/// Weights of some queries, each for latents of its own.
#[derive(Debug)]
pub struct ExactWeights {
    /// By [`ATOMS_A_BLOCK`] atoms.
    blocks: Vec<BlockWeights>,
}

#[derive(Debug)]
struct BlockWeights {
    /// Of the first query's latents in the block, then of the second's, and so on.
    weights: Vec<f64>,
    /// Where the weights of each query begin, and the end.
    starts: Vec<usize>,
}

impl ExactWeights {
    /// For each query, of `d` numbers each, the weights of its latents, which ascend; the same
    /// numbers as [`WeightSource::fill`] gives.
    ///
    /// # Errors
    /// Where there is no dictionary; [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn new(
        source: &WeightSource<'_>,
        embeddings: &[f64],
        latents: &[Vec<u32>],
        control: &Control,
    ) -> Result<Self> {
        let atoms = source.dictionary()?;
        let blocks = (0..atoms.len())
            .step_by(ATOMS_A_BLOCK)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|first| {
                let block = first..atoms.len().min(first + ATOMS_A_BLOCK);
                BlockWeights::new(source, embeddings, latents, block, control)
            })
            .collect::<Result<_>>()?;
        Ok(Self { blocks })
    }

    /// Writes the weights of a query's latents, the same as before, to their places in a table.
    /// Latents without an atom, as only a damaged file has, get none.
    pub fn fill(&self, query: usize, latents: &[u32], table: &mut [f64]) {
        for (block, first) in self.blocks.iter().zip((0..).step_by(ATOMS_A_BLOCK)) {
            let weights = &block.weights[block.starts[query]..block.starts[query + 1]];
            let some = within(latents, &(first..first + ATOMS_A_BLOCK));
            for (&latent, &weight) in some.iter().zip(weights) {
                table[latent as usize] = weight;
            }
        }
    }
}

impl BlockWeights {
    fn new(
        source: &WeightSource<'_>,
        embeddings: &[f64],
        latents: &[Vec<u32>],
        block: Range<usize>,
        control: &Control,
    ) -> Result<Self> {
        let atoms = source.dictionary()?;
        let d = atoms.d();
        let of_block: Vec<&[u32]> = latents.iter().map(|all| within(all, &block)).collect();
        let mut starts = vec![0];
        starts.extend(of_block.iter().scan(0, |end, latents| {
            *end += latents.len();
            Some(*end)
        }));
        let n = starts[latents.len()];
        let mut weights =
            bytemuck::allocation::try_zeroed_vec(n).map_err(|()| Error::OutOfMemory {
                what: "exact weights of queries",
                bytes: n.saturating_mul(size_of::<f64>()),
            })?;
        let near = (NEAR_BYTES / (d * size_of::<f64>())).max(1);
        let group = (QUERIES_BYTES / (d * size_of::<f64>())).max(1);
        let mut wide = OwnedSlice::zeroed(near * d, "atoms in double precision")?;
        // what is left to do of each query
        let mut rest = of_block;
        let mut outs: Vec<&mut [f64]> = Vec::with_capacity(rest.len());
        let mut unwritten = weights.as_mut_slice();
        for latents in &rest {
            let (out, behind) = unwritten.split_at_mut(latents.len());
            outs.push(out);
            unwritten = behind;
        }
        for ((rest, outs), embeddings) in rest
            .chunks_mut(group)
            .zip(outs.chunks_mut(group))
            .zip(embeddings.chunks(group * d))
        {
            control.check()?;
            for first in block.clone().step_by(near) {
                let end = block.end.min(first + near);
                let numbers = &atoms.rows()[first * d..end * d];
                for (to, &from) in wide.iter_mut().zip(numbers) {
                    *to = f64::from(from);
                }
                let wide = &wide[..numbers.len()];
                for ((rest, out), embedding) in rest
                    .iter_mut()
                    .zip(outs.iter_mut())
                    .zip(embeddings.chunks_exact(d))
                {
                    let n = rest
                        .iter()
                        .take_while(|&&latent| (latent as usize) < end)
                        .count();
                    let (some, behind) = rest.split_at(n);
                    *rest = behind;
                    let (now, later) = std::mem::take(out).split_at_mut(n);
                    *out = later;
                    source
                        .kernels
                        .project_some_wide(wide, d, first as u32, some, embedding, now);
                }
            }
        }
        Ok(Self { weights, starts })
    }
}

/// Those of ascending latents that lie in a range.
fn within<'a>(latents: &'a [u32], range: &Range<usize>) -> &'a [u32] {
    let start = latents.partition_point(|&latent| (latent as usize) < range.start);
    let end = latents.partition_point(|&latent| (latent as usize) < range.end);
    &latents[start..end]
}
