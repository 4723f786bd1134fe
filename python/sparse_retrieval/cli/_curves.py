"""Points of recall against bytes, for the demo and the benchmarks. Knows nothing of files.

The codes of one encoding at the largest k hold those of every smaller k (their largest
magnitudes), so a whole curve costs one encoding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_retrieval.evaluate import (
    Report,
    evaluate_index,
    exact_top_k,
    pca_int8,
    principal_axes,
    recall_at,
)

if TYPE_CHECKING:
    from sparse_retrieval import Dictionary, SparseCodes
    from sparse_retrieval.index import Mode

MODES: tuple[Mode, ...] = ("sparse", "reconstructed", "dense")


@dataclass(frozen=True)
class Point:
    """One compression, measured.

    Attributes
    ----------
    series : str
        The line of the picture that it belongs to.
    setting : str
        What distinguishes it from the others of its line: ``"k=32"``.
    bytes_per_item : float
        Everything that grows with the number of items.
    recall : float
        recall@depth against exact search.
    """

    series: str
    setting: str
    bytes_per_item: float
    recall: float


def queries_for(mode: str, dense: NDArray[Any], codes: SparseCodes) -> Any:
    """Return the form of the queries that a mode takes."""
    return dense if mode == "dense" else codes


def curve(
    codes: SparseCodes,
    query_codes: SparseCodes,
    queries: NDArray[Any],
    dictionary: Dictionary,
    true_ids: NDArray[np.int64],
    *,
    ks: Iterable[int],
    value_bits: int,
    depth: int = 100,
    modes: Sequence[Mode] = MODES,
) -> list[Point]:
    """Measure each mode at several numbers of nonzeros.

    Parameters
    ----------
    codes, query_codes : SparseCodes
        Of items and queries, with at least ``max(ks)`` nonzeros each.
    queries : ndarray of float, shape (n_queries, d)
    dictionary : Dictionary
    true_ids : ndarray of int64, shape (n_queries, at least depth)
    ks : iterable of int
        Nonzeros an item to measure at; the queries' codes are cut alike.
    value_bits : int
        32, 16 or 8.
    depth : int, default 100
        Depth of the recall.
    modes : sequence of str, default all three
        Each is measured on an index built for it alone, so that its bytes are its own.
    """
    import sparse_retrieval as sr

    points = []
    for k in ks:
        items, asked = codes.top(k), query_codes.top(k)
        for mode in modes:
            index = sr.SparseIndex.from_codes(
                items,
                dictionary=None if mode == "sparse" else dictionary,
                metric="cosine",
                value_bits=value_bits,
                modes=(mode,),
            )
            found = index.search(queries_for(mode, queries, asked), depth, mode=mode).ids
            recall = recall_at(found, true_ids, depth)
            points.append(Point(mode, f"k={k}", index.bytes_per_item, recall))
    return points


def pca_curve(
    items: NDArray[Any],
    queries: NDArray[Any],
    true_ids: NDArray[np.int64],
    *,
    components: Iterable[int],
    depth: int = 100,
) -> list[Point]:
    """Measure principal axes cut short, 8 bits a coordinate, at several widths."""
    axes = principal_axes(items)
    points = []
    for width in components:
        kept = pca_int8(items, queries, width, axes=axes)
        found = exact_top_k(kept.items, kept.queries, depth).ids
        recall = recall_at(found, true_ids, depth)
        points.append(Point("PCA, 8 bits", f"{width} axes", kept.bytes_per_item, recall))
    return points


def exact_report(items: NDArray[np.float32], queries: NDArray[np.float32], depth: int) -> Report:
    """Time a plain float32 scan in numpy: what the compressed search replaces.

    Rows are normalised beforehand, so a query costs one matrix-vector product and a partial
    sort. Its recall is 1 by definition.
    """

    def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.divide(rows, np.where(norms > 0, norms, 1), dtype=np.float32)

    scan = _Scan(unit(items))
    asked = unit(queries)
    true_ids = scan.search(asked, depth, mode=None, threads=None).ids
    return evaluate_index(scan, asked, true_ids, k=depth, mode="exact float32")


@dataclass(frozen=True)
class _Found:
    ids: NDArray[np.int64]


class _Scan:
    """A float32 scan behind the interface that :func:`evaluate_index` measures."""

    def __init__(self, unit_rows: NDArray[np.float32]) -> None:
        self._rows = unit_rows
        self.bytes_per_item = float(unit_rows.shape[1] * unit_rows.itemsize)

    def __len__(self) -> int:
        return len(self._rows)

    def search(
        self, queries: NDArray[np.float32], k: int, *, mode: str | None, threads: int | None
    ) -> _Found:
        scores = queries @ self._rows.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return _Found(np.take_along_axis(best, order, axis=1))


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap_s(self) -> float:
        """Return the seconds of this lap and start the next."""
        now = time.perf_counter()
        lap, self._start = now - self._start, now
        return lap
