"""Every option of the objective against a dense formulation, value and gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_retrieval.training import CompresSAE, TrainConfig, ranking_loss, train
from sparse_retrieval.training.distributed import World
from sparse_retrieval.training.loop import Loop
from sparse_retrieval.training.objective import Objective
from training_data import lengths, mixture, same_bytes, weights

D, S, K, N = 16, 64, 4, 30


pytestmark = pytest.mark.usefixtures("one_thread")


def largest(e: Tensor, k: int) -> Tensor:
    """The k entries of each row with largest magnitude, the others 0."""
    kept = torch.zeros_like(e)
    for i, magnitudes in enumerate(e.detach().abs().tolist()):
        for j in sorted(range(e.shape[1]), key=lambda j, row=magnitudes: -row[j])[:k]:
            kept[i, j] = 1.0
    return e * kept


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Over rows of a that are not zero; a zero row of b counts with 0."""
    total, rows = torch.zeros((), dtype=a.dtype), 0
    for x, y in zip(a, b, strict=True):
        if x.any():
            rows += 1
            if y.any():
                total = total + x @ y / (x.norm() * y.norm())
    return total / rows


def oracle(model: CompresSAE, x: Tensor, config: TrainConfig, step: int, dead: Tensor) -> Tensor:
    """The objective over dense (n, s) codes."""
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
    E, b, W = model.encoder_weight, model.encoder_bias, model.decoder_weight
    e = (x @ E.T + b) * x.any(dim=1, keepdim=True)
    k = config.k_at(step, K)
    wide = largest(e, max(min(4 * K, S), k))
    if config.selection == "batch":
        threshold = wide.abs().flatten().sort(descending=True).values[int(x.any(1).sum()) * k - 1]
        main = wide * (wide.abs() >= threshold)
    else:
        main = largest(e, k)
    ks = config.nested_k or (k,)
    if config.nested_k:
        wide = largest(e, max(4 * K, *ks))
    terms = [1 - mean_cosine(x, (largest(e, j) if config.nested_k else main) @ W) for j in ks]
    loss = sum(terms) / len(terms) + config.wide_weight * (1 - mean_cosine(x, wide @ W))
    if config.revive == "auxiliary":
        v = (main @ W).detach()
        v = v / v.norm(dim=1, keepdim=True).clamp(min=1e-300)
        left_over = x - (x * v).sum(dim=1, keepdim=True) * v
        guess = largest(e * dead, config.aux_k) @ W
        loss = loss + config.aux_weight * (1 - mean_cosine(left_over, guess))
    return loss


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 1),
    "batch": ({"selection": "batch"}, 1),
    "nested": ({"nested_k": (2, 4, 7)}, 1),
    "nested without k": ({"nested_k": (2, 7)}, 1),
    "nested beyond the wide term": ({"nested_k": (4, 40)}, 1),
    "annealed, first step": ({"k_start": 12, "steps": 10}, 1),
    "annealed, on the way": ({"k_start": 12, "steps": 10}, 3),
    "annealed, from above the wide term": ({"k_start": 40, "steps": 10}, 1),
    "annealed, arrived": ({"k_start": 12, "steps": 10}, 8),
    "auxiliary": ({"revive": "auxiliary", "aux_k": 5}, 1),
    "no second term": ({"wide_factor": 4, "wide_weight": 0.0}, 1),
}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_the_dense_formulation(case: str, zeros: bool) -> None:
    options, step = CASES[case]
    config = TrainConfig(**options)
    model = CompresSAE(D, S, K).double()
    with torch.no_grad():
        model.encoder_bias.copy_(torch.linspace(-0.05, 0.05, S))
    x = torch.from_numpy(mixture(N)).double()
    if zeros:
        x[[0, 7]] = 0
    dead = torch.arange(S) % 3 == 0
    terms = Objective(model, config, World())(x, step, dead)
    terms.loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = oracle(model, x, config, step, dead)
    expected.backward()
    torch.testing.assert_close(terms.value, expected.detach(), rtol=1e-12, atol=0)
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-13)


