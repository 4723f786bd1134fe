"""Batch after batch for one process: from a source by an order, or from a stream by its windows.

A feed yields each batch with the `Place` after it, so that training can go on from there. What is
drawn depends on seed and place alone. Knows no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .data import RowSource
from .sampling import Place, Positions, share_of
from .sources import Stream

#: Windows of an epoch, by the epoch's number.
Order = Callable[[int], Iterator[Positions]]

Feed = Iterator[tuple[Tensor, Place]]


def rows_feed(
    source: RowSource, order: Order, place: Place, *, rank: int, size: int, hold: bool
) -> Feed:
    """The rows of every batch that are this process's, from ``place`` on, without end.

    With ``hold`` a window is read once, forwards, and its batches are cut from memory; only this
    process's rows of it are read.
    """
    epoch, skipped, start = place
    while True:
        for number, window in enumerate(order(epoch)):
            if number < skipped:
                continue
            mine = window[:, share_of(window.shape[1], rank, size)]
            held_rows = np.unique(mine) if hold else None
            held = None if held_rows is None else _taken(source, held_rows)
            for batch in range(start, len(mine)):
                if held is None or held_rows is None:
                    rows = _taken(source, mine[batch])
                else:
                    rows = held[torch.from_numpy(np.searchsorted(held_rows, mine[batch]))]
                yield rows, Place(epoch, number, batch + 1)
            start = 0
        epoch, skipped = epoch + 1, 0


def _taken(source: RowSource, rows: Positions) -> Tensor:
    return source.take(rows) if len(rows) else torch.empty(0, source.dim)


def stream_feed(
    stream: Stream,
    place: Place,
    *,
    batch_size: int,
    window_rows: int,
    seed: int,
    rank: int,
    size: int,
) -> Feed:
    """The rows of every batch of a stream that are this process's, without end.

    A window of rows is held, in the dtype they come in, and permuted. To go on from a place the
    stream is gone through again, up to there.
    """
    first, skipped, start = place
    for epoch in itertools.count(first):
        for number, held in enumerate(_stream_windows(stream, max(window_rows, batch_size))):
            if number < skipped:
                continue
            rng = np.random.default_rng([seed, epoch, number])
            rows = min(batch_size, len(held))
            order = rng.permutation(len(held))[: len(held) // rows * rows].reshape(-1, rows)
            mine = np.sort(order, axis=1)[:, share_of(rows, rank, size)]
            for batch in range(start, len(mine)):
                yield held[torch.from_numpy(mine[batch])].float(), Place(epoch, number, batch + 1)
            start = 0
        skipped = 0


def _stream_windows(stream: Stream, window_rows: int) -> Iterator[Tensor]:
    """Rows of the stream, ``window_rows`` at a time; a short end joins the window before it."""
    parts: list[Tensor] = []
    count = 0
    waiting: Tensor | None = None
    for part in stream:
        parts.append(part)
        count += len(part)
        if count >= window_rows:
            if waiting is not None:
                yield waiting
            waiting, parts, count = torch.cat(parts), [], 0
    if waiting is not None and count < window_rows // 2:
        yield torch.cat((waiting, *parts))
        return
    if waiting is not None:
        yield waiting
    if parts:
        yield torch.cat(parts)


def ahead(feed: Feed) -> Feed:
    """The same feed, the next batch fetched by a thread while this one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="sparse_retrieval-feed") as pool:
        coming = pool.submit(next, feed)
        while True:
            batch = coming.result()
            coming = pool.submit(next, feed)
            yield batch
