"""From embeddings to an index in one call: learn a dictionary, encode, build.

Holds the choices that `SparseIndex.from_embeddings` makes for its users; each of its steps is
public on its own. Codes that have every latent are chosen in `complete`. numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count, as_real, as_rows
from sparse_retrieval._progress import bar
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary

if TYPE_CHECKING:
    from sparse_retrieval.index import Metric

#: Fewer rows teach too little to be worth a dictionary.
LEAST_ROWS = 100

#: Rows an atom that the default number of atoms leaves, about, where rows are `WIDE` or wider. All
#: rows that are stored are learnt from, so this may be fewer than what atoms for unseen rows need
#: (see `Dictionary.fit`). Narrower rows get more atoms, in proportion, so that the dictionary
#: takes some 110 bytes an item at most: they have fewer numbers to learn, and where rows are as
#: narrow as codes are long, recall comes from atoms to choose among (docs/benchmarks.md).
ROWS_AN_ATOM, WIDE = 7, 384
LEAST_ROWS_AN_ATOM = 3

#: More atoms decode better still, at a cost that grows with their square.
MOST_ATOMS = 8192

#: Rows an atom to learn from at most: more change the third digit of the cosine.
SAMPLE_ROWS_AN_ATOM = 32

#: Bits a value that are tried where bytes are given and bits are not. Fractions give bits to the
#: ranks that they help most, so 3.5 is often better than 3 and 4. Rows that are coded closely, as
#: narrow ones at many bytes, gain more from more bits than from more nonzeros.
BITS_TRIED = (3.25, 3.5, 3.75, 4, 4.5, 5.5, 7)
#: Nonzeros of what is tried, as a share of the dimensions: with as many as there are, values grow
#: large and cancel each other, and rounding them loses what the last atoms gain.
MOST_NONZEROS = 0.8
DEFAULT_BITS = 4
#: What the encoder takes, of sparse codes and of complete ones.
MOST_NONZEROS_A_ROW = 1024
#: Rows that they are tried on: the same for all, so that small differences show.
TRIED_ROWS = 2_048

#: Rows whose cosine with their codes is measured for `SparseIndex.stats`.
MEASURED_ROWS = 10_000


@dataclass(frozen=True)
class Plan:
    """What was chosen: atoms s, nonzeros an item k, and bits a value.

    Attributes
    ----------
    n_atoms, k : int
    value_bits : float
    lost : float
        1 - cosine that a sample of the rows loses; NaN where nothing was tried.
    is_complete : bool
        Items have every latent (k = s), see `complete`.
    """

    n_atoms: int
    k: int
    value_bits: float
    lost: float = math.nan
    is_complete: bool = False


def default_atoms(n: int, width: int = WIDE) -> int:
    """A power of two that leaves about 7 rows an atom, 64 at least and 8,192 at most.

    The nearest power of two, since latents are stored in whole bits. Rows narrower than 384 get
    more atoms, down to about 3 rows for each. 64 atoms of 100 rows decode little, but a dictionary
    must have more atoms than a code has nonzeros.

    Parameters
    ----------
    n : int
        Rows.
    width : int, default 384
        Numbers a row.
    """
    rows = min(max(ROWS_AN_ATOM * width / WIDE, LEAST_ROWS_AN_ATOM), ROWS_AN_ATOM)
    return min(max(1 << max(round(math.log2(n / rows)), 0), 64), MOST_ATOMS)


def plan(
    n: int, *, k: int | None, bytes_per_item: float | None, n_atoms: int, value_bits: float
) -> Plan:
    """Choose k.

    Parameters
    ----------
    n : int
        Rows.
    k : int or None
        Nonzeros an item, as given.
    bytes_per_item : float or None
        Bytes of row and scale to stay within, as given; not together with k.
    n_atoms : int
        Atoms.
    value_bits : float
        Bits a value.

    Raises
    ------
    TypeError, ValueError
        If both are given, or not even one nonzero fits the bytes.
    """
    if k is not None and bytes_per_item is not None:
        raise ValueError("k and bytes_per_item are both given; expected one of them")
    if bytes_per_item is not None:
        bytes_per_item = as_real(bytes_per_item, "bytes_per_item", least=0)
        # float32 values of unit items, or for inner products, need no scale
        scale_bytes, latent_bits = 4 if value_bits < 32 else 0, 16 if n_atoms <= 1 << 16 else 32
        if value_bits < 8:
            scale_bytes, latent_bits = 2, max(1, (n_atoms - 1).bit_length())
        k = int((bytes_per_item - scale_bytes) * 8 / (latent_bits + value_bits))
        if k < 1:
            raise ValueError(
                f"bytes_per_item is {bytes_per_item:g}; one nonzero and a scale take "
                f"{scale_bytes + math.ceil((latent_bits + value_bits) / 8)}"
            )
        k = min(k, MOST_NONZEROS_A_ROW)
    k = as_count(32 if k is None else k, "k", most=MOST_NONZEROS_A_ROW)
    # codes with as many nonzeros as there are atoms would be a change of basis, no compression
    return Plan(n_atoms, min(k, max(1, n_atoms // 2)), value_bits)


def tried(
    dictionary: Dictionary,
    x: Any,
    *,
    bytes_per_item: float,
    metric: Metric,
    threads: int | None,
) -> Plan:
    """The k and the bits a value that decode a sample best within these bytes.

    What a code loses are two errors at right angles, since values are fitted to their support:
    what its atoms leave, and what its bits round. More bits leave room for fewer nonzeros. Which
    weighs more depends on the data, so each of `BITS_TRIED` is tried on up to `TRIED_ROWS` rows
    spread over x.

    Parameters
    ----------
    dictionary : Dictionary
    x : array_like of float, shape (n, d)
    bytes_per_item : float
        Bytes of row and scale to stay within.
    metric : {"cosine", "inner_product"}
        Of the index to be built.
    threads : int or None

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If not even one nonzero fits the bytes.
    """
    from sparse_retrieval.index import SparseIndex

    step = max(1, len(x) // TRIED_ROWS)
    sample = as_rows(x[::step], "x", np.float32, step=step)
    best, least = Plan(dictionary.n_atoms, 0, 0), math.inf
    for bits in BITS_TRIED:
        try:
            chosen = plan(
                len(x),
                k=None,
                bytes_per_item=bytes_per_item,
                n_atoms=dictionary.n_atoms,
                value_bits=bits,
            )
        except ValueError:
            if bits == BITS_TRIED[0]:
                raise
            break
        most = max(1, int(MOST_NONZEROS * dictionary.embedding_dim))
        chosen = Plan(chosen.n_atoms, min(chosen.k, most), bits)
        codes = dictionary.encode(sample, k=chosen.k, normalise=metric == "cosine", threads=threads)
        index = SparseIndex.from_codes(
            codes,
            dictionary=dictionary,
            metric=metric,
            value_bits=bits,
            unit_items=metric == "cosine",
            modes=("dense",),
            threads=threads,
        )
        decoded = mean_cosine(dictionary, sample, codes)
        rounded = index.stats()["quantisation_cosine"]
        lost = 1.0 - (decoded or 0.0) * (rounded or 0.0)
        if lost < least:
            best, least = replace(chosen, lost=lost), lost
    return best


def learn(
    x: Any,
    chosen: Plan,
    *,
    rounds: int,
    seed: int,
    threads: int | None,
    progress: bool | None,
) -> Dictionary:
    """Atoms for these rows, rounded to half precision, in which they are then stored."""
    with bar("learning", progress) as advance:
        dictionary = Dictionary.fit(
            x,
            n_atoms=chosen.n_atoms,
            k=chosen.k,
            rounds=rounds,
            seed=seed,
            sample=SAMPLE_ROWS_AN_ATOM * chosen.n_atoms,
            threads=threads,
            progress=advance,
        )
    return Dictionary(dictionary.atoms.astype(np.float16))


def encode(
    dictionary: Dictionary,
    x: Any,
    chosen: Plan,
    *,
    normalise: bool,
    threads: int | None,
    progress: bool | None,
) -> SparseCodes:
    """Codes of all rows."""
    # the atoms of complete codes stand at right angles: inner products are their values
    method = "topk" if chosen.is_complete else "pursuit"
    with bar("encoding", progress) as advance:
        return dictionary.encode(
            x, chosen.k, method, normalise=normalise, threads=threads, progress=advance
        )


def mean_cosine(dictionary: Dictionary, x: Any, codes: SparseCodes) -> float | None:
    """Mean cosine of rows and what their codes decode to, over a sample; None without rows."""
    step = max(1, len(codes) // MEASURED_ROWS)
    rows = as_rows(x[::step], "x", np.float32, step=step)
    decoded = dictionary.decode(codes[::step])
    product = np.einsum("ij,ij->i", rows, decoded, dtype=np.float64)
    norms = _norms(rows) * _norms(decoded)
    if not np.any(norms > 0):
        return None
    return float(np.mean(product[norms > 0] / norms[norms > 0]))


def _norms(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return np.sqrt(squares)
