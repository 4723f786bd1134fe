"""Exact sparse search: postings against the peers that install, one thread, one truth.

    python benches/bench_sparse_search.py --data PATH [--cache FOLDER] [--out FILE]

PATH is a file of embeddings (.npy). 1,000 rows (seed 0) are held out; their pursuit codes of 32
nonzeros are the queries. Two corpora of codes of as many nonzeros: the other rows, and 1,000,000
rows made by jittering them (`_corpora.py`). Dictionary and codes are kept in the cache.

All methods answer the same queries, one thread each, a part of the queries at a time, in turn; what
counts is the median over the parts. CPU time is beside wall time, since on a machine with other
work wall times say little. Peers store float32 values; ours is measured with values in 32 bits,
so that all rank by the same numbers, and in 4 bits. Every answer is compared: `agreement` is
the share of our (exact) k best that the method returns. Peers that have settings are measured
with each of those listed here, and the fastest is kept. A peer that is not installed is named in
the result file and left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import _machine
import sparse_retrieval as sr
from _corpora import jittered
from sparse_retrieval._files import replacing

ATOMS, NONZEROS, ROUNDS, HELD_OUT = 4096, 32, 8, 1_000
PEERS = ("scipy", "sparse_dot_topn", "sp_matmul_rs", "pyvsag", "kannolo")
Ids = NDArray[np.integer[Any]]
Method = Callable[[sr.SparseCodes, int], Ids]


class Cache:
    """Dictionary, queries and codes, made from the embeddings or read back."""

    def __init__(self, data: Path, folder: Path, jittered_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        x = np.load(data).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        order = np.random.default_rng(0).permutation(len(x))
        self.items = x[np.sort(order[HELD_OUT:])]
        path = folder / "dictionary.safetensors"
        if not path.is_file():
            learnt = sr.Dictionary.fit(self.items, ATOMS, NONZEROS, rounds=ROUNDS, seed=0)
            sr.Dictionary(learnt.atoms.astype(np.float16)).save(path)
        self.dictionary = sr.Dictionary.load(path)
        self.queries = self.dictionary.encode(x[np.sort(order[:HELD_OUT])], k=NONZEROS)
        self.jittered_rows = jittered_rows

    def codes(self, name: str) -> sr.SparseCodes:
        """Codes of the corpus "real" or "jittered"."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            batches = [self.items] if name == "real" else jittered(self.items, self.jittered_rows)
            parts = [self.dictionary.encode(batch, k=NONZEROS) for batch in batches]
            made = sr.SparseCodes.concatenate(parts)
            np.savez(path, indptr=made.indptr, latents=made.latents, values=made.values)
        kept = np.load(path)
        return sr.SparseCodes.from_csr(
            kept["indptr"], kept["latents"].astype(np.int64), kept["values"], ATOMS
        )


def _csr(codes: sr.SparseCodes) -> sp.csr_matrix:
    shape = (len(codes), codes.dim)
    parts = (codes.values, codes.latents.astype(np.int32), codes.indptr.astype(np.int32))
    return sp.csr_matrix(parts, shape=shape)


def ours(index: sr.SparseIndex) -> Method:
    """One call of our search."""
    return lambda queries, k: index.search(queries, k, mode="sparse", threads=1).ids


def by_scipy(codes: sr.SparseCodes) -> dict[str, Method]:
    """Sparse times sparse, then a selection in each row of the product."""
    columns = _csr(codes).T.tocsr()

    def search(queries: sr.SparseCodes, k: int) -> Ids:
        product = (_csr(queries) @ columns).tocsr()
        found = np.full((len(queries), k), -1)
        for row, (start, end) in enumerate(
            zip(product.indptr[:-1], product.indptr[1:], strict=True)
        ):
            values = product.data[start:end]
            best = np.argpartition(-values, min(k, len(values)) - 1)[:k]
            best = best[np.argsort(-values[best], kind="stable")]
            found[row, : len(best)] = product.indices[start:end][best]
        return found

    return {"": search}


def _from_top_n(function: Callable[..., Any], columns: Any, **options: Any) -> Method:
    def search(queries: sr.SparseCodes, k: int) -> Ids:
        product = function(_csr(queries), columns, top_n=k, sort=True, n_threads=1, **options)
        found = np.full((len(queries), k), -1)
        for row in range(len(queries)):
            ids = product.indices[product.indptr[row] : product.indptr[row + 1]]
            found[row, : len(ids)] = ids
        return found

    return search


