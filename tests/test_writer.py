"""IndexWriter: the file of the whole, from batches, whole or not at all, in constant memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
from strategies import any_values, as_codes, code_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.sridx"


def write(path: Path, codes: sr.SparseCodes, ids: Any, batch: int, **options: Any) -> bytes:
    with sr.IndexWriter(path, **options) as writer:
        for start in range(0, len(codes), batch):
            part = slice(start, start + batch)
            writer.add(codes[part], ids=None if ids is None else ids[part])
    return path.read_bytes()


def saved(path: Path, codes: sr.SparseCodes, **options: Any) -> bytes:
    sr.SparseIndex.from_codes(codes, **options).save(path)
    return path.read_bytes()


@given(data=st.data())
def test_batches_make_the_file_that_the_whole_makes(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 40, 65_537]), label="dim")
    bits = data.draw(st.sampled_from([32, 16, 8] + ([4, 2.5, 1] if dim <= 65_536 else [])))
    codes = as_codes(data.draw(code_rows(dim, any_values, max_rows=30)), dim)
    kind = data.draw(st.sampled_from(["none", "ascending", "numbers", "strings"]), label="ids")
    ids: Any = None
    if kind != "none":
        ids = np.arange(len(codes)) * 3 + 5
        if kind != "ascending":
            np.random.default_rng(len(codes)).shuffle(ids)
        if kind == "strings":
            ids = [f"é{number}" for number in ids]
    options: dict[str, Any] = {
        "value_bits": bits,
        "metric": data.draw(st.sampled_from(["inner_product", "cosine"])),
        "metadata": data.draw(st.sampled_from([None, {"a": 1}])),
    }
    if dim <= 40 and bits < 8:
        options["complete"] = data.draw(st.booleans(), label="complete")
    if dim == 40 and data.draw(st.booleans(), label="dictionary"):
        options["dictionary"] = sr.Dictionary(np.eye(40))
        options["modes"] = ("sparse", "dense", "reconstructed")
        options["unit_items"] = data.draw(st.booleans())
    whole = saved(tmp_path / "whole.sridx", codes, ids=ids, **options)
    batch = data.draw(st.integers(1, 31), label="batch")
    streamed = write(tmp_path / "items.sridx", codes, ids, batch, dim=dim, **options)
    if ids is None or len(codes):
        assert streamed == whole
    else:  # no batch told of ids
        assert len(sr.SparseIndex.open(tmp_path / "items.sridx")) == 0
    sr.SparseIndex.open(tmp_path / "items.sridx").verify()


def test_real_codes_make_the_same_file(path, tmp_path, real_parts):
    codes, dictionary, _ = real_parts
    ids = np.random.default_rng(0).permutation(len(codes))
    options: dict[str, Any] = {"dictionary": dictionary, "metric": "cosine", "value_bits": 4}
    whole = saved(tmp_path / "whole.sridx", codes, ids=ids, **options)
    assert write(path, codes, ids, 1_000, **options) == whole


def test_codebooks_come_from_the_first_rows_whatever_the_batches(path, real_parts):
    codes, dictionary, queries = real_parts
    options: dict[str, Any] = {"dictionary": dictionary, "value_bits": 4, "codebook_sample": 2_000}
    files = {write(path, codes, None, batch, **options) for batch in (1, 700, 2_000, 9_000)}
    assert len(files) == 1
    index = sr.SparseIndex.open(path)
    index.verify()
    of_sample = sr.SparseIndex.from_codes(codes[:2_000], dictionary=dictionary, value_bits=4)
    some = index.search(queries, 10)
    np.testing.assert_array_equal(
        of_sample.search(queries, 1).scores[some.ids[:, 0] < 2_000],
        some.scores[some.ids[:, 0] < 2_000][:, :1],
    )


def test_given_codebooks_are_used_and_make_the_same_rows(path, tmp_path, real_parts):
    codes, dictionary, _ = real_parts
    first = sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=4)
    first.save(tmp_path / "first.sridx")
    again = write(path, codes, None, 999, dictionary=dictionary, codebooks=first, codebook_sample=1)
    assert again == (tmp_path / "first.sridx").read_bytes()
    plain = sr.SparseIndex.from_codes(codes)
    with pytest.raises(ValueError, match="not coded by rank"):
        sr.IndexWriter(path, dim=codes.dim, codebooks=plain)
    with pytest.raises(ValueError, match="latents of 10 bits, the items"):
        sr.IndexWriter(path, dim=8, codebooks=first)


def test_rows_that_do_not_fit_the_codebooks_are_refused_with_the_way_out(path):
    codes = sr.SparseCodes([[0, 1], [1, 2], [2, 3]], np.ones((3, 2)) * [[1.0, 0.5]], dim=9)
    short = sr.SparseCodes([[4]], [[1.0]], dim=9)
    long = sr.SparseCodes([[4, 5, 6]], [[1.0, 1.0, 1.0]], dim=9)
    options: dict[str, Any] = {"dim": 9, "value_bits": 3, "codebook_sample": 3}
    for odd, message in ((long, r"row 0 has 3 nonzeros.*\.top\(2\)"), (short, "as short")):
        writer = sr.IndexWriter(path, **options)
        writer.add(codes)
        with pytest.raises(ValueError, match=f"counted from item 3: .*{message}"):
            writer.add(odd)
        with pytest.raises(ValueError, match="cannot go on"):
            writer.add(codes)
        with pytest.raises(ValueError, match="cannot go on"):
            writer.finish()
        with pytest.raises(ValueError, match="is finished"):
            writer.finish()
    with sr.IndexWriter(path, **options, longest=3, shortest=1) as writer:
        writer.add(codes)
        writer.add(short)
        writer.add(long)
    index = sr.SparseIndex.open(path)
    index.verify()
    # the third rank, which no row of the sample reaches, has the levels of the second
    assert [len(row[row != 0]) for row in index.get([0, 3, 4]).to_dense()] == [2, 1, 3]


def test_an_empty_writer_makes_an_empty_index(path):
    with sr.IndexWriter(path, dim=5, value_bits=4) as writer:
        assert len(writer) == 0
    assert len(sr.SparseIndex.open(path)) == 0


def test_an_exception_leaves_the_old_file_and_nothing_else(path, tmp_path):
    codes = sr.SparseCodes([[0], [1]], [[1.0], [2.0]], dim=3)
    before = saved(path, codes)

    def fail() -> None:
        with sr.IndexWriter(path, dim=3) as writer:
            writer.add(codes)
            assert len(writer) == 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_second_writer_is_refused_until_the_first_is_done(path):
    codes = sr.SparseCodes([[0]], [[1.0]], dim=3)
    with sr.IndexWriter(path, dim=3) as writer:
        with pytest.raises(BlockingIOError, match=r"another writer holds .*items\.sridx\.lock"):
            sr.IndexWriter(path, dim=3)
        with pytest.raises(BlockingIOError):
            sr.SparseIndex.from_codes(codes).save(path)
        script = "import sys, sparse_retrieval as sr; sr.IndexWriter(sys.argv[1], dim=3)"
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
        )
        assert "BlockingIOError" in done.stderr
        writer.add(codes)
    with sr.IndexWriter(path, dim=3) as writer:
        pass


def test_arguments_are_checked_before_anything_is_written(path, tmp_path):
    codes = sr.SparseCodes([[0]], [[1.0]], dim=3)
    with pytest.raises(TypeError, match="dim= or dictionary="):
        sr.IndexWriter(path)
    with pytest.raises(ValueError, match="needs a dictionary"):
        sr.IndexWriter(path, dim=3, modes=("dense",))
    with pytest.raises(ValueError, match="value_bits is 9"):
        sr.IndexWriter(path, dim=3, value_bits=9)
    with pytest.raises(TypeError, match="expected SparseIndex"):
        sr.IndexWriter(path, dim=3, codebooks=codes)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        sr.IndexWriter(tmp_path / "none" / "items.sridx", dim=3)
    with pytest.raises(IsADirectoryError):
        sr.IndexWriter(tmp_path, dim=3)
    assert list(tmp_path.iterdir()) == []
    with sr.IndexWriter(path, dim=3) as writer:
        with pytest.raises(ValueError, match="over 4 latents"):
            writer.add(sr.SparseCodes([[0]], [[1.0]], dim=4))
        with pytest.raises(ValueError, match="2 ids for 1 items"):
            writer.add(codes, ids=[1, 2])
        with pytest.raises(ValueError, match="id -1"):
            writer.add(codes, ids=[-1])
        writer.add(codes, ids=[7])
    assert sr.SparseIndex.open(path).ids.tolist() == [7]
    for first, second in ((None, [1]), ([1], None), ([1], ["a"]), (["a"], [1])):
        writer = sr.IndexWriter(path, dim=3)
        writer.add(codes, ids=first)
        with pytest.raises(ValueError, match="ids"):
            writer.add(codes, ids=second)
        writer.abort()


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("bits", [32, 4])
def test_ids_given_twice_are_refused_and_the_old_file_stays(path, strings, bits):
    codes = sr.SparseCodes([[0], [1], [2]], [[1.0], [2.0], [3.0]], dim=3)
    before = saved(path, codes)
    name = (lambda i: f"n{i}") if strings else (lambda i: i)
    twice = r'id ("n5"|5) is given to items {} and {}; ids must be unique'
    # in one batch: refused by itself, and the writer goes on
    writer = sr.IndexWriter(path, dim=3, value_bits=bits)
    writer.add(codes[:1], ids=[name(9)])
    with pytest.raises(ValueError, match=twice.format(1, 3)):
        writer.add(codes, ids=[name(5), name(3), name(5)])
    writer.add(codes[:1], ids=[name(5)])
    # in another batch: at once, but for rows that are held until codebooks are learnt
    later = (lambda: writer.finish()) if bits == 4 else (lambda: None)
    with pytest.raises(ValueError, match=twice.format(1, 3)):  # noqa: PT012
        writer.add(codes[:2], ids=[name(3), name(5)])
        later()
    with pytest.raises(ValueError, match=r"make a new one|finished"):
        writer.finish()
    assert path.read_bytes() == before


def test_ids_given_twice_far_apart_are_found_at_the_end(path):
    n = 600_000
    step = 100_000
    codes = sr.SparseCodes(np.zeros((step, 1), int), np.ones((step, 1)), dim=3)
    ids = (np.arange(n) * 7919) % 1_000_003  # in no order
    with sr.IndexWriter(path, dim=3) as writer:
        for first in range(0, n, step):
            writer.add(codes, ids=ids[first : first + step])
    before = path.read_bytes()
    for again, is_late in ((7, False), (599_000, False), (200_000, True)):
        writer = sr.IndexWriter(path, dim=3)
        for first in range(0, n, step):
            writer.add(codes, ids=ids[first : first + step])
        match = rf"id {ids[again]} is given to items {again} and {n}"
        if is_late:
            writer.add(codes[:1], ids=ids[[again]])
            with pytest.raises(ValueError, match=match):
                writer.finish()
        else:
            with pytest.raises(ValueError, match=match):
                writer.add(codes[:1], ids=ids[[again]])
            writer.abort()
        assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


STREAM = """
import sys, numpy as np, sparse_retrieval as sr
def batches(n, size=20_000):
    for start in range(0, n, size):
        rng = np.random.default_rng([7, start])
        support = (np.arange(32) * 31 + rng.integers(0, 4096, (size, 1))) % 4096
        values = np.abs(rng.standard_normal((size, 32), dtype=np.float32)) + 0.01
        yield start, sr.SparseCodes(support.astype(np.int32), values, dim=4096)
