//! Reading a file. Opening reads the prefix and the header and checks that every section lies
//! where it must: its cost does not grow with the rows. What the sections hold is read when it
//! is used; [`FilePart::verify`] reads all of it.
//!
//! A mapped file must not change while it is open. Writers that replace it by renaming, as
//! this crate's does, leave the open map as it was. Whoever truncates the file in place makes
//! a later read of it end in SIGBUS: that is the one thing that a map cannot guard against,
//! and `mapped = false` avoids it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;

use super::header::Header;
use super::writer::checksum_text;
use super::{Bytes, ALIGNMENT, MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, VERSION};
use crate::control::Control;
use crate::error::FormatProblem;
use crate::{Error, Result};

/// Bytes between two looks at the control.
const CHUNK_BYTES: usize = 4 << 20;

/// A file whose header has been read and checked.
#[derive(Debug, Clone)]
pub struct FilePart {
    header: Header,
    bytes: Bytes,
    path: Option<PathBuf>,
}

impl FilePart {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where it was read from, where it was a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The checksum of the header, which holds those of all sections: it names the content.
    pub fn identity(&self) -> u64 {
        let bytes = &self.bytes.as_slice()[24..32]; // `parse` has seen the whole prefix
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    /// The bytes of a section, where the file has it.
    pub fn section(&self, name: &str) -> Option<Bytes> {
        let section = self.header.section(name)?;
        // Header::check has shown that the section lies in the file
        Some(
            self.bytes
                .slice(section.offset as usize..(section.offset + section.length) as usize),
        )
    }

    /// Reads every byte: checksums of all sections, known or not, and the zeros between them.
    ///
    /// # Errors
    /// [`FormatProblem::SectionChecksum`], [`FormatProblem::Padding`], [`Error::Interrupted`].
    pub fn verify(&self, control: &Control) -> Result<()> {
        let bytes = self.bytes.as_slice();
        let header_length = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        let mut end = (PREFIX_BYTES + header_length) as usize;
        for section in &self.header.sections {
            let start = section.offset as usize;
            if bytes[end..start].iter().any(|&byte| byte != 0) {
                return Err(FormatProblem::Padding {
                    offset: section.offset,
                }
                .into());
            }
            end = start + section.length as usize;
            let mut hasher = xxhash_rust::xxh3::Xxh3::new();
            for chunk in bytes[start..end].chunks(CHUNK_BYTES) {
                control.check()?;
                hasher.update(chunk);
                control.advance(chunk.len() as u64);
            }
            let computed = hasher.digest();
            if checksum_text(computed) != section.checksum {
                return Err(FormatProblem::SectionChecksum {
                    section: section.name.clone(),
                    offset: section.offset,
                    stored: u64::from_str_radix(&section.checksum, 16)
                        .expect("Header::check has seen 16 hexadecimal digits"),
                    computed,
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Opens a file: maps it, or reads it whole.
///
/// # Errors
/// [`Error::Io`] where the system refuses, [`Error::Format`] where the file is not sound.
pub fn read_file(path: &Path, mapped: bool, control: &Control) -> Result<FilePart> {
    let open = |error| Error::io("open", path, error);
    let mut file = File::open(path).map_err(open)?;
    let metadata = file.metadata().map_err(open)?;
    if metadata.is_dir() {
        return Err(open(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    let length = usize::try_from(metadata.len())
        .map_err(|_| Error::argument(format!("{} does not fit memory", path.display())))?;
    // an empty file cannot be mapped, and a short one needs no map to be refused
    let bytes = if mapped && length as u64 >= PREFIX_BYTES {
        // SAFETY: the map is read-only and private to this process. That the file is not
        // changed or cut while it is mapped is the obligation of whoever shares it, stated in
        // this module's head and in the user's documentation; no type here relies on bytes
        // that stay the same between two reads for memory safety: every latent is looked up in
        // a padded table, and every offset is checked where it is used.
        Bytes::mapped(unsafe { Mmap::map(&file) }.map_err(open)?)
    } else {
        Bytes::filled(length, |out| {
            for chunk in out.chunks_mut(CHUNK_BYTES) {
                control.check()?;
                file.read_exact(chunk)
                    .map_err(|error| Error::io("read", path, error))?;
            }
            Ok(())
        })?
    };
    let mut file = parse(bytes).map_err(|error| error.in_file(path))?;
    file.path = Some(path.to_owned());
    Ok(file)
}

/// Reads and checks the header of a whole file's bytes.
///
/// # Errors
/// [`Error::Format`] with the first MUST of the specification that is broken.
pub fn parse(bytes: Bytes) -> Result<FilePart> {
    let all = bytes.as_slice();
    let file_bytes = all.len() as u64;
    if let Some(&magic) = all.first_chunk::<8>() {
        if magic != MAGIC {
            return Err(FormatProblem::Magic {
                got: magic,
                expected: MAGIC,
            }
            .into());
        }
    }
    let Some(prefix) = all.first_chunk::<{ PREFIX_BYTES as usize }>() else {
        return Err(FormatProblem::TooShort {
            got: file_bytes,
            expected: PREFIX_BYTES,
        }
        .into());
    };
    let word = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(prefix[at..at + 8].try_into().expect("eight"));
    let (version, reserved, header_length, stored) = (word(8), word(12), long(16), long(24));
    if version != VERSION {
        return Err(FormatProblem::Version {
            got: version,
            expected: VERSION,
        }
        .into());
    }
    if reserved != 0 {
        return Err(FormatProblem::Header {
            offset: 12,
            reason: format!("the reserved word is {reserved}, expected 0"),
        }
        .into());
    }
    let limit = MAX_HEADER_BYTES.min(file_bytes - PREFIX_BYTES);
    if header_length < 2 || header_length > limit {
        return Err(FormatProblem::HeaderLength {
            got: header_length,
            limit,
            offset: 16,
        }
        .into());
    }
    let end = PREFIX_BYTES + header_length;
    let json = &all[PREFIX_BYTES as usize..end as usize];
    let computed = xxh3_64(json);
    if computed != stored {
        return Err(FormatProblem::HeaderChecksum { stored, computed }.into());
    }
    let header: Header = serde_json::from_slice(json).map_err(|error| FormatProblem::Header {
        offset: PREFIX_BYTES,
        reason: error.to_string(),
    })?;
    header.check(end, file_bytes, PREFIX_BYTES)?;
    debug_assert!(header.sections.iter().all(|s| s.offset % ALIGNMENT == 0));
    Ok(FilePart {
        header,
        bytes,
        path: None,
    })
}
