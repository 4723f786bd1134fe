"""Encoding by pursuit, against a numpy version of the same algorithm and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_retrieval as sr


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def numpy_pursuit(W, gram, x, k, refit_every, keep=lambda rows: rows):
    """Return support in order of choice, values, and the smallest lead of a choice.

    ``keep`` is how rows are kept for the projection that choices begin with.
    """
    start, targets = keep(W) @ keep(x), W @ x
    c, support, lead = start.copy(), [], np.inf
    for _ in range(2 * k):
        order = np.argsort(-np.abs(c), kind="stable")
        j = order[0]
        if abs(c[j]) <= 1e-6:
            break
        if len(c) > 1:
            lead = min(lead, abs(c[j]) - abs(c[order[1]]))
        if j not in support:
            support.append(int(j))
            a = np.linalg.lstsq(W[support].T, x, rcond=None)[0]
            if len(support) == k or 1 - a @ targets[support] <= 1e-6:
                break
            if len(support) % refit_every == 0:
                c = start - a @ gram[support]
                c[support] = 0
                continue
        c = c - c[j] * gram[j]
        c[j] = 0
    values = np.linalg.lstsq(W[support].T, x, rcond=None)[0] if support else np.empty(0)
    return np.array(support, dtype=int), values, lead


def in_8_bits(gram):
    """Return the Gram matrix as int8 keeps it: steps a row, the diagonal left out."""
    off = np.abs(gram - np.diag(np.diag(gram))).max(axis=1, keepdims=True)
    step = np.where(off > 0, off / 127, 1)
    return np.clip(np.round(gram / step), -128, 127) * step


def in_16_bits(rows):
    """Return unit rows as the projection of an integer Gram matrix keeps them."""
    return np.clip(np.round(rows.astype(np.float32) * 32768.0), -32767, 32767) / 32768.0


@pytest.mark.parametrize("gram_kind", ["float32", "int8", "free"])
@pytest.mark.parametrize("refit_every", [1, 4, 8])
def test_pursuit_equals_numpy(gram_kind, refit_every):
    rng = np.random.default_rng(refit_every)
    dictionary = sr.Dictionary(unit(rng.standard_normal((300, 64))))
    x = rng.standard_normal((200, 64)).astype(np.float32)
    W = dictionary.atoms.astype(np.float64)
    gram = W @ W.T
    options = {}
    if gram_kind == "int8":
        gram, options = in_8_bits(gram), {"keep": lambda rows: in_16_bits(rows).astype(np.float64)}
    codes = dictionary.encode(x, k=12, refit_every=refit_every, gram=gram_kind)
    compared = 0
    for i, item in enumerate(unit(x)):
        support, values, lead = numpy_pursuit(W, gram, item, 12, refit_every, **options)
        # a tie in float32, or entries that fall to either of two 16-bit numbers
        if lead < (1e-4 if gram_kind == "int8" else 1e-6):
            continue
        order = np.argsort(support)
        row = codes[i : i + 1]
        assert row.latents.tolist() == support[order].tolist()
        np.testing.assert_allclose(row.values, values[order], atol=1e-5)
        compared += 1
    assert compared > (160 if gram_kind == "int8" else 190)


def test_omp_has_the_supports_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    dictionary = sr.Dictionary(unit(rng.standard_normal((128, 64))))
    W = dictionary.atoms.astype(np.float64)
    truth = np.zeros((100, 128))
    for row in truth:  # five atoms well apart: what orthogonal pursuit recovers
        row[rng.choice(128, 5, replace=False)] = rng.choice([-1, 1], 5) * rng.uniform(1, 2, 5)
    x = unit(truth @ W)
    wanted = linear_model.orthogonal_mp(W.T, x.T, n_nonzero_coefs=5).T
    got = dictionary.encode(x, k=5, method="omp").to_dense()
    assert ((got != 0) == (np.abs(wanted) > 1e-9)).all(axis=1).mean() == 1
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_topk_is_the_projection_and_topk_refit_its_least_squares():
    rng = np.random.default_rng(4)
    dictionary = sr.Dictionary(unit(rng.standard_normal((100, 32))))
    x = rng.standard_normal((50, 32))
    W, items = dictionary.atoms.astype(np.float64), unit(x)
    plain = dictionary.encode(x, k=6, method="topk").to_dense()
    refit = dictionary.encode(x, k=6, method="topk_refit").to_dense()
    for i, item in enumerate(items):
        c = W @ item
        support = np.sort(np.argsort(-np.abs(c))[:6])
        np.testing.assert_allclose(plain[i, support], c[support], atol=1e-6)
        values = np.linalg.lstsq(W[support].T, item, rcond=None)[0]
        np.testing.assert_allclose(refit[i, support], values, atol=1e-5)
        assert np.count_nonzero(plain[i]) == np.count_nonzero(refit[i]) == 6


def test_better_methods_reconstruct_better():
    rng = np.random.default_rng(5)
    dictionary = sr.Dictionary(unit(rng.standard_normal((256, 64))))
    x = unit(rng.standard_normal((300, 64)))

    def cosine(method):
        decoded = unit(dictionary.decode(dictionary.encode(x, k=16, method=method)))
        return (decoded * x).sum(axis=1).mean()

    assert cosine("topk") < cosine("topk_refit") < cosine("pursuit") < cosine("omp")


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 30),
    d=st.integers(1, 20),
    s=st.integers(1, 70),
    k=st.integers(1, 9),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_are_short_finite_and_never_worse_than_nothing(n, d, s, k, dtype, seed):
    rng = np.random.default_rng(seed)
    dictionary = sr.Dictionary(unit(rng.standard_normal((s, d))))
    x = rng.standard_normal((n, d)).astype(dtype)
    if n > 3:
        x[1] = 0
        x[2] = x[0]
        x[3] = 5.0 * dictionary.atoms[0]
    k = min(k, s)
    codes = dictionary.encode(x, k=k)
    assert len(codes) == n
    assert codes.dim == s
    assert np.diff(codes.indptr.astype(int)).max(initial=0) <= k
    left = np.linalg.norm(unit(x) - dictionary.decode(codes), axis=1)
    assert (left <= 1 + 1e-6).all()
    if n > 3:
        assert len(codes[1:2].values) == 0
        np.testing.assert_array_equal(codes[2:3].to_dense(), codes[0:1].to_dense())
        # float16 rounds the item, so that something may be left to encode
        assert left[3] < 1.1e-3 or dtype == np.float16
        assert codes[3:4].nnz == 1 or dtype == np.float16


def test_values_keep_the_norm_where_rows_are_not_normalised():
    rng = np.random.default_rng(6)
    dictionary = sr.Dictionary(unit(rng.standard_normal((64, 16))))
    x = rng.standard_normal((20, 16)) * rng.uniform(0.1, 10, (20, 1))
    codes = dictionary.encode(x, k=5)
    kept = dictionary.encode(x, k=5, normalise=False)
    np.testing.assert_array_equal(kept.latents, codes.latents)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(kept.to_dense(), codes.to_dense() * norms, rtol=1e-5)


def test_arrays_on_disk_and_streams_equal_arrays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sr.learning, "BATCH_ROWS", 16)
    rng = np.random.default_rng(7)
    dictionary = sr.Dictionary(unit(rng.standard_normal((80, 12))))
    x = rng.standard_normal((100, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    wanted = dictionary.encode(x, k=4).to_dense()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(dictionary.encode(mapped, k=4).to_dense(), wanted)
    stream = (x[i : i + 7] for i in range(0, 100, 7))
    np.testing.assert_array_equal(dictionary.encode(stream, k=4).to_dense(), wanted)
    assert len(dictionary.encode(iter([]), k=4)) == 0
    assert [len(codes) for codes in dictionary.iter_encode(x, k=4)] == [16] * 6 + [4]


def test_threads_do_not_change_codes():
    rng = np.random.default_rng(8)
    dictionary = sr.Dictionary(unit(rng.standard_normal((200, 24))))
    x = rng.standard_normal((500, 24))
    one = dictionary.encode(x, k=8, threads=1)
    for threads in (2, 3):
        again = dictionary.encode(x, k=8, threads=threads)
        np.testing.assert_array_equal(again.values, one.values)
        np.testing.assert_array_equal(again.latents, one.latents)


def test_progress_counts_every_row_and_ends_at_all(monkeypatch):
    monkeypatch.setattr(sr.learning, "BATCH_ROWS", 16)
    dictionary = sr.Dictionary(np.eye(8))
    seen = []
    dictionary.encode(
        np.ones((40, 8)), k=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (40, 40)


def test_an_exception_of_the_progress_function_ends_encoding():
    dictionary = sr.Dictionary(np.eye(8))

    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        dictionary.encode(np.ones((40, 8)), k=2, progress=stop)


def nan_at(row, rows=40, d=8):
    x = np.ones((rows, d))
    x[row, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (nan_at(37), {}, ValueError, "row 37 of the items holds NaN in column 3"),
        (np.full((2, 8), np.inf), {}, ValueError, "row 0 of the items holds inf"),
        (np.full((2, 8), 1e300), {}, ValueError, "row 0 of the items holds inf"),
        (np.ones((3, 7)), {}, ValueError, "x has 7 columns, the dictionary's atoms have 8"),
        (np.ones((3, 8, 1)), {}, ValueError, r"shape \(3, 8, 1\); expected \(n, d\)"),
        (np.ones(8), {}, ValueError, r"shape \(8,\); expected \(n, d\)"),
        (np.array([["a"] * 8]), {}, TypeError, "expected real numbers"),
        (np.ones((3, 8)), {"k": 9}, ValueError, "k is 9; expected 1 to 8"),
        (np.ones((3, 8)), {"k": 0}, ValueError, "k is 0; expected 1"),
        (np.ones((3, 8)), {"k": -1}, ValueError, "k is -1; expected 1"),
        (np.ones((3, 8)), {"k": 2.5}, TypeError, "k is 2.5; expected an integer"),
        (np.ones((3, 8)), {"refit_every": 0}, ValueError, "refit_every is 0"),
        (np.ones((3, 8)), {"method": "lasso"}, ValueError, 'method is "lasso"; expected "pursuit"'),
        (np.ones((3, 8)), {"gram": "int4"}, ValueError, 'gram is "int4"; expected "float32"'),
        (np.ones((3, 8)), {"threads": 0}, ValueError, "threads is 0"),
        (
            np.ones((3, 8)),
            {"memory_limit_bytes": 100},
            ValueError,
            '8 atoms takes 512 bytes as Int8 but the limit is 100.*gram="free"',
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_got(x, options, error, message, monkeypatch):
    monkeypatch.setattr(sr.learning, "BATCH_ROWS", 16)
    with pytest.raises(error, match=message):
        sr.Dictionary(np.eye(8)).encode(x, **{"k": 2, **options})


def test_a_row_of_a_stream_is_named_by_its_place_in_the_stream():
    with pytest.raises(ValueError, match="row 17 of the items holds NaN"):
        sr.Dictionary(np.eye(8)).encode(iter([np.ones((10, 8)), nan_at(7, rows=9)]), k=1)
