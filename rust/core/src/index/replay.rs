//! Changes as bytes of a journal's frame, and the snapshot that they lead to.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, Coding};
use super::ids::{check_each, Id, OwnedIds};
use super::snapshot::Snapshot;
use super::Index;
use crate::error::FormatProblem;
use crate::{Error, Result};

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// Items that are no more.
    Remove(OwnedIds),
    /// Items that are new, with their ids.
    Add(Arc<Batch>),
}

const REMOVE: u8 = 1;
const ADD: u8 = 2;

/// Changes as a frame holds them.
pub fn encode(changes: &[Change]) -> Vec<u8> {
    let mut out = Vec::new();
    for change in changes {
        match change {
            Change::Remove(ids) => {
                out.push(REMOVE);
                encode_ids(ids, &mut out);
            }
            Change::Add(batch) => {
                out.push(ADD);
                put(&mut out, batch.n as u64);
                for length in &batch.lengths {
                    out.extend_from_slice(&length.to_le_bytes());
                }
                out.extend_from_slice(&batch.rows);
                for scale in batch.scales.iter().flatten() {
                    out.extend_from_slice(&scale.to_le_bytes());
                }
                encode_ids(batch.ids.as_ref().expect("added rows have ids"), &mut out);
            }
        }
    }
    out
}

fn encode_ids(ids: &OwnedIds, out: &mut Vec<u8>) {
    out.push(u8::from(ids.view().are_strings()));
    put(out, ids.len() as u64);
    match ids {
        OwnedIds::Numbers(numbers) => numbers.iter().for_each(|&id| put(out, id as u64)),
        OwnedIds::Strings(offsets, bytes) => {
            offsets[1..].iter().for_each(|&end| put(out, end));
            out.extend_from_slice(bytes);
        }
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// The changes of a frame whose bytes start at `offset` of the journal.
///
/// # Errors
/// [`FormatProblem::Journal`] where they are not changes of rows of this coding.
pub fn decode(frame: &[u8], offset: u64, coding: &Coding) -> Result<Vec<Change>> {
    let mut reader = FrameReader {
        frame,
        at: 0,
        offset,
    };
    let mut changes = Vec::new();
    while reader.at < frame.len() {
        changes.push(match reader.take(1)?[0] {
            REMOVE => Change::Remove(reader.ids()?),
            ADD => Change::Add(Arc::new(reader.batch(coding)?)),
            other => return Err(reader.bad(format!("change of kind {other}, expected 1 or 2"))),
        });
    }
    Ok(changes)
}

struct FrameReader<'a> {
    frame: &'a [u8],
    at: usize,
    offset: u64,
}

impl<'a> FrameReader<'a> {
    fn bad(&self, reason: String) -> Error {
        FormatProblem::Journal {
            offset: self.offset + self.at as u64,
            reason,
        }
        .into()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        let bytes = end.and_then(|end| self.frame.get(self.at..end));
        let bytes = bytes.ok_or_else(|| self.bad(format!("{n} bytes more than the frame has")))?;
        self.at += n;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(
            self.take(8)?.try_into().expect("eight bytes"),
        ))
    }

    /// `n` numbers of 8 bytes.
    fn numbers(&mut self, n: usize) -> Result<impl Iterator<Item = u64> + 'a> {
        let bytes = n
            .checked_mul(8)
            .ok_or_else(|| self.bad("overflow".into()))?;
        Ok(self
            .take(bytes)?
            .chunks_exact(8)
            .map(|number| u64::from_le_bytes(number.try_into().expect("eight bytes"))))
    }

    fn count(&mut self) -> Result<usize> {
        let n = self.number()?;
        usize::try_from(n).map_err(|_| self.bad(format!("{n} items")))
    }

    fn ids(&mut self) -> Result<OwnedIds> {
        let kind = self.take(1)?[0];
        let n = self.count()?;
        let ids = match kind {
            0 => OwnedIds::Numbers(self.numbers(n)?.map(|id| id as i64).collect()),
            1 => {
                let mut offsets = vec![0];
                offsets.extend(self.numbers(n)?);
                let bytes = usize::try_from(offsets[n]).unwrap_or(usize::MAX);
                OwnedIds::Strings(offsets, self.take(bytes)?.to_vec())
            }
            other => return Err(self.bad(format!("ids of kind {other}, expected 0 or 1"))),
        };
        check_each(ids.view(), 0).map_err(|error| self.bad(error.to_string()))?;
        Ok(ids)
    }

    fn batch(&mut self, coding: &Coding) -> Result<Batch> {
        let n = self.count()?;
        let mut batch = Batch {
            n,
            ..Batch::default()
        };
        let too_many = || Error::argument("overflow");
        let row_bytes = match &coding.layout {
            Some(layout) => n.checked_mul(layout.row_bytes()),
            None => {
                let lengths = self.take(n.checked_mul(4).ok_or_else(too_many)?)?;
                batch.lengths = lengths
                    .chunks_exact(4)
                    .map(|length| u32::from_le_bytes(length.try_into().expect("four bytes")))
                    .collect();
                let nonzeros: u64 = batch.lengths.iter().map(|&length| u64::from(length)).sum();
                usize::try_from(nonzeros)
                    .ok()
                    .and_then(|nonzeros| nonzeros.checked_mul(coding.nonzero_bytes()))
            }
        };
        let row_bytes = row_bytes.ok_or_else(|| self.bad("overflow".into()))?;
        batch.rows = self.take(row_bytes)?.to_vec();
        for _ in &coding.scales {
            batch
                .scales
                .push(self.numbers(n)?.map(f64::from_bits).collect());
        }
        let ids = self.ids()?;
        if ids.len() != n {
            return Err(self.bad(format!("{} ids for {n} items", ids.len())));
        }
        batch.ids = Some(ids);
        Ok(batch)
    }
}

