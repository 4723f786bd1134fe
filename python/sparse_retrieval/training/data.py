"""Rows to train on and encode: from arrays, memmaps and tensors, a batch at a time.

A source knows how to fetch rows; it does not know what they are for. Other kinds (files, data
sets) join by offering the three members of `RowSource`. Nothing is read twice to be checked: every
row is examined when it is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@runtime_checkable
class RowSource(Protocol):
    """What training and encoding need of a matrix of n rows and ``dim`` columns."""

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
                "x must be a numpy array, a memmap, a torch tensor or a RowSource, "
                f"got {type(x).__name__}"
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
        _refuse_non_finite(batch, rows)
        return batch


def _refuse_non_finite(batch: Tensor, rows: npt.NDArray[np.int64]) -> None:
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


def as_row_source(x: Any) -> RowSource:
    """``x`` itself if it is a source, else an `ArraySource` over it; raises as that does."""
    if isinstance(x, Tensor | np.ndarray) or not isinstance(x, RowSource):
        return ArraySource(x)
    return x


def shuffled_batches(n: int, batch_size: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of batch after batch, without end.

    Parameters
    ----------
    n : int
        Rows there are.
    batch_size : int
        Rows of every batch; n if that is less.
    seed : int
        The same seed gives the same batches.

    Yields
    ------
    ndarray
        (min(batch_size, n),) int64, ascending: the loss does not depend on the order inside a
        batch, and a memmap is read forwards.

    Notes
    -----
    Each epoch is a fresh permutation cut into whole batches; the remainder, different in every
    epoch, waits for a later one.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    size = min(batch_size, n)
    while True:
        order = generator.permutation(n).astype(np.int64, copy=False)
        for start in range(0, n - size + 1, size):
            yield np.sort(order[start : start + size])
