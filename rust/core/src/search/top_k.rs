//! The best k of a stream of scores under a moving threshold. Knows nothing of codes, rows or
//! files. Higher scores come first, equal scores by lower position; NaN, which only a damaged
//! file can bring about, is dropped.
//!
//! Scores are collected in a buffer of 2k that is cut back to its best k by selection when it
//! is full: amortised constant work a candidate, and the cut gives the threshold below which
//! later candidates are dropped without being stored. What is kept depends only on the set of
//! (score, position) pairs pushed, not on their order, so work may be split in any way.

/// A score and the position of its row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The score; never NaN.
    pub score: f64,
    /// The row.
    pub position: u64,
}

impl Hit {
    /// What results ascend by, as one number: numbers are compared without a branch, of which
    /// sorting would mispredict every other one.
    fn key(&self) -> u128 {
        // 0.0 for -0.0, which is as good; no score is NaN
        let bits = (self.score + 0.0).to_bits();
        // bits of negative numbers descend with them, those of others ascend and are turned round
        let is_negative = bits >> 63;
        let descending = bits ^ (is_negative.wrapping_sub(1) >> 1);
        u128::from(descending) << 64 | u128::from(self.position)
    }
}

/// The best k hits so far.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    hits: Vec<Hit>,
    threshold: f64,
}

impl TopK {
    /// Keeps the best `k`; `k = 0` keeps nothing.
    pub fn new(k: usize) -> Self {
        Self {
            k,
            hits: Vec::new(),
            threshold: if k == 0 {
                f64::INFINITY
            } else {
                f64::NEG_INFINITY
            },
        }
    }

    /// A score below this is not among the best k, whatever its position; the caller may drop
    /// such scores before they are pushed.
    #[inline]
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Takes a candidate.
    #[inline]
    pub fn push(&mut self, score: f64, position: u64) {
        // false for NaN
        if score >= self.threshold && self.k > 0 {
            self.hits.push(Hit { score, position });
            if self.hits.len() >= self.k.saturating_mul(2) {
                self.cut();
            }
        }
    }

    /// Cuts to the best k now, so that the threshold is the score of the k-th where there are
    /// as many; otherwise it rises only when 2k are held.
    pub fn tighten(&mut self) {
        self.cut();
        if self.hits.len() == self.k {
            let scores = self.hits.iter().map(|hit| hit.score);
            self.threshold = scores.fold(f64::INFINITY, f64::min);
        }
    }

    /// The `rank`-th best score, from 1 on; `None` where fewer are held.
    pub fn score_of(&mut self, rank: usize) -> Option<f64> {
        if rank == 0 || rank > self.hits.len() {
            return None;
        }
        let (_, hit, _) = self.hits.select_nth_unstable_by_key(rank - 1, Hit::key);
        Some(hit.score)
    }

    /// How many hits are held; up to 2k - 1.
    pub fn len(&self) -> usize {
        self.hits.len()
    }

    /// True where nothing is held.
    pub fn is_empty(&self) -> bool {
        self.hits.is_empty()
    }

    /// Takes what another has kept.
    pub fn merge(&mut self, other: Self) {
        for hit in other.hits {
            self.push(hit.score, hit.position);
        }
    }

    /// The best `min(k, candidates)`, best first.
    pub fn into_sorted(mut self) -> Vec<Hit> {
        self.cut();
        self.hits.sort_unstable_by_key(Hit::key);
        self.hits
    }

    fn cut(&mut self) {
        if self.hits.len() > self.k && self.k > 0 {
            let (_, worst_kept, _) = self.hits.select_nth_unstable_by_key(self.k - 1, Hit::key);
            self.threshold = worst_kept.score;
            self.hits.truncate(self.k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_scores_come_out_by_lower_position_whatever_order_they_went_in() {
        let mut top = TopK::new(2);
        for position in [9, 3, 7, 1, 8] {
            top.push(1.0, position);
        }
        let positions: Vec<_> = top.into_sorted().iter().map(|hit| hit.position).collect();
        assert_eq!(positions, [1, 3]);
    }

    #[test]
    fn nan_is_dropped_and_infinities_are_ordered() {
        let mut top = TopK::new(3);
        for (position, score) in [f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 0.0, -0.0]
            .into_iter()
            .enumerate()
        {
            top.push(score, position as u64);
        }
        let positions: Vec<_> = top.into_sorted().iter().map(|hit| hit.position).collect();
        assert_eq!(positions, [2, 3, 4]);
    }

    #[test]
    fn numbers_to_sort_by_ascend_as_results_do() {
        let least = f64::from_bits(1);
        let scores = [
            f64::INFINITY,
            f64::MAX,
            1.5,
            1.0,
            least,
            0.0,
            -least,
            -1.0,
            f64::MIN,
        ];
        let hits = scores
            .iter()
            .flat_map(|&score| [0, 7, u64::MAX].map(|position| Hit { score, position }));
        let keys: Vec<_> = hits.map(|hit| hit.key()).collect();
        assert!(keys.is_sorted() && keys.windows(2).all(|two| two[0] != two[1]));
        let of_zero = |score| Hit { score, position: 3 }.key();
        assert_eq!(of_zero(0.0), of_zero(-0.0));
    }

    #[test]
    fn a_score_is_asked_for_by_its_rank() {
        let mut top = TopK::new(4);
        for (position, score) in [2.0, 5.0, 3.0, 5.0, 1.0].into_iter().enumerate() {
            top.push(score, position as u64);
        }
        let scores: Vec<_> = (0..7).map(|rank| top.score_of(rank)).collect();
        let expected = [5.0, 5.0, 3.0, 2.0, 1.0].map(Some);
        assert_eq!(scores[1..6], expected);
        assert_eq!((scores[0], scores[6]), (None, None));
        assert_eq!(top.into_sorted().len(), 4);
    }

    #[test]
    fn a_tightened_top_has_the_score_of_its_last_as_threshold() {
        let mut top = TopK::new(2);
        top.push(3.0, 0);
        top.tighten();
        assert_eq!((top.threshold(), top.len()), (f64::NEG_INFINITY, 1));
        top.push(1.0, 1);
        top.tighten();
        assert_eq!((top.threshold(), top.len()), (1.0, 2));
        top.push(2.0, 2);
        top.tighten();
        assert_eq!((top.threshold(), top.len()), (2.0, 2));
    }

    #[test]
    fn no_k_keeps_nothing() {
        let mut top = TopK::new(0);
        top.push(1.0, 0);
        assert!(top.into_sorted().is_empty());
    }

    proptest! {
        #[test]
        fn the_best_k_are_those_of_a_full_sort_however_the_work_is_split(
            scores in proptest::collection::vec((-4i32..4).prop_map(f64::from), 0..200),
            k in 0usize..70,
            parts in 1usize..5,
        ) {
            let mut expected: Vec<_> = scores.iter().copied().enumerate().collect();
            expected.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            expected.truncate(k);

            let mut tops = vec![TopK::new(k); parts];
            for (position, &score) in scores.iter().enumerate() {
                let top = &mut tops[position % parts];
                if score >= top.threshold() {
                    top.push(score, position as u64);
                }
            }
            let mut merged = TopK::new(k);
            for top in tops {
                merged.merge(top);
            }
            let got: Vec<_> = merged
                .into_sorted()
                .iter()
                .map(|hit| (hit.position as usize, hit.score))
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}
