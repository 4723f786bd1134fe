//! What the integers of a block's sums stand for, so that they bound scores and don't overflow.

/// What one gain may be, in thresholds: above 1, so that a threshold that rises while a block is
/// added up can be used for it.
pub(super) const CAP: f64 = 1.25;

/// The cap where there is no threshold: above every product of three numbers in float32, and
/// still finite when all terms reach it.
pub(super) const NO_CAP: f64 = 1e300;

/// More than what products and roots of a few thousand terms are rounded down by.
pub(super) const ROUNDED: f64 = 1.0 + 1.0 / (1u64 << 38) as f64;

/// 1 - 2^-38: see the head of [`walk`](super::walk).
pub(super) const MARGIN: f64 = 1.0 - 1.0 / (1u64 << 38) as f64;

/// What a unit of a block's sums is worth, and the largest gain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units {
    unit: f64,
    /// A little more than the number of units in 1.
    in_one: f64,
    pub(super) cap: f32,
}

impl Units {
    /// For sums up to `most`, of `n_lists` lists whose gains, cut at `cap`, add up to `reach` at
    /// most, and of which none has a weight above `heaviest`.
    pub(super) fn new(most: f64, reach: f64, cap: f64, n_lists: usize, heaviest: f64) -> Self {
        // each list may gain a unit by rounding up, and all a part of 2^-19 by raised weights,
        // which is less than one
        let unit = reach / (most - 1.0 - n_lists as f64);
        // coarser where a weight in units would be infinite in single precision: every gain would
        // then be cut at the cap, and sums of many of them overflow
        let unit = unit.max(heaviest * f64::powi(2.0, -126));
        Self {
            unit,
            in_one: (1.0 + 1.0 / (1u64 << 20) as f64) / unit,
            cap: (cap / unit).min(most - 2.0) as f32,
        }
    }

    /// A weight in units, raised.
    pub(super) fn of(&self, weight: f64) -> f32 {
        (weight * self.in_one) as f32
    }

    /// What the score of a row with this sum is at most; infinity where one of its gains may have
    /// been cut.
    pub(super) fn bound(&self, sum: u16) -> f64 {
        if f32::from(sum) > self.cap {
            return f64::INFINITY;
        }
        f64::from(sum) * self.unit * ROUNDED
    }

    /// The sum that a score of `threshold` needs; at least 1.
    pub(super) fn least(&self, threshold: f64) -> i32 {
        let sum = (threshold * MARGIN / self.unit).ceil();
        sum.min(f64::from(self.cap).floor()).max(1.0) as i32
    }
}
