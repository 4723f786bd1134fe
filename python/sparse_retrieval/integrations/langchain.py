"""A LangChain vector store that holds embeddings as short codes.

Needs the extra ``langchain``. Passes the standard tests for vector stores of ``langchain-tests``.
What the store does with records and vectors is in `_store`; here is how LangChain calls it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.integrations._store import COMPRESS_AT, Compressing, Store

require("langchain_core", "sparse_retrieval.integrations.langchain")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.runnables.config import run_in_executor  # noqa: E402
from langchain_core.vectorstores import VectorStore  # noqa: E402
from langchain_core.vectorstores.utils import maximal_marginal_relevance  # noqa: E402

__all__ = ["SparseVectorStore"]

#: What may choose documents: a function, or metadata that must be equal.
Filter = Callable[[Document], bool] | dict[str, Any]

_KIND = "langchain documents"


class SparseVectorStore(Compressing, VectorStore):
    """Documents found by embeddings of some 70 bytes instead of 1,500.

    Parameters
    ----------
    embedding : Embeddings
        Makes vectors of texts and queries.
    dictionary : Dictionary, optional
        To compress with; best learnt from many vectors of the same model. Default: one is learnt
        from the documents.
    k : int, default 32
        Nonzeros of a compressed vector.
    value_bits : float, default 4
        As in `SparseIndex.from_codes`.
    compress_at : int or None, default 10,000
        Vectors are held exactly until there are so many, then all are compressed, within the call
        that added the last of them. None: not before :meth:`compress`.

    Examples
    --------
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from sparse_retrieval.integrations.langchain import SparseVectorStore
    >>> store = SparseVectorStore(DeterministicFakeEmbedding(size=64))
    >>> store.add_texts(["an apple", "a boat"], [{"kind": "fruit"}, {}], ids=["1", "2"])
    ['1', '2']
    >>> [document.page_content for document in store.similarity_search("a boat", k=1)]
    ['a boat']
    >>> [document.id for document in store.similarity_search("a boat", filter={"kind": "fruit"})]
    ['1']
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        dictionary: Dictionary | None = None,
        k: int = 32,
        value_bits: float = 4,
        compress_at: int | None = COMPRESS_AT,
    ) -> None:
        self.embedding = embedding
        self._store = Store(
            dictionary=dictionary, k=k, value_bits=value_bits, compress_at=compress_at
        )

    @property
    def embeddings(self) -> Embeddings:
        """What makes vectors of texts."""
        return self.embedding

    @property
    def index(self) -> SparseIndex | None:
        """What is searched, None before the first document; not to be changed."""
        return self._store.index

    def add_documents(
        self,
        documents: list[Document],
        ids: Sequence[str | None] | None = None,
        *,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add documents, or replace those with these ids.

        Parameters
        ----------
        documents : list of Document
        ids : sequence of str or None, optional
            Default: the documents' own. Where there is none, a new one is made.
        batch_size : int, optional
            Texts that the embedding is given at once. Default: all.
        **kwargs
            None is known.

        Returns
        -------
        list of str
            The ids.

        Raises
        ------
        TypeError, ValueError
            If there are more or fewer ids than documents, or vectors are not sound.
        """
        _refuse(kwargs)
        names, vectors = _names(documents, ids), []
        for texts in _batches(documents, batch_size):
            vectors += self.embedding.embed_documents(texts)
        return self._put(names, documents, vectors)

    async def aadd_documents(
        self,
        documents: list[Document],
        ids: Sequence[str | None] | None = None,
        *,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As :meth:`add_documents`, with the embedding awaited."""
        _refuse(kwargs)
        names, vectors = _names(documents, ids), []
        for texts in _batches(documents, batch_size):
            vectors += await self.embedding.aembed_documents(texts)
        return await run_in_executor(None, self._put, names, documents, vectors)

    def _put(
        self, names: list[str], documents: list[Document], vectors: list[list[float]]
    ) -> list[str]:
        records = [{"text": one.page_content, "metadata": dict(one.metadata)} for one in documents]
        self._store.put(names, records, vectors)
        return names

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents.

        Parameters
        ----------
        ids : sequence of str, optional
            Ids that are not there are passed over. Default: all documents.
        **kwargs
            None is known.

        Returns
        -------
        bool
            True.
        """
        _refuse(kwargs)
        if ids is None:
            self._store.clear()
        else:
            self._store.drop(ids)
        return True

    async def adelete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """As :meth:`delete`."""
        return await run_in_executor(None, self.delete, ids, **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids, in their order; ids that are not there are passed over."""
        records = self._store.records
        return [_document(item, records[item]) for item in ids if item in records]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As :meth:`get_by_ids`."""
        return self.get_by_ids(ids)

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k nearest documents and their cosines, best first.

        Parameters
        ----------
        embedding : sequence of float, shape (d,)
        k : int, default 4
        filter : callable or dict, optional
            Which documents may be found: ``filter(document)`` is true, or their metadata have
            these values. All documents are asked, so it costs time with their number.
        **kwargs
            None is known.

        Raises
        ------
        TypeError, ValueError
            If the filter is neither, or the vector of another width.
        """
        _refuse(kwargs)
        found = self._store.search(embedding, k, self._allowed(filter))
        records = self._store.records
        # a document may have gone between the search and here
        return [(_document(item, records[item]), s) for item, s in found if item in records]

    def _allowed(self, chosen: Filter | None) -> list[str] | None:
        if chosen is None:
            return None
        if isinstance(chosen, dict):
            wanted = list(chosen.items())
            return self._store.where(
                lambda _, record: all(
                    name in record["metadata"] and record["metadata"][name] == value
                    for name, value in wanted
                )
            )
        if not callable(chosen):
            raise TypeError(
                f"filter is {chosen!r}; expected a function of a Document, or a dict of metadata"
            )
        return self._store.where(lambda item, record: bool(chosen(_document(item, record))))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As :meth:`similarity_search_with_score_by_vector`, of a text."""
        vector = self.embedding.embed_query(query)
        return self.similarity_search_with_score_by_vector(vector, k, filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As :meth:`similarity_search_with_score`, with the embedding awaited."""
        vector = await self.embedding.aembed_query(query)
        return await run_in_executor(
            None, self.similarity_search_with_score_by_vector, vector, k, filter, **kwargs
        )

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`similarity_search_with_score_by_vector`, documents alone."""
        found = self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        return [document for document, _ in found]

    async def asimilarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`similarity_search_by_vector`."""
        return await run_in_executor(
            None, self.similarity_search_by_vector, embedding, k, filter, **kwargs
        )

    def similarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k nearest documents of a text, best first; see the methods with scores."""
        return [one for one, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`similarity_search`, with the embedding awaited."""
        found = await self.asimilarity_search_with_score(query, k, filter, **kwargs)
        return [one for one, _ in found]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Near documents that differ from each other.

        Parameters
        ----------
        embedding : sequence of float, shape (d,)
        k : int, default 4
            Documents to return.
        fetch_k : int, default 20
            Nearest documents to choose them from.
        lambda_mult : float, default 0.5
            1 looks at nearness alone, 0 at difference alone.
        filter
            As in :meth:`similarity_search_with_score_by_vector`.
        **kwargs
            None is known.

        References
        ----------
        Carbonell & Goldstein, "The use of MMR" (SIGIR 1998).
        """
        _refuse(kwargs)
        found = self._store.search(embedding, fetch_k, self._allowed(filter))
        names = [item for item, _ in found]
        chosen = maximal_marginal_relevance(
            np.asarray(embedding, dtype=np.float32),
            list(self._store.vectors(names)),
            lambda_mult=lambda_mult,
            k=k,
        )
        return self.get_by_ids([names[at] for at in chosen])

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search_by_vector`, of a text."""
        return self.max_marginal_relevance_search_by_vector(
            self.embedding.embed_query(query), k, fetch_k, lambda_mult, filter, **kwargs
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, with the embedding awaited."""
        vector = await self.embedding.aembed_query(query)
        return await run_in_executor(
            None,
            self.max_marginal_relevance_search_by_vector,
            vector,
            k,
            fetch_k,
            lambda_mult,
            filter,
            **kwargs,
        )

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        # cosines, which may pass 1 by a little where they are estimates, as shares of 1
        return lambda cosine: min(max((1.0 + cosine) / 2.0, 0.0), 1.0)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> SparseVectorStore:
        """A store of these texts.

        Parameters
        ----------
        texts : list of str
        embedding : Embeddings
        metadatas : list of dict, optional
            One a text.
        ids : list of str, optional
            One a text.
        **kwargs
            Parameters of the store.
        """
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> SparseVectorStore:
        """As :meth:`from_texts`, with the embedding awaited."""
        store = cls(embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write documents and vectors to a folder; a reader finds the old ones or the new ones.

        Raises
        ------
        TypeError
            If metadata are not JSON-serialisable; the message has the document's id.
        OSError
            If the folder cannot be written to.
        """
        self._store.save(folder, _KIND)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], embedding: Embeddings) -> SparseVectorStore:
        """Read a folder that :meth:`save` wrote.

        Parameters
        ----------
        folder : path-like
        embedding : Embeddings
            The one that made the vectors.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is no such folder, or damaged.
        """
        store = cls(embedding)
        store._store = Store.load(folder, _KIND)
        return store


def _document(item: str, record: dict[str, Any]) -> Document:
    return Document(id=item, page_content=record["text"], metadata=dict(record["metadata"]))


def _names(documents: list[Document], ids: Sequence[str | None] | None) -> list[str]:
    given = [one.id for one in documents] if ids is None else list(ids)
    if len(given) != len(documents):
        raise ValueError(
            f"there are {len(given)} ids and {len(documents)} documents; expected as many"
        )
    return [item or str(uuid.uuid4()) for item in given]


def _batches(documents: list[Document], size: int | None) -> Iterator[list[str]]:
    texts = [one.page_content for one in documents]
    step = max(len(texts), 1) if size is None else as_count(size, "batch_size")
    for first in range(0, len(texts), step):
        yield texts[first : first + step]


def _refuse(unknown: dict[str, Any]) -> None:
    if unknown:
        raise TypeError(f"unknown arguments {sorted(unknown)}; see the method's docstring")
