//! What items are called: their positions, 64-bit numbers or strings; and how an id is found.
//!
//! Ids are looked up by binary search, in the ids themselves where they ascend, else in
//! `id_order`, the rows by ascending id. Both are read in place, so a look-up in a mapped file
//! reads O(log n) pages. Every access is safe for any content of the bytes.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::{Error, Result};

/// One id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id<'a> {
    /// A number; not -1, which marks missing results.
    Number(i64),
    /// A string.
    Text(&'a str),
}

impl std::fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Numbers of 32 or 64 bits, as offsets and orders are stored.
#[derive(Debug, Clone, Copy)]
pub enum Unsigned<'a> {
    /// Where all fit 32 bits.
    Narrow(&'a [u32]),
    /// Else.
    Wide(&'a [u64]),
}

impl Unsigned<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(numbers) => numbers.len(),
            Self::Wide(numbers) => numbers.len(),
        }
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `i`, or the largest there is where it does not fit memory.
    pub fn get(&self, i: usize) -> usize {
        match self {
            Self::Narrow(numbers) => numbers[i] as usize,
            Self::Wide(numbers) => usize::try_from(numbers[i]).unwrap_or(usize::MAX),
        }
    }
}

/// Strings, one after the other; string `i` is the bytes `offsets[i]..offsets[i + 1]`.
#[derive(Debug, Clone, Copy)]
pub struct Strings<'a> {
    offsets: Unsigned<'a>,
    bytes: &'a [u8],
}

impl<'a> Strings<'a> {
    /// Strings of these offsets, which are one more than the strings.
    ///
    /// # Panics
    /// Where there is no offset.
    pub fn new(offsets: Unsigned<'a>, bytes: &'a [u8]) -> Self {
        assert!(!offsets.is_empty());
        Self { offsets, bytes }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of string `i`; none where its offsets are damaged.
    pub fn bytes(&self, i: usize) -> &'a [u8] {
        let (start, end) = (self.offsets.get(i), self.offsets.get(i + 1));
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// String `i`; what is not UTF-8, as only a damaged file holds, is replaced.
    pub fn get(&self, i: usize) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes(i))
    }
}

