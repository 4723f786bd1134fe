"""The LlamaIndex store against LlamaIndex's own simple one, and its ways of being used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

import sparse_retrieval as sr
from sparse_retrieval.integrations.llama_index import SparseVectorStore

SAMPLE = Path(__file__).parents[2] / "examples" / "data"
N = 600


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    levels, scales = np.load(SAMPLE / "embeddings_i8.npy"), np.load(SAMPLE / "scales_f32.npy")
    return (levels * scales.reshape(-1, 1)).astype(np.float32)


def node(x: np.ndarray, i: int, **metadata: Any) -> TextNode:
    made = TextNode(
        id_=f"node {i}",
        text=f"text {i}",
        embedding=x[i].tolist(),
        metadata={"number": i, "word": f"w{i % 5}", "tags": [f"t{i % 2}", f"t{i % 3}"], **metadata},
    )
    made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc {i // 10}")
    return made


@pytest.fixture(scope="module")
def nodes(x: np.ndarray) -> list[TextNode]:
    return [node(x, i, **({"rare": 1.5} if i % 7 == 0 else {})) for i in range(N)]


@pytest.fixture(scope="module")
def pair(nodes: list[TextNode]) -> tuple[SparseVectorStore, SimpleVectorStore]:
    ours, theirs = SparseVectorStore(), SimpleVectorStore()
    assert ours.add(nodes) == theirs.add(nodes)
    return ours, theirs


def ask(x: np.ndarray, i: int = 1000, **options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=x[i].tolist(), **{"similarity_top_k": 7, **options})


def where(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


FILTERS = [
    None,
    MetadataFilters(filters=[]),
    where("word", "w3"),
    where("word", "w3", FilterOperator.NE),
    where("number", 500, FilterOperator.GT),
    where("number", 500, FilterOperator.GTE),
    where("number", 20, FilterOperator.LT),
    where("number", 20, FilterOperator.LTE),
    where("word", ["w1", "w4"], FilterOperator.IN),
    where("word", ["w1", "w4"], FilterOperator.NIN),
    where("tags", "t2", FilterOperator.CONTAINS),
    where("tags", ["t1", "t2"], FilterOperator.ANY),
    where("tags", ["t1", "t2"], FilterOperator.ALL),
    where("word", "3", FilterOperator.TEXT_MATCH),
    where("word", "W3", FilterOperator.TEXT_MATCH_INSENSITIVE),
    where("rare", None, FilterOperator.IS_EMPTY),
    where("rare", 1.5),
    where("nothing", 1),
    *(
        MetadataFilters(
            filters=[
                MetadataFilter(key="word", value="w3"),
                MetadataFilter(key="rare", value=1.5),
            ],
            condition=condition,
        )
        for condition in FilterCondition
    ),
]


@pytest.mark.parametrize("filters", FILTERS, ids=repr)
@pytest.mark.parametrize("ids", [None, [f"node {i}" for i in range(0, N, 3)]])
def test_exact_vectors_answer_as_the_simple_store_under_every_filter(
    pair: tuple[SparseVectorStore, SimpleVectorStore],
    x: np.ndarray,
    filters: MetadataFilters | None,
    ids: list[str] | None,
) -> None:
    ours, theirs = pair
    mine = ours.query(ask(x, filters=filters, node_ids=ids))
    expected = theirs.query(ask(x, filters=filters, node_ids=ids))
    assert mine.ids == expected.ids
    assert mine.similarities == pytest.approx(expected.similarities, abs=1e-6)
    assert mine.nodes is not None
    assert [found.node_id for found in mine.nodes] == mine.ids


def test_nested_filters_are_what_they_say(
    pair: tuple[SparseVectorStore, SimpleVectorStore], x: np.ndarray
) -> None:
    either = MetadataFilters(
        filters=[where("word", "w1"), where("word", "w2")], condition=FilterCondition.OR
    )
    nested = MetadataFilters(
        filters=[either, MetadataFilter(key="number", value=300, operator=FilterOperator.LT)]
    )
    found = pair[0].get_nodes(filters=nested)
    assert [one.metadata["number"] for one in found] == [i for i in range(300) if i % 5 in (1, 2)]


def test_diverse_results_are_those_of_the_simple_store_over_the_nearest(
    pair: tuple[SparseVectorStore, SimpleVectorStore], x: np.ndarray
) -> None:
    ours, theirs = pair
    for threshold in (0.2, 0.8, None):
        query = ask(x, similarity_top_k=5, mode=VectorStoreQueryMode.MMR, mmr_threshold=threshold)
        nearest = theirs.query(ask(x, similarity_top_k=20)).ids
        expected = theirs.query(
            ask(x, similarity_top_k=5, mode=VectorStoreQueryMode.MMR, node_ids=nearest),
            mmr_threshold=threshold,
        )
        found = ours.query(query)
        assert found.ids == expected.ids
        assert found.similarities == pytest.approx(expected.similarities, abs=1e-5)
    nothing = ask(x, mode=VectorStoreQueryMode.MMR, filters=where("number", -1))
    assert ours.query(nothing).ids == []
    assert ours.query(ask(x, node_ids=[])).ids == ours.query(ask(x)).ids


def test_nodes_come_back_as_they_went(
    pair: tuple[SparseVectorStore, SimpleVectorStore], nodes: list[TextNode], x: np.ndarray
) -> None:
    (found,) = pair[0].get_nodes(["node 21", "no such"])
    assert found.model_dump(exclude={"embedding"}) == nodes[21].model_dump(exclude={"embedding"})
    assert found.ref_doc_id == "doc 2"
    by_document = pair[0].query(ask(x, doc_ids=["doc 3", "doc 4"], similarity_top_k=50))
    assert by_document.ids is not None
    assert sorted(by_document.ids) == [f"node {i}" for i in range(30, 50)]


def test_nodes_are_deleted_by_document_id_and_filter(nodes: list[TextNode], x: np.ndarray) -> None:
    store, oracle = SparseVectorStore(), SimpleVectorStore()
    store.add(nodes[:100])
    oracle.add(nodes[:100])
    for change in (
        lambda s: s.delete("doc 3"),
        lambda s: s.delete("no such"),
        lambda s: s.delete_nodes(["node 1", "node 2", "no such"]),
        lambda s: s.delete_nodes(filters=where("word", "w4")),
        lambda s: s.delete_nodes(["node 5", "node 6"], where("number", 5)),
        lambda s: s.add([nodes[1], node(x, 700)]),
    ):
        change(store)
        change(oracle)
        assert {one.node_id for one in store.get_nodes()} == set(oracle.data.embedding_dict)
        assert store.query(ask(x)).ids == oracle.query(ask(x)).ids
    store.clear()
    assert (store.count, store.query(ask(x)).ids, store.client) == (0, [], None)


def test_enough_nodes_are_compressed_and_still_found(nodes: list[TextNode], x: np.ndarray) -> None:
    store = SparseVectorStore(compress_at=500)
    store.add(nodes[:499])
    assert not store.is_compressed
    store.add(nodes[499:])
    assert store.is_compressed
    assert store.client is not None
    assert store.client.bytes_per_item < 70
    for i in range(0, N, 40):
        assert store.query(ask(x, i, similarity_top_k=1)).ids == [f"node {i}"]
    explicit = SparseVectorStore(compress_at=None)
    explicit.add(nodes)
    explicit.compress(sr.Dictionary.fit(x[:2000], n_atoms=128, k=16, rounds=1))
    assert explicit.query(ask(x, 40, similarity_top_k=1)).ids == ["node 40"]


class ByNumber(BaseEmbedding):
    """Real embeddings of the sample, by the number that ends the text."""

    def _get_text_embedding(self, text: str) -> list[float]:
        levels = np.load(SAMPLE / "embeddings_i8.npy", mmap_mode="r")
        row: list[float] = levels[int(text.split()[-1])].tolist()
        return row

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def test_an_index_over_the_store_retrieves_is_persisted_and_loaded(tmp_path: Path) -> None:
    texts = [TextNode(text=f"text {i}", metadata={"even": 1 - i % 2}) for i in range(40)]
    context = StorageContext.from_defaults(vector_store=SparseVectorStore())
    index = VectorStoreIndex(texts, storage_context=context, embed_model=ByNumber())

    def retrieved(index: Any, **options: Any) -> list[str]:
        found = index.as_retriever(similarity_top_k=3, **options).retrieve("query 7")
        return [one.node.get_content() for one in found]

    assert retrieved(index)[0] == "text 7"
    even = retrieved(index, filters=where("even", 1))
    assert len(even) == 3
    assert all(int(text.split()[1]) % 2 == 0 for text in even)
    index.storage_context.persist(tmp_path)
    store = SparseVectorStore.from_persist_dir(str(tmp_path))
    context = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path))
    loaded = load_index_from_storage(context, embed_model=ByNumber())
    assert retrieved(loaded) == retrieved(index)
    alone = VectorStoreIndex.from_vector_store(store, embed_model=ByNumber())
    assert retrieved(alone) == retrieved(index)


@pytest.mark.parametrize("compress", [False, True])
def test_a_persisted_store_answers_the_same(
    nodes: list[TextNode], x: np.ndarray, tmp_path: Path, compress: bool
) -> None:
    store = SparseVectorStore(k=16)
    store.add(nodes)
    if compress:
        store.compress()
    store.persist(str(tmp_path / "store"))
    loaded = SparseVectorStore.from_persist_path(str(tmp_path / "store"))
    assert loaded.is_compressed == compress
    for filters in (None, where("word", "w3")):
        mine, theirs = loaded.query(ask(x, filters=filters)), store.query(ask(x, filters=filters))
        assert (mine.ids, mine.similarities, mine.nodes) == (
            theirs.ids,
            theirs.similarities,
            theirs.nodes,
        )


def test_awaited_calls_do_the_same(nodes: list[TextNode], x: np.ndarray) -> None:
    async def calls() -> list[Any]:
        store = SparseVectorStore()
        await store.async_add(nodes[:50])
        first = (await store.aquery(ask(x))).ids
        await store.adelete("doc 1")
        await store.adelete_nodes(["node 3"])
        rest = len(await store.aget_nodes())
        await store.aclear()
        return [first, rest, store.count]

    store = SparseVectorStore()
    store.add(nodes[:50])
    assert asyncio.run(calls()) == [store.query(ask(x)).ids, 39, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s, x: s.query(VectorStoreQuery()), "no query_embedding"),
        (lambda s, x: s.query(ask(x, mode=VectorStoreQueryMode.HYBRID)), "mode is hybrid"),
        (lambda s, x: s.query(VectorStoreQuery(query_embedding=[1.0])), "columns"),
        (lambda s, x: s.add([TextNode(text="no vector")]), "embedding not set"),
        (lambda s, x: s.add([TextNode(text="short", embedding=[1.0])]), "same model"),
        (lambda s, x: s.persist("p", fs="s3"), "local folders only"),
        (lambda s, x: s.from_persist_path("p", fs="s3"), "local folders only"),
        (lambda s, x: SparseVectorStore(k=0), "k is 0"),
    ],
)
def test_bad_calls_say_what_was_expected(
    nodes: list[TextNode], x: np.ndarray, call: Any, match: str
) -> None:
    store = SparseVectorStore()
    store.add(nodes[:3])
    with pytest.raises(ValueError, match=match):
        call(store, x)
    assert store.count == 3
