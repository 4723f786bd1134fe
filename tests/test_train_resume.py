"""Checkpoints: training that was cut off and goes on ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sparse_retrieval
from sparse_retrieval.training import (
    Callback,
    CompresSAE,
    StepMetrics,
    TrainConfig,
    Trainer,
    TrainingInterrupted,
    checkpoint,
    train,
)
from training_data import mixture, same_bytes

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every option": {
        "schedule": "cosine",
        "warmup_steps": 3,
        "max_grad_norm": 0.1,
        "tangent": True,
        "ema_decay": 0.7,
        "precision": "bf16",
        "shuffle": "windows",
        "window_rows": 70,
        "k_start": 8,
        "selection": "batch",
        "revive": "resample",
        "resample_every": 3,
        "dead_after_items": 100,
        "ranking_weight": 0.5,
        "ranking_anchors": 16,
        "ranking_start": 0.2,
    },
    "nested, auxiliary, neighbours": {
        "nested_k": (2, 4, 8),
        "revive": "auxiliary",
        "dead_after_items": 60,
        "hard_negatives": 3,
        "ranking_weight": 0.1,
        "ranking_start": 0.4,
        "mine_every": 3,
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


class PressCtrlC(Callback):
    """SIGINT after a step, as from the keyboard."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.step == self.step:
            signal.raise_signal(signal.SIGINT)


def stream() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.from_numpy(mixture(200))), batch_size=30)


@pytest.mark.parametrize("stop", [1, 7, 12])
@pytest.mark.parametrize("name", CASES)
def test_resumed_training_ends_with_the_same_bytes(tmp_path: Path, name: str, stop: int) -> None:
    x = mixture(200)
    config = TrainConfig(steps=15, batch_size=48, checkpoint_every=4, **CASES[name])
    whole = CompresSAE(16, 64, 4)
    reference = train(whole, x, config=config, held_out=30)
    cut = CompresSAE(16, 64, 4)
    with pytest.warns(TrainingInterrupted, match="the checkpoint lets it go on"):
        train(
            cut,
            x,
            config=config,
            held_out=30,
            checkpoints=tmp_path,
            callbacks=[PressCtrlC(stop)],
        )
    assert not same_bytes(cut, whole)
    fresh = CompresSAE(16, 64, 4, seed=9)  # what it holds is replaced by the checkpoint
    fresh.config = whole.config
    history = train(fresh, x, config=config, held_out=30, checkpoints=tmp_path, resume=True)
    assert same_bytes(fresh, whole)
    np.testing.assert_array_equal(history.loss, reference.loss)
    assert history.evaluations == reference.evaluations
    assert not history.interrupted


def test_a_stream_is_resumed_where_it_was(tmp_path: Path) -> None:
    config = TrainConfig(steps=9, batch_size=40, window_rows=100, checkpoint_every=100)
    whole, cut = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    train(whole, stream(), config=config)
    with pytest.warns(TrainingInterrupted):
        train(cut, stream(), config=config, checkpoints=tmp_path, callbacks=[PressCtrlC(7)])
    resumed = CompresSAE(16, 64, 4)
    train(resumed, stream(), config=config, checkpoints=tmp_path, resume=True)
    assert same_bytes(resumed, whole)


CHILD = """
    import os, sys
    import numpy as np, torch
    from sparse_retrieval.training import CompresSAE, TrainConfig, train
    torch.set_num_threads(1)
    def die(metrics):
        if metrics.step == 11:
            os.kill(os.getpid(), 9)
    model = CompresSAE(16, 64, 4)
    train(model, np.load(sys.argv[1]), config=TrainConfig(steps=15, batch_size=48,
          checkpoint_every=4), checkpoints=sys.argv[2], on_step=die)
"""


def test_a_killed_process_is_resumed_from_its_last_checkpoint(tmp_path: Path) -> None:
    x = mixture(200)
    np.save(tmp_path / "x.npy", x)
    package = str(Path(sparse_retrieval.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), tmp_path / "x.npy", tmp_path / "kept"],
        env={**os.environ, "PYTHONPATH": package},
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    config = TrainConfig(steps=15, batch_size=48, checkpoint_every=4)
    assert len(checkpoint.read(tmp_path / "kept")["steps"]) == 8
    resumed, whole = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    train(resumed, x, config=config, checkpoints=tmp_path / "kept", resume=True)
    train(whole, x, config=config)
    assert same_bytes(resumed, whole)


