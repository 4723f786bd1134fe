"""Codes for hypothesis, with the edges on purpose: empty rows, repeated rows, ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import sparse_retrieval as sr

#: Around every boundary: tiny, a vector width, 16 bits of latents and one more, far above.
DIMS = (1, 2, 7, 8, 9, 40, 4096, 65_535, 65_536, 65_537, 300_000)

#: Sums of products of these are exact in double precision in any order (at most 26 + 26 bits a
#: product, few terms), so equal scores are equal to the last bit for any correct program.
exact_values = st.integers(-64, 64).map(lambda i: i / 16).filter(bool)

#: Without subnormal ones: an item of nothing else has a norm whose inverse float32 cannot hold
#: (its own test: `test_an_item_whose_norm_has_no_inverse_in_float32_scores_less`).
any_values = st.floats(-1e6, 1e6, width=32, allow_subnormal=False).filter(bool)


@st.composite
def code_rows(draw: Any, dim: int, values: Any, max_rows: int = 12) -> list[dict[int, float]]:
    """Rows as {latent: value}; latents crowd into few, so that rows share them; rows repeat."""
    pool = draw(st.lists(st.integers(0, dim - 1), min_size=1, max_size=24, unique=True))
    row = st.dictionaries(st.sampled_from(pool), values, max_size=24)
    rows = draw(st.lists(row, max_size=max_rows))
    for repeated in draw(st.lists(st.integers(0, max_rows), max_size=4)):
        if repeated < len(rows):
            rows.append(rows[repeated])
    return rows


def as_codes(rows: list[dict[int, float]], dim: int) -> sr.SparseCodes:
    indptr = np.cumsum([0] + [len(row) for row in rows])
    latents = [latent for row in rows for latent in row]
    values = [value for row in rows for value in row.values()]
    return sr.SparseCodes.from_csr(
        indptr, np.array(latents, dtype=np.int64), np.array(values, dtype=np.float32), dim
    )


def as_dense(rows: list[dict[int, float]], dim: int) -> np.ndarray:
    dense = np.zeros((len(rows), dim), dtype=np.float32)
    for i, row in enumerate(rows):
        for latent, value in row.items():
            dense[i, latent] = value
    return dense


def compressed(*matrices: np.ndarray) -> list[np.ndarray]:
    """The matrices without the columns that are zero in all of them: same inner products."""
    used = np.flatnonzero(np.any([np.any(matrix != 0, axis=0) for matrix in matrices], axis=0))
    return [matrix[:, used] for matrix in matrices]
