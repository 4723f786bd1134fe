"""What the study asks of anything that holds items: build, search, say what it takes.

Knows neither ours nor the rivals. Times of building are the processor's, of all threads: the
clock's would count what others take of a shared machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Ids = NDArray[np.int64]
#: of queries and a number of threads, the positions of the best, best first
Search = Callable[[Rows, int], Ids]

DEPTH = 100
#: items that are decoded to see how near they come back
DECODED = 2_000


def threads_to_build() -> int:
    """OMP_NUM_THREADS if it is set, as it should be where others are at work, or all cores.

    On a busy machine OpenMP's threads wait for each other actively, and two of them were seen to
    take ten times as long as one.
    """
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


@dataclass
class System:
    """Items held in some form.

    Attributes
    ----------
    bytes_per_item : float
        What one more item adds to the serialised form.
    shared_bytes : float
        What the serialised form holds beside: dictionary, codebooks, rotation.
    search : callable
        Of float32 queries (n, d) and threads, int64 ids (n, 100).
    learn_s, encode_s : float
        Processor seconds.
    note : str
        What a reader must know of how bytes were counted.
    cosine : float, optional
        Mean cosine of items and what their stored form decodes to, where it can be decoded.
    """

    bytes_per_item: float
    shared_bytes: float
    search: Search
    learn_s: float = 0.0
    encode_s: float = 0.0
    note: str = ""
    cosine: float | None = None


def mean_cosine(items: Rows, decoded: Rows) -> float:
    """Mean cosine of unit rows and what they decode to."""
    norms = np.linalg.norm(decoded, axis=1)
    products = np.einsum("ij,ij->i", items, decoded, dtype=np.float64)
    return float(np.mean(products / np.where(norms > 0, norms, 1)))


@dataclass(frozen=True)
class Setting:
    """One way of holding items: what to call it, and how to make it.

    Attributes
    ----------
    family : str
        The line of a picture that it belongs to.
    name : str
        Unique among the settings of a study.
    build : callable
        Of the items and the study's folder of this set, a `System`.
    seed : int, optional
        Where the same setting is learnt several times.
    timed : bool, default False
        Whether latencies are measured too.
    """

    family: str
    name: str
    build: Callable[[Rows, Path], System] = field(repr=False)
    seed: int | None = None
    timed: bool = False

    @property
    def key(self) -> str:
        """Name of this setting and seed, for files."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"
