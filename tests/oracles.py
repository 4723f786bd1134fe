"""Slow, obvious definitions in double precision; shares no code with the package."""

from __future__ import annotations

import numpy as np


def quantised(dense: np.ndarray, value_bits: int) -> np.ndarray:
    """The values that an index with these bits stores, in double precision."""
    if value_bits == 32:
        return dense.astype(np.float64)
    levels = {16: 32767, 8: 127}[value_bits]
    out = np.zeros(dense.shape)
    for i, row in enumerate(dense):
        largest = np.float32(np.abs(row).max(initial=0))
        step = np.float32(largest / np.float32(levels))
        if step > 0:
            out[i] = np.clip(np.rint(row.astype(np.float64) / np.float64(step)), -levels, levels)
            out[i] *= np.float64(step)
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def scores(
    queries: np.ndarray,
    items: np.ndarray,
    *,
    mode: str = "sparse",
    metric: str = "inner_product",
    value_bits: int = 32,
    atoms: np.ndarray | None = None,
) -> np.ndarray:
    """Scores (nq, n): the definition of each mode, on dense matrices.

    ``queries`` are codes (nq, s), or embeddings (nq, d) in mode "dense"; ``items`` codes (n, s).
    """
    left = queries.astype(np.float64)
    right = quantised(items, value_bits)
    if mode != "sparse":
        assert atoms is not None
        right = right @ atoms.astype(np.float64)
        if mode == "reconstructed":
            left = left @ atoms.astype(np.float64)
    if metric == "cosine":
        left, right = unit(left), unit(right)
    return left @ right.T


def top_k(all_scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions (nq, k): best first, ties by lower position, padded."""
    nq, n = all_scores.shape
    found_scores = np.full((nq, k), -np.inf)
    found = np.full((nq, k), -1, dtype=np.int64)
    for q, row in enumerate(all_scores):
        order = np.lexsort((np.arange(n), -row))[:k]
        found[q, : len(order)] = order
        found_scores[q, : len(order)] = row[order]
    return found_scores, found


def assert_is_top_k(
    result_scores: np.ndarray,
    result_ids: np.ndarray,
    all_scores: np.ndarray,
    k: int,
    *,
    rtol: float = 1e-6,
    atol: float = 0.0,
) -> None:
    """The result is a top k of these scores, where scores within the tolerance may swap.

    Ranks whose oracle scores are further apart than the tolerance must hold the same ids.
    """
    atol += 2.0**-149  # results are float32, whose numbers end there
    expected_scores, expected_ids = top_k(all_scores, k)
    assert result_scores.shape == result_ids.shape == expected_ids.shape
    assert result_scores.dtype == np.float32
    assert result_ids.dtype == np.int64
    found = expected_ids >= 0
    np.testing.assert_array_equal(result_ids >= 0, found)
    np.testing.assert_allclose(
        result_scores[found], expected_scores[found], rtol=rtol, atol=atol
    )
    assert np.all(np.isneginf(result_scores[~found]))
    for q in range(len(result_ids)):
        ids = result_ids[q][found[q]]
        assert len(set(ids.tolist())) == len(ids)
        # each returned item has the score that the oracle gives it
        np.testing.assert_allclose(
            result_scores[q][found[q]], all_scores[q][ids], rtol=rtol, atol=atol
        )
        different = ids != expected_ids[q][found[q]]
        gap = np.abs(all_scores[q][ids] - expected_scores[q][found[q]])
        allowed = 2 * (atol + rtol * np.abs(expected_scores[q][found[q]]))
        assert np.all(gap[different] <= allowed[different])
