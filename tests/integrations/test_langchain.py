"""LangChain's standard tests, in every state of the store; and what they cannot know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

import sparse_retrieval as sr
from sparse_retrieval.integrations.langchain import SparseVectorStore

#: The suite mixes both kinds of tests in one class, and only the async ones heed the mark.
runs_async_tests = pytest.mark.filterwarnings("ignore:The test .* but it is not an async function")


@runs_async_tests
@pytest.mark.asyncio
class TestStandardWhileVectorsAreExact(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        return SparseVectorStore(self.get_embeddings())


@runs_async_tests
@pytest.mark.asyncio
class TestStandardWithCompressedVectors(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        atoms = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
        return SparseVectorStore(
            self.get_embeddings(),
            dictionary=sr.Dictionary(np.concatenate([np.eye(6), atoms])),
            k=6,
            value_bits=8,
            compress_at=1,
        )


SAMPLE = Path(__file__).parents[2] / "examples" / "data"


class Sample(Embeddings):
    """Real embeddings of the sample, by the position that the text is."""

    def __init__(self) -> None:
        levels, scales = np.load(SAMPLE / "embeddings_i8.npy"), np.load(SAMPLE / "scales_f32.npy")
        self.x = (levels * scales.reshape(-1, 1)).astype(np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        row: list[float] = self.x[int(text)].tolist()
        return row


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [str(i) for i in range(1500)]


def metadata(text: str) -> dict[str, Any]:
    return {"even": int(text) % 2 == 0, "third": int(text) % 3}


@pytest.fixture(scope="module")
def stores(sample: Sample, texts: list[str]) -> tuple[SparseVectorStore, InMemoryVectorStore]:
    """The same documents in ours, exact, and in LangChain's own, which is the oracle."""
    metadatas = [metadata(text) for text in texts]
    return (
        SparseVectorStore.from_texts(texts, sample, metadatas, ids=texts, compress_at=None),
        InMemoryVectorStore.from_texts(texts, sample, metadatas, ids=texts),
    )


def found(store: VectorStore, query: str, **options: Any) -> list[str]:
    return [one.page_content for one in store.similarity_search(query, **options)]


def test_exact_vectors_answer_as_langchains_own_store(
    stores: tuple[SparseVectorStore, InMemoryVectorStore],
) -> None:
    ours, theirs = stores
    assert not ours.is_compressed
    for query in ("1600", "1700", "7"):
        mine = ours.similarity_search_with_score(query, k=10)
        expected = theirs.similarity_search_with_score(query, k=10)
        assert [one.id for one, _ in mine] == [one.id for one, _ in expected]
        assert [one for one, _ in mine] == [one for one, _ in expected]
        for (_, score), (_, other) in zip(mine, expected, strict=True):
            assert score == pytest.approx(other, abs=1e-6)
        diverse = ours.max_marginal_relevance_search(query, k=5, fetch_k=20, lambda_mult=0.3)
        assert diverse == theirs.max_marginal_relevance_search(
            query, k=5, fetch_k=20, lambda_mult=0.3
        )
        assert diverse != [one for one, _ in mine[:5]]


def test_filters_are_functions_or_values_of_metadata(
    stores: tuple[SparseVectorStore, InMemoryVectorStore],
) -> None:
    ours, theirs = stores

    def chosen(document: Document) -> bool:
        return bool(document.metadata["even"] and document.metadata["third"] == 1)

    expected = found(theirs, "1600", k=8, filter=chosen)
    assert found(ours, "1600", k=8, filter=chosen) == expected
    assert found(ours, "1600", k=8, filter={"even": True, "third": 1}) == expected
    assert found(ours, "1600", filter={"third": 9}) == []
    assert found(ours, "1600", filter={"unknown": None}) == []
    retriever = ours.as_retriever(search_kwargs={"k": 8, "filter": {"even": True, "third": 1}})
    assert [one.page_content for one in retriever.invoke("1600")] == expected
    with pytest.raises(TypeError, match="filter is 3; expected a function"):
        ours.similarity_search("1600", filter=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"unknown arguments \['where'\]"):
        ours.similarity_search("1600", where={})


