"""Search against the double-precision definition, over everything that may vary."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import oracles
import sparse_retrieval as sr
from conftest import ISAS
from strategies import DIMS, any_values, as_codes, as_dense, code_rows, compressed, exact_values


def search_with(isa, index, queries, k, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE_RETRIEVAL_ISA", isa)
        return index.search(queries, k, **options)


@given(data=st.data())
def test_ids_and_scores_equal_the_oracle_where_sums_are_exact(data):
    dim = data.draw(st.sampled_from(DIMS), label="dim")
    items = data.draw(code_rows(dim, exact_values, max_rows=30), label="items")
    queries = data.draw(code_rows(dim, exact_values, max_rows=6), label="queries")
    k = data.draw(st.integers(1, 40), label="k")
    dense_queries, dense_items = compressed(as_dense(queries, dim), as_dense(items, dim))
    expected_scores, expected_ids = oracles.top_k(oracles.scores(dense_queries, dense_items), k)
    index = sr.SparseIndex.from_codes(as_codes(items, dim))
    for isa in ISAS:
        for threads in (1, 2, 3, 4):
            result = search_with(isa, index, as_codes(queries, dim), k, threads=threads)
            np.testing.assert_array_equal(result.ids, expected_ids)
            np.testing.assert_array_equal(result.scores, expected_scores.astype(np.float32))


@given(data=st.data())
def test_scores_are_within_1e6_relative_of_the_oracle_for_any_values(data):
    dim = data.draw(st.sampled_from(DIMS), label="dim")
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]), label="metric")
    bits = data.draw(st.sampled_from([32, 16, 8]), label="value_bits")
    items = data.draw(code_rows(dim, any_values, max_rows=30), label="items")
    queries = data.draw(code_rows(dim, any_values, max_rows=6), label="queries")
    k = data.draw(st.integers(1, 40), label="k")
    dense_queries, dense_items = compressed(as_dense(queries, dim), as_dense(items, dim))
    all_scores = oracles.scores(dense_queries, dense_items, metric=metric, value_bits=bits)
    magnitudes = oracles.scores(
        np.abs(dense_queries), np.abs(dense_items), metric=metric, value_bits=bits
    )
    index = sr.SparseIndex.from_codes(as_codes(items, dim), metric=metric, value_bits=bits)
    result = index.search(as_codes(queries, dim), k)
    # 24 products of double precision, in two orders: 24 * 2^-52 of the sum of magnitudes; a
    # scale rounded to float32 adds 2^-24 of the score, which rtol covers
    atol = 24 * 2**-52 * magnitudes.max(initial=0)
    oracles.assert_is_top_k(result.scores, result.ids, all_scores, k, atol=atol)


@given(data=st.data())
def test_embedding_modes_are_within_1e6_relative_of_the_oracle(data):
    dim = data.draw(st.sampled_from([1, 8, 9, 40, 600]), label="dim")
    d = data.draw(st.sampled_from([1, 7, 8, 17]), label="d")
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]), label="metric")
    bits = data.draw(st.sampled_from([32, 16, 8]), label="value_bits")
    items = data.draw(code_rows(dim, any_values, max_rows=20), label="items")
    k = data.draw(st.integers(1, 30), label="k")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    atoms = oracles.unit(rng.standard_normal((dim, d))).astype(np.float32)
    index = sr.SparseIndex.from_codes(
        as_codes(items, dim),
        dictionary=sr.Dictionary(atoms),
        metric=metric,
        value_bits=bits,
        modes=("sparse", "reconstructed", "dense"),
    )
    query_codes = data.draw(code_rows(dim, any_values, max_rows=4), label="queries")
    embeddings = rng.standard_normal((3, d)) * [[1e-3], [1.0], [0.0]]
    dense_items = as_dense(items, dim)
    for mode, queries, dense_queries in (
        ("dense", embeddings, embeddings),
        ("reconstructed", as_codes(query_codes, dim), as_dense(query_codes, dim)),
        ("sparse", as_codes(query_codes, dim), as_dense(query_codes, dim)),
    ):
        arguments = {"mode": mode, "metric": metric, "value_bits": bits, "atoms": atoms}
        all_scores = oracles.scores(dense_queries, dense_items, **arguments)
        result = index.search(queries, k, mode=mode)
        # Decoding cancels: |x_hat| may be far below sum |value| |atom|, and with it the
        # relative accuracy of both sides; the sums of magnitudes bound what either can lose.
        # Cosine divides by norms that carry the same loss, relative to the item's norm.
        if metric == "cosine":
            loss = 1.0
            if mode != "sparse":
                loss = cancellation(oracles.quantised(dense_items, bits), atoms)
                if mode == "reconstructed":
                    loss = max(loss, cancellation(dense_queries.astype(np.float64), atoms))
            atol = 1e-13 * loss
        else:
            factors = [np.abs(dense_queries), np.abs(oracles.quantised(dense_items, bits))]
            largest = [matrix.sum(axis=1).max(initial=0) for matrix in factors]
            atol = 1e-13 * largest[0] * largest[1]
        oracles.assert_is_top_k(result.scores, result.ids, all_scores, k, atol=atol)


def cancellation(codes: np.ndarray, atoms: np.ndarray) -> float:
    """How much larger than a decoded row the terms are that it is the sum of, at worst."""
    decoded = np.linalg.norm(codes @ atoms.astype(np.float64), axis=1)
    terms = np.abs(codes).sum(axis=1)
    return float(np.max(terms[decoded > 0] / decoded[decoded > 0], initial=1.0))


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_real_embeddings_in_all_modes_equal_the_oracle(isa, real_parts, metric, bits):
    codes, dictionary, queries = real_parts
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric=metric,
        value_bits=bits,
        modes=("sparse", "reconstructed", "dense"),
    )
    query_codes = codes[100:140]
    for mode, asked, dense_queries in (
        ("dense", queries, queries),
        ("reconstructed", query_codes, query_codes.to_dense()),
        ("sparse", query_codes, query_codes.to_dense()),
    ):
        all_scores = oracles.scores(
            dense_queries,
            codes.to_dense(),
            mode=mode,
            metric=metric,
            value_bits=bits,
            atoms=dictionary.atoms,
        )
        result = index.search(asked, 100, mode=mode)
        oracles.assert_is_top_k(result.scores, result.ids, all_scores, 100, atol=1e-12)


def test_every_isa_thread_count_and_batch_returns_the_same_bytes(real_parts, tmp_path):
    codes, dictionary, queries = real_parts
    built = sr.SparseIndex.from_codes(codes, dictionary=dictionary, metric="cosine", value_bits=8)
    built.save(tmp_path / "items.sridx")
    expected = built.search(queries, 50, threads=1)
    for index in (
        built,
        sr.SparseIndex.open(tmp_path / "items.sridx"),
        sr.SparseIndex.open(tmp_path / "items.sridx", mmap=False),
    ):
        for isa in ISAS:
            for threads in range(1, 9):
                result = search_with(isa, index, queries, 50, threads=threads)
                assert result.scores.tobytes() == expected.scores.tobytes()
                assert result.ids.tobytes() == expected.ids.tobytes()
            for q in (0, 7, 63):
                one = search_with(isa, index, queries[q], 50)
                assert one.scores.tobytes() == expected.scores[q].tobytes()
                assert one.ids.tobytes() == expected.ids[q].tobytes()
            some = search_with(isa, index, queries[3:14], 50)
            assert some.scores.tobytes() == expected.scores[3:14].tobytes()


@given(data=st.data())
def test_an_index_cut_in_two_merges_to_the_same_results(data):
    dim = 40
    items = data.draw(code_rows(dim, exact_values, max_rows=30), label="items")
    queries = as_codes(data.draw(code_rows(dim, exact_values, max_rows=4)), dim)
    cut = data.draw(st.integers(0, len(items)), label="cut")
    k = data.draw(st.integers(1, 20), label="k")
    whole = sr.SparseIndex.from_codes(as_codes(items, dim)).search(queries, k)
    ids = np.arange(len(items))
    parts = [
        sr.SparseIndex.from_codes(as_codes(items[span], dim), ids=ids[span]).search(queries, k)
        for span in (slice(0, cut), slice(cut, None))
    ]
    scores = np.concatenate([part.scores for part in parts], axis=1)
    found = np.concatenate([part.ids for part in parts], axis=1)
    for q in range(len(queries)):
        order = np.argsort(-scores[q], kind="stable")[:k]
        np.testing.assert_array_equal(scores[q][order], whole.scores[q])
        np.testing.assert_array_equal(found[q][order], whole.ids[q])


def test_scipy_in_scipy_out_as_the_readme_shows_it():
    rng = np.random.default_rng(3)
    items = scipy.sparse.random(500, 3000, density=0.01, rng=rng, dtype=np.float32).tocsr()
    items.data -= 0.5
    queries = items[:20]
    all_scores = (queries.astype(np.float64) @ items.astype(np.float64).T).toarray()
    result = sr.SparseIndex.from_codes(items).search(queries, 10)
    oracles.assert_is_top_k(result.scores, result.ids, all_scores, 10, atol=1e-14)
