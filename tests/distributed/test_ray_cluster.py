"""Several machines, played by several Ray nodes of this one: a machine goes, another comes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

import sparse_retrieval as sr
from sparse_retrieval.distributed import ShardedIndex, split

pytestmark = pytest.mark.filterwarnings("ignore")


def spread(index: ShardedIndex) -> list[int]:
    """Replicas a machine, and none of a shard's twice on one."""
    shards = index.health()["shards"]
    assert all(r["alive"] for shard in shards for r in shard["replicas"])
    for shard in shards:
        nodes = [r["node"] for r in shard["replicas"]]
        assert len(set(nodes)) == len(nodes), "both replicas on one machine"
    return sorted(Counter(r["node"] for s in shards for r in s["replicas"]).values())


def test_a_lost_machine_is_made_up_for_and_a_new_one_gets_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(np.arange(300).reshape(100, 3) % 40, rng.normal(size=(100, 3)), dim=40)
    sr.SparseIndex.from_codes(codes).save(tmp_path / "items.sridx")
    one = sr.SparseIndex.open(tmp_path / "items.sridx")
    expected = one.search(codes[:9], 12)
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", 3)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=1)
        with ShardedIndex(paths, replicas=2, address=cluster.address, threads=1) as index:

            def same() -> None:
                found = index.search(codes[:9], 12)
                assert found.scores.tobytes() == expected.scores.tobytes()
                assert found.ids.tobytes() == expected.ids.tobytes()

            same()
            assert spread(index) == [3, 3]
            third = cluster.add_node(num_cpus=1)
            cluster.remove_node(second, allow_graceful=False)
            same()
            index.health()  # finds those that nobody has asked since
            assert spread(index) == [3, 3]
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            assert spread(index) == [3, 3], "a new machine holds nothing by itself"
            assert index.rebalance() >= 1
            assert sorted(spread(index)) == [2, 2, 2]
            same()
            assert index.rebalance() == 0
            assert third is not None
    finally:
        cluster.shutdown()
