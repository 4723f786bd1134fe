#!/usr/bin/env bash
# Fuzz every target, guided by coverage: run.sh EXECUTIONS [TARGET ...]
#
# Inputs that reach new code are kept in target/corpus; corpus/ holds a small set of them, and
# tests/formats the files to begin from. SANITIZER= (empty) leaves the address sanitizer out. It is
# asked of a stable compiler by the switch that the standard library's own build uses; the standard
# library itself is not instrumented.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
executions=${1:-100000}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(header file journal codes search)
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags+=" -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
sanitizer=${SANITIZER-address}
if [ -n "$sanitizer" ]; then
    flags+=" -Zsanitizer=$sanitizer"
    export RUSTC_BOOTSTRAP=1
fi
triple=$(rustc --version --verbose | sed -n 's/^host: //p')
# --target keeps the flags from build scripts, which would not link with them
RUSTFLAGS="$flags" cargo build --release --quiet --target "$triple"
for target in "${targets[@]}"; do
    kept="target/corpus/$target"
    mkdir -p "$kept" "corpus/$target"
    seeds=("$kept" "corpus/$target")
    case $target in file | journal) seeds+=(../../tests/formats) ;; esac
    echo "fuzzing $target: $executions executions" >&2
    # one thread: counters of two would be of no single input
    SPARSE_RETRIEVAL_FUZZ=$target RAYON_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 \
        "target/$triple/release/sparse_retrieval_fuzz" \
        -runs="$executions" -seed=1 -max_len=8192 -timeout=25 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="target/$target-" "${seeds[@]}" \
        2>&1 | tee "target/$target.log" |
        grep -E "stat::|ERROR|panicked|SUMMARY|^#[0-9]+.DONE" || true
    grep -q "DONE" "target/$target.log"
done
