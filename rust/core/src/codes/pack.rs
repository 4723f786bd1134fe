//! From canonical codes to plain packed rows: rank order, levels, one width or offsets.
//!
//! Levels are uniform: `step = max|value| / max_level` in float32, `level = value / step`
//! rounded to the nearest integer, ties to even. Deterministic: rows depend on nothing but
//! their own values.

use rayon::prelude::*;

use super::{CodesView, RowCoding, RowFormat, RowSpan, RowsView, ValueKind};
use crate::control::Control;
use crate::memory::OwnedBytes;
use crate::{Error, Result};

/// Rows that one task packs: some 100 microseconds of work.
const ROWS_A_TASK: usize = 4096;

/// Plain packed rows, owned.
#[derive(Debug)]
pub struct PackedRows {
    /// How nonzeros are stored.
    pub format: RowFormat,
    /// Number of rows.
    pub n: usize,
    /// Number of latents.
    pub dim: usize,
    /// The common width, or `None` where `offsets` are used.
    pub width: Option<usize>,
    /// Where rows start, counted in nonzeros; n + 1 of them, or none.
    pub offsets: Vec<u64>,
    /// The rows, one after the other.
    pub data: OwnedBytes,
    /// What a level of a row is worth; one a row, or none where values are floats.
    pub steps: Vec<f32>,
}

impl PackedRows {
    /// The rows, borrowed.
    pub fn view(&self) -> Result<RowsView<'_>> {
        let span = match self.width {
            Some(width) => RowSpan::Fixed(width),
            None => RowSpan::Offsets64(&self.offsets),
        };
        RowsView::new(
            RowCoding::Plain(self.format, span),
            self.n,
            self.dim,
            &self.data,
        )
    }
}

/// Packs codes. Rows get one common width where that takes no more bytes than offsets would.
///
/// # Errors
/// [`Error::OutOfMemory`] where the packed rows find no room, [`Error::Interrupted`].
pub fn pack(codes: CodesView<'_>, value: ValueKind, control: &Control) -> Result<PackedRows> {
    let n = codes.len();
    let format = RowFormat::new(codes.dim(), value);
    // at least 1, so that the number of rows of a file is bounded by its bytes
    let widest = (0..n).map(|row| codes.span(row).len()).fold(1, usize::max);
    let offset_bytes = (n + 1) * if fits_u32(codes.nnz()) { 4 } else { 8 };
    let fixed_bytes = (n as u128) * (widest * format.nonzero_bytes()) as u128;
    let varying_bytes = codes.nnz() * format.nonzero_bytes() + offset_bytes;
    let fixed = fixed_bytes <= varying_bytes as u128;

    let bytes = if fixed {
        fixed_bytes as usize
    } else {
        codes.nnz() * format.nonzero_bytes()
    };
    let mut data = OwnedBytes::zeroed(bytes, "packed rows")?;
    let mut steps = vec![0.0f32; if value.max_level().is_some() { n } else { 0 }];

    // the row bytes of each task, cut off one after the other
    let mut tasks = Vec::with_capacity(n.div_ceil(ROWS_A_TASK));
    let mut rest_data = &mut *data;
    let mut rest_steps = steps.as_mut_slice();
    for first in (0..n).step_by(ROWS_A_TASK) {
        let last = n.min(first + ROWS_A_TASK);
        let nonzeros = if fixed {
            (last - first) * widest
        } else {
            codes.span(last - 1).end - codes.span(first).start
        };
        let (task_data, data_after) = rest_data.split_at_mut(nonzeros * format.nonzero_bytes());
        let n_steps = (last - first).min(rest_steps.len());
        let (task_steps, steps_after) = rest_steps.split_at_mut(n_steps);
        (rest_data, rest_steps) = (data_after, steps_after);
        tasks.push((first..last, task_data, task_steps));
    }
    tasks
        .into_par_iter()
        .try_for_each(|(rows, task_data, task_steps)| {
            control.check()?;
            let mut packer = RowPacker::new(format);
            let mut rest = task_data;
            for (i, row) in rows.clone().enumerate() {
                let (latents, values) = codes.row(row);
                let width = if fixed { widest } else { latents.len() };
                let (out, after) = rest.split_at_mut(width * format.nonzero_bytes());
                rest = after;
                let step = packer.pack_row(latents, values, width, out);
                if let Some(slot) = task_steps.get_mut(i) {
                    *slot = step;
                }
            }
            control.advance(rows.len() as u64);
            Ok::<(), Error>(())
        })?;

    Ok(PackedRows {
        format,
        n,
        dim: codes.dim(),
        width: fixed.then_some(widest),
        offsets: if fixed {
            Vec::new()
        } else {
            let mut end = 0;
            let ends = (0..n).map(|row| {
                end += codes.span(row).len() as u64;
                end
            });
            [0].into_iter().chain(ends).collect()
        },
        data,
        steps,
    })
}

