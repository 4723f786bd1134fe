//! The integer pass with AVX2: four nonzeros of a row times 32 queries, twice. `vpmaddubsw`
//! takes one side unsigned and saturates at 16 bits, so levels go in by magnitude, their signs
//! on the weights: 2 * 127 * 127 fits.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::tile::{IntegerRows, Passed, Tile, TileLayout, GROUP, TILE};

/// In half `h` of a line, interleaving four lines leaves, in 32-bit element `e` of sum `i`, the
/// query of byte `32 h + 16 (e / 4) + 4 i + e % 4`; that is slot `32 h + 8 i + e`.
pub const LAYOUT: TileLayout = {
    let mut order = [0; TILE];
    let mut slot = 0;
    while slot < TILE {
        let (half, sum, element) = (slot / 32, slot % 32 / 8, slot % 8);
        order[slot] = (32 * half + 16 * (element / 4) + 4 * sum + element % 4) as u8;
        slot += 1;
    }
    TileLayout { order, bias: 0 }
};

/// [`Kernels::pass_rows`](crate::kernels::Kernels::pass_rows).
///
/// # Safety
/// The CPU has AVX2; `range` lies in `rows`; `rows` and `tile` were made for one dim and with
/// [`LAYOUT`].
#[target_feature(enable = "avx2")]
pub unsafe fn pass_rows(
    tile: &Tile,
    rows: &IntegerRows,
    range: Range<usize>,
    thresholds: &[f32; TILE],
    passed: &mut Passed,
) -> usize {
    for row in range.clone() {
        let next = passed.next();
        next.row = row as u32;
        next.mask = (0..2).fold(0, |mask, half| {
            // SAFETY: the caller's promises are those that half_row asks for.
            let reached = unsafe { half_row(tile, rows, row, half, thresholds, &mut next.sums) };
            mask | u64::from(reached) << (32 * half)
        });
        passed.keep();
        if passed.is_full() {
            return row + 1;
        }
    }
    range.end
}

/// Writes the sums of half a line's queries, and returns which of them reached their thresholds.
///
/// # Safety
/// As [`pass_rows`], with `row` in `rows` and `half` 0 or 1.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_row(
    tile: &Tile,
    rows: &IntegerRows,
    row: usize,
    half: usize,
    thresholds: &[f32; TILE],
    scaled_sums: &mut [f32; TILE],
) -> u32 {
    // SAFETY: half a line is 32 bytes; the tile's lines have 64.
    let tile_lines = unsafe { tile.lines().add(32 * half) };
    let (lines, levels) = (rows.lines().as_ptr(), rows.levels().as_ptr());
    let ones = _mm256_set1_epi16(1);
    let offset = _mm256_set1_epi32(rows.offset(row));
    let first = |i: usize| 32 * half + 8 * i;
    let mut sums: [__m256i; 4] = std::array::from_fn(|i| {
        // SAFETY: the tile has 64 offsets; loadu needs no alignment.
        let of_queries =
            unsafe { _mm256_loadu_si256(tile.offsets().as_ptr().add(first(i)).cast()) };
        _mm256_add_epi32(of_queries, offset)
    });
    let groups = rows.groups(row);
    let mut next = groups.start;
    for step in rows.steps() {
        // one bit mostly: an addition is for any of the pipes, a shift for those that interleave
        for _ in 0..step.shift {
            sums = sums.map(|sum| _mm256_add_epi32(sum, sum));
        }
        let end = groups.end.min(next.saturating_add(step.groups));
        for group in next..end {
            // SAFETY: IntegerRows keeps groups within its lines and levels, which have whole
            // groups, and every line within the dim + 1 lines of 64 bytes that the tile has.
            unsafe {
                let lines = lines.add(group * GROUP);
                let start = |i: usize| tile_lines.add(*lines.add(i) as usize);
                let line = |i: usize| _mm256_load_si256(start(i).cast());
                let level = levels.add(group * GROUP).cast::<i32>().read_unaligned();
                let level = _mm256_set1_epi32(level);
                let magnitude = _mm256_abs_epi8(level);
                let add = |sum: __m256i, weights: __m256i| {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights, level));
                    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
                };
                let (a, b, c, d) = (line(0), line(1), line(2), line(3));
                let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                sums[0] = add(sums[0], _mm256_unpacklo_epi16(ab, cd));
                sums[1] = add(sums[1], _mm256_unpackhi_epi16(ab, cd));
                let (ab, cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                sums[2] = add(sums[2], _mm256_unpacklo_epi16(ab, cd));
                sums[3] = add(sums[3], _mm256_unpackhi_epi16(ab, cd));
            }
        }
        next = end;
    }
    let scale = _mm256_set1_ps(rows.scale(row));
    let mut reached = 0;
    for (i, sum) in sums.into_iter().enumerate() {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
        // SAFETY: both arrays have 64 numbers; loadu and storeu need no alignment.
        let threshold = unsafe {
            _mm256_storeu_ps(scaled_sums.as_mut_ptr().add(first(i)), scaled);
            _mm256_loadu_ps(thresholds.as_ptr().add(first(i)))
        };
        let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(scaled, threshold));
        reached |= (mask as u32) << (8 * i);
    }
    reached
}
