"""The paper's figure on real embeddings: recall@100 of each way of asking, at equal bytes.

    python benches/paper_figure.py --data PATH [--steps 300] [--seed 0]

PATH is a folder with ``catalogue_minilm_f16.npy``; 1,000 rows are held out as queries. Two models
are trained on the others, one at k = 32 and one for every k at once (``nested_k``), and each is
measured at k = 8 to 128 in the paper's two modes, sparse and reconstructed, and with dense queries.
Bytes are those of the paper, 4 for a latent and 4 for a value, whatever an index takes. At the same
bytes stand embeddings rotated onto their principal axes and cut, 4 bytes a coordinate. Writes
``benches/results/paper_figure.json``; ``render_docs.py`` draws it into the docs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from sparse_retrieval.cli._curves import MODES, queries_for
from sparse_retrieval.evaluate import exact_top_k, principal_axes, recall_at

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES, DEPTH = 1_000, 100
HIDDEN_DIM, K, BATCH_SIZE = 4_096, 32, 2_048
KS = (8, 16, 32, 64, 128)
MODELS: dict[str, tuple[int, ...]] = {"trained at k = 32": (), "trained for every k": KS}

Rows = NDArray[np.float32]


def of_model(
    nested_k: tuple[int, ...], items: Rows, queries: Rows, true_ids: Any, steps: int, seed: int
) -> list[dict[str, Any]]:
    """Train one model; its recall in each mode at each k."""
    model = sr.CompresSAE(items.shape[1], HIDDEN_DIM, K, seed=seed)
    config = sr.TrainConfig(
        steps=steps, batch_size=BATCH_SIZE, seed=seed, nested_k=nested_k, schedule="constant"
    )
    sr.train(model, items, config=config)
    codes, asked = (model.sparse_codes(rows, k=max(KS)) for rows in (items, queries))
    dictionary, points = model.dictionary(), []
    for k in KS:
        index = sr.SparseIndex.from_codes(
            codes.top(k), dictionary=dictionary, metric="cosine", value_bits=32, modes=MODES
        )
        for mode in MODES:
            found = index.search(queries_for(mode, queries, asked.top(k)), DEPTH, mode=mode).ids
            points.append(
                {"mode": mode, "k": k, "bytes": 8 * k, "recall": recall_at(found, true_ids, DEPTH)}
            )
            print(f"  k = {k:3} {mode:14} {points[-1]['recall']:.4f}", flush=True)
    return points


def truncated(items: Rows, queries: Rows, true_ids: Any) -> list[dict[str, Any]]:
    """Recall of rows on as many principal axes as fit the bytes of each k."""
    axes = principal_axes(items)
    points = []
    for k in KS:
        low, asked = ((rows @ axes[:, : 2 * k]).astype(np.float32) for rows in (items, queries))
        found = exact_top_k(low, asked, DEPTH).ids
        recall = recall_at(found, true_ids, DEPTH)
        points.append({"axes": 2 * k, "bytes": 8 * k, "recall": recall})
    return points


def main() -> int:
    """Measure everything and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of split and training (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "paper_figure.json"
    )
    given = parser.parse_args()
    x = np.load(given.data / EMBEDDINGS).astype(np.float32)
    order = np.random.default_rng(given.seed).permutation(len(x))
    queries, items = x[np.sort(order[:QUERIES])], x[np.sort(order[QUERIES:])]
    true_ids = exact_top_k(items, queries, DEPTH).ids
    results: dict[str, Any] = {
        "benchmark": "paper_figure",
        "command": f"python benches/paper_figure.py --data PATH --steps {given.steps} "
        f"--seed {given.seed}",
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
            "steps": given.steps,
            "batch_size": BATCH_SIZE,
        },
        "depth": DEPTH,
        "principal axes, cut": truncated(items, queries, true_ids),
        "models": {},
    }
    for name, nested_k in MODELS.items():
        print(name, flush=True)
        points = of_model(nested_k, items, queries, true_ids, given.steps, given.seed)
        results["models"][name] = points
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
