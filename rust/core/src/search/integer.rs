//! Rows and queries as small integers, and the proof of what their sums say about scores.
//!
//! # The bound
//!
//! A row's score is `S sum_r v_r u_r` over its ranks `r`, with the scale `S`, the stored values
//! `v_r` and the query's weights `u_r` of the latents there. With two units `g > 0` and `h > 0`,
//!
//! `v_r = g (2^(s_r) l_r + a_r)` and `u_r = h (w_r + b_r)`,
//!
//! where levels `l_r` and weights `w_r` are integers of magnitude at most 127. `h` is the largest
//! |weight| of the query over 127 and `w` rounds to nearest, so `|b_r| <= 1/2 + eta`, where `eta`
//! is how far the weights that were rounded may be from exact ones. Values fall with the rank,
//! so later ranks have a smaller shift `s_r`, 0 at last, and smaller roundings `a_r`.
//! Then
//!
//! `score / (g h S) = sum 2^(s_r) l_r w_r + sum a_r w_r + sum (v_r / g) b_r`,
//!
//! and the distance of the score, in these units, from the integer `I = sum 2^(s_r) l_r w_r` is
//! at most
//!
//! `E = sum |a_r| |w_r| + (1/2 + eta) sum |v_r| / g`.
//!
//! The second sum, times 1/2, is a number of the row; times `eta` it is at most the same for all
//! rows. The first is bounded by a number of the query alone:
//! let `A_r` be the largest |a_r| that any row has at rank `r`. The latents of a row differ, so
//! `sum |a_r| |w_r|` is at most the sum of products of the `A_r` and the largest `|w|` of all
//! latents, both in descending order (the rearrangement inequality).
//!
//! The pass computes `fl(fl(I + E) fl(g S))` in single precision. Each of the three roundings
//! changes the result by a factor within `1 +- 2^-24`, and `E` has a slack of `2^-21` of the
//! largest `|I + E|`, which is more; double-precision rounding in making `w` and `E` is far below
//! it. So a row whose score is at least `t` passes the threshold `t / h`, rounded down. A row
//! whose `g S` is not a normal number of single precision passes always.
//!
//! Sums start from `E`, so that it need not be added at the end; the shifts come after that, so a
//! row's and a query's part of `E` are rounded up to multiples of `2^(s_1)`.
//!
//! The bound needs scales that are not negative and latents that differ within a row, which
//! `verify` checks; a file that breaks them is searched safely but not exactly.

use crate::codes::{RankedLayout, RowCoding, RowFormat, RowSpan, ValueKind};
use crate::kernels::tile::{GROUP, MOST};
use crate::kernels::{IntegerRows, Kernels, TileLayout};
use crate::search::ScanRows;
use std::ops::Range;

/// Beyond this the 32-bit sums of the pass could overflow; such rows are for the plain scan.
const LARGEST_SUM: f64 = (1u32 << 29) as f64;

/// Scales of the pass that single precision holds to full relative precision, with room for
/// products with any sum.
const SOUND_SCALES: Range<f64> = 1e-30..1e28;

/// How rows become integers.
#[derive(Debug)]
pub struct RowCoder<'a> {
    data: ScanRows<'a>,
    ranked: Option<RankedLevels>,
    /// The largest |a_r| of every rank, descending.
    roundings: Vec<f64>,
    /// The largest sum of |v_r| / g of a row.
    most: f64,
    /// What is added to every error for roundings of single precision.
    slack: i32,
    /// Shifts of the sums before each group of four ranks.
    shifts: Vec<u32>,
    /// All of them together.
    all_shifts: u32,
    /// Bytes of the longest row.
    longest: usize,
}

/// The integer levels of a rank coding.
#[derive(Debug)]
struct RankedLevels {
    /// `g`.
    unit: f64,
    /// In the order of the layout's signed levels; the last, of no level, is 0.
    entries: Vec<u64>,
}

