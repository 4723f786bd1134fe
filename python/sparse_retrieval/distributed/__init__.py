"""Beyond one process: encode with Ray Data, and search shards that Ray actors hold.

One machine or a cluster, by the same calls; needs the extra ``ray``. ``shards`` cuts an index
into files and holds one of them, ``merging`` puts their answers together, and neither knows of
Ray; ``replicas`` keeps actors with the shards alive, ``cluster`` searches them as one index,
``encoding`` encodes files block by block.
"""

from __future__ import annotations

from sparse_retrieval.distributed.cluster import ShardedIndex
from sparse_retrieval.distributed.encoding import encode
from sparse_retrieval.distributed.shards import split

__all__ = ["ShardedIndex", "encode", "split"]
