//! Every call that changes a disk, behind one trait, so that a test can make each of them fail
//! in turn. [`SystemDisk`] is the system itself.
//!
//! What each call promises is what its users build on: see [`Disk`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// An open file of a [`Disk`].
pub trait DiskFile: Read + Write + Seek + Send + Sync {
    /// Returns once data and length have reached the disk, as far as it tells the truth.
    ///
    /// # Errors
    /// What the system says; what has reached the disk is then unknown.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }
}

/// A file in memory.
impl DiskFile for io::Cursor<Vec<u8>> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.get_mut().resize(length, 0);
        Ok(())
    }
}

/// A file that is being made, and what it is called until it takes its place.
pub type Temporary = (Box<dyn DiskFile>, PathBuf);

/// The calls that change a disk.
#[allow(clippy::missing_errors_doc)] // each fails with what the system says
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// A file without a name, in this folder, gone when it is closed or the process dies.
    fn spool(&self, folder: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// A new file beside `target`, with the permissions that a new file gets; its name begins
    /// as [`temporary_prefix`] says, which is how leftovers are known.
    fn temporary(&self, target: &Path) -> io::Result<Temporary>;

    /// An existing file, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file the name of another, whose old file is no longer found by it. At once for
    /// whoever looks; on disk only after [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; that there was none is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns once the names in a folder have reached the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The folder that a file stands in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What the names of temporary files for `target` begin with.
pub fn temporary_prefix(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.sridx-")
}

/// What they end with.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// The disks of this system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn spool(&self, folder: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(tempfile::tempfile_in(folder)?))
    }

    fn temporary(&self, target: &Path) -> io::Result<Temporary> {
        let prefix = temporary_prefix(target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(TEMPORARY_SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile's default of 0600 would outlive the rename; the process's umask applies
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        // whoever asked removes it, through this trait, so that this can fail too
        let (file, path) = builder
            .tempfile_in(folder_of(target))?
            .keep()
            .map_err(|error| error.error)?;
        Ok((Box::new(file), path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(
            OpenOptions::new().read(true).write(true).open(path)?,
        ))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    #[cfg(unix)]
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    #[cfg(not(unix))]
    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(()) // a folder cannot be opened as a file there
    }
}