/// What is to know of a level, in one number, so that a row's sums are one addition a nonzero:
/// from the lowest bit on 8 bits of the level itself, [`SHIFTED_BITS`] of the level shifted as
/// those before it are plus [`SHIFTED_BIAS`], and half of |v| / g in units of 1 / HALVES, rounded
/// up.
fn entry(level: i8, shift: u32, halves: i32) -> u64 {
    let shifted = (i32::from(level) << shift) + SHIFTED_BIAS;
    u64::from(level as u8) | (shifted as u64) << 8 | (halves as u64) << (8 + SHIFTED_BITS)
}

/// Room for the sum of 2^14 numbers of at most 2 [`SHIFTED_BIAS`].
const SHIFTED_BITS: u32 = 28;
/// At least the magnitude of any shifted level.
const SHIFTED_BIAS: i32 = (MOST as i32 + 1) << MOST_SHIFT;

/// The sum of the entries of a row's nonzeros without their lowest 8 bits.
#[derive(Debug, Clone, Copy)]
struct EntrySums(u64);

impl EntrySums {
    /// HALVES times half the sum of |v| / g, each rounded up.
    fn halves(self) -> i32 {
        (self.0 >> SHIFTED_BITS) as i32
    }

    /// Of `n` levels, each shifted as those before it are.
    fn shifted(self, n: usize) -> i32 {
        (self.0 & ((1 << SHIFTED_BITS) - 1)) as i32 - n as i32 * SHIFTED_BIAS
    }
}

/// A row's scale in the pass, and the error that its own values bring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowError {
    /// `g S`, as a float32; 0 where it is no sound one, see `always`.
    pub scale: f32,
    /// 1/2 sum |v_r| / g, rounded up to what is whole before all shifts.
    pub error: i32,
    /// True where nothing is known of the row's score.
    pub always: bool,
}

impl<'a> RowCoder<'a> {
    /// For these rows, or `None` where their sums could overflow.
    pub fn new(data: ScanRows<'a>) -> Option<Self> {
        let rows = &data.rows;
        let (ranked, mut roundings, shifts, width, most, longest) = match rows.coding() {
            RowCoding::Ranked(layout) => {
                let shifts = shifts_of(layout);
                let (levels, roundings) = RankedLevels::new(layout, &shifts);
                let most = (0..layout.width())
                    .map(|rank| f64::from(largest_of(&layout.levels()[layout.levels_of(rank)])))
                    .sum::<f64>()
                    / levels.unit;
                let (width, longest) = (layout.width(), layout.row_bytes());
                (Some(levels), roundings, shifts, width, most, longest)
            }
            RowCoding::Plain(format, span) => {
                let stored = widest(span);
                let width = stored.min(rows.ranks());
                let longest = stored.saturating_mul(format.nonzero_bytes());
                // 8-bit values are levels already
                let rounding = if format.value == ValueKind::Int8 {
                    0.0
                } else {
                    0.5
                };
                let most = width as f64 * (f64::from(MOST) + 0.5);
                let roundings = vec![rounding; width];
                (None, roundings, Vec::new(), width, most, longest)
            }
        };
        roundings.sort_unstable_by(|a, b| b.total_cmp(a));
        // |I| with the bias of 128 that a kernel may add, and E
        let one = f64::from(MOST) * (256.0 + 64.0 + 0.5);
        let all_shifts = shifts.iter().sum::<u32>();
        let largest = width as f64 * one * f64::from(1 << all_shifts);
        (largest < LARGEST_SUM).then(|| Self {
            data,
            ranked,
            roundings,
            most,
            slack: 2 + (largest / f64::from(1 << 21)).ceil() as i32,
            shifts,
            all_shifts,
            longest,
        })
    }

