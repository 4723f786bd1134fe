//! A deterministic mutational fuzzer: files, journals and codes from hostile hands.
//!
//!     cargo run --release --example fuzz -- --executions 1000000 --seed 1 --corpus tests/formats
//!
//! Stands in for cargo-fuzz, which needs a nightly compiler: no coverage guides it, so it relies
//! on a corpus with every kind of section, on checksums that are made right again after each
//! mutation (else nothing would get past them), and on numbers. Each execution depends on the seed
//! and its number alone; a panic is printed with both, and `--only NUMBER` runs it again. Prints a
//! line of JSON at the end. The targets:
//!
//! * `header`: the JSON of a header changed, opened;
//! * `file`: bytes anywhere, opened, verified, searched, items fetched by id;
//! * `journal`: a journal beside a sound file, opened, verified;
//! * `codes`: arrays of a compressed sparse row matrix, validated, packed, searched.
//!
//! What is asserted: nothing panics (overflow checks are on), what `verify` accepts answers
//! searches with finite scores of rows that are there, and a flipped byte of a section is found.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::Instant;

use sparse_retrieval::codes::{pack, Codes, ValueKind};
use sparse_retrieval::control::Control;
use sparse_retrieval::format::{journal::parse_journal, parse, Bytes};
use sparse_retrieval::index::{Id, Index, OwnedIds};
use sparse_retrieval::search::{Mode, Queries, Request};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A stream of numbers that depends on its seed alone (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A number that is likely to lie at an edge.
    fn edge(&mut self) -> u64 {
        let edges = [0, 1, 7, 8, 63, 64, 127, 255, 256, 32_767, 65_535, 65_536];
        match self.below(6) {
            0 => u64::MAX - self.below(3) as u64,
            1 => 1 << self.below(64),
            2 => (1u64 << self.below(64)).wrapping_sub(1),
            3 => self.next(),
            _ => edges[self.below(edges.len())],
        }
    }

    /// Changes some bytes in place, or the length.
    fn mutate(&mut self, bytes: &mut Vec<u8>, may_resize: bool) {
        for _ in 0..1 + self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(if may_resize { 7 } else { 4 }) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => {
                    let number = self.edge().to_le_bytes();
                    let n = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                    bytes[at..at + n].copy_from_slice(&number[..n]);
                }
                3 => {
                    let (from, n) = (self.below(bytes.len()), self.below(32));
                    let n = n.min(bytes.len() - at).min(bytes.len() - from);
                    bytes.copy_within(from..from + n, at);
                }
                4 => bytes.truncate(at),
                5 => {
                    let extra = self.below(64);
                    bytes.resize(bytes.len() + extra, 0);
                }
                _ => {
                    let byte = self.next() as u8;
                    bytes.insert(at, byte);
                }
            }
        }
    }
}

struct Fuzzer {
    files: Vec<Vec<u8>>,
    journals: Vec<(usize, Vec<u8>)>,
}

impl Fuzzer {
    /// Runs an execution and says whether the input was accepted.
    fn run(&self, target: &str, random: &mut Random) -> bool {
        match target {
            "header" => self.header(random),
            "file" => self.file(random),
            "journal" => self.journal(random),
            _ => codes(random),
        }
    }

    fn header(&self, random: &mut Random) -> bool {
        let file = &self.files[random.below(self.files.len())];
        let length = word(file, 16) as usize;
        let mut json = file[32..32 + length].to_vec();
        // numbers and words of JSON changed where they stand, or bytes at random
        if random.below(3) == 0 {
            random.mutate(&mut json, true);
        } else {
            let digits: Vec<usize> = (0..json.len())
                .filter(|&at| json[at].is_ascii_digit())
                .collect();
            let at = digits[random.below(digits.len())];
            let end = (at..json.len())
                .find(|&end| !json[end].is_ascii_digit())
                .unwrap_or(json.len());
            let number = random.edge().to_string();
            json.splice(at..end, number.bytes());
        }
        let mut changed = file[..16].to_vec();
        changed.extend_from_slice(&(json.len() as u64).to_le_bytes());
        changed.extend_from_slice(&xxh3_64(&json).to_le_bytes());
        changed.extend_from_slice(&json);
        let body = (32 + length).next_multiple_of(64).min(file.len());
        changed.resize(changed.len().next_multiple_of(64), 0);
        changed.extend_from_slice(&file[body..]);
        self.use_file(&changed, random)
    }

