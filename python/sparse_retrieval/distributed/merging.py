"""The best of several shards' best. numpy alone; knows nothing of files or of Ray.

Shards hold consecutive items, and each gives its best k in double precision, equal scores by
lower position. So side by side, in the order of the shards, equal scores stand by position over
all items, and a stable sort by score gives the answer of one index that holds everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Scores in double precision and ids (or positions), shape (nq, at most k), best first.
Part = tuple[npt.NDArray[np.float64], npt.NDArray[Any]]

#: Positions of some items, ascending, and their ids, shape (m,).
Named = tuple[npt.NDArray[np.int64], npt.NDArray[Any]]


def merge(parts: Sequence[Part], k: int) -> Part:
    """Merge what shards found.

    Parameters
    ----------
    parts : sequence of (scores, ids)
        In the order of the shards; all for the same queries.
    k : int
        Results a query.

    Returns
    -------
    scores : ndarray of float64, shape (nq, m)
        m is k, or less where all shards together found less.
    ids : ndarray, shape (nq, m)
    """
    scores = np.concatenate([part[0] for part in parts], axis=1)
    ids = np.concatenate([part[1] for part in parts], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)


class Candidates:
    """What shards found for rescoring, asked for as an index is (:class:`rescoring.Items`).

    Positions are those among the items of all shards.

    Parameters
    ----------
    metric : str
    embedding_dim : int or None
    offsets : sequence of int
        How many items stand before those of each shard.
    n : int
        Items of all shards.
    """

    def __init__(
        self, metric: str, embedding_dim: int | None, offsets: Sequence[int], n: int
    ) -> None:
        self.metric = metric
        self.embedding_dim = embedding_dim
        self._offsets = offsets
        self._n = n
        self._named: Named = (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def merged(self, parts: Sequence[tuple[Part, Named]], k: int) -> npt.NDArray[np.int64]:
        """The positions of the best k of all shards, shape (nq, at most k), -1 for none.

        From now on :meth:`ids_at` knows of the items of these parts.
        """
        found: list[Part] = []
        for ((scores, ranks), _), offset in zip(parts, self._offsets, strict=True):
            found.append((scores, np.where(ranks < 0, -1, ranks + offset)))
        # shards stand in the order of their items, so that positions ascend over all of them
        named = [named for _, named in parts]
        self._named = (
            np.concatenate(
                [ranks + offset for (ranks, _), offset in zip(named, self._offsets, strict=True)]
            ),
            np.concatenate([ids for ranks, ids in named if len(ranks)] or [named[0][1]]),
        )
        positions: npt.NDArray[np.int64] = merge(found, k)[1]
        return np.ascontiguousarray(positions)

    def __len__(self) -> int:
        return self._n

    def ranks(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Where items at ascending positions stand among all: there."""
        return positions

    def ids_at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | list[str]:
        """The ids of items at these positions, which are among those that were found."""
        known, ids = self._named
        chosen = ids[np.searchsorted(known, positions.astype(np.int64))]
        found: npt.NDArray[np.int64] | list[str] = (
            chosen.tolist() if chosen.dtype == object else chosen
        )
        return found
