"""The dictionary: unit atoms, decoding against a matrix product, files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
from sparse_retrieval import dictionary as module
from strategies import any_values, as_codes, as_dense, code_rows


def unit_rows(s: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((s, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(data=st.data())
def test_decoding_is_the_product_with_the_atoms(data):
    rows = data.draw(code_rows(40, any_values))
    atoms = unit_rows(40, 7)
    with pytest.MonkeyPatch.context() as patch:
        # small chunks, so that rows are cut into several
        patch.setattr(module, "_NONZEROS_A_CHUNK", data.draw(st.sampled_from([1, 5, 1000])))
        decoded = sr.Dictionary(atoms).decode(as_codes(rows, 40))
    dense = as_dense(rows, 40).astype(np.float64)
    expected = dense @ atoms
    # float32 sums of up to 24 terms: 24 * 2^-24 of the sum of magnitudes, twice over
    atol = 48 * 2.0**-24 * np.abs(dense).sum(axis=1, initial=0).max(initial=0)
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=atol)


def test_a_file_holds_exactly_the_atoms(tmp_path):
    atoms = unit_rows(20, 8)
    sr.Dictionary(atoms).save(tmp_path / "d.safetensors")
    again = sr.Dictionary.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(again.atoms, atoms)
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_files_that_hold_no_dictionary_are_refused_by_what_they_hold(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weights": np.eye(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds \['weights'\]; expected the tensor 'atoms'"):
        sr.Dictionary.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        sr.Dictionary.load(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError):
        sr.Dictionary.load(tmp_path / "none.safetensors")


def test_atoms_are_a_read_only_copy():
    atoms = unit_rows(4, 3)
    dictionary = sr.Dictionary(atoms)
    kept = atoms.copy()
    atoms[:] = 0
    np.testing.assert_array_equal(dictionary.atoms, kept)
    with pytest.raises(ValueError, match="read-only"):
        dictionary.atoms[0, 0] = 1


def test_half_precision_atoms_are_unit_enough():
    assert sr.Dictionary(unit_rows(50, 384).astype(np.float16)).n_atoms == 50


@pytest.mark.parametrize(
    ("atoms", "error", "message"),
    [
        (np.ones((2, 2)), ValueError, r"atom 0 has norm 1.41421 \(2 of 2"),
        (np.zeros((1, 2)), ValueError, "atom 0 has norm 0"),
        ([[1, 0], [np.nan, 1]], ValueError, "atoms row 1 holds nan in column 0"),
        (np.ones((1, 1, 1)), ValueError, r"shape \(1, 1, 1\)"),
        (np.ones((2, 0)), ValueError, "at least one column"),
        (np.ones((0, 2)), ValueError, "at least one atom"),
        ([["a"]], TypeError, "dtype <U1"),
    ],
)
def test_unsound_atoms_are_refused_with_the_reason(atoms, error, message):
    with pytest.raises(error, match=message):
        sr.Dictionary(atoms)


def test_codes_over_other_latents_are_refused():
    dictionary = sr.Dictionary(np.eye(3))
    with pytest.raises(ValueError, match="codes have 4 latents; expected 3"):
        dictionary.decode(sr.SparseCodes([[0]], [[1.0]], dim=4))


def test_a_pickle_holds_atoms_mean_and_history_also_after_encoding():
    x = np.random.default_rng(0).standard_normal((200, 8))
    dictionary = sr.Dictionary.fit(x, n_atoms=16, k=3, rounds=2)
    codes = dictionary.encode(x, k=3)  # makes the encoder, which is no part of a pickle
    again = pickle.loads(pickle.dumps(dictionary))
    assert again.atoms.tobytes() == dictionary.atoms.tobytes()
    assert [r.cosine for r in again.history] == [r.cosine for r in dictionary.history]
    assert len(again.history) == 2
    assert again.encode(x, k=3) == codes
    centred = sr.Dictionary(unit_rows(4, 3), mean=np.ones(3))
    assert pickle.loads(pickle.dumps(centred)).mean.tolist() == [1.0, 1.0, 1.0]
