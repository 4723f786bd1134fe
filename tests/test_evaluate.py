"""Exact search and recall against plain definitions; the report against a scripted index."""

from __future__ import annotations

import doctest
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_retrieval import _exact, evaluate
from sparse_retrieval.evaluate import (
    Report,
    evaluate_index,
    exact_top_k,
    pca_int8,
    recall_at,
)


def naive_top_k(
    x: np.ndarray, queries: np.ndarray, k: int, metric: str, exclude: np.ndarray | None = None
) -> list[list[tuple[float, int]]]:
    """Every pair scored in Python floats, sorted; ties to the lower position."""
    answers = []
    for number, query in enumerate(queries.astype(np.float64).tolist()):
        scored = []
        for position, item in enumerate(x.astype(np.float64).tolist()):
            if exclude is not None and position == exclude[number]:
                continue
            score = float(sum(a * b for a, b in zip(item, query, strict=True)))
            if metric == "cosine":
                norms = sum(a * a for a in item) ** 0.5 * sum(b * b for b in query) ** 0.5
                score = score / norms if norms > 0 else 0.0
            scored.append((score, position))
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        answers.append(scored[:k])
    return answers


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_exact_top_k_equals_a_sort_of_all_scores(data: st.DataObject) -> None:
    # Small integers make every product and sum exact, so ids must be equal, ties included.
    rows = data.draw(st.integers(0, 30))
    width = data.draw(st.integers(1, 6))
    asked = data.draw(st.integers(0, 4))
    k = data.draw(st.integers(1, 35))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64, np.int8]))
    x = rng.integers(-2, 3, (rows, width)).astype(dtype)
    queries = rng.integers(-2, 3, (asked, width)).astype(dtype)
    exclude = None
    if data.draw(st.booleans()):
        exclude = rng.integers(-1, max(rows, 1), asked) if rows else np.full(asked, -1)
    got = exact_top_k(x, queries, k, metric="inner_product", exclude=exclude)
    want = naive_top_k(x, queries, k, "inner_product", exclude)
    for row, line in enumerate(want):
        padding = k - len(line)
        assert got.ids[row].tolist() == [position for _, position in line] + [-1] * padding
        assert got.scores[row].tolist() == [score for score, _ in line] + [-np.inf] * padding


def test_cosine_scores_equal_the_definition() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 24)).astype(np.float32) * rng.lognormal(0, 3, (200, 1))
    x[17] = 0
    queries = rng.normal(size=(5, 24))
    got = exact_top_k(x, queries, 200)
    want = naive_top_k(x, queries, 200, "cosine")
    for row, line in enumerate(want):
        assert got.ids[row].tolist() == [position for _, position in line]
        # 24 products of magnitude at most 1 in double precision: 1e-14 is 50 times the bound.
        np.testing.assert_allclose(got.scores[row], [s for s, _ in line], rtol=0, atol=1e-14)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 9)).astype(np.float32)
    x[60:80] = x[:20]  # ties across blocks
    queries = rng.normal(size=(23, 9)).astype(np.float32)
    exclude = rng.integers(-1, 100, 23)
    whole = exact_top_k(x, queries, 12, exclude=exclude)
    for name, size in (("_QUERY_BLOCK", 5), ("_ITEM_BLOCK", 7), ("_RESCORE_BLOCK", 3)):
        monkeypatch.setattr(_exact, name, size)
    pieces = exact_top_k(x, queries, 12, exclude=exclude)
    np.testing.assert_array_equal(whole.ids, pieces.ids)
    np.testing.assert_array_equal(whole.scores, pieces.scores)


def test_differences_below_single_precision_decide_the_order() -> None:
    # In float32 all three items look alike; in double precision they do not.
    x = np.array([[1.0, 0.0], [1.0, 2e-9], [1.0, 1e-9]])
    assert exact_top_k(x, [[0.5, 1.0]], 3, metric="inner_product").ids.tolist() == [[1, 2, 0]]


def test_a_query_is_left_out_of_its_own_answer() -> None:
    x = np.eye(3, dtype=np.float32) + np.float32(0.1)
    got = exact_top_k(x, x, 3, exclude=[0, 1, -1])
    assert got.ids[0].tolist() == [1, 2, -1]
    assert got.scores[0, 2] == -np.inf
    assert got.ids[2, 0] == 2


def test_zero_rows_score_zero_under_cosine() -> None:
    x = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert exact_top_k(x, [[2.0, 0.0]], 3).ids.tolist() == [[2, 0, 1]]
    assert exact_top_k(x, [[0.0, 0.0]], 3).scores.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [[1.0]], 1), r"x has shape \(2,\), expected two axes"),
        (([[1.0]], [[[1.0]]], 1), r"queries has shape \(1, 1, 1\), expected two axes"),
        (([["a"]], [[1.0]], 1), "x has dtype <U1, expected numbers"),
        (([[1.0, 2.0]], [[1.0]], 1), "queries have 1 columns, x has 2"),
        (([[1.0]], [[1.0]], 0), "k is 0, expected at least 1"),
        (([[1.0]], [[1.0]], -3), "k is -3, expected at least 1"),
        (([[1.0], [np.nan]], [[1.0]], 1), "x holds NaN, .* in row 1"),
        (([[1.0]], [[1.0], [np.inf]], 1), "queries holds NaN, .* in row 1"),
    ],
)
def test_exact_top_k_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_top_k(*arguments)


