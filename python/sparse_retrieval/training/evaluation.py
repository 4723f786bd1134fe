"""Held-out recall while a model is trained: dense queries against reconstructed items.

The figure that decides when to stop is the one that a search is judged by. Items are a sample of
the training rows, fixed by a seed, so that evaluations are comparable and cheap: 16,384 items
cost about as much as two steps of 4,096 rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .data import RowSource, Subset
from .history import Evaluation
from .model import CompresSAE
from .vectors import unit_rows

#: Most items and queries of an evaluation.
ITEMS, QUERIES = 16_384, 1_000

#: Nearest items that are to be found, at most a tenth of the items.
DEPTH = 100

_BLOCK = 4_096


def split(source: RowSource, held_out: int, seed: int) -> tuple[Subset, Tensor]:
    """Hold ``held_out`` rows back, drawn by ``seed``: the others, and those (m, d)."""
    if not 0 < held_out < len(source):
        raise ValueError(
            f"held_out must be at least 1 and less than the {len(source)} rows of x, got {held_out}"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(source)).astype(np.int64, copy=False)
    rest, held = np.sort(order[held_out:]), np.sort(order[:held_out])
    return Subset(source, rest), source.take(held)


class Evaluator:
    """Held-out queries, sampled items, and which of these are truly nearest.

    Parameters
    ----------
    queries : Tensor
        (m, d); the first `QUERIES` that are not zero are used.
    items : Tensor
        (n, d).
    """

    def __init__(self, queries: Tensor, items: Tensor) -> None:
        queries = queries[(queries != 0).any(dim=1)][:QUERIES]
        if len(queries) == 0:
            raise ValueError("held_out has no row that is not zero")
        self._queries, self._items = unit_rows(queries.float()), items.float()
        self._depth = max(1, min(DEPTH, len(items) // 10))
        self._nearest = self._found(unit_rows(self._items))

    @classmethod
    def drawn(cls, source: RowSource, queries: Tensor, seed: int) -> Evaluator:
        """An evaluator on items drawn from a source by ``seed``."""
        size = min(ITEMS, len(source))
        rows = np.random.default_rng([seed, 2]).choice(len(source), size, replace=False)
        return cls(queries, source.take(np.sort(rows).astype(np.int64)))

    @torch.no_grad()
    def __call__(self, model: CompresSAE, step: int) -> Evaluation:
        """Judge a model as it stands after a step."""
        device = model.encoder_weight.device
        decoded = [
            unit_rows(model(block.to(device))).float().cpu()
            for block in torch.split(self._items, _BLOCK)
        ]
        found = self._found(torch.cat(decoded))
        hits = (found.unsqueeze(2) == self._nearest.unsqueeze(1)).any(dim=2)
        x_hat = model(self._queries.to(device)).float().cpu()
        cosine = torch.cosine_similarity(x_hat, self._queries, dim=1).mean()
        return Evaluation(step, float(hits.float().mean()), float(cosine))

    def _found(self, items: Tensor) -> Tensor:
        best = [
            (block @ items.t()).topk(self._depth, dim=1).indices
            for block in torch.split(self._queries, 256)
        ]
        return torch.cat(best)
