//! An index at one moment: a base that does not change, the rows of it that were removed, and
//! the rows that were added since. A change makes a new snapshot that shares what it can with the
//! old one, so that whoever searches the old one is not disturbed.
//!
//! Positions count the rows of the base, removed ones too, then those that were added: the order
//! of a file that is made of the rest, so that ties are decided as they will be there.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicU64, Ordering as AtomicOrdering};
use std::sync::{Arc, OnceLock};

use super::fetch::codes_of;
use super::ids::{Id, Ids, OwnedIds};
use super::{merge, Index};
use crate::codes::Codes;
use crate::control::Control;
use crate::search::{Bitmap, Exclusions, Hit, Queries, Request, Selection};
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

/// Moments so far, of all indexes of the process.
static MOMENTS: AtomicU64 = AtomicU64::new(0);

/// An index at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) base: Arc<Index>,
    pub(super) dead: Dead,
    pub(super) added: Option<Arc<Index>>,
    /// The next number for items that are added without ids.
    pub(super) next_id: i64,
    moment: u64,
    /// The rows of the base that are left, once it was needed.
    living: OnceLock<Bitmap>,
}

impl Clone for Snapshot {
    /// The same, to be changed: another moment.
    fn clone(&self) -> Self {
        Self {
            base: Arc::clone(&self.base),
            dead: self.dead.clone(),
            added: self.added.clone(),
            next_id: self.next_id,
            moment: MOMENTS.fetch_add(1, AtomicOrdering::Relaxed),
            living: OnceLock::new(),
        }
    }
}

impl Snapshot {
    /// The base alone.
    pub fn new(base: Arc<Index>) -> Self {
        Self {
            next_id: base.len() as i64,
            base,
            dead: Dead::default(),
            added: None,
            moment: MOMENTS.fetch_add(1, AtomicOrdering::Relaxed),
            living: OnceLock::new(),
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

    /// All of it as an index without changes: the base itself where there are none, else one in
    /// memory, with postings and clusters where the base has them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Interrupted`], [`Error::Io`] where there is no room for
    /// temporary files.
    pub fn without_changes(self: &Arc<Self>, control: &Control) -> Result<Arc<Index>> {
        if self.is_base() {
            return Ok(Arc::clone(&self.base));
        }
        Ok(Arc::new(merge::in_memory(&[Arc::clone(self)], control)?))
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

    /// A number that no other moment of an index of this process has.
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// Positions of items by their ids. `what` names the ids in an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first id that no item has.
    pub fn positions_of(&self, ids: &OwnedIds, what: &str) -> Result<Vec<u64>> {
        (0..ids.len())
            .map(|i| {
                let id = ids.get(i);
                let position = self.position(id).ok_or_else(|| {
                    Error::argument(format!(
                        "{what} holds the id {id}, which no item of the index has"
                    ))
                })?;
                Ok(position as u64)
            })
            .collect()
    }

    /// The items of these ids, in any order and as often as they come: a bitmap of as many bits as
    /// there are items, in the order of their positions, as [`Snapshot::search`] takes it.
    ///
    /// # Errors
    /// As [`Snapshot::positions_of`]; [`Error::OutOfMemory`].
    pub fn bitmap(&self, ids: &OwnedIds, what: &str) -> Result<Bitmap> {
        let positions = self.positions_of(ids, what)?;
        if self.is_base() {
            return Bitmap::from_positions(self.len(), positions);
        }
        let n = self.base.len() + self.added.as_ref().map_or(0, |added| added.len());
        let chosen = Bitmap::from_positions(n, positions)?;
        let numbered = self.positions().enumerate();
        let items = numbered.filter(|&(_, position)| chosen.contains(position as u64));
        Bitmap::from_positions(self.len(), items.map(|(item, _)| item as u64))
    }

    /// The best `k` items of each query that the request's selection admits, as positions, best
    /// first, ties by lower position: exactly those of an index that is built of the items that
    /// are left. Runs on the current rayon pool.
    ///
    /// The bitmap of the selection counts items, as [`Snapshot::bitmap`] does; its exclusions are
    /// positions.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search(
        &self,
        queries: &Queries<'_>,
        request: &Request<'_>,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        if self.is_base() {
            return self.base.search(queries, request, control);
        }
        let selection = request.selection;
        selection.check(self.len(), queries.len())?;
        let n_queries = queries.len();
        let first = self.base.len() as u64;
        let exclusions = Self::excluded(selection, n_queries, 0..first)?;
        let chosen = selection.allowed.map(|items| {
            let numbered = self.living().enumerate();
            let rows = numbered.filter(|&(item, _)| items.contains(item as u64));
            Bitmap::from_positions(self.base.len(), rows.map(|(_, row)| row as u64))
        });
        let chosen = chosen.transpose()?;
        let of_base = Selection {
            allowed: match (&chosen, self.dead.count()) {
                (Some(chosen), _) => Some(chosen),
                (None, 0) => None,
                (None, _) => Some(self.living_rows()?),
            },
            exclusions: exclusions.as_ref(),
        };
        let request_of_base = with(request, of_base);
        let mut found = self.base.search_rows(queries, &request_of_base, control)?;
        if let Some(added) = &self.added {
            let before = (self.base.len() - self.dead.count()) as u64;
            let n = added.len() as u64;
            let allowed = selection.allowed.map(|items| {
                let rows = (0..n).filter(|row| items.contains(before + row));
                Bitmap::from_positions(added.len(), rows)
            });
            let allowed = allowed.transpose()?;
            let exclusions = Self::excluded(selection, n_queries, first..first + n)?;
            let of_added = Selection {
                allowed: allowed.as_ref(),
                exclusions: exclusions.as_ref(),
            };
            let exact = Request {
                approximate: None, // additions have no clusters, and are few
                ..with(request, of_added)
            };
            let mut more = added.search_rows(queries, &exact, control)?;
            for hit in more.iter_mut().flatten() {
                hit.position += first;
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

    fn living_rows(&self) -> Result<&Bitmap> {
        if self.living.get().is_none() {
            let n = self.base.len();
            let mut bytes: Vec<u8> = self
                .dead
                .words
                .iter()
                .flat_map(|word| (!word).to_le_bytes())
                .take(n.div_ceil(8))
                .collect();
            if let Some(last) = bytes.last_mut().filter(|_| !n.is_multiple_of(8)) {
                *last &= (1 << (n % 8)) - 1; // no bits past the last row
            }
            // two threads may make it at once: both make the same, one is kept
            let _ = self.living.set(Bitmap::from_packed(n, &bytes)?);
        }
        Ok(self.living.get().expect("set above"))
    }

    /// What queries exclude of the rows at these positions, counted from the first of them.
    fn excluded(
        selection: Selection<'_>,
        n_queries: usize,
        positions: std::ops::Range<u64>,
    ) -> Result<Option<Exclusions>> {
        if selection.exclusions.is_none() {
            return Ok(None);
        }
        let mut starts = vec![0];
        let mut rows = Vec::new();
        for query in 0..n_queries {
            let excluded = selection.excluded(query).iter();
            let here = excluded.filter(|position| positions.contains(position));
            rows.extend(here.map(|position| position - positions.start));
            starts.push(rows.len());
        }
        Ok(Some(Exclusions::new(starts, rows)?))
    }
}

/// The same request of other rows.
fn with<'a>(request: &Request<'_>, selection: Selection<'a>) -> Request<'a> {
    Request {
        mode: request.mode,
        k: request.k,
        k_row: request.k_row,
        selection,
        approximate: request.approximate,
        kernels: request.kernels,
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
