"""The paper's sparse codes in the engines that hold such: ours, SINDI, kannolo and qdrant.

Items and queries are encoded by one CompresSAE (k = 32 of 4,096 latents), scaled to unit norm and
searched by inner product, which is the cosine of the codes: the mode "sparse". All engines here are
exact, so they find the same but for ties and rounding; what differs is what an item takes in their
serialised form. Each library is imported where used and left out where it is absent.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sparse_retrieval as sr
from study.systems import DEPTH, Ids, Rows, Setting, System

LATENTS, NONZEROS, STEPS, SEED = 4096, 32, 600, 0
FAMILY = "CompresSAE codes"
#: of queries as codes, the ids of the best
Search = Callable[[sr.SparseCodes], Ids]
#: of codes and an empty folder: the search, and the bytes of what it serialises to
Engine = Callable[[sr.SparseCodes, Path], tuple[Search, int]]


def model(items: Rows, cache: Path) -> tuple[Any, float]:
    """The CompresSAE of a set and the processor seconds of its training, kept in the folder."""
    folder, timing = cache / "compressae", cache / "compressae.seconds"
    if not timing.is_file():
        made = sr.CompresSAE(input_dim=items.shape[1], hidden_dim=LATENTS, k=NONZEROS)
        begun = time.process_time()
        sr.train(made, items, steps=STEPS, seed=SEED, progress=False)
        made.save_pretrained(folder)
        timing.write_text(f"{time.process_time() - begun:.1f}", encoding="ascii")
    return sr.CompresSAE.from_pretrained(folder), float(timing.read_text(encoding="ascii"))


def unit(codes: sr.SparseCodes) -> sr.SparseCodes:
    """The same codes, each of norm 1."""
    row = np.repeat(np.arange(len(codes)), np.diff(codes.indptr.astype(np.int64)))
    norms = np.sqrt(np.bincount(row, codes.values.astype(np.float64) ** 2, len(codes)))
    values = (codes.values / np.where(norms > 0, norms, 1.0)[row]).astype(np.float32)
    return sr.SparseCodes.from_csr(codes.indptr, codes.latents, values, codes.dim)


def in_ours(codes: sr.SparseCodes, folder: Path, *, value_bits: int) -> tuple[Search, int]:
    """Our rows without postings, in so many bits a value."""
    index = sr.SparseIndex.from_codes(codes, metric="cosine", value_bits=value_bits)
    index.save(folder / "items.sridx")
    size = (folder / "items.sridx").stat().st_size
    return lambda queries: index.search(queries, DEPTH).ids, size


def in_sindi(codes: sr.SparseCodes, folder: Path) -> tuple[Search, int]:
    """SINDI of VSAG, neither pruned nor quantised."""
    from bench_sparse_search import pyvsag_index, pyvsag_search

    index = pyvsag_index(codes, 60_000)
    index.save(str(folder / "index"))
    return lambda queries: pyvsag_search(index, queries, DEPTH), (folder / "index").stat().st_size


def in_kannolo(codes: sr.SparseCodes, folder: Path) -> tuple[Search, int]:
    """Kannolo's flat index."""
    from bench_sparse_search import kannolo_index, kannolo_search

    index = kannolo_index(codes)
    index.save(str(folder / "index"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return lambda queries: kannolo_search(index, queries, DEPTH), size


def in_qdrant(codes: sr.SparseCodes, folder: Path) -> tuple[Search, int]:
    """Qdrant's own engine in this process (qdrant-edge), optimised; without its log of writes."""
    import qdrant_edge as edge

    params = edge.EdgeSparseVectorParams()
    config = edge.EdgeConfig(sparse_vectors={"code": params}, wal_enabled=False)
    shard = edge.EdgeShard.create(str(folder), config)

    def vector(of: sr.SparseCodes, row: int) -> Any:
        part = slice(int(of.indptr[row]), int(of.indptr[row + 1]))
        return edge.SparseVector(of.latents[part].tolist(), of.values[part].tolist())

    for start in range(0, len(codes), 2_000):
        rows = range(start, min(start + 2_000, len(codes)))
        points = [edge.Point(row, {"code": vector(codes, row)}) for row in rows]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    shard.flush()
    # what is allocated: sparse files of the engine are larger on paper than on disk
    size = sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())

    def search(queries: sr.SparseCodes) -> Ids:
        found = np.full((len(queries), DEPTH), -1, dtype=np.int64)
        for row in range(len(queries)):
            query = edge.Query.Nearest(vector(queries, row), using="code")
            points = shard.search(edge.SearchRequest(query=query, limit=DEPTH))
            found[row, : len(points)] = [point.id for point in points]
        return found

    return search, size


def built(items: Rows, cache: Path, *, engine: Engine) -> System:
    """Codes of all items in an engine; bytes are what the second half of the items adds."""
    learnt, learn_s = model(items, cache)
    begun = time.process_time()
    codes = unit(learnt.sparse_codes(items))
    encode_s = time.process_time() - begun
    half = len(codes) // 2
    with tempfile.TemporaryDirectory() as folder:
        _, size = engine(codes[:half], Path(folder))
    kept = tempfile.TemporaryDirectory()
    ask, whole = engine(codes, Path(kept.name))
    marginal = (whole - size) / (len(codes) - half)

    def search(queries: Rows, threads: int) -> Ids:
        assert kept.name  # lives as long as the search does
        return ask(unit(learnt.sparse_codes(queries)))

    shared = max(whole - marginal * len(codes), 0.0)
    note = f"{STEPS} steps of training; queries are encoded too, mode sparse"
    return System(marginal, shared, search, learn_s, encode_s, note)


def settings() -> list[Setting]:
    """The engines that are installed, ours first."""
    engines: dict[str, tuple[str, Engine]] = {
        f"our index, {bits} bits a value": (
            "sparse_retrieval",
            functools.partial(in_ours, value_bits=bits),
        )
        for bits in (4, 8, 32)
    }
    engines |= {
        "SINDI": ("pyvsag", in_sindi),
        "kannolo": ("kannolo", in_kannolo),
        "qdrant": ("qdrant_edge", in_qdrant),
    }
    return [
        Setting(FAMILY, f"CompresSAE codes in {name}", functools.partial(built, engine=engine))
        for name, (module, engine) in engines.items()
        if importlib.util.find_spec(module) is not None
    ]
