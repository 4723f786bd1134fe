//! An index that changes: items are added, removed and updated, and searches, from any thread,
//! each see one moment of it.
//!
//! A change makes a new [`Snapshot`] and puts it in the place of the current one; rows that were
//! added before are copied at most as often as their number has doubled. [`LiveIndex::commit`] makes changes durable by appending them to
//! the journal of the file, [`LiveIndex::save`] by writing the file anew without what was
//! removed.
//!
//! Locks: `state` is held for a change, never while work that runs on several threads goes on
//! below it, since a thread that waits for such work may be given another change to do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::batch::Batch;
use super::ids::{check_ids, Id, Ids, OwnedIds};
use super::replay::{decode, encode, Change, Replay};
use super::snapshot::Snapshot;
use super::{merge, Index};
use crate::codes::CodesView;
use crate::control::Control;
use crate::error::FormatProblem;
use crate::format::journal::{self, JournalEnd};
use crate::format::{lock::WriteLock, Disk, SystemDisk};
use crate::{Error, Result};

/// How often a file is read again that was replaced while it was opened.
const OPENINGS: usize = 16;

/// An index that changes.
#[derive(Debug)]
pub struct LiveIndex {
    current: ArcSwap<Snapshot>,
    state: Mutex<State>,
    disk: Arc<dyn Disk>,
}

#[derive(Debug)]
struct State {
    file: Option<Behind>,
    /// Changes that are not in the file or its journal, where there is a file.
    pending: Vec<Change>,
}

/// The file that an index was opened from.
#[derive(Debug, Clone)]
struct Behind {
    path: PathBuf,
    mapped: bool,
    identity: u64,
    end: JournalEnd,
    torn_bytes: u64,
}

