"""Rows of a file as something with a shape that slices to arrays: .npy mapped, .parquet read.

What learns and encodes takes arrays batch by batch; this makes a path one of them. Memory holds
a batch, not the file. Knows nothing of dictionaries or codes. pyarrow is asked for where a
Parquet file is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_numbers, of_column
from sparse_retrieval._extras import require

#: Rows decoded at once from a Parquet file: 12 MB of float32 at 384 columns.
_BATCH_ROWS = 8192

#: Bytes read at once from a column of a Parquet file, instead of a whole row group's column.
_BUFFER_BYTES = 1 << 20


class UnsoundFileError(ValueError):
    """A file is not of the kind that its suffix says, or is damaged."""


def open_rows(x: Any, column: str | None = None) -> Any:
    """Rows behind a path; anything but a path is handed back.

    Parameters
    ----------
    x : path-like or anything
        A string or path names a file ``.npy``, which is mapped, or ``.parquet``.
    column : str, optional
        The column of a Parquet file that holds the rows. Default: the only one that holds
        lists of numbers.

    Returns
    -------
    memmap, ParquetRows, or x
        With ``shape`` (n, d); sliced to arrays.

    Raises
    ------
    ImportError
        If pyarrow is needed and not installed; the message names the extra.
    OSError
        If the file cannot be read.
    ValueError
        If it is of neither kind, damaged (`UnsoundFileError`), or has no such column; or a
        column is named and x is no Parquet file.
    """
    path = Path(x) if isinstance(x, str | os.PathLike) else None
    suffix = "" if path is None else path.suffix.lower()
    if column is not None and suffix != ".parquet":
        raise ValueError(
            f"column is {column!r}, but x is no .parquet file: only those have columns"
        )
    if path is None:
        x = of_column(x)
        # a frame or a table has a shape, but is not sliced and indexed by rows as arrays are
        is_frame = type(x).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow", "scipy")
        return as_numbers(x, "x") if is_frame else x
    if suffix == ".parquet":
        return ParquetRows(path, column)
    if suffix != ".npy":
        raise ValueError(f"{path} is neither .npy nor .parquet; load it and give the array")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise UnsoundFileError(f"{path} is not a sound .npy file of numbers: {error}") from None


class ParquetRows:
    """Rows of a Parquet column whose entries are lists of d numbers.

    Rows are decoded `_BATCH_ROWS` at a time, in the order of the file; the batch decoded last is
    kept. Reading forwards passes over the file once, and row groups without a wanted row are
    not read; going back starts again at the row's group.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    column : str, optional
        As in `open_rows`.
    width : int, optional
        d, where the caller knows it, so that no row needs to be decoded to learn it.

    Attributes
    ----------
    shape : tuple of int
        (n, d): d is the list type's length, or that of the first row's list.

    Raises
    ------
    ImportError, OSError, ValueError
        As `open_rows`; ValueError, when it is read, for a row that is null, holds a null, or is
        of another length than d: the message has its number in the file.
    """

    def __init__(self, path: Path, column: str | None = None, width: int | None = None) -> None:
        parquet = require("pyarrow.parquet", "reading a .parquet file")
        self._arrow = require("pyarrow", "reading a .parquet file")
        self._path = path
        try:
            self._file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except self._arrow.ArrowInvalid as error:
            raise UnsoundFileError(f"{path} is not a sound .parquet file: {error}") from None
        self._column = self._chosen(column)
        metadata = self._file.metadata
        counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        self._first_rows = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._batches: Iterator[Any] = iter(())
        kind = self._numbers_type()
        self._start, self._held = 0, np.empty((0, 0), kind.value_type.to_pandas_dtype())
        self.shape = (int(metadata.num_rows), self._width() if width is None else width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows of a slice with step 1, or at ascending positions: an array (rows, d)."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        out, done = np.empty((len(rows), self.shape[1]), self._held.dtype), 0
        while done < len(rows):
            self._hold(int(rows[done]))
            upto = int(np.searchsorted(rows, self._start + len(self._held)))
            out[done:upto] = self._held[rows[done:upto] - self._start]
            done = upto
        return out

    def scattered(self, rows: npt.NDArray[np.int64], threads: int) -> npt.NDArray[Any]:
        """Rows at ascending positions, row groups read at once by up to ``threads`` threads.

        Each thread has a reader of its own, since one keeps the batch that it decoded last; so
        this may be called from many threads, too.
        """
        if not len(rows):
            return np.empty((0, self.shape[1]), self._held.dtype)
        cuts = np.flatnonzero(np.diff(self._group_of(rows))) + 1
        of_groups = np.split(rows, cuts)

        def read(share: int) -> list[npt.NDArray[Any]]:
            reader = ParquetRows(self._path, self._column, self.shape[1])
            return [reader._of_group(part) for part in of_groups[share::threads]]

        threads = min(threads, len(of_groups))
        with ThreadPoolExecutor(threads) as pool:
            shares = list(pool.map(read, range(threads)))
        return np.concatenate([shares[g % threads][g // threads] for g in range(len(of_groups))])

    def _of_group(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows at ascending positions of one row group, of which no other group is read."""
        group = self._group_of(rows[:1])[0]
        batches = self._file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[group], columns=[self._column]
        )
        taken: list[npt.NDArray[Any]] = []
        self._start, done = int(self._first_rows[group]), 0
        while done < len(rows):
            held = self._numbers(next(batches))
            upto = int(np.searchsorted(rows, self._start + len(held)))
            taken.append(held[rows[done:upto] - self._start])
            self._start, done = self._start + len(held), upto
        return np.concatenate(taken)

    def _group_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._first_rows, rows, side="right") - 1

    def _chosen(self, column: str | None) -> str:
        """The column to read; one of two with the same name is no answer."""
        schema = self._file.schema_arrow
        suitable = [field.name for field in schema if self._holds_numbers(field.type)]
        named = suitable if column is None else [name for name in suitable if name == column]
        if len(named) == 1:
            return str(named[0])
        has = f"{len(named)} columns" if named else "no column"
        if column is not None:
            has += f" {column!r}"
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{self._path} has {has} of lists of numbers; name one with column=, of: {listed}"
        )

    def _holds_numbers(self, kind: Any) -> bool:
        types = self._arrow.types
        kind = getattr(kind, "storage_type", kind)  # of an extension type: a tensor's numbers
        if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
            return False
        return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))

    def _numbers_type(self) -> Any:
        kind = self._file.schema_arrow.field(self._column).type
        return getattr(kind, "storage_type", kind)

    def _width(self) -> int:
        """Numbers a row; the first batch is decoded to learn it where the type does not tell."""
        kind = self._numbers_type()
        if self._arrow.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        if self._file.metadata.num_rows == 0:
            raise ValueError(f"{self._path} holds no rows, so that their length is unknown")
        self.shape = (int(self._file.metadata.num_rows), -1)
        self._hold(0)
        return int(self._held.shape[1])

    def _hold(self, row: int) -> None:
        """Decode batches until the one that holds this row is at hand."""
        following = self._start + len(self._held)
        group = int(self._group_of(np.array([row]))[0])
        if row < self._start or self._first_rows[group] > following or not following:
            groups = range(group, len(self._first_rows) - 1)
            self._batches = self._file.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=groups, columns=[self._column]
            )
            self._start, self._held = int(self._first_rows[group]), self._held[:0]
        while row >= self._start + len(self._held):
            self._start += len(self._held)
            self._held = self._numbers(next(self._batches))

    def _numbers(self, batch: Any) -> npt.NDArray[Any]:
        """The lists of a batch as an array (rows, d)."""
        lists = batch.column(batch.schema.get_field_index(self._column))
        lists = getattr(lists, "storage", lists)
        if lists.null_count:
            self._refuse(lists.is_null(), 1, "is null")
        flat, width = lists.flatten(), self.shape[1]
        lengths = lists.value_lengths().to_numpy()
        if width < 0 and len(lengths):
            width = int(lengths[0])
        if (lengths != width).any():
            wrong = int(np.flatnonzero(lengths != width)[0])
            raise ValueError(
                f"row {self._start + wrong} of column {self._column!r} of {self._path} has "
                f"{lengths[wrong]} numbers; expected {width}, as the rows before"
            )
        if flat.null_count:
            self._refuse(flat.is_null(), width, "holds a null")
        numbers: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
        return numbers.reshape(len(lists), width)

    def _refuse(self, wrong: Any, width: int, what: str) -> None:
        row = self._start + int(np.flatnonzero(wrong.to_numpy(zero_copy_only=False))[0]) // width
        raise ValueError(
            f"row {row} of column {self._column!r} of {self._path} {what}; drop or repair such "
            "rows first"
        )