def kl(unit: Tensor, x_hat: Tensor, anchors: list[int], temperature: float) -> Tensor:
    total = torch.zeros((), dtype=unit.dtype)
    for a in anchors:
        others = [i for i in range(len(unit)) if i != a]
        wanted = torch.stack([unit[a] @ unit[i] / temperature for i in others]).softmax(0)
        got = [unit[a] @ x_hat[i] / x_hat[i].norm() / temperature for i in others]
        total = total + (wanted * (wanted.log() - torch.stack(got).log_softmax(0))).sum()
    return total / len(anchors)


def test_ranking_loss_is_the_mean_divergence_over_anchors() -> None:
    rng = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64, generator=rng))
    x_hat = torch.randn(9, 5, dtype=torch.float64, generator=rng, requires_grad=True)
    anchors = [0, 4, 8]
    found = ranking_loss(unit, x_hat, torch.tensor(anchors), temperature=0.3)
    (ours,) = torch.autograd.grad(found, x_hat)
    expected = kl(unit, x_hat, anchors, 0.3)
    (theirs,) = torch.autograd.grad(expected, x_hat)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    # the same order, at any length: nothing to lose
    same = ranking_loss(unit, unit * torch.arange(1, 10)[:, None], torch.arange(9))
    assert abs(float(same)) < 1e-12


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_ranking_loss_is_finite_where_there_is_little_to_order(rows: int) -> None:
    unit = torch.nn.functional.normalize(torch.ones(rows, 4))
    x_hat = torch.zeros(rows, 4, requires_grad=True)
    loss = ranking_loss(unit, x_hat, torch.arange(rows))
    loss.backward()
    assert torch.isfinite(loss)
    assert x_hat.grad is not None
    assert torch.isfinite(x_hat.grad).all()


