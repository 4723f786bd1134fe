//! The kernels written once, in plain Rust. They are the scalar path, and, compiled again
//! with wider instructions enabled, the projection of every other path. The loops spell out
//! the eight lanes, so a compiler may vectorise them without changing a bit.

use std::ops::Range;

use half::f16;

use super::{WeightTable, PROJECT_QUERIES};
use crate::codes::{RankedLayout, RowFormat, RowSpan, RowsView};

/// The lanes over which every sum is defined.
pub const LANES: usize = 8;

/// The sum of the lanes, 4 apart, then 2, then 1.
#[inline(always)]
pub fn sum_lanes(lanes: [f64; LANES]) -> f64 {
    let four: [f64; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// A width of stored latents, and how such a latent finds its weight.
pub trait LatentWidth {
    /// Bytes of a latent.
    const BYTES: usize;
    /// The weight of the latent that stands at the start of `bytes`.
    fn weight(bytes: &[u8], table: &[f64]) -> f64;
}

/// Latents of 16 bits; the table has 65,536 entries.
pub struct Latent16;
/// Latents of 32 bits; larger ones than the table's last entry are clamped to it.
pub struct Latent32;

impl LatentWidth for Latent16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn weight(bytes: &[u8], table: &[f64]) -> f64 {
        let table: &[f64; 1 << 16] = table.try_into().expect("padded by WeightTable");
        table[usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))]
    }
}

impl LatentWidth for Latent32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn weight(bytes: &[u8], table: &[f64]) -> f64 {
        let latent = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        table[(latent as usize).min(table.len() - 1)]
    }
}

/// A kind of stored values.
pub trait StoredValue {
    /// Bytes of a value.
    const BYTES: usize;
    /// The value that stands at the start of `bytes`.
    fn value(bytes: &[u8]) -> f64;
}

/// Values of `ValueKind::Float32`.
pub struct Float32;
/// Values of `ValueKind::Int16`.
pub struct Int16;
/// Values of `ValueKind::Int8`.
pub struct Int8;

impl StoredValue for Float32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn value(bytes: &[u8]) -> f64 {
        f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl StoredValue for Int16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn value(bytes: &[u8]) -> f64 {
        f64::from(i16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

impl StoredValue for Int8 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn value(bytes: &[u8]) -> f64 {
        f64::from(bytes[0] as i8)
    }
}

/// Calls `$plain::<L, V>(format, span, ..)` with the types that the rows store, or
/// `$ranked(layout, ..)`.
macro_rules! with_row_coding {
    ($rows:expr, $plain:ident, $ranked:ident, ($($argument:expr),*)) => {{
        use $crate::codes::{RowCoding, ValueKind};
        use $crate::kernels::generic::{Float32, Int16, Int8, Latent16, Latent32};
        match $rows.coding() {
            RowCoding::Ranked(layout) => $ranked(layout, $($argument),*),
            RowCoding::Plain(format, span) => match (format.latent_bits, format.value) {
                (16, ValueKind::Float32) => {
                    $plain::<Latent16, Float32>(format, span, $($argument),*)
                }
                (16, ValueKind::Int16) => $plain::<Latent16, Int16>(format, span, $($argument),*),
                (16, ValueKind::Int8) => $plain::<Latent16, Int8>(format, span, $($argument),*),
                (_, ValueKind::Float32) => {
                    $plain::<Latent32, Float32>(format, span, $($argument),*)
                }
                (_, ValueKind::Int16) => $plain::<Latent32, Int16>(format, span, $($argument),*),
                (_, ValueKind::Int8) => $plain::<Latent32, Int8>(format, span, $($argument),*),
                (_, ValueKind::Ranked) => unreachable!("a plain coding is not ranked"),
            },
        }
    }};
}
pub(super) use with_row_coding;

/// [`Kernels::score_rows`](super::Kernels::score_rows) in plain Rust.
pub fn score_rows(rows: &RowsView<'_>, range: Range<usize>, table: &WeightTable, out: &mut [f64]) {
    with_row_coding!(rows, score_plain, score_ranked, (rows, range, table, out));
}

fn score_plain<L: LatentWidth, V: StoredValue>(
    format: RowFormat,
    span: RowSpan<'_>,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let table = table.entries.as_slice();
    for (row, out) in range.zip(out) {
        let (latents, values) = rows.plain_row(format, span, row);
        let mut lanes = [0.0; LANES];
        let whole_latents = latents.chunks_exact(LANES * L::BYTES);
        let whole_values = values.chunks_exact(LANES * V::BYTES);
        let rest = whole_latents
            .remainder()
            .chunks_exact(L::BYTES)
            .zip(whole_values.remainder().chunks_exact(V::BYTES));
        for (latents, values) in whole_latents.zip(whole_values) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += L::weight(&latents[lane * L::BYTES..], table)
                    * V::value(&values[lane * V::BYTES..]);
            }
        }
        for (sum, (latent, value)) in lanes.iter_mut().zip(rest) {
            *sum += L::weight(latent, table) * V::value(value);
        }
        *out = sum_lanes(lanes);
    }
}

