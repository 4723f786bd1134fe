"""Measure everything that docs/benchmarks.md quotes, one benchmark after the other.

    python benches/remake.py --data FOLDER [--cache FOLDER] [--only NAME ...] [--list]

This is `make study`, which renews the docs afterwards. FOLDER holds ``catalogue_minilm_f16.npy``
(``study.make_catalogue`` makes one like it). It takes a day on two cores. Each benchmark is a
process of its own and writes its result file when it is done or as it goes; what the study and
`recall_per_bytes.py` have measured before is not measured again. A benchmark that fails does not
keep the others from running; which failed is said at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = "catalogue_minilm_f16.npy"
#: what is run, in this order: arguments of python, of {data} and {cache}
RUNS: dict[str, tuple[str, ...]] = {
    "study": ("-m", "study", "--data", "{data}", "--cache", "{cache}"),
    "study-parts": ("-m", "study.parts", "--data", "{data}", "--cache", "{cache}"),
    "study-fresh": ("-m", "study.fresh", "--data", "{data}", "--cache", "{cache}"),
    "study-quick": ("-m", "study", "--quick", "--cache", "{cache}"),
    "recall-per-bytes": ("benches/recall_per_bytes.py", "--data", "{data}"),
    "recall-modes": ("benches/recall_modes.py", "--data", "{data}"),
    "search": ("benches/compare_search.py", "--data", "{data}"),
    "approximate": (
        "benches/bench_approximate.py",
        *("--data", "{data}", "--cache", "{cache}/approximate"),
    ),
    "rescore": ("benches/bench_rescore.py", "--data", "{data}"),
    "threads": ("benches/bench_threads.py", "--data", "{data}"),
    "sparse-search": (
        "benches/bench_sparse_search.py",
        *("--data", "{data}/" + CATALOGUE, "--cache", "{cache}/sparse"),
    ),
    "encoding": ("benches/bench_encoding.py", "{data}/" + CATALOGUE),
}


def arguments(name: str, data: Path, cache: Path) -> list[str]:
    """The command line of one benchmark."""
    places = {"data": data, "cache": cache}
    return [sys.executable, *(part.format_map(places) for part in RUNS[name])]


def main() -> int:
    """Run what is asked for; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder with {CATALOGUE}")
    parser.add_argument("--cache", type=Path, default=ROOT / ".study", help="what is kept")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args()
    if options.data is None or not (options.data / CATALOGUE).is_file():
        parser.error(f"--data: {options.data} holds no {CATALOGUE}")
    # of a relative path every benchmark would make another of the folder that it runs in
    data, cache = options.data.resolve(), options.cache.resolve()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benches")}
    # what numpy's products are told of another machine's cores and caches must not slow them here
    for of_another in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        environment.pop(of_another, None)
    failed = []
    for name in options.only:
        command = arguments(name, data, cache)
        print(f"remake: {name}: {' '.join(command[1:])}", flush=True)
        if options.list:
            continue
        begun = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        print(f"remake: {name}: {time.perf_counter() - begun:.0f} s, exit code {code}", flush=True)
        failed += [name] if code else []
    if failed:
        print(f"remake: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
