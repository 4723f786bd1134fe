"""One call from embeddings to an index: defaults for any size, bytes kept, recall on real data."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparse_retrieval as sr
from sparse_retrieval import compress
from sparse_retrieval.evaluate import exact_top_k, recall_at


def mixture(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with few directions each, as embeddings have."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, d))
    rows = centres[rng.integers(0, 20, n)] + 0.5 * rng.standard_normal((n, d))
    return rows * rng.uniform(0.5, 2, (n, 1))


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    folder = Path(__file__).parent.parent / "examples" / "data"
    x = np.load(folder / "embeddings_i8.npy") * np.load(folder / "scales_f32.npy").reshape(-1, 1)
    return x[:8000].astype(np.float32), x[-100:].astype(np.float32)


@pytest.mark.parametrize("n", [100, 101, 500, 3000])
@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_defaults_work_for_any_size(n, d):
    x = mixture(n, d)
    index = sr.SparseIndex.from_embeddings(x, rounds=2)
    assert len(index) == n
    assert index.embedding_dim == d
    assert index.metric == "cosine"
    assert index.modes == ("dense", "reconstructed")
    assert index.value_bits == 4
    result = index.search(x[:5], k=3)
    assert result.ids.shape == (5, 3)
    if d > 2:
        assert index.search(x[7], k=1).scores[0] > 0.8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_dtype_is_taken(dtype):
    x = mixture(300, 16).astype(dtype)
    assert len(sr.SparseIndex.from_embeddings(x, k=4, rounds=2)) == 300
    assert len(sr.SparseIndex.from_embeddings(x.tolist(), k=4, rounds=2)) == 300


def test_files_give_the_same_index_as_the_array(tmp_path):
    x = mixture(400, 16).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 16)
    columns = {"first": numbers, "second": numbers, "n": pa.array(np.arange(400))}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=90)
    sources = [
        (x, {}),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), {}),
        (tmp_path / "x.npy", {}),
        (str(tmp_path / "x.npy"), {}),
        (tmp_path / "x.parquet", {"column": "second"}),
    ]
    files = []
    for rows, options in sources:
        index = sr.SparseIndex.from_embeddings(rows, k=4, rounds=2, **options)
        index.save(tmp_path / "i.sridx")
        files.append((tmp_path / "i.sridx").read_bytes())
    assert all(file == files[0] for file in files)


MEASURE = """
import sys, numpy as np, sparse_retrieval as sr
rng = np.random.default_rng(0)
dictionary = sr.Dictionary.fit(rng.standard_normal((400, 256)), n_atoms=32, k=2, rounds=1)
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) / 1024
def go(n):
    sr.SparseIndex.from_embeddings(sys.argv[1] % n, k=2, dictionary=dictionary)
    sr.SparseIndex.from_embeddings(sys.argv[1] % n, k=2, n_atoms=32, rounds=1)
go("small")
before = peak()
go("large")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_holds_batches_of_a_file_not_the_file(tmp_path, run_python):
    rng = np.random.default_rng(0)
    for name, n in (("small", 10_000), ("large", 100_000)):
        x = rng.standard_normal((n, 256), dtype=np.float32)
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 256)
        pq.write_table(pa.table({"x": numbers}), tmp_path / f"{name}.parquet", row_group_size=8192)
    done = run_python(MEASURE, str(tmp_path / "%s.parquet"))
    assert done.returncode == 0, done.stderr
    # 90,000 more rows of 1 KB are 92 MB; their codes, and the index, take 16 + 7 bytes a row
    assert float(done.stdout) < 46


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    np.save(tmp_path / "x.npy", mixture(200, 4))
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        sr.SparseIndex.from_embeddings(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"x\.csv is neither"):
        sr.SparseIndex.from_embeddings(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"but x is no \.parquet file"):
        sr.SparseIndex.from_embeddings(tmp_path / "x.npy", column="e")


@pytest.mark.parametrize("bits", [3, 4, 8, 32, 3.5])
@pytest.mark.parametrize("wanted", [20, 34, 66])
def test_bytes_per_item_are_kept_and_used(bits, wanted):
    x = mixture(2000, 48)
    index = sr.SparseIndex.from_embeddings(
        x, bytes_per_item=wanted, value_bits=bits, rounds=1, n_atoms=256
    )
    assert index.bytes_per_item <= wanted
    # one more nonzero would not have fitted
    latent_bits = 8 if bits < 8 else 16
    assert index.bytes_per_item > wanted - (latent_bits + bits) / 8 - 1


