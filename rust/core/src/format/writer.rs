//! Writing a file: beside its target, synced, then renamed, so that a reader and a crash see
//! the old file or the new one, never a part.
//!
//! What is claimed: after [`write_file`] returns, the new file survives the death of the process
//! and, as far as the disk honours fsync, a loss of power (data are synced before the rename,
//! the folder after it). A process that is killed may leave a temporary file beside the target,
//! which the next writer of that target removes.
//!
//! Sections are written one after the other in a single pass that hashes them on the way; the
//! header, whose length does not depend on the hashes, is written last.

use std::io::{self, SeekFrom, Write};
use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use super::disk::{folder_of, temporary_prefix, Disk, DiskFile, SystemDisk, TEMPORARY_SUFFIX};
use super::header::{Dtype, Header, SectionHeader};
use super::journal::{journal_path, remove_journal};
use super::lock::WriteLock;
use super::{ALIGNMENT, MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, VERSION};
use crate::control::Control;
use crate::{Error, Result};

/// Bytes between two looks at the control: some milliseconds of writing.
const CHUNK_BYTES: usize = 4 << 20;

/// A section to be written.
#[derive(Debug, Clone)]
pub struct SectionData<'a> {
    /// Its name.
    pub name: &'static str,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Numbers along each axis.
    pub shape: Vec<u64>,
    /// A reader that does not know it must refuse the file.
    pub required: bool,
    /// What a number of an f16 section of scales is multiplied by.
    pub unit: Option<f64>,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Gives the bytes of a section, in order and exactly as many as announced.
pub type Stream<'a> = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + 'a>;

/// A section whose bytes need not be in memory: its entry of the header (offset and checksum
/// are filled in when it is written), and what gives its bytes.
pub struct StreamedSection<'a> {
    /// What the header says of it.
    pub entry: SectionHeader,
    /// Its bytes.
    pub stream: Stream<'a>,
}

/// Writes a file of these sections, under the lock of its path. `header.sections` is filled in
/// here.
///
/// The same header and sections give the same bytes.
///
/// # Errors
/// [`Error::Locked`], [`Error::Io`], [`Error::Interrupted`]: the target is then as it was, or,
/// where only the sync of the folder failed, the new file.
pub fn write_file(
    path: &Path,
    header: Header,
    sections: &[SectionData<'_>],
    control: &Control,
) -> Result<()> {
    refuse_folder(path)?;
    let _lock = WriteLock::take(path)?;
    let sections = streamed(path, sections, control);
    write_streamed(&SystemDisk, path, header, sections, control)
}

/// Sections in memory as streams.
pub fn streamed<'a>(
    path: &'a Path,
    sections: &'a [SectionData<'_>],
    control: &'a Control,
) -> Vec<StreamedSection<'a>> {
    sections
        .iter()
        .map(|section| StreamedSection {
            entry: SectionHeader {
                name: section.name.into(),
                dtype: section.dtype.name().into(),
                shape: section.shape.clone(),
                offset: 0,
                length: section.bytes.len() as u64,
                checksum: String::new(),
                required: section.required,
                unit: section.unit,
            },
            stream: Box::new(|out: &mut dyn Write| {
                for chunk in section.bytes.chunks(CHUNK_BYTES) {
                    control.check()?;
                    out.write_all(chunk)
                        .map_err(|error| Error::io("write", path, error))?;
                }
                Ok(())
            }),
        })
        .collect()
}

/// Writes a file of sections that are streamed. The caller holds the lock of the path.
///
/// # Errors
/// As [`write_file`], and what the streams fail with.
pub fn write_streamed(
    disk: &dyn Disk,
    path: &Path,
    header: Header,
    sections: Vec<StreamedSection<'_>>,
    control: &Control,
) -> Result<()> {
    replacing(disk, path, |file| {
        write_into(file, path, header, sections, control)
    })?;
    // after the rename: a crash in between leaves a journal that belongs to the old file alone
    remove_journal(disk, path)
}

/// Writes sections that are streamed into a file that is empty; errors name `path`.
///
/// # Errors
/// [`Error::Io`], [`Error::Interrupted`], and what the streams fail with.
pub fn write_into(
    file: &mut dyn DiskFile,
    path: &Path,
    mut header: Header,
    sections: Vec<StreamedSection<'_>>,
    control: &Control,
) -> Result<()> {
    let (entries, streams): (Vec<_>, Vec<_>) = sections
        .into_iter()
        .map(|section| (section.entry, section.stream))
        .unzip();
    header.sections = entries;
    let sections_start = lay_out(&mut header)?;
    write_sections(file, path, &mut header, streams, sections_start, control)
}

