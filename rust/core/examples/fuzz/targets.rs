//! What is fuzzed, by name: by numbers of a seed, or by bytes that a guided fuzzer makes.

use std::path::Path;

use crate::asked::{codes, Asked};
use crate::files::{make_right, use_file, Files};
use crate::random::Random;

/// The names of all targets.
pub const TARGETS: [&str; 5] = ["header", "file", "journal", "codes", "search"];

/// All targets, with what they begin from.
pub struct Targets {
    files: Files,
    asked: Asked,
}

impl Targets {
    /// From the sound files of a folder, `tests/formats`.
    pub fn read(folder: &Path) -> Self {
        let files = Files::read(folder);
        let asked = Asked::of(&files.files);
        Self { files, asked }
    }

    /// Files and journals to begin from.
    #[allow(dead_code)] // a guided fuzzer does not ask
    pub fn n_files(&self) -> usize {
        self.files.files.len() + self.files.journals.len()
    }

    /// Runs an execution by numbers and says whether the input was accepted.
    pub fn run(&self, target: &str, random: &mut Random<'_>) -> bool {
        match target {
            "header" => self.files.header(random),
            "file" => self.files.file(random),
            "journal" => self.files.journal(random),
            "codes" => codes(random),
            "search" => self.asked.search(random),
            other => panic!("{other} is no target"),
        }
    }

    /// Runs an execution by bytes: those of a file or journal themselves, checksums made right,
    /// or numbers for codes and searches.
    pub fn run_bytes(&self, target: &str, bytes: &[u8]) -> bool {
        match target {
            "file" => {
                let mut file = bytes.to_vec();
                make_right(&mut file);
                use_file(&file, &mut Random::seeded(bytes.len() as u64))
            }
            "journal" => self.files.journal_of(bytes),
            other => self.run(other, &mut Random::of(bytes)),
        }
    }
}
