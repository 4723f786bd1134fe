//! How guesses of a k-th best score have fared, of all searches of an index. A guess decides what is
//! left out before anything proves it; where the result does not confirm it, the query is
//! answered again. Where rows that are alike lie together, what the first ones let expect is too
//! much, and it is better not to guess. Knows nothing of how guesses are made.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many queries were asked, and how many were guessed too high.
#[derive(Debug, Default)]
pub struct Guesses {
    asked: AtomicUsize,
    missed: AtomicUsize,
}

impl Guesses {
    /// Whether guesses hold so often that the next `n` queries are to be answered with them: one
    /// in `queries_a_miss` may have been too high.
    pub(super) fn hold(&self, n: usize, queries_a_miss: usize) -> bool {
        let missed = self.missed();
        let asked = self.asked.fetch_add(n, Ordering::Relaxed);
        asked >= missed.saturating_sub(1).saturating_mul(queries_a_miss)
    }

    /// How many were too high.
    pub fn missed(&self) -> usize {
        self.missed.load(Ordering::Relaxed)
    }

    /// Takes note of some that were too high.
    pub(super) fn miss(&self, n: usize) {
        self.missed.fetch_add(n, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_end_where_they_fail_and_go_on_where_few_do() {
        let fails = Guesses::default();
        let held = (0..100)
            .filter(|_| fails.hold(1, 8))
            .inspect(|_| fails.miss(1));
        assert!(held.count() <= 15);
        let holds = Guesses::default();
        for query in 0..100 {
            assert!(holds.hold(1, 8));
            if query % 20 == 7 {
                holds.miss(1);
            }
        }
    }

    #[test]
    fn guesses_that_miss_too_often_are_given_up_until_enough_queries_have_been_asked() {
        let guesses = Guesses::default();
        assert!(guesses.hold(4, 8));
        guesses.miss(1);
        assert!(guesses.hold(1, 8), "the first that misses is forgiven");
        guesses.miss(1);
        let held: Vec<bool> = (0..5).map(|_| guesses.hold(1, 8)).collect();
        assert_eq!(held, [false, false, false, true, true]);
    }
}
