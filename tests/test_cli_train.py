"""``train`` and ``encode --model`` read files batch by batch: every kind, and more than memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file

import sparse_retrieval as sr
from sparse_retrieval.cli import main
from training_data import mixture

X = mixture(300).astype(np.float16)
TRAIN = ["--out", "model", "--hidden-dim", "64", "--k", "4", "--steps", "8", "--batch-size", "64"]


def npy(path: Path, x: np.ndarray) -> None:
    np.save(path, x)


def parquet(path: Path, x: np.ndarray) -> None:
    lists = pa.array(x.tolist(), type=pa.list_(pa.float16(), x.shape[1]))
    pq.write_table(pa.table({"e": lists, "other": lists}), path, row_group_size=64)


def safetensors(path: Path, x: np.ndarray) -> None:
    save_file({"e": torch.from_numpy(x), "other": torch.from_numpy(x[:5].copy())}, path)


KINDS: dict[str, tuple[Callable[[Path, np.ndarray], None], list[str]]] = {
    ".npy": (npy, []),
    ".parquet": (parquet, ["--column", "e"]),
    ".safetensors": (safetensors, ["--column", "e"]),
}


@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_of_file_trains_and_encodes_as_the_package_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, column = KINDS[suffix]
    write(tmp_path / f"x{suffix}", X)
    assert main(["train", f"x{suffix}", *TRAIN, *column, "--quiet"]) == 0
    assert main(["encode", f"x{suffix}", "-m", "model", "-o", "c.npz", *column]) == 0
    model = sr.CompresSAE(16, 64, 4)
    name = column[1] if column else None
    sr.train(model, f"x{suffix}", steps=8, batch_size=64, column=name, progress=False)
    written = sr.CompresSAE.from_pretrained("model")
    np.testing.assert_array_equal(written.dictionary().atoms, model.dictionary().atoms)
    codes, found = model.sparse_codes(X), scipy.sparse.load_npz("c.npz")
    np.testing.assert_array_equal(found.indices, codes.latents)
    np.testing.assert_array_equal(found.data, codes.values)


def test_bfloat16_is_trained_on_and_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"e": torch.from_numpy(X).bfloat16()}, "x.safetensors")
    assert main(["train", "x.safetensors", *TRAIN, "--quiet"]) == 0
    assert main(["encode", "x.safetensors", "-m", "model", "-o", "c.npz"]) == 0
    assert scipy.sparse.load_npz("c.npz").shape == (300, 64)


#: Trains on one file after another and prints how much memory of its own the process had at most
#: during each. Pages of a mapped file are not among it: the system takes them back when it needs
#: them.
MEASURED = """
import pathlib, re, sys, threading
from sparse_retrieval.cli import main

most, over = 0, threading.Event()
def watch():
    global most
    while not over.wait(0.02):
        status = pathlib.Path("/proc/self/status").read_text()
        most = max(most, int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]))

watching = threading.Thread(target=watch)
watching.start()
for path in sys.argv[1].split(","):
    most = 0
    code = main(["train", path, *sys.argv[2:]])
    assert code == 0, code
    print(path, most * 1024)
over.set()
watching.join()
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    sizes = {"few": 2_000, "many": 400_000}
    for name, rows in sizes.items():
        x = np.random.default_rng(0).integers(1, 1000, (rows, 128), np.int16).astype(np.float16)
        npy(tmp_path / f"{name}.npy", x)
        save_file({"e": torch.from_numpy(x)}, tmp_path / f"{name}.safetensors")
    files = [f"{name}{suffix}" for suffix in (".npy", ".safetensors") for name in sizes]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, ",".join(files), *TRAIN, "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    peaks = {line[0]: int(line[1]) for line in lines if line[0] in files}
    for suffix in (".npy", ".safetensors"):
        grown = peaks[f"many{suffix}"] - peaks[f"few{suffix}"]
        # the order of the rows is 8 bytes a row, and is there three times while it is made
        assert grown < x.nbytes / 4, f"{peaks} for a file of {x.nbytes} bytes"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train x.npy --out m --column e", 2, "column is 'e', but x is a memmap"),
        ("train x.parquet --out m", 2, "x.parquet has 2 columns of lists of numbers"),
        ("train x.safetensors --out m", 2, "name one with column=, of: e (300, 16), other (5, 16)"),
        ("train x.parquet --out m --column z", 2, "has no column 'z'"),
        ("train bad.parquet --out m", 1, "bad.parquet is not a sound .parquet file"),
        ("train bad.safetensors --out m", 1, "bad.safetensors is no readable safetensors file"),
        ("encode none.parquet --model m --out c.npz", 1, "none.parquet: no such file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix, (write, _) in KINDS.items():
        write(tmp_path / f"x{suffix}", X)
    for name in ("bad.parquet", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    assert main(line.split()) == code
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
