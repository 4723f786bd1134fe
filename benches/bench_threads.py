"""Threads of one process searching a mapped index while another process replaces its file.

    python benches/bench_threads.py --data PATH [--dictionary FILE] [--out FILE]

PATH and FILE are as for ``bench_rescore.py``, whose index is searched here. 8 threads ask one
query after the other, without a pause, for SECONDS seconds, and compare each answer with the one
found before; meanwhile another process saves one of two indexes over the file, again and again.
ROUNDS times in turn: a single caller with nobody beside it, to compare with; callers whose
searches have one thread each; and callers that leave the threads open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from bench_rescore import DEPTH, EMBEDDINGS, build, command, split

SECONDS = 5.0
ROUNDS = 4
THREADS = 8
_REPLACE = """
import sys, sparse_retrieval as sr
folder = sys.argv[1]
kinds = [sr.SparseIndex.open(f"{folder}/{name}.sridx", mmap=False) for name in ("full", "other")]
print("ready", flush=True)
done = 0
while True:
    kinds[done % 2].save(f"{folder}/items.sridx")
    done += 1
    print(done, flush=True)
"""


def ask(
    index: sr.SparseIndex,
    queries: NDArray[np.float32],
    expected: sr.SearchResult,
    *,
    callers: int,
    threads: int | None,
) -> dict[str, Any]:
    """Let ``callers`` threads search for SECONDS seconds; latencies, and answers that differ."""
    stop = time.perf_counter() + SECONDS
    latencies: list[list[float]] = [[] for _ in range(callers)]
    wrong: list[int] = []
    errors: list[str] = []

    def call(caller: int) -> None:
        number = caller * 101
        try:
            while time.perf_counter() < stop:
                number = (number + 1) % len(queries)
                begun = time.perf_counter()
                found = index.search(queries[number], DEPTH, threads=threads)
                latencies[caller].append(time.perf_counter() - begun)
                if found.ids.tobytes() != expected.ids[number].tobytes():
                    wrong.append(number)
        except Exception as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ms = np.concatenate([np.array(own) for own in latencies]) * 1e3
    return {
        "callers": callers,
        "threads": threads,
        "searches": len(ms),
        "ms_median": float(np.median(ms)),
        "ms_p99": float(np.percentile(ms, 99)),
        "ms_most": float(ms.max()),
        "wrong": len(wrong),
        "errors": errors,
    }


def ask_while_replaced(
    folder: Path,
    index: sr.SparseIndex,
    queries: NDArray[np.float32],
    expected: sr.SearchResult,
    threads: int | None,
) -> dict[str, Any]:
    """The same for THREADS callers, and how often another process replaced the file meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-c", _REPLACE, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        row = ask(index, queries, expected, callers=THREADS, threads=threads)
        process.kill()
        done = process.stdout.read().split()
    return row | {"replaced": int(done[-1]) if done else 0}


def measure(data: Path, dictionary: Path | None, folder: Path) -> dict[str, Any]:
    """Build the index, search it alone and under replacement; what the result file holds."""
    items, queries = split(data)
    wide = items.astype(np.float32)
    build(wide, dictionary, folder / "full.sridx")
    built = sr.SparseIndex.open(folder / "full.sridx", mmap=False)
    sr.SparseIndex.from_codes(
        built.dictionary.encode(wide[:20_000], k=8),
        dictionary=built.dictionary,
        metric="cosine",
        value_bits=8,
    ).save(folder / "other.sridx")
    built.save(folder / "items.sridx")
    index = sr.SparseIndex.open(folder / "items.sridx")
    expected = index.search(queries, DEPTH)
    rows = []
    for _ in range(ROUNDS):
        rows.append(ask(index, queries, expected, callers=1, threads=1) | {"replaced": 0})
        for threads in (1, None):
            rows.append(ask_while_replaced(folder, index, queries, expected, threads))
    return {
        "benchmark": "threads",
        "command": command("bench_threads", dictionary),
        "machine": _machine.describe(),
        "data": {
            "name": "package descriptions, all-MiniLM-L6-v2",
            "items": len(items),
            "queries": len(queries),
            "columns": int(items.shape[1]),
        },
        "depth": DEPTH,
        "seconds": SECONDS,
        "bytes_per_item": index.bytes_per_item,
        "rows": rows,
    }


def main() -> int:
    """Parse the arguments, measure, write the file and print its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--dictionary", type=Path, help="learnt before, as in bench_rescore.py")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "threads.json"
    )
    options = parser.parse_args()
    if not (options.data / EMBEDDINGS).is_file():
        print(f"bench_threads.py: error: {options.data / EMBEDDINGS} is absent", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.data, options.dictionary, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["rows"]:
        print(
            f"{row['callers']} callers, threads={row['threads']}: median {row['ms_median']:.2f} "
            f"ms, p99 {row['ms_p99']:.2f} ({row['ms_p99'] / row['ms_median']:.2f}x), "
            f"{row['searches'] / SECONDS:.1f} a second, file replaced {row['replaced']} times, "
            f"{row['wrong']} wrong, {len(row['errors'])} errors"
        )
    return 1 if any(row["wrong"] or row["errors"] for row in results["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
