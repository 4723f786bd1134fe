"""Judging what was found, query by query, and how sure the averages are. numpy alone.

Intervals are percentiles of a bootstrap that draws queries with replacement and, where a method
was learnt with several seeds, draws seeds too: both would be others another time. Systems are
compared on the same queries, so that what is hard about a query cancels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
PerQuery = NDArray[np.float64]

#: depths of recall
DEPTHS = (1, 10, 100)
RESAMPLES = 2_000
CONFIDENCE = 0.95


def recall(found: Ids, truth: Ids, depth: int) -> PerQuery:
    """Share of each query's true ``depth`` best among the first ``depth`` found; -1 is no id."""
    hits = _is_true(found[:, :depth], truth[:, :depth])
    shares: PerQuery = hits.sum(axis=1) / depth
    return shares


def _is_true(found: Ids, truth: Ids) -> NDArray[np.bool_]:
    """Which of the found are among the true ones of their query; none of them is found twice."""
    same: NDArray[np.bool_] = (found[:, :, None] == truth[:, None, :]).any(axis=2)
    return same & (found >= 0)


def ndcg(found: Ids, truth: Ids, depth: int = 10) -> PerQuery:
    """Discounted gain of each query's first ``depth``, of the best: 1 for one of the true ones.

    An item at rank r (from 1) that is among the true ``depth`` best gains 1 / log2(r + 1).

    References
    ----------
    .. [1] K. Jarvelin and J. Kekalainen, "Cumulated gain-based evaluation of IR techniques",
       ACM Transactions on Information Systems 20(4), 2002.
    """
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    hits = _is_true(found[:, :depth], truth[:, :depth])
    gained: PerQuery = hits @ discounts[: hits.shape[1]] / discounts.sum()
    return gained


def same_label(found: Ids, item_labels: Ids, query_labels: Ids, depth: int = 10) -> PerQuery:
    """Share of each query's first ``depth`` that are of its class; NaN for a query without one."""
    first = found[:, :depth]
    same = (item_labels[first] == query_labels[:, None]) & (first >= 0)
    return np.where(query_labels >= 0, same.mean(axis=1), np.nan)


def judged(
    found: Ids, truth: Ids, item_labels: Ids | None = None, query_labels: Ids | None = None
) -> dict[str, PerQuery]:
    """All measures of one answer, by name."""
    measures = {f"recall@{depth}": recall(found, truth, depth) for depth in DEPTHS}
    measures["ndcg@10"] = ndcg(found, truth)
    if item_labels is not None and query_labels is not None:
        measures["label@10"] = same_label(found, item_labels, query_labels)
    return measures


def interval(values: PerQuery, *, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean.

    Parameters
    ----------
    values : ndarray of float64, shape (n_queries,) or (n_seeds, n_queries)
        NaN is left out. Seeds are drawn with replacement as queries are, the same queries for all
        seeds of a draw.
    seed : int, default 0

    Returns
    -------
    least, most : float
        Ends of the central 95%.
    """
    table = np.atleast_2d(values)
    n_seeds, n_queries = table.shape
    known = ~np.isnan(table)
    drawn, seeds = _draws(n_queries, 2 * seed), _draws(n_seeds, 2 * seed + 1)
    sums, counts = drawn @ np.where(known, table, 0).T, drawn @ known.astype(np.float64).T
    means = (seeds * sums).sum(axis=1) / np.maximum((seeds * counts).sum(axis=1), 1)
    tail = 100 * (1 - CONFIDENCE) / 2
    least, most = np.percentile(means, [tail, 100 - tail])
    return float(least), float(most)


@functools.lru_cache(maxsize=16)
def _draws(n: int, seed: int) -> NDArray[np.float64]:
    """How often each of n is drawn, a row a draw: a resampled mean is then a row of a product."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def summary(values: PerQuery) -> dict[str, float]:
    """Mean and interval of a measure, rounded for the result file."""
    least, most = interval(values)
    mean = float(np.nanmean(values))
    return {"mean": round(mean, 5), "least": round(least, 5), "most": round(most, 5)}


def apart(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """One mean less another, of which only their own intervals are known.

    As of independent estimates: the half-widths add in squares, each side with the ends that
    matter to it. Of the same queries this is wider than the interval of the paired differences.
    """
    mean = one["mean"] - other["mean"]
    below = np.hypot(one["mean"] - one["least"], other["most"] - other["mean"])
    above = np.hypot(one["most"] - one["mean"], other["mean"] - other["least"])
    ends = {"mean": mean, "least": mean - float(below), "most": mean + float(above)}
    return {key: round(value, 5) for key, value in ends.items()}


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs of a measure are within each other's intervals.

    Both are estimates with the same queries, so what differs between two machines is learning:
    the mean of each must lie within the interval of the other, widened by half a hundredth for
    intervals that came out narrow by chance.
    """
    slack = 0.005

    def within(mean: float, of: dict[str, Any]) -> bool:
        return bool(of["least"] - slack <= mean <= of["most"] + slack)

    return within(one["mean"], other) and within(other["mean"], one)
