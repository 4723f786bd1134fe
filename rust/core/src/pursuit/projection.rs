//! The projection W x of unit items in 16-bit integers, to choose atoms by: about half the time
//! of the product in float32, since AVX2 and AVX-512 multiply and add twice as many 16-bit
//! numbers, and the same to the last bit on every CPU, since sums of integers have no order.
//! Knows nothing of pursuit.
//!
//! An entry v of a unit row becomes `round(2^15 v)`, at most 2^15 - 1 in magnitude. So a correlation is off
//! by about 1e-5 (6e-5 at worst among 4 million at d = 384), where a Gram matrix in 8 bits is off
//! by up to 4e-3: good enough to choose by. Values are fitted to exact inner products.
//!
//! No sum of 32 bits overflows. Each partial sum is an inner product of parts of two quantised
//! rows, so at most the product of their norms, which are below `2^15 + sqrt(d) / 2`: less than
//! 2^31 together for d up to [`MAX_WIDTH`].
//!
//! Measured with 1,024 rows against 4,096 atoms of width 384 on one core of a busy Zen 4 server,
//! in us a row: `matrixmultiply::sgemm` 33 to 36, AVX-512 20 to 24, AVX2 21 to 25. Left to the
//! compiler's vectoriser 50 and 126: it makes no use of the instruction that multiplies and adds
//! pairs. AVX512-VNNI's, which also accumulates: 16 to 18.

use bytemuck::Zeroable;

use super::blocks::{blocks_for, Block, BLOCK};
use super::gram::zeroed_blocks;
use crate::kernels::{Isa, Kernels};
use crate::Result;

/// The widest rows whose sums were shown not to overflow.
pub const MAX_WIDTH: usize = 1 << 29;

/// 1 in a quantised row.
const ONE: f32 = 32_768.0;

/// Items that a tile multiplies at once.
const TILE: usize = 4;

/// Two neighbouring entries of a row.
type Pair = [i16; 2];

/// A pair of each of [`BLOCK`] atoms.
type Pairs = Block<Pair>;

/// Inner products of [`TILE`] items with a block of atoms.
type Sums = [Block<i32>; TILE];

/// A dictionary's atoms, ready to be projected on.
pub struct Projection {
    /// Pair `p` of the atoms of block `b` is at `b * pairs + p`.
    atoms: Vec<Pairs>,
    /// Pairs of a row: the last one of an odd width is filled up with 0.
    pairs: usize,
    d: usize,
}

impl Projection {
    /// A projection on `atoms`, row-major (s, d), of unit norm.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] where the 2 s d bytes are not to be had.
    ///
    /// # Panics
    /// Where d is 0 or more than [`MAX_WIDTH`].
    pub fn new(atoms: &[f32], d: usize) -> Result<Self> {
        assert!(d > 0 && d <= MAX_WIDTH);
        let (s, pairs) = (atoms.len() / d, d.div_ceil(2));
        let mut packed: Vec<Pairs> = zeroed_blocks(blocks_for(s) * pairs)?;
        let mut row = Vec::with_capacity(pairs);
        for (j, atom) in atoms.chunks_exact(d).enumerate() {
            row.clear();
            quantise(atom, &mut row);
            for (p, &pair) in row.iter().enumerate() {
                packed[j / BLOCK * pairs + p].0[j % BLOCK] = pair;
            }
        }
        Ok(Self {
            atoms: packed,
            pairs,
            d,
        })
    }

