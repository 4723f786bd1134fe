"""Batches of rows together with their nearest neighbours, found by exact search.

In a batch drawn at random a row's nearest fellow is far away, and to keep their order is easy.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .data import RowSource
from .sampling import Positions
from .vectors import unit_rows

#: Most rows in which neighbours are looked for: 65,536^2 products of 384 take half a minute on two
#: cores, and finding more of them would make the others no harder.
POOL_ROWS = 65_536

_BLOCK = 1_024


class Neighbourhoods:
    """A pool of rows with the ``count`` nearest others of each by exact cosine.

    Parameters
    ----------
    source : RowSource
    count : int
        Neighbours of a row.
    seed : int
        Of the pool, where the source has more than `POOL_ROWS` rows.
    """

    def __init__(self, source: RowSource, count: int, seed: int) -> None:
        size = min(POOL_ROWS, len(source))
        if count >= size:
            raise ValueError(f"hard_negatives must be less than the {size} rows, got {count}")
        drawn = np.random.default_rng([seed, 3]).choice(len(source), size, replace=False)
        self._rows: Positions = np.sort(drawn).astype(np.int64)
        self._nearest = nearest_others(source.take(self._rows), count).numpy()

    def windows(self, batch_size: int, seed: int, epoch: int) -> Iterator[Positions]:
        """One window of all batches of an epoch, as `sampling.windows`.

        Every row of the pool is an anchor once; rows that the neighbourhoods of a batch share
        leave room, which rows drawn at random fill.
        """
        rng = np.random.default_rng([seed, epoch])
        n, count = self._nearest.shape
        size = min(batch_size, n)
        anchors = max(1, size // (count + 1))
        order = rng.permutation(n)
        batches = []
        for start in range(0, n - anchors + 1, anchors):
            chosen = order[start : start + anchors]
            rows = np.unique(np.concatenate((chosen, self._nearest[chosen].ravel())))
            if len(rows) > size:  # a batch smaller than one neighbourhood
                rows = rng.choice(rows, size, replace=False)
            others = np.setdiff1d(rng.permutation(n)[: 2 * size], rows)
            filled = np.concatenate((rows, rng.permutation(others)[: size - len(rows)]))
            if len(filled) < size:  # the draw above may miss some where the batch is most rows
                filled = np.concatenate((filled, np.setdiff1d(np.arange(n), filled)))[:size]
            batches.append(np.sort(self._rows[filled]))
        yield np.stack(batches)


@torch.no_grad()
def nearest_others(x: Tensor, count: int) -> Tensor:
    """The ``count`` nearest other rows of each row by cosine, (n, count) int64."""
    unit = unit_rows(x.float())
    best = []
    for start in range(0, len(unit), _BLOCK):
        scores = unit[start : start + _BLOCK] @ unit.t()
        rows = torch.arange(len(scores))
        scores[rows, start + rows] = -torch.inf
        best.append(scores.topk(count, dim=1).indices)
    return torch.cat(best)