    fn file(&self, random: &mut Random) -> bool {
        let mut file = self.files[random.below(self.files.len())].clone();
        if random.below(8) == 0 {
            random.mutate(&mut file, true);
            return self.use_file(&file, random);
        }
        // a section changed, with checksums that say so or that do not
        let length = word(&file, 16) as usize;
        let start = (32 + length).next_multiple_of(64).min(file.len());
        let mut body = file.split_off(start);
        random.mutate(&mut body, false);
        file.extend_from_slice(&body);
        if random.below(4) > 0 {
            make_right(&mut file);
        }
        self.use_file(&file, random)
    }

    fn use_file(&self, bytes: &[u8], random: &mut Random) -> bool {
        let control = Control::new();
        let Ok(index) = Bytes::copy_of(bytes)
            .and_then(parse)
            .and_then(Index::from_file)
        else {
            return false;
        };
        let verified = index.verify(&control).is_ok();
        let ids = index.all_ids();
        for _ in 0..4 {
            let row = random.below(ids.len());
            if row < ids.len() {
                let mut id = OwnedIds::none(ids.are_strings());
                id.push(ids, row);
                let found = index.position(id.get(0));
                assert!(!verified || found == Some(row));
                index.code(row);
            }
            index.position(Id::Number(random.edge() as i64));
        }
        if random.below(16) == 0 && index.dim() <= 1 << 16 {
            search(&index, verified, random);
        }
        verified
    }

    fn journal(&self, random: &mut Random) -> bool {
        let (file, journal) = &self.journals[random.below(self.journals.len())];
        let identity = word(&self.files[*file], 24);
        let mut journal = journal.clone();
        if random.below(4) == 0 {
            random.mutate(&mut journal, true);
        } else {
            // the payload of the first frame changed, checksums made right
            let chain = word(&journal, 24);
            let n = word(&journal, 32) as usize;
            let mut payload = journal[64..64 + n].to_vec();
            random.mutate(&mut payload, true);
            journal.truncate(32);
            for number in [payload.len() as u64, 0, xxh3_64_with_seed(&payload, chain)] {
                journal.extend_from_slice(&number.to_le_bytes());
            }
            let checksum = xxh3_64_with_seed(&journal[32..56], chain);
            journal.extend_from_slice(&checksum.to_le_bytes());
            journal.extend_from_slice(&payload);
        }
        let Ok(Some(journal)) = parse_journal(journal, identity) else {
            return false;
        };
        let base = Bytes::copy_of(&self.files[*file])
            .and_then(parse)
            .and_then(Index::from_file)
            .expect("a file of the corpus is sound");
        let Ok(snapshot) = sparse_retrieval::index::replayed(base.into(), &journal) else {
            return false;
        };
        for position in snapshot.positions() {
            snapshot.id_text(position);
            snapshot.id_number(position);
        }
        let mut added = snapshot.added();
        added.all(|added| added.verify(&Control::new()).is_ok())
    }
}

fn search(index: &Index, verified: bool, random: &mut Random) {
    for &mode in index.modes() {
        let d = index.atoms().map_or(1, |atoms| atoms.d());
        let rows: Vec<f64> = (0..d).map(|i| (i as f64 - 2.0) / 3.0).collect();
        let latent = random.below(index.dim()) as i64;
        let code = Codes::from_csr(&[0, 1], &[latent], &[1.5], index.dim()).expect("one latent");
        let queries = match mode {
            Mode::Dense => Queries::Dense { rows: &rows, d },
            _ => Queries::Codes(code.view()),
        };
        let k_row = (random.below(3) == 0).then(|| 1 + random.below(9));
        let request = Request {
            k_row,
            ..Request::new(mode, 1 + random.below(50))
        };
        let found = index.search(&queries, &request, &Control::new());
        for hit in found.expect("arguments are sound").iter().flatten() {
            assert!((hit.position as usize) < index.len() && !hit.score.is_nan());
            assert!(!verified || hit.score.is_finite());
        }
    }
}

