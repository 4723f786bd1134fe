"""Rescoring codes against vectors on disk: recall, time and memory, beside faiss HNSW.

    python benches/bench_rescore.py --data PATH [--dictionary FILE] [--out FILE]

PATH is a folder with ``catalogue_minilm_f16.npy``. 1,000 rows (seed 0) are held out as queries;
the others are encoded in 66 bytes each, and written as half precision to a .npy and a .parquet
file of a temporary folder, which is what ``rescore=`` reads. The truth is exact search of those
vectors. Needs faiss-cpu and pyarrow. FILE is a dictionary that an earlier run, or any other,
learnt by the recipe below; without it one is learnt first, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr
from sparse_retrieval.evaluate import exact_top_k, recall_at

EMBEDDINGS = "catalogue_minilm_f16.npy"
QUERIES = 1_000
DEPTH = 100
N_ATOMS, K, ROUNDS, VALUE_BITS = 4_096, 32, 8, 4
OVERSAMPLE = (None, 1.5, 2.0, 3.0, 5.0)
HNSW_LINKS, HNSW_BUILD = 32, 200
HNSW_SEARCH = (128, 256, 512, 1_024)
GROUP_ROWS = 4_096
#: queries that are timed alone, and with the vectors' pages out of the page cache
ALONE, COLD = 100, 30
BATCHES = 3
Search = Callable[[NDArray[np.float32], int | None], NDArray[np.int64]]


class Contender:
    """A way of searching, with what is measured of it."""

    def __init__(self, setting: str, search: Search, ram_bytes: int, disk: str = "") -> None:
        self.search = search
        self.alone_s: list[float] = []
        self.batch_s: list[float] = []
        self.row: dict[str, Any] = {"setting": setting, "ram_bytes": ram_bytes, "disk": disk}

    def timed(self, queries: NDArray[np.float32], threads: int | None) -> float:
        """Seconds of one call."""
        begun = time.perf_counter()
        self.search(queries, threads)
        return time.perf_counter() - begun


def command(script: str, dictionary: Path | None) -> str:
    """How the result file says that it was made."""
    given = "" if dictionary is None else " --dictionary FILE"
    return f"python benches/{script}.py --data PATH{given}"


def split(data: Path) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Items, rounded to half precision as they are stored, and held-out queries."""
    x = np.load(data / EMBEDDINGS).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    shuffled = np.random.default_rng(0).permutation(len(x))
    items = x[np.sort(shuffled[QUERIES:])].astype(np.float16)
    return items, x[np.sort(shuffled[:QUERIES])]


def build(items: NDArray[np.float32], dictionary: Path | None, out: Path) -> sr.SparseIndex:
    """Encode the items and write the index; it is returned mapped."""
    if dictionary is None:
        learnt = sr.Dictionary.fit(items, n_atoms=N_ATOMS, k=K, rounds=ROUNDS, seed=0)
        learnt = sr.Dictionary(learnt.atoms.astype(np.float16))
    else:
        learnt = sr.Dictionary.load(dictionary)
    sr.SparseIndex.from_codes(
        learnt.encode(items, k=K),
        dictionary=learnt,
        metric="cosine",
        value_bits=VALUE_BITS,
        unit_items=True,
        modes=("dense",),
    ).save(out)
    return sr.SparseIndex.open(out)


def ours(index: sr.SparseIndex, npy: Path, parquet: Path) -> list[Contender]:
    """One contender an oversample, and one that reads the Parquet file."""
    sections = index.stats()["sections"]
    # half-precision atoms are widened to single precision when the first search needs them
    ram_bytes = sum(section["bytes"] for section in sections) + 4 * N_ATOMS * index.embedding_dim
    found = []
    for oversample, path in [*((o, npy) for o in OVERSAMPLE), (3.0, parquet)]:
        rescore: dict[str, Any] = {}
        setting = f"{index.bytes_per_item:g}-byte codes"
        if oversample is not None:
            rescore = {"rescore": path, "oversample": oversample}
            setting += f", oversample {oversample:g}"

        def search(
            queries: NDArray[np.float32],
            threads: int | None,
            rescore: dict[str, Any] = rescore,
        ) -> NDArray[np.int64]:
            return index.search(queries, DEPTH, threads=threads, **rescore).ids

        disk = path.suffix if rescore else ""
        found.append(Contender(setting, search, ram_bytes, disk))
    return found