    /// What the weights of a query add to the error of every row, rounded up: the bound of
    /// `sum |a_r| |w_r|`, and what weights are off by beyond 1/2, at most `eta` each.
    ///
    /// `counts[m]` is the number of latents whose weight has the magnitude `m`.
    pub fn query_error(&self, counts: &[u32; MOST as usize + 1], eta: f64) -> i32 {
        let mut largest_first = counts
            .iter()
            .enumerate()
            .rev()
            .flat_map(|(magnitude, &count)| std::iter::repeat_n(magnitude as f64, count as usize));
        let error: f64 = self
            .roundings
            .iter()
            .map_while(|rounding| Some(rounding * largest_first.next()?))
            .sum();
        self.whole((error + eta * self.most).ceil() as i32 + 1)
    }

    /// The next number that is whole before all shifts, which is where sums start from errors.
    fn whole(&self, error: i32) -> i32 {
        let unit = 1 << self.all_shifts;
        (error + unit - 1) / unit * unit
    }

    /// An error of a row or of a query as the sums of the pass start from it.
    pub fn start(&self, error: i32) -> i32 {
        error >> self.all_shifts
    }

    /// A bound of `sum |v_r|` that holds for every row, where there is one that is not a row's own.
    pub fn largest_l1(&self) -> Option<f64> {
        let levels = self.ranked.as_ref()?;
        Some(self.most * levels.unit)
    }

    /// Bytes of the longest row.
    pub fn longest_row(&self) -> usize {
        self.longest
    }

    /// A block without rows, to be filled.
    pub fn rows(&self, layout: TileLayout) -> IntegerRows {
        IntegerRows::new(self.data.rows.dim(), &self.shifts, layout)
    }

    /// Replaces `out` by the rows at some positions, and `errors` by what is known of each.
    pub fn fill(
        &self,
        kernels: Kernels,
        positions: &[usize],
        out: &mut IntegerRows,
        errors: &mut Vec<RowError>,
    ) {
        out.clear();
        errors.clear();
        match (self.data.rows.coding(), &self.ranked) {
            (RowCoding::Ranked(layout), Some(levels)) => {
                let rows = positions
                    .iter()
                    .map(|&row| self.data.rows.ranked_row(layout, row));
                out.push_ranked(kernels, layout, &levels.entries, rows, |number, sums| {
                    let sums = EntrySums(sums);
                    let halves = (sums.halves() + HALVES - 1) / HALVES;
                    let scale = self.data.scales.get(positions[number]);
                    let error = self.error(scale * levels.unit, halves);
                    errors.push(error);
                    let start = self.start(error.error);
                    (start, error.scale, sums.shifted(layout.width()))
                });
            }
            (RowCoding::Plain(format, span), _) => {
                for &row in positions {
                    self.fill_plain(format, span, row, out, errors);
                }
            }
            (RowCoding::Ranked(_), None) => unreachable!("new makes levels for rank codings"),
        }
    }

    fn fill_plain(
        &self,
        format: RowFormat,
        span: RowSpan<'a>,
        row: usize,
        out: &mut IntegerRows,
        errors: &mut Vec<RowError>,
    ) {
        let (latents, values) = self.data.rows.plain_row(format, span, row);
        let values = values
            .chunks_exact(format.value_bytes())
            .map(crate::codes::value_of);
        let latents = latents
            .chunks_exact(format.latent_bytes())
            .map(crate::codes::latent_of);
        let most = f64::from(MOST);
        let largest = values
            .clone()
            .fold(0.0f64, |largest, v| largest.max(v.abs()));
        let unit = match format.value {
            ValueKind::Int8 => 1.0,
            _ if largest > 0.0 && largest.is_finite() => largest / most,
            _ => 1.0,
        };
        let scale = self.data.scales.get(row) * unit;
        out.push(values.len(), |to_latents, to_levels| {
            let mut sum = 0.0;
            for ((to_latent, to_level), (latent, value)) in to_latents
                .iter_mut()
                .zip(to_levels)
                .zip(latents.zip(values))
            {
                *to_latent = latent;
                // a damaged file's -128 or infinity is clamped
                *to_level = (value / unit).round_ties_even().clamp(-most, most) as i8;
                sum += value.abs();
            }
            let halves = (0.5 * sum / unit).ceil().min(f64::from(1 << 24));
            let error = self.error(scale, if halves.is_nan() { 0 } else { halves as i32 });
            errors.push(error);
            (self.start(error.error), error.scale)
        });
    }

