"""Approximate search: asked for by name, deterministic, exact in its scores, safe on any file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
import sridx_spec
from conftest import ISAS
from sparse_retrieval import approximate

CLUSTER_SECTIONS = {
    "cluster_centroids",
    "cluster_scales",
    "cluster_starts",
    "cluster_rows",
    "sketch_levels",
    "sketches",
}


@pytest.fixture(scope="module")
def queries(real_parts):
    return real_parts[2]


@pytest.fixture(scope="module")
def plain(real_parts):
    codes, dictionary, _ = real_parts
    return sr.SparseIndex.from_codes(codes, dictionary=dictionary, metric="cosine", value_bits=4)


@pytest.fixture(scope="module")
def clustered(plain):
    return plain.with_clusters(seed=3)


def assert_same_bytes(found, expected):
    assert found.ids.tobytes() == expected.ids.tobytes()
    assert found.scores.tobytes() == expected.scores.tobytes()


def everything(index):
    """A setting that leaves nothing out."""
    return sr.Approximate(index.n_clusters, len(index))


def random_index(seed, n, d=12, s=40, k=5, **options):
    rng = np.random.default_rng(seed)
    latents = np.array([rng.permutation(s)[:k] for _ in range(n)]).reshape(n, k)
    codes = sr.SparseCodes(latents, rng.standard_normal((n, k)), dim=s)
    atoms = rng.standard_normal((s, d))
    dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    return sr.SparseIndex.from_codes(codes, dictionary=dictionary, **options), rng


def test_recall_of_exact_results_rises_with_the_clusters_and_rows_looked_at(clustered, queries):
    exact = clustered.search(queries, 50).ids
    shares = [
        approximate.share_kept(exact, clustered.search(queries, 50, approximate=setting).ids)
        for setting in (
            sr.Approximate(1, 50),
            sr.Approximate(8, 200),
            sr.Approximate(32, 400),
            sr.Approximate(128, 800),
        )
    ]
    assert shares == sorted(shares)
    # a tenth of the rows scored, a third of the clusters looked at
    assert shares[-1] > 0.97
    # one cluster of 360 is not enough, or the setting does nothing
    assert shares[0] < 0.7


@pytest.mark.parametrize("mode", ["dense", "reconstructed"])
def test_looking_at_everything_gives_the_bytes_of_exact_search(real_parts, clustered, mode):
    codes, _, queries = real_parts
    asked = queries if mode == "dense" else codes[5:40]
    exact = clustered.search(asked, 30, mode=mode)
    assert_same_bytes(
        clustered.search(asked, 30, mode=mode, approximate=everything(clustered)), exact
    )


def test_scores_are_those_of_exact_search_for_the_same_rows(clustered, queries):
    exact = clustered.search(queries, len(clustered))
    found = clustered.search(queries, 20, approximate=sr.Approximate(2, 40))
    for q in range(len(queries)):
        score_of = dict(zip(exact.ids[q].tolist(), exact.scores[q].tolist(), strict=True))
        assert [score_of[item] for item in found.ids[q].tolist()] == found.scores[q].tolist()
        assert len(set(found.ids[q].tolist())) == 20


def test_results_do_not_depend_on_isa_threads_batch_or_mapping(
    tmp_path, monkeypatch, clustered, queries
):
    setting = sr.Approximate(9, 130)
    expected = clustered.search(queries, 25, approximate=setting, threads=1)
    path = tmp_path / "clustered.sridx"
    clustered.save(path)
    indexes = [clustered, sr.SparseIndex.open(path), sr.SparseIndex.open(path, mmap=False)]
    for isa in ISAS:
        monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", isa)
        for index in indexes:
            for threads in (1, 2, 3, 8):
                found = index.search(queries, 25, approximate=setting, threads=threads)
                assert_same_bytes(found, expected)
            for q in (0, 17, 63):
                one = index.search(queries[q], 25, approximate=setting)
                assert one.ids.tobytes() == expected.ids[q].tobytes()
                assert one.scores.tobytes() == expected.scores[q].tobytes()


def test_clusters_are_the_same_bytes_for_any_isa_and_threads(tmp_path, monkeypatch, plain):
    files = set()
    for isa in ISAS:
        monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", isa)
        for threads in (1, 3):
            path = tmp_path / f"{isa}{threads}.sridx"
            plain.with_clusters(40, seed=7, threads=threads).save(path)
            files.add(path.read_bytes())
    assert len(files) == 1
    plain.with_clusters(40, seed=8).save(tmp_path / "other.sridx")
    assert (tmp_path / "other.sridx").read_bytes() not in files


@given(data=st.data())
def test_small_indexes_of_any_shape_find_all_that_exists(data):
    n = data.draw(st.sampled_from([1, 2, 15, 16, 31, 32, 33, 64, 100, 300]), label="n")
    d = data.draw(st.sampled_from([1, 3, 12, 97]), label="d")
    bits = data.draw(st.sampled_from([4, 8, 32]), label="bits")
    metric = data.draw(st.sampled_from(["cosine", "inner_product"]), label="metric")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    k = data.draw(st.sampled_from([1, 7, 400]), label="k")
    index, rng = random_index(seed, n, d=d, value_bits=bits, metric=metric)
    clusters = data.draw(st.integers(1, n), label="clusters")
    index = index.with_clusters(clusters, seed=seed)
    index.verify()
    asked = rng.standard_normal((3, d)) * data.draw(st.sampled_from([0, 1e-30, 1, 1e30]))
    exact = index.search(asked, k)
    assert_same_bytes(index.search(asked, k, approximate=everything(index)), exact)
    least = index.search(asked, k, approximate=sr.Approximate(1, 1))
    # k of them whatever the setting, and each one once
    np.testing.assert_array_equal((least.ids >= 0).sum(axis=1), min(k, n))
    assert all(len(set(row[row >= 0])) == min(k, n) for row in least.ids)


def test_no_item_is_an_index_too():
    index, rng = random_index(0, 0)
    empty = index.with_clusters()
    empty.verify()
    found = empty.search(rng.standard_normal((2, 12)), 3, approximate=True)
    assert (found.ids == -1).all()
    with pytest.raises(ValueError, match="the index is empty"):
        empty.tune()


@given(data=st.data())
def test_filters_and_exclusions_hold_and_leave_k_results(data):
    index, rng = random_index(1, 300, metric="cosine", value_bits=4)
    index = index.with_clusters(20)
    share = data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]), label="share")
    mask = rng.random(300) < share
    exclude = [rng.permutation(300)[: data.draw(st.sampled_from([0, 5, 299]))] for _ in range(4)]
    asked = rng.standard_normal((4, 12))
    k = data.draw(st.sampled_from([1, 10, 60]), label="k")
    exact = index.search(asked, k, filter=mask, exclude=exclude)
    assert_same_bytes(
        index.search(asked, k, filter=mask, exclude=exclude, approximate=everything(index)), exact
    )
    found = index.search(
        asked, k, filter=mask, exclude=exclude, approximate=sr.Approximate(1, 1)
    ).ids
    for q, row in enumerate(found):
        ids = row[row >= 0]
        assert mask[ids].all()
        assert not np.isin(ids, exclude[q]).any()
        assert len(ids) == (exact.ids[q] >= 0).sum()


def test_a_mean_and_a_prefix_of_the_rows_count_as_in_exact_search(real_parts):
    codes, dictionary, queries = real_parts
    with_mean = sr.Dictionary(dictionary.atoms, mean=np.full(dictionary.atoms.shape[1], 0.01))
    index = sr.SparseIndex.from_codes(
        codes[:2000],
        dictionary=with_mean,
        metric="cosine",
        value_bits=4,
        unit_items=True,
        approximate=True,
    )
    for k_row in (None, 8):
        exact = index.search(queries, 10, k_row=k_row)
        found = index.search(queries, 10, k_row=k_row, approximate=everything(index))
        assert_same_bytes(found, exact)


def test_exact_search_and_bytes_an_item_stay_as_they_were(plain, clustered, queries):
    assert_same_bytes(clustered.search(queries, 10), plain.search(queries, 10))
    assert clustered.bytes_per_item == plain.bytes_per_item
    added = {s["name"]: s for s in clustered.stats()["sections"]}
    for section in plain.stats()["sections"]:
        assert added.pop(section["name"]) == section
    assert set(added) == CLUSTER_SECTIONS
    grown = added["sketches"]["bytes_per_item"] + added["cluster_rows"]["bytes_per_item"]
    assert grown <= 52.1


def test_tuning_reaches_its_target_and_is_kept_in_the_file(tmp_path, clustered, queries):
    half, rest = queries[::2], queries[1::2]
    index = clustered.with_clusters(seed=3)
    with pytest.raises(ValueError, match="target"):
        index.tune(1.5)
    loose, tight = index.tune(0.8, half, k=20), index.tune(0.98, half, k=20)
    assert loose.clusters < tight.clusters
    index.save(tmp_path / "tuned.sridx")
    opened = sr.SparseIndex.open(tmp_path / "tuned.sridx")
    opened.verify()
    assert opened.tuned == index.tuned
    assert opened.tuned["reached"] >= 0.98
    assert (opened.tuned["clusters"], opened.tuned["rerank"]) == (tight.clusters, tight.rerank)
    by_default = opened.search(rest, 20, approximate=True)
    assert_same_bytes(by_default, opened.search(rest, 20, approximate=tight))
    exact = opened.search(rest, 20).ids
    # other queries than those it was tuned with, only 32 of them
    assert approximate.share_kept(exact, by_default.ids) > 0.95
    assert opened.with_clusters(50).tuned is None


def test_tuning_without_queries_makes_some_of_the_items(clustered, queries):
    index = clustered.with_clusters(seed=3)
    setting = index.tune(0.95, k=20)
    exact = index.search(queries, 20).ids
    kept = approximate.share_kept(exact, index.search(queries, 20, approximate=setting).ids)
    assert kept > 0.85


def test_a_target_of_1_is_reached_by_looking_everywhere(plain):
    index, rng = random_index(5, 200, value_bits=4)
    index = index.with_clusters(10)
    asked = rng.standard_normal((20, 12))
    setting = index.tune(1.0, asked, k=10)
    exact = index.search(asked, 10).ids
    assert approximate.share_kept(exact, index.search(asked, 10, approximate=setting).ids) == 1


def test_arguments_are_checked(plain, clustered, queries):
    with pytest.raises(ValueError, match="has no clusters"):
        plain.search(queries, approximate=True)
    with pytest.raises(ValueError, match="has no clusters"):
        plain.tune()
    with pytest.raises(TypeError, match="expected Approximate"):
        clustered.search(queries, approximate=64)
    with pytest.raises(ValueError, match="clusters is 0"):
        sr.Approximate(clusters=0)
    with pytest.raises(TypeError, match="rerank"):
        sr.Approximate(rerank=1.5)
    with pytest.raises(ValueError, match="clusters for"):
        plain.with_clusters(len(plain) + 1)
    with pytest.raises(TypeError, match="target"):
        clustered.tune("high")
    with pytest.raises(ValueError, match="queries are empty"):
        clustered.tune(queries=queries[:0])
    sparse = sr.SparseIndex.from_codes(sr.SparseCodes([[0, 1]], [[1, 2]], dim=4))
    with pytest.raises(ValueError, match="compares embeddings"):
        sparse.with_clusters()
    with pytest.raises(ValueError, match="compares embeddings"):
        sr.SparseIndex.from_codes(sr.SparseCodes([[0, 1]], [[1, 2]], dim=4), approximate=True)
    everyway, _ = random_index(2, 50, modes=("sparse", "dense"))
    everyway = everyway.with_clusters(4)
    codes = sr.SparseCodes([[0, 1]], [[1, 2]], dim=40)
    with pytest.raises(ValueError, match="exact search alone"):
        everyway.search(codes, mode="sparse", approximate=True)


def test_false_and_none_are_exact_search(clustered, queries):
    exact = clustered.search(queries, 5)
    assert_same_bytes(clustered.search(queries, 5, approximate=False), exact)
    assert_same_bytes(clustered.search(queries, 5, approximate=None), exact)


def test_an_interrupt_ends_clustering(plain):
    class StopError(Exception):
        pass

    def stop(done):
        raise StopError

    with pytest.raises(StopError):
        plain.with_clusters(2000, progress=stop)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Header and sections of a small clustered and tuned file."""
    index, rng = random_index(3, 90, value_bits=4, metric="cosine")
    index = index.with_clusters(6)
    asked = rng.standard_normal((8, 12))
    index.tune(0.9, asked, k=5)
    path = tmp_path_factory.mktemp("parts") / "a.sridx"
    index.save(path)
    header, sections = sridx_spec.read(path)
    return header, sections, asked


