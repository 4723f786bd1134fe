"""A training under way on disk: one file, which appears whole or not at all.

Holds what the next step depends on, to the bit; reads it back only into a training of the same
shape. Written with torch.save and read with ``weights_only``: a file from elsewhere runs no code.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from sparse_retrieval._files import replacing

from .train_config import TrainConfig

NAME = "checkpoint.pt"

_FORMAT, _VERSION = "sparse_retrieval.training", 1

#: May differ between a checkpoint and the training that goes on from it.
_FREE = {"steps", "evaluate_every", "patience", "checkpoint_every", "compile"}


def write(directory: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write a state into ``directory``, made if absent, in place of the one before."""
    path = Path(directory) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": _FORMAT, "version": _VERSION, **state}, file)
    return path


def read(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged or of another kind or version.
    """
    path = Path(directory)
    path = path / NAME if path.is_dir() or not path.exists() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; training with checkpoints= writes it")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path} is no readable checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} is no checkpoint of sparse_retrieval")
    if state["version"] != _VERSION:
        raise ValueError(f"{path} has version {state['version']}, this release reads {_VERSION}")
    return state


def check(state: dict[str, Any], model: dict[str, Any], config: TrainConfig, data: Any) -> None:
    """Refuse a state of another model, other options or other data, naming what differs."""
    differing = [
        f"{name}: {state['config'].get(name)!r} there, {value!r} here"
        for name, value in config.to_dict().items()
        if name not in _FREE and state["config"].get(name) != value
    ]
    # what depends on how many steps there are is another training with more steps
    by_length = config.schedule != "constant" or (config.k_start and not config.anneal_steps)
    by_length = by_length or bool(config.ranking_weight or config.hard_negatives)
    if by_length and state["config"]["steps"] != config.steps:
        differing.append(
            f"steps: {state['config']['steps']} there, {config.steps} here (more steps go on with "
            "schedule='constant' and without the ranking loss only)"
        )
    for name, there, here in (("model", state["model"], model), ("x", state["data"], data)):
        if there != here:
            differing.append(f"{name}: {there} there, {here} here")
    if differing:
        raise ValueError("the checkpoint is of another training; " + "; ".join(differing))
