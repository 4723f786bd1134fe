"""The planner: which way a search goes, and that every way returns the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_retrieval as sr
from conftest import ISAS


@pytest.fixture(scope="module")
def data() -> tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes]:
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((300, 24)).astype(np.float32)
    dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    x = rng.standard_normal((5_000, 24)).astype(np.float32)
    codes = dictionary.encode(x, k=8)
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric="cosine",
        value_bits=4,
        modes=("sparse", "dense", "reconstructed"),
        postings=True,
    )
    return index, rng.standard_normal((70, 24)).astype(np.float32), codes[:70]


def test_one_query_is_a_scan_and_many_are_an_integer_pass(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
) -> None:
    index, queries, codes = data
    one, many = index.explain(queries[0]), index.explain(queries, 100)
    assert (one["way"], many["way"]) == ("scan", "integer_pass")
    assert (one["queries"], many["queries"], many["k"], many["mode"]) == (1, 70, 100, "dense")
    assert "1 of the 64 queries" in one["reason"]
    assert "5000 rows" in many["reason"]
    assert index.explain(codes, mode="reconstructed")["way"] == "integer_pass"


def test_one_query_of_long_rank_coded_rows_is_a_rough_scan_with_the_bytes_of_a_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    support = rng.integers(0, 4096 // 16, (3_000, 16)) + np.arange(16) * 256
    codes = sr.SparseCodes(support, rng.standard_normal((3_000, 16)), dim=4096)
    index = sr.SparseIndex.from_codes(codes, value_bits=4, metric="cosine")
    # 12 bits of latent and 4 of value: words, which a plain loop reads this way too
    monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", "scalar")
    one = index.explain(codes[:1])
    assert one["way"] == "rough_scan"
    assert "1 of the 64 queries" in one["reason"]
    assert index.explain(codes[:20])["way"] == "integer_pass"
    few, many = index.search(codes[:7], 20), index.search(codes[:20], 20)
    assert few.scores.tobytes() == many.scores[:7].tobytes()
    assert few.ids.tobytes() == many.ids[:7].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_rows_whose_first_ranks_have_many_levels_are_scanned_roughly_too(
    monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    rng = np.random.default_rng(2)
    support = rng.integers(0, 8192 // 32, (3_000, 31)) + np.arange(31) * 256
    values = rng.standard_normal((3_000, 31)) / (1 + np.arange(31))
    codes = sr.SparseCodes(support, values, dim=8192)
    index = sr.SparseIndex.from_codes(codes, value_bits=3.5, metric="cosine")
    bits = index.stats()["magnitude_bits"]
    assert bits is not None
    assert max(bits) > 4  # a sign and four bits are what registers hold
    monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", isa)
    assert index.explain(codes[:1])["way"] == ("scan" if isa == "scalar" else "rough_scan")
    few, many = index.search(codes[:7], 20), index.search(codes[:20], 20)
    assert few.scores.tobytes() == many.scores[:7].tobytes()
    assert few.ids.tobytes() == many.ids[:7].tobytes()


def test_codes_in_sparse_mode_walk_the_postings_unless_prefixes_are_asked_for(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
) -> None:
    index, _, codes = data
    assert index.explain(codes, mode="sparse")["way"] == "postings"
    assert index.explain(codes, mode="sparse", k_row=4)["way"] != "postings"


def test_a_large_k_and_a_narrow_filter_are_scans_that_say_so(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
) -> None:
    index, queries, _ = data
    assert "k = 4000" in index.explain(queries, 4_000)["reason"]
    narrow = index.explain(queries, filter=[1, 2, 3])
    assert narrow["way"] == "scan"
    assert "3 of 5000 rows" in narrow["reason"]


def test_clusters_are_searched_only_where_that_is_asked_for(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
) -> None:
    index, queries, _ = data
    asked = index.explain(queries, approximate=sr.Approximate(clusters=3, rerank=50))
    assert asked["way"] == "clusters"
    assert "3 clusters" in asked["reason"]


def test_bad_arguments_raise_as_in_search(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
) -> None:
    index, queries, _ = data
    with pytest.raises(ValueError, match="k"):
        index.explain(queries, 0)
    with pytest.raises(ValueError, match="columns"):
        index.explain(queries[:, :5])
    with pytest.raises(ValueError, match="k_row"):
        index.explain(queries, k_row=0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("mode", ["dense", "sparse", "reconstructed"])
def test_batches_of_every_size_threads_and_instruction_sets_return_the_same_bytes(
    data: tuple[sr.SparseIndex, np.ndarray, sr.SparseCodes],
    mode: str,
) -> None:
    index, queries, codes = data
    asked = queries if mode == "dense" else codes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE_RETRIEVAL_ISA", "scalar")
        expected = [index.search(asked[i : i + 1], 20, mode=mode) for i in range(70)]
    scores = np.concatenate([result.scores for result in expected])
    ids = np.concatenate([result.ids for result in expected])
    for size, threads in [(1, 1), (2, 3), (3, 2), (65, 8), (70, 1), (70, 5)]:
        for start in range(0, 70, size):
            found = index.search(asked[start : start + size], 20, mode=mode, threads=threads)
            stop = min(start + size, 70)
            assert found.scores.tobytes() == scores[start:stop].tobytes()
            assert found.ids.tobytes() == ids[start:stop].tobytes()
