//! Hostile files and journals: opened, verified, searched.

use std::path::{Path, PathBuf};

use sparse_retrieval::codes::Codes;
use sparse_retrieval::control::Control;
use sparse_retrieval::format::{journal::parse_journal, parse, Bytes};
use sparse_retrieval::index::{Id, Index, OwnedIds};
use sparse_retrieval::search::{Mode, Queries, Request};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::random::Random;

/// The files and journals of a corpus.
pub struct Files {
    /// Sound files.
    pub files: Vec<Vec<u8>>,
    /// Sound journals, each with the number of its file.
    pub journals: Vec<(usize, Vec<u8>)>,
}

impl Files {
    /// Those of a folder.
    pub fn read(folder: &Path) -> Self {
        let with = |extension: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(folder).expect("the corpus is a folder");
            let mut paths: Vec<_> = entries
                .map(|entry| entry.expect("readable").path())
                .filter(|path| path.extension().is_some_and(|found| found == extension))
                .collect();
            paths.sort();
            paths
        };
        let paths = with("sridx");
        let read = |path: &PathBuf| std::fs::read(path).expect("readable");
        let journals = with("journal").into_iter().map(|path| {
            let file = path.with_extension("");
            let file = paths.iter().position(|path| *path == file);
            (file.expect("a journal lies beside its file"), read(&path))
        });
        Self {
            files: paths.iter().map(read).collect(),
            journals: journals.collect(),
        }
    }

    /// The JSON of a header changed.
    pub fn header(&self, random: &mut Random<'_>) -> bool {
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
        use_file(&changed, random)
    }

    /// Bytes of a file changed.
    pub fn file(&self, random: &mut Random<'_>) -> bool {
        let mut file = self.files[random.below(self.files.len())].clone();
        if random.below(8) == 0 {
            random.mutate(&mut file, true);
            return use_file(&file, random);
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
        use_file(&file, random)
    }

    /// A journal changed, beside its file.
    pub fn journal(&self, random: &mut Random<'_>) -> bool {
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
        use_journal(journal, &self.files[*file], identity)
    }

    /// A journal as it is, checksums made right, beside the file that it names or the first.
    pub fn journal_of(&self, bytes: &[u8]) -> bool {
        if bytes.len() < 32 {
            return false;
        }
        let named = self
            .files
            .iter()
            .find(|file| word(file, 24) == word(bytes, 16));
        let file = named.unwrap_or(&self.files[0]);
        let mut journal = bytes.to_vec();
        journal[16..24].copy_from_slice(&file[24..32]);
        let checksum = xxh3_64(&journal[..24]);
        journal[24..32].copy_from_slice(&checksum.to_le_bytes());
        let (mut at, mut chain, mut number) = (32, checksum, 0u64);
        while at + 32 <= journal.len() {
            let n = word(&journal, at).min((journal.len() - at - 32) as u64) as usize;
            let payload = xxh3_64_with_seed(&journal[at + 32..at + 32 + n], chain);
            journal[at + 8..at + 16].copy_from_slice(&number.to_le_bytes());
            journal[at + 16..at + 24].copy_from_slice(&payload.to_le_bytes());
            let header = xxh3_64_with_seed(&journal[at..at + 24], chain);
            journal[at + 24..at + 32].copy_from_slice(&header.to_le_bytes());
            (at, chain, number) = (at + 32 + n, payload, number + 1);
        }
        let identity = word(file, 24);
        use_journal(journal, file, identity)
    }
}

/// Opens, verifies and searches bytes as a file; true where they are sound.
pub fn use_file(bytes: &[u8], random: &mut Random<'_>) -> bool {
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

fn use_journal(journal: Vec<u8>, file: &[u8], identity: u64) -> bool {
    let Ok(Some(journal)) = parse_journal(journal, identity) else {
        return false;
    };
    let base = Bytes::copy_of(file)
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

fn search(index: &Index, verified: bool, random: &mut Random<'_>) {
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

/// Makes all checksums of a file right again, as far as it has a header; those of sections only
/// where the header is then as long as before.
pub fn make_right(file: &mut [u8]) {
    if file.len() < 32 {
        return;
    }
    let end = usize::try_from(word(file, 16))
        .unwrap_or(usize::MAX)
        .saturating_add(32);
    let Some(json) = file.get(32..end) else {
        return;
    };
    let mut json = json.to_vec();
    if let Ok(mut header) = serde_json::from_slice::<serde_json::Value>(&json) {
        for section in sections_of(&mut header) {
            let start = section["offset"].as_u64().unwrap_or(0) as usize;
            let length = section["length"].as_u64().unwrap_or(0) as usize;
            if let Some(bytes) = file.get(start..start.saturating_add(length)) {
                section["checksum"] = format!("{:016x}", xxh3_64(bytes)).into();
            }
        }
        let right = serde_json::to_vec(&header).expect("a value is JSON");
        if right.len() == json.len() {
            json = right;
        }
    }
    file[24..32].copy_from_slice(&xxh3_64(&json).to_le_bytes());
    file[32..end].copy_from_slice(&json);
}

/// The number of 8 bytes at `at`.
pub fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The entries of sections that a header has, each an object.
fn sections_of(header: &mut serde_json::Value) -> impl Iterator<Item = &mut serde_json::Value> {
    let sections = header.get_mut("sections");
    let sections = sections.and_then(serde_json::Value::as_array_mut);
    sections
        .into_iter()
        .flatten()
        .filter(|section| section.is_object())
}
