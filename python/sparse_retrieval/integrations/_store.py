"""What vector stores of frameworks share: records by string id, their vectors compressed.

A store starts empty and grows record by record, but a dictionary is learnt from many. So the
first vectors are held exactly, by an index over the axes themselves (atoms are the unit vectors,
every component a nonzero), and once there are enough of them a dictionary is learnt and all are
encoded. Searches go through `SparseIndex` in both states. Knows no framework; a record is what a
framework makes of a JSON object.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count, as_rows
from sparse_retrieval._files import read_head, replacing, write_head
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex

#: Vectors that are held exactly before a dictionary is learnt from them: 23 MB at 384 columns.
COMPRESS_AT = 10_000

#: Changes since an index was built that are folded into it: each addition copies earlier ones.
_FOLD_AT = 4096

_FORMAT, _VERSION, _HEAD = "sparse_retrieval.store", 1, "store.json"


class Store:
    """Records by string id, and the index of those that have a vector.

    Parameters
    ----------
    dictionary : Dictionary, optional
        To compress with. Default: one is learnt from the vectors that are there by then.
    k : int, default 32
        Nonzeros of a compressed vector.
    value_bits : float, default 4
        As in `SparseIndex.from_codes`.
    compress_at : int or None, default 10,000
        Compress when there are so many vectors; None for not before :meth:`compress` is called.
        What is added later is encoded with the same dictionary.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not sound.
    """

    def __init__(
        self,
        *,
        dictionary: Dictionary | None = None,
        k: int = 32,
        value_bits: float = 4,
        compress_at: int | None = COMPRESS_AT,
    ) -> None:
        if dictionary is not None and not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary is {type(dictionary).__name__}; expected Dictionary")
        self.dictionary = dictionary
        self.k = as_count(k, "k")
        self.value_bits = value_bits
        self.compress_at = None if compress_at is None else as_count(compress_at, "compress_at")
        self.records: dict[str, Any] = {}
        self.index: SparseIndex | None = None
        self.is_compressed = False
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def width(self) -> int | None:
        """Width of the vectors; None before there is one."""
        if self.dictionary is not None:
            return self.dictionary.embedding_dim
        return None if self.index is None else self.index.embedding_dim

    def put(
        self, ids: Sequence[str], records: Sequence[Any], vectors: Sequence[Any | None]
    ) -> None:
        """Add records or replace those with these ids; of an id given twice the last one counts.

        Parameters
        ----------
        ids : sequence of str, length n
        records : sequence, length n
        vectors : sequence of array_like of float, shape (d,), or of None, length n
            A record without a vector is kept, but not found by :meth:`search`.

        Raises
        ------
        TypeError, ValueError
            If an id is no string, or vectors are not finite or of another width. Nothing is
            changed then.
        """
        last: dict[str, int] = {}
        for at, item in enumerate(ids):
            if not isinstance(item, str):
                raise TypeError(f"id {item!r} is {type(item).__name__}; expected a string")
            last[item] = at
        with_vector = [item for item, at in last.items() if vectors[at] is not None]
        rows = None
        if with_vector:
            rows = as_rows([vectors[last[item]] for item in with_vector], "vectors", np.float32)
            if self.width not in (None, rows.shape[1]):
                raise ValueError(
                    f"vectors have {rows.shape[1]} columns; this store holds {self.width}: embed "
                    "all of them with the same model"
                )
        with self.lock:
            if rows is not None:
                self._put_vectors(with_vector, rows)
            self._drop_vectors([item for item, at in last.items() if vectors[at] is None])
            self.records.update((item, records[at]) for item, at in last.items())
            if self._is_due():
                self.compress()

    def _is_due(self) -> bool:
        return (
            not self.is_compressed
            and self.index is not None
            and self.compress_at is not None
            and len(self.index) >= self.compress_at
        )

    def _put_vectors(self, ids: list[str], rows: npt.NDArray[np.float32]) -> None:
        codes = self._encoded(rows)
        if self.index is None:
            self.index = self._built(codes, ids, Dictionary(np.eye(rows.shape[1])))
            return
        known = np.array([item in self.index for item in ids])
        try:
            if known.any():
                self.index.update(codes[known], [i for i, k in zip(ids, known, strict=True) if k])
            if not known.all():
                self.index.add(
                    codes[~known], ids=[i for i, k in zip(ids, known, strict=True) if not k]
                )
        except ValueError as error:
            if "codebooks" not in str(error):
                raise
            # a row shorter than those that the codebooks were learnt from: learn them again
            self._drop_vectors(ids)
            held = self.index.ids.tolist()
            everything = SparseCodes.concatenate([self.index.get(held), codes])
            dictionary = self.index.dictionary
            assert dictionary is not None
            self.index = self._built(everything, held + ids, dictionary)
        self._fold()

    def _encoded(self, rows: npt.NDArray[np.float32]) -> SparseCodes:
        if not self.is_compressed:
            return SparseCodes.from_dense(rows)
        assert self.dictionary is not None  # it was made by the time of compression
        return self.dictionary.encode(rows, min(self.k, self.dictionary.n_atoms))

    def _built(self, codes: SparseCodes, ids: list[str], dictionary: Dictionary) -> SparseIndex:
        return SparseIndex.from_codes(
            codes,
            dictionary=dictionary,
            ids=ids,
            metric="cosine",
            value_bits=self.value_bits if self.is_compressed else 32,
            unit_items=self.is_compressed,
        )

    def _fold(self) -> None:
        """Make one body of what was built and what was changed since, once that is much."""
        assert self.index is not None
        changes = self.index.stats()["changes"]
        if changes["added"] + changes["removed"] < max(_FOLD_AT, len(self.index) // 4):
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.sridx"
            self.index.save(path)
            self.index = _in_memory(path)

    def drop(self, ids: Iterable[str]) -> list[str]:
        """Remove records; ids that are not there are passed over. Returns those that were."""
        with self.lock:
            there = [item for item in dict.fromkeys(ids) if item in self.records]
            self._drop_vectors(there)
            for item in there:
                del self.records[item]
            return there

    def _drop_vectors(self, ids: Iterable[str]) -> None:
        if self.index is not None:
            there = [item for item in ids if item in self.index]
            if there:
                self.index.remove(there)

    def clear(self) -> None:
        """Remove all records; a dictionary that was learnt stays."""
        with self.lock:
            self.records.clear()
            self.index, self.is_compressed = None, False

    def search(
        self, vector: Any, k: int, allowed: Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ids of the k nearest records and their cosines, best first.

        Parameters
        ----------
        vector : array_like of float, shape (d,)
        k : int
        allowed : iterable of str, optional
            The only ids that may be found. Default: all.

        Raises
        ------
        TypeError, ValueError
            If the vector is not finite or of another width.
        """
        row = as_rows(vector, "the query", np.float32)
        index = self.index
        if index is None or len(index) == 0:
            return []
        chosen = None
        if allowed is not None:
            chosen = [item for item in allowed if item in index]
            if not chosen:
                return []
        k = min(as_count(k, "k"), len(index) if chosen is None else len(chosen))
        scores, ids = index.search(row, k, filter=chosen)
        return [(item, float(score)) for item, score in zip(ids[0], scores[0], strict=True) if item]

    def where(self, matches: Callable[[str, Any], bool]) -> list[str]:
        """The ids of records that match, in the order in which they came."""
        return [item for item, record in list(self.records.items()) if matches(item, record)]

    def vectors(self, ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of records as they are held: exactly, or decoded."""
        if self.index is None or not ids:
            return np.empty((0, self.width or 0), dtype=np.float32)
        if self.is_compressed:
            return self.index.reconstruct(list(ids))
        return self.index.get(list(ids)).to_dense()

    def compress(self, dictionary: Dictionary | None = None) -> None:
        """Compress what is held exactly, and from now on what comes.

        Parameters
        ----------
        dictionary : Dictionary, optional
            Default: the one given to the store, else one that is learnt.

        Raises
        ------
        ValueError
            If vectors are compressed already, there are too few to learn from (100), or the
            dictionary is of another width.
        """
        with self.lock:
            if self.is_compressed:
                raise ValueError("vectors are compressed already; what they were is not kept")
            if self.index is None:
                raise ValueError("there are no vectors to compress yet")
            ids = self.index.ids.tolist()
            index = SparseIndex.from_embeddings(
                self.vectors(ids),
                ids=ids,
                k=self.k,
                value_bits=self.value_bits,
                dictionary=dictionary or self.dictionary,
                progress=False,
            )
            self.index, self.dictionary, self.is_compressed = index, index.dictionary, True

    def save(self, folder: str | os.PathLike[str], kind: str) -> None:
        """Write all to a folder: a reader finds what was there before, or all of the new.

        Parameters
        ----------
        folder : path-like
            Made if absent. Files of an older save are removed after the new ones are in place.
        kind : str
            What the records are; :meth:`load` compares it.

        Raises
        ------
        TypeError
            If a record is not JSON-serialisable; the message has its id.
        OSError
            If the folder cannot be written to.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with self.lock:
            number = 1 + (_head(target).get("number", 0) if _is_store(target) else 0)
            names = {"records": f"records-{number}.jsonl"}
            with replacing(target / names["records"]) as temporary:
                temporary.write_text("".join(self._lines()), encoding="utf-8")
            if self.index is not None:
                names["vectors"] = f"vectors-{number}.sridx"
                self.index.save(target / names["vectors"])
            if self.dictionary is not None and not self.is_compressed:
                names["dictionary"] = f"dictionary-{number}.sridx"
                _carrier(self.dictionary).save(target / names["dictionary"])
            head = {
                "format": _FORMAT,
                "version": _VERSION,
                "kind": kind,
                "number": number,
                "k": self.k,
                "value_bits": self.value_bits,
                "compress_at": self.compress_at,
                "is_compressed": self.is_compressed,
                "files": names,
            }
            write_head(target / _HEAD, head)
            for old in target.iterdir():
                is_ours = old.name.startswith(("records-", "vectors-", "dictionary-"))
                if is_ours and old.name not in names.values():
                    old.unlink()

    def _lines(self) -> Iterator[str]:
        for item, record in self.records.items():
            try:
                yield json.dumps([item, record], ensure_ascii=False, allow_nan=True) + "\n"
            except TypeError as error:
                raise TypeError(f"record {item!r} is not JSON-serialisable: {error}") from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], kind: str) -> Store:
        """Read a folder that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If it is no such folder, or one of its files is missing.
        ValueError
            If it holds another kind of records, is of a later version, or is damaged.
        """
        source = Path(folder)
        if not _is_store(source):
            raise FileNotFoundError(f"{source} holds no {_HEAD}; expected a saved store")
        head = _head(source)
        if head["kind"] != kind:
            raise ValueError(f"{source} holds {head['kind']!r}; expected {kind!r}")
        store = cls(k=head["k"], value_bits=head["value_bits"], compress_at=head["compress_at"])
        files = head["files"]
        with (source / files["records"]).open(encoding="utf-8") as lines:
            store.records = dict(json.loads(line) for line in lines)
        if "vectors" in files:
            store.index = _in_memory(source / files["vectors"])
            store.is_compressed = head["is_compressed"]
            strange = next((item for item in store.index.ids if item not in store.records), None)
            if strange is not None:
                raise ValueError(f"{source} has a vector of {strange!r}, but no such record")
        if store.is_compressed and store.index is not None:
            store.dictionary = store.index.dictionary
        elif "dictionary" in files:
            store.dictionary = _in_memory(source / files["dictionary"]).dictionary
        return store