def test_the_file_is_as_the_specification_says(parts):
    header, sections, _ = parts
    required = {s["name"]: s["required"] for s in header["sections"]}
    assert not any(required[name] for name in (*CLUSTER_SECTIONS, "tuned"))
    starts, rows = sections["cluster_starts"], sections["cluster_rows"]
    assert sorted(rows.tolist()) == list(range(90))
    assert starts[0] == 0
    assert starts[-1] == 90
    # each row is nearest to its own centroid, and its sketch is near to what it has beyond it
    w = sections["dictionary"].astype(np.float64)
    scales = sections["scales_embedding"].astype(np.float64)
    unit = next(s["unit"] for s in header["sections"] if s["name"] == "scales_embedding")
    decoded = np.array(
        [
            sum(level * w[latent] for latent, level in pairs) * scale * unit
            for pairs, scale in zip(sridx_spec.rows(header, sections), scales, strict=True)
        ]
    )
    levels = sections["cluster_centroids"].view(np.int8).astype(np.float64)
    centroids = levels * sections["cluster_scales"][:, :1]
    owners = np.repeat(np.arange(6), np.diff(starts))
    products = decoded[rows] @ centroids.T
    own = products[np.arange(90), owners]
    # centroids were compared before they were rounded to 8 bits: 1/127/2 of the largest number
    assert (own >= products.max(axis=1) - 0.02).all()
    for c in range(6):
        share = sections["cluster_scales"][c, 1]
        np.testing.assert_allclose(own[owners == c].mean(), share, atol=0.02)
    sketches = sridx_spec.sketches(header, sections)
    base = sections["cluster_scales"][owners, 1:] * centroids[owners]
    residual = decoded[rows] - base
    assert np.square(residual - sketches).sum() < 0.3 * np.square(residual).sum()


