"""Each way to ask wrongly: one line on stderr, nothing on stdout, the documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import sparse_retrieval as sr
from sparse_retrieval.cli import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of every kind, and some that are not."""
    folder = tmp_path_factory.mktemp("errors")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "narrow.npy", x[:, :5])
    np.save(folder / "one.npy", x[0])
    holed = x.copy()
    holed[11, 2] = np.nan
    np.save(folder / "nan.npy", holed)
    np.save(folder / "ids.npy", np.arange(39))
    np.save(folder / "far.npy", np.arange(41))
    (folder / "text.npy").write_text("hello", encoding="utf-8")
    (folder / "bad.parquet").write_bytes(b"PAR1 and no more")
    (folder / "x.csv").write_text("1,2\n", encoding="utf-8")
    (folder / "names.txt").write_text("only one\n", encoding="utf-8")
    model = sr.CompresSAE(input_dim=8, hidden_dim=32, k=4)
    model.save_pretrained(folder / "model")
    model.dictionary().save(folder / "atoms.safetensors")
    codes = model.sparse_codes(x)
    scipy.sparse.save_npz(folder / "codes.npz", codes.to_scipy())
    scipy.sparse.save_npz(folder / "csc.npz", codes.to_scipy().tocsc())
    np.savez(folder / "other.npz", a=x)
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    sr.SparseIndex.from_codes(codes).save(folder / "sparse.sridx")
    index = sr.SparseIndex.from_codes(codes, dictionary=model.dictionary(), metric="cosine")
    index.save(folder / "items.sridx")
    content = (folder / "items.sridx").read_bytes()
    (folder / "cut.sridx").write_bytes(content[: len(content) // 2])
    (folder / "magic.sridx").write_bytes(b"something else entirely" + bytes(200))
    (folder / "file").write_bytes(b"")
    return folder


# command line; exit code; what the line says
CASES = {
    "unknown subcommand": ("ecode x.npy", 2, "No such command 'ecode'"),
    "unknown option": ("info items.sridx --colour", 2, "No such option: --colour"),
    "missing argument": ("info", 2, "Missing argument 'INDEX'"),
    "missing option": ("encode x.npy --model model", 2, "Missing option '--out'"),
    "not a number": ("train x.npy --out m --k many", 2, "Invalid value for '--k'"),
    "k of zero": ("search items.sridx -q x.npy -k 0", 2, "Invalid value for '--k'"),
    "negative k": ("train x.npy --out m --k -3", 2, "Invalid value for '--k'"),
    "unknown mode": ("search items.sridx -q x.npy --mode fast", 2, "Invalid value for '--mode'"),
    "k above latents": (
        "train x.npy --out m --k 9 --hidden-dim 8",
        2,
        "k must be at most hidden_dim: got k = 9, hidden_dim = 8",
    ),
    "missing embeddings": ("train none.npy --out m", 1, "none.npy: no such file"),
    "a folder": ("train model --out m", 1, "model: is a folder, expected a file"),
    "unknown kind": ("train x.csv --out m", 1, "x.csv: cannot read embeddings from a .csv"),
    "not an npy file": ("train text.npy --out m", 1, "text.npy: is not a readable .npy file"),
    "one axis": ("train one.npy --out m", 1, "one.npy: holds float32 of shape (8,)"),
    "out is a file": ("train x.npy --out file", 1, "file: file exists"),
    "NaN in training": ("train nan.npy --out m --steps 3 --hidden-dim 16 --k 2", 2, "row 11"),
    "NaN in encoding": ("encode nan.npy --model model --out c.npz", 2, "row 11"),
    "missing model": ("encode x.npy --model none --out c.npz", 1, "none/config.json"),
    "width of the model": (
        "encode narrow.npy --model model --out c.npz",
        2,
        "x has 5 columns, this model takes 8",
    ),
    "k above the model's latents": (
        "encode x.npy --model model --out c.npz --k 99",
        2,
        "k must be at most hidden_dim: got k = 99",
    ),
    "unwritable": (
        "encode x.npy --model model --out none/c.npz",
        1,
        "none/c.npz: cannot write, its folder does not exist",
    ),
    "neither model nor dictionary": (
        "encode x.npy --out c.npz",
        2,
        "neither --model nor --dictionary given",
    ),
    "model and dictionary": (
        "encode x.npy --out c.npz --model model --dictionary d.safetensors",
        2,
        "--model and --dictionary both given",
    ),
    "method of a model": (
        "encode x.npy --out c.npz --model model --method omp",
        2,
        "go with --dictionary, not with --model",
    ),
    "method unknown": (
        "encode x.npy --out c.npz --dictionary d.safetensors --method fast",
        2,
        "Invalid value for '--method'",
    ),
    "dictionary of a model": (
        "encode x.npy --dictionary model/model.safetensors --out c.npz",
        2,
        "expected the tensor 'atoms'",
    ),
    "fit in no folder": (
        "fit x.npy --out none/d.safetensors --n-atoms 8",
        1,
        "none/d.safetensors: cannot write, its folder does not exist",
    ),
    "fit into a folder": ("fit x.npy --out model", 1, "model: cannot write, it is a folder"),
    "atoms above rows": (
        "fit x.npy --out d.safetensors --n-atoms 41",
        2,
        "n_atoms is 41 but there are 40 rows",
    ),
    "NaN in learning": ("fit nan.npy --out d.safetensors --n-atoms 8 -k 2", 2, "row 11"),
    "column of npy": (
        "fit x.npy --out d.safetensors --column e",
        2,
        "x is no .parquet file",
    ),
    "no parquet": ("fit bad.parquet --out d.safetensors", 1, "bad.parquet is not a sound"),
    "missing parquet": ("compress none.parquet --out i.sridx", 1, "none.parquet: no such file"),
    "too few rows": ("compress x.npy --out i.sridx", 2, "x has 40 rows; learning"),
    "k and bytes": (
        "compress x.npy --out i.sridx --dictionary atoms.safetensors -k 4 --bytes 20",
        2,
        "both given",
    ),
    "complete without bytes": (
        "compress x.npy --out i.sridx --complete --dictionary atoms.safetensors -k 4",
        2,
        "complete=True needs bytes_per_item",
    ),
    "compress in no folder": (
        "compress x.npy --out none/i.sridx",
        1,
        "none/i.sridx: cannot write, its folder does not exist",
    ),
    "not codes": ("build x.npy --out i.sridx", 1, "x.npy: codes are read from .npz files"),
    "npz without codes": ("build other.npz --out i.sridx", 1, "other.npz: lacks indptr, indices"),
    "broken npz": ("build broken.npz --out i.sridx", 1, "broken.npz: is not a readable .npz"),
    "columns, not rows": ("build csc.npz --out i.sridx", 1, "csc.npz: holds a csc matrix"),
    "value bits": ("build codes.npz --out i.sridx --value-bits 12", 2, "value_bits"),
    "mode without dictionary": ("build codes.npz --out i.sridx --mode dense", 2, "dictionary"),
    "two dictionaries": (
        "build codes.npz --out i.sridx --model model --dictionary d.safetensors",
        2,
        "--model and --dictionary both given",
    ),
    "missing dictionary": (
        "build codes.npz --out i.sridx --dictionary none.safetensors",
        1,
        "none.safetensors",
    ),
    "count of ids": ("build codes.npz --out i.sridx --ids ids.npy", 2, "39"),
    "missing index": ("search none.sridx -q x.npy", 1, "none.sridx"),
    "wrong magic": ("info magic.sridx", 1, "magic.sridx: starts with the bytes"),
    "truncated": ("search cut.sridx -q x.npy", 1, "cut.sridx: section"),
    "merge of nothing": ("merge out.sridx", 2, "IN"),
    "merge of a missing file": ("merge out.sridx items.sridx none.sridx", 1, "none.sridx"),
    "merge of a truncated file": ("merge out.sridx items.sridx cut.sridx", 1, "cut.sridx: section"),
    "merge of two models": (
        "merge out.sridx items.sridx sparse.sridx",
        2,
        "sparse.sridx differs from the first in its",
    ),
    "verify truncated": ("verify cut.sridx", 1, "cut.sridx: section"),
    "width of queries": ("search items.sridx -q narrow.npy", 2, "5"),
    "NaN in queries": ("search items.sridx -q nan.npy", 2, "row 11"),
    "mode not built": (
        "search items.sridx -q codes.npz --mode sparse",
        2,
        "sparse",
    ),
    "codes for dense": (
        "search items.sridx -q codes.npz --mode dense",
        2,
        "codes.npz: holds codes, but --mode dense takes embeddings",
    ),
    "embeddings for sparse": (
        "search sparse.sridx -q x.npy --mode sparse",
        2,
        "queries have 8 columns; this index holds no dictionary",
    ),
    "npz without out": ("search items.sridx -q x.npy --format npz", 2, "npz needs --out"),
    "table with out": ("search items.sridx -q x.npy --out t.txt", 2, "table goes to the screen"),
    "names too few": (
        "search items.sridx -q x.npy --names names.txt",
        2,
        "has no name: --names has 1 lines",
    ),
    "filter of floats": (
        "search items.sridx -q x.npy --filter one.npy",
        1,
        "one.npy: holds float32 of shape (8,), expected one axis of bool",
    ),
    "missing filter": (
        "search items.sridx -q x.npy --filter none.npy",
        1,
        "none.npy: no such file",
    ),
    "unknown id": ("search items.sridx -q x.npy --filter far.npy", 2, "holds the id 40, which no"),
    "missing vectors": ("search items.sridx -q x.npy --rescore none.npy", 1, "none.npy"),
    "kind of vectors": ("search items.sridx -q x.npy --rescore x.csv", 2, "neither .npy nor"),
    "width of vectors": (
        "search items.sridx -q x.npy --rescore narrow.npy",
        2,
        "rescore has 5 columns, queries have 8",
    ),
    "NaN in vectors": ("search items.sridx -q x.npy -k 40 --rescore nan.npy", 2, "rescore row 11"),
    "oversample": (
        "search items.sridx -q x.npy --rescore x.npy --oversample 0.5",
        2,
        "Invalid value for '--oversample'",
    ),
    "rescoring codes": (
        "search items.sridx -q codes.npz --rescore x.npy",
        2,
        "needs embeddings as queries",
    ),
    "items of eval": ("eval items.sridx --x model/none.npy -q x.npy", 1, "no such file"),
    "depth of eval": ("eval items.sridx --x x.npy -q x.npy", 2, "--k is 100"),
    "width in eval": ("eval items.sridx --x x.npy -q narrow.npy --k 5", 2, "5 columns"),
    "no mode for eval": (
        "eval sparse.sridx --x x.npy -q x.npy --k 5",
        2,
        "none of its modes can be asked without --model",
    ),
    "sample is absent": ("demo --data model", 1, "the sample is examples/data of a clone"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_the_exit_code(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, code, message = CASES[case]
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    *notes, last = err.splitlines()
    assert all(note.endswith("it needs --model") for note in notes)
    assert last.startswith("sparse-retrieval: error: ")
    assert message in last
    made = {path.name for path in folder.iterdir()} - set(before)
    assert made <= {"m"}, "a failed command left files behind"


def test_the_cases_hold_in_a_real_process(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparse_retrieval.cli", "info", "magic.sridx"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sparse-retrieval: error: magic.sridx: starts with")


def run_without(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in an interpreter that cannot import ``module``."""
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from sparse_retrieval.cli import main\n"
        f"sys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("typer", ["info", "items.sridx"], "cli"),
        ("torch", ["encode", "x.npy", "--model", "model", "--out", "c.npz"], "train"),
        ("torch", ["demo", "--data", str(ROOT / "examples" / "data")], "train"),
        ("matplotlib", ["demo", "--data", str(ROOT / "examples" / "data")], "cli"),
    ],
)
def test_an_absent_library_is_one_line_with_the_extra(
    module: str, arguments: list[str], extra: str, folder: Path
) -> None:
    done = run_without(module, *arguments, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("sparse-retrieval: error: ")
    assert f"pip install 'sparse_retrieval[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_info_and_verify_need_no_torch(folder: Path) -> None:
    for command in ("info", "verify"):
        assert run_without("torch", command, "items.sridx", cwd=folder).returncode == 0


def test_a_bug_keeps_its_traceback(folder: Path) -> None:
    script = (
        "import sparse_retrieval as sr\n"
        "from sparse_retrieval.cli import main\n"
        "def broken(*args, **kwargs): raise KeyError('bug')\n"
        "sr.SparseIndex.open = broken\n"
        "main(['info', 'items.sridx'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'bug'" in done.stderr


def test_a_traceback_can_be_asked_for(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparse_retrieval.cli", "info", "none.sridx"],
        cwd=folder,
        env={**os.environ, "SPARSE_RETRIEVAL_TRACEBACK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