def test_more_steps_at_a_constant_rate_go_on_from_the_end(tmp_path: Path) -> None:
    x = mixture(100)
    model, whole = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    five, nine = (TrainConfig(steps=n, batch_size=32, schedule="constant") for n in (5, 9))
    train(model, x, config=five, checkpoints=tmp_path)
    history = train(model, x, config=nine, checkpoints=tmp_path, resume=True)
    train(whole, x, config=nine)
    assert len(history) == 9
    assert same_bytes(model, whole)
    again = train(model, x, config=nine, checkpoints=tmp_path, resume=True)
    assert len(again) == 9  # nothing was left to do
    assert same_bytes(model, whole)


def test_resume_without_a_checkpoint_starts_and_without_resume_it_is_replaced(
    tmp_path: Path,
) -> None:
    x = mixture(100)
    model = CompresSAE(16, 64, 4)
    history = train(model, x, steps=3, batch_size=32, checkpoints=tmp_path / "a", resume=True)
    assert len(history) == 3
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32, checkpoints=tmp_path / "a")
    assert len(checkpoint.read(tmp_path / "a")["steps"]) == 2
    with pytest.raises(ValueError, match="resume=True needs checkpoints="):
        train(model, x, steps=2, resume=True)


@pytest.mark.parametrize(
    "options", [{"ranking_weight": 1.0}, {"hard_negatives": 3}, {"k_start": 8}]
)
def test_more_steps_are_refused_where_what_was_done_depends_on_their_number(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    config = TrainConfig(steps=4, batch_size=32, schedule="constant", **options)
    longer = TrainConfig.from_dict({**config.to_dict(), "steps": 8})
    train(CompresSAE(16, 64, 4), mixture(100), config=config, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="steps: 4 there, 8 here"):
        train(CompresSAE(16, 64, 4), mixture(100), config=longer, checkpoints=tmp_path, resume=True)


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path) -> None:
    x = mixture(100)
    config = TrainConfig(steps=4, batch_size=32, schedule="linear")
    train(CompresSAE(16, 64, 4), x, config=config, checkpoints=tmp_path)

    def refused(model: CompresSAE, x: np.ndarray, **changes: Any) -> str:
        options = TrainConfig.from_dict({**config.to_dict(), **changes})
        with pytest.raises(ValueError, match="the checkpoint is of another training") as caught:
            train(model, x, config=options, checkpoints=tmp_path, resume=True)
        return str(caught.value)

    model = CompresSAE(16, 64, 4)
    assert "lr: 0.01 there, 0.5 here" in refused(model, x, lr=0.5)
    assert "steps: 4 there, 8 here" in refused(model, x, steps=8)  # the linear rate depends on it
    assert "more steps go on with schedule='constant'" in refused(model, x, steps=8)
    assert "'rows': 100" in refused(model, x[:90])
    assert "'k': 4" in refused(CompresSAE(16, 64, 5), x)


@pytest.mark.parametrize("damage", ["cut", "other", "version", "pickle"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    x = mixture(100)
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32, checkpoints=tmp_path)
    path = tmp_path / checkpoint.NAME
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "other":
        torch.save({"weights": torch.zeros(2)}, path)
    elif damage == "version":
        torch.save({**checkpoint.read(tmp_path), "version": 99}, path)
    else:
        torch.save(TrainConfig(), path)  # would run code of a class
    said = {
        "cut": "is no readable checkpoint",
        "other": "is no checkpoint of sparse_retrieval",
        "version": "has version 99, this release reads 1",
        "pickle": "is no readable checkpoint",
    }[damage]
    with pytest.raises(ValueError, match=said):
        train(CompresSAE(16, 64, 4), x, steps=2, checkpoints=tmp_path, resume=True)


def test_reading_where_there_is_no_checkpoint_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt does not exist"):
        checkpoint.read(tmp_path)


def test_an_error_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = mixture(100)
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32, checkpoints=tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def fail(state: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        train(CompresSAE(16, 64, 4), x, steps=3, batch_size=32, checkpoints=tmp_path)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]
