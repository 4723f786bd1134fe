"""Arguments that look right and are not, and odd containers: refused by name, or taken as meant."""

from __future__ import annotations

import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparse_retrieval as sr
from sparse_retrieval import compress
from sparse_retrieval._files import read_lines
from sparse_retrieval.evaluate import evaluate_index, recall_at

X = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
DICTIONARY = sr.Dictionary.fit(X, n_atoms=32, k=4, rounds=1)


def built(ids: Any = None, **options: Any) -> sr.SparseIndex:
    codes = DICTIONARY.encode(X, k=4)
    return sr.SparseIndex.from_codes(codes, dictionary=DICTIONARY, ids=ids, **options)


@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_inner_products_of_encoded_queries_grow_with_the_query(mode: Any) -> None:
    codes = DICTIONARY.encode(X, k=4, normalise=False)
    index = sr.SparseIndex.from_codes(
        codes, dictionary=DICTIONARY, modes=("sparse", "reconstructed")
    )
    once, tenfold = (index.search(s * X[:3], 5, mode=mode) for s in (1, 10))
    np.testing.assert_array_equal(once.ids, tenfold.ids)
    np.testing.assert_allclose(tenfold.scores, 10 * once.scores, rtol=1e-5)
    encoded = DICTIONARY.encode(10 * X[:3], k=4, normalise=False)
    np.testing.assert_array_equal(tenfold.scores, index.search(encoded, 5, mode=mode).scores)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"bytes_per_item": np.inf}, ValueError, "bytes_per_item is inf; expected a finite"),
        ({"bytes_per_item": np.nan}, ValueError, "bytes_per_item is nan; expected a finite"),
        ({"bytes_per_item": "66"}, TypeError, "bytes_per_item is '66'; expected a number"),
        ({"bytes_per_item": True}, TypeError, "bytes_per_item is True; expected a number"),
        ({"k": 1025, "n_atoms": 64}, ValueError, "k is 1025; expected 1 to 1024"),
        ({"k": 4, "seed": -1}, ValueError, "seed is -1; expected 0 to"),
        ({"k": 4, "seed": None}, TypeError, "seed is None; expected an integer"),
        ({"k": 4, "threads": -1}, ValueError, "threads is -1; expected 1 to 1024"),
        ({"k": 4, "threads": "2"}, TypeError, "threads is '2'; expected an integer"),
        ({"k": 4, "ids": range(299)}, ValueError, "299 ids for 300 items"),
        ({"k": 4, "ids": [7] * 300}, ValueError, "id 7 is given to more than one item"),
        ({"k": 4, "ids": [*range(-2, 298)]}, ValueError, "item 1 has the id -1, which marks"),
        ({"k": 4, "ids": ["a", "b"] * 150}, ValueError, "id 'a' is given to more than one"),
        ({"k": 4, "ids": np.zeros(300)}, TypeError, "expected integers or strings"),
        ({"k": 4, "modes": ("bad",)}, ValueError, "bad"),
        ({"k": 4, "metadata": {1, 2}}, TypeError, "metadata is not JSON-serialisable"),
        ({"k": 4, "value_bits": 9}, ValueError, "9"),
        (
            {"k": 4, "modes": ("sparse",), "approximate": True},
            ValueError,
            "approximate=True compares embeddings",
        ),
    ],
)
def test_what_would_be_refused_in_the_end_is_refused_before_anything_is_learnt(
    given: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learnt(*args: Any, **options: Any) -> None:
        assert not {"seed", "rounds"} - options.keys()
        sr.Dictionary.fit(X, n_atoms=32, k=4, rounds=0, seed=options["seed"])
        pytest.fail("learning was begun")

    monkeypatch.setattr(compress, "learn", learnt)
    with pytest.raises(error, match=re.escape(message)):
        sr.SparseIndex.from_embeddings(X, **given)


@pytest.mark.parametrize("kind", [np.int64, np.float32, float])
def test_bytes_may_be_any_number(kind: Any) -> None:
    assert sr.SparseIndex.from_embeddings(X, bytes_per_item=kind(20), rounds=1).bytes_per_item <= 20


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"regularisation": -1},
            ValueError,
            "regularisation is -1.0; expected a finite number of at",
        ),
        ({"regularisation": np.nan}, ValueError, "regularisation is nan"),
        ({"momentum": np.nan}, ValueError, "momentum is nan"),
        ({"momentum": 1e30}, ValueError, "and at most 1"),
        ({"momentum": "x"}, TypeError, "momentum is 'x'; expected a number"),
        ({"memory_limit_bytes": -1}, ValueError, "memory_limit_bytes is -1; expected 0"),
    ],
)
def test_numbers_of_learning_are_checked_before_it_begins(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sr.Dictionary.fit(X, n_atoms=16, k=4, rounds=3, **given)


def test_rows_wider_than_codes_can_be_get_their_leading_axes() -> None:
    rows = np.random.default_rng(1).standard_normal((1_100, 1_060)).astype(np.float32)
    index = sr.SparseIndex.from_embeddings(rows, bytes_per_item=600, complete=True)
    assert 900 < index.dim <= 1024
    assert index.bytes_per_item <= 600
    planned = compress.plan(9_000, k=None, bytes_per_item=4_000, n_atoms=8_192, value_bits=4)
    assert planned.k == 1024


def test_errors_about_a_sample_name_the_row_of_the_whole() -> None:
    rows = np.tile(X, (34, 1))[:10_000].copy()
    rows[5_000, 3] = np.nan
    with pytest.raises(ValueError, match="row 5000 holds nan"):
        sr.SparseIndex.from_embeddings(rows, bytes_per_item=10, dictionary=DICTIONARY)


@pytest.mark.parametrize("library", ["pandas", "pyarrow", "polars"])
def test_frames_and_tables_are_learnt_from_as_arrays_are(library: str) -> None:
    module = pytest.importorskip(library)
    columns = {f"c{i}": X[:, i] for i in range(X.shape[1])}
    frame = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    expected = sr.Dictionary.fit(X, n_atoms=16, k=4, rounds=1, held_out=20)
    made = sr.Dictionary.fit(frame, n_atoms=16, k=4, rounds=1, held_out=20)
    np.testing.assert_array_equal(made.atoms, expected.atoms)


def test_sparse_matrices_and_masked_numbers_are_refused_by_name() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="x is a sparse matrix of scipy"):
        sr.Dictionary.fit(sparse.csr_matrix(X), n_atoms=16, k=4)
    masked = np.ma.masked_greater(X, 1.0)
    with pytest.raises(ValueError, match="queries is a masked array that masks"):
        built(metric="cosine").search(masked[:2], 3)
    mask = np.ma.array(np.ones(300, bool), mask=np.ones(300, bool))
    with pytest.raises(ValueError, match="filter is a masked array"):
        built().search(X[:1], 3, filter=mask)


