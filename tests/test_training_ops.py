"""Sparse encode and decode against their dense one-liners, values and every gradient."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_retrieval.training import block_ops, sparse_ops
from sparse_retrieval.training.sparse_ops import encode_top_k, sparse_decode, top_magnitudes
from sparse_retrieval.training.vectors import cosine_to, unit_rows


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(indices: Tensor, values: Tensor, s: int) -> Tensor:
    return torch.zeros(len(indices), s, dtype=values.dtype).scatter_add(1, indices, values)


def random_code(n: int, k: int, s: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    indices = torch.rand(n, s, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :k]
    return indices.contiguous(), normal(n, k, seed=seed + 1)


@pytest.mark.parametrize(
    ("s", "k"),
    [(1, 1), (7, 7), (7, 3), (64, 1), (64, 4), (96, 5), (128, 64), (1000, 30), (4096, 128)],
)
def test_top_magnitudes_equals_a_full_sort(s: int, k: int) -> None:
    x = normal(33, s, dtype=torch.float32).abs()
    got = top_magnitudes(x, k)
    expected = np.argsort(-x.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(got.numpy(), expected)  # no ties among normal numbers


@pytest.mark.parametrize(("s", "k"), [(64, 4), (4096, 128), (50, 20)])
def test_top_magnitudes_with_ties_returns_distinct_positions_of_the_right_values(
    s: int, k: int
) -> None:
    x = torch.randint(0, 4, (50, s), generator=torch.Generator().manual_seed(0)).float()
    got = top_magnitudes(x, k)
    assert all(len(set(row.tolist())) == k for row in got)
    torch.testing.assert_close(x.gather(1, got), x.sort(1, descending=True).values[:, :k])
    torch.testing.assert_close(top_magnitudes(x, k), got, rtol=0, atol=0)


@pytest.mark.parametrize("n", [1, 6, 7, 8, 29])
def test_encode_equals_the_dense_formulation_across_blocks(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    d, s, k = 5, 24, 6
    monkeypatch.setattr(sparse_ops, "_BLOCK_ENTRIES", 7 * s)  # blocks of 7 rows, the last one short
    parameters = [normal(n, d).requires_grad_(), normal(s, d, seed=1).requires_grad_()]
    parameters.append(normal(s, seed=2).requires_grad_())
    x, weight, bias = parameters
    cotangent = normal(n, k, seed=3)

    indices, values = encode_top_k(x, weight, bias, k)
    got = torch.autograd.grad((values * cotangent).sum(), parameters)

    e = x @ weight.T + bias
    best = e.abs().topk(k).indices
    expected = torch.autograd.grad((e.gather(1, best) * cotangent).sum(), parameters)
    assert torch.equal(indices, best)
    torch.testing.assert_close(values, e.gather(1, best))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_encode_passes_gradcheck() -> None:
    x, weight, bias = normal(3, 4), normal(9, 4, seed=1), normal(9, seed=2)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: encode_top_k(*t, 4).values, inputs)


@pytest.mark.parametrize("cuts", [None, (5,), (1, 5), (2, 3, 5), (1, 2, 3, 4, 5)])
def test_decode_and_its_gradients_equal_the_dense_formulation(cuts: tuple[int, ...] | None) -> None:
    n, k, s, d = 17, 5, 11, 6
    indices, values = random_code(n, k, s)
    atoms = normal(s, d, seed=5)
    values.requires_grad_()
    atoms.requires_grad_()
    bounds = cuts or (k,)
    cotangent = normal(len(bounds), n, d, seed=6)  # every output enters, each with other weights

    out = sparse_decode(indices, values, atoms, cuts)
    assert out.shape == ((n, d) if cuts is None else (len(cuts), n, d))
    expected = torch.stack([dense(indices[:, :c], values[:, :c], s) @ atoms for c in bounds])
    torch.testing.assert_close(out.reshape(expected.shape), expected)
    got_grads = torch.autograd.grad((out * cotangent.reshape(out.shape)).sum(), [values, atoms])
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), [values, atoms])
    for a, b in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cuts", [None, (1, 4)])
def test_decode_passes_gradcheck(cuts: tuple[int, ...] | None) -> None:
    indices, values = random_code(6, 4, 9)
    atoms = normal(9, 3, seed=7)
    inputs = (values.requires_grad_(), atoms.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, w: sparse_decode(indices, v, w, cuts), inputs)


def test_decode_counts_a_repeated_latent_twice() -> None:
    indices, values = torch.tensor([[2, 2]]), torch.tensor([[1.0, 3.0]], requires_grad=True)
    atoms = normal(4, 3, dtype=torch.float32).requires_grad_()
    out = sparse_decode(indices, values, atoms)
    torch.testing.assert_close(out, 4.0 * atoms[2:3])
    out.sum().backward()
    torch.testing.assert_close(atoms.grad, torch.tensor([[0.0], [0], [4], [0]]).expand(4, 3))


def test_decode_gives_gradients_to_one_input_alone() -> None:
    indices, values = random_code(4, 2, 6)
    atoms = normal(6, 3)
    v, w = values.clone().requires_grad_(), atoms.clone().requires_grad_()
    sparse_decode(indices, v, atoms).sum().backward()
    sparse_decode(indices, values, w).sum().backward()
    both_v, both_w = values.clone().requires_grad_(), atoms.clone().requires_grad_()
    sparse_decode(indices, both_v, both_w).sum().backward()
    assert v.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(v.grad, both_v.grad)
    torch.testing.assert_close(w.grad, both_w.grad)


def test_decode_runs_backward_twice_on_a_retained_graph() -> None:
    indices, values = random_code(4, 2, 6)
    values.requires_grad_()
    atoms = normal(6, 3).requires_grad_()
    out = sparse_decode(indices, values, atoms).square().sum()
    first = torch.autograd.grad(out, [values, atoms], retain_graph=True)
    second = torch.autograd.grad(out, [values, atoms])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_encode_and_decode_without_gradients_give_the_same_numbers(mode: type) -> None:
    x, weight, bias = normal(5, 4), normal(9, 4, seed=1).requires_grad_(), normal(9, seed=2)
    with_grad = encode_top_k(x, weight, bias, 3)
    with mode():
        code = encode_top_k(x, weight, bias, 3)
        out = sparse_decode(code.indices, code.values, weight, (1, 3))
        assert not out.requires_grad
    assert torch.equal(code.values, with_grad.values)
    assert torch.equal(out, sparse_decode(*with_grad, weight, (1, 3)))


def test_no_rows_encode_and_decode_to_no_rows() -> None:
    weight = normal(9, 4).requires_grad_()
    bias = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    code = encode_top_k(normal(0, 4), weight, bias, 3)
    out = sparse_decode(code.indices, code.values, weight)
    assert code.indices.shape == code.values.shape == (0, 3)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("cuts", [(), (1, 2), (3, 2, 4), (0, 4), (2, 2, 4), (5,)])
def test_decode_refuses_cuts_that_do_not_increase_to_k(cuts: tuple[int, ...]) -> None:
    indices, values = random_code(3, 4, 9)
    with pytest.raises(ValueError, match=r"cuts must increase from at least 1 to k = 4, got \["):
        sparse_decode(indices, values, normal(9, 2), cuts)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_unit_rows_keep_their_length_at_any_scale(scale: float) -> None:
    x = normal(20, 30, dtype=torch.float32)
    lengths = torch.linalg.vector_norm(unit_rows(x * scale).double(), dim=1)
    # 30 squares and a root in float32: a few units in the last place (6e-8) of 1
    torch.testing.assert_close(lengths, torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-6)


def test_unit_rows_keep_zeros_and_propagate_nan() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [float("nan"), 1.0]], requires_grad=True)
    unit = unit_rows(x)
    torch.testing.assert_close(unit[:2], torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert unit[2].isnan().all()
    (gradient,) = torch.autograd.grad(unit[:2].sum(), x)
    assert torch.equal(gradient[0], torch.zeros(2))


def test_unit_rows_and_cosine_pass_gradcheck() -> None:
    x, y = normal(4, 5).requires_grad_(), normal(2, 4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(unit_rows, (x,))
    assert torch.autograd.gradcheck(lambda a, b: cosine_to(unit_rows(a), b), (x, y))
    expected = torch.nn.functional.cosine_similarity(x.expand(2, 4, 5), y, dim=-1)
    torch.testing.assert_close(cosine_to(unit_rows(x), y), expected)


@pytest.mark.parametrize("tiny", [0.0, 1e-30])
def test_cosine_to_a_vanishing_row_is_zero_with_zero_gradient(tiny: float) -> None:
    unit = unit_rows(normal(3, 5, dtype=torch.float32))
    x_hat = (unit * torch.tensor([[1.0], [tiny], [2.0]])).requires_grad_()
    cosine = cosine_to(unit, x_hat)
    torch.testing.assert_close(cosine.detach(), torch.tensor([1.0, 0.0, 1.0]))
    cosine.sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    assert not x_hat.grad[1].any()


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("own", [False, True], ids=["one segmentation", "one a row"])
@pytest.mark.parametrize("n", [1, 3, 4, 11])
def test_sums_in_dense_blocks_equal_sums_over_nonzeros(
    n: int, m: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what a GPU does instead: the same functions, which no CPU would choose
    k, s, d = 6, 13, 5
    monkeypatch.setattr(block_ops, "BLOCK_ENTRIES", 4 * s)  # blocks of 4 rows
    indices, values = random_code(n, k, s)
    atoms, grad = normal(s, d, seed=5), normal(n, m, d, seed=6)
    generator = torch.Generator().manual_seed(7)
    segment = torch.randint(0, m, (n if own else 1, k), generator=generator).sort(1).values
    codes = [
        dense(indices, values.masked_fill((segment != j).expand(n, -1), 0), s) for j in range(m)
    ]

    got = block_ops.decode(indices, values, atoms, segment, m)
    torch.testing.assert_close(got, torch.stack([code @ atoms for code in codes], dim=1))

    got = block_ops.values_gradient(indices, grad, atoms, segment)
    chosen = grad.gather(1, segment.expand(n, -1).unsqueeze(2).expand(-1, -1, d))
    torch.testing.assert_close(got, (chosen * atoms[indices]).sum(dim=2))

    got = block_ops.atoms_gradient(indices, values, grad, segment, s)
    expected = sum(code.T @ grad[:, j] for j, code in enumerate(codes))
    torch.testing.assert_close(got, expected)


def test_dense_blocks_are_not_for_a_cpu() -> None:
    rows = normal(4, 5, dtype=torch.float32)
    assert not any(
        block_ops.pays(operation, rows, 8, 8, 1) for operation in ("decode", "values", "atoms")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_atoms_in_16_bits_is_rounded_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k, s = 600, 1, 2
    monkeypatch.setattr(block_ops, "BLOCK_ENTRIES", s)  # blocks of one row
    indices = torch.zeros(n, k, dtype=torch.int64)
    ones = torch.ones(n, k, dtype=dtype)
    got = block_ops.atoms_gradient(indices, ones, torch.ones(n, 1, 3, dtype=dtype), indices[:1], s)
    assert got.dtype == dtype
    # adding ones one by one ends at 256 in bfloat16
    assert got[0].tolist() == [600.0] * 3


def test_blocks_do_not_heed_autocast() -> None:
    indices, values = random_code(5, 3, 7)
    atoms = normal(7, 4, seed=5, dtype=torch.float32)
    segment = torch.zeros(1, 3, dtype=torch.int64)
    expected = block_ops.decode(indices, values.float(), atoms, segment, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = block_ops.decode(indices, values.float(), atoms, segment, 1)
    assert torch.equal(got, expected)


def test_what_multiplies_fast_is_known_by_either_setting_of_torch() -> None:
    program = """
import torch
from sparse_retrieval.training.block_ops import rounds_factors
assert not rounds_factors(torch.float64) and rounds_factors(torch.bfloat16)
assert not rounds_factors(torch.float32)
torch.set_float32_matmul_precision("high")
assert rounds_factors(torch.float32)
torch.set_float32_matmul_precision("highest")
assert not rounds_factors(torch.float32)
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert rounds_factors(torch.float32)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
