//! AVX-512: eight nonzeros of a row at a time, one a lane, weights by gather.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::avx2::{from_on, words_by_rank};
use super::padded_group;
use crate::codes::{RankedLayout, RowFormat, RowSpan, RowsView};
use crate::kernels::generic::{self, with_row_coding, LANES};
use crate::kernels::integers::IntegerRow;
use crate::kernels::tile::TILE;
use crate::kernels::WeightTable;
use crate::memory::LINE_BYTES;

/// True where this CPU has all that the functions here use.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("f16c")
}

/// Eight latents as gather indices below the length of the table.
trait Latents8: generic::LatentWidth {
    /// # Safety
    /// AVX-512 is there, and `latents` points to eight latents.
    unsafe fn load(latents: *const u8, last: __m256i) -> __m256i;
}

impl Latents8 for generic::Latent16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn load(latents: *const u8, _last: __m256i) -> __m256i {
        // SAFETY: the caller's pointer has the 16 bytes of eight latents; loadu needs no
        // alignment.
        _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(latents.cast()) })
    }
}

impl Latents8 for generic::Latent32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn load(latents: *const u8, last: __m256i) -> __m256i {
        // SAFETY: the caller's pointer has the 32 bytes of eight latents; loadu needs no
        // alignment.
        _mm256_min_epu32(unsafe { _mm256_loadu_si256(latents.cast()) }, last)
    }
}

/// Eight values in double precision.
trait Values8: generic::StoredValue {
    /// # Safety
    /// AVX-512 is there, and `values` points to eight values.
    unsafe fn load(values: *const u8) -> __m512d;
}

impl Values8 for generic::Float32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn load(values: *const u8) -> __m512d {
        // SAFETY: the caller's pointer has the 32 bytes of eight values; loadu needs no
        // alignment.
        _mm512_cvtps_pd(unsafe { _mm256_loadu_ps(values.cast()) })
    }
}

impl Values8 for generic::Int16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn load(values: *const u8) -> __m512d {
        // SAFETY: the caller's pointer has the 16 bytes of eight values; loadu needs no
        // alignment.
        _mm512_cvtepi32_pd(_mm256_cvtepi16_epi32(unsafe {
            _mm_loadu_si128(values.cast())
        }))
    }
}

impl Values8 for generic::Int8 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
    unsafe fn load(values: *const u8) -> __m512d {
        // SAFETY: the caller's pointer has the 8 bytes of eight values; loadu needs no
        // alignment.
        _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(unsafe { _mm_loadu_si64(values) }))
    }
}

/// [`Kernels::score_rows`](crate::kernels::Kernels::score_rows).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and `table` was made for the format of `rows`.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
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
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn score_plain<L: Latents8, V: Values8>(
    format: RowFormat,
    span: RowSpan<'_>,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let entries = table.entries.as_slice();
    // dim < 2^31 (codes::check_dim), so the last entry's index is a non-negative i32
    let last = _mm256_set1_epi32((entries.len() - 1) as i32);
    for (row, out) in range.zip(out) {
        let (latents, values) = rows.plain_row(format, span, row);
        let whole_latents = latents.chunks_exact(LANES * L::BYTES);
        let whole_values = values.chunks_exact(LANES * V::BYTES);
        let rest = (whole_latents.remainder(), whole_values.remainder());
        let mut lanes = _mm512_setzero_pd();
        for (latents, values) in whole_latents.zip(whole_values) {
            // SAFETY: both chunks hold eight elements. An index is below 65,536, the length of
            // the table that WeightTable pads for 16-bit latents, or clamped to the last entry.
            lanes = unsafe {
                let index = L::load(latents.as_ptr(), last);
                let weights = _mm512_i32gather_pd::<8>(index, entries.as_ptr());
                _mm512_add_pd(lanes, _mm512_mul_pd(weights, V::load(values.as_ptr())))
            };
        }
        if !rest.0.is_empty() {
            let latents = padded_group(rest.0, L::BYTES);
            let values = padded_group(rest.1, V::BYTES);
            // SAFETY: both groups have room for eight elements; indices as above.
            lanes = unsafe {
                let index = L::load(latents.as_ptr(), last);
                let weights = _mm512_i32gather_pd::<8>(index, entries.as_ptr());
                _mm512_add_pd(lanes, _mm512_mul_pd(weights, V::load(values.as_ptr())))
            };
        }
        *out = sum_lanes(lanes);
    }
}

/// The sum of the lanes, 4 apart, then 2, then 1.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn sum_lanes(lanes: __m512d) -> f64 {
    let four = _mm256_add_pd(
        _mm512_castpd512_pd256(lanes),
        _mm512_extractf64x4_pd::<1>(lanes),
    );
    let two = _mm_add_pd(
        _mm256_castpd256_pd128(four),
        _mm256_extractf128_pd::<1>(four),
    );
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

