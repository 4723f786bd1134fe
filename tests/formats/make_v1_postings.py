"""Wrote the golden file of version 1 with postings. Run once; it is kept and opened for ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import sparse_retrieval as sr

HERE = Path(__file__).parent


def main() -> None:
    path = HERE / "v1_postings.sridx"
    if path.exists():
        raise SystemExit("the golden file is there already; it must never be written again")
    rng = np.random.default_rng(2)
    latents = rng.permuted(np.tile(np.arange(24), (60, 1)), axis=1)[:, :5]
    codes = sr.SparseCodes(latents, rng.standard_normal((60, 5)).round(3), dim=24)
    index = sr.SparseIndex.from_codes(codes, metric="cosine", value_bits=4, postings=25)
    index.save(path)
    queries = codes[:6].top(3).to_dense().astype(np.float64)
    result = index.search(sr.SparseCodes.from_dense(queries), 7)
    answers = {
        "queries": queries.tolist(),
        "ids": result.ids.tolist(),
        "scores_hex": result.scores.tobytes().hex(),
    }
    (HERE / "v1_postings.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
