"""Filters and exclusions: what is found is what is left of a search of everything."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
import sparse_retrieval as sr
from conftest import ISAS
from strategies import as_codes, as_dense, code_rows, compressed, exact_values

MODES = ("dense", "reconstructed", "sparse")


def left_of(everything: sr.SearchResult, allowed: list[set[int]], k: int) -> sr.SearchResult:
    """A search of everything with what is not allowed to each query dropped, by a loop."""
    scores = np.full((len(allowed), k), -np.inf, dtype=np.float32)
    ids = np.full((len(allowed), k), -1, dtype=np.int64)
    for q, permitted in enumerate(allowed):
        pairs = zip(everything.ids[q].tolist(), everything.scores[q].tolist(), strict=True)
        for rank, (item, score) in enumerate([p for p in pairs if p[0] in permitted][:k]):
            ids[q, rank], scores[q, rank] = item, score
    return sr.SearchResult(scores, ids)


def assert_same_bytes(found: sr.SearchResult, expected: sr.SearchResult) -> None:
    assert found.ids.tobytes() == expected.ids.tobytes()
    assert found.scores.tobytes() == expected.scores.tobytes()


@st.composite
def masks(draw, n):
    """Nothing, everything, one item, all but one, and any."""
    mask = np.zeros(n, dtype=bool)
    kind = draw(st.sampled_from(["none", "all", "one", "all but one", "any"]))
    if kind == "any":
        mask[:] = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    elif n and kind in ("one", "all but one"):
        mask[draw(st.integers(0, n - 1))] = True
    return ~mask if kind.startswith("all") else mask


@st.composite
def exclusion_lists(draw, ids, n_queries):
    """Per query: nothing, everything, or some, in any order and with repetitions and -1."""
    some = st.lists(st.sampled_from([*ids, -1]), max_size=12)
    one = st.one_of(some, st.just([]), st.just(list(ids)))
    return draw(st.lists(one, min_size=n_queries, max_size=n_queries))


@given(data=st.data())
def test_a_selection_leaves_what_the_oracle_leaves_where_sums_are_exact(data):
    dim = 40
    items = data.draw(code_rows(dim, exact_values, max_rows=30), label="items")
    queries = data.draw(code_rows(dim, exact_values, max_rows=4), label="queries")
    k = data.draw(st.integers(1, 40), label="k")
    n, nq = len(items), len(queries)
    mask = data.draw(masks(n), label="mask")
    exclude = data.draw(exclusion_lists(range(n), nq), label="exclude")
    dense_queries, dense_items = compressed(as_dense(queries, dim), as_dense(items, dim))
    all_scores = oracles.scores(dense_queries, dense_items)
    everything = sr.SearchResult(*oracles.top_k(all_scores, n + 1))
    allowed = [set(np.flatnonzero(mask).tolist()) - set(list_) for list_ in exclude]
    index = sr.SparseIndex.from_codes(as_codes(items, dim))
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARSE_RETRIEVAL_ISA", isa)
            found = index.search(as_codes(queries, dim), k, filter=mask, exclude=exclude)
            assert_same_bytes(found, left_of(everything, allowed, k))


@given(data=st.data())
def test_a_selection_leaves_what_searching_everything_leaves_in_every_mode(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    n = data.draw(st.sampled_from([1, 5, 63, 64, 65, 511, 512, 513, 1500]), label="n")
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]), label="metric")
    bits = data.draw(st.sampled_from([32, 16, 8, 4]), label="value_bits")
    threads = data.draw(st.integers(1, 3), label="threads")
    support = (np.arange(4) * 7 + rng.integers(0, 32, (n, 1))) % 32
    codes = sr.SparseCodes(support, rng.integers(-3, 4, (n, 4)) / 2, dim=32)
    ids = rng.permutation(n) * 3 - 40
    ids[ids == -1] = 10**12
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=sr.Dictionary(oracles.unit(rng.standard_normal((32, 8)))),
        ids=ids if data.draw(st.booleans(), label="named") else None,
        metric=metric,
        value_bits=bits,
        modes=MODES,
        postings=data.draw(st.sampled_from([False, 64, True]), label="postings"),
    )
    nq = data.draw(st.integers(1, 20), label="nq")
    k = data.draw(st.sampled_from([1, 3, 10, n, n + 5]), label="k")
    density = data.draw(st.sampled_from([0.0, 1 / n, 0.01, 0.3, 1.0]), label="density")
    mask = rng.random(n) < density
    excluded = [rng.choice(index.ids, rng.integers(0, n + 1), replace=True) for _ in range(nq)]
    allowed = [set(index.ids[mask].tolist()) - set(seen.tolist()) for seen in excluded]
    for mode in MODES:
        queries = rng.standard_normal((nq, 8)) if mode == "dense" else codes[np.arange(nq) % n]
        everything = index.search(queries, n, mode=mode)
        chosen = rng.permutation(np.repeat(index.ids[mask], 2))
        for filtered in (mask, chosen, index.bitmap(chosen), sr.Bitmap.from_mask(mask)):
            options = {"mode": mode, "filter": filtered, "threads": threads}
            found = index.search(queries, k, exclude=excluded, **options)
            assert_same_bytes(found, left_of(everything, allowed, k))
            found = index.search(queries, k, **options)
            kept = [set(index.ids[mask].tolist())] * nq
            assert_same_bytes(found, left_of(everything, kept, k))


def test_real_embeddings_filtered_give_the_same_bytes_for_any_isa_and_threads(real_parts, isa):
    codes, dictionary, queries = real_parts
    rng = np.random.default_rng(0)
    index = sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, metric="cosine", value_bits=4, unit_items=True
    )
    n = len(index)
    everything = index.search(queries, n)
    seen = [row[: rng.integers(0, 200)] for row in everything.ids]
    clustered = np.zeros(n, dtype=bool)
    clustered[2000:2600] = clustered[7001] = True
    for mask in (rng.random(n) < 0.5, rng.random(n) < 0.01, clustered, np.arange(n) == 77):
        allowed = [set(np.flatnonzero(mask).tolist()) - set(ids.tolist()) for ids in seen]
        expected = left_of(everything, allowed, 20)
        for threads in (1, 2, 8):
            found = index.search(queries, 20, filter=mask, exclude=seen, threads=threads)
            assert_same_bytes(found, expected)
        for q in (0, 7, 63):
            one = index.search(queries[q], 20, filter=mask, exclude=seen[q])
            assert one.ids.tobytes() == expected.ids[q].tobytes()
            assert one.scores.tobytes() == expected.scores[q].tobytes()


def test_k_results_come_out_where_the_best_are_excluded(real_parts):
    codes, dictionary, queries = real_parts
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary)
    best = index.search(queries, 1000)
    found = index.search(queries, 10, exclude=best.ids)
    np.testing.assert_array_equal(found.ids, index.search(queries, 1010).ids[:, 1000:])


def test_forms_of_exclusions_say_the_same():
    codes = sr.SparseCodes([[0]] * 4, [[4.0], [3.0], [2.0], [1.0]], dim=2)
    index = sr.SparseIndex.from_codes(codes, ids=[40, 30, 20, 10])
    two = sr.SparseCodes([[0], [0]], [[1.0], [1.0]], dim=2)
    expected = [[30, 10], [40, 30]]
    for exclude in (
        [[40, 20], []],
        [np.array([20, 40, 20]), ()],
        (range(20, 41, 20), []),
        np.array([[20, 40], [-1, -1]]),
        np.array([[40, -1, 20], [-1, -1, -1]], dtype=np.int16),
    ):
        assert index.search(two, 2, exclude=exclude).ids.tolist() == expected
    for exclude in ([40, 20], np.array([40, 20]), [[40, 20]], np.array([[20, -1, 40]])):
        assert index.search(two[:1], 2, exclude=exclude).ids.tolist() == expected[:1]
    for exclude in ([], np.array([]), [[]], np.empty((1, 0), int), [-1], None):
        assert index.search(two[:1], 2, exclude=exclude).ids.tolist() == [[40, 30]]
    assert index.search(two[:0], 2, exclude=[]).ids.shape == (0, 2)


CODES = sr.SparseCodes([[0], [1], [2]], [[1.0], [1.0], [1.0]], dim=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"filter": [5, 9]}, ValueError, "filter holds the id 9, which no item of the index has"),
        ({"filter": [0]}, ValueError, "filter holds the id 0"),
        ({"filter": [5.0]}, TypeError, "filter has dtype float64; expected integers"),
        ({"filter": [[5]]}, ValueError, r"filter has shape \(1, 1\)"),
        ({"filter": ["a"]}, ValueError, 'filter holds the id "a", which no item'),
        ({"filter": np.array([2**63], np.uint64)}, ValueError, "less than 2"),
        ({"filter": np.ones(4, bool)}, ValueError, r"mask of shape \(4,\); expected \(3,\)"),
        ({"filter": np.ones((3, 1), bool)}, ValueError, r"mask of shape \(3, 1\)"),
        ({"filter": np.array([1], np.uint8)}, TypeError, "may be packed bits or ids"),
        ({"filter": sr.Bitmap.from_mask([True] * 9)}, ValueError, "9 items, the index has 3"),
        ({"exclude": [[5], [9]]}, ValueError, "exclude holds the id 9, which no item"),
        ({"exclude": [[5], [6], [7]]}, ValueError, "exclude has 3 lists for 2 queries"),
        ({"exclude": np.array([[5]])}, ValueError, "exclude has 1 lists for 2 queries"),
        ({"exclude": np.zeros((2, 1, 1), int)}, ValueError, r"exclude has shape \(2, 1, 1\)"),
        ({"exclude": [5, 6]}, ValueError, r"exclude of query 0 has shape \(\)"),
        ({"exclude": np.array([5, 6])}, ValueError, r"exclude has shape \(2,\)"),
        ({"exclude": [[5.5], []]}, TypeError, "exclude of query 0 has dtype float64"),
        ({"exclude": 5}, TypeError, "exclude is 5"),
    ],
)
def test_searching_refuses_a_selection(options, error, message):
    index = sr.SparseIndex.from_codes(CODES, ids=[5, 6, 7])
    with pytest.raises(error, match=message):
        index.search(CODES[:2], 1, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2], 9), TypeError, "packed has dtype int64; expected uint8"),
        ((np.zeros((1, 1), np.uint8), 8), ValueError, r"packed has shape \(1, 1\)"),
        ((np.zeros(1, np.uint8), 9), ValueError, "9 items takes 2 bytes, got 1"),
        ((np.zeros(2, np.uint8), 8), ValueError, "8 items takes 1 bytes, got 2"),
        ((np.packbits([True, False, False]), 3), ValueError, "bits set past the last"),
        ((np.zeros(1, np.uint8), -1), ValueError, "n is -1"),
    ],
)
def test_a_bitmap_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        sr.Bitmap(*arguments)


@given(data=st.data())
def test_bitmaps_combine_as_sets(data):
    n = data.draw(st.sampled_from([0, 1, 7, 8, 9, 64, 65, 600]))
    a, b = (data.draw(masks(n)) for _ in range(2))
    left, right = sr.Bitmap.from_mask(a), sr.Bitmap.from_mask(b)
    np.testing.assert_array_equal(left.to_mask(), a)
    np.testing.assert_array_equal((left & right).to_mask(), a & b)
    np.testing.assert_array_equal((left | right).to_mask(), a | b)
    np.testing.assert_array_equal((~left).to_mask(), ~a)
    assert left.count == a.sum()
    assert len(left) == n
    assert (left == right) == np.array_equal(a, b)
    assert sr.Bitmap(left.packed, n) == left
    assert left != a.tolist()


def test_bitmaps_for_other_numbers_of_items_do_not_combine():
    small, large = sr.Bitmap.from_mask([True]), sr.Bitmap.from_mask([True, True])
    with pytest.raises(ValueError, match="a bitmap of 1 items meets one of 2"):
        small & large
    assert small != large
    with pytest.raises(TypeError, match="unsupported operand"):
        small | {0}
    with pytest.raises(TypeError, match="mask has dtype int64; expected bool"):
        sr.Bitmap.from_mask([0, 1])


def test_ids_are_looked_up_from_many_threads_at_once():
    # the order of ids is made at the first look-up, which here several threads are the first to do
    rng = np.random.default_rng(0)
    ids = rng.permutation(200_000)
    codes = sr.SparseCodes(np.zeros((len(ids), 1), int), np.ones((len(ids), 1)), dim=1)
    index = sr.SparseIndex.from_codes(codes, ids=ids)
    wrong: list[object] = []
    start = threading.Barrier(4)

    def look_up(seed: int) -> None:
        try:
            asked = np.random.default_rng(seed).choice(ids, 50)
            start.wait()
            mask = index.bitmap(asked).to_mask()
            if set(ids[mask].tolist()) != set(asked.tolist()):
                wrong.append(seed)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=look_up, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