/// The ids of all items.
#[derive(Debug, Clone, Copy)]
pub enum Ids<'a> {
    /// Item `i` is called `i`.
    Positions(usize),
    /// Numbers.
    Numbers(&'a [i64]),
    /// Strings.
    Strings(Strings<'a>),
}

/// Where the rows stand by ascending id.
#[derive(Debug, Clone, Copy)]
pub enum Order<'a> {
    /// As they are.
    Ascending,
    /// Row `order[i]` has the i-th id.
    Rows(Unsigned<'a>),
}

impl Ids<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Positions(n) => *n,
            Self::Numbers(numbers) => numbers.len(),
            Self::Strings(strings) => strings.len(),
        }
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where ids are strings.
    pub fn are_strings(&self) -> bool {
        matches!(self, Self::Strings(_))
    }

    /// The number that item `i` is called; its position where ids are strings.
    pub fn number(&self, i: usize) -> i64 {
        match self {
            Self::Numbers(numbers) => numbers[i],
            _ => i as i64,
        }
    }

    /// How the id of row `a` stands to that of row `b`.
    pub fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Self::Positions(_) => a.cmp(&b),
            Self::Numbers(numbers) => numbers[a].cmp(&numbers[b]),
            Self::Strings(strings) => strings.bytes(a).cmp(strings.bytes(b)),
        }
    }

    /// What the id of row `i` is called in a message.
    pub fn shown(&self, i: usize) -> String {
        match self {
            Self::Strings(strings) => format!("{:?}", strings.get(i)),
            _ => self.number(i).to_string(),
        }
    }

    /// True where each id is above the one before it.
    pub fn ascend(&self) -> bool {
        match self {
            Self::Positions(_) => true,
            Self::Numbers(numbers) => numbers.is_sorted_by(|a, b| a < b),
            Self::Strings(_) => (1..self.len()).all(|i| self.compare(i - 1, i) == Ordering::Less),
        }
    }

    /// Rows by ascending id.
    pub fn sorted(&self) -> Vec<u64> {
        let mut order: Vec<u64> = (0..self.len() as u64).collect();
        order.sort_unstable_by(|&a, &b| self.compare(a as usize, b as usize));
        order
    }

    /// The row of an id: O(log n).
    pub fn find(&self, id: Id<'_>, order: Order<'_>) -> Option<usize> {
        let n = self.len();
        let row_at = |i: usize| match order {
            Order::Ascending => i,
            // a damaged order may name a row that is not there; any row will do, since what is
            // found is compared with the id
            Order::Rows(rows) => rows.get(i).min(n - 1),
        };
        let stands = |row: usize| match (self, id) {
            (Self::Positions(_), Id::Number(number)) => (row as i64).cmp(&number),
            (Self::Numbers(numbers), Id::Number(number)) => numbers[row].cmp(&number),
            (Self::Strings(strings), Id::Text(text)) => strings.bytes(row).cmp(text.as_bytes()),
            // a name is no number, and a number no name
            (Self::Strings(_), Id::Number(_)) | (_, Id::Text(_)) => Ordering::Greater,
        };
        if let (Self::Positions(_), Id::Number(number)) = (self, id) {
            return usize::try_from(number).ok().filter(|&row| row < n);
        }
        let (mut low, mut high) = (0, n);
        while low < high {
            let middle = low + (high - low) / 2;
            match stands(row_at(middle)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(row_at(middle)),
                Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// Ids with memory of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnedIds {
    /// Numbers.
    Numbers(Vec<i64>),
    /// Strings: n + 1 offsets, and the bytes.
    Strings(Vec<u64>, Vec<u8>),
}

impl OwnedIds {
    /// No ids, of this kind.
    pub fn none(are_strings: bool) -> Self {
        if are_strings {
            Self::Strings(vec![0], Vec::new())
        } else {
            Self::Numbers(Vec::new())
        }
    }

    /// The same, borrowed.
    pub fn view(&self) -> Ids<'_> {
        match self {
            Self::Numbers(numbers) => Ids::Numbers(numbers),
            Self::Strings(offsets, bytes) => {
                Ids::Strings(Strings::new(Unsigned::Wide(offsets), bytes))
            }
        }
    }

    /// Takes one more: row `i` of `ids`, of the same kind.
    ///
    /// # Panics
    /// Where one is of strings and the other is not.
    pub fn push(&mut self, ids: Ids<'_>, i: usize) {
        match (self, ids) {
            (Self::Strings(offsets, bytes), Ids::Strings(strings)) => {
                bytes.extend_from_slice(strings.bytes(i));
                offsets.push(bytes.len() as u64);
            }
            (Self::Numbers(numbers), Ids::Numbers(_) | Ids::Positions(_)) => {
                numbers.push(ids.number(i));
            }
            _ => panic!("numbers and strings in one list of ids"),
        }
    }

    /// Lets all of them go.
    pub fn clear(&mut self) {
        match self {
            Self::Numbers(numbers) => numbers.clear(),
            Self::Strings(offsets, bytes) => {
                offsets.truncate(1);
                bytes.clear();
            }
        }
    }

    /// Id `i`.
    pub fn get(&self, i: usize) -> Id<'_> {
        match self {
            Self::Numbers(numbers) => Id::Number(numbers[i]),
            Self::Strings(offsets, bytes) => {
                let text = &bytes[offsets[i] as usize..offsets[i + 1] as usize];
                Id::Text(std::str::from_utf8(text).unwrap_or_default())
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Ids: one for each of `n` items, unique, and not -1, which pads results.
///
/// # Errors
/// [`Error::Argument`] with the id and the items that have it.
pub fn check_ids(ids: Ids<'_>, n: usize) -> Result<()> {
    if ids.len() != n {
        return Err(Error::argument(format!(
            "{} ids for {n} items; expected one for each",
            ids.len()
        )));
    }
    check_each(ids, 0)?;
    check_unique(ids, 0)
}

/// Ids of which none is given twice; `first` is the row of the first one.
///
/// # Errors
/// [`Error::Argument`] with the id and the items that have it.
pub fn check_unique(ids: Ids<'_>, first: u64) -> Result<()> {
    if ids.ascend() {
        return Ok(());
    }
    let order = ids.sorted();
    match order
        .windows(2)
        .find(|two| ids.compare(two[0] as usize, two[1] as usize) == Ordering::Equal)
    {
        Some(two) => Err(not_unique(
            &ids.shown(two[0] as usize),
            first + two[0].min(two[1]),
            first + two[0].max(two[1]),
        )),
        None => Ok(()),
    }
}

/// What each id must be by itself; `first` is the row of the first one.
///
/// # Errors
/// [`Error::Argument`] for -1, and for strings that are not UTF-8 or whose offsets are damaged.
pub fn check_each(ids: Ids<'_>, first: u64) -> Result<()> {
    match ids {
        Ids::Positions(_) => Ok(()),
        Ids::Numbers(numbers) => match numbers.iter().position(|&id| id == -1) {
            Some(at) => Err(Error::argument(format!(
                "item {} has the id -1, which marks missing results; use another",
                first + at as u64
            ))),
            None => Ok(()),
        },
        Ids::Strings(strings) => {
            let mut end = 0;
            for i in 0..strings.len() {
                let (from, to) = (strings.offsets.get(i), strings.offsets.get(i + 1));
                if from != end || to < from || to > strings.bytes.len() {
                    return Err(Error::argument(format!(
                        "id {} spans the bytes {from} to {to}, expected to start at {end} and end \
                         by {}",
                        first + i as u64,
                        strings.bytes.len()
                    )));
                }
                end = to;
                if std::str::from_utf8(strings.bytes(i)).is_err() {
                    return Err(Error::argument(format!(
                        "id {} is not UTF-8",
                        first + i as u64
                    )));
                }
            }
            if strings.offsets.get(strings.len()) != strings.bytes.len() {
                return Err(Error::argument(format!(
                    "ids end at byte {}, expected {}",
                    strings.offsets.get(strings.len()),
                    strings.bytes.len()
                )));
            }
            Ok(())
        }
    }
}

/// The error for an id that two items have.
pub fn not_unique(id: &str, first: u64, second: u64) -> Error {
    Error::argument(format!(
        "id {id} is given to items {first} and {second}; ids must be unique"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(texts: &[String]) -> OwnedIds {
        let mut ids = OwnedIds::none(true);
        let OwnedIds::Strings(offsets, bytes) = &mut ids else {
            unreachable!()
        };
        for text in texts {
            bytes.extend_from_slice(text.as_bytes());
            offsets.push(bytes.len() as u64);
        }
        ids
    }

    #[test]
    fn strings_with_damaged_offsets_read_as_empty_and_are_refused() {
        for offsets in [[0u64, 9, 2], [0, 2, 1], [1, 2, 2], [0, 1, u64::MAX]] {
            let ids = Ids::Strings(Strings::new(Unsigned::Wide(&offsets), b"ab"));
            for i in 0..2 {
                ids.shown(i);
            }
            assert!(check_each(ids, 0).is_err(), "{offsets:?}");
        }
        let not_text = Ids::Strings(Strings::new(Unsigned::Wide(&[0, 1]), b"\xff"));
        assert!(check_each(not_text, 0)
            .unwrap_err()
            .to_string()
            .contains("UTF-8"));
    }

    #[test]
    fn an_order_that_is_damaged_finds_nothing_wrong() {
        let ids = Ids::Numbers(&[5, 3, 9]);
        for rows in [[0u32, 0, 0], [7, 7, 7], [2, 1, 0]] {
            for id in [3, 5, 9, 4] {
                let found = ids.find(Id::Number(id), Order::Rows(Unsigned::Narrow(&rows)));
                assert!(found.is_none_or(|row| ids.number(row) == id));
            }
        }
    }

    proptest! {
        #[test]
        fn every_id_is_found_and_no_other(
            numbers in proptest::collection::hash_set(-50i64..50, 0..40),
            asked in -60i64..60,
        ) {
            let numbers: Vec<i64> = numbers.into_iter().collect();
            let texts: Vec<String> = numbers.iter().map(i64::to_string).collect();
            let owned = strings(&texts);
            for (ids, id) in [
                (Ids::Numbers(&numbers), Id::Number(asked)),
                (owned.view(), Id::Text(&asked.to_string())),
            ] {
                let order = ids.sorted();
                let found = ids.find(id, Order::Rows(Unsigned::Wide(&order)));
                prop_assert_eq!(found, numbers.iter().position(|&n| n == asked));
                if ids.ascend() {
                    prop_assert_eq!(ids.find(id, Order::Ascending), found);
                }
                prop_assert_eq!(check_ids(ids, numbers.len()).is_ok(), !numbers.contains(&-1)
                    || ids.are_strings());
            }
        }

        #[test]
        fn an_id_given_twice_is_refused(
            numbers in proptest::collection::vec(0i64..9, 0..12),
        ) {
            let unique: std::collections::HashSet<_> = numbers.iter().collect();
            let checked = check_ids(Ids::Numbers(&numbers), numbers.len());
            prop_assert_eq!(checked.is_ok(), unique.len() == numbers.len());
        }
    }
}
