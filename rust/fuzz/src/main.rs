//! The targets of `rust/core/examples/fuzz` under libFuzzer, which keeps inputs that reach code
//! that none before reached. `SPARSE_RETRIEVAL_FUZZ` names the target; `run.sh` sets it, and the
//! flags that count coverage, which any compiler knows, and with them the address sanitizer.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

#[path = "../../core/examples/fuzz/asked.rs"]
mod asked;
#[path = "../../core/examples/fuzz/files.rs"]
mod files;
#[path = "../../core/examples/fuzz/random.rs"]
mod random;
#[path = "../../core/examples/fuzz/targets.rs"]
mod targets;

static TARGETS: LazyLock<(targets::Targets, String)> = LazyLock::new(|| {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats");
    let target = std::env::var("SPARSE_RETRIEVAL_FUZZ").expect("the name of a target");
    assert!(targets::TARGETS.contains(&target.as_str()), "{target} is no target");
    (targets::Targets::read(&formats), target)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (targets, target) = &*TARGETS;
    targets.run_bytes(target, bytes);
});