impl LiveIndex {
    /// An index in memory, without a file.
    pub fn new(index: Index) -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::new(Arc::new(index))),
            state: Mutex::new(State {
                file: None,
                pending: Vec::new(),
            }),
            disk: Arc::new(SystemDisk),
        }
    }

    /// Opens a file, with the changes in its journal.
    ///
    /// # Errors
    /// As [`Index::open`]; [`Error::Format`] where the journal is damaged.
    pub fn open(path: &Path, mapped: bool, control: &Control) -> Result<Self> {
        Self::open_on(Arc::new(SystemDisk), path, mapped, control)
    }

    /// The same, to be changed through a given disk.
    ///
    /// # Errors
    /// As [`LiveIndex::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        mapped: bool,
        control: &Control,
    ) -> Result<Self> {
        let (snapshot, file) = read(path, mapped, control)?;
        Ok(Self {
            current: ArcSwap::from_pointee(snapshot),
            state: Mutex::new(State {
                file: Some(file),
                pending: Vec::new(),
            }),
            disk,
        })
    }

    /// The index as it is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The index as it is now, for ever: one in memory, without a file.
    pub fn frozen(&self) -> Self {
        Self {
            current: ArcSwap::new(self.snapshot()),
            state: Mutex::new(State {
                file: None,
                pending: Vec::new(),
            }),
            disk: Arc::clone(&self.disk),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a panic in a change leaves the snapshot before it, which is whole
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True where there are changes that are in no file.
    pub fn is_pending(&self) -> bool {
        let state = self.state();
        match state.file {
            Some(_) => !state.pending.is_empty(),
            None => !self.current.load().is_base(),
        }
    }

    /// Bytes of the journal that count, and bytes after them of a commit that was cut short.
    pub fn journal_bytes(&self) -> (u64, u64) {
        let state = self.state();
        state
            .file
            .as_ref()
            .map_or((0, 0), |file| (file.end.bytes, file.torn_bytes))
    }

    /// Adds items, which searches see at once. Without ids they are called by the numbers after
    /// the largest, where the index has no ids of its own.
    ///
    /// # Errors
    /// [`Error::Argument`] where codes do not fit, a row does not fit the codebooks, or an id is
    /// there already: nothing is added then. [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn add(&self, codes: CodesView<'_>, ids: Option<Ids<'_>>, control: &Control) -> Result<()> {
        self.change(None, codes, ids, control)
    }

    /// Replaces the codes of items; they then stand after all others.
    ///
    /// # Errors
    /// As [`LiveIndex::add`]; [`Error::UnknownId`] where an id is not there.
    pub fn update(&self, codes: CodesView<'_>, ids: Ids<'_>, control: &Control) -> Result<()> {
        check_ids(ids, codes.len())?;
        let mut removed = OwnedIds::none(ids.are_strings());
        (0..ids.len()).for_each(|i| removed.push(ids, i));
        self.change(Some(removed), codes, Some(ids), control)
    }

    fn change(
        &self,
        removed: Option<OwnedIds>,
        codes: CodesView<'_>,
        ids: Option<Ids<'_>>,
        control: &Control,
    ) -> Result<()> {
        let base = self.current.load().shared_base();
        if codes.dim() != base.dim() {
            return Err(Error::argument(format!(
                "codes are over {} latents, the index has {}; encode them with the model that \
                 encoded the items",
                codes.dim(),
                base.dim()
            )));
        }
        if let Some(ids) = ids {
            check_ids(ids, codes.len())?;
        }
        // on several threads, so before the lock is taken
        let mut batch = Batch::pack(codes, &base.coding(), base.atoms(), ids, control)?;
        let mut state = self.state();
        let current = self.current.load_full();
        if current.base().coding() != base.coding() {
            return Err(Error::argument(
                "the index was reloaded with other codebooks while items were added; add them \
                 again",
            ));
        }
        if batch.n == 0 {
            return Ok(());
        }
        let mut next = match &removed {
            Some(ids) => without(&current, ids)?,
            None => Snapshot::clone(&current),
        };
        name(&mut batch, &mut next)?;
        next.push(&batch)?;
        let changes = removed.map(Change::Remove).into_iter();
        state.note(changes.chain([Change::Add(Arc::new(batch))]));
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Removes items, which no search finds from then on.
    ///
    /// # Errors
    /// [`Error::UnknownId`] where an id is not there, [`Error::Argument`] where it is given
    /// twice: nothing is removed then.
    pub fn remove(&self, ids: &OwnedIds) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        check_ids(ids.view(), ids.len())?;
        let mut state = self.state();
        let next = without(&self.current.load(), ids)?;
        state.note([Change::Remove(ids.clone())]);
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Makes the changes since the last commit durable: one frame of the file's journal, synced,
    /// so that all of them survive or none. Returns the bytes of the frame; 0 where there was no
    /// change.
    ///
    /// # Errors
    /// [`Error::Argument`] where the index has no file; [`Error::Locked`]; [`Error::Stale`] where
    /// another writer changed the file; [`Error::Io`]: the changes are still in memory then, and
    /// may be committed again.
    pub fn commit(&self) -> Result<u64> {
        let mut state = self.state();
        let Some(file) = state.file.clone() else {
            return Err(Error::argument(
                "this index has no file to commit to; save it, and open the file",
            ));
        };
        if state.pending.is_empty() {
            return Ok(0);
        }
        let _lock = WriteLock::take(&file.path)?;
        if journal::identity_of(&file.path)? != file.identity {
            return Err(Error::Stale { path: file.path });
        }
        let frame = encode(&state.pending);
        let end = journal::append(&*self.disk, &file.path, file.identity, file.end, &frame)?;
        state.file = Some(Behind {
            end,
            torn_bytes: 0,
            ..file
        });
        state.pending.clear();
        Ok(frame.len() as u64)
    }

    /// Writes the index to a file, without what was removed, and removes the file's journal. Onto
    /// the file that it was opened from, the index goes on from the new one. Where there were
    /// changes, postings and clusters of the base are made again of the rows that are left.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`], [`Error::Interrupted`]; the target is then as it was, or
    /// where only the last steps failed, whole and new.
    pub fn save(&self, path: &Path, control: &Control) -> Result<()> {
        let mut state = self.state();
        let current = self.current.load_full();
        if path.is_dir() {
            let error = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(Error::io("write", path, error));
        }
        let onto_itself = state
            .file
            .as_ref()
            .is_some_and(|file| file.path == absolute(path));
        if current.is_base() && !onto_itself {
            return current.base().save(path, control);
        }
        let lock = WriteLock::take(path)?;
        if current.is_base() {
            drop(lock); // Index::save takes it
            current.base().save(path, control)?;
        } else {
            merge::write(Arc::clone(&self.disk), &[current], path, control)?;
        }
        if let Some(file) = state.file.clone().filter(|_| onto_itself) {
            let (snapshot, file) = read(path, file.mapped, control)?;
            state.file = Some(file);
            state.pending.clear();
            self.current.store(Arc::new(snapshot));
        }
        Ok(())
    }

    /// Reads the file again where it, or its journal, was changed by another; true where it was.
    ///
    /// # Errors
    /// As [`LiveIndex::open`]; [`Error::Argument`] where there is no file, or there are changes
    /// that were not committed, unless `discard` lets them go.
    pub fn reload(&self, discard: bool, control: &Control) -> Result<bool> {
        let mut state = self.state();
        let Some(file) = state.file.clone() else {
            return Err(Error::argument("this index has no file to be read again"));
        };
        if !state.pending.is_empty() && !discard {
            return Err(Error::argument(
                "this index has changes that were not committed; commit them, or reload with \
                 discard=True",
            ));
        }
        let (snapshot, read) = read(&file.path, file.mapped, control)?;
        let is_new = (read.identity, read.end) != (file.identity, file.end);
        if is_new || !state.pending.is_empty() {
            self.current.store(Arc::new(snapshot));
        }
        state.pending.clear();
        state.file = Some(read);
        Ok(is_new)
    }

    /// Reads everything, as [`Index::verify`], and the journal.
    ///
    /// # Errors
    /// [`Error::Format`] with the first thing wrong, [`Error::Interrupted`].
    pub fn verify(&self, control: &Control) -> Result<()> {
        let current = self.snapshot();
        current.base().verify(control)?;
        current
            .added()
            .try_for_each(|added| added.verify(control))?;
        let file = self.state().file.clone();
        if let Some(file) = file.filter(|file| file.torn_bytes > 0) {
            let problem = FormatProblem::Journal {
                offset: file.end.bytes,
                reason: format!(
                    "{} bytes are no whole commit: one was cut short before it was acknowledged, \
                     or the last one is damaged; the next commit or save drops them",
                    file.torn_bytes
                ),
            };
            return Err(Error::from(problem).in_file(&journal::journal_path(&file.path)));
        }
        Ok(())
    }

    /// The file that it was opened from.
    pub fn path(&self) -> Option<PathBuf> {
        self.state().file.as_ref().map(|file| file.path.clone())
    }
}

impl State {
    fn note(&mut self, changes: impl IntoIterator<Item = Change>) {
        if self.file.is_some() {
            self.pending.extend(changes);
        }
    }
}

/// The snapshot without some items.
fn without(current: &Snapshot, ids: &OwnedIds) -> Result<Snapshot> {
    let mut next = current.clone();
    next.remove(current.find(ids)?)?;
    Ok(next)
}

/// Gives new items their ids, which must be free, and says what the next number is.
fn name(batch: &mut Batch, next: &mut Snapshot) -> Result<()> {
    let base = next.shared_base();
    let base = base.all_ids();
    if batch.ids.is_none() {
        if !matches!(base, Ids::Positions(_)) {
            return Err(Error::argument(
                "the items of this index have ids; pass ids= for those that are added",
            ));
        }
        let first = next.next_id;
        let last = first
            .checked_add(batch.n as i64)
            .ok_or_else(|| Error::argument("no numbers are left to call items by; pass ids="))?;
        batch.ids = Some(OwnedIds::Numbers((first..last).collect()));
    }
    let ids = batch.ids.as_ref().expect("given above");
    if ids.view().are_strings() != base.are_strings() {
        let kind = |are_strings| if are_strings { "strings" } else { "numbers" };
        return Err(Error::argument(format!(
            "ids are {}, those of this index are {}",
            kind(ids.view().are_strings()),
            kind(base.are_strings())
        )));
    }
    for i in 0..ids.len() {
        if next.position(ids.get(i)).is_some() {
            return Err(Error::argument(format!(
                "id {} is in the index already; update it, or remove it first",
                ids.get(i)
            )));
        }
        if let Id::Number(id) = ids.get(i) {
            next.next_id = next.next_id.max(id.saturating_add(1));
        }
    }
    Ok(())
}

/// What a path names now, wherever the process goes to later.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Reads a file and its journal, both of one moment.
fn read(path: &Path, mapped: bool, control: &Control) -> Result<(Snapshot, Behind)> {
    for _ in 0..OPENINGS {
        let base = Arc::new(Index::open(path, mapped, control)?);
        let identity = base.identity();
        let journal = journal::read_journal(path, identity)?;
        // The journal of a file that is replaced goes after the file: where it was not found,
        // or belongs to another, the file may have been replaced since it was opened.
        if journal.is_none() && journal::identity_of(path)? != identity {
            continue;
        }
        let mut file = Behind {
            path: absolute(path),
            mapped,
            identity,
            end: JournalEnd::NONE,
            torn_bytes: 0,
        };
        let Some(journal) = journal else {
            return Ok((Snapshot::new(base), file));
        };
        file.end = journal.end();
        file.torn_bytes = journal.torn_bytes();
        let snapshot = replayed(base, &journal)
            .map_err(|error| error.in_file(&journal::journal_path(path)))?;
        return Ok((snapshot, file));
    }
    let error = std::io::Error::other("it is replaced again and again");
    Err(Error::io("open", path, error))
}

/// The snapshot that the changes of a journal lead to.
///
/// # Errors
/// [`Error::Format`] where they are not changes of this index.
pub fn replayed(base: Arc<Index>, journal: &journal::Journal) -> Result<Snapshot> {
    let coding = base.coding();
    let mut replay = Replay::new(base);
    for (offset, frame) in journal.frames() {
        for change in decode(frame, offset, &coding)? {
            replay.apply(&change).map_err(|error| match error {
                Error::Argument(reason) => FormatProblem::Journal { offset, reason }.into(),
                other => other,
            })?;
        }
    }
    replay.finish()
}
