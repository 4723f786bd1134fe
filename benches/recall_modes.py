"""Recall of the three ways of asking, on the full set of package descriptions.

    python benches/recall_modes.py --data PATH [--steps 600] [--seed 0] [--out FILE]

PATH is a folder with ``catalogue_minilm_f16.npy``. 1,000 rows are held out as queries, a
CompresSAE is trained on the others, and each mode is measured at 32, 16 and 8 bits a value
against exact cosine search. Writes one JSON file, which ``benches/render_docs.py`` turns into
the tables and the picture of the docs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from sparse_retrieval.cli._curves import (
    MODES,
    Stopwatch,
    curve,
    exact_report,
    pca_curve,
    queries_for,
)
from sparse_retrieval.evaluate import evaluate_index, exact_top_k

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES = 1_000
HIDDEN_DIM = 4_096
K = 32
BATCH_SIZE = 4_096
DEPTH = 100
VALUE_BITS = (32, 16, 8)
CURVE_K = (8, 12, 16, 24, 32, 48, 64)
PCA_AXES = (16, 32, 48, 64, 96, 128, 192, 256)


def measure(x: NDArray[np.float32], steps: int, seed: int) -> dict[str, Any]:
    """Train, encode, index and search; return what the result file holds."""
    shuffled = np.random.default_rng(seed).permutation(len(x))
    queries, items = x[np.sort(shuffled[:QUERIES])], x[np.sort(shuffled[QUERIES:])]
    true_ids = exact_top_k(items, queries, DEPTH).ids

    watch = Stopwatch()
    model = sr.CompresSAE(input_dim=x.shape[1], hidden_dim=HIDDEN_DIM, k=K, seed=seed)
    # as the paper trains, without the cooling rate that is the default here
    config = sr.TrainConfig(steps=steps, batch_size=BATCH_SIZE, seed=seed, schedule="constant")
    history = sr.train(model, items, config=config)
    train_s = watch.lap_s()
    codes, asked = (model.sparse_codes(rows, k=max(CURVE_K)) for rows in (items, queries))
    encode_s = watch.lap_s()
    dictionary = model.dictionary()
    _check_against_decoded(model, codes.top(K), dictionary, queries[:50])
    rows = _measure_modes(codes.top(K), asked.top(K), queries, dictionary, true_ids)
    points = curve(
        codes, asked, queries, dictionary, true_ids, ks=CURVE_K, value_bits=8, depth=DEPTH
    )
    points += pca_curve(items, queries, true_ids, components=PCA_AXES, depth=DEPTH)
    return {
        "benchmark": "recall_modes",
        "command": f"python benches/recall_modes.py --data PATH --steps {steps} --seed {seed}",
        "machine": _machine.describe(),
        "data": {
            "name": "package descriptions, all-MiniLM-L6-v2",
            "items": len(items),
            "queries": len(queries),
            "columns": int(x.shape[1]),
        },
        "model": {
            "hidden_dim": HIDDEN_DIM,
            "k": K,
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "lr": history.config.lr,
            "seed": seed,
        },
        "train_s": round(train_s, 1),
        "encode_s": round(encode_s, 2),
        "depth": DEPTH,
        "exact": dataclasses.asdict(exact_report(items, queries, DEPTH)),
        "modes": rows,
        "curve": [dataclasses.asdict(point) for point in points],
    }


def _measure_modes(
    codes: sr.SparseCodes,
    asked: sr.SparseCodes,
    queries: NDArray[np.float32],
    dictionary: sr.Dictionary,
    true_ids: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Measure each mode at each width on an index built for it alone: its bytes are its own."""
    rows = []
    for mode in MODES:
        for value_bits in VALUE_BITS:
            index = sr.SparseIndex.from_codes(
                codes,
                dictionary=None if mode == "sparse" else dictionary,
                metric="cosine",
                value_bits=value_bits,
                modes=(mode,),
            )
            report = evaluate_index(
                index, queries_for(mode, queries, asked), true_ids, k=DEPTH, mode=mode
            )
            rows.append({"value_bits": value_bits, **dataclasses.asdict(report)})
    return rows


def _check_against_decoded(
    model: sr.CompresSAE,
    codes: sr.SparseCodes,
    dictionary: sr.Dictionary,
    queries: NDArray[np.float32],
) -> None:
    """Stop if dense queries do not find what exact search of the decoded items finds."""
    index = sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, metric="cosine", value_bits=32, modes=("dense",)
    )
    found = index.search(queries, DEPTH, mode="dense").ids
    want = exact_top_k(dictionary.decode(codes), queries, DEPTH).ids
    # Items are decoded in single precision here, so near ties at rank 100 may swap.
    shared = np.mean([np.isin(a, b).mean() for a, b in zip(found, want, strict=True)])
    if shared < 0.995:
        raise AssertionError(f"the index and the decoded items share {shared:.4f} of their answers")


def main() -> int:
    """Parse the arguments, measure, write the file and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of split and training (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "recall_modes.json"
    )
    options = parser.parse_args()
    path = options.data / EMBEDDINGS
    if not path.is_file():
        print(
            f"recall_modes.py: error: {path} is absent; this benchmark needs the full set, which "
            "is not part of the repository (its sample is examples/data: see `make demo`)",
            file=sys.stderr,
        )
        return 1
    results = measure(np.load(path).astype(np.float32), options.steps, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["modes"]:
        print(
            f"{row['mode']:14} {row['value_bits']:3} bits  {row['bytes_per_item']:6.1f} bytes  "
            f"recall@{DEPTH} {row['recall']:.4f}  {row['ms_per_query']:.2f} ms a query"
        )
    print(f"wrote {options.out}; python benches/render_docs.py brings the docs in step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
