//! Which rows a search may return: those of a [`Bitmap`], less what each query excludes.
//!
//! Knows positions alone, nothing of ids, scores or strategies. Every strategy asks the same
//! questions of it: whether a block of rows holds any allowed row (a block without one is not
//! read), and, for a row whose score is good enough to be kept, whether this query admits it.
//! Rows that are not admitted never reach the top k, so `k` results come out whenever `k`
//! admitted rows exist, and they are those of a search of everything with the rest dropped.

use std::ops::Range;

use crate::{Error, Result};

const WORD_BITS: usize = u64::BITS as usize;
/// Rows whose allowed ones are counted together: a block of the scan, 8 words of the bitmap.
const ROWS_A_COUNT: usize = 512;

/// A set of positions below `len`, one bit each, with running counts: 1/8 + 1/64 bytes a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
    /// Set bits before each [`ROWS_A_COUNT`] rows, and at the end all of them.
    before: Vec<u64>,
}

impl Bitmap {
    /// The set of these positions, in any order and as often as they come.
    ///
    /// # Errors
    /// [`Error::Argument`] for a position that is not below `len`, [`Error::OutOfMemory`].
    pub fn from_positions(len: usize, positions: impl IntoIterator<Item = u64>) -> Result<Self> {
        let mut words = zero_words(len)?;
        for position in positions {
            if position >= len as u64 {
                return Err(Error::argument(format!(
                    "position {position} is not in an index of {len} items"
                )));
            }
            words[position as usize / WORD_BITS] |= 1 << (position as usize % WORD_BITS);
        }
        Self::from_words(words, len)
    }

    /// The set of the positions where `mask` is true.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn from_mask(mask: &[bool]) -> Result<Self> {
        let mut words = zero_words(mask.len())?;
        for (word, flags) in words.iter_mut().zip(mask.chunks(WORD_BITS)) {
            for (bit, &flag) in flags.iter().enumerate() {
                *word |= u64::from(flag) << bit;
            }
        }
        Self::from_words(words, mask.len())
    }

    /// The set whose bit `i % 8` of byte `i / 8` says whether `i` is in it, lowest bit first.
    ///
    /// # Errors
    /// [`Error::Argument`] where `bytes` has another length than `len` bits take, or a bit past
    /// the last is set; [`Error::OutOfMemory`].
    pub fn from_packed(len: usize, bytes: &[u8]) -> Result<Self> {
        let expected = len.div_ceil(8);
        if bytes.len() != expected {
            return Err(Error::argument(format!(
                "a bitmap of {len} items takes {expected} bytes, got {}",
                bytes.len()
            )));
        }
        let mut words = zero_words(len)?;
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(padded);
        }
        let used = len % WORD_BITS;
        if used > 0 && words.last().is_some_and(|word| word >> used != 0) {
            return Err(Error::argument(format!(
                "a bitmap of {len} items has bits set past the last; pack it lowest bit first, \
                 as np.packbits(mask, bitorder=\"little\") does"
            )));
        }
        Self::from_words(words, len)
    }

    fn from_words(words: Vec<u64>, len: usize) -> Result<Self> {
        let blocks = words.chunks(ROWS_A_COUNT / WORD_BITS);
        let mut before = Vec::new();
        reserve(&mut before, blocks.len() + 1)?;
        let mut total = 0;
        before.push(total);
        for block in blocks {
            total += block
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .sum::<u64>();
            before.push(total);
        }
        Ok(Self { words, len, before })
    }

    /// Its bits as [`Bitmap::from_packed`] takes them.
    pub fn to_packed(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take(self.len.div_ceil(8)).collect()
    }

    /// One more than the largest position that it can hold: the number of rows it is for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it is for no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many positions are in it.
    pub fn count(&self) -> usize {
        self.before.last().map_or(0, |&count| count as usize)
    }

    /// Whether a position is in it.
    ///
    /// # Panics
    /// Where it is `len` rounded up to 64 or more.
    #[inline]
    pub fn contains(&self, position: u64) -> bool {
        let position = position as usize;
        self.words[position / WORD_BITS] >> (position % WORD_BITS) & 1 == 1
    }

    /// Whether any position of a range is in it.
    ///
    /// # Panics
    /// Where the range leaves `0..len`.
    pub fn has_any(&self, range: Range<usize>) -> bool {
        let (first, last) = (range.start.div_ceil(ROWS_A_COUNT), range.end / ROWS_A_COUNT);
        if first < last && self.before[first] != self.before[last] {
            return true;
        }
        self.next(range.start, range.end, 0).is_some()
    }

    /// About how many positions of a range are in it: ends are moved to the next one counted.
    fn count_about(&self, range: Range<usize>) -> usize {
        let before = |end: usize| self.before[end.div_ceil(ROWS_A_COUNT)];
        (before(range.end) - before(range.start)) as usize
    }

    /// The first position of `start..end` whose bit is set, or, with `flip` of all ones, clear.
    fn next(&self, start: usize, end: usize, flip: u64) -> Option<usize> {
        let mut word = start / WORD_BITS;
        let mut keep = u64::MAX << (start % WORD_BITS);
        while word * WORD_BITS < end {
            let bits = (self.words[word] ^ flip) & keep;
            if bits != 0 {
                let found = word * WORD_BITS + bits.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            keep = u64::MAX;
            word += 1;
        }
        None
    }
}

