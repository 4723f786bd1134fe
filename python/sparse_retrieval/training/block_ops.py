"""Sums over codes as matrix products of dense blocks: what a GPU does where that is faster.

The nonzeros of a block of rows are written out as a dense (b, s) matrix, or read from one, and the
rest is a product with the atoms, s / k times the arithmetic of a sum over nonzeros. A GPU's
matrix units do that arithmetic in less time than its memory takes to gather k atoms a row; a CPU
does not. Nothing of size (n, s) outlives a block.

Knows nothing of autograd. Shapes: n rows of k nonzeros over s latents, atoms d wide; `segment`,
(n or 1, k), says to which of a row's m segments a nonzero belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Operation = Literal["decode", "values", "atoms"]

BLOCK_ENTRIES = 1 << 26
"""Entries of a block: 16,384 rows at s = 4096, 256 MiB in float32."""

_LIMITS: dict[Operation, tuple[float, float]] = {
    "decode": (47, 243),
    "values": (32, 202),
    "atoms": (74, 224),
}
"""Up to which m * s / k blocks are faster than `embedding_bag`, in float32 and in TF32.

From milliseconds on an H200 with n = 100,000, d = 768, s = 4096, k = 128 (torch 2.11): decoding
20.6 by `embedding_bag`, 13.9 a segment in blocks, 2.7 in TF32; the gradient of values 13.4, 13.1,
2.1; that of atoms 30.8, 13.4, 4.4. The time in blocks grows with s and m, the other with k.
"""


def pays(operation: Operation, rows: Tensor, s: int, k: int, m: int) -> bool:
    """Whether blocks are expected to be faster than sums over nonzeros, for rows of this kind."""
    if rows.device.type != "cuda" or rows.dtype == torch.float64:  # few GPUs multiply those fast
        return False
    # the kinds of GPU that have no TF32 have no such products of bfloat16 either
    fast = torch.cuda.get_device_capability(rows.device)[0] >= 8 and rounds_factors(rows.dtype)
    return m * s / k <= _LIMITS[operation][fast]


def rounds_factors(dtype: torch.dtype) -> bool:
    """Whether factors of CUDA's matrix products have at most TF32's 10 bits, now."""
    if dtype != torch.float32:
        return dtype in (torch.float16, torch.bfloat16)
    # where torch has a setting for each kind of device, asking for the one of all may be an error
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _as_they_are(rows: Tensor) -> torch.autocast:
    """Products in the precision of their factors, whatever autocast is on."""
    return torch.autocast(rows.device.type, enabled=False)


def _blocks(n: int, s: int) -> Iterator[slice]:
    rows = max(1, min(n, BLOCK_ENTRIES // s))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _of_segment(values: Tensor, segment: Tensor, j: int, m: int) -> Tensor:
    """Those values that belong to segment j, zeros in place of the others."""
    return values if m == 1 else values.masked_fill(segment != j, 0)


def _rows_of(segment: Tensor, rows: slice) -> Tensor:
    return segment if len(segment) == 1 else segment[rows]


def _dense(indices: Tensor, values: Tensor, s: int) -> Tensor:
    return torch.zeros(len(values), s, dtype=values.dtype, device=values.device).scatter_add_(
        1, indices, values
    )


def decode(indices: Tensor, values: Tensor, atoms: Tensor, segment: Tensor, m: int) -> Tensor:
    """Weighted sums of atoms by segment, (n, m, d)."""
    (n, _), (s, d) = indices.shape, atoms.shape
    out = torch.empty(n, m, d, dtype=atoms.dtype, device=atoms.device)
    with _as_they_are(atoms):
        for rows in _blocks(n, s):
            for j in range(m):
                weights = _of_segment(values[rows], _rows_of(segment, rows), j, m)
                out[rows, j] = _dense(indices[rows], weights, s) @ atoms
    return out


def values_gradient(indices: Tensor, grad: Tensor, atoms: Tensor, segment: Tensor) -> Tensor:
    """Products of each nonzero's atom with ``grad``, (n, m, d), of its segment, (n, k)."""
    n, m, _ = grad.shape
    out = torch.zeros(indices.shape, dtype=grad.dtype, device=grad.device)
    with _as_they_are(atoms):
        for rows in _blocks(n, len(atoms)):
            for j in range(m):
                products = (grad[rows, j] @ atoms.T).gather(1, indices[rows])
                out[rows] += _of_segment(products, _rows_of(segment, rows), j, m)
    return out


def atoms_gradient(
    indices: Tensor, values: Tensor, grad: Tensor, segment: Tensor, s: int
) -> Tensor:
    """``A_j^T grad[:, j]`` summed over segments j, with A_j the (n, s) codes of one, (s, d)."""
    n, m, d = grad.shape
    # 16 bits would lose what the later of many blocks add
    sums = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else grad.dtype
    out = torch.zeros(s, d, dtype=sums, device=grad.device)
    with _as_they_are(grad):
        for rows in _blocks(n, s):
            for j in range(m):
                weights = _of_segment(values[rows], _rows_of(segment, rows), j, m)
                out += _dense(indices[rows], weights, s).T @ grad[rows, j]
    return out.to(grad.dtype)
