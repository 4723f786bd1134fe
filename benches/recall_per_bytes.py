"""Recall against bytes: our codes and their rivals, one split, one ground truth.

    python benches/recall_per_bytes.py --data PATH [--out FILE] [--only NAME ...]

PATH is a folder with ``catalogue_minilm_f16.npy``. 1,000 rows (seed 0) are held out as queries;
everything is learnt from and stores the others. Ours is measured with three seeds of learning,
and reported as median, least and most. Rivals are faiss's (needs faiss-cpu), turbovec and PCA with
8 bits. A rival that has not learnt and encoded within SLOW_S seconds is stopped, and the file says
so.

Each part is written to the result file as it ends, and a part that is there is not run again:
delete the file, or name parts with ``--only``, to measure anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _ablations
import _machine
import sparse_retrieval as sr
from sparse_retrieval._files import replacing
from sparse_retrieval.evaluate import exact_top_k, recall_at

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES = 1_000
DEPTH = 100
SEEDS = (0, 1, 2)
ROUNDS = 12
#: seconds that a rival may take to learn and encode
SLOW_S = 900
#: (atoms, nonzeros, bits a value); the last of each budget of 34, 50, 66, 98 and 130 bytes are
#: 8,192 atoms with 17, 17.5 or 18 bits a nonzero.
OURS = (
    *((4096, k, bits) for k in (16, 24, 32, 48, 64) for bits in (32, 4, 3)),
    *((8192, k, 4) for k in (15, 22, 30, 45, 60)),
    *((8192, k, 3) for k in (16, 32)),
    *((8192, k, 5) for k in (42, 56)),
    (8192, 29, 4.5),
    (8192, 43, 4.5),
    (8192, 58, 4.5),
)
Rows = NDArray[np.float32]


class Study:
    """The split, its truth, and the results so far."""

    depth = DEPTH

    def __init__(self, x: Rows, out: Path) -> None:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        shuffled = np.random.default_rng(0).permutation(len(x))
        self.queries, self.items = x[np.sort(shuffled[:QUERIES])], x[np.sort(shuffled[QUERIES:])]
        self.truth = exact_top_k(self.items, self.queries, DEPTH).ids
        self.out = out
        self.results: dict[str, Any] = {"parts": {}}
        if out.is_file():
            self.results = json.loads(out.read_text(encoding="utf-8"))
        self.results |= {
            "benchmark": "recall_per_bytes",
            "command": "python benches/recall_per_bytes.py --data PATH",
            "machine": _machine.describe(),
            "data": {
                "name": "package descriptions, all-MiniLM-L6-v2",
                "items": len(self.items),
                "queries": QUERIES,
                "columns": int(x.shape[1]),
            },
            "depth": DEPTH,
            "seeds": list(SEEDS),
            "rounds": ROUNDS,
            "rivals": [*FAISS, *TURBOVEC],
            "ablations": list(_ablations.PARTS),
        }

    def recall(self, found: NDArray[np.int64]) -> float:
        """Recall@DEPTH of found ids."""
        return round(float(recall_at(found, self.truth, DEPTH)), 5)

    def part(self, name: str, run: Callable[[], list[dict[str, Any]]]) -> None:
        """Run a part unless its rows are there, and write the file."""
        if name in self.results["parts"]:
            return
        begun = time.perf_counter()
        rows = run()
        self.results["parts"][name] = {
            "seconds": round(time.perf_counter() - begun, 1),
            "load_average": round(os.getloadavg()[0], 1),
            "rows": rows,
        }
        with replacing(self.out) as temporary:
            temporary.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        for row in rows:
            if row["recall"] is None:
                print(f"{name:24} {row['setting']:34} stopped after {SLOW_S} s")
            else:
                print(f"{name:24} {row['setting']:34} {row['bytes']:6.1f} {row['recall']:.4f}")
        sys.stdout.flush()


def ours(study: Study, n_atoms: int, seed: int) -> list[dict[str, Any]]:
    """One dictionary, all settings with that many atoms."""
    begun = time.perf_counter()
    dictionary = sr.Dictionary.fit(study.items, n_atoms=n_atoms, k=32, rounds=ROUNDS, seed=seed)
    dictionary = sr.Dictionary(dictionary.atoms.astype(np.float16))
    fit_s = time.perf_counter() - begun
    rows = []
    for k in sorted({k for s, k, _ in OURS if s == n_atoms}):
        begun = time.perf_counter()
        codes = dictionary.encode(study.items, k=k)
        encode_s = time.perf_counter() - begun
        for bits in (bits for s, k_of, bits in OURS if (s, k_of) == (n_atoms, k)):
            rows.append(
                row_of(
                    study, dictionary, codes, f"s={n_atoms}, k={k}, {bits} bits", value_bits=bits
                )
                | {"n_atoms": n_atoms, "k": k, "value_bits": bits, "seed": seed}
                | {"fit_s": round(fit_s, 1), "encode_s": round(encode_s, 1)}
            )
    if n_atoms == 8192:
        codes = dictionary.encode(study.items, k=30)
        ablations: list[tuple[str, sr.SparseCodes, dict[str, Any]]] = [
            ("divided by the decoded norm", codes, {"unit_items": False}),
            ("in float32", codes, {"value_bits": 32}),
            ("omp", dictionary.encode(study.items, k=30, method="omp"), {}),
            ("top-k, refitted", dictionary.encode(study.items, k=30, method="topk_refit"), {}),
        ]
        for name, of, options in ablations:
            options = {"value_bits": 4, **options}
            row = row_of(study, dictionary, of, f"s=8192, k=30, {name}", **options)
            rows.append(row | {"ablation": name, "seed": seed})
        for k_row in (8, 16, 24):
            row = row_of(study, dictionary, codes, f"s=8192, k=30, prefix {k_row}", k_row=k_row)
            rows.append(row | {"k_row": k_row, "seed": seed})
    return rows


def row_of(
    study: Study,
    dictionary: sr.Dictionary,
    codes: sr.SparseCodes,
    setting: str,
    *,
    value_bits: float = 4,
    unit_items: bool = True,
    k_row: int | None = None,
) -> dict[str, Any]:
    """Build, search and describe one setting."""
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric="cosine",
        value_bits=value_bits,
        unit_items=unit_items,
        modes=("dense",),
    )
    found = index.search(study.queries, DEPTH, k_row=k_row).ids
    held = next(s["bytes"] for s in index.stats()["sections"] if s["name"] == "dictionary")
    return {
        "setting": setting,
        "bytes": index.bytes_per_item,
        "dictionary_bytes": held / len(index),
        "quantisation_cosine": index.stats()["quantisation_cosine"],
        "recall": study.recall(found),
    }


def unseen(study: Study) -> list[dict[str, Any]]:
    """Learnt on a random half, both halves encoded and searched on their own."""
    order = np.random.default_rng(0).permutation(len(study.items))
    half = len(order) // 2
    halves = {"learnt": order[:half], "unseen": order[half:]}
    learnt = study.items[np.sort(halves["learnt"])]
    dictionary = sr.Dictionary.fit(learnt, k=32, rounds=ROUNDS)
    rows = []
    for name, of in halves.items():
        items = study.items[np.sort(of)]
        codes = dictionary.encode(items, k=32)
        index = sr.SparseIndex.from_codes(
            codes, dictionary=dictionary, metric="cosine", unit_items=True, modes=("dense",)
        )
        truth = exact_top_k(items, study.queries, DEPTH).ids
        found = index.search(study.queries, DEPTH).ids
        decoded = dictionary.decode(codes)
        cosine = np.sum(decoded * items, axis=1) / np.linalg.norm(decoded, axis=1)
        rows.append(
            {
                "setting": f"{name} half, s={dictionary.n_atoms}, k=32, float32",
                "bytes": index.bytes_per_item,
                "cosine": round(float(cosine.mean()), 5),
                "recall": round(float(recall_at(found, truth, DEPTH)), 5),
            }
        )
    return rows


def against_training(study: Study) -> list[dict[str, Any]]:
    """`Dictionary.fit`, and a CompresSAE trained for ten times its wall time."""
    begun = time.perf_counter()
    dictionary = sr.Dictionary.fit(study.items, n_atoms=4096, k=32, rounds=2)
    fit_s = time.perf_counter() - begun
    model = sr.CompresSAE(input_dim=study.items.shape[1], hidden_dim=4096, k=32)
    # what a step takes once warm, then as many as fill ten times the wall time, and a tenth more
    # since a machine that others use too is not equally fast throughout
    sr.train(model, study.items, steps=10)
    begun = time.perf_counter()
    sr.train(model, study.items, steps=40)
    steps = int(11 * fit_s / ((time.perf_counter() - begun) / 40)) + 1
    model = sr.CompresSAE(input_dim=study.items.shape[1], hidden_dim=4096, k=32)
    begun = time.perf_counter()
    sr.train(model, study.items, steps=steps)
    train_s = time.perf_counter() - begun
    codes = model.sparse_codes(study.items)
    learnt = dictionary.encode(study.items, k=32)
    pursued = model.dictionary().encode(study.items, k=32)
    settings = (
        ("Dictionary.fit, 2 rounds, pursuit", dictionary, learnt, fit_s),
        (f"CompresSAE, {steps} steps, its encoder", model.dictionary(), codes, train_s),
        (f"CompresSAE, {steps} steps, pursuit", model.dictionary(), pursued, train_s),
    )
    rows = [
        row_of(study, of, rows, name, value_bits=32) | {"learning_s": round(seconds, 1)}
        for name, of, rows, seconds in settings
    ]
    # the paper's two modes: the queries are encoded as the items are
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=model.dictionary(),
        metric="cosine",
        value_bits=32,
        modes=("sparse", "reconstructed"),
    )
    queries = model.sparse_codes(study.queries)
    for mode in ("sparse", "reconstructed"):
        found = index.search(queries, DEPTH, mode=mode).ids
        rows.append(
            {
                "setting": f"CompresSAE, {steps} steps, {mode} mode",
                "bytes": index.bytes_per_item,
                "recall": study.recall(found),
                "learning_s": round(train_s, 1),
            }
        )
    return rows


#: of a rival: its DEPTH best, and the bytes that an item adds to its serialised index
Answer = tuple[NDArray[np.int64], float]
Rival = Callable[[str, "Study"], Answer]


def faiss_search(factory: str, study: Study) -> Answer:
    """One faiss index, learnt from all items, scored by inner product."""
    import faiss

    index = faiss.index_factory(study.items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(study.items)
    half = len(study.items) // 2
    index.add(study.items[:half])
    size = len(faiss.serialize_index(index))
    index.add(study.items[half:])
    size = len(faiss.serialize_index(index)) - size
    found: NDArray[np.int64] = index.search(study.queries, DEPTH)[1]
    return found, size / (len(study.items) - half)


def turbovec_search(name: str, study: Study) -> Answer:
    """One turbovec index, calibrated on a random sample of the items."""
    import turbovec

    index = turbovec.TurboQuantIndex(study.items.shape[1], int(name.split()[1]))
    sample = np.random.default_rng(0).choice(len(study.items), 10_000, replace=False)
    index.calibrate(study.items[sample])
    half = len(study.items) // 2
    index.add(study.items[:half])
    size = len(index.to_bytes())
    index.add(study.items[half:])
    size = len(index.to_bytes()) - size
    found: NDArray[np.int64] = np.asarray(index.search(study.queries, DEPTH)[1], dtype=np.int64)
    return found, size / (len(study.items) - half)


def _answer(rival: Rival, name: str, study: Study, answers: Any) -> None:
    answers.put(rival(name, study))


def rival_rows(study: Study, rival: Rival, name: str) -> list[dict[str, Any]]:
    """One rival in a process of its own, stopped after SLOW_S seconds.

    The process is a fresh interpreter: one that is forked after this process used OpenMP or
    rayon waits for ever for threads that it does not have.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    begun = time.perf_counter()
    process = context.Process(target=_answer, args=(rival, name, study, answers))
    process.start()
    answer: Answer | None = None
    ended = False
    while answer is None and not ended and time.perf_counter() - begun < SLOW_S:
        ended = not process.is_alive()  # before the look: what was put before the end is found
        with contextlib.suppress(queue.Empty):
            answer = answers.get(timeout=1)
    seconds = round(time.perf_counter() - begun, 1)
    process.kill()
    process.join()
    if answer is None and ended:
        raise RuntimeError(f"ended with exit code {process.exitcode} and no answer")
    recall, n_bytes = (None, None) if answer is None else (study.recall(answer[0]), answer[1])
    return [{"setting": name, "bytes": n_bytes, "recall": recall, "seconds": seconds}]


