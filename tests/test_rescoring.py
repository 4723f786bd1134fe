"""Rescoring: the best by code, ordered by the vectors themselves, wherever those lie."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
import sparse_retrieval as sr
from conftest import ISAS
from sparse_retrieval import rescoring

N, D = 700, 12


@pytest.fixture(scope="module")
def parts():
    """Codes that lose something, their dictionary, the vectors in half precision, queries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) * rng.lognormal(size=(N, 1))
    x[17] = 0
    x = x.astype(np.float16)
    dictionary = sr.Dictionary(oracles.unit(rng.standard_normal((32, D))))
    return dictionary.encode(x, k=3), dictionary, x, rng.standard_normal((23, D))


def index_of(parts, **options):
    codes, dictionary, _, _ = parts
    return sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, modes=("dense", "reconstructed", "sparse"), **options
    )


def expected_of(index, candidates, x, queries, k):
    """The best k of some candidates' positions by a full sort, in double precision."""
    left, right = queries.astype(np.float64), np.asarray(x, dtype=np.float64)
    if index.metric == "cosine":
        left, right = oracles.unit(left), oracles.unit(right)
    scores = left @ right.T
    kept = np.full(scores.shape, -np.inf)
    for q, positions in enumerate(candidates):
        positions = positions[positions >= 0]
        kept[q, positions] = scores[q, positions]
    found, ids = oracles.top_k(kept, k)
    return found, np.where(np.isneginf(found), -1, ids)


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
@pytest.mark.parametrize("mode", ["dense", "reconstructed", "sparse"])
def test_the_best_by_code_come_out_by_their_vectors(parts, metric, mode):
    _, _, x, queries = parts
    index = index_of(parts, metric=metric)
    for k, oversample in ((1, 1), (10, 3), (10, 1.25), (300, 2), (N, 5), (N + 9, 1)):
        wanted = int(np.ceil(k * oversample))
        candidates = index.search(queries, wanted, mode=mode).ids
        scores, ids = expected_of(index, candidates, x, queries, k)
        found = index.search(queries, k, mode=mode, rescore=x, oversample=oversample)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-12)


def test_with_every_item_a_candidate_the_exact_neighbours_come_out(parts):
    _, _, x, queries = parts
    for metric in ("inner_product", "cosine"):
        index = index_of(parts, metric=metric)
        scores, ids = expected_of(index, [np.arange(N)] * len(queries), x, queries, 10)
        for oversample in (N, 1e300, 1.7e308):
            found = index.search(queries, 10, rescore=x, oversample=oversample)
            np.testing.assert_array_equal(found.ids, ids)
            np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


@given(data=st.data())
def test_equal_scores_come_out_by_position_whatever_the_ids(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    n = data.draw(st.integers(1, 60), label="n")
    k = data.draw(st.integers(1, 70), label="k")
    # products of small integers are exact, so equal scores are equal to the last bit
    x, queries = rng.integers(-2, 3, (n, 5)), rng.integers(-2, 3, (3, 5))
    ids = rng.permutation(n) + 100
    index = sr.SparseIndex.from_codes(
        sr.SparseCodes(np.zeros((n, 1), int), np.ones((n, 1)), dim=5),
        dictionary=sr.Dictionary(np.eye(5)),
        ids=ids,
    )
    found = index.search(queries, k, rescore=x, oversample=n)
    scores, positions = oracles.top_k(queries.astype(float) @ x.T.astype(float), k)
    named = np.where(positions < 0, -1, ids[positions])
    np.testing.assert_array_equal(found.ids, named)
    np.testing.assert_array_equal(found.scores, scores)


def fixed_size_lists(pyarrow, x):
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.ravel()), x.shape[1])