    fn error(&self, scale: f64, halves: i32) -> RowError {
        let is_sound = scale == 0.0 || SOUND_SCALES.contains(&scale);
        RowError {
            scale: if is_sound { scale as f32 } else { 0.0 },
            error: self.whole(halves + self.slack),
            always: !is_sound,
        }
    }
}

/// Fractions of 1/2 |v| / g that are counted, so that rounding each of them up costs little.
const HALVES: i32 = 16;

/// The most bits by which levels of the first ranks are coarser than those of the last.
const MOST_SHIFT: u32 = 6;

/// Shifts before each group of ranks: the largest levels from there on are at most
/// 2^-(all shifts so far) of the largest of all.
fn shifts_of(layout: &RankedLayout) -> Vec<u32> {
    let largest: Vec<f32> = (0..layout.width())
        .map(|rank| largest_of(&layout.levels()[layout.levels_of(rank)]))
        .collect();
    let all = largest_of(&largest);
    if all == 0.0 || !all.is_finite() {
        // no level is smaller than others
        return vec![0; largest.len().div_ceil(GROUP)];
    }
    let mut so_far = 0;
    (0..largest.len())
        .step_by(GROUP)
        .map(|first| {
            let here = largest_of(&largest[first..]);
            let mut shift = 0;
            while so_far + shift < MOST_SHIFT
                && here * f32::powi(2.0, (so_far + shift + 1) as i32) <= all
            {
                shift += 1;
            }
            so_far += shift;
            shift
        })
        .collect()
}

/// The largest magnitude.
pub(super) fn largest_of(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

impl RankedLevels {
    fn new(layout: &RankedLayout, shifts: &[u32]) -> (Self, Vec<f64>) {
        let largest = f64::from(largest_of(layout.levels()));
        let all_shifts: u32 = shifts.iter().sum();
        let unit = if largest > 0.0 {
            largest / f64::from(MOST) / f64::from(1 << all_shifts)
        } else {
            1.0
        };
        let mut levels = Self {
            unit,
            entries: Vec::new(),
        };
        let mut roundings = Vec::new();
        for rank in 0..layout.width() {
            let so_far: u32 = shifts[..=rank / GROUP].iter().sum();
            let coarse = f64::from(1 << (all_shifts - so_far));
            let mut rounding = 0.0f64;
            for &level in &layout.levels()[layout.levels_of(rank)] {
                let exact = f64::from(level) / (unit * coarse);
                let rounded = exact.round_ties_even();
                rounding = rounding.max((exact - rounded).abs() * coarse);
                let halves =
                    (0.5 * f64::from(HALVES) * (f64::from(level) / unit).abs()).ceil() as i32;
                for integer in [rounded as i8, -(rounded as i8)] {
                    let shift = all_shifts - so_far;
                    levels.entries.push(entry(integer, shift, halves));
                }
            }
            roundings.push(rounding);
        }
        levels.entries.push(0);
        (levels, roundings)
    }
}

/// The most nonzeros of a row.
fn widest(span: RowSpan<'_>) -> usize {
    let steps = |pairs: &mut dyn Iterator<Item = u64>| pairs.max().unwrap_or(0) as usize;
    match span {
        RowSpan::Fixed(width) => width,
        RowSpan::Offsets32(offsets) => steps(
            &mut offsets
                .windows(2)
                .map(|pair| u64::from(pair[1].saturating_sub(pair[0]))),
        ),
        RowSpan::Offsets64(offsets) => steps(
            &mut offsets
                .windows(2)
                .map(|pair| pair[1].saturating_sub(pair[0])),
        ),
    }
}
