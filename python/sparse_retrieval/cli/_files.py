"""Reading and writing the files that the subcommands share. Knows no typer, no torch.

Embeddings are read as memory maps where the format allows it. Everything is written beside
its target and renamed, so that a reader, or a crash, meets the old file or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sparse_retrieval._extras import require
from sparse_retrieval._files import read_lines, replacing
from sparse_retrieval._rows import UnsoundFileError, open_rows
from sparse_retrieval.cli._errors import CommandError

if TYPE_CHECKING:
    from sparse_retrieval import SparseCodes

MATRIX_KINDS = (".npy", ".safetensors")


def read_matrix(path: Path) -> NDArray[Any]:
    """Open embeddings: a 2-D float array of an ``.npy`` or ``.safetensors`` file.

    Parameters
    ----------
    path : Path
        ``.npy`` is mapped, not read. A ``.safetensors`` file must hold exactly one 2-D
        tensor.

    Returns
    -------
    ndarray, shape (n, d), float16, float32 or float64

    Raises
    ------
    CommandError
        For another kind of file, a damaged one, or an array of another shape or dtype.
    FileNotFoundError
        If it does not exist.
    """
    refuse_missing(path)
    if path.suffix == ".npy":
        array = _load_npy(path)
    elif path.suffix == ".safetensors":
        array = _load_safetensors(path)
    else:
        raise CommandError(
            f"{path}: cannot read embeddings from a {path.suffix or 'file without suffix'}; "
            f"the kinds read are {' and '.join(MATRIX_KINDS)}, so save the array as one of them"
        )
    if array.ndim != 2 or array.dtype.kind != "f":
        raise CommandError(
            f"{path}: holds {array.dtype} of shape {array.shape}, expected floats of two axes "
            "(rows, columns)"
        )
    return array


def read_rows(path: Path, column: str | None = None) -> Any:
    """Open embeddings for what reads them batch by batch: also a column of a ``.parquet`` file.

    Parameters
    ----------
    path : Path
        As of `read_matrix`, or ``.parquet``.
    column : str, optional
        The column of a ``.parquet`` file; by default the only one of lists of numbers.

    Returns
    -------
    ndarray, or what has its shape and slices to arrays

    Raises
    ------
    CommandError, FileNotFoundError
        As `read_matrix`.
    ValueError
        If there is no such column, or the file is none that has columns.
    """
    if path.suffix != ".parquet" and column is None:
        return read_matrix(path)
    refuse_missing(path)
    try:
        return open_rows(path, column)
    except UnsoundFileError as error:
        raise CommandError(str(error)) from None


def read_ids(path: Path) -> NDArray[np.int64]:
    """Read one integer id an item from an ``.npy`` file."""
    refuse_missing(path)
    ids = _load_npy(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise CommandError(
            f"{path}: holds {ids.dtype} of shape {ids.shape}, expected integers of one axis"
        )
    if ids.dtype.kind == "u" and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise CommandError(f"{path}: holds {ids.max()}, expected ids below 2^63")
    return np.asarray(ids, dtype=np.int64)


def read_filter(path: Path) -> NDArray[Any]:
    """Read the items that may be returned from an ``.npy`` file: a mask of bool, or ids."""
    refuse_missing(path)
    chosen = _load_npy(path)
    if chosen.ndim != 1 or chosen.dtype.kind not in "biu" or chosen.dtype == np.uint8:
        raise CommandError(
            f"{path}: holds {chosen.dtype} of shape {chosen.shape}, expected one axis of bool (a "
            "mask, one an item) or of integers of 16 bits or more (ids)"
        )
    return np.asarray(chosen)


def read_names(path: Path) -> list[str]:
    """Read one name a line: line i names the item at position i."""
    try:
        return read_lines(path)
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def read_codes(path: Path) -> SparseCodes:
    """Read codes written by :func:`write_codes` or by ``scipy.sparse.save_npz`` (CSR)."""
    from sparse_retrieval import SparseCodes

    refuse_missing(path)
    if path.suffix != ".npz":
        raise CommandError(f"{path}: codes are read from .npz files, as `encode` writes them")
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        # Type and attribute errors: the file is an array, not an archive.
        raise CommandError(f"{path}: is not a readable .npz file ({error})") from None
    absent = [n for n in ("indptr", "indices", "data", "shape", "format") if n not in arrays]
    if absent:
        raise CommandError(
            f"{path}: lacks {', '.join(absent)}; expected a CSR matrix as `encode` or "
            "scipy.sparse.save_npz writes it"
        )
    kind = arrays["format"].item()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    if kind != "csr":
        raise CommandError(f"{path}: holds a {kind} matrix, expected csr; convert with .tocsr()")
    rows, dim = (int(size) for size in arrays["shape"])
    if len(arrays["indptr"]) != rows + 1:
        raise CommandError(f"{path}: {len(arrays['indptr'])} row limits for {rows} rows")
    return SparseCodes.from_csr(arrays["indptr"], arrays["indices"], arrays["data"], dim=dim)


def write_codes(path: Path, codes: SparseCodes) -> None:
    """Write codes with the keys of ``scipy.sparse.save_npz``: ``load_npz`` reads the file."""
    # scipy's CSR has signed indices, all of one width.
    index = np.int32 if max(codes.nnz, codes.dim) < 2**31 else np.int64

    def write(file: IO[bytes]) -> None:
        np.savez(
            file,
            indices=codes.latents.astype(index),
            indptr=codes.indptr.astype(index),
            format=np.array(b"csr"),
            shape=np.array([len(codes), codes.dim]),
            data=codes.values,
        )

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a new file beside ``path``, sync it and rename it over ``path``.

    Parameters
    ----------
    path : Path
        Its folder must exist. Nothing is left behind if ``write`` fails.
    write : callable
        Receives the file, open for binary writing.
    """
    check_writable(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        write(file)


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that no file can be written there.

    Raises
    ------
    OSError
        If the folder does not exist or refuses new files, or ``path`` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "cannot write, it is a folder", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "cannot write, its folder does not exist", str(path))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot write, its folder refuses new files", str(path))


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CommandError(f"{path}: is not a readable .npy file of numbers ({error})") from None
    return loaded


def _load_safetensors(path: Path) -> NDArray[Any]:
    safetensors = require("safetensors", "reading .safetensors files")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            wide = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118, the file is no mapping
            if len(wide) != 1:
                raise CommandError(
                    f"{path}: holds {len(wide)} tensors of two axes "
                    f"({', '.join(sorted(wide)) or 'none'}), expected exactly one"
                )
            tensor: NDArray[Any] = file.get_tensor(wide[0])
    except (safetensors.SafetensorError, TypeError) as error:
        # TypeError: numpy has no bfloat16.
        raise CommandError(f"{path}: is not a readable .safetensors file ({error})") from None
    return tensor


def refuse_missing(path: Path) -> None:
    """Raise the OSError that says so if there is no file at ``path``."""
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, expected a file", str(path))
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
