//! Rows that may be among the best k of a query, by bounds of their scores. Knows nothing of
//! how bounds are made.

use std::sync::atomic::{AtomicU32, Ordering};

/// A row, and bounds of its score in the query's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The row.
    pub row: u64,
    /// The score is not above this.
    pub upper: f32,
    /// The score is not below this.
    pub lower: f32,
}

/// A threshold that only rises, shared between threads. It decides what work is saved, never
/// what is found, so no ordering is needed.
#[derive(Debug)]
pub struct SharedThreshold(AtomicU32);

impl SharedThreshold {
    /// Below everything.
    pub fn new() -> Self {
        Self(AtomicU32::new(ordered(f32::NEG_INFINITY)))
    }

    /// The present value.
    pub fn get(&self) -> f32 {
        unordered(self.0.load(Ordering::Relaxed))
    }

    /// Raises it to `threshold` where that is higher.
    pub fn raise(&self, threshold: f32) {
        self.0.fetch_max(ordered(threshold), Ordering::Relaxed);
    }
}

impl Default for SharedThreshold {
    fn default() -> Self {
        Self::new()
    }
}

/// Bits whose order as integers is that of the numbers.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    }
}

fn unordered(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 {
        bits & !(1 << 31)
    } else {
        !bits
    })
}

/// Candidates of one query under a threshold, a score that k others certainly reach, or under a
/// guess of it, of which nothing is believed: [`Settled::missed`] says whether the end proves it.
#[derive(Debug, Clone)]
pub struct Candidates {
    k: usize,
    room: usize,
    threshold: f32,
    guess: f32,
    list: Vec<Candidate>,
    overflowed: bool,
}

impl Candidates {
    /// None yet, of the best `k`.
    pub fn new(k: usize) -> Self {
        Self {
            k,
            room: k + k.max(LEAST_ROOM),
            threshold: f32::NEG_INFINITY,
            guess: f32::NEG_INFINITY,
            list: Vec::new(),
            overflowed: false,
        }
    }

    /// A row whose upper bound is below this is not among the best k.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// A row whose upper bound is below this is left out.
    pub fn aim(&self) -> f32 {
        self.threshold.max(self.guess)
    }

    /// Takes a candidate. True where the threshold may have risen.
    pub fn push(&mut self, candidate: Candidate) -> bool {
        if candidate.upper < self.aim() || self.overflowed {
            return false;
        }
        self.list.push(candidate);
        let is_full = self.list.len() >= self.room;
        if is_full {
            self.cut();
        }
        is_full
    }

    /// Raises the threshold from outside.
    pub fn raise(&mut self, threshold: f32) {
        self.threshold = self.threshold.max(threshold);
    }

    /// Raises the guess from outside.
    pub fn raise_guess(&mut self, guess: f32) {
        self.guess = self.guess.max(guess);
    }

    /// What k of the rows certainly reach; below everything where there are fewer.
    pub fn reached(mut self) -> f32 {
        self.select();
        self.threshold
    }

    /// What another has kept, added.
    pub fn merge(&mut self, other: Self) {
        self.raise(other.threshold);
        self.raise_guess(other.guess);
        self.overflowed |= other.overflowed;
        self.list.extend(other.list);
    }

    /// True where bounds were too wide to keep the list short: it is given up.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// What is known in the end.
    pub fn settled(mut self) -> Settled {
        if self.overflowed {
            return Settled {
                rows: None,
                threshold: self.threshold,
                missed: false,
            };
        }
        self.select();
        let mut rows: Vec<u64> = self.list.iter().map(|candidate| candidate.row).collect();
        rows.sort_unstable();
        Settled {
            rows: Some(rows),
            threshold: self.threshold,
            missed: self.threshold < self.guess,
        }
    }

    fn select(&mut self) {
        if self.k > 0 && self.list.len() >= self.k {
            let (_, kth, _) = self
                .list
                .select_nth_unstable_by(self.k - 1, |a, b| b.lower.total_cmp(&a.lower));
            self.threshold = self.threshold.max(kth.lower);
        }
        let aim = self.aim();
        self.list.retain(|candidate| candidate.upper >= aim);
    }

    fn cut(&mut self) {
        self.select();
        if self.list.len() > MOST_KEPT.max(4 * self.k) {
            self.overflowed = true;
            self.list = Vec::new();
        }
        // where bounds are wide little goes; then there must be room for more before the next cut
        self.room = self.room.max(self.list.len() + self.k.max(LEAST_ROOM));
    }
}

/// What is left of the candidates of one query.
#[derive(Debug)]
pub struct Settled {
    /// All rows that may be among the best k, by ascending position; `None` where the list was
    /// given up.
    pub rows: Option<Vec<u64>>,
    /// A score that k rows certainly reach.
    pub threshold: f32,
    /// True where a guess was above the threshold: rows that are among the best k may have been
    /// left out.
    pub missed: bool,
}

/// In single precision, not above `x`.
pub fn rounded_down(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x {
        near.next_down()
    } else {
        near
    }
}

/// In single precision, not below `x`.
pub fn rounded_up(x: f64) -> f32 {
    -rounded_down(-x)
}

/// Candidates of one query, beyond which scoring all rows is no more work than it saves.
const MOST_KEPT: usize = 1 << 14;

/// Candidates that are worth a cut.
const LEAST_ROOM: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_preserving_bits_go_both_ways(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(unordered(ordered(a)).to_bits(), a.to_bits());
            prop_assert_eq!(a < b, ordered(a) < ordered(b) && a != b);
        }

        #[test]
        fn the_best_k_are_always_among_the_candidates(
            scores in proptest::collection::vec((-50i16..50, 0u8..20, 0u8..20), 1..2000),
            k in 1usize..50,
            parts in 1usize..4,
        ) {
            let shared = SharedThreshold::new();
            let mut lists = vec![Candidates::new(k); parts];
            for (row, &(score, above, below)) in scores.iter().enumerate() {
                let list = &mut lists[row % parts];
                list.raise(shared.get());
                let (upper, lower) = (f32::from(score) + f32::from(above), f32::from(score) - f32::from(below));
                if list.push(Candidate { row: row as u64, upper, lower }) {
                    shared.raise(list.threshold());
                }
            }
            let mut all = Candidates::new(k);
            lists.into_iter().for_each(|list| all.merge(list));
            let rows = all.settled().rows.unwrap();
            let mut best: Vec<_> = scores.iter().enumerate().map(|(row, s)| (-s.0, row as u64)).collect();
            best.sort_unstable();
            for (_, row) in best.into_iter().take(k) {
                prop_assert!(rows.binary_search(&row).is_ok());
            }
        }
    }
}
