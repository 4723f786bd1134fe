"""Rows to train on and encode, fetched by position, a batch at a time.

A source knows how to fetch rows; it does not know what they are for. Other kinds (files and data
sets: sources.py) join by offering the three members of `RowSource`. Nothing is read twice to be
checked: every row is examined when it is fetched.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@runtime_checkable
class RowSource(Protocol):
    """What training and encoding need of a matrix of n rows and ``dim`` columns.

    A source that is slow unless read forwards may say so by an attribute ``forwards = True``.
    """

    @property
    def dim(self) -> int:
        """Columns of a row."""

    def __len__(self) -> int:
        """Count the rows."""

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Fetch rows by position.

        Parameters
        ----------
        rows : ndarray
            (b,) int64 positions, ascending.

        Returns
        -------
        Tensor
            (b, dim) float32, every entry finite.

        Raises
        ------
        ValueError
            If a row holds NaN, inf or what float32 cannot hold: its position is named.
        """


class ArraySource:
    """Rows of a numpy array, a memmap or a tensor, none of them copied.

    Parameters
    ----------
    x : ndarray, memmap or Tensor
        (n, dim), n >= 1; float16, float32, float64, or bfloat16 in a tensor.

    Raises
    ------
    TypeError
        If x is neither array nor tensor, or of another dtype.
    ValueError
        If it is not two-dimensional or is empty.
    """

    def __init__(self, x: np.ndarray[Any, Any] | Tensor) -> None:
        if isinstance(x, Tensor):
            supported = x.dtype in _FLOAT_DTYPES and x.layout == torch.strided
            described = f"a {x.layout} tensor of {x.dtype}"
        elif isinstance(x, np.ndarray):
            supported = x.dtype.kind == "f" and x.dtype.itemsize <= 8
            described = f"an array of {x.dtype}"
        else:
            raise TypeError(
                "x must be a numpy array, a memmap, a torch tensor, a path of a .npy, .parquet or "
                ".safetensors file, a data set, a DataLoader, an iterable data set or a "
                f"RowSource, got {type(x).__name__}"
            )
        if not supported:
            raise TypeError(
                "x must be dense and hold float16, float32 or float64 (bfloat16 in a tensor), "
                f"got {described}"
            )
        if x.ndim != 2:
            raise ValueError(f"x must be two-dimensional (n, d), got shape {tuple(x.shape)}")
        if x.shape[0] == 0 or x.shape[1] == 0:
            raise ValueError(f"x is empty: shape {tuple(x.shape)}")
        self._x = x.detach() if isinstance(x, Tensor) else x
        self.in_memory = not isinstance(x, np.memmap)

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return int(self._x.shape[1])

    def __len__(self) -> int:
        return int(self._x.shape[0])

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Fetch rows by position; see `RowSource.take`."""
        if isinstance(self._x, Tensor):
            positions = torch.from_numpy(rows).to(self._x.device)
            batch = self._x.index_select(0, positions).float()
        else:
            with np.errstate(over="ignore"):  # becomes inf, which is refused below
                batch = torch.from_numpy(np.asarray(self._x[rows], dtype=np.float32))
        refuse_non_finite(batch, rows)
        return batch


def refuse_non_finite(batch: Tensor, rows: npt.NDArray[np.int64]) -> None:
    """Raise ValueError if a row of ``batch`` is not finite, with its number in ``rows``."""
    # A sum is not finite if a term is not; the converse fails for huge rows only, so one cheap
    # pass decides almost always, and the exact one settles the rest.
    if bool(torch.isfinite(batch.sum())):
        return
    bad = ~torch.isfinite(batch).all(dim=1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"x holds NaN, inf or a number beyond float32 in row {rows[first]}; drop or repair "
            "such rows first"
        )


def as_row_source(x: Any, column: str | None = None) -> RowSource:
    """Anything whose rows can be fetched by position, as a `RowSource`.

    Parameters
    ----------
    x : RowSource, array, memmap, Tensor, path, list of paths, or data set
        A path names a ``.npy`` (mapped), ``.parquet`` (read forwards) or ``.safetensors`` (mapped)
        file; several are one after the other. A data set is a map-style one of torch, or one of
        Hugging Face ``datasets``.
    column : str, optional
        Column of a Parquet file or a data set, tensor of a safetensors file; the only suitable
        one by default.

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        If x is none of these, empty, cannot be read, or has no such column.
    """
    from . import sources

    if sources.is_path(x):
        return sources.file_source(x, column)
    if isinstance(x, list | tuple) and x and all(sources.is_path(part) for part in x):
        return sources.ChainedSource([sources.file_source(part, column) for part in x])
    if sources.is_data_set(x):
        return sources.DataSetSource(x, column)
    if sources.is_stream(x):
        raise TypeError(
            f"x is a stream ({type(x).__name__}): it can be trained on, but here rows are fetched "
            "by number; give an array, a file or a map-style data set"
        )
    if column is not None:
        raise ValueError(
            f"column is {column!r}, but x is a {type(x).__name__}: only .parquet and .safetensors "
            "files and data sets have columns"
        )
    if isinstance(x, Tensor | np.ndarray) or not isinstance(x, RowSource):
        return ArraySource(x)
    return x


class Subset:
    """Some rows of a source, ascending, as a source; a NaN is reported by its own row there."""

    def __init__(self, source: RowSource, rows: npt.NDArray[np.int64]) -> None:
        self._source, self._rows = source, rows
        self.dim = source.dim
        self.forwards = bool(getattr(source, "forwards", False))

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Fetch rows by their position in the subset; see `RowSource.take`."""
        return self._source.take(self._rows[rows])