/// # Safety
/// As [`score_rows`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn score_ranked(
    layout: &RankedLayout,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let levels_a_rank = 1usize << (16 - layout.latent_bits());
    let whole = if layout.is_words() && (8..=16).contains(&levels_a_rank) {
        range.len() - range.len() % 8
    } else {
        0
    };
    let (in_eights, rest) = out.split_at_mut(whole);
    // SAFETY: the caller's promises are those that both ask for, and the number of levels of a
    // rank is the one that each function is for.
    unsafe {
        let eights = range.start..range.start + whole;
        if levels_a_rank == 16 {
            score_words::<16>(layout, rows, eights, table, in_eights);
        } else if levels_a_rank == 8 {
            score_words::<8>(layout, rows, eights, table, in_eights);
        }
        score_fields(layout, rows, range.start + whole..range.end, table, rest);
    }
}

/// Rows of 16-bit fields, eight at a time, a row a lane: the levels of a rank are then in one or
/// two registers, and only weights are gathered.
///
/// # Safety
/// As [`score_rows`]; fields are words, a rank has `LEVELS` (8 or 16) signed levels, and the
/// range has whole eights of rows.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn score_words<const LEVELS: usize>(
    layout: &RankedLayout,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let weights = table.entries.as_ptr();
    let levels = layout.signed_levels();
    let bits = layout.latent_bits();
    let latent_mask = _mm256_set1_epi32((1 << bits) - 1);
    let low = _mm_cvtsi32_si128(bits as i32);
    let signed_mask = _mm256_set1_epi32(LEVELS as i32 - 1);
    for (first, out) in range.step_by(8).zip(out.chunks_exact_mut(8)) {
        let bytes: [&[u8]; 8] = std::array::from_fn(|i| rows.ranked_row(layout, first + i));
        let mut lanes = [_mm512_setzero_pd(); LANES];
        for group in (0..layout.width()).step_by(LANES) {
            // SAFETY: a row has whole groups of eight words, 16 bytes each.
            let columns = unsafe { words_by_rank(bytes.map(|row| row.as_ptr().add(2 * group))) };
            for (pair, column) in columns.into_iter().enumerate() {
                for half in 0..2 {
                    let rank = 2 * pair + half;
                    let fields = if half == 0 {
                        column
                    } else {
                        _mm256_srli_epi32::<16>(column)
                    };
                    let latents = _mm256_and_si256(fields, latent_mask);
                    let signed = _mm256_and_si256(_mm256_srl_epi32(fields, low), signed_mask);
                    let signed = _mm512_cvtepu32_epi64(signed);
                    let levels = &levels[(group + rank) * LEVELS..(group + rank + 1) * LEVELS];
                    // SAFETY: a latent has at most `bits` bits, and the table 2^bits entries
                    // (WeightTable::zeros); `levels` has 8 or 16 numbers.
                    lanes[rank] = unsafe {
                        let weights = _mm512_i32gather_pd::<8>(latents, weights);
                        let front = _mm512_loadu_pd(levels.as_ptr());
                        let levels = if LEVELS == 16 {
                            let back = _mm512_loadu_pd(levels.as_ptr().add(8));
                            _mm512_permutex2var_pd(front, signed, back)
                        } else {
                            _mm512_permutexvar_pd(signed, front)
                        };
                        _mm512_add_pd(lanes[rank], _mm512_mul_pd(weights, levels))
                    };
                }
            }
        }
        let four: [__m512d; 4] = std::array::from_fn(|i| _mm512_add_pd(lanes[i], lanes[i + 4]));
        let sums = _mm512_add_pd(
            _mm512_add_pd(four[0], four[2]),
            _mm512_add_pd(four[1], four[3]),
        );
        // SAFETY: `out` has eight numbers; storeu needs no alignment.
        unsafe { _mm512_storeu_pd(out.as_mut_ptr(), sums) };
    }
}

/// # Safety
/// As [`score_rows`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn score_fields(
    layout: &RankedLayout,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let weights = table.entries.as_ptr();
    let levels = layout.signed_levels().as_ptr();
    let [offsets, ..] = layout.groups();
    for (row, out) in range.zip(out) {
        let bytes = rows.ranked_row(layout, row);
        let mut lanes = _mm512_setzero_pd();
        for group in (0..offsets.len()).step_by(LANES) {
            // SAFETY: the table has an entry for each latent that a field or a group's padding
            // can name (RankedLayout::nameable); an index is one of signed_levels.
            lanes = unsafe {
                let (latents, index) = fields(layout, bytes, group);
                let weights = _mm512_i32gather_pd::<8>(latents, weights);
                let levels = _mm512_i32gather_pd::<8>(index, levels);
                _mm512_add_pd(lanes, _mm512_mul_pd(weights, levels))
            };
        }
        *out = sum_lanes(lanes);
    }
}