def test_every_way_of_holding_the_vectors_gives_the_same_bytes(parts, tmp_path):
    _, _, x, queries = parts
    index = index_of(parts, metric="cosine", value_bits=8)
    expected = index.search(queries, 20, rescore=x)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "wide.npy", x.astype(np.float64))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    np.save(tmp_path / "padded.npy", np.pad(x, [(3, 2), (1, 4)], constant_values=np.nan))
    (tmp_path / "raw").write_bytes(b"\0" * 5000 + x.tobytes())
    torch = pytest.importorskip("torch", reason="needs the training extra")
    padded = np.load(tmp_path / "padded.npy", mmap_mode="r")
    for vectors in (
        x.astype(np.float32),
        x.astype(np.float64),
        x.astype(">f2"),
        x.astype(">f4"),
        np.asfortranarray(x),
        x.tolist(),
        torch.from_numpy(x),
        torch.from_numpy(x.astype(np.float32)),
        tmp_path / "x.npy",
        str(tmp_path / "wide.npy"),
        tmp_path / "fortran.npy",
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        padded[3:-2, 1:-4],
        np.load(tmp_path / "padded.npy", mmap_mode="c")[3:-2, 1:-4],
        np.memmap(tmp_path / "raw", np.float16, "r", offset=5000, shape=x.shape),
    ):
        found = index.search(queries, 20, rescore=vectors)
        assert found.scores.tobytes() == expected.scores.tobytes()
        assert found.ids.tobytes() == expected.ids.tobytes()


