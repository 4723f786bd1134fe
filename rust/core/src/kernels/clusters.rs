//! Kernels of approximate search: routing to clusters, sums of sketches, and the tiles that
//! assign items to clusters.
//!
//! Routing and sketches are integers, so every instruction set gives the same numbers without
//! more ado. A tile adds term by term in every lane of its own, so its sums have one order
//! whatever the width of a register.

#[cfg(target_arch = "x86_64")]
use super::x86_64::clusters as x86;
use super::{Isa, Kernels};

/// Columns of a tile: two registers of AVX-512, four of AVX2.
pub const COLUMNS: usize = 32;
/// Rows of a block of sketches.
pub const SKETCH_ROWS: usize = 32;
/// Bytes of a subspace in a block: one nibble a row.
pub const SKETCH_BYTES: usize = SKETCH_ROWS / 2;
/// Entries of a subspace's codebook, and of its look-up table.
pub const SKETCH_LEVELS: usize = 16;
/// Calls a function of one name in the module of the instruction set of `$kernels`.
macro_rules! dispatch {
    ($kernels:expr, $generic:path, $avx2:path, $avx512:path, ($($argument:expr),*)) => {
        match $kernels.isa() {
            Isa::Scalar => $generic($($argument),*),
            // SAFETY: Kernels of an instruction set exist only where the CPU has it
            // (Kernels::of is the only way to one). These functions ask for nothing else.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { $avx2($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { $avx512($($argument),*) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => unreachable!("Kernels::of refuses it on this target"),
        }
    };
}

impl Kernels {
    /// `out[c] = sum_i centroids[c * d + i] * query[i]` for every centroid.
    ///
    /// The caller keeps `127 * d * max |query|` below 2^31, so no sum overflows.
    ///
    /// # Panics
    /// Where the lengths do not fit each other.
    pub fn route(self, centroids: &[i8], query: &[i16], out: &mut [i32]) {
        assert_eq!(centroids.len(), out.len() * query.len());
        dispatch!(
            self,
            route,
            x86::route_avx2,
            x86::route_avx512,
            (centroids, query, out)
        );
    }

    /// Sums of a block of [`SKETCH_ROWS`] rows: `out[r] = sum_m table[m][code of row r in m]`.
    /// Returns one bit for each row whose sum is at least `least`.
    ///
    /// # Panics
    /// Where block and table differ in length, are not a multiple of four subspaces, or have
    /// more than 256, whose sums of bytes 16 bits could not hold.
    pub fn sketch_sums(
        self,
        block: &[u8],
        table: &[u8],
        least: u16,
        out: &mut [u16; SKETCH_ROWS],
    ) -> u32 {
        assert!(block.len() == table.len() && block.len() <= 256 * SKETCH_BYTES);
        assert!(block.len().is_multiple_of(4 * SKETCH_BYTES));
        dispatch!(
            self,
            sketch_sums,
            x86::sketch_sums_avx2,
            x86::sketch_sums_avx512,
            (block, table, least, out)
        )
    }

    /// Finds for each vector the largest of the sums `sum_t value_t * tile[latent_t][column]`
    /// over the columns of a tile: `best[v]` becomes it, with `first_column` plus its column,
    /// where it is larger than before. Lower columns win ties.
    ///
    /// # Panics
    /// Where the lengths do not fit each other, or a latent has no row in the tile.
    pub fn best_of_tile(
        self,
        vectors: &Vectors,
        tile: &[f32],
        first_column: u32,
        best: &mut [(f32, u32)],
    ) {
        assert_eq!(vectors.len(), best.len());
        dispatch!(
            self,
            best_of_tile,
            x86::best_of_tile_avx2,
            x86::best_of_tile_avx512,
            (vectors, tile, first_column, best)
        );
    }

    /// `out[r] = sum_i rows[r][i] * columns[i]` over the columns of a tile, as a tile.
    ///
    /// # Panics
    /// Where the lengths do not fit each other.
    pub fn multiply_tile(self, rows: &[f32], columns: &[f32], out: &mut [f32]) {
        let d = columns.len() / COLUMNS;
        assert!(d > 0 && rows.len() / d * COLUMNS == out.len());
        dispatch!(
            self,
            multiply_tile,
            x86::multiply_tile_avx2,
            x86::multiply_tile_avx512,
            (rows, columns, out)
        );
    }

    /// The nearest entry of every subspace's codebook: `codes[m] = argmin_j |x_m - book[m][.][j]|`
    /// over subspaces of `width` numbers. Lower entries win ties.
    ///
    /// # Panics
    /// Where the lengths do not fit each other.
    pub fn nearest_levels(self, x: &[f32], book: &[f32], width: usize, codes: &mut [u8]) {
        assert!(x.len() == codes.len() * width && book.len() == x.len() * SKETCH_LEVELS);
        dispatch!(
            self,
            nearest_levels,
            x86::nearest_levels_avx2,
            x86::nearest_levels_avx512,
            (x, book, width, codes)
        );
    }
}

