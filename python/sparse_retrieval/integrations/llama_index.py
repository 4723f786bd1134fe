"""A LlamaIndex vector store that holds embeddings as short codes.

Needs the extra ``llama-index``. Keeps the nodes too (``stores_text``), so no other store is
needed for them. What the store does with records and vectors is in `_store`; here is how
LlamaIndex calls it. Filters mean what they mean to LlamaIndex's own `SimpleVectorStore`; they
may be nested too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_retrieval._extras import require
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.integrations._store import COMPRESS_AT, Compressing, Store

require("llama_index.core", "sparse_retrieval.integrations.llama_index")

from llama_index.core.bridge.pydantic import PrivateAttr  # noqa: E402
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings  # noqa: E402
from llama_index.core.schema import BaseNode  # noqa: E402
from llama_index.core.vector_stores.types import (  # noqa: E402
    BasePydanticVectorStore,
    FilterCondition,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (  # noqa: E402
    build_metadata_filter_fn,
    metadata_dict_to_node,
    node_to_metadata_dict,
)

__all__ = ["SparseVectorStore"]

_KIND = "llama_index nodes"

#: Where `StorageContext.persist` has the vector store of its default namespace written.
_DEFAULT_NAME = "default__vector_store.json"

#: Nearest nodes that "mmr" chooses from, for each that is returned.
_MMR_PREFETCH = 4


class SparseVectorStore(Compressing, BasePydanticVectorStore):
    """Nodes found by embeddings of some 70 bytes instead of 1,500.

    Parameters
    ----------
    dictionary : Dictionary, optional
        To compress with; best learnt from many vectors of the same model. Default: one is learnt
        from the nodes.
    k : int, default 32
        Nonzeros of a compressed vector.
    value_bits : float, default 4
        As in `SparseIndex.from_codes`.
    compress_at : int or None, default 10,000
        Vectors are held exactly until there are so many, then all are compressed, within the call
        that added the last of them. None: not before :meth:`compress`.

    Examples
    --------
    >>> from llama_index.core.schema import TextNode
    >>> from llama_index.core.vector_stores.types import VectorStoreQuery
    >>> from sparse_retrieval.integrations.llama_index import SparseVectorStore
    >>> store = SparseVectorStore()
    >>> store.add([TextNode(id_="a", text="an apple", embedding=[1.0, 0.0])])
    ['a']
    >>> store.query(VectorStoreQuery(query_embedding=[2.0, 0.0])).similarities
    [1.0]
    """

    stores_text: bool = True
    is_embedding_query: bool = True

    _store: Store = PrivateAttr()

    def __init__(
        self,
        *,
        dictionary: Dictionary | None = None,
        k: int = 32,
        value_bits: float = 4,
        compress_at: int | None = COMPRESS_AT,
    ) -> None:
        super().__init__(stores_text=True, is_embedding_query=True)
        self._store = Store(
            dictionary=dictionary, k=k, value_bits=value_bits, compress_at=compress_at
        )

    @classmethod
    def class_name(cls) -> str:
        """``"SparseVectorStore"``."""
        return "SparseVectorStore"

    @property
    def client(self) -> SparseIndex | None:
        """What is searched, None before the first node; not to be changed."""
        return self._store.index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes with their embeddings, or replace those with these ids.

        Parameters
        ----------
        nodes : sequence of BaseNode
        **kwargs
            Not used.

        Returns
        -------
        list of str
            The ids.

        Raises
        ------
        ValueError
            If a node has no embedding, or one of another width or that is not finite.
        """
        ids = [node.node_id for node in nodes]
        vectors = [node.get_embedding() for node in nodes]
        self._store.put(ids, [node_to_metadata_dict(node) for node in nodes], vectors)
        return ids

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As :meth:`add`, in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document.

        Parameters
        ----------
        ref_doc_id : str
            One that no node has is passed over.
        **delete_kwargs
            Not used.
        """
        self._store.drop(self._store.where(lambda _, record: record["ref_doc_id"] == ref_doc_id))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove nodes that have one of these ids and pass the filters.

        Parameters
        ----------
        node_ids : list of str, optional
            Default: any.
        filters : MetadataFilters, optional
            Default: any.
        **delete_kwargs
            Not used.
        """
        self._store.drop(self._chosen(node_ids, None, filters))

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes that have one of these ids and pass the filters, in the order they came in."""
        records = self._store.records
        return [
            metadata_dict_to_node(records[item])
            for item in self._chosen(node_ids, None, filters)
            if item in records
        ]

    def clear(self) -> None:
        """Remove all nodes."""
        self._store.clear()

    def _chosen(
        self,
        node_ids: list[str] | None,
        doc_ids: list[str] | None,
        filters: MetadataFilters | None,
    ) -> list[str]:
        of_nodes = None if node_ids is None else set(node_ids)
        of_documents = None if doc_ids is None else set(doc_ids)
        return self._store.where(
            lambda item, record: (
                (of_nodes is None or item in of_nodes)
                and (of_documents is None or record["ref_doc_id"] in of_documents)
                and (filters is None or _passes(filters, record))
            )
        )

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to a vector, and their cosines, best first.

        Parameters
        ----------
        query : VectorStoreQuery
            ``query_embedding``, ``similarity_top_k``, ``node_ids``, ``doc_ids`` (of both, none
            means all), ``filters``, and ``mode``: "default" or "mmr" (with ``mmr_threshold``,
            whose default is 0.5).
        **kwargs
            ``mmr_threshold``, as LlamaIndex's retrievers hand it on.

        Returns
        -------
        VectorStoreQueryResult
            With nodes, similarities and ids.

        Raises
        ------
        ValueError
            If there is no vector, it is of another width, or the mode is another one.
        """
        if query.query_embedding is None:
            raise ValueError("the query has no query_embedding; this store is searched by vectors")
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise ValueError(
                f'the query\'s mode is {query.mode.value}; expected "default" or "mmr"'
            )
        # an index over a store of texts keeps no ids of its own, and asks with an empty list
        limits = (query.node_ids or None, query.doc_ids or None, query.filters)
        allowed = None if all(limit is None for limit in limits) else self._chosen(*limits)
        top_k = query.similarity_top_k
        if query.mode == VectorStoreQueryMode.MMR:
            found = self._diverse(query, top_k, allowed, kwargs.get("mmr_threshold"))
        else:
            found = self._store.search(query.query_embedding, top_k, allowed)
        records = self._store.records
        found = [pair for pair in found if pair[0] in records]
        return VectorStoreQueryResult(
            nodes=[metadata_dict_to_node(records[item]) for item, _ in found],
            similarities=[similarity for _, similarity in found],
            ids=[item for item, _ in found],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As :meth:`query`, in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _diverse(
        self,
        query: VectorStoreQuery,
        top_k: int,
        allowed: list[str] | None,
        threshold: float | None,
    ) -> list[tuple[str, float]]:
        assert query.query_embedding is not None  # the caller has checked
        nearest = self._store.search(query.query_embedding, _MMR_PREFETCH * top_k, allowed)
        ids = [item for item, _ in nearest]
        if not ids:
            return []
        scores, chosen = get_top_k_mmr_embeddings(
            query.query_embedding,
            self._store.vectors(ids).tolist(),
            similarity_top_k=top_k,
            embedding_ids=ids,
            mmr_threshold=query.mmr_threshold if threshold is None else threshold,
        )
        return list(zip(chosen, scores, strict=True))

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Write nodes and vectors to a folder; a reader finds the old ones or the new ones.

        Parameters
        ----------
        persist_path : str
            The folder, whatever its suffix: `StorageContext.persist` names files.
        fs : optional
            None; remote file systems cannot be mapped.

        Raises
        ------
        ValueError
            If a file system is given that is not the local one.
        OSError
            If the folder cannot be written to.
        """
        if fs is not None and type(fs).__name__ != "LocalFileSystem":
            raise ValueError(f"fs is {fs!r}; this store is written to local folders only")
        self._store.save(persist_path, _KIND)

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> SparseVectorStore:
        """Read a folder that :meth:`persist` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is no such folder, damaged, or a remote file system is given.
        """
        if fs is not None and type(fs).__name__ != "LocalFileSystem":
            raise ValueError(f"fs is {fs!r}; this store is read from local folders only")
        store = cls()
        store._store = Store.load(persist_path, _KIND)
        return store

    @classmethod
    def from_persist_dir(cls, persist_dir: str) -> SparseVectorStore:
        """Read the vector store that ``StorageContext.persist(persist_dir)`` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            As :meth:`from_persist_path`.
        """
        return cls.from_persist_path(str(Path(persist_dir) / _DEFAULT_NAME))


def _passes(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    if not filters.filters:
        return True
    passed = [
        _passes(one, metadata)
        if isinstance(one, MetadataFilters)
        else build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[one]))("")
        for one in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return any(passed)
    if filters.condition == FilterCondition.NOT:
        return not any(passed)
    return all(passed)
