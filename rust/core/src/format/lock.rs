//! One writer at a time: a lock on `NAME.lock` beside the file, held by the system for as long
//! as the process that took it lives. A lock file that a killed process left behind is taken
//! over by the next one. Readers take no lock: they never see a file that is being written.
//!
//! The lock binds programs that ask for it, on file systems that have locks; where there are
//! none (some network and user-space ones), nothing keeps two writers apart, and the last to
//! rename wins, whole.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The right to write a file, given back when it is dropped.
#[derive(Debug)]
pub struct WriteLock {
    lock: Option<(File, PathBuf)>,
}

/// The lock file of `path`.
pub fn lock_path(path: &Path) -> PathBuf {
    beside(path, ".lock")
}

/// `path` with `suffix` appended to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl WriteLock {
    /// Takes the lock, or fails at once where another holds it.
    ///
    /// # Errors
    /// [`Error::Locked`] where another writer, of this process or another, is at work;
    /// [`Error::Io`] where the lock file cannot be made.
    pub fn take(path: &Path) -> Result<Self> {
        let lock_path = lock_path(path);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&lock_path)
                .map_err(|error| Error::io("write", path, error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked {
                        path: path.to_owned(),
                        lock: lock_path,
                    })
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(Self { lock: None })
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
            }
            // whoever held it may have removed the file between the two calls: the lock is then
            // on a file that nobody else will find
            if is_same_file(&file, &lock_path) {
                return Ok(Self {
                    lock: Some((file, lock_path)),
                });
            }
        }
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.lock {
            // removed while it is held, so that nobody can hold the file that goes; one that
            // stays is harmless
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_file(_file: &File, path: &Path) -> bool {
    path.exists() // a file that is open cannot be removed there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sridx");
        let first = WriteLock::take(&path).unwrap();
        let refused = WriteLock::take(&path).unwrap_err();
        assert!(matches!(refused, Error::Locked { .. }));
        assert!(refused.to_string().contains("a.sridx.lock"), "{refused}");
        drop(first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(WriteLock::take(&path).unwrap());
    }

    #[test]
    fn a_lock_file_left_by_a_dead_writer_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sridx");
        std::fs::write(lock_path(&path), b"").unwrap();
        drop(WriteLock::take(&path).unwrap());
        assert!(!lock_path(&path).exists());
    }
}
