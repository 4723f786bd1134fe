"""What each choice of learning and packing gives: one choice changed, the rest as it is.

Parts of `recall_per_bytes.py`, on its split and truth, with one seed. All at k = 32, 4,096 atoms,
4 bits a value and 66 bytes an item unless a row says otherwise. Each function returns rows for
the result file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import sparse_retrieval as sr

if TYPE_CHECKING:
    from recall_per_bytes import Study

ATOMS, K, ROUNDS, SEED = 4096, 32, 12, 0
LEVELS = 8
#: (atoms, nonzeros of 13 + 4 and of 14 + 4 bits that fit 66 bytes)
WIDE = ((8192, 30), (16_384, 28))
WIDE_ROUNDS = 4


def _fit(study: Study, *, n_atoms: int = ATOMS, **options: Any) -> tuple[sr.Dictionary, float]:
    """Atoms rounded to half precision, in which an index holds them, and seconds of learning."""
    begun = time.perf_counter()
    options = {"rounds": ROUNDS, "seed": SEED, **options}
    learnt = sr.Dictionary.fit(study.items, n_atoms=n_atoms, k=K, **options)
    held = sr.Dictionary(learnt.atoms.astype(np.float16), mean=learnt.mean)
    return held, time.perf_counter() - begun


def _row(
    study: Study,
    name: str,
    dictionary: sr.Dictionary,
    codes: sr.SparseCodes,
    fit_s: float,
    *,
    value_bits: float = 4,
    n_bytes: float | None = None,
) -> dict[str, Any]:
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric="cosine",
        value_bits=value_bits,
        unit_items=True,
        modes=("dense",),
    )
    return {
        "setting": name,
        "ablation": name,
        "bytes": index.bytes_per_item if n_bytes is None else n_bytes,
        "recall": study.recall(index.search(study.queries, study.depth).ids),
        "fit_s": round(fit_s, 1),
        "seed": SEED,
    }


def learnt(study: Study, *, rounds: int = ROUNDS, momentum: float = 0.8) -> list[dict[str, Any]]:
    """Rounds and momentum of the learning."""
    dictionary, fit_s = _fit(study, rounds=rounds, momentum=momentum)
    codes = dictionary.encode(study.items, k=K)
    return [_row(study, f"{rounds} rounds, momentum {momentum:g}", dictionary, codes, fit_s)]


def levels(study: Study) -> list[dict[str, Any]]:
    """What is done by default, and levels that are chosen one by one."""
    dictionary, fit_s = _fit(study)
    codes = dictionary.encode(study.items, k=K)
    together = _row(study, f"{ROUNDS} rounds, momentum 0.8", dictionary, codes, fit_s)
    apart = levels_apart(dictionary, codes)
    name = "the same, each level chosen alone"
    options = {"value_bits": 32, "n_bytes": together["bytes"]}
    return [together, _row(study, name, dictionary, apart, fit_s, **options)]


def mean(study: Study) -> list[dict[str, Any]]:
    """Rows less the corpus mean."""
    dictionary, fit_s = _fit(study, subtract_mean=True)
    codes = dictionary.encode(study.items, k=K)
    return [_row(study, "corpus mean subtracted", dictionary, codes, fit_s)]


def covariance(study: Study) -> list[dict[str, Any]]:
    """Errors weighted by the covariance C of the items, as of queries drawn like them.

    The expected square of <q, x - x_hat> over such queries is (x - x_hat)^T C (x - x_hat), so
    y = C^p x with p = 1/2 is learnt and encoded instead, and asked with C^-p q; p = 1/4 is half
    way to what is done without it.
    """
    values, axes = np.linalg.eigh(study.items.T.astype(np.float64) @ study.items)
    values = np.maximum(values / values.max(), 1e-6)
    rows = []
    for power in (0.25, 0.5):
        forth = (axes * values**power) @ axes.T
        back = (axes * values**-power) @ axes.T
        weighted = (study.items @ forth).astype(np.float32)
        begun = time.perf_counter()
        learnt = sr.Dictionary.fit(weighted, n_atoms=ATOMS, k=K, rounds=ROUNDS, seed=SEED)
        fit_s = time.perf_counter() - begun
        dictionary = sr.Dictionary(learnt.atoms.astype(np.float16))
        index = sr.SparseIndex.from_codes(
            dictionary.encode(weighted, k=K, normalise=False),
            dictionary=dictionary,
            metric="inner_product",
            value_bits=4,
            modes=("dense",),
        )
        asked = (study.queries @ back).astype(np.float32)
        name = f"errors weighted by covariance, power {power:g}"
        rows.append(
            {
                "setting": name,
                "ablation": name,
                "bytes": index.bytes_per_item,
                "recall": study.recall(index.search(asked, study.depth).ids),
                "fit_s": round(fit_s, 1),
                "seed": SEED,
            }
        )
    return rows


def atoms(study: Study) -> list[dict[str, Any]]:
    """Twice as many atoms as the most that `from_embeddings` takes, few rounds of both."""
    rows = []
    for n_atoms, k in WIDE:
        dictionary, fit_s = _fit(study, n_atoms=n_atoms, rounds=WIDE_ROUNDS)
        codes = dictionary.encode(study.items, k=k)
        name = f"{n_atoms} atoms, {WIDE_ROUNDS} rounds, k = {k}"
        rows.append(_row(study, name, dictionary, codes, fit_s))
    return rows


def levels_apart(dictionary: sr.Dictionary, codes: sr.SparseCodes) -> sr.SparseCodes:
    """Codes whose values are levels, each the nearest one to its own value.

    The codebooks are the index's: of each rank, by Lloyd's algorithm, of magnitudes relative to
    the row's norm. The scale is fitted to the decoded row afterwards, as the index does.
    """
    lengths = np.diff(codes.indptr.astype(np.int64))
    row = np.repeat(np.arange(len(codes)), lengths)
    order = np.lexsort((-np.abs(codes.values), row))
    rank = np.arange(codes.nnz) - np.repeat(codes.indptr[:-1].astype(np.int64), lengths)
    norms = np.sqrt(np.bincount(row, codes.values.astype(np.float64) ** 2, len(codes)))
    norms[norms == 0] = 1.0
    magnitudes = np.abs(codes.values[order]) / norms[row]
    levels = np.empty(codes.nnz)
    for r in range(int(lengths.max())):
        of = rank == r
        levels[of] = _lloyd(magnitudes[of])
    values = np.empty(codes.nnz, dtype=np.float32)
    values[order] = levels
    values *= np.sign(codes.values)
    quantised = sr.SparseCodes.from_csr(codes.indptr, codes.latents, values, codes.dim)
    exact, coarse = dictionary.decode(codes), dictionary.decode(quantised)
    crossed = np.einsum("ij,ij->i", exact, coarse, dtype=np.float64)
    squared = np.einsum("ij,ij->i", coarse, coarse, dtype=np.float64)
    scales = crossed / np.where(squared > 0, squared, 1.0)
    scaled = (values * scales[row]).astype(np.float32)
    return sr.SparseCodes.from_csr(codes.indptr, codes.latents, scaled, codes.dim)


def _lloyd(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The level of each of these magnitudes, of LEVELS that are learnt from them."""
    levels = np.quantile(magnitudes, (np.arange(LEVELS) + 0.5) / LEVELS)
    for _ in range(30):
        chosen = np.searchsorted((levels[1:] + levels[:-1]) / 2, magnitudes)
        counts = np.bincount(chosen, minlength=LEVELS)
        sums = np.bincount(chosen, magnitudes, LEVELS)
        levels = np.where(counts > 0, sums / np.maximum(counts, 1), levels)
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, magnitudes)]


#: Parts of the benchmark by name.
PARTS: dict[str, Callable[[Study], list[dict[str, Any]]]] = {
    "ablation-levels": levels,
    "ablation-momentum-0": lambda study: learnt(study, momentum=0.0),
    "ablation-mean": mean,
    "ablation-covariance": covariance,
    "ablation-rounds-8": lambda study: learnt(study, rounds=8),
    "ablation-rounds-16": lambda study: learnt(study, rounds=16),
    "ablation-atoms": atoms,
}
