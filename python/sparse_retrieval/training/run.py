"""One training from its data to its history: what `Trainer.fit` does.

Puts the parts together: feed.py brings batches, loop.py takes steps, evaluation.py judges,
checkpoint.py writes, console.py shows. Knows nothing of how any of them works.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .console import sigint_as_flag, step_bar
from .data import ArraySource, RowSource, as_row_source
from .distributed import World
from .evaluation import QUERIES, Evaluator, split
from .feed import Feed, Order, ahead, rows_feed, stream_feed
from .history import Evaluation, History, StepMetrics
from .loop import Loop
from .mining import Neighbourhoods
from .sampling import Place, Positions, windows
from .sources import Stream, is_stream

if TYPE_CHECKING:
    from .trainer import Trainer


class TrainingInterrupted(UserWarning):
    """Ctrl-C ended training before its last step."""


class Run:
    """One call of `Trainer.fit`: what it reads, and what it has got so far."""

    def __init__(self, trainer: Trainer, world: World, sharded: bool) -> None:
        self.trainer, self.world, self.sharded = trainer, world, sharded
        self.model, self.config = trainer.model, trainer.config
        self.steps: list[StepMetrics] = []
        self.evaluations: list[Evaluation] = []
        self.place = Place()
        self.best: dict[str, Tensor] | None = None
        self.evaluator: Evaluator | None = None
        self.mined: Neighbourhoods | None = None

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
            if self.config.hard_negatives:
                self.mined = Neighbourhoods(source, self.config.hard_negatives, seed)
        if self.config.hard_negatives and self.mined is None:
            raise ValueError(
                "hard_negatives need rows that can be fetched by number, and x is a stream: give "
                "an array, a file or a map-style data set"
            )
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
        order: Order
        if self.mined is not None and self.mined.nearest is not None:
            order, hold = partial(self.mined.windows, batch_size, seed), False
        else:

            def order(epoch: int) -> Iterator[Positions]:
                return windows(n, batch_size, seed, epoch, window_rows)

        feed = rows_feed(source, order, self.place, rank=rank, size=size, hold=hold)
        at_hand = isinstance(source, ArraySource) and source.in_memory
        # a thread that fetches rows that are in memory anyway only takes a core from the step
        return feed if at_hand and self.trainer.device.type == "cpu" else ahead(feed)

    def _mined_feed(self, feed: Feed) -> Feed:
        """A feed of neighbourhoods as the model sees them now, in place of the one so far."""
        assert self.mined is not None
        feed.close()  # type: ignore[attr-defined]
        self.mined.refresh(self.model)
        self.place = Place(self.place.epoch + 1)
        return self._feed()

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
                    if config.mines_before(len(self.steps) + 1):
                        feed = self._mined_feed(feed)
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
                "mined": None if self.mined is None else self.mined.state(),
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
        if self.mined is not None:
            self.mined.load(state["mined"])

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
