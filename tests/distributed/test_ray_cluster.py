"""Several machines, played by several Ray nodes of this one: a machine goes, another comes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

import sparse_retrieval as sr
from sparse_retrieval.distributed import ShardedIndex, split

pytestmark = pytest.mark.filterwarnings("ignore")


def settled(index: ShardedIndex, expected: list[int]) -> None:
    """All replicas answer, none twice on a machine, and machines hold as many as expected."""
    end = time.monotonic() + 60
    while True:  # Ray takes its time to see that a machine is gone
        shards = index.health()["shards"]
        nodes = [[r["node"] for r in shard["replicas"] if r["alive"]] for shard in shards]
        apart = all(len(set(here)) == len(here) == 2 for here in nodes)
        held = sorted(Counter(node for here in nodes for node in here).values())
        if apart and held == expected:
            return
        assert time.monotonic() < end, f"{held} instead of {expected}, apart: {apart}"
        time.sleep(1)


def test_a_lost_machine_is_made_up_for_and_a_new_one_gets_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(np.arange(300).reshape(100, 3) % 40, rng.normal(size=(100, 3)), dim=40)
    sr.SparseIndex.from_codes(codes).save(tmp_path / "items.sridx")
    one = sr.SparseIndex.open(tmp_path / "items.sridx")
    expected = one.search(codes[:9], 12)
    paths = split(tmp_path / "items.sridx", tmp_path / "shards", 3)
    cluster = Cluster(
        initialize_head=True,
        connect=True,  # to the head, the only node there is by now: it stays
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with ShardedIndex(paths, replicas=2, threads=1) as index:

            def same() -> None:
                found = index.search(codes[:9], 12)
                assert found.scores.tobytes() == expected.scores.tobytes()
                assert found.ids.tobytes() == expected.ids.tobytes()

            same()
            settled(index, [3, 3])
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            settled(index, [3, 3])  # a new machine holds nothing by itself
            cluster.remove_node(second, allow_graceful=False)
            same()
            settled(index, [3, 3])
            same()
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            assert index.rebalance() == 2
            settled(index, [2, 2, 2])
            same()
            assert index.rebalance() == 0
    finally:
        ray.shutdown()
        cluster.shutdown()
