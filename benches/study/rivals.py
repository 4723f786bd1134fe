"""The rivals, each as its documentation says it is best used; each library imported where used.

All learn from all items, but for OPQ and the additive quantisers (RQ, LSQ, PRQ, PLSQ), which learn
from a sample of up to SLOW_ROWS, seed 0; their iterations are faiss's own. All are scored by inner
product of unit rows, exhaustively unless the family says otherwise (HNSW, IVF). faiss's product
quantisers are learnt without the ordering of centroids that polysemous search needs (``np``): it
changes no score and takes nearly all of the time. Needs faiss-cpu, turbovec, usearch; ScaNN if it
is there.
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
from numpy.typing import NDArray

from sparse_retrieval.evaluate import pca_int8
from study.systems import (
    DECODED,
    DEPTH,
    Ids,
    Rows,
    Setting,
    System,
    mean_cosine,
    threads_to_build,
)

#: Rows that the families learn from which are slow to learn: 78 a centroid, where faiss asks for 39
#: to 256. The others learn from all.
SLOW_ROWS = 20_000
SLOW = ("OPQ", "RQ", "LSQ", "PRQ", "PLSQ")
#: families of which the stored form is decoded: one number or codeword for each place
DECODING = ("SQ", "PQ", "OPQ", "RQ", "LSQ")
#: candidates of a binary search that are rescored, as a multiple of what is asked for
OVERSAMPLE = 4
FAMILIES = {
    "SQ": "scalar",
    "PQ": "PQ",
    "OPQ": "OPQ",
    "RQ": "RQ, LSQ",
    "LSQ": "RQ, LSQ",
    "PRQ": "RQ, LSQ",
    "PLSQ": "RQ, LSQ",
    "RaBitQ": "RaBitQ",
    "RR": "RaBitQ",
    "HNSW": "HNSW",
    "IVF": "IVF",
}


def absent() -> list[str]:
    """Libraries of rivals that are not installed, whose settings are therefore left out."""
    names = ("faiss", "turbovec", "usearch", "scann")
    return [name for name in names if importlib.util.find_spec(name) is None]


def of_faiss(items: Rows, cache: Path, *, factory: str, effort: int = 0) -> System:
    """A faiss index, kept in the study's folder; ``effort`` is efSearch or nprobe."""
    import faiss

    path = cache / f"{factory.replace(',', '_')}.faiss"
    timing = path.with_suffix(".seconds")
    if not timing.is_file():
        faiss.omp_set_num_threads(threads_to_build())
        index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if factory.startswith("HNSW"):
            index.hnsw.efConstruction = 200
        elif factory.startswith("PQ"):
            index.pq.cp.min_points_per_centroid = 1  # small sets are studied on purpose
        learnt = items
        if factory.startswith(SLOW) and len(items) > SLOW_ROWS:
            learnt = items[np.random.default_rng(0).permutation(len(items))[:SLOW_ROWS]]
        begun = time.process_time()
        index.train(learnt)
        learn_s = time.process_time() - begun
        half = len(items) // 2
        index.add(items[:half])
        size = len(faiss.serialize_index(index))
        index.add(items[half:])
        encode_s = time.process_time() - begun - learn_s
        marginal = (len(faiss.serialize_index(index)) - size) / (len(items) - half)
        faiss.write_index(index, str(path))
        timing.write_text(f"{learn_s:.2f} {encode_s:.2f} {marginal:.6f}", encoding="ascii")
    index = faiss.read_index(str(path))
    learn_s, encode_s, marginal = map(float, timing.read_text(encoding="ascii").split())
    if factory.startswith("HNSW"):
        index.hnsw.efSearch = effort
    elif factory.startswith("IVF"):
        index.nprobe = effort

    def search(queries: Rows, threads: int) -> Ids:
        faiss.omp_set_num_threads(threads)
        found: Ids = index.search(queries, DEPTH)[1]
        return found

    shared = max(path.stat().st_size - marginal * len(items), 0.0)
    sampled = factory.startswith(SLOW) and len(items) > SLOW_ROWS
    note = f"learnt from {SLOW_ROWS:,} of the items" if sampled else ""
    decoded = None
    if factory.startswith(DECODING):
        count = min(DECODED, len(items))
        decoded = mean_cosine(items[:count], index.reconstruct_n(0, count))
    return System(marginal, shared, search, learn_s, encode_s, note, decoded)


