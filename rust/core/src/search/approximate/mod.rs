//! Approximate search: rows stand in clusters of similar items, a query looks only at the
//! nearest clusters, first at short sketches of their rows, then exactly at the best of these.
//!
//! 1. **Route.** The query is compared with the centroids of all clusters, in integers.
//! 2. **Sketch.** In the nearest clusters every row has a sketch: what is left of the decoded
//!    row after its centroid, product-quantised to 4 bits a subspace. Sixteen look-ups are one
//!    instruction, so a row costs about a nanosecond, a tenth of scoring it.
//! 3. **Rescore.** The rows with the best sums of sketch and centroid are scored from their
//!    codes, first with weights from atoms in 8 bits, as the rough scan scores rows where it can
//!    read them (`super::rough`); then the best of these, a few more than
//!    are asked for, like any row in exact search, in double precision: a returned score is the
//!    score that exact search returns for that row, bit for bit. Exact weights are most of the
//!    cost, so they are computed for the latents of these last rows only.
//!
//! Inner products of the first three are integers, and other sums have one order, so which rows
//! are found depends neither on the instruction set nor on threads.
//!
//! What it beat (Zen 4, 62,666 and 1,000,000 rows, k = 32 of 4,096 latents, dense queries, 99% of
//! the exact top 100 kept): postings of the first 16 ranks for the 128 to 512 largest weights
//! need 2 to 3 postings an item and 5,000 to 8,000 rows rescored at a million; clusters alone
//! score 7% of the rows exactly; a prefix of 8 ranks as the sketch keeps as much as 64 subspaces,
//! but takes gathers where a sketch takes shuffles. A routing by mean centroids lost to unit
//! ones at every number of clusters.
//!
//! Knows rows, scales and atoms as slices, nothing of files or ids.

pub mod build;
mod coarse;
mod query;
mod sketch;

pub use coarse::CoarseAtoms;
pub use query::search;

use crate::kernels::clusters::{SKETCH_BYTES, SKETCH_LEVELS, SKETCH_ROWS};
use crate::{Error, Result};

/// The most subspaces of a sketch: sums of as many bytes fit 16 bits.
pub const MAX_SUBSPACES: usize = 256;
/// Numbers of subspaces are multiples of this, the lanes of the widest kernel.
pub const SUBSPACE_STEP: usize = 4;

/// How far an approximate search looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Approximate {
    /// Nearest clusters whose rows are looked at.
    pub clusters: usize,
    /// Rows that are rescored exactly; at least the k asked for.
    pub rerank: usize,
}

impl Approximate {
    /// # Errors
    /// [`Error::Argument`] where a number is 0.
    pub fn check(&self) -> Result<()> {
        for (name, number) in [("clusters", self.clusters), ("rerank", self.rerank)] {
            if number == 0 {
                return Err(Error::argument(format!("{name} is 0; expected at least 1")));
            }
        }
        Ok(())
    }
}

/// Rows in clusters, with their sketches, borrowed from memory or from a mapped file.
///
/// Every access is safe for any content: a cluster that does not lie in the rows reads as
/// empty, a row that does not exist is passed over.
#[derive(Debug, Clone, Copy)]
pub struct Clusters<'a> {
    centroids: &'a [i8],
    scales: &'a [[f32; 2]],
    starts: &'a [u32],
    rows: &'a [u32],
    book: &'a [f32],
    sketches: &'a [u8],
    subspaces: usize,
}

/// The parts of [`Clusters`], as they are stored.
#[derive(Debug, Clone, Copy)]
pub struct ClusterParts<'a> {
    /// Centroids of `d` levels each, in units of their first scale.
    pub centroids: &'a [i8],
    /// For each cluster the unit of its centroid, and the share of the centroid that its rows
    /// have on average.
    pub scales: &'a [[f32; 2]],
    /// Where each cluster starts among `rows`, and the end.
    pub starts: &'a [u32],
    /// Positions of rows, cluster by cluster.
    pub rows: &'a [u32],
    /// Codebooks, shape (subspaces, width, 16).
    pub book: &'a [f32],
    /// Blocks of 32 sketches, 16 bytes a subspace each.
    pub sketches: &'a [u8],
}

impl<'a> Clusters<'a> {
    /// Clusters of items of width `d`, with sketches of so many subspaces.
    ///
    /// # Errors
    /// [`Error::Argument`] where the lengths do not fit each other. What the parts hold is not
    /// read.
    pub fn new(parts: ClusterParts<'a>, d: usize, subspaces: usize) -> Result<Self> {
        let ClusterParts {
            centroids,
            scales,
            starts,
            rows,
            book,
            sketches,
        } = parts;
        let n = scales.len();
        let block_bytes = subspaces * SKETCH_BYTES;
        let is_sound = d > 0
            && (SUBSPACE_STEP..=MAX_SUBSPACES).contains(&subspaces)
            && subspaces.is_multiple_of(SUBSPACE_STEP)
            && n.checked_mul(d) == Some(centroids.len())
            && n.checked_add(1) == Some(starts.len())
            && book.len().is_multiple_of(subspaces * SKETCH_LEVELS)
            && book.len() / SKETCH_LEVELS >= d
            && rows.len().div_ceil(SKETCH_ROWS).checked_mul(block_bytes) == Some(sketches.len());
        if !is_sound {
            return Err(Error::argument(format!(
                "{n} clusters of {} rows of width {d} do not fit {} levels of centroids, {} \
                 starts, {} numbers of codebooks and {} bytes of sketches of {subspaces} subspaces",
                rows.len(),
                centroids.len(),
                starts.len(),
                book.len(),
                sketches.len()
            )));
        }
        Ok(Self {
            centroids,
            scales,
            starts,
            rows,
            book,
            sketches,
            subspaces,
        })
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// True where there is no cluster.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Where the rows of a cluster stand among all; empty where that is no range of them.
    fn range(&self, cluster: usize) -> std::ops::Range<usize> {
        let (start, end) = (
            self.starts[cluster] as usize,
            self.starts[cluster + 1] as usize,
        );
        if start <= end && end <= self.rows.len() {
            start..end
        } else {
            0..0
        }
    }
}
