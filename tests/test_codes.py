"""SparseCodes: what goes in comes out, and what is not sound is refused with its row."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
from strategies import DIMS, any_values, as_codes, as_dense, code_rows

small_dims = [dim for dim in DIMS if dim <= 4096]


def rows_of(codes: sr.SparseCodes) -> list[dict[int, float]]:
    bounds = codes.indptr.astype(int)
    return [
        dict(zip(codes.latents[a:b].tolist(), codes.values[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(bounds)
    ]


@given(data=st.data())
def test_any_input_form_gives_the_same_codes(data):
    torch = pytest.importorskip("torch", reason="needs the training extra")
    dim = data.draw(st.sampled_from(small_dims))
    rows = data.draw(code_rows(dim, any_values))
    codes = as_codes(rows, dim)
    assert rows_of(codes) == [dict(sorted(row.items())) for row in rows]
    dense = as_dense(rows, dim)
    assert sr.SparseCodes.from_dense(dense) == codes
    assert sr.SparseCodes.from_scipy(codes.to_scipy()) == codes
    assert sr.SparseCodes.from_scipy(scipy.sparse.csc_matrix(dense)) == codes
    assert sr.SparseCodes.from_scipy(scipy.sparse.coo_array(dense)) == codes
    assert sr.SparseCodes.from_torch(codes.to_torch()) == codes
    assert sr.SparseCodes.from_torch(torch.from_numpy(dense)) == codes
    assert pickle.loads(pickle.dumps(codes)) == codes
    np.testing.assert_array_equal(codes.to_dense(), dense)
    np.testing.assert_array_equal(codes.to_scipy().toarray(), dense)
    np.testing.assert_array_equal(codes.to_torch().to_dense().numpy(), dense)


@given(data=st.data())
def test_rows_are_selected_as_numpy_selects_them(data):
    rows = data.draw(code_rows(40, any_values))
    codes, dense = as_codes(rows, 40), as_dense(rows, 40)
    n = len(rows)
    bound = st.none() | st.integers(-n - 2, n + 2)
    step = st.none() | st.integers(-3, 3).filter(bool)
    span = slice(data.draw(bound), data.draw(bound), data.draw(step))
    np.testing.assert_array_equal(codes[span].to_dense(), dense[span])
    if n:
        picked = data.draw(st.lists(st.integers(-n, n - 1), max_size=9))
        picked = np.array(picked, dtype=int)
        np.testing.assert_array_equal(codes[picked].to_dense(), dense[picked])
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        np.testing.assert_array_equal(codes[mask].to_dense(), dense[mask])
        one = data.draw(st.integers(-n, n - 1))
        np.testing.assert_array_equal(codes[one].to_dense(), dense[[one]])


@given(data=st.data())
def test_top_keeps_the_largest_magnitudes_and_of_equal_ones_the_lower_latents(data):
    values = st.integers(-3, 3).map(float).filter(bool)
    rows = data.draw(code_rows(40, values))
    k = data.draw(st.integers(1, 30))
    expected = [
        dict(sorted(sorted(row.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:k]))
        for row in rows
    ]
    assert rows_of(as_codes(rows, 40).top(k)) == expected


@given(data=st.data())
def test_concatenation_is_the_inverse_of_slicing(data):
    codes = as_codes(data.draw(code_rows(40, any_values)), 40)
    cut = data.draw(st.integers(0, len(codes)))
    assert sr.SparseCodes.concatenate([codes[:cut], codes[cut:]]) == codes


def test_zeros_are_dropped_whatever_their_latent():
    codes = sr.SparseCodes([[3, 0, 0], [0, 0, 0]], [[2.0, 0.0, -0.0], [0, 0, 0]], dim=4)
    assert rows_of(codes) == [{3: 2.0}, {}]
    assert codes.shape == (2, 4)
    assert codes.nnz == 1


def test_codes_cannot_be_changed():
    codes = sr.SparseCodes([[1]], [[1.0]], dim=4)
    with pytest.raises(ValueError, match="read-only"):
        codes.values[0] = 2
    with pytest.raises(AttributeError, match="immutable"):
        codes.dim = 5


def test_later_writes_to_the_input_do_not_reach_the_codes():
    indices, values = np.array([[1, 2]]), np.array([[1.0, 2.0]], dtype=np.float32)
    codes = sr.SparseCodes(indices, values, dim=4)
    indices[:] = 3
    values[:] = 9
    assert rows_of(codes) == [{1: 1.0, 2: 2.0}]


def test_indices_of_every_integer_dtype_are_taken():
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert rows_of(sr.SparseCodes(np.array([[1, 2]], dtype), [[1, 2]], dim=4)) == [
            {1: 1.0, 2: 2.0}
        ]


def test_values_of_every_real_dtype_are_taken():
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int64, bool):
        codes = sr.SparseCodes([[1]], np.array([[1]], dtype), dim=4)
        assert codes.values.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1, 1]], [[1, 2]], 4), ValueError, "row 0 has latent 1 more than once"),
        (([[1], [4]], [[1], [2]], 4), ValueError, r"row 1 has latent 4; expected 0 to 3"),
        (([[1], [-1]], [[1], [2]], 4), ValueError, "row 1 has latent -1"),
        (([[1], [2]], [[1], [np.nan]], 4), ValueError, "row 1, latent 2: the value is NaN"),
        (([[1], [2]], [[1], [np.inf]], 4), ValueError, "row 1, latent 2: the value is inf"),
        (([[1], [2]], [[1], [1e300]], 4), ValueError, "finite in float32"),
        (([[1, 2]], [[1]], 4), ValueError, r"\(1, 2\) and values \(1, 1\)"),
        (([[[1]]], [[[1]]], 4), ValueError, r"expected the same shape \(n, k\)"),
        (([[1]], [[1]], 0), ValueError, "dim is 0; expected 1 to 2147483647"),
        (([[1]], [[1]], -3), ValueError, "dim is -3"),
        (([[1]], [[1]], 2**31), ValueError, "dim is 2147483648"),
        (([[1]], [[1]], 4.0), TypeError, "dim is 4.0; expected an integer"),
        (([[1.0]], [[1]], 4), TypeError, "indices has dtype float64; expected integers"),
        (([["a"]], [[1]], 4), TypeError, "indices has dtype <U1"),
        (([[1]], [[object()]], 4), TypeError, "values has dtype object"),
        (([[1]], [[1j]], 4), TypeError, "values has dtype complex128"),
        (([[1], [1, 2]], [[1], [1]], 4), ValueError, "indices cannot be read as an array"),
        (([[2**64 - 1]], [[1]], 4), ValueError, "expected less than 2\\^63"),
    ],
)
def test_unsound_codes_are_refused_with_the_reason(arguments, error, message):
    indices, values, dim = arguments
    if indices == [[2**64 - 1]]:
        indices = np.array(indices, dtype=np.uint64)
    with pytest.raises(error, match=message):
        sr.SparseCodes(indices, values, dim=dim)


@pytest.mark.parametrize(
    ("indptr", "message"),
    [
        ([0, 2, 1, 3], "falls from 2 to 1 at row 1"),
        ([1, 2, 3], "starts with 1; expected 0"),
        ([0, 1, 2], "ends at 2, but there are 3 values"),
        ([], "expected 0"),
        ([[0, 3]], r"indptr has shape \(1, 2\)"),
    ],
)
def test_unsound_row_bounds_are_refused(indptr, message):
    with pytest.raises(ValueError, match=message):
        sr.SparseCodes.from_csr(np.array(indptr, dtype=np.int64), [0, 1, 2], [1, 2, 3], 4)


def test_a_number_of_nonzeros_that_overflowed_32_bits_is_refused_with_the_mend():
    # what scipy's 32-bit indptr becomes when rows are stacked beyond 2^31 nonzeros
    indptr = np.array([0, 2**31 - 1, -(2**31)], dtype=np.int32)
    with pytest.raises(ValueError, match="use 64-bit indptr"):
        sr.SparseCodes.from_csr(indptr, [0, 1], [1.0, 2.0], 4)


def test_duplicates_in_scipy_and_torch_input_are_refused_not_added_up():
    coo = scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 4))
    with pytest.raises(ValueError, match="more than once"):
        sr.SparseCodes.from_scipy(coo)
    torch = pytest.importorskip("torch", reason="needs the training extra")
    tensor = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (1, 4), check_invariants=True
    )
    with pytest.raises(ValueError, match="more than once"):
        sr.SparseCodes.from_torch(tensor)


def test_what_holds_no_codes_is_refused_by_name():
    for wrong in (None, "codes", {}, [[1, 2]]):
        with pytest.raises(TypeError, match=f"got {type(wrong).__name__}; expected SparseCodes"):
            sr.SparseIndex.from_codes(wrong)
    with pytest.raises(TypeError, match="expected a scipy sparse matrix, got ndarray"):
        sr.SparseCodes.from_scipy(np.eye(2))
    with pytest.raises(ValueError, match="need dim"):
        sr.SparseIndex.from_codes(([[0]], [[1.0]]))


def test_concatenation_of_different_dims_is_refused():
    codes = [sr.SparseCodes([[0]], [[1.0]], dim=dim) for dim in (2, 3)]
    with pytest.raises(ValueError, match=r"dims \[2, 3\]"):
        sr.SparseCodes.concatenate(codes)
    with pytest.raises(ValueError, match=r"dims \[\]"):
        sr.SparseCodes.concatenate([])


def test_rows_out_of_range_raise_index_error():
    codes = sr.SparseCodes([[0]], [[1.0]], dim=2)
    for wrong in (1, -2, [0, 5]):
        with pytest.raises(IndexError):
            codes[wrong]
    with pytest.raises(IndexError, match="2 axes"):
        codes[np.zeros((1, 1), dtype=int)]