def by_sparse_dot_topn(codes: sr.SparseCodes) -> dict[str, Method]:
    """Return the fused product and selection in C++."""
    import sparse_dot_topn

    return {"": _from_top_n(sparse_dot_topn.sp_matmul_topn, _csr(codes).T.tocsr())}


def by_sp_matmul_rs(codes: sr.SparseCodes) -> dict[str, Method]:
    """Return the fused product and selection in Rust, by chunks of columns."""
    import sp_matmul_rs

    columns = _csr(codes).T.tocsr()
    return {
        f"chunk_cols={chunk}": _from_top_n(sp_matmul_rs.sp_matmul_topn, columns, chunk_cols=chunk)
        for chunk in (None, 16_384, 65_536)
    }


def pyvsag_index(codes: sr.SparseCodes, window: int) -> Any:
    """SINDI without pruning or quantisation, which is then exact."""
    import pyvsag

    pyvsag.set_logger_off()
    settings = {"use_reorder": False, "doc_prune_ratio": 0.0, "window_size": window}
    settings |= {"use_quantization": False, "term_id_limit": codes.dim}
    described = {"dtype": "sparse", "metric_type": "ip", "dim": NONZEROS}
    index = pyvsag.Index("sindi", json.dumps(described | {"index_param": settings}))
    parts = (codes.indptr.astype(np.uint32), codes.latents.astype(np.uint32), codes.values)
    index.build(*parts, np.arange(len(codes)))
    return index


def pyvsag_search(index: Any, queries: sr.SparseCodes, k: int) -> Ids:
    """Ask query by query, as it is asked."""
    asked = {"n_candidate": k, "query_prune_ratio": 0.0, "term_prune_ratio": 0.0}
    parameters = json.dumps({"sindi": asked})
    found = np.full((len(queries), k), -1)
    for row in range(len(queries)):
        one = queries[row : row + 1]
        ends = np.array([0, one.nnz], np.uint32)
        latents = one.latents.astype(np.uint32)
        ids = np.ravel(index.knn_search(ends, latents, one.values, k, parameters)[0])
        found[row, : len(ids)] = ids
    return found


def by_pyvsag(codes: sr.SparseCodes) -> dict[str, Method]:
    """SINDI with windows of two sizes."""
    return {
        f"window_size={window}": functools.partial(pyvsag_search, pyvsag_index(codes, window))
        for window in (10_000, 60_000)
    }


def kannolo_index(codes: sr.SparseCodes) -> Any:
    """Kannolo's flat index."""
    import kannolo

    return kannolo.SparseFlatIndex.build_from_arrays(
        codes.latents.astype(np.int32), codes.values, codes.indptr.astype(np.int64)
    )


def kannolo_search(index: Any, queries: sr.SparseCodes, k: int) -> Ids:
    """All queries in one call, on one thread."""
    parts = (queries.latents.astype(np.int32), queries.values, queries.indptr.astype(np.int64))
    ids = index.batch_search(*parts, k, num_threads=1)[1]
    return np.asarray(ids).reshape(len(queries), k)


def by_kannolo(codes: sr.SparseCodes) -> dict[str, Method]:
    """Return its flat index."""
    return {"": functools.partial(kannolo_search, kannolo_index(codes))}