def test_the_ranking_term_is_added_to_the_objective() -> None:
    x = torch.from_numpy(mixture(N)).double()
    model = CompresSAE(D, S, K).double()
    none = torch.zeros(S, dtype=torch.bool)
    plain = Objective(model, TrainConfig(), World())(x, 1, none)
    config = TrainConfig(
        steps=9,
        ranking_weight=2.0,
        ranking_anchors=N,
        ranking_temperature=0.2,
        ranking_start=1 / 3,
    )
    ranked = Objective(model, config, World())(x, 4, none)
    expected = 2 * kl(plain.unit, plain.x_hat, list(range(N)), 0.2)
    torch.testing.assert_close(ranked.value - plain.value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close((ranked.loss - plain.loss).detach(), expected, rtol=1e-9, atol=0)
    before = Objective(model, config, World())(x, 3, none)
    assert torch.equal(before.value, plain.value), "it sets in after a third of nine steps"


def test_training_on_ranking_lowers_it() -> None:
    x = mixture(400)
    unit = torch.nn.functional.normalize(torch.from_numpy(x))
    left = {}
    for weight in (0.0, 0.1):
        model = CompresSAE(D, S, K)
        config = TrainConfig(steps=200, batch_size=200, schedule="linear", ranking_weight=weight)
        train(model, x, config=config)
        with torch.no_grad():
            left[weight] = float(ranking_loss(unit, model(unit), torch.arange(100)))
    assert left[0.1] < 0.95 * left[0.0]


def test_the_product_in_bfloat16_stays_near_single_precision() -> None:
    x = mixture(1000)
    losses, models = {}, {}
    for precision in ("full", "bf16"):
        models[precision] = CompresSAE(D, S, K)
        config = TrainConfig(steps=60, batch_size=250, precision=precision)  # type: ignore[arg-type]
        losses[precision] = train(models[precision], x, config=config).loss
    # The values of codes carry 8 bits: a relative error of 2^-9 each, so cosines are off by about
    # its square, and a different latent is chosen now and then. Early steps agree best.
    np.testing.assert_allclose(losses["bf16"][:3], losses["full"][:3], rtol=5e-3)
    np.testing.assert_allclose(losses["bf16"][-10:].mean(), losses["full"][-10:].mean(), rtol=0.05)
    assert not np.array_equal(losses["bf16"], losses["full"])
    assert all(p.dtype == torch.float32 for p in models["bf16"].parameters())
    assert (lengths(models["bf16"]) - 1).abs().max() < 5e-7


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, from its tracing
def test_a_compiled_loss_gives_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # traced and differentiated as always, but not handed to a C++ compiler, which may be absent
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
    x = mixture(200)
    losses = []
    for compiled in (False, True):
        config = TrainConfig(steps=3, batch_size=64, compile=compiled)
        losses.append(train(CompresSAE(D, S, K).double(), x, config=config).loss)
    np.testing.assert_allclose(*losses, rtol=1e-9)


def gradient_step(**options: Any) -> tuple[CompresSAE, Loop]:
    model = CompresSAE(D, S, K).double()
    model.normalize_decoder()  # it was drawn in single precision
    loop = Loop(model, TrainConfig(**options))
    loop.step(torch.from_numpy(mixture(N)), 1, 0.0)
    return model, loop


def test_the_tangent_gradient_is_orthogonal_to_the_atoms() -> None:
    before = CompresSAE(D, S, K).double()
    before.normalize_decoder()
    along = {}
    for tangent in (False, True):
        model, _ = gradient_step(tangent=tangent)
        assert model.decoder_weight.grad is not None
        along[tangent] = (model.decoder_weight.grad * before.decoder_weight).sum(dim=1).abs().max()
    assert along[True] < 1e-15
    assert along[False] > 1e-6


def test_gradients_are_clipped_together_and_their_length_is_told() -> None:
    model, _ = gradient_step()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    model, loop = gradient_step(max_grad_norm=1e-3)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(clipped, whole * (1e-3 / whole.norm()), rtol=1e-4, atol=1e-15)
    metrics = loop.step(torch.from_numpy(mixture(N, seed=1)), 2, 0.0)
    assert metrics.grad_norm > 0
    assert np.isnan(Loop(model, TrainConfig()).step(torch.ones(2, D), 1, 0.0).grad_norm)


def test_averages_of_weights_are_what_is_left_behind() -> None:
    x = mixture(100)
    model = CompresSAE(D, S, K).double()
    seen = [weights(model)]
    config = TrainConfig(steps=4, batch_size=32, ema_decay=0.75)
    train(model, x, config=config, on_step=lambda metrics: seen.append(weights(model)))
    for name, left in weights(model).items():
        average = seen[0][name]
        for step in seen[1:]:
            average = 0.75 * average + 0.25 * step[name]
        if name == "decoder_weight":
            average = average / average.norm(dim=1, keepdim=True)
        torch.testing.assert_close(left, average, rtol=1e-12, atol=1e-14)
    # averaging changes what is left, not the way there
    plain = CompresSAE(D, S, K).double()
    train(plain, x, config=TrainConfig(steps=4, batch_size=32))
    assert torch.equal(plain.decoder_weight, seen[-1]["decoder_weight"])


def test_schedules_have_the_rates_that_are_documented() -> None:
    linear = TrainConfig(steps=10, lr=1.0, schedule="linear")
    assert [linear.lr_at(step) for step in (1, 10)] == pytest.approx([1.0, 0.1])
    cosine = TrainConfig(steps=14, lr=1.0, schedule="cosine", warmup_steps=4)
    rates = [cosine.lr_at(step) for step in range(1, 15)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[9] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.1)
    cooldown = TrainConfig(steps=22, lr=1.0, schedule="cooldown", warmup_steps=2)
    rates = [cooldown.lr_at(step) for step in range(1, 23)]
    assert rates[:2] == pytest.approx([0.5, 1.0])
    assert set(rates[2:18]) == {1.0}
    assert rates[18:] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    told: list[float] = []
    config = TrainConfig(steps=3, batch_size=8, warmup_steps=2, lr=0.4)
    train(CompresSAE(D, S, K), mixture(8), config=config, on_step=lambda m: told.append(m.lr))
    assert told == pytest.approx([0.2, 0.4, 0.4])


def test_k_falls_evenly_to_the_models_own() -> None:
    config = TrainConfig(steps=20, k_start=128)
    ks = [config.k_at(step, 32) for step in range(1, 21)]
    assert ks[0] == 128
    assert ks[5] == 80
    assert set(ks[10:]) == {32}
    assert TrainConfig(k_start=8, anneal_steps=2).k_at(2, 4) == 6
    assert TrainConfig().k_at(1, 4) == 4


@pytest.mark.parametrize("revive", ["none", "resample", "auxiliary"])
def test_dead_latents_come_back(revive: Any) -> None:
    x = mixture(2000)
    model = CompresSAE(D, S, K)
    with torch.no_grad():
        model.encoder_weight[:32] = 0  # half of the latents never fire
    config = TrainConfig(
        steps=120,
        batch_size=200,
        wide_factor=1,
        wide_weight=0.0,
        dead_after_items=1000,
        revive=revive,
        resample_every=10,
        aux_k=8,
    )
    dead = train(model, x, config=config).dead_latents
    assert dead[8] >= 0.5
    assert (dead[-1] >= 0.5) == (revive == "none")
    assert (lengths(model) - 1).abs().max() < 5e-7


def test_resampled_latents_point_where_the_worst_rows_are_not_reconstructed() -> None:
    model = CompresSAE(D, S, K)
    # a rate too low to move anything, and every latent dead that the rows do not use
    config = TrainConfig(
        steps=10, lr=1e-12, revive="resample", resample_every=2, dead_after_items=1
    )
    loop, x = Loop(model, config), torch.from_numpy(mixture(3))
    unit = torch.nn.functional.normalize(x)
    with torch.no_grad():
        x_hat = torch.nn.functional.normalize(model(x))
    loop.step(x, 1, 0.0)
    before = weights(model)
    loop.step(x, 2, 0.0)
    changed = (before["decoder_weight"] - model.decoder_weight).abs().amax(dim=1) > 1e-3
    assert 0 < changed.sum() <= 3  # a latent for each of the rows
    left_over = unit - (unit * x_hat).sum(dim=1, keepdim=True) * x_hat
    wanted = torch.nn.functional.normalize(left_over)
    matches = model.decoder_weight.detach()[changed] @ wanted.T
    assert (matches.amax(dim=1) > 1 - 1e-5).all()
    state = loop.optimizer.state[model.encoder_weight]
    assert (state["exp_avg"][changed] == 0).all()
    assert (state["exp_avg"][~changed] != 0).any()


def test_one_model_for_every_k_beats_one_for_a_single_k_where_that_was_not_meant() -> None:
    x = torch.from_numpy(mixture(3000))
    losses = {}
    for nested in ((), (1, 2, 4)):
        model = CompresSAE(D, S, K)
        config = TrainConfig(steps=150, batch_size=500, nested_k=nested)
        train(model, x[:2500], config=config)
        with torch.no_grad():
            x_hat = model(x[2500:], k=1)
        losses[nested] = 1 - float(torch.cosine_similarity(x_hat, x[2500:]).mean())
    assert losses[1, 2, 4] < 0.95 * losses[()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nested_k": (4, 65)}, "nested_k must be at most hidden_dim = 64, got 65"),
        ({"k_start": 65}, "k_start must be at most hidden_dim = 64, got 65"),
    ],
)
def test_more_latents_than_the_model_has_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(CompresSAE(D, S, K), mixture(20), config=TrainConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "batch", "ranking_weight": 1.0},
        {"precision": "bf16", "ema_decay": 0.9},
        {
            "hard_negatives": 2,
            "mine_every": 1,
            "revive": "resample",
            "resample_every": 2,
            "dead_after_items": 60,
        },
        {"nested_k": (2, 4), "revive": "auxiliary", "dead_after_items": 60},
        {"shuffle": "windows", "window_rows": 50},
    ],
)
def test_every_option_is_repeatable_to_the_bit(options: dict[str, Any]) -> None:
    models = []
    for _ in range(2):
        models.append(CompresSAE(D, S, K))
        train(models[-1], mixture(200), config=TrainConfig(steps=6, batch_size=48, **options))
        torch.rand(3)  # the global generator is elsewhere in the second run
    assert same_bytes(*models)
