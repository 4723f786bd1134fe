"""Refining a model: better atoms for pursuit, an encoder that keeps up, and no half-made state."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import sparse_retrieval as sr
from sparse_retrieval.training import (
    ArraySource,
    CompresSAE,
    Refinement,
    TrainingInterrupted,
    refine,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def real() -> npt.NDArray[np.float32]:
    folder = Path(__file__).parents[1] / "examples" / "data"
    levels = np.load(folder / "embeddings_i8.npy")[:5000].astype(np.float32)
    return levels * np.load(folder / "scales_f32.npy")[:5000].reshape(-1, 1)


def rows(n: int = 300, d: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def small(**options: Any) -> CompresSAE:
    return CompresSAE(16, 48, 4, **options)


def weights(model: CompresSAE) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(model: CompresSAE, expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))


def assert_unit(model: CompresSAE, atol: float = 5e-7) -> None:
    # squares, a root and a product in float32: a few units of 6e-8
    lengths = torch.linalg.vector_norm(model.decoder_weight.detach().double(), dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=atol)


def cosines(x: npt.NDArray[np.float32], x_hat: npt.NDArray[np.float32]) -> Any:
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
    return (x.astype(np.float64) * x_hat).sum(axis=1) / lengths


def amortised(model: CompresSAE, x: npt.NDArray[np.float32]) -> Any:
    with torch.no_grad():
        return cosines(x, model(torch.from_numpy(x)).numpy())


def pursued(model: CompresSAE, x: npt.NDArray[np.float32]) -> Any:
    dictionary = model.dictionary()
    return cosines(x, dictionary.decode(dictionary.encode(x, k=model.config.k)))


def test_refining_helps_pursuit_on_unseen_rows_and_the_encoder_keeps_up() -> None:
    x = real()
    seen, unseen = x[:4500], x[4500:]
    model = CompresSAE(x.shape[1], 256, 16, init="tied")
    train(model, seen, steps=60, batch_size=500)
    before = amortised(model, unseen), pursued(model, unseen)
    report = model.refine(seen, rounds=3, batch_size=500)
    after = amortised(model, unseen), pursued(model, unseen)
    assert_unit(model)
    assert report.rounds[-1].cosine > report.rounds[0].cosine
    assert after[1].mean() > before[1].mean() + 0.005
    # Other atoms change every row's cosine: what the change of their mean may owe to the choice
    # of unseen rows is three standard errors of the differences.
    change = after[0] - before[0]
    assert change.mean() > -3 * change.std() / np.sqrt(len(change))


def test_the_decoder_is_the_refined_dictionary_and_the_encoder_is_fitted_to_it() -> None:
    model, x = small(), rows()
    expected = model.dictionary().refine(x, rounds=2, k=4)
    report = refine(model, x, rounds=2, encoder_steps=7, batch_size=50)
    assert isinstance(report, Refinement)
    # projected once more in float32: a unit in the last place of numbers below 1
    np.testing.assert_allclose(model.dictionary().atoms, expected.atoms, rtol=0, atol=1.2e-7)
    assert [r.cosine for r in report.rounds] == [r.cosine for r in expected.history]
    assert len(report.encoder) == 7
    assert not report.encoder.interrupted
    reference = small()
    with torch.no_grad():
        reference.decoder_weight.copy_(model.decoder_weight)
    reference.decoder_weight.requires_grad_(False)
    train(reference, x, config=report.encoder.config)
    assert_same(model, weights(reference))


def test_no_rounds_refit_the_encoder_alone() -> None:
    model, x = small(), rows()
    atoms = model.decoder_weight.detach().clone()
    before = amortised(model, x).mean()
    report = model.refine(x, rounds=0, encoder_steps=30, lr=0.01)
    assert report.rounds == ()
    assert "0 rounds" in repr(report)
    assert torch.equal(model.decoder_weight, atoms)
    assert amortised(model, x).mean() > before + 0.1


def test_same_seed_gives_the_same_weights_to_the_bit_for_any_number_of_threads() -> None:
    results = []
    for threads in (1, 2, None):
        model = small()
        model.refine(rows(), rounds=2, encoder_steps=5, batch_size=64, seed=3, threads=threads)
        results.append(weights(model))
        torch.rand(7)  # the global generator is elsewhere in the next run
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    another = small()
    another.refine(rows(), rounds=2, encoder_steps=5, batch_size=64, seed=4)
    assert not torch.equal(another.encoder_weight, results[0][0])


@pytest.mark.parametrize("kind", ["float16", "memmap", "tensor", "source"])
def test_every_kind_of_rows_is_taken(kind: str, tmp_path: Path) -> None:
    base = rows().astype(np.float16)
    np.save(tmp_path / "x.npy", base)
    x: Any = {
        "float16": lambda: base,
        "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "tensor": lambda: torch.from_numpy(base),
        "source": lambda: ArraySource(base),
    }[kind]()
    model, reference = small(), small()
    model.refine(x, rounds=1, encoder_steps=2, batch_size=64)
    reference.refine(base.astype(np.float32), rounds=1, encoder_steps=2, batch_size=64)
    assert_same(model, weights(reference))


def test_a_double_precision_model_has_unit_rows_in_double_precision() -> None:
    model = small().double()
    model.refine(rows(), rounds=1, encoder_steps=2)
    assert_unit(model, atol=1e-14)


def test_zero_rows_teach_nothing() -> None:
    x = rows()
    padded = np.concatenate([x, np.zeros((40, 16), np.float32)])
    model, reference = small(), small()
    report = model.refine(padded, rounds=1, encoder_steps=1)
    expected = reference.refine(x, rounds=1, encoder_steps=1)
    # the sums run over other blocks of rows
    torch.testing.assert_close(model.decoder_weight, reference.decoder_weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(report.encoder.loss, expected.encoder.loss, rtol=0, atol=1e-5)


def test_fewer_rows_than_atoms_are_enough() -> None:
    model = small()
    model.refine(rows(5), rounds=2, encoder_steps=2)
    assert_unit(model)
    assert all(w.isfinite().all() for w in weights(model))


NAN_ROWS = rows()
NAN_ROWS[217, 3] = np.nan


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (NAN_ROWS, {}, ValueError, "x holds NaN, inf or a number beyond float32 in row 217"),
        (NAN_ROWS, {"rounds": 0}, ValueError, "in row 217"),
        (rows(d=15), {}, ValueError, "x has 15 columns, this model takes 16"),
        (rows()[0], {}, ValueError, r"two-dimensional \(n, d\), got shape \(16,\)"),
        ([[0.0] * 16], {}, TypeError, "x must be a numpy array"),
        (rows(), {"rounds": -1}, ValueError, "rounds must be at least 0"),
        (rows(), {"rounds": 1.5}, TypeError, r"rounds must be an integer, got 1\.5"),
        (rows(), {"encoder_steps": 0}, ValueError, "steps must be at least 1"),
        (rows(), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (rows(), {"lr": -1.0}, ValueError, "lr must be larger than 0"),
        (rows(), {"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_refining_refuses_what_it_cannot_use_and_leaves_the_model(
    x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = small()
    before = weights(model)
    with pytest.raises(error, match=message):
        model.refine(x, **{"batch_size": 300, **options})
    assert_same(model, before)
    assert all(p.requires_grad for p in model.parameters())


def test_refining_refuses_another_model() -> None:
    with pytest.raises(TypeError, match="model must be a CompresSAE, got Linear"):
        refine(torch.nn.Linear(16, 4), rows())  # type: ignore[arg-type]


class Pressing(ArraySource):
    """Rows during whose fetching Ctrl-C is pressed once, when `when` says so."""

    def __init__(self, x: npt.NDArray[np.float32], when: Callable[[int, int], bool]) -> None:
        super().__init__(x)
        self.calls, self.when = 0, when

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        self.calls += 1
        if self.when(self.calls, len(rows)):
            self.when = lambda calls, n: False
            signal.raise_signal(signal.SIGINT)
        return super().take(rows)


def test_ctrl_c_while_the_decoder_is_polished_leaves_the_model_as_it_was() -> None:
    model = small()
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        model.refine(Pressing(rows(), lambda calls, n: calls == 2), rounds=3)
    assert_same(model, before)
    assert all(p.requires_grad for p in model.parameters())


def test_ctrl_c_while_the_encoder_is_fitted_leaves_a_polished_usable_model() -> None:
    x = rows()
    model = small()
    source = Pressing(x, lambda calls, n: n == 32)  # a batch of the encoder's
    with pytest.warns(TrainingInterrupted, match="interrupted after step 1 of 50"):
        report = model.refine(source, rounds=2, encoder_steps=50, batch_size=32)
    assert report.encoder.interrupted
    assert len(report.rounds) == 2
    assert_unit(model)
    assert all(p.requires_grad for p in model.parameters())
    same = small()
    same.refine(x, rounds=2, encoder_steps=1, batch_size=32)
    assert_same(model, weights(same))
    assert len(model.sparse_codes(x)) == len(x)


def test_what_was_held_still_is_so_afterwards() -> None:
    model = small()
    model.encoder_bias.requires_grad_(False)
    model.refine(rows(), rounds=1, encoder_steps=2)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True]
    assert model.encoder_bias.abs().max() > 0  # it is a part of the encoder all the same


def test_training_holds_still_what_needs_no_gradient() -> None:
    model = small()
    model.decoder_weight.requires_grad_(False)
    with torch.no_grad():
        model.decoder_weight.mul_(1 + 2e-7)  # another projection would change the bits
    atoms, encoder = model.decoder_weight.clone(), model.encoder_weight.detach().clone()
    train(model, rows(), steps=3, batch_size=64)
    assert torch.equal(model.decoder_weight, atoms)
    assert not torch.equal(model.encoder_weight, encoder)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model has requires_grad"):
        train(model, rows(), steps=3)


def test_bars_are_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    small().refine(rows(), rounds=2, encoder_steps=2, progress=True)
    shown = capfd.readouterr().err
    assert "600/600" in shown  # rows of both rounds
    assert "2/2" in shown
    small().refine(rows(), rounds=1, encoder_steps=2, progress=False)
    assert capfd.readouterr().err == ""


def test_a_dictionary_is_made_from_a_model() -> None:
    model = small()
    dictionary = sr.Dictionary.from_model(model)
    np.testing.assert_array_equal(dictionary.atoms, model.decoder_weight.detach().numpy())
    with torch.no_grad():
        model.decoder_weight.zero_()
    assert np.abs(dictionary.atoms).max() > 0  # a copy
    for wrong in (torch.nn.Linear(2, 2), CompresSAE, np.eye(3), None):
        with pytest.raises(TypeError, match="expected a CompresSAE"):
            sr.Dictionary.from_model(wrong)
