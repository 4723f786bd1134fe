"""Lengths and angles of rows, with every zero defined. Knows nothing of models or codes."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` scaled to Euclidean length 1; a row of zeros stays zeros.

    Parameters
    ----------
    x : Tensor
        (..., d), floating point.

    Returns
    -------
    Tensor
        (..., d), the same dtype. Differentiable; the gradient of a zero row is zero.

    Notes
    -----
    A row is first divided by its largest magnitude, so that neither the squares of 1e30 nor those
    of 1e-30 leave float32. That divisor is a constant to autograd: the result does not depend on
    it. A row with NaN or inf gives NaN.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    zero = largest == 0  # not "largest > 0": a NaN row must stay NaN, not turn into zeros
    scaled = x / torch.where(zero, 1.0, largest)
    squares = scaled.square().sum(dim=-1, keepdim=True)
    inverse = torch.rsqrt(torch.where(zero, 1.0, squares))
    return scaled * torch.where(zero, 0.0, inverse)  # by 0, so that the gradient is 0 too


def cosine_to(unit: Tensor, x_hat: Tensor) -> Tensor:
    """Cosine between rows of unit length and arbitrary rows; 0 where either is zero.

    Parameters
    ----------
    unit : Tensor
        (n, d), rows of length 1 or 0, as `unit_rows` gives them.
    x_hat : Tensor
        (..., n, d).

    Returns
    -------
    Tensor
        (..., n).

    Notes
    -----
    The cosine has no limit where ``x_hat`` goes to zero; value and gradient are defined as 0
    there. "Zero" is a squared length below the smallest normal number of the dtype (a length of
    1e-19 in float32): what is below has lost its digits.
    """
    squares = x_hat.square().sum(dim=-1)
    zero = squares < torch.finfo(squares.dtype).tiny
    inverse = torch.rsqrt(torch.where(zero, 1.0, squares))
    return torch.where(zero, 0.0, (unit * x_hat).sum(dim=-1) * inverse)
