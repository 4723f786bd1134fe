"""Rows in files and data sets, fetched by position, and streams of rows that come as they come.

Files: .npy and .safetensors are mapped, so any row is as near as any other; .parquet is read
forwards. Data sets are known by what they can do, not by their class: neither torch's nor
Hugging Face's are imported here. Knows nothing of models, batches or shuffling.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from sparse_retrieval._extras import require
from sparse_retrieval._rows import ParquetRows, UnsoundFileError, open_rows

from .data import ArraySource, RowSource, refuse_non_finite

Positions = npt.NDArray[np.int64]


def is_path(x: Any) -> bool:
    """Whether x names a file."""
    return isinstance(x, str | os.PathLike)


def file_source(path: str | os.PathLike[str], column: str | None) -> RowSource:
    """Rows of a file; see `as_row_source`."""
    if Path(path).suffix.lower() == ".safetensors":
        return ArraySource(_mapped_tensor(Path(path), column))
    rows = open_rows(path, column)
    return ParquetSource(rows) if isinstance(rows, ParquetRows) else ArraySource(rows)


def _mapped_tensor(path: Path, name: str | None) -> Tensor:
    """A matrix of a safetensors file, mapped rather than read."""
    safetensors = require("safetensors", "reading a .safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            matrices = [key for key, shape in shapes.items() if len(shape) == 2]
            if name is None and len(matrices) == 1:
                name = matrices[0]
            if name not in shapes:
                wanted = "no single matrix" if name is None else f"no tensor {name!r}"
                listed = ", ".join(f"{key} {tuple(shape)}" for key, shape in shapes.items())
                raise ValueError(f"{path} has {wanted}; name one with column=, of: {listed}")
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except safetensors.SafetensorError as error:
        raise UnsoundFileError(f"{path} is no readable safetensors file: {error}") from error


class ParquetSource:
    """Rows of a Parquet column of lists; quick only where positions ascend."""

    forwards = True

    def __init__(self, rows: ParquetRows) -> None:
        self._rows = rows
        if 0 in rows.shape:
            raise ValueError(f"x is empty: shape {rows.shape}")
        self.dim = int(rows.shape[1])

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    def take(self, rows: Positions) -> Tensor:
        """Fetch rows by position; see `RowSource.take`."""
        with np.errstate(over="ignore"):  # becomes inf, which is refused below
            batch = torch.from_numpy(np.asarray(self._rows[rows], dtype=np.float32))
        refuse_non_finite(batch, rows)
        return batch


class ChainedSource:
    """Several sources as one, the rows of the second after those of the first."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = list(sources)
        widths = [source.dim for source in sources]
        if len(set(widths)) != 1:
            raise ValueError(f"the files have rows of different widths: {widths}")
        self.dim = widths[0]
        self.forwards = any(getattr(source, "forwards", False) for source in sources)
        self._firsts = np.cumsum([0, *(len(source) for source in sources)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def take(self, rows: Positions) -> Tensor:
        """Fetch rows by position; see `RowSource.take`. A NaN is named by its row in its file."""
        cuts = np.searchsorted(rows, self._firsts)
        parts = [
            source.take(rows[start:stop] - first)
            for source, first, start, stop in zip(
                self._sources, self._firsts, cuts, cuts[1:], strict=False
            )
            if stop > start
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)


def is_data_set(x: Any) -> bool:
    """Whether x is a map-style data set: it has a length, and gives entries by number."""
    if isinstance(x, Tensor | np.ndarray | list | tuple | Mapping | str | IterableDataset):
        return False
    by_number = hasattr(x, "__getitem__") and hasattr(x, "__len__")
    return by_number and (hasattr(x, "column_names") or not hasattr(x, "shape"))


class DataSetSource:
    """Rows of a map-style data set of torch, or of Hugging Face ``datasets``.

    An entry is the row itself, a tuple that begins with it, or a dict that holds it.
    ``__getitems__`` (torch) or a list of numbers (Hugging Face) fetch a batch at once.
    """

    def __init__(self, x: Any, column: str | None) -> None:
        if len(x) == 0:
            raise ValueError(f"x is empty: a {type(x).__name__} of length 0")
        self._column = column
        self._columnar = hasattr(x, "column_names")
        if self._columnar:
            self._column = _chosen_column(x[0], column)
            if hasattr(x, "with_format"):
                x = x.with_format("numpy", columns=[self._column])
        self._x = x
        self.dim = self.take(np.zeros(1, np.int64)).shape[1]

    def __len__(self) -> int:
        return len(self._x)

    def take(self, rows: Positions) -> Tensor:
        """Fetch rows by position; see `RowSource.take`."""
        wanted = rows.tolist()
        if not wanted:
            return torch.empty(0, self.dim)
        if self._columnar:
            batch = _matrix(self._x[wanted][self._column])
        else:
            fetch: Callable[[list[int]], Any] | None = getattr(self._x, "__getitems__", None)
            entries = fetch(wanted) if fetch else [self._x[row] for row in wanted]
            batch = _stacked([row_of(entry, self._column) for entry in entries])
        batch = batch.to("cpu", torch.float32)
        refuse_non_finite(batch, rows)
        return batch


def _chosen_column(entry: Mapping[str, Any], column: str | None) -> str:
    if column is not None:
        if column not in entry:
            raise ValueError(f"x has no column {column!r}; it has {', '.join(entry)}")
        return column
    suitable = [name for name, value in entry.items() if _is_vector(value)]
    if len(suitable) != 1:
        raise ValueError(
            f"x has {len(suitable)} columns of lists of numbers; name one with column=, "
            f"of: {', '.join(entry)}"
        )
    return suitable[0]


def _is_vector(value: Any) -> bool:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not len(value):
        return False
    if isinstance(value, Tensor):
        return value.ndim >= 1 and value.is_floating_point()
    try:
        return np.asarray(value).dtype.kind == "f"
    except ValueError:  # ragged
        return False


def row_of(entry: Any, column: str | None) -> Tensor:
    """The row or rows in one entry of a data set or one batch of a loader, as a tensor.

    Raises
    ------
    TypeError
        If there is nothing with floating-point numbers in it.
    """
    if isinstance(entry, Mapping):
        entry = entry[_chosen_column(entry, column)]
    elif isinstance(entry, tuple | list) and len(entry) and _is_vector(entry[0]):
        entry = entry[0]  # (row, label), and what a TensorDataset or its loader gives
    return _matrix(entry)


def _matrix(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"rows differ in length: {error}") from None
        if array.dtype == object:
            lengths = sorted({len(row) for row in value})
            raise ValueError(f"rows differ in length: {lengths[:4]}")
        if array.dtype.kind != "f":
            raise TypeError(f"x must hold floating-point numbers, got {array.dtype}")
        with np.errstate(over="ignore"):
            wide = array.dtype.itemsize > 4
            value = torch.tensor(array.astype(np.float32) if wide else array)
    if not value.is_floating_point() or value.layout != torch.strided:
        raise TypeError(f"x must hold dense floating-point rows, got {value.dtype}")
    rows: Tensor = value.detach()
    return rows


def _stacked(rows: list[Tensor]) -> Tensor:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"entries of x must be rows (d,) of one length, got {sorted(shapes)[:4]}")
    return torch.stack(rows)


def is_stream(x: Any) -> bool:
    """Whether x can only be gone through: a DataLoader, an iterable data set, a generator."""
    if isinstance(x, RowSource | Tensor | np.ndarray | list | tuple | Mapping | str | os.PathLike):
        return False
    return isinstance(x, IterableDataset) or (hasattr(x, "__iter__") and not is_data_set(x))


class Stream:
    """Batches of rows, each time from the beginning.

    Parameters
    ----------
    x : iterable
        Of rows (d,), batches (b, d), tuples that begin with one, or dicts that hold one.
    column : str, optional
        Key of a dict; the only suitable one by default.
    """

    def __init__(self, x: Any, column: str | None = None) -> None:
        self._x, self._column = x, column
        self._once = hasattr(x, "__next__")
        self._begun = False
        self.dim: int | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (b, d) tensors in the dtype they come in, every entry finite."""
        if self._once and self._begun:
            raise ValueError(
                "x is an iterator and has come to its end; give something that can be gone through "
                "again (a DataLoader, an iterable data set), fewer steps, or an array"
            )
        self._begun, first = True, 0
        for entry in self._x:
            batch = row_of(entry, self._column)
            batch = batch[None] if batch.ndim == 1 else batch
            if batch.ndim != 2 or batch.shape[1] == 0:
                raise ValueError(f"a batch of x has shape {tuple(batch.shape)}; expected (b, d)")
            if self.dim is not None and batch.shape[1] != self.dim:
                raise ValueError(
                    f"row {first} of x has {batch.shape[1]} columns, those before have {self.dim}"
                )
            self.dim = int(batch.shape[1])
            refuse_non_finite(batch.float(), np.arange(first, first + len(batch)))
            first += len(batch)
            yield batch.cpu()
        if first == 0:
            raise ValueError("x is empty: the stream has no rows")
