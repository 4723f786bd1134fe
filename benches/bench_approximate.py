"""Recall against latency of approximate search, ours and faiss's, one thread.

    python benches/bench_approximate.py --data PATH --cache FOLDER [--corpora catalogue jittered]

PATH is a folder with ``catalogue_minilm_f16.npy``: 1,000 rows are held out as queries, the rest
is the corpus ``catalogue``; ``jittered-100k``, ``jittered`` and ``jittered-10m`` are 100,000, a
million and ten million rows made of them (``_corpora.py``). FOLDER keeps corpora and indexes
between runs (13 GB with the largest), so that a run that was cut short goes on. Recall is the share
of the true 100 nearest (of the float16 embeddings) among the 100 returned; ``kept`` is
the share of what our exact search returns. Every setting is timed in every round, one after the
other: queries alone by the clock, their median, and a batch by the processor's time, which is
the same on an idle machine and does not count what others take of a busy one. Medians over the
rounds are written to ``benches/results/approximate.json``, which ``benches/render_docs.py``
turns into the tables and pictures of the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from _corpora import jittered
from sparse_retrieval.approximate import share_kept

EMBEDDINGS = "catalogue_minilm_f16.npy"
RESULTS = Path(__file__).resolve().parent / "results" / "approximate.json"
QUERIES = 1_000
#: rows of each corpus that is made
JITTERED = {"jittered-100k": 100_000, "jittered": 1_000_000, "jittered-10m": 10_000_000}
N_ATOMS, K_ROW, ROUNDS_OF_LEARNING = 4_096, 32, 8
K = 100
#: (clusters, rerank) of the sweep
SETTINGS = (
    (1, 100),
    (2, 125),
    (4, 150),
    (8, 200),
    (16, 300),
    (32, 400),
    (64, 600),
    (128, 800),
    (192, 1000),
    (256, 1200),
    (384, 1500),
    (512, 1500),
    (768, 2000),
    (1536, 3000),
    (3072, 4000),
)
NPROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EF_SEARCHES = (100, 128, 192, 256, 384, 512, 1024)
#: more than this HNSW32, 1.8 KB a row, is too slow to be built for here
MOST_ROWS_OF_HNSW = 1_000_000
#: what Flat, 1.5 KB a row, has no memory for here
MOST_ROWS_OF_FLAT = 2_000_000
TARGETS = (0.9, 0.95, 0.98, 0.99, 0.995)

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass
class Method:
    """Something that searches at one setting."""

    series: str
    setting: str
    bytes_per_item: float
    search: Search
    #: queries timed one by one in a round; slow ones get few
    singles: int = 100
    #: queries of the batch
    batch: int = 500


def load(corpus: str, data: Path, cache: Path) -> tuple[Any, NDArray[np.float32]]:
    """Items (n, d) in float16, perhaps mapped, and held-out unit queries."""
    x = np.load(data / EMBEDDINGS).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(x))
    queries, items = x[np.sort(order[:QUERIES])], x[np.sort(order[QUERIES:])]
    if corpus == "catalogue":
        return items.astype(np.float16), queries
    n = JITTERED[corpus]
    path = cache / f"{corpus}.npy"
    if not path.exists():
        beside = cache / f"{corpus}.part.npy"
        rows = np.lib.format.open_memmap(beside, "w+", np.float16, (n, x.shape[1]))
        start = 0
        for batch in jittered(items, n):
            rows[start : start + len(batch)] = batch
            start += len(batch)
        rows.flush()
        beside.replace(path)
    return np.load(path, mmap_mode="r"), queries


def learnt_dictionary(data: Path, cache: Path) -> sr.Dictionary:
    """Atoms of the catalogue, in half precision."""
    path = cache / "dictionary.safetensors"
    if not path.exists():
        items, _ = load("catalogue", data, cache)
        learnt = sr.Dictionary.fit(
            items.astype(np.float32), n_atoms=N_ATOMS, k=K_ROW, rounds=ROUNDS_OF_LEARNING, seed=0
        )
        sr.Dictionary(learnt.atoms.astype(np.float16)).save(path)
    return sr.Dictionary.load(path)


def our_index(corpus: str, items: Any, data: Path, cache: Path) -> tuple[sr.SparseIndex, Any]:
    """The index with clusters, and the seconds that clusters took, where they were made now."""
    path, timing = cache / f"{corpus}.sridx", cache / f"{corpus}.seconds.json"
    if not path.exists():
        plain = cache / f"{corpus}.plain.sridx"
        if not plain.exists():
            dictionary = learnt_dictionary(data, cache)
            sr.SparseIndex.from_codes(
                dictionary.encode(items, k=K_ROW),
                dictionary=dictionary,
                metric="cosine",
                value_bits=4,
                unit_items=True,
                modes=("dense", "sparse"),
            ).save(plain)
        start, cpu = time.perf_counter(), time.process_time()
        clustered = sr.SparseIndex.open(plain, mmap=False).with_clusters()
        taken = {
            "wall_s": round(time.perf_counter() - start, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
        }
        clustered.save(path)
        timing.write_text(json.dumps(taken))
    made = json.loads(timing.read_text()) if timing.exists() else None
    return sr.SparseIndex.open(path, mmap=False), made


def true_neighbours(
    items: Any, queries: NDArray[np.float32], path: Path, block: int = 32_768
) -> NDArray[np.int64]:
    """The K items of the largest inner product, in single precision; kept in a file."""
    if path.exists():
        found: NDArray[np.int64] = np.load(path)
        return found
    scores = np.empty((len(queries), 0), dtype=np.float32)
    ids = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(items), block):
        fresh = queries @ items[start : start + block].astype(np.float32).T
        scores = np.hstack([scores, fresh])
        ids = np.hstack([ids, np.arange(start, start + fresh.shape[1])[None].repeat(len(ids), 0)])
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        scores = np.take_along_axis(scores, best, axis=1)
        ids = np.take_along_axis(ids, best, axis=1)
    np.save(path, ids)
    return ids


def our_methods(index: sr.SparseIndex) -> Iterator[Method]:
    """Exact search, and the sweep of approximate search."""

    def search(setting: sr.Approximate | None) -> Search:
        return lambda q: index.search(q, K, approximate=setting, threads=1).ids

    scale = index.bytes_per_item
    dense = scale - 2 if "sparse" in index.modes else scale  # the scales of mode "sparse"
    grown = sum(
        section["bytes_per_item"]
        for section in index.stats()["sections"]
        if section["name"].startswith(("cluster", "sketches"))
    )
    exact_singles = 60 if len(index) <= 100_000 else 20 if len(index) <= MOST_ROWS_OF_FLAT else 5
    yield Method("ours, exact", "scan", dense, search(None), exact_singles)
    for clusters, rerank in SETTINGS:
        if clusters <= index.n_clusters:
            setting = sr.Approximate(clusters, rerank)
            yield Method(
                "ours, approximate",
                f"{clusters} clusters, {rerank} rows",
                dense + grown,
                search(setting),
            )


def faiss_index(spec: str, items: Any, path: Path) -> Any:
    """A faiss index of unit rows under the inner product; kept in a file."""
    if not path.exists():
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index = faiss.index_factory(items.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            step = max(1, len(items) // 200_000)
            index.train(items[::step].astype(np.float32))
        for start in range(0, len(items), 65_536):
            index.add(items[start : start + 65_536].astype(np.float32))
        faiss.write_index(index, str(path))
        faiss.omp_set_num_threads(1)
    return faiss.read_index(str(path))


def faiss_methods(corpus: str, items: Any, cache: Path) -> Iterator[Method]:
    """IVF with fast-scan PQ, and Flat and HNSW where they can be built."""
    n, d = items.shape

    def kept_index(spec: str) -> Any:
        return faiss_index(spec, items, cache / f"{corpus}.{spec.replace(',', '_')}.faiss")

    if n <= MOST_ROWS_OF_FLAT:
        flat = faiss.IndexFlatIP(d)
        for start in range(0, n, 65_536):
            flat.add(items[start : start + 65_536].astype(np.float32))
        few = 5 if n > 100_000 else 30
        yield Method("faiss Flat", "all", 4.0 * d, lambda q: flat.search(q, K)[1], few)
    for lists in (512, 1024) if n <= 100_000 else (1024,):
        spec = f"IVF{lists},PQ128x4fs"
        ivf = kept_index(spec)

        def search_lists(q: NDArray[np.float32], nprobe: int, ivf: Any = ivf) -> Any:
            ivf.nprobe = nprobe
            return ivf.search(q, K)[1]

        for nprobe in NPROBES:
            yield Method(
                f"faiss {spec}",
                f"nprobe {nprobe}",
                64 + 8,
                lambda q, nprobe=nprobe, search=search_lists: search(q, nprobe),
            )
    if n <= MOST_ROWS_OF_HNSW:
        graph = kept_index("HNSW32")

        def search_graph(q: NDArray[np.float32], ef: int) -> Any:
            graph.hnsw.efSearch = ef
            return graph.search(q, K)[1]

        for ef in EF_SEARCHES:
            yield Method(
                "faiss HNSW32",
                f"efSearch {ef}",
                4.0 * d + 2 * 32 * 4 + 4,
                lambda q, ef=ef: search_graph(q, ef),
            )


def timed(
    methods: list[Method], queries: NDArray[np.float32], rounds: int
) -> list[dict[str, float]]:
    """Milliseconds a query, alone (clock) and in a batch (processor), methods interleaved."""
    alone: list[list[float]] = [[] for _ in methods]
    batched: list[list[float]] = [[] for _ in methods]
    for number in range(rounds):
        for method, single, batch in zip(methods, alone, batched, strict=True):
            times = []
            for i in range(method.singles):
                query = queries[(number * method.singles + i) % len(queries)][None]
                start = time.perf_counter()
                method.search(query)
                times.append(time.perf_counter() - start)
            single.append(statistics.median(times))
            size = min(method.batch, 20 * method.singles)
            start = time.process_time()
            method.search(queries[:size])
            batch.append((time.process_time() - start) / size)
        print(f"  round {number + 1} of {rounds}", flush=True)
    return [
        {
            "ms_alone": round(1e3 * statistics.median(single), 4),
            "ms_batch": round(1e3 * statistics.median(batch), 4),
        }
        for single, batch in zip(alone, batched, strict=True)
    ]


def measure(corpus: str, data: Path, cache: Path, rounds: int) -> dict[str, Any]:
    """All methods on one corpus."""
    items, queries = load(corpus, data, cache)
    truth = true_neighbours(items, queries, cache / f"{corpus}.truth.npy")
    index, made = our_index(corpus, items, data, cache)
    print(f"{corpus}: {len(items):,} items, {index.n_clusters} clusters", flush=True)
    methods = [*our_methods(index), *faiss_methods(corpus, items, cache)]
    exact = methods[0].search(queries)
    rows = []
    for method in methods:
        found = method.search(queries)
        rows.append(
            {
                "series": method.series,
                "setting": method.setting,
                "bytes_per_item": round(method.bytes_per_item, 1),
                "recall": round(share_kept(truth, found), 4),
                "kept": round(share_kept(exact, found), 4)
                if method.series.startswith("ours")
                else None,
            }
        )
        print(" ", rows[-1], flush=True)
    for row, times in zip(rows, timed(methods, queries, rounds), strict=True):
        row.update(times)
    return {
        "items": len(items),
        "clusters": index.n_clusters,
        "made": made,
        "rows": rows,
        "tuned": tuned(index, queries),
    }


def tuned(index: sr.SparseIndex, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """What tuning finds, with half of the queries and with none, and what it keeps on the rest."""
    half, rest = queries[::2], queries[1::2]
    exact = index.search(rest, K).ids
    found = []
    for target in TARGETS:
        for source, asked in (("held-out queries", half), ("its own items", None)):
            setting = index.tune(target, asked, K)
            kept = index.search(rest, K, approximate=setting).ids
            found.append(
                {
                    "target": target,
                    "queries": source,
                    "clusters": setting.clusters,
                    "rerank": setting.rerank,
                    "reached": round((index.tuned or {})["reached"], 4),
                    "kept": round(share_kept(exact, kept), 4),
                }
            )
            print(" ", found[-1], flush=True)
    return found


def main() -> None:
    """Measure, and write the result file; corpora that are not asked for stay in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--corpora", nargs="+", default=["catalogue", *JITTERED])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"corpora": {}}
    for corpus in options.corpora:
        results["corpora"][corpus] = measure(corpus, options.data, options.cache, options.rounds)
        results["corpora"][corpus]["machine"] = _machine.describe()
        results["corpora"][corpus]["isa"] = sr._native.build_info()["isa"]
        results.update(
            command="python benches/bench_approximate.py --data PATH --cache FOLDER",
            depth=K,
            queries=QUERIES,
            model={"n_atoms": N_ATOMS, "k": K_ROW, "value_bits": 4},
        )
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
