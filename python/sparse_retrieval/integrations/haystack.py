"""A Haystack document store that holds embeddings as short codes, and its retriever.

Needs the extra ``haystack``. The store passes Haystack's own tests for document stores. What it
does with records and vectors is in `_store`; here is how Haystack calls it.
"""

from __future__ import annotations

import os
from typing import Any

from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.integrations._store import COMPRESS_AT, Store

require("haystack", "sparse_retrieval.integrations.haystack")

from haystack import Document, component, default_from_dict, default_to_dict  # noqa: E402
from haystack.document_stores.errors import DuplicateDocumentError  # noqa: E402
from haystack.document_stores.types import DuplicatePolicy  # noqa: E402
from haystack.utils.filters import document_matches_filter  # noqa: E402

__all__ = ["SparseDocumentStore", "SparseRetriever"]

_KIND = "haystack documents"


class SparseDocumentStore:
    """Documents found by embeddings of some 70 bytes instead of 1,500.

    Documents without an embedding are kept too, and found by filters alone. Embeddings themselves
    are not given back.

    Parameters
    ----------
    k : int, default 32
        Nonzeros of a compressed vector.
    value_bits : float, default 4
        As in `SparseIndex.from_codes`.
    compress_at : int or None, default 10,000
        Vectors are held exactly until there are so many, then all are compressed, within the call
        that added the last of them. None: never.

    Examples
    --------
    >>> from haystack import Document
    >>> from sparse_retrieval.integrations.haystack import SparseDocumentStore, SparseRetriever
    >>> store = SparseDocumentStore()
    >>> store.write_documents([Document(content="an apple", embedding=[1.0, 0.0])])
    1
    >>> SparseRetriever(store).run([1.0, 0.1])["documents"][0].content
    'an apple'
    """

    def __init__(
        self, k: int = 32, value_bits: float = 4, compress_at: int | None = COMPRESS_AT
    ) -> None:
        self._store = Store(k=k, value_bits=value_bits, compress_at=compress_at)

    @property
    def index(self) -> SparseIndex | None:
        """What is searched, None before the first embedding; not to be changed."""
        return self._store.index

    @property
    def is_compressed(self) -> bool:
        """Whether vectors are held as codes by now."""
        return self._store.is_compressed

    def to_dict(self) -> dict[str, Any]:
        """The store's parameters, for a pipeline's description; its documents are not in it."""
        described: dict[str, Any] = default_to_dict(
            self,
            k=self._store.k,
            value_bits=self._store.value_bits,
            compress_at=self._store.compress_at,
        )
        return described

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SparseDocumentStore:
        """An empty store with the parameters that :meth:`to_dict` gave."""
        store: SparseDocumentStore = default_from_dict(cls, data)
        return store

    def count_documents(self) -> int:
        """The number of documents."""
        return len(self._store)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Documents that pass the filters, in the order they came in.

        Parameters
        ----------
        filters : dict, optional
            Haystack's: comparisons, and logic over them. Default: all.

        Raises
        ------
        haystack.errors.FilterError
            If the filters are not well formed.
        """
        return [_document(record) for _, record in self._matching(filters)]

    def _matching(self, filters: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
        records = list(self._store.records.items())
        if not filters:
            return records
        if "operator" not in filters and "conditions" not in filters:
            raise ValueError(
                "filters have neither 'operator' nor 'conditions'; expected Haystack's syntax"
            )
        return [
            (item, record)
            for item, record in records
            if document_matches_filter(filters=filters, document=_document(record))
        ]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Add documents.

        Parameters
        ----------
        documents : list of Document
        policy : DuplicatePolicy, default NONE
            For ids that are there already: FAIL and NONE refuse all, SKIP leaves the old ones,
            OVERWRITE replaces them.

        Returns
        -------
        int
            How many were written.

        Raises
        ------
        ValueError
            If they are no list of documents, or an embedding is not sound.
        haystack.document_stores.errors.DuplicateDocumentError
            By the policy.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("documents are no list of Document")
        with self._store.lock:
            known = {one.id for one in documents if one.id in self._store.records}
            if known and policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
                raise DuplicateDocumentError(f"id {min(known)!r} is in the store already")
            if policy == DuplicatePolicy.SKIP:
                documents = [one for one in documents if one.id not in known]
            records = []
            for one in documents:
                record = one.to_dict(flatten=False)
                record["embedding"] = None
                records.append(record)
            self._store.put([d.id for d in documents], records, [d.embedding for d in documents])
        return len(documents)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Remove documents; ids that are not there are passed over."""
        self._store.drop(document_ids)

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> list[Document]:
        """The documents nearest to a vector, with their cosines as scores, best first.

        Parameters
        ----------
        query_embedding : list of float
        filters : dict, optional
            As in :meth:`filter_documents`.
        top_k : int, default 10

        Raises
        ------
        ValueError
            If the vector is of another width, or top_k is less than 1.
        """
        allowed = [item for item, _ in self._matching(filters)] if filters else None
        records = self._store.records
        found = []
        for item, score in self._store.search(query_embedding, top_k, allowed):
            if item in records:
                found.append(Document.from_dict({**records[item], "score": score}))
        return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write documents and vectors to a folder; a reader finds the old ones or the new ones.

        Raises
        ------
        TypeError
            If metadata are not JSON-serialisable.
        OSError
            If the folder cannot be written to.
        """
        self._store.save(folder, _KIND)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SparseDocumentStore:
        """Read a folder that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is no such folder, or damaged.
        """
        store = cls()
        store._store = Store.load(folder, _KIND)
        return store


@component
class SparseRetriever:
    """A pipeline's component that asks a `SparseDocumentStore` by embeddings.

    A pipeline with it is read by ``Pipeline.loads(text, allowed_modules=[..])`` with this module's
    name: Haystack trusts its own modules alone.

    Parameters
    ----------
    document_store : SparseDocumentStore
    filters : dict, optional
        Where a run gives none.
    top_k : int, default 10
        Where a run gives none.
    """

    def __init__(
        self,
        document_store: SparseDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> None:
        if not isinstance(document_store, SparseDocumentStore):
            raise TypeError(
                f"document_store is {type(document_store).__name__}; expected SparseDocumentStore"
            )
        self.document_store = document_store
        self.filters = filters
        self.top_k = as_count(top_k, "top_k")

    def to_dict(self) -> dict[str, Any]:
        """The component's parameters, for a pipeline's description."""
        described: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
        )
        return described

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component that :meth:`to_dict` describes, over an empty store."""
        parameters = dict(data["init_parameters"])
        store = parameters["document_store"]
        if isinstance(store, dict):
            store = SparseDocumentStore.from_dict(store)
        return default_from_dict(
            cls, {**data, "init_parameters": {**parameters, "document_store": store}}
        )

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """The documents nearest to the embedding.

        Parameters
        ----------
        query_embedding : list of float
        filters : dict, optional
        top_k : int, optional
            Default of both: the component's own.

        Returns
        -------
        dict
            ``documents``, with scores, best first.
        """
        documents = self.document_store.embedding_retrieval(
            query_embedding,
            self.filters if filters is None else filters,
            self.top_k if top_k is None else top_k,
        )
        return {"documents": documents}


def _document(record: dict[str, Any]) -> Document:
    return Document.from_dict(dict(record))
