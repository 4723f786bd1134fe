"""Postings: the same bytes as without them, the sections of the specification, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
import sridx_spec
from conftest import ISAS
from strategies import any_values, as_codes, code_rows, exact_values

NAMES = ("postings_latents", "postings_starts", "postings_norms", "postings")
CODES = sr.SparseCodes([[0, 1], [1, 2], [0, 3]], [[1, 2], [3, 4], [5, -6]], dim=4)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "items.sridx"
    options = {"metric": "cosine", "value_bits": 8, "postings": 2}
    sr.SparseIndex.from_codes(CODES, **options).save(path)
    return path


def assert_same_bytes(one: sr.SearchResult, other: sr.SearchResult) -> None:
    assert one.ids.tobytes() == other.ids.tobytes()
    assert one.scores.tobytes() == other.scores.tobytes()


@given(data=st.data())
def test_results_are_those_of_a_scan_whatever_isa_threads_and_batch(data):
    dim = data.draw(st.sampled_from([1, 8, 40, 65_536, 65_537]), label="dim")
    bits = data.draw(st.sampled_from([32, 16, 8] + [4] * (dim <= 65_536)), label="value_bits")
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]), label="metric")
    values = data.draw(st.sampled_from([exact_values, any_values]), label="values")
    items = as_codes(data.draw(code_rows(dim, values, max_rows=40), label="items"), dim)
    queries = as_codes(data.draw(code_rows(dim, values, max_rows=6), label="queries"), dim)
    k = data.draw(st.integers(1, len(items) + 1), label="k")
    block_items = data.draw(st.sampled_from([1, 7, 64, 65_472]), label="block_items")
    plain = sr.SparseIndex.from_codes(items, metric=metric, value_bits=bits)
    fast = plain.with_postings(block_items)
    expected = plain.search(queries, k)
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARSE_RETRIEVAL_ISA", isa)
            for threads in range(1, 9):
                assert_same_bytes(fast.search(queries, k, threads=threads), expected)
            for q in range(len(queries)):
                one = fast.search(queries[q : q + 1], k)
                assert one.ids.tobytes() == expected.ids[q].tobytes()
                assert one.scores.tobytes() == expected.scores[q].tobytes()


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_real_codes_give_the_bytes_of_a_scan(isa, real_parts, bits, metric):
    codes, _, _ = real_parts
    plain = sr.SparseIndex.from_codes(codes, metric=metric, value_bits=bits)
    queries = codes[100:160]
    mask = np.arange(len(codes)) % 3 > 0
    few = np.arange(0, len(codes), 100)
    seen = [[q + 100, q + 101] for q in range(60)]
    for block_items in (1000, 4096, 65_472):
        fast = plain.with_postings(block_items)
        for k in (1, 10, 500, len(codes) + 1):
            expected = plain.search(queries, k)
            for threads in (1, 4):
                assert_same_bytes(fast.search(queries, k, threads=threads), expected)
        for options in ({"filter": mask}, {"filter": few}, {"exclude": seen}, {"k_row": 5}):
            expected = plain.search(queries, 10, **options)
            assert_same_bytes(fast.search(queries, 10, **options), expected)


def test_a_query_that_matches_fewer_than_k_items_is_filled_up_in_order():
    codes = sr.SparseCodes([[0], [1], [0], [1], [0], [2]], [[1], [1], [2], [-3], [-1], [1]], dim=4)
    index = sr.SparseIndex.from_codes(codes, postings=4)
    query = sr.SparseCodes([[0, 1, 3]], [[1, 1, 1]], dim=4)
    result = index.search(query, 7)
    assert result.ids.tolist() == [[2, 0, 1, 5, 4, 3, -1]]
    assert result.scores.tolist() == [[2, 1, 1, 0, -1, -3, -np.inf]]
    nothing = index.search(sr.SparseCodes.from_dense(np.zeros((1, 4))), 3)
    assert nothing.ids.tolist() == [[0, 1, 2]]


def test_postings_are_listed_beside_the_bytes_of_an_item_and_not_counted_in_them(real_parts):
    codes, dictionary, _ = real_parts
    plain = sr.SparseIndex.from_codes(codes, dictionary=dictionary, modes=("sparse", "dense"))
    fast = plain.with_postings()
    assert plain.stats()["postings"] is None
    assert fast.bytes_per_item == plain.bytes_per_item
    listed = {s["name"]: s for s in fast.stats()["sections"] if s["name"] in NAMES}
    size = sum(section["bytes"] for section in listed.values())
    assert fast.stats()["postings"] == {
        "block_items": 65_472,
        "bytes": size,
        "bytes_per_item": size / len(codes),
    }
    # two bytes a position, two for each seven, lists filled up to seven, and the starts
    assert 16 / 7 * codes.nnz < size < 3.5 * codes.nnz
    assert len(plain.stats()["sections"]) == len(fast.stats()["sections"]) - 4


@given(data=st.data())
def test_sections_are_as_the_specification_says(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 40, 65_537]), label="dim")
    bits = data.draw(st.sampled_from([32, 16, 8] + [4] * (dim <= 65_536)), label="value_bits")
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]), label="metric")
    values = data.draw(st.sampled_from([exact_values, any_values]), label="values")
    codes = as_codes(data.draw(code_rows(dim, values, max_rows=40), label="items"), dim)
    block_items = data.draw(st.sampled_from([1, 7, 64, 65_535]), label="block_items")
    path = tmp_path / "items.sridx"
    built = sr.SparseIndex.from_codes(
        codes, metric=metric, value_bits=bits, postings=block_items, metadata={"a": 1}
    )
    built.save(path)
    header, sections = sridx_spec.read(path)
    assert header["postings"] == {"block_items": block_items}
    expected = sridx_spec.postings(header, sections, block_items)
    for name in NAMES:
        np.testing.assert_array_equal(sections[name], expected[name])
        assert not next(s for s in header["sections"] if s["name"] == name)["required"]
    opened = sr.SparseIndex.open(path)
    opened.verify()
    assert opened.stats() == built.stats() | {"mapped": True}
    assert_same_bytes(opened.search(codes[:5], 9), built.search(codes[:5], 9))
    # a second set replaces the first, and without a first the file is the same
    again = tmp_path / "again.sridx"
    opened.with_postings(3).with_postings(block_items, threads=2).save(again)
    assert again.read_bytes() == path.read_bytes()


def test_the_golden_file_with_postings_still_opens_and_answers():
    golden = Path(__file__).parent / "formats"
    wanted = json.loads((golden / "v1_postings.json").read_text())
    index = sr.SparseIndex.open(golden / "v1_postings.sridx")
    index.verify()
    assert index.stats()["postings"]["block_items"] == 25
    queries = sr.SparseCodes.from_dense(np.array(wanted["queries"]))
    result = index.search(queries, 7)
    assert result.ids.tolist() == wanted["ids"]
    assert result.scores.tobytes().hex() == wanted["scores_hex"]


def test_a_reader_that_skips_the_optional_sections_finds_the_same(saved, tmp_path):
    """What a release that does not know postings sees: a file without them."""
    header, sections = sridx_spec.read(saved)
    skipped = [s["name"] for s in header["sections"] if not s["required"]]
    assert set(skipped) == set(NAMES)
    header["sections"] = [s for s in header["sections"] if s["required"]]
    del header["postings"]
    old = tmp_path / "old.sridx"
    raw = {name: section.tobytes() for name, section in sections.items()}
    old.write_bytes(sridx_spec.assemble(header, raw))
    one, other = sr.SparseIndex.open(old), sr.SparseIndex.open(saved)
    one.verify()
    assert one.stats()["postings"] is None
    assert_same_bytes(one.search(CODES, 3), other.search(CODES, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("postings"), "section `postings.*` but no `postings.block_items`"),
        (lambda h: h["postings"].update(block_items=0), "block_items is 0, expected 1 to 65535"),
        (lambda h: h["postings"].update(block_items=65_536), "block_items is 65536"),
        (lambda h: h["postings"].update(block_items=2**63), "block_items is 9223372036854775808"),
        (lambda h: h["postings"].update(block_items=1), r"u32 of shape \[17\].*expected.*\[25\]"),
        (lambda h: h["postings"].update(block_items=-1), "header"),
        (lambda h: _of(h, "postings").update(name="other"), "section `postings` is missing"),
        (lambda h: _of(h, "postings").update(dtype="u8"), "section `postings`.*u16 of shape"),
        (lambda h: _of(h, "postings").update(shape=[12, 4]), "section `postings`"),
        (lambda h: _of(h, "postings_starts").update(dtype="u64"), "section `postings_starts`"),
        (lambda h: _of(h, "postings_norms").update(shape=[1, 2]), "section `postings_norms`"),
        (lambda h: _of(h, "postings_latents").update(shape=[2**63]), "postings_latents"),
        (lambda h: h.update(modes={}), "modes is empty"),
    ],
)
def test_headers_that_break_a_rule_of_postings_are_refused(saved, change, message):
    header, sections = sridx_spec.read(saved)
    raw = {name: section.tobytes() for name, section in sections.items()}
    raw["other"] = raw["postings"]
    change(header)
    saved.write_bytes(sridx_spec.assemble(header, raw))
    with pytest.raises(sr.IndexFormatError, match=message):
        sr.SparseIndex.open(saved)


def _of(header, name):
    return next(section for section in header["sections"] if section["name"] == name)


def test_postings_for_a_file_without_the_mode_sparse_are_refused(tmp_path):
    path = tmp_path / "items.sridx"
    options = {"dictionary": sr.Dictionary(np.eye(4)), "metric": "inner_product"}
    built = sr.SparseIndex.from_codes(CODES, modes=("dense", "sparse"), postings=2, **options)
    built.save(path)
    header, sections = sridx_spec.read(path)
    del header["modes"]["sparse"]
    raw = {name: section.tobytes() for name, section in sections.items()}
    path.write_bytes(sridx_spec.assemble(header, raw))
    with pytest.raises(sr.IndexFormatError, match="without the mode sparse"):
        sr.SparseIndex.open(path)


def test_damage_that_keeps_the_checksums_is_found_by_verify_and_survived_by_search(saved):
    header, sections = sridx_spec.read(saved)
    raw = {name: section.tobytes() for name, section in sections.items()}
    scores = sr.SparseIndex.open(saved).search(CODES, 3).scores
    allowed = set(np.round(scores, 6).ravel().tolist())
    for name in NAMES:
        for at in range(0, len(raw[name]), 2):
            for word in (b"\0\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff", b"\x80\x7f", b"\xc1\x7f"):
                damaged = bytearray(raw[name])
                damaged[at : at + 2] = word
                if damaged == raw[name]:
                    continue
                saved.write_bytes(sridx_spec.assemble(header, raw | {name: bytes(damaged)}))
                index = sr.SparseIndex.open(saved)
                for k in (1, 3, 9):
                    found = index.search(CODES, k)
                    real = found.scores[found.ids >= 0]
                    assert set(np.round(real, 6).tolist()) <= allowed
                with pytest.raises(sr.IndexFormatError, match="section `postings"):
                    index.verify()


def test_what_cannot_be_built_is_refused_with_what_to_do():
    index = sr.SparseIndex.from_codes(CODES, dictionary=sr.Dictionary(np.eye(4)), modes=("dense",))
    with pytest.raises(ValueError, match=r'postings serve the mode "sparse".*modes='):
        index.with_postings()
    for wrong in (0, 65_536, -1):
        with pytest.raises(ValueError, match="postings is"):
            sr.SparseIndex.from_codes(CODES, postings=wrong)
    with pytest.raises(TypeError):
        sr.SparseIndex.from_codes(CODES, postings="yes")
    assert sr.SparseIndex.from_codes(CODES, postings=True).stats()["postings"] is not None
    assert sr.SparseIndex.from_codes(CODES).stats()["postings"] is None


def test_no_item_at_all_has_postings_too():
    index = sr.SparseIndex.from_codes(CODES[:0], postings=True)
    index.verify()
    assert index.search(CODES, 2).ids.tolist() == [[-1, -1]] * 3
    assert index.stats()["postings"]["bytes_per_item"] == 0.0