/// True where offsets up to `nonzeros` fit 32 bits.
pub fn fits_u32(nonzeros: usize) -> bool {
    u32::try_from(nonzeros).is_ok()
}

/// Packs rows one by one, reusing its buffer.
struct RowPacker {
    format: RowFormat,
    ranked: Vec<(u32, f32)>,
}

impl RowPacker {
    fn new(format: RowFormat) -> Self {
        Self {
            format,
            ranked: Vec::new(),
        }
    }

    /// Writes a row into `out`, which holds `width` zeroed nonzeros, and returns its step.
    fn pack_row(&mut self, latents: &[u32], values: &[f32], width: usize, out: &mut [u8]) -> f32 {
        self.ranked.clear();
        self.ranked
            .extend(latents.iter().copied().zip(values.iter().copied()));
        self.ranked
            .sort_unstable_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
        let step = match (self.format.value.max_level(), self.ranked.first()) {
            (Some(max_level), Some(largest)) => largest.1.abs() / max_level,
            _ => 0.0,
        };
        let (out_latents, out_values) = out.split_at_mut(width * self.format.latent_bytes());
        let latent_slots = out_latents.chunks_exact_mut(self.format.latent_bytes());
        let value_slots = out_values.chunks_exact_mut(self.format.value_bytes());
        for (&(latent, value), (latent_slot, value_slot)) in
            self.ranked.iter().zip(latent_slots.zip(value_slots))
        {
            latent_slot.copy_from_slice(&latent.to_le_bytes()[..self.format.latent_bytes()]);
            match self.format.value {
                ValueKind::Ranked => unreachable!("rank-coded rows are packed by pack_ranked"),
                ValueKind::Float32 => value_slot.copy_from_slice(&value.to_le_bytes()),
                ValueKind::Int16 => {
                    let level = level(value, step).clamp(-32767.0, 32767.0);
                    value_slot.copy_from_slice(&(level as i16).to_le_bytes());
                }
                ValueKind::Int8 => {
                    let level = level(value, step).clamp(-127.0, 127.0);
                    value_slot.copy_from_slice(&(level as i8).to_le_bytes());
                }
            }
        }
        step
    }
}

/// The level of a value. |value| <= max_level * step * (1 + 2^-23), so the quotient rounds to
/// a level; only where the step is subnormal, and so itself rounded coarsely, can it lie beyond
/// the last level, and the caller clamps it. (A cast alone would saturate at -32768 and -128,
/// which are no levels.)
fn level(value: f32, step: f32) -> f64 {
    if step == 0.0 {
        return 0.0; // the whole row is below float32's smallest step: it is stored as zeros
    }
    (f64::from(value) / f64::from(step)).round_ties_even()
}

#[cfg(test)]
mod tests {
    use super::super::Codes;
    use super::*;
    use proptest::prelude::*;

    fn packed(rows: &[Vec<(i64, f32)>], dim: usize, value: ValueKind) -> PackedRows {
        let mut indptr = vec![0i64];
        let (mut latents, mut values) = (Vec::new(), Vec::new());
        for row in rows {
            latents.extend(row.iter().map(|pair| pair.0));
            values.extend(row.iter().map(|pair| pair.1));
            indptr.push(latents.len() as i64);
        }
        let codes = Codes::from_csr(&indptr, &latents, &values, dim).unwrap();
        pack(codes.view(), value, &Control::new()).unwrap()
    }

