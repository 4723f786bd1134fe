//! Writing a file: beside its target, synced, then renamed, so that a reader and a crash see
//! the old file or the new one, never a part.
//!
//! What is claimed: after `write_file` returns, the new file survives the death of the process
//! and, as far as the disk honours fsync, a loss of power (data are synced before the rename,
//! the folder after it).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::header::{Dtype, Header, SectionHeader};
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

/// Writes a file of these sections. `header.sections` is filled in here.
///
/// The same header and sections give the same bytes.
///
/// # Errors
/// [`Error::Io`], after which no file is left behind and the target is as it was;
/// [`Error::Interrupted`], likewise.
pub fn write_file(
    path: &Path,
    mut header: Header,
    sections: &[SectionData<'_>],
    control: &Control,
) -> Result<()> {
    let (json, sections_start) = lay_out(&mut header, sections, control)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.is_dir() {
        // rename would say "is a directory" only after all was written
        return Err(Error::io(
            "write",
            path,
            std::io::Error::from(std::io::ErrorKind::IsADirectory),
        ));
    }
    let mut temporary = new_temporary(folder).map_err(|error| Error::io("write", path, error))?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    let written = (|| -> Result<()> {
        let io = |error| Error::io("write", path, error);
        out.write_all(&MAGIC).map_err(io)?;
        out.write_all(&VERSION.to_le_bytes()).map_err(io)?;
        out.write_all(&0u32.to_le_bytes()).map_err(io)?;
        out.write_all(&(json.len() as u64).to_le_bytes())
            .map_err(io)?;
        out.write_all(&xxh3_64(&json).to_le_bytes()).map_err(io)?;
        out.write_all(&json).map_err(io)?;
        let mut position = sections_start;
        for (placed, section) in header.sections.iter().zip(sections) {
            let gap = (placed.offset - position) as usize;
            out.write_all(&[0; ALIGNMENT as usize][..gap]).map_err(io)?;
            for chunk in section.bytes.chunks(CHUNK_BYTES) {
                control.check()?;
                out.write_all(chunk).map_err(io)?;
            }
            position = placed.offset + placed.length;
        }
        out.flush().map_err(io)
    })();
    drop(out);
    written?;
    temporary
        .as_file()
        .sync_all()
        .map_err(|error| Error::io("sync", path, error))?;
    control.check()?;
    temporary
        .persist(path)
        .map_err(|error| Error::io("replace", path, error.error))?;
    sync_folder(folder).map_err(|error| Error::io("sync the folder of", path, error))
}

/// Places the sections, hashes them and returns the header as JSON, with where it ends.
fn lay_out(
    header: &mut Header,
    sections: &[SectionData<'_>],
    control: &Control,
) -> Result<(Vec<u8>, u64)> {
    header.sections.clear();
    for section in sections {
        control.check()?;
        header.sections.push(SectionHeader {
            name: section.name.into(),
            dtype: section.dtype.name().into(),
            shape: section.shape.clone(),
            offset: 0,
            length: section.bytes.len() as u64,
            checksum: checksum_text(xxh3_64(section.bytes)),
            required: section.required,
            unit: section.unit,
        });
    }
    // offsets are digits in the header whose length they depend on: place until nothing moves;
    // offsets only grow with the header, and the header only with their digits, so it ends
    let mut json = Vec::new();
    loop {
        let length = json.len();
        let mut end = PREFIX_BYTES + length as u64;
        for section in &mut header.sections {
            section.offset = end.next_multiple_of(ALIGNMENT);
            end = section.offset + section.length;
        }
        json = serde_json::to_vec(&header).expect("a header is plain data");
        if json.len() == length {
            break;
        }
    }
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::argument(format!(
            "the header would take {} bytes, more than {MAX_HEADER_BYTES}",
            json.len()
        )));
    }
    let end = PREFIX_BYTES + json.len() as u64;
    Ok((json, end))
}

/// A checksum as the header holds it: JSON numbers are not exact above 2^53.
pub fn checksum_text(checksum: u64) -> String {
    format!("{checksum:016x}")
}

#[cfg(unix)]
fn new_temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // tempfile's default of 0600 would outlive the rename; the process's umask applies to this
    tempfile::Builder::new()
        .prefix(".sridx-")
        .suffix(".tmp")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

#[cfg(not(unix))]
fn new_temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".sridx-")
        .suffix(".tmp")
        .tempfile_in(folder)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(PathBuf::from(folder))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(()) // a folder cannot be opened as a file there
}
