//! The kernels of approximate search for AVX2 and AVX-512: plain loops compiled again with
//! wider instructions, and sums of sketches by shuffles of bytes (the fast scan of André,
//! Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB 2015).
//!
//! A block holds 16 bytes a subspace: the codes of rows 0 to 15 in the low nibbles, of rows 16
//! to 31 in the high ones. A table of 16 bytes is looked up for 16 rows by one shuffle in each
//! 128-bit lane; lanes take subspaces in turn. Bytes are added up in 16 bits without unpacking:
//! `pairs` sums them as they come, two rows a word, `odd` the upper rows alone, and the lower
//! rows are what is left of `pairs`. All sums are modulo 2^16 and end below it, since the
//! caller has at most 256 subspaces.

use std::arch::x86_64::*;

use crate::kernels::clusters::{self as plain, Vectors, SKETCH_ROWS};

/// Compiles a plain loop again for two instruction sets.
macro_rules! recompiled {
    ($plain:ident, $avx2:ident, $avx512:ident, ($($argument:ident: $kind:ty),*)) => {
        /// # Safety
        /// The CPU has AVX2.
        #[target_feature(enable = "avx2")]
        pub unsafe fn $avx2($($argument: $kind),*) {
            plain::$plain($($argument),*);
        }

        /// # Safety
        /// The CPU has AVX-512 F, VL, BW and DQ.
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
        pub unsafe fn $avx512($($argument: $kind),*) {
            plain::$plain($($argument),*);
        }
    };
}

recompiled!(
    best_of_tile,
    best_of_tile_avx2,
    best_of_tile_avx512,
    (vectors: &Vectors, tile: &[f32], first_column: u32, best: &mut [(f32, u32)])
);
recompiled!(
    multiply_tile,
    multiply_tile_avx2,
    multiply_tile_avx512,
    (rows: &[f32], columns: &[f32], out: &mut [f32])
);
recompiled!(
    nearest_levels,
    nearest_levels_avx2,
    nearest_levels_avx512,
    (x: &[f32], book: &[f32], width: usize, codes: &mut [u8])
);

/// [`Kernels::route`](crate::kernels::Kernels::route). The plain loop compiled again takes half of
/// each register.
///
/// # Safety
/// The CPU has AVX2. (Lengths that do not fit each other leave centroids out.)
#[target_feature(enable = "avx2")]
pub unsafe fn route_avx2(centroids: &[i8], query: &[i16], out: &mut [i32]) {
    const WIDE: usize = 16;
    for (centroid, out) in centroids.chunks_exact(query.len().max(1)).zip(out) {
        let [mut even, mut odd] = [_mm256_setzero_si256(); 2];
        let (mut levels, mut query) = (
            centroid.chunks_exact(2 * WIDE),
            query.chunks_exact(2 * WIDE),
        );
        for (levels, query) in levels.by_ref().zip(query.by_ref()) {
            // SAFETY: there are 32 levels and 64 bytes of the query; loadu needs no alignment.
            let (levels, query): ([_; 2], [_; 2]) = unsafe {
                let (levels, query) = (levels.as_ptr(), query.as_ptr());
                (
                    [0, WIDE].map(|i| _mm_loadu_si128(levels.add(i).cast())),
                    [0, WIDE].map(|i| _mm256_loadu_si256(query.add(i).cast())),
                )
            };
            let products = |i: usize| _mm256_madd_epi16(_mm256_cvtepi8_epi16(levels[i]), query[i]);
            even = _mm256_add_epi32(even, products(0));
            odd = _mm256_add_epi32(odd, products(1));
        }
        let sums = _mm256_add_epi32(even, odd);
        let sums = _mm_add_epi32(
            _mm256_castsi256_si128(sums),
            _mm256_extracti128_si256::<1>(sums),
        );
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b00_00_11_10>(sums));
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b00_00_00_01>(sums));
        *out = plain::sum_of_products(
            _mm_cvtsi128_si32(sums),
            levels.remainder(),
            query.remainder(),
        );
    }
}

/// [`Kernels::route`](crate::kernels::Kernels::route).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ. (Lengths that do not fit each other leave centroids out.)
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn route_avx512(centroids: &[i8], query: &[i16], out: &mut [i32]) {
    const WIDE: usize = 32;
    for (centroid, out) in centroids.chunks_exact(query.len().max(1)).zip(out) {
        let [mut even, mut odd] = [_mm512_setzero_si512(); 2];
        let (mut levels, mut query) = (
            centroid.chunks_exact(2 * WIDE),
            query.chunks_exact(2 * WIDE),
        );
        for (levels, query) in levels.by_ref().zip(query.by_ref()) {
            // SAFETY: there are 64 levels and 128 bytes of the query; loadu needs no alignment.
            let (levels, query): ([_; 2], [_; 2]) = unsafe {
                let (levels, query) = (levels.as_ptr(), query.as_ptr());
                (
                    [0, WIDE].map(|i| _mm256_loadu_si256(levels.add(i).cast())),
                    [0, WIDE].map(|i| _mm512_loadu_si512(query.add(i).cast())),
                )
            };
            let products = |i: usize| _mm512_madd_epi16(_mm512_cvtepi8_epi16(levels[i]), query[i]);
            even = _mm512_add_epi32(even, products(0));
            odd = _mm512_add_epi32(odd, products(1));
        }
        let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
        *out = plain::sum_of_products(sum, levels.remainder(), query.remainder());
    }
}

