//! AVX2: eight nonzeros of a row at a time in two registers of four lanes, weights by gather.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::padded_group;
use crate::codes::{RankedLayout, RowFormat, RowSpan, RowsView};
use crate::kernels::generic::{self, with_row_coding, LANES};
use crate::kernels::WeightTable;

/// True on CPUs with what the kernels here use. There is none known that has AVX2 and not F16C.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Four latents as gather indices below the length of the table.
trait Latents4: generic::LatentWidth {
    /// # Safety
    /// AVX2 is there, and `latents` points to four latents.
    unsafe fn load(latents: *const u8, last: __m128i) -> __m128i;
}

impl Latents4 for generic::Latent16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(latents: *const u8, _last: __m128i) -> __m128i {
        // SAFETY: the caller's pointer has the 8 bytes of four latents; the load needs no
        // alignment.
        _mm_cvtepu16_epi32(unsafe { _mm_loadu_si64(latents) })
    }
}

impl Latents4 for generic::Latent32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(latents: *const u8, last: __m128i) -> __m128i {
        // SAFETY: the caller's pointer has the 16 bytes of four latents; the load needs no
        // alignment.
        _mm_min_epu32(unsafe { _mm_loadu_si128(latents.cast()) }, last)
    }
}

/// Four values in double precision.
trait Values4: generic::StoredValue {
    /// # Safety
    /// AVX2 is there, and `values` points to four values.
    unsafe fn load(values: *const u8) -> __m256d;
}

impl Values4 for generic::Float32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(values: *const u8) -> __m256d {
        // SAFETY: the caller's pointer has the 16 bytes of four values; the load needs no
        // alignment.
        _mm256_cvtps_pd(unsafe { _mm_loadu_ps(values.cast()) })
    }
}

impl Values4 for generic::Int16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(values: *const u8) -> __m256d {
        // SAFETY: the caller's pointer has the 8 bytes of four values; the load needs no
        // alignment.
        _mm256_cvtepi32_pd(_mm_cvtepi16_epi32(unsafe { _mm_loadu_si64(values) }))
    }
}

impl Values4 for generic::Int8 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(values: *const u8) -> __m256d {
        // SAFETY: the caller's pointer has the 4 bytes of four values; the load needs no
        // alignment.
        _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(unsafe { _mm_loadu_si32(values) }))
    }
}

/// [`Kernels::score_rows`](crate::kernels::Kernels::score_rows).
///
/// # Safety
/// The CPU has AVX2, and `table` was made for the format of `rows`.
#[target_feature(enable = "avx2")]
pub unsafe fn score_rows(
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    // SAFETY: the caller's promises are those that score_plain and score_ranked ask for.
    unsafe { with_row_coding!(rows, score_plain, score_ranked, (rows, range, table, out)) }
}

/// # Safety
/// As [`score_rows`], and `L` and `V` are the types that the rows store.
#[target_feature(enable = "avx2")]
unsafe fn score_plain<L: Latents4, V: Values4>(
    format: RowFormat,
    span: RowSpan<'_>,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let entries = table.entries.as_slice();
    for (row, out) in range.zip(out) {
        let (latents, values) = rows.plain_row(format, span, row);
        let whole_latents = latents.chunks_exact(LANES * L::BYTES);
        let whole_values = values.chunks_exact(LANES * V::BYTES);
        let rest = (whole_latents.remainder(), whole_values.remainder());
        let mut low = _mm256_setzero_pd();
        let mut high = _mm256_setzero_pd();
        for (latents, values) in whole_latents.zip(whole_values) {
            // SAFETY: both chunks hold eight elements, and the table was made for the rows.
            (low, high) = unsafe { add_group::<L, V>(latents, values, entries, low, high) };
        }
        if !rest.0.is_empty() {
            let latents = padded_group(rest.0, L::BYTES);
            let values = padded_group(rest.1, V::BYTES);
            // SAFETY: both groups have room for eight elements, and the table was made for the
            // rows.
            (low, high) = unsafe { add_group::<L, V>(&latents, &values, entries, low, high) };
        }
        *out = sum_lanes(low, high);
    }
}

