//! Memory of our own for what is looked up here and there: aligned, zeros at first, and in large
//! pages where there is much of it. Knows nothing of what is kept in it.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::{Error, Result};

/// What owned bytes start at a multiple of: a line of every CPU's cache here.
pub const LINE_BYTES: usize = 64;

/// From here on bytes lie in large pages, of 2 MB mostly: a share of them is then lost at most.
const LARGE_BYTES: usize = 16 << 20;

/// The unit of owned bytes, for its alignment.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Bytes of our own, aligned to [`LINE_BYTES`].
pub struct OwnedBytes {
    pages: Pages,
    length: usize,
}

enum Pages {
    Small(Vec<Line>),
    /// A mapping of its own in large pages, where the system has them.
    Large(MmapMut),
}

impl OwnedBytes {
    /// `length` zeros, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(length: usize, what: &'static str) -> Result<Self> {
        let bytes = length;
        let out_of_memory = || Error::OutOfMemory { what, bytes };
        let pages = if length >= LARGE_BYTES {
            let map = MmapMut::map_anon(length).map_err(|_| out_of_memory())?;
            // what is looked up here and there finds its page sooner; where the advice is not
            // taken, later
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Pages::Large(map)
        } else {
            let n_lines = length.div_ceil(LINE_BYTES);
            Pages::Small(
                bytemuck::allocation::try_zeroed_vec(n_lines).map_err(|()| out_of_memory())?,
            )
        };
        Ok(Self { pages, length })
    }
}

impl Deref for OwnedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.pages {
            Pages::Small(lines) => &bytemuck::cast_slice(lines)[..self.length],
            Pages::Large(map) => map,
        }
    }
}

impl DerefMut for OwnedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.pages {
            Pages::Small(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.length],
            Pages::Large(map) => map,
        }
    }
}

/// Numbers in bytes of our own: the widest registers load and store them a whole line at a time, which
/// takes twice as long where lines are cut.
pub struct OwnedSlice<T> {
    bytes: OwnedBytes,
    numbers: PhantomData<T>,
}

impl<T: bytemuck::Pod> OwnedSlice<T> {
    /// `n` zeros, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(n: usize, what: &'static str) -> Result<Self> {
        Ok(Self {
            bytes: OwnedBytes::zeroed(n.saturating_mul(size_of::<T>()), what)?,
            numbers: PhantomData,
        })
    }

    /// The same numbers, for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy_of(numbers: &[T], what: &'static str) -> Result<Self> {
        let mut copy = Self::zeroed(numbers.len(), what)?;
        copy.copy_from_slice(numbers);
        Ok(copy)
    }
}

impl<T: bytemuck::Pod> Deref for OwnedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes)
    }
}

impl<T: bytemuck::Pod> DerefMut for OwnedSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }
}

impl<T> std::fmt::Debug for OwnedSlice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.fmt(f)
    }
}

impl std::fmt::Debug for OwnedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_aligned_and_zeros_until_they_are_written_whether_few_or_many() {
        for length in [0, 1, LINE_BYTES + 1, LARGE_BYTES + 5] {
            let mut bytes = OwnedBytes::zeroed(length, "a test").unwrap();
            assert!(bytes.len() == length && bytes.iter().all(|&byte| byte == 0));
            assert_eq!(bytes.as_ptr().align_offset(LINE_BYTES), 0);
            bytes.fill(7);
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn numbers_are_aligned_and_those_that_were_copied() {
        for n in [0, 1, 9] {
            let numbers: Vec<f64> = (0..n).map(f64::from).collect();
            let copy = OwnedSlice::copy_of(&numbers, "a test").unwrap();
            assert_eq!(*copy, *numbers);
            assert_eq!(copy.as_ptr().align_offset(LINE_BYTES), 0);
            let zeros = OwnedSlice::<f64>::zeroed(numbers.len(), "a test").unwrap();
            assert_eq!(*zeros, vec![0.0; numbers.len()]);
        }
        assert!(OwnedSlice::<f64>::zeroed(usize::MAX, "a test").is_err());
    }

    #[test]
    fn more_than_there_is_cannot_be_had_and_does_not_abort() {
        for length in [usize::MAX / 4, usize::MAX - LINE_BYTES] {
            let failed = OwnedBytes::zeroed(length, "a test");
            assert!(
                matches!(failed, Err(Error::OutOfMemory { what: "a test", bytes }) if bytes == length)
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn many_bytes_lie_where_the_system_was_asked_for_large_pages() {
        let bytes = OwnedBytes::zeroed(LARGE_BYTES, "a test").unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let address = bytes.as_ptr() as usize;
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        // the kernel may have joined the mapping to one that lies before it
        let holds_it = |line: &&str| {
            let bounds = line.split(' ').next().unwrap().split_once('-');
            let bounds = bounds.and_then(|(from, to)| Some(number(from)?..number(to)?));
            bounds.is_some_and(|bounds| bounds.contains(&address))
        };
        let mut lines = maps.lines();
        lines.find(holds_it).expect("is mapped");
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        let has_large_pages =
            std::path::Path::new("/sys/kernel/mm/transparent_hugepage/enabled").exists();
        assert_eq!(flags.contains(" hg"), has_large_pages, "{flags}");
    }
}
