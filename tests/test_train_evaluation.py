"""Held-out recall, early stopping, callbacks, and the devices and processes training runs on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_retrieval.training import (
    Callback,
    CompresSAE,
    Evaluation,
    History,
    ScalarWriter,
    StepMetrics,
    TensorBoard,
    TrainConfig,
    Trainer,
    train,
)
from sparse_retrieval.training.data import as_row_source
from sparse_retrieval.training.distributed import World, local_device
from sparse_retrieval.training.evaluation import Evaluator, split
from training_data import mixture, same_bytes, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_recall_is_the_share_of_true_neighbours_that_a_dense_query_finds() -> None:
    x, queries = mixture(400), mixture(30, seed=1)
    model = CompresSAE(16, 64, 4)
    train(model, x, steps=20, batch_size=100)
    found = Evaluator(torch.from_numpy(queries), torch.from_numpy(x))(model, 7)
    with torch.no_grad():
        x_hat = model(torch.from_numpy(x)).double().numpy()
        q_hat = model(torch.from_numpy(queries)).double().numpy()

    def nearest(items: np.ndarray) -> list[set[int]]:
        items = items / np.linalg.norm(items, axis=1, keepdims=True)
        order = np.argsort(-(queries.astype(np.float64) @ items.T), axis=1)
        return [set(row[:40].tolist()) for row in order]  # a tenth of the items

    truth, got = nearest(x.astype(np.float64)), nearest(x_hat)
    recall = np.mean([len(a & b) / 40 for a, b in zip(truth, got, strict=True)])
    cosine = (queries * q_hat).sum(1) / np.linalg.norm(queries, axis=1)
    cosine = cosine / np.linalg.norm(q_hat, axis=1)
    assert found.step == 7
    assert found.recall == pytest.approx(recall, abs=2e-3)  # a near tie in single precision
    assert found.cosine == pytest.approx(cosine.mean(), abs=1e-5)


def test_rows_that_are_held_out_are_never_trained_on() -> None:
    x = mixture(100)
    source = as_row_source(x)
    rest, held = split(source, 30, seed=4)
    kept = rest.take(np.arange(len(rest)))
    assert len(rest) == 70
    everything = torch.cat((kept, held)).numpy()
    assert {row.tobytes() for row in everything} == {row.tobytes() for row in x}
    poisoned = x.copy()
    order = np.random.default_rng([0, 1]).permutation(100)
    poisoned[order[:30]] = mixture(30, seed=9) * 100
    models = []
    for rows in (x, poisoned):  # they differ in what is held out alone
        models.append(CompresSAE(16, 64, 4))
        train(models[-1], rows, steps=5, batch_size=32, held_out=30)
    assert same_bytes(*models)


def test_evaluations_come_when_they_are_due_and_change_nothing() -> None:
    x = mixture(300)
    config = TrainConfig(steps=7, batch_size=64, evaluate_every=3, ema_decay=0.5)
    judged, reference = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    history = train(judged, x[50:], config=config, held_out=x[:50])
    train(reference, x[50:], config=config)
    assert [evaluation.step for evaluation in history.evaluations] == [3, 6, 7]
    assert same_bytes(judged, reference)
    # what was judged last is what was left: the average, not the last step
    last = Evaluator.drawn(as_row_source(x[50:]), torch.from_numpy(x[:50]), 0)(judged, 7)
    assert last == history.evaluations[-1]


def test_training_stops_when_recall_stops_rising_and_leaves_the_best_weights() -> None:
    x = mixture(400)
    model = CompresSAE(16, 64, 4)
    best: dict[int, dict[str, Any]] = {}

    class Keep(Callback):
        def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
            best[evaluation.step] = weights(trainer.model)

    config = TrainConfig(steps=400, batch_size=200, lr=0.05, evaluate_every=5, patience=2)
    history = train(model, x, config=config, held_out=60, callbacks=[Keep()])
    recalls = [evaluation.recall for evaluation in history.evaluations]
    first = recalls.index(max(recalls))
    assert history.stopped_early
    assert not history.interrupted
    assert len(history) < 400
    assert len(recalls) == first + 3  # two without a better one
    left, wanted = weights(model), best[history.evaluations[first].step]
    assert all(torch.equal(left[name], wanted[name]) for name in left)
    assert "stopped early" in repr(history)
    assert History.from_json(history.to_json()).evaluations == history.evaluations
    assert History.from_json(history.to_json()).stopped_early


def test_an_early_stop_is_resumed_as_stopped(tmp_path: Path) -> None:
    x = mixture(400)
    config = TrainConfig(steps=400, batch_size=200, lr=0.05, evaluate_every=5, patience=2)
    model, again = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    history = train(model, x, config=config, held_out=60, checkpoints=tmp_path)
    resumed = train(again, x, config=config, held_out=60, checkpoints=tmp_path, resume=True)
    assert len(resumed) == len(history)
    assert resumed.stopped_early
    assert same_bytes(model, again)


def test_patience_without_held_out_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="patience needs held_out rows to judge by"):
        train(CompresSAE(16, 64, 4), mixture(50), config=TrainConfig(steps=2, patience=1))


class Recorder:
    """Listens without being a Callback, and not to everything."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.heard.append("start")

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.heard.append(f"step {metrics.step}")

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.heard.append(f"evaluation {evaluation.step}")


