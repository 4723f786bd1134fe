//! AVX2: sixteen rows at a time, a row a lane. As with AVX-512 weights are looked up by scalar loads;
//! levels, of which a rank has at most 32, are looked up byte by byte within registers of 16.

use std::arch::x86_64::*;

use super::avx2::words_by_rank;
use crate::kernels::rough::{
    GroupRead, LevelBytes, RoughQuery, RoughScales, GROUP, HALF_BYTES, HALF_LEVELS, ROUGH_ROWS,
    SOUND_SCALES,
};

/// Rows of a register.
const ROWS: usize = 8;

/// Weights of two ranks of some rows, the two of a row side by side.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Pair<const N: usize>(pub [i16; N]);

/// [`Kernels::rough_sums`](crate::kernels::Kernels::rough_sums).
///
/// # Safety
/// AVX2 is there, and `rows` has `row_bytes` bytes for each sum.
#[target_feature(enable = "avx2")]
pub unsafe fn sums(query: &RoughQuery<'_>, rows: &[u8], out: &mut [i32]) {
    let row_bytes = query.row_bytes();
    let whole = out.len() - out.len() % ROUGH_ROWS;
    let (in_blocks, rest) = out.split_at_mut(whole);
    let (blocks, last) = rows.split_at(whole * row_bytes);
    // SAFETY: the caller's promises, of the rows of whole blocks.
    unsafe {
        match (query.layout().is_words(), query.has_many_levels()) {
            (true, false) => block_sums::<true, false>(query, blocks, in_blocks),
            (true, true) => block_sums::<true, true>(query, blocks, in_blocks),
            (false, false) => block_sums::<false, false>(query, blocks, in_blocks),
            (false, true) => block_sums::<false, true>(query, blocks, in_blocks),
        }
    }
    crate::kernels::rough::sums(query, last, rest);
}

/// # Safety
/// As [`sums`], with a whole number of blocks; `WORDS` where the layout's fields are words, `MANY`
/// where a rank has more than [`HALF_LEVELS`] levels.
#[target_feature(enable = "avx2")]
unsafe fn block_sums<const WORDS: bool, const MANY: bool>(
    query: &RoughQuery<'_>,
    rows: &[u8],
    out: &mut [i32],
) {
    let row_bytes = query.row_bytes();
    let bits = query.layout().latent_bits();
    let width = query.reads().len() * GROUP;
    // fields that are no words, as words: latents, and indices of levels
    let unpacked = if WORDS { 0 } else { ROWS * width };
    let mut latents = vec![0u16; unpacked];
    let mut indices = vec![0u16; unpacked];
    let mut looked = vec![Pair([0i16; 2 * ROWS]); width / 2];
    let blocks = rows.chunks_exact(ROWS * row_bytes);
    for (block, out) in blocks.zip(out.chunks_exact_mut(ROWS)) {
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
            (block.as_ptr(), _mm_cvtsi32_si128(bits as i32))
        } else {
            (indices.as_ptr().cast(), _mm_setzero_si128())
        };
        let mut lanes = [_mm256_setzero_si256(); GROUP / 2];
        for group in 0..width / GROUP {
            // SAFETY: each of the eight rows has 16 bytes for each group.
            let columns = unsafe {
                words_by_rank(std::array::from_fn(|r| {
                    words.add(r * stride + 2 * GROUP * group)
                }))
            };
            for (i, (lane, column)) in lanes.iter_mut().zip(columns).enumerate() {
                let pair = group * GROUP / 2 + i;
                let index = _mm256_srl_epi16(column, above);
                let levels = levels_at::<MANY>(&query.level_bytes()[pair], index);
                // SAFETY: a pair has 32 bytes, and lies at a multiple of 64.
                let weights = unsafe { _mm256_load_si256(looked[pair].0.as_ptr().cast()) };
                *lane = _mm256_add_epi32(*lane, _mm256_madd_epi16(levels, weights));
            }
        }
        let sums = _mm256_add_epi32(
            _mm256_add_epi32(lanes[0], lanes[1]),
            _mm256_add_epi32(lanes[2], lanes[3]),
        );
        // SAFETY: `out` has eight numbers; storeu needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
        query.add_wide(block, out);
    }
}

