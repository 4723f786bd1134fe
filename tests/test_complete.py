"""Complete codes: what is stored, that search is exact, when they are chosen, what they gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
import sparse_retrieval as sr
import sridx_spec
from conftest import ISAS
from sparse_retrieval import complete, compress
from sparse_retrieval.evaluate import exact_top_k, recall_at
from strategies import any_values, as_codes, as_dense, code_rows
from test_ranked import assert_finds_what_the_file_holds, stored_codes, stored_scales


def gaussian(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows without structure, of which no atoms can make use."""
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def recall(index: sr.SparseIndex, x: np.ndarray, queries: np.ndarray) -> float:
    truth = exact_top_k(x, queries, 50).ids
    return recall_at(index.search(queries, 50).ids, truth)


@given(data=st.data())
def test_search_scores_exactly_what_the_file_holds(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 3, 8, 40]), label="dim")
    bits = data.draw(st.sampled_from([1, 1.5, 2.7, 4, 8, 12]), label="value_bits")
    rows = data.draw(code_rows(dim, any_values, max_rows=20), label="rows")
    k = data.draw(st.integers(1, 25), label="k")
    k_row = data.draw(st.none() | st.integers(1, 30), label="k_row")
    queries = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((5, dim))
    index = sr.SparseIndex.from_codes(as_codes(rows, dim), value_bits=bits, complete=True)
    path = tmp_path / "items.sridx"
    index.save(path)
    header, _ = sridx_spec.read(path)
    assert header["rows"]["latent_bits"] == 0
    assert_finds_what_the_file_holds(path, queries, k, k_row)


@given(data=st.data())
def test_every_value_has_the_nearest_level_of_one_of_the_divisors(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 3, 40]), label="dim")
    bits = data.draw(st.sampled_from([1, 2.5, 4, 9]), label="value_bits")
    rows = data.draw(code_rows(dim, any_values, max_rows=20), label="rows")
    path = tmp_path / "items.sridx"
    sr.SparseIndex.from_codes(as_codes(rows, dim), value_bits=bits, complete=True).save(path)
    header, sections = sridx_spec.read(path)
    dense = as_dense(rows, dim).astype(np.float64)
    n_levels = [2**b for b in header["rows"]["magnitude_bits"]]
    books = np.split(sections["levels"].astype(np.float64), np.cumsum(n_levels)[:-1])
    scales = stored_scales(path, "scales_step")
    for values, stored, scale in zip(dense, stored_codes(path, dim), scales, strict=True):
        norm = np.linalg.norm(values)
        if norm == 0:
            assert scale == 0
            continue
        best = 0.0
        for divisor in (0.92, 0.95, 0.98, 1.0, 1.03, 1.06, 1.1):
            target = np.abs(values) / (norm * divisor)
            nearest = [b[np.abs(b - t).argmin()] for b, t in zip(books, target, strict=True)]
            length = np.linalg.norm(nearest)
            if length > 0:
                best = max(best, np.abs(values) @ nearest / (length * norm))
        length = np.linalg.norm(stored)
        got = values @ stored / (length * norm) if length > 0 else 0.0
        # levels at the same distance to the last bit may be chosen either way
        assert got == pytest.approx(best, abs=1e-5)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, np.ndarray]:
    x = gaussian(4_000, 40)
    path = tmp_path_factory.mktemp("complete") / "items.sridx"
    sr.SparseIndex.from_embeddings(x, bytes_per_item=40, complete=True).save(path)
    return path, x


def test_results_do_not_depend_on_batches_threads_or_instruction_sets(built, monkeypatch):
    path, _ = built
    queries = gaussian(130, 40, seed=1)
    expected = None
    for isa in ISAS:
        monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", isa)
        for mmap in (True, False):
            index = sr.SparseIndex.open(path, mmap=mmap)
            assert index.explain(queries[:1])["way"] == "product"
            for threads, batch in ((1, 130), (2, 130), (8, 130), (1, 1), (2, 3), (1, 64)):
                parts = [
                    index.search(queries[i : i + batch], 20, threads=threads)
                    for i in range(0, 130, batch)
                ]
                got = (
                    np.concatenate([part.scores for part in parts]).tobytes(),
                    np.concatenate([part.ids for part in parts]).tobytes(),
                )
                expected = expected or got
                assert got == expected


