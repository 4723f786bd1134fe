"""The training loop: batches in, optimizer steps, unit atoms, a history out.

Owns what happens between steps: Adam, the projection of the decoder, dead latents, progress,
Ctrl-C. Knows nothing of where rows come from (data.py) or how a reconstruction is made.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from sparse_retrieval._extras import require

from .config import TrainConfig
from .data import as_row_source, shuffled_batches
from .history import History, StepMetrics
from .loss import LossTerms, compressae_loss
from .model import CompresSAE


class TrainingInterrupted(UserWarning):
    """Ctrl-C ended training before its last step."""


def train(
    model: CompresSAE,
    x: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    config: TrainConfig | None = None,
    progress: bool | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> History:
    """Train a model in place.

    Parameters
    ----------
    model : CompresSAE
        Trained where it stands, on its own device and in its own dtype. A parameter whose
        ``requires_grad`` is off stays as it is.
    x : array, memmap, Tensor or RowSource
        (n, d) embeddings: float16, bfloat16 (tensors), float32 or float64. Rows are fetched batch
        by batch, so a memmap need not fit in memory. They need not be normalised; zero rows are
        passed over.
    steps, batch_size, lr, seed : optional
        Override ``config``; by default 500 steps of 4096 rows. See `TrainConfig`.
    config : TrainConfig, optional
        Everything else that can be set.
    progress : bool, optional
        Show a bar with loss and items a second on stderr. By default only if that is a terminal.
    on_step : callable, optional
        Called with the `StepMetrics` of each step after the model took it.

    Returns
    -------
    History
        Metrics of every step taken. ``interrupted`` is set if Ctrl-C ended training.

    Raises
    ------
    TypeError, ValueError
        If x or an option is malformed, x has another width than the model, no parameter is to be
        trained, or a row holds NaN or inf (checked when it is first fetched; the row is named).
    FloatingPointError
        If the loss stops being finite, before that step is taken.
    ImportError
        If a bar is wanted and tqdm is not installed; the message names the extra.

    Warns
    -----
    TrainingInterrupted
        After Ctrl-C. The step under way is finished first, so that the model is in a state that
        training could have ended in. A second Ctrl-C does not wait, and raises KeyboardInterrupt.

    Notes
    -----
    Adam with its usual moments, at a constant rate or a falling one. Decoder rows are projected
    onto the unit sphere *after* each step, so that what is left behind is of unit norm however
    training ends.
    The same model, x, options and machine (and number of threads) give the same weights to the
    bit; no global random state is read or advanced.

    Examples
    --------
    >>> import torch
    >>> from sparse_retrieval.training import CompresSAE, train
    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> model = CompresSAE(input_dim=8, hidden_dim=32, k=4)
    >>> history = train(model, x, steps=20, batch_size=64)
    >>> bool(history.loss[-1] < history.loss[0])
    True
    """
    if not isinstance(model, CompresSAE):
        raise TypeError(f"model must be a CompresSAE, got {type(model).__name__}")
    config = _merged(config, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    source = as_row_source(x)
    if source.dim != model.config.input_dim:
        raise ValueError(
            f"x has {source.dim} columns, this model takes {model.config.input_dim}; "
            "make it with input_dim = the width of the embeddings"
        )
    device = model.encoder_weight.device
    batches = shuffled_batches(len(source), config.batch_size, config.seed)
    loop = _Loop(model, config)
    taken: list[StepMetrics] = []
    with _bar(config.steps, progress) as advance, _sigint_as_flag() as interrupt:
        try:
            while len(taken) < config.steps and not interrupt.is_set():
                began = time.perf_counter()
                batch = source.take(next(batches)).to(device)
                taken.append(loop.step(batch, len(taken) + 1, began))
                advance(taken[-1])
                if on_step is not None:
                    on_step(taken[-1])
        finally:
            # after an exception between optimizer step and projection as well
            loop.project()
    if interrupted := len(taken) < config.steps:
        warnings.warn(
            f"training was interrupted after step {len(taken)} of {config.steps}; "
            "the model is usable as it stands",
            TrainingInterrupted,
            stacklevel=2,
        )
    return History.from_steps(taken, config, interrupted=interrupted)


def _merged(config: TrainConfig | None, **given: float | None) -> TrainConfig:
    if config is None:
        config = TrainConfig()
    elif not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(config, **changes)


class _Loop:
    """State that lives from step to step: the optimizer and when each latent was last used."""

    def __init__(self, model: CompresSAE, config: TrainConfig) -> None:
        self.model, self.config = model, config
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(
                "no parameter of the model has requires_grad: there is nothing to train"
            )
        self.optimizer = _adam(trained, config.lr)
        s = model.config.hidden_dim
        wide = min(config.wide_factor * model.config.k, s)
        # with k = s (or a factor of 1) both terms see the same reconstruction
        self.cuts = (model.config.k, wide) if wide > model.config.k else (wide,)
        self.items = 0
        self.last_used = torch.zeros(s, dtype=torch.int64, device=model.encoder_weight.device)

    @torch.enable_grad()
    def step(self, batch: Tensor, number: int, began: float) -> StepMetrics:
        """One optimizer step on (b, d) rows; ``began`` is when fetching them started."""
        terms, used = self._forward(batch)
        loss = float(terms.loss.detach())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {number} with lr = {self.config.lr:g}; "
                "train a fresh model with a lower lr"
            )
        if self.config.schedule == "linear":
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * (1 - (number - 1) / self.config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.project()
        self.items += len(batch)
        self.last_used[used] = self.items
        dead = (self.items - self.last_used) >= self.config.dead_after_items
        share = float(dead.float().mean())
        seconds = time.perf_counter() - began
        return StepMetrics(
            step=number,
            loss=loss,
            cosine_k=float(terms.cosine_k),
            cosine_4k=float(terms.cosine_wide),
            dead_latents=share,
            seconds=seconds,
            items_per_second=len(batch) / seconds,
        )

    def project(self) -> None:
        """Bring the decoder back to unit rows; one that is held still keeps every bit."""
        if self.model.decoder_weight.requires_grad:
            self.model.normalize_decoder()

    def _forward(self, batch: Tensor) -> tuple[LossTerms, Tensor]:
        """Loss of a batch, and the latents that were among the k of any of its rows."""
        x = batch.to(self.model.encoder_weight.dtype)
        code = self.model.encode(x, k=self.cuts[-1])
        x_hats = self.model.decode_prefixes(code, self.cuts)
        terms = compressae_loss(x, x_hats[0], x_hats[-1], wide_weight=self.config.wide_weight)
        k = self.model.config.k
        # a zero row selects latents too, with zero values: it uses none
        return terms, code.indices[:, :k][code.values.detach()[:, :k] != 0]


def _adam(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    try:
        return torch.optim.Adam(parameters, lr=lr, fused=True)  # 1 ms a step instead of 8
    except RuntimeError:  # torch < 2.4 has no fused Adam on a CPU, some devices have none
        return torch.optim.Adam(parameters, lr=lr)


@contextmanager
def _bar(steps: int, progress: bool | None) -> Iterator[Callable[[StepMetrics], None]]:
    """Yield a function to call after each step, which may draw a progress bar."""
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        yield lambda metrics: None
        return
    tqdm = require("tqdm", "the progress bar of train").tqdm
    with tqdm(total=steps, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:

        def advance(metrics: StepMetrics) -> None:
            rate = f"{metrics.items_per_second:,.0f}"
            bar.set_postfix_str(f"loss {metrics.loss:.4f}, {rate} items/s", refresh=False)
            bar.update()

        yield advance


@contextmanager
def _sigint_as_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag that the loop reads between steps.

    KeyboardInterrupt may surface between any two bytecodes, also inside the optimizer with half of
    the moments updated. Python delivers signals to the main thread only, and a handler other than
    Python's own belongs to the application: in both cases nothing is changed.
    """
    flag = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            signal.default_int_handler(number, frame)
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