class Compressing:
    """What a framework's vector store shows of its :class:`Store`, and lets be done with it."""

    _store: Store

    @property
    def is_compressed(self) -> bool:
        """Whether vectors are held as codes by now."""
        return self._store.is_compressed

    @property
    def count(self) -> int:
        """The number of records; no ``len``, for which an empty store would count as false."""
        return len(self._store)

    def compress(self, dictionary: Dictionary | None = None) -> None:
        """Compress the vectors now.

        Parameters
        ----------
        dictionary : Dictionary, optional
            Default: the store's own, or one that is learnt from its vectors.

        Raises
        ------
        ValueError
            If they are compressed already, or too few to learn from (100).
        """
        self._store.compress(dictionary)


def _carrier(dictionary: Dictionary) -> SparseIndex:
    """An index of no items, as a file for a dictionary where safetensors is not installed."""
    nothing = SparseCodes.from_csr([0], [], [], dictionary.n_atoms)
    return SparseIndex.from_codes(nothing, dictionary=dictionary)


def _in_memory(path: Path) -> SparseIndex:
    """The index of a file that may go away: without the path that `commit` would write to."""
    return SparseIndex._of(SparseIndex.open(path, mmap=False)._native, None)


def _is_store(folder: Path) -> bool:
    return (folder / _HEAD).is_file()


def _head(folder: Path) -> dict[str, Any]:
    return read_head(folder / _HEAD, _FORMAT, version=_VERSION, writer="saving a store")
