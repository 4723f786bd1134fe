"""Wrote the golden file of version 1 with complete rows. Run once; it is opened for ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import sparse_retrieval as sr

HERE = Path(__file__).parent


def main() -> None:
    path = HERE / "v1_complete.sridx"
    if path.exists():
        raise SystemExit("the golden file is there already; it must never be written again")
    rng = np.random.default_rng(3)
    values = (rng.standard_normal((40, 11)) / (1 + np.arange(11))).round(4)
    axes = np.linalg.qr(rng.standard_normal((16, 11)))[0].T
    index = sr.SparseIndex.from_codes(
        sr.SparseCodes.from_dense(values),
        dictionary=sr.Dictionary(axes, mean=rng.standard_normal(16).round(3) / 9),
        metric="cosine",
        unit_items=True,
        value_bits=4.5,
        complete=True,
        modes=("dense", "sparse"),
    )
    index.save(path)
    results = {}
    dense = rng.standard_normal((5, 16)).round(3)
    codes = values[:5].round(2)
    for mode, queries in (("dense", dense), ("sparse", codes)):
        asked = queries if mode == "dense" else sr.SparseCodes.from_dense(queries)
        found = index.search(asked, 5, mode=mode)
        results[mode] = {
            "queries": queries.tolist(),
            "ids": found.ids.tolist(),
            "scores_hex": found.scores.tobytes().hex(),
        }
    (HERE / "v1_complete.json").write_text(json.dumps({path.name: {"results": results}}, indent=1))


if __name__ == "__main__":
    main()
