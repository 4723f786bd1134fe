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

#: Scores in double precision and ids, shape (nq, at most k), best first.
Part = tuple[npt.NDArray[np.float64], npt.NDArray[Any]]


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
