"""Haystack's own tests of document stores, and the retriever in a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.dataclasses import ByteStream
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing.document_store import DocumentStoreBaseTests

from sparse_retrieval.integrations.haystack import SparseDocumentStore, SparseRetriever


class TestHaystacksOwn(DocumentStoreBaseTests):
    @pytest.fixture
    def document_store(self) -> SparseDocumentStore:
        return SparseDocumentStore()

    def assert_documents_are_equal(
        self, received: list[Document], expected: list[Document]
    ) -> None:
        # embeddings are not given back: they are held compressed
        def plain(documents: list[Document]) -> list[dict[str, Any]]:
            rows = [one.to_dict(flatten=False) for one in documents]
            return sorted(({**row, "embedding": None} for row in rows), key=lambda row: row["id"])

        assert plain(received) == plain(expected)

    def test_write_documents(self, document_store: SparseDocumentStore) -> None:
        """Their default policy is the store's to choose; ours is to refuse."""
        document = Document(content="a")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError, match="in the store already"):
            document_store.write_documents([document])
        assert document_store.count_documents() == 1


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    x = np.random.default_rng(0).standard_normal((300, 16))
    return [
        Document(id=str(i), content=f"text {i}", meta={"even": i % 2 == 0}, embedding=row.tolist())
        for i, row in enumerate(x)
    ]


EVEN = {"field": "meta.even", "operator": "==", "value": True}


@pytest.mark.parametrize("filters", [None, EVEN])
def test_exact_vectors_answer_as_haystacks_own_store(
    documents: list[Document], filters: dict[str, Any] | None
) -> None:
    ours, theirs = (
        SparseDocumentStore(),
        InMemoryDocumentStore(embedding_similarity_function="cosine"),
    )
    for store in (ours, theirs):
        store.write_documents(documents[:290])
    for query in documents[290:]:
        assert query.embedding is not None
        mine = ours.embedding_retrieval(query.embedding, filters, 7)
        expected = theirs.embedding_retrieval(query.embedding, filters=filters, top_k=7)
        assert [one.id for one in mine] == [one.id for one in expected]
        assert [one.score for one in mine] == pytest.approx([one.score for one in expected])


def test_the_retriever_runs_in_a_pipeline_and_is_described_by_it(
    documents: list[Document],
) -> None:
    store = SparseDocumentStore(k=8, compress_at=200)
    store.write_documents(documents)
    assert store.is_compressed
    pipeline = Pipeline()
    pipeline.add_component("retriever", SparseRetriever(store, filters=EVEN, top_k=3))
    query = documents[8].embedding
    found = pipeline.run({"retriever": {"query_embedding": query}})["retriever"]["documents"]
    assert found[0].id == "8"
    assert len(found) == 3
    assert all(one.meta["even"] for one in found)
    # Haystack loads classes of modules only that it is told to trust
    trusted = ["sparse_retrieval.integrations.haystack"]
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=trusted)
    again = loaded.get_component("retriever")
    assert (again.top_k, again.filters) == (3, EVEN)
    assert again.document_store.to_dict() == store.to_dict()


def test_documents_of_every_kind_survive_saving(tmp_path: Path) -> None:
    store = SparseDocumentStore()
    store.write_documents(
        [
            Document(id="plain", content="no embedding", meta={"tags": ["a"]}),
            Document(
                id="blob", blob=ByteStream(b"\x00\xff", mime_type="x/y"), embedding=[1.0, 0.0]
            ),
        ]
    )
    store.save(tmp_path)
    loaded = SparseDocumentStore.load(tmp_path)
    assert loaded.filter_documents() == store.filter_documents()
    assert [one.id for one in loaded.embedding_retrieval([1.0, 0.0])] == ["blob"]
    loaded.write_documents(
        [Document(id="blob", content="now without")], policy=DuplicatePolicy.OVERWRITE
    )
    assert loaded.embedding_retrieval([1.0, 0.0]) == []
    assert loaded.count_documents() == 2


def test_bad_calls_say_what_was_expected(documents: list[Document]) -> None:
    store = SparseDocumentStore()
    store.write_documents(documents[:3])
    with pytest.raises(ValueError, match="columns"):
        store.embedding_retrieval([1.0])
    with pytest.raises(ValueError, match="top_k is 0"):
        SparseRetriever(store, top_k=0)
    with pytest.raises(TypeError, match="expected SparseDocumentStore"):
        SparseRetriever("store")  # type: ignore[arg-type]
