"""Queries of a file, in the form that a mode takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._files import read_codes, read_matrix


def read_queries(path: Path, model: Path | None, mode: str | None) -> Any:
    """Read queries, and encode them where the mode asks for codes and a model is given.

    Parameters
    ----------
    path : Path
        ``.npz`` holds codes; anything else embeddings.
    model : Path or None
        Folder of the CompresSAE that encoded the items; without it embeddings are left for the
        index to encode.
    mode : str or None
        ``"sparse"`` and ``"reconstructed"`` take codes, ``"dense"`` embeddings as they are.

    Returns
    -------
    ndarray or SparseCodes

    Raises
    ------
    CommandError
        If the file holds codes and the mode takes embeddings.
    """
    if path.suffix == ".npz":
        if mode == "dense":
            raise CommandError(
                f"{path}: holds codes, but --mode dense takes embeddings (.npy, .safetensors)",
                USAGE,
            )
        return read_codes(path)
    dense = read_matrix(path)
    if mode not in ("sparse", "reconstructed"):
        return dense
    if model is None:
        return dense  # the index encodes them with its dictionary, by pursuit
    import sparse_retrieval as sr

    return sr.CompresSAE.from_pretrained(model).sparse_codes(dense)
