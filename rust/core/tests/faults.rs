//! Every call that changes the disk is made to fail in turn: the file is then the old one or the
//! new one, whole, and what the caller was told is true.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use sparse_retrieval::codes::{Codes, MagnitudeBits};
use sparse_retrieval::control::Control;
use sparse_retrieval::format::disk::Temporary;
use sparse_retrieval::format::{Disk, DiskFile, ItemNorm, SystemDisk};
use sparse_retrieval::index::{
    BuildOptions, Codebooks, Ids, Index, IndexWriter, LiveIndex, OwnedIds, ValueCoding,
};
use sparse_retrieval::search::{Metric, Mode};
use sparse_retrieval::Error;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// It does nothing, and the disk is full.
    Full,
    /// It does nothing, and the device reports an error.
    Device,
    /// A write takes half of its bytes, and then the disk is full.
    Short,
    /// Only this call fails (the others of this list fail from then on).
    Once,
}

/// A disk whose n-th call fails.
#[derive(Debug)]
struct FaultyDisk {
    calls: AtomicUsize,
    fails_at: usize,
    fault: Fault,
}

impl FaultyDisk {
    fn new(fails_at: usize, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            fails_at,
            fault,
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn call(&self) -> io::Result<()> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        let fails = match self.fault {
            Fault::Once => n == self.fails_at,
            _ => n >= self.fails_at,
        };
        match (fails, self.fault) {
            (false, _) => Ok(()),
            (true, Fault::Full | Fault::Short) => Err(ErrorKind::StorageFull.into()),
            (true, _) => Err(io::Error::other("input/output error")),
        }
    }
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    disk: Arc<FaultyDisk>,
}

impl Read for FaultyFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.disk.call()?;
        self.file.read(out)
    }
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.disk.call() {
            Ok(()) => self.file.write(bytes),
            Err(_)
                if self.disk.fault == Fault::Short
                    && self.disk.calls() == self.disk.fails_at + 1 =>
            {
                self.file.write(&bytes[..bytes.len().div_ceil(2)])
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.call()?;
        self.file.flush()
    }
}

impl Seek for FaultyFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.disk.call()?;
        self.file.seek(to)
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.call()?;
        self.file.sync()
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.disk.call()?;
        self.file.set_len(length)
    }
}

/// The disk behind an `Arc`, so that its files can count too.
#[derive(Debug, Clone)]
struct Shared(Arc<FaultyDisk>);

impl Shared {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile {
            file,
            disk: Arc::clone(&self.0),
        })
    }
}

impl Disk for Shared {
    fn spool(&self, folder: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.call()?;
        Ok(self.file(SystemDisk.spool(folder)?))
    }

    fn temporary(&self, target: &Path) -> io::Result<Temporary> {
        self.0.call()?;
        let (file, path) = SystemDisk.temporary(target)?;
        Ok((self.file(file), path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.call()?;
        Ok(self.file(SystemDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call()?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.call()?;
        SystemDisk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.call()?;
        SystemDisk.sync_folder(folder)
    }
}

fn codes(n: usize, seed: u64) -> Codes {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    };
    let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
    for _ in 0..n {
        for rank in 0..3i64 {
            latents.push(rank * 20 + (next() % 20) as i64);
            values.push(next() as f32 / 1e9 + 0.1);
        }
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, 60).unwrap()
}

fn options(values: ValueCoding) -> BuildOptions<'static> {
    BuildOptions {
        metric: Metric::Cosine,
        values,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &[Mode::Sparse],
        dictionary: None,
        ids: None,
        metadata: Some("{}"),
        postings: None,
    }
}

fn ranked() -> ValueCoding {
    ValueCoding::Ranked(MagnitudeBits::Uniform(2))
}

fn old_file(path: &Path, n: usize) -> Vec<u8> {
    old_file_with(path, n, None)
}

fn old_file_with(path: &Path, n: usize, postings: Option<usize>) -> Vec<u8> {
    let ids: Vec<i64> = (0..n as i64).rev().collect();
    let options = BuildOptions {
        ids: Some(Ids::Numbers(&ids)),
        postings,
        ..options(ranked())
    };
    let index = Index::build(codes(n, 1).view(), &options, &Control::new()).unwrap();
    index.save(path, &Control::new()).unwrap();
    std::fs::read(path).unwrap()
}

/// Runs `work` with each call failing in each way, until it comes through; `check` is told
/// whether it said that it had succeeded. Returns the number of faults.
fn each_fault(
    prepare: impl Fn(&Path),
    work: impl Fn(Arc<dyn Disk>, &Path) -> sparse_retrieval::Result<()>,
    check: impl Fn(&Path, bool, &str),
) -> usize {
    let mut injected = 0;
    for fault in [Fault::Full, Fault::Device, Fault::Short, Fault::Once] {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.sridx");
            prepare(&path);
            let disk = FaultyDisk::new(n, fault);
            let done = work(Arc::new(Shared(Arc::clone(&disk))), &path);
            let what = format!("{fault:?} at call {n}: {done:?}");
            if let Err(error) = &done {
                assert!(matches!(error, Error::Io { .. }), "{what}");
            }
            check(&path, done.is_ok(), &what);
            // whatever happened, the next writer comes through, and cleans up
            let control = Control::new();
            let index = LiveIndex::open(&path, true, &control).unwrap();
            index.save(&path, &control).unwrap();
            index.verify(&control).unwrap();
            let left = std::fs::read_dir(folder.path()).unwrap();
            let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["a.sridx"], "{what}");
            if disk.calls() <= n {
                assert!(done.is_ok(), "{what}");
                break;
            }
            injected += 1;
        }
    }
    injected
}

