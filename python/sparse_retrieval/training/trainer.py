"""How training is asked for: `Trainer`, and `train`, which is the same in one call.

Checks what it is given and hands it to run.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .callbacks import Callback
from .distributed import joined, local_device, refuse_absent
from .history import History, StepMetrics
from .model import CompresSAE
from .run import Run, TrainingInterrupted
from .train_config import TrainConfig

__all__ = ["Trainer", "TrainingInterrupted", "train"]


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
        One that is not there is an error: nothing falls back to a slower device unasked.
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
        refuse_absent(self.device)
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
        run = Run(self, joined(self.device), sharded)
        run.prepare(x, column, held_out)
        if resume:
            run.resume()
        self.history = run.train()
        return self.history


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
        trained, the device is not there, or a row holds NaN or inf (checked when it is first
        fetched; the row is named); or the checkpoint is damaged, or of other options, data or
        another model.
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
    Adam with its usual moments. Decoder rows are projected onto the unit sphere *after* each step,
    so that what is left behind is of unit norm however training ends.
    The same model, x, options and machine (and number of threads) give the same weights to the
    bit, in one go or resumed from a checkpoint; no global random state is read or advanced.
    Under torchrun the processes share each batch, and the gradients are those of the whole of it
    (DistributedDataParallel). A process group is made if there is none, and left until the
    process ends.

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