def pca_rows(study: Study, axes: int) -> list[dict[str, Any]]:
    """The leading principal coordinates, 8 bits each."""
    from sparse_retrieval.cli._curves import pca_curve

    points = pca_curve(study.items, study.queries, study.truth, components=(axes,), depth=DEPTH)
    return [
        {"setting": point.setting, "bytes": point.bytes_per_item, "recall": float(point.recall)}
        for point in points
    ]


#: faiss's factory strings, the quick ones first; RR is the random rotation that RaBitQ asks for
FAISS = (
    *("PQ32x8", "PQ48x8", "PQ64x8", "PQ96x8", "PQ128x8", "PQ128x4fs"),
    *("RaBitQ", "RaBitQ2", "RaBitQ4", "RR384,RaBitQ", "RR384,RaBitQ2"),
    *("RQ32x8", "OPQ64,PQ64x8", "OPQ48,PQ48x8", "OPQ96,PQ96x8", "OPQ128,PQ128x8"),
    *("RQ64x8", "PRQ8x8x8", "PLSQ8x8x8", "LSQ32x8"),
)
TURBOVEC = ("turbovec 2 bits", "turbovec 3 bits", "turbovec 4 bits")


def main() -> int:
    """Run what is missing and write the file part by part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "recall_per_bytes.json"
    )
    parser.add_argument("--only", nargs="*", help="names of parts to run; default: all")
    options = parser.parse_args()
    path = options.data / EMBEDDINGS
    if not path.is_file():
        print(
            f"recall_per_bytes.py: error: {path} is absent; this benchmark needs the full set, "
            "which is not part of the repository",
            file=sys.stderr,
        )
        return 1
    study = Study(np.load(path).astype(np.float32), options.out)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    for seed in SEEDS:
        for n_atoms in (4096, 8192):
            parts[f"ours-{n_atoms}-{seed}"] = lambda s=n_atoms, seed=seed: ours(study, s, seed)
    parts["unseen"] = lambda: unseen(study)
    for axes in (32, 48, 64, 96, 128):
        parts[f"pca-{axes}"] = lambda axes=axes: pca_rows(study, axes)
    for name in TURBOVEC:
        parts[name] = lambda name=name: rival_rows(study, turbovec_search, name)
    parts["against-training"] = lambda: against_training(study)
    for name, ablation in _ablations.PARTS.items():
        parts[name] = lambda ablation=ablation: ablation(study)
    for name in FAISS:
        parts[name] = lambda name=name: rival_rows(study, faiss_search, name)
    for name, run in parts.items():
        if not options.only or name in options.only:
            try:
                study.part(name, run)
            except (ImportError, RuntimeError) as error:
                print(f"{name}: not run: {error}", file=sys.stderr)
    print(f"wrote {options.out}; python benches/render_docs.py brings the docs in step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