def test_a_prefix_of_the_axes_is_a_coarser_code(built):
    path, _ = built
    index, queries = sr.SparseIndex.open(path), gaussian(9, 40, seed=6)
    atoms = index.dictionary.atoms.astype(np.float64)
    scales = stored_scales(path, "scales_step")[:, None]
    unit = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    mean = unit @ index.dictionary.mean.astype(np.float64)
    for k_row in (1, 7, 8, 40):
        items = stored_codes(path, 40, k_row) * scales
        for n_queries in (1, 9):
            result = index.search(queries[:n_queries], 20, k_row=k_row)
            expected = (unit @ atoms.T @ items.T + mean[:, None])[:n_queries]
            oracles.assert_is_top_k(result.scores, result.ids, expected, 20, atol=1e-12)


def test_filters_and_exclusions_leave_the_best_of_the_others(built):
    path, _ = built
    index, queries = sr.SparseIndex.open(path), gaussian(70, 40, seed=2)
    everything = index.search(queries, len(index))
    allowed = np.random.default_rng(0).random(len(index)) < 0.5
    excluded = [ids[:5].tolist() for ids in everything.ids]
    got = index.search(queries, 30, filter=allowed, exclude=excluded)
    for row, (ids, scores) in enumerate(zip(everything.ids, everything.scores, strict=True)):
        kept = allowed[ids] & ~np.isin(ids, excluded[row])
        assert got.ids[row].tolist() == ids[kept][:30].tolist()
        assert got.scores[row].tobytes() == scores[kept][:30].tobytes()


def test_rows_that_are_all_alike_are_found_by_position():
    codes = sr.SparseCodes.from_dense(np.tile([[1.0, -2.0, 0.5]], (30_000, 1)))
    index = sr.SparseIndex.from_codes(codes, value_bits=3, complete=True)
    queries = sr.SparseCodes.from_dense(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert index.explain(queries, 5)["way"] == "product"
    assert index.search(queries, 5).ids.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_bytes_are_kept_and_recall_is_that_of_the_bits(metric):
    x, queries = gaussian(3_000, 32), gaussian(50, 32, seed=3)
    found = []
    for wanted in (10, 18, 34):
        index = sr.SparseIndex.from_embeddings(
            x, bytes_per_item=wanted, complete=True, metric=metric
        )
        assert wanted - 1 < index.bytes_per_item <= wanted
        stats = index.stats()
        assert stats["complete"]
        assert stats["nonzeros_per_item"] == index.dim == 32
        rows = x if metric == "inner_product" else x / np.linalg.norm(x, axis=1, keepdims=True)
        truth = exact_top_k(rows, queries, 50, metric=metric).ids
        found.append(recall_at(index.search(queries, 50).ids, truth))
    assert found == sorted(found)
    assert found[0] > 0.5
    assert found[2] > 0.98


def test_what_recalls_more_is_chosen_where_only_bytes_are_given():
    x, queries = gaussian(3_000, 32), gaussian(50, 32, seed=3)
    options = {"bytes_per_item": 34, "rounds": 2}
    chosen = sr.SparseIndex.from_embeddings(x, **options)
    sparse = sr.SparseIndex.from_embeddings(x, complete=False, **options)
    assert chosen.stats()["complete"]
    assert not sparse.stats()["complete"]
    assert "over all of 32 latents" in repr(chosen)
    assert recall(chosen, x, queries) > recall(sparse, x, queries) + 0.01
    # rows of few directions are what atoms are for
    directions = gaussian(64, 32, seed=4)
    rng = np.random.default_rng(5)
    mixed = np.zeros((3_000, 32), np.float32)
    for _ in range(2):
        mixed += rng.uniform(0.5, 1, (3_000, 1)) * directions[rng.integers(0, 64, 3_000)]
    index = sr.SparseIndex.from_embeddings(mixed, bytes_per_item=10, rounds=4)
    assert not index.stats()["complete"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 4},
        {"bytes_per_item": 20, "n_atoms": 64},
        {"bytes_per_item": 20, "value_bits": 4},
        {"bytes_per_item": 20, "dictionary": sr.Dictionary(np.eye(8))},
    ],
    ids=str,
)
def test_complete_codes_follow_from_bytes_alone(options):
    with pytest.raises(ValueError, match="complete=True needs bytes_per_item, and none of"):
        sr.SparseIndex.from_embeddings(gaussian(200, 8), complete=True, **options)


def test_bytes_that_hold_no_axis_and_rows_that_do_not_differ_are_refused_or_left_to_atoms():
    same = np.ones((200, 8), np.float32)
    assert complete.plan(same, bytes_per_item=20, normalise=True, threads=1) is None
    with pytest.raises(ValueError, match="no axis of x fits"):
        sr.SparseIndex.from_embeddings(same, bytes_per_item=20, complete=True)
    assert not sr.SparseIndex.from_embeddings(same, bytes_per_item=20).stats()["complete"]


