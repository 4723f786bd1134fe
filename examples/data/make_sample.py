"""Draw the sample in this folder from the full set of embeddings, byte for byte the same.

    python examples/data/make_sample.py --source PATH [--out examples/data]

PATH is a folder with ``catalogue_minilm_f16.npy`` ((n, 384) float16, one row a package) and
``catalogue_names.txt`` (one line a row, ``package: description``). Only the package names are
kept. numpy alone is needed; sparse_retrieval is not imported, so that the data do not depend
on the code that they test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCE_EMBEDDINGS = "catalogue_minilm_f16.npy"
SOURCE_NAMES = "catalogue_names.txt"
ROWS = 16_384
SEED = 0


def quantise(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row to 8 bits: ``x[i] ~ q[i] * scales[i]``.

    Parameters
    ----------
    x : ndarray of float32, shape (n, d)

    Returns
    -------
    q : ndarray of int8, shape (n, d)
        In [-127, 127], so that negation stays in range.
    scales : ndarray of float32, shape (n,)
        The row's largest magnitude divided by 127; 1 for a row of zeros.
    """
    largest = np.abs(x).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(x / scales[:, None]).astype(np.int8), scales


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of ``a`` with the same row of ``b``, in double precision."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / norms)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(source: Path, out: Path) -> dict[str, Any]:
    """Write the sample's files into ``out`` and return what ``sample.json`` records."""
    full = np.load(source / SOURCE_EMBEDDINGS, mmap_mode="r")
    lines = (source / SOURCE_NAMES).read_text(encoding="utf-8").splitlines()
    if len(lines) != len(full):
        raise ValueError(f"{len(lines)} names for {len(full)} embeddings in {source}")
    # Sorted, so that the sample keeps the order of the catalogue.
    rows = np.sort(np.random.default_rng(SEED).choice(len(full), ROWS, replace=False))
    x = full[rows].astype(np.float32)
    q, scales = quantise(x)
    names = [lines[row].partition(":")[0].strip() for row in rows]

    np.save(out / "embeddings_i8.npy", q)
    np.save(out / "scales_f32.npy", scales)
    (out / "names.txt").write_bytes("".join(f"{name}\n" for name in names).encode())
    cosine = cosines(x, q.astype(np.float32) * scales[:, None])
    files = ["embeddings_i8.npy", "scales_f32.npy", "names.txt"]
    return {
        "rows": ROWS,
        "columns": int(q.shape[1]),
        "seed": SEED,
        "source": {
            "rows": len(full),
            SOURCE_EMBEDDINGS: sha256(source / SOURCE_EMBEDDINGS),
            SOURCE_NAMES: sha256(source / SOURCE_NAMES),
        },
        "cosine_to_float16": {
            "mean": round(float(cosine.mean()), 7),
            "least": round(float(cosine.min()), 7),
        },
        "files": {
            name: {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}
            for name in files
        },
    }


def readme(record: dict[str, Any]) -> str:
    """Write the text of the folder's README, with every figure taken from ``record``."""
    files = "\n".join(
        f"| `{name}` | {entry['bytes']:,} | `{entry['sha256']}` |"
        for name, entry in record["files"].items()
    )
    cosine = record["cosine_to_float16"]
    return f"""\
# A sample of real embeddings

{record["rows"]:,} embeddings of {record["columns"]} dimensions, drawn at random (seed \
{record["seed"]}) from {record["source"]["rows"]:,} and kept in the order of the catalogue.
The demo and the tests use this folder alone.

Where it comes from: the descriptions of the packages in the Debian archive, embedded with the
sentence encoder all-MiniLM-L6-v2. Only the packages' names are kept here, not the descriptions.

Each row is stored in 8 bits with one float scale: `x[i] ~ embeddings_i8[i] * scales_f32[i]`.
Cosine to the float16 originals: {cosine["mean"]} on average, {cosine["least"]} at least.

| file | bytes | SHA-256 |
|---|---|---|
{files}

`embeddings_i8.npy` is int8 ({record["rows"]}, {record["columns"]}), `scales_f32.npy` float32 \
({record["rows"]},), `names.txt` one name a line; `sample.json` records the above for programs.

Written, this page included, by `python examples/data/make_sample.py --source PATH`; the same
source gives the same bytes.
"""


def main() -> int:
    """Parse the arguments, write the files, say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the full set")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    options = parser.parse_args()
    for name in (SOURCE_EMBEDDINGS, SOURCE_NAMES):
        if not (options.source / name).is_file():
            print(f"make_sample.py: error: {options.source / name} is absent", file=sys.stderr)
            return 1
    record = make(options.source, options.out)
    text = json.dumps(record, indent=2) + "\n"
    (options.out / "sample.json").write_text(text, encoding="utf-8")
    (options.out / "README.md").write_text(readme(record), encoding="utf-8")
    print(f"wrote {record['rows']} rows to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
