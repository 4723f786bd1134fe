//! Queries as tiles of 8-bit weights: what the integer pass compares rows with.
//!
//! Weights need not be exact here: they are rounded to 8 bits in any case, and how far they are
//! off goes into the bound (`eta` of [`super::integer`]). So `W q` is a single-precision matrix
//! product, an eighth of the work of the exact one, which is made later for the few latents
//! that the candidates have.

use rayon::prelude::*;

use super::integer::RowCoder;
use super::WeightSource;
use crate::gemm::rows_by_rows;
use crate::kernels::tile::MOST;
use crate::kernels::{Tile, TileLayout, WeightTable, TILE};
use crate::{Error, Result};

/// Queries that a task multiplies with all atoms are a multiple of this.
const QUERIES_A_TASK: usize = 16;
/// Latents that are turned from rows of queries to lines of latents at a time.
const LATENTS_A_TURN: usize = 64;

/// The largest weights for which single precision neither overflows nor loses relative
/// precision.
const SOUND_WEIGHTS: std::ops::Range<f32> = 1e-15..1e15;

/// Queries side by side.
#[derive(Debug)]
pub struct QueryTiles {
    /// Their weights, [`TILE`] queries each.
    pub tiles: Vec<Tile>,
    /// What each query adds to the error of every row; `None` where no bound holds for it, as
    /// for a query whose weights are all 0.
    pub errors: Vec<Option<i32>>,
    dim: usize,
    /// Weights in single precision, a row a query; none where they were exact.
    rough: Vec<f32>,
    /// How far each query's rough weights may be from exact ones.
    off: Vec<f64>,
}

impl QueryTiles {
    /// From embeddings of `d` numbers each, which are multiplied by the dictionary.
    ///
    /// # Errors
    /// Where there is no dictionary, or no memory.
    pub fn from_embeddings(
        embeddings: &[f64],
        source: &WeightSource<'_>,
        coder: &RowCoder<'_>,
        layout: TileLayout,
    ) -> Result<Self> {
        let atoms = source.dictionary()?;
        let (d, s) = (atoms.d(), atoms.len());
        let n = embeddings.len() / d;
        let longest = atoms
            .rows()
            .par_chunks(d)
            .map(|atom| atom.iter().map(|a| a * a).sum::<f32>())
            .reduce(|| 0.0, f32::max)
            .sqrt();
        let narrow: Vec<f32> = embeddings.iter().map(|&x| x as f32).collect();
        let off: Vec<f64> = narrow
            .chunks_exact(d)
            .map(|embedding| rounding_of_product(d, longest, embedding))
            .collect();
        let mut rough = zeros(n.saturating_mul(s))?;
        // as few products as there are threads: each of them packs all atoms for itself
        let some = n
            .div_ceil(rayon::current_num_threads())
            .next_multiple_of(QUERIES_A_TASK);
        rough
            .par_chunks_mut(some * s)
            .zip(narrow.par_chunks(some * d))
            .for_each(|(rough, narrow)| rows_by_rows(narrow, atoms.rows(), d, rough, s));
        Self::of(rough, off, s, coder, layout)
    }

    /// From codes, in sparse mode.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn from_codes(
        queries: std::ops::Range<usize>,
        source: &WeightSource<'_>,
        coder: &RowCoder<'_>,
        table: &mut WeightTable,
        layout: TileLayout,
    ) -> Result<Self> {
        let s = table.weights().len();
        let n = queries.len();
        let mut weights = zeros(n.saturating_mul(s))?;
        for (weights, query) in weights.chunks_exact_mut(s).zip(queries) {
            source.fill_code(query, table);
            for (to, &from) in weights.iter_mut().zip(table.weights()) {
                *to = from as f32;
            }
        }
        let mut tiles = Self::of(weights, vec![0.0; n], s, coder, layout)?;
        tiles.rough = Vec::new();
        Ok(tiles)
    }

    fn of(
        rough: Vec<f32>,
        off: Vec<f64>,
        s: usize,
        coder: &RowCoder<'_>,
        layout: TileLayout,
    ) -> Result<Self> {
        let (tiles, errors): (Vec<_>, Vec<_>) = rough
            .par_chunks(TILE * s)
            .zip(off.par_chunks(TILE))
            .map(|(rough, off)| tile_of(rough, off, s, coder, layout))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        Ok(Self {
            tiles,
            errors: errors.concat(),
            dim: s,
            rough,
            off,
        })
    }

    /// The weights of a query, each at most so far from the exact one, where that is more than
    /// nothing.
    pub fn rough(&self, query: usize) -> Option<(&[f32], f64)> {
        let weights = self.rough.get(query * self.dim..(query + 1) * self.dim)?;
        Some((weights, self.off[query]))
    }
}

