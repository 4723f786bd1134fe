"""Approximate search: how far to look, and how to find out how far is enough.

The search itself is in the native module; here are its two knobs and the tuning of them. numpy
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count, as_real, as_rows

if TYPE_CHECKING:
    from sparse_retrieval.index import Progress, SparseIndex

#: Queries that tuning makes of the index's own items where none are given.
SAMPLED_QUERIES = 256

#: Share of another item in such a query: it lies between items, as a query does, and not on one.
MIX = 0.6

#: What rescoring a row costs, in sketches looked at.
RERANK_COST = 30


@dataclass(frozen=True)
class Approximate:
    """How far an approximate search looks.

    Parameters
    ----------
    clusters : int, default 64
        Nearest clusters whose rows are looked at. An index has some four times the square root
        of its items as clusters. More are visited only where these hold fewer than k items, or,
        under a filter or exclusions, fewer than ``rerank`` items that may be returned.
    rerank : int, default 1000
        Rows that are scored by their codes, the best by their sketches; at least k. Where they
        are many more than k, with 8-bit weights first, and ``k + max(k / 4, 16)`` of them exactly.

    Notes
    -----
    The knobs are those of the design that won, routing to clusters. Postings walked for the
    largest ``query_terms`` lost: at a million items they look at two to three postings an item
    for 99% of the exact results.

    Raises
    ------
    TypeError
        If a number is no integer.
    ValueError
        If it is less than 1.
    """

    clusters: int = 64
    rerank: int = 1000

    def __post_init__(self) -> None:
        for name in ("clusters", "rerank"):
            object.__setattr__(self, name, as_count(getattr(self, name), name, most=2**32 - 1))


def tune(
    index: SparseIndex,
    target: float,
    queries: Any,
    k: int,
    threads: int | None,
    progress: Progress | None = None,
) -> tuple[Approximate, float]:
    """Find the cheapest setting that keeps ``target`` of the exact top ``k``, and what it keeps.

    Cost is counted, not timed, so that the same index and queries give the same setting: rows
    looked at, and :data:`RERANK_COST` for each one rescored.
    """
    target = as_real(target, "target", above=0, most=1)
    if index.n_clusters == 0:
        raise ValueError(
            "this index has no clusters, which approximate search needs; build it with "
            "approximate=True, or make one with index.with_clusters()"
        )
    asked = own_queries(index) if queries is None else as_rows(queries, "queries", np.float64)
    if len(asked) == 0:
        raise ValueError("queries are empty; expected at least one")
    truth = index.search(asked, k, mode="dense", threads=threads).ids
    answered = len(asked)

    def kept(clusters: int, rerank: int) -> float:
        setting = Approximate(clusters, rerank)
        found = index.search(asked, k, mode="dense", approximate=setting, threads=threads).ids
        nonlocal answered
        answered += len(asked)
        if progress is not None:
            progress(answered)
        return share_kept(truth, found)

    n, n_clusters = len(index), index.n_clusters
    return _cheapest(kept, target, n, n_clusters, min(k, n))


def _cheapest(
    kept: Callable[[int, int], float], target: float, n: int, n_clusters: int, k: int
) -> tuple[Approximate, float]:
    """Walk along the frontier: fewest clusters with many reranked, then fewer of these."""
    deepest = min(16 * k, n)
    while kept(n_clusters, deepest) < target and deepest < n:
        deepest = min(2 * deepest, n)
    depths = [*_ladder(k, deepest)]
    widths = [*_ladder(1, n_clusters)]
    at = _first(lambda i: kept(widths[i], deepest) >= target, len(widths))
    best: tuple[float, Approximate, float] | None = None
    for clusters in widths[at : at + 6]:
        # more clusters than the fewest leave room for fewer rows to rescore
        depth = depths[_first(lambda i, c=clusters: kept(c, depths[i]) >= target, len(depths))]  # type: ignore[misc]
        cost = clusters * n / n_clusters + RERANK_COST * depth
        if best is None or cost < best[0]:
            best = cost, Approximate(clusters, depth), kept(clusters, depth)
    assert best is not None  # widths[at:] holds at least its last entry
    return best[1], best[2]


def _ladder(first: int, last: int) -> Iterator[int]:
    """From ``first`` to ``last`` by steps of about a quarter."""
    rung = first
    while rung < last:
        yield rung
        rung = max(rung + 1, rung * 5 // 4)
    yield last


def _first(holds: Callable[[int], bool], n: int) -> int:
    """The first i below n for which ``holds(i)``, which never turns false again, or n - 1."""
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def share_kept(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """The mean share of the ids of each row of ``truth`` that the same row of ``found`` holds."""
    shares = [
        np.isin(expected[expected != -1], got).mean()
        for expected, got in zip(truth, found, strict=True)
        if (expected != -1).any()
    ]
    return float(np.mean(shares)) if shares else 1.0


def own_queries(index: SparseIndex, n: int = SAMPLED_QUERIES) -> npt.NDArray[np.float64]:
    """Queries made of pairs of items: what one decodes to, and :data:`MIX` of another.

    Spread over the index, and the same for the same index.
    """
    if len(index) == 0:
        raise ValueError("the index is empty; there is nothing to tune for")
    random = np.random.default_rng(0)
    pairs = random.integers(len(index), size=(2, n)).astype(np.uint64)
    first, second = (_unit(index._native.decoded(positions)) for positions in pairs)
    return first + MIX * second


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: npt.NDArray[np.float64] = rows / np.where(norms > 0, norms, 1)
    return unit
