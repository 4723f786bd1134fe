//! An index at one moment: a base that does not change, the rows of it that were removed, and
//! the rows that were added since. A change makes a new snapshot that shares what it can with the
//! old one, so that whoever searches the old one is not disturbed.
//!
//! Positions count the rows of the base, removed ones too, then those that were added: the order
//! of a file that is made of the rest, so that ties are decided as they will be there.

use std::cmp::Ordering;
use std::sync::Arc;

use super::fetch::codes_of;
use super::ids::{Id, Ids, OwnedIds};
use super::Index;
use crate::codes::Codes;
use crate::control::Control;
use crate::search::{Hit, Queries, Request};
use crate::{Error, Result};

/// Rows of the base that are no more.
#[derive(Debug, Clone, Default)]
pub struct Dead {
    words: Arc<Vec<u64>>,
    count: usize,
}

impl Dead {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether a row is among them.
    pub fn contains(&self, row: usize) -> bool {
        self.words
            .get(row / 64)
            .is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// These and others; of an index of `n` rows.
    pub fn with(&self, rows: &[usize], n: usize) -> Self {
        if rows.is_empty() {
            return self.clone();
        }
        let mut words = Vec::clone(&self.words);
        words.resize(n.div_ceil(64), 0);
        let mut count = self.count;
        for &row in rows {
            let bit = 1u64 << (row % 64);
            count += usize::from(words[row / 64] & bit == 0);
            words[row / 64] |= bit;
        }
        Self {
            words: Arc::new(words),
            count,
        }
    }
}

/// An index at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(super) base: Arc<Index>,
    pub(super) dead: Dead,
    pub(super) added: Option<Arc<Index>>,
    /// The next number for items that are added without ids.
    pub(super) next_id: i64,
}

impl Snapshot {
    /// The base alone.
    pub fn new(base: Arc<Index>) -> Self {
        Self {
            next_id: base.len() as i64,
            base,
            dead: Dead::default(),
            added: None,
        }
    }

    /// What was opened or built, without changes.
    pub fn base(&self) -> &Index {
        &self.base
    }

    /// What was added since, as an index of its own.
    pub fn added(&self) -> Option<&Index> {
        self.added.as_deref()
    }

    /// Rows of the base that were removed.
    pub fn n_removed(&self) -> usize {
        self.dead.count()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.base.len() - self.dead.count() + self.added.as_ref().map_or(0, |added| added.len())
    }

    /// True where there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where it is the base alone.
    pub fn is_base(&self) -> bool {
        self.dead.count() == 0 && self.added.is_none()
    }

