"""Weights of the reconstructed mode: two thin products against a Gram matrix kept in memory.

    OPENBLAS_NUM_THREADS=1 python benches/bench_reconstructed.py [--atoms S] [--width D]

``u = W (W^T c)`` reads the dictionary twice; ``u = K c`` reads k rows of K = W W^T. Both are timed
here with numpy, in double precision (which exact scores need) and in single, for one query and a
batch, interleaved on one thread; medians. The time does not depend on what the numbers are, so
the dictionary is random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import _machine

K, ROUNDS = 32, 15


def measure(s: int, d: int, batch: int, dtype: type) -> dict[str, Any]:
    """Median ms a query of both ways."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((s, d)).astype(dtype)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    gram = atoms @ atoms.T
    latents = np.stack([rng.choice(s, K, replace=False) for _ in range(batch)])
    values = rng.standard_normal((batch, K)).astype(dtype)

    def thin() -> np.ndarray:
        embeddings = np.einsum("qk,qkd->qd", values, atoms[latents])
        return embeddings @ atoms.T

    def from_gram() -> np.ndarray:
        return np.stack([v @ gram[rows] for v, rows in zip(values, latents, strict=True)])

    np.testing.assert_allclose(thin(), from_gram(), atol=1e-3)
    times: dict[str, list[float]] = {"thin": [], "gram": []}
    for _ in range(ROUNDS):
        for name, way in (("thin", thin), ("gram", from_gram)):
            begun = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begun)
    ms = {name: round(1e3 * statistics.median(of) / batch, 4) for name, of in times.items()}
    return {
        "precision": np.dtype(dtype).name,
        "queries": batch,
        "thin_ms": ms["thin"],
        "gram_ms": ms["gram"],
        "gram_mb": round(gram.nbytes / 1e6, 1),
        "dictionary_mb": round(atoms.nbytes / 1e6, 1),
    }


def main() -> int:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--atoms", type=int, default=4096)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "reconstructed.json"
    )
    options = parser.parse_args()
    rows = [
        measure(options.atoms, options.width, batch, dtype)
        for dtype in (np.float64, np.float32)
        for batch in (1, 256)
    ]
    results = {
        "benchmark": "bench_reconstructed",
        "command": "OPENBLAS_NUM_THREADS=1 python benches/bench_reconstructed.py",
        "machine": _machine.describe(),
        "atoms": options.atoms,
        "width": options.width,
        "k": K,
        "rows": rows,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