def of_turbovec(items: Rows, cache: Path, *, bits: int) -> System:
    """A turbovec index, calibrated on up to 10,000 items; threads are set when it is imported."""
    import turbovec

    begun = time.process_time()
    index = turbovec.TurboQuantIndex(items.shape[1], bits)
    chosen = np.random.default_rng(0).permutation(len(items))[:10_000]
    index.calibrate(items[chosen])
    learn_s = time.process_time() - begun
    half = len(items) // 2
    index.add(items[:half])
    size = len(index.to_bytes())
    index.add(items[half:])
    encode_s = time.process_time() - begun - learn_s
    whole = len(index.to_bytes())
    marginal = (whole - size) / (len(items) - half)
    index.prepare()

    def search(queries: Rows, threads: int) -> Ids:
        return np.asarray(index.search(queries, DEPTH)[1], dtype=np.int64)

    return System(marginal, max(whole - marginal * len(items), 0.0), search, learn_s, encode_s)


def of_usearch(items: Rows, cache: Path, *, dtype: str, effort: int = 256) -> System:
    """A usearch graph over values of one kind; b1 are signs of what the mean leaves, by Hamming."""
    from usearch.index import Index

    binary = dtype == "b1"
    mean = items.mean(axis=0)

    def form(rows: Rows) -> NDArray[Any]:
        return np.packbits(rows > mean, axis=1) if binary else rows

    index = Index(
        ndim=items.shape[1],
        metric="hamming" if binary else "ip",
        dtype=dtype,
        expansion_search=effort,
    )
    begun = time.process_time()
    index.add(np.arange(len(items)), form(items), threads=threads_to_build())
    encode_s = time.process_time() - begun
    size = len(index.save() or b"")

    def search(queries: Rows, threads: int) -> Ids:
        found = index.search(form(queries), DEPTH, threads=threads)
        return np.atleast_2d(np.asarray(found.keys)).astype(np.int64)

    return System(size / len(items), 0.0, search, 0.0, encode_s)


def binary(items: Rows, cache: Path, *, rescored: bool) -> System:
    """One bit a coordinate, against float queries; or Hamming first and 8 bits for the best.

    Signs are of what the mean leaves. Rescored: the OVERSAMPLE x 100 nearest by signs are ordered
    by their 8-bit vectors (a scale a coordinate), which may lie on disk.
    """
    begun = time.process_time()
    mean = items.mean(axis=0)
    signs = np.where(items > mean, np.float32(1), np.float32(-1))
    scales = np.maximum(np.abs(items).max(axis=0), 1e-12) / 127  # a coordinate may be unused
    levels = np.rint(items / scales).astype(np.int8)
    encode_s = time.process_time() - begun
    width = items.shape[1]

    def search(queries: Rows, threads: int) -> Ids:
        scores = queries @ signs.T
        if not rescored:
            return _best(scores, DEPTH)
        candidates = _best(scores, min(OVERSAMPLE * DEPTH, len(items)))
        weighted = queries * scales
        exact = np.einsum("qcd,qd->qc", levels[candidates].astype(np.float32), weighted)
        return np.take_along_axis(candidates, _best(exact, DEPTH), axis=1)

    kept = width if rescored else 0
    note = f"of which {kept} may lie on disk" if rescored else ""
    return System(width / 8 + kept, 8.0 * width, search, 0.0, encode_s, note)


def pca(items: Rows, cache: Path, *, n_bytes: int) -> System:
    """Leading principal axes, 8 bits each and 2 bytes of scale."""
    begun = time.process_time()
    low = pca_int8(items, items[:1], n_bytes - 2)
    # the axes again, for queries that come later: what projects items onto themselves
    axes, *_ = np.linalg.lstsq(items.astype(np.float64), low.items.astype(np.float64), rcond=None)
    learn_s = time.process_time() - begun

    def search(queries: Rows, threads: int) -> Ids:
        return _best((queries @ axes).astype(np.float32) @ low.items.T, DEPTH)

    return System(low.bytes_per_item, 2.0 * axes.size, search, learn_s)


