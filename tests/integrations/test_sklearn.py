"""scikit-learn's own checks of estimators, and what they cannot know: neighbours are right."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import sparse_retrieval as sr
from sparse_retrieval.integrations.sklearn import (
    SparseCoding,
    SparseNeighbors,
    SparseNeighborsTransformer,
)

DATA = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    x = np.load(DATA / "embeddings_i8.npy") * np.load(DATA / "scales_f32.npy").reshape(-1, 1)
    return x[:4000].astype(np.float32)


@parametrize_with_checks(
    [
        SparseCoding(),
        SparseCoding(n_atoms=8, k=3, sparse_output=False, normalise=False),
        SparseNeighbors(n_neighbors=2),
        SparseNeighbors(n_neighbors=2, oversample=2),
        SparseNeighborsTransformer(n_neighbors=2),
    ]
)
def test_every_check_of_scikit_learn_passes(estimator: Any, check: Any) -> None:
    check(estimator)


def test_codes_are_those_of_the_dictionary_and_decode_to_the_rows(embeddings: np.ndarray) -> None:
    coding = SparseCoding(n_atoms=256, k=16, rounds=2).fit(embeddings)
    codes = coding.transform(embeddings[:50])
    assert sparse.issparse(codes)
    assert sr.SparseCodes.from_scipy(codes) == coding.dictionary_.encode(embeddings[:50], k=16)
    unit = embeddings[:50] / np.linalg.norm(embeddings[:50], axis=1, keepdims=True)
    decoded = coding.inverse_transform(codes)
    assert (decoded * unit).sum(axis=1).mean() > 0.6
    dense = clone(coding).set_params(sparse_output=False).fit(embeddings).transform(embeddings[:50])
    assert np.array_equal(dense, codes.toarray())
    assert np.array_equal(coding.inverse_transform(dense), decoded)
    assert coding.get_feature_names_out()[-1] == "sparsecoding255"


def test_without_normalising_the_norms_of_rows_are_kept(embeddings: np.ndarray) -> None:
    x = embeddings[:500] * np.linspace(1, 9, 500, dtype=np.float32)[:, None]
    coding = SparseCoding(n_atoms=128, k=32, rounds=2, normalise=False).fit(x)
    decoded = coding.inverse_transform(coding.transform(x))
    ratio = np.linalg.norm(decoded, axis=1) / np.linalg.norm(x, axis=1)
    assert 0.5 < ratio.min() <= ratio.max() < 1.001  # least squares never lengthens


def test_a_given_dictionary_is_used_as_it_is(embeddings: np.ndarray) -> None:
    dictionary = sr.Dictionary.fit(embeddings, n_atoms=128, k=8, rounds=1)
    for given in (dictionary, dictionary.atoms):
        coding = SparseCoding(k=8, dictionary=given).fit(embeddings[:1])
        assert coding.n_iter_ == 0
        assert np.array_equal(coding.components_, dictionary.atoms)
    assert np.array_equal(clone(coding).fit(embeddings[:1]).components_, dictionary.atoms)
    with pytest.raises(ValueError, match="X has 5 features, dictionary has atoms of width 384"):
        SparseCoding(dictionary=dictionary).fit(embeddings[:10, :5])


def test_codes_serve_as_features_of_a_classifier(embeddings: np.ndarray) -> None:
    labels = embeddings[:1000] @ embeddings[0] > np.median(embeddings[:1000] @ embeddings[0])
    model = make_pipeline(SparseCoding(n_atoms=256, k=16, rounds=2), LogisticRegression())
    assert model.fit(embeddings[:1000], labels).score(embeddings[:1000], labels) > 0.8


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(
        np.mean([len(np.intersect1d(f, t)) / len(t) for f, t in zip(found, true, strict=True)])
    )


def test_neighbours_are_those_of_scikit_learn_by_codes_mostly_and_oversampled_nearly_all(
    embeddings: np.ndarray,
) -> None:
    items, queries = embeddings[:3800], embeddings[3800:]
    theirs = NearestNeighbors(n_neighbors=10, metric="cosine").fit(items)
    true_distances, true = theirs.kneighbors(queries)
    dictionary = sr.Dictionary.fit(items, n_atoms=1024, k=32, rounds=4)
    codes = SparseNeighbors(10, dictionary=dictionary).fit(items)
    exact = SparseNeighbors(10, dictionary=dictionary, oversample=5).fit(items)
    assert recall(codes.kneighbors(queries, return_distance=False), true) > 0.7
    distances, indices = exact.kneighbors(queries)
    assert recall(indices, true) > 0.97
    # float16 rows: half a unit in 2^11 of each of two factors, so 1e-3 of a cosine at most
    same = indices == true
    assert np.abs(distances[same] - true_distances[same]).max() < 1e-3
    assert (np.diff(distances, axis=1) >= 0).all()


def test_fitted_rows_are_not_their_own_neighbours(embeddings: np.ndarray) -> None:
    items = embeddings[:600]
    true = NearestNeighbors(n_neighbors=5, metric="cosine").fit(items).kneighbors()[1]
    for oversample, least in ((None, 0.5), (6, 0.97)):
        neighbors = SparseNeighbors(5, n_atoms=256, rounds=4, oversample=oversample).fit(items)
        distances, indices = neighbors.kneighbors()
        assert indices.shape == distances.shape == (600, 5)
        assert (indices != np.arange(600)[:, None]).all()
        assert recall(indices, true) > least
        graph = neighbors.kneighbors_graph(mode="distance")
        assert np.array_equal(graph.indices.reshape(600, 5), indices)
        assert np.array_equal(graph.data.reshape(600, 5), distances)
        assert set(neighbors.kneighbors_graph().data) == {1.0}


def test_a_pickle_and_a_clone_answer_the_same(embeddings: np.ndarray) -> None:
    neighbors = SparseNeighbors(4, n_atoms=256, rounds=2).fit(embeddings[:1000])
    expected = neighbors.kneighbors(embeddings[1000:1020])
    copies = [
        pickle.loads(pickle.dumps(neighbors)),
        clone(neighbors).fit(embeddings[:1000]),
        SparseNeighbors(4, dictionary=neighbors.dictionary_).fit(embeddings[:1000]),
    ]
    for copy in copies:
        found = copy.kneighbors(embeddings[1000:1020])
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def test_the_graph_feeds_what_takes_precomputed_neighbours(embeddings: np.ndarray) -> None:
    x = embeddings[:1000]
    labels = (x @ embeddings[1] > np.median(x @ embeddings[1])).astype(int)
    ours = SparseNeighborsTransformer(20, n_atoms=512, rounds=3, oversample=5)
    theirs = KNeighborsTransformer(n_neighbors=20, metric="cosine")
    scores = [
        make_pipeline(graph, KNeighborsClassifier(15, metric="precomputed"))
        .fit(x, labels)
        .score(embeddings[1000:1500], embeddings[1000:1500] @ embeddings[1] > 0.1)
        for graph in (ours, theirs)
    ]
    assert abs(scores[0] - scores[1]) < 0.02
    clusters = make_pipeline(ours, DBSCAN(eps=0.4, metric="precomputed")).fit_predict(x)
    expected = make_pipeline(theirs, DBSCAN(eps=0.4, metric="precomputed")).fit_predict(x)
    assert np.mean((clusters == -1) == (expected == -1)) > 0.97
    assert ours.fit_transform(x).shape == (1000, 1000)
    assert len(ours.get_feature_names_out()) == 1000


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: SparseNeighbors(oversample=0.5).fit(x), "oversample is 0.5"),
        (lambda x: SparseNeighbors(n_neighbors=0).fit(x).kneighbors(x), "n_neighbors is 0"),
        (lambda x: SparseNeighbors().fit(x).kneighbors(x, 21), "expected at most 20"),
        (lambda x: SparseNeighbors().fit(x).kneighbors(None, 20), "19.*less the row itself"),
        (lambda x: SparseNeighbors().fit(x).kneighbors_graph(x, mode="x"), "mode is 'x'"),
        (lambda x: SparseCoding(k=0).fit(x), "k is 0"),
        (lambda x: SparseCoding(n_jobs=0).fit(x), "n_jobs is 0"),
        (lambda x: SparseCoding(n_atoms=21).fit(x), "n_atoms is 21 but there are 20 rows"),
    ],
)
def test_bad_parameters_say_what_was_expected(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(np.random.default_rng(0).standard_normal((20, 6)))
