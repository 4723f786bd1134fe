//! Sums over postings: adding the chunks of lists, and finding the sums that reach a threshold.
//!
//! Sums are integers of 8 or 16 bits, in units that the caller chooses so that none overflows.
//! They are upper bounds of scores and never returned: rounding up is all that is asked of them,
//! and it is the same on every CPU, because every operation here is exact or IEEE single
//! precision. Sums of 8 bits stay in the first-level cache and are found twice as fast; those of
//! 16 bits are for queries of more terms than 8 bits can tell apart.
//!
//! Adding is a load, an addition and a store for each posting, whose place only the posting
//! says: no instruction set has a scatter that beats that, so it is written once. A core that
//! stores once a cycle adds at most one posting a cycle. Finding reads all sums of a block, and
//! there wide instructions pay.

use crate::memory::LINE_BYTES;

/// Positions of a chunk: with the bound 16 bytes.
pub const POSITIONS: usize = 7;

/// A piece of a list: a bound, then [`POSITIONS`] positions in a block of rows.
pub type Chunk = [u16; POSITIONS + 1];

/// Chunks of a line of the cache.
const CHUNKS_A_LINE: usize = LINE_BYTES / size_of::<Chunk>();

/// Places for sums: as many as a position of 16 bits can name, so that no list can write out of
/// bounds, whatever it holds.
pub const SUMS: usize = 1 << 16;

/// What a bound stands for: the float32 of which it is the upper half. The sign bit, which no
/// writer sets, is ignored.
#[inline(always)]
pub fn bound_value(bound: u16) -> f32 {
    f32::from_bits(u32::from(bound & 0x7FFF) << 16)
}

/// A kind of sums: `u8` or `u16`.
pub trait Sum: Copy + Ord + Default + Into<u16> + sealed::Finds {
    /// The largest.
    const MOST: f32;
    /// The lowest bits of a number.
    fn of(number: i32) -> Self;
    /// The sum, cut to its lowest bits.
    fn plus(self, other: Self) -> Self;
}