def write(path, n):
    with sr.IndexWriter(path, dim=4096, metric="cosine", value_bits=4, threads=1) as writer:
        for start, codes in batches(n):
            ids = (np.arange(start, start + len(codes)) * 7919) % 100_000_007
            writer.add(codes, ids=ids)
"""


def test_memory_does_not_grow_with_the_items(tmp_path):
    script = STREAM + textwrap.dedent(
        """
        import resource
        write(sys.argv[1], int(sys.argv[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    peaks = []
    for n in (200_000, 600_000):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "a.sridx"), str(n)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    # 400,000 rows more are 27 MB in the file
    assert peaks[1] - peaks[0] < 8_000, "kilobytes"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(path, tmp_path):
    codes = sr.SparseCodes([[0], [1]], [[1.0], [2.0]], dim=3)
    before = saved(path, codes)
    script = STREAM + "write(sys.argv[1], 200_000)\nprint('done')"
    completed = 0
    for delay in np.linspace(0.25, 1.6, 10):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        time.sleep(float(delay))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        now = path.read_bytes()
        index = sr.SparseIndex.open(path)
        index.verify()
        assert now == before or len(index) == 200_000
        completed += now != before
        before = now
        # what it left, if anything, goes with the next writer, even of one row
        index.save(path)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before
    (tmp_path / ".items.sridx.sridx-abc.tmp").write_bytes(b"left by a writer that was killed")
    with sr.IndexWriter(path, dim=3) as writer:
        writer.add(codes)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size < 1_000
