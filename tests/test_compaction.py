"""Postings and clusters are there again after changes were folded in, and after a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparse_retrieval as sr

DIM, D, K = 48, 24, 6
EVERY: tuple[Any, ...] = ("sparse", "reconstructed", "dense")
ATOMS = np.random.default_rng(0).standard_normal((DIM, D))
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)
DICTIONARY = sr.Dictionary(ATOMS.astype(np.float16).astype(np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.sridx"


def codes_of(n: int, seed: int) -> sr.SparseCodes:
    rng = np.random.default_rng(seed)
    support = rng.permuted(np.tile(np.arange(DIM), (n, 1)), axis=1)[:, :K]
    return sr.SparseCodes(support, rng.standard_normal((n, K)), dim=DIM)


def full(n: int, seed: int, **options: Any) -> sr.SparseIndex:
    """An index with postings of small blocks, and with clusters."""
    return sr.SparseIndex.from_codes(
        codes_of(n, seed),
        dictionary=DICTIONARY,
        modes=EVERY,
        value_bits=4,
        metric="cosine",
        postings=100,
        approximate=True,
        **options,
    )


def same(one: sr.SearchResult, two: sr.SearchResult) -> None:
    assert one.scores.tobytes() == two.scores.tobytes()
    assert one.ids.tolist() == two.ids.tolist()


def check_whole(index: sr.SparseIndex, clusters: int) -> None:
    """It has what it should have, sound, and answers by it."""
    index.verify()
    postings = index.stats()["postings"]
    assert postings is not None
    assert postings["block_items"] == 100
    assert index.n_clusters == clusters
    queries = np.random.default_rng(3).standard_normal((7, D))
    everything = sr.Approximate(clusters=clusters, rerank=len(index))
    same(index.search(queries, 20, approximate=everything), index.search(queries, 20))
    coded = codes_of(1, 5)
    assert index.explain(coded, 5, mode="sparse")["way"] == "postings"


def test_saving_changes_keeps_postings_clusters_and_what_was_tuned(path):
    full(700, 1, ids=np.arange(700)).save(path)
    index = sr.SparseIndex.open(path)
    clusters = index.n_clusters
    index.tune(0.9, np.random.default_rng(4).standard_normal((20, D)), k=10)
    index.save(path)
    index = sr.SparseIndex.open(path)
    tuned = index.tuned
    assert tuned is not None
    index.remove(np.arange(0, 700, 3))
    index.add(codes_of(60, 2), ids=np.arange(60) + 1000)
    before = {mode: index.search(codes_of(5, 6), 30, mode=mode) for mode in EVERY[:2]}
    index.save(path)
    for reader in (index, sr.SparseIndex.open(path)):
        check_whole(reader, clusters)
        assert reader.tuned == tuned
        for mode, expected in before.items():
            same(reader.search(codes_of(5, 6), 30, mode=mode), expected)
    # to those who find only the nearest clusters the file is as good as a new one
    queries = np.random.default_rng(7).standard_normal((50, D))
    exact = index.search(queries, 10).ids
    setting = sr.Approximate(clusters=clusters // 3, rerank=60)
    anew = index.with_clusters(clusters)
    kept, learnt = (
        np.mean([np.isin(a, b).mean() for a, b in zip(got, exact, strict=True)])
        for got in (i.search(queries, 10, approximate=setting).ids for i in (index, anew))
    )
    assert kept > learnt - 0.1
    assert kept > 0.5


def test_clusters_are_learnt_anew_where_there_are_many_more_or_fewer_items(path):
    full(400, 1, ids=np.arange(400)).save(path)
    clusters = sr.SparseIndex.open(path).n_clusters
    index = sr.SparseIndex.open(path)
    index.add(codes_of(1200, 2), ids=np.arange(1200) + 1000)
    index.save(path)
    check_whole(sr.SparseIndex.open(path), 2 * clusters)
    index.remove(index.ids[:1500])
    index.save(path)
    check_whole(sr.SparseIndex.open(path), clusters // 2)
    index.remove(index.ids)
    index.save(path)
    empty = sr.SparseIndex.open(path)
    empty.verify()
    assert (len(empty), empty.n_clusters) == (0, 0)


def test_merging_makes_postings_and_clusters_where_one_file_has_them(path):
    plain = path.with_name("plain.sridx")
    big = path.with_name("big.sridx")
    base = full(500, 1, ids=np.arange(500))
    base.save(big)
    with sr.IndexWriter(
        plain, dictionary=DICTIONARY, modes=EVERY, value_bits=4, metric="cosine", codebooks=base
    ) as writer:
        writer.add(codes_of(300, 2), ids=np.arange(300) + 1000)
    assert sr.merge([plain, big], path) == 800
    merged = sr.SparseIndex.open(path)
    check_whole(merged, base.n_clusters)
    assert merged.ids.tolist() == [*range(1000, 1300), *range(500)]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "big.sridx",
        "items.sridx",
        "plain.sridx",
    ]
    sr.merge([plain], path)
    alone = sr.SparseIndex.open(path)
    assert alone.stats()["postings"] is None
    assert alone.n_clusters == 0


@pytest.mark.parametrize("strings", [False, True])
def test_postings_and_clusters_of_a_changed_index_are_those_of_what_is_saved(path, strings):
    names: Any = [f"n{i}" for i in range(350)] if strings else np.arange(350) * 3
    base = sr.SparseIndex.from_codes(
        codes_of(300, 1), dictionary=DICTIONARY, modes=EVERY, value_bits=8, ids=names[:300]
    )
    base.save(path)
    index = sr.SparseIndex.open(path)
    index.add(codes_of(50, 2), ids=names[300:])
    index.remove(names[:7])
    ids = index.ids.tolist()
    posted, clustered = index.with_postings(64), index.with_clusters(5)
    for made in (posted, clustered):
        made.verify()
        assert made.path is None
        assert made.ids.tolist() == ids
        assert made.stats()["changes"]["added"] == 0
        same(made.search(codes_of(4, 9), 20), index.search(codes_of(4, 9), 20))
    assert index.stats()["changes"] == {
        "added": 50,
        "removed": 7,
        "uncommitted": True,
        "journal_bytes": 0,
    }
    index.save(path)
    saved, other = path.with_name("saved"), path.with_name("other")
    for made, again in (
        (posted, sr.SparseIndex.open(path).with_postings(64)),
        (clustered, sr.SparseIndex.open(path).with_clusters(5)),
    ):
        made.save(saved)
        again.save(other)
        assert saved.read_bytes() == other.read_bytes()


def test_tuning_a_changed_index_is_refused(path):
    full(300, 1).save(path)
    index = sr.SparseIndex.open(path)
    index.add(codes_of(1, 2))
    with pytest.raises(ValueError, match="save it, and tune the opened file"):
        index.tune(0.9, np.random.default_rng(4).standard_normal((20, D)), k=10)


def test_changes_go_on_while_another_thread_saves_with_clusters(path):
    # saving holds the index's lock while clusters are made on many threads: a thread of the
    # shared pools that waited for them could be given the change, and wait for itself
    import threading

    full(3000, 1, ids=np.arange(3000)).save(path)
    index = sr.SparseIndex.open(path)
    done = threading.Event()

    def change() -> None:
        for i in range(60):
            index.add(codes_of(2, i), ids=[10_000 + 2 * i, 10_001 + 2 * i])
            index.remove([10_000 + 2 * i])
        done.set()

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    saves = 0
    while not done.is_set() and saves < 200:
        index.save(path)
        saves += 1
    assert done.wait(60)
    assert saves > 0
    index.save(path)
    assert len(sr.SparseIndex.open(path)) == 3060
    sr.SparseIndex.open(path).verify()
