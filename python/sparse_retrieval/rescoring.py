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
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native as native
from sparse_retrieval._arrays import as_numbers
from sparse_retrieval._ids import as_array
from sparse_retrieval._rows import ParquetRows, open_rows

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


@dataclass(frozen=True)
class Originals:
    """The vectors of all items of an index, row i that of position i.

    Attributes
    ----------
    rows : ndarray, memmap or ParquetRows, shape (n, d)
    """

    rows: Any

    @classmethod
    def of(cls, vectors: Any, n: int, d: int) -> Originals:
        """What was given as ``rescore``, opened and checked against the index and the queries.

        Raises
        ------
        TypeError
            If it does not hold real numbers.
        ValueError
            If it is not of shape (n, d), or a file of another kind.
        OSError, ImportError
            If a file cannot be read, or pyarrow is missing.
        """
        rows = open_rows(vectors)
        if not isinstance(rows, ParquetRows):
            rows = as_numbers(rows, "rescore") if not isinstance(rows, np.ndarray) else rows
            if rows.dtype.kind not in "fiu":
                raise TypeError(f"rescore has dtype {rows.dtype}; expected real numbers")
        shape = tuple(rows.shape)
        if len(shape) != 2 or shape[0] != n:
            raise ValueError(
                f"rescore has shape {shape}; expected ({n}, d): row i is the vector of the item "
                "at position i, whatever its id"
            )
        if shape[1] != d:
            raise ValueError(
                f"rescore has {shape[1]} columns, queries have {d}; both must be of the model "
                "that made the items"
            )
        return cls(rows)

    def queries_a_batch(self, candidates: int) -> int:
        """Queries whose candidates' vectors may be held at once."""
        itemsize = 8 if isinstance(self.rows, ParquetRows) else int(self.rows.dtype.itemsize)
        row_bytes = int(self.rows.shape[1]) * itemsize
        return max(1, _BATCH_BYTES // max(1, candidates * row_bytes))

    def take(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The vectors at ascending positions, as the native module takes them.

        A memory map's pages are announced to the kernel, all before the first is read. Of a
        Parquet file the row groups that hold one of the rows are read, several at a time.
        """
        if isinstance(self.rows, ParquetRows):
            taken = self.rows.scattered(positions, _PARQUET_THREADS)
        else:
            if isinstance(self.rows, np.memmap):
                _announce(self.rows, positions)
            taken = np.take(self.rows, positions, axis=0)
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
    if isinstance(oversample, (bool, str)) or not isinstance(oversample, (int, float, np.number)):
        raise TypeError(f"oversample is {oversample!r}; expected a number")
    number = float(oversample)
    if not 1 <= number < math.inf:
        raise ValueError(f"oversample is {oversample!r}; expected a number of at least 1")
    return number


def rescored(
    index: native.Index,
    originals: Originals,
    queries: npt.NDArray[np.float64],
    k: int,
    *,
    oversample: float,
    threads: int | None,
    candidates: Callable[[slice, int], npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    """Scores and ids of the best k of each query's candidates, by the original vectors.

    Parameters
    ----------
    index : native.Index
        Its metric and its ids are used.
    originals : Originals
    queries : ndarray of float64, shape (nq, d)
    k : int
    oversample : float
        ``ceil(oversample * k)`` candidates a query are asked for, or as many as there are.
    threads : int, optional
    candidates : callable
        Given a slice of the queries and how many are wanted: their positions, -1 for none.

    Returns
    -------
    scores : ndarray of float64, shape (nq, at most k)
    ids : ndarray of int64, or of object (str), of the same shape
    """
    wanted = max(1, min(math.ceil(oversample * k), len(index)))
    parts = [
        _rescored_batch(index, originals, queries[batch], k, candidates(batch, wanted), threads)
        for batch in _batches(len(queries), originals.queries_a_batch(wanted))
    ]
    if len(parts) == 1:
        return parts[0]
    found = max((scores.shape[1] for scores, _ in parts), default=0)
    scores = np.full((len(queries), found), -np.inf)
    named = any(part_ids.dtype == object for _, part_ids in parts)
    ids: npt.NDArray[Any] = np.full((len(queries), found), None if named else -1)
    done = 0
    for part_scores, part_ids in parts:
        rows, columns = part_scores.shape
        scores[done : done + rows, :columns] = part_scores
        ids[done : done + rows, :columns] = part_ids
        done += rows
    return scores, ids


def _rescored_batch(
    index: native.Index,
    originals: Originals,
    queries: npt.NDArray[np.float64],
    k: int,
    candidates: npt.NDArray[np.int64],
    threads: int | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    positions = np.unique(candidates)
    positions = positions[positions >= 0]
    scores, ids = index.rescore(
        candidates,
        queries,
        k,
        positions=positions.astype(np.uint64),
        vectors=originals.take(positions),
        threads=threads,
    )
    return scores, as_array(ids, scores.shape)


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
