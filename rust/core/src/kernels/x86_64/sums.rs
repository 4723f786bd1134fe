//! Sums of postings that reach a threshold, found 16 to 128 at a time.

use std::arch::x86_64::*;

use crate::kernels::postings::{count_at_least, find_at_least, Reached, Sum, SumKernels};

/// Those for AVX2.
pub const AVX2: SumKernels = SumKernels {
    count8: count_avx2::<u8>,
    count16: count_avx2::<u16>,
    find8: find8_avx2,
    find16: find16_avx2,
};

/// Those for AVX-512 F, VL, BW and DQ.
pub const AVX512: SumKernels = SumKernels {
    count8: count_avx512::<u8>,
    count16: count_avx512::<u16>,
    find8: find8_avx512,
    find16: find16_avx512,
};

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn count_avx2<S: Sum>(sums: &[S], least: S) -> usize {
    count_at_least(sums, least)
}

/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn count_avx512<S: Sum>(sums: &[S], least: S) -> usize {
    count_at_least(sums, least)
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn find8_avx2(sums: &mut [u8], least: u8, clear: bool, found: &mut Vec<Reached>) {
    if clear {
        find8_by_four::<true>(sums, least, found);
    } else {
        find8_by_four::<false>(sums, least, found);
    }
}

/// Bytes of a register of AVX2.
const WIDE_AVX2: usize = 32;

#[inline]
#[target_feature(enable = "avx2")]
fn find8_by_four<const CLEAR: bool>(sums: &mut [u8], least: u8, found: &mut Vec<Reached>) {
    const WIDE: usize = WIDE_AVX2;
    let leasts = _mm256_set1_epi8(least as i8);
    let mut groups = sums.chunks_exact_mut(4 * WIDE);
    let mut first = 0;
    for group in &mut groups {
        let place = group.as_mut_ptr().cast::<__m256i>();
        // SAFETY: the group has the 128 bytes that are read; loadu needs no alignment.
        let most = unsafe {
            let [a, b] = [_mm256_loadu_si256(place), _mm256_loadu_si256(place.add(1))];
            let c = _mm256_loadu_si256(place.add(2));
            let d = _mm256_loadu_si256(place.add(3));
            _mm256_max_epu8(_mm256_max_epu8(a, b), _mm256_max_epu8(c, d))
        };
        // few groups have any: one branch for all four
        if reached8(most, leasts) != 0 {
            push_group(group, least, first, found);
        }
        if CLEAR {
            for i in 0..4 {
                // SAFETY: the group has the 128 bytes that are written; storeu needs no alignment.
                unsafe { _mm256_storeu_si256(place.add(i), _mm256_setzero_si256()) };
            }
        }
        first += 4 * WIDE;
    }
    find_rest(groups.into_remainder(), first, least, CLEAR, found);
}

/// A bit for each sum that is at least its `least`: it is the larger of the two.
#[inline]
#[target_feature(enable = "avx2")]
fn reached8(sums: __m256i, leasts: __m256i) -> u32 {
    _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(sums, leasts), sums)) as u32
}

