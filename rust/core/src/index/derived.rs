//! What follows from all rows of a file, and so is made again where they change: postings and
//! clusters. A file that is made of others has what one of them has.

use std::sync::Arc;

use super::snapshot::Snapshot;
use super::Index;
use crate::control::Control;
use crate::{threads, Result};

/// What a file is to have beside its rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Derived<'a> {
    /// Items of a block of postings.
    block_items: Option<usize>,
    /// The index whose clusters are carried on.
    clustered: Option<&'a Index>,
}

impl<'a> Derived<'a> {
    /// What the first of some indexes that has postings, and the largest of those that have
    /// clusters, give to a file of all of them.
    pub fn of(parts: &'a [Arc<Snapshot>]) -> Self {
        let bases = || parts.iter().map(|part| part.base());
        let clustered = bases().filter(|base| base.n_clusters() > 0);
        Self {
            block_items: bases().find_map(|base| Some(base.postings()?.block_items())),
            clustered: clustered.reduce(|a, b| if b.len() > a.len() { b } else { a }),
        }
    }

    /// True where there is nothing to be made.
    pub fn is_none(&self) -> bool {
        self.block_items.is_none() && self.clustered.is_none()
    }

    /// The same index with all this. Runs on threads of its own, so that the caller may hold
    /// locks.
    ///
    /// # Errors
    /// As [`Index::with_postings`] and [`Index::with_clusters`].
    pub fn given_to(&self, index: &Index, control: &Control) -> Result<Index> {
        threads::apart(None, || {
            let index = match self.block_items {
                Some(block_items) => index.with_postings(block_items, control)?,
                None => index.clone(),
            };
            match self.clustered {
                Some(other) => index.with_clusters_of(other, control),
                None => Ok(index),
            }
        })?
    }
}
