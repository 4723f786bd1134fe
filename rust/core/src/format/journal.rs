//! The journal `NAME.journal` beside an index file: changes that were made durable without
//! writing the file anew. `README.md` has its bytes.
//!
//! A journal names the file that it belongs to by the checksum of that file's header, which
//! covers all sections: beside any other file it counts for nothing. It is made whole by
//! renaming, and grows by frames, one a commit, each synced before the commit returns. Checksums
//! of frames are chained, so that none can be taken for another. What was cut short at the end
//! was never acknowledged and is passed over; anything else that is not as it was written is
//! damage, and refused.
//!
//! Knows nothing of what frames hold.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::disk::{folder_of, Disk};
use super::lock::beside;
use super::writer::replacing;
use super::{MAGIC, PREFIX_BYTES, VERSION};
use crate::error::FormatProblem;
use crate::{Error, Result};

/// The first bytes of a journal.
pub const JOURNAL_MAGIC: [u8; 8] = *b"\x89SRJL\r\n\x1a";

/// The version that this release writes and reads.
pub const JOURNAL_VERSION: u32 = 1;

/// Bytes of the journal's header, and of the header of a frame.
pub const JOURNAL_HEADER_BYTES: usize = 32;

/// The journal of an index file.
pub fn journal_path(path: &Path) -> PathBuf {
    beside(path, ".journal")
}

/// The checksum of the header of an index file: what a journal names it by.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] where it is no index file.
pub fn identity_of(path: &Path) -> Result<u64> {
    let mut prefix = [0u8; PREFIX_BYTES as usize];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut prefix))
        .map_err(|error| Error::io("open", path, error))?;
    let magic = *prefix.first_chunk::<8>().expect("eight bytes");
    if magic != MAGIC {
        let problem = FormatProblem::Magic {
            got: magic,
            expected: MAGIC,
        };
        return Err(Error::from(problem).in_file(path));
    }
    debug_assert_eq!(word(&prefix, 8) as u32, VERSION);
    Ok(word(&prefix, 24))
}

/// How far a journal goes: all that is needed to append to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalEnd {
    /// Bytes of the header and of all whole frames; 0 where there is no journal.
    pub bytes: u64,
    /// The checksum that the next frame is chained to.
    pub chain: u64,
    /// Frames so far.
    pub frames: u64,
    /// Where the last frame starts, or 0.
    pub last_frame: u64,
}

impl JournalEnd {
    /// No journal.
    pub const NONE: Self = Self {
        bytes: 0,
        chain: 0,
        frames: 0,
        last_frame: 0,
    };
}

/// A journal that was read.
#[derive(Debug)]
pub struct Journal {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    end: JournalEnd,
}

impl Journal {
    /// What the frames hold, in order.
    pub fn frames(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.frames
            .iter()
            .map(|frame| (frame.start as u64, &self.bytes[frame.clone()]))
    }

    /// How far it goes.
    pub fn end(&self) -> JournalEnd {
        self.end
    }

    /// Bytes after the last whole frame: of a commit that was cut short, and never acknowledged.
    pub fn torn_bytes(&self) -> u64 {
        self.bytes.len() as u64 - self.end.bytes
    }
}

/// Reads the journal of `path`; none where there is none for the file of this identity.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] where it is damaged.
pub fn read_journal(path: &Path, identity: u64) -> Result<Option<Journal>> {
    let journal_path = journal_path(path);
    let bytes = match std::fs::read(&journal_path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", &journal_path, error)),
    };
    parse_journal(bytes, identity).map_err(|problem| Error::from(problem).in_file(&journal_path))
}

/// The frames of a whole journal's bytes.
///
/// # Errors
/// [`FormatProblem::Journal`] where it is damaged.
pub fn parse_journal(
    bytes: Vec<u8>,
    identity: u64,
) -> std::result::Result<Option<Journal>, FormatProblem> {
    let damaged = |offset: usize, reason: String| FormatProblem::Journal {
        offset: offset as u64,
        reason,
    };
    let Some(header) = bytes.first_chunk::<JOURNAL_HEADER_BYTES>() else {
        // it was made whole by renaming
        let reason = format!(
            "{} bytes, expected {JOURNAL_HEADER_BYTES} at least",
            bytes.len()
        );
        return Err(damaged(0, reason));
    };
    let checksum = xxh3_64(&header[..24]);
    if header[..8] != JOURNAL_MAGIC || word(header, 24) != checksum {
        return Err(damaged(0, "its header is not as it was written".into()));
    }
    let version = word(header, 8);
    if version != u64::from(JOURNAL_VERSION) {
        return Err(damaged(
            8,
            format!("version {version}, expected {JOURNAL_VERSION}"),
        ));
    }
    if word(header, 16) != identity {
        return Ok(None);
    }
    let mut frames = Vec::new();
    let mut end = JournalEnd {
        bytes: JOURNAL_HEADER_BYTES as u64,
        chain: checksum,
        frames: 0,
        last_frame: 0,
    };
    loop {
        let start = end.bytes as usize;
        let rest = &bytes[start..];
        let Some(header) = rest.first_chunk::<JOURNAL_HEADER_BYTES>() else {
            break; // nothing, or a header that was cut short
        };
        let (length, number, payload) = (word(header, 0), word(header, 8), word(header, 16));
        if word(header, 24) != xxh3_64_with_seed(&header[..24], end.chain) {
            // after a loss of power a file may be long enough, but hold no more than zeros
            if rest.iter().all(|&byte| byte == 0) {
                break;
            }
            return Err(damaged(start, "the header of a frame is damaged".into()));
        }
        if number != end.frames {
            return Err(damaged(
                start,
                format!("frame {number}, expected {}", end.frames),
            ));
        }
        let body = &rest[JOURNAL_HEADER_BYTES..];
        let Some(body) = usize::try_from(length).ok().and_then(|n| body.get(..n)) else {
            break; // cut short
        };
        let after = start + JOURNAL_HEADER_BYTES + body.len();
        if xxh3_64_with_seed(body, end.chain) != payload {
            if after == bytes.len() {
                break; // the last one may not have reached the disk whole
            }
            return Err(damaged(start, "a frame is damaged".into()));
        }
        frames.push(after - body.len()..after);
        end = JournalEnd {
            bytes: after as u64,
            chain: payload,
            frames: end.frames + 1,
            last_frame: start as u64,
        };
    }
    Ok(Some(Journal { bytes, frames, end }))
}

