"""What `CompresSAE.refine` gives, and from which start its encoder is best refitted.

    python benches/refine_model.py x.npy --steps 300

trains a model, refines it from three starts of the encoder, judges on 1,000 rows that were held
out, and rewrites a table in docs/training.md. The starts: the trained encoder (what `refine`
does); a copy of the polished decoder; and ridge regression of the codes that pursuit finds on x.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.training import CompresSAE, TrainConfig, refine, train

LATENTS, K, QUERIES, N = 4096, 32, 1000, 100

Rows = npt.NDArray[np.float32]


def recall(x_hat: Rows, items: Rows, queries: Rows) -> float:
    """Recall@100 of dense queries against reconstructed items, by cosine."""
    q, x, found_in = (normalize(torch.from_numpy(rows)) for rows in (queries, items, x_hat))
    found = (q @ found_in.T).topk(N).indices
    exact = (q @ x.T).topk(N).indices
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(hits)) / N


def judged(name: str, dictionary: Dictionary, model: CompresSAE | None, parts: list[Rows]) -> str:
    """One line of the table: codes by the model's encoder, or by pursuit where there is none."""
    items, queries = parts
    encode = dictionary.encode if model is None else model.sparse_codes
    x_hat, q_hat = (dictionary.decode(encode(rows, k=K)) for rows in (items, queries))
    cosine = torch.cosine_similarity(torch.from_numpy(q_hat), torch.from_numpy(queries)).mean()
    return f"| {name} | {float(cosine):.4f} | {recall(x_hat, items, queries):.4f} |"


@torch.no_grad()
def ridge_encoder(model: CompresSAE, items: Rows, share: float = 1e-3) -> None:
    """Make the encoder the ridge regression of pursuit's codes on unit rows and a constant."""
    codes = model.dictionary().encode(items, k=K).to_scipy()
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    x = np.concatenate([unit, np.ones((len(unit), 1), np.float32)], axis=1).astype(np.float64)
    gram = x.T @ x
    gram += share * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = torch.from_numpy(np.linalg.solve(gram, (codes.T @ x).T).T)
    model.encoder_weight.copy_(solved[:, :-1])
    model.encoder_bias.copy_(solved[:, -1])


def table(path: Path, steps: int, rounds: int) -> Iterator[str]:
    """Lines of the table, each as soon as it is known."""
    x = np.load(path).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    queries, items = (x[np.sort(part)] for part in np.split(order, [QUERIES]))
    parts = [items, queries]
    model = CompresSAE(x.shape[1], LATENTS, K)
    train(model, items, config=TrainConfig(steps=steps, schedule="constant"))
    yield judged("trained, its encoder", model.dictionary(), model, parts)
    yield judged("trained, pursuit", model.dictionary(), None, parts)
    kept = copy.deepcopy(model)
    report = refine(kept, items, rounds)
    yield judged("refined, its encoder", kept.dictionary(), kept, parts)
    yield judged("refined, pursuit", kept.dictionary(), None, parts)
    for start in ("a copy of the decoder", "ridge regression"):
        other = copy.deepcopy(kept)
        if start == "ridge regression":
            ridge_encoder(other, items)
        else:
            with torch.no_grad():
                other.encoder_weight.copy_(other.decoder_weight)
                other.encoder_bias.zero_()
        refine(other, items, rounds=0, encoder_steps=len(report.encoder))
        yield judged(f"refined, encoder from {start}", other.dictionary(), other, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path, help="(n, d) rows, .npy")
    parser.add_argument("--steps", type=int, default=500, help="of the training")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    lines = [
        f"{given.embeddings.name}, s = {LATENTS}, k = {K}, trained for {given.steps} steps, "
        f"{given.rounds} rounds, {QUERIES:,} rows held out:",
        "",
        "| model, codes | held-out cosine | recall@100, dense query |",
        "|---|---|---|",
    ]
    for line in table(given.embeddings, given.steps, given.rounds):
        print(line, flush=True)
        lines.append(line)
    page = Path(__file__).parents[1] / "docs" / "training.md"
    begin, end = "<!-- refine: begin -->", "<!-- refine: end -->"
    head, _, tail = page.read_text(encoding="utf-8").partition(begin)
    _, found, tail = tail.partition(end)
    if not found:
        raise ValueError(f"{page} lacks the markers {begin} and {end}")
    page.write_text("\n".join([head + begin, *lines, end]) + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
