"""Checks of arrays that come from users, with errors that say what was got and where.

Shared by every module that takes embeddings; knows nothing of codes or indexes.
"""

from __future__ import annotations

import operator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatT = TypeVar("FloatT", np.float32, np.float64)

_FLOAT32_MAX = float(np.finfo(np.float32).max)

#: Numbers whose product with themselves every BLAS finds on the thread that asks.
_FEW = 4096


def as_numbers(x: Any, name: str) -> npt.NDArray[Any]:
    """An array of real numbers; torch tensors on any device and Arrow columns are accepted.

    Raises
    ------
    TypeError
        For object, string, complex and other dtypes that are not real numbers, and for scipy's
        sparse matrices.
    ValueError
        For ragged nested sequences, and masked arrays that mask anything.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} is a masked array that masks {x.size - x.count()} of {x.size} numbers; "
            "expected all of them: fill or leave out what is masked"
        )
    if type(x).__module__.startswith("scipy.sparse"):
        raise TypeError(f"{name} is a sparse matrix of scipy; expected dense numbers")
    if type(x).__module__.partition(".")[0] == "torch":
        x = x.detach().cpu()
        if x.dtype.is_floating_point and x.element_size() == 2:
            x = x.float()  # numpy has no bfloat16
        x = x.numpy()
    x = of_column(x)
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers, as float32")
    return array


def of_column(x: Any) -> Any:
    """The matrix of a pyarrow or polars column of lists of numbers; all else as it is."""
    top = type(x).__module__.partition(".")[0]
    if top not in ("pyarrow", "polars"):
        return x
    # a table or frame has neither: its columns of numbers are a matrix by themselves
    kind = str(getattr(x, "type" if top == "pyarrow" else "dtype", "")).lower()
    if not kind.startswith(("list", "large_list", "fixed_size_list", "array")):
        return x
    from sparse_retrieval.integrations.arrow import as_matrix

    return as_matrix(x)


def as_rows(x: Any, name: str, dtype: type[FloatT], *, step: int = 1) -> npt.NDArray[FloatT]:
    """A finite, C-contiguous (n, d) array; one row of shape (d,) becomes (1, d).

    Parameters
    ----------
    x : array_like, shape (n, d) or (d,)
        Numbers of any real dtype.
    name : str
        What to call it in errors.
    dtype : numpy.float32 or numpy.float64
        Of the result.
    step : int, default 1
        Where x is every step-th row of something, of which errors are to give the row.

    Raises
    ------
    TypeError
        If the numbers are not real.
    ValueError
        If the shape is not (n, d), or a row holds NaN, inf or a number beyond float32.
    """
    array = as_numbers(x, name)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {array.shape}; expected (n, d), or (d,) for one row")
    if array.ndim == 1:
        array = array[None]
    if array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected at least one column")
    if np.can_cast(array.dtype, dtype):
        rows = np.ascontiguousarray(array, dtype=dtype)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            # a number beyond float32 becomes inf in float32 and is found below in float64
            rows = np.ascontiguousarray(array, dtype=dtype)
    check_finite(rows, name, step=step)
    return rows


def check_finite(rows: npt.NDArray[np.floating[Any]], name: str, *, step: int = 1) -> None:
    """Refuse NaN, inf and numbers beyond float32, naming the first row that has one.

    Row i is called i * step.

    Raises
    ------
    ValueError
        With the row, the column and the number.
    """
    # of few numbers, as of one query, the quickest: a sum of squares that is no larger than this
    # has no term that is, and NaN is not smaller than anything. Of many a BLAS would wake its
    # threads, which then wait for more to do as busily as if they did it
    if rows.size <= _FEW and np.vdot(rows, rows) <= _FLOAT32_MAX:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.abs(rows).max(initial=0.0)
    if total <= _FLOAT32_MAX:  # false for NaN
        return
    with np.errstate(invalid="ignore"):
        row, column = np.argwhere(~(np.abs(rows) <= _FLOAT32_MAX))[0]
    raise ValueError(
        f"{name} row {row * step} holds {rows[row, column]} in column {column}; "
        "expected finite numbers within float32"
    )


def as_real(
    value: Any,
    name: str,
    *,
    least: float = -np.inf,
    most: float = np.inf,
    above: float = -np.inf,
) -> float:
    """A finite number within bounds: from ``least`` to ``most``, and more than ``above``.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not finite, or out of bounds.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} is {value!r}; expected a number")
    number = float(value)
    if not (np.isfinite(number) and least <= number <= most and number > above):
        limits = {"more than": above, "at least": least, "at most": most}
        bounds = " and ".join(f"{of} {at:g}" for of, at in limits.items() if np.isfinite(at))
        expected = "a finite number" + (f" of {bounds}" if bounds else "")
        raise ValueError(f"{name} is {number}; expected {expected}")
    return number


def as_threads(threads: Any) -> int | None:
    """A number of threads from 1 to 1,024, or None for as many as there are.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_count`.
    """
    return None if threads is None else as_count(threads, "threads", most=1024)


def as_count(value: Any, name: str, *, least: int = 1, most: int = 2**31 - 1) -> int:
    """An integer within bounds.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is out of bounds.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None
    if not least <= count <= most:
        raise ValueError(f"{name} is {count}; expected {least} to {most}")
    return count