/// Appends a frame, durably, and returns the new end. The caller holds the lock of `path`.
///
/// # Errors
/// [`Error::Stale`] where the journal does not end where `end` says: another writer has been
/// there. [`Error::Io`], after which the journal ends where it did, with bytes after it that
/// count for nothing.
pub fn append(
    disk: &dyn Disk,
    path: &Path,
    identity: u64,
    end: JournalEnd,
    payload: &[u8],
) -> Result<JournalEnd> {
    let journal_path = journal_path(path);
    let io = |error| Error::io("append to", &journal_path, error);
    let stale = || Error::Stale {
        path: path.to_owned(),
    };
    let end = if end == JournalEnd::NONE {
        if read_journal(path, identity)?.is_some_and(|found| found.end().frames > 0) {
            return Err(stale());
        }
        create(disk, &journal_path, identity)?
    } else {
        end
    };
    let mut file = disk.open(&journal_path).map_err(io)?;
    let length = file.seek(SeekFrom::End(0)).map_err(io)?;
    if length < end.bytes || !ends_so(&mut *file, end, length).map_err(io)? {
        return Err(stale());
    }
    file.set_len(end.bytes).map_err(io)?;
    file.seek(SeekFrom::Start(end.bytes)).map_err(io)?;
    let checksum = xxh3_64_with_seed(payload, end.chain);
    let mut frame = Vec::with_capacity(JOURNAL_HEADER_BYTES + payload.len());
    for number in [payload.len() as u64, end.frames, checksum] {
        frame.extend_from_slice(&number.to_le_bytes());
    }
    let header_checksum = xxh3_64_with_seed(&frame, end.chain);
    frame.extend_from_slice(&header_checksum.to_le_bytes());
    frame.extend_from_slice(payload);
    let appended = file
        .write_all(&frame)
        .and_then(|()| file.flush())
        .and_then(|()| file.sync());
    if let Err(error) = appended {
        // The frame may be there in part, or whole but not known to be on disk: it was not
        // acknowledged, so it must not count when the journal is read next. If cutting it off
        // fails too, a whole one may still be found; the error says that nothing is known.
        let _ = file.set_len(end.bytes).and_then(|()| file.sync());
        return Err(io(error));
    }
    Ok(JournalEnd {
        bytes: end.bytes + frame.len() as u64,
        chain: checksum,
        frames: end.frames + 1,
        last_frame: end.bytes,
    })
}

/// Whether the journal still is the one that ends so: its last frame is there, and no whole frame
/// after it.
fn ends_so(file: &mut dyn super::DiskFile, end: JournalEnd, length: u64) -> std::io::Result<bool> {
    let mut header = [0u8; JOURNAL_HEADER_BYTES];
    let chain_at = if end.frames > 0 { 16 } else { 24 };
    file.seek(SeekFrom::Start(end.last_frame))?;
    file.read_exact(&mut header)?;
    if word(&header, chain_at) != end.chain {
        return Ok(false);
    }
    if length - end.bytes < JOURNAL_HEADER_BYTES as u64 {
        return Ok(true);
    }
    file.seek(SeekFrom::Start(end.bytes))?;
    file.read_exact(&mut header)?;
    let is_frame = word(&header, 24) == xxh3_64_with_seed(&header[..24], end.chain);
    let is_whole = is_frame && word(&header, 0) <= length - end.bytes - header.len() as u64;
    Ok(!is_whole)
}