def test_enough_documents_are_compressed_and_still_found(
    sample: Sample, texts: list[str], stores: tuple[SparseVectorStore, InMemoryVectorStore]
) -> None:
    store = SparseVectorStore(sample, compress_at=1000)
    for first in range(0, 1500, 250):
        part = texts[first : first + 250]
        store.add_texts(part, [metadata(text) for text in part], ids=part)
        assert store.is_compressed == (first + 250 >= 1000)
    assert store.index is not None
    assert store.index.bytes_per_item < 70
    assert store.count == len(store.index) == 1500
    shares = [
        len({*found(store, q, k=10)} & {*found(stores[1], q, k=10)}) / 10
        for q in map(str, range(1500, 1530))
    ]
    assert np.mean(shares) > 0.65  # 128 atoms of 1,000 vectors decode roughly
    assert all(found(store, text, k=1) == [text] for text in texts[::50])
    store.add_texts(["1501"], ids=["7"])  # replaces
    assert found(store, "1501", k=1) == ["1501"]
    assert store.get_by_ids(["7"])[0].page_content == "1501"
    assert store.delete(["7", "no such"])
    assert found(store, "1501", k=1) != ["1501"]
    assert store.count == len(store.index) == 1499
    diverse = store.max_marginal_relevance_search("1501", k=3)
    assert len({one.id for one in diverse}) == 3
    with pytest.raises(ValueError, match="compressed already"):
        store.compress()
    store.delete()
    assert (store.count, store.is_compressed, found(store, "3")) == (0, False, [])


def test_relevance_scores_are_between_0_and_1(
    stores: tuple[SparseVectorStore, InMemoryVectorStore],
) -> None:
    store = stores[0]
    relevant = store.similarity_search_with_relevance_scores("1600", k=3)
    cosines = store.similarity_search_with_score("1600", k=3)
    for (_, score), (_, cosine) in zip(relevant, cosines, strict=True):
        assert score == pytest.approx((1 + cosine) / 2)
    assert store.similarity_search_with_relevance_scores("1600", score_threshold=0.999) == []


@pytest.mark.parametrize("compress", [False, True])
def test_a_saved_store_answers_the_same_and_is_replaced_whole(
    sample: Sample, texts: list[str], tmp_path: Path, compress: bool
) -> None:
    some = texts[:400]
    store = SparseVectorStore.from_texts(some, sample, [metadata(t) for t in some], ids=some)
    if compress:
        store.compress()
    for text in ("", " changed"):
        store.add_documents([Document(id="x", page_content="1550", metadata={"note": text})])
        store.save(tmp_path / "store")
        loaded = SparseVectorStore.load(tmp_path / "store", sample)
        assert loaded.is_compressed == compress
        assert loaded.get_by_ids(["x", "5"]) == store.get_by_ids(["x", "5"])
        assert loaded.similarity_search_with_score("1601", k=9) == (
            store.similarity_search_with_score("1601", k=9)
        )
        assert len(list((tmp_path / "store").iterdir())) == 3  # nothing of the older save is left
    loaded.add_texts(["1602"], ids=["new"])
    assert found(loaded, "1602", k=1) == ["1602"]


def test_a_store_with_a_dictionary_of_its_own_keeps_it_when_saved(
    sample: Sample, tmp_path: Path
) -> None:
    dictionary = sr.Dictionary.fit(sample.x[:2000], n_atoms=128, k=16, rounds=1)
    store = SparseVectorStore(sample, dictionary=dictionary, k=16, compress_at=20)
    store.save(tmp_path / "empty")
    store = SparseVectorStore.load(tmp_path / "empty", sample)
    store.add_texts(list(map(str, range(19))))
    assert not store.is_compressed
    store.save(tmp_path / "exact")
    store = SparseVectorStore.load(tmp_path / "exact", sample)
    store.add_texts(["19"])
    assert store.is_compressed
    assert store.index is not None
    assert store.index.dictionary is not None
    assert np.array_equal(store.index.dictionary.atoms, dictionary.atoms)


