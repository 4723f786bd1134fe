"""What each option of training gives on real embeddings: one changed at a time, over seeds.

    python benches/training_ablations.py --data PATH [--steps 300] [--batch-size 2048]
        [--seeds 0 1] [--only ..]

PATH is a folder with ``catalogue_minilm_f16.npy``. Each option is compared with a constant rate
and nothing else. 1,000 rows are held out, others with each seed;
each trial trains a fresh model on the rest, encodes it with its own encoder, and is judged by the
recall of the held-out rows at several k. What stands in the result file already with the same
options, steps and batch is not run again; so a run that was stopped goes on. Writes
``benches/results/training_ablations.json``, which ``render_docs.py`` turns into tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

import _machine
import sparse_retrieval as sr
from sparse_retrieval.evaluate import exact_top_k
from sparse_retrieval.training import TrainConfig

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES, DEPTH = 1_000, 100
HIDDEN_DIM, K = 4_096, 32
JUDGED_K = (8, 16, 32, 64, 128)

#: Options by name; ``k`` and ``init`` go to the model, the others to `TrainConfig`.
TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nested k": {"nested_k": (8, 16, 32, 64, 128)},
    "k = 8": {"k": 8},
    "k = 128": {"k": 128},
    "cooldown": {"schedule": "cooldown"},
    "linear rate": {"schedule": "linear"},
    "cosine rate": {"schedule": "cosine"},
    "EMA 0.98": {"ema_decay": 0.98},
    "resample": {"revive": "resample"},
    "auxiliary": {"revive": "auxiliary"},
    "BatchTopK": {"selection": "batch"},
    "k from 64 to 32": {"k_start": 64},
    "no second term": {"wide_weight": 0.0, "wide_factor": 1},
    "clipped at 0.1": {"max_grad_norm": 0.1},
    "tangent gradient": {"tangent": True},
    "bf16": {"precision": "bf16"},
    "tied start": {"init": "tied"},
    "ranking": {"ranking_weight": 1.0},
    "ranking, cooldown": {"ranking_weight": 1.0, "schedule": "cooldown"},
    "ranking, cooldown, hard negatives": {
        "ranking_weight": 1.0,
        "schedule": "cooldown",
        "hard_negatives": 7,
    },
    **{
        f"ranking from the start, weight {weight:g}, temperature 0.05": {
            "ranking_weight": weight,
            "ranking_temperature": 0.05,
            "ranking_start": 0.0,
        }
        for weight in (1.0, 0.1, 0.01)
    },
}

Rows = NDArray[np.float32]


@torch.no_grad()
def judge(model: sr.CompresSAE, items: Rows, queries: Rows, true_ids: Any) -> dict[str, Any]:
    """Recall at each k of dense queries, of sparse ones at the model's K, and cosines."""
    q = normalize(torch.from_numpy(queries))
    of_items = [decoded(model, block) for block in torch.from_numpy(items).split(4_096)]
    of_queries = decoded(model, q)
    dense, cosine = {}, {}
    for at, k in enumerate(JUDGED_K):
        x_hat = torch.cat([block[at] for block in of_items])
        found = torch.cat([(part @ x_hat.T).topk(DEPTH).indices for part in q.split(250)])
        dense[str(k)] = recall(found.numpy(), true_ids)
        cosine[str(k)] = float((q * of_queries[at]).sum(dim=1).mean())
    codes, asked = (model.sparse_codes(rows, k=K) for rows in (items, queries))
    index = sr.SparseIndex.from_codes(codes, metric="cosine")
    sparse = recall(index.search(asked, DEPTH).ids, true_ids)
    return {"dense_recall": dense, "sparse_recall": sparse, "held_out_cosine": cosine}


def decoded(model: sr.CompresSAE, rows: torch.Tensor) -> torch.Tensor:
    """Directions of reconstructions from each of JUDGED_K nonzeros, (len(JUDGED_K), n, d)."""
    code = model.encode(rows, k=max(JUDGED_K))
    return normalize(model.decode_prefixes(code, JUDGED_K), dim=2)


def recall(found: NDArray[np.int64], true_ids: NDArray[np.int64]) -> float:
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, true_ids, strict=True)]
    return float(np.mean(hits)) / DEPTH


def trial(options: dict[str, Any], data: Split, common: dict[str, Any]) -> dict[str, Any]:
    """Train once; return what is kept of it."""
    options = dict(options)
    k, init = options.pop("k", K), options.pop("init", "independent")
    model = sr.CompresSAE(data.items.shape[1], HIDDEN_DIM, k, init=init, seed=common["seed"])
    history = sr.train(model, data.items, config=TrainConfig(**{**common, **options}))
    return {
        **judge(model, data.items, data.queries, data.true_ids),
        "loss": float(history.loss[-10:].mean()),
        "dead": float(history.dead_latents[-1]),
        "step_s": float(np.median(history.seconds)),
    }


class Split(NamedTuple):
    """Items that are trained on and found, held-out queries, and their nearest items."""

    items: Rows
    queries: Rows
    true_ids: NDArray[np.int64]

    @classmethod
    def drawn(cls, x: Rows, seed: int) -> Split:
        """Hold QUERIES rows back, chosen by a seed."""
        order = np.random.default_rng(seed).permutation(len(x))
        queries, items = x[np.sort(order[:QUERIES])], x[np.sort(order[QUERIES:])]
        return cls(items, queries, exact_top_k(items, queries, DEPTH).ids)


def main() -> int:
    """Run what is not in the result file yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=2_048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=sorted(TRIALS), help="these trials")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "training_ablations.json"
    )
    given = parser.parse_args()
    x = np.load(given.data / EMBEDDINGS).astype(np.float32)
    common = {"steps": given.steps, "batch_size": given.batch_size, "schedule": "constant"}
    before = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
    kept = before.get("trials", {}) if before.get("training") == common else {}
    for seed in given.seeds:
        data = Split.drawn(x, seed)
        for name in given.only or TRIALS:
            options = json.loads(json.dumps(TRIALS[name]))
            if kept.get(name, {}).get("options") != options:
                kept[name] = {"options": options, "seeds": {}}
            if str(seed) in kept[name]["seeds"]:
                continue
            machine = _machine.describe()
            row = trial(TRIALS[name], data, {**common, "seed": seed})
            kept[name]["seeds"][str(seed)] = {**row, "load_average": machine["load_average"]}
            print(
                f"{name:36} seed {seed} recall {row['dense_recall'][str(K)]:.4f} "
                f"sparse {row['sparse_recall']:.4f} dead {row['dead']:.1%} "
                f"{row['step_s']:.2f} s a step",
                flush=True,
            )
            seeds = sorted({int(done) for trial in kept.values() for done in trial["seeds"]})
            results = {
                "benchmark": "training_ablations",
                "command": f"python benches/training_ablations.py --data PATH --steps "
                f"{given.steps} --batch-size {given.batch_size} "
                f"--seeds {' '.join(map(str, seeds))}",
                "machine": machine,
                "data": {
                    "name": "package descriptions, all-MiniLM-L6-v2",
                    "items": len(data.items),
                    "queries": QUERIES,
                    "columns": int(x.shape[1]),
                },
                "model": {"hidden_dim": HIDDEN_DIM, "k": K},
                "training": common,
                "depth": DEPTH,
                "trials": kept,
            }
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
