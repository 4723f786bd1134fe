"""Install each extra alone in an empty environment, and use what it is for.

    python tools/check_extras.py WHEEL [--only cli,parquet] [--skip train]

Every extra of ``pyproject.toml`` but ``dev`` is checked, and one without a check here is an error.
The empty environment has this wheel, the extra and what that needs, nothing else: so a library that
is used but not asked for is found out. Without any extra the package must do with numpy.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

#: What every check begins with: some embeddings, a folder to write to, a small index.
COMMON = """
import pathlib, subprocess, sys, os
import numpy as np
import sparse_retrieval as sr
x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
index = sr.SparseIndex.from_embeddings(x, k=6, n_atoms=48, rounds=2)
index.save("items.sridx")
codes = index.get(np.arange(20))
np.save("x.npy", x)
program = str(pathlib.Path(sys.executable).with_name("sparse-retrieval"))
"""
SERVE = """
import json, urllib.request
process = subprocess.Popen(
    [program, {command!r}, "items.sridx", "--port", "0"], stdout=subprocess.PIPE, text=True
)
url = process.stdout.readline().rpartition(" at ")[2].strip()
body = json.dumps({{"queries": x[:2].tolist(), "k": 3}}).encode()
found = json.load(urllib.request.urlopen(urllib.request.Request(url + "/search", body)))
assert [one["ids"] for one in found["results"]] == index.search(x[:2], 3).ids.tolist()
assert b"requests_total" in urllib.request.urlopen(url + "/metrics").read()
process.terminate()
assert process.wait(60) == 0
"""
CHECKS = {
    "": """
index.search(x[:3], 3)
try:
    codes.to_scipy()
    raise SystemExit("scipy should not be here")
except ImportError as error:
    assert "pip install 'sparse_retrieval[" in str(error)
""",
    "train": """
model = sr.CompresSAE(input_dim=16, hidden_dim=64, k=4)
sr.train(model, x, steps=3, batch_size=64, progress=False)
model.save_pretrained("model")
sr.CompresSAE.from_pretrained("model").sparse_codes(x)
""",
    "cli": """
subprocess.run([program, "compress", "x.npy", "--k", "4", "--out", "c.sridx"], check=True)
subprocess.run([program, "search", "c.sridx", "--queries", "x.npy", "--k", "2"], check=True)
subprocess.run([program, "info", "c.sridx"], check=True)
""",
    "parquet": """
import pyarrow as pa, pyarrow.parquet as pq
rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 16)
pq.write_table(pa.table({"x": rows}), "x.parquet")
sr.SparseIndex.from_embeddings("x.parquet", k=4, n_atoms=32, rounds=2)
""",
    "scipy": "assert sr.SparseCodes.from_scipy(codes.to_scipy()) == codes",
    "sklearn": """
from sparse_retrieval.integrations.sklearn import SparseCoding, SparseNeighbors
assert SparseCoding(dictionary=index.dictionary, k=6).fit_transform(x).shape == (400, 48)
assert SparseNeighbors(3, k=4).fit(x).kneighbors(x[:2])[1].shape == (2, 3)
""",
    "arrow": """
from sparse_retrieval.integrations import arrow
assert arrow.from_arrow(arrow.to_arrow(codes), dim=codes.dim) == codes
""",
    "polars": """
import polars as pl
from sparse_retrieval.integrations import arrow
frame = pl.DataFrame({"x": x.tolist()}, schema={"x": pl.Array(pl.Float32, 16)})
assert (arrow.as_matrix(frame["x"]) == x).all()
""",
    "hub": """
from huggingface_hub import ModelCard
from sparse_retrieval.integrations import hub
dictionary, folder = index.dictionary, pathlib.Path("dictionary")
measured = hub.measure(dictionary, x[:350], x[350:], n=10, k=6)
dictionary.save_pretrained(folder, measured=measured)
assert (sr.Dictionary.from_pretrained(folder).atoms == dictionary.atoms).all()
assert ModelCard.load(folder / "README.md").data.library_name == "sparse_retrieval"
""",
    "langchain": """
