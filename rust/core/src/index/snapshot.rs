//! An index at one moment: a base that does not change, and the rows that were added since, in
//! a few chunks, each less the rows that were removed from it. A change makes a new snapshot that
//! shares what it can with the old one, so that whoever searches the old one is not disturbed.
//!
//! Positions count the rows of the base, removed ones too, then those of the chunks: the order of
//! a file that is made of what is left, so that ties are decided as they will be there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::batch::Batch;
use super::fetch::codes_of;
use super::ids::{Id, Ids, OwnedIds};
use super::part::Part;
use super::{merge, Index};
use crate::codes::Codes;
use crate::control::Control;
use crate::search::Bitmap;
use crate::{Error, Result};

/// Rows that are added are joined with chunks before them as long as all have no more rows than
/// this: copying them costs less than a millisecond, and each chunk costs every search.
const SMALL_ROWS: usize = 4096;

/// Moments so far, of all indexes of the process.
static MOMENTS: AtomicU64 = AtomicU64::new(0);

/// An index at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The base, and chunks of what was added, none of them empty.
    parts: Vec<Part>,
    /// The next number for items that are added without ids.
    pub(super) next_id: i64,
    moment: u64,
}

impl Clone for Snapshot {
    /// The same, to be changed: another moment.
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            next_id: self.next_id,
            moment: MOMENTS.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Snapshot {
    /// The base alone.
    pub fn new(base: Arc<Index>) -> Self {
        Self {
            next_id: base.len() as i64,
            parts: vec![Part::new(base)],
            moment: MOMENTS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// What was opened or built, without changes.
    pub fn base(&self) -> &Index {
        self.parts[0].index()
    }

    /// The same, to be kept.
    pub(super) fn shared_base(&self) -> Arc<Index> {
        Arc::clone(self.parts[0].index())
    }

    /// The base and what was added.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What was added since, in chunks, each an index of its own of which rows may be removed.
    pub fn added(&self) -> impl Iterator<Item = &Index> {
        self.parts[1..].iter().map(|part| &**part.index())
    }

    /// Items that were added since, and are left.
    pub fn n_added(&self) -> usize {
        self.parts[1..].iter().map(Part::len).sum()
    }

    /// Rows of the base that were removed.
    pub fn n_removed(&self) -> usize {
        self.parts[0].n_removed()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// True where there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where it is the base alone.
    pub fn is_base(&self) -> bool {
        self.n_removed() == 0 && self.parts.len() == 1
    }

    /// All of it as an index without changes: the base itself where there are none, else one in
    /// memory, with postings and clusters where the base has them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Interrupted`], [`Error::Io`] where there is no room for
    /// temporary files.
    pub fn without_changes(self: &Arc<Self>, control: &Control) -> Result<Arc<Index>> {
        if self.is_base() {
            return Ok(self.shared_base());
        }
        Ok(Arc::new(merge::in_memory(&[Arc::clone(self)], control)?))
    }

    /// Takes rows, which have ids that are free. They make a chunk of their own, together with
    /// the chunks before them that have not twice as many rows: so there are few chunks, and a
    /// row is copied as often as its chunk has doubled.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the snapshot is then of no use.
    pub(super) fn push(&mut self, batch: &Batch) -> Result<()> {
        let mut rows = batch.n;
        let mut kept = self.parts.len();
        while kept > 1 {
            let before = self.parts[kept - 1].len();
            if before + rows > SMALL_ROWS && before >= 2 * rows {
                break;
            }
            rows += before;
            kept -= 1;
        }
        let mut all = Batch::none(self.base().coding().scales.len(), self.ids_are_strings());
        for part in self.parts.drain(kept..) {
            all.append(&part.copied());
        }
        all.append(batch);
        self.push_chunk(all)
    }

    /// Takes rows as a chunk of their own; none make none.
    ///
    /// # Errors
    /// As [`Snapshot::push`].
    pub(super) fn push_chunk(&mut self, rows: Batch) -> Result<()> {
        if rows.n > 0 {
            let chunk = rows.into_index(self.base())?;
            self.parts.push(Part::new(Arc::new(chunk)));
        }
        Ok(())
    }

    /// Lets go of rows at these positions, each once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the snapshot is then of no use.
    pub(super) fn remove(&mut self, mut positions: Vec<usize>) -> Result<()> {
        positions.sort_unstable();
        let (mut first, mut at) = (0, 0);
        let mut left = Vec::with_capacity(self.parts.len());
        for (number, part) in self.parts.iter().enumerate() {
            let n = part.index().len();
            let end = at + positions[at..].partition_point(|&position| position < first + n);
            let rows: Vec<_> = positions[at..end].iter().map(|row| row - first).collect();
            let mut part = part.without(&rows);
            // half of a chunk gone: what is left is copied, so that memory follows
            if number > 0 && !rows.is_empty() && 2 * part.len() <= n && part.len() > 0 {
                let copied = part.copied().into_index(self.base())?;
                part = Part::new(Arc::new(copied));
            }
            if number == 0 || part.len() > 0 {
                left.push(part);
            }
            (first, at) = (first + n, end);
        }
        self.parts = left;
        Ok(())
    }

    /// Positions of all items, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let mut end = 0;
        self.parts.iter().flat_map(move |part| {
            let first = end;
            end += part.index().len();
            part.living().map(move |row| first + row)
        })
    }

    /// One more than the largest position that there may be.
    fn end(&self) -> usize {
        self.parts.iter().map(|part| part.index().len()).sum()
    }

    /// Where the items at these ascending positions stand among all.
    ///
    /// # Errors
    /// [`Error::Argument`] for a position without an item.
    pub fn ranks(&self, positions: &[u64]) -> Result<Vec<u64>> {
        let mut ranks = Vec::with_capacity(positions.len());
        let (mut first, mut before, mut at) = (0, 0, 0);
        for part in &self.parts {
            let n = part.index().len();
            let end = at + positions[at..].partition_point(|&p| p < (first + n) as u64);
            let here = &positions[at..end];
            let rows: Vec<_> = here.iter().map(|&p| p as usize - first).collect();
            if !rows.is_sorted() || rows.iter().any(|&row| !part.has(row)) {
                break;
            }
            ranks.extend(part.ranks(&rows).map(|rank| (before + rank) as u64));
            (first, before, at) = (first + n, before + part.len(), end);
        }
        if ranks.len() != positions.len() {
            return Err(Error::argument(
                "positions without an item, or not ascending",
            ));
        }
        Ok(ranks)
    }

    /// The part that a position is in, and its row there.
    fn at(&self, position: usize) -> (&Index, usize) {
        let mut row = position;
        for part in &self.parts {
            if row < part.index().len() {
                return (part.index(), row);
            }
            row -= part.index().len();
        }
        panic!("position {position} of {}", self.end());
    }

    /// True where items are called by strings.
    pub fn ids_are_strings(&self) -> bool {
        self.base().all_ids().are_strings()
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
        let base = self.base().all_ids();
        if self.is_base() && matches!(base, Ids::Positions(_)) {
            return None;
        }
        let mut ids = OwnedIds::none(base.are_strings());
        for part in &self.parts {
            let of_part = part.index().all_ids();
            part.living().for_each(|row| ids.push(of_part, row));
        }
        Some(ids)
    }

    /// The ids of the items at these positions.
    ///
    /// # Errors
    /// [`Error::Argument`] for a position beyond all.
    pub fn ids_at(&self, positions: &[u64]) -> Result<OwnedIds> {
        let mut ids = OwnedIds::none(self.ids_are_strings());
        let end = self.end() as u64;
        for &position in positions {
            if position >= end {
                return Err(Error::argument(format!(
                    "position {position}; expected less than {end}"
                )));
            }
            let (index, row) = self.at(position as usize);
            ids.push(index.all_ids(), row);
        }
        Ok(ids)
    }

    /// The position of the item with this id.
    pub fn position(&self, id: Id<'_>) -> Option<usize> {
        let mut first = 0;
        for part in &self.parts {
            let row = part.index().position(id).filter(|&row| part.has(row));
            if let Some(row) = row {
                return Some(first + row);
            }
            first += part.index().len();
        }
        None
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
        codes_of(&rows, self.base().dim())
    }

    /// The embeddings that items decode to, row by row, and their width.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; [`Error::Argument`] where there is no dictionary.
    pub fn reconstruct(&self, ids: &OwnedIds, control: &Control) -> Result<(Vec<f32>, usize)> {
        let d = self.base().atoms().map_or(1, |atoms| atoms.d());
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
        let chosen = Bitmap::from_positions(self.end(), positions)?;
        let numbered = self.positions().enumerate();
        let items = numbered.filter(|&(_, position)| chosen.contains(position as u64));
        Bitmap::from_positions(self.len(), items.map(|(item, _)| item as u64))
    }
}