fn zeros(n: usize) -> Result<Vec<f32>> {
    bytemuck::allocation::try_zeroed_vec(n).map_err(|()| Error::OutOfMemory {
        what: "weights of queries",
        bytes: n.saturating_mul(size_of::<f32>()),
    })
}

/// How far an entry of a single-precision product of rows of `d` numbers may be from the exact
/// one, whatever the order of additions: `gamma_d |a| |x|`, with `gamma_d = d 2^-24 / (1 - d 2^-24)`,
/// and one more rounding for the embedding itself.
fn rounding_of_product(d: usize, longest: f32, embedding: &[f32]) -> f64 {
    let norm = embedding
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt();
    // d + 8 covers the quotient of gamma, the norm of atoms in single precision, and underflow
    (d + 8) as f64 * f64::powi(2.0, -24) * 1.01 * f64::from(longest) * norm
}

/// Rounds weights, a row a query, each of them at most `off` from the exact one.
fn tile_of(
    weights: &[f32],
    off: &[f64],
    s: usize,
    coder: &RowCoder<'_>,
    layout: TileLayout,
) -> Result<(Tile, Vec<Option<i32>>)> {
    let most = f32::from(MOST);
    let mut tile = Tile::zeros(s, layout)?;
    let rows: Vec<&[f32]> = weights.chunks_exact(s).collect();
    let largest: Vec<f32> = rows
        .iter()
        .map(|row| {
            row.iter()
                .fold(0.0f32, |largest, weight| largest.max(weight.abs()))
        })
        .collect();
    // where the bound is this small no product can have overflowed
    let is_sound = |query: usize| SOUND_WEIGHTS.contains(&largest[query]) && off[query] < 1e15;
    let inverse: Vec<f32> = (0..rows.len())
        .map(|query| {
            if is_sound(query) {
                most / largest[query]
            } else {
                0.0
            }
        })
        .collect();
    let mut counts = vec![[0u32; MOST as usize + 1]; rows.len()];
    let mut turned = [[0i8; TILE]; LATENTS_A_TURN];
    for first in (0..s).step_by(LATENTS_A_TURN) {
        let n = LATENTS_A_TURN.min(s - first);
        for (query, row) in rows.iter().enumerate() {
            for (line, &weight) in turned.iter_mut().zip(&row[first..first + n]) {
                // adding and taking away 1.5 * 2^23 rounds to nearest, and unlike round() in one
                // instruction everywhere; what is beyond MOST by rounding is clamped
                const SHIFT: f32 = 12_582_912.0;
                let scaled = (weight * inverse[query]).clamp(-most, most);
                let rounded = ((scaled + SHIFT) - SHIFT) as i8;
                counts[query][usize::from(rounded.unsigned_abs())] += 1;
                line[query] = rounded;
            }
        }
        for (line, latent) in turned[..n].iter().zip(first..) {
            tile.set_weights(latent, line);
        }
    }
    let errors: Vec<Option<i32>> = (0..rows.len())
        .map(|query| {
            is_sound(query).then(|| {
                let unit = f64::from(largest[query]) / f64::from(MOST);
                // the last term: up to four roundings of numbers of at most MOST, on the way
                // from a double to the product with the inverse
                let eta = off[query] / unit + f64::from(MOST) * 4.0 * f64::powi(2.0, -24);
                coder.query_error(&counts[query], eta)
            })
        })
        .collect();
    let mut offsets = [0; TILE];
    for (offset, error) in offsets.iter_mut().zip(&errors) {
        *offset = coder.start(error.unwrap_or(0));
    }
    tile.set_offsets(&offsets);
    Ok((tile, errors))
}
