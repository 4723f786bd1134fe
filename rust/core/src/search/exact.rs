//! Exact weights of many queries, of each for the latents that its candidates have: atoms are
//! taken in blocks that a second-level cache holds, and a block is read once for all queries.
//! One by one, queries would read most of the dictionary each.

use rayon::prelude::*;

use super::WeightSource;
use crate::control::Control;
use crate::Result;

/// Bytes of atoms in single precision that stay in a second-level cache beside queries.
const BLOCK_BYTES: usize = 384 << 10;

/// For each query, of `d` numbers each, the weights of its latents, which ascend; the same
/// numbers as [`WeightSource::fill`] gives. Latents without an atom, as only a damaged file has,
/// get no weight: a query's weights then end before its latents do.
///
/// # Errors
/// Where there is no dictionary; [`crate::Error::Interrupted`].
pub fn weights_of(
    source: &WeightSource<'_>,
    embeddings: &[f64],
    latents: &[Vec<u32>],
    control: &Control,
) -> Result<Vec<Vec<f64>>> {
    let atoms = source.dictionary()?;
    let d = atoms.d();
    let a_block = (BLOCK_BYTES / (d * size_of::<f32>())).max(1);
    let blocks: Vec<Vec<f64>> = (0..atoms.len())
        .step_by(a_block)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|first| {
            control.check()?;
            let last = atoms.len().min(first + a_block);
            let mut made = Vec::new();
            for (latents, embedding) in latents.iter().zip(embeddings.chunks_exact(d)) {
                let some = within(latents, first, last);
                let start = made.len();
                made.resize(start + some.len(), 0.0);
                let out = &mut made[start..];
                source
                    .kernels
                    .project_some(atoms.rows(), d, some, embedding, out);
            }
            Ok(made)
        })
        .collect::<Result<_>>()?;
    let mut weights: Vec<Vec<f64>> = latents
        .iter()
        .map(|latents| Vec::with_capacity(latents.len()))
        .collect();
    for (made, first) in blocks.iter().zip((0..).step_by(a_block)) {
        let mut rest = made.as_slice();
        for (weights, latents) in weights.iter_mut().zip(latents) {
            let n = within(latents, first, first + a_block).len();
            let (of_query, behind) = rest.split_at(n.min(rest.len()));
            weights.extend_from_slice(of_query);
            rest = behind;
        }
    }
    Ok(weights)
}

/// Those of ascending latents that lie in `first..last`.
fn within(latents: &[u32], first: usize, last: usize) -> &[u32] {
    let start = latents.partition_point(|&latent| (latent as usize) < first);
    let end = latents.partition_point(|&latent| (latent as usize) < last);
    &latents[start..end]
}
