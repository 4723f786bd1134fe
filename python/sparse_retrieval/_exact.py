"""Exact search of dense embeddings: what every compressed answer is judged by.

numpy only, and no code shared with the engine that it judges. Reached through
:mod:`sparse_retrieval.evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

_METRICS = ("cosine", "inner_product")
_QUERY_BLOCK = 1_024
_ITEM_BLOCK = 16_384  # with 1,024 queries: 64 MB of float32 scores at a time
_RESCORE_BLOCK = 4_096  # rows gathered in double precision at a time


class TopK(NamedTuple):
    """Scores and positions of the best items of each query, best first.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_queries, k)
        Padded with -inf where a query has fewer than k candidates.
    ids : ndarray of int64, shape (n_queries, k)
        Positions of items; padded with -1.
    """

    scores: NDArray[np.float64]
    ids: NDArray[np.int64]


def exact_top_k(
    x: npt.ArrayLike,
    queries: npt.ArrayLike,
    k: int,
    *,
    metric: str = "cosine",
    exclude: npt.ArrayLike | None = None,
) -> TopK:
    """Find the k items of highest score for each query, as double precision would.

    A float32 matrix product over blocks gives every item a score with a proven error bound;
    the items that the bound cannot rule out are scored again in double precision, by a sum
    whose order depends on the row's length alone. So equal rows get equal scores, ties go to
    the lower position, and the answer does not depend on the BLAS library or on block sizes.

    Parameters
    ----------
    x : array_like of float, shape (n, d)
        Items. A memory map is read block by block.
    queries : array_like of float, shape (n_queries, d)
    k : int
        Items to return, at least 1; more than n pads the result.
    metric : {"cosine", "inner_product"}, default "cosine"
        Under cosine a row of zeros scores 0.
    exclude : array_like of int, shape (n_queries,), optional
        Position of one item that each query may not return, for instance the query itself
        where queries are items; -1 for none.

    Returns
    -------
    TopK
        float64 scores and int64 positions, both of shape (n_queries, k), best first.

    Raises
    ------
    ValueError
        For arrays that are not 2-D or differ in width, values that are not finite (the row is
        named), k < 1, an unknown metric, or ``exclude`` out of range.

    Notes
    -----
    Both sides are scaled to unit norm in double precision and rounded to float32 (relative
    error at most u = 2**-24 a coordinate, each side), then multiplied. For unit vectors the
    computed inner product s of d terms, in any order, with or without fused multiply-add,
    obeys ``|s - exact| <= (d + 2) u / (1 - (d + 2) u)`` [1]_, plus rounding of order
    d * 2**-150 from subnormal products; (d + 4) * 2**-23 is twice that and covers both for d
    up to 2**21. For the inner product, score and bound are multiplied by the item's norm;
    the query's norm changes no order and is applied at the end. An item can be in the answer
    only if its upper bound reaches the k-th largest lower bound.

    References
    ----------
    .. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002,
       section 3.1.

    Examples
    --------
    >>> items = [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]
    >>> exact_top_k(items, [[0.0, 1.0]], 2).ids
    array([[1, 2]])
    >>> exact_top_k(items, [[0.0, 1.0]], 2, metric="inner_product").ids
    array([[2, 1]])
    """
    items = checked_matrix("x", x)
    asked = checked_matrix("queries", queries)
    if items.shape[1] != asked.shape[1]:
        raise ValueError(
            f"queries have {asked.shape[1]} columns, x has {items.shape[1]}; "
            "embed both with the same model"
        )
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if metric not in _METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(_METRICS)}")
    excluded = _exclusions(exclude, len(asked), len(items))
    scores = np.full((len(asked), k), -np.inf)
    ids = np.full((len(asked), k), -1, dtype=np.int64)
    for start in range(0, len(asked), _QUERY_BLOCK):
        block = slice(start, start + _QUERY_BLOCK)
        found = _candidates(items, asked[block], k, metric, excluded[block], start)
        for row, candidates in enumerate(found, start):
            exact = _rescore(items, asked[row], candidates, metric)
            best = np.lexsort((candidates, -exact))[:k]
            scores[row, : len(best)] = exact[best]
            ids[row, : len(best)] = candidates[best]
    return TopK(scores, ids)


def _candidates(
    items: NDArray[Any],
    queries: NDArray[Any],
    k: int,
    metric: str,
    excluded: NDArray[np.int64],
    first_query: int,
) -> Iterator[NDArray[np.int64]]:
    """Positions, ascending, of the items that may be among the best k of each query."""
    unit_queries, _ = unit_rows(queries, "queries", first_query)
    asked = unit_queries.astype(np.float32)
    relative_bound = (items.shape[1] + 4) * 2.0**-23
    upper: list[list[NDArray[np.float64]]] = [[] for _ in queries]
    where: list[list[NDArray[np.int64]]] = [[] for _ in queries]
    lowest_kept = np.full((len(queries), k), -np.inf)  # the k largest lower bounds so far
    for start in range(0, len(items), _ITEM_BLOCK):
        unit, norms = unit_rows(items[start : start + _ITEM_BLOCK], "x", start)
        scores = asked @ unit.astype(np.float32).T
        weights = norms if metric == "inner_product" else (norms > 0).astype(np.float64)
        for row, line in enumerate(scores):
            # Zero items and queries have an exact score of 0 and keep the bound: harmless.
            estimate = line * weights
            bound = relative_bound * weights
            lower = estimate - bound
            if start <= excluded[row] < start + len(unit):
                lower[excluded[row] - start] = -np.inf
                estimate[excluded[row] - start] = -np.inf
            best = np.partition(lower, -k)[-k:] if len(lower) > k else lower
            merged = np.concatenate([lowest_kept[row], best])
            lowest_kept[row] = np.partition(merged, -k)[-k:]
            reach = estimate + bound
            kept = np.flatnonzero((reach >= lowest_kept[row].min()) & (estimate > -np.inf))
            upper[row].append(reach[kept])
            where[row].append(kept + start)
    for row in range(len(queries)):
        if not where[row]:
            yield np.empty(0, dtype=np.int64)
            continue
        reach, positions = np.concatenate(upper[row]), np.concatenate(where[row])
        yield positions[reach >= lowest_kept[row].min()]


def _rescore(
    items: NDArray[Any], query: NDArray[Any], positions: NDArray[np.int64], metric: str
) -> NDArray[np.float64]:
    """Scores in double precision; each row's sum has the same order wherever the row stands."""
    wanted = np.asarray(query, dtype=np.float64)
    query_norm = float(np.sqrt((wanted * wanted).sum()))
    scores = np.empty(len(positions))
    for start in range(0, len(positions), _RESCORE_BLOCK):
        rows = np.asarray(items[positions[start : start + _RESCORE_BLOCK]], dtype=np.float64)
        products = (rows * wanted).sum(axis=1)
        if metric == "cosine":
            norms = np.sqrt((rows * rows).sum(axis=1)) * query_norm
            products = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        scores[start : start + len(rows)] = products
    return scores


