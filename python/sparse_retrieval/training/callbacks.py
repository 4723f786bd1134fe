"""What may listen to training: any object with some of four methods, and two writers of scalars.

Knows nothing of how training works. With several processes only the first one's callbacks are
called.
"""

from __future__ import annotations

import importlib.util
from os import PathLike
from typing import TYPE_CHECKING, Any

from .history import Evaluation, History, StepMetrics

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Listens to training; every method does nothing unless it is overridden.

    A callback may read the trainer and its model. What it changes there is its own affair; what
    it raises ends training.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, after a checkpoint was read."""

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """After a step."""

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """After an evaluation on held-out rows."""

    def on_end(self, trainer: Trainer, history: History) -> None:
        """After the last step, also after Ctrl-C or an early stop; not after an error."""


class ScalarWriter(Callback):
    """Hand every figure to a writer with ``add_scalar(tag, value, step)``.

    Parameters
    ----------
    writer : object
        A TensorBoard ``SummaryWriter``, or anything else with that method.

    Notes
    -----
    Tags: ``train/loss``, ``train/cosine_k``, ``train/cosine_4k``, ``train/dead_latents``,
    ``train/items_per_second``, ``train/lr``, ``train/grad_norm`` (where gradients are clipped),
    ``held_out/recall``, ``held_out/cosine``.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Write the figures of a step."""
        for name, value in metrics._asdict().items():
            # NaN stands for what was not measured
            if name not in ("step", "seconds") and value == value:
                self.writer.add_scalar(f"train/{name}", value, metrics.step)

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Write the figures of an evaluation."""
        self.writer.add_scalar("held_out/recall", evaluation.recall, evaluation.step)
        self.writer.add_scalar("held_out/cosine", evaluation.cosine, evaluation.step)


class TensorBoard(ScalarWriter):
    """Write event files that TensorBoard shows.

    Parameters
    ----------
    directory : path-like
        Where they go.

    Raises
    ------
    ImportError
        If the tensorboard package is not installed.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "TensorBoard needs tensorboard, which is not installed: pip install tensorboard",
                name="tensorboard",
            )
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(SummaryWriter(str(directory)))

    def on_end(self, trainer: Trainer, history: History) -> None:
        """Close the file."""
        self.writer.close()