/// Positions that each query excludes, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclusions {
    /// Where each query's positions begin, and at the end where the last one's end.
    starts: Vec<usize>,
    positions: Vec<u64>,
}

impl Exclusions {
    /// Query `q` excludes `positions[starts[q]..starts[q + 1]]`, in any order and as often as
    /// they come.
    ///
    /// # Errors
    /// [`Error::Argument`] where `starts` do not ascend from 0 to the number of positions.
    pub fn new(starts: Vec<usize>, mut positions: Vec<u64>) -> Result<Self> {
        let ascend = starts.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ascend || starts.first() != Some(&0) || starts.last() != Some(&positions.len()) {
            return Err(Error::argument(format!(
                "the lists of excluded items do not ascend from 0 to {}",
                positions.len()
            )));
        }
        for ends in starts.windows(2) {
            positions[ends[0]..ends[1]].sort_unstable();
        }
        Ok(Self { starts, positions })
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True where there is no query.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the queries of one search may return: everything, unless something is said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Only these rows, for every query.
    pub allowed: Option<&'a Bitmap>,
    /// Not these rows, query by query.
    pub exclusions: Option<&'a Exclusions>,
}

impl<'a> Selection<'a> {
    /// Every row for every query.
    pub const ALL: Self = Self {
        allowed: None,
        exclusions: None,
    };

    /// # Errors
    /// [`Error::Argument`] where the bitmap is not for `n_rows` rows, or the exclusions are not
    /// for `n_queries` queries.
    pub fn check(&self, n_rows: usize, n_queries: usize) -> Result<()> {
        if let Some(allowed) = self.allowed.filter(|allowed| allowed.len() != n_rows) {
            return Err(Error::argument(format!(
                "filter is a bitmap of {} items, the index has {n_rows}",
                allowed.len()
            )));
        }
        if let Some(lists) = self.exclusions.filter(|lists| lists.len() != n_queries) {
            return Err(Error::argument(format!(
                "exclude has {} lists for {n_queries} queries; expected one a query",
                lists.len()
            )));
        }
        Ok(())
    }

    /// True where every query may return every row.
    pub fn is_all(&self) -> bool {
        self.allowed.is_none() && self.exclusions.is_none()
    }

    /// How many of `n_rows` rows the bitmap allows: no query has more results.
    pub fn count(&self, n_rows: usize) -> usize {
        self.allowed.map_or(n_rows, Bitmap::count)
    }

    /// About how many rows of a range the bitmap allows; ranges one after the other add up to
    /// what the range of all of them has.
    pub fn count_about(&self, range: Range<usize>) -> usize {
        match self.allowed {
            None => range.len(),
            Some(allowed) => allowed.count_about(range),
        }
    }