def test_exact_top_k_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="metric is 'l2', expected one of cosine, inner_product"):
        exact_top_k([[1.0]], [[1.0]], 1, metric="l2")
    with pytest.raises(ValueError, match="exclude spans 1 to 1, expected -1 to 0"):
        exact_top_k([[1.0]], [[1.0]], 1, exclude=[1])
    with pytest.raises(ValueError, match="expected 1 integers, one a query"):
        exact_top_k([[1.0]], [[1.0]], 1, exclude=[0, 0])


def test_recall_counts_shared_ids() -> None:
    assert recall_at([[1, 2, 3], [4, 5, 6]], [[3, 2, 9], [6, 5, 4]]) == pytest.approx(5 / 6)
    assert recall_at([[1, 2, 3]], [[3, 2, 1]], n=2) == 0.5
    assert recall_at([[7, 7, 7]], [[7, 8, 9]]) == pytest.approx(1 / 3)


def test_padding_never_counts() -> None:
    assert recall_at([[1, -1, -1]], [[1, 2, -1]]) == 0.5
    assert recall_at([[-1, -1]], [[5, 6]]) == 0.0


@pytest.mark.parametrize(
    ("found", "true", "n", "message"),
    [
        ([[1]], [[1], [2]], None, "found has 1 queries, true has 2"),
        ([[1]], [[1, 2]], None, "n is 2, found has 1 columns"),
        ([[1, 2]], [[1]], 2, "n is 2, true has 1 columns"),
        ([[1]], [[1]], 0, "n is 0, found has 1 columns"),
        ([[1]], [[-1]], None, "query 0 has no true id"),
        ([[0.5]], [[1]], None, "found has shape .* expected 2-D integers"),
        ([1], [[1]], None, r"found has shape \(1,\)"),
    ],
)
def test_recall_refuses(found: Any, true: Any, n: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at(found, true, n)


def test_recall_of_no_queries_is_refused() -> None:
    none = np.empty((0, 5), dtype=np.int64)
    with pytest.raises(ValueError, match="no queries"):
        recall_at(none, none)


class Answer(NamedTuple):
    scores: np.ndarray
    ids: np.ndarray


class ScriptedIndex:
    """Answers from a table after a known delay."""

    bytes_per_item = 66.0

    def __init__(self, ids: np.ndarray, delay_s: float) -> None:
        self.ids, self.delay_s, self.calls = ids, delay_s, []

    def __len__(self) -> int:
        return 1000

    def search(self, queries: np.ndarray, k: int, *, mode: str | None, threads: int | None) -> Any:
        self.calls.append((len(queries), k, mode, threads))
        time.sleep(self.delay_s)
        ids = self.ids[: len(queries), :k]
        return Answer(np.zeros(ids.shape), ids)


def test_a_report_holds_recall_bytes_and_median_times() -> None:
    true = np.arange(40).reshape(4, 10)
    found = true.copy()
    found[:, 5:] += 500
    index = ScriptedIndex(found, delay_s=0.02)
    report = evaluate_index(
        index, np.zeros((4, 3)), true, k=10, mode="dense", threads=2, repeats=2, single_queries=3
    )
    assert index.calls == [(4, 10, "dense", 2)] * 2 + [(1, 10, "dense", 2)] * 3
    # sleep() never returns early, so both lower limits are certain.
    assert report.ms_per_query >= 20
    assert report.ms_per_query_batch >= 5
    assert report == Report(
        "dense", 10, 0.5, 66.0, report.ms_per_query, report.ms_per_query_batch, 1000, 4
    )


def test_a_report_needs_at_least_one_repeat() -> None:
    index = ScriptedIndex(np.zeros((1, 1), dtype=np.int64), delay_s=0)
    with pytest.raises(ValueError, match="repeats is 0"):
        evaluate_index(index, np.zeros((1, 1)), [[0]], k=1, repeats=0)


def test_pca_keeps_what_lies_in_its_axes() -> None:
    rng = np.random.default_rng(3)
    low = rng.normal(size=(500, 4))
    x = low @ np.linalg.qr(rng.normal(size=(16, 4)))[0].T
    kept = pca_int8(x, x[:20], 4)
    assert kept.bytes_per_item == 6
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    # Both sides projected on axes that span the data: inner products survive to 8 bits.
    # Rounding moves a coordinate by at most half a level of 1/127: 4 coordinates, unit query.
    np.testing.assert_allclose(
        kept.queries @ kept.items.T, unit[:20] @ unit.T, rtol=0, atol=4 * 0.5 / 127
    )


def test_pca_with_fewer_axes_explains_less() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 12)) * np.linspace(3, 0.1, 12)
    true = exact_top_k(x, x[:50], 10).ids
    recalls = []
    for components in (2, 6, 12):
        kept = pca_int8(x, x[:50], components)
        recalls.append(recall_at(exact_top_k(kept.items, kept.queries, 10).ids, true))
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.9


def test_pca_refuses() -> None:
    with pytest.raises(ValueError, match="n_components is 3, expected 1 to 2"):
        pca_int8([[1.0, 2.0]], [[1.0, 2.0]], 3)
    with pytest.raises(ValueError, match="queries have 1 columns, x has 2"):
        pca_int8([[1.0, 2.0]], [[1.0]], 1)
    with pytest.raises(ValueError, match="x holds NaN"):
        pca_int8([[np.nan, 2.0]], [[1.0, 1.0]], 1)


@pytest.mark.parametrize("module", [evaluate, _exact])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
