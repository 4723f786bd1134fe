"""Install each extra alone in a clean environment, and use what it is for.

    python benches/check_extras.py [--wheel FILE] [--only NAME ...]

For every extra of pyproject.toml but ``dev``: a new virtual environment without anything of this
one, ``pip install 'WHEEL[EXTRA]'``, and a small program that does with the neighbour what the extra
promises. An extra without such a program fails the check, so none can be forgotten. Without
``--wheel`` the wheel is built first. Writes benches/results/extras.json. Python 3.11 at least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import tomllib

sys.path.insert(0, str(Path(__file__).parent))
import _machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "extras.json"

#: What every program begins with: 300 embeddings, a dictionary and their codes.
COMMON = """
import numpy as np, sparse_retrieval as sr, tempfile, pathlib
folder = pathlib.Path(tempfile.mkdtemp())
x = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
dictionary = sr.Dictionary.fit(x, n_atoms=32, k=4, rounds=1)
codes = dictionary.encode(x, k=4)
index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, metric="cosine")
"""

#: By extra, what it is for, in a few lines. "" is the package without any.
PROGRAMS: dict[str, str] = {
    "": """
assert index.search(x[:2], 3).ids.shape == (2, 3)
""",
    "train": """
model = sr.CompresSAE(16, 32, k=4)
sr.train(model, x, steps=3, batch_size=64)
model.save_pretrained(folder)
assert len(sr.CompresSAE.from_pretrained(folder).sparse_codes(x)) == 300
""",
    "cli": """
import subprocess, sys
np.save(folder / "x.npy", x)
index.save(folder / "a.sridx")
for arguments in (["info", "a.sridx"], ["search", "a.sridx", "--queries", "x.npy", "--k", "2"]):
    command = [sys.executable, "-m", "sparse_retrieval.cli", *arguments]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
""",
    "parquet": """
import pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({"x": list(x)}), folder / "x.parquet")
assert sr.Dictionary.fit(folder / "x.parquet", n_atoms=16, k=2, rounds=1).n_atoms == 16
""",
    "arrow": """
from sparse_retrieval.integrations import arrow
arrow.write_parquet(folder / "c.parquet", codes)
assert arrow.read_parquet(folder / "c.parquet")[1] == codes
""",
    "scipy": """
assert sr.SparseCodes.from_scipy(codes.to_scipy(copy=False)) == codes
""",
    "sklearn": """
from sparse_retrieval.integrations.sklearn import SparseCoding, SparseNeighbors
assert SparseCoding(dictionary=dictionary, k=4).fit_transform(x).nnz == codes.nnz
assert SparseNeighbors(3, k=4).fit(x).kneighbors(x[:2])[1].shape == (2, 3)
""",
    "polars": """
import polars as pl
assert sr.SparseCodes.from_arrow(pl.Series(codes), dim=32) == codes
""",
    "hub": """
from huggingface_hub import ModelCard
from sparse_retrieval.integrations import hub
dictionary.save_pretrained(folder, measured=hub.measure(dictionary, x[:250], x[250:], n=10))
assert np.array_equal(sr.Dictionary.from_pretrained(folder).atoms, dictionary.atoms)
assert ModelCard.load(folder / "README.md").data.library_name == "sparse_retrieval"
""",
    "sentence-transformers": """
import torch
from sparse_retrieval.integrations.sentence_transformers import CompresSAEModule, PursuitModule
given = {"sentence_embedding": torch.from_numpy(x)}
assert PursuitModule(dictionary, 4)(dict(given))["sentence_embedding"].shape == (300, 32)
module = CompresSAEModule(sr.CompresSAE(16, 32, k=4))
assert module(dict(given))["sentence_embedding"].count_nonzero() == 1200
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
assert qdrant.upload(client, "c", index) == 300
assert sorted(qdrant.download(client, "c", 32).ids) == list(range(300))
client.close()
""",
    "ray": """
import ray
from sparse_retrieval.distributed import ShardedIndex
""",
    "serve": """
import fastapi, uvicorn
import sparse_retrieval.service
""",
}


def check(extra: str, wheel: Path) -> dict[str, Any]:
    """Install one extra in a new environment and run its program."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        began = time.perf_counter()
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", target]
        installed = subprocess.run(install, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {"extra": extra, "install_s": round(seconds, 1)}
        if installed.returncode:
            return {**row, "works": False, "error": installed.stderr.strip()[-500:]}
        listing = subprocess.run(
            [str(python), "-m", "pip", "list", "--format", "json"],
            capture_output=True,
            text=True,
            check=True,
        )
        names = {item["name"].lower() for item in json.loads(listing.stdout)}
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        # in a folder of its own, so that nothing of a checkout is imported
        used = subprocess.run(
            [str(python), "-c", COMMON + PROGRAMS[extra]],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        row |= {"packages": len(names - {"pip", "setuptools"}), "megabytes": round(size / 1e6)}
        if used.returncode:
            return {**row, "works": False, "error": used.stderr.strip()[-500:]}
        return {**row, "works": True}


def extras() -> list[str]:
    """The extras that pyproject.toml offers to users, and "" for none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = ["", *project["optional-dependencies"]]
    names.remove("dev")
    missing = sorted(set(names) - set(PROGRAMS))
    if missing:
        sys.exit(f"no program here uses the extras {missing}: add one to PROGRAMS")
    return names


def main() -> int:
    """Check all extras, or some, and write the result file; 1 if any does not work."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="default: build it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these extras; '' is none")
    options = parser.parse_args()
    names = [name for name in extras() if options.only is None or name in options.only]
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel
        if wheel is None:
            build = [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--no-deps",
                "-q",
                "-w",
                folder,
                str(ROOT),
            ]
            subprocess.run(build, check=True)
            (wheel,) = Path(folder).glob("*.whl")
        held = json.loads(RESULT.read_text())["extras"] if RESULT.exists() else []
        rows = {row["extra"]: row for row in held}
        for name in names:
            rows[name] = check(name, wheel.resolve())
            print(json.dumps(rows[name]), flush=True)
            results = {
                "command": "python benches/check_extras.py",
                "machine": _machine.describe(),
                "extras": [rows[one] for one in extras() if one in rows],
            }
            RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(not all(rows[name]["works"] for name in names))


if __name__ == "__main__":
    sys.exit(main())
