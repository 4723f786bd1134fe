"""Rows for the tests of training, and how their models are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_retrieval.training import CompresSAE, TrainConfig, train


def mixture(n: int, d: int = 16, parts: int = 40, active: int = 3, seed: int = 0) -> np.ndarray:
    """(n, d) float32 rows that are sums of few signed directions: what a sparse code can learn."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(parts, d))
    chosen = rng.random((n, parts)).argsort(axis=1)[:, :active]
    weights = rng.uniform(0.5, 1.5, size=(n, active)) * rng.choice([-1, 1], size=(n, active))
    rows = (weights[:, :, None] * directions[chosen]).sum(axis=1)
    return rows.astype(np.float32)


def weights(model: CompresSAE) -> dict[str, Tensor]:
    """A copy of every weight by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bytes(a: CompresSAE, b: CompresSAE) -> bool:
    """Whether two models have equal weights, to the bit."""
    ours, theirs = weights(a), weights(b)
    return (
        all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in ours)
        and ours.keys() == theirs.keys()
    )


def lengths(model: CompresSAE) -> Tensor:
    """Lengths of the atoms, in double precision."""
    return torch.linalg.vector_norm(model.decoder_weight.detach().double(), dim=1)


def assert_trains_alike(x: Any, rows: np.ndarray, config: TrainConfig) -> None:
    """That data of some kind trains, is judged and is encoded as the array of its rows is."""
    d = rows.shape[1]
    model, reference = CompresSAE(d, 4 * d, 4), CompresSAE(d, 4 * d, 4)
    history = train(model, x, config=config, held_out=20)
    expected = train(reference, rows, config=config, held_out=20)
    assert same_bytes(model, reference)
    assert history.evaluations == expected.evaluations
    codes, same = model.sparse_codes(x), reference.sparse_codes(rows)
    np.testing.assert_array_equal(codes.values, same.values)
