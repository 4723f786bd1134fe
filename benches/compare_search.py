"""Latency of dense search against faiss and turbovec, at 66 bytes an item and beside it.

    python benches/compare_search.py --data PATH [--rows 62666 1000000] [--threads 1 2]

PATH is a folder with ``catalogue_minilm_f16.npy``. 1,000 rows are held out as queries; more rows
than there are come from ``_corpora.jittered``. Every system holds the same rows, learnt from the
same sample, and answers the same queries for the best 100, in one batch and one by one. Rounds go
around all systems, so that whatever else the machine does meets all of them; medians are kept.
Each number of rows and threads is a process of its own, whose results are added to the file or
take the place of what it holds of them and of the same instruction set.

faiss's and turbovec's codes are compared with exact scores as ours are: recall is measured here
too. OPQ's rotation, which takes long to learn, is learnt from a sample, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
from _corpora import jittered

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES, DEPTH = 1_000, 100
SAMPLE = 20_000
SINGLE = 50
ROUNDS = 5
Rows = NDArray[np.float32]
Search = Callable[[Rows], NDArray[np.int64]]


@dataclass
class System:
    """One index that is asked."""

    name: str
    bytes_per_item: float
    search: Search
    #: queries of the batch; fewer where a batch takes seconds
    batch: int = QUERIES


def corpus(data: Path, n: int) -> tuple[Rows, Rows]:
    """``n`` items and the held-out queries."""
    x = np.load(data / EMBEDDINGS).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(x))
    queries, items = x[np.sort(order[:QUERIES])], x[np.sort(order[QUERIES:])]
    if n > len(items):
        items = np.concatenate(list(jittered(items, n)))
    return items[:n], queries


def ours(items: Rows, threads: int, k_row: int | None = None) -> list[System]:
    """Our index at 34 and 66 bytes."""
    import sparse_retrieval as sr

    sample = items[np.random.default_rng(1).permutation(len(items))[:60_000]]
    fitted = sr.Dictionary.fit(sample, n_atoms=4096, k=32, rounds=8, seed=0)
    dictionary = sr.Dictionary(fitted.atoms.astype(np.float16))
    systems = []
    for k in (32, 16):
        index = sr.SparseIndex.from_codes(
            dictionary.encode(items, k=k),
            dictionary=dictionary,
            metric="cosine",
            value_bits=4,
            unit_items=True,
            modes=("dense",),
        )

        def search(q: Rows, index: sr.SparseIndex = index) -> NDArray[np.int64]:
            return index.search(q, DEPTH, threads=threads).ids

        systems.append(System(f"sparse_retrieval, k = {k}", index.bytes_per_item, search))
    return systems


def of_faiss(items: Rows, factory: str) -> System:
    """A faiss index, learnt from a sample of the items."""
    import faiss

    index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if factory.startswith("OPQ"):
        # a rotation is learnt for its speed here, not for its recall
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 5
    rng = np.random.default_rng(1)
    index.train(items[rng.permutation(len(items))[:SAMPLE]])
    half = min(len(items) // 2, 10_000)
    index.add(items[:half])
    size = len(faiss.serialize_index(index))
    index.add(items[half : 2 * half])
    size = (len(faiss.serialize_index(index)) - size) / half
    index.add(items[2 * half :])
    if factory.startswith("HNSW"):
        index.hnsw.efSearch = 256
    batch = 100 if factory.startswith("OPQ") else QUERIES
    return System(f"faiss {factory}", size, lambda q: index.search(q, DEPTH)[1], batch)


def of_turbovec(items: Rows, bits: int) -> System:
    """A turbovec index, calibrated on a sample of the items."""
    import turbovec

    index = turbovec.TurboQuantIndex(items.shape[1], bits)
    rng = np.random.default_rng(1)
    index.calibrate(items[rng.permutation(len(items))[:10_000]])
    half = min(len(items) // 2, 10_000)
    index.add(items[:half])
    size = len(index.to_bytes())
    index.add(items[half : 2 * half])
    size = (len(index.to_bytes()) - size) / half
    index.add(items[2 * half :])
    index.prepare()
    return System(
        f"turbovec {bits} bits",
        size,
        lambda q: np.asarray(index.search(q, DEPTH)[1], dtype=np.int64),
    )


def systems(items: Rows, threads: int) -> list[System]:
    """All that is compared."""
    factories = ["Flat", "PQ128x4fs", "RR384,RaBitQfs", "OPQ64_384,PQ64x8", "HNSW32"]
    made = ours(items, threads)
    made += [of_faiss(items, factory) for factory in factories]
    made += [of_turbovec(items, bits) for bits in (2, 3, 4)]
    return made


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of the true ids found."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True))
    return round(hits / truth.size, 4)


def measure(data: Path, n: int, threads: int) -> dict[str, Any]:
    """Build everything, then ask in turn."""
    import faiss

    import sparse_retrieval as sr

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    items, queries = corpus(data, n)
    compared = systems(items, threads)
    faiss.omp_set_num_threads(threads)
    flat = next(system for system in compared if system.name == "faiss Flat")
    truth = flat.search(queries)
    rows: dict[str, dict[str, Any]] = {}
    for system in compared:
        found = system.search(queries[: system.batch])
        rows[system.name] = {
            "system": system.name,
            "bytes": round(system.bytes_per_item, 1),
            "recall": recall(found, truth[: len(found)]),
        }
    times: dict[str, dict[str, list[float]]] = {
        system.name: {"batch": [], "single": []} for system in compared
    }
    for _ in range(ROUNDS):
        for system in compared:
            begun = time.perf_counter()
            system.search(queries[: system.batch])
            times[system.name]["batch"].append((time.perf_counter() - begun) / system.batch)
            begun = time.perf_counter()
            for query in queries[:SINGLE]:
                system.search(query[None])
            times[system.name]["single"].append((time.perf_counter() - begun) / SINGLE)
    for name, row in rows.items():
        for kind, seconds in times[name].items():
            row[f"{kind}_ms"] = round(1e3 * statistics.median(seconds), 4)
            row[f"{kind}_ms_least"] = round(1e3 * min(seconds), 4)
    return {
        "rows": n,
        "threads": threads,
        "isa": sr._native.build_info()["isa"],
        "systems": list(rows.values()),
        "machine": _machine.describe(),
    }


def key_of(part: dict[str, Any]) -> tuple[int, int, str]:
    """What a part of the result file is of."""
    return part["rows"], part["threads"], part["isa"]


def write(path: Path, parts: list[dict[str, Any]]) -> None:
    """The result file, small corpora first."""
    results = {
        "benchmark": "compare_search",
        "command": "python benches/compare_search.py --data PATH",
        "depth": DEPTH,
        "queries": QUERIES,
        "sample": SAMPLE,
        "parts": sorted(parts, key=key_of),
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Run every size and number of threads in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--rows", type=int, nargs="+", default=[62_666, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "search.json"
    )
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = measure(options.data, options.rows[0], options.threads[0])
        options.out.write_text(json.dumps(part), encoding="utf-8")
        return 0
    # parts stay as they were measured until they are measured again
    old = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    parts = {key_of(part): part for part in old.get("parts", [])}
    for n in options.rows:
        for threads in options.threads:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "part.json"
                environment = os.environ | {
                    "RAYON_NUM_THREADS": str(threads),
                    "OMP_WAIT_POLICY": "passive",
                }
                arguments = [f"--data={options.data}", f"--out={out}", "--part"]
                arguments += ["--rows", str(n), "--threads", str(threads)]
                subprocess.run([sys.executable, __file__, *arguments], check=True, env=environment)
                part = json.loads(out.read_text(encoding="utf-8"))
            parts[key_of(part)] = part
            write(options.out, list(parts.values()))
            print(f"{n} rows, {threads} threads")
            for row in part["systems"]:
                print(
                    f"  {row['system']:28} {row['bytes']:7.1f} B  recall {row['recall']:.4f}  "
                    f"batch {row['batch_ms']:8.4f} ms  single {row['single_ms']:8.4f} ms",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
