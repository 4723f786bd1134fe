"""Items from files and streams: the codes are those of the array, and memory does not grow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparse_retrieval as sr
from sparse_retrieval import _rows

N, D = 700, 6


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture
def dictionary():
    atoms = np.random.default_rng(1).standard_normal((24, D))
    return sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))


def lists(x, kind="list"):
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    if kind == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    if kind == "large":
        return pa.array(list(x), pa.large_list(pa.float64()))
    return pa.array(list(x))


def write(path, columns, row_group_size=150):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def assert_same_codes(a, b):
    np.testing.assert_array_equal(a.indptr, b.indptr)
    np.testing.assert_array_equal(a.latents, b.latents)
    np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize("kind", ["list", "fixed", "tensor", "large"])
@pytest.mark.parametrize("batch", [64, 8192])
def test_parquet_encodes_and_fits_as_the_array_does(
    tmp_path, monkeypatch, x, dictionary, kind, batch
):
    # batches of the file, of the encoder and row groups end at different rows
    monkeypatch.setattr(_rows, "_BATCH_ROWS", batch)
    monkeypatch.setattr(sr.learning, "BATCH_ROWS", 100)
    names = pa.array([f"item {i}" for i in range(N)])
    path = write(tmp_path / "x.parquet", {"name": names, "emb.minilm": lists(x, kind)})
    assert_same_codes(dictionary.encode(path, k=3), dictionary.encode(x, k=3))
    assert_same_codes(
        dictionary.encode(str(path), k=3, column="emb.minilm"), dictionary.encode(x, k=3)
    )
    options = {"n_atoms": 16, "k": 2, "rounds": 2, "held_out": 50, "sample": 400}
    fitted = sr.Dictionary.fit(path, column="emb.minilm", **options)
    expected = sr.Dictionary.fit(x, **options)
    np.testing.assert_array_equal(fitted.atoms, expected.atoms)
    refined = expected.refine(path, rounds=1, k=2, column="emb.minilm")
    np.testing.assert_array_equal(refined.atoms, expected.refine(x, rounds=1, k=2).atoms)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_npy_encodes_and_fits_as_the_array_does(tmp_path, x, dictionary, dtype):
    rows = (x * 20).astype(dtype)
    np.save(tmp_path / "x.npy", rows)
    assert_same_codes(dictionary.encode(tmp_path / "x.npy", k=3), dictionary.encode(rows, k=3))
    fitted = sr.Dictionary.fit(str(tmp_path / "x.npy"), 16, k=2, rounds=2)
    np.testing.assert_array_equal(fitted.atoms, sr.Dictionary.fit(rows, 16, k=2, rounds=2).atoms)


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_parquet_of_other_numbers_is_read_as_they_are(tmp_path, x, dictionary, dtype):
    rows = (x * 20).astype(dtype)
    path = write(tmp_path / "x.parquet", {"x": lists(rows)})
    assert_same_codes(dictionary.encode(path, k=3), dictionary.encode(rows, k=3))


def test_rows_of_a_file_are_found_wherever_one_looks(tmp_path, monkeypatch, x):
    monkeypatch.setattr(_rows, "_BATCH_ROWS", 64)
    rows = _rows.open_rows(write(tmp_path / "x.parquet", {"x": lists(x)}))
    assert rows.shape == x.shape
    rng = np.random.default_rng(2)
    for _ in range(60):  # backwards as well, within a batch, over groups, and nothing at all
        start, stop = np.sort(rng.integers(0, N + 40, 2))
        np.testing.assert_array_equal(rows[start:stop], x[start:stop])
        chosen = np.sort(rng.choice(N, rng.integers(0, 30), replace=False))
        np.testing.assert_array_equal(rows[chosen], x[chosen])


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path, monkeypatch, x):
    monkeypatch.setattr(_rows, "_BATCH_ROWS", 64)
    rows = _rows.open_rows(write(tmp_path / "x.parquet", {"x": lists(x)}, row_group_size=100))
    read, iter_batches = [], rows._file.iter_batches

    def watched(*, row_groups, **options):
        def one_by_one():
            for group in row_groups:
                read.append(group)
                yield from iter_batches(row_groups=[group], **options)

        return one_by_one()

    monkeypatch.setattr(rows._file, "iter_batches", watched)
    chosen = np.array([3, 40, 520, 530, 699])
    np.testing.assert_array_equal(rows[chosen], x[chosen])
    assert read == [5, 6]  # group 0 was begun to learn the rows' length


def test_progress_of_a_file_tells_the_rows_in_all(tmp_path, x, dictionary):
    path = write(tmp_path / "x.parquet", {"x": lists(x)})
    seen = []
    dictionary.encode(path, k=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (N, N)


def with_row(x, row, entry):
    rows = [list(map(float, r)) for r in x]
    rows[row] = entry
    return pa.array(rows, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1.0] * (D - 1), "row 417 of column 'x' of .*x.parquet has 5 numbers; expected 6"),
        ([], "row 417 of column 'x' of .*x.parquet has 0 numbers; expected 6"),
        (None, "row 417 of column 'x' of .*x.parquet is null"),
        ([1.0, None, *[1.0] * (D - 2)], "row 417 of column 'x' of .*x.parquet holds a null"),
        ([1.0, np.nan, *[1.0] * (D - 2)], "row 417 .*finite"),
        ([np.inf, *[1.0] * (D - 1)], "row 417 .*finite"),
    ],
)
def test_parquet_names_a_bad_row_by_its_number_in_the_file(
    tmp_path, monkeypatch, x, dictionary, entry, message
):
    monkeypatch.setattr(_rows, "_BATCH_ROWS", 64)
    path = write(tmp_path / "x.parquet", {"x": with_row(x, 417, entry)})
    with pytest.raises(ValueError, match=message):
        dictionary.encode(path, k=2)
    with pytest.raises(ValueError, match=message):
        sr.Dictionary.fit(path, 16, k=2, rounds=1)


def test_nulls_in_lists_of_one_length_are_refused(tmp_path, x, dictionary):
    rows = [list(map(float, r)) for r in x]
    rows[300] = None
    rows_type = pa.list_(pa.float32(), D)
    path = write(tmp_path / "x.parquet", {"x": pa.array(rows, rows_type)})
    with pytest.raises(ValueError, match=r"row 300 of column 'x' of .* is null"):
        dictionary.encode(path, k=2)


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        (["a", "id"], "b", "has no column 'b' of lists of numbers; name one .*a .*id"),
        (["a", "id"], "id", r"has no column 'id' of lists of numbers.*id \(int64\)"),
        (["words"], None, r"has no column of lists of numbers.*words \(list<element: string>\)"),
        (["a", "b"], None, "has 2 columns of lists of numbers; name one with column=, of: a .*b "),
    ],
)
def test_parquet_without_the_column_says_which_there_are(
    tmp_path, x, dictionary, columns, column, message
):
    there_are = {
        "a": lists(x),
        "b": lists(x),
        "id": pa.array(np.arange(N)),
        "words": pa.array([["a", "b"]] * N),
    }
    path = write(tmp_path / "x.parquet", {name: there_are[name] for name in columns})
    with pytest.raises(ValueError, match=message):
        dictionary.encode(path, column=column)


def test_two_columns_of_one_name_are_no_answer(tmp_path, x, dictionary):
    table = pa.Table.from_arrays([lists(x), lists(-x)], ["x", "x"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has 2 columns 'x' of lists of numbers"):
        dictionary.encode(tmp_path / "x.parquet", column="x")


def test_files_that_hold_no_rows_are_refused(tmp_path, dictionary, x):
    (tmp_path / "not.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "not.npy").write_bytes(b"not an array")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "short.npy", x)
    whole = (tmp_path / "short.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-1000])
    empty = pa.array([], pa.list_(pa.float32()))
    write(tmp_path / "empty.parquet", {"x": empty})
    for name, message in {
        "not.parquet": "not.parquet is not a sound .parquet file",
        "not.npy": "not.npy is not a sound .npy file",
        "objects.npy": "objects.npy is not a sound .npy file",
        "short.npy": "short.npy is not a sound .npy file",
        "empty.parquet": "empty.parquet holds no rows",
        "x.csv": "x.csv is neither .npy nor .parquet",
    }.items():
        with pytest.raises(ValueError, match=message):
            dictionary.encode(tmp_path / name)
    for name in ("absent.npy", "absent.parquet"):
        with pytest.raises(FileNotFoundError, match=name):
            dictionary.encode(tmp_path / name)


def test_a_column_of_what_has_none_is_refused(tmp_path, x, dictionary):
    np.save(tmp_path / "x.npy", x)
    for rows in (x, tmp_path / "x.npy", iter([x])):
        with pytest.raises(ValueError, match=r"column is .x., but x is no \.parquet file"):
            dictionary.encode(rows, column="x")


def test_without_pyarrow_the_error_names_the_extra(tmp_path, x, run_python):
    write(tmp_path / "x.parquet", {"x": lists(x)})
    done = run_python(
        "import sys; sys.modules['pyarrow'] = None\n"
        "import numpy as np, sparse_retrieval as sr\n"
        "try:\n    sr.Dictionary(np.eye(6)).encode(sys.argv[1], k=2)\n"
        "except ImportError as error:\n    print(error)",
        str(tmp_path / "x.parquet"),
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'sparse_retrieval[parquet]'" in done.stdout


# Encodes all rows of a source and reports, in bytes, by how much the peak of resident memory
# grew after two batches had set up all that a batch needs.
CHILD = """
import json, sys
import numpy as np
import sparse_retrieval as sr

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

