//! Ids on their way into a file, and their order, in memory that does not grow with them: runs
//! are sorted, spilled and merged (external sorting). That finds every id that is given twice.
//! Most are found when they come: ids that ascend are unique, others are compared with the first
//! and the last ones (see [`Seen`]).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::column::{Column, Place};
use super::ids::{check_each, not_unique, Id, Ids, OwnedIds};
use super::seen::Seen;
use crate::control::Control;
use crate::Result;

/// Ids that are sorted in memory at a time.
const RUN_IDS: usize = 1 << 20;
/// Bytes of strings that are sorted in memory at a time.
const RUN_BYTES: usize = 32 << 20;
/// Bytes of each run that are held while runs are merged.
const MERGE_BYTES: usize = 1 << 16;

/// Ids, all numbers or all strings.
pub struct IdSpool {
    /// Numbers of 8 bytes, or the ends of strings, likewise.
    numbers: Column,
    /// The strings.
    bytes: Column,
    are_strings: bool,
    n: u64,
    /// The last id, while all ascend.
    last: Option<OwnedIds>,
    ascend: bool,
    /// The ids so far, once they do not ascend.
    seen: Option<Seen>,
    place: Place,
    run_ids: usize,
}

impl IdSpool {
    /// No ids yet, of this kind.
    pub fn new(place: &Place, are_strings: bool) -> Self {
        Self {
            numbers: Column::new(place),
            bytes: Column::new(place),
            are_strings,
            n: 0,
            last: None,
            ascend: true,
            seen: None,
            place: place.clone(),
            run_ids: RUN_IDS,
        }
    }

    /// True where ids are strings.
    pub fn are_strings(&self) -> bool {
        self.are_strings
    }

    /// True where each id is above the one before it.
    pub fn ascend(&self) -> bool {
        self.ascend
    }

    /// Bytes of all strings.
    pub fn string_bytes(&self) -> u64 {
        self.bytes.len()
    }

    /// The numbers, or the ends of strings.
    pub fn numbers(&mut self) -> &mut Column {
        &mut self.numbers
    }

    /// The strings.
    pub fn bytes(&mut self) -> &mut Column {
        &mut self.bytes
    }

    /// Takes ids.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for -1, and for an id that is known to have been given before
    /// ([`IdSpool::order`] finds the others); [`crate::Error::Io`], after which the spool is of no
    /// use.
    ///
    /// # Panics
    /// Where they are not of the kind that was announced.
    pub fn push(&mut self, ids: Ids<'_>) -> Result<()> {
        assert_eq!(ids.are_strings(), self.are_strings);
        check_each(ids, self.n)?;
        if ids.is_empty() {
            return Ok(());
        }
        let mut first = OwnedIds::none(self.are_strings);
        first.push(ids, 0);
        let follows = self
            .last
            .as_ref()
            .is_none_or(|last| last.get(0) < first.get(0));
        self.ascend &= follows && ids.ascend();
        if !self.ascend {
            self.refuse_seen(ids)?;
        }
        let mut last = OwnedIds::none(self.are_strings);
        last.push(ids, ids.len() - 1);
        self.last = Some(last);
        for i in 0..ids.len() {
            match ids {
                Ids::Strings(strings) => {
                    self.bytes.push(strings.bytes(i))?;
                    self.numbers.push(&self.bytes.len().to_le_bytes())?;
                }
                _ => self.numbers.push(&ids.number(i).to_le_bytes())?,
            }
        }
        self.n += ids.len() as u64;
        Ok(())
    }

    /// Refuses ids that were given before, as far as is known.
    fn refuse_seen(&mut self, ids: Ids<'_>) -> Result<()> {
        let mut seen = match self.seen.take() {
            Some(seen) => seen,
            None => {
                let mut seen = Seen::new();
                self.each(|_, id| {
                    seen.meets(id);
                    false
                })?;
                seen
            }
        };
        let mut one = OwnedIds::none(self.are_strings);
        for i in 0..ids.len() {
            one.clear();
            one.push(ids, i);
            if seen.meets(one.get(0)) {
                let row = self.n + i as u64;
                let before = match self.each(|_, id| id == one.get(0))? {
                    Some(before) => Some(before),
                    None => (0..i)
                        .find(|&earlier| ids.compare(earlier, i).is_eq())
                        .map(|earlier| self.n + earlier as u64),
                };
                if let Some(before) = before {
                    return Err(not_unique(&ids.shown(i), before, row));
                }
            }
        }
        self.seen = Some(seen);
        Ok(())
    }

