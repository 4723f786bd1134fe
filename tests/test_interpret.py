"""What an atom stands for, and what each latent adds to a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparse_retrieval as sr

N, S, D = 400, 48, 12


@pytest.fixture(scope="module")
def parts() -> tuple[sr.Dictionary, sr.SparseCodes, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) * rng.uniform(0.5, 3, (N, 1))
    dictionary = sr.Dictionary.fit(x, n_atoms=S, k=5, rounds=2)
    return dictionary, dictionary.encode(x, k=5), x


def test_an_atom_is_described_by_its_strongest_items_of_each_sign(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
) -> None:
    dictionary, codes, _ = parts
    dense = codes.to_dense()
    names = [f"name {i}" for i in range(N)]
    for atom in (0, 7, S - 1):
        described = dictionary.describe(atom, codes, names=names, top=4)
        column = dense[:, atom].tolist()
        ranked = sorted((i for i in range(N) if column[i]), key=lambda i: -column[i])
        above = [i for i in ranked if column[i] > 0][:4]
        below = [i for i in reversed(ranked) if column[i] < 0][:4]
        assert [use.id for use in described.positive] == above
        assert [use.id for use in described.negative] == below
        assert [use.value for use in described.positive] == [column[i] for i in above]
        assert [use.name for use in described.negative] == [names[i] for i in below]
        assert (described.uses, described.items) == (len(ranked), N)
        assert described.share == len(ranked) / N
        similar, cosine = described.similar[0]
        gram = dictionary.atoms @ dictionary.atoms.T
        gram[np.arange(S), np.arange(S)] = 0
        assert similar == np.argmax(np.abs(gram[atom]))
        assert cosine == pytest.approx(float(gram[atom, similar]), abs=1e-6)
        text = str(described)
        assert f"atom {atom}: used by {len(ranked)} of {N}" in text
        assert all(names[i] in text for i in above + below)


def test_equal_values_stand_in_the_order_of_items_and_an_unused_atom_has_none() -> None:
    codes = sr.SparseCodes([[0], [0], [0]], [[1.0], [1.0], [1.0]], dim=3)
    dictionary = sr.Dictionary(np.eye(3))
    assert [use.id for use in dictionary.describe(0, codes, top=2).positive] == [0, 1]
    unused = dictionary.describe(1, codes)
    assert (unused.positive, unused.negative, unused.uses, unused.share) == ((), (), 0, 0.0)
    nothing = dictionary.describe(1, codes[:0])
    assert (nothing.items, nothing.share) == (0, 0.0)


def test_an_index_is_described_by_its_ids_and_stored_values(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary, codes, _ = parts
    monkeypatch.setattr("sparse_retrieval.interpret._BATCH_ITEMS", 64)  # several batches
    ids = [f"sku {i}" for i in range(N)]
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, ids=ids)
    by_codes = dictionary.describe(3, codes)
    by_index = dictionary.describe(3, index)
    assert [use.id for use in by_index.positive] == [ids[use.id] for use in by_codes.positive]
    assert by_index.similar == by_codes.similar
    assert by_index.positive[0].id in str(by_index)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"atom": S}, ValueError, f"atom is {S}; expected 0 to {S - 1}"),
        ({"atom": -1}, ValueError, "atom is -1"),
        ({"atom": 1.5}, TypeError, "atom is 1.5"),
        ({"names": ["one"]}, ValueError, f"1 names for {N} items"),
        ({"names": "name"}, TypeError, "expected a sequence of strings"),
        ({"top": 0}, ValueError, "top is 0"),
        ({"codes": sr.SparseCodes([[0]], [[1.0]], dim=3)}, ValueError, "codes have 3 latents"),
        ({"codes": "codes"}, TypeError, "expected SparseCodes"),
    ],
)
def test_describing_refuses_what_does_not_fit(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
    change: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    dictionary, codes, _ = parts
    arguments = {"atom": 0, "codes": codes, **change}
    with pytest.raises(error, match=match):
        dictionary.describe(**arguments)


@pytest.mark.parametrize("value_bits", [32, 8, 4])
@pytest.mark.parametrize(
    ("metric", "unit_items"), [("inner_product", False), ("cosine", False), ("cosine", True)]
)
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_parts_of_a_score_sum_up_to_what_search_returns(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
    metric: Any,
    unit_items: bool,
    value_bits: int,
    subtract_mean: bool,
) -> None:
    x = parts[2]
    if subtract_mean and metric == "cosine" and not unit_items:
        with pytest.raises(ValueError, match="mean"):  # there is nothing to explain then
            sr.SparseIndex.from_codes(
                parts[1], dictionary=sr.Dictionary(np.eye(S), mean=np.ones(S)), metric=metric
            )
        return
    dictionary = sr.Dictionary.fit(x, n_atoms=S, k=5, rounds=1, subtract_mean=subtract_mean)
    index = sr.SparseIndex.from_codes(
        dictionary.encode(x, k=5),
        dictionary=dictionary,
        metric=metric,
        unit_items=unit_items,
        value_bits=value_bits,
        modes=("sparse", "dense", "reconstructed"),
    )
    queries = np.random.default_rng(1).standard_normal((4, D))
    for mode in ("sparse", "dense", "reconstructed"):
        for query in queries:
            scores, ids = index.search(query, 3, mode=mode)
            for score, item in zip(scores, ids, strict=True):
                found = index.explain_match(query, int(item), mode=mode)
                assert (found.mode, found.id, found.score) == (mode, item, pytest.approx(score))
                added = [part.score for part in found.contributions]
                total = sum(added) + found.mean_score
                # scales in half precision: half a unit in 2^11, of each part
                bound = 2**-11 * sum(map(abs, added)) + 1e-5
                assert abs(total - score) <= bound
                assert added == sorted(added, key=lambda one: -abs(one))
                assert (found.mean_score != 0) == (subtract_mean and mode != "sparse")


def test_the_parts_shared_by_two_items_are_the_latents_that_both_have(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
) -> None:
    dictionary, codes, _ = parts
    modes = ("sparse", "dense", "reconstructed")
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, modes=modes)
    dense = codes.to_dense()
    pairs = [(a, b) for a in range(20) for b in range(20, 40) if (dense[a] * dense[b]).any()]
    assert len(pairs) > 10
    for a, b in pairs[:10]:
        both = set(np.flatnonzero(dense[a] * dense[b]).tolist())
        sparse = index.explain_match(index.get([a]), b, mode="sparse")
        assert {part.latent for part in sparse.contributions} == both
        assert sparse.shared == sparse.contributions
        decoded = index.explain_match(index.get([a]), b, mode="reconstructed")
        assert {part.latent for part in decoded.shared} == both
        assert {part.latent for part in decoded.contributions} == set(np.flatnonzero(dense[b]))
        for part in sparse.contributions:
            assert part.score == pytest.approx(float(dense[a, part.latent] * dense[b, part.latent]))
            assert (part.item_value, part.query_value) == (
                pytest.approx(float(dense[b, part.latent])),
                pytest.approx(float(dense[a, part.latent])),
            )
        assert f"latent {next(iter(both))} (in both)" in str(sparse)


def test_a_dense_query_has_no_code_to_share(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
) -> None:
    dictionary, codes, x = parts
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary, ids=[f"i{n}" for n in range(N)])
    found = index.explain_match(x[3], "i3")
    assert found.shared == ()
    assert all(part.query_value is None for part in found.contributions)
    assert str(found).startswith("item i3: dense score")


def test_explaining_refuses_what_search_refuses(
    parts: tuple[sr.Dictionary, sr.SparseCodes, np.ndarray],
) -> None:
    dictionary, codes, x = parts
    index = sr.SparseIndex.from_codes(codes, dictionary=dictionary)
    with pytest.raises(KeyError, match="4000"):
        index.explain_match(x[0], 4000)
    with pytest.raises(ValueError, match="there are 2 queries"):
        index.explain_match(x[:2], 1)
    with pytest.raises(ValueError, match="sparse"):
        index.explain_match(codes[0], 1, mode="sparse")
    with pytest.raises(ValueError, match="columns"):
        index.explain_match(x[0, :5], 1)
