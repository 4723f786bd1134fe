"""Codes in Qdrant: the same order as the index, in two real engines; and back to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

import sparse_retrieval as sr
from sparse_retrieval.integrations import qdrant
from strategies import any_values, as_codes, code_rows

N, D, S, K = 800, 24, 96, 6


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    made = QdrantClient(":memory:")
    yield made
    made.close()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N + 20, D)).astype(np.float32)


def index_of(x: np.ndarray, **options: Any) -> sr.SparseIndex:
    mean = bool(options.pop("mean", False))
    dictionary = sr.Dictionary.fit(x[:N], n_atoms=S, k=K, rounds=1, subtract_mean=mean)
    return sr.SparseIndex.from_codes(
        dictionary.encode(x[:N], k=K, normalise=mean),
        dictionary=dictionary,
        modes=("sparse", "dense", "reconstructed"),
        **options,
    )


INDEXES = [
    {"metric": "inner_product"},
    {"metric": "cosine"},
    {"metric": "cosine", "unit_items": True, "value_bits": 4},
    {"metric": "cosine", "value_bits": 4},
    {"metric": "inner_product", "value_bits": 8, "mean": True},
]


@pytest.mark.parametrize("options", INDEXES, ids=str)
@pytest.mark.parametrize("mode", ["sparse", "dense", "reconstructed"])
def test_qdrant_returns_the_scores_and_the_order_of_the_index(
    client: QdrantClient, x: np.ndarray, options: dict[str, Any], mode: str
) -> None:
    index = index_of(x, **options)
    assert qdrant.upload(client, "items", index, mode=mode) == N
    queries = x[N : N + 3]
    expected = index.search(queries, 30, mode=mode)
    # what a mean adds is the same for all items of a query, and left out in Qdrant
    shift = np.zeros(3)
    if index.dictionary is not None and index.dictionary.mean is not None and mode != "sparse":
        rows = queries
        if mode == "reconstructed":
            rows = index.dictionary.decode(index.dictionary.encode(queries, k=K))
        shift = rows @ index.dictionary.mean
    for q, vector in enumerate(qdrant.query_vectors(index, queries, mode=mode)):
        found = client.query_points("items", query=vector, using="code", limit=30).points
        scores = np.array([point.score for point in found]) + shift[q]
        # float32 on one side, half-precision scales of 4-bit values on the other: 2^-11 of it
        assert scores == pytest.approx(expected.scores[q][: len(scores)], rel=2**-10, abs=1e-5)
        if options.get("value_bits", 32) != 4 or options.get("unit_items"):
            assert [point.id for point in found] == expected.ids[q][: len(found)].tolist()
        assert len(found) == 30 or mode == "sparse"


def test_a_real_engine_returns_the_top_k_of_the_index(x: np.ndarray, tmp_path: Path) -> None:
    index = index_of(x, metric="cosine", unit_items=True, value_bits=4)
    config = edge.EdgeConfig(sparse_vectors={"code": edge.EdgeSparseVectorParams()})
    shard = edge.EdgeShard.create(str(tmp_path), config)
    made = [
        edge.Point(
            p.id, {"code": edge.SparseVector(p.vector["code"].indices, p.vector["code"].values)}
        )
        for p in qdrant.points(index)
    ]
    shard.update(edge.UpdateOperation.upsert_points(made))
    scores, ids = index.search(x[N:], 10)
    for q, vector in enumerate(qdrant.query_vectors(index, x[N:])):
        query = edge.Query.Nearest(edge.SparseVector(vector.indices, vector.values), using="code")
        found = shard.search(edge.SearchRequest(query=query, limit=10))
        assert [point.id for point in found] == ids[q].tolist()
        assert [point.score for point in found] == pytest.approx(scores[q], abs=1e-5)
    shard.close()


@settings(max_examples=25)
@given(rows=code_rows(50, any_values), ids=st.sampled_from(["positions", "numbers", "strings"]))
def test_codes_come_back_as_they_went(rows: list[dict[int, float]], ids: str) -> None:
    codes = as_codes(rows, 50)
    n = len(codes)
    names: Any = {
        "positions": None,
        "numbers": [3 * i + 1 for i in range(n)],
        "strings": [f"sku/{i}" for i in range(n)],
    }[ids]
    client = QdrantClient(":memory:")
    payloads = [{"row": i} for i in range(n)]
    assert qdrant.upload(client, "c", codes, ids=names, payloads=payloads, batch_size=3) == n
    found, back, held = qdrant.download(client, "c", 50, batch_size=2)
    client.close()
    order = [payload["row"] for payload in held]
    assert sorted(order) == list(range(n))
    assert back == codes[np.array(order, dtype=int)]
    assert found == (order if names is None else [names[i] for i in order])
    assert all(set(payload) == {"row"} for payload in held)


def test_a_collection_becomes_an_index_that_answers_the_same(
    client: QdrantClient, x: np.ndarray
) -> None:
    index = index_of(x, metric="cosine")
    qdrant.upload(client, "items", index, mode="sparse")
    ids, codes, _ = qdrant.download(client, "items", S)
    again = sr.SparseIndex.from_codes(codes, ids=ids, metric="cosine")
    queries = index.dictionary.encode(x[N:], k=K)  # type: ignore[union-attr]
    mine, theirs = (
        again.search(queries, 10, mode="sparse"),
        index.search(queries, 10, mode="sparse"),
    )
    assert np.array_equal(mine.ids, theirs.ids)


def test_ids_that_are_strings_are_found_again_by_their_payload(
    client: QdrantClient, x: np.ndarray
) -> None:
    dictionary = sr.Dictionary.fit(x, n_atoms=S, k=K, rounds=1)
    names = [f"sku {i}" for i in range(len(x))]
    index = sr.SparseIndex.from_codes(
        dictionary.encode(x, k=K), dictionary=dictionary, ids=names, metric="cosine"
    )
    qdrant.upload(client, "items", index, payloads=[{"even": i % 2 == 0} for i in range(len(x))])
    qdrant.upload(client, "items", index)  # again: the same points
    assert client.count("items").count == len(x)
    qdrant.upload(client, "items", index, payloads=[{"even": i % 2 == 0} for i in range(len(x))])
    (vector,) = qdrant.query_vectors(index, x[5])
    even = models.Filter(
        must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))]
    )
    found = client.query_points("items", query=vector, using="code", limit=5, query_filter=even)
    expected = index.search(x[5], 5, filter=names[::2]).ids.tolist()
    assert [point.payload[qdrant.ID_KEY] for point in found.points if point.payload] == expected


def test_fewer_terms_of_a_query_find_most_of_the_same(client: QdrantClient, x: np.ndarray) -> None:
    index = index_of(x, metric="cosine", unit_items=True)
    qdrant.upload(client, "items", index)
    expected = index.search(x[N:], 10).ids
    shares = []
    for vector, best in zip(qdrant.query_vectors(index, x[N:], terms=48), expected, strict=True):
        assert len(vector.indices) == 48
        found = client.query_points("items", query=vector, using="code", limit=10).points
        shares.append(len({point.id for point in found} & set(best.tolist())) / 10)
    assert np.mean(shares) > 0.6


def test_queries_that_are_codes_are_their_own_vectors(x: np.ndarray) -> None:
    index = index_of(x, metric="inner_product")
    assert index.dictionary is not None
    codes = index.dictionary.encode(x[N:], k=K)
    assert qdrant.query_vectors(index, codes) == qdrant.sparse_vectors(codes)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda c, i: qdrant.upload(c, "c", i, ids=[1]), TypeError, "has its own"),
        (lambda c, i: qdrant.upload(c, "c", i, mode="x"), ValueError, "was built for"),
        (lambda c, i: qdrant.upload(c, "c", i, payloads=[{}]), ValueError, "1 payloads and 800"),
        (lambda c, i: qdrant.upload(c, "c", i.get([0]), ids=[-2]), ValueError, "id -2 is negative"),
        (lambda c, i: qdrant.upload(c, "c", i.get([0]), ids=[1, 2]), ValueError, "2 ids and 1"),
        (lambda c, i: qdrant.upload(c, "c", i.get([0]), mode="sparse"), TypeError, "no scale"),
        (lambda c, i: qdrant.upload(c, "c", "codes"), TypeError, "expected SparseCodes"),
        (lambda c, i: qdrant.upload(c, "c", i, batch_size=0), ValueError, "batch_size is 0"),
        (lambda c, i: qdrant.query_vectors(i, [[1.0]]), ValueError, "columns"),
        (lambda c, i: qdrant.query_vectors(i, np.ones((1, D)), terms=0), ValueError, "terms is 0"),
    ],
)
def test_bad_calls_say_what_was_expected(
    client: QdrantClient, x: np.ndarray, call: Any, error: type[Exception], match: str
) -> None:
    index = index_of(x)
    with pytest.raises(error, match=match):
        call(client, index)


def test_a_dense_vector_is_no_code(client: QdrantClient) -> None:
    client.create_collection(
        "d",
        vectors_config={"code": models.VectorParams(size=2, distance=models.Distance.DOT)},
    )
    client.upsert("d", [models.PointStruct(id=1, vector={"code": [1.0, 2.0]}, payload={})])
    with pytest.raises(TypeError, match="'code' of point 1 is no sparse vector"):
        qdrant.download(client, "d", 8)