/// [`Kernels::rough_reached`](crate::kernels::Kernels::rough_reached).
///
/// # Safety
/// AVX2 and F16C are there, and there are as many scales as sums.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn reached(
    sums: &[i32],
    scales: RoughScales<'_>,
    error: f32,
    least: f32,
    out: &mut Vec<u16>,
) -> bool {
    let (error, least) = (_mm256_set1_ps(error), _mm256_set1_ps(least));
    let from = _mm256_set1_ps(SOUND_SCALES.start);
    let to = _mm256_set1_ps(SOUND_SCALES.end);
    for first in (0..sums.len()).step_by(ROWS) {
        let n = (sums.len() - first).min(ROWS);
        let scale = match scales {
            RoughScales::One => _mm256_set1_ps(1.0),
            RoughScales::Single(scales) => {
                let scales = eight_of(&scales[first..first + n]);
                // SAFETY: eight numbers; loadu needs no alignment.
                unsafe { _mm256_loadu_ps(scales.as_ptr()) }
            }
            RoughScales::Half(scales) => {
                let scales = eight_of(&scales[first..first + n]);
                // SAFETY: eight numbers of 16 bits; loadu needs no alignment.
                _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.as_ptr().cast()) })
            }
        };
        // a NaN is in no range
        let is_zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(scale, _mm256_setzero_ps());
        let is_sound = _mm256_and_ps(
            _mm256_cmp_ps::<_CMP_GE_OQ>(scale, from),
            _mm256_cmp_ps::<_CMP_LT_OQ>(scale, to),
        );
        if _mm256_movemask_ps(_mm256_or_ps(is_zero, is_sound)) != 0xFF {
            return false;
        }
        let sums = eight_of(&sums[first..first + n]);
        // SAFETY: eight numbers; loadu needs no alignment.
        let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        let upper = _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(sums), error), scale);
        let reach = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(upper, least));
        let mut mask = reach as u32 & ((1 << n) - 1);
        while mask != 0 {
            out.push(first as u16 + mask.trailing_zeros() as u16);
            mask &= mask - 1;
        }
    }
    true
}

/// Eight numbers: those given, and zeros where they are fewer.
#[inline(always)]
fn eight_of<T: Copy + Default>(numbers: &[T]) -> [T; ROWS] {
    numbers.try_into().unwrap_or_else(|_| {
        let mut eight = [T::default(); ROWS];
        eight[..numbers.len()].copy_from_slice(numbers);
        eight
    })
}

