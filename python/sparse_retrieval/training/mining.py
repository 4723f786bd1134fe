"""Batches of rows together with those that a search for them would return.

In a batch drawn at random a row's nearest fellow is far away, and to keep their order is easy.
The neighbours are those that the model's own codes give, by exact search in an index of them: a
third of the time that exact search among the rows themselves takes, and each refresh shows what
the model confuses now. The only file of training that knows indexes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from .data import RowSource, Subset
from .sampling import Positions

if TYPE_CHECKING:
    from .model import CompresSAE

#: Most rows in which neighbours are looked for: those of 62,666 take 19 CPU seconds at s = 4096,
#: k = 32, and finding more of them would make the others no harder.
POOL_ROWS = 65_536

#: Nearest others that are found of each row, of which a batch holds some: those that recall at
#: this depth is about. The very nearest alone are near copies, with little order to keep.
DEPTH = 100

#: Queries searched at once: 12 MiB of 384 columns.
_BLOCK = 8_192


class Neighbourhoods:
    """A pool of rows, and the others that a model's codes put nearest to each.

    Parameters
    ----------
    source : RowSource
    count : int
        Neighbours that come with a row, drawn from its `DEPTH` nearest or from ``count`` if that
        is more.
    seed : int
        Of the pool, where the source has more than `POOL_ROWS` rows.

    Attributes
    ----------
    nearest : ndarray or None
        (pool, depth) int32 positions in the pool; None until `refresh` or a checkpoint sets them.
    """

    def __init__(self, source: RowSource, count: int, seed: int) -> None:
        size = min(POOL_ROWS, len(source))
        if count >= size:
            raise ValueError(f"hard_negatives must be less than the {size} rows, got {count}")
        drawn = np.random.default_rng([seed, 3]).choice(len(source), size, replace=False)
        self._rows: Positions = np.sort(drawn).astype(np.int64)
        self._pool, self._count = Subset(source, self._rows), count
        self._depth = min(max(count, DEPTH), size - 1)
        self.nearest: npt.NDArray[np.int32] | None = None

    def refresh(self, model: CompresSAE) -> None:
        """Look for the neighbours by the model as it stands."""
        self.nearest = nearest_others(model, self._pool, self._depth)

    def state(self) -> Any:
        """What a checkpoint keeps."""
        return None if self.nearest is None else torch.from_numpy(self.nearest)

    def load(self, state: Any) -> None:
        """Go back to what `state` returned."""
        self.nearest = None if state is None else state.numpy()

    def windows(self, batch_size: int, seed: int, epoch: int) -> Iterator[Positions]:
        """One window of all batches of an epoch, as `sampling.windows`.

        Every row of the pool is an anchor once; rows that the neighbourhoods of a batch share
        leave room, which rows drawn at random fill.
        """
        assert self.nearest is not None, "neighbours are looked for before batches are made"
        rng = np.random.default_rng([seed, epoch])
        (n, depth), count = self.nearest.shape, self._count
        size = min(batch_size, n)
        anchors = max(1, size // (count + 1))
        order = rng.permutation(n)
        batches = []
        for start in range(0, n - anchors + 1, anchors):
            chosen = order[start : start + anchors]
            drawn = rng.random((len(chosen), depth)).argsort(axis=1)[:, :count]
            near = np.take_along_axis(self.nearest[chosen], drawn, axis=1)
            rows = np.unique(np.concatenate((chosen, near.ravel())))
            if len(rows) > size:  # a batch smaller than one neighbourhood
                rows = rng.choice(rows, size, replace=False)
            others = np.setdiff1d(rng.permutation(n)[: 2 * size], rows)
            filled = np.concatenate((rows, rng.permutation(others)[: size - len(rows)]))
            if len(filled) < size:  # the draw above may miss some where the batch is most rows
                filled = np.concatenate((filled, np.setdiff1d(np.arange(n), filled)))[:size]
            batches.append(np.sort(self._rows[filled]))
        yield np.stack(batches)


def nearest_others(model: CompresSAE, pool: RowSource, count: int) -> npt.NDArray[np.int32]:
    """The ``count`` other rows that a model's codes put nearest to each row, (n, count).

    Rows ask as dense queries, and scores are cosines to reconstructions: what the ranking loss
    sees, and what a search returns.
    """
    from sparse_retrieval.index import SparseIndex

    index = SparseIndex.from_codes(
        model.sparse_codes(pool),
        dictionary=model.dictionary(),
        metric="cosine",
        value_bits=32,
        modes=("dense",),
    )
    nearest = np.empty((len(pool), count), np.int32)
    for start in range(0, len(pool), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(pool)))
        found = index.search(pool.take(rows).numpy(), count + 1, mode="dense").ids
        # itself goes, or the last where a poor code does not even find itself
        itself_last = np.argsort(found == rows[:, None], axis=1, kind="stable")
        nearest[rows] = np.take_along_axis(found, itself_last, axis=1)[:, :count]
    return nearest
