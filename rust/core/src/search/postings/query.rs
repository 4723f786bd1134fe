//! One query of a walk: its terms, and what a row's score must reach to be looked at.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::search::TopK;

/// Standard deviations that a guess stands above what is expected: of a walk in one task, and of each
/// of several tasks, the highest of whose guesses counts. Where rows are in no order, one query in a
/// hundred is walked twice.
const GUESS_MARGINS: [f64; 2] = [2.5, 4.5];

/// One latent of a query that rows have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term<'a> {
    /// |weight|.
    pub(super) weight: f64,
    /// Starts of the lists of its sign, by block.
    pub(super) starts: &'a [u32],
}

/// One query, ready to be walked.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) number: usize,
    pub(super) terms: Vec<Term<'a>>,
    /// The k-th best score that any task has seen, as bits: those of positive numbers ascend
    /// with the numbers.
    threshold: AtomicU64,
    /// The highest guess of any task, as bits; 0 where there is none.
    guess: AtomicU64,
    /// Standard deviations between a guess and what is expected; `None` where nothing is guessed.
    margin: Option<f64>,
}

impl<'a> Query<'a> {
    /// A query that is answered with guesses or without, in one task or in several, each of which
    /// then guesses.
    pub(super) fn new(
        number: usize,
        terms: Vec<Term<'a>>,
        guesses: bool,
        several_tasks: bool,
    ) -> Self {
        Self {
            number,
            terms,
            threshold: AtomicU64::new(0),
            guess: AtomicU64::new(0),
            margin: guesses.then(|| GUESS_MARGINS[usize::from(several_tasks)]),
        }
    }

    /// A score that k rows reach; 0 where none is known.
    pub(super) fn threshold(&self, top: &TopK) -> f64 {
        let shared = f64::from_bits(self.threshold.load(Ordering::Relaxed));
        shared.max(top.threshold())
    }

    /// A score that rows must reach to be looked at.
    pub(super) fn aim(&self, top: &TopK) -> f64 {
        self.guess().max(self.threshold(top))
    }

    pub(super) fn raise_guess(&self, score: f64) {
        if score > 0.0 {
            self.guess.fetch_max(score.to_bits(), Ordering::Relaxed);
        }
    }

    pub(super) fn has_guess(&self) -> bool {
        self.guess() > 0.0
    }

    /// The highest guess of any task; 0 where there is none.
    fn guess(&self) -> f64 {
        f64::from_bits(self.guess.load(Ordering::Relaxed))
    }

    /// The rank among the best of a part of the rows at which a row of the best `k` of all is
    /// hardly to be expected, if rows are in no order: the number of those in the part has `k *
    /// part` as its mean and at most as its variance. `None` where there is nothing to guess.
    pub(super) fn rank_of_guess(&self, k: usize, part: f64) -> Option<usize> {
        let expected = k as f64 * part;
        let rank = (expected + self.margin? * expected.sqrt() + 1.0).ceil() as usize;
        (rank < k).then_some(rank)
    }

    /// Whether rows may have been left out that belong to the best k: `top` is what was found.
    pub(super) fn is_guess_above(&self, top: &TopK) -> bool {
        self.has_guess() && top.threshold() < self.guess()
    }

    /// Forgets the guesses, but not what was found to be reached.
    pub(super) fn go_without(&mut self, top: &TopK) {
        self.guess = AtomicU64::new(0);
        self.margin = None;
        self.raise(top);
    }

    /// Tells other tasks.
    pub(super) fn raise(&self, top: &TopK) {
        if top.threshold() > 0.0 {
            let bits = top.threshold().to_bits();
            self.threshold.fetch_max(bits, Ordering::Relaxed);
        }
    }
}
