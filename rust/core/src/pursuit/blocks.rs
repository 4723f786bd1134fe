//! Rows of latents cut into aligned blocks, and the two loops that pursuit spends its time in:
//! take one row of the Gram matrix off the correlations, or rebuild them from a whole support,
//! each finding every block's largest magnitude in the same pass. Knows nothing of atoms,
//! items or when a refit is due.
//!
//! Each loop is written once, as plain Rust over blocks of fixed length that the compiler
//! vectorises, and compiled once an instruction set. Every latent is computed by itself with one
//! rounding a multiplication and one a subtraction (rustc never contracts the two to a fused
//! multiply-add), and magnitudes are compared as integers. So all instruction sets give the same
//! bytes by construction; the tests compare them all the same.

use bytemuck::Zeroable;

use crate::kernels::{Isa, Kernels};

/// Latents in a block: four AVX-512 registers of float32, one cache line of int8.
pub const BLOCK: usize = 64;

/// `BLOCK` consecutive latents, aligned so that no vector load crosses a cache line.
#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C, align(64))]
pub struct Block<T>(pub [T; BLOCK]);

/// Blocks that hold `latents` latents.
pub fn blocks_for(latents: usize) -> usize {
    latents.div_ceil(BLOCK)
}

/// The latents in `blocks` as one slice, padding included.
pub fn flat<T>(blocks: &[Block<T>]) -> &[T] {
    // SAFETY: Block<T> is repr(C) around [T; BLOCK]; its alignment of 64 divides the size of
    // BLOCK elements of 1, 2 or 4 bytes, so there is no padding between blocks (checked below
    // at compile time for every T in use).
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK) }
}

/// As [`flat`], to write into.
pub fn flat_mut<T>(blocks: &mut [Block<T>]) -> &mut [T] {
    // SAFETY: as in `flat`; the borrow is unique because `blocks` is.
    unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * BLOCK) }
}

const _: () = assert!(size_of::<Block<f32>>() == BLOCK * 4);
const _: () = assert!(size_of::<Block<i16>>() == BLOCK * 2);
const _: () = assert!(size_of::<Block<i8>>() == BLOCK);

/// An entry of a stored Gram matrix.
pub trait Entry: Copy + Send + Sync + Zeroable + 'static {
    /// Its value, before the row's step is applied.
    fn value(self) -> f32;
}

impl Entry for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Entry for i16 {
    #[inline(always)]
    fn value(self) -> f32 {
        f32::from(self)
    }
}

impl Entry for i8 {
    #[inline(always)]
    fn value(self) -> f32 {
        f32::from(self)
    }
}

