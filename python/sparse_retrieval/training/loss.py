"""The objective of CompresSAE as pure functions of rows and their reconstructions.

Knows no model, no optimizer. Equations are those of the paper.

References
----------
P. Kasalicky et al., "The Future is Sparse: Embedding Compression for Scalable Retrieval in
Recommender Systems", RecSys 2025, arXiv:2505.11388.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .vectors import cosine_to, unit_rows


class LossTerms(NamedTuple):
    """The objective and what it is made of, each a 0-d tensor."""

    loss: Tensor
    """What is minimised; carries the gradient."""
    cosine_k: Tensor
    """Mean cosine of a row and its reconstruction from k latents."""
    cosine_wide: Tensor
    """Mean cosine of a row and its reconstruction from 4k latents."""


def compressae_loss(
    x: Tensor, x_hat_k: Tensor, x_hat_wide: Tensor, *, wide_weight: float = 0.125
) -> LossTerms:
    r"""Compute the paper's objective on one batch.

    .. math::
        L = \operatorname{mean}_i \bigl[ 1 - \cos(x_i, \hat x_i^{(k)}) \bigr]
          + w \operatorname{mean}_i \bigl[ 1 - \cos(x_i, \hat x_i^{(4k)}) \bigr], \quad w = 1/8

    Parameters
    ----------
    x, x_hat_k, x_hat_wide : Tensor
        (n, d) each. ``x`` need not be normalised: the cosine does not see its length.
    wide_weight : float, default 0.125
        w, the paper's 1/8.

    Returns
    -------
    LossTerms

    Notes
    -----
    The means run over the rows of ``x`` that are not zero: a zero row has no direction to
    reconstruct, so a batch with zero rows has exactly the loss and gradients of the batch without
    them. Without any other row the loss and both cosines are 0. A nonzero row whose reconstruction
    is zero counts with cosine 0, so loss 1, and passes no gradient.
    """
    unit = unit_rows(x)
    nonzero = (x != 0).any(dim=-1).sum()
    counted = nonzero.clamp(min=1)
    share = nonzero / counted  # 1, or 0 if every row is zero
    cosine_k = cosine_to(unit, x_hat_k).sum() / counted
    cosine_wide = cosine_to(unit, x_hat_wide).sum() / counted
    loss = (share - cosine_k) + wide_weight * (share - cosine_wide)
    return LossTerms(loss, cosine_k.detach(), cosine_wide.detach())


def prefix_cosines(unit: Tensor, x_hats: Tensor) -> Tensor:
    """Sum, over rows, of the cosine of a row and each of its reconstructions.

    Parameters
    ----------
    unit : Tensor
        (n, d), rows of length 1 or 0.
    x_hats : Tensor
        (m, n, d).

    Returns
    -------
    Tensor
        (m,): sums rather than means, so that processes that hold parts of a batch can add them.
    """
    return cosine_to(unit, x_hats).sum(dim=1)


def residual_directions(unit: Tensor, x_hat: Tensor) -> Tensor:
    """What a reconstruction leaves of each row, whatever length it has itself.

    ``x - (x . v) v`` with v the direction of ``x_hat``: the cosine loss does not fix the length
    of ``x_hat``, so the difference ``x - x_hat`` would mean nothing. (n, d) each; no gradient.
    """
    with torch.no_grad():
        v = unit_rows(x_hat)
        return unit - (unit * v).sum(dim=1, keepdim=True) * v


def ranking_loss(
    unit: Tensor, x_hat: Tensor, anchors: Tensor, *, temperature: float = 0.1
) -> Tensor:
    r"""Compute how far the order in which anchors find the rows changes by compression.

    .. math::
        L = \operatorname{mean}_a \mathrm{KL}\bigl(p_a \,\Vert\, \hat p_a\bigr), \qquad
        p_a = \operatorname{softmax}_{i \ne a} \frac{\cos(x_a, x_i)}{T}, \quad
        \hat p_a = \operatorname{softmax}_{i \ne a} \frac{\cos(x_a, \hat x_i)}{T}

    Parameters
    ----------
    unit : Tensor
        (n, d), rows of length 1 or 0.
    x_hat : Tensor
        (n, d), their reconstructions; carries the gradient.
    anchors : Tensor
        (a,) int64 positions of the rows that ask. They ask as dense queries, as a search does.
    temperature : float, default 0.1
        T. The smaller, the more only the nearest neighbours count.

    Returns
    -------
    Tensor
        0-d. Zero where there is nothing to order: fewer than two rows, or no anchors.
    """
    if len(anchors) == 0 or len(unit) < 2:
        return x_hat.sum() * 0.0
    squares = x_hat.square().sum(dim=1, keepdim=True)
    zero = squares < torch.finfo(squares.dtype).tiny
    inverse = torch.where(zero, 0.0, torch.rsqrt(torch.where(zero, 1.0, squares)))
    asked = unit[anchors]
    itself = torch.zeros((len(anchors), len(unit)), dtype=torch.bool, device=unit.device)
    itself[torch.arange(len(anchors), device=unit.device), anchors] = True
    # a large negative number, not -inf: 0 * -inf in the product below would be NaN
    wanted = (asked @ unit.t() / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
    found = (asked @ (x_hat * inverse).t() / temperature).masked_fill(itself, -1e4)
    gap = wanted - found.log_softmax(dim=1)
    return (wanted.exp() * gap).sum(dim=1).mean()
