"""Training: what it promises after every step, at the end, on Ctrl-C and for bad rows."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparse_retrieval
from sparse_retrieval.training import (
    CompresSAE,
    History,
    StepMetrics,
    TrainConfig,
    TrainingInterrupted,
    train,
)
from sparse_retrieval.training.data import ArraySource
from sparse_retrieval.training.sampling import shuffled_batches

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture(n: int, d: int = 16, parts: int = 40, active: int = 3, seed: int = 0) -> np.ndarray:
    """Rows that are sums of few signed directions: what a sparse code can learn."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(parts, d))
    chosen = rng.random((n, parts)).argsort(axis=1)[:, :active]
    weights = rng.uniform(0.5, 1.5, size=(n, active)) * rng.choice([-1, 1], size=(n, active))
    rows = (weights[:, :, None] * directions[chosen]).sum(axis=1)
    return rows.astype(np.float32)


def lengths(model: CompresSAE) -> Tensor:
    return torch.linalg.vector_norm(model.decoder_weight.detach().double(), dim=1)


def assert_unit(model: CompresSAE) -> None:
    # d = 16 squares, a root and a product in float32: a few units of 6e-8
    torch.testing.assert_close(lengths(model), torch.ones_like(lengths(model)), rtol=0, atol=5e-7)


def weights(model: CompresSAE) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("init", ["independent", "tied"])
def test_training_lowers_the_loss_and_raises_the_cosine_of_unseen_rows(init: Any) -> None:
    x = mixture(4000)
    seen, unseen = x[:3500], torch.from_numpy(x[3500:])
    model = CompresSAE(16, 64, 4, init=init)
    with torch.no_grad():
        before = torch.cosine_similarity(model(unseen), unseen).mean()
    history = train(model, seen, steps=150, batch_size=500, lr=0.01)
    with torch.no_grad():
        after = torch.cosine_similarity(model(unseen), unseen).mean()
    assert history.loss[-10:].mean() < 0.5 * history.loss[:3].mean()
    assert after > before + 0.1  # a tied start is at 0.78 already
    assert after > 0.85
    assert (history.cosine_4k[-10:] > history.cosine_k[-10:]).all()
    expected = (1 - history.cosine_k) + (1 - history.cosine_4k) / 8
    # three numbers of size 1, each rounded to float32
    np.testing.assert_allclose(history.loss, expected, rtol=0, atol=5e-7)


def test_training_on_real_embeddings_raises_the_cosine_of_unseen_ones() -> None:
    folder = Path(__file__).parents[1] / "examples" / "data"
    levels = np.load(folder / "embeddings_i8.npy")[:3000].astype(np.float32)
    x = levels * np.load(folder / "scales_f32.npy")[:3000].reshape(-1, 1)
    unseen = torch.from_numpy(x[2500:])
    model = CompresSAE(x.shape[1], 512, 16)
    with torch.no_grad():
        before = torch.cosine_similarity(model(unseen), unseen).mean()
    history = train(model, x[:2500], steps=30, batch_size=500)
    with torch.no_grad():
        after = torch.cosine_similarity(model(unseen), unseen).mean()
    assert after > before + 0.3
    assert history.cosine_k[-5:].mean() > history.cosine_k[:5].mean() + 0.2


def test_decoder_rows_are_of_unit_norm_after_every_step() -> None:
    model = CompresSAE(16, 64, 4)
    assert_unit(model)
    steps: list[int] = []

    def check(metrics: StepMetrics) -> None:
        assert_unit(model)
        steps.append(metrics.step)

    train(model, mixture(300), steps=12, batch_size=64, lr=0.1, on_step=check)
    assert steps == list(range(1, 13))


def test_same_seed_gives_the_same_weights_to_the_bit() -> None:
    x = mixture(500)
    torch.manual_seed(1)
    runs = []
    for _ in range(2):
        model = CompresSAE(16, 64, 4, seed=3)
        history = train(model, x, steps=8, batch_size=128, seed=5)
        runs.append((weights(model), history.loss))
        torch.rand(7)  # the global generator is elsewhere in the second run
        np.random.default_rng().random()
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("what", ["model", "order"])
def test_another_seed_gives_other_weights(what: str) -> None:
    x = mixture(500)
    results = []
    for seed in (0, 1):
        model = CompresSAE(16, 64, 4, seed=seed if what == "model" else 0)
        train(model, x, steps=3, batch_size=128, seed=seed if what == "order" else 0)
        results.append(model.decoder_weight.detach())
    assert not torch.equal(*results)


def test_training_leaves_the_global_generators_alone() -> None:
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(CompresSAE(16, 64, 4), mixture(100), steps=2, batch_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == np_state).all()  # noqa: NPY002


