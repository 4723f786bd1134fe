"""Wrote the golden files of version 1. Run once; what it wrote is kept and opened for ever.

A new version of the format adds a script and files of its own beside these.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import sparse_retrieval as sr

HERE = Path(__file__).parent


def main() -> None:
    if any(HERE.glob("v1*.sridx")):
        raise SystemExit("the golden files are there already; they must never be written again")
    rng = np.random.default_rng(1)
    atoms = rng.standard_normal((24, 6))
    dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    even = sr.SparseCodes(
        rng.permuted(np.tile(np.arange(24), (40, 1)), axis=1)[:, :5],
        rng.standard_normal((40, 5)).round(3),
        dim=24,
    )
    uneven = sr.SparseCodes.concatenate([even[:3], even[3:40].top(1)])
    every = ("sparse", "reconstructed", "dense")
    wide = sr.SparseCodes.from_csr(even.indptr, even.latents.astype(int) * 3000, even.values, 70_000)
    answers = {}
    for name, codes, options in (
        ("v1_float32.sridx", even, {}),
        ("v1_int16_wide.sridx", wide, {"value_bits": 16, "ids": np.arange(40) * 7 - 100}),
        (
            "v1_int8_cosine.sridx",
            even,
            {"value_bits": 8, "metric": "cosine", "dictionary": dictionary, "modes": every}
            | {"ids": np.arange(40)[::-1], "metadata": {"made": "for the tests"}},
        ),
        ("v1_int8_offsets.sridx", uneven, {"value_bits": 8, "metric": "cosine"}),
        (
            "v1_ranked.sridx",
            even,
            {"value_bits": 4, "metric": "cosine", "dictionary": dictionary, "modes": every}
            | {"unit_items": True},
        ),
        ("v1_ranked_by_rank.sridx", even, {"value_bits": 2.6}),
    ):
        index = sr.SparseIndex.from_codes(codes, **options)
        index.save(HERE / name)
        results = {}
        for mode in index.modes:
            rows = codes[:4].to_dense() if mode != "dense" else rng.standard_normal((4, 6)).round(3)
            queries = rows.astype(np.float64)
            asked = queries if mode == "dense" else sr.SparseCodes.from_dense(queries)
            if codes.dim > 1000:
                continue  # dense rows of 70,000 numbers do not belong into a JSON file
            result = index.search(asked, 5, mode=mode)
            results[mode] = {
                "queries": queries.tolist(),
                "ids": result.ids.tolist(),
                "scores_hex": result.scores.tobytes().hex(),
            }
        answers[name] = {"results": results}
    (HERE / "v1.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