def test_atoms_are_stored_in_half_precision_without_loss(sample):
    x, queries = sample
    index = sr.SparseIndex.from_embeddings(x, k=8, n_atoms=512, rounds=2)
    entry = next(s for s in index.stats()["sections"] if s["name"] == "dictionary")
    assert entry["dtype"] == "f16"
    assert entry["bytes"] == 2 * 512 * 384
    dictionary = index.dictionary
    assert dictionary is not None
    again = sr.SparseIndex.from_embeddings(x, k=8, dictionary=dictionary)
    a, b = index.search(queries, 20), again.search(queries, 20)
    assert a.scores.tobytes() == b.scores.tobytes()


def test_it_equals_its_parts_and_states_what_it_lost(sample):
    x, queries = sample
    index = sr.SparseIndex.from_embeddings(x, k=16, n_atoms=512, rounds=3, seed=5)
    dictionary = sr.Dictionary.fit(x, n_atoms=512, k=16, rounds=3, seed=5)
    dictionary = sr.Dictionary(dictionary.atoms.astype(np.float16))
    codes = dictionary.encode(x, k=16)
    parts = sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, metric="cosine", value_bits=4, unit_items=True
    )
    a, b = index.search(queries, 50), parts.search(queries, 50)
    assert a.scores.tobytes() == b.scores.tobytes()
    decoded = dictionary.decode(codes)
    cosine = np.sum(decoded * x, axis=1) / np.linalg.norm(x, axis=1)
    cosine = np.mean(cosine / np.linalg.norm(decoded, axis=1))
    stats = index.stats()
    assert stats["reconstruction_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert 0.99 < stats["quantisation_cosine"] < 1


def test_recall_on_real_embeddings_grows_with_bytes_and_four_bits_lose_little(sample):
    x, queries = sample
    truth = exact_top_k(x, queries, 50).ids
    recalls = {}
    dictionary = sr.Dictionary.fit(x, n_atoms=1024, k=32, rounds=4)
    for k, bits in ((8, 4), (16, 4), (32, 4), (32, 32)):
        index = sr.SparseIndex.from_embeddings(x, k=k, value_bits=bits, dictionary=dictionary)
        recalls[k, bits] = recall_at(index.search(queries, 50).ids, truth, 50)
    assert recalls[8, 4] < recalls[16, 4] < recalls[32, 4]
    assert recalls[32, 4] > recalls[32, 32] - 0.02
    assert recalls[32, 4] > 0.8


def test_inner_product_keeps_the_norms():
    x = mixture(500, 24)
    x[3] *= 50
    index = sr.SparseIndex.from_embeddings(x, k=16, metric="inner_product", rounds=3)
    result = index.search(x[:20], 1)
    expected = np.argmax(x[:20] @ x.T, axis=1)
    assert np.mean(result.ids[:, 0] == expected) >= 0.8
    assert result.scores[3, 0] == pytest.approx(x[3] @ x[3], rel=0.1)


def test_default_atoms_leave_about_seven_rows_each():
    assert [compress.default_atoms(n) for n in (100, 1000, 7000, 10_000, 62_666, 10**7)] == [
        64,
        128,
        1024,
        1024,
        8192,
        8192,
    ]


def test_narrow_rows_get_more_atoms_down_to_three_rows_each():
    # the nearest power of two to n / max(3, 7 d / 384)
    expected = {(1149, 128): 512, (16_000, 32): 4096, (16_000, 384): 2048, (16_000, 4096): 2048}
    for (n, width), atoms in expected.items():
        assert compress.default_atoms(n, width) == atoms
    assert all(compress.default_atoms(n, 1) <= n for n in range(100, 3000, 7))
    index = sr.SparseIndex.from_embeddings(mixture(1200, 24), k=4, rounds=1)
    assert index.dim == 512


@pytest.mark.parametrize("wanted", [9, 20, 34, 66, 128])
def test_bits_are_those_that_decode_best_within_the_bytes(wanted):
    x = mixture(2000, 24).astype(np.float32)
    dictionary = sr.Dictionary.fit(x, n_atoms=256, k=8, rounds=2)
    dictionary = sr.Dictionary(dictionary.atoms.astype(np.float16))
    index = sr.SparseIndex.from_embeddings(x, bytes_per_item=wanted, dictionary=dictionary)
    assert index.bytes_per_item <= wanted
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def error(of: sr.SparseIndex) -> float:
        decoded = of.reconstruct(np.arange(len(x)))
        products = np.sum(unit * decoded, axis=1) / np.linalg.norm(decoded, axis=1)
        return 1 - float(np.mean(products))

    chosen = error(index)
    for bits in compress.BITS_TRIED:
        k = min(int((wanted - 2) * 8 / (8 + bits)), 19)
        other = sr.SparseIndex.from_embeddings(x, k=k, value_bits=bits, dictionary=dictionary)
        # chosen by the product of two means, which is the mean of the products but for a little
        assert chosen <= error(other) * 1.02 + 1e-7, (bits, k, index.value_bits)
    assert index.stats()["nonzeros_per_item"] <= 19, "four fifths of the dimensions"


def test_bits_that_are_given_are_kept_and_k_alone_takes_four():
    x = mixture(500, 16)
    given = sr.SparseIndex.from_embeddings(x, bytes_per_item=40, value_bits=5, rounds=1)
    assert given.value_bits == 5
    assert sr.SparseIndex.from_embeddings(x, k=5, rounds=1).value_bits == 4
    kept = sr.SparseIndex.from_embeddings(
        x, bytes_per_item=20, rounds=1, metric="inner_product", n_atoms=64
    )
    assert kept.value_bits in compress.BITS_TRIED
    with pytest.raises(ValueError, match="bytes_per_item is 2; one nonzero"):
        compress.tried(
            sr.Dictionary(np.eye(16)), x, bytes_per_item=2, metric="cosine", threads=None
        )


def test_progress_is_shown_when_asked_for(monkeypatch):
    pytest.importorskip("tqdm", reason="needs the training extra")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    x = mixture(300, 8)
    sr.SparseIndex.from_embeddings(x, k=2, rounds=1)
    assert shown.getvalue() == ""
    sr.SparseIndex.from_embeddings(x, k=2, rounds=1, progress=True)
    assert "learning" in shown.getvalue()
    assert "encoding" in shown.getvalue()


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (mixture(99, 4), {}, ValueError, "x has 99 rows; learning .* at least 100"),
        (mixture(200, 4), {"k": 0}, ValueError, "k is 0"),
        (mixture(200, 4), {"k": 2.5}, TypeError, "k is 2.5"),
        (mixture(200, 4), {"k": 4, "bytes_per_item": 9}, ValueError, "both given"),
        (mixture(200, 4), {"bytes_per_item": 2}, ValueError, "one nonzero and a scale take 4"),
        (mixture(200, 4), {"bytes_per_item": "9"}, TypeError, "bytes_per_item is '9'"),
        (mixture(200, 4), {"n_atoms": 300}, ValueError, "300"),
        (mixture(200, 4), {"metric": "l2"}, ValueError, "metric is 'l2'"),
        (mixture(200, 4), {"dictionary": np.eye(4)}, TypeError, "expected Dictionary"),
        (mixture(200, 4), {"value_bits": 12}, ValueError, "value_bits is 12"),
        (np.full((200, 4), np.nan), {}, ValueError, "row 0"),
        (np.ones((200, 4, 2)), {}, ValueError, "shape"),
        ([["a"] * 4] * 200, {}, TypeError, "dtype <U1"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(x, options, error, message):
    with pytest.raises(error, match=message):
        sr.SparseIndex.from_embeddings(x, **options)


def test_duplicate_rows_zero_rows_and_constant_columns_are_encoded():
    x = mixture(300, 8)
    x[:50] = x[0]
    x[50:60] = 0
    x[:, 3] = 1.0
    x[50:60] = 0
    index = sr.SparseIndex.from_embeddings(x, k=4, rounds=2)
    result = index.search(x[0], 50)
    assert set(result.ids.tolist()) == set(range(50))
    zero = index.search(x[55], 5)
    assert zero.scores.tolist() == [0.0] * 5
