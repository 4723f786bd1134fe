//! What a task of a walk needs for itself.

use std::marker::PhantomData;

use crate::kernels::{WeightTable, SUMS};
use crate::memory::OwnedBytes;
use crate::search::ScanRows;
use crate::Result;

/// What a task needs for itself: sums, weights, and room for lists. Kept by its thread.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) narrow: Sums<u8>,
    pub(super) wide: Sums<u16>,
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
            narrow: Sums::zeros()?,
            wide: Sums::zeros()?,
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

/// Sums that begin at a line of the cache, as do the widest registers' loads and stores of them.
#[derive(Debug)]
pub(super) struct Sums<S> {
    bytes: OwnedBytes,
    sums: PhantomData<S>,
}

impl<S: bytemuck::Pod> Sums<S> {
    fn zeros() -> Result<Self> {
        Ok(Self {
            bytes: OwnedBytes::zeroed(SUMS * size_of::<S>(), "sums of postings")?,
            sums: PhantomData,
        })
    }

    pub(super) fn all(&mut self) -> &mut [S; SUMS] {
        let sums = bytemuck::cast_slice_mut(&mut self.bytes);
        sums.try_into().expect("made with as many")
    }
}