/// Makes a snapshot of many changes at once.
pub struct Replay {
    base: Arc<Index>,
    are_strings: bool,
    dead: HashMap<usize, ()>,
    added: Batch,
    rows: HashMap<OwnedIds, usize>,
    gone: Vec<bool>,
}

impl Replay {
    /// No changes yet.
    pub fn new(base: Arc<Index>) -> Self {
        let are_strings = base.all_ids().are_strings();
        let added = Batch::none(base.coding().scales.len(), are_strings);
        Self {
            base,
            are_strings,
            dead: HashMap::new(),
            added,
            rows: HashMap::new(),
            gone: Vec::new(),
        }
    }

    /// Makes a change.
    ///
    /// # Errors
    /// [`Error::Argument`] where it cannot have been made: an id that is not there is removed, or
    /// one that is there is added.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Remove(ids) => (0..ids.len()).try_for_each(|i| self.remove(ids, i)),
            Change::Add(batch) => {
                let ids = batch.ids.as_ref().expect("added rows have ids");
                if ids.view().are_strings() != self.are_strings {
                    return Err(Error::argument("ids of another kind"));
                }
                for i in 0..batch.n {
                    let in_base = self.in_base(ids.get(i)).is_some();
                    let row = self.gone.len();
                    if in_base || self.rows.insert(one(ids, i), row).is_some() {
                        let id = ids.get(i);
                        return Err(Error::argument(format!("id {id} is added twice")));
                    }
                    self.gone.push(false);
                }
                self.added.append(batch);
                Ok(())
            }
        }
    }

    fn in_base(&self, id: Id<'_>) -> Option<usize> {
        let row = self.base.position(id)?;
        (!self.dead.contains_key(&row)).then_some(row)
    }

    fn remove(&mut self, ids: &OwnedIds, i: usize) -> Result<()> {
        if let Some(row) = self.rows.remove(&one(ids, i)) {
            self.gone[row] = true;
            return Ok(());
        }
        match self.in_base(ids.get(i)) {
            Some(row) => {
                self.dead.insert(row, ());
                Ok(())
            }
            None => {
                let id = ids.get(i);
                Err(Error::argument(format!(
                    "id {id} is removed, but not there"
                )))
            }
        }
    }

    /// The snapshot that the changes lead to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn finish(self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new(self.base);
        snapshot.remove(self.dead.into_keys().collect())?;
        if let Some(OwnedIds::Numbers(numbers)) = &self.added.ids {
            for &id in numbers {
                snapshot.next_id = snapshot.next_id.max(id.saturating_add(1));
            }
        }
        if !self.gone.contains(&true) {
            snapshot.push_chunk(self.added)?;
        } else {
            // not only marked as removed: what was added again has the id of a row that is gone
            let all = self.added.into_index(snapshot.base())?;
            let left = (0..all.len()).filter(|&row| !self.gone[row]);
            snapshot.push_chunk(Batch::copied(&all, left, true))?;
        }
        Ok(snapshot)
    }
}

/// One id of a list.
fn one(ids: &OwnedIds, i: usize) -> OwnedIds {
    let mut id = OwnedIds::none(ids.view().are_strings());
    id.push(ids.view(), i);
    id
}
