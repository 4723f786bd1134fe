"""Embeddings of a file for the model, which reads them batch by batch. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparse_retrieval._rows import UnsoundFileError
from sparse_retrieval.cli._errors import CommandError
from sparse_retrieval.cli._files import read_matrix, refuse_missing

if TYPE_CHECKING:
    from sparse_retrieval.training import RowSource


def read_source(path: Path, column: str | None = None) -> RowSource:
    """Open embeddings for training, or for encoding with a model; memory does not hold the file.

    Parameters
    ----------
    path : Path
        ``.npy`` and ``.safetensors`` are mapped (bfloat16 too), ``.parquet`` is read forwards.
    column : str, optional
        Column of a ``.parquet`` file, tensor of a ``.safetensors`` one; by default the only
        suitable one.

    Returns
    -------
    RowSource

    Raises
    ------
    CommandError
        For another kind of file, or a damaged one.
    FileNotFoundError
        If it does not exist.
    ValueError
        If the file has no such column, or several that would do.
    """
    from sparse_retrieval.training import as_row_source

    if path.suffix not in (".parquet", ".safetensors"):
        matrix = read_matrix(path)  # says what kinds are read, and refuses other shapes
        return as_row_source(matrix, column)
    refuse_missing(path)
    try:
        return as_row_source(path, column)
    except UnsoundFileError as error:
        raise CommandError(str(error)) from None
