"""How a model is trained, as a frozen dataclass that checks itself once. Knows no torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Literal, get_args

from .config import JsonConfig, as_integer, as_number

Schedule = Literal["cooldown", "constant", "linear", "cosine"]
Precision = Literal["full", "bf16"]
Shuffle = Literal["auto", "rows", "windows"]
Selection = Literal["row", "batch"]
Revival = Literal["none", "auxiliary", "resample"]

_CHOICES = {
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "shuffle": get_args(Shuffle),
    "selection": get_args(Selection),
    "revive": get_args(Revival),
}
_POSITIVE = (
    "steps",
    "batch_size",
    "wide_factor",
    "dead_after_items",
    "window_rows",
    "aux_k",
    "resample_every",
    "ranking_anchors",
    "mine_every",
)
_COUNTS = (
    "seed",
    "warmup_steps",
    "anneal_steps",
    "hard_negatives",
    "evaluate_every",
    "patience",
    "checkpoint_every",
)

#: Share of the steps in which the schedule of that name lowers the rate.
_COOLDOWN = 0.2


@dataclasses.dataclass(frozen=True)
class TrainConfig(JsonConfig):
    """How a model is trained. Defaults are what won on real data: see docs/training.md.

    Parameters
    ----------
    steps : int, default 500
        Optimizer steps; the paper's number.
    batch_size : int, default 4096
        Rows a step, over all processes. More than there are rows means all of them.
    lr : float, default 1e-2
        Adam's learning rate. Chosen by measurement, see docs/training.md.
    seed : int, default 0
        Seed of the order in which rows are drawn.
    wide_factor : int, default 4
        The second reconstruction keeps ``wide_factor * k`` latents (at most hidden_dim). It gives
        latents outside the best k a gradient, so that fewer of them die.
    wide_weight : float, default 0.125
        Weight of the second reconstruction's term; the paper's 1/8.
    dead_after_items : int, default 65536
        A latent counts as dead when none of the last so many training items used it among its k.
        At k = 32 of 4096 latents an even share would be 512 uses in that window.
    schedule : {"cooldown", "constant", "linear", "cosine"}, default "cooldown"
        ``"cooldown"``: the rate is lr for four fifths of the steps and falls evenly in the last;
        ``"linear"``: it falls evenly from lr at the first step to lr / steps at the last;
        ``"cosine"``: along half a wave, to the same end or a little above it. A checkpoint goes
        on to more steps than it was made for with ``"constant"`` only.
    warmup_steps : int, default 0
        The rate rises evenly to lr over so many steps; the schedule has the rest.
    max_grad_norm : float, optional
        Gradients are scaled down so that all together are no longer than this.
    tangent : bool, default False
        Remove the part of the decoder's gradient along each atom before the step: that part only
        changes a length which the projection restores.
    ema_decay : float, default 0
        In [0, 1). The model that is evaluated and left behind has the average of the weights,
        each step counting for 1 - ema_decay; 0 is the weights themselves.
    precision : {"full", "bf16"}, default "full"
        ``"bf16"``: the encoder's product and the selection in bfloat16; weights, sums, gradients
        and moments stay in the model's own precision.
    compile : bool, default False
        Compile the loss with ``torch.compile``.
    shuffle : {"auto", "rows", "windows"}, default "auto"
        ``"rows"``: each epoch is a fresh permutation of all rows (8 bytes a row). ``"windows"``:
        blocks of neighbouring rows are permuted, ``window_rows`` rows held in memory at a time
        and permuted; what is read is read forwards. ``"auto"``: windows for sources that can
        only be read forwards (Parquet), else rows.
    window_rows : int, default 262144
        Rows of a window, and of the buffer in which the rows of a stream are shuffled.
    nested_k : tuple of int, default ()
        Reconstruct from the best k' latents for each k' listed, and let the mean of their terms
        take the place of the term of k: one model for all of them. Costs one top-k all the same.
    k_start : int, optional
        Begin with so many latents, falling evenly to k over ``anneal_steps`` steps.
    anneal_steps : int, default 0
        0 means half of ``steps``; used with ``k_start`` only.
    selection : {"row", "batch"}, default "row"
        ``"batch"``: the n * k largest latents of a batch are kept, so that a row may have more
        than k or fewer, up to ``wide_factor * k``. Codes made afterwards have k a row.
    revive : {"none", "auxiliary", "resample"}, default "none"
        What is done for dead latents besides the second reconstruction. ``"auxiliary"``: the best
        ``aux_k`` dead latents reconstruct what the k left over. ``"resample"``: every
        ``resample_every`` steps they become the residuals of the worst rows of the batch.
    aux_k : int, default 256
    aux_weight : float, default 1/32
    resample_every : int, default 50
    ranking_weight : float, default 0
        Weight of the ranking loss: the order in which ``ranking_anchors`` rows of the batch, as
        dense queries, find the others is to be the same among reconstructions as among rows.
    ranking_temperature : float, default 0.1
        The smaller, the more only the nearest neighbours count.
    ranking_anchors : int, default 512
    ranking_start : float, default 2/3
        Share of the steps, in [0, 1], before the ranking loss and hard negatives set in: among
        reconstructions that are still poor there is no order worth keeping.
    hard_negatives : int, default 0
        Batches are made of rows together with so many of their hundred nearest others by the
        model's own codes (in a pool of at most 65,536 rows drawn from x): what a search would
        return, right or wrong. Found by exact search in a `SparseIndex` of the codes.
    mine_every : int, default 100
        Steps after which these neighbours are looked for again.
    evaluate_every : int, default 0
        Steps between evaluations on held-out rows; 0 means a tenth of ``steps``.
    patience : int, default 0
        Stop after so many evaluations without a better held-out recall, and keep the best
        weights; 0 never stops.
    checkpoint_every : int, default 0
        Steps between checkpoints; 0 means a tenth of ``steps``.

    Raises
    ------
    TypeError, ValueError
        If a value is of another kind or out of range; the message has its name.
    """

    steps: int = 500
    batch_size: int = 4096
    lr: float = 1e-2
    seed: int = 0
    wide_factor: int = 4
    wide_weight: float = 0.125
    dead_after_items: int = 65536
    schedule: Schedule = "cooldown"
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    tangent: bool = False
    ema_decay: float = 0.0
    precision: Precision = "full"
    compile: bool = False
    shuffle: Shuffle = "auto"
    window_rows: int = 262_144
    nested_k: tuple[int, ...] = ()
    k_start: int | None = None
    anneal_steps: int = 0
    selection: Selection = "row"
    revive: Revival = "none"
    aux_k: int = 256
    aux_weight: float = 1 / 32
    resample_every: int = 50
    ranking_weight: float = 0.0
    ranking_temperature: float = 0.1
    ranking_anchors: int = 512
    ranking_start: float = 2 / 3
    hard_negatives: int = 0
    mine_every: int = 100
    evaluate_every: int = 0
    patience: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            self._set(name, as_integer(name, getattr(self, name), minimum=1))
        for name in _COUNTS:
            self._set(name, as_integer(name, getattr(self, name), minimum=0))
        self._set("lr", as_number("lr", self.lr, above=0.0))
        temperature = as_number("ranking_temperature", self.ranking_temperature, above=0.0)
        self._set("ranking_temperature", temperature)
        for name in ("wide_weight", "ema_decay", "aux_weight", "ranking_weight", "ranking_start"):
            self._set(name, as_number(name, getattr(self, name)))
        if self.ranking_start > 1:
            raise ValueError(f"ranking_start must be at most 1, got {self.ranking_start:g}")
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay must be below 1, got {self.ema_decay:g}")
        if self.max_grad_norm is not None:
            bound = as_number("max_grad_norm", self.max_grad_norm, above=0.0)
            self._set("max_grad_norm", bound)
        if self.k_start is not None:
            self._set("k_start", as_integer("k_start", self.k_start, minimum=1))
        for name in ("tangent", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(repr(choice) for choice in choices[:-1])
                raise ValueError(
                    f"{name} must be {listed} or {choices[-1]!r}, got {getattr(self, name)!r}"
                )
        self._check_nested()

    def _check_nested(self) -> None:
        if not isinstance(self.nested_k, Iterable):
            raise TypeError(f"nested_k must list integers, got {self.nested_k!r}")
        nested = tuple(as_integer("nested_k", k, minimum=1) for k in self.nested_k)
        if any(a >= b for a, b in itertools.pairwise(nested)):
            raise ValueError(f"nested_k must increase, got {list(nested)}")
        self._set("nested_k", nested)
        if nested and (self.k_start is not None or self.selection == "batch"):
            raise ValueError("nested_k takes the place of k: not with k_start or selection='batch'")

    def k_at(self, step: int, k: int) -> int:
        """Latents of the main term at a step, counted from 1, for a model with this k."""
        if self.k_start is None:
            return k
        length = self.anneal_steps or max(1, self.steps // 2)
        return round(self.k_start + (k - self.k_start) * min(1.0, (step - 1) / length))

    @property
    def ordinary_steps(self) -> int:
        """Steps before the ranking loss and hard negatives set in."""
        return int(self.ranking_start * self.steps)

    def mines_before(self, step: int) -> bool:
        """Whether neighbours are looked for before a step, counted from 1."""
        since = step - 1 - self.ordinary_steps
        return self.hard_negatives > 0 and since >= 0 and since % self.mine_every == 0

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        length = max(1, self.steps - self.warmup_steps)
        done = (step - self.warmup_steps - 1) / length
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "cosine":
            return self.lr * max(0.5 * (1 + math.cos(math.pi * done)), 1 / length)
        if self.schedule == "cooldown":
            return self.lr * min(1.0, (1 - done) / _COOLDOWN)
        return self.lr
