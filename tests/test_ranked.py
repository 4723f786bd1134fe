"""Rank-coded values: what is stored, how well it decodes, how it is searched."""

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
from strategies import any_values, as_codes, code_rows


def stored_codes(path: Path, dim: int, ranks: int | None = None) -> np.ndarray:
    """Dense rows of signed levels, read from the file by the specification alone."""
    header, sections = sridx_spec.read(path)
    dense = np.zeros((header["rows"]["count"], dim))
    for i, pairs in enumerate(sridx_spec.rows(header, sections)):
        for latent, level in pairs[:ranks]:
            dense[i, latent] += level
    return dense


def stored_scales(path: Path, name: str) -> np.ndarray:
    header, sections = sridx_spec.read(path)
    unit = next(s["unit"] for s in header["sections"] if s["name"] == name)
    return sections[name].astype(np.float64) * unit


def assert_finds_what_the_file_holds(
    path: Path, queries: np.ndarray, k: int, k_row: int | None
) -> None:
    """Every instruction set returns the top k of the rows that the specification reads."""
    dim = queries.shape[1]
    again = sr.SparseIndex.open(path)
    again.verify()
    items = stored_codes(path, dim, k_row) * stored_scales(path, "scales_step")[:, None]
    all_scores = queries.astype(np.float32).astype(np.float64) @ items.T
    magnitudes = np.abs(queries) @ np.abs(items).T
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARSE_RETRIEVAL_ISA", isa)
            result = again.search(sr.SparseCodes.from_dense(queries), k, k_row=k_row)
        oracles.assert_is_top_k(
            result.scores, result.ids, all_scores, k, atol=1e-13 * magnitudes.max(initial=0)
        )


@given(data=st.data())
def test_search_scores_exactly_what_the_file_holds(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 3, 40, 600]), label="dim")
    bits = data.draw(st.sampled_from([1, 2, 3, 4, 7, 1.5, 2.7, 3.4]), label="value_bits")
    rows = data.draw(code_rows(dim, any_values, max_rows=20), label="rows")
    k = data.draw(st.integers(1, 25), label="k")
    k_row = data.draw(st.none() | st.integers(1, 30), label="k_row")
    codes = as_codes(rows, dim)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    queries = rng.standard_normal((3, dim))
    index = sr.SparseIndex.from_codes(codes, value_bits=bits)
    path = tmp_path / "items.sridx"
    index.save(path)
    assert_finds_what_the_file_holds(path, queries, k, k_row)


@pytest.mark.parametrize("bits", [3, 4, 3.5])
@pytest.mark.parametrize("unit_items", [True, False])
def test_real_embeddings_in_all_modes_are_scored_as_the_file_decodes(
    isa, real_parts, tmp_path, bits, unit_items
):
    codes, dictionary, queries = real_parts
    codes = codes[:2000]
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        metric="cosine",
        value_bits=bits,
        unit_items=unit_items,
        modes=("sparse", "reconstructed", "dense"),
    )
    index.save(tmp_path / "items.sridx")
    stored = stored_codes(tmp_path / "items.sridx", codes.dim)
    atoms = dictionary.atoms.astype(np.float64)
    scales = {
        "sparse": stored_scales(tmp_path / "items.sridx", "scales_code"),
        "dense": stored_scales(
            tmp_path / "items.sridx", "scales_step" if unit_items else "scales_embedding"
        ),
    }
    for mode, asked, left in (
        ("dense", queries, queries),
        ("reconstructed", codes[:30], codes[:30].to_dense() @ atoms),
        ("sparse", codes[:30], codes[:30].to_dense()),
    ):
        right = stored if mode == "sparse" else stored @ atoms
        scale = scales["sparse" if mode == "sparse" else "dense"]
        all_scores = oracles.unit(left.astype(np.float64)) @ right.T * scale
        result = index.search(asked, 50, mode=mode)
        oracles.assert_is_top_k(result.scores, result.ids, all_scores, 50, atol=1e-12)
    if not unit_items:
        # half precision of the scale: true cosines to 2^-11
        np.testing.assert_allclose(
            np.linalg.norm(stored @ atoms, axis=1) * scales["dense"], 1, rtol=2**-11
        )


def test_each_level_is_the_nearest_of_its_rank_without_a_dictionary(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((500, 12))
    support = rng.permuted(np.tile(np.arange(64), (500, 1)), axis=1)[:, :12]
    codes = sr.SparseCodes(support, values, dim=64)
    sr.SparseIndex.from_codes(codes, value_bits=4).save(tmp_path / "items.sridx")
    header, sections = sridx_spec.read(tmp_path / "items.sridx")
    books = sections["levels"].reshape(12, 8)
    assert np.all(np.diff(books, axis=1) >= 0)
    dense = codes.to_dense().astype(np.float64)
    for i, pairs in enumerate(sridx_spec.rows(header, sections)):
        row = dense[i] / np.linalg.norm(dense[i])
        order = np.argsort(-np.abs(dense[i]), kind="stable")[:12]
        assert [latent for latent, _ in pairs] == order.tolist()
        for rank, (latent, level) in enumerate(pairs):
            best = np.abs(books[rank] - abs(row[latent])).min()
            # the quotient is rounded to float32 where levels are compared
            assert abs(abs(level) - abs(row[latent])) <= best + 1e-6
            assert np.sign(level) in (0, np.sign(row[latent]))


def test_more_bits_decode_better_and_four_lose_next_to_nothing(real_parts):
    codes, dictionary, _ = real_parts
    cosines = [
        sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=bits).stats()[
            "quantisation_cosine"
        ]
        for bits in (1, 2, 2.5, 3, 3.5, 4, 5)
    ]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.993
    assert cosines[5] > 0.9995