def test_callbacks_are_told_in_order_and_may_miss_methods() -> None:
    recorder = Recorder()
    config = TrainConfig(steps=3, batch_size=32, evaluate_every=2)
    trainer = Trainer(CompresSAE(16, 64, 4), config, callbacks=[recorder, Callback()])  # type: ignore[list-item]
    history = trainer.fit(mixture(80), held_out=30)
    assert recorder.heard == ["start", "step 1", "step 2", "evaluation 2", "step 3", "evaluation 3"]
    assert trainer.history is history


class Scalars:
    """A writer as TensorBoard's."""

    def __init__(self) -> None:
        self.written: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written.setdefault(tag, []).append((step, value))


def test_a_writer_is_given_every_figure() -> None:
    writer = Scalars()
    config = TrainConfig(steps=3, batch_size=32, evaluate_every=3, max_grad_norm=1.0)
    model = CompresSAE(16, 64, 4)
    history = train(
        model, mixture(80), config=config, held_out=30, callbacks=[ScalarWriter(writer)]
    )
    expected = {
        *(f"train/{name}" for name in ("loss", "cosine_k", "cosine_4k", "dead_latents")),
        *(f"train/{name}" for name in ("items_per_second", "lr", "grad_norm")),
        *("held_out/recall", "held_out/cosine"),
    }
    assert set(writer.written) == expected
    assert writer.written["train/loss"] == list(enumerate(history.loss.tolist(), 1))
    assert writer.written["held_out/recall"] == [(3, history.evaluations[0].recall)]
    train(model, mixture(80), steps=1, batch_size=32, callbacks=[ScalarWriter(other := Scalars())])
    assert "train/grad_norm" not in other.written  # it was not measured


def test_tensorboard_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="TensorBoard needs tensorboard, which is not installed"):
        TensorBoard("runs")


def test_what_a_callback_raises_ends_training_with_unit_atoms() -> None:
    class Stop(Callback):
        def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
            with torch.no_grad():
                trainer.model.decoder_weight.mul_(2)
            raise RuntimeError("enough")

    model = CompresSAE(16, 64, 4)
    with pytest.raises(RuntimeError, match="enough"):
        train(model, mixture(50), steps=3, callbacks=[Stop()])
    assert torch.allclose(model.decoder_weight.norm(dim=1), torch.ones(64))


def test_the_device_is_where_the_model_is_moved_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CompresSAE(16, 64, 4)
    train(model, mixture(50), steps=1, device="cpu")
    assert model.encoder_weight.device.type == "cpu"
    current = torch.device("cpu")
    assert local_device(None, current) == current
    assert local_device("cuda", current) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda", current) == torch.device("cuda", 3)
    assert local_device("cuda:1", current) == torch.device("cuda", 1)
    assert local_device("mps", current) == torch.device("mps")


@pytest.mark.parametrize("device", ["cuda", "cuda:9", "mps"])
def test_a_device_is_trained_on_or_is_said_to_be_absent(device: str) -> None:
    there = torch.backends.mps.is_available() if device == "mps" else torch.cuda.is_available()
    model = CompresSAE(16, 64, 4)
    if there and device != "cuda:9":
        train(model, mixture(50), steps=1, device=device)
        assert model.encoder_weight.device.type == device
        return
    before = weights(model)
    with pytest.raises(ValueError, match=rf"device is '{device}', but torch .* sees .* here"):
        train(model, mixture(50), steps=1, device=device)
    assert model.encoder_weight.device.type == "cpu"
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_a_world_of_one_answers_without_torch_distributed() -> None:
    world, values = World(), torch.arange(3)
    assert (world.rank, world.size, world.leads) == (0, 1, True)
    assert torch.equal(world.sum(values), values)
    assert torch.equal(world.max(values), values)
    assert torch.equal(world.gather(values), values)
    assert world.from_lead([0.1], torch.device("cpu")) == [0.1]
