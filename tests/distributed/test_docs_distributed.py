"""The examples of docs/distributed.md, on real Ray."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import sparse_retrieval as sr

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((300, 48)).astype(np.float32)
    skus = [f"sku {i}" for i in range(300)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 48)
    Path("embeddings").mkdir()
    pq.write_table(pa.table({"sku": skus, "x": vectors}), "embeddings/a.parquet")
    sr.Dictionary.fit(x, n_atoms=64, k=4, rounds=2).save("dictionary.safetensors")
    names = {"queries": x[:3], "in_stock": skus[:200], "seen": [["sku 1"], [], ["sku 2", "sku 3"]]}
    examples = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(examples) == 2
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        exec(examples[0], names)
        sr.merge(names["paths"], "items.sridx")
        exec(examples[1], names)
    finally:
        ray.shutdown()
    index = sr.SparseIndex.open("items.sridx")
    expected = index.search(x[:3], k=10, filter=names["in_stock"], exclude=names["seen"])
    assert names["ids"].tolist() == expected.ids.tolist()
    assert names["scores"].tobytes() == expected.scores.tobytes()