fn score_ranked(
    layout: &RankedLayout,
    rows: &RowsView<'_>,
    range: Range<usize>,
    table: &WeightTable,
    out: &mut [f64],
) {
    let table = table.entries.as_slice();
    for (row, out) in range.zip(out) {
        let bytes = rows.ranked_row(layout, row);
        let mut lanes = [0.0; LANES];
        for rank in 0..layout.width() {
            let (latent, level) = layout.field(bytes, rank);
            lanes[rank % LANES] += table[latent as usize] * level;
        }
        *out = sum_lanes(lanes);
    }
}

/// [`Kernels::project`](super::Kernels::project) in plain Rust; always inlined, so that a
/// caller with wider instructions enabled gets it compiled for them.
#[inline(always)]
pub fn project(atoms: &[f32], queries: &[f64], d: usize, out: &mut [&mut [f64]]) {
    match out {
        [] => {}
        [_] => project_n::<1, f32>(atoms, queries, d, out),
        [_, _] => project_n::<2, f32>(atoms, queries, d, out),
        [_, _, _] => project_n::<3, f32>(atoms, queries, d, out),
        _ => project_n::<PROJECT_QUERIES, f32>(atoms, queries, d, out),
    }
}

#[inline(always)]
fn project_n<const N: usize, A: Copy + Into<f64>>(
    atoms: &[A],
    queries: &[f64],
    d: usize,
    out: &mut [&mut [f64]],
) {
    let whole = d - d % LANES;
    let queries: [&[f64]; N] = std::array::from_fn(|q| &queries[q * d..(q + 1) * d]);
    for (a, atom) in atoms.chunks_exact(d).enumerate() {
        let mut lanes = [[0.0f64; LANES]; N];
        for start in (0..whole).step_by(LANES) {
            let atom: &[A; LANES] = atom[start..start + LANES].try_into().expect("eight");
            let wide: [f64; LANES] = atom.map(Into::into);
            for (lanes, query) in lanes.iter_mut().zip(queries) {
                let query: &[f64; LANES] = query[start..start + LANES].try_into().expect("eight");
                for lane in 0..LANES {
                    lanes[lane] += wide[lane] * query[lane];
                }
            }
        }
        for (lanes, query) in lanes.iter_mut().zip(queries) {
            for i in whole..d {
                lanes[i - whole] += atom[i].into() * query[i];
            }
        }
        for (out, lanes) in out.iter_mut().zip(lanes) {
            out[a] = sum_lanes(lanes);
        }
    }
}

/// [`Kernels::project_halves`](super::Kernels::project_halves) in plain Rust.
pub fn project_halves(atoms: &[f16], query: &[f64], out: &mut [f64]) {
    project_n::<1, f16>(atoms, query, query.len(), &mut [out]);
}

/// [`Kernels::project_some`](super::Kernels::project_some) in plain Rust, for numbers of any width.
pub fn project_some<A: Copy + Into<f64>>(
    atoms: &[A],
    d: usize,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    project_from(atoms, d, 0, latents, query, out);
}

/// [`Kernels::project_some_wide`](super::Kernels::project_some_wide) in plain Rust.
pub fn project_from<A: Copy + Into<f64>>(
    atoms: &[A],
    d: usize,
    first: u32,
    latents: &[u32],
    query: &[f64],
    out: &mut [f64],
) {
    for (&latent, out) in latents.iter().zip(out) {
        let place = (latent - first) as usize * d;
        let out = &mut [std::slice::from_mut(out)];
        project_n::<1, A>(&atoms[place..place + d], query, d, out);
    }
}

/// The inner product of two vectors of one length, in the order of the module's head.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (sum, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sum_lanes(lanes)
}

/// The Euclidean norm, scaled by the largest magnitude so that no square over- or underflows.
pub fn norm(a: &[f64]) -> f64 {
    let largest = a.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    let scaled: Vec<f64> = a.iter().map(|x| x / largest).collect();
    largest * dot(&scaled, &scaled).sqrt()
}
