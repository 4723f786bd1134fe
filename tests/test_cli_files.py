"""What the command line reads and writes, short of the native module."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import safetensors.numpy

from sparse_retrieval.cli._errors import CommandError
from sparse_retrieval.cli._files import (
    read_codes,
    read_ids,
    read_matrix,
    read_names,
    write_atomically,
)

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_an_npy_file_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    read = read_matrix(tmp_path / "x.npy")
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_safetensors_file_with_one_matrix_is_read(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": X.astype(dtype), "bias": X[0]}, path)
    read = read_matrix(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, X)


def test_a_safetensors_file_with_two_matrices_is_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"b": X, "a": X}, path)
    with pytest.raises(CommandError, match=r"holds 2 tensors of two axes \(a, b\)"):
        read_matrix(path)


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(CommandError, match=r"is not a readable .safetensors file"):
        read_matrix(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable .npy file"),
        (b"hello", "is not a readable .npy file"),
    ],
)
def test_a_damaged_npy_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(CommandError, match=message):
        read_matrix(path)


def test_a_truncated_npy_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CommandError, match=r"is not a readable .npy file"):
        read_matrix(path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([[None, 1]], dtype=object), allow_pickle=True)
    with pytest.raises(CommandError, match=r"is not a readable .npy file of numbers"):
        read_matrix(path)


@pytest.mark.parametrize(
    "array", [X[0], X[None], X.astype(np.int64), X.astype(np.complex64)], ids=str
)
def test_other_shapes_and_dtypes_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(CommandError, match=f"holds {array.dtype} of shape .* expected floats"):
        read_matrix(tmp_path / "x.npy")


def test_another_kind_of_file_is_refused_with_the_kinds_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(CommandError, match=r"from a .parquet; the kinds read are .npy and"):
        read_matrix(tmp_path / "x.parquet")


@pytest.mark.parametrize("read", [read_matrix, read_ids, read_codes])
def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path, read: object) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npy")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_ids_are_integers_of_one_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([5, 3], dtype=np.uint16))
    ids = read_ids(tmp_path / "ids.npy")
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, 3]
    np.save(tmp_path / "ids.npy", X)
    with pytest.raises(CommandError, match="expected integers of one axis"):
        read_ids(tmp_path / "ids.npy")


def test_an_array_called_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(CommandError, match=r"x.npz: is not a readable .npz file"):
        read_codes(tmp_path / "x.npz")


def test_row_limits_must_match_the_shape(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        indptr=[0, 1],
        indices=[0],
        data=[1.0],
        shape=[2, 3],
        format=np.array(b"csr"),
    )
    with pytest.raises(CommandError, match="2 row limits for 2 rows"):
        read_codes(tmp_path / "x.npz")


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"ok\n\xff\n")
    with pytest.raises(CommandError, match=r"is not UTF-8 text \(byte 3\)"):
        read_names(tmp_path / "names.txt")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_written_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "out", lambda file: file.write(b"new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
    assert (tmp_path / "out").read_bytes() == b"new"


def test_an_unwritable_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write") as caught:
        write_atomically(tmp_path / "absent" / "out", lambda file: file.write(b""))
    assert caught.value.filename == str(tmp_path / "absent" / "out")