/// The sum of the lanes, 4 apart, then 2, then 1.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_lanes(low: __m256d, high: __m256d) -> f64 {
    let four = _mm256_add_pd(low, high);
    let two = _mm_add_pd(
        _mm256_castpd256_pd128(four),
        _mm256_extractf128_pd::<1>(four),
    );
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

/// # Safety
/// As [`score_rows`].
#[target_feature(enable = "avx2")]
unsafe fn score_ranked(
    layout: &RankedLayout,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let weights = table.entries.as_ptr();
    let levels = layout.signed_levels().as_ptr();
    let [offsets, shifts, masks, bases] = layout.groups();
    let is_words = layout.is_words();
    let latent_mask = _mm256_set1_epi32((1 << layout.latent_bits()) - 1);
    let latent_bits = _mm_cvtsi32_si128(layout.latent_bits() as i32);
    for (row, out) in range.zip(out) {
        let bytes = rows.ranked_row(layout, row);
        let mut low = _mm256_setzero_pd();
        let mut high = _mm256_setzero_pd();
        for group in (0..offsets.len()).step_by(LANES) {
            // SAFETY: the four arrays have whole groups of eight. A field is read from four
            // bytes at an offset of at most row_bytes - 4, a group of words from 16 bytes that
            // whole groups of 16-bit fields fill. The table has an entry for each latent that a
            // field or a group's padding can name (RankedLayout::nameable); base + mask is an
            // index of signed_levels (RankedLayout::groups).
            unsafe {
                let fields = if is_words {
                    let words = bytes.as_ptr().add(2 * group).cast();
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(words))
                } else {
                    let offsets = load8(offsets, group);
                    let raw = _mm256_i32gather_epi32::<1>(bytes.as_ptr().cast(), offsets);
                    _mm256_srlv_epi32(raw, load8(shifts, group))
                };
                let latents = if layout.is_complete() {
                    from_on(group)
                } else {
                    _mm256_and_si256(fields, latent_mask)
                };
                let signed = _mm256_srl_epi32(fields, latent_bits);
                let signed = _mm256_and_si256(signed, load8(masks, group));
                let index = _mm256_add_epi32(signed, load8(bases, group));
                let product = |latents: __m128i, index: __m128i| {
                    _mm256_mul_pd(
                        _mm256_i32gather_pd::<8>(weights, latents),
                        _mm256_i32gather_pd::<8>(levels, index),
                    )
                };
                let first = product(
                    _mm256_castsi256_si128(latents),
                    _mm256_castsi256_si128(index),
                );
                let second = product(
                    _mm256_extracti128_si256::<1>(latents),
                    _mm256_extracti128_si256::<1>(index),
                );
                low = _mm256_add_pd(low, first);
                high = _mm256_add_pd(high, second);
            }
        }
        *out = sum_lanes(low, high);
    }
}

/// Eight words of each of eight rows, as four columns of pairs of ranks: 32-bit element `i` of
/// column `p` has word `2 p` of row `i` in its lower half and word `2 p + 1` in its upper half.
///
/// # Safety
/// AVX2 is there, and each pointer has 16 bytes behind it.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn words_by_rank(rows: [*const u8; 8]) -> [__m256i; 4] {
    // SAFETY: 16 bytes are there by the caller's promise; loadu needs no alignment.
    let two: [__m256i; 4] = std::array::from_fn(|i| unsafe {
        _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(_mm_loadu_si128(rows[i].cast())),
            _mm_loadu_si128(rows[i + 4].cast()),
        )
    });
    let (a, b) = (
        _mm256_unpacklo_epi32(two[0], two[1]),
        _mm256_unpacklo_epi32(two[2], two[3]),
    );
    let (c, d) = (
        _mm256_unpackhi_epi32(two[0], two[1]),
        _mm256_unpackhi_epi32(two[2], two[3]),
    );
    [
        _mm256_unpacklo_epi64(a, b),
        _mm256_unpackhi_epi64(a, b),
        _mm256_unpacklo_epi64(c, d),
        _mm256_unpackhi_epi64(c, d),
    ]
}

