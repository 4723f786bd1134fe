"""Bad arguments of building and searching: each its own error, each saying what it got."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparse_retrieval as sr

CODES = sr.SparseCodes([[0, 1], [1, 2], [0, 3]], [[1, 2], [3, 4], [5, 6]], dim=4)
DICTIONARY = sr.Dictionary(np.eye(4))


@pytest.fixture
def index() -> sr.SparseIndex:
    return sr.SparseIndex.from_codes(CODES, dictionary=DICTIONARY, modes=("dense", "sparse"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "euclidean"}, ValueError, 'metric is "euclidean"; expected "inner_product"'),
        ({"metric": 3}, TypeError, "metric is 3; expected a string"),
        ({"value_bits": 12}, ValueError, "value_bits is 12; expected 32, 16, 8, or 1 to 7"),
        ({"value_bits": 0}, ValueError, "value_bits is 0"),
        ({"value_bits": 0.5}, ValueError, "value_bits is 0.5"),
        ({"value_bits": 7.5}, ValueError, "value_bits is 7.5"),
        ({"value_bits": float("nan")}, ValueError, "value_bits is nan"),
        ({"value_bits": "8"}, TypeError, "value_bits is '8'; expected a number"),
        ({"modes": ()}, ValueError, "modes is empty"),
        ({"modes": "sparse"}, TypeError, "expected a sequence of names"),
        ({"modes": ("quick",)}, ValueError, 'mode is "quick"'),
        ({"modes": ("dense",)}, ValueError, 'mode "dense" needs a dictionary'),
        ({"dictionary": np.eye(4)}, TypeError, "dictionary is ndarray; expected Dictionary"),
        ({"dictionary": sr.Dictionary(np.eye(5))}, ValueError, "4 latents; the dictionary has 5"),
        ({"dim": 5}, ValueError, "codes are over 4 latents; dim says 5"),
        ({"ids": [1, 2]}, ValueError, "2 ids for 3 items"),
        ({"ids": [4, 9, 4]}, ValueError, "id 4 is given to items 0 and 2"),
        ({"ids": [4, -1, 5]}, ValueError, "item 1 has the id -1"),
        ({"ids": [[4, 5, 6]]}, ValueError, r"ids has shape \(1, 3\)"),
        ({"ids": [1.5, 2, 3]}, TypeError, "ids has dtype float64"),
        ({"ids": np.array([1, 2, 2**63], np.uint64)}, ValueError, "expected less than 2"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"threads": 5000}, ValueError, "threads is 5000"),
        ({"threads": "two"}, TypeError, "threads is 'two'"),
        ({"metadata": {"a": object()}}, TypeError, "metadata is not JSON-serialisable"),
        ({"metadata": float("nan")}, ValueError, "metadata is not JSON-serialisable"),
    ],
)
def test_building_refuses(options, error, message):
    with pytest.raises(error, match=message):
        sr.SparseIndex.from_codes(CODES, **options)


@pytest.mark.parametrize(
    ("queries", "k", "options", "error", "message"),
    [
        (np.ones((2, 5)), 1, {}, ValueError, "queries have 5 columns, .* dictionary for 4"),
        (np.ones((2, 4, 1)), 1, {}, ValueError, r"queries has shape \(2, 4, 1\)"),
        (1.0, 1, {}, ValueError, r"queries has shape \(\)"),
        (np.empty((2, 0)), 1, {}, ValueError, "at least one column"),
        ([[1, 2, np.nan, 3]], 1, {}, ValueError, "queries row 0 holds nan in column 2"),
        ([[0] * 4, [1, 2, 3, -np.inf]], 1, {}, ValueError, "row 1 holds -inf in column 3"),
        ([[1e300, 0, 0, 0]], 1, {}, ValueError, "within float32"),
        ([["a", "b", "c", "d"]], 1, {}, TypeError, "queries has dtype <U1"),
        (np.array([[object()] * 4]), 1, {}, TypeError, "queries has dtype object"),
        ([[1j, 0, 0, 0]], 1, {}, TypeError, "queries has dtype complex128"),
        ([[1, 2], [1]], 1, {}, ValueError, "queries cannot be read as an array"),
        (None, 1, {}, TypeError, "queries has dtype object"),
        (np.ones((1, 4)), 0, {}, ValueError, "k is 0; expected 1 to"),
        (np.ones((1, 4)), -7, {}, ValueError, "k is -7; expected 1 to"),
        (np.ones((1, 4)), 2**40, {}, ValueError, "k is 1099511627776"),
        (np.ones((1, 4)), 1.5, {}, TypeError, "k is 1.5; expected an integer"),
        (np.ones((1, 4)), "5", {}, TypeError, "k is '5'; expected an integer"),
        (np.ones((1, 4)), 1, {"mode": "fast"}, ValueError, 'mode is "fast"'),
        (np.ones((1, 4)), 1, {"mode": 1}, TypeError, "mode is 1; expected a string"),
        (np.ones((1, 4)), 1, {"mode": "reconstructed"}, ValueError, "was built for"),
        (np.ones((1, 5)), 1, {"mode": "sparse"}, ValueError, "queries have 5 columns"),
        (CODES, 1, {"mode": "dense"}, ValueError, "takes dense queries, got codes"),
        (np.ones((1, 4)), 1, {"threads": 0}, ValueError, "threads is 0"),
        (sr.SparseCodes([[0]], [[1]], dim=9), 1, {}, ValueError, "over 9 latents, the index has 4"),
        (([4], [1.0]), 1, {}, ValueError, "row 0 has latent 4"),
    ],
)
def test_searching_refuses(index, queries, k, options, error, message):
    with pytest.raises(error, match=message):
        index.search(queries, k, **options)


def test_dense_queries_without_a_dictionary_say_what_is_expected():
    index = sr.SparseIndex.from_codes(CODES)
    with pytest.raises(ValueError, match="holds no dictionary, so it expects codes over 4"):
        index.search(np.ones((1, 7)), 1)


def test_a_result_too_large_for_memory_is_a_memory_error(index):
    with pytest.raises(MemoryError):
        index.search(np.ones((2**18, 4)), 2**31 - 1)


def test_an_isa_that_does_not_exist_is_refused_by_name(index, monkeypatch):
    monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"avx1024.*expected one of scalar, avx2, avx512"):
        index.search(np.ones((1, 4)), 1)


def test_the_constructor_points_to_the_ways_to_make_an_index():
    with pytest.raises(TypeError, match=r"from_codes or SparseIndex\.open"):
        sr.SparseIndex()


def test_float16_integers_and_lists_are_converted(index):
    expected = index.search(np.ones((1, 4)), 3)
    for queries in (np.ones((1, 4), np.float16), np.ones((1, 4), int), [[1, 1, 1, 1]]):
        np.testing.assert_array_equal(index.search(queries, 3).ids, expected.ids)


def test_bfloat16_tensors_are_converted(index):
    torch = pytest.importorskip("torch", reason="needs the training extra")
    queries = torch.ones((1, 4), dtype=torch.bfloat16)
    np.testing.assert_array_equal(
        index.search(queries, 3).ids, index.search(np.ones((1, 4)), 3).ids
    )


def test_float64_queries_are_not_rounded_to_float32():
    # two items whose scores differ below float32's resolution of the query
    codes = sr.SparseCodes([[0], [1]], [[1.0], [1.0]], dim=2)
    index = sr.SparseIndex.from_codes(codes, dictionary=sr.Dictionary(np.eye(2)))
    assert index.search([[1.0, 1.0 + 1e-12]], 2).ids.tolist() == [[1, 0]]
    assert index.search([[1.0 + 1e-12, 1.0]], 2).ids.tolist() == [[0, 1]]


def test_stats_list_every_section_in_bytes_and_bytes_an_item(tmp_path):
    index = sr.SparseIndex.from_codes(
        CODES,
        dictionary=DICTIONARY,
        ids=[3, 1, 2],
        metric="cosine",
        value_bits=8,
        modes=("sparse", "dense", "reconstructed"),
        metadata={"model": "minilm", "k": [2]},
    )
    stats = index.stats()
    json.dumps(stats)
    sizes = {section["name"]: section["bytes"] for section in stats["sections"]}
    assert sizes == {
        "rows": 3 * 2 * 3,
        "scales_code": 12,
        "scales_embedding": 12,
        "dictionary": 32,  # the identity loses nothing in half precision
        "ids": 24,
        "id_order": 12,  # they do not ascend
        "metadata": len('{"model": "minilm", "k": [2]}'),
    }
    assert index.bytes_per_item == stats["bytes_per_item"] == (18 + 12 + 12) / 3
    assert stats["nonzeros_per_item"] == 2
    assert {s["name"]: s["bytes_per_item"] for s in stats["sections"]} == {
        "rows": 6.0,
        "scales_code": 4.0,
        "scales_embedding": 4.0,
        "dictionary": None,
        "ids": 8.0,
        "id_order": 4.0,
        "metadata": None,
    }
    assert index.metadata == {"model": "minilm", "k": [2]}
    assert index.ids.tolist() == [3, 1, 2]
    np.testing.assert_array_equal(index.dictionary.atoms, DICTIONARY.atoms)


@pytest.mark.parametrize(
    ("metric", "bits", "modes", "expected"),
    [
        ("inner_product", 32, ("sparse",), 2 * 6),
        ("inner_product", 16, ("sparse",), 2 * 4 + 4),
        ("inner_product", 8, ("sparse", "dense"), 2 * 3 + 4),
        ("cosine", 32, ("sparse",), 2 * 6 + 4),
        ("cosine", 8, ("dense", "reconstructed"), 2 * 3 + 4),
        ("cosine", 8, ("dense", "sparse"), 2 * 3 + 8),
    ],
)
def test_bytes_per_item_are_rows_and_scales(metric, bits, modes, expected):
    index = sr.SparseIndex.from_codes(
        CODES, dictionary=DICTIONARY, metric=metric, value_bits=bits, modes=modes
    )
    assert index.bytes_per_item == expected


def test_rows_of_very_different_lengths_are_stored_with_offsets():
    latents = np.arange(1000)
    codes = sr.SparseCodes.from_csr([0, 1000] + [1000] * 999, latents, latents + 1.0, 1000)
    index = sr.SparseIndex.from_codes(codes)
    assert index.bytes_per_item == (1000 * 6 + 1001 * 4) / 1000
    assert index.stats()["nonzeros_per_item"] is None


def test_progress_is_told_and_its_exception_cancels():
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(
        rng.permuted(np.tile(np.arange(64), (60_000, 1)), axis=1)[:, :32],
        rng.standard_normal((60_000, 32)),
        dim=64,
    )
    index = sr.SparseIndex.from_codes(codes)
    told: list[int] = []
    index.search(codes[:2000], 5, threads=1, progress=told.append)
    assert told == sorted(told)
    assert len(told) > 1

    class StopError(Exception):
        pass

    def stop(done: int) -> None:
        raise StopError(done)

    with pytest.raises(StopError):
        index.search(codes[:20_000], 5, threads=1, progress=stop)
