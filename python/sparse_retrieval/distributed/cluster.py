"""Shards held by Ray actors, searched as one index.

What a search asks of each shard, and how the answers become those of one index. Which actor
answers, and what happens when it dies, is for ``replicas``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import rescoring, selection
from sparse_retrieval._arrays import as_count, as_numbers, as_rows
from sparse_retrieval._ids import as_ids, is_text
from sparse_retrieval.approximate import Approximate
from sparse_retrieval.codes import SparseCodes, as_codes, holds_codes
from sparse_retrieval.distributed import merging
from sparse_retrieval.distributed.replicas import Replicas
from sparse_retrieval.distributed.shards import Wish
from sparse_retrieval.index import Mode, SearchResult, _has_one_axis, _padded


class ShardedIndex:
    """Index files held by Ray actors, searched as the one index that they are together.

    Scores and ids are byte for byte those of one index of all items (:func:`sparse_retrieval.merge`
    of the files): shards return scores in double precision, and equal ones stand by position over
    all shards.

    When an actor dies, or its machine, what it was asked is asked of another replica, and a new one
    is started where there are fewest. With one replica a search waits for the new one.

    Parameters
    ----------
    paths : sequence of path-like
        One file a shard, in the order of the items, as :func:`split` or :func:`encode` writes
        them; each must be readable on all machines under its path.
    replicas : int, default 1
        Actors that hold each shard. Two keep searches going without a pause when one dies, and
        answer twice as many where there are cores for it.
    address : str, optional
        Of a Ray cluster, as ``ray.init`` takes it. Default: the Ray that this process is connected
        to, else one started on this machine, and stopped by :meth:`close`.
    threads : int, optional
        Threads of a search in one shard. Default: all cores of the machine over its shards.
    mmap : bool, default True
        As in :meth:`SparseIndex.open`.
    timeout_s : float, default 60
        An actor that has not answered by then is taken for dead.
    num_cpus : float, default 0
        Cores that Ray sets aside for each actor. None by default: a search is a short burst, and
        actors for which no cores are left would never start.

    Raises
    ------
    ImportError
        If Ray is not installed.
    OSError, IndexFormatError
        If a file cannot be opened.
    ValueError
        If there is no shard, or they do not fit each other.

    Examples
    --------
    ::

        paths = sr.distributed.split("items.sridx", "shards", 4)
        with sr.distributed.ShardedIndex(paths, replicas=2) as index:
            scores, ids = index.search(queries, k=10)
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        replicas: int = 1,
        address: str | None = None,
        threads: int | None = None,
        mmap: bool = True,
        timeout_s: float = 60.0,
        num_cpus: float = 0,
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is {paths!r}; expected a sequence of paths")
        paths = list(paths)
        if not paths:
            raise ValueError("paths is empty; expected at least one shard")
        self._threads = threads
        self._replicas = Replicas(
            paths,
            replicas=as_count(replicas, "replicas"),
            address=address,
            mmap=bool(mmap),
            timeout_s=float(timeout_s),
            num_cpus=num_cpus,
        )
        self._shards = self._replicas.shards
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._replicas.start()
        infos = self._replicas.ask_all("info", [()] * len(self._shards))
        first = infos[0]
        for shard, info in zip(self._shards, infos, strict=True):
            for what, value in info["agree"].items():
                if value != first["agree"][what]:
                    raise ValueError(
                        f"{shard.path}: its {what} is not that of {self._shards[0].path}; shards "
                        "must come from one model, with the same options"
                    )
            if info["ids"] != first["ids"] and info["items"] and first["items"]:
                raise ValueError(f"{shard.path}: ids are {info['ids']}, not {first['ids']}")
            shard.items, shard.content = info["items"], info["content"]
        self._offsets = [0, *accumulate(shard.items for shard in self._shards)][:-1]
        self._clusters: list[int] = [info["clusters"] for info in infos]
        self._agreed: dict[str, Any] = first["agree"]
        widths = {info["width"] for info in infos if info["items"]}
        self._width: int | None = widths.pop() if len(widths) == 1 else None

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode | None = None,
        k_row: int | None = None,
        filter: Any = None,
        exclude: Any = None,
        approximate: Approximate | bool | None = None,
        rescore: Any = None,
        rescore_ids: Any = None,
        oversample: float = 3,
    ) -> SearchResult:
        """Find the k items with the highest scores, over all shards.

        Parameters
        ----------
        queries, k, mode, k_row, filter, exclude
            As :meth:`SparseIndex.search` takes them; a mask or bitmap is in the order of all
            items.
        approximate : Approximate or bool, optional
            Each shard looks at its own clusters, as far as the setting says; True takes what each
            shard was tuned to, else ``Approximate()``. All shards must have clusters.
        rescore, rescore_ids, oversample
            As :meth:`SparseIndex.search` takes them: row i is the vector of the i-th item of all
            shards, in their order. The best ``oversample * k`` over all shards are rescored here,
            not in the actors: the vectors need to be where the caller is, and nowhere else.

        Returns
        -------
        SearchResult
            Byte for byte that of one index of all items. With ``approximate`` the scores are, but
            what is missed differs, as clusters do.

        Raises
        ------
        TypeError, ValueError, OSError, ImportError
            As :meth:`SparseIndex.search`.
        RuntimeError
            If a shard cannot be brought back.
        """
        k = as_count(k, "k")
        k_row = None if k_row is None else as_count(k_row, "k_row")
        asked = self._asked(queries, mode)
        name = mode if mode is not None else self._default_mode(asked)
        if name not in self._agreed["modes"]:
            raise ValueError(
                f"mode is {name!r}; these shards were built for {', '.join(self._agreed['modes'])}"
            )
        lists = selection.as_exclusions(exclude, len(asked))
        wish = Wish(name, k_row, threads=self._threads)
        each = zip(
            self._settings(approximate), self._chosen(filter), self._excluded(lists), strict=True
        )
        wishes = [
            replace(wish, approximate=setting, chosen=chosen, excluded=excluded)
            for setting, chosen, excluded in each
        ]
        if not rescoring.is_asked(rescore, rescore_ids):
            sent = self._replicas.sent(asked)
            parts = self._replicas.ask_all("search", [(sent, k, wish) for wish in wishes])
            scores, ids = merging.merge(parts, k)
        else:
            items = merging.Candidates(
                self._agreed["metric"], self._agreed["embedding_dim"], self._offsets, len(self)
            )

            def candidates(batch: slice, wanted: int) -> npt.NDArray[np.int64]:
                sent = self._replicas.sent(asked[batch])
                calls = [
                    (
                        sent,
                        wanted,
                        replace(wish, excluded=selection.of_queries(wish.excluded, batch)),
                    )
                    for wish in wishes
                ]
                return items.merged(self._replicas.ask_all("candidates", calls), wanted)

            scores, ids = rescoring.rescored(
                items,
                queries,
                k,
                rescore,
                rescore_ids,
                oversample=oversample,
                threads=self._threads,
                candidates=candidates,
            )
        return _padded(
            scores, ids.ravel().tolist() if ids.dtype == object else ids, k, _has_one_axis(queries)
        )

    def _settings(self, approximate: Any) -> list[Approximate | bool | None]:
        """How far each shard looks; None, as far as it goes, where it holds nothing."""
        if approximate is None or approximate is False:
            return [None] * len(self._shards)
        if not isinstance(approximate, (bool, Approximate)):
            raise TypeError(f"approximate is {approximate!r}; expected Approximate, True or None")
        for shard, clusters in zip(self._shards, self._clusters, strict=True):
            if shard.items and not clusters:
                raise ValueError(
                    f"{shard.path}: has no clusters, which approximate search needs; build it with "
                    "approximate=True, or save what its with_clusters() returns"
                )
        return [approximate if shard.items else None for shard in self._shards]

    def _asked(self, queries: Any, mode: str | None) -> SparseCodes | npt.NDArray[np.float64]:
        agreed = self._agreed
        if holds_codes(queries):
            return as_codes(queries, dim=agreed["dim"])
        if agreed["embedding_dim"] is None:
            raise ValueError(
                "queries are dense; these shards hold no dictionary, so they expect codes over "
                f"{agreed['dim']} latents"
            )
        encode = mode in ("sparse", "reconstructed") and mode in agreed["modes"]
        rows = as_rows(queries, "queries", np.float64)
        if rows.shape[1] != agreed["embedding_dim"]:
            raise ValueError(
                f"queries have {rows.shape[1]} columns, these shards hold a dictionary for "
                f"{agreed['embedding_dim']}; embed them with the model that made the items"
            )
        if not encode:
            return rows
        narrow = as_rows(queries, "queries", np.float32)
        width = min(self._width or 32, agreed["dim"])
        codes: SparseCodes = self._replicas.ask(self._shards[0], "encoded", narrow, width)
        return codes

    def _default_mode(self, asked: Any) -> str:
        if not isinstance(asked, SparseCodes):
            return "dense"
        return "reconstructed" if "reconstructed" in self._agreed["modes"] else "sparse"

    def _chosen(self, filter: Any) -> list[Any]:
        """The filter of each shard: None, a mask, or the ids that are there."""
        if filter is None:
            return [None] * len(self._shards)
        if isinstance(filter, selection.Bitmap):
            filter = filter.to_mask()
        if not is_text(filter):
            array = as_numbers(filter, "filter")
            if array.dtype == np.uint8:
                raise TypeError("filter has dtype uint8, which may be packed bits or ids")
            if array.dtype == np.bool_:
                if array.shape != (len(self),):
                    raise ValueError(
                        f"filter is a mask of shape {array.shape}; expected ({len(self)},), one "
                        "an item"
                    )
                pairs = zip(self._offsets, self._shards, strict=True)
                return [array[at : at + shard.items] for at, shard in pairs]
        ids = as_ids(filter, "filter")
        return [_taken(ids, here) for here in self._where(ids, "filter")]

    def _excluded(self, lists: selection.Lists | None) -> list[Any]:
        """The lists of each shard, with the ids that are there."""
        if lists is None:
            return [None] * len(self._shards)
        starts, ids = lists
        parts = []
        for here in self._where(ids, "exclude"):
            before = np.concatenate([[0], np.cumsum(here)])
            parts.append((before[starts.astype(np.int64)].astype(np.uint64), _taken(ids, here)))
        return parts

    def _where(self, ids: Any, what: str) -> list[npt.NDArray[np.bool_]]:
        """For each shard which ids it holds; all of them must be somewhere."""
        if len(ids) == 0:
            return [np.zeros(0, dtype=np.bool_) for _ in self._shards]
        asked = (self._replicas.sent(ids),)
        found: list[npt.NDArray[np.bool_]]
        found = self._replicas.ask_all("contains", [asked] * len(self._shards))
        missing = np.flatnonzero(~np.logical_or.reduce(found))
        if len(missing):
            first = ids[int(missing[0])]
            shown = repr(first) if isinstance(first, str) else int(first)
            raise ValueError(f"{what} holds {shown}, which is no item's id")
        return found

    def rebalance(self) -> int:
        """Spread the replicas evenly over the machines that are there now.

        A new machine holds nothing until this is called, or until a replica dies. A replica that
        moves is started at its new place, and answers there, before the old one ends.

        Returns
        -------
        int
            How many replicas moved.
        """
        return self._replicas.rebalance()

    def health(self) -> dict[str, Any]:
        """Whether every replica answers, and where it is.

        Returns
        -------
        dict
            ``items``; ``restarts`` (replicas that were replaced since the start); ``shards``: a
            list of path, items and ``replicas``, each with its ``node``, ``pid`` and ``alive``.
        """
        return {"items": len(self), **self._replicas.health()}

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        self._replicas.close()

    def __len__(self) -> int:
        return sum(shard.items for shard in self._shards)

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"ShardedIndex({len(self)} items in {len(self._shards)} shards, "
            f"{self._replicas.wanted} replicas each)"
        )


def _taken(ids: Any, here: npt.NDArray[np.bool_]) -> Any:
    if isinstance(ids, list):
        return [item for item, wanted in zip(ids, here.tolist(), strict=True) if wanted]
    return ids[here]