/// Makes a file beside `path` with `write`, syncs it and gives it the name `path`.
///
/// # Errors
/// As [`write_file`].
pub fn replacing(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn DiskFile) -> Result<()>,
) -> Result<()> {
    // rename would say "is a directory" only after all was written
    refuse_folder(path)?;
    remove_leftovers(disk, path);
    let (mut file, temporary) = disk
        .temporary(path)
        .map_err(|error| Error::io("write", path, error))?;
    let replaced = write(&mut *file).and_then(|()| {
        file.sync()
            .map_err(|error| Error::io("sync", path, error))?;
        disk.rename(&temporary, path)
            .map_err(|error| Error::io("replace", path, error))
    });
    if replaced.is_err() {
        let _ = disk.remove(&temporary); // else the next writer of this path does
    }
    replaced?;
    disk.sync_folder(folder_of(path))
        .map_err(|error| Error::io("sync the folder of", path, error))
}

fn refuse_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        let error = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(Error::io("write", path, error));
    }
    Ok(())
}

/// Removes temporary files that writers of `path` and of its journal left when they were killed.
/// The lock of the path is held, so no living writer owns one.
fn remove_leftovers(disk: &dyn Disk, path: &Path) {
    let prefixes = [path.to_owned(), journal_path(path)].map(|path| temporary_prefix(&path));
    let Ok(entries) = std::fs::read_dir(folder_of(path)) else {
        return; // what follows says why
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = prefixes.iter().any(|prefix| name.starts_with(prefix));
        if is_ours && name.ends_with(TEMPORARY_SUFFIX) {
            let _ = disk.remove(&entry.path()); // one that stays is harmless
        }
    }
}

fn write_sections(
    file: &mut dyn DiskFile,
    path: &Path,
    header: &mut Header,
    streams: Vec<Stream<'_>>,
    sections_start: u64,
    control: &Control,
) -> Result<()> {
    let io = |error| Error::io("write", path, error);
    file.seek(SeekFrom::Start(sections_start)).map_err(io)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, &mut *file);
    let mut position = sections_start;
    for (entry, stream) in header.sections.iter_mut().zip(streams) {
        control.check()?;
        let gap = (entry.offset - position) as usize;
        out.write_all(&[0; ALIGNMENT as usize][..gap]).map_err(io)?;
        let mut hashed = Hashed {
            out: &mut out,
            hasher: Xxh3::new(),
            written: 0,
        };
        stream(&mut hashed)?;
        assert_eq!(hashed.written, entry.length, "section `{}`", entry.name);
        entry.checksum = checksum_text(hashed.hasher.digest());
        position = entry.offset + entry.length;
    }
    out.flush().map_err(io)?;
    drop(out);
    let json = serde_json::to_vec(header).expect("a header is plain data");
    assert_eq!(PREFIX_BYTES + json.len() as u64, sections_start);
    let mut start = Vec::with_capacity(sections_start as usize);
    start.extend_from_slice(&MAGIC);
    start.extend_from_slice(&VERSION.to_le_bytes());
    start.extend_from_slice(&0u32.to_le_bytes());
    start.extend_from_slice(&(json.len() as u64).to_le_bytes());
    start.extend_from_slice(&xxh3_64(&json).to_le_bytes());
    start.extend_from_slice(&json);
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.write_all(&start).map_err(io)?;
    file.flush().map_err(io)?;
    control.check()
}

/// Hashes what the writer below has taken, and no more.
struct Hashed<'a> {
    out: &'a mut dyn Write,
    hasher: Xxh3,
    written: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.hasher.update(&bytes[..taken]);
        self.written += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Places the sections and returns where the header ends.
fn lay_out(header: &mut Header) -> Result<u64> {
    for section in &mut header.sections {
        section.checksum = checksum_text(0); // as long as any
    }
    // offsets are digits in the header whose length they depend on: place until nothing moves;
    // offsets only grow with the header, and the header only with their digits, so it ends
    let mut length = 0;
    loop {
        let mut end = PREFIX_BYTES + length;
        for section in &mut header.sections {
            section.offset = end.next_multiple_of(ALIGNMENT);
            end = section.offset + section.length;
        }
        let json = serde_json::to_vec(&header).expect("a header is plain data");
        if json.len() as u64 == length {
            break;
        }
        length = json.len() as u64;
    }
    if length > MAX_HEADER_BYTES {
        return Err(Error::argument(format!(
            "the header would take {length} bytes, more than {MAX_HEADER_BYTES}"
        )));
    }
    Ok(PREFIX_BYTES + length)
}

/// A checksum as the header holds it: JSON numbers are not exact above 2^53.
pub fn checksum_text(checksum: u64) -> String {
    format!("{checksum:016x}")
}