    /// Whether the bitmap allows a row.
    #[inline]
    pub fn is_allowed(&self, position: u64) -> bool {
        self.allowed
            .is_none_or(|allowed| allowed.contains(position))
    }

    /// Whether the bitmap allows any row of a range; a block without one need not be read.
    #[inline]
    pub fn block_has_any(&self, range: Range<usize>) -> bool {
        match self.allowed {
            None => !range.is_empty(),
            Some(allowed) => allowed.has_any(range),
        }
    }

    /// What a query excludes, ascending, perhaps with repetitions.
    #[inline]
    pub fn excluded(&self, query: usize) -> &'a [u64] {
        self.exclusions.map_or(&[], |lists| {
            &lists.positions[lists.starts[query]..lists.starts[query + 1]]
        })
    }

    /// Whether a query may return a row: asked of the few rows whose score is good enough.
    #[inline]
    pub fn admits(&self, query: usize, position: u64) -> bool {
        self.is_allowed(position) && self.excluded(query).binary_search(&position).is_err()
    }

    /// Appends to `spans` the parts of a range that hold its allowed rows: from an allowed row
    /// to an allowed row, joined where at most `gap` rows lie between.
    pub fn spans(&self, range: Range<usize>, gap: usize, spans: &mut Vec<Range<usize>>) {
        let Some(allowed) = self.allowed else {
            if !range.is_empty() {
                spans.push(range);
            }
            return;
        };
        let first = spans.len();
        let mut at = range.start;
        while let Some(start) = allowed.next(at, range.end, 0) {
            let end = allowed
                .next(start, range.end, u64::MAX)
                .unwrap_or(range.end);
            match spans[first..].last_mut() {
                Some(last) if start - last.end <= gap => last.end = end,
                _ => spans.push(start..end),
            }
            at = end;
        }
    }
}

fn zero_words(len: usize) -> Result<Vec<u64>> {
    let words = len.div_ceil(WORD_BITS);
    bytemuck::allocation::try_zeroed_vec(words).map_err(|()| Error::OutOfMemory {
        what: "a bitmap of items",
        bytes: words * size_of::<u64>(),
    })
}