def test_levels_chosen_together_decode_better_than_the_nearest_ones(real_parts, tmp_path):
    codes, dictionary, _ = real_parts
    codes = codes[:3000]
    original = oracles.unit(dictionary.decode(codes).astype(np.float64))
    found = {}
    for name, options in (("nearest", {}), ("together", {"dictionary": dictionary})):
        index = sr.SparseIndex.from_codes(codes, value_bits=3, modes=("sparse",), **options)
        index.save(tmp_path / name)
        levels = stored_codes(tmp_path / name, codes.dim)
        decoded = oracles.unit(levels @ dictionary.atoms.astype(np.float64))
        found[name] = float(np.mean(np.sum(decoded * original, axis=1)))
        if options:
            np.testing.assert_allclose(index.stats()["quantisation_cosine"], found[name], atol=1e-6)
    assert 1 - found["together"] < 0.85 * (1 - found["nearest"])


def test_a_prefix_of_a_row_is_the_code_of_its_largest_nonzeros(real_parts):
    codes, dictionary, queries = real_parts
    whole = sr.SparseIndex.from_codes(codes, dictionary=dictionary)
    short = sr.SparseIndex.from_codes(codes.top(8), dictionary=dictionary)
    for bits in (32, 16, 8):
        whole = sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=bits)
        short = sr.SparseIndex.from_codes(codes.top(8), dictionary=dictionary, value_bits=bits)
        a, b = whole.search(queries, 20, k_row=8), short.search(queries, 20)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
    same = whole.search(queries, 20, k_row=99)
    np.testing.assert_array_equal(same.scores, whole.search(queries, 20).scores)
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="k_row is"):
            whole.search(queries, 20, k_row=wrong)


def test_bytes_an_item_are_those_of_the_fields_and_half_a_scale():
    rng = np.random.default_rng(0)
    for dim, k, bits, expected in (
        (4096, 32, 4, 64 + 2),
        (4096, 32, 3, 60 + 2),
        (8192, 30, 4, 64 + 2),
        (8192, 32, 3, 64 + 2),
        (4096, 48, 4, 96 + 2),
        (65_536, 16, 4, 40 + 2),
    ):
        support = rng.permuted(np.tile(np.arange(dim), (20, 1)), axis=1)[:, :k]
        codes = sr.SparseCodes(support, rng.standard_normal((20, k)), dim=dim)
        index = sr.SparseIndex.from_codes(codes, value_bits=bits)
        assert index.bytes_per_item == expected, (dim, k, bits)
        assert index.value_bits == bits


def test_fractional_bits_are_spent_on_the_ranks_that_need_them(real_parts):
    codes, dictionary, _ = real_parts
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=3.5)
    bits = index.stats()["magnitude_bits"]
    assert sum(bits) == int(2.5 * 16)
    assert index.value_bits == 3.5
    uniform = sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=3)
    assert index.stats()["quantisation_cosine"] > uniform.stats()["quantisation_cosine"]


def test_rank_coding_is_refused_beyond_65536_latents():
    codes = sr.SparseCodes([[65_536]], [[1.0]], dim=65_537)
    with pytest.raises(ValueError, match="at most 65536 latents, got 65537; use value_bits=8"):
        sr.SparseIndex.from_codes(codes, value_bits=4)


def test_short_and_empty_rows_keep_their_length():
    codes = sr.SparseCodes.from_dense([[3.0, 0, 0, 0], [1, -2, 3, 4], [0, 0, 0, 0]] * 9)
    index = sr.SparseIndex.from_codes(codes, value_bits=3, metric="cosine")
    result = index.search(np.array([[0, 1.0, 0, 0]]), 27)
    scores = dict(zip(result.ids[0].tolist(), result.scores[0].tolist(), strict=True))
    assert all(scores[i] == 0 for i in range(27) if i % 3 != 1)
    assert all(scores[i] < -0.2 for i in range(27) if i % 3 == 1)


def test_scales_over_eight_orders_of_magnitude_keep_their_precision(tmp_path):
    magnitudes = np.float32(10.0) ** np.arange(-4, 5)
    values = np.array([[3.0, -2.0, 1.0]], dtype=np.float32) * magnitudes[:, None]
    codes = sr.SparseCodes(np.tile([0, 1, 2], (9, 1)), values, dim=3)
    index = sr.SparseIndex.from_codes(codes, value_bits=4)
    query = np.array([1.0, 0.0, 0.0])
    result = index.search(query, 9)
    np.testing.assert_allclose(result.scores, 3 * magnitudes[::-1], rtol=1e-3)


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
@pytest.mark.parametrize("value_bits", [2, 4, 8])
def test_an_empty_row_among_rows_of_one_width_scores_zero(metric: str, value_bits: int) -> None:
    codes = sr.SparseCodes.from_dense(
        np.array([[0, 0, 0], [1, 1, 0], [0, 0, 0], [2, 0, 1]], dtype=np.float32)
    )
    index = sr.SparseIndex.from_codes(codes, metric=metric, value_bits=value_bits)
    index.verify()
    found = index.search(codes[1:2], k=4)
    scores = dict(zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True))
    assert scores[0] == scores[2] == 0
    assert scores[1] > 0
