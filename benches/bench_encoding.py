"""Encoding speed: pursuit against the plain projection by numpy and scikit-learn's OMP.

    python benches/bench_encoding.py x.npy

One core unless said otherwise: numpy is held to one thread, and the encoder gets `threads=1`. All
are measured in one process, interleaved, best of `--repeats`; CPU seconds are beside wall
seconds, since a machine with other work makes wall times meaningless. The projection is
measured twice: as one writes it (a new array for the product, whose pages must be had from the
system), and over batches into an array that is kept. Codes are checked: unit residuals are
orthogonal to the support, and scikit-learn's supports are compared on the rows that it encodes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import SparseCoder
from threadpoolctl import threadpool_limits

import _machine
import sparse_retrieval as sr

Rows = npt.NDArray[np.float32]

#: scikit-learn takes tens of milliseconds a row.
SKLEARN_ROWS = 64


def projected(x: Rows, atoms: Rows) -> None:
    """Project all rows into a new array."""
    _ = x @ atoms.T


def projected_in_place(x: Rows, atoms: Rows, out: Rows) -> None:
    """Project batches of rows into the same array again and again."""
    for start in range(0, len(x), len(out)):
        batch = x[start : start + len(out)]
        np.matmul(batch, atoms.T, out=out[: len(batch)])


def check_codes(dictionary: sr.Dictionary, x: Rows, codes: sr.SparseCodes, k: int) -> None:
    """Insist that values are the least squares on at most k atoms."""
    left = x - dictionary.decode(codes)
    for i in range(0, len(x), max(1, len(x) // 100)):
        row = codes[i : i + 1]
        assert row.nnz <= k
        inner = dictionary.atoms[row.latents] @ left[i]
        assert np.abs(inner).max() < 1e-5, (i, inner)


def measured(runs: dict[str, tuple[int, Callable[[], object]]], repeats: int) -> dict[str, Any]:
    """Microseconds a row, wall and CPU, of each run: the best of interleaved repeats."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, (rows, run) in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            now = {
                "wall_us": (time.perf_counter() - wall) / rows * 1e6,
                "cpu_us": (time.process_time() - cpu) / rows * 1e6,
            }
            kept = best.setdefault(name, now)
            best[name] = {unit: min(kept[unit], now[unit]) for unit in now}
    return best


def main() -> None:
    """Read rows, learn or load a dictionary, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("x", type=Path, help="embeddings (n, d), .npy")
    parser.add_argument("--dictionary", type=Path, help="else one is learnt in 2 rounds")
    parser.add_argument("--atoms", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "encoding.json"
    )
    arguments = parser.parse_args()
    k = arguments.k
    x = np.load(arguments.x, mmap_mode="r")
    if arguments.dictionary:
        # atoms rounded to half precision are not quite of norm 1, to which the encoder scales them
        held = sr.Dictionary.load(arguments.dictionary).atoms
        dictionary = sr.Dictionary(held / np.linalg.norm(held, axis=1, keepdims=True))
    else:
        dictionary = sr.Dictionary.fit(x, arguments.atoms, k, rounds=2, sample=8 * arguments.atoms)
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[: arguments.rows])
    rows = np.asarray(x[chosen], dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    atoms = dictionary.atoms
    codes = dictionary.encode(rows, k, threads=1)
    check_codes(dictionary, rows, codes, k)
    few = rows[:SKLEARN_ROWS]
    coder = SparseCoder(atoms, transform_algorithm="omp", transform_n_nonzero_coefs=k)
    theirs = coder.transform(few) != 0
    ours = dictionary.encode(few, k, "omp", gram="float32").to_dense() != 0
    shared = (theirs & ours).sum() / theirs.sum()
    assert shared > 0.98, shared  # float32 decides near ties otherwise than float64
    kept = np.empty((1024, len(atoms)), np.float32)
    # each encoder's Gram matrix is built before it is timed
    by_gram = {gram: sr.Dictionary(atoms) for gram in ("int8", "int16", "float32")}
    for gram, held in by_gram.items():
        held.encode(rows[:1], k, gram=gram)
    n = len(rows)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "numpy x @ W.T": (n, lambda: projected(rows, atoms)),
        "numpy x @ W.T into a kept array": (n, lambda: projected_in_place(rows, atoms, kept)),
        "pursuit, int8": (n, lambda: by_gram["int8"].encode(rows, k, threads=1)),
        "pursuit, int8, 2 threads": (n, lambda: by_gram["int8"].encode(rows, k, threads=2)),
        "pursuit, int16": (
            n,
            lambda: by_gram["int16"].encode(rows, k, threads=1, gram="int16"),
        ),
        "pursuit, float32": (
            n,
            lambda: by_gram["float32"].encode(rows, k, threads=1, gram="float32"),
        ),
        "omp, int8": (n, lambda: by_gram["int8"].encode(rows, k, "omp", threads=1)),
        "topk, int8": (n, lambda: by_gram["int8"].encode(rows, k, "topk", threads=1)),
        "scikit-learn omp": (len(few), lambda: coder.transform(few)),
    }
    with threadpool_limits(1):  # numpy's and scikit-learn's; the encoder has its own
        best = measured(runs, arguments.repeats)
    numpy_us = best["numpy x @ W.T"]["cpu_us"]
    for name, times in best.items():
        print(
            f"{name:34} {times['wall_us']:10.1f} us wall {times['cpu_us']:10.1f} us CPU "
            f"{times['cpu_us'] / numpy_us:8.2f} x"
        )
    record = {
        "atoms": len(atoms),
        "d": atoms.shape[1],
        "k": k,
        "rows": n,
        "repeats": arguments.repeats,
        "machine": _machine.describe(),
        "shared_with_scikit_learn": float(shared),
        "us_a_row": best,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
