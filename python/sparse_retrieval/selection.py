"""Which items a search may return: filters for all queries, exclusions for each.

Turns what users hold (ids, masks, bitmaps, lists of items already seen) into what the native
module takes. numpy alone; knows nothing of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native as native
from sparse_retrieval._arrays import as_count, as_numbers
from sparse_retrieval._ids import as_ids, is_text

#: Exclusions as the native module takes them: where each query's ids start, and all ids.
Lists = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64] | list[str]]


class Bitmap:
    """A set of items of one index, by position: one bit an item.

    The filter to make once and use for many searches: ids and masks are turned into one at
    every search. It is for the items of one moment, in the order of ``index.ids``: after a change
    of the index make it again. (One made from ids is refused then; of others only the length is
    checked.) :meth:`SparseIndex.bitmap` makes one from ids, :meth:`from_mask` from a mask.
    Bitmaps for equally many items combine with ``&``, ``|`` and ``~``. It never changes.

    Parameters
    ----------
    packed : array_like of uint8, shape (ceil(n / 8),)
        Bit ``i % 8`` of byte ``i // 8``, counted from the lowest, says whether position i is in
        the set: ``np.packbits(mask, bitorder="little")``.
    n : int
        Number of items of the index.

    Raises
    ------
    TypeError
        If ``packed`` has another dtype than uint8.
    ValueError
        If it has another shape, or a bit past the last item is set, as it may be in bits packed
        from the highest.

    Examples
    --------
    >>> import numpy as np, sparse_retrieval as sr
    >>> cheap = sr.Bitmap(np.packbits([1, 0, 1, 1], bitorder="little"), 4)
    >>> in_stock = sr.Bitmap.from_mask(np.array([True, True, False, True]))
    >>> (cheap & in_stock).to_mask().tolist(), len(cheap), cheap.count
    ([True, False, False, True], 4, 3)
    """

    __slots__ = ("_native",)

    _native: native.Bitmap

    def __init__(self, packed: npt.ArrayLike, n: int) -> None:
        array = as_numbers(packed, "packed")
        if array.dtype != np.uint8:
            raise TypeError(
                f"packed has dtype {array.dtype}; expected uint8, as np.packbits returns"
            )
        if array.ndim != 1:
            raise ValueError(f"packed has shape {array.shape}; expected (ceil(n / 8),)")
        n = as_count(n, "n", least=0, most=2**48)
        self._native = native.Bitmap(np.ascontiguousarray(array), n)

    @classmethod
    def _of(cls, built: native.Bitmap) -> Bitmap:
        bitmap = cls.__new__(cls)
        bitmap._native = built
        return bitmap

    @classmethod
    def from_mask(cls, mask: npt.ArrayLike) -> Bitmap:
        """The set of the positions where ``mask``, of shape (n,) and dtype bool, is true.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.
        """
        array = as_numbers(mask, "mask")
        if array.dtype != np.bool_:
            raise TypeError(f"mask has dtype {array.dtype}; expected bool")
        if array.ndim != 1:
            raise ValueError(f"mask has shape {array.shape}; expected (n,)")
        return cls(np.packbits(array, bitorder="little"), len(array))

    @property
    def packed(self) -> npt.NDArray[np.uint8]:
        """The bits, shape (ceil(n / 8),), lowest first; a copy."""
        return self._native.packed

    @property
    def count(self) -> int:
        """How many items are in the set."""
        return self._native.count

    def to_mask(self) -> npt.NDArray[np.bool_]:
        """The set as an array of bool, shape (n,)."""
        return np.unpackbits(self.packed, count=len(self), bitorder="little").view(np.bool_)

    def __len__(self) -> int:
        """Number of items of the index that it is for."""
        return len(self._native)

    def __and__(self, other: Bitmap) -> Bitmap:
        """Items in both."""
        return self._combined(other, np.bitwise_and)

    def __or__(self, other: Bitmap) -> Bitmap:
        """Items in either."""
        return self._combined(other, np.bitwise_or)

    def __invert__(self) -> Bitmap:
        """Items that are not in it."""
        return Bitmap.from_mask(~self.to_mask())

    def _combined(self, other: Bitmap, how: np.ufunc) -> Bitmap:
        if not isinstance(other, Bitmap):
            return NotImplemented
        if len(other) != len(self):
            raise ValueError(f"a bitmap of {len(self)} items meets one of {len(other)}")
        return Bitmap(how(self.packed, other.packed), len(self))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same items of as many."""
        if not isinstance(other, Bitmap):
            return NotImplemented
        return len(self) == len(other) and bool(np.array_equal(self.packed, other.packed))

    __hash__ = None  # type: ignore[assignment]  # comparing is linear work, as with arrays

    def __repr__(self) -> str:
        return f"Bitmap({self.count} of {len(self)} items)"