def timed(method: Method, queries: sr.SparseCodes, k: int) -> tuple[Ids, float, float]:
    """What it found, and milliseconds a query of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = method(queries, k)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return found, wall / len(queries) * 1e3, cpu / len(queries) * 1e3


def fastest(settings: dict[str, Method], queries: sr.SparseCodes, k: int) -> str:
    """Name the setting that takes the least CPU time, best of two."""
    times = {
        name: min(timed(method, queries, k)[2] for _ in range(2))
        for name, method in settings.items()
    }
    return min(times, key=lambda name: times[name])


def measured(
    methods: dict[str, dict[str, Method]], queries: sr.SparseCodes, k: int, parts: int, size: int
) -> list[dict[str, Any]]:
    """Rows of the table: every method on the same parts of the queries, in turn."""
    chosen = {name: fastest(settings, queries[:20], k) for name, settings in methods.items()}
    walls: dict[str, list[float]] = {name: [] for name in methods}
    cpus: dict[str, list[float]] = {name: [] for name in methods}
    shared: dict[str, list[float]] = {name: [] for name in methods}
    for part in range(parts):
        asked = queries[part * size : (part + 1) * size]
        truth: Ids | None = None
        for name, settings in methods.items():
            found, wall, cpu = timed(settings[chosen[name]], asked, k)
            truth = found if truth is None else truth
            walls[name].append(wall)
            cpus[name].append(cpu)
            both = [
                len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)
            ]
            shared[name].append(sum(both) / found.size)
    reference = statistics.median(cpus[next(iter(methods))])
    rows = []
    for name in methods:
        cpu = statistics.median(cpus[name])
        rows.append(
            {
                "method": name,
                "setting": chosen[name],
                "k": k,
                "cpu_ms": cpu,
                "wall_ms": statistics.median(walls[name]),
                "times_ours": cpu / reference,
                "agreement": statistics.mean(shared[name]),
            }
        )
        print(f"{name:34} {chosen[name]:20} k={k:<4} {rows[-1]}", flush=True)
    return rows


def touched(codes: sr.SparseCodes, queries: sr.SparseCodes) -> tuple[float, float]:
    """Mean postings of a query: all, and those whose sign agrees with the query's."""
    items, asked = _csr(codes).tocsc(), _csr(queries)
    positive = np.bincount(codes.latents[codes.values > 0], minlength=codes.dim)
    all_of = np.diff(items.indptr)
    gains = np.where(asked.data > 0, positive[asked.indices], (all_of - positive)[asked.indices])
    return all_of[asked.indices].sum() / len(queries), gains.sum() / len(queries)


def of_corpus(cache: Cache, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every method on one corpus, for each k."""
    codes, queries = cache.codes(name), cache.queries
    plain = {bits: sr.SparseIndex.from_codes(codes, value_bits=bits) for bits in (32, 4)}
    fast = {bits: index.with_postings() for bits, index in plain.items()}
    methods: dict[str, dict[str, Method]] = {
        "ours, 32-bit values": {"": ours(fast[32])},
        "ours, 4-bit values": {"": ours(fast[4])},
        "ours, 4-bit values, query by query": {
            "": lambda q, k: np.concatenate([ours(fast[4])(q[i : i + 1], k) for i in range(len(q))])
        },
        "ours, 32-bit values, no postings": {"": ours(plain[32])},
    }
    by_peer = {
        "scipy": by_scipy,
        "sparse_dot_topn": by_sparse_dot_topn,
        "sp_matmul_rs": by_sp_matmul_rs,
        "pyvsag": by_pyvsag,
        "kannolo": by_kannolo,
    }
    for peer in PEERS:
        if importlib.util.find_spec(peer) is not None:
            methods[peer] = by_peer[peer](codes)
    rows = []
    for k in (10, 100):
        rows += measured(methods, queries, k, options.parts, options.part)
    every, gaining = touched(codes, queries)
    stats = fast[4].stats()["postings"]
    return {
        "items": len(codes),
        "postings_a_query": every,
        "postings_of_right_sign": gaining,
        "postings_bytes_per_item": stats["bytes_per_item"],
        "rows": rows,
    }


def main() -> None:
    """Measure both corpora and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="embeddings (n, d), .npy")
    parser.add_argument("--cache", type=Path, default=Path("bench-cache"))
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the jittered corpus")
    parser.add_argument("--parts", type=int, default=10, help="parts of the queries")
    parser.add_argument("--part", type=int, default=100, help="queries of a part")
    default = Path(__file__).parent / "results" / "sparse_search.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    cache = Cache(options.data, options.cache, options.rows)
    results: dict[str, Any] = {
        "benchmark": "sparse_search",
        "command": "python benches/bench_sparse_search.py --data PATH",
        "machine": _machine.describe(PEERS),
        "atoms": ATOMS,
        "nonzeros": NONZEROS,
        "queries": HELD_OUT,
        "isa": sr._native.build_info()["isa"],
        "missing": [peer for peer in PEERS if importlib.util.find_spec(peer) is None],
        "corpora": {},
    }
    with threadpool_limits(1):
        for name in ("real", "jittered"):
            results["corpora"][name] = of_corpus(cache, name, options)
            with replacing(options.out) as path:
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
