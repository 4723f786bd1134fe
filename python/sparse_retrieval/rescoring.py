"""Rescoring: the best candidates by code, scored against the vectors that were encoded.

The vectors may be an array, or stay in a file of which only the rows of candidates are read.
numpy alone; pyarrow is asked for where a Parquet file is opened. Scores are computed by the
native module.

What was measured to read 300 scattered rows of 768 bytes from a file of 300 MB that is not in
the page cache (virtual disk, two cores): through a plain mapping 307 ms, as each fault reads its
neighbourhood; with MADV_RANDOM 21 ms, one page after the other; so from 16 threads 11 ms, with
pread from 16 threads 21 ms; after telling the kernel all pages at once (MADV_WILLNEED) 4 ms. A
warm file takes 1.2 to 1.5 ms in all of them but the threads, which cost 3 ms. So: one thread,
and all pages announced before the first is touched.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native as native
from sparse_retrieval._arrays import as_numbers, as_real, as_rows
from sparse_retrieval._ids import as_ids
from sparse_retrieval._rows import ParquetRows, open_rows
from sparse_retrieval.codes import holds_codes

#: Vectors held at once, in bytes, if no two candidates of a batch of queries are the same.
_BATCH_BYTES = 256 << 20

#: Pages are announced one run at a time; runs with less than this between them are one.
_GAP_BYTES = 16 << 10

#: Row groups of a Parquet file that are decoded at once, each on a thread of its own.
_PARQUET_THREADS = 8

#: Dtypes that the native module takes, and what it takes them as.
_DTYPES: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}


class Items(Protocol):
    """What is asked of the index, or of shards, that the candidates were found in."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def embedding_dim(self) -> int | None:
        """Width of the dictionary, or None."""

    def __len__(self) -> int: ...

    def ranks(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Where items at ascending positions stand among all."""

    def ids_at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | list[str]:
        """The ids of items at these positions."""


@dataclass(frozen=True)
class Originals:
    """The vectors of the items of an index.

    Attributes
    ----------
    rows : ndarray, memmap or ParquetRows, shape (m, d)
    ids : ndarray of int64 or list of str, length m, or None
        Of which item each row is; None for row i of the i-th item.
    """

    rows: Any
    ids: npt.NDArray[np.int64] | list[str] | None

    @classmethod
    def of(cls, vectors: Any, n: int, d: int, ids: Any = None) -> Originals:
        """What was given as ``rescore``, opened and checked against the index and the queries.

        Raises
        ------
        TypeError
            If it does not hold real numbers, or ids are of the wrong kind.
        ValueError
            If it is not of shape (n, d), or has not one row an id, or is a file of another kind.
        OSError, ImportError
            If a file cannot be read, or pyarrow is missing.
        """
        rows = open_rows(vectors)
        if not isinstance(rows, ParquetRows):
            rows = as_numbers(rows, "rescore") if not isinstance(rows, np.ndarray) else rows
            if rows.dtype.kind not in "fiu":
                raise TypeError(f"rescore has dtype {rows.dtype}; expected real numbers")
        names = None if ids is None else as_ids(ids, "rescore_ids")
        shape = tuple(rows.shape)
        if names is not None and (len(shape) != 2 or shape[0] != len(names)):
            raise ValueError(
                f"rescore has shape {shape}, rescore_ids {len(names)} ids; expected one a row"
            )
        if names is None and (len(shape) != 2 or shape[0] != n):
            raise ValueError(
                f"rescore has shape {shape}; expected ({n}, d): row i is the vector of the i-th "
                "item, in the order of index.ids; or pass rescore_ids, the id of each row"
            )
        if shape[1] != d:
            raise ValueError(
                f"rescore has {shape[1]} columns, queries have {d}; both must be of the model "
                "that made the items"
            )
        return cls(rows, names)

    def rows_of(self, items: Items, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Which row is of the item at each of some ascending positions.

        Raises
        ------
        ValueError
            If an item has no row, or more than one.
        """
        if self.ids is None:
            return items.ranks(positions).astype(np.int64)
        wanted = items.ids_at(positions)
        row_of: dict[Any, int] = {}
        for row, name in self._among(wanted):
            if row_of.setdefault(name, row) != row:
                raise ValueError(f"rescore_ids holds the id {name!r} twice")
        names = wanted if isinstance(wanted, list) else wanted.tolist()
        missing = next((name for name in names if name not in row_of), None)
        if missing is not None:
            raise ValueError(
                f"rescore_ids lacks the id {missing!r} of a candidate; expected those of all items"
            )
        return np.array([row_of[name] for name in names], dtype=np.int64)

    def _among(self, wanted: npt.NDArray[np.int64] | list[str]) -> Iterator[tuple[int, Any]]:
        """The rows whose ids are among some, and these."""
        names: Any = self.ids
        if isinstance(names, list) or isinstance(wanted, list):
            few = set(wanted)
            return ((row, name) for row, name in enumerate(names) if name in few)
        rows = np.flatnonzero(np.isin(names, wanted))
        return zip(rows.tolist(), names[rows].tolist(), strict=True)

    def queries_a_batch(self, candidates: int) -> int:
        """Queries whose candidates' vectors may be held at once."""
        itemsize = 8 if isinstance(self.rows, ParquetRows) else int(self.rows.dtype.itemsize)
        row_bytes = int(self.rows.shape[1]) * itemsize
        return max(1, _BATCH_BYTES // max(1, candidates * row_bytes))

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The vectors of some rows, in their order, as the native module takes them.

        A memory map's pages are announced to the kernel, all before the first is read. Of a
        Parquet file the row groups that hold one of the rows are read, several at a time.
        """
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        if isinstance(self.rows, ParquetRows):
            taken = self.rows.scattered(ascending, _PARQUET_THREADS)
        else:
            if isinstance(self.rows, np.memmap):
                _announce(self.rows, ascending)
            taken = np.take(self.rows, ascending, axis=0)
        if not np.array_equal(ascending, rows):
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            taken = taken[place]
        dtype: np.dtype[Any] = taken.dtype.newbyteorder("=")
        if dtype not in _DTYPES:
            dtype = np.dtype(np.float64)
        vectors: npt.NDArray[Any] = np.ascontiguousarray(taken, dtype=dtype).view(_DTYPES[dtype])
        return vectors


def as_oversample(oversample: Any) -> float:
    """A finite number from 1 on.

    Raises
    ------
    TypeError, ValueError
        Otherwise.
    """
    return as_real(oversample, "oversample", least=1)


def is_asked(vectors: Any, ids: Any) -> bool:
    """Whether ``rescore`` is given.

    Raises
    ------
    ValueError
        If ``rescore_ids`` is, without it.
    """
    if vectors is None and ids is not None:
        raise ValueError("rescore_ids is given without rescore, whose rows it names")
    return vectors is not None


def rescored(
    items: Items,
    queries: Any,
    k: int,
    vectors: Any,
    vector_ids: Any,
    *,
    oversample: Any,
    threads: int | None,
    candidates: Callable[[slice, int], npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    """Scores and ids of the best k of each query's candidates, by the original vectors.

    Parameters
    ----------
    items : Items
        Its positions mean what they meant when the candidates were found.
    queries : array_like of float, shape (nq, d) or (d,)
    k : int
    vectors, vector_ids
        What search is given as ``rescore`` and ``rescore_ids``.
    oversample : float
        ``ceil(oversample * k)`` candidates a query are asked for, or as many as there are.
    threads : int, optional
    candidates : callable
        Given a slice of the queries and how many are wanted: their positions, -1 for none.

    Returns
    -------
    scores : ndarray of float64, shape (nq, at most k)
    ids : ndarray of int64, or of object (str), of the same shape

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        As :meth:`SparseIndex.search` says of ``rescore``.
    """
    oversample = as_oversample(oversample)
    if holds_codes(queries) or items.embedding_dim is None:
        raise ValueError(
            "rescore compares queries with the original vectors, so it needs embeddings as "
            "queries, not codes"
        )
    rows = as_rows(queries, "queries", np.float64)
    originals = Originals.of(vectors, len(items), rows.shape[1], vector_ids)
    wanted = max(1, math.ceil(min(oversample * k, len(items))))
    parts = [
        _rescored_batch(items, originals, rows[batch], k, candidates(batch, wanted), threads)
        for batch in _batches(len(rows), originals.queries_a_batch(wanted))
    ]
    if len(parts) == 1:
        return parts[0]
    found = max((scores.shape[1] for scores, _ in parts), default=0)
    scores = np.full((len(rows), found), -np.inf)
    named = any(part_ids.dtype == object for _, part_ids in parts)
    ids: npt.NDArray[Any] = np.full((len(rows), found), None if named else -1)
    done = 0
    for part_scores, part_ids in parts:
        n, columns = part_scores.shape
        scores[done : done + n, :columns] = part_scores
        ids[done : done + n, :columns] = part_ids
        done += n
    return scores, ids


def _rescored_batch(
    items: Items,
    originals: Originals,
    queries: npt.NDArray[np.float64],
    k: int,
    candidates: npt.NDArray[np.int64],
    threads: int | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    unique = np.unique(candidates)
    positions = unique[unique >= 0].astype(np.uint64)
    rows = originals.rows_of(items, positions)
    scores, best = native.rescore(
        candidates,
        queries,
        k,
        metric=items.metric,
        positions=positions,
        rows=rows.astype(np.uint64),
        vectors=originals.take(rows),
        threads=threads,
    )
    return scores, _names(items, best)


def _names(items: Items, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The ids at some positions; where there is none (-1), -1, or None among strings."""
    there = positions >= 0
    found = items.ids_at(positions[there].astype(np.uint64))
    ids: npt.NDArray[Any] = np.full(positions.shape, None if isinstance(found, list) else -1)
    ids[there] = found
    return ids


def _batches(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def _announce(rows: np.memmap[Any, Any], positions: npt.NDArray[np.int64]) -> None:
    """Tell the kernel which pages of a mapped file are read next, so that it fetches them all.

    A hint: without it the same rows are read, one page fault after the other.
    """
    mapping = getattr(rows, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_WILLNEED"):
        for start, end in runs_of(rows, positions):
            mapping.madvise(mmap.MADV_WILLNEED, start, end - start)


def runs_of(
    rows: np.memmap[Any, Any], positions: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Where the rows at ascending positions lie in their mapping: runs that begin with a page.

    Nothing where rows do not lie one after the other, as those of a slice of columns.
    """
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    if not len(positions) or rows.strides != (row_bytes, rows.dtype.itemsize):
        return
    # the rows may be a part of the mapping that begins anywhere in it
    mapping = np.frombuffer(rows._mmap, dtype=np.uint8)  # type: ignore[attr-defined]
    starts = rows.ctypes.data - mapping.ctypes.data + positions * row_bytes
    ends = starts + row_bytes
    breaks = np.flatnonzero(starts[1:] - ends[:-1] >= _GAP_BYTES)
    firsts = starts[np.concatenate([[0], breaks + 1])]
    lasts = ends[np.concatenate([breaks, [len(ends) - 1]])]
    for start, end in zip(firsts.tolist(), lasts.tolist(), strict=True):
        yield start - start % mmap.PAGESIZE, end