@pytest.mark.parametrize("kind", ["float16", "float64", "memmap", "tensor", "bfloat16", "strided"])
def test_every_kind_of_rows_trains(kind: str, tmp_path: Path) -> None:
    base = mixture(200).astype(np.float16)  # exact in every dtype but bfloat16
    if kind == "memmap":
        np.save(tmp_path / "x.npy", base)
    x: Any = {
        "float16": lambda: base,
        "float64": lambda: base.astype(np.float64),
        "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "tensor": lambda: torch.from_numpy(base),
        "bfloat16": lambda: torch.from_numpy(base).bfloat16(),
        "strided": lambda: np.repeat(base, 2, axis=1)[:, ::2],
    }[kind]()
    model, reference = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    train(model, x, steps=4, batch_size=64)
    train(reference, base.astype(np.float32), steps=4, batch_size=64)
    if kind == "bfloat16":  # 8 bits of mantissa in the rows, 4 steps of lr in the weights
        torch.testing.assert_close(
            model.decoder_weight, reference.decoder_weight, rtol=0, atol=0.05
        )
    else:
        assert torch.equal(model.decoder_weight, reference.decoder_weight)


def test_a_double_precision_model_trains_in_double_precision() -> None:
    model = CompresSAE(16, 64, 4).double()
    history = train(model, mixture(200), steps=20, batch_size=200)
    assert model.decoder_weight.dtype == torch.float64
    assert (lengths(model) - 1).abs().max() < 1e-14
    assert history.loss[-1] < history.loss[0]


def test_training_works_where_gradients_are_switched_off() -> None:
    model, reference = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    with torch.no_grad():
        train(model, mixture(100), steps=2, batch_size=32)
    train(reference, mixture(100), steps=2, batch_size=32)
    assert torch.equal(model.decoder_weight, reference.decoder_weight)


def test_zero_rows_do_not_train_and_use_no_latent() -> None:
    model = CompresSAE(16, 64, 4)
    before = weights(model)
    history = train(
        model,
        np.zeros((8, 16), np.float32),
        config=TrainConfig(steps=3, batch_size=8, dead_after_items=16),
    )
    np.testing.assert_array_equal(history.loss, 0)
    np.testing.assert_array_equal(history.dead_latents, [0, 1, 1])  # 8, 16, 24 items seen
    # the projection may move a unit row in its last place
    for a, b in zip(weights(model), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_rows_with_zeros_among_them_train_without_nan() -> None:
    x = mixture(200)
    x[::3] = 0
    model = CompresSAE(16, 64, 4)
    history = train(model, x, steps=20, batch_size=50)
    assert history.loss[-1] < history.loss[0]
    assert all(w.isfinite().all() for w in weights(model))


def test_dead_latents_are_those_that_no_row_used_in_the_window() -> None:
    model = CompresSAE(16, 64, 4)
    row = mixture(1)
    # at this rate the one row keeps its latents; they are 4 of 64
    history = train(
        model, row, config=TrainConfig(steps=4, batch_size=1, lr=1e-12, dead_after_items=2)
    )
    np.testing.assert_allclose(history.dead_latents, [0, 60 / 64, 60 / 64, 60 / 64])


def test_wide_term_is_capped_at_hidden_dim() -> None:
    model = CompresSAE(16, 10, 4)
    history = train(model, mixture(100), steps=2, batch_size=50)
    assert (history.cosine_4k > history.cosine_k).all()
    full = CompresSAE(16, 10, 10)
    history = train(full, mixture(100), steps=2, batch_size=50)
    np.testing.assert_array_equal(history.cosine_4k, history.cosine_k)


def test_batches_of_an_epoch_are_disjoint_and_ascending() -> None:
    batches = list(itertools.islice(shuffled_batches(10, 3, seed=0), 6))
    assert [len(b) for b in batches] == [3] * 6
    for epoch in (batches[:3], batches[3:]):
        assert len(set(np.concatenate(epoch).tolist())) == 9
    assert all((np.diff(b) > 0).all() for b in batches)
    assert set(np.concatenate(batches[:3])) != set(np.concatenate(batches[3:])) or not all(
        np.array_equal(a, b) for a, b in zip(batches[:3], batches[3:], strict=True)
    )


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    batches = shuffled_batches(5, 4096, seed=0)
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1, 2, 3, 4]] * 2
    history = train(CompresSAE(16, 64, 4), mixture(5), steps=2)
    np.testing.assert_allclose(history.items_per_second * history.seconds, 5)


