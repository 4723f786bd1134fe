//! Bytes that stay where they are: owned and aligned, or mapped from a file, shared by all
//! that read a part of them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::Mmap;

use crate::memory::OwnedBytes;
use crate::Result;

#[derive(Debug)]
enum Storage {
    Owned(OwnedBytes),
    Plain(Vec<u8>),
    Mapped(Mapping),
}

/// A mapped file, and how many read it in its order now.
#[derive(Debug)]
struct Mapping {
    map: Mmap,
    in_order: AtomicUsize,
}

impl Mapping {
    /// Advises the system as the number of readers says. A process that is forked from a thread's
    /// side may count that thread's search for ever: it then reads ahead too much, no more.
    #[cfg(unix)]
    fn advise(&self, range: &Range<usize>) {
        loop {
            let is_read = self.in_order.load(Ordering::SeqCst) > 0;
            let advice = if is_read {
                memmap2::Advice::Sequential
            } else {
                memmap2::Advice::Normal
            };
            // where it is not taken, reading is slower
            let _ = self.map.advise_range(advice, range.start, range.len());
            // another thread's advice may have come before this one and be the newer all the same
            if is_read == (self.in_order.load(Ordering::SeqCst) > 0) {
                return;
            }
        }
    }

    #[cfg(not(unix))]
    fn advise(&self, _range: &Range<usize>) {}
}

/// Mapped bytes that are read in their order as long as this lives.
#[derive(Debug)]
pub struct InOrder(Bytes);

impl Drop for InOrder {
    fn drop(&mut self) {
        if let Storage::Mapped(mapping) = &*self.0.storage {
            if mapping.in_order.fetch_sub(1, Ordering::SeqCst) == 1 {
                mapping.advise(&self.0.range);
            }
        }
    }
}

impl Storage {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Plain(bytes) => bytes,
            Self::Mapped(mapping) => &mapping.map,
        }
    }
}

impl From<OwnedBytes> for Bytes {
    fn from(bytes: OwnedBytes) -> Self {
        let range = 0..bytes.len();
        Self {
            storage: Arc::new(Storage::Owned(bytes)),
            range,
        }
    }
}

/// A part of owned or mapped bytes. Cloning and slicing share the storage.
#[derive(Debug, Clone)]
pub struct Bytes {
    storage: Arc<Storage>,
    range: Range<usize>,
}

impl Bytes {
    /// `length` zeroed bytes, aligned to 64, and a chance to write them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what `fill` fails with.
    pub fn filled(length: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut bytes = OwnedBytes::zeroed(length, "a section")?;
        fill(&mut bytes)?;
        Ok(Self::from(bytes))
    }

    /// A copy of numbers, little-endian as this crate's targets are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy_of<T: NoUninit>(numbers: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        Self::filled(bytes.len(), |out| {
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Bytes taken over as they are, without a copy; only numbers of one byte may be read
    /// from them, since they have no alignment.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self {
            storage: Arc::new(Storage::Plain(bytes)),
            range,
        }
    }

    /// All bytes of a mapped file.
    pub fn mapped(map: Mmap) -> Self {
        let range = 0..map.len();
        Self {
            storage: Arc::new(Storage::Mapped(Mapping {
                map,
                in_order: AtomicUsize::new(0),
            })),
            range,
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.storage.as_slice()[self.range.clone()]
    }

    /// A part of them, sharing the storage.
    ///
    /// # Panics
    /// Where `range` leaves these bytes.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.range.len());
        Self {
            storage: Arc::clone(&self.storage),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }

    /// The bytes as numbers.
    ///
    /// # Panics
    /// Where they are not aligned for `T` or not a whole number of `T`. Sections are made or
    /// checked to be both before anything is read.
    pub fn numbers<T: AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(self.as_slice())
    }

    /// Tells the system that mapped bytes are read in their order, so that it reads ahead of it,
    /// for as long as what is returned lives: a page that is read alone would bring megabytes with
    /// it. `None` where the bytes are no file's.
    ///
    /// Readers are counted for the whole mapping, of which one part alone may be read so.
    pub fn read_in_order(&self) -> Option<InOrder> {
        match &*self.storage {
            Storage::Mapped(mapping) if !self.range.is_empty() => {
                if mapping.in_order.fetch_add(1, Ordering::SeqCst) == 0 {
                    mapping.advise(&self.range);
                }
                Some(InOrder(self.clone()))
            }
            _ => None,
        }
    }

    /// Tells the system that mapped bytes will not be read again soon, so that work which passes
    /// over a large file once does not fill memory with it. They may be read again all the same.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Storage::Mapped(Mapping { map, .. }) = &*self.storage {
            // whole pages inside the range; memmap2 rounds the start down by itself, which would
            // only cost reading a page again
            let (start, end) = (self.range.start + range.start, self.range.start + range.end);
            if range.start < range.end && end <= map.len() {
                // SAFETY: the map is a read-only map of a file (Storage::Mapped is made by
                // Bytes::mapped alone, from `Mmap`). MADV_DONTNEED drops its clean pages, and the
                // next access reads the same bytes from the file again, so that no reference
                // into the map changes its meaning.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        start,
                        end - start,
                    )
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// True where the bytes are a file's pages and not memory of their own.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.storage, Storage::Mapped(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn bytes_that_could_not_be_filled_are_an_error_and_owned_ones_cannot_be_released() {
        let failed = Bytes::filled(5, |_| Err(Error::Interrupted));
        assert!(matches!(failed, Err(Error::Interrupted)));
        let bytes = Bytes::copy_of(&[7u8; 1 << 13]).unwrap();
        assert!(!bytes.is_mapped());
        bytes.release(0..1 << 13); // is for files alone
        assert_eq!(bytes.as_slice(), [7; 1 << 13]);
    }

    #[test]
    fn slices_share_their_storage_and_owned_bytes_are_aligned() {
        let bytes = Bytes::copy_of(&[1u64, 2, 3]).unwrap();
        assert_eq!(bytes.as_slice().as_ptr().align_offset(64), 0);
        let tail = bytes.slice(8..24).slice(8..16);
        assert_eq!(tail.numbers::<u64>(), [3]);
        assert!(!tail.is_mapped());
    }

    /// Whether the system was told that the pages at an address are read in their order.
    #[cfg(target_os = "linux")]
    fn are_read_ahead(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in maps.lines() {
            let first = line.split_whitespace().next().unwrap();
            let bounds = first.split_once('-').and_then(|(start, end)| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some(number(start)?..number(end)?)
            });
            if let Some(bounds) = bounds {
                is_here = bounds.contains(&address);
            } else if is_here && first == "VmFlags:" {
                return line.split_whitespace().any(|flag| flag == "sr");
            }
        }
        panic!("nothing is mapped there");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_read_ahead_as_long_as_somebody_reads_them_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1u8; 1 << 16]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        // SAFETY: nobody else knows the file, and nothing writes to it any more.
        let bytes = Bytes::mapped(unsafe { Mmap::map(&file) }.unwrap());
        let part = bytes.slice(1 << 14..1 << 15);
        let is_read_ahead = || are_read_ahead(part.as_slice().as_ptr() as usize);
        assert!(!is_read_ahead());
        let one = part.read_in_order();
        let other = part.clone().read_in_order();
        assert!(is_read_ahead());
        assert!(!are_read_ahead(bytes.as_slice().as_ptr() as usize));
        drop(one);
        assert!(is_read_ahead());
        drop(other);
        assert!(!is_read_ahead());
        assert!(Bytes::copy_of(&[1u64]).unwrap().read_in_order().is_none());
    }
}
