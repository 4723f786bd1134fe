"""Encoding Parquet files with real Ray Data: what one process would encode, and no block twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import sparse_retrieval as sr
from sparse_retrieval.distributed import ShardedIndex, encode

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Data warns of its own doings
N, D = 400, 12


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def dictionary() -> sr.Dictionary:
    atoms = np.random.default_rng(0).standard_normal((50, D))
    return sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("x")
    x = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    for number, rows in enumerate((x[:250], x[250:])):
        first = 250 * number
        table = pa.table(
            {
                "sku": [f"sku {first + i}" for i in range(len(rows))],
                "x": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=50)
    return folder, x


OPTIONS = {"metric": "cosine", "value_bits": 4, "modes": ["dense", "sparse"], "unit_items": True}


def test_shards_are_those_that_one_process_would_write(data, dictionary, tmp_path):
    folder, x = data
    paths = encode(folder, dictionary, tmp_path, k=5, id_column="sku", block_rows=100, **OPTIONS)
    assert [len(sr.SparseIndex.open(path)) for path in paths] == [100, 100, 50, 100, 50]
    whole = sr.SparseIndex.from_codes(
        dictionary.encode(x, k=5),
        dictionary=dictionary,
        ids=[f"sku {i}" for i in range(N)],
        **OPTIONS,
    )
    queries = x[::17] + 0.1
    expected = whole.search(queries, 8)
    sr.merge(paths, tmp_path / "merged.sridx")
    merged = sr.SparseIndex.open(tmp_path / "merged.sridx").search(queries, 8)
    with ShardedIndex(paths, threads=1) as index:
        found = index.search(queries, 8)
    for result in (merged, found):
        assert result.ids.tolist() == expected.ids.tolist()
        assert result.scores.tobytes() == expected.scores.tobytes()


def test_finished_blocks_are_not_done_again_and_the_rest_comes_out_the_same(
    data, dictionary, tmp_path
):
    folder, _ = data
    paths = encode(folder, dictionary, tmp_path, k=5, block_rows=100, **OPTIONS)
    bytes_before = [path.read_bytes() for path in paths]
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    paths[3].unlink()
    assert encode(folder, dictionary, tmp_path, k=5, block_rows=100, **OPTIONS) == paths
    assert [path.read_bytes() for path in paths] == bytes_before
    again = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(again, stamps, strict=True)] == [True, False, True, False, True]
    with pytest.raises(ValueError, match=r"another encoding \(its settings differ\)"):
        encode(folder, dictionary, tmp_path, k=6, block_rows=100, **OPTIONS)


def test_parquet_out_holds_the_codes(data, dictionary, tmp_path):
    folder, x = data
    paths = encode(folder, dictionary, tmp_path, k=5, output="parquet", block_rows=1000)
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    codes = dictionary.encode(x, k=5)
    assert table["id"].to_pylist() == list(range(N))
    lists = table["latents"].combine_chunks()
    assert lists.flatten().to_numpy().tolist() == codes.latents.tolist()
    values = table["values"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(values, codes.values)


def test_a_bad_row_is_named_and_what_was_done_stays(data, dictionary, tmp_path):
    _, x = data
    rows = x[:100].copy()
    rows[77, 3] = np.nan
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D)})
    pq.write_table(table, tmp_path / "bad.parquet", row_group_size=50)
    with pytest.raises(ValueError, match=r"block 1 \(items 50 to 99 .*row 27"):
        encode(tmp_path / "bad.parquet", dictionary, tmp_path / "out", k=5, block_rows=50)
    assert [path.name for path in tmp_path.glob("out/block-*")] == ["block-00000.sridx"]
    pq.write_table(
        pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x[:100].ravel()), D)}),
        tmp_path / "good.parquet",
    )
    with pytest.raises(ValueError, match="another encoding"):
        encode(tmp_path / "good.parquet", dictionary, tmp_path / "out", k=5, block_rows=50)