/// The levels of 16-bit indices below 32, or below 16 where not `MANY`: those of even ones from the
/// table of the first rank, those of odd ones from that of the second.
#[inline]
#[target_feature(enable = "avx2")]
fn levels_at<const MANY: bool>(levels: &LevelBytes, index: __m256i) -> __m256i {
    /// The bytes of 32 bits that a table is not for: a shuffle writes 0 where the highest bit is set.
    const OTHERS: [i32; 4] = [
        0x8080_8000u32 as i32,
        0x8080_0080u32 as i32,
        0x8000_8080u32 as i32,
        0x0080_8080,
    ];
    // in both bytes of its level
    let index = _mm256_or_si256(index, _mm256_slli_epi16::<8>(index));
    let mut found = _mm256_setzero_si256();
    for (byte, others) in OTHERS.into_iter().enumerate() {
        let others = _mm256_set1_epi32(others);
        let table = |half: usize| {
            let bytes = &levels[half][byte];
            // SAFETY: there are 16 bytes; loadu needs no alignment.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        };
        let mut here = _mm256_shuffle_epi8(table(0), _mm256_or_si256(index, others));
        if MANY {
            // a shuffle takes the lowest four bits: the fifth says which half is meant
            let upper = _mm256_slli_epi16::<3>(index);
            let back = _mm256_shuffle_epi8(table(1), _mm256_or_si256(index, others));
            here = _mm256_blendv_epi8(here, back, upper);
        }
        found = _mm256_or_si256(found, here);
    }
    found
}

/// Looks up the weights of the latents of some rows, whose fields, or latents, are words: each row
/// takes `stride` bytes, and two places of every pair.
#[inline(always)]
pub(super) fn look_up<const N: usize>(
    query: &RoughQuery<'_>,
    fields: &[u8],
    stride: usize,
    looked: &mut [Pair<N>],
) {
    let weights = query.weights().as_ptr();
    let latent_mask = (1u64 << query.layout().latent_bits()) - 1;
    for (r, row) in fields.chunks_exact(stride).enumerate() {
        for (four, pairs) in row.chunks_exact(8).zip(looked.chunks_exact_mut(2)) {
            let four = u64::from_le_bytes(four.try_into().expect("are eight"));
            // SAFETY: a latent is below 2^bits, and there are as many weights (RoughQuery::new).
            let weight =
                |i: u32| unsafe { *weights.add((four >> (16 * i) & latent_mask) as usize) };
            pairs[0].0[2 * r] = weight(0);
            pairs[0].0[2 * r + 1] = weight(1);
            pairs[1].0[2 * r] = weight(2);
            pairs[1].0[2 * r + 1] = weight(3);
        }
    }
}

/// The fields of whole rows as words: latents, and indices of levels.
///
/// # Safety
/// AVX2 is there, and both buffers have a word for each place of the query's groups, for each row.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack_rows(
    query: &RoughQuery<'_>,
    block: &[u8],
    latents: &mut [u16],
    indices: &mut [u16],
) {
    let width = query.reads().len() * GROUP;
    for (r, row) in block.chunks_exact(query.row_bytes()).enumerate() {
        for (g, read) in query.reads().iter().enumerate() {
            let at = r * width + g * GROUP;
            // SAFETY: reads stay within a row (RoughQuery::new), and the buffers have `width` words
            // for each of the rows by the caller's promise.
            unsafe {
                let bits = query.layout().latent_bits();
                let (some_latents, some_indices) = unpack(row, read, bits);
                _mm_storeu_si128(latents.as_mut_ptr().add(at).cast(), some_latents);
                _mm_storeu_si128(indices.as_mut_ptr().add(at).cast(), some_indices);
            }
        }
    }
}

/// Latents and indices of levels of eight fields.
///
/// # Safety
/// AVX2 is there, and the reads stay within the row.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn unpack(row: &[u8], read: &GroupRead, bits: u32) -> (__m128i, __m128i) {
    debug_assert!(read
        .starts
        .iter()
        .all(|&start| start + HALF_BYTES <= row.len()));
    // SAFETY: 16 bytes from each start on are the row's, by the caller's promise, and the arrays
    // have 32 bytes; loadu needs no alignment.
    let (bytes, order, shifts, masks) = unsafe {
        (
            _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_loadu_si128(row.as_ptr().add(read.starts[0]).cast())),
                _mm_loadu_si128(row.as_ptr().add(read.starts[1]).cast()),
            ),
            _mm256_loadu_si256(read.bytes.as_ptr().cast()),
            _mm256_loadu_si256(read.shifts.as_ptr().cast()),
            _mm256_loadu_si256(read.masks.as_ptr().cast()),
        )
    };
    let fields = _mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, order), shifts);
    let latents = _mm256_and_si256(fields, _mm256_set1_epi32((1 << bits) - 1));
    let above = _mm_cvtsi32_si128(bits as i32);
    let indices = _mm256_and_si256(_mm256_srl_epi32(fields, above), masks);
    // latents in the lower halves of both lanes, indices in the upper ones
    let packed = _mm256_packus_epi32(latents, indices);
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
    (
        _mm256_castsi256_si128(packed),
        _mm256_extracti128_si256::<1>(packed),
    )
}

const _: () = assert!(ROUGH_ROWS.is_multiple_of(ROWS) && HALF_LEVELS == 16);
