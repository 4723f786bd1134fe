//! What is asked of an index, whatever the queries are. Knows nothing of how it is answered.

use super::{Approximate, Mode, Selection};
use crate::kernels::Kernels;
use crate::{Error, Result};

/// One search: everything but the queries.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// How queries and items are compared.
    pub mode: Mode,
    /// How many items of each query are wanted.
    pub k: usize,
    /// Read only so many nonzeros of each row, where given.
    pub k_row: Option<usize>,
    /// Which items each query may return.
    pub selection: Selection<'a>,
    /// How far to look, where not everywhere.
    pub approximate: Option<Approximate>,
    /// The kernels to compute with; results do not depend on which.
    pub kernels: Kernels,
}

impl Request<'_> {
    /// The best `k` in `mode` of all items, with whole rows and the best kernels of this CPU.
    pub fn new(mode: Mode, k: usize) -> Self {
        Self {
            mode,
            k,
            k_row: None,
            selection: Selection::ALL,
            approximate: None,
            kernels: Kernels::best(),
        }
    }

    /// # Errors
    /// [`Error::Argument`] where `k`, `k_row` or a number of `approximate` is 0.
    pub fn check(&self) -> Result<()> {
        for (name, number) in [("k", Some(self.k)), ("k_row", self.k_row)] {
            if number == Some(0) {
                return Err(Error::argument(format!("{name} is 0; expected at least 1")));
            }
        }
        self.approximate.map_or(Ok(()), |setting| setting.check())
    }
}
