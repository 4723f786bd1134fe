"""What a search returns at the edges: ties, zero overlap, padding, shapes, defaults."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import sparse_retrieval as sr

ITEMS = sr.SparseCodes([[0, 1], [0, 1], [2, 3], [0, 1]], [[1, 1], [1, 1], [1, 1], [-1, 0]], dim=4)


def test_equal_scores_come_by_lower_position(isa):
    result = sr.SparseIndex.from_codes(ITEMS).search(ITEMS[:1], 4)
    assert result.ids.tolist() == [[0, 1, 2, 3]]
    assert result.scores.tolist() == [[2.0, 2.0, 0.0, -1.0]]


def test_ties_across_blocks_and_threads_come_by_lower_position(isa):
    n = 20_000
    codes = sr.SparseCodes(np.zeros((n, 1), dtype=int), np.ones((n, 1)), dim=2)
    index = sr.SparseIndex.from_codes(codes)
    for threads in (1, 2, 4):
        result = index.search(codes[:3], 700, threads=threads)
        assert result.ids.tolist() == [list(range(700))] * 3


def test_items_without_a_shared_latent_score_zero_and_rank_above_negative_ones(isa):
    result = sr.SparseIndex.from_codes(ITEMS).search(ITEMS[2:3], 4)
    assert result.ids.tolist() == [[2, 0, 1, 3]]
    negative = sr.SparseCodes([[0]], [[-1.0]], dim=4)
    result = sr.SparseIndex.from_codes(ITEMS).search(negative, 4)
    assert result.ids.tolist() == [[3, 2, 0, 1]]
    assert result.scores.tolist() == [[1.0, 0.0, -1.0, -1.0]]


def test_an_empty_query_scores_every_item_zero_and_never_minus_zero():
    empty = sr.SparseCodes([[0]], [[0.0]], dim=4)
    result = sr.SparseIndex.from_codes(ITEMS).search(empty, 3)
    assert result.ids.tolist() == [[0, 1, 2]]
    assert result.scores.tobytes() == np.zeros((1, 3), np.float32).tobytes()


def test_a_score_that_rounds_to_zero_from_below_is_plain_zero():
    codes = sr.SparseCodes([[0]], [[-1e-30]], dim=1)
    query = sr.SparseCodes([[0]], [[1e-30]], dim=1)
    result = sr.SparseIndex.from_codes(codes).search(query, 1)
    assert result.scores.tobytes() == np.zeros((1, 1), np.float32).tobytes()


def test_scores_beyond_float32_are_infinite():
    codes = sr.SparseCodes([[0], [0]], [[3e38], [-3e38]], dim=1)
    result = sr.SparseIndex.from_codes(codes).search(codes[:1], 2)
    assert result.ids.tolist() == [[0, 1]]
    assert result.scores.tolist() == [[np.inf, -np.inf]]


def test_k_beyond_the_items_is_padded(isa):
    result = sr.SparseIndex.from_codes(ITEMS, ids=[7, 5, 3, 2]).search(ITEMS[:2], 6)
    assert result.ids.shape == result.scores.shape == (2, 6)
    assert result.ids[0].tolist() == [7, 5, 3, 2, -1, -1]
    assert np.isneginf(result.scores[:, 4:]).all()


def test_an_empty_index_returns_padding_alone(tmp_path):
    empty = sr.SparseCodes(np.empty((0, 3), dtype=int), np.empty((0, 3)), dim=4)
    index = sr.SparseIndex.from_codes(empty)
    assert len(index) == 0
    assert index.bytes_per_item == 0
    result = index.search(ITEMS, 2)
    assert result.ids.tolist() == [[-1, -1]] * 4
    index.save(tmp_path / "empty.sridx")
    again = sr.SparseIndex.open(tmp_path / "empty.sridx")
    again.verify()
    assert again.search(ITEMS, 2).ids.tolist() == [[-1, -1]] * 4


def test_an_empty_batch_of_queries_returns_no_rows():
    result = sr.SparseIndex.from_codes(ITEMS).search(ITEMS[:0], 3)
    assert result.ids.shape == result.scores.shape == (0, 3)
    dictionary = sr.Dictionary(np.eye(4))
    index = sr.SparseIndex.from_codes(ITEMS, dictionary=dictionary)
    assert index.search(np.empty((0, 4)), 3).ids.shape == (0, 3)
    assert index.search(np.empty((0, 4)), 9).ids.shape == (0, 9)


def test_one_query_of_one_axis_gives_results_of_one_axis():
    index = sr.SparseIndex.from_codes(ITEMS)
    rows = ITEMS.to_dense()
    for query in (
        rows[0],
        rows[0].tolist(),
        ([0, 1], [1.0, 1.0]),
        scipy.sparse.coo_array(rows[0]),
    ):
        result = index.search(query, 2)
        assert result.ids.tolist() == [0, 1]
        assert result.scores.shape == (2,)
    with_dictionary = sr.SparseIndex.from_codes(ITEMS, dictionary=sr.Dictionary(np.eye(4)))
    assert with_dictionary.search(rows[0], 2).ids.tolist() == [0, 1]
    assert with_dictionary.search(rows[:1], 2).ids.tolist() == [[0, 1]]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_queries_may_be_codes_of_any_kind():
    torch = pytest.importorskip("torch", reason="needs the training extra")
    index = sr.SparseIndex.from_codes(ITEMS)
    expected = index.search(ITEMS, 3)
    for queries in (
        ITEMS.to_scipy(),
        ITEMS.to_scipy().tocoo(),
        scipy.sparse.csc_matrix(ITEMS.to_scipy()),
        ITEMS.to_torch(),
        ITEMS.to_torch().to_sparse_csr(),
        torch.from_numpy(ITEMS.to_dense()).to_sparse(),
        ITEMS.to_dense(),
        ITEMS.to_dense().astype(np.float64),
        torch.from_numpy(ITEMS.to_dense()),
    ):
        result = index.search(queries, 3)
        np.testing.assert_array_equal(result.ids, expected.ids)
        np.testing.assert_array_equal(result.scores, expected.scores)


def test_items_may_be_codes_of_any_kind():
    expected = sr.SparseIndex.from_codes(ITEMS).search(ITEMS, 3)
    indices = [[0, 1], [0, 1], [2, 3], [0, 1]]
    values = [[1, 1], [1, 1], [1, 1], [-1, 0]]
    for items in (ITEMS.to_scipy(), ITEMS.to_torch(), (indices, values)):
        result = sr.SparseIndex.from_codes(items, dim=4).search(ITEMS, 3)
        np.testing.assert_array_equal(result.ids, expected.ids)


def test_a_zero_item_or_query_scores_zero_under_cosine(isa):
    codes = sr.SparseCodes([[0, 1], [0, 1], [0, 1]], [[3, 4], [0, 0], [-3, -4]], dim=2)
    index = sr.SparseIndex.from_codes(
        codes,
        metric="cosine",
        dictionary=sr.Dictionary(np.eye(2)),
        modes=("sparse", "dense", "reconstructed"),
    )
    for mode, queries in (
        ("sparse", codes),
        ("reconstructed", codes),
        ("dense", codes.to_dense()),
    ):
        result = index.search(queries, 3, mode=mode)
        assert result.ids.tolist() == [[0, 1, 2], [0, 1, 2], [2, 1, 0]]
        np.testing.assert_allclose(result.scores, [[1, 0, -1], [0, 0, 0], [1, 0, -1]], rtol=1e-6)


@pytest.mark.parametrize("value_bits", [32, 16, 8, 4])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_items_that_are_all_zero_score_zero_alone_and_in_a_batch(isa, value_bits, metric):
    n, width = 600, 9
    codes = sr.SparseCodes(np.tile(np.arange(width), (n, 1)), np.zeros((n, width)), dim=16)
    index = sr.SparseIndex.from_codes(
        codes,
        metric=metric,
        dictionary=sr.Dictionary(np.eye(16)),
        value_bits=value_bits,
        modes=("sparse", "dense"),
    )
    queries = np.random.default_rng(0).standard_normal((65, 16)).astype(np.float32)
    for mode, asked in (("dense", queries), ("sparse", sr.SparseCodes.from_dense(queries))):
        for some in (asked[:1], asked):
            result = index.search(some, 5, mode=mode)
            assert result.ids.tolist() == [list(range(5))] * len(some)
            assert result.scores.tobytes() == np.zeros((len(some), 5), np.float32).tobytes()


def test_cosine_holds_over_twelve_orders_of_magnitude_of_norms():
    magnitudes = np.float32(10.0) ** np.arange(-6, 7)
    values = np.array([[3.0, 4.0]], dtype=np.float32) * magnitudes[:, None]
    codes = sr.SparseCodes(np.tile([0, 1], (13, 1)), values, dim=2)
    for bits in (32, 16, 8):
        index = sr.SparseIndex.from_codes(codes, metric="cosine", value_bits=bits)
        result = index.search(codes, 13)
        np.testing.assert_allclose(result.scores, 1.0, rtol={32: 1e-6, 16: 1e-5, 8: 1e-3}[bits])


def test_the_default_mode_follows_the_query_and_the_index():
    dictionary = sr.Dictionary(np.eye(4))
    both = sr.SparseIndex.from_codes(ITEMS, dictionary=dictionary)
    assert both.modes == ("dense", "reconstructed")
    assert sr.SparseIndex.from_codes(ITEMS).modes == ("sparse",)
    sparse_only = sr.SparseIndex.from_codes(ITEMS, dictionary=dictionary, modes=("sparse",))
    for index in (both, sparse_only):
        assert index.search(ITEMS[:1], 1).ids.tolist() == [[0]]


def test_a_mode_that_was_not_built_for_says_how_to_build_it():
    index = sr.SparseIndex.from_codes(ITEMS, dictionary=sr.Dictionary(np.eye(4)))
    with pytest.raises(ValueError, match=r"built for .*dense.*modes=\[.., \"sparse\"\]"):
        index.search(ITEMS, 1, mode="sparse")
    index = sr.SparseIndex.from_codes(ITEMS)
    with pytest.raises(ValueError, match="and a dictionary"):
        index.search(ITEMS, 1, mode="reconstructed")


def test_ids_name_the_results():
    ids = np.array([2**62, -5, 0, 17])
    result = sr.SparseIndex.from_codes(ITEMS, ids=ids).search(ITEMS[:1], 4)
    assert result.ids.tolist() == [ids.tolist()]


def test_the_result_is_a_named_tuple():
    scores, ids = sr.SparseIndex.from_codes(ITEMS).search(ITEMS, 2)
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    assert sr.SearchResult._fields == ("scores", "ids")


def test_dense_queries_of_a_mode_of_codes_are_encoded_first(real_parts):
    codes, dictionary, queries = real_parts
    index = sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, metric="cosine", modes=("sparse", "reconstructed", "dense")
    )
    encoded = dictionary.encode(queries, k=16)
    for mode in ("sparse", "reconstructed"):
        expected = index.search(encoded, 20, mode=mode)
        for _ in range(2):
            result = index.search(queries, 20, mode=mode)
            assert result.scores.tobytes() == expected.scores.tobytes()
            assert result.ids.tobytes() == expected.ids.tobytes()
        one = index.search(queries[0], 20, mode=mode)
        assert one.ids.tobytes() == expected.ids[0].tobytes()


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_a_dictionary_with_a_mean_adds_it_back_to_the_scores(tmp_path, bits, metric):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 12)) + 2 * rng.standard_normal(12)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    dictionary = sr.Dictionary.fit(x, n_atoms=32, k=6, rounds=2, subtract_mean=True)
    codes = dictionary.encode(x, k=6)
    options = {"dictionary": dictionary, "metric": metric, "value_bits": bits}
    sr.SparseIndex.from_codes(codes, unit_items=True, **options).save(tmp_path / "i.sridx")
    index = sr.SparseIndex.open(tmp_path / "i.sridx")
    index.verify()
    np.testing.assert_array_equal(index.dictionary.mean, dictionary.mean)
    decoded = dictionary.decode(codes).astype(np.float64)
    queries = rng.standard_normal((5, 12))
    query_codes = codes[:5]
    for mode, asked, left in (
        ("dense", queries, queries),
        ("reconstructed", query_codes, dictionary.decode(query_codes).astype(np.float64)),
    ):
        if metric == "cosine":
            left = left / np.linalg.norm(left, axis=1, keepdims=True)
        result = index.search(asked, 300, mode=mode)
        expected = np.take_along_axis(left @ decoded.T, result.ids, axis=1)
        atol = {32: 1e-5, 8: 0.02, 4: 0.3}[bits] * np.linalg.norm(left, axis=1).max()
        np.testing.assert_allclose(result.scores, expected, atol=atol)
    if metric == "cosine":
        with pytest.raises(ValueError, match="unit_items=True"):
            sr.SparseIndex.from_codes(codes, **options)


def test_an_item_whose_norm_has_no_inverse_in_float32_scores_less():
    codes = sr.SparseCodes([[0], [0], [0]], [[4.9e-44], [3e-39], [1e-30]], dim=1)
    result = sr.SparseIndex.from_codes(codes, metric="cosine").search([[1.0]], 3)
    scores = dict(zip(result.ids[0].tolist(), result.scores[0].tolist(), strict=True))
    assert scores[1] == pytest.approx(1, rel=1e-6)
    assert scores[2] == pytest.approx(1, rel=1e-6)
    # 4.9e-44 times the largest float32
    assert scores[0] == pytest.approx(float(np.float32(4.9e-44)) * 3.4028235e38, rel=1e-6)
