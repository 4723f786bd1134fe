//! Searching one moment of an index: each part by itself, and the best of all.

use std::cmp::Ordering;

use super::part::Part;
use super::snapshot::Snapshot;
use crate::control::Control;
use crate::search::{Bitmap, Exclusions, Hit, Queries, Request, Selection};
use crate::Result;

/// Look-ups that take as long as it takes to hand work to other threads and to be told of its end
/// (some 60 microseconds, Zen 3), and a little more, since they would share it.
const FEW_LOOK_UPS: usize = 1 << 16;
/// Those of a call that has one thread anyway: less than half a millisecond, since a call that
/// stays on its thread waits for no other and looks for no signal.
const FEW_OF_ONE_THREAD: usize = 1 << 18;

impl Snapshot {
    /// True where there is one query, and it is answered so soon that it is not worth handing to
    /// other threads, of which the call asks for so many. An estimate: of a damaged file it may be
    /// far off.
    pub fn is_short(
        &self,
        queries: &Queries<'_>,
        request: &Request<'_>,
        threads: Option<usize>,
    ) -> bool {
        if queries.len() != 1 {
            return false;
        }
        let most = match threads {
            Some(1) => FEW_OF_ONE_THREAD,
            _ => FEW_LOOK_UPS,
        };
        let mut sum = 0usize;
        self.parts().iter().enumerate().all(|(number, part)| {
            let of_part = of_part(request, number);
            sum = sum.saturating_add(
                part.index()
                    .look_ups(queries, &of_part)
                    .unwrap_or(usize::MAX),
            );
            sum <= most
        })
    }

    /// The best `k` items of each query that the request's selection admits, as positions, best
    /// first, ties by lower position: exactly those of an index that is built of the items that
    /// are left. Runs on the current rayon pool.
    ///
    /// The bitmap of the selection counts items, as [`Snapshot::bitmap`] does; its exclusions are
    /// positions.
    ///
    /// # Errors
    /// As [`super::Index::search`].
    pub fn search(
        &self,
        queries: &Queries<'_>,
        request: &Request<'_>,
        control: &Control,
    ) -> Result<Vec<Vec<Hit>>> {
        if self.is_base() {
            return self.base().search(queries, request, control);
        }
        request.selection.check(self.len(), queries.len())?;
        let mut found: Vec<Vec<Hit>> = Vec::new();
        let (mut first, mut items) = (0, 0);
        for (number, part) in self.parts().iter().enumerate() {
            let of_part = of_part(request, number);
            let mut more = search_part(part, first, items, queries, &of_part, control)?;
            for hit in more.iter_mut().flatten() {
                hit.position += first;
            }
            found = if number == 0 {
                more
            } else {
                let pairs = found.iter().zip(&more);
                pairs
                    .map(|(old, new)| merged(old, new, request.k))
                    .collect()
            };
            first += part.index().len() as u64;
            items += part.len() as u64;
        }
        self.base().add_mean(&mut found, queries, request)?;
        Ok(found)
    }
}

/// What is asked of a part: additions have no clusters, and are few.
fn of_part<'a>(request: &Request<'a>, number: usize) -> Request<'a> {
    Request {
        approximate: request.approximate.filter(|_| number == 0),
        ..*request
    }
}

/// The best rows of a part, whose first row has the position `first`, and whose first item is
/// the `items`-th.
fn search_part(
    part: &Part,
    first: u64,
    items: u64,
    queries: &Queries<'_>,
    request: &Request<'_>,
    control: &Control,
) -> Result<Vec<Vec<Hit>>> {
    let selection = request.selection;
    let n = part.index().len();
    let exclusions = excluded(selection, queries.len(), first..first + n as u64)?;
    let chosen = selection.allowed.map(|allowed| {
        let numbered = (items..).zip(part.living());
        let rows = numbered.filter(|&(item, _)| allowed.contains(item));
        Bitmap::from_positions(n, rows.map(|(_, row)| row as u64))
    });
    let chosen = chosen.transpose()?;
    let of_part = Request {
        mode: request.mode,
        k: request.k,
        k_row: request.k_row,
        selection: Selection {
            allowed: match (&chosen, part.n_removed()) {
                (Some(chosen), _) => Some(chosen),
                (None, 0) => None,
                (None, _) => Some(part.living_rows()?),
            },
            exclusions: exclusions.as_ref(),
        },
        approximate: request.approximate,
        kernels: request.kernels,
    };
    part.index().search_rows(queries, &of_part, control)
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
