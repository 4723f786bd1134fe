"""Building an index file of any size from batches of codes, in memory that does not grow.

numpy alone; the work is done by the native module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sparse_retrieval import _native as native
from sparse_retrieval._arrays import as_count, as_real, as_threads
from sparse_retrieval._ids import as_ids
from sparse_retrieval.codes import as_codes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import (
    Metric,
    Mode,
    SparseIndex,
    _as_json,
    _as_modes,
    _as_name,
)


class IndexWriter:
    """Writes an index file batch by batch.

    Rows are packed as they come and spilled into unnamed files in the folder of the target, which
    needs room for the index twice. When the block ends well the file is put together beside its
    target, synced, and renamed into its place: a reader sees the old file or the new one. When it
    ends with an exception, or the process dies at any moment, the old file stays as it was.

    The file depends on the items and the options, not on the batches. It is the one that
    ``SparseIndex.from_codes(all_codes, ...).save(path)`` writes, byte for byte, unless values are
    coded by rank (``value_bits`` below 8) and there are more items than ``codebook_sample``: then
    the codebooks are learnt from the first ``codebook_sample`` items, not from all.

    Parameters
    ----------
    path : path-like
        The target. No other writer may be at work on it.
    dim : int, optional
        Number of latents. Default: that of the dictionary.
    dictionary, metric, value_bits, complete, modes, unit_items, reconstruction_cosine, metadata
        As in :meth:`SparseIndex.from_codes`.
    codebooks : SparseIndex, optional
        An index with rank-coded values whose codebooks (and bits) are used instead of learning
        new ones and of ``value_bits``. Shards built with the codebooks of the first can be merged.
    codebook_sample : int, default 65536
        Items that codebooks are learnt from: the first ones, held in memory until then (at 32
        nonzeros 256 bytes each). Where the stream is sorted, the first ones may be unlike the
        others: shuffle, or give ``codebooks``.
    longest : int, optional
        Nonzeros of the longest row to come, for values coded by rank; all rows are stored as
        wide. Default: the longest of the sample.
    shortest : int, optional
        Nonzeros of the shortest row to come that is not empty, likewise: ranks from there on
        get a level of 0, which costs them one of their levels. Default: the shortest of the
        sample. A row beyond these bounds is refused.
    threads : int, optional
        For packing. Default: all processors, beside other calls a share of them.

    Raises
    ------
    BlockingIOError
        If another writer is at work on the path.
    OSError
        If the folder cannot be written.
    TypeError, ValueError
        If arguments are wrong or do not fit each other.

    Examples
    --------
    >>> import pathlib, tempfile, sparse_retrieval as sr
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "many.sridx"
    >>> with sr.IndexWriter(path, dim=4) as writer:
    ...     for start in (0, 2):
    ...         codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.5, -1.0], [2.0, 1.0]], dim=4)
    ...         writer.add(codes, ids=[start, start + 1])
    >>> len(sr.SparseIndex.open(path))
    4
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dim: int | None = None,
        dictionary: Dictionary | None = None,
        metric: Metric = "inner_product",
        value_bits: float = 32,
        complete: bool = False,
        modes: Sequence[Mode] | None = None,
        unit_items: bool = False,
        reconstruction_cosine: float | None = None,
        metadata: Any = None,
        codebooks: SparseIndex | None = None,
        codebook_sample: int = 65_536,
        longest: int | None = None,
        shortest: int | None = None,
        threads: int | None = None,
    ) -> None:
        if dictionary is not None and not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary is {type(dictionary).__name__}; expected Dictionary")
        if codebooks is not None and not isinstance(codebooks, SparseIndex):
            raise TypeError(f"codebooks is {type(codebooks).__name__}; expected SparseIndex")
        if dim is None:
            if dictionary is None:
                raise TypeError("pass dim= or dictionary=: the number of latents must be known")
            dim = dictionary.n_atoms
        self._path = Path(path)
        self._dim = as_count(dim, "dim")
        self._is_over = False
        self._threads = as_threads(threads)
        self._native = native.IndexWriter(
            os.fspath(path),
            self._dim,
            dictionary=None if dictionary is None else dictionary.atoms,
            mean=None if dictionary is None else dictionary.mean,
            metric=_as_name(metric, "metric"),
            value_bits=as_real(value_bits, "value_bits"),
            complete=bool(complete),
            modes=[] if modes is None else _as_modes(modes),
            unit_items=bool(unit_items),
            reconstruction_cosine=reconstruction_cosine,
            metadata=None if metadata is None else _as_json(metadata),
            codebooks=None if codebooks is None else codebooks._native,
            codebook_sample=as_count(codebook_sample, "codebook_sample"),
            longest=None if longest is None else as_count(longest, "longest", most=self._dim),
            shortest=None if shortest is None else as_count(shortest, "shortest"),
        )

    def add(self, codes: Any, *, ids: Any = None) -> None:
        """Take items, in the order in which they are to stand.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n items over ``dim`` latents.
        ids : array_like of int or str, shape (n,), optional
            What search returns for each: unique in the whole file. An id that is given twice is
            refused at once in one batch, and where the other is among the first or the last
            131,072 ids (not before codebooks are learnt); the rest are found when the file is
            finished, since memory does not grow with the items. For all batches or for none
            (then items are called by their positions).

        Raises
        ------
        TypeError, ValueError
            If codes are not sound, a row does not fit the codebooks, ids are of another kind than
            before, or one was given before. The writer cannot go on then, unless the batch was
            refused for itself (its codes, or an id twice in it).
        OSError
            If nothing more can be spilled; likewise.
        """
        items = as_codes(codes, dim=self._dim)
        self._native.add(
            items.indptr,
            items.latents,
            items.values,
            items.dim,
            ids=None if ids is None else as_ids(ids),
            threads=self._threads,
        )

    def finish(self) -> int:
        """Write the file and return the number of items; the end of the block does it too.

        Raises
        ------
        OSError
            If it cannot be written; the target is then as it was.
        ValueError
            If ids are not unique, or the writer is finished.
        """
        items = self._native.finish()
        self._is_over = True
        return items

    def abort(self) -> None:
        """Give up: the target stays as it was. Does nothing once the file is finished."""
        self._is_over = True
        self._native.abort()

    def __len__(self) -> int:
        """Number of items so far; 0 once the file is finished."""
        return len(self._native)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
        elif not self._is_over:
            self.finish()

    def __repr__(self) -> str:
        return f"IndexWriter({str(self._path)!r}, {len(self)} items so far)"
