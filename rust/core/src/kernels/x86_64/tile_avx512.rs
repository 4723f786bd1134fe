//! The integer pass with AVX-512 VNNI: four nonzeros of a row times 64 queries in four
//! multiply-adds. Weights are stored with 128 added, because `vpdpbusd` takes one side unsigned.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::tile::{IntegerRows, Passed, Tile, TileLayout, GROUP, TILE};

/// True where this CPU has all that [`pass_rows`] uses.
pub fn is_available() -> bool {
    super::avx512::is_available() && is_x86_feature_detected!("avx512vnni")
}

/// Interleaving four lines byte by byte leaves, in 32-bit element `e` of sum `i`, the query of
/// byte `16 (e / 4) + 4 i + e % 4`; that is slot `16 i + e`.
pub const LAYOUT: TileLayout = {
    let mut order = [0; TILE];
    let mut slot = 0;
    while slot < TILE {
        let (sum, element) = (slot / 16, slot % 16);
        order[slot] = (16 * (element / 4) + 4 * sum + element % 4) as u8;
        slot += 1;
    }
    TileLayout { order, bias: 128 }
};

/// [`Kernels::pass_rows`](crate::kernels::Kernels::pass_rows).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW, DQ and VNNI; `range` lies in `rows`; `rows` and `tile` were
/// made for one dim and with [`LAYOUT`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
pub unsafe fn pass_rows(
    tile: &Tile,
    rows: &IntegerRows,
    range: Range<usize>,
    thresholds: &[f32; TILE],
    passed: &mut Passed,
) -> usize {
    let tile_lines = tile.lines();
    let (lines, levels) = (rows.lines().as_ptr(), rows.levels().as_ptr());
    // SAFETY: both arrays have 64 numbers of 4 bytes; loadu needs no alignment.
    let (of_queries, thresholds): ([__m512i; 4], [__m512; 4]) = unsafe {
        (
            std::array::from_fn(|i| _mm512_loadu_si512(tile.offsets().as_ptr().add(16 * i).cast())),
            std::array::from_fn(|i| _mm512_loadu_ps(thresholds.as_ptr().add(16 * i))),
        )
    };
    for row in range.clone() {
        let offset = _mm512_set1_epi32(rows.offset(row));
        let mut sums = of_queries.map(|of_query| _mm512_add_epi32(of_query, offset));
        let groups = rows.groups(row);
        let mut next = groups.start;
        for step in rows.steps() {
            // one bit mostly: an addition is for any of the pipes, a shift for those that interleave
            for _ in 0..step.shift {
                sums = sums.map(|sum| _mm512_add_epi32(sum, sum));
            }
            let end = groups.end.min(next.saturating_add(step.groups));
            for group in next..end {
                // SAFETY: IntegerRows keeps groups within its lines and levels, which have whole
                // groups, and every line within the dim + 1 lines of 64 bytes that the tile has.
                unsafe {
                    let lines = lines.add(group * GROUP);
                    let start = |i: usize| tile_lines.add(*lines.add(i) as usize);
                    let line = |i: usize| _mm512_load_si512(start(i).cast());
                    let level = levels.add(group * GROUP).cast::<i32>().read_unaligned();
                    let level = _mm512_set1_epi32(level);
                    let (a, b, c, d) = (line(0), line(1), line(2), line(3));
                    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
                    sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_unpacklo_epi16(ab, cd), level);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_unpackhi_epi16(ab, cd), level);
                    let (ab, cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
                    sums[2] = _mm512_dpbusd_epi32(sums[2], _mm512_unpacklo_epi16(ab, cd), level);
                    sums[3] = _mm512_dpbusd_epi32(sums[3], _mm512_unpackhi_epi16(ab, cd), level);
                }
            }
            next = end;
        }
        let scale = _mm512_set1_ps(rows.scale(row));
        let scaled = sums.map(|sum| _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
        let mask = (0..4).fold(0, |mask, i| {
            let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scaled[i], thresholds[i]);
            mask | u64::from(reached) << (16 * i)
        });
        let next = passed.next();
        for (i, scaled) in scaled.into_iter().enumerate() {
            // SAFETY: there is room for 64 sums; storeu needs no alignment.
            unsafe { _mm512_storeu_ps(next.sums.as_mut_ptr().add(16 * i), scaled) };
        }
        (next.mask, next.row) = (mask, row as u32);
        passed.keep();
        if passed.is_full() {
            return row + 1;
        }
    }
    range.end
}
