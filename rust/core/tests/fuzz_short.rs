//! A few seconds of the fuzzer, with every assertion of a debug build, and the inputs that the
//! fuzzer guided by coverage has kept (`rust/fuzz/corpus`).

use std::path::Path;

#[path = "../examples/fuzz/asked.rs"]
mod asked;
#[path = "../examples/fuzz/files.rs"]
mod files;
#[path = "../examples/fuzz/random.rs"]
mod random;
#[path = "../examples/fuzz/targets.rs"]
mod targets;

use random::Random;
use targets::{Targets, TARGETS};

fn targets() -> Targets {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Targets::read(&root.join("tests/formats"))
}

#[test]
fn no_mutated_input_makes_a_panic_or_a_wrong_answer() {
    let targets = targets();
    assert!(targets.n_files() > 5);
    for target in TARGETS {
        let mut accepted = 0;
        for number in 0..1500u64 {
            let mut random = Random::seeded(number.wrapping_mul(0xd134_2543_de82_ef95));
            accepted += usize::from(targets.run(target, &mut random));
        }
        // not all are refused at the door
        assert!(accepted > 20, "{target}: {accepted}");
    }
}

#[test]
fn inputs_that_reached_new_code_still_pass() {
    let targets = targets();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for target in TARGETS {
        let inputs = std::fs::read_dir(folder.join(target)).expect("a corpus of each target");
        let mut n = 0;
        for input in inputs {
            let path = input.unwrap().path();
            targets.run_bytes(target, &std::fs::read(&path).unwrap());
            n += 1;
        }
        assert!(n > 10, "{target}: {n} inputs");
    }
}
