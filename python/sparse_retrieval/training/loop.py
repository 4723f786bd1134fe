"""One optimizer step after another, and all state that lives between them.

Adam, the schedule, clipping, the sphere that atoms live on, averages of weights, dead latents.
Knows nothing of where batches come from, of files or of the terminal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import World
from .history import StepMetrics
from .loss import residual_directions
from .model import CompresSAE
from .objective import Objective, Terms
from .train_config import TrainConfig
from .vectors import unit_rows


class Loop:
    """A model, its optimizer, and when each latent was last used.

    Parameters
    ----------
    model : CompresSAE
        Trained in place.
    config : TrainConfig
    world : World, optional
        The processes that train; this one alone by default.
    """

    def __init__(self, model: CompresSAE, config: TrainConfig, world: World | None = None) -> None:
        self.model, self.config, self.world = model, config, world or World()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise ValueError(
                "no parameter of the model has requires_grad: there is nothing to train"
            )
        self.optimizer = _adam(self.trained, config.lr)
        self.objective: Any = Objective(model, config, self.world)
        if self.world.size > 1:
            self.objective = DistributedDataParallel(self.objective)
        self.items = 0
        s, device = model.config.hidden_dim, model.encoder_weight.device
        self.last_used = torch.zeros(s, dtype=torch.int64, device=device)
        self.average: list[Tensor] | None = None
        if config.ema_decay:
            self.average = [parameter.detach().clone() for parameter in self.trained]

    @torch.enable_grad()
    def step(self, batch: Tensor, number: int, began: float) -> StepMetrics:
        """One optimizer step on this process's rows (b, d); ``began`` is when fetching started."""
        terms: Terms = self.objective(batch, number, self._dead())
        loss = float(terms.value)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {number} with lr = {self.config.lr:g}; "
                "train a fresh model with a lower lr"
            )
        lr = self.config.lr_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = self._prepared_gradients()
        self.optimizer.step()
        self.project()
        self._averaged_in()
        rows = self._note_use(terms, len(batch))
        share = float(self._dead().float().mean())
        if self.config.revive == "resample" and self._resamples(number):
            self._resample(terms)
        seconds = time.perf_counter() - began
        return StepMetrics(
            step=number,
            loss=loss,
            cosine_k=float(terms.cosine_k),
            cosine_4k=float(terms.cosine_wide),
            dead_latents=share,
            seconds=seconds,
            items_per_second=rows / seconds,
            lr=lr,
            grad_norm=grad_norm,
        )

    @torch.no_grad()
    def _prepared_gradients(self) -> float:
        """Gradients as the optimizer is to see them; their length, NaN if they are not clipped."""
        atoms = self.model.decoder_weight
        if self.config.tangent and atoms.grad is not None:
            along = (atoms.grad * atoms).sum(dim=1, keepdim=True)
            atoms.grad.addcmul_(along, atoms, value=-1)
        if self.config.max_grad_norm is None:
            return math.nan
        return float(torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm))

    def project(self) -> None:
        """Bring the decoder back to unit rows; one that is held still keeps every bit."""
        if self.model.decoder_weight.requires_grad:
            self.model.normalize_decoder()

    def _dead(self) -> Tensor:
        dead: Tensor = (self.items - self.last_used) >= self.config.dead_after_items
        return dead

    def _note_use(self, terms: Terms, rows: int) -> int:
        """Record which latents the rows of all processes used; how many rows these were."""
        total = int(self.world.sum(torch.tensor(rows, device=self.last_used.device)))
        self.items += total
        self.last_used[terms.used] = self.items
        self.last_used = self.world.max(self.last_used)
        return total

    def _resamples(self, number: int) -> bool:
        every = self.config.resample_every
        # not at the end: a latent that is new needs steps to become of use
        return number % every == 0 and self.config.steps - number >= every

    @torch.no_grad()
    def _resample(self, terms: Terms) -> None:
        """Turn dead latents into the directions that the worst rows of the batch are missing."""
        dead = self._dead()
        latents = dead.nonzero()[:, 0]
        left_over = residual_directions(terms.unit, terms.x_hat)
        size = min(len(latents), len(left_over))
        worst = left_over.square().sum(dim=1).topk(size).indices
        candidates = self.world.gather(left_over[worst])
        lengths = candidates.square().sum(dim=1)
        chosen = lengths.topk(min(len(latents), int((lengths > 0).sum()))).indices
        latents, atoms = latents[: len(chosen)], unit_rows(candidates[chosen])
        if len(latents) == 0:
            return
        model = self.model
        alive = model.encoder_weight[~dead]
        length = torch.linalg.vector_norm(alive, dim=1).mean() if len(alive) else 1.0
        fresh = {
            model.decoder_weight: atoms,
            model.encoder_weight: atoms * length,
            model.encoder_bias: torch.zeros_like(model.encoder_bias[latents]),
        }
        for position, parameter in enumerate(self.trained):
            parameter[latents] = fresh[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name][latents] = 0
            if self.average is not None:
                self.average[position][latents] = fresh[parameter]
        self.last_used[latents] = self.items

    def _averaged_in(self) -> None:
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(
                    self.average, list[Tensor](self.trained), 1 - self.config.ema_decay
                )

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights, where there are any, into the model for good."""
        if self.average is not None:
            for parameter, average in zip(self.trained, self.average, strict=True):
                parameter.copy_(average)
            self.project()

    @contextmanager
    def finished(self) -> Iterator[CompresSAE]:
        """The model as `finish` would leave it, for the time of a block."""
        weights = [parameter.detach().clone() for parameter in self.trained]
        try:
            self.finish()
            yield self.model
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self.trained, weights, strict=True):
                    parameter.copy_(weight)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "weights": {name: p.detach().cpu() for name, p in self.model.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else [a.cpu() for a in self.average],
            "items": self.items,
            "last_used": self.last_used.cpu(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            for average, saved in zip(self.average, state["average"], strict=True):
                average.copy_(saved)
        self.items = int(state["items"])
        self.last_used.copy_(state["last_used"])


def _adam(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=True)  # 1 ms a step instead of 8
    except RuntimeError:  # torch < 2.4 has no fused Adam on a CPU, some devices have none
        return torch.optim.Adam(parameters, lr=lr)