impl Sum for u8 {
    const MOST: f32 = 255.0;
    #[inline(always)]
    fn of(number: i32) -> Self {
        number as Self
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Sum for u16 {
    const MOST: f32 = 65_535.0;
    #[inline(always)]
    fn of(number: i32) -> Self {
        number as Self
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

pub(super) mod sealed {
    //! What is chosen by instruction set for each kind of sums.

    /// How many sums are at least one, and where they are.
    pub trait Finds: Sized {
        /// The function that counts.
        fn count(kernels: &super::super::Kernels) -> unsafe fn(&[Self], Self) -> usize;
        /// The function that finds.
        fn find(kernels: &super::super::Kernels) -> super::Find<Self>;
    }

    impl Finds for u8 {
        fn count(kernels: &super::super::Kernels) -> unsafe fn(&[Self], Self) -> usize {
            kernels.sums.count8
        }
        fn find(kernels: &super::super::Kernels) -> super::Find<Self> {
            kernels.sums.find8
        }
    }

    impl Finds for u16 {
        fn count(kernels: &super::super::Kernels) -> unsafe fn(&[Self], Self) -> usize {
            kernels.sums.count16
        }
        fn find(kernels: &super::super::Kernels) -> super::Find<Self> {
            kernels.sums.find16
        }
    }
}

/// A sum that is large enough, and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Its place among the sums.
    pub place: u16,
    /// The sum.
    pub sum: u16,
}

/// Appends sums and their places.
pub type Find<S> = unsafe fn(&mut [S], S, bool, &mut Vec<Reached>);

/// The functions of one instruction set that find sums.
#[derive(Debug, Clone, Copy)]
pub struct SumKernels {
    pub(super) count8: unsafe fn(&[u8], u8) -> usize,
    pub(super) count16: unsafe fn(&[u16], u16) -> usize,
    pub(super) find8: Find<u8>,
    pub(super) find16: Find<u16>,
}

/// Those in plain Rust.
pub const PLAIN: SumKernels = SumKernels {
    count8: count_at_least,
    count16: count_at_least,
    find8: find_at_least,
    find16: find_at_least,
};

/// Adds to the sum of each position of a list `1 + min(weight * bound, cap)`, cut to an integer.
/// A sum that would overflow, as only a damaged list brings about, wraps.
///
/// As many chunks after the list are asked for: the list of the next block stands there, and is
/// about as long. What reads ahead of a program begins anew with every list.
///
/// # Panics
/// Where `weight` or `cap` is negative or NaN, or `cap` is not below the largest sum.
pub fn add_list<S: Sum>(list: &[Chunk], weight: f32, cap: f32, sums: &mut [S; SUMS]) {
    assert!(weight >= 0.0 && cap >= 0.0 && cap < S::MOST);
    // one that is asked for with every chunk takes a tenth longer (Zen 4)
    for line in list.chunks(CHUNKS_A_LINE) {
        let ahead = line.as_ptr().wrapping_add(list.len());
        prefetch_line::<false>(ahead.cast());
        for chunk in line {
            let product = weight * bound_value(chunk[0]);
            // written so that NaN (0 times infinity) gives cap, in one instruction
            let gain = if product < cap { product } else { cap };
            // SAFETY: a weight and a bound that are not negative have a product that is not, and
            // what is not below the cap, NaN included, has been replaced by it: 0 to 65,535.
            let gain = S::of(unsafe { gain.to_int_unchecked::<i32>() }.wrapping_add(1));
            // the positions in two words: with a load for each a batch took a tenth longer on Zen
            // 3, a fiftieth less on Sapphire Rapids
            let [head, tail]: [u64; 2] = bytemuck::cast(*chunk);
            for (word, first) in [(head, 1), (tail, 0)] {
                for place in first..4 {
                    let sum = &mut sums[usize::from((word >> (16 * place)) as u16)];
                    *sum = sum.plus(gain);
                }
            }
        }
    }
}

/// How many sums are at least `least`.
#[inline(always)]
pub fn count_at_least<S: Sum>(sums: &[S], least: S) -> usize {
    // 128 sums at a time: their count fits 8 bits, which vectorises at full width
    sums.chunks(128)
        .map(|sums| {
            let count = |count: u8, &sum: &S| count.wrapping_add(u8::from(sum >= least));
            usize::from(sums.iter().fold(0, count))
        })
        .sum()
}

/// Appends all sums of at least `least` by ascending place, and, where `clear` says so, leaves
/// zeros behind.
pub fn find_at_least<S: Sum>(sums: &mut [S], least: S, clear: bool, found: &mut Vec<Reached>) {
    const GROUP: usize = 64;
    for (group, sums) in sums.chunks_mut(GROUP).enumerate() {
        let most = sums.iter().fold(S::default(), |most, &sum| most.max(sum));
        if most >= least {
            for (i, &sum) in sums.iter().enumerate() {
                if sum >= least {
                    found.push(Reached {
                        place: (group * GROUP + i) as u16,
                        sum: sum.into(),
                    });
                }
            }
        }
        if clear {
            sums.fill(S::default());
        }
    }
}

/// Asks the memory for bytes that will be read soon: the first eight lines of them, as a row of 32
/// nonzeros of 6 bytes has 3 or 4. Only a hint: it changes no result.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    prefetch_to::<true>(bytes, 8);
}

/// Asks for bytes that will be read when a first-level cache has forgotten them again: into the
/// second-level cache, and no more than a list of some thousand postings has. Only a hint.
#[inline(always)]
pub fn prefetch_far(bytes: &[u8]) {
    prefetch_to::<false>(bytes, 64);
}

#[inline(always)]
fn prefetch_to<const NEAR: bool>(bytes: &[u8], most_lines: usize) {
    let lines = bytes.len().div_ceil(LINE_BYTES).min(most_lines);
    let mut address = bytes.as_ptr();
    for _ in 0..lines {
        prefetch_line::<NEAR>(address);
        address = address.wrapping_add(LINE_BYTES);
    }
}

/// Asks for the line of an address, which may be any.
#[inline(always)]
fn prefetch_line<const NEAR: bool>(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0, _MM_HINT_T1};
        // SAFETY: every x86-64 CPU has the instruction, and it reads nothing that the program
        // could see, whatever the address.
        unsafe {
            if NEAR {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(address.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
