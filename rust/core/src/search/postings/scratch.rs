//! What a task of a walk needs for itself.

use crate::kernels::{WeightTable, SUMS};
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

/// A scratch without its sums.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) block_items: usize,
    pub(super) table: WeightTable,
    pub(super) found: Vec<u16>,
    pub(super) pending: Vec<usize>,
    /// Rows of which all that reach guess and threshold are scored or pending.
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
                pending: Vec::new(),
                seen: 0,
                due: 0,
            },
        })
    }
}
