//! What a task of a walk needs for itself.

use crate::kernels::{Reached, WeightTable, SUMS};
use crate::memory::OwnedSlice;
use crate::search::ScanRows;
use crate::Result;

/// What a task needs for itself: sums, weights, and room for lists. Kept by its thread.
#[derive(Debug)]
pub(super) struct Scratch {
    /// [`SUMS`] of them, as of the wide ones.
    pub(super) narrow: OwnedSlice<u8>,
    pub(super) wide: OwnedSlice<u16>,
    pub(super) rest: Rest,
}

/// A row that may be one of the best.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// What its score is at most.
    pub(super) bound: f64,
    pub(super) row: u64,
    pub(super) is_scored: bool,
}

/// A scratch without its sums.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) block_items: usize,
    pub(super) table: WeightTable,
    pub(super) found: Vec<Reached>,
    /// Rows that reach guess and threshold.
    pub(super) held: Vec<Held>,
    /// Rows to be scored.
    pub(super) rows: Vec<u64>,
    /// Rows of which all that reach guess and threshold are scored or held.
    pub(super) seen: usize,
    /// The number of rows seen from which on the guess is made anew.
    pub(super) due: usize,
}

impl Scratch {
    pub(super) fn new(data: &ScanRows<'_>, block_items: usize) -> Result<Self> {
        Ok(Self {
            narrow: OwnedSlice::zeroed(SUMS, "sums of postings")?,
            wide: OwnedSlice::zeroed(SUMS, "sums of postings")?,
            rest: Rest {
                block_items,
                table: WeightTable::zeros(&data.rows)?,
                found: Vec::new(),
                held: Vec::new(),
                seen: 0,
                rows: Vec::new(),
                due: 0,
            },
        })
    }
}
