"""Corpora of any size with the structure of a real one, for timings.

Random vectors have no structure and mislead: their inner products concentrate, so that no
threshold drops anything. What is made here are mixtures of pairs of real embeddings with a
little noise: they lie where real ones lie, and no two of them are equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: share of the second embedding of a mixture, and the norm of the noise, against the first
MIX = 0.4
NOISE = 0.15


def jittered(
    x: NDArray[np.floating], n: int, *, seed: int = 0, batch: int = 65_536
) -> Iterator[NDArray[np.float32]]:
    """Yield ``n`` unit rows in batches, each ``x_i + MIX x_j + NOISE g`` normalised.

    Parameters
    ----------
    x : ndarray, shape (m, d)
        Real embeddings; rows need not be normalised.
    n : int
        Rows to make. A batch depends on ``seed`` and on its number alone.
    seed : int, default 0
    batch : int, default 65,536

    Yields
    ------
    ndarray of float32, shape (at most batch, d)
    """
    m, d = x.shape
    unit = x.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for number, start in enumerate(range(0, n, batch)):
        rng = np.random.default_rng([seed, number])
        size = min(batch, n - start)
        first, second = rng.integers(m, size=size), rng.integers(m, size=size)
        noise = rng.standard_normal((size, d), dtype=np.float32) * np.float32(NOISE / d**0.5)
        rows = unit[first] + np.float32(MIX) * unit[second] + noise
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)
