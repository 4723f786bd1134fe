//! Every way in which this crate fails, with what was got, what was expected and where.

use std::path::{Path, PathBuf};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument is not acceptable: its message names the argument, what it got and what
    /// was expected.
    #[error("{0}")]
    Argument(String),

    /// A file is not a sound index file.
    #[error("{}{problem}", shown(path))]
    Format {
        /// The file, where the bytes came from one.
        path: Option<PathBuf>,
        /// What is wrong with it.
        problem: FormatProblem,
    },

    /// The system refused to read or write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "write", "rename".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },

    /// Another writer is at work on the file.
    #[error(
        "another writer holds {}, so {} cannot be written now; wait for it, or end it (the lock \
         ends with its process)",
        lock.display(),
        path.display()
    )]
    Locked {
        /// The file to be written.
        path: PathBuf,
        /// Its lock file.
        lock: PathBuf,
    },

    /// The file is no longer what the index in memory was made from.
    #[error(
        "{} was changed by another writer since this index read it; reload it and make the \
         changes again",
        path.display()
    )]
    Stale {
        /// The file.
        path: PathBuf,
    },

    /// No item has this id.
    #[error("{0}")]
    UnknownId(String),

    /// Memory for a result could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },

    /// The work was cancelled through its [`Control`](crate::control::Control).
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::Argument`] with this message.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// The same error, with the file named where it is a format error without one.
    pub fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Format {
                path: None,
                problem,
            } => Self::Format {
                path: Some(file.to_owned()),
                problem,
            },
            other => other,
        }
    }
}

impl From<FormatProblem> for Error {
    fn from(problem: FormatProblem) -> Self {
        Self::Format {
            path: None,
            problem,
        }
    }
}

fn shown(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map_or_else(String::new, |path| format!("{}: ", path.display()))
}

/// What is wrong with the bytes of an index file. One variant for each MUST of the
/// specification in `format/README.md`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum FormatProblem {
    #[error("{got} bytes are too few for an index file, whose prefix alone has {expected}; the file is cut short or is something else")]
    TooShort { got: u64, expected: u64 },

    #[error(
        "starts with the bytes {got:02x?}, not with {expected:02x?}; this is not a .sridx file"
    )]
    Magic { got: [u8; 8], expected: [u8; 8] },

    #[error("format version {got}, but this release reads version {expected}; upgrade sparse_retrieval, or rebuild the index with this release")]
    Version { got: u32, expected: u32 },

    #[error(
        "header of {got} bytes at offset {offset}, expected 2 to {limit}; the file is damaged"
    )]
    HeaderLength { got: u64, limit: u64, offset: u64 },

    #[error("header checksum is {computed:016x}, the prefix says {stored:016x}; the file is damaged, restore a copy or rebuild it")]
    HeaderChecksum { stored: u64, computed: u64 },

    #[error("header at offset {offset} is not as the specification says: {reason}")]
    Header { offset: u64, reason: String },

    #[error("section `{section}` spans bytes {offset} to {end}, but the file has {file} bytes; the file is cut short")]
    SectionPastEnd {
        section: String,
        offset: u64,
        end: u64,
        file: u64,
    },

    #[error("section `{section}` starts at byte {got}, expected {expected}, the next multiple of {alignment} after what precedes it")]
    SectionOffset {
        section: String,
        got: u64,
        expected: u64,
        alignment: u64,
    },

    #[error("the file has {got} bytes, but its last section ends at {expected}; it has trailing bytes or is not the file that was written")]
    FileLength { got: u64, expected: u64 },

    #[error("section `{section}` is {got}, expected {expected}")]
    SectionShape {
        section: String,
        got: String,
        expected: String,
    },

    #[error(
        "section `{section}` is required but unknown to this release; upgrade sparse_retrieval"
    )]
    UnknownSection { section: String },

    #[error("section `{section}` is missing")]
    MissingSection { section: String },

    #[error("section `{section}` appears twice")]
    DuplicateSection { section: String },

    #[error("section `{section}` at byte {offset}: checksum {computed:016x}, header says {stored:016x}; the file is damaged, restore a copy or rebuild it")]
    SectionChecksum {
        section: String,
        offset: u64,
        stored: u64,
        computed: u64,
    },

    #[error("padding before byte {offset} is not zero")]
    Padding { offset: u64 },

    #[error("journal at byte {offset}: {reason}; commits from there on are lost: restore a copy, or move the journal away to go on without it")]
    Journal { offset: u64, reason: String },

    #[error("section `{section}`, row {row}: {reason}")]
    Content {
        section: String,
        row: u64,
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_error_names_the_file_once_it_is_known() {
        let error = Error::from(FormatProblem::MissingSection {
            section: "rows".into(),
        });
        assert_eq!(error.to_string(), "section `rows` is missing");
        let error = error.in_file(Path::new("a.sridx"));
        assert_eq!(error.to_string(), "a.sridx: section `rows` is missing");
    }
}