/// Makes an empty journal.
fn create(disk: &dyn Disk, journal_path: &Path, identity: u64) -> Result<JournalEnd> {
    let mut header = JOURNAL_MAGIC.to_vec();
    header.extend_from_slice(&u64::from(JOURNAL_VERSION).to_le_bytes());
    header.extend_from_slice(&identity.to_le_bytes());
    let checksum = xxh3_64(&header);
    header.extend_from_slice(&checksum.to_le_bytes());
    replacing(disk, journal_path, |file| {
        file.write_all(&header)
            .map_err(|error| Error::io("write", journal_path, error))
    })?;
    Ok(JournalEnd {
        bytes: header.len() as u64,
        chain: checksum,
        frames: 0,
        last_frame: 0,
    })
}

/// Removes the journal of a file that was just replaced: it counts for nothing any more.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_journal(disk: &dyn Disk, path: &Path) -> Result<()> {
    let journal_path = journal_path(path);
    if !journal_path.exists() {
        return Ok(());
    }
    disk.remove(&journal_path)
        .and_then(|()| disk.sync_folder(folder_of(path)))
        .map_err(|error| Error::io("remove", &journal_path, error))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SystemDisk;

    fn journal_of(payloads: &[&[u8]]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sridx");
        let mut end = JournalEnd::NONE;
        for payload in payloads {
            end = append(&SystemDisk, &path, 7, end, payload).unwrap();
        }
        let journal = read_journal(&path, 7).unwrap().unwrap();
        assert_eq!(journal.end(), end);
        std::fs::read(journal_path(&path)).unwrap()
    }

    fn frames(bytes: Vec<u8>) -> std::result::Result<Vec<Vec<u8>>, FormatProblem> {
        let journal = parse_journal(bytes, 7)?.expect("of this file");
        Ok(journal.frames().map(|frame| frame.1.to_vec()).collect())
    }

    #[test]
    fn a_journal_gives_back_its_frames_and_belongs_to_one_file() {
        let bytes = journal_of(&[b"one", b"", b"three"]);
        let expected: Vec<Vec<u8>> = vec![b"one".to_vec(), vec![], b"three".to_vec()];
        assert_eq!(frames(bytes.clone()).unwrap(), expected);
        assert!(parse_journal(bytes, 8).unwrap().is_none());
    }

    #[test]
    fn cut_anywhere_it_gives_back_the_frames_before_the_cut() {
        let payloads: [&[u8]; 3] = [b"one", b"two two", b"three"];
        let bytes = journal_of(&payloads);
        for length in 0..bytes.len() {
            if length < JOURNAL_HEADER_BYTES {
                assert!(frames(bytes[..length].to_vec()).is_err());
                continue;
            }
            let mut end = JOURNAL_HEADER_BYTES;
            let whole: Vec<_> = payloads
                .iter()
                .take_while(|payload| {
                    end += JOURNAL_HEADER_BYTES + payload.len();
                    end <= length
                })
                .map(|payload| payload.to_vec())
                .collect();
            assert_eq!(frames(bytes[..length].to_vec()).unwrap(), whole, "{length}");
            // zeros instead of what is missing, as a file system may leave after a loss of power
            let mut zeroed = bytes[..length].to_vec();
            zeroed.resize(bytes.len(), 0);
            match frames(zeroed) {
                Ok(found) => assert!(payloads
                    .iter()
                    .map(|p| p.to_vec())
                    .take(found.len())
                    .eq(found)),
                Err(problem) => assert!(matches!(problem, FormatProblem::Journal { .. })),
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_or_is_in_the_last_frame_which_is_then_passed_over() {
        let bytes = journal_of(&[b"one", b"two"]);
        let last = JOURNAL_HEADER_BYTES + JOURNAL_HEADER_BYTES + 3;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << bit;
                match frames(broken.clone()) {
                    Err(_) => {}
                    Ok(found) => {
                        assert!(at >= last + JOURNAL_HEADER_BYTES, "byte {at}");
                        assert_eq!(found, [b"one".to_vec()]);
                        let journal = parse_journal(broken, 7).unwrap().unwrap();
                        assert!(journal.torn_bytes() > 0);
                    }
                }
            }
        }
    }

    #[test]
    fn a_writer_that_missed_a_commit_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sridx");
        let one = append(&SystemDisk, &path, 7, JournalEnd::NONE, b"one").unwrap();
        let two = append(&SystemDisk, &path, 7, one, b"two").unwrap();
        for old in [JournalEnd::NONE, one] {
            let error = append(&SystemDisk, &path, 7, old, b"late").unwrap_err();
            assert!(matches!(error, Error::Stale { .. }), "{error}");
        }
        // what a killed writer left in part is cut off
        let mut torn = std::fs::read(journal_path(&path)).unwrap();
        torn.extend_from_slice(b"half a frame, longer than the header of one");
        std::fs::write(journal_path(&path), &torn).unwrap();
        let three = append(&SystemDisk, &path, 7, two, b"three").unwrap();
        assert_eq!(three.frames, 3);
        let journal = read_journal(&path, 7).unwrap().unwrap();
        assert_eq!((journal.end(), journal.torn_bytes()), (three, 0));
        remove_journal(&SystemDisk, &path).unwrap();
        assert!(read_journal(&path, 7).unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