from langchain_core.embeddings import DeterministicFakeEmbedding
from sparse_retrieval.integrations.langchain import SparseVectorStore
store = SparseVectorStore.from_texts(["a", "b"], DeterministicFakeEmbedding(size=16))
assert store.similarity_search("b", k=1)[0].page_content == "b"
""",
    "llama-index": """
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from sparse_retrieval.integrations.llama_index import SparseVectorStore
store = SparseVectorStore()
store.add([TextNode(id_=str(i), text=str(i), embedding=x[i].tolist()) for i in range(9)])
assert store.query(VectorStoreQuery(query_embedding=x[4].tolist())).ids == ["4"]
""",
    "haystack": """
from haystack import Document
from sparse_retrieval.integrations.haystack import SparseDocumentStore, SparseRetriever
store = SparseDocumentStore()
store.write_documents([Document(content=str(i), embedding=x[i].tolist()) for i in range(9)])
found = SparseRetriever(store, top_k=1).run(x[4].tolist())["documents"]
assert [one.content for one in found] == ["4"]
""",
    "qdrant": """
from qdrant_client import QdrantClient
from sparse_retrieval.integrations import qdrant
client = QdrantClient(":memory:")
assert qdrant.upload(client, "c", index) == 400
assert sorted(qdrant.download(client, "c", 48).ids) == list(range(400))
client.close()
""",
    "sentence-transformers": """
import torch
from sparse_retrieval.integrations.sentence_transformers import CompresSAEModule, PursuitModule
given = {"sentence_embedding": torch.from_numpy(x)}
assert PursuitModule(index.dictionary, 6)(dict(given))["sentence_embedding"].shape == (400, 48)
module = CompresSAEModule(sr.CompresSAE(16, 32, k=4))
assert module(dict(given))["sentence_embedding"].count_nonzero() == 1600
""",
    "serve": SERVE.format(command="serve") + SERVE.format(command="explore"),
    "ray": """
from sparse_retrieval.distributed import ShardedIndex, split
with ShardedIndex(split("items.sridx", "shards", 2), threads=1) as shards:
    assert shards.search(x[:5], 4).ids.tolist() == index.search(x[:5], 4).ids.tolist()
""",
}


def extras_of(wheel: Path) -> list[str]:
    """Return the extras that a wheel offers."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    return sorted(set(metadata.get_all("Provides-Extra", [])) - {"dev"})


def check(wheel: Path, extra: str) -> float:
    """Install, use, and return the seconds that it took."""
    begun = time.monotonic()
    clean = {k: v for k, v in os.environ.items() if not re.match("PYTHON|VIRTUAL_|PIP_TARGET", k)}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "env", with_pip=True)
        python = Path(folder) / "env" / "bin" / "python"
        wheel = wheel.resolve()  # what follows runs in another folder
        wanted = f"sparse_retrieval[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
        work = Path(folder) / "work"
        work.mkdir()
        for command in (
            [str(python), "-m", "pip", "install", "--quiet", wanted],
            [str(python), "-c", COMMON + CHECKS[extra]],
        ):
            done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"extra {extra!r}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - begun


def main() -> None:
    """Check all that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--only", help="these extras, separated by commas")
    parser.add_argument("--skip", default="", help="all but these")
    arguments = parser.parse_args()
    offered = extras_of(arguments.wheel)
    if unknown := set(offered) ^ (set(CHECKS) - {""}):
        sys.exit(f"no check for, or no such extra as, {', '.join(sorted(unknown))}")
    chosen = ["", *offered] if arguments.only is None else arguments.only.split(",")
    for extra in chosen:
        if not extra or extra not in arguments.skip.split(","):
            print(
                f"{extra or 'no extra'}: works, {check(arguments.wheel, extra):.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
