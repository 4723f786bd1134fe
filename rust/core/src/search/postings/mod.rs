//! Postings: for every latent the rows that have it, so that a query with few nonzeros looks
//! at those rows only. Exact: what comes out is byte for byte what [`scan()`](super::scan()) finds.
//!
//! Rows are taken in blocks, so that the sums of a block stay in the cache. In a block each
//! latent has two lists, one of its positive and one of its negative values, because a query's
//! positive weight gains from the first and its negative one from the second; the other list
//! can only lower a score and is not even read. A list holds the positions of its rows by
//! descending bound on |scale * value|, in chunks of [`POSITIONS`] that share the bound of
//! their first. So the first chunk of a list bounds the list, and a block whose bounds add up
//! to less than the threshold is skipped.
//!
//! [`build`](mod@build) makes postings from rows, [`walk`](mod@walk) answers queries with them.
//! The idea of block-wise inverted lists with maxima is old (Ding and Suel 2011, "Faster top-k
//! document retrieval using block-max indexes"); signs, the missing values and the exact
//! rescoring are what codes ask for.

pub mod build;
mod query;
mod scratch;
mod units;
pub mod walk;

pub use build::{block_lists, build, BlockLists};
pub use walk::walk;

pub use crate::kernels::{bound_value, Chunk, POSITIONS};
use crate::search::Selection;
use crate::{Error, Result};

/// Rows of a block where nothing else is asked for. Sums of 8 bits are then 64 KB. Measured on
/// Zen 3 and Zen 4 with a million rows of 32 nonzeros: from 24,512 to 65,472 the 10 best cost the
/// same; below, the lists to be begun cost more than what the first-level cache saves. The largest,
/// because a guess of the k-th best score from more rows is nearer.
pub const BLOCK_ITEMS: usize = 65_472;

/// The most rows of a block: positions have 16 bits, and the one after the last pads lists.
pub const MAX_BLOCK_ITEMS: usize = u16::MAX as usize;

/// True where a walk beats a scan: unless few rows are allowed, which a scan reads alone. A row
/// scanned costs some 80 rows walked past (Zen 4, 32 nonzeros).
pub fn pays(n: usize, selection: Selection<'_>) -> bool {
    selection.count(n).saturating_mul(64) >= n
}

/// Postings, owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Postings {
    /// The latents in use, ascending.
    pub latents: Vec<u32>,
    /// Where lists start, in chunks: by latent, sign and block, and the end of the last.
    pub starts: Vec<u32>,
    /// The chunks of all lists.
    pub chunks: Vec<Chunk>,
    /// The largest norm of a row's bounds in each block: with the query's norm it says how far a
    /// sum can go, much less than the bounds of all lists together.
    pub norms: Vec<f32>,
    /// Rows of a block.
    pub block_items: usize,
}

/// Postings borrowed from memory or from a mapped file.
///
/// Every access is safe for any content: a list that does not lie in the chunks, as a damaged
/// file may hold, reads as empty.
#[derive(Debug, Clone, Copy)]
pub struct PostingsView<'a> {
    latents: &'a [u32],
    starts: &'a [u32],
    chunks: &'a [Chunk],
    norms: &'a [f32],
    block_items: usize,
}

impl<'a> PostingsView<'a> {
    /// Postings of `n` rows.
    ///
    /// # Errors
    /// [`Error::Argument`] where `block_items` is out of range, or there is not one start for
    /// each latent, sign and block, and one more, and one norm a block. What the slices hold is not read.
    pub fn new(
        latents: &'a [u32],
        starts: &'a [u32],
        chunks: &'a [Chunk],
        norms: &'a [f32],
        block_items: usize,
        n: usize,
    ) -> Result<Self> {
        check_block_items(block_items)?;
        let n_blocks = n.div_ceil(block_items);
        let expected = latents
            .len()
            .checked_mul(2)
            .and_then(|lists| lists.checked_mul(n_blocks))
            .and_then(|lists| lists.checked_add(1));
        if expected != Some(starts.len()) || norms.len() != n_blocks {
            return Err(Error::argument(format!(
                "postings of {} latents in {n_blocks} blocks have {} starts and {} norms",
                latents.len(),
                starts.len(),
                norms.len()
            )));
        }
        Ok(Self {
            latents,
            starts,
            chunks,
            norms,
            block_items,
        })
    }

