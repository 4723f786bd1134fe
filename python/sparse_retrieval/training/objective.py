"""What one step minimises: rows in, the loss and what the loop wants to know of it out.

A module of its own so that DistributedDataParallel can wrap it. Knows the model and the losses;
no optimizer, no data. Every process holds a part of the batch; sums over all rows of the batch,
wherever they are, are taken here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .distributed import World
from .loss import prefix_cosines, ranking_loss, residual_directions
from .model import CompresSAE
from .sparse_ops import LatentCode, encode_top_k, sparse_decode, sparse_decode_split
from .train_config import TrainConfig
from .vectors import unit_rows


class Terms(NamedTuple):
    """What a batch gives: the loss to call backward on, and detached figures of all processes."""

    loss: Tensor
    """0-d. Its gradient, averaged over processes, is that of the objective of the whole batch."""
    value: Tensor
    """0-d, the objective of the whole batch."""
    cosine_k: Tensor
    cosine_wide: Tensor
    used: Tensor
    """Latents that this process's rows had among their k."""
    unit: Tensor
    """(b, d) this process's rows, of length 1 or 0."""
    x_hat: Tensor
    """(b, d) their reconstruction from k latents."""


class _Found(NamedTuple):
    """Reconstructions (m, b, d), the weight of each, which is that from k, latents used."""

    x_hats: Tensor
    weights: list[float]
    at: int
    used: Tensor


class Objective(nn.Module):
    """Losses of a batch by a `TrainConfig`.

    Parameters
    ----------
    model : CompresSAE
    config : TrainConfig
    world : World
    """

    def __init__(self, model: CompresSAE, config: TrainConfig, world: World) -> None:
        super().__init__()
        self.model, self.config, self.world = model, config, world
        self.compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
        self.cosines: Any = torch.compile(prefix_cosines) if config.compile else prefix_cosines
        s = model.config.hidden_dim
        for name, k in (("nested_k", max(config.nested_k, default=1)), ("k_start", config.k_start)):
            if k is not None and k > s:
                raise ValueError(f"{name} must be at most hidden_dim = {s}, got {k}")

    def forward(self, batch: Tensor, step: int, dead: Tensor) -> Terms:
        """Compute everything for this process's rows, (b, d), of the batch of a step.

        ``dead``, (s,) bool, marks the latents that an auxiliary term is to revive.
        """
        x = batch.to(self.model.encoder_weight.dtype)
        unit = unit_rows(x)
        nonzero = (x != 0).any(dim=1)
        counted = self.world.sum(nonzero.sum())
        share = (counted > 0).to(x.dtype)  # 1, or 0 if every row of the batch is zero
        rows = counted.clamp(min=1)

        found = self._reconstructed(x, step, int(counted))
        means = self.cosines(unit, found.x_hats) / rows
        weights = torch.tensor(found.weights, dtype=x.dtype, device=x.device)
        loss = -(weights * means).sum()
        x_hat = found.x_hats[found.at]
        extra = loss.new_zeros(())
        if self.config.revive == "auxiliary" and bool(dead.any()):
            extra = self._auxiliary(unit, x_hat, nonzero, dead) / rows
            loss = loss + extra
        shared = self.world.sum(torch.cat((means.detach(), extra.detach()[None])))
        value = (weights * (share - shared[:-1])).sum() + shared[-1]
        if self.config.ranking_weight and step > self.config.ordinary_steps:
            ranking = self.config.ranking_weight * self._ranking(unit, x_hat, step)
            loss, value = loss + ranking, value + ranking.detach()
        return Terms(
            loss * self.world.size,  # DistributedDataParallel takes the mean over processes
            value,
            shared[found.at],
            shared[len(means) - 1],
            found.used,
            unit,
            x_hat.detach(),
        )

    def _reconstructed(self, x: Tensor, step: int, counted: int) -> _Found:
        k, s = self.config.k_at(step, self.model.config.k), self.model.config.hidden_dim
        listed = self.config.nested_k or (k,)
        wide = min(self.config.wide_factor * self.model.config.k, s)
        # with k = s (or a factor of 1) the wide term sees the reconstruction from k
        cuts = sorted({*listed, k, max(wide, k)})
        weights = [1 / len(listed) if cut in listed else 0.0 for cut in cuts]
        weights[-1] += self.config.wide_weight
        code = self.model.encode(x, k=cuts[-1], compute_dtype=self.compute_dtype)
        values = code.values.detach()
        if self.config.selection == "batch" and len(cuts) > 1:
            counts = self._batch_counts(values, counted * k)
            x_hats = sparse_decode_split(*code, self.model.decoder_weight, counts)
            kept = torch.arange(cuts[-1], device=x.device) < counts.unsqueeze(1)
        else:
            x_hats = self.model.decode_prefixes(code, tuple(cuts))
            kept = torch.arange(cuts[-1], device=x.device).expand_as(values) < k
        # a zero row selects latents too, with zero values: it uses none
        return _Found(x_hats, weights, cuts.index(k), code.indices[kept & (values != 0)])

    def _batch_counts(self, values: Tensor, budget: int) -> Tensor:
        """Nonzeros that each row keeps so that the batch keeps the ``budget`` largest."""
        magnitudes = values.abs()
        everywhere = self.world.gather(magnitudes).flatten()
        if budget < 1 or budget >= len(everywhere):
            threshold = everywhere.new_zeros(())
        else:
            threshold = everywhere.kthvalue(len(everywhere) - budget + 1).values
        # magnitudes fall along a row, so what is kept is a prefix
        return ((magnitudes >= threshold) & (magnitudes > 0)).sum(dim=1)

    def _auxiliary(self, unit: Tensor, x_hat: Tensor, nonzero: Tensor, dead: Tensor) -> Tensor:
        """Sum over rows of 1 - cosine of what is left over and its best dead latents."""
        model, latents = self.model, dead.nonzero()[:, 0]
        left_over = unit_rows(residual_directions(unit, x_hat.detach()))
        code = encode_top_k(
            unit,
            model.encoder_weight[latents],
            model.encoder_bias[latents],
            min(self.config.aux_k, len(latents)),
        )
        code = LatentCode(latents[code.indices], code.values)
        guess = sparse_decode(code.indices, code.values, model.decoder_weight)
        cosines = prefix_cosines(left_over, guess[None])[0]
        return self.config.aux_weight * (nonzero.sum() - cosines)

    def _ranking(self, unit: Tensor, x_hat: Tensor, step: int) -> Tensor:
        """The ranking loss over the rows of all processes, the same number in each.

        Every process orders all rows, and only its own reconstructions carry a gradient; summed
        over processes that is the gradient of the whole.
        """
        units, x_hats = self.world.gather(unit), x_hat
        if self.world.size > 1:
            counts = torch.zeros(self.world.size, dtype=torch.int64, device=unit.device)
            counts[self.world.rank] = len(unit)
            first = int(self.world.sum(counts)[: self.world.rank].sum())
            everywhere = self.world.gather(x_hat.detach())
            x_hats = torch.cat((everywhere[:first], x_hat, everywhere[first + len(unit) :]))
        rng = np.random.default_rng([self.config.seed, step])
        candidates = (units != 0).any(dim=1).nonzero()[:, 0].cpu().numpy()
        size = min(self.config.ranking_anchors, len(candidates))
        anchors = np.sort(rng.choice(candidates, size, replace=False))
        return ranking_loss(
            units,
            x_hats,
            torch.from_numpy(anchors).to(unit.device),
            temperature=self.config.ranking_temperature,
        )
