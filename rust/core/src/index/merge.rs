//! Snapshots written as one file, row by row as they are stored: an index with its changes, or
//! many files joined. Nothing is packed again, so a row scores in the new file as it did before;
//! memory does not grow with the rows, but for postings and clusters, which are made in memory
//! where there were some.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::{check_alike, Batch};
use super::column::Place;
use super::derived::Derived;
use super::ids::Ids;
use super::snapshot::Snapshot;
use super::spool::{Frame, Spool};
use super::{Index, LiveIndex};
use crate::control::Control;
use crate::format::{self, lock::WriteLock, section, Bytes, Disk, SystemDisk};
use crate::{Error, Result};

/// Rows that are copied at a time.
const ROWS_A_BATCH: usize = 1 << 14;

/// Joins index files into one: first all items of the first, then those of the second, and so
/// on, with the changes in their journals. Returns the number of items.
///
/// Items keep their ids, which must differ. Where no file has ids, items are called by their
/// position in the new file. Postings and clusters are made where one of the files has some.
///
/// # Errors
/// [`Error::Argument`] where files differ in latents, metric, modes, dictionary, codebooks or
/// kind of ids, or an id is in two of them; what opening a file fails with; [`Error::Locked`],
/// [`Error::Io`] where the new one cannot be written, which leaves what was there.
pub fn merge(paths: &[PathBuf], out: &Path, control: &Control) -> Result<u64> {
    let parts = paths
        .iter()
        .map(|path| Ok(LiveIndex::open(path, true, control)?.snapshot()))
        .collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.first() else {
        return Err(Error::argument("no files to merge; expected at least one"));
    };
    for (part, path) in parts.iter().zip(paths).skip(1) {
        check_alike(first.base(), part.base(), &path.display().to_string())?;
    }
    if out.is_dir() {
        let error = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Error::io("write", out, error));
    }
    let _lock = WriteLock::take(out)?;
    write(Arc::new(SystemDisk), &parts, out, control)
}

/// Writes snapshots as one file. The caller holds the lock of the path, and has seen that they
/// are alike.
pub(super) fn write(
    disk: Arc<dyn Disk>,
    parts: &[Arc<Snapshot>],
    path: &Path,
    control: &Control,
) -> Result<u64> {
    let place = Place {
        disk: Arc::clone(&disk),
        target: path.to_owned(),
    };
    let spool = spooled(parts, place, control)?;
    let n = spool.len();
    let derived = Derived::of(parts);
    if derived.is_none() {
        spool.finish(frame(parts), control)?;
        return Ok(n);
    }
    // all rows must be there before postings and clusters can be made of them
    let beside = spool.finish_beside(frame(parts), control)?;
    let written = Index::open(&beside, true, control).and_then(|plain| {
        let whole = derived.given_to(&plain, control)?;
        whole.write(&*disk, path, control)
    });
    let _ = disk.remove(&beside); // else the next writer of this path does
    written.map(|()| n)
}

/// Snapshots as one index in memory: what opening the file would give that [`write()`] makes.
///
/// # Errors
/// [`Error::Io`] where there is no room for what is spilled, [`Error::OutOfMemory`],
/// [`Error::Interrupted`].
pub(super) fn in_memory(parts: &[Arc<Snapshot>], control: &Control) -> Result<Index> {
    let target = std::env::temp_dir().join("sparse-retrieval");
    let place = Place {
        disk: Arc::new(SystemDisk),
        target: target.clone(),
    };
    let spool = spooled(parts, place, control)?;
    let mut file = std::io::Cursor::new(Vec::new());
    spool.finish_into(&mut file, frame(parts), control)?;
    let plain = Index::from_file(format::parse(Bytes::copy_of(file.get_ref())?)?)?;
    drop(file);
    Derived::of(parts).given_to(&plain, control)
}

/// All rows of snapshots.
fn spooled(parts: &[Arc<Snapshot>], place: Place, control: &Control) -> Result<Spool> {
    let first = parts.first().expect("at least one part").base();
    let mut spool = Spool::new(first.coding(), place);
    // where nobody has ids, and none of the positions moved, there is nothing to name
    let with_ids = !parts.iter().all(|part| {
        let are_positions = matches!(part.base().all_ids(), Ids::Positions(_));
        are_positions && (part.is_base() || keeps_positions(part))
    });
    let ids = parts.iter().map(|part| part.base().all_ids());
    if let Some(named) = ids
        .into_iter()
        .find(|ids| !matches!(ids, Ids::Positions(_)))
    {
        spool.announce_ids(named.are_strings());
    }
    for part in parts {
        for part in part.parts() {
            copy(part.index(), part.living(), with_ids, &mut spool, control)?;
        }
    }
    Ok(spool)
}

/// True where items are called 0, 1, 2 and so on after all changes.
fn keeps_positions(part: &Snapshot) -> bool {
    let mut next = 0..;
    let mut is_next = |id| next.next() == Some(id);
    let mut parts = part.parts().iter();
    part.n_removed() == 0
        && parts.all(|part| {
            let ids = part.index().all_ids();
            part.living().all(|row| is_next(ids.number(row)))
        })
}

fn copy(
    index: &Index,
    rows: impl Iterator<Item = usize>,
    with_ids: bool,
    spool: &mut Spool,
    control: &Control,
) -> Result<()> {
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        control.check()?;
        let some: Vec<usize> = rows.by_ref().take(ROWS_A_BATCH).collect();
        let mut batch = Batch::copied(index, some.iter().copied(), with_ids);
        if !with_ids {
            batch.ids = None;
        }
        spool.push(&batch)?;
        control.advance(batch.n as u64);
        index.release(some[0]..some[some.len() - 1]);
    }
    Ok(())
}

/// What the files say beside their rows, as the first says it; the mean cosines are those of all.
fn frame(parts: &[Arc<Snapshot>]) -> Frame {
    let first = parts[0].base();
    let mut header = first.header().clone();
    header.writer = Index::PROGRAM.into();
    let mean = |of: &dyn Fn(&Index) -> Option<f64>| {
        let n: usize = parts.iter().map(|part| part.base().len()).sum();
        let sum = parts.iter().try_fold(0.0, |sum, part| {
            Some(sum + of(part.base())? * part.base().len() as f64)
        })?;
        Some(sum / n.max(1) as f64)
    };
    if parts.len() > 1 {
        header.cosines.reconstruction = mean(&|index| index.cosines().reconstruction);
        header.cosines.quantisation = mean(&|index| index.cosines().quantisation);
    }
    let fixed = [
        section::LEVELS,
        section::DICTIONARY,
        section::MEAN,
        section::METADATA,
    ];
    Frame {
        unit_references: first
            .coding()
            .scales
            .iter()
            .map(|name| first.scale_reference(name))
            .collect(),
        header,
        fixed: fixed.iter().filter_map(|name| first.entry(name)).collect(),
    }
}
