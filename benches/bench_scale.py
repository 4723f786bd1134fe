"""Cost of exact search as the number of items grows, files mapped.

    python benches/bench_scale.py --data PATH [--rows 100000 1000000 10000000] [--folder DIR]
        [--limited-alone]

PATH is a folder with ``catalogue_minilm_f16.npy``. 200,000 mixtures of real embeddings
(``_corpora``) are encoded once; larger corpora hold them again and again, each copy of a row
times a factor of its own between .7 and 1, so that scores differ. Files are written by
``IndexWriter``, opened mapped by a process of their own, and asked for the best 100 under the
inner product: one query, and a batch of 64, on all threads and on one. Anonymous memory is what
that process holds beside the mapped file. The exponent is the slope of log time against log n
between the ends.

The largest file is then asked again by a process whose memory, page cache included, is limited to
less than the file (`_limit`; root may do that, on Linux): every search reads the file from disk, a
batch twice. ``--limited-alone`` measures this part alone and keeps the others of the result file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import _limit
import _machine
import sparse_retrieval as sr
from _corpora import jittered

EMBEDDINGS = "catalogue_minilm_f16.npy"
ENCODED, K, DEPTH, BATCH = 200_000, 32, 100, 64
#: share of the largest file that the limit leaves for its pages, beside the process itself
SHARE_CACHED, PROCESS_BYTES = 0.25, 160 << 20
#: searches of which the median counts
ROUNDS = 5


def anonymous_mb() -> float:
    """Memory of this process that is not a file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def write(path: Path, n: int, codes: sr.SparseCodes, dictionary: sr.Dictionary) -> None:
    """``n`` items in one file."""
    rng = np.random.default_rng(0)
    with sr.IndexWriter(path, dictionary=dictionary, value_bits=4, modes=("dense",)) as writer:
        for start in range(0, n, len(codes)):
            some = codes[: min(len(codes), n - start)]
            factors = rng.uniform(0.7, 1.0, len(some)).astype(np.float32)
            values = some.values * np.repeat(factors, np.diff(some.indptr.astype(np.int64)))
            shape = (len(some), K)
            writer.add(
                sr.SparseCodes(
                    some.latents.reshape(shape), values.reshape(shape), dim=dictionary.n_atoms
                )
            )


def median_ms(index: sr.SparseIndex, queries: np.ndarray, threads: int | None) -> float:
    """Median of some searches, in ms a query."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        index.search(queries, DEPTH, threads=threads)
        times.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(times) / len(queries), 4)


def ask(path: Path, asked: Path) -> dict[str, Any]:
    """One mapped file, asked by this process."""
    queries = np.load(asked)
    index = sr.SparseIndex.open(path)
    index.search(queries[:1], DEPTH)  # touches every page, and makes the atoms wide
    before = anonymous_mb()
    kinds = {
        "one_ms": (queries[:1], 1),
        "one_all_threads_ms": (queries[1:2], None),
        "batch_ms": (queries[:BATCH], 1),
        "batch_all_threads_ms": (queries[:BATCH], None),
    }
    return {
        **{name: median_ms(index, some, threads) for name, (some, threads) in kinds.items()},
        "anonymous_mb": round(before, 1),
        "anonymous_growth_mb": round(anonymous_mb() - before, 1),
    }


def command_to_ask(path: Path, asked: Path) -> list[str]:
    """The same by another process, which prints it."""
    return [sys.executable, __file__, "--data=.", "--ask", str(path), str(asked)]


def ask_limited(path: Path, asked: Path) -> dict[str, Any]:
    """By a process that may hold a part of the file only, or why that could not be."""
    limit = PROCESS_BYTES + int(SHARE_CACHED * path.stat().st_size)
    _limit.forget(path)
    try:
        printed, most = _limit.run(command_to_ask(path, asked), limit, dict(os.environ))
    except _limit.NoLimitError as error:
        return {"missing": str(error)}
    return json.loads(printed) | {
        "limit_mb": round(limit / 1e6, 1),
        "most_mb": round(most / 1e6, 1),
        "machine": _machine.describe(),
    }


def written(data: Path, sizes: list[int], folder: Path) -> dict[int, float]:
    """Write what the folder does not hold yet: queries, and a file of each size.

    Returns
    -------
    dict
        Seconds that each file took.
    """
    taken_path = folder / "seconds.json"
    taken = json.loads(taken_path.read_text()) if taken_path.is_file() else {}
    missing = [n for n in sizes if str(n) not in taken]
    if missing:
        x = np.load(data / EMBEDDINGS).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        queries, items = x[:1_000], x[1_000:]
        np.save(folder / "queries.npy", queries)
        dictionary = sr.Dictionary.fit(items, n_atoms=4096, k=K, rounds=4, seed=0)
        mixed = np.concatenate(list(jittered(items, ENCODED)))
        codes = dictionary.encode(mixed, k=K)
        full = np.flatnonzero(np.diff(codes.indptr.astype(np.int64)) == K)
        codes = sr.SparseCodes.from_scipy(codes.to_scipy()[full])
        for n in missing:
            begun = time.perf_counter()
            write(folder / f"{n}.sridx", n, codes, dictionary)
            taken[str(n)] = round(time.perf_counter() - begun, 1)
            taken_path.write_text(json.dumps(taken))
    return {int(n): seconds for n, seconds in taken.items()}


def measure(data: Path, sizes: list[int], folder: Path) -> list[dict[str, Any]]:
    """Every size, as much memory as there is."""
    taken = written(data, sizes, folder)
    asked = folder / "queries.npy"
    rows: list[dict[str, Any]] = []
    for n in sizes:
        path = folder / f"{n}.sridx"
        command = command_to_ask(path, asked)
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(
            {
                "rows": n,
                "file_mb": round(path.stat().st_size / 1e6, 1),
                "write_s": taken[n],
                **json.loads(printed),
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_limited(data: Path, sizes: list[int], folder: Path) -> dict[str, Any]:
    """The largest size under a limit of memory."""
    written(data, sizes, folder)
    largest = folder / f"{sizes[-1]}.sridx"
    limited = {"rows": sizes[-1], **ask_limited(largest, folder / "queries.npy")}
    print(limited, flush=True)
    return limited


def described(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the result file holds of every size, with how the times grow."""
    ends = rows[0], rows[-1]
    steps = math.log(ends[1]["rows"] / ends[0]["rows"])
    return {
        "benchmark": "bench_scale",
        "command": "python benches/bench_scale.py --data PATH",
        "machine": _machine.describe(),
        "k": K,
        "depth": DEPTH,
        "batch": BATCH,
        "rows": rows,
        "exponents": {
            name: round(math.log(ends[1][name] / ends[0][name]) / steps, 3)
            for name in ("one_ms", "batch_ms")
        },
    }


def main() -> int:
    """Measure every size and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="keeps files for a later run; default: none")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "scale.json"
    )
    parser.add_argument(
        "--limited-alone", action="store_true", help="the part under a limit of memory alone"
    )
    parser.add_argument("--ask", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(*options.ask)))
        return 0
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.limited_alone:
            results = json.loads(options.out.read_text(encoding="utf-8"))
        else:
            results = described(measure(options.data, options.rows, folder))
        results["limited"] = measure_limited(options.data, options.rows, folder)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