/// `first` and the seven numbers after it.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn from_on(first: usize) -> __m256i {
    let steps = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_add_epi32(_mm256_set1_epi32(first as i32), steps)
}

/// Eight numbers from `first` on.
///
/// # Safety
/// AVX2 is there, and `numbers` has eight from `first` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load8(numbers: &[i32], first: usize) -> __m256i {
    // SAFETY: eight numbers are there by the caller's promise; loadu needs no alignment.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().add(first).cast()) }
}

/// Adds eight nonzeros to the lanes 0 to 3 (`low`) and 4 to 7 (`high`).
///
/// # Safety
/// AVX2 is there, `latents` and `values` hold at least eight elements, and `entries` was
/// padded by [`WeightTable`] for latents of `L`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_group<L: Latents4, V: Values4>(
    latents: &[u8],
    values: &[u8],
    entries: &[f64],
    low: __m256d,
    high: __m256d,
) -> (__m256d, __m256d) {
    // dim < 2^31 (codes::check_dim), so the last entry's index is a non-negative i32
    let last = _mm_set1_epi32((entries.len() - 1) as i32);
    // SAFETY: eight elements are there by the caller's promise, so four at each half. An index
    // is below 65,536, the length of the table that WeightTable pads for 16-bit latents, or
    // clamped to the last entry.
    unsafe {
        let index = L::load(latents.as_ptr(), last);
        let weights = _mm256_i32gather_pd::<8>(entries.as_ptr(), index);
        let low = _mm256_add_pd(low, _mm256_mul_pd(weights, V::load(values.as_ptr())));
        let index = L::load(latents.as_ptr().add(4 * L::BYTES), last);
        let weights = _mm256_i32gather_pd::<8>(entries.as_ptr(), index);
        let values = V::load(values.as_ptr().add(4 * V::BYTES));
        (low, _mm256_add_pd(high, _mm256_mul_pd(weights, values)))
    }
}

/// [`Kernels::project`](crate::kernels::Kernels::project).
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn project(atoms: &[f32], queries: &[f64], d: usize, out: &mut [&mut [f64]]) {
    match out {
        // SAFETY: the CPU has the instructions by the caller's promise.
        [out] => unsafe { project_one(atoms, queries, out) },
        _ => generic::project(atoms, queries, d, out),
    }
}

/// [`Kernels::project_halves`](crate::kernels::Kernels::project_halves).
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn project_halves(atoms: &[f16], query: &[f64], out: &mut [f64]) {
    // SAFETY: the CPU has the instructions by the caller's promise.
    unsafe { project_one(atoms, query, out) };
}

/// One query has one sum an atom, each of which would wait for itself: four atoms do not.
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn project_one<A: Fours>(atoms: &[A], query: &[f64], out: &mut [f64]) {
    let d = query.len();
    for (atoms, out) in atoms.chunks(4 * d).zip(out.chunks_mut(4)) {
        let last = out.len() - 1;
        let four = std::array::from_fn(|i| &atoms[i.min(last) * d..(i.min(last) + 1) * d]);
        // the next four stand behind these
        let next = four.map(|atom: &[A]| atom.as_ptr().wrapping_add(4 * d));
        // SAFETY: four slices of `d` numbers, as the query has.
        let sums = unsafe { project_four::<A, true>(four, query, next) };
        out.copy_from_slice(&sums[..=last]);
    }
}

/// [`Kernels::project_some`](crate::kernels::Kernels::project_some).
///
/// # Safety
/// As [`project_from`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn project_some<A: Fours>(
    atoms: &[A],
    d: usize,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    // SAFETY: the caller's promise.
    unsafe { project_from::<A, true>(atoms, d, 0, latents, query, out) };
}

