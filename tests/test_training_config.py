"""Configurations and histories: what they refuse, and that JSON gives back what went in."""

import json
from typing import Any

import numpy as np
import pytest

from sparse_retrieval.training import CompresSAEConfig, History, StepMetrics, TrainConfig

BAD_MODELS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": -3}, ValueError, "k must be at least 1, got -3"),
    ({"k": 33}, ValueError, "k must be at most hidden_dim: got k = 33, hidden_dim = 32"),
    ({"k": 2.0}, TypeError, "k must be an integer, got 2.0"),
    ({"k": True}, TypeError, "k must be an integer, got True"),
    ({"input_dim": 0}, ValueError, "input_dim must be at least 1, got 0"),
    ({"input_dim": "8"}, TypeError, "input_dim must be an integer, got '8'"),
    ({"hidden_dim": 0}, ValueError, "hidden_dim must be at least 1, got 0"),
    ({"init": "orthogonal"}, ValueError, "init must be 'independent' or 'tied'"),
    ({"init": None}, ValueError, "init must be 'independent' or 'tied'"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
]

BAD_TRAININGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"batch_size": "all"}, TypeError, "batch_size must be an integer, got 'all'"),
    ({"lr": 0.0}, ValueError, "lr must be larger than 0, got 0"),
    ({"lr": -1.0}, ValueError, "lr must be larger than 0, got -1"),
    ({"lr": float("nan")}, ValueError, "lr must be finite, got nan"),
    ({"lr": float("inf")}, ValueError, "lr must be finite, got inf"),
    ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
    ({"lr": True}, TypeError, "lr must be a number, got True"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"wide_factor": 0}, ValueError, "wide_factor must be at least 1, got 0"),
    ({"wide_weight": -0.5}, ValueError, "wide_weight must not be negative, got -0.5"),
    ({"dead_after_items": 0}, ValueError, "dead_after_items must be at least 1, got 0"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
    ({"max_grad_norm": 0}, ValueError, "max_grad_norm must be larger than 0, got 0"),
    ({"ema_decay": 1.0}, ValueError, "ema_decay must be below 1, got 1"),
    ({"precision": "fp8"}, ValueError, "precision must be 'full' or 'bf16', got 'fp8'"),
    ({"shuffle": "no"}, ValueError, "shuffle must be 'auto', 'rows' or 'windows', got 'no'"),
    ({"selection": "all"}, ValueError, "selection must be 'row' or 'batch', got 'all'"),
    ({"revive": "pray"}, ValueError, "revive must be 'none', 'auxiliary' or 'resample', got"),
    ({"window_rows": 0}, ValueError, "window_rows must be at least 1, got 0"),
    ({"tangent": 1}, TypeError, "tangent must be True or False, got 1"),
    ({"nested_k": 8}, TypeError, "nested_k must list integers, got 8"),
    ({"nested_k": (8, 8)}, ValueError, "nested_k must increase, got [8, 8]"),
    ({"nested_k": (0, 8)}, ValueError, "nested_k must be at least 1, got 0"),
    ({"nested_k": (8,), "k_start": 9}, ValueError, "not with k_start or selection='batch'"),
    ({"nested_k": (8,), "selection": "batch"}, ValueError, "not with k_start or selection"),
    ({"k_start": 0}, ValueError, "k_start must be at least 1, got 0"),
    ({"ranking_temperature": 0}, ValueError, "ranking_temperature must be larger than 0, got 0"),
    ({"ranking_weight": -1}, ValueError, "ranking_weight must not be negative, got -1"),
    ({"ranking_start": 1.5}, ValueError, "ranking_start must be at most 1, got 1.5"),
    ({"mine_every": 0}, ValueError, "mine_every must be at least 1, got 0"),
    ({"hard_negatives": -1}, ValueError, "hard_negatives must be at least 0, got -1"),
    ({"patience": 0.5}, TypeError, "patience must be an integer, got 0.5"),
    (
        {"schedule": "stepped"},
        ValueError,
        "schedule must be 'cooldown', 'constant', 'linear' or 'cosine', got 'stepped'",
    ),
]


@pytest.mark.parametrize(("fields", "error", "message"), BAD_MODELS)
def test_model_configuration_refuses(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        CompresSAEConfig(**{"input_dim": 8, "hidden_dim": 32, "k": 4, **fields})
    assert message in str(caught.value)


@pytest.mark.parametrize(("fields", "error", "message"), BAD_TRAININGS)
def test_training_configuration_refuses(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        TrainConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        CompresSAEConfig(8),
        CompresSAEConfig(8, 32, 4, "tied", 7),
        TrainConfig(),
        TrainConfig(steps=3, lr=0.1, wide_weight=0.0, schedule="linear"),
        TrainConfig(nested_k=[8, 16], max_grad_norm=1.0, revive="resample"),  # type: ignore[arg-type]
    ],
)
def test_configurations_round_trip_through_json(config: CompresSAEConfig | TrainConfig) -> None:
    assert type(config).from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == config.to_dict()


def test_numpy_numbers_become_plain_ones() -> None:
    model = CompresSAEConfig(np.int64(8), np.int32(32), np.uint8(4))  # type: ignore[arg-type]
    training = TrainConfig(lr=np.float32(0.5), steps=np.int64(3))  # type: ignore[arg-type]
    assert CompresSAEConfig.from_json(model.to_json()) == CompresSAEConfig(8, 32, 4)
    assert TrainConfig.from_json(training.to_json()) == TrainConfig(lr=0.5, steps=3)


def test_configurations_refuse_unknown_and_missing_keys_by_name() -> None:
    with pytest.raises(ValueError, match="TrainConfig does not know 'epochs', 'warmup'; it knows"):
        TrainConfig.from_dict({"warmup": 3, "epochs": 1, "steps": 2})
    with pytest.raises(ValueError, match="CompresSAEConfig lacks 'input_dim'"):
        CompresSAEConfig.from_json("{}")
    with pytest.raises(TypeError, match="needs a dict of fields, got list"):
        TrainConfig.from_json("[]")


def history() -> History:
    steps = [
        StepMetrics(i, 1 / (3 * i), 0.1 * i, 0.2 * i, 0.0, 0.3 + i * 1e-9, 4096 / 0.3)
        for i in range(1, 6)
    ]
    return History.from_steps(steps, TrainConfig(steps=9, lr=0.1), interrupted=True)


def test_history_round_trips_through_json_to_the_bit() -> None:
    before = history()
    after = History.from_json(before.to_json())
    for name in ("loss", "cosine_k", "cosine_4k", "dead_latents", "seconds", "items_per_second"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == np.float64
    assert after.config == before.config
    assert after.interrupted is True
    assert len(after) == 5


def test_history_reads_well() -> None:
    assert repr(history()).startswith(
        "History(5 of 9 steps, interrupted, loss 0.3333 -> 0.0667, cosine_k 0.5000, dead 0.0%"
    )
    nothing = History.from_steps([], TrainConfig(steps=2), interrupted=True)
    assert repr(nothing) == "History(0 of 2 steps, interrupted)"


def test_history_refuses_other_json_and_series_of_unequal_length() -> None:
    fields = json.loads(history().to_json())
    del fields["loss"]
    fields["accuracy"] = []
    with pytest.raises(ValueError, match=r"missing \['loss'\], unknown \['accuracy'\]"):
        History.from_json(json.dumps(fields))
    fields = json.loads(history().to_json())
    fields["loss"].pop()
    with pytest.raises(ValueError, match="must have one length"):
        History.from_json(json.dumps(fields))
