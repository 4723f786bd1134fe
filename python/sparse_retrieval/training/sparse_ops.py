"""Encoding to the k largest latents and decoding from them, without a dense (n, s) matrix.

Three facts carry this file:

- A code of k nonzeros decodes to a weighted sum of k atoms: ``embedding_bag``.
- The gradient of the decoder, A^T G with A the (n, s) codes, is the same operation the other way
  round: sort the nonzeros by latent, and row j is a weighted sum of the rows of G that used j.
- The gradient at the encoder's output has the support of the code, so the encoder's gradient is
  that same transposed sum, over the rows of x.

So one top-k serves every term, and nothing of size (n, s) outlives a block of rows.

Measured and beaten (batch 4096, d = 384, s = 4096, 128 latents, float32, torch 2.15 on two cores
of a Zen 4 EPYC; ms): ``torch.topk`` on all of |e| 79 against about 40 in two levels; autograd's
own gradient of ``embedding_bag`` for the table 27 against 17 for the transposed sum; gathering
atoms to (rows, k, d) and ``bmm`` for the values' gradient 240 to 370 against 18; a dense scatter
and a matrix product 86 against 17. CSR products (12) and ``sampled_addmm`` (11) are as fast as
what is used here or slightly faster, but need MKL and warn that they are in beta.

Knows nothing of normalisation, loss or modules. Shapes: n rows, d wide, s latents, k nonzeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from . import block_ops

_BLOCK_ENTRIES = 1 << 22
"""Entries of a block of pre-activations on a CPU: 1,024 rows at s = 4096, 16 MiB in float32, so
that product, magnitudes and selection find it in the last-level cache. On two idle cores (the
machine above) a step takes 0.22 s with 2^20 to 2^22, 0.25 with 2^24, 0.29 with 2^18. The largest
of the good sizes, since each block meets a dozen barriers: with other work on the cores, where a
barrier waits for a thread that is not running, the step took 1.4 s with 2^22, 2.0 with 2^20 and
3.1 with 2^18. On other devices 16 times as much, for occupancy."""


class LatentCode(NamedTuple):
    """Codes of n rows with k nonzeros each, best first.

    A pair of dense tensors rather than a sparse tensor: they index, slice, cut to fewer nonzeros
    (``code.indices[:, :8]``), move between devices and differentiate like any others.
    """

    indices: Tensor
    """(n, k) int64: latents, by descending magnitude of their value."""
    values: Tensor
    """(n, k) floating point, signed. A zero row of x has zero values on meaningless latents."""


def top_magnitudes(magnitudes: Tensor, k: int) -> Tensor:
    """Find the positions of the k largest entries of each row, largest first.

    Parameters
    ----------
    magnitudes : Tensor
        (n, s), not negative.
    k : int
        1 <= k <= s.

    Returns
    -------
    Tensor
        (n, k) int64.

    Notes
    -----
    In two levels where that is less work: the k largest entries lie in the k groups with the
    largest maxima, since each group before an entry's own holds something at least as large. With
    groups of g that selects from s / g maxima and then from g * k candidates. Among equal entries
    any may be taken, always the same ones for the same input.

    On a GPU ``torch.topk`` as it is. A Triton kernel that bisects the bits of each row for the k-th
    largest took 3.9 ms for 128 of 100,000 x 4096 entries, and 0.6 to sort them, against 7.6 with
    the pass for magnitudes (H200): a twentieth of a step, which is not worth a kernel.
    """
    n, s = magnitudes.shape
    works = [(s // g + g * k, g) for g in (4, 8, 16) if s % g == 0 and s // g >= k]
    # the two levels add a pass for the maxima and one for the gather: ask for a clear saving
    if not works or min(works)[0] > 0.6 * s or magnitudes.device.type != "cpu":
        return torch.topk(magnitudes, k, dim=1).indices
    g = min(works)[1]
    # group j is the entries j, j + s/g, j + 2 s/g, ..: the maximum then runs over whole rows
    groups = torch.topk(magnitudes.view(n, g, s // g).amax(dim=1), k, dim=1, sorted=False).indices
    starts = torch.arange(0, s, s // g, device=magnitudes.device)
    candidates = (groups.unsqueeze(1) + starts.view(1, g, 1)).view(n, g * k)
    best = torch.topk(magnitudes.gather(1, candidates), k, dim=1).indices
    return candidates.gather(1, best)


def _transposed_sums(
    latents: Tensor, weights: Tensor, sources: Tensor, rows: Tensor, s: int
) -> Tensor:
    """``out[j] = sum of weights[p] * rows[sources[p]] over p with latents[p] == j``, (s, d).

    With A the sparse matrix of ``weights`` this is A^T rows. The sort is stable and every sum is
    taken by one thread in that order, so the result does not vary from run to run.
    """
    # 32-bit keys sort in half the time; a hidden_dim beyond them does not fit in memory anyway
    ordered, order = latents.to(torch.int32).sort(stable=True)
    bounds = torch.arange(s, dtype=torch.int32, device=latents.device)
    starts = torch.searchsorted(ordered, bounds)
    return embedding_bag(
        sources[order], rows, starts, per_sample_weights=weights[order], mode="sum"
    )


class _EncodeTopK(Function):
    """``e = x @ weight.T + bias`` and its k entries of largest magnitude, block by block."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        n, s = x.shape[0], weight.shape[0]
        entries = _BLOCK_ENTRIES if x.device.type == "cpu" else 16 * _BLOCK_ENTRIES
        block = max(1, min(n, entries // s))
        indices = torch.empty((n, k), dtype=torch.int64, device=x.device)
        values = torch.empty((n, k), dtype=weight.dtype, device=x.device)
        pre = torch.empty((block, s), dtype=dtype, device=x.device)
        magnitudes = torch.empty_like(pre)
        rows, columns, offset = x.to(dtype), weight.to(dtype).t(), bias.to(dtype)
        for start in range(0, n, block):
            stop = min(start + block, n)
            e = torch.addmm(offset, rows[start:stop], columns, out=pre[: stop - start])
            best = top_magnitudes(torch.abs(e, out=magnitudes[: stop - start]), k)
            indices[start:stop] = best
            values[start:stop] = e.gather(1, best)
        ctx.save_for_backward(x, weight, indices)
        ctx.mark_non_differentiable(indices)
        return indices, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices = ctx.saved_tensors
        s = weight.shape[0]
        latents, flat = indices.view(-1), grad.reshape(-1)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = embedding_bag(indices, weight, per_sample_weights=grad, mode="sum")
        if ctx.needs_input_grad[1]:
            grad_weight = _atoms_gradient(indices, grad, x.unsqueeze(1), _one_segment(x), s)
        if ctx.needs_input_grad[2]:
            grad_bias = torch.zeros(s, dtype=grad.dtype, device=x.device)
            grad_bias.index_add_(0, latents, flat)
        return grad_x, grad_weight, grad_bias, None, None


def _one_segment(like: Tensor) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=like.device)


def _segments(starts: Tensor, k: int) -> Tensor:
    """The segment that each of a code's k places belongs to, (n or 1, k)."""
    places = torch.arange(k, device=starts.device)
    segment = torch.zeros_like(places).expand(starts.shape[0], -1)
    for j in range(1, starts.shape[1]):
        segment = segment + (places >= starts[:, j : j + 1])
    return segment


def _atoms_gradient(
    indices: Tensor, values: Tensor, grad: Tensor, segment: Tensor, s: int
) -> Tensor:
    """``A_j^T grad[:, j]`` summed over segments j, with A_j the (n, s) codes of one, (s, d)."""
    n, m, d = grad.shape
    k = indices.shape[1]
    if block_ops.pays("atoms", grad, s, k, m):
        return block_ops.atoms_gradient(indices, values, grad, segment, s)
    # row i * m + j: segment j of code i
    sources = torch.arange(0, n * m, m, device=grad.device).unsqueeze(1) + segment.expand(-1, k)
    return _transposed_sums(
        indices.reshape(-1), values.reshape(-1), sources.reshape(-1), grad.reshape(n * m, d), s
    )


def encode_top_k(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, *, compute_dtype: torch.dtype | None = None
) -> LatentCode:
    """Find the k entries of ``x @ weight.T + bias`` of largest magnitude, with their signs.

    Parameters
    ----------
    x : Tensor
        (n, d).
    weight : Tensor
        (s, d).
    bias : Tensor
        (s,).
    k : int
        1 <= k <= s.
    compute_dtype : torch.dtype, optional
        Precision of the product and the selection, for instance ``torch.bfloat16``; that of the
        weights by default. Values come back, and gradients are taken, in that of the weights.

    Returns
    -------
    LatentCode
        (n, k), best first. ``values`` is differentiable in x, weight and bias (once): the
        selection itself is constant, as it is almost everywhere.

    Notes
    -----
    Equals ``e = x @ weight.T + bias; i = e.abs().topk(k).indices; (i, e.gather(1, i))``, but holds
    a block of e only.
    """
    indices, values = _EncodeTopK.apply(x, weight, bias, k, compute_dtype or weight.dtype)
    return LatentCode(indices, values)


def _segment_sums(indices: Tensor, values: Tensor, atoms: Tensor, starts: Tensor) -> Tensor:
    """Sum weighted atoms over consecutive segments of each code, (n, m, d).

    ``starts``, (n or 1, m), holds where in its row each segment begins; the first at 0.
    """
    n, k = indices.shape
    offsets = torch.arange(0, n * k, k, device=atoms.device).unsqueeze(1) + starts
    sums = embedding_bag(
        indices.reshape(-1),
        atoms,
        offsets.view(-1),
        per_sample_weights=values.reshape(-1),
        mode="sum",
    )
    return sums.view(n, starts.shape[1], atoms.shape[1])


class _SparseDecode(Function):
    """`_segment_sums` with a gradient for the atoms that is a sorted sum, not a scatter."""

    @staticmethod
    def forward(ctx: Any, indices: Tensor, values: Tensor, atoms: Tensor, starts: Tensor) -> Tensor:
        s, k, m = len(atoms), indices.shape[1], starts.shape[1]
        ctx.save_for_backward(indices, values, atoms, starts)
        ctx.graph = None
        if block_ops.pays("decode", atoms, s, k, m) and block_ops.pays("values", atoms, s, k, m):
            return block_ops.decode(indices, values, atoms, _segments(starts, k), m)
        # The gradient of the values is n * k dot products of atoms and rows of the gradient.
        # Autograd's own kernel is the fastest public way to them (see the head), so that half of
        # embedding_bag's graph is kept and the half for the atoms is ours.
        with torch.enable_grad():
            leaf = values.detach().reshape(-1).requires_grad_(ctx.needs_input_grad[1])
            sums = _segment_sums(indices, leaf, atoms.detach(), starts)
        ctx.graph = (leaf, sums)
        return sums.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        indices, values, atoms, starts = ctx.saved_tensors
        segment = _segments(starts, indices.shape[1])
        grad_values = grad_atoms = None
        if ctx.needs_input_grad[1]:
            if ctx.graph is None:
                grad_values = block_ops.values_gradient(indices, grad, atoms, segment)
            else:
                leaf, sums = ctx.graph
                (flat,) = torch.autograd.grad(sums, leaf, grad, retain_graph=True)
                grad_values = flat.view_as(values)
        if ctx.needs_input_grad[2]:
            grad_atoms = _atoms_gradient(indices, values, grad, segment, len(atoms))
        return None, grad_values, grad_atoms, None


def _sums(indices: Tensor, values: Tensor, atoms: Tensor, starts: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        sums: Tensor = _SparseDecode.apply(indices, values, atoms, starts)
        return sums
    s, k, m = len(atoms), indices.shape[1], starts.shape[1]
    if block_ops.pays("decode", atoms, s, k, m):
        return block_ops.decode(indices, values, atoms, _segments(starts, k), m)
    return _segment_sums(indices, values, atoms, starts)


def sparse_decode_split(indices: Tensor, values: Tensor, atoms: Tensor, counts: Tensor) -> Tensor:
    """Reconstruct from the first ``counts[i]`` nonzeros of code i, and from all of them.

    Parameters
    ----------
    indices, values, atoms : Tensor
        As in `sparse_decode`.
    counts : Tensor
        (n,) int64 in [0, k]; where it is 0 the first reconstruction is zero.

    Returns
    -------
    Tensor
        (2, n, d), differentiable (once) in values and atoms.
    """
    starts = torch.stack((torch.zeros_like(counts), counts), dim=1)
    sums = _sums(indices, values, atoms, starts)
    return torch.stack((sums[:, 0], sums[:, 0] + sums[:, 1]))


def sparse_decode(
    indices: Tensor, values: Tensor, atoms: Tensor, cuts: Sequence[int] | None = None
) -> Tensor:
    """Sum weighted atoms: the reconstruction of each code, or of several prefixes of it.

    Parameters
    ----------
    indices : Tensor
        (n, k) int64 latents in [0, s).
    values : Tensor
        (n, k).
    atoms : Tensor
        (s, d), the dictionary.
    cuts : sequence of int, optional
        Increasing, the last one k. Reconstruct from the first ``cuts[0]`` nonzeros, from the first
        ``cuts[1]``, and so on: each atom is read once for all of them.

    Returns
    -------
    Tensor
        (n, d), or (len(cuts), n, d) with ``cuts``. Differentiable (once) in values and atoms.

    Raises
    ------
    ValueError
        If ``cuts`` does not increase to k from at least 1.

    Notes
    -----
    Equals ``torch.zeros(n, s).scatter_add(1, indices, values) @ atoms``.
    """
    k = indices.shape[1]
    bounds = (0, *(cuts if cuts is not None else (k,)))
    lengths = tuple(b - a for a, b in itertools.pairwise(bounds))
    if bounds[-1] != k or min(lengths, default=0) < 1:
        raise ValueError(f"cuts must increase from at least 1 to k = {k}, got {list(bounds[1:])}")
    starts = torch.tensor([bounds[:-1]], device=atoms.device)
    sums = _sums(indices, values, atoms, starts)
    if cuts is None:
        return sums[:, 0]
    # not cumsum: over a short middle axis it took 8 ms where these additions take 1
    prefixes = [sums[:, 0]]
    for j in range(1, len(lengths)):
        prefixes.append(prefixes[-1] + sums[:, j])
    return torch.stack(prefixes)
