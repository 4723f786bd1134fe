//! Bytes that are written once from front to back and then read so, however many: a buffer, and
//! behind it a file without a name that is gone with the process. Small columns never touch the
//! disk. Knows nothing of what the bytes mean.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use crate::format::disk::folder_of;
use crate::format::{Disk, DiskFile};
use crate::{Error, Result};

/// Bytes held before they go to the file.
const BUFFER_BYTES: usize = 1 << 20;

/// Where columns of one target go.
#[derive(Debug, Clone)]
pub struct Place {
    /// Through which disk.
    pub disk: Arc<dyn Disk>,
    /// The file that is being made; columns lie in its folder, where there is room for it.
    pub target: PathBuf,
}

impl Place {
    /// An error of the target.
    pub fn io(&self, action: &'static str, error: std::io::Error) -> Error {
        Error::io(action, &self.target, error)
    }
}

/// A column of bytes.
pub struct Column {
    place: Place,
    file: Option<Box<dyn DiskFile>>,
    buffer: Vec<u8>,
    in_file: u64,
}

impl Column {
    /// An empty column.
    pub fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            file: None,
            buffer: Vec::new(),
            in_file: 0,
        }
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.in_file + self.buffer.len() as u64
    }

    /// Appends.
    ///
    /// # Errors
    /// [`Error::Io`]; the column cannot be used after that.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(BUFFER_BYTES) {
            if self.buffer.len() + part.len() > BUFFER_BYTES {
                self.flush()?;
            }
            self.buffer.extend_from_slice(part);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let place = &self.place;
        if self.file.is_none() {
            let opened = place.disk.spool(folder_of(&place.target));
            self.file = Some(opened.map_err(|error| place.io("write", error))?);
        }
        let file = self.file.as_mut().expect("made above");
        // a reader may have moved it
        file.seek(SeekFrom::Start(self.in_file))
            .and_then(|_| file.write_all(&self.buffer))
            .map_err(|error| place.io("write", error))?;
        self.in_file += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Reads from the front.
    pub fn reader(&mut self) -> ColumnReader<'_> {
        ColumnReader {
            column: self,
            position: 0,
            held: Vec::new(),
            taken: 0,
        }
    }

    /// Reads into `out` from `position`, as much as there is, up to its length.
    pub fn read_at(&mut self, position: u64, out: &mut [u8]) -> Result<usize> {
        if position >= self.in_file {
            let start = ((position - self.in_file) as usize).min(self.buffer.len());
            let n = out.len().min(self.buffer.len() - start);
            out[..n].copy_from_slice(&self.buffer[start..start + n]);
            return Ok(n);
        }
        let wanted = out.len().min((self.in_file - position) as usize);
        let file = self.file.as_mut().expect("bytes are in the file");
        file.seek(SeekFrom::Start(position))
            .and_then(|_| file.read_exact(&mut out[..wanted]))
            .map_err(|error| self.place.io("read back", error))?;
        Ok(wanted)
    }
}

/// Reads a column from its front.
pub struct ColumnReader<'a> {
    column: &'a mut Column,
    position: u64,
    held: Vec<u8>,
    taken: usize,
}

impl ColumnReader<'_> {
    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// Where the column ends before.
    pub fn take(&mut self, n: usize) -> Result<&[u8]> {
        if self.held.len() - self.taken < n {
            self.held.drain(..self.taken);
            self.taken = 0;
            let mut end = self.held.len();
            let wanted = n.max(BUFFER_BYTES / 4);
            self.held.resize(wanted.max(end), 0);
            while end < n {
                let got = self
                    .column
                    .read_at(self.position, &mut self.held[end..wanted])?;
                assert!(got > 0, "a column is read beyond its end");
                self.position += got as u64;
                end += got;
            }
            self.held.truncate(end);
        }
        let start = self.taken;
        self.taken += n;
        Ok(&self.held[start..self.taken])
    }

    /// The next bytes, as many as are at hand; none at the end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn some(&mut self) -> Result<&[u8]> {
        if self.taken == self.held.len() {
            self.held.resize(BUFFER_BYTES, 0);
            let got = self.column.read_at(self.position, &mut self.held)?;
            self.position += got as u64;
            self.held.truncate(got);
            self.taken = 0;
        }
        let start = std::mem::replace(&mut self.taken, self.held.len());
        Ok(&self.held[start..])
    }

    /// The next number of 32 bits.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(
            self.take(4)?.try_into().expect("four bytes"),
        ))
    }

    /// The next number of 64 bits.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(
            self.take(8)?.try_into().expect("eight bytes"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SystemDisk;

    #[test]
    fn what_is_pushed_is_read_back_in_any_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            disk: Arc::new(SystemDisk),
            target: folder.path().join("a"),
        };
        for n in [
            0usize,
            1,
            BUFFER_BYTES - 1,
            BUFFER_BYTES,
            3 * BUFFER_BYTES + 5,
        ] {
            let bytes: Vec<u8> = (0..n).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut column = Column::new(&place);
            for part in bytes.chunks(65_537) {
                column.push(part).unwrap();
            }
            assert_eq!(column.len(), n as u64);
            for _ in 0..2 {
                let mut reader = column.reader();
                let mut got = reader.take(n.min(3)).unwrap().to_vec();
                while got.len() + 300_001 <= n {
                    got.extend_from_slice(reader.take(300_001).unwrap());
                }
                loop {
                    let some = reader.some().unwrap();
                    if some.is_empty() {
                        break;
                    }
                    got.extend_from_slice(some);
                }
                assert!(got == bytes);
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