    /// Shows all ids so far, with their rows, until one is what is looked for; its row.
    fn each(&mut self, mut is_it: impl FnMut(u64, Id<'_>) -> bool) -> Result<Option<u64>> {
        let (mut numbers, mut bytes) = (self.numbers.reader(), self.bytes.reader());
        let mut start = 0;
        for row in 0..self.n {
            let number = numbers.u64()?;
            let found = if self.are_strings {
                let text = bytes.take((number - start) as usize)?;
                start = number;
                // check_each has seen that it is UTF-8
                is_it(row, Id::Text(std::str::from_utf8(text).unwrap_or_default()))
            } else {
                is_it(row, Id::Number(number as i64))
            };
            if found {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Rows by ascending id, numbers of 8 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] where two rows have one id; [`crate::Error::Io`],
    /// [`crate::Error::Interrupted`].
    pub fn order(&mut self, control: &Control) -> Result<Column> {
        let (mut runs, starts) = self.sorted_runs(control)?;
        let mut cursors: Vec<Cursor> = starts
            .windows(2)
            .map(|two| Cursor::new(two[0], two[1], self.are_strings))
            .collect();
        let mut heap = BinaryHeap::new();
        for (run, cursor) in cursors.iter_mut().enumerate() {
            if let Some((key, row)) = cursor.next(&mut runs)? {
                heap.push(Reverse((key, row, run)));
            }
        }
        let mut order = Column::new(&self.place);
        let mut before: Option<(Key, u64)> = None;
        let mut done = 0u64;
        while let Some(Reverse((key, row, run))) = heap.pop() {
            if let Some((id, first)) = before.take().filter(|before| before.0 == key) {
                return Err(not_unique(&id.shown(), first.min(row), first.max(row)));
            }
            order.push(&row.to_le_bytes())?;
            if let Some((key, row)) = cursors[run].next(&mut runs)? {
                heap.push(Reverse((key, row, run)));
            }
            before = Some((key, row));
            done += 1;
            if done.is_multiple_of(1 << 16) {
                control.check()?;
            }
        }
        Ok(order)
    }

    /// Ids with their rows, sorted run by run, and where the runs start and the last ends.
    fn sorted_runs(&mut self, control: &Control) -> Result<(Column, Vec<u64>)> {
        let mut runs = Column::new(&self.place);
        let mut starts = vec![0];
        let mut numbers = self.numbers.reader();
        let mut bytes = self.bytes.reader();
        let (mut row, mut end) = (0, 0);
        while row < self.n {
            control.check()?;
            let first = row;
            let mut held = OwnedIds::none(self.are_strings);
            while row < self.n && held.len() < self.run_ids {
                let number = numbers.u64()?;
                match &mut held {
                    OwnedIds::Numbers(held) => held.push(number as i64),
                    OwnedIds::Strings(offsets, text) => {
                        text.extend_from_slice(bytes.take((number - end) as usize)?);
                        offsets.push(text.len() as u64);
                        end = number;
                        if text.len() > RUN_BYTES {
                            row += 1;
                            break;
                        }
                    }
                }
                row += 1;
            }
            for at in held.view().sorted() {
                runs.push(&(first + at).to_le_bytes())?;
                match held.get(at as usize) {
                    Id::Number(number) => runs.push(&number.to_le_bytes())?,
                    Id::Text(text) => {
                        runs.push(&(text.len() as u64).to_le_bytes())?;
                        runs.push(text.as_bytes())?;
                    }
                }
            }
            starts.push(runs.len());
        }
        Ok((runs, starts))
    }
}

/// An id as runs are merged by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(i64),
    Text(Vec<u8>),
}

impl Key {
    fn shown(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("{:?}", String::from_utf8_lossy(text)),
        }
    }
}

/// Reads a run.
struct Cursor {
    position: u64,
    end: u64,
    held: Vec<u8>,
    taken: usize,
    are_strings: bool,
}

impl Cursor {
    fn new(position: u64, end: u64, are_strings: bool) -> Self {
        Self {
            position,
            end,
            held: Vec::new(),
            taken: 0,
            are_strings,
        }
    }

