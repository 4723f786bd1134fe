"""The sample of real embeddings that the demo runs on: ``examples/data`` of a clone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_retrieval._files import read_lines
from sparse_retrieval.cli._errors import CommandError

DEFAULT_FOLDER = Path("examples/data")


@dataclass(frozen=True)
class Sample:
    """Embeddings with a name each.

    Attributes
    ----------
    embeddings : ndarray of float32, shape (n, d)
        Decoded from 8 bits a coordinate and one scale a row.
    names : list of str, length n
    """

    embeddings: NDArray[np.float32]
    names: list[str]


def load_sample(folder: Path = DEFAULT_FOLDER) -> Sample:
    """Read the sample.

    Parameters
    ----------
    folder : Path, default ``examples/data``
        Relative to the working directory: the sample is part of a clone, not of the package.

    Raises
    ------
    CommandError
        If the folder lacks one of the files, or they do not fit together.
    """
    paths = [folder / name for name in ("embeddings_i8.npy", "scales_f32.npy", "names.txt")]
    for path in [*paths, folder / "sample.json"]:
        if not path.is_file():
            raise CommandError(
                f"{path}: no such file; the sample is examples/data of a clone: run from its "
                "root, or name the folder with --data"
            )
    levels = np.load(paths[0], allow_pickle=False)
    scales = np.load(paths[1], allow_pickle=False)
    names = read_lines(paths[2])
    record = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    shape = (record["rows"], record["columns"])
    if levels.shape != shape or scales.shape != shape[:1] or len(names) != shape[0]:
        raise CommandError(
            f"{folder}: {levels.shape} levels, {scales.shape} scales and {len(names)} names, "
            f"but sample.json says {shape}; restore the files from the repository"
        )
    return Sample(levels.astype(np.float32) * scales[:, None], names)
