//! Rows of an index, of which some are no more: what a snapshot is made of.

use std::sync::{Arc, OnceLock};

use super::batch::Batch;
use super::Index;
use crate::search::Bitmap;
use crate::Result;

/// Rows of an index that are no more.
#[derive(Debug, Clone, Default)]
struct Dead {
    words: Arc<Vec<u64>>,
    count: usize,
}

impl Dead {
    fn count(&self) -> usize {
        self.count
    }

    fn contains(&self, row: usize) -> bool {
        self.words
            .get(row / 64)
            .is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// How many of them the set bits of `mask` name, of the 64 rows of a word.
    fn removed_in(&self, word: usize, mask: u64) -> usize {
        let word = self.words.get(word).copied().unwrap_or(0);
        (word & mask).count_ones() as usize
    }

    /// These and others; of an index of `n` rows.
    fn with(&self, rows: &[usize], n: usize) -> Self {
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

/// An index, less the rows that were removed from it.
#[derive(Debug, Clone)]
pub struct Part {
    index: Arc<Index>,
    dead: Dead,
    /// The rows that are left, once it was needed; shared by all snapshots that have this part.
    living: Arc<OnceLock<Bitmap>>,
}

impl Part {
    /// All rows of an index.
    pub fn new(index: Arc<Index>) -> Self {
        Self {
            index,
            dead: Dead::default(),
            living: Arc::default(),
        }
    }

    /// The index, removed rows and all.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// How many rows are left.
    pub fn len(&self) -> usize {
        self.index.len() - self.dead.count()
    }

    /// How many rows were removed.
    pub fn n_removed(&self) -> usize {
        self.dead.count()
    }

    /// Whether a row is left.
    pub fn has(&self, row: usize) -> bool {
        !self.dead.contains(row)
    }

    /// The rows that are left.
    pub fn living(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.index.len()).filter(|&row| self.has(row))
    }

    /// Where ascending rows that are left stand among those.
    pub fn ranks<'a>(&'a self, rows: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        let (mut word, mut before) = (0, 0);
        rows.iter().map(move |&row| {
            while word < row / 64 {
                before += self.dead.removed_in(word, u64::MAX);
                word += 1;
            }
            row - before - self.dead.removed_in(word, (1 << (row % 64)) - 1)
        })
    }

    /// The rows that are left as a bitmap.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn living_rows(&self) -> Result<&Bitmap> {
        if self.living.get().is_none() {
            let n = self.index.len();
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

    /// The same without some of its rows.
    pub fn without(&self, rows: &[usize]) -> Self {
        if rows.is_empty() {
            return self.clone();
        }
        Self {
            index: Arc::clone(&self.index),
            dead: self.dead.with(rows, self.index.len()),
            living: Arc::default(),
        }
    }

    /// The rows that are left, with their ids, as they are packed.
    pub fn copied(&self) -> Batch {
        Batch::copied(&self.index, self.living(), true)
    }
}
