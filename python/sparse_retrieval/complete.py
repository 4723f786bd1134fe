"""Complete codes: every item has every latent, so that none has to be named.

A sparse code spends most of its bits on saying which atoms it has. Where it would have nearly as
many nonzeros as there are dimensions (few dimensions, many bytes, rows without structure) those
bits are better spent on the values. Then atoms are the principal axes of the rows, at right angles,
a value is the inner product with its atom, and each axis gets as many bits as its variance earns:
transform coding (Huang & Schultheiss 1963), with the levels of Lloyd and Max and a scale an item.
Axes that earn no bit are left out. numpy alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_rows
from sparse_retrieval.compress import MOST_NONZEROS_A_ROW, Plan, encode
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.evaluate import exact_top_k, recall_at

if TYPE_CHECKING:
    from sparse_retrieval.index import Metric, SparseIndex

#: Rows that axes are learnt from at most, spread over all: variances are then known to 1 %.
AXIS_ROWS = 65_536

#: Rows that the loss is measured on at most: codebooks of ten bits need more than the sparse codes
#: of `compress.tried`, or they would know every row by heart.
MEASURED_ROWS = 16_384

#: The most bits a value, sign included, that the file holds.
MOST_BITS = 12

#: Rows that a level of a codebook is learnt from at least: codebooks of few rows would know them by
#: heart, and weigh more than they do.
LEAST_ROWS_A_LEVEL = 4

#: Codes of all rows are held before they are packed, 8 bytes a value; with more bytes than these
#: complete codes are not considered.
MOST_BYTES = 1 << 31

#: Rows, and queries among them, on which the recall of both kinds of codes is compared.
COMPARED_ROWS, COMPARED_QUERIES, COMPARED_DEPTH = 16_384, 512, 50

#: What complete codes must gain of recall to be taken, or what share of what sparse codes miss: a
#: search looks up as many values as there are axes, so that a tie is no reason.
WORTH, WORTH_OF_MISSED = 0.005, 0.25

#: Where their loss (1 - cosine) is not below that of sparse codes by this, no recall is measured:
#: they were never better then (word pieces, 96 bytes: as much is lost, and .825 recalled against
#: .835).
HOPE = 0.9

#: What is left of the variance of normal values by 0, 1, 2 .. bits in the best levels, sign
#: included (Max 1960, table 1); each further bit leaves a quarter of it, about.
LEFT_OF_VARIANCE = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000644)
LEFT_BY_A_BIT = 0.254


def plan(
    x: Any, *, bytes_per_item: float, normalise: bool, threads: int | None
) -> tuple[Dictionary, Plan] | None:
    """Axes, and bits a value, for complete codes of so many bytes.

    Parameters
    ----------
    x : array_like of float, shape (n, d)
    bytes_per_item : float
        Bytes of row and scale to stay within.
    normalise : bool
        Items count as unit vectors.
    threads : int or None

    Returns
    -------
    tuple of (Dictionary, Plan), or None
        The axes that earned a bit, as atoms, with a mean if items are normalised; and k, bits and
        the loss. None where not even one axis fits, rows do not differ, or the codes of all rows
        would take too much memory.

    References
    ----------
    J. J. Y. Huang and P. M. Schultheiss, "Block quantization of correlated Gaussian random
    variables", IEEE Trans. Communications Systems 11, 1963.
    """
    bits = int((bytes_per_item - 2) * 8)
    # each item has a scale of its own, so that what counts are directions
    rows = _unit(_spread(x, AXIS_ROWS))
    # the mean of unit rows cannot be taken from codes that keep the norms of the items
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32) if normalise else None
    centred = rows if mean is None else rows - mean
    # singular values are those of the covariance to the last digit, but take far longer
    variances, axes = np.linalg.eigh(centred.T @ centred / np.float32(len(rows)))
    order = np.argsort(-variances, kind="stable")
    order = order[:MOST_NONZEROS_A_ROW]  # of a wider row the leading ones
    variances, axes = np.maximum(variances[order], 0.0), axes[:, order].T
    # a sign, and as many levels as rows are enough for
    most = max(len(x) // LEAST_ROWS_A_LEVEL, 1).bit_length()
    of_axes = allocated(variances, bits, min(most, MOST_BITS))
    kept = np.flatnonzero(of_axes)
    if len(kept) == 0 or 8 * len(x) * len(kept) > MOST_BYTES:
        return None
    atoms = axes[kept] / np.linalg.norm(axes[kept], axis=1, keepdims=True)
    # an eigenvector has two signs, and a library may return either
    largest = np.take_along_axis(atoms, np.abs(atoms).argmax(axis=1)[:, None], axis=1)
    dictionary = Dictionary(atoms * np.sign(largest), mean=mean)
    # half a bit more, so that rounding the mean does not lose one
    value_bits = min(float(of_axes.sum() + 0.5) / len(kept), float(MOST_BITS))
    chosen = Plan(len(kept), len(kept), value_bits, is_complete=True)
    sample = _spread(x, MEASURED_ROWS)
    index = build(dictionary, chosen, sample, normalise=normalise, threads=threads)
    rounded = index.stats()["quantisation_cosine"] or 0.0
    sample = _unit(sample)
    centred = sample if mean is None else sample - mean
    lost = _lost(sample, centred, dictionary.atoms, rounded)
    return dictionary, Plan(chosen.n_atoms, chosen.k, value_bits, lost, is_complete=True)


def better_of(
    x: Any,
    sparse: tuple[Dictionary, Plan],
    *,
    bytes_per_item: float,
    normalise: bool,
    threads: int | None,
) -> tuple[Dictionary, Plan]:
    """Complete codes where a sample recalls more by them, else the sparse ones that are given.

    How much codes lose does not say it: both kinds err differently. On package descriptions
    complete codes that lose 0.56 times as much recall the same.

    Parameters
    ----------
    x : array_like of float, shape (n, d)
        Up to 16,384 rows of it are coded, and 512 of them asked with.
    sparse : tuple of (Dictionary, Plan)
        What `compress.tried` chose.
    bytes_per_item, normalise, threads
        As in `plan`.

    Returns
    -------
    tuple of (Dictionary, Plan)
    """
    axes = plan(x, bytes_per_item=bytes_per_item, normalise=normalise, threads=threads)
    if axes is None or not axes[1].lost < HOPE * sparse[1].lost:
        return sparse
    rows = _spread(x, COMPARED_ROWS)
    queries = _spread(rows, COMPARED_QUERIES)
    metric: Metric = "cosine" if normalise else "inner_product"
    depth = min(COMPARED_DEPTH, len(rows))
    truth = exact_top_k(rows, queries, depth, metric=metric).ids
    recalls = []
    for dictionary, chosen in (axes, sparse):
        index = build(dictionary, chosen, rows, normalise=normalise, threads=threads)
        found = index.search(queries, depth, threads=threads).ids
        recalls.append(recall_at(found, truth))
    gained = recalls[0] - recalls[1]
    is_worth = gained >= min(WORTH, WORTH_OF_MISSED * (1.0 - recalls[1])) and gained > 0
    return axes if is_worth else sparse


def build(
    dictionary: Dictionary,
    chosen: Plan,
    rows: npt.NDArray[np.float32],
    *,
    normalise: bool,
    threads: int | None,
) -> SparseIndex:
    """An index of some rows, to see what a choice is worth."""
    from sparse_retrieval.index import SparseIndex

    codes = encode(dictionary, rows, chosen, normalise=normalise, threads=threads, progress=False)
    return SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric="cosine" if normalise else "inner_product",
        value_bits=chosen.value_bits,
        complete=chosen.is_complete,
        unit_items=normalise,
        modes=("dense",),
        threads=threads,
    )


def allocated(
    variances: Sequence[float] | npt.NDArray[Any], bits: int, most: int = MOST_BITS
) -> npt.NDArray[np.int64]:
    """Bits of each axis, sign included: each to the axis whose error it lessens most.

    Parameters
    ----------
    variances : sequence of float
        Of the axes.
    bits : int
        In all.
    most : int, default MOST_BITS
        Of an axis.

    Returns
    -------
    ndarray of int64, shape (len(variances),)
        0 to `most` each.
    """
    left = list(LEFT_OF_VARIANCE)
    while len(left) <= MOST_BITS:
        left.append(left[-1] * LEFT_BY_A_BIT)
    given = np.zeros(len(variances), dtype=np.int64)
    # the largest gain first, of equal ones the first axis
    gains = [(-v * (left[0] - left[1]), axis) for axis, v in enumerate(variances) if v > 0]
    heapq.heapify(gains)
    for _ in range(bits):
        if not gains:
            break
        _, axis = heapq.heappop(gains)
        given[axis] += 1
        has = int(given[axis])
        if has < most:
            heapq.heappush(gains, (-variances[axis] * (left[has] - left[has + 1]), axis))
    return given


def _lost(
    rows: npt.NDArray[np.float32],
    centred: npt.NDArray[np.float32],
    atoms: npt.NDArray[np.float32],
    rounded: float,
) -> float:
    """1 - cosine of rows and what is stored of them, from errors that stand at right angles."""
    kept = np.square(centred @ atoms.T, dtype=np.float64).sum(axis=1)
    whole = np.square(rows, dtype=np.float64).sum(axis=1)
    left_out = np.maximum(np.square(centred, dtype=np.float64).sum(axis=1) - kept, 0.0)
    error = left_out + kept * (1.0 - rounded**2)
    share = error[whole > 0] / whole[whole > 0]
    if len(share) == 0:
        return 0.0
    return float(np.mean(1.0 - np.sqrt(np.maximum(1.0 - share, 0.0))))


def _spread(x: Any, most: int) -> npt.NDArray[np.float32]:
    step = -(-len(x) // most)
    return as_rows(x[::step], "x", np.float32, step=step)


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