    /// Rows of the base that are left.
    pub(super) fn living(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.base.len()).filter(|&row| !self.dead.contains(row))
    }

    /// Positions of all items.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let added = self.added.as_ref().map_or(0, |added| added.len());
        let first = self.base.len();
        self.living().chain(first..first + added)
    }

    /// The index that a position is in, and its row there.
    fn at(&self, position: usize) -> (&Index, usize) {
        match position.checked_sub(self.base.len()) {
            Some(row) => (
                self.added
                    .as_ref()
                    .expect("positions beyond the base are of added rows"),
                row,
            ),
            None => (&self.base, position),
        }
    }

    /// True where items are called by strings.
    pub fn ids_are_strings(&self) -> bool {
        self.base.all_ids().are_strings()
    }

    /// The number that an item is called; its position where ids are strings.
    pub fn id_number(&self, position: usize) -> i64 {
        if self.ids_are_strings() {
            return position as i64;
        }
        let (index, row) = self.at(position);
        index.all_ids().number(row)
    }

    /// The string that an item is called; none where ids are numbers.
    pub fn id_text(&self, position: usize) -> Option<std::borrow::Cow<'_, str>> {
        let (index, row) = self.at(position);
        match index.all_ids() {
            Ids::Strings(strings) => Some(strings.get(row)),
            _ => None,
        }
    }

    /// The ids of all items, in the order of their positions; none where they are called 0 to
    /// n - 1.
    pub fn ids(&self) -> Option<OwnedIds> {
        let base = self.base.all_ids();
        if self.is_base() && matches!(base, Ids::Positions(_)) {
            return None;
        }
        let mut ids = OwnedIds::none(base.are_strings());
        for position in self.positions() {
            let (index, row) = self.at(position);
            ids.push(index.all_ids(), row);
        }
        Some(ids)
    }

    /// The position of the item with this id.
    pub fn position(&self, id: Id<'_>) -> Option<usize> {
        let added = self.added.as_ref();
        if let Some(row) = added.and_then(|added| added.position(id)) {
            return Some(self.base.len() + row);
        }
        self.base
            .position(id)
            .filter(|&row| !self.dead.contains(row))
    }

    /// Positions of items by their ids.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn find(&self, ids: &OwnedIds) -> Result<Vec<usize>> {
        (0..ids.len())
            .map(|i| {
                let id = ids.get(i);
                self.position(id).ok_or_else(|| {
                    let kind = match (self.ids_are_strings(), id) {
                        (true, Id::Number(_)) => " (ids are strings here)",
                        (false, Id::Text(_)) => " (ids are numbers here)",
                        _ => "",
                    };
                    Error::UnknownId(format!("no item has the id {id}{kind}"))
                })
            })
            .collect()
    }

    /// The codes of items, as they are stored: see [`Index::code`].
    ///
    /// # Errors
    /// [`Error::UnknownId`]; [`Error::Argument`] where a row, of a damaged file, is not sound.
    pub fn get(&self, ids: &OwnedIds) -> Result<Codes> {
        let rows: Vec<_> = self
            .find(ids)?
            .into_iter()
            .map(|position| {
                let (index, row) = self.at(position);
                index.code(row)
            })
            .collect();
        codes_of(&rows, self.base.dim())
    }

    /// The embeddings that items decode to, row by row, and their width.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; [`Error::Argument`] where there is no dictionary.
    pub fn reconstruct(&self, ids: &OwnedIds, control: &Control) -> Result<(Vec<f32>, usize)> {
        let d = self.base.atoms().map_or(1, |atoms| atoms.d());
        let positions = self.find(ids)?;
        let mut embeddings = vec![0.0; positions.len() * d];
        for (&position, out) in positions.iter().zip(embeddings.chunks_exact_mut(d)) {
            control.check()?;
            let (index, row) = self.at(position);
            index.embedding(row, out)?;
        }
        Ok((embeddings, d))
    }

    /// The best `min(k, len)` items of each query as positions, best first, ties by lower
    /// position: exactly those of an index that is built of the items that are left. Runs on the
    /// current rayon pool.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search(
        &self,
        queries: &Queries<'_>,
        request: &Request,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        if self.is_base() {
            return self.base.search(queries, request, control);
        }
        let mut found = self.search_living(queries, request, control)?;
        if let Some(added) = &self.added {
            let mut more = added.search_rows(queries, request, control)?;
            for hit in more.iter_mut().flatten() {
                hit.position += self.base.len() as u64;
            }
            found = found
                .into_iter()
                .zip(more)
                .map(|(old, new)| merged(&old, &new, request.k))
                .collect();
        }
        self.base.add_mean(&mut found, queries, request)?;
        Ok(found)
    }

    /// The best of the base that were not removed: more than k are asked for, until enough of
    /// them are left. What is left of the best k' of all rows are the best of those that are left.
    fn search_living(
        &self,
        queries: &Queries<'_>,
        request: &Request,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        let dead = self.dead.count();
        let wanted = request.k.min(self.base.len() - dead);
        let mut extra = dead.min(16 + request.k / 8);
        loop {
            let asked = Request {
                k: request.k.saturating_add(extra),
                ..*request
            };
            let mut found = self.base.search_rows(queries, &asked, control)?;
            for hits in &mut found {
                hits.retain(|hit| !self.dead.contains(hit.position as usize));
                hits.truncate(request.k);
            }
            // NaN scores, of a damaged file, are dropped: there may never be enough
            if extra == dead || found.iter().all(|hits| hits.len() >= wanted) {
                return Ok(found);
            }
            extra = dead.min(extra.saturating_mul(8));
        }
    }
}

/// The best k of two sorted lists.
fn merged(old: &[Hit], new: &[Hit], k: usize) -> Vec<Hit> {
    let mut best = Vec::with_capacity(k.min(old.len() + new.len()));
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    while best.len() < k {
        let next = match (old.peek(), new.peek()) {
            // of equal scores the lower position, which is an old one
            (Some(a), Some(b)) if b.score.partial_cmp(&a.score) == Some(Ordering::Greater) => {
                new.next()
            }
            (Some(_), _) => old.next(),
            (None, _) => new.next(),
        };
        match next {
            Some(&hit) => best.push(hit),
            None => break,
        }
    }
    best
}
