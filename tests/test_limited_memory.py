"""A mapped file that memory does not hold: searches end, find the same, and read it a few times."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import _limit
import sparse_retrieval as sr

#: of these, COPIES are joined to one file, larger than LIMIT by more than what is read ahead
ROWS, COPIES = 60_000, 40
#: a process takes some 60 MB of it for itself
LIMIT = 90 << 20
K = 50
ASK = """
    import hashlib, json, sys, numpy as np, sparse_retrieval as sr

    def read_bytes():
        with open("/proc/self/io") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    path, queries, k, threads = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    index = sr.SparseIndex.open(path)
    before = read_bytes()
    found = index.search(queries, k, threads=int(threads))
    digest = hashlib.sha256(found.ids.tobytes() + found.scores.tobytes()).hexdigest()
    print(json.dumps({"digest": digest, "read": read_bytes() - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is larger than the limit, and queries."""
    folder = tmp_path_factory.mktemp("limited")
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((1024, 32))
    dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    support = (np.arange(32) * 7 + rng.integers(0, 1024, (ROWS, 1))) % 1024
    codes = sr.SparseCodes(support, rng.standard_normal((ROWS, 32)), dim=1024)
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=4, modes=("dense",))
    index.save(folder / "part.sridx")
    sr.merge([folder / "part.sridx"] * COPIES, folder / "all.sridx")
    np.save(folder / "queries.npy", rng.standard_normal((200, 32)).astype(np.float32))
    assert (folder / "all.sridx").stat().st_size > LIMIT + (8 << 20)
    return folder


def ask_limited(folder: Path, threads: int) -> dict[str, Any]:
    _limit.forget(folder / "all.sridx")
    asked = [str(folder / "all.sridx"), str(folder / "queries.npy"), str(K), str(threads)]
    command = [sys.executable, "-c", textwrap.dedent(ASK), *asked]
    try:
        printed, _ = _limit.run(command, LIMIT, dict(os.environ))
    except _limit.NoLimitError as error:
        pytest.skip(f"memory cannot be limited here: {error}")
    answer: dict[str, Any] = json.loads(printed)
    return answer


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what is read through /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_over_a_file_that_memory_does_not_hold_reads_it_a_few_times(folder, threads):
    index = sr.SparseIndex.open(folder / "all.sridx", mmap=False)
    queries = np.load(folder / "queries.npy")
    assert index.explain(queries, K)["way"] == "integer_pass"
    expected = index.search(queries, K)
    answer = ask_limited(folder, threads)
    held = expected.ids.tobytes() + expected.scores.tobytes()
    assert answer["digest"] == hashlib.sha256(held).hexdigest()
    # once for the pass and once for the candidates, each row of which was read by itself before:
    # with what is read ahead for it, hundreds of times the file
    size = (folder / "all.sridx").stat().st_size
    assert size / 2 < answer["read"] < 6 * size