def test_parquet_gives_the_same_bytes_for_any_row_groups(parts, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    _, _, x, queries = parts
    index = index_of(parts)
    expected = index.search(queries, 20, rescore=x)
    wide = x.astype(np.float32)
    path = tmp_path / "x.parquet"
    for lists in (pyarrow.array(wide.tolist()), fixed_size_lists(pyarrow, wide)):
        for group in (1, 37, 64, N):
            parquet.write_table(pyarrow.table({"x": lists}), path, row_group_size=group)
            for vectors in (path, str(path)):
                found = index.search(queries, 20, rescore=vectors)
                assert found.scores.tobytes() == expected.scores.tobytes()
                assert found.ids.tobytes() == expected.ids.tobytes()


def test_only_rows_of_candidates_are_read(parts, tmp_path):
    # whoever read another row would meet NaN, and a Parquet reader a damaged page
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    _, _, x, queries = parts
    index = index_of(parts)
    touched = np.unique(index.search(queries[0], 30).ids)
    expected = index.search(queries[0], 10, rescore=x)
    spoilt = x.astype(np.float32)
    spoilt[np.setdiff1d(np.arange(N), touched)] = np.nan
    np.save(tmp_path / "x.npy", spoilt)
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"x": fixed_size_lists(pyarrow, x.astype(np.float32))})
    parquet.write_table(table, path, row_group_size=5, compression="none", use_dictionary=False)
    meta = parquet.ParquetFile(path).metadata
    damaged = bytearray(path.read_bytes())
    untouched = sorted(set(range(N // 5)) - set((touched // 5).tolist()))
    assert len(untouched) > 50
    for group in untouched:
        column = meta.row_group(group).column(0)
        start = column.data_page_offset
        damaged[start : start + column.total_compressed_size] = b"\xff" * (
            column.total_compressed_size
        )
    path.write_bytes(damaged)
    for vectors in (spoilt, tmp_path / "x.npy", path):
        found = index.search(queries[0], 10, rescore=vectors)
        assert found.ids.tobytes() == expected.ids.tobytes()
        assert found.scores.tobytes() == expected.scores.tobytes()
    with pytest.raises(OSError, match="page"):
        index.search(queries, 100, rescore=path)
    worst = int(np.setdiff1d(index.search(queries, 300).ids, touched)[0])
    with pytest.raises(ValueError, match=f"rescore row {worst} holds NaN in column 0"):
        index.search(queries, 100, rescore=tmp_path / "x.npy")


def test_filters_and_exclusions_hold_for_candidates(parts):
    _, _, x, queries = parts
    rng = np.random.default_rng(1)
    ids = rng.permutation(N) * 2
    index = index_of(parts, ids=ids)
    mask = rng.random(N) < 0.3
    seen = [rng.choice(ids, rng.integers(0, 40)) for _ in queries]
    options = {"filter": mask, "exclude": seen}
    found = index.search(queries, 10, rescore=x, oversample=N, **options)
    allowed = [np.flatnonzero(mask & ~np.isin(ids, list_)) for list_ in seen]
    _, positions = expected_of(index, allowed, x, queries, 10)
    np.testing.assert_array_equal(found.ids, ids[positions])
    none = index.search(queries, 4, rescore=x, filter=[])
    assert (none.ids == -1).all()
    assert np.isneginf(none.scores).all()
    one = index.search(queries[2], 4, rescore=x, filter=ids[[5, 9]], exclude=[ids[9]])
    assert one.ids.tolist() == [ids[5], -1, -1, -1]


def test_batches_threads_and_isas_give_the_same_bytes(parts, monkeypatch):
    _, _, x, queries = parts
    rng = np.random.default_rng(1)
    index = index_of(parts, metric="cosine")
    # of other lengths in each batch, one of which finds nothing at all
    seen = [rng.choice(N, rng.integers(0, N), replace=False) for _ in queries]
    seen[6:9] = [np.arange(N)] * 3
    options = {"rescore": x, "exclude": seen}
    expected = index.search(queries, 30, **options)
    for isa in ISAS:
        monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", isa)
        for threads in (1, 2, 5):
            for budget in (1, 90 * D * 2 * 3, 1 << 30):
                monkeypatch.setattr(rescoring, "_BATCH_BYTES", budget)
                found = index.search(queries, 30, threads=threads, **options)
                assert found.ids.tobytes() == expected.ids.tobytes()
                assert found.scores.tobytes() == expected.scores.tobytes()
    one = index.search(queries[4], 30, rescore=x, exclude=seen[4])
    assert one.ids.tobytes() == expected.ids[4].tobytes()
    none = index.search(queries[:0], 30, rescore=x)
    assert none.ids.shape == none.scores.shape == (0, 30)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rescore": np.ones((N - 1, D))}, ValueError, rf"shape \({N - 1}, {D}\); expected \({N}"),
        ({"rescore": np.ones(N)}, ValueError, rf"rescore has shape \({N},\)"),
        ({"rescore": np.ones((N, D + 1))}, ValueError, f"{D + 1} columns, queries have {D}"),
        ({"rescore": np.ones((N, D), complex)}, TypeError, "rescore has dtype complex128"),
        ({"rescore": [["a"] * D] * N}, TypeError, "rescore has dtype <U1"),
        ({"rescore": "x.csv"}, ValueError, "neither .npy nor .parquet"),
        ({"rescore": "absent.npy"}, FileNotFoundError, "absent.npy"),
        ({"rescore": np.full((N, D), np.nan)}, ValueError, "rescore row 0 holds NaN in column 0"),
        ({"rescore": np.full((N, D), np.inf, np.float16)}, ValueError, "row 0 holds inf"),
        ({"rescore": np.full((N, D), -1e39)}, ValueError, "within float32"),
        (
            {"oversample": 0.5},
            ValueError,
            "oversample is 0.5; expected a finite number of at least 1",
        ),
        ({"oversample": float("inf")}, ValueError, "oversample is inf"),
        ({"oversample": float("nan")}, ValueError, "oversample is nan"),
        ({"oversample": "3"}, TypeError, "oversample is '3'; expected a number"),
        ({"oversample": True}, TypeError, "oversample is True"),
    ],
)
def test_rescoring_refuses(parts, options, error, message):
    _, _, x, queries = parts
    index = index_of(parts)
    # every item is a candidate, so that the first row is read
    options = {"rescore": x, "oversample": N, **options}
    with pytest.raises(error, match=message):
        index.search(queries, 1, **options)


def test_rescoring_codes_says_that_it_needs_embeddings(parts):
    codes, _, x, _ = parts
    for index, asked in (
        (index_of(parts), codes[:2]),
        (sr.SparseIndex.from_codes(codes), codes[:2]),
        (sr.SparseIndex.from_codes(codes), np.ones((2, 32))),
    ):
        with pytest.raises(ValueError, match="needs embeddings as queries, not codes"):
            index.search(asked, 3, rescore=x)


def test_the_pages_of_rows_are_announced_and_few_others(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3000, 256), dtype=np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    before = (tmp_path / "x.npy").stat().st_size - 3000 * 1024  # the header
    positions = np.array([0, 1, 2, 700, 2999])
    for first in (0, 100):  # a part of the mapping begins elsewhere
        rows = mapped[first:]
        wanted = positions[positions < len(rows)]
        runs = list(rescoring.runs_of(rows, wanted))
        for position in wanted.tolist():
            at = before + (first + position) * 1024
            assert any(start <= at and at + 1024 <= end for start, end in runs)
        assert len(runs) == len(wanted) - 2
        assert all(start % mmap.PAGESIZE == 0 for start, _ in runs)
        pages = len(runs) * mmap.PAGESIZE
        assert sum(end - start for start, end in runs) <= len(wanted) * 1024 + pages
    for rows in (mapped[:, 3:], mapped[::2]):
        assert list(rescoring.runs_of(rows, positions[:3])) == []
    assert list(rescoring.runs_of(mapped, positions[:0])) == []


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("kind", ["memory", "npy", "parquet"])
def test_an_index_with_changes_is_rescored_by_order_and_by_ids(parts, tmp_path, strings, kind):
    codes, dictionary, x, queries = parts
    rng = np.random.default_rng(6)
    names = rng.permutation(N) * 3
    called = [f"n{name}" for name in names] if strings else names.tolist()
    index = sr.SparseIndex.from_codes(codes[:500], dictionary=dictionary, ids=called[:500])
    for first in range(500, N, 50):
        index.add(codes[first : first + 50], ids=called[first : first + 50])
    index.remove([called[i] for i in range(0, N, 7)])
    index.update(codes[1:4], [called[1], called[640], called[3]])
    row_of = {name: row for row, name in enumerate(called)}
    row_of |= {called[1]: 1, called[640]: 2, called[3]: 3}
    rows = np.array([row_of[name] for name in index.ids.tolist()])
    # the same items, built anew: what is found there is what must be found
    fresh = sr.SparseIndex.from_codes(
        sr.SparseCodes.concatenate([codes[r : r + 1] for r in rows]),
        dictionary=dictionary,
        ids=index.ids.tolist(),
    )

    def held(vectors):
        if kind == "memory":
            return vectors
        path = tmp_path / f"x.{kind}"
        if kind == "npy":
            np.save(path, vectors)
        else:
            pyarrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
            parquet = pytest.importorskip("pyarrow.parquet")
            lists = fixed_size_lists(pyarrow, vectors)
            parquet.write_table(pyarrow.table({"x": lists}), path, row_group_size=40)
        return path

    x = x.astype(np.float32)
    extra = np.append(index.ids.astype(object), ["gone"] if strings else [10**9]).tolist()
    ids_by_row = [extra[i] if i < len(rows) else extra[-1] for i in range(len(rows) + 1)]
    mixed = rng.permutation(len(ids_by_row))
    with_hole = np.vstack([x[rows], np.full((1, D), np.nan, np.float32)])
    for k, oversample, options in (
        (10, 3, {}),
        (40, 2, {"exclude": [index.ids[:50].tolist()] * 23}),
    ):
        expected = fresh.search(queries, k, rescore=x[rows], oversample=oversample, **options)
        for tested in (
            index.search(queries, k, rescore=held(x[rows]), oversample=oversample, **options),
            index.search(
                queries,
                k,
                rescore=held(with_hole[mixed]),
                rescore_ids=[ids_by_row[i] for i in mixed],
                oversample=oversample,
                **options,
            ),
        ):
            assert tested.ids.tolist() == expected.ids.tolist()
            assert tested.scores.tobytes() == expected.scores.tobytes()


def test_rescoring_by_ids_refuses_rows_that_are_not_one_an_item(parts):
    codes, dictionary, x, queries = parts
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary)
    index.remove([5])
    index.add(codes[5:7])
    everything = np.append(x, x[5:7], axis=0)
    index.search(queries, 3, rescore=everything, rescore_ids=np.arange(N + 2))
    most = {"oversample": N + 2}
    for ids, error, message in (
        (np.arange(N + 1), ValueError, rf"shape \({N + 2}, {D}\), rescore_ids {N + 1} ids"),
        (np.arange(N + 2) + 1, ValueError, "rescore_ids lacks the id 0 of a candidate"),
        (np.arange(N + 2) % N, ValueError, "rescore_ids holds the id 0 twice"),
        ([str(i) for i in range(N + 2)], ValueError, "rescore_ids lacks the id 0"),
        (np.arange(N + 2) / 2, TypeError, "rescore_ids has dtype float64"),
    ):
        with pytest.raises(error, match=message):
            index.search(queries, 3, rescore=everything, rescore_ids=ids, **most)
    with pytest.raises(ValueError, match=rf"expected \({N + 1}, d\).*or pass rescore_ids"):
        index.search(queries, 3, rescore=everything)
    with pytest.raises(ValueError, match="rescore_ids is given without rescore"):
        index.search(queries, 3, rescore_ids=[1])
    spoilt = everything[::-1].copy()
    spoilt[3] = np.nan
    with pytest.raises(ValueError, match="rescore row 3 holds NaN"):
        index.search(queries, 3, rescore=spoilt, rescore_ids=np.arange(N + 2)[::-1], **most)
