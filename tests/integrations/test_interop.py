"""Codes and embeddings in and out of what others hold: the same numbers, at the same address."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import sparse_retrieval as sr
from sparse_retrieval.integrations import arrow
from strategies import DIMS, any_values, as_codes, code_rows


@st.composite
def any_codes(draw: Any) -> sr.SparseCodes:
    dim = draw(st.sampled_from(DIMS))
    return as_codes(draw(code_rows(dim, any_values)), dim)


@pytest.fixture
def codes() -> sr.SparseCodes:
    rng = np.random.default_rng(0)
    latents = np.argsort(rng.random((300, 64)), axis=1)[:, :8]
    return sr.SparseCodes(latents, rng.standard_normal((300, 8)), dim=64)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def roundtrips(codes: sr.SparseCodes, folder: Path) -> dict[str, sr.SparseCodes]:
    """The codes after a trip through every neighbour."""
    column = codes.to_arrow()
    column.validate(full=True)
    codes.save(folder / "codes.safetensors")
    arrow.write_parquet(folder / "codes.parquet", codes)
    trips = {
        "arrow": sr.SparseCodes.from_arrow(column, dim=codes.dim),
        "capsule": sr.SparseCodes.from_arrow(codes),
        "polars": sr.SparseCodes.from_arrow(pl.Series(codes), dim=codes.dim),
        "frame": sr.SparseCodes.from_arrow(
            pl.DataFrame({"id": range(len(codes)), "code": pl.Series(codes)}), dim=codes.dim
        ),
        "parquet": arrow.read_parquet(folder / "codes.parquet")[1],
        "parquet by polars": sr.SparseCodes.from_arrow(
            pl.read_parquet(folder / "codes.parquet"), dim=codes.dim
        ),
        "scipy": sr.SparseCodes.from_scipy(codes.to_scipy()),
        "scipy, shared": sr.SparseCodes.from_scipy(codes.to_scipy(copy=False)),
        "coo": sr.SparseCodes.from_torch(codes.to_torch()),
        "csr": sr.SparseCodes.from_torch(codes.to_torch(layout="csr")),
        "safetensors": sr.SparseCodes.load(folder / "codes.safetensors"),
        "csr arrays": sr.SparseCodes.from_csr(codes.indptr, codes.latents, codes.values, codes.dim),
    }
    if codes.dim * len(codes) < 1 << 20:
        trips["dense"] = sr.SparseCodes.from_dense(codes.to_dense()) if len(codes) else codes
    return trips


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@given(codes=any_codes())
def test_codes_come_back_from_every_neighbour_as_they_went(
    codes: sr.SparseCodes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name, back in roundtrips(codes, tmp_path_factory.mktemp("trip")).items():
        assert back == codes, name
        assert not back.values.flags.writeable, name


@given(codes=any_codes(), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_chunks_and_slices_of_a_column_are_read_as_the_rows_they_hold(
    codes: sr.SparseCodes, cuts: list[int]
) -> None:
    bounds = [0, *sorted(min(cut, len(codes)) for cut in cuts), len(codes)]
    column = codes.to_arrow()
    pieces = [column[a:b] for a, b in itertools.pairwise(bounds)]
    chunked = pa.chunked_array(pieces, type=column.type)
    assert sr.SparseCodes.from_arrow(chunked, dim=codes.dim) == codes
    for piece, a, b in zip(pieces, bounds, bounds[1:], strict=False):
        assert sr.SparseCodes.from_arrow(piece, dim=codes.dim) == codes[a:b]


def test_arrow_and_polars_share_the_memory_of_codes_both_ways(codes: sr.SparseCodes) -> None:
    column = codes.to_arrow()
    assert column.offsets.buffers()[1].address == address(codes.indptr)
    assert address(column.values.field("latent").to_numpy()) == address(codes.latents)
    assert address(column.values.field("value").to_numpy()) == address(codes.values)
    for held in (column, pa.array(codes), pl.Series(codes), pl.DataFrame({"x": pl.Series(codes)})):
        back = sr.SparseCodes.from_arrow(held, dim=codes.dim)
        for name in ("indptr", "latents", "values"):
            assert address(getattr(back, name)) == address(getattr(codes, name)), name
    part = sr.SparseCodes.from_arrow(column[100:200], dim=64)
    assert part == codes[100:200]
    assert address(part.values) == address(codes.values) + 4 * int(codes.indptr[100])


def test_memory_outlives_what_it_came_from(codes: sr.SparseCodes) -> None:
    expected = codes.to_dense()
    column = sr.SparseCodes(*np.nonzero(np.eye(3)), dim=5).to_arrow()
    back = sr.SparseCodes.from_arrow(pa.table([codes.to_arrow()], names=["c"]), dim=64)
    del codes, column
    assert np.array_equal(back.to_dense(), expected)


def test_scipy_can_share_values_and_latents_and_is_then_read_only(codes: sr.SparseCodes) -> None:
    shared, own = codes.to_scipy(copy=False), codes.to_scipy()
    assert address(shared.data) == address(codes.values)
    assert address(shared.indices) == address(codes.latents)
    assert address(own.data) != address(codes.values)
    assert np.array_equal((shared @ shared.T).toarray(), (own @ own.T).toarray())
    assert np.array_equal((shared @ np.eye(64)), own.toarray())
    assert np.array_equal(shared[5:9].toarray(), own[5:9].toarray())
    with pytest.raises(ValueError, match="read-only"):
        shared.data[0] = 1.0
    own.data[0] = 1.0
    assert codes.values[0] != 1.0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_torch_tensors_are_sound_and_their_own(codes: sr.SparseCodes) -> None:
    for layout in ("coo", "csr"):
        tensor = codes.to_torch(layout=layout)
        dense = tensor.to_dense()
        assert np.array_equal(dense.numpy(), codes.to_dense())
        values = tensor.values()
        values[0] = 77.0
        assert codes.values[0] != 77.0
    torch.sparse_csr_tensor(
        tensor.crow_indices(),
        tensor.col_indices(),
        values,
        size=tensor.shape,
        check_invariants=True,
    )
    with pytest.raises(ValueError, match="layout is 'bsr'"):
        codes.to_torch(layout="bsr")


def test_a_parquet_file_holds_ids_and_the_number_of_latents(
    codes: sr.SparseCodes, tmp_path: Path
) -> None:
    path = tmp_path / "codes.parquet"
    for ids in (np.arange(300) * 7, [f"item {i}" for i in range(300)]):
        assert arrow.write_parquet(path, codes, ids=ids, row_group_items=128) == 300
        assert pq.ParquetFile(path).metadata.num_row_groups == 3
        found, back = arrow.read_parquet(path)
        assert list(found) == list(ids)
        assert back == codes
        batches = list(arrow.iter_parquet(path, batch_items=100))
        assert sr.SparseCodes.concatenate([part for _, part in batches]) == codes
        assert [item for some, _ in batches for item in some] == list(ids)
    with sr.IndexWriter(tmp_path / "a.sridx", dim=64) as writer:
        for some, part in arrow.iter_parquet(path, batch_items=64):
            writer.add(part, ids=some)
    index = sr.SparseIndex.open(tmp_path / "a.sridx")
    assert index.ids.tolist() == [f"item {i}" for i in range(300)]
    assert index.get(index.ids) == codes


def test_batches_are_written_as_one_file_and_a_failure_leaves_the_old_one(
    codes: sr.SparseCodes, tmp_path: Path
) -> None:
    path = tmp_path / "codes.parquet"
    halves = [(np.arange(150), codes[:150]), (np.arange(150, 300), codes[150:])]
    assert arrow.write_parquet(path, iter(halves)) == 300
    ids, back = arrow.read_parquet(path)
    assert back == codes
    assert ids.tolist() == list(range(300))
    before = path.read_bytes()
    other = sr.SparseCodes([[0]], [[1.0]], dim=65)
    for bad, match in [
        ([halves[0], (None, codes[150:])], "batch 1 has other columns"),
        ([(None, codes), (None, other)], "dim 65"),
        ([(np.arange(3), codes)], "there are 3 ids and 300 codes"),
        ([], "there is no batch"),
    ]:
        with pytest.raises(ValueError, match=match):
            arrow.write_parquet(path, bad)
        assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["codes.parquet"]
    with pytest.raises(TypeError, match="ids are given beside batches"):
        arrow.write_parquet(path, halves, ids=np.arange(300))


def column_of(rows: Any, latent: Any = None, value: Any = None) -> Any:
    entry = pa.struct([("latent", latent or pa.uint32()), ("value", value or pa.float32())])
    return pa.array(rows, pa.list_(entry))


def test_columns_that_others_made_are_brought_into_canonical_form() -> None:
    rows = [
        [{"latent": 5, "value": 1.0}, {"latent": 2, "value": -2.0}, {"latent": 3, "value": 0.0}],
        [],
    ]
    expected = sr.SparseCodes.from_csr([0, 2, 2], [2, 5], [-2.0, 1.0], 8)
    for types in ((pa.uint32(), pa.float32()), (pa.int64(), pa.float64()), (pa.int8(), None)):
        assert sr.SparseCodes.from_arrow(column_of(rows, *types), dim=8) == expected
    assert sr.SparseCodes.from_arrow(pl.Series([*rows[:1], []]), dim=8) == expected


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (column_of([[], None]), ValueError, "row 1 of the column is null"),
        (column_of([[None]]), ValueError, "an entry of the column is null"),
        (column_of([[{"latent": 1, "value": None}]]), ValueError, "a value of the column is null"),
        (column_of([[{"latent": 8, "value": 1.0}]]), ValueError, "latent 8"),
        (column_of([[{"latent": 1, "value": float("nan")}]]), ValueError, "row 0"),
        (
            column_of([[{"latent": 1, "value": 1.0}] * 2]),
            ValueError,
            "row 0 has latent 1 more than once",
        ),
        (pa.array([[1, 2]]), TypeError, "the column has type list<"),
        (pa.table({"a": [1]}), ValueError, r"columns of codes \[\]"),
        ([1, 2], TypeError, "got list"),
    ],
)
def test_columns_that_are_not_sound_are_refused(data: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        sr.SparseCodes.from_arrow(data, dim=8)


def test_the_number_of_latents_is_never_guessed(codes: sr.SparseCodes) -> None:
    with pytest.raises(ValueError, match="give dim="):
        sr.SparseCodes.from_arrow(codes.to_arrow())
    with pytest.raises(ValueError, match="is one column and no table"):
        sr.SparseCodes.from_arrow(codes.to_arrow(), dim=64, column="code")
    table = pa.table({"a": codes.to_arrow(), "b": codes.to_arrow()})
    with pytest.raises(ValueError, match=r"\['a', 'b'\]; give column="):
        sr.SparseCodes.from_arrow(table, dim=64)
    assert sr.SparseCodes.from_arrow(table, dim=64, column="b") == codes
    with pytest.raises(ValueError, match="it has no 'c'"):
        sr.SparseCodes.from_arrow(table, dim=64, column="c")
    bad = pa.field("code", codes.to_arrow().type, metadata={arrow.DIM_KEY: b"many"})
    with pytest.raises(ValueError, match="expected a number"):
        sr.SparseCodes.from_arrow(pa.table([codes.to_arrow()], schema=pa.schema([bad])))


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    sr.Dictionary(np.eye(3)).save(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"holds \['atoms'\]"):
        sr.SparseCodes.load(tmp_path / "d.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        sr.SparseCodes.load(tmp_path / "x.safetensors")


def test_columns_of_embeddings_are_taken_wherever_arrays_are() -> None:
    x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    flat = pa.array(x.reshape(-1))
    fixed = pa.FixedSizeListArray.from_arrays(flat, 8)
    chunked = pa.chunked_array([fixed[:70], fixed[70:]])
    lists = pa.array(list(x), pa.list_(pa.float32()))
    columns = [fixed, chunked, lists, pl.Series(fixed), pl.Series(lists), lists[:]]
    expected = sr.SparseIndex.from_embeddings(x, n_atoms=64, k=4, rounds=1)
    dictionary = sr.Dictionary.fit(x, n_atoms=16, k=4, rounds=1)
    for column in columns:
        assert np.array_equal(arrow.as_matrix(column), x)
        index = sr.SparseIndex.from_embeddings(column, n_atoms=64, k=4, rounds=1)
        assert np.array_equal(index.search(column, 3).ids, expected.search(x, 3).ids)
        assert dictionary.encode(column, k=4) == dictionary.encode(x, k=4)
    assert address(arrow.as_matrix(fixed)) == address(flat.to_numpy())
    assert address(arrow.as_matrix(pl.Series(fixed))) == address(flat.to_numpy())
    assert np.array_equal(arrow.as_matrix(fixed[10:20]), x[10:20])
    assert np.array_equal(arrow.as_matrix(lists[10:20]), x[10:20])


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        (pa.array([[1.0], [1.0, 2.0]]), ValueError, "lengths"),
        (pa.array([[1.0], None]), ValueError, "a list of the column is null"),
        (pa.array([[1.0, None]]), ValueError, "a number of the column is null"),
        (pa.array([["a"]]), TypeError, "expected lists of numbers"),
        (pa.array([[]], pa.list_(pa.float32())), ValueError, "empty"),
        (pa.array([], pa.list_(pa.float32())), ValueError, "lengths"),
        (pa.array([1.0]), TypeError, "expected lists of numbers"),
    ],
)
def test_columns_that_are_no_matrix_are_refused(column: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        arrow.as_matrix(column)


def test_frames_of_numbers_are_matrices_as_before() -> None:
    frame = pl.DataFrame({"a": [1.0, 0.0], "b": [0.0, 2.0]})
    assert sr.SparseCodes.from_dense(frame).to_dense().tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_scipy_matrices_of_every_format_are_taken(codes: sr.SparseCodes) -> None:
    for kind in ("csr", "csc", "coo", "lil", "dok", "bsr"):
        assert sr.SparseCodes.from_scipy(codes.to_scipy().asformat(kind)) == codes
    assert sr.SparseCodes.from_scipy(sparse.csr_matrix(codes.to_dense())) == codes
