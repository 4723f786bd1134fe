"""One shard: a file with consecutive items, and what is asked of it. Of Ray it knows where it runs.

:func:`split` cuts an index into such files. Their rows are those of the index bit for bit, so
that scores, too, are the same.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count
from sparse_retrieval._ids import as_array
from sparse_retrieval.approximate import Approximate
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.distributed.merging import Named, Part
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.selection import Bitmap, Lists

Queries = SparseCodes | npt.NDArray[np.float64]

#: What is read of a file to tell it from another: its header, with the checksums of all sections.
_HEADER_BYTES = 65_536


@dataclass(frozen=True)
class Wish:
    """How a shard is to be searched.

    Attributes
    ----------
    mode, k_row, approximate, threads
        As :meth:`SparseIndex.search` takes them; the mode is named.
    chosen : ndarray of bool, of int64, list of str, or None
        The mask of this shard's items, or the ids among them, that may be returned.
    excluded : Lists or None
        For each query the ids of this shard that may not.
    """

    mode: str
    k_row: int | None = None
    approximate: Approximate | bool | None = None
    threads: int | None = None
    chosen: Any = None
    excluded: Lists | None = None


def split(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], n_shards: int
) -> list[Path]:
    """Cut an index into files of consecutive items, as even as can be.

    Parameters
    ----------
    path : path-like
        An index file.
    folder : path-like
        Where the shards go, ``shard-00000.sridx`` and so on; it is made if need be.
    n_shards : int
        At least 1, at most the number of items.

    Returns
    -------
    list of pathlib.Path
        In the order of the items, for :class:`ShardedIndex`.

    Raises
    ------
    OSError, IndexFormatError
        If the index cannot be read or a shard not be written.
    ValueError
        If there are fewer items than shards.
    """
    n_shards = as_count(n_shards, "n_shards")
    ids = SparseIndex.open(path).ids
    if len(ids) < n_shards:
        raise ValueError(f"{len(ids)} items do not fill {n_shards} shards")
    Path(folder).mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(ids), n_shards + 1).astype(np.int64).tolist()
    paths = []
    for number in range(n_shards):
        shard = SparseIndex.open(path)
        shard.remove(np.concatenate([ids[: bounds[number]], ids[bounds[number + 1] :]]))
        out = Path(folder) / f"shard-{number:05d}.sridx"
        shard.save(out)
        paths.append(out)
    return paths


class Shard:
    """A shard that is open, as a replica holds it.

    Parameters
    ----------
    path : path-like
    mmap : bool, default True
        As in :meth:`SparseIndex.open`.
    content : str, optional
        What :attr:`content` was when the shards were opened first; a file that is another one
        by now is refused, since an answer must not mix two states.

    Raises
    ------
    OSError, IndexFormatError
        If it cannot be opened.
    ValueError
        If the file is not the one that it was.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mmap: bool = True, content: str | None = None
    ) -> None:
        self._path = Path(path)
        self.content = _content(self._path)
        if content is not None and content != self.content:
            raise ValueError(
                f"{path}: is another file than when the shards were opened; open them again"
            )
        self._index = SparseIndex.open(path, mmap=mmap)

    def info(self) -> dict[str, Any]:
        """What must agree between shards, and how many items this one holds."""
        index = self._index
        return {
            "path": os.fspath(self._path),
            "pid": os.getpid(),
            "content": self.content,
            "items": len(index),
            "clusters": index.n_clusters,
            "width": index._native.width,
            "ids": "str" if index.ids[:1].dtype == object else "int",
            "agree": {
                "dim": index.dim,
                "embedding_dim": index.embedding_dim,
                "metric": index.metric,
                "modes": index.modes,
                "unit_items": index.unit_items,
                "dictionary": _digest(index._native.dictionary),
                "mean": _digest(index._native.mean),
            },
        }

    def contains(self, ids: npt.NDArray[np.int64] | list[str]) -> npt.NDArray[np.bool_]:
        """Which of these ids are here, shape (n,)."""
        return np.asarray(self._index._native.contains(ids), dtype=np.bool_)

    def encoded(self, queries: npt.NDArray[np.float32], k: int) -> SparseCodes:
        """Dense queries as codes, by pursuit with the shard's dictionary."""
        dictionary = self._index.dictionary
        assert dictionary is not None  # who asks has seen that there is one
        return dictionary.encode(queries, k=k)

    def search(self, queries: Queries, k: int, wish: Wish) -> Part:
        """The best k of this shard, in double precision, and their ids."""
        scores, ids = self._found(queries, k, wish, positions=False)
        return scores, as_array(ids, scores.shape)

    def candidates(self, queries: Queries, k: int, wish: Wish) -> tuple[Part, Named]:
        """The best k of this shard, for rescoring.

        Returns
        -------
        part : (ndarray of float64, ndarray of int64), shape (nq, at most k)
            Scores, and where the items stand among those of this shard, -1 for none.
        named : (ndarray of int64, ndarray), shape (m,)
            All of these once, ascending, and their ids.
        """
        scores, found = self._found(queries, k, wish, positions=True)
        unique, place = np.unique(found, return_inverse=True)
        there = unique >= 0
        positions = unique[there].astype(np.uint64)
        native = self._index._native
        ranks = np.full(len(unique), -1)
        ranks[there] = native.ranks(positions)
        ids = as_array(native.ids_at(positions), positions.shape)
        return (scores, ranks[place].reshape(found.shape)), (ranks[there], ids)

    def _found(
        self, queries: Queries, k: int, wish: Wish, *, positions: bool
    ) -> tuple[npt.NDArray[np.float64], Any]:
        chosen = wish.chosen
        if isinstance(chosen, np.ndarray) and chosen.dtype == np.bool_:
            chosen = Bitmap.from_mask(chosen)._native
        return self._index._found(
            queries,
            k,
            mode=wish.mode,
            k_row=wish.k_row,
            filter=chosen,
            exclude=wish.excluded,
            approximate=self._index._setting(wish.approximate),
            positions=positions,
            threads=wish.threads,
            progress=None,
        )


class NotOpenError(Exception):
    """A replica could not open its file; another one, elsewhere, might."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Replica:
    """What an actor is: a shard, or the error with which it could not be opened.

    An actor whose constructor fails is told of as one that has died, without the reason.
    """

    def __init__(self, path: str, **options: Any) -> None:
        self._shard: Shard | None = None
        self._error: Exception | None = None
        try:
            self._shard = Shard(path, **options)
        except (OSError, ValueError, MemoryError) as error:
            self._error = error

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the shard."""
        if self._shard is None:
            assert self._error is not None  # one of them is set above
            raise NotOpenError(self._error)
        return getattr(self._shard, method)(*arguments)

    def node(self) -> str:
        """The machine that it is on, which need not be the one that it was meant for."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


def _content(path: Path) -> str:
    """A digest of the file's header and length, and of its journal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HEADER_BYTES))
        digest.update(str(file.seek(0, os.SEEK_END)).encode())
    journal = path.with_name(path.name + ".journal")
    if journal.exists():
        digest.update(journal.read_bytes())
    return digest.hexdigest()


def _digest(array: npt.NDArray[np.float32] | None) -> str | None:
    return None if array is None else hashlib.sha256(array.tobytes()).hexdigest()