    /// The latents in use.
    pub fn latents(&self) -> &'a [u32] {
        self.latents
    }

    /// Rows of a block.
    pub fn block_items(&self) -> usize {
        self.block_items
    }

    /// Number of blocks.
    pub fn n_blocks(&self) -> usize {
        self.norms.len()
    }

    /// The largest norm of a row's bounds in a block.
    pub fn norm(&self, block: usize) -> f32 {
        self.norms[block]
    }

    /// Number of chunks of all lists.
    pub fn n_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Number of chunks that lists name, whether they are there or not: as many as there are
    /// chunks where lists follow each other without gaps.
    pub fn n_listed(&self) -> usize {
        let lengths = self.starts.windows(2).map(|two| {
            // one that falls counts as too many
            (two[1] as usize).checked_sub(two[0] as usize)
        });
        lengths.fold(0, |sum, length| {
            sum.saturating_add(length.unwrap_or(usize::MAX))
        })
    }

    /// The place of a latent among those in use.
    pub fn slot(&self, latent: u32) -> Option<usize> {
        self.latents.binary_search(&latent).ok()
    }

    /// The starts of the lists of one latent and sign: one a block, and the end of the last.
    #[inline]
    pub fn starts_of(&self, slot: usize, is_negative: bool) -> &'a [u32] {
        let first = (2 * slot + usize::from(is_negative)) * self.n_blocks();
        &self.starts[first..=first + self.n_blocks()]
    }

    /// How many places the lists have that a query gains from; `None` where it has more of them
    /// than are counted in no time.
    pub fn listed(&self, (latents, values): (&[u32], &[f32])) -> Option<usize> {
        /// Starts that are read in a few microseconds.
        const FEW_STARTS: usize = 1 << 11;
        (latents.len() * (self.n_blocks() + 1) <= FEW_STARTS).then(|| {
            let lists = latents.iter().zip(values).filter_map(|(&latent, &value)| {
                let slot = self.slot(latent)?;
                Some(self.starts_of(slot, value < 0.0))
            });
            lists
                .flat_map(|starts| starts.windows(2))
                .map(|two| POSITIONS * self.chunks(two[0], two[1]).len())
                .fold(0, usize::saturating_add)
        })
    }

    /// The chunks from one start to the next.
    #[inline]
    pub fn chunks(&self, start: u32, end: u32) -> &'a [Chunk] {
        self.chunks
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    /// The list of a latent and sign in a block.
    pub fn list(&self, slot: usize, is_negative: bool, block: usize) -> &'a [Chunk] {
        let starts = self.starts_of(slot, is_negative);
        self.chunks(starts[block], starts[block + 1])
    }
}

impl Postings {
    /// The postings, borrowed; of the `n` rows that they were built from.
    ///
    /// # Errors
    /// As [`PostingsView::new`].
    pub fn view(&self, n: usize) -> Result<PostingsView<'_>> {
        PostingsView::new(
            &self.latents,
            &self.starts,
            &self.chunks,
            &self.norms,
            self.block_items,
            n,
        )
    }
}

/// Refuses a number of rows a block outside 1 to [`MAX_BLOCK_ITEMS`].
///
/// # Errors
/// [`Error::Argument`].
pub fn check_block_items(block_items: usize) -> Result<()> {
    if block_items == 0 || block_items > MAX_BLOCK_ITEMS {
        return Err(Error::argument(format!(
            "blocks of {block_items} items; postings take 1 to {MAX_BLOCK_ITEMS} items a block"
        )));
    }
    Ok(())
}

/// The smallest bound that is not below `|weight|`: the upper half of a float32, whose lower
/// half is 0. NaN, which only a damaged file brings about, gives `None`.
pub fn bound_of(weight: f64) -> Option<u16> {
    let weight = weight.abs();
    if weight.is_nan() {
        return None;
    }
    let bits = round_up(weight).to_bits();
    Some((bits >> 16) as u16 + u16::from(bits & 0xFFFF != 0))
}

/// The smallest float32 that is not below a number of at least 0; infinity beyond float32.
fn round_up(number: f64) -> f32 {
    let nearest = number as f32;
    if f64::from(nearest) < number {
        f32::from_bits(nearest.to_bits() + 1)
    } else {
        nearest
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod bounds {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_at_the_edges_of_float32() {
        assert_eq!(bound_of(0.0), Some(0));
        assert_eq!(bound_of(1e-300), Some(1)); // never 0 for what is not 0
        assert_eq!(bound_of(f64::from(f32::MAX)), Some(0x7F80));
        assert_eq!(bound_of(f64::INFINITY), Some(0x7F80));
        assert_eq!(bound_of(1e300), Some(0x7F80));
        assert_eq!(bound_of(-1.0), Some(0x3F80));
        assert_eq!(bound_of(1.0 + 1e-15), Some(0x3F81));
        assert_eq!(bound_of(f64::NAN), None);
        assert!(bound_value(0x7F80).is_infinite());
    }

    #[test]
    fn starts_that_fall_or_leave_the_chunks_read_as_empty_lists() {
        let chunks = [[0u16; 8]; 2];
        let view = PostingsView::new(&[3, 9], &[0, 1, 0, 9, 2], &chunks, &[1.0], 10, 10).unwrap();
        assert_eq!(view.slot(9), Some(1));
        assert_eq!(view.slot(4), None);
        assert_eq!(view.list(0, false, 0).len(), 1);
        assert!(view.list(0, true, 0).is_empty());
        assert!(view.list(1, false, 0).is_empty());
        assert!(view.list(1, true, 0).is_empty());
    }

    #[test]
    fn lengths_that_do_not_match_are_refused() {
        assert!(PostingsView::new(&[1], &[0, 0, 0], &[], &[0.0], 10, 10).is_ok());
        assert!(PostingsView::new(&[1], &[0, 0, 0], &[], &[0.0], 10, 11).is_err());
        assert!(PostingsView::new(&[1], &[0, 0, 0], &[], &[0.0], 0, 10).is_err());
        assert!(PostingsView::new(&[1], &[0, 0, 0], &[], &[0.0], MAX_BLOCK_ITEMS + 1, 10).is_err());
        assert!(PostingsView::new(&[], &[], &[], &[], 10, 0).is_err());
        assert!(PostingsView::new(&[1], &[0, 0, 0], &[], &[], 10, 10).is_err());
    }

    proptest! {
        #[test]
        fn a_bound_is_the_least_that_is_not_below_the_weight(weight in -1e30f64..1e30, power in -60i32..9) {
            let weight = weight * 10f64.powi(power);
            let bound = bound_of(weight).unwrap();
            prop_assert!(f64::from(bound_value(bound)) >= weight.abs());
            prop_assert!(bound == 0 || f64::from(bound_value(bound - 1)) < weight.abs());
        }
    }
}