def test_exclusions_come_in_every_container_and_strings_never_become_of_numbers() -> None:
    plain, named = built(), built([f"i{row}" for row in range(300)])
    best = plain.search(X[:2], 1).ids[:, 0]
    pandas = pytest.importorskip("pandas")
    left = plain.search(X[0], 1, exclude=pandas.Series([best[0]])).ids[0]
    assert left == plain.search(X[0], 2).ids[1]
    first = f"i{best[0]}"
    for exclude in ([[first], [None]], [[first], None], [np.array([first], dtype=object), []]):
        found = named.search(X[:2], 1, exclude=exclude).ids[:, 0]
        assert found[0] != first
        assert found[1] == f"i{best[1]}"
    with pytest.raises(ValueError, match="exclude holds the id 0"):
        named.search(X[:1], 1, exclude=np.array([[0]], dtype=object))
    with pytest.raises(TypeError, match="strings and integers"):
        named.search(X[:2], 1, exclude=[["i0"], [0]])


def test_columns_of_strings_are_ids() -> None:
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    names = [f"i{row}" for row in range(300)]
    for ids in (polars.Series(names), pandas.Series(names), pandas.Series(names, dtype="category")):
        index = built(ids)
        assert index.ids.tolist() == names
        assert index.search(X[:1], 1, filter=ids[:5]).ids[0, 0] in names[:5]


