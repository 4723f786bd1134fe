"""Items that come and go on an open index, and items given back by their ids.

The part of :class:`sparse_retrieval.SparseIndex` that knows ids; numpy alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native as native
from sparse_retrieval._arrays import as_threads
from sparse_retrieval._ids import as_ids
from sparse_retrieval.codes import SparseCodes, as_codes

if TYPE_CHECKING:
    from sparse_retrieval.index import SparseIndex


class Changes:
    """What :class:`sparse_retrieval.SparseIndex` does by ids."""

    __slots__ = ()

    _native: native.Index
    _path: Path | None

    def _forget(self) -> None:
        """Drop what was worked out from a file that is another one now."""
        raise NotImplementedError

    def add(self, codes: Any, *, ids: Any = None, threads: int | None = None) -> None:
        """Add items; searches that begin later find them.

        They are packed with the codebooks of the index and kept in memory until :meth:`commit`
        or :meth:`save`. An addition costs a copy of what was added before it, so add in batches,
        and save once there is much.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n items over the latents of the index.
        ids : array_like of int or str, shape (n,), optional
            New ones. Default, where items are called by their positions: the numbers that follow
            the largest.
        threads : int, optional
            For packing. Default: all processors, beside other calls a share of them.

        Raises
        ------
        ValueError
            If an id is there already, or a row has more nonzeros than the codebooks are for, or
            fewer where these have no level of 0. Nothing is added then.
        TypeError
            If codes or ids are of the wrong kind.
        """
        items = as_codes(codes, dim=self._native.dim)
        self._native.add(
            items.indptr,
            items.latents,
            items.values,
            items.dim,
            ids=None if ids is None else as_ids(ids),
            threads=as_threads(threads),
        )

    def update(self, codes: Any, ids: Any, *, threads: int | None = None) -> None:
        """Replace the codes of items, in one step: a search sees all old ones or all new ones.

        Among equal scores an updated item comes after the others, as one that was just added.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n items.
        ids : array_like of int or str, shape (n,)
            Of items that are there.
        threads : int, optional
            As in :meth:`add`.

        Raises
        ------
        KeyError
            If an id is not there. Nothing is changed then.
        ValueError, TypeError
            As :meth:`add`.
        """
        items = as_codes(codes, dim=self._native.dim)
        self._native.update(
            items.indptr,
            items.latents,
            items.values,
            items.dim,
            as_ids(ids),
            threads=as_threads(threads),
        )

    def remove(self, ids: Any) -> None:
        """Remove items; searches that begin later do not find them.

        Parameters
        ----------
        ids : array_like of int or str, shape (n,)
            Of items that are there, each once. Where items are called by their positions, the
            others keep theirs.

        Raises
        ------
        KeyError
            If an id is not there. Nothing is removed then.
        ValueError
            If an id is given twice.
        """
        self._native.remove(as_ids(ids))

    def commit(self) -> int:
        """Make the changes since the last commit durable, without writing the file anew.

        They are appended, as one record, to a journal beside the file (``NAME.journal``), which
        is synced; :meth:`open` reads it. All changes of a commit survive a crash, or none.
        :meth:`save` onto the file folds the journal into it.

        Returns
        -------
        int
            Bytes of the record; 0 where there was nothing to commit.

        Raises
        ------
        ValueError
            If the index was not opened from a file.
        BlockingIOError
            If another writer is at work on the file.
        RuntimeError
            If the file was changed by another since this index read it: :meth:`reload`, and make
            the changes again.
        OSError
            If the journal cannot be written. The changes are still in memory, and can be
            committed again.
        """
        return self._native.commit()

    def reload(self, *, discard: bool = False) -> bool:
        """Read the file again, where another writer has changed it.

        Searches that are under way end on what they began with.

        Parameters
        ----------
        discard : bool, default False
            Let changes go that were not committed.

        Returns
        -------
        bool
            Whether there was anything new.

        Raises
        ------
        ValueError
            If the index was not opened from a file, or has changes that were not committed.
        OSError, IndexFormatError
            As :meth:`open`; the index is then as it was.
        """
        is_new = self._native.reload(discard=bool(discard))
        if is_new:
            self._forget()
        return is_new

    def get(self, ids: Any) -> SparseCodes:
        """Codes of items, as they are stored.

        Parameters
        ----------
        ids : array_like of int or str, shape (n,)
            Of items that are there; repeats are allowed.

        Returns
        -------
        SparseCodes
            n rows. Values are those that were given where values take 32 bits, else levels times
            the row's step. Under "cosine" the step is not stored (it cancels), unless
            ``unit_items``: codes are then scaled so that what they decode to has norm 1, or, in
            an index for mode "sparse" alone, so that they have norm 1.

        Raises
        ------
        KeyError
            If an id is not there.
        """
        indptr, latents, values = self._native.get(as_ids(ids))
        return SparseCodes.from_csr(indptr, latents, values, self._native.dim)

    def reconstruct(self, ids: Any) -> npt.NDArray[np.float32]:
        """Embeddings that items decode to: ``W^T code``, plus the dictionary's mean.

        Parameters
        ----------
        ids : array_like of int or str, shape (n,)
            Of items that are there.

        Returns
        -------
        ndarray of float32, shape (n, d)
            Scaled as in :meth:`get`.

        Raises
        ------
        KeyError
            If an id is not there.
        ValueError
            If the index holds no dictionary.
        """
        return self._native.reconstruct(as_ids(ids))

    def __contains__(self, item: object) -> bool:
        """Whether an item has this id."""
        if isinstance(item, (int, np.integer)) and not -(2**63) <= int(item) < 2**63:
            return False
        if isinstance(item, (str, int, np.integer)) and not isinstance(item, bool):
            return bool(self._native.contains(as_ids([item]))[0])
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None or self._native.changes()["uncommitted"]:
            raise TypeError(
                "a pickle of an index refers to its file; "
                + (
                    "this one has none: save it, and pickle the opened file"
                    if self._path is None
                    else "this one has changes that are not in it: commit or save them first"
                )
            )
        return _reopened, (os.fspath(self._path), self._native.opened_mapped)


def _reopened(path: str, mmap: bool) -> SparseIndex:
    from sparse_retrieval.index import SparseIndex

    return SparseIndex.open(path, mmap=mmap)


def merge(paths: Any, out: str | os.PathLike[str], *, progress: Any = None) -> int:
    """Join index files into one: all items of the first, then those of the second, and so on.

    Rows are copied as they are stored, with the changes in the journals of the files; memory does
    not grow with them. The result answers as one index of all items. Where one of the files has
    postings, or clusters, they are made for the result, in memory: see
    :meth:`SparseIndex.save`; clusters are carried on from the largest file that has some.

    Parameters
    ----------
    paths : sequence of path-like
        Files of one model: equal latents, metric, modes, dictionary and, where values are coded
        by rank, codebooks (``IndexWriter(codebooks=)``). Metadata are those of the first.
    out : path-like
        The target, written beside it and then in its place; it may be one of the files.
    progress : callable, optional
        Called every 50 ms or so with the number of rows copied.

    Returns
    -------
    int
        The number of items.

    Raises
    ------
    ValueError
        If files do not fit each other, or an id is in two of them. Where no file has ids, items
        are called by their position in the result.
    OSError, IndexFormatError
        If a file cannot be read, or the target not written; it is then as it was.
    BlockingIOError
        If another writer is at work on the target.

    Examples
    --------
    >>> import pathlib, tempfile, sparse_retrieval as sr
    >>> folder = tempfile.TemporaryDirectory()
    >>> paths = [pathlib.Path(folder.name) / f"{i}.sridx" for i in range(2)]
    >>> for i, path in enumerate(paths):
    ...     codes = sr.SparseCodes([[0, 1]], [[1.0, i + 2.0]], dim=3)
    ...     sr.SparseIndex.from_codes(codes, ids=[f"item {i}"]).save(path)
    >>> sr.merge(paths, paths[0])
    2
    >>> sr.SparseIndex.open(paths[0]).ids.tolist()
    ['item 0', 'item 1']
    >>> folder.cleanup()
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths is {paths!r}; expected a sequence of paths")
    return native.merge([os.fspath(path) for path in paths], os.fspath(out), progress=progress)