fn codes(random: &mut Random) -> bool {
    let n = random.below(5);
    let mut indptr = vec![0i64];
    let mut latents = Vec::new();
    let mut values = Vec::new();
    for _ in 0..n {
        for _ in 0..random.below(6) {
            latents.push(random.edge() as i64 % if random.below(9) == 0 { i64::MAX } else { 40 });
            values.push(f32::from_bits(random.edge() as u32));
        }
        indptr.push(latents.len() as i64);
    }
    if random.below(4) == 0 {
        let at = random.below(indptr.len());
        indptr[at] = random.edge() as i64;
    }
    let dim = 1 + random.edge() as usize % 70_000;
    let Ok(codes) = Codes::from_csr(&indptr, &latents, &values, dim) else {
        return false;
    };
    for kind in [ValueKind::Float32, ValueKind::Int16, ValueKind::Int8] {
        let packed = pack(codes.view(), kind, &Control::new()).expect("sound codes");
        let view = packed.view().expect("packed as it is read");
        for row in 0..view.len() {
            let pairs = view.pairs(row);
            assert!(pairs.iter().all(|pair| (pair.0 as usize) < dim));
        }
    }
    true
}

/// Makes all checksums of a file right again.
fn make_right(file: &mut [u8]) {
    let length = word(file, 16) as usize;
    let Ok(mut header) = serde_json::from_slice::<serde_json::Value>(&file[32..32 + length]) else {
        return;
    };
    for section in header["sections"].as_array_mut().into_iter().flatten() {
        let start = section["offset"].as_u64().unwrap_or(0) as usize;
        let end = start + section["length"].as_u64().unwrap_or(0) as usize;
        if let Some(bytes) = file.get(start..end) {
            section["checksum"] = format!("{:016x}", xxh3_64(bytes)).into();
        }
    }
    let json = serde_json::to_vec(&header).expect("a value is JSON");
    if json.len() == length {
        file[32..32 + length].copy_from_slice(&json);
        let checksum = xxh3_64(&json);
        file[24..32].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn main() {
    let (mut executions, mut seed, mut only) = (100_000u64, 0u64, None);
    let mut corpus = PathBuf::from("tests/formats");
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("each option has a value");
        match name.as_str() {
            "--executions" => executions = value.parse().expect("a number"),
            "--seed" => seed = value.parse().expect("a number"),
            "--only" => only = Some(value.parse::<u64>().expect("a number")),
            "--corpus" => corpus = value.into(),
            other => panic!("{other} is no option"),
        }
    }
    let read = |extension: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&corpus).expect("the corpus is a folder");
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect();
        paths.sort();
        paths
    };
    let paths = read("sridx");
    let files: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).expect("readable"))
        .collect();
    let journals: Vec<_> = read("journal")
        .iter()
        .map(|path| {
            let file = paths
                .iter()
                .position(|file| *file == path.with_extension(""));
            let journal = std::fs::read(path).expect("readable");
            (file.expect("a journal lies beside its file"), journal)
        })
        .collect();
    let fuzzer = Fuzzer { files, journals };
    let targets = ["header", "file", "journal", "codes"];
    let mut counts = [(0u64, 0u64); 4];
    let started = Instant::now();
    let numbers = match only {
        Some(number) => number..number + 1,
        None => 0..executions,
    };
    let mut failures = 0u64;
    for number in numbers {
        let target = (number % targets.len() as u64) as usize;
        let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            fuzzer.run(targets[target], &mut random)
        }));
        counts[target].0 += 1;
        match outcome {
            Ok(accepted) => counts[target].1 += u64::from(accepted),
            Err(_) => {
                failures += 1;
                eprintln!("{} failed: --seed {seed} --only {number}", targets[target]);
            }
        }
    }
    let by_target: serde_json::Map<String, serde_json::Value> = targets
        .iter()
        .zip(counts)
        .map(|(target, (n, accepted))| {
            let entry = serde_json::json!({"executions": n, "accepted": accepted});
            ((*target).into(), entry)
        })
        .collect();
    let report = serde_json::json!({
        "executions": counts.iter().map(|count| count.0).sum::<u64>(),
        "failures": failures,
        "seed": seed,
        "corpus_files": fuzzer.files.len() + fuzzer.journals.len(),
        "seconds": started.elapsed().as_secs(),
        "targets": by_target,
    });
    println!("{report}");
    std::process::exit(i32::from(failures > 0));
}