/// Appends the sums of a group that are at least `least`. Apart from the loop that
/// passes over all groups, whose registers it would need.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2")]
fn push_group(group: &[u8], least: u8, first: usize, found: &mut Vec<Reached>) {
    let leasts = _mm256_set1_epi8(least as i8);
    for (i, sums) in group.chunks_exact(WIDE_AVX2).enumerate() {
        // SAFETY: there are 32 bytes; loadu needs no alignment.
        let all = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        push_bits(
            u64::from(reached8(all, leasts)),
            sums,
            first + i * WIDE_AVX2,
            found,
        );
    }
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn find16_avx2(sums: &mut [u16], least: u16, clear: bool, found: &mut Vec<Reached>) {
    const WIDE: usize = 16;
    let leasts = _mm256_set1_epi16(least as i16);
    let mut groups = sums.chunks_exact_mut(WIDE);
    let mut first = 0;
    for group in &mut groups {
        // SAFETY: the group has the 32 bytes that are read; loadu needs no alignment.
        let reached = unsafe {
            let sums = _mm256_loadu_si256(group.as_ptr().cast());
            _mm256_cmpeq_epi16(_mm256_max_epu16(sums, leasts), sums)
        };
        // two equal bits a sum
        let mut mask = _mm256_movemask_epi8(reached) as u32;
        while mask != 0 {
            let bit = mask.trailing_zeros();
            push(group, bit as usize / 2, first, found);
            mask &= !(3 << bit);
        }
        if clear {
            group.fill(0);
        }
        first += WIDE;
    }
    find_rest(groups.into_remainder(), first, least, clear, found);
}

/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn find8_avx512(sums: &mut [u8], least: u8, clear: bool, found: &mut Vec<Reached>) {
    const WIDE: usize = 64;
    let leasts = _mm512_set1_epi8(least as i8);
    let mut groups = sums.chunks_exact_mut(2 * WIDE);
    let mut first = 0;
    for group in &mut groups {
        let place = group.as_mut_ptr().cast::<__m512i>();
        // SAFETY: the group has the 128 bytes that are read; loadu needs no alignment.
        let (low, high) = unsafe { (_mm512_loadu_si512(place), _mm512_loadu_si512(place.add(1))) };
        // few groups have any: one branch for both
        if _mm512_cmpge_epu8_mask(_mm512_max_epu8(low, high), leasts) != 0 {
            let (lows, highs) = group.split_at(WIDE);
            push_bits(_mm512_cmpge_epu8_mask(low, leasts), lows, first, found);
            let high = _mm512_cmpge_epu8_mask(high, leasts);
            push_bits(high, highs, first + WIDE, found);
        }
        if clear {
            // SAFETY: the group has the 128 bytes that are written; storeu needs no alignment.
            unsafe {
                _mm512_storeu_si512(place, _mm512_setzero_si512());
                _mm512_storeu_si512(place.add(1), _mm512_setzero_si512());
            }
        }
        first += 2 * WIDE;
    }
    find_rest(groups.into_remainder(), first, least, clear, found);
}

/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn find16_avx512(sums: &mut [u16], least: u16, clear: bool, found: &mut Vec<Reached>) {
    const WIDE: usize = 64;
    let leasts = _mm512_set1_epi16(least as i16);
    let mut groups = sums.chunks_exact_mut(WIDE);
    let mut first = 0;
    for group in &mut groups {
        // SAFETY: the group has the 128 bytes that are read; loadu needs no alignment.
        let mask = unsafe {
            let place = group.as_ptr().cast::<__m512i>();
            let (low, high) = (_mm512_loadu_si512(place), _mm512_loadu_si512(place.add(1)));
            let low = u64::from(_mm512_cmpge_epu16_mask(low, leasts));
            low | u64::from(_mm512_cmpge_epu16_mask(high, leasts)) << 32
        };
        push_bits(mask, group, first, found);
        if clear {
            group.fill(0);
        }
        first += WIDE;
    }
    find_rest(groups.into_remainder(), first, least, clear, found);
}

/// Appends the sums of the set bits; the first sum of `sums` is number `first`.
#[inline(always)]
fn push_bits<S: Sum>(mut mask: u64, sums: &[S], first: usize, found: &mut Vec<Reached>) {
    while mask != 0 {
        push(sums, mask.trailing_zeros() as usize, first, found);
        mask &= mask - 1;
    }
}

/// Appends a sum; the first of `sums` is number `first`.
#[inline(always)]
fn push<S: Sum>(sums: &[S], i: usize, first: usize, found: &mut Vec<Reached>) {
    found.push(Reached {
        place: (first + i) as u16,
        sum: sums[i].into(),
    });
}

/// The last, incomplete group, whose first sum is number `first`.
fn find_rest<S: Sum>(
    rest: &mut [S],
    first: usize,
    least: S,
    clear: bool,
    found: &mut Vec<Reached>,
) {
    let start = found.len();
    find_at_least(rest, least, clear, found);
    for reached in &mut found[start..] {
        reached.place += first as u16;
    }
}
