"""The demo, made small: it ends well, and what it prints is what its files give."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_retrieval as sr
from sparse_retrieval.cli._curves import curve, exact_report, pca_curve
from sparse_retrieval.cli._errors import CommandError
from sparse_retrieval.cli.demo import SHOWN, _split
from sparse_retrieval.cli.sample import Sample, load_sample
from sparse_retrieval.evaluate import exact_top_k, recall_at

DATA = Path(__file__).resolve().parent.parent / "examples" / "data"
QUERIES = 40


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "sparse_retrieval.cli", "demo", "--data", str(DATA)]
    small = ["--hidden-dim", "256", "--k", "8", "--steps", "15", "--batch-size", "512"]
    done = subprocess.run(
        [*command, *small, "--queries", str(QUERIES), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out, done.stdout


def test_the_table_shows_what_the_written_files_give(demo: tuple[Path, str]) -> None:
    out, printed = demo
    split = _split(load_sample(DATA), QUERIES, seed=0)
    true = exact_top_k(split.items, split.queries, 100).ids
    codes = sr.CompresSAE.from_pretrained(out / "model").sparse_codes(split.queries)
    for bits in (32, 8):
        index = sr.SparseIndex.open(out / f"packages-{bits}bit.sridx")
        index.verify()
        assert len(index) == len(split.items)
        for mode in ("sparse", "reconstructed", "dense"):
            asked = split.queries if mode == "dense" else codes
            recall = recall_at(index.search(asked, 100, mode=mode).ids, true)
            row = rf"{mode} +│ +{bits} │ +{index.bytes_per_item:g} │ +1/[\d.]+ │ +{recall:.3f} │"
            assert re.search(row, printed), (row, printed)
    assert re.search(r"exact float32 +│ +32 │ +1536 │ +1/1.0 │ +1.000 │", printed)


def test_neighbours_of_named_packages_stand_side_by_side(demo: tuple[Path, str]) -> None:
    out, printed = demo
    split = _split(load_sample(DATA), QUERIES, seed=0)
    index = sr.SparseIndex.open(out / "packages-8bit.sridx")
    for row, name in enumerate(SHOWN):
        assert split.query_names[row] == name
        assert re.search(rf"│ {name} +│", printed)
        nearest = split.item_names[
            exact_top_k(split.items, split.queries[row : row + 1], 1).ids[0, 0]
        ]
        found = split.item_names[index.search(split.queries[row], 1, mode="dense").ids[0]]
        assert nearest[:20] in printed
        assert found[:20] in printed


def test_the_picture_is_a_png_of_some_size(demo: tuple[Path, str]) -> None:
    content = (demo[0] / "recall_against_bytes.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 800
    assert height > 400
    assert len(content) > 20_000


def test_no_query_is_an_item() -> None:
    sample = Sample(
        np.arange(60, dtype=np.float32).reshape(20, 3), [*SHOWN, *(f"p{i}" for i in range(16))]
    )
    split = _split(sample, 9, seed=5)
    assert split.query_names[: len(SHOWN)] == list(SHOWN)
    assert len(split.query_names) == 9
    assert sorted(split.query_names + split.item_names) == sorted(sample.names)
    position = sample.names.index(split.item_names[3])
    np.testing.assert_array_equal(split.items[3], sample.embeddings[position])


def test_more_queries_than_rows_are_refused() -> None:
    sample = Sample(np.ones((3, 2), dtype=np.float32), ["a", "b", "c"])
    with pytest.raises(CommandError, match="--queries is 3, but the sample has 3 rows"):
        _split(sample, 3, seed=0)


def test_a_curve_point_equals_an_index_built_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)).astype(np.float32)
    model = sr.CompresSAE(input_dim=12, hidden_dim=48, k=6)
    codes, asked = model.sparse_codes(x), model.sparse_codes(x[:20])
    true = exact_top_k(x, x[:20], 10).ids
    points = curve(
        codes, asked, x[:20], model.dictionary(), true, ks=(3, 6), value_bits=16, depth=10
    )
    assert [(point.series, point.setting) for point in points] == [
        (mode, f"k={k}") for k in (3, 6) for mode in ("sparse", "reconstructed", "dense")
    ]
    index = sr.SparseIndex.from_codes(
        codes.top(3), dictionary=model.dictionary(), metric="cosine", value_bits=16, modes=["dense"]
    )
    dense = points[2]
    assert dense.bytes_per_item == index.bytes_per_item
    assert dense.recall == recall_at(index.search(x[:20], 10, mode="dense").ids, true)


def test_the_pca_curve_ends_near_exact_when_it_keeps_every_axis() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    true = exact_top_k(x, x[:15], 10).ids
    points = pca_curve(x, x[:15], true, components=(2, 8), depth=10)
    assert [point.bytes_per_item for point in points] == [4, 10]
    assert points[0].recall < points[1].recall
    assert points[1].recall > 0.9


def test_the_exact_scan_finds_the_exact_answer() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(150, 5)).astype(np.float32)
    report = exact_report(x, x[:7], 10)
    assert report.bytes_per_item == 20
    assert report.recall == 1
    assert (report.n_items, report.n_queries) == (150, 7)