def test_a_vector_with_fewer_nonzeros_than_all_before_it_is_taken_too(sample: Sample) -> None:
    """Codebooks learnt from rows of 16 nonzeros have no level for none: an atom has one nonzero."""
    dictionary = sr.Dictionary.fit(sample.x[:2000], n_atoms=128, k=16, rounds=1)
    store = SparseVectorStore(sample, dictionary=dictionary, k=16, compress_at=100)
    store.add_texts(list(map(str, range(100))), ids=list(map(str, range(100))))
    sample.x[16_000] = dictionary.atoms[5]
    assert dictionary.encode(sample.x[16_000:16_001], k=16).nnz == 1
    store.add_texts(["16000", "200"], ids=["atom", "5"])
    assert found(store, "16000", k=1) == ["16000"]
    assert found(store, "200", k=1) == ["200"]
    assert store.count == 101


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda f: (f / "store.json").unlink(), FileNotFoundError, "holds no store.json"),
        (lambda f: (f / "store.json").write_text("{"), ValueError, "no readable JSON"),
        (lambda f: (f / "store.json").write_text("{}"), ValueError, "does not describe"),
        (lambda f: edit(f, version=9), ValueError, "version 9, this release reads 1"),
        (lambda f: edit(f, kind="other"), ValueError, "holds 'other'; expected"),
        (lambda f: (f / "records-1.jsonl").write_text(""), ValueError, "a vector of '1'"),
        (lambda f: (f / "records-1.jsonl").unlink(), FileNotFoundError, "records-1.jsonl"),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, damage: Any, error: type[Exception], match: str
) -> None:
    embedding = DeterministicFakeEmbedding(size=6)
    SparseVectorStore.from_texts(["a"], embedding, ids=["1"]).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=match):
        SparseVectorStore.load(tmp_path, embedding)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_saved_leaves_the_old_files(tmp_path: Path) -> None:
    embedding = DeterministicFakeEmbedding(size=6)
    store = SparseVectorStore.from_texts(["a"], embedding, ids=["1"])
    store.save(tmp_path)
    store.add_texts(["b"], [{"set": {1}}], ids=["2"])
    with pytest.raises(TypeError, match="record '2' is not JSON-serialisable"):
        store.save(tmp_path)
    assert SparseVectorStore.load(tmp_path, embedding).count == 1


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda s: s.add_texts(["a"], ids=["1", "2"]), ValueError, "2 ids and 1 documents"),
        (lambda s: s.add_documents([Document("a")], ids=[3]), TypeError, "id 3 is int"),
        (lambda s: s.similarity_search_by_vector([1.0]), ValueError, "columns"),
        (lambda s: s.similarity_search("a", k=0), ValueError, "k is 0"),
        (lambda s: s.compress(), ValueError, "at least 100"),
        (lambda s: s.add_texts(["a"], where=1), TypeError, "unknown arguments"),
        (lambda s: s._store.put(["a"], [{}], [[1.0]]), ValueError, "same model"),
        (lambda s: s._store.put(["a"], [{}], [[np.nan] * 6]), ValueError, "holds nan"),
        (lambda s: SparseVectorStore(s.embedding, k=0), ValueError, "k is 0"),
        (lambda s: SparseVectorStore(s.embedding, dictionary=3), TypeError, "expected Dictionary"),
        (lambda s: SparseVectorStore(s.embedding).compress(), ValueError, "no vectors"),
    ],
)
def test_bad_calls_say_what_was_expected(call: Any, error: type[Exception], match: str) -> None:
    store = SparseVectorStore.from_texts(["a", "b"], DeterministicFakeEmbedding(size=6))
    with pytest.raises(error, match=match):
        call(store)
    assert store.count == 2


def test_many_changes_are_folded_into_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_retrieval.integrations._store._FOLD_AT", 8)
    embedding = DeterministicFakeEmbedding(size=6)
    store, names = SparseVectorStore(embedding), [str(i) for i in range(60)]
    for name in names:
        store.add_texts([name], ids=[name])
        assert store.index is not None
        assert store.index.stats()["changes"]["added"] <= max(8, store.count // 4)
    store.delete(names[::2])
    assert [found(store, name, k=1) for name in names[1::2]] == [[name] for name in names[1::2]]


def test_langchains_indexing_brings_the_store_up_to_date() -> None:
    store = SparseVectorStore(DeterministicFakeEmbedding(size=6))
    manager = InMemoryRecordManager("sparse")
    manager.create_schema()

    def sync(*texts: str) -> dict[str, int]:
        documents = [Document(text, metadata={"source": text[0]}) for text in texts]
        options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source"}
        result = index(documents, manager, store, key_encoder="sha256", **options)
        return {key: count for key, count in result.items() if count}  # type: ignore[misc]

    assert sync("a 1", "b 1") == {"num_added": 2}
    assert sync("a 1", "b 2") == {"num_added": 1, "num_skipped": 1, "num_deleted": 1}
    assert sorted(found(store, "a 1", k=5)) == ["a 1", "b 2"]