/// [`Kernels::integer_row`](crate::kernels::Kernels::integer_row): eight nonzeros at a time, whose
/// entries are gathered.
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ; `row` has the layout's bytes, `entries` one for each of its
/// signed levels, `out` room for whole groups of eight, and `dim` is below 2^25.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub unsafe fn integer_row(
    layout: &RankedLayout,
    entries: &[u64],
    row: &[u8],
    dim: u32,
    out: IntegerRow<'_>,
) -> u64 {
    let [offsets, ..] = layout.groups();
    let dim = _mm256_set1_epi32(dim as i32);
    let mut sums = _mm512_setzero_si512();
    for group in (0..offsets.len()).step_by(LANES) {
        // SAFETY: the caller's promises; an index is one of signed_levels, and `out` has eight
        // numbers for each group.
        unsafe {
            let (latents, index) = fields(layout, row, group);
            let lines =
                _mm256_slli_epi32::<{ TILE.ilog2() as i32 }>(_mm256_min_epu32(latents, dim));
            _mm256_storeu_si256(out.lines.as_mut_ptr().add(group).cast(), lines);
            let entries = _mm512_i32gather_epi64::<8>(index, entries.as_ptr().cast());
            let levels = _mm512_cvtepi64_epi8(entries);
            _mm_storel_epi64(out.levels.as_mut_ptr().add(group).cast(), levels);
            sums = _mm512_add_epi64(sums, _mm512_srli_epi64::<8>(entries));
        }
    }
    _mm512_reduce_add_epi64(sums) as u64
}

/// Latents and indices of levels of eight nonzeros from the `group`th on.
///
/// # Safety
/// AVX-512 is there, `row` has the layout's bytes, and `group` is a multiple of eight below the
/// layout's width.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn fields(layout: &RankedLayout, row: &[u8], group: usize) -> (__m256i, __m256i) {
    let [offsets, shifts, masks, bases] = layout.groups();
    // SAFETY: the four arrays have whole groups of eight. A field is read from four bytes at an
    // offset of at most row_bytes - 4, a group of words from 16 bytes that whole groups of 16-bit
    // fields fill (RankedLayout::groups).
    unsafe {
        let fields = if layout.is_words() {
            _mm256_cvtepu16_epi32(_mm_loadu_si128(row.as_ptr().add(2 * group).cast()))
        } else {
            let offsets = load8(offsets, group);
            let raw = _mm256_i32gather_epi32::<1>(row.as_ptr().cast(), offsets);
            _mm256_srlv_epi32(raw, load8(shifts, group))
        };
        let latent_bits = _mm_cvtsi32_si128(layout.latent_bits() as i32);
        let latents = if layout.is_complete() {
            from_on(group)
        } else {
            _mm256_and_si256(fields, _mm256_set1_epi32((1 << layout.latent_bits()) - 1))
        };
        let signed = _mm256_srl_epi32(fields, latent_bits);
        let signed = _mm256_and_si256(signed, load8(masks, group));
        (latents, _mm256_add_epi32(signed, load8(bases, group)))
    }
}

/// Eight numbers from `first` on.
///
/// # Safety
/// AVX-512 is there, and `numbers` has eight from `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn load8(numbers: &[i32], first: usize) -> __m256i {
    // SAFETY: eight numbers are there by the caller's promise; loadu needs no alignment.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().add(first).cast()) }
}

/// [`Kernels::project`](crate::kernels::Kernels::project).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and F16C.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
pub unsafe fn project(atoms: &[f32], queries: &[f64], d: usize, out: &mut [&mut [f64]]) {
    let [out] = out else {
        return generic::project(atoms, queries, d, out);
    };
    // SAFETY: the caller's promise.
    unsafe { project_one(atoms, queries, out) };
}

/// [`Kernels::project_halves`](crate::kernels::Kernels::project_halves).
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and F16C.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
pub unsafe fn project_halves(atoms: &[f16], query: &[f64], out: &mut [f64]) {
    // SAFETY: the caller's promise.
    unsafe { project_one(atoms, query, out) };
}

/// Numbers of atoms, eight of which are read as doubles.
pub trait Eights: Copy + Into<f64> {
    /// # Safety
    /// The CPU has AVX-512 and F16C, and `numbers` points to eight of them.
    unsafe fn load(numbers: *const Self) -> __m512d;
}

impl Eights for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
    unsafe fn load(numbers: *const Self) -> __m512d {
        // SAFETY: the caller's pointer has 32 bytes; loadu needs no alignment.
        _mm512_cvtps_pd(unsafe { _mm256_loadu_ps(numbers) })
    }
}

impl Eights for f64 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
    unsafe fn load(numbers: *const Self) -> __m512d {
        // SAFETY: the caller's pointer has 64 bytes; loadu needs no alignment.
        unsafe { _mm512_loadu_pd(numbers) }
    }
}

