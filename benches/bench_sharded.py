"""Shards on Ray actors: latency and throughput beside one index, and what killed actors do to both.

    python benches/bench_sharded.py --index FILE --queries FILE [--out FILE]

FILE is an index that serves the mode dense, and embeddings (.npy). The index is cut into SHARDS
files. Callers are threads of this process that ask without a pause for SECONDS seconds; every
answer is compared with that of the one index, byte for byte. In the last rows an actor's process
is killed with SIGKILL every second.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from sparse_retrieval.distributed import ShardedIndex, split

SECONDS = 6.0
SHARDS = 4
K = 10


def load(
    search: Callable[[NDArray[np.float32]], sr.SearchResult],
    queries: NDArray[np.float32],
    expected: sr.SearchResult,
    *,
    callers: int,
    per: int,
    beside: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Let callers ask; latencies, and answers that differ."""
    stop = time.perf_counter() + SECONDS
    latencies: list[float] = []
    wrong: list[int] = []
    errors: list[str] = []

    def ask(caller: int) -> None:
        at = caller * per
        while time.perf_counter() < stop:
            at = (at + per) % (len(queries) - per + 1)
            begun = time.perf_counter()
            try:
                found = search(queries[at : at + per])
            except Exception as error:
                errors.append(repr(error))
                continue
            latencies.append((time.perf_counter() - begun) * 1000)
            same = found.scores.tobytes() == expected.scores[at : at + per].tobytes()
            if not same or found.ids.tobytes() != expected.ids[at : at + per].tobytes():
                wrong.append(at)

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(callers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    if beside is not None:
        beside(stop)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    return {
        "callers": callers,
        "per_request": per,
        "answers": len(latencies),
        "per_s": len(latencies) / seconds,
        "ms_median": float(np.median(latencies)),
        "ms_p99": float(np.quantile(latencies, 0.99)),
        "ms_most": float(np.max(latencies)),
        "wrong": len(wrong),
        "errors": errors[:3],
        "failed": len(errors),
    }


def measured(index: sr.SparseIndex, queries: NDArray[np.float32], folder: Path) -> list[Any]:
    """One index, its shards, and its shards while actors are killed."""
    expected = index.search(queries, K)
    assert index.path is not None
    paths = split(index.path, folder, SHARDS)
    rows = []
    for callers, per in ((1, 1), (4, 1), (1, 64)):
        found = load(lambda q: index.search(q, K), queries, expected, callers=callers, per=per)
        rows.append({"what": "one index", "replicas": None, **found})
    for replicas in (1, 2):
        with ShardedIndex(paths, replicas=replicas, threads=1) as shards:

            def search(q: NDArray[np.float32]) -> sr.SearchResult:
                return shards.search(q, K)

            search(queries)  # every replica has its file in memory
            for callers, per in ((1, 1), (4, 1), (1, 64)) if replicas == 1 else ():
                found = load(search, queries, expected, callers=callers, per=per)
                rows.append({"what": f"{SHARDS} shards", "replicas": replicas, **found})
            kills = 0

            def kill(stop: float) -> None:
                nonlocal kills
                rng = np.random.default_rng(0)
                while time.perf_counter() < stop - 1:
                    time.sleep(1)
                    shard = shards._shards[int(rng.integers(SHARDS))]
                    info = shard.replicas[0].actor.call.remote("info")
                    try:
                        os.kill(shards._ray.get(info)["pid"], signal.SIGKILL)
                        kills += 1
                    except Exception:  # it is on its way up again: the next one will do
                        continue

            found = load(search, queries, expected, callers=4, per=1, beside=kill)
            rows.append(
                {
                    "what": f"{SHARDS} shards, actors killed",
                    "replicas": replicas,
                    "killed": kills,
                    "restarts": shards.health()["restarts"],
                    **found,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/sharded.json")
    arguments = parser.parse_args()
    queries = np.load(arguments.queries).astype(np.float32)
    index = sr.SparseIndex.open(arguments.index)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(index, queries, Path(folder))
    results = {
        "benchmark": "sharded",
        "command": "python benches/bench_sharded.py --index FILE --queries FILE",
        "rows": rows,
        "machine": _machine.describe(("ray",)),
        "index": {"items": len(index), "bytes_per_item": index.bytes_per_item},
        "shards": SHARDS,
        "k": K,
        "seconds": SECONDS,
    }
    assert all(row["wrong"] == 0 for row in rows), rows
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
