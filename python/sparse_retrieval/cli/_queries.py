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
        Folder of the CompresSAE that encoded the items.
    mode : str or None
        ``"sparse"`` and ``"reconstructed"`` take codes, ``"dense"`` embeddings as they are.

    Returns
    -------
    ndarray or SparseCodes

    Raises
    ------
    CommandError
        If the file is not what the mode takes and no model is given.
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
        raise CommandError(
            f"{path}: holds embeddings, but --mode {mode} takes codes: name the model that "
            "encoded the items with --model, or give codes (.npz)",
            USAGE,
        )
    import sparse_retrieval as sr

    return sr.CompresSAE.from_pretrained(model).sparse_codes(dense)
