//! Whether an id was given before, in constant memory: tables of 64-bit fingerprints of the first
//! ids, and of the last ones. A stream that begins again gives the first ones twice, a batch that
//! is sent again the last ones. It says "perhaps", and whoever asks looks at the ids themselves.

use std::hash::{BuildHasher, RandomState};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ids::Id;

/// Fingerprints of a table: 2 MB, half full. There are three.
const MOST: usize = 1 << 17;
/// Places to begin with.
const FIRST_PLACES: usize = 1 << 10;

/// Fingerprints of ids.
pub struct Seen {
    /// The first ids.
    first: Table,
    /// The last ones since `before` was closed.
    last: Table,
    /// As many as a table holds before these.
    before: Table,
    most: usize,
    /// Of these tables alone, so that nobody can choose ids whose fingerprints meet.
    seed: u64,
}

impl Seen {
    /// None yet.
    pub fn new() -> Self {
        Self::of_at_most(MOST)
    }

    /// None yet, and room for so many of the first, and as many or twice as many of the last.
    fn of_at_most(most: usize) -> Self {
        Self {
            first: Table::new(),
            last: Table::new(),
            before: Table::new(),
            most,
            seed: RandomState::new().hash_one(0u8),
        }
    }

    /// One that holds nothing for long.
    #[cfg(test)]
    pub fn forgetful() -> Self {
        Self::of_at_most(0)
    }

    /// Whether this id may have been given before; from now on it was.
    pub fn meets(&mut self, id: Id<'_>) -> bool {
        let fingerprint = match id {
            Id::Number(number) => xxh3_64_with_seed(&number.to_le_bytes(), self.seed),
            Id::Text(text) => xxh3_64_with_seed(text.as_bytes(), self.seed),
        };
        let fingerprint = fingerprint.max(1); // 0 is an empty place
        if [&self.first, &self.last, &self.before]
            .iter()
            .any(|table| table.has(fingerprint))
        {
            return true;
        }
        if self.first.held < self.most {
            self.first.hold(fingerprint);
            return false;
        }
        if self.last.held >= self.most {
            self.before = std::mem::replace(&mut self.last, Table::new());
        }
        if self.most > 0 {
            self.last.hold(fingerprint);
        }
        false
    }
}

/// A table with open addresses.
struct Table {
    places: Vec<u64>,
    held: usize,
}

impl Table {
    fn new() -> Self {
        Self {
            places: vec![0; FIRST_PLACES],
            held: 0,
        }
    }

    /// Where a fingerprint is, or would go.
    fn place(&self, fingerprint: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut at = fingerprint as usize & mask;
        while self.places[at] != 0 && self.places[at] != fingerprint {
            at = (at + 1) & mask;
        }
        at
    }

    fn has(&self, fingerprint: u64) -> bool {
        self.places[self.place(fingerprint)] == fingerprint
    }

    fn hold(&mut self, fingerprint: u64) {
        let at = self.place(fingerprint);
        self.places[at] = fingerprint;
        self.held += 1;
        if 2 * self.held > self.places.len() {
            let places = vec![0; 2 * self.places.len()];
            for fingerprint in std::mem::replace(&mut self.places, places) {
                if fingerprint != 0 {
                    let at = self.place(fingerprint);
                    self.places[at] = fingerprint;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_are_met_again_and_little_else() {
        let mut seen = Seen::of_at_most(40_000);
        for number in 0..170_000 {
            assert!(!seen.meets(Id::Number(number * 7919)));
        }
        for table in [&seen.first, &seen.last, &seen.before] {
            assert!(table.held <= 40_000 && 2 * table.held <= table.places.len());
        }
        for number in (0..40_000).chain(130_000..170_000) {
            assert!(seen.meets(Id::Number(number * 7919)), "{number}");
        }
        assert!(!seen.meets(Id::Number(60_000 * 7919)), "it is forgotten");
        let mut texts = Seen::new();
        assert!(!texts.meets(Id::Text("")));
        assert!(!texts.meets(Id::Text("a")));
        assert!(texts.meets(Id::Text("")));
    }
}
