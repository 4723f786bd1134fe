//! AVX-512: sixteen rows at a time, a row a lane. Weights are looked up by scalar loads, which
//! the CPUs measured do faster than gathers (see `docs/search.md`), and stored so that the rows'
//! weights of two ranks are one register; levels are looked up within registers.

use std::arch::x86_64::*;

use super::avx2::words_by_rank;
use super::rough_avx2::{look_up, unpack_rows, Pair};
use crate::kernels::rough::{
    RoughQuery, RoughScales, GROUP, ROUGH_LEVELS, ROUGH_ROWS, SOUND_SCALES,
};

/// [`Kernels::rough_sums`](crate::kernels::Kernels::rough_sums).
///
/// # Safety
/// AVX-512 F, VL, BW and DQ are there, and `rows` has `row_bytes` bytes for each sum.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn sums(query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
    let row_bytes = query.row_bytes();
    let whole = out.len() - out.len() % ROUGH_ROWS;
    let (in_blocks, rest) = out.split_at_mut(whole);
    let (blocks, last) = rows.split_at(whole * row_bytes);
    // SAFETY: the caller's promises, of the rows of whole blocks.
    unsafe {
        if query.layout().is_words() {
            block_sums::<true>(query, blocks, in_blocks);
        } else {
            block_sums::<false>(query, blocks, in_blocks);
        }
    }
    crate::kernels::rough::sums(query, last, rest);
}

/// # Safety
/// As [`sums`], with a whole number of blocks; `WORDS` where the layout's fields are words.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn block_sums<const WORDS: bool>(query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
    let row_bytes = query.row_bytes();
    let bits = query.layout().latent_bits();
    let width = query.reads().len() * GROUP;
    let above = _mm_cvtsi32_si128(bits as i32);
    let odd = _mm512_set1_epi32((ROUGH_LEVELS as i32) << 16);
    // fields that are no words, as words: latents, and indices of levels
    let unpacked = if WORDS { 0 } else { ROUGH_ROWS * width };
    let mut latents = vec![0u16; unpacked];
    let mut indices = vec![0u16; unpacked];
    let mut looked = vec![Pair([0i16; 2 * ROUGH_ROWS]); width / 2];
    let blocks = rows.chunks_exact(ROUGH_ROWS * row_bytes);
    for (block, out) in blocks.zip(out.chunks_exact_mut(ROUGH_ROWS)) {
        if !WORDS {
            // SAFETY: the block has whole rows, and the buffers `width` words for each.
            unsafe { unpack_rows(query, block, &mut latents, &mut indices) };
        }
        let (fields, stride): (&[u8], _) = if WORDS {
            (block, row_bytes)
        } else {
            (bytemuck::cast_slice(&latents), 2 * width)
        };
        look_up(query, fields, stride, &mut looked);
        let (words, above): (*const u8, _) = if WORDS {
            (block.as_ptr(), above)
        } else {
            (indices.as_ptr().cast(), _mm_setzero_si128())
        };
        let mut lanes = [_mm512_setzero_si512(); GROUP / 2];
        for group in 0..width / GROUP {
            // SAFETY: each of the sixteen rows has 16 bytes for each group.
            let columns = unsafe {
                let row = |r: usize| words.add(r * stride + 2 * GROUP * group);
                let front = words_by_rank(std::array::from_fn(row));
                let back = words_by_rank(std::array::from_fn(|r| row(ROUGH_ROWS / 2 + r)));
                let both =
                    |i: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(front[i]), back[i]);
                [both(0), both(1), both(2), both(3)]
            };
            for (i, (lane, column)) in lanes.iter_mut().zip(columns).enumerate() {
                let pair = group * GROUP / 2 + i;
                let index = _mm512_or_si512(_mm512_srl_epi16(column, above), odd);
                let levels = query.levels()[pair].as_ptr();
                // SAFETY: 64 levels of a pair, and 32 weights.
                let products = unsafe {
                    let of_first = _mm512_loadu_si512(levels.cast());
                    let of_second = _mm512_loadu_si512(levels.add(ROUGH_LEVELS).cast());
                    let levels = _mm512_permutex2var_epi16(of_first, index, of_second);
                    _mm512_madd_epi16(levels, _mm512_load_si512(looked[pair].0.as_ptr().cast()))
                };
                *lane = _mm512_add_epi32(*lane, products);
            }
        }
        let sums = _mm512_add_epi32(
            _mm512_add_epi32(lanes[0], lanes[1]),
            _mm512_add_epi32(lanes[2], lanes[3]),
        );
        // SAFETY: `out` has sixteen numbers; storeu needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
        query.add_wide(block, out);
    }
}

/// [`Kernels::rough_reached`](crate::kernels::Kernels::rough_reached).
///
/// # Safety
/// AVX-512 F, VL, BW and DQ are there, and there are as many scales as sums.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn reached(
    sums: &[i32],
    scales: RoughScales<'_>,
    error: f32,
    least: f32,
    out: &mut Vec<u16>,
) -> bool {
    let (error, least) = (_mm512_set1_ps(error), _mm512_set1_ps(least));
    let from = _mm512_set1_ps(SOUND_SCALES.start);
    let to = _mm512_set1_ps(SOUND_SCALES.end);
    for first in (0..sums.len()).step_by(ROUGH_ROWS) {
        let n = (sums.len() - first).min(ROUGH_ROWS);
        let rows = ((1u32 << n) - 1) as __mmask16;
        // SAFETY: the mask leaves what lies behind the last sum and scale unread.
        let (sums, scale) = unsafe {
            let sums = _mm512_maskz_loadu_epi32(rows, sums.as_ptr().add(first));
            let scale = match scales {
                RoughScales::One => _mm512_set1_ps(1.0),
                RoughScales::Single(scales) => {
                    _mm512_maskz_loadu_ps(rows, scales.as_ptr().add(first))
                }
                RoughScales::Half(scales) => {
                    let halves = scales.as_ptr().add(first).cast();
                    _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(rows, halves))
                }
            };
            (sums, scale)
        };
        // a NaN is in no range
        let is_zero = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(scale, _mm512_setzero_ps());
        let is_sound = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scale, from)
            & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(scale, to);
        if is_zero | is_sound != __mmask16::MAX {
            return false;
        }
        let upper = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(sums), error), scale);
        let mut mask = rows & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(upper, least);
        while mask != 0 {
            out.push(first as u16 + mask.trailing_zeros() as u16);
            mask &= mask - 1;
        }
    }
    true
}
