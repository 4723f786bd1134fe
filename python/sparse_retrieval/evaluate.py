"""Measuring an index: the exact answer, recall against it, bytes and time.

What is measured here is what the documentation quotes, so everything is plain numpy and slow
where that keeps it obvious. Knows nothing of how an index stores or searches its rows; it
calls ``index.search`` like any user. Needs neither torch nor the native module.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from sparse_retrieval._exact import TopK, checked_matrix, exact_top_k, unit_rows

__all__ = [
    "PcaInt8",
    "Report",
    "TopK",
    "evaluate_index",
    "exact_top_k",
    "pca_int8",
    "principal_axes",
    "recall_at",
]


def recall_at(found: npt.ArrayLike, true: npt.ArrayLike, n: int | None = None) -> float:
    """Share of the true best n that the first n found hold, averaged over queries.

    Parameters
    ----------
    found : array_like of int or str, shape (n_queries, at least n)
        Ids returned by the search judged; -1 (None among strings) pads and never counts.
    true : array_like of int or str, shape (n_queries, at least n)
        Ids of the exact search, best first; -1 or None pads and is left out of the share.
    n : int, optional
        How deep to look; by default the width of ``true``.

    Returns
    -------
    float
        recall@n in [0, 1]. An id found twice counts once.

    Raises
    ------
    ValueError
        For arrays that are not 2-D integers, differ in queries, have no query, are narrower
        than n, or a query without any true id.

    Examples
    --------
    >>> recall_at([[4, 2, 9]], [[2, 7, 4]])
    0.6666666666666666
    >>> recall_at([[4, 2, 9]], [[2, 7, 4]], n=1)
    0.0
    """
    got, wanted = _ids("found", found), _ids("true", true)
    if got.dtype != wanted.dtype:
        raise ValueError(f"found holds {got.dtype} ids and true {wanted.dtype}; expected one kind")
    if len(got) != len(wanted):
        raise ValueError(f"found has {len(got)} queries, true has {len(wanted)}")
    if not len(wanted):
        raise ValueError("no queries: the recall of nothing is not defined")
    depth = wanted.shape[1] if n is None else n
    for name, array in (("found", got), ("true", wanted)):
        if not 1 <= depth <= array.shape[1]:
            raise ValueError(f"n is {depth}, {name} has {array.shape[1]} columns")
    padding = -1 if wanted.dtype == np.int64 else None
    total = 0.0
    for row, (some, best) in enumerate(zip(got[:, :depth], wanted[:, :depth], strict=True)):
        best = best[best != padding]
        if not len(best):
            raise ValueError(f"query {row} has no true id")
        total += float(np.isin(best, some).mean())
    return total / len(wanted)


class Searchable(Protocol):
    """What :func:`evaluate_index` asks of an index."""

    @property
    def bytes_per_item(self) -> float:
        """Bytes of rows and scales, divided by the number of items."""
        ...

    def __len__(self) -> int:
        """Items held."""
        ...

    def search(self, queries: Any, k: int, *, mode: Any, threads: int | None) -> Any:
        """Return scores and ids, best first."""
        ...


@dataclass(frozen=True)
class Report:
    """One way of asking an index, measured.

    Attributes
    ----------
    mode : str
        How the index was asked.
    k : int
        Depth of the recall.
    recall : float
        recall@k against the exact answer.
    bytes_per_item : float
        Rows and scales, without dictionary, ids and postings.
    ms_per_query : float
        Median over single queries asked one at a time, milliseconds.
    ms_per_query_batch : float
        Median over repeats of the time of the whole batch, divided by its queries,
        milliseconds.
    n_items, n_queries : int
        Sizes of the measurement.
    """

    mode: str
    k: int
    recall: float
    bytes_per_item: float
    ms_per_query: float
    ms_per_query_batch: float
    n_items: int
    n_queries: int


def evaluate_index(
    index: Searchable,
    queries: Any,
    true_ids: npt.ArrayLike,
    *,
    k: int = 100,
    mode: str | None = None,
    threads: int | None = None,
    repeats: int = 3,
    single_queries: int = 100,
) -> Report:
    """Measure recall@k, bytes an item and time a query of one way of asking an index.

    Parameters
    ----------
    index : SparseIndex
        Anything with ``search``, ``bytes_per_item`` and a length.
    queries : array or SparseCodes, n_queries rows
        Passed to ``index.search`` as they are: dense for the modes that take them, codes for
        the others. Must support ``len`` and slicing by rows.
    true_ids : array_like of int, shape (n_queries, at least k)
        Exact ids, for instance of :func:`exact_top_k`.
    k : int, default 100
        Depth of the recall, the paper's choice.
    mode : str, optional
        Passed to ``index.search``; by default the index's own.
    threads : int, optional
        Passed to ``index.search``; by default the index's own.
    repeats : int, default 3
        Times that the whole batch is asked; the median is reported.
    single_queries : int, default 100
        How many of the queries are also asked one at a time.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        For ``repeats`` or ``single_queries`` below 1, and whatever ``index.search`` and
        :func:`recall_at` refuse.
    """
    if repeats < 1 or single_queries < 1:
        raise ValueError(
            f"repeats is {repeats} and single_queries {single_queries}, expected at least 1"
        )
    if not len(queries):
        raise ValueError("no queries: the recall of nothing is not defined")
    batch_ms = []
    found: NDArray[np.int64] | None = None
    for _ in range(repeats):
        start = time.perf_counter()
        found = index.search(queries, k, mode=mode, threads=threads).ids
        batch_ms.append((time.perf_counter() - start) * 1e3 / len(queries))
    assert found is not None
    single_ms = []
    for row in range(min(single_queries, len(queries))):
        query = queries[row : row + 1]
        start = time.perf_counter()
        index.search(query, k, mode=mode, threads=threads)
        single_ms.append((time.perf_counter() - start) * 1e3)
    return Report(
        mode=mode or "default",
        k=k,
        recall=recall_at(found, true_ids, k),
        bytes_per_item=float(index.bytes_per_item),
        ms_per_query=float(np.median(single_ms)),
        ms_per_query_batch=float(np.median(batch_ms)),
        n_items=len(index),
        n_queries=len(queries),
    )


class PcaInt8(NamedTuple):
    """Items and queries after :func:`pca_int8`, ready for :func:`exact_top_k`.

    Attributes
    ----------
    items : ndarray of float32, shape (n, n_components)
        What 8 bits kept of each item, decoded.
    queries : ndarray of float32, shape (n_queries, n_components)
        Projected, in full precision.
    bytes_per_item : int
        ``n_components`` and 2 of scale.
    """

    items: NDArray[np.float32]
    queries: NDArray[np.float32]
    bytes_per_item: int


def principal_axes(x: npt.ArrayLike) -> NDArray[np.float64]:
    """Eigenvectors of the second moment of the rows at unit norm, largest eigenvalue first.

    No mean is subtracted, so that inner products survive the rotation.

    Parameters
    ----------
    x : array_like of float, shape (n, d)

    Returns
    -------
    ndarray of float64, shape (d, d)
        One axis a column.

    Raises
    ------
    ValueError
        For an array that is not 2-D or holds values that are not finite.
    """
    unit, _ = unit_rows(checked_matrix("x", x), "x", 0)
    _, ascending = np.linalg.eigh(unit.T @ unit)
    axes: NDArray[np.float64] = ascending[:, ::-1]
    return axes


def pca_int8(
    x: npt.ArrayLike,
    queries: npt.ArrayLike,
    n_components: int,
    *,
    axes: NDArray[np.float64] | None = None,
) -> PcaInt8:
    """Compress by the plainest rival: project on principal axes, keep 8 bits a coordinate.

    Rows are scaled to unit norm, rotated onto the principal axes of the items, cut to the
    leading coordinates and rounded to 8 bits with one 16-bit scale a row.

    Parameters
    ----------
    x : array_like of float, shape (n, d)
        Items; the axes are learnt from all of them.
    queries : array_like of float, shape (n_queries, d)
    n_components : int
        Coordinates kept, 1 to d.
    axes : ndarray of float64, shape (d, d), optional
        Result of :func:`principal_axes`, to share it between widths; by default of ``x``.

    Raises
    ------
    ValueError
        For arrays that are not 2-D or differ in width, values that are not finite, or
        ``n_components`` out of range.

    References
    ----------
    .. [1] I. T. Jolliffe, "Principal Component Analysis", 2nd ed., Springer 2002, chapter 3.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> pca_int8(x, x[:2], 3).items.shape
    (50, 3)
    """
    items, asked = checked_matrix("x", x), checked_matrix("queries", queries)
    width = items.shape[1]
    if asked.shape[1] != width:
        raise ValueError(f"queries have {asked.shape[1]} columns, x has {width}")
    if not 1 <= n_components <= width:
        raise ValueError(f"n_components is {n_components}, expected 1 to {width}")
    unit, _ = unit_rows(items, "x", 0)
    unit_queries, _ = unit_rows(asked, "queries", 0)
    leading = (principal_axes(items) if axes is None else axes)[:, :n_components]
    low = unit @ leading
    # Rounded to half precision first: the levels must be those that the stored scale decodes.
    scales = (np.abs(low).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    scales[scales == 0] = 1
    levels = np.clip(np.rint(low / scales), -127, 127)
    return PcaInt8(
        items=(levels * scales).astype(np.float32),
        queries=(unit_queries @ leading).astype(np.float32),
        bytes_per_item=n_components + 2,
    )


def _ids(name: str, array: npt.ArrayLike) -> NDArray[Any]:
    """Ids as int64, or as objects where they are strings."""
    ids = np.asarray(array)
    if ids.ndim != 2 or ids.dtype.kind not in "iuOU":
        raise ValueError(
            f"{name} has shape {ids.shape} and dtype {ids.dtype}, expected 2-D integers or strings"
        )
    return ids.astype(np.int64 if ids.dtype.kind in "iu" else object)