def _exclusions(exclude: npt.ArrayLike | None, queries: int, items: int) -> NDArray[np.int64]:
    if exclude is None:
        return np.full(queries, -1, dtype=np.int64)
    positions = np.asarray(exclude)
    if positions.shape != (queries,) or positions.dtype.kind not in "iu":
        raise ValueError(
            f"exclude has shape {positions.shape} and dtype {positions.dtype}, "
            f"expected {queries} integers, one a query"
        )
    wide = positions.astype(np.int64)
    if queries and not (wide.min() >= -1 and wide.max() < items):
        raise ValueError(f"exclude spans {wide.min()} to {wide.max()}, expected -1 to {items - 1}")
    return wide


def unit_rows(
    rows: NDArray[Any], name: str, first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows at unit norm (zero rows stay zero) and their norms, in double precision."""
    wide = np.asarray(rows, dtype=np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    if not np.isfinite(norms).all():
        row = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"{name} holds NaN, infinity or an overflowing norm in row {first + row}")
    return wide / np.where(norms > 0, norms, 1)[:, None], norms


def checked_matrix(name: str, array: npt.ArrayLike) -> NDArray[Any]:
    """Return the array if it is 2-D and numeric; a memory map stays one."""
    rows = np.asanyarray(array)
    if rows.ndim != 2:
        raise ValueError(f"{name} has shape {rows.shape}, expected two axes (rows, columns)")
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {rows.dtype}, expected numbers")
    return rows