/// [`Kernels::project_some_wide`](crate::kernels::Kernels::project_some_wide). Four atoms at a time,
/// whose sums do not wait for each other; with `AHEAD` the next four are asked for, which may lie anywhere.
///
/// # Safety
/// The CPU has AVX2 and F16C, `query` has `d` numbers, `out` one a latent, and every latent has an atom.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn project_from<A: Fours, const AHEAD: bool>(
    atoms: &[A],
    d: usize,
    first: u32,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    let last = latents.len().saturating_sub(1);
    // beyond the last one it stands in for those that are missing
    let four_from = |from: usize| -> [&[A]; 4] {
        std::array::from_fn(|i| {
            let place = (latents[(from + i).min(last)] - first) as usize;
            &atoms[place * d..(place + 1) * d]
        })
    };
    for (out, from) in out.chunks_mut(4).zip((0..).step_by(4)) {
        let next = if AHEAD {
            four_from(from + 4)
        } else {
            [&[][..]; 4]
        };
        // SAFETY: four slices of `d` numbers, as the query has.
        let sums =
            unsafe { project_four::<A, AHEAD>(four_from(from), query, next.map(<[A]>::as_ptr)) };
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// Numbers of atoms, four of which are read as doubles.
pub trait Fours: Copy + Into<f64> {
    /// # Safety
    /// The CPU has AVX2 and F16C, and `numbers` points to four of them.
    unsafe fn load(numbers: *const Self) -> __m256d;
}

impl Fours for f32 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(numbers: *const Self) -> __m256d {
        // SAFETY: the caller's pointer has 16 bytes; loadu needs no alignment.
        _mm256_cvtps_pd(unsafe { _mm_loadu_ps(numbers) })
    }
}

impl Fours for f64 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(numbers: *const Self) -> __m256d {
        // SAFETY: the caller's pointer has 32 bytes; loadu needs no alignment.
        unsafe { _mm256_loadu_pd(numbers) }
    }
}

impl Fours for f16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(numbers: *const Self) -> __m256d {
        // SAFETY: the caller's pointer has 8 bytes; loadl needs no alignment.
        _mm256_cvtps_pd(_mm_cvtph_ps(unsafe { _mm_loadl_epi64(numbers.cast()) }))
    }
}

/// Inner products of four atoms; with `AHEAD` the memory is asked for the `next` ones, whatever
/// the addresses.
///
/// # Safety
/// The CPU has AVX2 and F16C, and all slices have one length.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn project_four<A: Fours, const AHEAD: bool>(
    atoms: [&[A]; 4],
    query: &[f64],
    next: [*const A; 4],
) -> [f64; 4] {
    let whole = query.len() - query.len() % LANES;
    let mut lanes = [[_mm256_setzero_pd(); 2]; 4];
    for start in (0..whole).step_by(LANES) {
        // SAFETY: eight numbers from `start` on are there in every slice; loadu needs no
        // alignment.
        unsafe {
            let low = _mm256_loadu_pd(query.as_ptr().add(start));
            let high = _mm256_loadu_pd(query.as_ptr().add(start + 4));
            for ((lanes, atom), next) in lanes.iter_mut().zip(atoms).zip(next) {
                let atom = atom.as_ptr().add(start);
                if AHEAD {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(start).cast());
                }
                let (first, second) = (A::load(atom), A::load(atom.add(4)));
                lanes[0] = _mm256_add_pd(lanes[0], _mm256_mul_pd(first, low));
                lanes[1] = _mm256_add_pd(lanes[1], _mm256_mul_pd(second, high));
            }
        }
    }
    std::array::from_fn(|a| {
        let mut last = [0.0f64; LANES];
        // SAFETY: `last` has room for eight numbers; storeu needs no alignment.
        unsafe {
            _mm256_storeu_pd(last.as_mut_ptr(), lanes[a][0]);
            _mm256_storeu_pd(last.as_mut_ptr().add(4), lanes[a][1]);
        }
        for i in whole..query.len() {
            last[i - whole] += atoms[a][i].into() * query[i];
        }
        generic::sum_lanes(last)
    })
}
