"""Which rows make which batch: an order that a seed, an epoch and a number give.

Nothing but positions: no rows are held here. An order is resumed by its two counters, since every
epoch draws from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

#: Neighbouring rows that stay together on the way into a window: read in one piece.
BLOCK_ROWS = 1024


class Place(NamedTuple):
    """Where an order or a stream stands: what comes next is window and batch of an epoch."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


def windows(
    n: int, batch_size: int, seed: int, epoch: int, window_rows: int | None
) -> Iterator[Positions]:
    """Windows of one epoch, each the batches that are drawn from it.

    Parameters
    ----------
    n : int
        Rows there are.
    batch_size : int
        Rows of every batch; n if that is less.
    seed, epoch : int
        The same pair gives the same windows.
    window_rows : int or None
        Rows of a window: whole blocks of `BLOCK_ROWS` neighbours, drawn without replacement.
        None is one window, of all rows.

    Yields
    ------
    ndarray
        (m, b) int64, m >= 1 batches, each ascending: the loss does not depend on the order inside
        a batch, and a memmap is read forwards.

    Notes
    -----
    Rows that do not fill a batch go into the next window; those left at the end of the epoch,
    different ones in every epoch, wait for a later one.
    """
    rng = np.random.default_rng([seed, epoch])
    size = min(batch_size, n)
    if window_rows is None:
        yield _batches(rng.permutation(n).astype(np.int64, copy=False), size)
        return
    block = max(1, min(BLOCK_ROWS, window_rows))
    starts = rng.permutation(-(-n // block)).astype(np.int64, copy=False) * block
    blocks = max(1, window_rows // block)
    rest = np.empty(0, np.int64)
    for first in range(0, len(starts), blocks):
        chosen = (starts[first : first + blocks, None] + np.arange(block)).ravel()
        rows = np.concatenate((rest, rng.permutation(chosen[chosen < n])))
        whole = len(rows) // size * size
        rest = rows[whole:]
        if whole:
            yield _batches(rows[:whole], size)


def _batches(rows: Positions, size: int) -> Positions:
    return np.sort(rows[: len(rows) // size * size].reshape(-1, size), axis=1)


def shuffled_batches(n: int, batch_size: int, seed: int) -> Iterator[Positions]:
    """Positions of batch after batch, without end: `windows` of all rows, epoch after epoch."""
    epoch = 0
    while True:
        for window in windows(n, batch_size, seed, epoch, None):
            yield from window
        epoch += 1


def share_of(batch_rows: int, rank: int, size: int) -> slice:
    """Which rows of a batch process ``rank`` of ``size`` takes: one run of neighbours.

    Shares differ by a row at most; processes beyond the rows of the batch get none.
    """
    return slice(rank * batch_rows // size, (rank + 1) * batch_rows // size)
