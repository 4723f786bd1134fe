//! Sketches: product quantisation to 4 bits a subspace, of what a row has beyond its centroid.
//! Knows vectors and codebooks, nothing of clusters or rows.
//!
//! A codebook is stored as (subspaces, width, 16): the 16 levels of a number side by side, as
//! the kernel that compares them wants it. Vectors are filled with zeros up to
//! `subspaces * width` numbers.

use rayon::prelude::*;

use super::build::Random;
use super::{MAX_SUBSPACES, SUBSPACE_STEP};
use crate::control::Control;
use crate::kernels::clusters::{SKETCH_BYTES, SKETCH_LEVELS, SKETCH_ROWS};
use crate::kernels::Kernels;
use crate::{Error, Result};

/// Subspaces are this many at most by default: 48 bytes a row. At d = 384, four numbers each,
/// a sketch keeps 98% of the exact top 100 in its best 800 (62,666 rows); 64 subspaces need
/// 2,000 for that, 128 need 400 and make the scan a third slower.
const DEFAULT_SUBSPACES: usize = 96;
/// Rounds of Lloyd's algorithm over a codebook; more change nothing that recall shows.
const ROUNDS: usize = 10;
/// Vectors that one task compares.
const VECTORS_A_TASK: usize = 256;

/// Subspaces and their width, for items of width `d`.
pub fn shape(d: usize) -> (usize, usize) {
    let width = d.div_ceil(DEFAULT_SUBSPACES);
    let subspaces = d.div_ceil(width).next_multiple_of(SUBSPACE_STEP);
    (subspaces.min(MAX_SUBSPACES), width)
}

/// Codebooks learnt from vectors of `subspaces * width` numbers by Lloyd's algorithm.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn learn(
    vectors: &[f32],
    (subspaces, width): (usize, usize),
    random: &mut Random,
    kernels: Kernels,
    control: &Control,
) -> Result<Vec<f32>> {
    let padded = subspaces * width;
    let n = vectors.len() / padded;
    let mut book = vec![0.0f32; padded * SKETCH_LEVELS];
    for level in 0..SKETCH_LEVELS.min(n) {
        let vector = &vectors[random.below(n) * padded..][..padded];
        for (levels, &x) in book.chunks_exact_mut(SKETCH_LEVELS).zip(vector) {
            levels[level] = x;
        }
    }
    let mut codes = vec![0u8; n * subspaces];
    for _ in 0..ROUNDS {
        codes
            .par_chunks_mut(VECTORS_A_TASK * subspaces)
            .zip(vectors.par_chunks(VECTORS_A_TASK * padded))
            .try_for_each(|(codes, vectors)| {
                control.check()?;
                for (codes, x) in codes
                    .chunks_exact_mut(subspaces)
                    .zip(vectors.chunks_exact(padded))
                {
                    kernels.nearest_levels(x, &book, width, codes);
                }
                Ok::<_, Error>(())
            })?;
        book.par_chunks_mut(width * SKETCH_LEVELS)
            .enumerate()
            .for_each(|(subspace, book)| {
                let members = (0..n).map(|v| {
                    let x = &vectors[v * padded + subspace * width..][..width];
                    (usize::from(codes[v * subspaces + subspace]), x)
                });
                move_to_means(book, members);
            });
    }
    Ok(book)
}

/// Moves each level of one subspace to the mean of its members; one without members stays.
fn move_to_means<'a>(book: &mut [f32], members: impl Iterator<Item = (usize, &'a [f32])>) {
    let mut sums = vec![0.0f64; book.len()];
    let mut counts = [0.0f64; SKETCH_LEVELS];
    for (level, x) in members {
        counts[level] += 1.0;
        for (sums, &x) in sums.chunks_exact_mut(SKETCH_LEVELS).zip(x) {
            sums[level] += f64::from(x);
        }
    }
    for (levels, sums) in book
        .chunks_exact_mut(SKETCH_LEVELS)
        .zip(sums.chunks_exact(SKETCH_LEVELS))
    {
        for ((level, sum), count) in levels.iter_mut().zip(sums).zip(counts) {
            if count > 0.0 {
                *level = (sum / count) as f32;
            }
        }
    }
}

/// Writes the codes of a row into its block.
pub fn write(block: &mut [u8], row: usize, codes: &[u8]) {
    let (byte, shift) = (row % SKETCH_BYTES, 4 * (row / SKETCH_BYTES));
    debug_assert!(row < SKETCH_ROWS);
    for (bytes, &code) in block.chunks_exact_mut(SKETCH_BYTES).zip(codes) {
        bytes[byte] |= code << shift;
    }
}

/// Look-up tables of a query: one byte an entry, in one unit for all.
#[derive(Debug, Default)]
pub struct Table {
    /// Entries, 16 a subspace.
    pub bytes: Vec<u8>,
    /// The largest sum of entries.
    pub max_sum: i32,
    /// What one is worth.
    pub unit: f64,
    products: Vec<f64>,
}

impl Table {
    /// Fills the table for a query. The smallest entry of each subspace becomes 0: that takes
    /// the same from every row.
    pub fn fill(&mut self, query: &[f64], book: &[f32], subspaces: usize) {
        let width = book.len() / SKETCH_LEVELS / subspaces;
        self.products.clear();
        self.products.resize(subspaces * SKETCH_LEVELS, 0.0);
        let mut largest_span = 0.0f64;
        for ((products, book), query) in self
            .products
            .chunks_exact_mut(SKETCH_LEVELS)
            .zip(book.chunks_exact(width * SKETCH_LEVELS))
            .zip(query.chunks(width))
        {
            for (levels, &x) in book.chunks_exact(SKETCH_LEVELS).zip(query) {
                for (product, &level) in products.iter_mut().zip(levels) {
                    *product += x * f64::from(level);
                }
            }
            let least = products.iter().fold(f64::INFINITY, |a, &b| a.min(b));
            let largest = products.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            products.iter_mut().for_each(|x| *x -= least);
            largest_span = largest_span.max(largest - least);
        }
        // a span of 0 belongs to a zero query, one of no number to a damaged file
        let is_usable = largest_span > 0.0 && largest_span.is_finite();
        self.unit = if is_usable { largest_span / 255.0 } else { 1.0 };
        self.bytes.clear();
        // `as` saturates and makes 0 of NaN
        let bytes = self.products.iter().map(|x| (x / self.unit).round() as u8);
        self.bytes.extend(bytes);
        self.max_sum = self
            .bytes
            .chunks_exact(SKETCH_LEVELS)
            .map(|levels| i32::from(levels.iter().copied().max().unwrap_or(0)))
            .sum();
    }
}
