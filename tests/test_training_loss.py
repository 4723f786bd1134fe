"""The whole objective, model included, against an independent dense double-precision one."""

import pytest
import torch
from torch import Tensor

from sparse_retrieval.training import CompresSAE, LossTerms, compressae_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_loss(
    x: Tensor, encoder: Tensor, bias: Tensor, decoder: Tensor, k: int, wide: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of shape (n, s), two dense decodes, autograd: nothing shared with the package."""
    unit = x / x.norm(dim=1, keepdim=True)
    e = unit @ encoder.T + bias
    cosines = []
    for kept in (k, wide):
        threshold = e.abs().sort(dim=1, descending=True).values[:, kept - 1 : kept]
        x_hat = torch.where(e.abs() >= threshold, e, 0.0) @ decoder
        cosines.append((x * x_hat).sum(1) / (x.norm(dim=1) * x_hat.norm(dim=1)))
    return (1 - cosines[0]).mean() + (1 - cosines[1]).mean() / 8, cosines[0], cosines[1]


def double_model(d: int, s: int, k: int, init: str = "independent") -> CompresSAE:
    model = CompresSAE(d, s, k, init=init).double()  # type: ignore[arg-type]
    with torch.no_grad():
        model.encoder_bias.copy_(0.05 * normal(s, seed=9))
        model.normalize_decoder()
    return model


def package_loss(model: CompresSAE, x: Tensor, wide: int) -> LossTerms:
    k = model.config.k
    code = model.encode(x, k=wide)
    x_hats = model.decode_prefixes(code, (k, wide) if wide > k else (wide,))
    return compressae_loss(x, x_hats[0], x_hats[-1])


@pytest.mark.parametrize("init", ["independent", "tied"])
@pytest.mark.parametrize(("n", "d", "s", "k"), [(40, 12, 64, 4), (9, 5, 10, 3), (6, 4, 8, 8)])
def test_loss_and_all_gradients_equal_the_dense_formulation(
    n: int, d: int, s: int, k: int, init: str
) -> None:
    model, wide = double_model(d, s, k, init), min(4 * k, s)
    x = (3 * normal(n, d)).requires_grad_()
    inputs = [x, model.encoder_weight, model.encoder_bias, model.decoder_weight]
    terms = package_loss(model, x, wide)
    loss, cosine_k, cosine_wide = dense_loss(*inputs, k, wide)
    torch.testing.assert_close(terms.loss, loss)
    torch.testing.assert_close(terms.cosine_k, cosine_k.mean())
    torch.testing.assert_close(terms.cosine_wide, cosine_wide.mean())
    got = torch.autograd.grad(terms.loss, inputs)
    expected = torch.autograd.grad(loss, inputs)
    for a, b in zip(got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)


def test_the_second_term_is_weighted_and_reaches_latents_outside_the_best_k() -> None:
    model, x = double_model(6, 32, 2), normal(1, 6)
    code = model.encode(x, k=8)
    x_hats = model.decode_prefixes(code, (2, 8))
    terms = compressae_loss(x, x_hats[0], x_hats[1], wide_weight=0.125)
    torch.testing.assert_close(terms.loss, (1 - terms.cosine_k) + 0.125 * (1 - terms.cosine_wide))
    (gradient,) = torch.autograd.grad(terms.loss, model.encoder_bias)
    touched = set(gradient.nonzero().flatten().tolist())
    assert touched == set(code.indices.flatten().tolist())
    without = compressae_loss(
        x, *model.decode_prefixes(model.encode(x, k=8), (2, 8)), wide_weight=0
    )
    (gradient,) = torch.autograd.grad(without.loss, model.encoder_bias)
    assert set(gradient.nonzero().flatten().tolist()) == set(code.indices[0, :2].tolist())


def test_a_batch_with_zero_rows_has_the_loss_and_gradients_of_the_batch_without_them() -> None:
    model = double_model(6, 32, 3)
    x = normal(10, 6)
    padded = torch.cat([x[:4], torch.zeros(3, 6, dtype=x.dtype), x[4:]]).requires_grad_()
    parameters = list(model.parameters())
    plain = package_loss(model, x, 12)
    with_zeros = package_loss(model, padded, 12)
    torch.testing.assert_close(with_zeros, plain)
    expected = torch.autograd.grad(plain.loss, parameters)
    *got, x_gradient = torch.autograd.grad(with_zeros.loss, [*parameters, padded])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert x_gradient.isfinite().all()
    assert not x_gradient[4:7].any()


def test_a_batch_of_zero_rows_alone_has_loss_and_gradients_zero() -> None:
    model = double_model(6, 32, 3)
    terms = package_loss(model, torch.zeros(4, 6, dtype=torch.float64), 12)
    assert [float(t.detach()) for t in terms] == [0.0, 0.0, 0.0]
    for gradient in torch.autograd.grad(terms.loss, list(model.parameters())):
        assert not gradient.any()  # NaN would count as true


def test_a_row_that_reconstructs_to_zero_costs_one_and_passes_no_gradient() -> None:
    model = double_model(6, 32, 3)
    with torch.no_grad():
        model.encoder_weight.zero_()
        model.encoder_bias.zero_()
    terms = package_loss(model, normal(5, 6), 12)
    assert float(terms.loss.detach()) == 1.125
    for gradient in torch.autograd.grad(terms.loss, list(model.parameters())):
        assert not gradient.any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_loss_does_not_see_the_length_of_x(scale: float) -> None:
    model = double_model(6, 32, 3).float()
    x = normal(8, 6).float()
    reference = package_loss(model, x, 12)
    scaled = package_loss(model, x * scale, 12)
    # scaling by a number that is no power of two rounds x once: 6e-8 relative
    torch.testing.assert_close(scaled, reference, rtol=1e-5, atol=1e-6)