kind, path, n, d = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
atoms = np.random.default_rng(1).standard_normal((128, d))
dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))

def batches():
    rng = np.random.default_rng(0)
    for _ in range(n // 8000):
        yield rng.standard_normal((8000, d), dtype=np.float32)

source = batches() if kind == "iterator" else path
rows = growth = 0
for number, codes in enumerate(dictionary.iter_encode(source, k=4, threads=2)):
    rows += len(codes)
    if number == 1:
        peak, anonymous = memory("VmHWM"), memory("RssAnon")
    elif number > 1:
        growth = max(growth, memory("RssAnon") - anonymous)
# pages of a map are the system's cache, to be taken back at any time: they do not count
print(json.dumps([rows, growth if kind == "npy" else memory("VmHWM") - peak]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc"
)
@pytest.mark.parametrize("kind", ["iterator", "npy", "parquet"])
def test_any_number_of_rows_is_encoded_in_the_memory_of_a_few_batches(tmp_path, run_python, kind):
    n, d = 200_000, 64
    path = tmp_path / f"x.{kind}"
    if kind != "iterator":
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((n, d), dtype=np.float32)
        if kind == "npy":
            np.save(path, rows)
        else:  # one row group: it must not be held either
            write(path, {"x": lists(rows, "fixed")}, row_group_size=n)
    done = run_python(CHILD, kind, str(path), str(n), str(d))
    assert done.returncode == 0, done.stderr
    rows, growth = json.loads(done.stdout)
    assert rows == n
    # A batch of 8,192 rows is 2 MB, its codes (k = 4: 8 bytes a nonzero and 8 a row) 0.3 MB. Five
    # of it for what the allocators and pyarrow's reader keep in hand is 12 MB; the input is 51.
    assert growth < 12e6
