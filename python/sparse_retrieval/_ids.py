"""What items are called: 64-bit integers or strings. Knows nothing of indexes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_numbers


def as_ids(ids: Any, what: str = "ids") -> npt.NDArray[np.int64] | list[str]:
    """Ids as the native module takes them.

    Parameters
    ----------
    ids : array_like of int or of str, shape (n,)
        Also a single id, for ``what`` that may be one.
    what : str, default "ids"
        What to call them in errors.

    Returns
    -------
    ndarray of int64, shape (n,), or list of str
        Contiguous. No ids at all are numbers.

    Raises
    ------
    TypeError
        If they are neither integers nor strings, or mixed.
    ValueError
        If there is more than one axis, or a number is beyond int64.
    """
    if isinstance(ids, (list, tuple)) and any(isinstance(item, str) for item in ids):
        return _as_strings(list(ids), what)
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"{what} is {ids!r}; expected a sequence of ids, as [{ids!r}]")
    if is_text(ids):
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ValueError(f"{what} has shape {array.shape}; expected (n,)")
        return _as_strings(array.tolist(), what)
    return _as_integers(ids, what)


def as_unique_ids(ids: Any, n: int) -> npt.NDArray[np.int64] | list[str]:
    """Ids as :func:`as_ids` gives them: one for each of n items, and none twice.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_ids`; also if there are more or fewer, one is there twice, or one is -1.
    """
    known = as_ids(ids)
    if len(known) != n:
        raise ValueError(f"{len(known)} ids for {n} items; expected one each")
    if not isinstance(known, list) and (known == -1).any():
        at = int(np.flatnonzero(known == -1)[0])
        raise ValueError(f"item {at} has the id -1, which marks missing results; use another")
    listed = np.array(known, dtype=object) if isinstance(known, list) else known
    _, first, counts = np.unique(listed, return_index=True, return_counts=True)
    if len(first) < n:
        at = int(first[counts > 1].min())
        item = known[at] if isinstance(known, list) else int(known[at])
        raise ValueError(f"id {item!r} is given to more than one item; ids are unique")
    return known


def is_text(ids: Any) -> bool:
    """True for what may hold strings: lists with one, and arrays and columns (pandas, pyarrow)."""
    if isinstance(ids, (list, tuple)):
        return any(isinstance(item, str) for item in ids)
    if isinstance(ids, np.ndarray):
        return ids.dtype.kind in "UOT"
    dtype = getattr(ids, "dtype", getattr(ids, "type", ""))
    if hasattr(dtype, "categories"):  # of pandas: what it repeats says what it holds
        return is_text(np.asarray(dtype.categories))
    kind = str(dtype).lower()
    return kind in ("object", "str", "categorical") or "string" in kind


def _as_strings(items: list[Any], what: str) -> list[str]:
    for at, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(
                f"{what}[{at}] is {item!r}; expected strings for all items, or integers for all"
            )
    return [str(item) for item in items]  # numpy's strings are a subclass


def _as_integers(ids: Any, what: str) -> npt.NDArray[np.int64]:
    array = as_numbers(ids, what)
    if array.ndim != 1:
        raise ValueError(f"{what} has shape {array.shape}; expected (n,)")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{what} has dtype {array.dtype}; expected integers or strings")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what} holds {array.max()}; expected less than 2^63")
    return np.ascontiguousarray(array, dtype=np.int64)


def as_array(ids: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Ids of the native module as an array: int64, or object (str, None) for strings."""
    if isinstance(ids, list):
        array = np.empty(len(ids), dtype=object)
        array[:] = ids
        return array.reshape(shape)
    numbers: npt.NDArray[np.int64] = ids
    return numbers.reshape(shape)