fn reserve(counts: &mut Vec<u64>, n: usize) -> Result<()> {
    counts.try_reserve_exact(n).map_err(|_| Error::OutOfMemory {
        what: "counts of a bitmap of items",
        bytes: n.saturating_mul(size_of::<u64>()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lengths around a word and a counted block.
    const LENGTHS: [usize; 9] = [0, 1, 63, 64, 65, 511, 512, 513, 1300];

    fn masks() -> impl Strategy<Value = Vec<bool>> {
        let density = prop_oneof![Just(0.0), Just(0.002), Just(0.1), Just(0.9), Just(1.0)];
        (proptest::sample::select(LENGTHS.to_vec()), density)
            .prop_flat_map(|(len, p)| proptest::collection::vec(proptest::bool::weighted(p), len))
    }

    fn true_positions(mask: &[bool]) -> Vec<u64> {
        (0..mask.len() as u64)
            .filter(|&position| mask[position as usize])
            .collect()
    }

    proptest! {
        #[test]
        fn mask_bytes_and_positions_make_the_same_bitmap(mask in masks()) {
            let bitmap = Bitmap::from_mask(&mask).unwrap();
            let mut bytes = vec![0; mask.len().div_ceil(8)];
            for position in true_positions(&mask) {
                bytes[position as usize / 8] |= 1 << (position % 8);
            }
            prop_assert_eq!(&Bitmap::from_packed(mask.len(), &bytes).unwrap(), &bitmap);
            prop_assert_eq!(bitmap.to_packed(), bytes);
            let mut positions = true_positions(&mask);
            prop_assert_eq!(bitmap.count(), positions.len());
            positions.extend(positions.clone());
            positions.reverse();
            prop_assert_eq!(&Bitmap::from_positions(mask.len(), positions).unwrap(), &bitmap);
        }

        #[test]
        fn ranges_are_answered_as_by_a_loop(mask in masks(), a in 0usize..1400, b in 0usize..1400) {
            let bitmap = Bitmap::from_mask(&mask).unwrap();
            let selection = Selection { allowed: Some(&bitmap), exclusions: None };
            let (a, b) = (a.min(mask.len()), b.min(mask.len()));
            let range = a.min(b)..a.max(b);
            let expected = mask[range.clone()].iter().any(|&flag| flag);
            prop_assert_eq!(selection.block_has_any(range), expected);
            for (position, &flag) in mask.iter().enumerate() {
                prop_assert_eq!(selection.is_allowed(position as u64), flag);
            }
        }

        #[test]
        fn spans_hold_every_allowed_row_of_the_range_and_no_long_gap(
            mask in masks(), a in 0usize..1400, b in 0usize..1400, gap in 0usize..80,
        ) {
            let bitmap = Bitmap::from_mask(&mask).unwrap();
            let selection = Selection { allowed: Some(&bitmap), exclusions: None };
            let (a, b) = (a.min(mask.len()), b.min(mask.len()));
            let range = a.min(b)..a.max(b);
            let mut spans = vec![7..7, 8..8]; // what is there stays
            selection.spans(range.clone(), gap, &mut spans);
            prop_assert_eq!(spans.drain(..2).collect::<Vec<_>>(), [7..7, 8..8]);
            let mut covered = vec![false; mask.len()];
            for span in &spans {
                prop_assert!(mask[span.start] && mask[span.end - 1]);
                let clear = mask[span.clone()].split(|&flag| flag).map(<[bool]>::len).max();
                prop_assert!(clear.unwrap_or(0) <= gap);
                covered[span.clone()].fill(true);
            }
            for pair in spans.windows(2) {
                prop_assert!(pair[1].start > pair[0].end + gap);
            }
            for position in range {
                prop_assert!(!mask[position] || covered[position]);
            }
        }

        #[test]
        fn a_query_admits_what_is_allowed_and_not_on_its_list(
            mask in masks(),
            lists in proptest::collection::vec(proptest::collection::vec(0u64..1300, 0..40), 1..5),
        ) {
            let bitmap = Bitmap::from_mask(&mask).unwrap();
            let mut starts = vec![0];
            for list in &lists {
                starts.push(starts[starts.len() - 1] + list.len());
            }
            let exclusions = Exclusions::new(starts, lists.concat()).unwrap();
            let selection = Selection { allowed: Some(&bitmap), exclusions: Some(&exclusions) };
            selection.check(mask.len(), lists.len()).unwrap();
            for (query, list) in lists.iter().enumerate() {
                for (position, &flag) in mask.iter().enumerate() {
                    let expected = flag && !list.contains(&(position as u64));
                    prop_assert_eq!(selection.admits(query, position as u64), expected);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_sizes() {
        let message = |result: Result<Bitmap>| result.unwrap_err().to_string();
        assert!(message(Bitmap::from_packed(9, &[0])).contains("9 items takes 2 bytes, got 1"));
        assert!(message(Bitmap::from_packed(9, &[0, 2])).contains("past the last"));
        assert!(message(Bitmap::from_positions(4, [4])).contains("position 4"));
        let bitmap = Bitmap::from_mask(&[true; 5]).unwrap();
        let lists = Exclusions::new(vec![0, 0], vec![]).unwrap();
        let selection = Selection {
            allowed: Some(&bitmap),
            exclusions: Some(&lists),
        };
        let message = |rows, queries| selection.check(rows, queries).unwrap_err().to_string();
        assert!(message(6, 1).contains("bitmap of 5 items, the index has 6"));
        assert!(message(5, 3).contains("1 lists for 3 queries"));
        for starts in [vec![], vec![1, 2], vec![0, 2, 1], vec![0, 1]] {
            Exclusions::new(starts, vec![0, 0]).unwrap_err();
        }
    }
}
