//! From ids to the positions of their items.
//!
//! Ids that ascend, as positions do, are searched where they lie. Others are searched through
//! an order made once, when the first id is asked for: 4 bytes an item, and no more time on any
//! ids, however chosen, than sorting them takes (a hash table has ids that it is slow on).

use std::sync::OnceLock;

use rayon::prelude::*;

use crate::{Error, Result};

/// Ids that a task looks up: some 100 microseconds of work.
const IDS_A_TASK: usize = 1024;

/// The order of an index's ids, once it was needed.
#[derive(Debug, Clone, Default)]
pub(super) struct IdLookup {
    /// Positions by ascending id; `None` where the ids themselves ascend.
    order: OnceLock<Option<Vec<u32>>>,
}

impl IdLookup {
    /// The position of each id. `named` are the ids of the index, `None` where they are the
    /// positions of its `n` items; always the same for one lookup. Runs on the current rayon
    /// pool. `what` names the ids in an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first id that no item has, [`Error::OutOfMemory`].
    pub(super) fn positions(
        &self,
        named: Option<&[i64]>,
        n: usize,
        ids: &[i64],
        what: &str,
    ) -> Result<Vec<u64>> {
        let order = match named {
            Some(named) => self.order(named)?,
            None => None,
        };
        let find = |&id: &i64| -> Option<u64> {
            let Some(named) = named else {
                return u64::try_from(id).ok().filter(|&at| at < n as u64);
            };
            match order {
                None => named.binary_search(&id).ok().map(|at| at as u64),
                Some(order) => order
                    .binary_search_by_key(&id, |&position| named[position as usize])
                    .ok()
                    .map(|at| u64::from(order[at])),
            }
        };
        let mut positions = Vec::new();
        positions
            .try_reserve_exact(ids.len())
            .map_err(|_| Error::OutOfMemory {
                what: "positions of ids",
                bytes: ids.len().saturating_mul(size_of::<u64>()),
            })?;
        ids.par_iter()
            .with_min_len(IDS_A_TASK)
            .map(|id| find(id).unwrap_or(u64::MAX))
            .collect_into_vec(&mut positions);
        match positions.iter().position(|&position| position == u64::MAX) {
            None => Ok(positions),
            Some(at) => Err(Error::argument(format!(
                "{what} holds the id {}, which no item of the index has",
                ids[at]
            ))),
        }
    }

    fn order(&self, named: &[i64]) -> Result<Option<&[u32]>> {
        if self.order.get().is_none() {
            // two threads may make it at once: both make the same, one is kept
            let _ = self.order.set(order_of(named)?);
        }
        Ok(self.order.get().and_then(Option::as_deref))
    }
}

fn order_of(named: &[i64]) -> Result<Option<Vec<u32>>> {
    if named.is_sorted() {
        return Ok(None);
    }
    let n = u32::try_from(named.len()).map_err(|_| {
        Error::argument(format!(
            "{} ids that do not ascend cannot be looked up, at most {} can; select by a mask",
            named.len(),
            u32::MAX
        ))
    })?;
    let mut order = Vec::new();
    order
        .try_reserve_exact(named.len())
        .map_err(|_| Error::OutOfMemory {
            what: "the order of ids",
            bytes: named.len() * size_of::<u32>(),
        })?;
    order.extend(0..n);
    order.par_sort_unstable_by_key(|&position| (named[position as usize], position));
    Ok(Some(order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_are_found_where_they_stand_and_others_are_named(
            named in proptest::collection::hash_set(-50i64..50, 0..60),
            ascend in proptest::bool::ANY,
            asked in proptest::collection::vec(-50i64..50, 0..60),
        ) {
            let mut named: Vec<i64> = named.into_iter().collect();
            if ascend {
                named.sort_unstable();
            }
            let lookup = IdLookup::default();
            let expected: Vec<_> = asked
                .iter()
                .map(|id| named.iter().position(|other| other == id))
                .collect();
            for _ in 0..2 { // the second time with the order at hand
                let found = lookup.positions(Some(&named), named.len(), &asked, "filter");
                match expected.iter().position(Option::is_none) {
                    None => prop_assert_eq!(
                        found.unwrap(),
                        expected.iter().map(|at| at.unwrap() as u64).collect::<Vec<_>>()
                    ),
                    Some(at) => prop_assert_eq!(
                        found.unwrap_err().to_string(),
                        format!(
                            "filter holds the id {}, which no item of the index has",
                            asked[at]
                        )
                    ),
                }
            }
        }
    }

    #[test]
    fn without_ids_positions_are_ids() {
        let lookup = IdLookup::default();
        assert_eq!(
            lookup.positions(None, 3, &[2, 0, 2], "x").unwrap(),
            [2, 0, 2]
        );
        for id in [-1, 3, i64::MIN, i64::MAX] {
            lookup.positions(None, 3, &[0, id], "x").unwrap_err();
        }
    }
}
