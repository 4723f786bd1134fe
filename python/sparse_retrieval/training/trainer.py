"""Training from start to end: data in, steps, evaluations, checkpoints, a history out.

Puts the parts together: feed.py brings batches, loop.py takes steps, evaluation.py judges,
checkpoint.py writes, console.py shows. Knows nothing of how any of them works.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .callbacks import Callback
from .console import sigint_as_flag, step_bar
from .data import ArraySource, RowSource, as_row_source
from .distributed import World, local_device, processes
from .evaluation import QUERIES, Evaluator, split
from .feed import Feed, ahead, rows_feed, stream_feed
from .history import Evaluation, History, StepMetrics
from .loop import Loop
from .mining import Neighbourhoods
from .model import CompresSAE
from .sampling import Place, Positions, windows
from .sources import Stream, is_stream
from .train_config import TrainConfig


class TrainingInterrupted(UserWarning):
    """Ctrl-C ended training before its last step."""


class Trainer:
    """Trains a model by a `TrainConfig`.

    Parameters
    ----------
    model : CompresSAE
        Trained in place and in its own dtype. A parameter whose ``requires_grad`` is off stays as
        it is.
    config : TrainConfig, optional
    device : str or torch.device, optional
        Where to train (``"cpu"``, ``"cuda"``, ``"mps"``); the model is moved there and stays. By
        default where it is. Under torchrun ``"cuda"`` is the device of the process's LOCAL_RANK.
    callbacks : iterable of Callback, optional
    checkpoints : path-like, optional
        Folder for the checkpoint: written every ``checkpoint_every`` steps, at the end, and after
        Ctrl-C; each takes the place of the one before, whole.
    progress : bool, optional
        Show a bar with loss and items a second on stderr. By default only if that is a terminal.

    Attributes
    ----------
    model, config, device
    history : History or None
        Of the last `fit`.

    Examples
    --------
    >>> import torch
    >>> from sparse_retrieval.training import CompresSAE, TrainConfig, Trainer
    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> trainer = Trainer(CompresSAE(8, 32, 4), TrainConfig(steps=20, batch_size=64))
    >>> history = trainer.fit(x, held_out=32)
    >>> history.evaluations[-1].recall > history.evaluations[0].recall
    True
    """

    def __init__(
        self,
        model: CompresSAE,
        config: TrainConfig | None = None,
        *,
        device: str | torch.device | None = None,
        callbacks: Iterable[Callback] = (),
        checkpoints: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(model, CompresSAE):
            raise TypeError(f"model must be a CompresSAE, got {type(model).__name__}")
        if config is not None and not isinstance(config, TrainConfig):
            raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
        self.model, self.config = model, config or TrainConfig()
        self.device = local_device(device, model.encoder_weight.device)
        self.callbacks = list(callbacks)
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        self.progress = progress
        self.history: History | None = None

    def fit(
        self,
        x: Any,
        *,
        column: str | None = None,
        held_out: Any = None,
        resume: bool = False,
        sharded: bool = False,
    ) -> History:
        """Train on embeddings; see `train` for the data, for what is raised, warned and promised.

        Parameters
        ----------
        x, column, held_out, resume, sharded
            As in `train`.

        Returns
        -------
        History
            Of all steps, those before the checkpoint included.
        """
        if resume and self.checkpoints is None:
            raise ValueError("resume=True needs checkpoints=, the folder to resume from")
        self.model.to(self.device)
        with processes(self.device) as world:
            run = _Run(self, world, sharded)
            run.prepare(x, column, held_out)
            if resume:
                run.resume()
            self.history = run.train()
        return self.history


class _Run:
    """One call of `Trainer.fit`: what it reads, and what it has got so far."""

    def __init__(self, trainer: Trainer, world: World, sharded: bool) -> None:
        self.trainer, self.world, self.sharded = trainer, world, sharded
        self.model, self.config = trainer.model, trainer.config
        self.steps: list[StepMetrics] = []
        self.evaluations: list[Evaluation] = []
        self.place = Place()
        self.best: dict[str, Tensor] | None = None
        self.evaluator: Evaluator | None = None

    def prepare(self, x: Any, column: str | None, held_out: Any) -> None:
        """Open the data and set up the loop."""
        if is_stream(x):
            self.source: RowSource | Stream = Stream(x, column)
            self.data: dict[str, int] = {"streams": 1}
            if held_out is not None:
                self.evaluator = _evaluator_of_rows(self._held_rows(held_out))
        else:
            source = as_row_source(x, column)
            self._check_width(source.dim)
            seed = self.config.seed
            if held_out is not None and isinstance(held_out, int):
                source, queries = split(source, held_out, seed)
            elif held_out is not None:
                queries = self._held_rows(held_out)
            self.source = source
            self.data = {"rows": len(source), "columns": source.dim}
            # one process judges for all: with sharded data each would have other items
            if held_out is not None and self.world.leads:
                self.evaluator = Evaluator.drawn(source, queries, seed)
        self.judged = held_out is not None
        if self.config.patience and not self.judged:
            raise ValueError("patience needs held_out rows to judge by")
        self.loop = Loop(self.model, self.config, self.world)

    def _held_rows(self, held_out: Any) -> Tensor:
        if isinstance(held_out, int):
            raise ValueError("rows cannot be drawn from a stream: give held_out as an array")
        source = as_row_source(held_out)
        self._check_width(source.dim)
        return source.take(_all_rows(len(source)))

    def _check_width(self, width: int) -> None:
        if width != self.model.config.input_dim:
            raise ValueError(
                f"x has {width} columns, this model takes {self.model.config.input_dim}; "
                "make it with input_dim = the width of the embeddings"
            )

    def _feed(self) -> Feed:
        config, rank, size = self.config, self.world.rank, self.world.size
        batch_size, seed = config.batch_size, config.seed
        if self.sharded:  # the rows are this process's own: it takes its share of batch_size
            batch_size, seed = max(1, batch_size // size), seed + rank
            rank, size = 0, 1
        source = self.source
        if isinstance(source, Stream):
            options = {"batch_size": batch_size, "window_rows": config.window_rows, "seed": seed}
            return ahead(stream_feed(source, self.place, rank=rank, size=size, **options))
        forwards = bool(getattr(source, "forwards", False))
        hold = config.shuffle == "windows" or (config.shuffle == "auto" and forwards)
        n, window_rows = len(source), config.window_rows if hold else None
        if config.hard_negatives:
            order, hold = self._neighbourhoods(source, batch_size, seed), False
        else:

            def order(epoch: int) -> Any:
                return windows(n, batch_size, seed, epoch, window_rows)

        feed = rows_feed(source, order, self.place, rank=rank, size=size, hold=hold)
        at_hand = isinstance(source, ArraySource) and source.in_memory
        # a thread that fetches rows that are in memory anyway only takes a core from the step
        return feed if at_hand and self.trainer.device.type == "cpu" else ahead(feed)

    def _neighbourhoods(
        self, source: RowSource, batch_size: int, seed: int
    ) -> Callable[[int], Any]:
        neighbourhoods = Neighbourhoods(source, self.config.hard_negatives, self.config.seed)
        return lambda epoch: neighbourhoods.windows(batch_size, seed, epoch)

    def train(self) -> History:
        """Take the steps that are left."""
        config, leads = self.config, self.world.leads
        progress = self.trainer.progress if leads else False
        self._tell("on_start")
        feed = self._feed()
        stopped = self._is_over()
        with step_bar(config.steps, progress, len(self.steps)) as advance, sigint_as_flag() as flag:
            try:
                while len(self.steps) < config.steps and not stopped:
                    if self._interrupted(flag.is_set()):
                        break
                    began = time.perf_counter()
                    batch, self.place = next(feed)
                    self._check_width(batch.shape[1])
                    batch = batch.to(self.trainer.device)
                    self.steps.append(self.loop.step(batch, len(self.steps) + 1, began))
                    advance(self.steps[-1])
                    self._tell("on_step", self.steps[-1])
                    stopped = self._after(len(self.steps))
                interrupted = len(self.steps) < config.steps and not stopped
                self._write()
            finally:
                feed.close()  # type: ignore[attr-defined]
                # after an exception between optimizer step and projection as well
                self.loop.project()
        self._leave()
        if interrupted and leads:
            self._warn()
        history = History.from_steps(
            self.steps,
            config,
            interrupted=interrupted,
            evaluations=self.evaluations,
            stopped_early=stopped and len(self.steps) < config.steps,
        )
        self._tell("on_end", history)
        return history

    def _interrupted(self, pressed: bool) -> bool:
        """Whether Ctrl-C reached any of the processes: all end after the same step."""
        if self.world.size == 1:
            return pressed
        flag = torch.tensor(int(pressed), device=self.trainer.device)
        return bool(self.world.max(flag))

    def _after(self, step: int) -> bool:
        """What is due after a step; whether training is to stop."""
        config, stop = self.config, False
        tenth = max(1, config.steps // 10)
        last = step == config.steps
        if self.judged and (step % (config.evaluate_every or tenth) == 0 or last):
            self._evaluate(step)
            stop = self._is_over()
        if not last and not stop and step % (config.checkpoint_every or tenth) == 0:
            self._write()
        return stop

    def _evaluate(self, step: int) -> None:
        with self.loop.finished() as model:
            judged = [0.0, 0.0]
            if self.evaluator is not None:
                judged = list(self.evaluator(model, step)[1:])
            recall, cosine = self.world.from_lead(judged, self.trainer.device)
            if self.config.patience and all(recall > e.recall for e in self.evaluations):
                self.best = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        self.evaluations.append(Evaluation(step, recall, cosine))
        self._tell("on_evaluation", self.evaluations[-1])

    def _is_over(self) -> bool:
        """Whether held-out recall has not risen for ``patience`` evaluations."""
        recalls = [evaluation.recall for evaluation in self.evaluations]
        if not self.config.patience or not recalls:
            return False
        return len(recalls) - 1 - recalls.index(max(recalls)) >= self.config.patience

    @torch.no_grad()
    def _leave(self) -> None:
        """Leave in the model what training promises: the best weights, or the averaged ones."""
        if self.best is None:
            self.loop.finish()
            return
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.best[name])

    def _write(self) -> None:
        if self.trainer.checkpoints is None or not self.world.leads or not self.steps:
            return
        checkpoint.write(
            self.trainer.checkpoints,
            {
                **self.loop.state(),
                "model": self.model.config.to_dict(),
                "config": self.config.to_dict(),
                "data": self.data,
                "place": list(self.place),
                "steps": [list(metrics) for metrics in self.steps],
                "evaluations": [list(evaluation) for evaluation in self.evaluations],
                "best": self.best,
            },
        )

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        folder = self.trainer.checkpoints
        if folder is None or not (folder / checkpoint.NAME).exists():
            return
        state = checkpoint.read(folder)
        checkpoint.check(state, self.model.config.to_dict(), self.config, self.data)
        self.loop.load(state)
        self.place = Place(*state["place"])
        self.steps = [StepMetrics(*metrics) for metrics in state["steps"]]
        self.evaluations = [Evaluation(*evaluation) for evaluation in state["evaluations"]]
        self.best = state["best"]

    def _tell(self, event: str, *what: Any) -> None:
        if self.world.leads:
            for callback in self.trainer.callbacks:
                getattr(callback, event, _ignore)(self.trainer, *what)

    def _warn(self) -> None:
        kept = "" if self.trainer.checkpoints is None else "; the checkpoint lets it go on"
        warnings.warn(
            f"training was interrupted after step {len(self.steps)} of {self.config.steps}; "
            f"the model is usable as it stands{kept}",
            TrainingInterrupted,
            stacklevel=5,
        )


def _ignore(*_: Any) -> None:
    """What an object that does not listen to an event does."""


def _all_rows(n: int) -> Positions:
    return np.arange(n, dtype=np.int64)


def _evaluator_of_rows(rows: Tensor) -> Evaluator:
    """An evaluator where all items there are, are the held-out rows themselves."""
    queries = min(QUERIES, len(rows) // 10)
    if queries == 0:
        raise ValueError(
            f"held_out has {len(rows)} rows; a tenth ask and the others are the items of a stream, "
            "so at least 10 are needed"
        )
    return Evaluator(rows[:queries], rows[queries:])


class _OnStep(Callback):
    """A function as a callback."""

    def __init__(self, function: Callable[[StepMetrics], None]) -> None:
        self._function = function

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self._function(metrics)


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
    column: str | None = None,
    held_out: Any = None,
    device: str | torch.device | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoints: str | PathLike[str] | None = None,
    resume: bool = False,
    sharded: bool = False,
) -> History:
    """Train a model in place: `Trainer` in one call.

    Parameters
    ----------
    model : CompresSAE
        Trained in its own dtype. A parameter whose ``requires_grad`` is off stays as it is.
    x : array, memmap, Tensor, path, data set, loader or RowSource
        (n, d) embeddings: float16, bfloat16 (tensors), float32 or float64. A path names a
        ``.npy``, ``.parquet`` or ``.safetensors`` file, a list of paths several. Data sets are
        map-style or iterable ones of torch and of Hugging Face ``datasets``; a DataLoader and any
        other iterable of rows or batches is a stream. Rows are fetched batch by batch and need
        not fit in memory. They need not be normalised; zero rows are passed over.
    steps, batch_size, lr, seed : optional
        Override ``config``; by default 500 steps of 4096 rows. See `TrainConfig`.
    config : TrainConfig, optional
        Everything else that can be set.
    progress : bool, optional
        Show a bar with loss and items a second on stderr. By default only if that is a terminal.
    on_step : callable, optional
        Called with the `StepMetrics` of each step after the model took it.
    column : str, optional
        Of a Parquet file or data set, or tensor of a safetensors file; the only suitable one by
        default.
    held_out : int, array, Tensor or path, optional
        Rows that are not trained on and judge the model every ``evaluate_every`` steps: how many
        to draw from x, or the rows themselves.
    device : str or torch.device, optional
        Where to train; the model is moved there. By default where it is.
    callbacks : iterable of Callback, optional
        Told of steps, evaluations and the end; see `Callback`, `TensorBoard`.
    checkpoints : path-like, optional
        Folder to write a checkpoint into every ``checkpoint_every`` steps and at the end.
    resume : bool, default False
        Go on from the checkpoint in that folder; from the start if there is none. False starts
        anew and replaces it.
    sharded : bool, default False
        With several processes: x is this process's own share of the data, from which it draws
        ``batch_size`` divided by the number of processes. By default every process is given all
        of x, and reads its rows of each batch.

    Returns
    -------
    History
        Metrics of every step taken. ``interrupted`` is set if Ctrl-C ended training.

    Raises
    ------
    TypeError, ValueError
        If x or an option is malformed, x has another width than the model, no parameter is to be
        trained, or a row holds NaN or inf (checked when it is first fetched; the row is named);
        or the checkpoint is damaged, or of other options, data or another model.
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
    Adam with its usual moments. Decoder rows are projected
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
    callbacks = list(callbacks)
    if on_step is not None:
        callbacks.append(_OnStep(on_step))
    given = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    trainer = Trainer(
        model,
        _merged(config, given),
        device=device,
        callbacks=callbacks,
        checkpoints=checkpoints,
        progress=progress,
    )
    return trainer.fit(x, column=column, held_out=held_out, resume=resume, sharded=sharded)


def _merged(config: TrainConfig | None, given: dict[str, Any]) -> TrainConfig:
    if config is None:
        config = TrainConfig()
    elif not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(config, **changes)