/// Sparse vectors, one after the other.
#[derive(Debug, Default)]
pub struct Vectors {
    /// Where each ends.
    ends: Vec<usize>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

impl Vectors {
    /// Forgets all vectors.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.latents.clear();
        self.values.clear();
    }

    /// Adds one of these terms.
    pub fn push(&mut self, terms: impl IntoIterator<Item = (u32, f32)>) {
        for (latent, value) in terms {
            self.latents.push(latent);
            self.values.push(value);
        }
        self.ends.push(self.latents.len());
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The terms of each vector.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let range = std::mem::replace(&mut start, end)..end;
            (&self.latents[range.clone()], &self.values[range])
        })
    }
}

#[inline(always)]
pub(super) fn route(centroids: &[i8], query: &[i16], out: &mut [i32]) {
    for (centroid, out) in centroids.chunks_exact(query.len().max(1)).zip(out) {
        *out = sum_of_products(0, centroid, query);
    }
}

/// `sum` and the products of levels and query, as far as the shorter goes.
#[inline(always)]
pub(super) fn sum_of_products(sum: i32, levels: &[i8], query: &[i16]) -> i32 {
    // no sum overflows by the caller's promise; wrapping keeps the loop free of checks
    levels.iter().zip(query).fold(sum, |sum, (&level, &q)| {
        sum.wrapping_add(i32::from(level).wrapping_mul(i32::from(q)))
    })
}

pub(super) fn sketch_sums(
    block: &[u8],
    table: &[u8],
    least: u16,
    out: &mut [u16; SKETCH_ROWS],
) -> u32 {
    *out = [0; SKETCH_ROWS];
    let (low, high) = out.split_at_mut(SKETCH_BYTES);
    for (codes, table) in block
        .chunks_exact(SKETCH_BYTES)
        .zip(table.chunks_exact(SKETCH_LEVELS))
    {
        let table: &[u8; SKETCH_LEVELS] = table.try_into().expect("sixteen");
        for ((&code, low), high) in codes.iter().zip(&mut *low).zip(&mut *high) {
            *low = low.wrapping_add(u16::from(table[usize::from(code & 15)]));
            *high = high.wrapping_add(u16::from(table[usize::from(code >> 4)]));
        }
    }
    out.iter()
        .enumerate()
        .fold(0, |mask, (row, &sum)| mask | u32::from(sum >= least) << row)
}

#[inline(always)]
pub(super) fn best_of_tile(
    vectors: &Vectors,
    tile: &[f32],
    first_column: u32,
    best: &mut [(f32, u32)],
) {
    let (tile, _) = tile.as_chunks::<COLUMNS>();
    for ((latents, values), best) in vectors.iter().zip(best) {
        let mut sums = [0.0f32; COLUMNS];
        for (&latent, &value) in latents.iter().zip(values) {
            let row = &tile[latent as usize];
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += value * x;
            }
        }
        let largest = sums.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        if largest > best.0 {
            let column = sums.iter().position(|&sum| sum == largest).unwrap_or(0);
            *best = (largest, first_column + column as u32);
        }
    }
}

#[inline(always)]
pub(super) fn multiply_tile(rows: &[f32], columns: &[f32], out: &mut [f32]) {
    let (columns, _) = columns.as_chunks::<COLUMNS>();
    let (out, _) = out.as_chunks_mut::<COLUMNS>();
    for (row, out) in rows.chunks_exact(columns.len().max(1)).zip(out) {
        let mut sums = [0.0f32; COLUMNS];
        for (&x, column) in row.iter().zip(columns) {
            for (sum, &y) in sums.iter_mut().zip(column) {
                *sum += x * y;
            }
        }
        *out = sums;
    }
}

#[inline(always)]
pub(super) fn nearest_levels(x: &[f32], book: &[f32], width: usize, codes: &mut [u8]) {
    let (book, _) = book.as_chunks::<SKETCH_LEVELS>();
    for ((x, book), code) in x
        .chunks_exact(width.max(1))
        .zip(book.chunks_exact(width.max(1)))
        .zip(codes)
    {
        let mut distances = [0.0f32; SKETCH_LEVELS];
        for (&x, levels) in x.iter().zip(book) {
            for (distance, &level) in distances.iter_mut().zip(levels) {
                *distance += (x - level) * (x - level);
            }
        }
        let least = distances.iter().fold(f32::INFINITY, |a, &b| a.min(b));
        *code = distances.iter().position(|&x| x == least).unwrap_or(0) as u8;
    }
}