    /// Correlations of `items`, row-major (n, d) of unit norm, with all atoms: row after row of
    /// blocks, their padding 0. `pairs` is room that is kept from one call to the next.
    ///
    /// # Panics
    /// Where `out` does not hold the blocks of just so many rows.
    pub fn project(
        &self,
        kernels: Kernels,
        items: &[f32],
        pairs: &mut Vec<Pair>,
        out: &mut [Block<f32>],
    ) {
        let (n, blocks) = (items.len() / self.d, self.atoms.len() / self.pairs);
        assert!(items.len() == n * self.d && out.len() == n * blocks);
        pairs.clear();
        for item in items.chunks_exact(self.d) {
            quantise(item, pairs);
        }
        let row = |i: usize| &pairs[i * self.pairs..][..self.pairs];
        let mut sums = Sums::zeroed();
        for (b, atoms) in self.atoms.chunks_exact(self.pairs).enumerate() {
            for i in (0..n).step_by(TILE) {
                // beyond the last item a tile repeats it, and what it gives there is not kept
                let tile: [&[Pair]; TILE] = std::array::from_fn(|r| row((i + r).min(n - 1)));
                multiply(kernels, atoms, tile, &mut sums);
                for (r, sums) in sums.iter().enumerate().take(n - i) {
                    for (out, sum) in out[(i + r) * blocks + b].0.iter_mut().zip(&sums.0) {
                        *out = *sum as f32 * (1.0 / (ONE * ONE));
                    }
                }
            }
        }
    }
}

/// Appends a unit row as pairs of 16-bit integers.
fn quantise(row: &[f32], out: &mut Vec<Pair>) {
    let (twos, rest) = row.as_chunks::<2>();
    out.extend(twos.iter().map(|two| two.map(rounded)));
    out.extend(rest.iter().map(|&last| [rounded(last), 0]));
}

/// `v` in units of 1 / ONE. What is added leaves the integer in the float's last bits, rounded
/// half to even: without the instruction for it, which the baseline of x86-64 lacks, `f32::round`
/// is a call.
fn rounded(v: f32) -> i16 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    let whole = (v * ONE + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32;
    whole.clamp(-32_767, 32_767) as i16
}