    #[test]
    fn nonzeros_stand_by_descending_magnitude_and_equal_ones_by_latent() {
        let rows = packed(
            &[vec![(1, 0.5), (2, -3.0), (4, 3.0), (9, 1.0)]],
            10,
            ValueKind::Float32,
        );
        assert_eq!(
            rows.view().unwrap().pairs(0),
            vec![(2, -3.0), (4, 3.0), (9, 1.0), (1, 0.5)]
        );
    }

    #[test]
    fn rows_of_like_length_get_one_width_and_others_get_offsets() {
        let even = packed(
            &[vec![(1, 1.0), (2, 2.0)], vec![(3, 1.0)]],
            10,
            ValueKind::Int8,
        );
        assert_eq!((even.width, even.data.len()), (Some(2), 12));
        assert_eq!(even.view().unwrap().pairs(1), vec![(3, 127.0), (0, 0.0)]);
        let mut rows = vec![vec![]; 20];
        rows[7] = (0..30).map(|latent| (latent, 1.0)).collect();
        let uneven = packed(&rows, 100, ValueKind::Float32);
        assert_eq!((uneven.width, uneven.offsets.len()), (None, 21));
        assert_eq!(uneven.view().unwrap().pairs(7).len(), 30);
        assert_eq!(uneven.view().unwrap().pairs(8).len(), 0);
    }

    #[test]
    fn a_row_too_small_for_any_step_is_stored_as_zeros() {
        let tiny = f32::from_bits(1);
        let rows = packed(&[vec![(3, tiny)]], 10, ValueKind::Int8);
        assert_eq!(rows.steps, vec![0.0]);
        assert_eq!(rows.view().unwrap().pairs(0), vec![(3, 0.0)]);
    }

    #[test]
    fn a_level_beyond_a_coarsely_rounded_step_is_the_last_level() {
        for (kind, last) in [(ValueKind::Int16, 32767.0), (ValueKind::Int8, 127.0)] {
            // the smallest normal number: a 32767th of it is rounded by more than 2^-16
            for value in [
                f32::MIN_POSITIVE,
                -f32::MIN_POSITIVE,
                -f32::from_bits(40_000),
            ] {
                let rows = packed(&[vec![(3, value)]], 10, kind);
                let level = rows.view().unwrap().pairs(0)[0].1;
                assert!(level.abs() <= last && level.signum() == f64::from(value.signum()));
            }
        }
    }

    proptest! {
        #[test]
        fn a_level_times_its_step_is_within_half_a_step_of_the_value(
            values in proptest::collection::vec(-1e30f32..1e30, 1..40),
            small in any::<bool>(),
        ) {
            let value_kind = if small { ValueKind::Int8 } else { ValueKind::Int16 };
            let row: Vec<_> = values.iter().enumerate().map(|(i, &v)| (i as i64, v)).collect();
            let rows = packed(&[row], 40, value_kind);
            let step = f64::from(rows.steps[0]);
            for (latent, level) in rows.view().unwrap().pairs(0) {
                let value = f64::from(values[latent as usize]);
                prop_assert!((level * step - value).abs() <= step * 0.5000001);
                prop_assert!(level.abs() <= f64::from(value_kind.max_level().unwrap()));
            }
        }

        #[test]
        fn float32_rows_hold_exactly_what_went_in(
            rows in proptest::collection::vec(
                proptest::collection::btree_map(0i64..200_000, any::<f32>()
                    .prop_filter("finite, not zero", |v| v.is_finite() && *v != 0.0), 0..9),
                0..20),
            wide in any::<bool>(),
        ) {
            let dim = if wide { 200_000 } else { 60_000 };
            let rows: Vec<Vec<(i64, f32)>> = rows
                .into_iter()
                .map(|row| row.into_iter().filter(|pair| pair.0 < dim as i64).collect())
                .collect();
            let packed = packed(&rows, dim, ValueKind::Float32);
            let view = packed.view().unwrap();
            for (i, row) in rows.iter().enumerate() {
                let mut got = view.pairs(i);
                got.retain(|pair| pair.1 != 0.0);
                got.sort_by_key(|pair| pair.0);
                let expected: Vec<_> = row.iter().map(|&(l, v)| (l as u32, f64::from(v))).collect();
                prop_assert_eq!(got, expected);
            }
        }
    }
}