impl Eights for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
    unsafe fn load(numbers: *const Self) -> __m512d {
        // SAFETY: the caller's pointer has 16 bytes; loadu needs no alignment.
        _mm512_cvtps_pd(_mm256_cvtph_ps(unsafe { _mm_loadu_si128(numbers.cast()) }))
    }
}

/// One query has one sum an atom, each of which would wait for itself: four atoms do not.
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and F16C.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
unsafe fn project_one<A: Eights>(atoms: &[A], query: &[f64], out: &mut [f64]) {
    let d = query.len();
    for (atoms, out) in atoms.chunks(4 * d).zip(out.chunks_mut(4)) {
        let last = out.len() - 1;
        let four: [&[_]; 4] =
            std::array::from_fn(|i| &atoms[i.min(last) * d..(i.min(last) + 1) * d]);
        // the next four stand behind these
        let next = four.map(|atom: &[A]| atom.as_ptr().wrapping_add(4 * d));
        // SAFETY: four slices of `d` numbers, as the query has.
        let sums = unsafe { project_each::<_, true, 4>(four, query, next) };
        out.copy_from_slice(&sums[..=last]);
    }
}

/// [`Kernels::project_some`](crate::kernels::Kernels::project_some).
///
/// # Safety
/// As [`project_from`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
pub unsafe fn project_some<A: Eights>(
    atoms: &[A],
    d: usize,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    // SAFETY: the caller's promise.
    unsafe { project_from::<A, true>(atoms, d, 0, latents, query, out) };
}

/// [`Kernels::project_some_wide`](crate::kernels::Kernels::project_some_wide). Up to eight atoms at a
/// time, no more than there are; with `AHEAD` the next eight are asked for, which may lie anywhere.
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and F16C; `query` has `d` numbers, `out` one a latent, and
/// every latent has an atom.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
pub unsafe fn project_from<A: Eights, const AHEAD: bool>(
    atoms: &[A],
    d: usize,
    first: u32,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    let atom = |latent: u32| {
        let place = (latent - first) as usize;
        &atoms[place * d..(place + 1) * d]
    };
    for (from, out) in (0..).step_by(8).zip(out.chunks_mut(8)) {
        let now = &latents[from..from + out.len()];
        let later = &latents[from + out.len()..];
        macro_rules! together {
            ($($n:literal)*) => {
                match now.len() {
                    $($n => {
                        let some: [&[A]; $n] = std::array::from_fn(|i| atom(now[i]));
                        let next = std::array::from_fn(|i| {
                            let next = if AHEAD { later.get(i) } else { None };
                            next.map_or(some[i], |&latent| atom(latent)).as_ptr()
                        });
                        // SAFETY: slices of `d` numbers, as the query has.
                        let sums = unsafe { project_each::<A, AHEAD, $n>(some, query, next) };
                        out.copy_from_slice(&sums);
                    })*
                    _ => unreachable!("chunks of 8 have 1 to 8"),
                }
            };
        }
        together!(1 2 3 4 5 6 7 8);
    }
}

/// Inner products of some atoms; with `AHEAD` the memory is asked for the `next` ones, whatever the
/// addresses.
///
/// # Safety
/// The CPU has AVX-512 F, VL, BW and DQ, and F16C, and all slices have one length.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,f16c")]
unsafe fn project_each<A: Eights, const AHEAD: bool, const N: usize>(
    atoms: [&[A]; N],
    query: &[f64],
    next: [*const A; N],
) -> [f64; N] {
    let whole = query.len() - query.len() % LANES;
    let a_line = LINE_BYTES / size_of::<A>();
    let mut lanes = [_mm512_setzero_pd(); N];
    for line in (0..whole).step_by(a_line) {
        // SAFETY: eight numbers from every `start` on are there in every slice, and loadu needs no
        // alignment; asking ahead reads nothing that the program could see, whatever the address.
        unsafe {
            if AHEAD {
                for next in next {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                }
            }
            for start in (line..whole.min(line + a_line)).step_by(LANES) {
                let query = _mm512_loadu_pd(query.as_ptr().add(start));
                for (lanes, atom) in lanes.iter_mut().zip(atoms) {
                    let atom = A::load(atom.as_ptr().add(start));
                    *lanes = _mm512_add_pd(*lanes, _mm512_mul_pd(atom, query));
                }
            }
        }
    }
    std::array::from_fn(|a| {
        let mut last = [0.0f64; LANES];
        // SAFETY: `last` has room for eight numbers; storeu needs no alignment.
        unsafe { _mm512_storeu_pd(last.as_mut_ptr(), lanes[a]) };
        for i in whole..query.len() {
            last[i - whole] += atoms[a][i].into() * query[i];
        }
        generic::sum_lanes(last)
    })
}
