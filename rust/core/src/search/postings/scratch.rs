//! What a task of a walk needs for itself.

use crate::kernels::{WeightTable, SUMS};
use crate::search::ScanRows;
use crate::{Error, Result};

/// What a task needs for itself: sums, weights, and room for lists. Kept by its thread.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) narrow: Box<[u8; SUMS]>,
    pub(super) wide: Box<[u16; SUMS]>,
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
            narrow: zeros()?,
            wide: zeros()?,
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

/// Sums of 0. Their memory is had from the system when they are first used.
fn zeros<S: bytemuck::Zeroable>() -> Result<Box<[S; SUMS]>> {
    bytemuck::allocation::try_zeroed_slice_box::<S>(SUMS)
        .ok()
        .and_then(|sums| sums.try_into().ok())
        .ok_or(Error::OutOfMemory {
            what: "sums of postings",
            bytes: SUMS * size_of::<S>(),
        })
}