def test_a_match_is_explained_for_ids_of_any_integer_kind() -> None:
    index = built()
    assert index.explain_match(X[3], np.uint8(7)).score == index.explain_match(X[3], 7).score


def test_an_index_is_that_of_the_file_it_was_opened_from_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, n in (("a", 5), ("b", 9)):
        (tmp_path / folder).mkdir()
        codes = DICTIONARY.encode(X[:n], k=4)
        sr.SparseIndex.from_codes(codes).save(tmp_path / folder / "i.sridx")
    monkeypatch.chdir(tmp_path / "a")
    index = sr.SparseIndex.open("i.sridx")
    monkeypatch.chdir(tmp_path / "b")
    assert len(pickle.loads(pickle.dumps(index))) == 5
    index.remove([0])
    index.commit()
    assert len(sr.SparseIndex.open(tmp_path / "a" / "i.sridx")) == 4
    assert len(sr.SparseIndex.open("i.sridx")) == 9


def test_negative_ids_count_and_strings_are_recalled() -> None:
    assert recall_at([[9, 2]], [[-5, 2]]) == 0.5
    assert recall_at([["a", None]], [["a", "b"]]) == 0.5
    assert recall_at([["a", "b"]], [["a", None]]) == 1.0
    with pytest.raises(ValueError, match="expected one kind"):
        recall_at([[1, 2]], [["a", "b"]])
    with pytest.raises(ValueError, match="no queries"):
        evaluate_index(built(), X[:0], np.empty((0, 3), np.int64), k=3)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    DICTIONARY.save(tmp_path / "d.safetensors")
    DICTIONARY.encode(X, k=4).save(tmp_path / "c.safetensors")
    built().save(tmp_path / "i.sridx")
    umask = os.umask(0)
    os.umask(umask)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name


def test_lines_end_with_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffa\u2028b\r\nc\x0bd\n\ne".encode())
    assert read_lines(path) == ["a\u2028b", "c\x0bd", "", "e"]
    path.write_bytes(b"")
    assert read_lines(path) == []


def test_a_writer_that_is_over_leaves_its_block_in_peace(tmp_path: Path) -> None:
    codes = DICTIONARY.encode(X, k=4)
    with sr.IndexWriter(tmp_path / "done.sridx", dim=32) as writer:
        writer.add(codes)
        assert writer.finish() == 300
    assert len(sr.SparseIndex.open(tmp_path / "done.sridx")) == 300
    with sr.IndexWriter(tmp_path / "given-up.sridx", dim=32) as writer:
        writer.add(codes)
        writer.abort()
    assert not (tmp_path / "given-up.sridx").exists()
    with pytest.raises(ValueError, match="longest is 33; expected 1 to 32"):
        sr.IndexWriter(tmp_path / "wide.sridx", dim=32, longest=33)


def test_zeros_pad_whatever_their_latent() -> None:
    padded = sr.SparseCodes([[0, -1], [2, 99]], [[1, 0], [3, 0]], dim=4)
    assert padded.latents.tolist() == [0, 2]
    with pytest.raises(ValueError, match="row 1 has latent 99"):
        sr.SparseCodes([[0, -1], [2, 99]], [[1, 0], [3, 1]], dim=4)
    with pytest.raises(ValueError, match="indptr starts with 1; expected 0"):
        sr.SparseCodes.from_csr([1, 2], [0, 1], [1.0, 1.0], 4)
