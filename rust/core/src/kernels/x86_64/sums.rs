//! Sums of postings that reach a threshold, found 16 or 32 at a time.

use std::arch::x86_64::*;

use crate::kernels::postings::{count_at_least, find_at_least};

/// [`Kernels::count_at_least`](crate::kernels::Kernels::count_at_least).
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn count_avx2(sums: &[u16], least: u16) -> usize {
    count_at_least(sums, least)
}

/// [`Kernels::count_at_least`](crate::kernels::Kernels::count_at_least).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn count_avx512(sums: &[u16], least: u16) -> usize {
    count_at_least(sums, least)
}

/// [`Kernels::find_at_least`](crate::kernels::Kernels::find_at_least).
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn find_avx2(sums: &mut [u16], least: u16, clear: bool, found: &mut Vec<u16>) {
    const WIDE: usize = 16;
    let leasts = _mm256_set1_epi16(least as i16);
    let mut groups = sums.chunks_exact_mut(WIDE);
    let mut first = 0usize;
    for group in &mut groups {
        // SAFETY: the group has the 32 bytes that are read and written; loadu and storeu need
        // no alignment.
        let reached = unsafe {
            let place = group.as_mut_ptr().cast::<__m256i>();
            let sums = _mm256_loadu_si256(place);
            if clear {
                _mm256_storeu_si256(place, _mm256_setzero_si256());
            }
            // a sum is at least `least` where it is the larger of the two
            _mm256_cmpeq_epi16(_mm256_max_epu16(sums, leasts), sums)
        };
        // two equal bits a sum
        let mut mask = _mm256_movemask_epi8(reached) as u32;
        while mask != 0 {
            let bit = mask.trailing_zeros();
            found.push((first + bit as usize / 2) as u16);
            mask &= !(3 << bit);
        }
        first += WIDE;
    }
    find_rest(groups.into_remainder(), first, least, clear, found);
}

/// [`Kernels::find_at_least`](crate::kernels::Kernels::find_at_least).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn find_avx512(sums: &mut [u16], least: u16, clear: bool, found: &mut Vec<u16>) {
    const WIDE: usize = 64;
    let leasts = _mm512_set1_epi16(least as i16);
    let mut groups = sums.chunks_exact_mut(WIDE);
    let mut first = 0usize;
    for group in &mut groups {
        // SAFETY: the group has the 128 bytes that are read and written; loadu and storeu need
        // no alignment.
        let mut mask = unsafe {
            let place = group.as_mut_ptr().cast::<__m512i>();
            let (low, high) = (_mm512_loadu_si512(place), _mm512_loadu_si512(place.add(1)));
            if clear {
                _mm512_storeu_si512(place, _mm512_setzero_si512());
                _mm512_storeu_si512(place.add(1), _mm512_setzero_si512());
            }
            let low = u64::from(_mm512_cmpge_epu16_mask(low, leasts));
            low | u64::from(_mm512_cmpge_epu16_mask(high, leasts)) << 32
        };
        while mask != 0 {
            found.push((first + mask.trailing_zeros() as usize) as u16);
            mask &= mask - 1;
        }
        first += WIDE;
    }
    find_rest(groups.into_remainder(), first, least, clear, found);
}

/// The last, incomplete group, whose first sum is number `first`.
fn find_rest(rest: &mut [u16], first: usize, least: u16, clear: bool, found: &mut Vec<u16>) {
    let start = found.len();
    find_at_least(rest, least, clear, found);
    for place in &mut found[start..] {
        *place += first as u16;
    }
}
