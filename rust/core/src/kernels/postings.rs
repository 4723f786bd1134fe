//! Sums over postings: adding the chunks of lists, and finding the sums that reach a threshold.
//!
//! Sums are integers of 16 bits, in units that the caller chooses so that none overflows. They
//! are upper bounds of scores and never returned: rounding up is all that is asked of them, and
//! it is the same on every CPU, because every operation here is exact or IEEE single precision.
//!
//! Adding is a load, an addition and a store for each posting, whose place only the posting
//! says: no instruction set has a scatter that beats that, so it is written once. (AVX-512's
//! would need two sums a lane and conflict detection.) Finding reads all sums of a block, and
//! there wide instructions pay.

/// Positions of a chunk: with the bound 16 bytes.
pub const POSITIONS: usize = 7;

/// A piece of a list: a bound, then [`POSITIONS`] positions in a block of rows.
pub type Chunk = [u16; POSITIONS + 1];

/// Places for sums: as many as a position of 16 bits can name, so that no list can write out of
/// bounds, whatever it holds.
pub const SUMS: usize = 1 << 16;

/// What a bound stands for: the float32 of which it is the upper half. The sign bit, which no
/// writer sets, is ignored.
#[inline(always)]
pub fn bound_value(bound: u16) -> f32 {
    f32::from_bits(u32::from(bound & 0x7FFF) << 16)
}

/// Adds to the sum of each position of a list `1 + min(weight * bound, cap)`, cut to an integer.
/// `weight` and `cap` are not negative, and `cap` is below 65,535. A sum that would overflow, as only a damaged list
/// brings about, wraps.
pub fn add_list(list: &[Chunk], weight: f32, cap: f32, sums: &mut [u16; SUMS]) {
    assert!(weight >= 0.0 && (0.0..65_535.0).contains(&cap));
    for chunk in list {
        let product = weight * bound_value(chunk[0]);
        // written so that NaN (0 times infinity) gives cap, in one instruction
        let gain = if product < cap { product } else { cap };
        // SAFETY: a weight and a bound that are not negative have a product that is not, and
        // what is not below the cap, NaN included, has been replaced by it: 0 to 65,535.
        let gain = unsafe { gain.to_int_unchecked::<i32>() } as u16 + 1;
        for &position in &chunk[1..] {
            let sum = &mut sums[usize::from(position)];
            *sum = sum.wrapping_add(gain);
        }
    }
}

/// How many sums are at least `least`.
#[inline(always)]
pub fn count_at_least(sums: &[u16], least: u16) -> usize {
    // 2^15 sums a time: their count fits 16 bits, which vectorises at full width
    sums.chunks(1 << 15)
        .map(|sums| {
            let count = |count: u16, &sum: &u16| count.wrapping_add(u16::from(sum >= least));
            usize::from(sums.iter().fold(0, count))
        })
        .sum()
}

/// Appends the places of all sums of at least `least` in ascending order, and, where `clear`
/// says so, leaves zeros behind.
pub fn find_at_least(sums: &mut [u16], least: u16, clear: bool, found: &mut Vec<u16>) {
    const GROUP: usize = 64;
    for (group, sums) in sums.chunks_mut(GROUP).enumerate() {
        if sums.iter().fold(0, |most, &sum| most.max(sum)) >= least {
            for (i, &sum) in sums.iter().enumerate() {
                if sum >= least {
                    found.push((group * GROUP + i) as u16);
                }
            }
        }
        if clear {
            sums.fill(0);
        }
    }
}

/// Asks the memory for bytes that will be read soon. Only a hint: it changes no result.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    /// Lines that are asked for: a row of 32 nonzeros of 6 bytes has 3 or 4.
    const LINES: usize = 4;
    const LINE_BYTES: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE_BYTES).take(LINES) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: every x86-64 CPU has the instruction, and it reads nothing that the program
        // could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, LINES, LINE_BYTES);
}