def of_scann(items: Rows, cache: Path, *, dims_per_block: int) -> System:
    """ScaNN's anisotropic quantiser without a tree, 4 bits a block, not reordered."""
    import scann

    begun = time.process_time()
    searcher = (
        scann.scann_ops_pybind.builder(items, DEPTH, "dot_product")
        .score_ah(dims_per_block, anisotropic_quantization_threshold=0.2)
        .build()
    )
    learn_s = time.process_time() - begun
    with tempfile.TemporaryDirectory() as folder:
        searcher.serialize(folder)
        files = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    blocks = -(-items.shape[1] // dims_per_block)
    shared = float(sum(size for name, size in files.items() if name != "hashed_dataset.npy"))

    def search(queries: Rows, threads: int) -> Ids:
        ask = searcher.search_batched if threads == 1 else searcher.search_batched_parallel
        return np.asarray(ask(queries)[0], dtype=np.int64)

    note = "its file gives each 4-bit code a byte; counted as 4 bits, as memory packs them"
    return System(blocks / 2, shared, search, learn_s, 0.0, note)


def _best(scores: NDArray[Any], depth: int) -> Ids:
    depth = min(depth, scores.shape[1])
    part = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def _faiss(factory: str, effort: int = 0, *, timed: bool = False) -> Setting:
    family = next(
        of
        for begin, of in sorted(FAMILIES.items(), key=lambda pair: -len(pair[0]))
        if factory.startswith(begin)
    )
    word = {"HNSW": "efSearch", "IVF": "nprobe"}.get(family)
    name = f"faiss {factory.removesuffix('np')}" + (f", {word} {effort}" if word else "")
    build: Callable[[Rows, Path], System] = functools.partial(
        of_faiss, factory=factory, effort=effort
    )
    return Setting(family, name, build, timed=timed)


def _divisors(width: int, wanted: tuple[int, ...]) -> list[int]:
    return [m for m in wanted if width % m == 0 and m <= width]


def settings(width: int, n_items: int, *, quick: bool = False) -> list[Setting]:
    """All rivals for rows of this width, the quick to learn first."""
    made = [
        _faiss("SQfp16", timed=not quick),
        _faiss("SQ8"),
        _faiss("SQ4"),
        Setting("binary", "binary, float queries", functools.partial(binary, rescored=False)),
        Setting("binary", "binary, 8 bits rescored", functools.partial(binary, rescored=True)),
    ]
    made += [
        Setting("PCA, 8 bits", f"PCA, {n} bytes", functools.partial(pca, n_bytes=n))
        for n in (34, 66, 98, 128)
        if n - 2 <= width
    ]
    bits = (1, 2, 4) if quick else (1, 2, 3, 4, 5, 6, 7, 8)
    rotated = f"RR{width},RaBitQ"
    made += [_faiss(rotated + ("" if b == 1 else str(b)), timed=b <= 2) for b in bits]
    blocks = _divisors(width, (32, 48, 64, 96, 128))
    if quick:
        blocks = [m for m in blocks if m in (32, 64)]
    made += [_faiss(f"PQ{m}x8np", timed=m == 64) for m in blocks]
    fast = _divisors(width, (64, 128, 192))
    made += [_faiss(f"PQ{m}x4fs", timed=True) for m in fast[1:2]]
    if importlib.util.find_spec("turbovec") and width % 8 == 0:
        made += [
            Setting(
                "turbovec",
                f"turbovec {b} bits",
                functools.partial(of_turbovec, bits=b),
                timed=b in (2, 4),
            )
            for b in (2, 3, 4)
        ]
    if importlib.util.find_spec("usearch"):
        made += [
            Setting("usearch", f"usearch {t}", functools.partial(of_usearch, dtype=t), timed=True)
            for t in (("i8",) if quick else ("f16", "i8", "b1"))
        ]
    if quick:
        return made
    if importlib.util.find_spec("scann"):
        made += [
            Setting(
                "ScaNN",
                f"ScaNN, {dims} dimensions a block",
                functools.partial(of_scann, dims_per_block=dims),
                timed=dims == 3,
            )
            for dims in (2, 3, 4, 6)
        ]
    made += [_faiss("HNSW32", effort, timed=True) for effort in (128, 256, 512)]
    lists = 1 << max(4, round(np.log2(4 * n_items**0.5)))
    made += [
        _faiss(f"IVF{lists},PQ{m}x4fs", effort, timed=True)
        for m in fast[1:2]
        for effort in (8, 32, 128)
        if effort < lists
    ]
    made += [_faiss(f"OPQ{m},PQ{m}x8np", timed=m == 64) for m in blocks]
    made += [_faiss(f"RQ{m}x8") for m in (32, 64)]
    return [*made, _faiss("PRQ8x8x8"), _faiss("PLSQ8x8x8"), _faiss("LSQ32x8")]
