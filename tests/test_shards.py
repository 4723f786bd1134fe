"""Shards of an index and how their answers are put together, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
from sparse_retrieval.distributed import merging, split
from sparse_retrieval.distributed.encoding import Block, _blocks
from sparse_retrieval.distributed.shards import NotOpenError, Replica, Shard, Wish


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_merged_parts_are_the_stable_sort_of_everything(sizes, k, seed):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    scores = rng.integers(-2, 3, size=(3, n)).astype(np.float64)  # many are equal
    scores[scores == 0] *= -1  # and zeros of both signs
    bounds = np.cumsum([0, *sizes])
    parts = []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        order = first + np.argsort(-scores[:, first:last], axis=1, kind="stable")[:, :k]
        parts.append((np.take_along_axis(scores, order, axis=1), order))
    found, ids = merging.merge(parts, k)
    for row in range(3):  # the oracle: sort by score, then by position
        expected = sorted(range(n), key=lambda at: (-scores[row, at], at))[:k]
        assert ids[row].tolist() == expected
        assert found[row].tolist() == [scores[row, at] for at in expected]


def build(path: Path, ids: object = None, n: int = 500) -> sr.SparseIndex:
    rng = np.random.default_rng(3)
    atoms = rng.standard_normal((60, 16))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    support = np.argsort(rng.random((n, 60)), axis=1)[:, :6]
    codes = sr.SparseCodes(support, rng.integers(1, 4, (n, 6)), dim=60)  # equal scores happen
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


@pytest.mark.parametrize("n_shards", [1, 3, 7])
@pytest.mark.parametrize("mode", ["dense", "sparse", "reconstructed"])
def test_shards_of_an_index_answer_together_as_the_index(tmp_path, n_shards, mode):
    index = build(tmp_path / "items.sridx")
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", n_shards)
    assert [path.name for path in paths] == [f"shard-{i:05d}.sridx" for i in range(n_shards)]
    assert sum(len(sr.SparseIndex.open(path)) for path in paths) == len(index)
    queries = np.random.default_rng(1).standard_normal((20, 16))
    asked = index.dictionary.encode(queries, k=6) if mode != "dense" else queries
    wish = Wish(mode, threads=1)
    scores, ids = merging.merge([Shard(path).search(asked, 25, wish) for path in paths], 25)
    found = index.search(asked, 25, mode=mode)
    assert ids.tobytes() == found.ids.tobytes()
    assert (scores.astype(np.float32) + np.float32(0)).tobytes() == found.scores.tobytes()


@pytest.mark.parametrize("ids", [None, [f"sku {i}" for i in range(500)]], ids=["numbers", "text"])
def test_candidates_of_shards_are_the_positions_and_ids_of_the_index(tmp_path, ids):
    index = build(tmp_path / "items.sridx", ids=ids)
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", 3)
    sizes = [len(sr.SparseIndex.open(path)) for path in paths]
    offsets = np.cumsum([0, *sizes])[:-1].tolist()
    items = merging.Candidates(index.metric, index.embedding_dim, offsets, len(index))
    queries = np.random.default_rng(1).standard_normal((20, 16))
    for k in (1, 40, 900):
        parts = [Shard(path).candidates(queries, k, Wish("dense", threads=1)) for path in paths]
        positions = items.merged(parts, k)
        expected = index.search(queries, k).ids
        expected = expected[:, : min(k, 500)]
        assert positions.shape == expected.shape
        assert list(items.ids_at(positions.ravel().astype(np.uint64))) == expected.ravel().tolist()
        assert index.ids[positions].tolist() == expected.tolist()


def test_shards_of_strings_and_a_merge_give_the_index_back(tmp_path):
    index = build(tmp_path / "items.sridx", ids=[f"sku {i}" for i in range(500)])
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", 4)
    assert sr.merge(paths, tmp_path / "merged.sridx") == 500
    merged = sr.SparseIndex.open(tmp_path / "merged.sridx")
    assert merged.ids.tolist() == index.ids.tolist()
    assert Shard(paths[1]).contains(["sku 124", "sku 125", "sku 250"]).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="500 items do not fill 501 shards"):
        split(tmp_path / "items.sridx", tmp_path / "more", 501)


def test_a_replica_tells_why_it_is_not_open_and_refuses_another_file(tmp_path):
    with pytest.raises(NotOpenError) as missing:
        Replica(str(tmp_path / "none.sridx")).call("info")
    assert isinstance(missing.value.error, FileNotFoundError)
    build(tmp_path / "a.sridx")
    content = Replica(str(tmp_path / "a.sridx")).call("info")["content"]
    assert Replica(str(tmp_path / "a.sridx"), content=content).call("info")["items"] == 500
    index = sr.SparseIndex.open(tmp_path / "a.sridx")
    index.remove([4])
    index.commit()
    with pytest.raises(NotOpenError, match="is another file than when"):
        Replica(str(tmp_path / "a.sridx"), content=content).call("info")


def test_blocks_are_runs_of_row_groups(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, rows, group in (("a", 25, 10), ("b", 0, 10), ("c", 12, 4)):
        table = pa.table({"x": pa.array([[1.0, 2.0]] * rows, type=pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group)
    files = sorted(tmp_path.glob("*.parquet"))
    assert _blocks(files, 8) == [
        Block(0, str(files[0]), 0, 1, 0, 10),
        Block(1, str(files[0]), 1, 1, 10, 10),
        Block(2, str(files[0]), 2, 1, 20, 5),
        Block(3, str(files[2]), 0, 2, 25, 8),
        Block(4, str(files[2]), 2, 1, 33, 4),
    ]
    assert [block.rows for block in _blocks(files, 100)] == [25, 12]
    with pytest.raises(ValueError, match="no rows"):
        _blocks([files[1]], 8)


def test_without_ray_both_say_which_extra_to_install(run_python):
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'ray':\n"
        "            raise ModuleNotFoundError('No module named ray', name='ray')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import sparse_retrieval.distributed as d\n"
        "for call in (lambda: d.ShardedIndex(['a']), lambda: d.encode('a', None, 'b')):\n"
        "    try:\n"
        "        call()\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install 'sparse_retrieval[ray]'") == 2
