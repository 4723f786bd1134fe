"""Shards on real Ray actors: the answers of one index, also while actors die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import sparse_retrieval as sr
from sparse_retrieval import approximate
from sparse_retrieval.distributed import ShardedIndex, split

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
N, D = 600, 16
QUERIES = np.random.default_rng(1).standard_normal((30, D)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def build(path: Path, ids: object) -> sr.SparseIndex:
    rng = np.random.default_rng(3)
    atoms = rng.standard_normal((60, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    support = np.argsort(rng.random((N, 60)), axis=1)[:, :6]
    codes = sr.SparseCodes(support, rng.integers(1, 4, (N, 6)), dim=60)
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=sr.Dictionary(atoms),
        ids=ids,
        metric="cosine",
        value_bits=4,
        modes=("sparse", "dense", "reconstructed"),
    )
    index.save(path)
    return index


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> sr.SparseIndex:
    path = tmp_path_factory.mktemp("one") / "items.sridx"
    build(path, np.arange(N) * 10)
    return sr.SparseIndex.open(path)


@pytest.fixture(scope="module")
def paths(one: sr.SparseIndex) -> list[Path]:
    return split(one.path, one.path.parent / "shards", 3)


@pytest.fixture(scope="module")
def sharded(paths: list[Path]) -> Iterator[ShardedIndex]:
    with ShardedIndex(paths, replicas=2, threads=1) as index:
        yield index


def same(found: sr.SearchResult, expected: sr.SearchResult) -> None:
    assert found.scores.dtype == expected.scores.dtype
    assert found.scores.tobytes() == expected.scores.tobytes()
    if expected.ids.dtype == object:
        assert found.ids.tolist() == expected.ids.tolist()
    else:
        assert found.ids.tobytes() == expected.ids.tobytes()
    assert found.ids.shape == expected.ids.shape


MASK = np.random.default_rng(5).random(N) < 0.3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 1000},
        {"mode": "sparse"},
        {"mode": "reconstructed", "k_row": 3},
        {"filter": [0, 10, 5990, 2000, 2010]},
        {"filter": []},
        {"filter": MASK},
        {"filter": sr.Bitmap.from_mask(MASK)},
        {"exclude": [[q * 10, 3000 + q * 10] for q in range(30)]},
        {"exclude": np.where(np.arange(60).reshape(30, 2) % 3 == 0, -1, 50)},
        {"filter": MASK, "exclude": [[q * 10] for q in range(30)], "k": 200},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_answers_are_those_of_one_index_byte_for_byte(sharded, one, options):
    options = {"k": 20, **options}
    same(sharded.search(QUERIES, **options), one.search(QUERIES, **options))


def test_codes_single_queries_and_strings_too(sharded, one, tmp_path):
    codes = one.get([40, 50, 5990])
    for mode in (None, "sparse", "reconstructed"):
        same(sharded.search(codes, 7, mode=mode), one.search(codes, 7, mode=mode))
    same(sharded.search(QUERIES[0], 5), one.search(QUERIES[0], 5))
    named = build(tmp_path / "named.sridx", [f"sku {i}" for i in range(N)])
    parts = split(tmp_path / "named.sridx", tmp_path / "shards", 2)
    with ShardedIndex(parts, threads=1) as strings:
        same(strings.search(QUERIES, 9), named.search(QUERIES, 9))
        chosen = ["sku 3", "sku 400"]
        same(strings.search(QUERIES, 4, filter=chosen), named.search(QUERIES, 4, filter=chosen))
        lists = [["sku 5"]] + [[]] * 29
        same(strings.search(QUERIES, 4, exclude=lists), named.search(QUERIES, 4, exclude=lists))


VECTORS = np.random.default_rng(9).standard_normal((N, D)).astype(np.float16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"oversample": 1},
        {"k": 700, "oversample": 1.5},
        {"mode": "reconstructed", "k_row": 3},
        {"mode": "sparse", "oversample": 5},
        {"filter": MASK, "exclude": [[q * 10, 3000 + q * 10] for q in range(30)], "k": 150},
        {"filter": [0, 10, 5990], "k": 5},
        {"filter": []},
        {"rescore_ids": np.arange(N)[::-1] * 10},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_rescored_answers_are_those_of_one_index_byte_for_byte(sharded, one, options):
    options = {"k": 12, "rescore": VECTORS, **options}
    expected = one.search(QUERIES, **options)
    same(sharded.search(QUERIES, **options), expected)
    plain = one.search(QUERIES, options["k"], filter=options.get("filter"))
    assert len(options.get("filter", "all")) == 0 or plain.ids.tobytes() != expected.ids.tobytes()


def test_rescoring_reads_files_here_goes_batch_by_batch_and_names_strings(
    sharded, one, tmp_path, monkeypatch
):
    np.save(tmp_path / "x.npy", VECTORS)
    expected = one.search(QUERIES, 9, rescore=VECTORS, exclude=[[10 * q] for q in range(30)])
    # room for 4 queries at once: 27 candidates each, of 16 numbers of 2 bytes
    monkeypatch.setattr("sparse_retrieval.rescoring._BATCH_BYTES", 4 * 27 * D * 2)
    options = {"rescore": tmp_path / "x.npy", "exclude": [[10 * q] for q in range(30)]}
    same(sharded.search(QUERIES, 9, **options), expected)
    same(sharded.search(QUERIES[3], 9, rescore=VECTORS), one.search(QUERIES[3], 9, rescore=VECTORS))
    named = build(tmp_path / "named.sridx", [f"sku {i}" for i in range(N)])
    parts = split(tmp_path / "named.sridx", tmp_path / "shards", 2)
    with ShardedIndex(parts, threads=1) as strings:
        for more in ({}, {"filter": ["sku 3", "sku 400"]}, {"k": 700}):
            options = {"k": 5, "rescore": VECTORS, **more}
            same(strings.search(QUERIES, **options), named.search(QUERIES, **options))


def test_positions_of_vectors_count_what_is_left_after_removals(one, tmp_path):
    parts = split(one.path, tmp_path / "shards", 3)
    gone = np.array([0, 10, 2500, 3990, 5990])
    changed = sr.SparseIndex.open(parts[1])
    changed.remove([2500, 3990])
    changed.commit()  # to the journal: positions in the file have gaps now
    for path, ids in ((parts[0], [0, 10]), (parts[2], [5990])):
        other = sr.SparseIndex.open(path)
        other.remove(ids)
        other.commit()
    left = sr.SparseIndex.open(one.path)
    left.remove(gone)
    vectors = VECTORS[~np.isin(one.ids, gone)]
    with ShardedIndex(parts, threads=1) as index:
        assert len(index) == N - 5
        same(index.search(QUERIES, 9, rescore=vectors), left.search(QUERIES, 9, rescore=vectors))


def test_approximate_search_finds_most_of_the_exact_results_and_with_all_clusters_all(
    real_parts, tmp_path
):
    codes, dictionary, queries = real_parts
    options = {"dictionary": dictionary, "metric": "cosine", "value_bits": 4, "approximate": True}
    index = sr.SparseIndex.from_codes(codes, **options)
    index.save(tmp_path / "items.sridx")
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", 3)
    exact = index.search(queries, 20)
    with ShardedIndex(paths, threads=1) as shards:
        everything = sr.Approximate(10_000, len(index))
        same(shards.search(queries, 20, approximate=everything), exact)
        shares = []
        for setting in (sr.Approximate(1, 20), sr.Approximate(8, 100), True):
            found = shards.search(queries, 20, approximate=setting)
            shares.append(approximate.share_kept(exact.ids, found.ids))
            truth = index.search(queries, len(index))
            for q in range(len(queries)):  # what is found has the score of exact search
                score_of = dict(zip(truth.ids[q].tolist(), truth.scores[q].tolist(), strict=True))
                assert [score_of[i] for i in found.ids[q].tolist()] == found.scores[q].tolist()
        assert shares == sorted(shares)
        assert shares[0] > 0.2
        assert shares[-1] > 0.95
        assert shares[0] < shares[-1], "the setting must reach the shards"
        # rescoring takes the candidates that approximate search found
        decoded = dictionary.decode(codes)
        rescored = shards.search(queries, 20, approximate=everything, rescore=decoded)
        same(rescored, index.search(queries, 20, rescore=decoded))
        for path in paths:  # what a shard was tuned to is what True takes
            shard = sr.SparseIndex.open(path)
            shard.tune(0.5, queries, k=20)
            shard.save(path)
    with ShardedIndex(paths, threads=1) as tuned:
        found = tuned.search(queries, 20, approximate=True)
        assert approximate.share_kept(exact.ids, found.ids) < shares[-1]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"approximate": True}, ValueError, r"shard-00000\.sridx: has no clusters"),
        ({"approximate": 3}, TypeError, "approximate is 3"),
        ({"rescore_ids": [1]}, ValueError, "without rescore"),
        ({"rescore": VECTORS[1:]}, ValueError, r"expected \(600, d\)"),
        ({"rescore": VECTORS[:, 1:]}, ValueError, "rescore has 15 columns"),
        ({"rescore": VECTORS, "oversample": 0.5}, ValueError, "oversample is 0.5"),
        ({"rescore": "none.npy"}, FileNotFoundError, "none.npy"),
        ({"rescore": VECTORS[:1], "rescore_ids": [10]}, ValueError, "rescore_ids lacks the id"),
    ],
)
def test_what_cannot_be_rescored_or_approximated_is_told(sharded, options, error, says):
    with pytest.raises(error, match=says):
        sharded.search(QUERIES, **options)
    with pytest.raises(ValueError, match="it needs embeddings"):
        sharded.search(sr.SparseCodes([[0]], [[1.0]], dim=60), rescore=VECTORS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": QUERIES[:, :3]}, "queries have 3 columns"),
        ({"queries": np.full((1, D), np.nan)}, "row 0 holds nan"),
        ({"queries": QUERIES, "k": 0}, "k is 0"),
        ({"queries": QUERIES, "filter": [10, 11]}, "filter holds 11, which is no item's id"),
        ({"queries": QUERIES[:1], "exclude": [[12]]}, "exclude holds 12"),
        ({"queries": QUERIES, "filter": MASK[1:]}, "mask of shape"),
        ({"queries": QUERIES, "mode": "exact"}, "mode is 'exact'"),
    ],
)
def test_bad_arguments_are_told_as_by_one_index(sharded, options, says):
    with pytest.raises(ValueError, match=says):
        sharded.search(**options)


def pids(index: ShardedIndex) -> list[list[int]]:
    return [[r["pid"] for r in shard["replicas"]] for shard in index.health()["shards"]]


def test_actors_that_are_killed_are_replaced_and_no_answer_changes(paths, one):
    expected = one.search(QUERIES, 10)
    with ShardedIndex(paths, replicas=2, threads=1) as index:
        before = pids(index)
        stop, wrong, errors, done = threading.Event(), [], [], [0, 0, 0]

        def ask(caller: int) -> None:
            while not stop.is_set():
                try:
                    found = index.search(QUERIES, 10)
                    if found.ids.tobytes() != expected.ids.tobytes():
                        wrong.append(found)
                    if found.scores.tobytes() != expected.scores.tobytes():
                        wrong.append(found)
                    done[caller] += 1
                except Exception as error:
                    errors.append(error)

        callers = [threading.Thread(target=ask, args=(at,)) for at in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        os.kill(before[0][0], signal.SIGKILL)  # one replica, as if out of memory
        for pid in before[1]:
            os.kill(pid, signal.SIGKILL)  # all of a shard at once
        ray.kill(index._shards[2].replicas[0].actor)  # through Ray
        reached = list(done)
        end = time.monotonic() + 120
        # two more each: the first of them may have been under way when the actors died
        while any(now < then + 2 for now, then in zip(done, reached, strict=True)):
            assert time.monotonic() < end, "searches did not go on"
            time.sleep(0.1)
        stop.set()
        for caller in callers:
            caller.join(60)
        assert not errors
        assert not wrong
        index.health()  # replaces those that nobody has asked since
        health = index.health()
        after = [[r["pid"] for r in shard["replicas"]] for shard in health["shards"]]
        assert all(len(replicas) == 2 for replicas in after), "as many as before"
        assert all(r["alive"] for shard in health["shards"] for r in shard["replicas"])
        assert health["restarts"] >= 3
        gone = {before[0][0], *before[1]}
        assert not gone & {pid for replicas in after for pid in replicas}
        same(index.search(QUERIES, 10), expected)


def test_a_missing_or_foreign_shard_is_told_at_once(paths, one, tmp_path):
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"none\.sridx"):
        ShardedIndex([*paths, tmp_path / "none.sridx"])
    other = sr.SparseCodes([[0, 2]], [[0.5, -1.0]], dim=4)
    sr.SparseIndex.from_codes(other).save(tmp_path / "other.sridx")
    with pytest.raises(ValueError, match=r"other\.sridx: its dim is not that of"):
        ShardedIndex([*paths, tmp_path / "other.sridx"])
    assert time.monotonic() - begun < 60
    with pytest.raises(ValueError, match="paths is empty"):
        ShardedIndex([])


def test_a_shard_that_was_replaced_is_refused_when_a_replica_comes_back(one, tmp_path):
    parts = split(one.path, tmp_path / "shards", 2)
    with ShardedIndex(parts, threads=1) as index:
        expected = index.search(QUERIES, 3)
        smaller = sr.SparseIndex.open(parts[0])
        smaller.remove([0])
        smaller.save(parts[0])
        same(index.search(QUERIES, 3), expected)  # the old file is still mapped
        os.kill(pids(index)[0][0], signal.SIGKILL)
        with pytest.raises(ValueError, match="is another file than when the shards were opened"):
            index.search(QUERIES, 3)