#[test]
fn a_writer_that_fails_anywhere_leaves_the_old_file_or_the_new_one() {
    let prepared = tempfile::tempdir().unwrap();
    let path = prepared.path().join("old.sridx");
    let old = old_file(&path, 5);
    let write = |disk: Arc<dyn Disk>, path: &Path| {
        let codebooks = Codebooks {
            sample_rows: 500,
            ..Codebooks::default()
        };
        let mut writer = IndexWriter::on(disk, path, 60, &options(ranked()), codebooks)?;
        for batch in 0..4 {
            // large enough that some columns spill: the buffers of columns hold 1 MiB
            let ids: Vec<i64> = (0..30_000)
                .map(|i| (i * 7919 + batch) % 1_000_003)
                .collect();
            let ids: Vec<i64> = ids.iter().map(|id| id * 4 + batch).collect();
            let control = Control::new();
            writer.add(codes(30_000, 2).view(), Some(Ids::Numbers(&ids)), &control)?;
        }
        writer.finish(&Control::new()).map(drop)
    };
    let new_path = prepared.path().join("new.sridx");
    write(Arc::new(SystemDisk), &new_path).unwrap();
    let new = std::fs::read(&new_path).unwrap();
    let injected = each_fault(
        |path| std::fs::write(path, &old).unwrap(),
        write,
        |path, succeeded, what| {
            let found = std::fs::read(path).unwrap();
            assert!(found == new || !succeeded && found == old, "{what}");
        },
    );
    assert!(injected > 100, "{injected}");
    println!("faults injected into a streaming writer: {injected}");
}

#[test]
fn a_commit_that_fails_anywhere_is_there_whole_or_not_at_all() {
    let prepared = tempfile::tempdir().unwrap();
    let old = old_file(&prepared.path().join("old.sridx"), 20);
    let added = codes(4, 3);
    let control = Control::new();
    let injected = each_fault(
        |path| {
            std::fs::write(path, &old).unwrap();
            let index = LiveIndex::open(path, true, &control).unwrap();
            index.remove(&OwnedIds::Numbers(vec![3])).unwrap();
            index.commit().unwrap();
        },
        |disk, path| {
            let index = LiveIndex::open_on(disk, path, true, &control)?;
            let ids = [100, 90, 80, 70];
            index.add(added.view(), Some(Ids::Numbers(&ids)), &control)?;
            index.remove(&OwnedIds::Numbers(vec![5, 90]))?;
            index.commit().map(drop)
        },
        |path, succeeded, what| {
            let index = LiveIndex::open(path, true, &control).unwrap();
            let n = index.snapshot().len();
            // 20 less one that was committed before; then 4 more and 2 less
            assert!(n == 21 || !succeeded && n == 19, "{what}: {n} items");
        },
    );
    assert!(injected > 20, "{injected}");
    println!("faults injected into a commit: {injected}");
}

#[test]
fn a_first_commit_and_a_save_that_fail_anywhere_lose_nothing() {
    let prepared = tempfile::tempdir().unwrap();
    let old = old_file(&prepared.path().join("old.sridx"), 20);
    let control = Control::new();
    let first_commit = each_fault(
        |path| std::fs::write(path, &old).unwrap(),
        |disk, path| {
            let index = LiveIndex::open_on(disk, path, true, &control)?;
            index.remove(&OwnedIds::Numbers(vec![5, 9]))?;
            index.commit().map(drop)
        },
        |path, succeeded, what| {
            let n = LiveIndex::open(path, true, &control)
                .unwrap()
                .snapshot()
                .len();
            assert!(n == 18 || !succeeded && n == 20, "{what}: {n} items");
        },
    );
    let posted = old_file_with(&prepared.path().join("posted.sridx"), 20, Some(8));
    let save = each_fault_of_a_save(&old);
    // the rows are written to a file of their own first, of which postings are made
    let save_with_postings = each_fault_of_a_save(&posted);
    assert!(first_commit > 30 && save > 30, "{first_commit} {save}");
    assert!(save_with_postings > save, "{save_with_postings}");
    println!(
        "faults injected into a first commit and a save: {}",
        first_commit + save
    );
    println!("faults injected into a save that makes postings again: {save_with_postings}");
}

fn each_fault_of_a_save(old: &[u8]) -> usize {
    let control = Control::new();
    each_fault(
        |path| {
            std::fs::write(path, old).unwrap();
            let index = LiveIndex::open(path, true, &control).unwrap();
            index.remove(&OwnedIds::Numbers(vec![3])).unwrap();
            index.commit().unwrap();
        },
        |disk, path| {
            let index = LiveIndex::open_on(disk, path, true, &control)?;
            index.remove(&OwnedIds::Numbers(vec![5]))?;
            index.save(path, &control)
        },
        |path, succeeded, what| {
            let index = LiveIndex::open(path, true, &control).unwrap();
            index.verify(&control).unwrap();
            let n = index.snapshot().len();
            assert!(n == 18 || !succeeded && n == 19, "{what}: {n} items");
        },
    )
}