HOSTILE = {
    "cluster_starts": [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"],
    "cluster_rows": [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00"],
    "cluster_scales": [np.float32(np.nan).tobytes(), np.float32(np.inf).tobytes()],
    "sketch_levels": [np.float32(np.inf).tobytes(), np.float32(np.nan).tobytes()],
    "tuned": [b"null", b"{{{{"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_found_by_verify_and_survived_by_search(tmp_path, parts, name):
    header, sections, asked = parts
    path = tmp_path / "hostile.sridx"
    for word in HOSTILE[name]:
        for at in (0, 4, len(sections[name].tobytes()) // 8 * 4):
            raw = {key: value.tobytes() for key, value in sections.items()}
            damaged = bytearray(raw[name])
            damaged[at : at + 4] = word
            if bytes(damaged[: len(raw[name])]) == raw[name]:
                continue
            raw[name] = bytes(damaged[: len(raw[name])])
            path.write_bytes(sridx_spec.assemble(header, raw))
            for mmap in (True, False):
                index = sr.SparseIndex.open(path, mmap=mmap)
                for setting in (sr.Approximate(2, 10), everything(index)):
                    found = index.search(asked, 90, approximate=setting)
                    for row in found.ids:
                        ids = row[row >= 0]
                        assert len(set(ids.tolist())) == len(ids)
                with pytest.raises(sr.IndexFormatError, match=name.partition("_")[0]):
                    index.verify()


def test_any_bytes_in_the_sections_of_approximate_search_are_survived(tmp_path, parts):
    header, sections, asked = parts
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.sridx"
    for name in CLUSTER_SECTIONS:
        for _ in range(8):
            raw = {key: value.tobytes() for key, value in sections.items()}
            raw[name] = rng.bytes(len(raw[name]))
            path.write_bytes(sridx_spec.assemble(header, raw))
            index = sr.SparseIndex.open(path)
            found = index.search(asked, 20, approximate=sr.Approximate(3, 30))
            assert ((found.ids >= -1) & (found.ids < 90)).all()


def test_shapes_that_do_not_fit_and_missing_parts_are_refused(tmp_path, parts):
    header, sections, _ = parts
    raw = {key: value.tobytes() for key, value in sections.items()}
    path = tmp_path / "refused.sridx"

    def refuse(change, match):
        changed = json.loads(json.dumps(header))
        change({section["name"]: section for section in changed["sections"]}, changed)
        path.write_bytes(sridx_spec.assemble(changed, raw))
        with pytest.raises(sr.IndexFormatError, match=match):
            sr.SparseIndex.open(path)

    for name in sorted(CLUSTER_SECTIONS):

        def drop(_, changed, name=name):
            changed["sections"] = [s for s in changed["sections"] if s["name"] != name]

        refuse(drop, f"`{name}` is missing|`{'|'.join(sorted(CLUSTER_SECTIONS))}` is")
        refuse(lambda by_name, _, name=name: by_name[name]["shape"].append(1), name)
        refuse(lambda by_name, _, name=name: by_name[name].update(dtype="i64"), name)

    def other_subspaces(by_name, _):
        by_name["sketch_levels"]["shape"] = [6, 2, 16]

    refuse(other_subspaces, "sketch")


def test_a_tuned_setting_that_is_none_raises_where_it_is_asked_for(tmp_path, parts):
    header, sections, asked = parts
    raw = {key: value.tobytes() for key, value in sections.items()}
    raw["tuned"] = json.dumps({"clusters": 0, "rerank": 1}).encode()
    changed = json.loads(json.dumps(header))
    for section in changed["sections"]:
        if section["name"] == "tuned":
            section["shape"] = [len(raw["tuned"])]
    path = tmp_path / "none.sridx"
    path.write_bytes(sridx_spec.assemble(changed, raw))
    index = sr.SparseIndex.open(path)
    assert index.search(asked, 5, approximate=sr.Approximate(2, 10)).ids.shape == (8, 5)
    with pytest.raises(sr.IndexFormatError, match="tuned"):
        index.search(asked, 5, approximate=True)


def test_clusters_are_kept_when_a_file_is_read_and_written_again(tmp_path, clustered):
    first, second = tmp_path / "first.sridx", tmp_path / "second.sridx"
    clustered.save(first)
    sr.SparseIndex.open(first).save(second)
    assert first.read_bytes() == second.read_bytes()