/// [`Kernels::sketch_sums`](crate::kernels::Kernels::sketch_sums).
///
/// # Safety
/// The CPU has AVX2. (Lengths that do not fit each other leave subspaces out.)
#[target_feature(enable = "avx2")]
pub unsafe fn sketch_sums_avx2(
    block: &[u8],
    table: &[u8],
    least: u16,
    out: &mut [u16; SKETCH_ROWS],
) -> u32 {
    let nibble = _mm256_set1_epi8(15);
    let [mut pairs_low, mut odd_low, mut pairs_high, mut odd_high] = [_mm256_setzero_si256(); 4];
    for (codes, table) in block.chunks_exact(32).zip(table.chunks_exact(32)) {
        // SAFETY: both chunks have 32 bytes; loadu needs no alignment.
        let (codes, table) = unsafe {
            (
                _mm256_loadu_si256(codes.as_ptr().cast()),
                _mm256_loadu_si256(table.as_ptr().cast()),
            )
        };
        let low = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
        let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
        let high = _mm256_shuffle_epi8(table, codes);
        pairs_low = _mm256_add_epi16(pairs_low, low);
        odd_low = _mm256_add_epi16(odd_low, _mm256_srli_epi16::<8>(low));
        pairs_high = _mm256_add_epi16(pairs_high, high);
        odd_high = _mm256_add_epi16(odd_high, _mm256_srli_epi16::<8>(high));
    }
    let rows = |pairs: __m256i, odd: __m256i| {
        let even = _mm256_sub_epi16(pairs, _mm256_slli_epi16::<8>(odd));
        let add = |x| _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let (even, odd) = (add(even), add(odd));
        _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd))
    };
    let (first, last) = (rows(pairs_low, odd_low), rows(pairs_high, odd_high));
    let least = _mm256_set1_epi16(least.cast_signed());
    // sum >= least where the larger of both is the sum
    let reaches = |sums| _mm256_cmpeq_epi16(_mm256_max_epu16(sums, least), sums);
    let bytes = _mm256_packs_epi16(reaches(first), reaches(last));
    let mask = _mm256_movemask_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(bytes));
    // SAFETY: `out` has 64 bytes; storeu needs no alignment.
    unsafe {
        let out: *mut __m256i = out.as_mut_ptr().cast();
        _mm256_storeu_si256(out, first);
        _mm256_storeu_si256(out.add(1), last);
    }
    mask.cast_unsigned()
}

/// [`Kernels::sketch_sums`](crate::kernels::Kernels::sketch_sums).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ. (Lengths that do not fit each other leave subspaces
/// out.)
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn sketch_sums_avx512(
    block: &[u8],
    table: &[u8],
    least: u16,
    out: &mut [u16; SKETCH_ROWS],
) -> u32 {
    let nibble = _mm512_set1_epi8(15);
    let [mut pairs_low, mut odd_low, mut pairs_high, mut odd_high] = [_mm512_setzero_si512(); 4];
    for (codes, table) in block.chunks_exact(64).zip(table.chunks_exact(64)) {
        // SAFETY: both chunks have 64 bytes; loadu needs no alignment.
        let (codes, table) = unsafe {
            (
                _mm512_loadu_si512(codes.as_ptr().cast()),
                _mm512_loadu_si512(table.as_ptr().cast()),
            )
        };
        let low = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble));
        let codes = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibble);
        let high = _mm512_shuffle_epi8(table, codes);
        pairs_low = _mm512_add_epi16(pairs_low, low);
        odd_low = _mm512_add_epi16(odd_low, _mm512_srli_epi16::<8>(low));
        pairs_high = _mm512_add_epi16(pairs_high, high);
        odd_high = _mm512_add_epi16(odd_high, _mm512_srli_epi16::<8>(high));
    }
    let rows = |pairs: __m512i, odd: __m512i| {
        let even = _mm512_sub_epi16(pairs, _mm512_slli_epi16::<8>(odd));
        let add = |x| {
            let two =
                _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
            _mm_add_epi16(
                _mm256_castsi256_si128(two),
                _mm256_extracti128_si256::<1>(two),
            )
        };
        let (even, odd) = (add(even), add(odd));
        _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd))
    };
    let first = _mm512_castsi256_si512(rows(pairs_low, odd_low));
    let sums = _mm512_inserti64x4::<1>(first, rows(pairs_high, odd_high));
    // SAFETY: `out` has 64 bytes; storeu needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
    _mm512_cmpge_epu16_mask(sums, _mm512_set1_epi16(least.cast_signed()))
}
