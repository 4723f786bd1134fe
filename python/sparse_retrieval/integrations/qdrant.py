"""Codes as Qdrant's sparse vectors, and back.

Needs the extra ``qdrant``. Qdrant scores sparse vectors by their inner product, which is what an
index here does up to the scale of each item; so items are uploaded with their scale multiplied in,
a query becomes its weights, and both engines return the same order. Two things differ: Qdrant
returns items only that share a latent with the query, and a dictionary's mean, which adds the same
to all scores of a query, is left out.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count, as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._ids import as_ids
from sparse_retrieval.codes import SparseCodes, as_codes, holds_codes
from sparse_retrieval.index import SparseIndex

require("qdrant_client", "sparse_retrieval.integrations.qdrant")

from qdrant_client import QdrantClient, models  # noqa: E402

__all__ = [
    "Downloaded",
    "create_collection",
    "download",
    "points",
    "query_vectors",
    "scaled_codes",
    "sparse_vectors",
    "upload",
]

#: Where a string id stands among a point's payload: Qdrant's own ids are numbers and UUIDs.
ID_KEY = "sparse_retrieval_id"

_NAMESPACE = uuid.UUID("6f5f0d0e-6a6c-5a3b-9c55-3f5a2d8b7a10")

_BATCH = 256


class Downloaded(NamedTuple):
    """What a collection holds.

    Attributes
    ----------
    ids : list of int or str
        As they were uploaded.
    codes : SparseCodes
        In the same order: ascending by Qdrant's ids.
    payloads : list of dict
        Without what `upload` added.
    """

    ids: list[int | str]
    codes: SparseCodes
    payloads: list[dict[str, Any]]


def sparse_vectors(codes: Any) -> list[models.SparseVector]:
    """Codes as Qdrant's sparse vectors, one a row.

    Parameters
    ----------
    codes : SparseCodes, scipy sparse matrix, or torch sparse tensor
        n rows.

    Returns
    -------
    list of qdrant_client.models.SparseVector, length n

    Raises
    ------
    TypeError, ValueError
        If they are no codes, or not sound.

    Examples
    --------
    >>> import sparse_retrieval as sr
    >>> from sparse_retrieval.integrations.qdrant import sparse_vectors
    >>> sparse_vectors(sr.SparseCodes([[7, 2]], [[0.5, -1.0]], dim=8))
    [SparseVector(indices=[2, 7], values=[-1.0, 0.5])]
    """
    rows = as_codes(codes)
    bounds = rows.indptr.tolist()
    latents, values = rows.latents.tolist(), rows.values.tolist()
    return [
        models.SparseVector(indices=latents[a:b], values=values[a:b])
        for a, b in itertools.pairwise(bounds)
    ]


def scaled_codes(index: SparseIndex, ids: Any, *, mode: str | None = None) -> SparseCodes:
    """Codes of an index's items with their scale multiplied in: inner products are its scores.

    Parameters
    ----------
    index : SparseIndex
    ids : array_like of int or str, shape (n,)
    mode : {"dense", "reconstructed", "sparse"}, optional
        As the codes will be asked; "dense" and "reconstructed" have the same scales. Default:
        "dense" where the index was built for it, else "sparse".

    Returns
    -------
    SparseCodes
        n rows.

    Raises
    ------
    KeyError
        If an id is not there.
    ValueError
        If the index was not built for the mode.
    """
    mode = _mode(index, mode)
    codes = index.get(ids)
    if index.metric != "cosine" or (index.unit_items and mode != "sparse"):
        return codes
    if mode == "sparse":
        squares = np.zeros(len(codes))
        np.add.at(squares, _rows_of(codes), codes.values.astype(np.float64) ** 2)
        norms = np.sqrt(squares)
    else:
        dictionary = index.dictionary
        assert dictionary is not None  # without one there is no such mode
        norms = np.linalg.norm(dictionary.decode(codes).astype(np.float64), axis=1)
    scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    values = codes.values * scales[_rows_of(codes)]
    return SparseCodes.from_csr(codes.indptr, codes.latents, values, codes.dim)


def query_vectors(
    index: SparseIndex, queries: Any, *, mode: str | None = None, terms: int | None = None
) -> list[models.SparseVector]:
    """Queries of an index as Qdrant's sparse vectors: the weight of each latent.

    Parameters
    ----------
    index : SparseIndex
        Whose items were uploaded.
    queries : array_like of float, shape (nq, d), or codes
        As `SparseIndex.search` takes them.
    mode : {"dense", "reconstructed", "sparse"}, optional
        As `SparseIndex.search` compares. Default: "dense" for dense queries, "sparse" for codes.
    terms : int, optional
        Keep so many of the largest weights, for speed: dense queries have one for each of the s
        latents. Scores are then approximate. Default: all.

    Returns
    -------
    list of qdrant_client.models.SparseVector, length nq
        For `QdrantClient.query_points`.

    Raises
    ------
    TypeError, ValueError
        If queries are not sound or the index was not built for the mode.
    """
    if mode is None:
        mode = "sparse" if holds_codes(queries) else _mode(index, None)
    chosen: Any = _mode(index, mode)
    asked: Any = index._asked(queries, chosen, None)
    if chosen == "sparse":
        assert isinstance(asked, SparseCodes)  # dense rows were encoded or read as codes
        weights = asked.to_dense().astype(np.float64)
    else:
        dictionary = index.dictionary
        assert dictionary is not None  # without one there is no such mode
        if isinstance(asked, SparseCodes):
            asked = dictionary.decode(asked)
        weights = as_rows(asked, "queries", np.float64)
        if index.metric == "cosine":
            weights = _unit(weights)
        weights = weights @ dictionary.atoms.T.astype(np.float64)
    if chosen == "sparse" and index.metric == "cosine":
        weights = _unit(weights)
    codes = SparseCodes.from_dense(weights)
    return sparse_vectors(codes if terms is None else codes.top(as_count(terms, "terms")))


def create_collection(
    client: QdrantClient, collection: str, *, vector: str = "code", on_disk: bool | None = None
) -> None:
    """Make a collection of sparse vectors without any other vector.

    Parameters
    ----------
    client : QdrantClient
    collection : str
    vector : str, default "code"
        The name of the sparse vector.
    on_disk : bool, optional
        As in `qdrant_client.models.SparseIndexParams`.

    Raises
    ------
    ValueError
        If there is a collection of this name.
    """
    client.create_collection(
        collection,
        vectors_config={},
        sparse_vectors_config={
            vector: models.SparseVectorParams(index=models.SparseIndexParams(on_disk=on_disk))
        },
    )


def points(
    source: Any,
    *,
    ids: Any = None,
    payloads: Sequence[dict[str, Any]] | None = None,
    mode: str | None = None,
    vector: str = "code",
) -> Iterator[models.PointStruct]:
    """Items as Qdrant's points.

    Parameters
    ----------
    source : SparseIndex, SparseCodes, or scipy sparse matrix
        An index is read batch by batch, its scales multiplied in.
    ids : array_like of int or str, shape (n,), optional
        Of codes. Numbers must not be negative; a string becomes the UUID (version 5) of its
        characters and stands in the payload. Default: an index's own ids, positions of codes.
    payloads : sequence of dict, length n, optional
    mode : {"dense", "reconstructed", "sparse"}, optional
        Of an index, as in `scaled_codes`.
    vector : str, default "code"
        The name of the sparse vector.

    Yields
    ------
    qdrant_client.models.PointStruct

    Raises
    ------
    TypeError, ValueError
        If codes or ids are not sound, or lengths differ.
    """
    if isinstance(source, SparseIndex):
        if ids is not None:
            raise TypeError("ids are given for an index, which has its own")
        names = as_ids(source.ids)
        parts: Iterable[SparseCodes] = (
            scaled_codes(source, names[first : first + _BATCH], mode=mode)
            for first in range(0, len(names), _BATCH)
        )
    else:
        if mode is not None:
            raise TypeError(f"mode is {mode!r}, but codes have no scale; give an index")
        codes = as_codes(source)
        names = as_ids(np.arange(len(codes)) if ids is None else ids)
        if len(names) != len(codes):
            raise ValueError(f"there are {len(names)} ids and {len(codes)} codes; expected as many")
        parts = [codes]
    if payloads is not None and len(payloads) != len(names):
        raise ValueError(
            f"there are {len(payloads)} payloads and {len(names)} items; expected as many"
        )
    at = 0
    for part in parts:
        for sparse in sparse_vectors(part):
            payload = dict(payloads[at]) if payloads is not None else {}
            point, added = _point_id(names[at])
            yield models.PointStruct(
                id=point, vector={vector: sparse}, payload={**payload, **added}
            )
            at += 1


def upload(
    client: QdrantClient,
    collection: str,
    source: Any,
    *,
    ids: Any = None,
    payloads: Sequence[dict[str, Any]] | None = None,
    mode: str | None = None,
    vector: str = "code",
    batch_size: int = _BATCH,
) -> int:
    """Upload items to a collection, made if there is none of this name.

    Parameters
    ----------
    client : QdrantClient
        Of a server, a local folder, or memory.
    collection : str
    source, ids, payloads, mode, vector
        As in `points`.
    batch_size : int, default 256
        Items of a request.

    Returns
    -------
    int
        The number of items.

    Raises
    ------
    TypeError, ValueError
        As `points`.
    """
    batch_size = as_count(batch_size, "batch_size")
    if not client.collection_exists(collection):
        create_collection(client, collection, vector=vector)
    batch: list[models.PointStruct] = []
    count = 0
    for point in points(source, ids=ids, payloads=payloads, mode=mode, vector=vector):
        batch.append(point)
        count += 1
        if len(batch) == batch_size:
            client.upsert(collection, batch, wait=True)
            batch = []
    if batch:
        client.upsert(collection, batch, wait=True)
    return count


def download(
    client: QdrantClient,
    collection: str,
    dim: int,
    *,
    vector: str = "code",
    batch_size: int = 1024,
) -> Downloaded:
    """Read all sparse vectors of a collection as codes.

    Parameters
    ----------
    client : QdrantClient
    collection : str
    dim : int
        Number of latents, which Qdrant does not know.
    vector : str, default "code"
        The name of the sparse vector.
    batch_size : int, default 1,024
        Points of a request.

    Returns
    -------
    Downloaded
        Points without such a vector are left out.

    Raises
    ------
    TypeError
        If the vector of this name is a dense one.
    ValueError
        If a latent is not below dim.
    """
    batch_size = as_count(batch_size, "batch_size")
    ids: list[int | str] = []
    payloads: list[dict[str, Any]] = []
    lengths, latents, values = [0], [], []
    offset: Any = None
    while True:
        records, offset = client.scroll(
            collection, limit=batch_size, offset=offset, with_vectors=[vector], with_payload=True
        )
        for record in records:
            held = record.vector.get(vector) if isinstance(record.vector, dict) else record.vector
            if held is None:
                continue
            if not isinstance(held, models.SparseVector):
                raise TypeError(f"vector {vector!r} of point {record.id} is no sparse vector")
            payload = dict(record.payload or {})
            name = payload.pop(ID_KEY, record.id)
            ids.append(name)
            payloads.append(payload)
            lengths.append(len(held.indices))
            latents.append(np.asarray(held.indices, dtype=np.int64))
            values.append(np.asarray(held.values, dtype=np.float64))
        if offset is None:
            break
    codes = SparseCodes.from_csr(
        np.cumsum(lengths),
        np.concatenate([np.empty(0, np.int64), *latents]),
        np.concatenate([np.empty(0, np.float64), *values]),
        dim,
    )
    return Downloaded(ids, codes, payloads)


def _point_id(name: Any) -> tuple[int | str, dict[str, Any]]:
    """The point's id, and what its payload must hold to tell the item's own."""
    if isinstance(name, str):
        return str(uuid.uuid5(_NAMESPACE, name)), {ID_KEY: name}
    number = int(name)
    if number < 0:
        raise ValueError(f"id {number} is negative; Qdrant's are not: give strings")
    return number, {}


def _mode(index: SparseIndex, mode: str | None) -> str:
    if mode is None:
        mode = "dense" if "dense" in index.modes else index.modes[0]
    if mode not in index.modes:
        raise ValueError(f"mode is {mode!r}; this index was built for {index.modes}")
    return mode


def _rows_of(codes: SparseCodes) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(codes)), np.diff(codes.indptr).astype(np.int64))


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: npt.NDArray[np.float64] = np.divide(
        rows, norms, out=np.zeros_like(rows), where=norms > 0
    )
    return units