def as_filter(
    chosen: Any, index: native.Index
) -> native.Bitmap | npt.NDArray[np.int64] | list[str] | None:
    """The bitmap or the ids of a filter: None, a Bitmap, a mask of bool, or ids.

    Raises
    ------
    TypeError
        If it is none of these; packed bits are taken as a Bitmap only, since numbers of 8 bits
        may be ids as well.
    ValueError
        If it is for another number of items, or holds an id that no item has.
    """
    if chosen is None:
        return None
    if not isinstance(chosen, Bitmap):
        if is_text(chosen):
            return as_ids(chosen, "filter")
        array = as_numbers(chosen, "filter")
        if array.dtype == np.uint8:
            raise TypeError(
                "filter has dtype uint8, which may be packed bits or ids; for bits give "
                "Bitmap(bits, len(index)), for ids an array of a wider dtype"
            )
        if array.dtype != np.bool_:
            return as_ids(array, "filter")
        if array.shape != (len(index),):
            raise ValueError(
                f"filter is a mask of shape {array.shape}; expected ({len(index)},), one an item"
            )
        chosen = Bitmap.from_mask(array)
    return chosen._native  # type: ignore[no-any-return]  # the core checks its length


def as_exclusions(exclude: Any, n_queries: int) -> Lists | None:
    """The lists of ids that each query excludes.

    Parameters
    ----------
    exclude : None, list of array_like of int, or array_like of int, shape (n_queries, m)
        -1 stands for nothing. For one query one list of one axis will do. Likewise of strings,
        among which None stands for nothing.
    n_queries : int

    Raises
    ------
    TypeError, ValueError
        If it is of another kind, or holds not one list a query.
    """
    if exclude is None:
        return None
    if hasattr(exclude, "ndim") and not hasattr(exclude, "reshape"):  # a column of pandas
        exclude = np.asarray(exclude)
    lists = exclude
    if not hasattr(exclude, "ndim"):
        if not hasattr(exclude, "__iter__"):
            raise TypeError(f"exclude is {exclude!r}; expected one list of ids a query")
        lists = list(exclude)
        if n_queries == 1 and all(np.ndim(entry) == 0 for entry in lists):
            lists = [lists]
    elif exclude.ndim == 1 and n_queries == 1:
        lists = exclude.reshape(1, -1)
    elif exclude.ndim != 2:
        raise ValueError(
            f"exclude has shape {tuple(exclude.shape)}; expected one list of ids a query, or "
            "(queries, m) padded with -1"
        )
    if len(lists) != n_queries:
        raise ValueError(f"exclude has {len(lists)} lists for {n_queries} queries; give one each")
    if isinstance(lists, list):  # no list for a query excludes nothing of it
        lists = [[] if entry is None else entry for entry in lists]
    if any(is_text(entry) for entry in lists):
        lists = [[item for item in entry if item is not None] for entry in lists]
        are_texts = {isinstance(item, str) for entry in lists for item in entry}
        if len(are_texts) > 1:
            raise TypeError("exclude holds strings and integers; expected one kind")
        if are_texts != {False}:
            named = [as_ids(entry, "exclude") if entry else [] for entry in lists]
            starts = np.cumsum([0] + [len(entry) for entry in named], dtype=np.uint64)
            return starts, [str(item) for entry in named for item in entry]
    if isinstance(lists, list):
        arrays: list[Any] = [
            as_ids(entry, f"exclude of query {q}") for q, entry in enumerate(lists)
        ]
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        ids = np.concatenate([*arrays, np.empty(0, dtype=np.int64)])
    else:
        ids = np.asarray(as_ids(np.ravel(as_numbers(lists, "exclude")), "exclude"))
        lengths = np.full(n_queries, lists.shape[1], dtype=np.int64)
    kept = ids != -1
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return before[ends].astype(np.uint64), ids[kept]


def of_queries(lists: Lists | None, queries: slice) -> Lists | None:
    """The lists of consecutive queries alone."""
    if lists is None:
        return None
    starts, ids = lists
    first, last = int(starts[queries.start]), int(starts[queries.stop])
    return starts[queries.start : queries.stop + 1] - starts[queries.start], ids[first:last]