def test_codes_that_would_fill_the_memory_are_not_considered(monkeypatch):
    monkeypatch.setattr(complete, "MOST_BYTES", 8 * 300 * 16 - 1)
    x = gaussian(300, 16)
    index = sr.SparseIndex.from_embeddings(x, bytes_per_item=18, rounds=1)
    assert not index.stats()["complete"]
    with pytest.raises(ValueError, match="would take more than"):
        sr.SparseIndex.from_embeddings(x, bytes_per_item=18, complete=True)


@pytest.mark.parametrize("options", [{}, {"complete": True}])
def test_a_row_that_is_not_finite_is_named_even_where_a_sample_finds_it(monkeypatch, options):
    monkeypatch.setattr(complete, "AXIS_ROWS", 100)
    x = gaussian(300, 8)
    x[201, 5] = np.nan
    with pytest.raises(ValueError, match=r"row 201 "):
        sr.SparseIndex.from_embeddings(x, bytes_per_item=12, rounds=1, **options)
    x[201, 5], x[202, 5] = 0, np.inf  # not in the sample
    with pytest.raises(ValueError, match=r"row 202 "):
        sr.SparseIndex.from_embeddings(x, bytes_per_item=12, rounds=1, **options)


def test_zero_rows_score_zero_and_do_not_disturb_the_others():
    x = gaussian(500, 16)
    x[[3, 77]] = 0
    index = sr.SparseIndex.from_embeddings(x, bytes_per_item=18, complete=True)
    index.verify()
    found = index.search(x[:20], 1).ids[:, 0]
    others = np.setdiff1d(np.arange(20), [3])
    assert found[others].tolist() == others.tolist()


@given(
    variances=st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    bits=st.integers(0, 600),
)
def test_more_variance_never_gets_fewer_bits(variances, bits):
    given_bits = complete.allocated(variances, bits)
    used = sum(v > 0 for v in variances)
    assert given_bits.sum() == min(bits, used * complete.MOST_BITS)
    assert given_bits.max() <= complete.MOST_BITS
    order = np.argsort(variances, kind="stable")
    assert np.all(np.diff(given_bits[order]) >= -1)
    clear = np.diff(np.array(variances)[order]) > 1e-9 * max(variances)
    assert np.all(np.diff(given_bits[order])[clear] >= 0)


@pytest.mark.parametrize("bits", [0.5, 12.5, 16, 32, float("nan")])
def test_bits_that_complete_codes_do_not_have_are_refused(bits, tmp_path):
    codes = sr.SparseCodes.from_dense(gaussian(4, 3))
    reason = "is nan; expected a finite" if bits != bits else "complete codes take 1 to 12"
    with pytest.raises(ValueError, match=reason):
        sr.SparseIndex.from_codes(codes, value_bits=bits, complete=True)
    with pytest.raises(ValueError, match=reason):
        sr.IndexWriter(tmp_path / "a.sridx", dim=3, value_bits=bits, complete=True)


def test_codebooks_of_complete_rows_serve_rows_over_as_many_latents_only(tmp_path):
    index = sr.SparseIndex.from_codes(
        sr.SparseCodes.from_dense(gaussian(50, 3)), value_bits=3, complete=True
    )
    with sr.IndexWriter(tmp_path / "a.sridx", dim=3, codebooks=index, value_bits=4) as writer:
        writer.add(sr.SparseCodes([[1]], [[2.0]], dim=3))
    again = sr.SparseIndex.open(tmp_path / "a.sridx")
    assert again.stats()["complete"]
    with pytest.raises(ValueError, match="codebooks are for values coded by rank"):
        sr.IndexWriter(tmp_path / "b.sridx", dim=4, codebooks=index, value_bits=4)


def test_few_rows_have_small_codebooks():
    x = gaussian(200, 16)
    index = sr.SparseIndex.from_embeddings(x, bytes_per_item=60, complete=True)
    # 200 rows teach 50 levels: five bits, and a sign
    assert index.stats()["value_bits"] <= 6
    sections = {s["name"]: s["bytes"] for s in index.stats()["sections"]}
    assert sections["levels"] <= 16 * 64 * 4


def test_the_choice_is_the_same_every_time():
    x = gaussian(1_000, 24)
    plans = [
        complete.plan(x, bytes_per_item=20, normalise=True, threads=threads) for threads in (1, 2)
    ]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0][1] == plans[1][1]
    np.testing.assert_array_equal(plans[0][0].atoms, plans[1][0].atoms)
    assert isinstance(plans[0][1], compress.Plan)