def test_a_linear_schedule_lowers_the_rate_to_its_share_at_the_last_step() -> None:
    x = mixture(64)
    moved = []
    for schedule in ("constant", "linear"):
        model = CompresSAE(16, 64, 4)
        before: list[Tensor] = []
        after: list[Tensor] = []

        def keep(
            metrics: StepMetrics,
            model: CompresSAE = model,
            before: list[Tensor] = before,
            after: list[Tensor] = after,
        ) -> None:
            before[:], after[:] = after, [model.encoder_bias.detach().clone()]

        config = TrainConfig(steps=2, batch_size=64, lr=1e-4, schedule=schedule)  # type: ignore[arg-type]
        train(model, x, config=config, on_step=keep)
        moved.append((before[0], after[0] - before[0]))
    assert torch.equal(moved[0][0], moved[1][0])  # the first step is at the full rate
    # the second is at half of it, on the same gradient; a bias is 1e-4 large, its last place 1e-11
    torch.testing.assert_close(moved[1][1], moved[0][1] / 2, rtol=0, atol=5e-11)
    assert moved[0][1].abs().max() > 1e-5


def test_keywords_override_the_configuration() -> None:
    config = TrainConfig(steps=7, batch_size=32, lr=0.5, seed=3)
    history = train(CompresSAE(16, 64, 4), mixture(50), config=config, steps=2, lr=0.01)
    assert history.config == TrainConfig(steps=2, batch_size=32, lr=0.01, seed=3)
    assert len(history) == 2
    assert not history.interrupted


NAN_ROWS = mixture(20)
NAN_ROWS[13, 2] = np.nan
INF_ROWS = mixture(20)
INF_ROWS[[4, 9], 0] = -np.inf
HUGE_ROWS = mixture(20).astype(np.float64)
HUGE_ROWS[7, 1] = 1e300

BAD_ROWS: list[tuple[str, Any, type[Exception], str]] = [
    ("nan", NAN_ROWS, ValueError, "x holds NaN, inf or a number beyond float32 in row 13"),
    ("inf", INF_ROWS, ValueError, "x holds NaN, inf or a number beyond float32 in row 4"),
    ("beyond float32", HUGE_ROWS, ValueError, "in row 7; drop or repair"),
    ("nan tensor", torch.from_numpy(NAN_ROWS), ValueError, "in row 13"),
    ("width", mixture(5, d=15), ValueError, "x has 15 columns, this model takes 16"),
    ("1-D", np.zeros(16, np.float32), ValueError, "x must be two-dimensional (n, d), got shape"),
    ("3-D", np.zeros((2, 3, 16), np.float32), ValueError, "got shape (2, 3, 16)"),
    ("no rows", np.zeros((0, 16), np.float32), ValueError, "x is empty: shape (0, 16)"),
    ("no columns", np.zeros((3, 0), np.float32), ValueError, "x is empty: shape (3, 0)"),
    ("object", np.zeros((3, 16), object), TypeError, "got an array of object"),
    ("integers", np.zeros((3, 16), np.int64), TypeError, "got an array of int64"),
    ("complex", np.zeros((3, 16), np.complex64), TypeError, "got an array of complex64"),
    ("integer tensor", torch.zeros(3, 16, dtype=torch.int32), TypeError, "torch.int32"),
    ("sparse tensor", torch.eye(16).to_sparse(), TypeError, "must be dense"),
    ("list", [[0.0] * 16], TypeError, "x must be a numpy array, a memmap, a torch tensor"),
]