/// The largest magnitude in a block as the bits of a non-negative float, whose order as
/// integers is their order as numbers.
#[inline(always)]
fn largest(block: &Block<f32>) -> u32 {
    let mut largest = 0;
    for value in &block.0 {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    largest
}

#[inline(always)]
fn subtract_body<E: Entry>(
    correlations: &mut [Block<f32>],
    maxima: &mut [u32],
    row: &[Block<E>],
    amount: f32,
) {
    for ((block, maximum), entries) in correlations.iter_mut().zip(maxima).zip(row) {
        for (value, entry) in block.0.iter_mut().zip(&entries.0) {
            *value -= amount * entry.value();
        }
        *maximum = largest(block);
    }
}

#[inline(always)]
fn rebuild_body<E: Entry>(
    correlations: &mut [Block<f32>],
    maxima: &mut [u32],
    start: &[Block<f32>],
    rows: &[(f32, &[Block<E>])],
) {
    for (b, ((block, maximum), start)) in correlations.iter_mut().zip(maxima).zip(start).enumerate()
    {
        let mut sum = *start;
        for (amount, row) in rows {
            for (value, entry) in sum.0.iter_mut().zip(&row[b].0) {
                *value -= amount * entry.value();
            }
        }
        *maximum = largest(&sum);
        *block = sum;
    }
}

#[inline(always)]
fn maxima_body(correlations: &[Block<f32>], maxima: &mut [u32]) {
    for (block, maximum) in correlations.iter().zip(maxima) {
        *maximum = largest(block);
    }
}

/// Lanes of an inner product's running sums.
const LANES: usize = 16;

/// The sum of the lanes, halves folded onto each other.
#[inline(always)]
fn folded(sums: [f32; LANES]) -> f32 {
    let mut eight = [0f32; 8];
    for lane in 0..8 {
        eight[lane] = sums[lane] + sums[lane + 8];
    }
    let mut four = [0f32; 4];
    for lane in 0..4 {
        four[lane] = eight[lane] + eight[lane + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// `sums + a * b`, lane by lane.
#[inline(always)]
fn added(mut sums: [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    for lane in 0..LANES {
        sums[lane] += a[lane] * b[lane];
    }
    sums
}

/// Inner products of four vectors with two others: each number read serves several products,
/// and their sums wait for additions together.
///
/// The eight sums are variables of their own: as an array of arrays the compiler kept them in
/// memory, and this took five times as long.
#[inline(always)]
fn dots_of(a: [&[f32]; 4], b: [&[f32]; 2]) -> [[f32; 2]; 4] {
    let [a0, a1, a2, a3] = a.map(|row| row.as_chunks::<LANES>());
    let [b0, b1] = b.map(|row| row.as_chunks::<LANES>());
    let zero = [0f32; LANES];
    let (mut s00, mut s01, mut s10, mut s11) = (zero, zero, zero, zero);
    let (mut s20, mut s21, mut s30, mut s31) = (zero, zero, zero, zero);
    for (((((a0, a1), a2), a3), b0), b1) in (a0.0.iter().zip(a1.0).zip(a2.0).zip(a3.0))
        .zip(b0.0)
        .zip(b1.0)
    {
        s00 = added(s00, a0, b0);
        s01 = added(s01, a0, b1);
        s10 = added(s10, a1, b0);
        s11 = added(s11, a1, b1);
        s20 = added(s20, a2, b0);
        s21 = added(s21, a2, b1);
        s30 = added(s30, a3, b0);
        s31 = added(s31, a3, b1);
    }
    let rest = |sums: [f32; LANES], a: &[f32], b: &[f32]| {
        let mut sums = sums;
        for (lane, (a, b)) in a.iter().zip(b).enumerate() {
            sums[lane] += a * b;
        }
        folded(sums)
    };
    [
        [rest(s00, a0.1, b0.1), rest(s01, a0.1, b1.1)],
        [rest(s10, a1.1, b0.1), rest(s11, a1.1, b1.1)],
        [rest(s20, a2.1, b0.1), rest(s21, a2.1, b1.1)],
        [rest(s30, a3.1, b0.1), rest(s31, a3.1, b1.1)],
    ]
}

/// Rows and columns of a tile of inner products: 8 sums, which AVX2 holds in 8 registers.
const TILE: (usize, usize) = (4, 2);

#[inline(always)]
fn inner_products_body(
    (rows, d): (&[f32], usize),
    item: &[f32],
    support: &[usize],
    targets: &mut [f32],
    out: &mut [f32],
) {
    let new = support.len() - targets.len();
    let size = support.len();
    let row = |t: usize| &rows[support[t] * d..][..d];
    for i in (new..size).step_by(TILE.0) {
        let high = TILE.0.min(size - i);
        // beyond the last atom a tile repeats it, and what it gives there is not kept
        let a: [&[f32]; TILE.0] = std::array::from_fn(|r| row((i + r).min(size - 1)));
        let with_item = dots_of(a, [item; 2]);
        for (target, [product, _]) in targets[i - new..].iter_mut().zip(with_item) {
            *target = product;
        }
        for j in (0..i + high).step_by(TILE.1) {
            let wide = TILE.1.min(size - j);
            let b: [&[f32]; TILE.1] = std::array::from_fn(|c| row((j + c).min(size - 1)));
            for (r, products) in dots_of(a, b).iter().take(high).enumerate() {
                out[(i + r - new) * size + j..][..wide].copy_from_slice(&products[..wide]);
            }
        }
    }
}

#[inline(always)]
fn argmax_body(correlations: &[Block<f32>], maxima: &[u32]) -> usize {
    let mut largest = 0;
    for &maximum in maxima {
        largest = largest.max(maximum);
    }
    let block = (maxima.iter().position(|&maximum| maximum == largest)).unwrap_or(0);
    // from the last to the first, without a branch: the lowest latent stays
    let mut within = 0;
    for (latent, value) in correlations[block].0.iter().enumerate().rev() {
        if value.to_bits() & 0x7fff_ffff == largest {
            within = latent;
        }
    }
    block * BLOCK + within
}

#[inline(always)]
fn clear_body(correlations: &mut [Block<f32>], maxima: &mut [u32], latents: &[usize]) {
    for &latent in latents {
        let block = &mut correlations[latent / BLOCK];
        block.0[latent % BLOCK] = 0.0;
        maxima[latent / BLOCK] = largest(block);
    }
}

/// Stamps a safe function that checks lengths and runs the version of the kernels' instruction set.
macro_rules! dispatched {
    (
        $(#[$meta:meta])*
        $name:ident $(<$entry:ident>)? = $body:ident ( $($arg:ident : $type:ty),* $(,)? ) $(-> $out:ty)?
        where $check:expr
    ) => {
        $(#[$meta])*
        pub fn $name $(<$entry: Entry>)? (kernels: Kernels, $($arg: $type),*) $(-> $out)? {
            assert!($check);
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$entry: Entry>)? ($($arg: $type),*) $(-> $out)? { $body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512 $(<$entry: Entry>)? ($($arg: $type),*) $(-> $out)? { $body($($arg),*) }
            match kernels.isa() {
                Isa::Scalar => $body($($arg),*),
                // SAFETY: Kernels of an instruction set are only had on a CPU that was found
                // to have the features that the callee enables.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512 => unreachable!("no such kernels on this target"),
            }
        }
    };
}

dispatched! {
    /// `correlations -= amount * row`, and `maxima[b]` = the largest magnitude in block `b`.
    subtract<E> = subtract_body(
        correlations: &mut [Block<f32>],
        maxima: &mut [u32],
        row: &[Block<E>],
        amount: f32,
    )
    where correlations.len() == row.len() && maxima.len() == row.len()
}

dispatched! {
    /// `correlations = start - sum of amount * row`, the rows in the order given, and `maxima`
    /// as in [`subtract`].
    rebuild<E> = rebuild_body(
        correlations: &mut [Block<f32>],
        maxima: &mut [u32],
        start: &[Block<f32>],
        rows: &[(f32, &[Block<E>])],
    )
    where correlations.len() == start.len()
        && maxima.len() == start.len()
        && rows.iter().all(|(_, row)| row.len() == start.len())
}

dispatched! {
    /// `maxima` as in [`subtract`], of correlations as they are.
    block_maxima = maxima_body(correlations: &[Block<f32>], maxima: &mut [u32])
    where correlations.len() == maxima.len()
}

dispatched! {
    /// Inner products of the support's last `targets.len()` atoms, from the `new`th on: with the
    /// item, and with all atoms up to themselves. `out[(i - new) * support.len() + j]` is that of
    /// atoms `support[i]` and `support[j]`, for `j <= i`. Each is summed in an order that no CPU
    /// and no neighbour in the list changes. Atoms are given with their width.
    inner_products = inner_products_body(
        atoms: (&[f32], usize),
        item: &[f32],
        support: &[usize],
        targets: &mut [f32],
        out: &mut [f32],
    )
    where targets.len() <= support.len()
        && out.len() == targets.len() * support.len()
        && item.len() == atoms.1
}

dispatched! {
    /// The latent of largest magnitude, the lower one on a tie, given each block's largest.
    argmax = argmax_body(correlations: &[Block<f32>], maxima: &[u32]) -> usize
    where !maxima.is_empty() && correlations.len() == maxima.len()
}

dispatched! {
    /// Sets the latents' correlations to zero and mends their blocks' maxima.
    clear = clear_body(correlations: &mut [Block<f32>], maxima: &mut [u32], latents: &[usize])
    where correlations.len() == maxima.len()
}

/// Asks for a row before it is needed. Where a row is in the shared cache, fetching it one line
/// after another took more than half of the time of [`subtract`].
#[inline(always)]
pub fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(row)).step_by(64) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: a prefetch is a hint: it reads nothing and faults at no address, and this one is
        // inside the row.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().cast::<i8>().add(offset)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}
