"""The objective of CompresSAE as pure functions of rows and their reconstructions.

Knows no model, no optimizer. Equations are those of the paper.

References
----------
P. Kasalicky et al., "The Future is Sparse: Embedding Compression for Scalable Retrieval in
Recommender Systems", RecSys 2025, arXiv:2505.11388.
"""

from __future__ import annotations

from typing import NamedTuple

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