@pytest.mark.parametrize(
    ("x", "error", "message"), [row[1:] for row in BAD_ROWS], ids=[row[0] for row in BAD_ROWS]
)
def test_training_refuses_rows(x: Any, error: type[Exception], message: str) -> None:
    model = CompresSAE(16, 64, 4)
    with pytest.raises(error) as caught:
        train(model, x, steps=2)
    assert message in str(caught.value)
    assert_unit(model)
    assert all(w.isfinite().all() for w in weights(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"lr": 0.0}, ValueError, "lr must be larger than 0"),
        ({"config": {"steps": 3}}, TypeError, "config must be a TrainConfig, got dict"),
    ],
)
def test_training_refuses_options(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(CompresSAE(16, 64, 4), mixture(20), **options)


def test_training_refuses_another_model() -> None:
    with pytest.raises(TypeError, match="model must be a CompresSAE, got Linear"):
        train(torch.nn.Linear(16, 4), mixture(20))  # type: ignore[arg-type]


def test_huge_but_finite_rows_are_not_refused() -> None:
    x = mixture(20) * np.float32(1e37)  # their sum overflows float32, no entry does
    history = train(CompresSAE(16, 64, 4), x, steps=2, batch_size=20)
    assert np.isfinite(history.loss).all()


def test_a_loss_that_is_not_finite_stops_training_before_the_step() -> None:
    model = CompresSAE(16, 64, 4)
    with torch.no_grad():
        model.encoder_bias[3] = float("inf")
    before = model.encoder_weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 with lr = 0\.25"):
        train(model, mixture(20), steps=2, lr=0.25)
    assert torch.equal(model.encoder_weight, before)


def test_one_ctrl_c_finishes_the_step_and_returns_the_history() -> None:
    model = CompresSAE(16, 64, 4)

    def press(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(TrainingInterrupted, match="interrupted after step 3 of 50; the model is us"):
        history = train(model, mixture(100), steps=50, batch_size=32, on_step=press)
    assert history.interrupted
    assert len(history) == 3
    assert_unit(model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    same = CompresSAE(16, 64, 4)
    train(same, mixture(100), steps=3, batch_size=32)
    assert torch.equal(model.decoder_weight, same.decoder_weight)


def test_ctrl_c_during_the_last_step_is_no_interruption() -> None:
    def press(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            signal.raise_signal(signal.SIGINT)

    history = train(CompresSAE(16, 64, 4), mixture(100), steps=3, batch_size=32, on_step=press)
    assert not history.interrupted


def test_a_second_ctrl_c_raises_at_once_and_leaves_unit_rows() -> None:
    model = CompresSAE(16, 64, 4)

    def press_twice(metrics: StepMetrics) -> None:
        with torch.no_grad():
            model.decoder_weight.mul_(2)  # as if in the middle of a step
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(model, mixture(100), steps=50, batch_size=32, on_step=press_twice)
    assert_unit(model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_application_is_left_in_place() -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        history = train(
            CompresSAE(16, 64, 4),
            mixture(100),
            steps=3,
            batch_size=32,
            on_step=lambda metrics: signal.raise_signal(signal.SIGINT),
        )
    finally:
        signal.signal(signal.SIGINT, old)
    assert len(seen) == len(history) == 3


def test_training_runs_in_a_thread_that_is_not_the_main_one() -> None:
    histories: list[History] = []
    thread = threading.Thread(
        target=lambda: histories.append(
            train(CompresSAE(16, 64, 4), mixture(100), steps=2, batch_size=32)
        )
    )
    thread.start()
    thread.join()
    assert len(histories[0]) == 2


CHILD = """
    import sys, warnings
    import numpy as np
    import torch
    from sparse_retrieval.training import CompresSAE, train
    torch.set_num_threads(1)
    x = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    model = CompresSAE(64, 512, 8)
    def tell(metrics):
        print(metrics.step, flush=True)
    history = train(model, x, steps=1_000_000, batch_size=512, on_step=tell)
    model.save_pretrained(sys.argv[1])
    print("history", history.to_json())
"""


def test_sigint_to_a_real_process_leaves_a_model_that_can_be_saved(tmp_path: Path) -> None:
    package = str(Path(sparse_retrieval.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "model")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert child.stdout is not None
        while (line := child.stdout.readline()) not in ("5\n", ""):
            pass
        assert line == "5\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, err
    assert "TrainingInterrupted: training was interrupted after step" in err
    text = next(line for line in out.splitlines() if line.startswith("history "))
    history = History.from_json(text.removeprefix("history "))
    assert history.interrupted
    assert 5 <= len(history) < 1000
    model = CompresSAE.from_pretrained(tmp_path / "model")
    assert_unit(model)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["config"]["k"] == 8


def test_progress_is_quiet_unless_asked_for_or_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = mixture(50)
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32)
    assert capsys.readouterr() == ("", "")
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "loss " in err
    assert " items/s" in err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32)
    assert "2/2" in capsys.readouterr().err
    train(CompresSAE(16, 64, 4), x, steps=2, batch_size=32, progress=False)
    assert capsys.readouterr().err == ""


def test_rows_from_another_source_train_as_the_array_does() -> None:
    class Doubled:
        """Any object with dim, len and take is a source."""

        def __init__(self, x: np.ndarray) -> None:
            self.inner = ArraySource(x / 2)
            self.dim = self.inner.dim

        def __len__(self) -> int:
            return len(self.inner)

        def take(self, rows: np.ndarray) -> Tensor:
            return self.inner.take(rows) * 2

    x = mixture(100)
    model, reference = CompresSAE(16, 64, 4), CompresSAE(16, 64, 4)
    train(model, Doubled(x), steps=3, batch_size=32)
    train(reference, x, steps=3, batch_size=32)
    assert torch.equal(model.decoder_weight, reference.decoder_weight)
