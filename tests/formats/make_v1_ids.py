"""Wrote the golden files of ids, and of journals, of version 1. Run once, opened for ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import sparse_retrieval as sr

HERE = Path(__file__).parent


def main() -> None:
    if any(HERE.glob("v1_ids*")):
        raise SystemExit("the golden files are there already; they must never be written again")
    rng = np.random.default_rng(3)
    support = rng.permuted(np.tile(np.arange(24), (40, 1)), axis=1)[:, :5]
    codes = sr.SparseCodes(support, rng.standard_normal((40, 5)).round(3), dim=24)
    uneven = sr.SparseCodes.concatenate([codes[:3], codes[3:40].top(1)])
    names = [f"é{i * 7 % 40}" if i else "" for i in range(40)]
    answers = {}
    for name, items, options in (
        ("v1_ids_strings.sridx", codes, {"ids": names, "value_bits": 4, "metric": "cosine"}),
        ("v1_ids_numbers.sridx", uneven, {"ids": np.arange(40) * 3 % 41 * 10, "value_bits": 8}),
        ("v1_ids_ascend.sridx", codes, {"ids": np.arange(40) * 3 - 50}),
    ):
        sr.SparseIndex.from_codes(items[:30], **options | {"ids": options["ids"][:30]}).save(
            HERE / name
        )
        index = sr.SparseIndex.open(HERE / name)
        if "ascend" not in name:  # that one is without a journal
            ids = list(options["ids"])
            index.add(items[30:36], ids=ids[30:36])
            index.remove([ids[3], ids[31]])
            index.commit()
            index.update(items[36:38], [ids[5], ids[32]])
            index.commit()
        queries = items[:4].to_dense().astype(np.float64)
        result = index.search(sr.SparseCodes.from_dense(queries), 5)
        answers[name] = {
            "queries": queries.tolist(),
            "all_ids": index.ids.tolist(),
            "ids": result.ids.tolist(),
            "scores_hex": result.scores.tobytes().hex(),
        }
    (HERE / "v1_ids.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