def hnsw(items: NDArray[np.float32]) -> tuple[list[Contender], float]:
    """One contender a width of search, over one graph; and the seconds it took to build."""
    import faiss

    graph = faiss.IndexHNSWFlat(items.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = HNSW_BUILD
    begun = time.perf_counter()
    graph.add(items)
    build_s = time.perf_counter() - begun
    ram_bytes = len(faiss.serialize_index(graph))
    cores = faiss.omp_get_max_threads()
    found = []
    for width in HNSW_SEARCH:

        def search(
            queries: NDArray[np.float32], threads: int | None, width: int = width
        ) -> NDArray[np.int64]:
            graph.hnsw.efSearch = width
            faiss.omp_set_num_threads(threads or cores)
            ids: NDArray[np.int64] = graph.search(queries, DEPTH)[1]
            return ids

        found.append(Contender(f"HNSW{HNSW_LINKS}, efSearch {width}", search, ram_bytes))
    return found, build_s


def measure_all(contenders: list[Contender], queries: NDArray[np.float32], truth: Any) -> None:
    """Recall and times of all, each query and each batch asked of all of them in turn."""
    for contender in contenders:
        contender.row["recall"] = recall_at(contender.search(queries, None), truth)
    for query in queries[:ALONE]:
        for contender in contenders:
            contender.alone_s.append(contender.timed(query[None], 1))
    for _ in range(BATCHES):
        for contender in contenders:
            contender.batch_s.append(contender.timed(queries, None))
    for contender in contenders:
        alone = np.array(contender.alone_s) * 1e3
        contender.row |= {
            "ms_alone": float(np.median(alone)),
            "ms_alone_p99": float(np.percentile(alone, 99)),
            "ms_batch": 1e3 * statistics.median(contender.batch_s) / len(queries),
        }


def measure_cold(contender: Contender, queries: NDArray[np.float32], path: Path) -> None:
    """Times of single queries whose vectors are in no cache of this system, and bytes read."""
    times, read = [], []
    with path.open("rb") as file:
        for query in queries[-COLD:]:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            before = _bytes_read()
            times.append(contender.timed(query[None], 1))
            read.append(_bytes_read() - before)
    contender.row |= {
        "ms_cold": 1e3 * statistics.median(times),
        "kb_read_cold": statistics.median(read) / 1e3,
    }


def _bytes_read() -> int:
    """Bytes that this process has had read from storage."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.partition("\nread_bytes: ")[2].partition("\n")[0])


def measure(data: Path, dictionary: Path | None, folder: Path) -> dict[str, Any]:
    """Build everything, measure it, and return what the result file holds."""
    import pyarrow
    import pyarrow.parquet

    items, queries = split(data)
    npy, parquet = folder / "items.npy", folder / "items.parquet"
    np.save(npy, items)
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(items.ravel()), items.shape[1])
    pyarrow.parquet.write_table(
        pyarrow.table({"x": lists}), parquet, row_group_size=GROUP_ROWS, use_dictionary=False
    )
    os.sync()  # what is not yet written cannot leave the page cache
    wide = items.astype(np.float32)
    truth = exact_top_k(wide, queries, DEPTH).ids
    index = build(wide, dictionary, folder / "items.sridx")
    rivals, build_s = hnsw(wide)
    contenders = ours(index, npy, parquet)
    measure_all(contenders + rivals, queries, truth)
    for contender in contenders:
        if contender.row["disk"]:
            measure_cold(contender, queries, npy if contender.row["disk"] == ".npy" else parquet)
    return {
        "benchmark": "rescore",
        "command": command("bench_rescore", dictionary),
        "machine": _machine.describe(),
        "data": {
            "name": "package descriptions, all-MiniLM-L6-v2",
            "items": len(items),
            "queries": len(queries),
            "columns": int(items.shape[1]),
        },
        "model": {"n_atoms": N_ATOMS, "k": K, "rounds": ROUNDS, "value_bits": VALUE_BITS},
        "depth": DEPTH,
        "disk_bytes": {".npy": npy.stat().st_size, ".parquet": parquet.stat().st_size},
        "parquet_group_rows": GROUP_ROWS,
        "hnsw_build_s": round(build_s, 1),
        "hnsw_efconstruction": HNSW_BUILD,
        "rows": [contender.row for contender in contenders + rivals],
    }


def main() -> int:
    """Parse the arguments, measure, write the file and print its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {EMBEDDINGS}")
    parser.add_argument("--dictionary", type=Path, help="learnt before, by the same recipe")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "rescore.json"
    )
    options = parser.parse_args()
    if not (options.data / EMBEDDINGS).is_file():
        print(
            f"bench_rescore.py: error: {options.data / EMBEDDINGS} is absent; this benchmark needs "
            "the full set, which is not part of the repository",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.data, options.dictionary, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["rows"]:
        cold = f", cold {row['ms_cold']:.1f} ms" if "ms_cold" in row else ""
        print(
            f"{row['setting']:32}{row['disk']:9} recall@{DEPTH} {row['recall']:.4f}  "
            f"{row['ram_bytes'] / 1e6:6.1f} MB  {row['ms_alone']:.2f} ms alone, "
            f"{row['ms_batch']:.3f} in a batch{cold}"
        )
    print(f"wrote {options.out}; python benches/render_docs.py brings the docs in step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
