"""Training with the libraries around it: data sets of Hugging Face, event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparse_retrieval.training import CompresSAE, TensorBoard, TrainConfig, as_row_source, train
from training_data import assert_trains_alike, mixture, same_bytes

X = mixture(150).astype(np.float16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def lists(_: Path) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": ["a"] * len(X), "e": X.astype(float).tolist()})


def fixed(_: Path) -> datasets.Dataset:
    kind = datasets.Features(
        {"text": datasets.Value("string"), "e": datasets.List(datasets.Value("float32"), length=16)}
    )
    rows = {"text": ["a"] * len(X), "e": X.astype(np.float32).tolist()}
    return datasets.Dataset.from_dict(rows, features=kind)


def on_disk(folder: Path) -> datasets.Dataset:
    fixed(folder).save_to_disk(folder / "set", max_shard_size="4KB")
    opened = datasets.load_from_disk(folder / "set")
    assert len(opened.cache_files) > 1, "it is mapped from several files"
    return opened


def chosen_rows(folder: Path) -> datasets.Dataset:
    backwards = datasets.Dataset.from_dict({"e": X[::-1].astype(float).tolist()})
    return backwards.select(range(len(X) - 1, -1, -1))  # an order over the table


KINDS: dict[str, Callable[[Path], Any]] = {
    "lists": lists,
    "lists of one length": fixed,
    "on disk": on_disk,
    "rows chosen by an order": chosen_rows,
    "as torch tensors": lambda folder: fixed(folder).with_format("torch"),
    "as arrays": lambda folder: fixed(folder).with_format("numpy"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_of_hugging_face_trains_as_the_array_does(tmp_path: Path, kind: str) -> None:
    assert_trains_alike(KINDS[kind](tmp_path), X, TrainConfig(steps=6, batch_size=64))


def test_an_iterable_data_set_of_hugging_face_is_trained_on_as_a_stream() -> None:
    stream = fixed(Path()).to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=20)
    model, again = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    history = train(model, stream, steps=9, batch_size=50)
    assert history.loss[-1] < history.loss[0]
    train(again, stream, steps=9, batch_size=50)
    assert same_bytes(model, again)


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"a": X.tolist(), "b": X.tolist()}, None, "x has 2 columns of lists of numbers"),
        ({"a": X.tolist()}, "z", "x has no column 'z'; it has a"),
        ({"a": [X[0].tolist(), X[1, :9].tolist()]}, None, "rows differ in length"),
    ],
)
def test_a_data_set_without_one_column_of_rows_is_refused(
    columns: dict[str, Any], column: str | None, message: str
) -> None:
    source = datasets.Dataset.from_dict(columns)
    with pytest.raises(ValueError, match=message):
        as_row_source(source, column).take(np.arange(2))


def test_tensorboard_shows_every_step_and_evaluation(tmp_path: Path) -> None:
    model = CompresSAE(16, 64, 4)
    config = TrainConfig(steps=6, batch_size=32, max_grad_norm=1.0, evaluate_every=2)
    logs = TensorBoard(tmp_path / "logs")
    history = train(model, mixture(120), config=config, held_out=20, callbacks=[logs])
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    shown = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert set(shown) == {
        *(f"train/{name}" for name in ("loss", "cosine_k", "cosine_4k", "dead_latents", "lr")),
        *("train/items_per_second", "train/grad_norm", "held_out/recall", "held_out/cosine"),
    }
    assert [event.step for event in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([e.value for e in shown["train/loss"]], history.loss, rtol=1e-6)
    recalls = [(event.step, event.value) for event in shown["held_out/recall"]]
    assert [step for step, _ in recalls] == [2, 4, 6]
    expected = [evaluation.recall for evaluation in history.evaluations]
    np.testing.assert_allclose([value for _, value in recalls], expected, rtol=1e-6)
