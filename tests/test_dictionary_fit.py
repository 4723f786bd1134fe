"""Learning of dictionaries in closed form."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_retrieval as sr
from sparse_retrieval.learning import default_atoms


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def sparse_mixtures(n, seed=0, s=64, d=24, k=3):
    """Return rows that really are mixtures of k of s atoms, and the atoms."""
    rng = np.random.default_rng(seed)
    atoms = unit(rng.standard_normal((s, d)))
    codes = np.zeros((n, s))
    for row in codes:
        row[rng.choice(s, k, replace=False)] = rng.standard_normal(k) + np.sign(rng.normal(size=k))
    return codes @ atoms + 1e-3 * rng.standard_normal((n, d)), atoms


def test_one_round_is_the_closed_form_update():
    x, _ = sparse_mixtures(400)
    first = sr.Dictionary(unit(x[:64].astype(np.float32)))
    learnt = first.refine(x, rounds=1, k=3)
    codes = first.encode(x, k=3).to_dense().astype(np.float64)
    W, X = first.atoms.astype(np.float64), unit(x)
    ata = codes.T @ codes
    ridge = 0.01 * np.trace(ata) / 64
    wanted = unit(np.linalg.solve(ata + ridge * np.eye(64), codes.T @ X + ridge * W))
    report = learnt.history[0]
    assert report.replaced == 0
    np.testing.assert_allclose(learnt.atoms, wanted, atol=2e-5)
    np.testing.assert_array_equal(report.usage, np.count_nonzero(codes, axis=0))
    cosine = (unit(codes @ W) * X).sum(axis=1).mean()
    assert report.cosine == pytest.approx(cosine, abs=1e-6)


def test_batches_do_not_change_the_round(monkeypatch):
    x, _ = sparse_mixtures(300)
    whole = sr.Dictionary.fit(x, 64, k=3, rounds=2)
    monkeypatch.setattr(sr.learning, "BATCH_ROWS", 37)
    cut = sr.Dictionary.fit(x, 64, k=3, rounds=2)
    np.testing.assert_array_equal(cut.atoms, whole.atoms)


def test_learning_improves_and_finds_atoms_that_made_the_items():
    x, atoms = sparse_mixtures(3000)
    learnt = sr.Dictionary.fit(x, 64, k=3, rounds=30, held_out=200)
    cosines = [report.cosine for report in learnt.history]
    assert cosines[-1] > cosines[0] + 0.05
    assert learnt.history[-1].held_out_cosine == pytest.approx(cosines[-1], abs=0.02)
    found = np.abs(atoms @ learnt.atoms.T).max(axis=1) > 0.99
    assert found.mean() > 0.8


def test_the_same_seed_gives_the_same_atoms_for_any_threads():
    x, _ = sparse_mixtures(500)
    one = sr.Dictionary.fit(x, 64, k=3, rounds=3, held_out=50, sample=300, seed=5, threads=1)
    two = sr.Dictionary.fit(x, 64, k=3, rounds=3, held_out=50, sample=300, seed=5, threads=3)
    np.testing.assert_array_equal(one.atoms, two.atoms)
    other = sr.Dictionary.fit(x, 64, k=3, rounds=3, held_out=50, sample=300, seed=6)
    assert (other.atoms != one.atoms).any()


def test_an_array_on_disk_teaches_the_same_as_in_memory(tmp_path):
    x, _ = sparse_mixtures(500)
    x = x.astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wanted = sr.Dictionary.fit(x, 64, k=3, rounds=2, sample=400)
    got = sr.Dictionary.fit(mapped, 64, k=3, rounds=2, sample=400)
    np.testing.assert_array_equal(got.atoms, wanted.atoms)


def test_unused_and_duplicate_atoms_are_replaced():
    x, atoms = sparse_mixtures(1000)
    start = atoms.copy()
    start[1] = start[0]  # of two equal ones the later is replaced: nobody uses it
    nearly = start[2] + 1e-3 * start[3]
    start[5] = nearly / np.linalg.norm(nearly)
    learnt = sr.Dictionary(start).refine(x, rounds=1, k=3)
    assert learnt.history[0].replaced >= 2
    cosines = np.abs(learnt.atoms @ learnt.atoms.T) - np.eye(64)
    assert cosines.max() < 0.99


def test_a_mean_is_subtracted_and_comes_back_when_decoded(tmp_path):
    x, _ = sparse_mixtures(600)
    x = unit(x) + 0.7
    learnt = sr.Dictionary.fit(x, 64, k=4, rounds=5, subtract_mean=True)
    np.testing.assert_allclose(learnt.mean, unit(x).mean(axis=0), atol=1e-6)
    decoded = learnt.decode(learnt.encode(x, k=4))
    plain = sr.Dictionary.fit(x, 64, k=4, rounds=5)
    assert learnt.mean is not None
    assert np.linalg.norm(decoded - unit(x), axis=1).mean() < 0.3
    assert plain.mean is None
    learnt.save(tmp_path / "d.safetensors")
    again = sr.Dictionary.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(again.mean, learnt.mean)
    np.testing.assert_array_equal(again.decode(again.encode(x, k=4)), decoded)
    with pytest.raises(ValueError, match="normalise=False with a dictionary that subtracts"):
        learnt.encode(x, k=4, normalise=False)


def test_momentum_learns_faster():
    x, _ = sparse_mixtures(3000)
    plain = sr.Dictionary.fit(x, 64, k=3, rounds=8, momentum=0)
    fast = sr.Dictionary.fit(x, 64, k=3, rounds=8)
    assert fast.history[-1].cosine > plain.history[-1].cosine
    # the first two rounds have no step behind them
    assert fast.history[1].cosine == plain.history[1].cosine


def test_refine_continues_from_the_atoms():
    x, _ = sparse_mixtures(1000)
    straight = sr.Dictionary.fit(x, 64, k=3, rounds=5, momentum=0)
    start = sr.Dictionary.fit(x, 64, k=3, rounds=2, momentum=0)
    resumed = start.refine(x, rounds=3, k=3, momentum=0)
    np.testing.assert_array_equal(resumed.atoms, straight.atoms)
    with pytest.raises(TypeError, match="refine keeps the dictionary's n_atoms"):
        straight.refine(x, n_atoms=12)


@pytest.mark.parametrize("edge", ["duplicates", "constant columns", "zero rows", "one item"])
def test_poor_corpora_are_learnt_without_complaint(edge):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 16))
    n_atoms = 16
    if edge == "duplicates":
        x = x[rng.integers(0, 5, 200)]
    elif edge == "constant columns":
        x[:, 3:] = 2.0
    elif edge == "zero rows":
        x[::2] = 0
    else:
        x, n_atoms = x[:1], 1
    learnt = sr.Dictionary.fit(x, n_atoms, k=1 if edge == "one item" else 4, rounds=4)
    assert np.isfinite(learnt.atoms).all()
    codes = learnt.encode(x, k=min(4, n_atoms))
    norms = np.linalg.norm(x, axis=1)
    decoded = learnt.decode(codes)[norms > 0]
    assert (decoded * unit(x[norms > 0])).sum(axis=1).mean() > 0.75


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.ones((9, 4)), {"n_atoms": 10}, ValueError, "n_atoms is 10 but there are 9 rows"),
        (np.ones((9, 4)), {"n_atoms": 4, "k": 5}, ValueError, "k is 5; expected 1 to 4"),
        (np.ones((9, 4)), {"n_atoms": 0}, ValueError, "n_atoms is 0; expected 1"),
        (np.zeros((9, 4)), {"n_atoms": 2, "k": 1}, ValueError, "every item is zero"),
        (np.ones((9, 4)), {"held_out": 9}, ValueError, "held_out is 9 but x has 9 rows"),
        (np.ones((0, 4)), {}, ValueError, r"shape \(0, 4\); expected \(n, d\)"),
        (np.ones(4), {}, ValueError, r"shape \(4,\); expected \(n, d\)"),
        ([["a", "b"]], {}, TypeError, "expected real numbers"),
        (
            np.ones((9, 4)),
            {"n_atoms": 2, "k": 1, "memory_limit_bytes": 10},
            ValueError,
            "the limit is 10",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_got(x, options, error, message):
    with pytest.raises(error, match=message):
        sr.Dictionary.fit(x, **{"n_atoms": 2, "k": 1, **options})


@pytest.mark.parametrize("held_out", [0, 5])
def test_a_row_with_nan_is_named_wherever_it_is(held_out):
    x = np.random.default_rng(0).standard_normal((60, 4))
    x[41, 2] = np.nan
    with pytest.raises(ValueError, match="row 41 of"):
        sr.Dictionary.fit(x, 8, k=2, held_out=held_out)


def test_default_atoms_leave_twelve_rows_each():
    assert [default_atoms(n) for n in (1, 23, 24, 100, 62_666, 10**9)] == [1, 1, 2, 8, 4096, 4096]