    /// The next id with its row.
    fn next(&mut self, runs: &mut Column) -> Result<Option<(Key, u64)>> {
        if self.position == self.end && self.taken == self.held.len() {
            return Ok(None);
        }
        let row = self.u64(runs)?;
        let number = self.u64(runs)?;
        let key = if self.are_strings {
            Key::Text(self.take(runs, number as usize)?.to_vec())
        } else {
            Key::Number(number as i64)
        };
        Ok(Some((key, row)))
    }

    fn u64(&mut self, runs: &mut Column) -> Result<u64> {
        let bytes = self.take(runs, 8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn take(&mut self, runs: &mut Column, n: usize) -> Result<&[u8]> {
        if self.held.len() - self.taken < n {
            self.held.drain(..self.taken);
            self.taken = 0;
            let start = self.held.len();
            let left = (self.end - self.position) as usize;
            self.held.resize(start + left.min(n.max(MERGE_BYTES)), 0);
            let mut at = start;
            while at < self.held.len() {
                let got = runs.read_at(self.position, &mut self.held[at..])?;
                self.position += got as u64;
                at += got;
            }
        }
        let start = self.taken;
        self.taken += n;
        Ok(&self.held[start..self.taken])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SystemDisk;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn spool(are_strings: bool, run_ids: usize) -> (tempfile::TempDir, IdSpool) {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            disk: Arc::new(SystemDisk),
            target: folder.path().join("a"),
        };
        let mut spool = IdSpool::new(&place, are_strings);
        spool.run_ids = run_ids;
        (folder, spool)
    }

    proptest! {
        #[test]
        fn runs_merge_to_the_order_of_a_whole_sort(
            numbers in proptest::collection::vec(-500i64..500, 0..60),
            run_ids in 1usize..9,
            are_strings in any::<bool>(),
            batch in 1usize..9,
        ) {
            let (_folder, mut spool) = spool(are_strings, run_ids);
            let mut owned = OwnedIds::none(are_strings);
            for &number in &numbers {
                match &mut owned {
                    OwnedIds::Numbers(held) => held.push(number),
                    OwnedIds::Strings(offsets, bytes) => {
                        bytes.extend_from_slice(number.to_string().as_bytes());
                        offsets.push(bytes.len() as u64);
                    }
                }
            }
            let mut refused = None;
            for first in (0..numbers.len()).step_by(batch) {
                let mut part = OwnedIds::none(are_strings);
                (first..numbers.len().min(first + batch))
                    .for_each(|i| part.push(owned.view(), i));
                if let Err(error) = spool.push(part.view()) {
                    refused = Some(error.to_string());
                    break;
                }
            }
            let unique: std::collections::HashSet<_> = numbers.iter().collect();
            // so few are all held: what is given twice is found at once
            let expected = unique.len() < numbers.len() || !are_strings && numbers.contains(&-1);
            prop_assert_eq!(refused.is_some(), expected);
            if let Some(message) = refused {
                prop_assert!(message.contains("unique") || message.contains("-1"), "{}", message);
                return Ok(());
            }
            prop_assert_eq!(spool.ascend(), owned.view().ascend());
            let mut order = spool.order(&Control::new()).unwrap();
            let mut reader = order.reader();
            let got: Vec<u64> = numbers.iter().map(|_| reader.u64().unwrap()).collect();
            prop_assert_eq!(got, owned.view().sorted());
        }

        #[test]
        fn ids_that_were_not_held_are_found_to_be_given_twice_at_the_end(
            n in 1i64..40, twice in 0usize..40, run_ids in 1usize..9, are_strings in any::<bool>(),
        ) {
            let (_folder, mut spool) = spool(are_strings, run_ids);
            let numbers = (0..n).rev().chain([twice as i64 % n]);
            let mut ids = OwnedIds::none(are_strings);
            for number in numbers {
                match &mut ids {
                    OwnedIds::Numbers(held) => held.push(number),
                    OwnedIds::Strings(offsets, bytes) => {
                        bytes.extend_from_slice(number.to_string().as_bytes());
                        offsets.push(bytes.len() as u64);
                    }
                }
            }
            spool.seen = Some(Seen::forgetful());
            spool.push(ids.view()).unwrap();
            let error = spool.order(&Control::new()).err().unwrap().to_string();
            prop_assert!(error.contains("unique"), "{}", error);
        }
    }
}
