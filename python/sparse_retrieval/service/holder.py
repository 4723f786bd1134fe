"""The newest version of one index file, kept open. Knows nothing of HTTP.

A new version is opened beside the old one, read once so that its pages are in memory, and then
takes its place in one assignment. Who took the old one goes on with it: it stays mapped until
the last search that uses it is done, so nothing is dropped and no answer mixes two versions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_retrieval.index import SparseIndex

#: Device, inode, length and time of change of a file, and of its journal.
Identity = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True)
class Version:
    """One opened version of the file.

    Attributes
    ----------
    index : SparseIndex
    generation : int
        1 for the version at the start, and one more for each that took its place.
    items : int
        Number of items; asked once, since it is shown often.
    """

    index: SparseIndex
    generation: int
    items: int


class Holder:
    """Opens an index file, and again when it has become another one.

    Parameters
    ----------
    path : path-like
        The index file.
    mmap : bool, default True
        As in :meth:`SparseIndex.open`.
    on_reload : callable, optional
        Called with True after a new version took its place, with False after one that could not
        be opened: the old one then stays, and :attr:`error` says why.

    Raises
    ------
    OSError, IndexFormatError
        If the file cannot be opened at the start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mmap: bool = True,
        on_reload: Callable[[bool], object] | None = None,
    ) -> None:
        self._path = Path(path)
        self._mmap = mmap
        self._on_reload = on_reload
        self._lock = threading.Lock()
        self._seen = self._identity()
        index = SparseIndex.open(self._path, mmap=mmap)
        self._current = Version(index, 1, len(index))
        self.error: str | None = None

    @property
    def current(self) -> Version:
        """The newest version that could be opened; take it once for each request."""
        return self._current

    def reload(self, *, force: bool = False) -> bool:
        """Open the file again if it, or its journal, is not what was opened last.

        Blocks until the new version has been read once; call it from a thread.

        Parameters
        ----------
        force : bool, default False
            Try even if nothing seems to have changed, for instance after an error.

        Returns
        -------
        bool
            Whether a new version took the place of the old one.

        Raises
        ------
        OSError, IndexFormatError
            If it cannot be opened; the old version stays.
        """
        with self._lock:
            seen = self._identity()
            if seen == self._seen and not force:
                return False
            self._seen = seen  # also after an error: it is told once, not at every look
            try:
                index = SparseIndex.open(self._path, mmap=self._mmap)
                _read_once(index)
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                if self._on_reload is not None:
                    self._on_reload(False)
                raise
            self.error = None
            self._current = Version(index, self._current.generation + 1, len(index))
            if self._on_reload is not None:
                self._on_reload(True)
            return True

    def _identity(self) -> Identity:
        return tuple(
            _stat(path) for path in (self._path, self._path.with_name(self._path.name + ".journal"))
        )


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_once(index: SparseIndex) -> None:
    """Search for one query, so that the rows are read from disk before anyone waits for them."""
    if len(index) == 0:
        return
    if index.embedding_dim is not None and "dense" in index.modes:
        index.search(np.ones(index.embedding_dim), 1)
        return
    index.search(index.get(index.ids[:1]), 1)
