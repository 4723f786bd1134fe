"""The command line from end to end, in real processes, against the package and plain numpy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.sparse

import sparse_retrieval as sr
from sparse_retrieval.cli import main
from sparse_retrieval.evaluate import exact_top_k, recall_at

ROWS, WIDTH, LATENTS, K = 600, 16, 64, 6
COMMANDS = ["compress", "train", "fit", "encode", "build", "search", "eval"]
COMMANDS += ["info", "verify", "merge", "serve", "explore", "demo"]


@dataclass(frozen=True)
class Workspace:
    """A folder with embeddings, and what the first three subcommands made of them."""

    folder: Path
    x: np.ndarray
    queries: np.ndarray

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*arguments, cwd=self.folder, check=check)


def run(*arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparse_retrieval.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, WIDTH))
    rows = centres[rng.integers(0, 30, ROWS + 20)] + 0.4 * rng.normal(size=(ROWS + 20, WIDTH))
    x, queries = rows[:ROWS].astype(np.float32), rows[ROWS:].astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "q.npy", queries)
    (folder / "names.txt").write_text(
        "".join(f"item-{row}\n" for row in range(ROWS)), encoding="utf-8"
    )
    work = Workspace(folder, x, queries)
    work.run(
        *("train", "x.npy", "--out", "model", "--hidden-dim", LATENTS, "--k", K),
        *("--steps", "40", "--batch-size", "256", "--seed", "3", "--quiet"),
    )
    work.run("encode", "x.npy", "--model", "model", "--out", "codes.npz")
    work.run(
        *("build", "codes.npz", "--model", "model", "--out", "items.sridx", "--value-bits", "16"),
        *("--mode", "dense", "--mode", "reconstructed", "--mode", "sparse"),
    )
    return work


def test_train_gives_the_weights_that_the_package_gives(work: Workspace) -> None:
    model = sr.CompresSAE(input_dim=WIDTH, hidden_dim=LATENTS, k=K, seed=3)
    sr.train(model, work.x, steps=40, batch_size=256, seed=3, progress=False)
    written = sr.CompresSAE.from_pretrained(work.folder / "model")
    # Another process may sum in another order (threads), so equal to rounding, not to the bit.
    np.testing.assert_allclose(
        written.dictionary().atoms, model.dictionary().atoms, rtol=0, atol=1e-3
    )


def test_codes_are_those_of_the_model_and_scipy_reads_them(work: Workspace) -> None:
    model = sr.CompresSAE.from_pretrained(work.folder / "model")
    want = model.sparse_codes(work.x)
    matrix = scipy.sparse.load_npz(work.folder / "codes.npz")
    assert matrix.shape == (ROWS, LATENTS)
    np.testing.assert_array_equal(matrix.indices, want.latents)
    np.testing.assert_allclose(matrix.data, want.values, rtol=0, atol=1e-5)


def test_encode_takes_another_k_than_training(work: Workspace) -> None:
    done = work.run("encode", "x.npy", "--model", "model", "--out", "wide.npz", "--k", 9)
    assert f"{ROWS} codes, {ROWS * 9} nonzeros, {LATENTS} latents" in done.stdout


def test_codes_that_scipy_wrote_are_built(work: Workspace) -> None:
    codes = scipy.sparse.random(50, 40, density=0.1, format="csr", dtype=np.float32, rng=1)
    scipy.sparse.save_npz(work.folder / "scipy.npz", codes)
    work.run("build", "scipy.npz", "--out", "scipy.sridx", "--metric", "inner_product")
    index = sr.SparseIndex.open(work.folder / "scipy.sridx")
    assert (index.metric, index.modes, len(index)) == ("inner_product", ("sparse",), 50)
    want = sr.SparseIndex.from_codes(codes).search(codes, 5)
    np.testing.assert_array_equal(index.search(codes, 5).ids, want.ids)


def test_a_dictionary_file_serves_instead_of_a_model(work: Workspace) -> None:
    model = sr.CompresSAE.from_pretrained(work.folder / "model")
    model.dictionary().save(work.folder / "atoms.safetensors")
    work.run("build", "codes.npz", "--dictionary", "atoms.safetensors", "--out", "d.sridx")
    index = sr.SparseIndex.open(work.folder / "d.sridx")
    assert set(index.modes) == {"dense", "reconstructed"}
    assert index.metric == "cosine"


def test_fit_encode_and_build_give_what_the_package_gives(work: Workspace) -> None:
    done = work.run(
        *("fit", "x.npy", "--out", "fitted.safetensors", "--n-atoms", 48, "--k", 4),
        *("--rounds", 3, "--held-out", 20, "--seed", 7),
    )
    assert "48 atoms of width 16 after 3 rounds" in done.stdout
    assert "held out 0." in done.stdout
    want = sr.Dictionary.fit(work.x, 48, 4, rounds=3, held_out=20, seed=7)
    fitted = sr.Dictionary.load(work.folder / "fitted.safetensors")
    np.testing.assert_array_equal(fitted.atoms, want.atoms)
    for options, method, k in (((), "pursuit", 32), (("--method", "omp", "-k", 5), "omp", 5)):
        work.run(
            *("encode", "x.npy", "--dictionary", "fitted.safetensors", "--out", "fit.npz"), *options
        )
        matrix = scipy.sparse.load_npz(work.folder / "fit.npz")
        codes = want.encode(work.x, k, method)
        np.testing.assert_array_equal(matrix.indices, codes.latents)
        np.testing.assert_array_equal(matrix.data, codes.values)
    work.run("build", "fit.npz", "--dictionary", "fitted.safetensors", "--out", "fit.sridx")
    index = sr.SparseIndex.open(work.folder / "fit.sridx")
    assert index.search(work.x[3], 1).ids.tolist() == [3]


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_compress_writes_the_index_of_from_embeddings(work: Workspace, suffix: str) -> None:
    x = work.folder / f"same{suffix}"
    if suffix == ".npy":
        np.save(x, work.x)
    elif suffix == ".parquet":
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(work.x.ravel()), WIDTH)
        pq.write_table(pa.table({"name": [f"n{i}" for i in range(ROWS)], "e": numbers}), x)
    else:
        safetensors.numpy.save_file({"x": work.x}, x)
    np.save(work.folder / "ids.npy", np.arange(ROWS) + 1000)
    done = work.run(
        *("compress", x, "--out", "one.sridx", "--bytes", 12, "--n-atoms", 64, "--rounds", 3),
        *("--ids", "ids.npy", "--seed", 2),
        *(("--column", "e") if suffix == ".parquet" else ()),
    )
    want = sr.SparseIndex.from_embeddings(
        work.x, bytes_per_item=12, n_atoms=64, rounds=3, ids=np.arange(ROWS) + 1000, seed=2
    )
    want.save(work.folder / "want.sridx")
    written = (work.folder / "one.sridx").read_bytes()
    assert written == (work.folder / "want.sridx").read_bytes()
    assert f"{ROWS} items, {want.bytes_per_item:g} bytes an item, reconstruction" in done.stdout


def test_compress_takes_a_dictionary_modes_and_metric(work: Workspace) -> None:
    sr.Dictionary.fit(work.x, 64, 6, rounds=2).save(work.folder / "held.safetensors")
    work.run(
        *("compress", "x.npy", "--out", "two.sridx", "--dictionary", "held.safetensors", "-k", 5),
        *("--metric", "inner_product", "--mode", "dense", "--mode", "sparse", "--value-bits", 8),
    )
    index = sr.SparseIndex.open(work.folder / "two.sridx")
    assert (index.metric, index.value_bits, index.modes) == (
        "inner_product",
        8,
        ("dense", "sparse"),
    )
    assert index.dictionary is not None
    held = sr.Dictionary.load(work.folder / "held.safetensors")
    np.testing.assert_array_equal(index.dictionary.atoms, held.atoms)


@pytest.mark.parametrize("asked", ["--complete", "--sparse"])
def test_compress_makes_the_kind_of_codes_that_is_asked_for(work: Workspace, asked: str) -> None:
    work.run("compress", "x.npy", "--out", "kind.sridx", "--bytes", 12, "--rounds", 1, asked)
    index = sr.SparseIndex.open(work.folder / "kind.sridx")
    assert index.stats()["complete"] == (asked == "--complete")
    assert index.bytes_per_item <= 12


@pytest.mark.parametrize("mode", ["dense", "reconstructed", "sparse"])
def test_search_prints_what_the_index_finds(work: Workspace, mode: str) -> None:
    model = [] if mode == "dense" else ["--model", "model"]
    done = work.run(
        *("search", "items.sridx", "--queries", "q.npy", "-k", 7, "--mode", mode, *model),
        *("--format", "json", "--names", "names.txt", "--threads", 1),
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    index = sr.SparseIndex.open(work.folder / "items.sridx")
    asked = work.queries
    if mode != "dense":
        asked = sr.CompresSAE.from_pretrained(work.folder / "model").sparse_codes(work.queries)
    want = index.search(asked, 7, mode=mode)
    assert [record["query"] for record in records] == list(range(20))
    for record, ids, scores in zip(records, want.ids, want.scores, strict=True):
        assert record["ids"] == ids.tolist()
        assert record["names"] == [f"item-{item}" for item in ids]
        np.testing.assert_allclose(record["scores"], scores, rtol=0, atol=1e-5)


def test_search_filters_by_ids_or_mask_and_rescores_from_a_file(work: Workspace) -> None:
    index = sr.SparseIndex.open(work.folder / "items.sridx")
    chosen = np.arange(5, ROWS, 7)
    np.save(work.folder / "chosen.npy", chosen)
    np.save(work.folder / "mask.npy", np.isin(np.arange(ROWS), chosen))
    search = ("search", "items.sridx", "--queries", "q.npy", "-k", 4, "--format", "npz")
    for file in ("chosen.npy", "mask.npy"):
        work.run(*search, "--filter", file, "--out", "found.npz")
        with np.load(work.folder / "found.npz") as found:
            want = index.search(work.queries, 4, filter=chosen)
            np.testing.assert_array_equal(found["ids"], want.ids)
    rescore = ("--rescore", "x.npy", "--oversample", "2.5", "--filter", "mask.npy")
    work.run(*search, *rescore, "--out", "found.npz")
    with np.load(work.folder / "found.npz") as found:
        want = index.search(work.queries, 4, filter=chosen, rescore=work.x, oversample=2.5)
        np.testing.assert_array_equal(found["ids"], want.ids)
        np.testing.assert_array_equal(found["scores"], want.scores)


def test_search_writes_arrays_and_lines_to_files(work: Workspace) -> None:
    search = ("search", "items.sridx", "--queries", "q.npy", "-k", 3)
    work.run(*search, "--format", "npz", "--out", "found.npz")
    work.run(*search, "--format", "json", "--out", "found.json", "--no-mmap")
    with np.load(work.folder / "found.npz") as found:
        lines = (work.folder / "found.json").read_text(encoding="utf-8").splitlines()
        assert found["ids"].tolist() == [json.loads(line)["ids"] for line in lines]
        assert found["scores"].dtype == np.float32


def test_search_draws_a_table_with_names(work: Workspace) -> None:
    done = work.run(
        *("search", "items.sridx", "--queries", "q.npy", "-k", 2, "--names", "names.txt")
    )
    best = exact_best_name(work)
    assert best in done.stdout
    assert done.stdout.count("item-") == 40


def exact_best_name(work: Workspace) -> str:
    index = sr.SparseIndex.open(work.folder / "items.sridx")
    return f"item-{index.search(work.queries[0], 1).ids[0]}"


def test_more_items_than_there_are_leave_no_padding_in_json(work: Workspace) -> None:
    done = work.run(
        *("search", "items.sridx", "--queries", "q.npy", "-k", ROWS + 5, "--format", "json")
    )
    assert len(json.loads(done.stdout.splitlines()[0])["ids"]) == ROWS


def test_ids_of_the_build_come_back_and_eval_knows_them(work: Workspace) -> None:
    ids = np.arange(ROWS) * 7 + 1000
    np.save(work.folder / "ids.npy", ids)
    work.run(
        *("build", "codes.npz", "--model", "model", "--out", "ids.sridx", "--ids", "ids.npy"),
        *("--value-bits", "16"),
    )
    ask = ("--x", "x.npy", "--queries", "q.npy", "--k", 10, "--mode", "dense", "--format", "json")
    plain = json.loads(work.run("eval", "items.sridx", *ask).stdout)
    named = json.loads(work.run("eval", "ids.sridx", *ask).stdout)
    assert plain[0]["recall"] == named[0]["recall"] > 0.2


def test_an_index_is_built_and_tuned_for_approximate_search_and_asked_so(work: Workspace) -> None:
    built = work.run(
        *("build", "codes.npz", "--model", "model", "--out", "near.sridx", "--postings"),
        *("--mode", "dense", "--mode", "sparse", "--tune", "0.9"),
    )
    index = sr.SparseIndex.open(work.folder / "near.sridx")
    tuned = index.tuned
    assert tuned is not None
    assert tuned["reached"] >= 0.9
    assert f"tuned: {tuned['clusters']} clusters, {tuned['rerank']} rows rescored" in built.stdout
    assert index.stats()["postings"] is not None
    work.run(
        *("search", "near.sridx", "--queries", "q.npy", "-k", 5, "--mode", "dense"),
        *("--approximate", "--format", "npz", "--out", "near.npz"),
    )
    expected = index.search(work.queries, 5, mode="dense", approximate=True)
    assert np.load(work.folder / "near.npz")["ids"].tolist() == expected.ids.tolist()
    refused = work.run(
        *("search", "items.sridx", "--queries", "q.npy", "--mode", "dense", "--approximate"),
        check=False,
    )
    assert refused.returncode == 2
    assert "has no clusters" in refused.stderr


def test_eval_measures_the_recall_that_numpy_measures(work: Workspace) -> None:
    done = work.run(
        *("eval", "items.sridx", "--x", "x.npy", "--queries", "q.npy", "--model", "model"),
        *("--k", 10, "--format", "json"),
    )
    reports = {report["mode"]: report for report in json.loads(done.stdout)}
    assert set(reports) == {"dense", "reconstructed", "sparse"}
    index = sr.SparseIndex.open(work.folder / "items.sridx")
    true = exact_top_k(work.x, work.queries, 10).ids
    dense = recall_at(index.search(work.queries, 10, mode="dense").ids, true)
    assert reports["dense"]["recall"] == dense
    assert reports["dense"]["bytes_per_item"] == index.bytes_per_item
    assert reports["sparse"]["n_items"] == ROWS


def test_eval_without_a_model_says_what_it_leaves_out(work: Workspace) -> None:
    done = work.run(*("eval", "items.sridx", "--x", "x.npy", "--queries", "q.npy", "--k", 10))
    assert done.stderr.splitlines() == [
        f"mode {mode} is left out: unless --mode asks for it, which then encodes queries by "
        "pursuit, it needs --model"
        for mode in ("reconstructed", "sparse")
    ]
    assert "recall@10" in done.stdout
    assert "dense" in done.stdout


def test_info_shows_the_header(work: Workspace) -> None:
    stats = json.loads(work.run("info", "items.sridx", "--format", "json").stdout)
    assert stats == sr.SparseIndex.open(work.folder / "items.sridx").stats()
    table = work.run("info", "items.sridx").stdout
    for section in stats["sections"]:
        assert section["name"] in table
        assert f"{section['bytes']:,}" in table


def test_verify_passes_a_sound_file_and_fails_on_one_flipped_byte(work: Workspace) -> None:
    assert f"sound, {ROWS} items" in work.run("verify", "items.sridx").stdout
    content = bytearray((work.folder / "items.sridx").read_bytes())
    content[-10] ^= 1
    (work.folder / "flipped.sridx").write_bytes(content)
    done = work.run("verify", "flipped.sridx", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("sparse-retrieval: error: flipped.sridx: section ")
    assert done.stderr.count("\n") == 1


def test_merge_joins_files_in_order_and_may_write_onto_one_of_them(work: Workspace) -> None:
    codes = scipy.sparse.random(30, 40, density=0.2, format="csr", dtype=np.float32, rng=2)
    for name, rows in (("a", slice(0, 12)), ("b", slice(12, 30))):
        scipy.sparse.save_npz(work.folder / f"{name}.npz", codes[rows])
        np.save(work.folder / f"{name}.npy", np.arange(100, 130)[rows])
        work.run("build", f"{name}.npz", "--out", f"{name}.sridx", "--ids", f"{name}.npy")
    done = work.run("merge", "joined.sridx", "a.sridx", "b.sridx")
    assert done.stdout == "wrote joined.sridx: 30 items of 2 files\n"
    work.run("merge", "a.sridx", "a.sridx", "b.sridx")
    whole = sr.SparseIndex.from_codes(codes, ids=np.arange(100, 130), metric="cosine")
    for name in ("joined", "a"):
        index = sr.SparseIndex.open(work.folder / f"{name}.sridx")
        index.verify()
        got, want = index.search(codes[:5], 7), whole.search(codes[:5], 7)
        np.testing.assert_array_equal(got.ids, want.ids)
        np.testing.assert_array_equal(got.scores, want.scores)
    refused = work.run("merge", "twice.sridx", "a.sridx", "b.sridx", check=False)
    assert refused.returncode == 2
    assert "112" in refused.stderr
    assert not (work.folder / "twice.sridx").exists()


def test_ctrl_c_leaves_a_model_and_exits_with_130(work: Workspace) -> None:
    # The child tells when a step is done: before the first, Ctrl-C rightly leaves no model.
    script = (
        "import pathlib, sys\n"
        "import sparse_retrieval as sr\n"
        "from sparse_retrieval.cli import main\n"
        "train = sr.train\n"
        "started = lambda step: pathlib.Path('started').touch()\n"
        "sr.train = lambda *args, **options: train(*args, **options, on_step=started)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = ["--out", "early", "--hidden-dim", "64", "--k", "6", "--steps", "1000000"]
    with subprocess.Popen(
        [sys.executable, "-c", script, "train", "x.npy", *options],
        cwd=work.folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            deadline = time.monotonic() + 60
            while not (work.folder / "started").exists():
                assert time.monotonic() < deadline, "training did not start"
                assert child.poll() is None, "training ended by itself"
                time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
    assert stderr.startswith("sparse-retrieval: error: interrupted after step")
    assert stderr.count("\n") == 1
    model = sr.CompresSAE.from_pretrained(work.folder / "early")
    assert model.dictionary().n_atoms == 64


def test_ctrl_c_elsewhere_is_one_line(work: Workspace) -> None:
    script = (
        "import sys\n"
        "import sparse_retrieval as sr\n"
        "from sparse_retrieval.cli import main\n"
        "def interrupted(*args, **options): raise KeyboardInterrupt\n"
        "sr.SparseIndex.open = interrupted\n"
        "sys.exit(main(['info', 'items.sridx']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=work.folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "sparse-retrieval: interrupted\n")


def test_a_reader_that_goes_away_is_no_traceback(work: Workspace) -> None:
    command = [sys.executable, "-m", "sparse_retrieval.cli", "search", "items.sridx"]
    options = ["--queries", "q.npy", "-k", str(ROWS), "--format", "json"]
    with subprocess.Popen(
        [*command, *options],
        cwd=work.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()  # before the first line: 20 x 600 items overflow any pipe's buffer
        stderr = child.stderr.read()
        assert child.wait(timeout=60) == 141
    assert stderr == b""


def test_the_installed_command_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="sparse-retrieval")
    assert script.load() is main


def test_main_returns_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparse-retrieval {sr.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_explains_itself_and_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"sparse-retrieval {command}" in shown
    assert "Exit codes: 0 done; 1 failed" in shown


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command in shown