/// `out[r].0[j]` = sum over all pairs p of `items[r][p] . atoms[p].0[j]`.
fn multiply(kernels: Kernels, atoms: &[Pairs], items: [&[Pair]; TILE], out: &mut Sums) {
    assert!(items.iter().all(|item| item.len() == atoms.len()));
    match kernels.isa() {
        Isa::Scalar => multiply_plain(atoms, items, out),
        // SAFETY: Kernels of an instruction set are only had on a CPU that was found to have the
        // features that the callee enables; lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { multiply_avx2(atoms, items, out) },
        // SAFETY: as above, and AVX512-VNNI is looked for here.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe {
            multiply_vnni(atoms, items, out);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { multiply_avx512(atoms, items, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => unreachable!("no such kernels on this target"),
    }
}

fn multiply_plain(atoms: &[Pairs], items: [&[Pair]; TILE], out: &mut Sums) {
    for (item, sums) in items.iter().zip(out) {
        *sums = Block::zeroed();
        for (x, atoms) in item.iter().zip(atoms) {
            for (sum, a) in sums.0.iter_mut().zip(&atoms.0) {
                let products = [0, 1].map(|half| i32::from(x[half]) * i32::from(a[half]));
                *sum += products[0] + products[1];
            }
        }
    }
}

/// Stamps the same for an instruction set: a tile of `TILE` x `$vectors` registers of sums, as
/// many times as it takes for a block of atoms.
macro_rules! multiply_vectors {
    (
        $name:ident, $features:literal, $vector:ty, $vectors:literal,
        $zero:ident, $load:ident, $spread:ident, $store:ident,
        |$sum:ident, $a:ident, $x:ident| $added:expr
    ) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(atoms: &[Pairs], items: [&[Pair]; TILE], out: &mut Sums) {
            use std::arch::x86_64::*;
            const LANES: usize = size_of::<$vector>() / size_of::<Pair>();
            let [x0, x1, x2, x3] = items;
            for first in (0..BLOCK).step_by($vectors * LANES) {
                let mut sums = [[$zero(); $vectors]; TILE];
                for ((((atoms, x0), x1), x2), x3) in atoms.iter().zip(x0).zip(x1).zip(x2).zip(x3) {
                    let start = atoms.0[first..first + $vectors * LANES].as_ptr();
                    let a: [$vector; $vectors] = std::array::from_fn(|v| {
                        // SAFETY: the slice just taken holds `$vectors` registers of LANES pairs;
                        // blocks are aligned to 64 bytes and `first` is a multiple of LANES.
                        unsafe { $load(start.add(v * LANES).cast()) }
                    });
                    for (sums, x) in sums.iter_mut().zip([x0, x1, x2, x3]) {
                        let $x = $spread(bytemuck::cast(*x));
                        for (sum, $a) in sums.iter_mut().zip(a) {
                            let $sum = *sum;
                            *sum = $added;
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(out.iter_mut()) {
                    let start = out.0[first..first + $vectors * LANES].as_mut_ptr();
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: as for the load; an i32 is as wide as a pair.
                        unsafe { $store(start.add(v * LANES).cast(), *sum) };
                    }
                }
            }
        }
    };
}

multiply_vectors!(
    multiply_avx2,
    "avx2",
    __m256i,
    2,
    _mm256_setzero_si256,
    _mm256_load_si256,
    _mm256_set1_epi32,
    _mm256_store_si256,
    |sum, a, x| _mm256_add_epi32(sum, _mm256_madd_epi16(a, x))
);
multiply_vectors!(
    multiply_avx512,
    "avx512f,avx512bw,avx512vl,avx512dq",
    __m512i,
    4,
    _mm512_setzero_si512,
    _mm512_load_si512,
    _mm512_set1_epi32,
    _mm512_store_si512,
    |sum, a, x| _mm512_add_epi32(sum, _mm512_madd_epi16(a, x))
);
multiply_vectors!(
    multiply_vnni,
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    __m512i,
    4,
    _mm512_setzero_si512,
    _mm512_load_si512,
    _mm512_set1_epi32,
    _mm512_store_si512,
    |sum, a, x| _mm512_dpwssd_epi32(sum, a, x)
);

#[cfg(test)]
mod tests {
    use super::super::blocks::flat_mut;
    use super::*;

    /// Unit rows (xorshift), some of a single 1 or -1.
    fn rows(n: usize, d: usize, mut state: u64) -> Vec<f32> {
        let mut out = Vec::new();
        for i in 0..n {
            let mut row: Vec<f32> = (0..d)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .collect();
            if i % 5 == 3 {
                row.fill(0.0);
                row[i % d] = if i % 2 == 0 { 1.0 } else { -1.0 };
            }
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            out.extend(row.iter().map(|v| v / norm));
        }
        out
    }

    fn naive(atoms: &[f32], items: &[f32], d: usize) -> Vec<Vec<f32>> {
        let whole =
            |v: &f32| i64::from((v * ONE).round_ties_even().clamp(-32_767.0, 32_767.0) as i32);
        let inner = |a: &[f32], b: &[f32]| -> i64 {
            a.iter().zip(b).map(|(a, b)| whole(a) * whole(b)).sum()
        };
        items
            .chunks(d)
            .map(|x| atoms.chunks(d).map(|a| inner(a, x) as f32 / (ONE * ONE)))
            .map(Iterator::collect)
            .collect()
    }

    #[test]
    fn every_instruction_set_gives_the_sums_of_the_definition() {
        for (s, d) in [(1, 1), (63, 2), (64, 7), (65, 384), (200, 33)] {
            let atoms = rows(s, d, 5);
            let projection = Projection::new(&atoms, d).unwrap();
            for n in [1, 3, 4, 9] {
                let items = rows(n, d, 7);
                let wanted = naive(&atoms, &items, d);
                for kernels in Kernels::available() {
                    let blocks = blocks_for(s);
                    let mut out = vec![Block([9.0; BLOCK]); n * blocks];
                    projection.project(kernels, &items, &mut Vec::new(), &mut out);
                    for (row, wanted) in flat_mut(&mut out).chunks(blocks * BLOCK).zip(&wanted) {
                        assert_eq!(&row[..s], wanted, "{:?} {s} {d} {n}", kernels.isa());
                        assert!(row[s..].iter().all(|&v| v == 0.0));
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        // equal rows, of one entry and of many equal ones: the bound of the module's head
        for d in [1, 2, 1000] {
            let row = vec![(1.0 / d as f32).sqrt(); d];
            let projection = Projection::new(&row, d).unwrap();
            for kernels in Kernels::available() {
                let mut out = vec![Block::zeroed(); 1];
                projection.project(kernels, &row, &mut Vec::new(), &mut out);
                assert!((out[0].0[0] - 1.0).abs() < 1e-3, "{}", out[0].0[0]);
            }
        }
    }
}
