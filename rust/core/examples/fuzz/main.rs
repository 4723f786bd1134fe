//! A deterministic mutational fuzzer: files, journals, codes and searches from hostile hands.
//!
//!     cargo run --release --example fuzz -- --executions 1000000 --seed 1 --corpus tests/formats
//!
//! Needs a compiler and nothing else; `rust/fuzz` runs the same targets guided by coverage. No
//! coverage guides this one, so it relies on a corpus with every kind of section, on checksums that are made right again after each
//! mutation (else nothing would get past them), and on numbers. Each execution depends on the seed
//! and its number alone; a panic is printed with both, and `--only NUMBER` runs it again. Prints a
//! line of JSON at the end. The targets:
//!
//! * `header`: the JSON of a header changed, opened;
//! * `file`: bytes anywhere, opened, verified, searched, items fetched by id;
//! * `journal`: a journal beside a sound file, opened, verified;
//! * `codes`: arrays of a compressed sparse row matrix, validated and packed;
//! * `search`: k, modes, queries with NaN, filters, exclusions and settings, asked of sound indexes
//!   with and without changes.
//!
//! What is asserted: nothing panics (overflow checks are on), what `verify` accepts answers
//! searches with finite scores of rows that are there; hits are items, each once, in order, and
//! the same bits from every kernel.

mod asked;
mod files;
mod random;
mod targets;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Instant;

use random::Random;
use targets::{Targets, TARGETS};

/// Runs the inputs of `folder/TARGET/*`, which a guided fuzzer has kept; a panic ends it.
fn replayed(fuzzer: &Targets, folder: &Path) {
    for target in TARGETS {
        let Ok(inputs) = std::fs::read_dir(folder.join(target)) else {
            continue;
        };
        let mut n = 0;
        for input in inputs {
            let path = input.expect("readable").path();
            eprintln!("{}", path.display());
            fuzzer.run_bytes(target, &std::fs::read(path).expect("readable"));
            n += 1;
        }
        println!("{target}: {n} inputs");
    }
}

fn main() {
    let (mut executions, mut seed, mut only) = (100_000u64, 0u64, None);
    let mut corpus = PathBuf::from("tests/formats");
    let mut replay = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("each option has a value");
        match name.as_str() {
            "--executions" => executions = value.parse().expect("a number"),
            "--seed" => seed = value.parse().expect("a number"),
            "--only" => only = Some(value.parse::<u64>().expect("a number")),
            "--corpus" => corpus = value.into(),
            "--replay" => replay = Some(PathBuf::from(value)),
            other => panic!("{other} is no option"),
        }
    }
    let fuzzer = Targets::read(&corpus);
    if let Some(folder) = replay {
        return replayed(&fuzzer, &folder);
    }
    let targets = TARGETS;
    let mut counts = [(0u64, 0u64); TARGETS.len()];
    let started = Instant::now();
    let numbers = match only {
        Some(number) => number..number + 1,
        None => 0..executions,
    };
    let mut failures = 0u64;
    for number in numbers {
        let target = (number % targets.len() as u64) as usize;
        let mut random = Random::seeded(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
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
        "corpus_files": fuzzer.n_files(),
        "seconds": started.elapsed().as_secs(),
        "targets": by_target,
    });
    println!("{report}");
    std::process::exit(i32::from(failures > 0));
}
