"""Shards held by Ray actors, searched as one index, that stay up when actors die.

Ray starts the processes; which replica is asked, what happens when it does not answer, and where
its successor goes is decided here, so that a search moves to a living replica at once instead of
waiting for a dead one to come back.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import selection
from sparse_retrieval._arrays import as_count, as_numbers, as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._ids import as_ids, is_text
from sparse_retrieval.codes import SparseCodes, as_codes, holds_codes
from sparse_retrieval.distributed import merging
from sparse_retrieval.distributed.shards import NotOpenError, Replica
from sparse_retrieval.index import Mode, SearchResult, _has_one_axis, _padded

#: Replicas of one shard that may fail in a row within one search before it gives up.
_ATTEMPTS = 4


@dataclass(eq=False)
class _Replica:
    actor: Any
    node: str
    started: Any  # the answer to its first question, which comes when its file is open
    ready: bool = False
    busy: int = 0


@dataclass
class _Shard:
    path: str
    number: int
    offset: int = 0
    items: int = 0
    content: str | None = None
    replicas: list[_Replica] = field(default_factory=list)


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
        self._shards = [_Shard(os.fspath(path), at) for at, path in enumerate(paths)]
        if not self._shards:
            raise ValueError("paths is empty; expected at least one shard")
        self._wanted = as_count(replicas, "replicas")
        self._threads = threads
        self._mmap = bool(mmap)
        self._timeout_s = float(timeout_s)
        self._lock = threading.Lock()
        self._restarts = 0
        self._ray = require("ray", "ShardedIndex")
        exceptions = self._ray.exceptions
        # it died, its machine is gone or cannot take it, or it does not answer
        self._gone = (
            exceptions.RayActorError,
            exceptions.ActorUnschedulableError,
            exceptions.GetTimeoutError,
        )
        self._own = not self._ray.is_initialized()
        if self._own:
            started = {"include_dashboard": False} if address is None else {}
            self._ray.init(address=address, log_to_driver=False, logging_level="error", **started)
        self._actor = self._ray.remote(num_cpus=num_cpus, max_concurrency=4)(Replica)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for shard in self._shards:
            for _ in range(self._wanted):  # one by one: each looks where the others are
                shard.replicas.append(self._start(shard, self._emptiest(shard, Counter())))
        infos = [
            self._ask(shard, lambda actor: actor.call.remote("info")) for shard in self._shards
        ]
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
            shard.offset = sum(other.items for other in self._shards[: shard.number])
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
    ) -> SearchResult:
        """Find the k items with the highest scores, over all shards.

        Parameters
        ----------
        queries, k, mode, k_row, filter, exclude
            As :meth:`SparseIndex.search` takes them; a mask or bitmap is in the order of all
            items. Exact only: approximate search looks at the clusters of one index.

        Returns
        -------
        SearchResult
            Byte for byte that of one index of all items.

        Raises
        ------
        TypeError, ValueError
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
        chosen, excluded = self._chosen(filter), self._excluded(lists)
        sent = self._ray.put(asked)  # once, however many shards there are

        def call(shard: _Shard) -> Callable[[Any], Any]:
            options = (name, k_row, chosen[shard.number], excluded[shard.number], self._threads)
            return lambda actor: actor.call.remote("search", sent, k, *options)

        parts = self._ask_all([(shard, call(shard)) for shard in self._shards])
        scores, ids = merging.merge(parts, k)
        return _padded(
            scores, ids.ravel().tolist() if ids.dtype == object else ids, k, _has_one_axis(queries)
        )

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
        codes: SparseCodes = self._ask(
            self._shards[0], lambda actor: actor.call.remote("encoded", narrow, width)
        )
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
                return [array[s.offset : s.offset + s.items] for s in self._shards]
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
        sent = self._ray.put(ids)
        calls = [
            (shard, lambda actor: actor.call.remote("contains", sent)) for shard in self._shards
        ]
        found: list[npt.NDArray[np.bool_]] = self._ask_all(calls)
        missing = np.flatnonzero(~np.logical_or.reduce(found))
        if len(missing):
            first = ids[int(missing[0])]
            shown = repr(first) if isinstance(first, str) else int(first)
            raise ValueError(f"{what} holds {shown}, which is no item's id")
        return found

    def _ask(self, shard: _Shard, call: Callable[[Any], Any]) -> Any:
        return self._ask_all([(shard, call)])[0]

    def _ask_all(self, calls: Sequence[tuple[_Shard, Callable[[Any], Any]]]) -> list[Any]:
        """Ask a replica of each shard, all at once, and others where one fails."""
        under_way = []
        for shard, call in calls:
            replica = self._free(shard)
            under_way.append((shard, call, replica, self._called(replica, call)))
        answers = []
        try:
            for shard, call, replica, ref in under_way:
                answers.append(self._answer(shard, call, replica, ref))
        finally:
            with self._lock:
                for _, _, replica, _ in under_way:
                    replica.busy -= 1
        return answers

    def _called(self, replica: _Replica, call: Callable[[Any], Any]) -> Any:
        try:
            return call(replica.actor)
        except self._ray.exceptions.RayError as error:
            return error

    def _answer(self, shard: _Shard, call: Any, replica: _Replica, ref: Any) -> Any:
        exceptions = self._ray.exceptions
        last: Exception = RuntimeError()
        failures: Counter[str] = Counter()
        for _ in range(_ATTEMPTS):
            try:
                if isinstance(ref, BaseException):
                    raise ref
                return self._ray.get(ref, timeout=self._timeout_s)
            except exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                if not isinstance(cause, NotOpenError):
                    raise cause from None  # the caller's: another replica would say the same
                last = cause.error
            except self._gone as error:
                last = error
            failures[replica.node] += 1
            self._replace(shard, replica, failures)
            replica = self._free(shard, counted=False)
            ref = self._called(replica, call)
        if isinstance(last, (OSError, ValueError)):
            raise last
        told = str(last).strip().splitlines()[-1:] or [type(last).__name__]
        raise RuntimeError(
            f"{shard.path}: {_ATTEMPTS} replicas in a row did not answer; the last: {told[0]}"
        ) from last

    def _free(self, shard: _Shard, *, counted: bool = True) -> _Replica:
        """The replica with the least to do; those that came first among equals."""
        with self._lock:
            for replica in shard.replicas:
                replica.ready = replica.ready or self._has_started(replica)
            # one that is still starting has nothing to do, and would keep its caller waiting
            chosen = min(shard.replicas, key=lambda replica: (not replica.ready, replica.busy))
            if counted:
                chosen.busy += 1
                # to the end of the line, so that equals take turns
                shard.replicas.remove(chosen)
                shard.replicas.append(chosen)
            return chosen

    def _start(self, shard: _Shard, node: str) -> _Replica:
        scheduling = self._ray.util.scheduling_strategies
        where = scheduling.NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._actor.options(scheduling_strategy=where).remote(
            shard.path, mmap=self._mmap, content=shard.content
        )
        return _Replica(actor, node, actor.node.remote())

    def _has_started(self, replica: _Replica) -> bool:
        """Whether it has opened its file, or failed to: then its caller finds out."""
        if not self._ray.wait([replica.started], timeout=0)[0]:
            return False
        try:
            replica.node = self._ray.get(replica.started)
        except self._ray.exceptions.RayError:
            return True
        return True

    def _emptiest(self, shard: _Shard, failures: Counter[str]) -> str:
        """The machine that holds no replica of this shard, if there is one, and fewest of all.

        Ray counts a machine as alive for some seconds after it is lost, so one on which replicas
        failed twice in a row comes last, and of two like ones that where one failed.
        """
        load = self._load()
        mine = Counter(replica.node for replica in shard.replicas)
        return min(load, key=lambda n: (failures[n] > 1, mine[n], failures[n], load[n], n))

    def _load(self) -> dict[str, int]:
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        held = Counter(replica.node for shard in self._shards for replica in shard.replicas)
        return {node: held[node] for node in nodes}

    def _replace(self, shard: _Shard, dead: _Replica, failures: Counter[str]) -> None:
        with self._lock:
            if dead not in shard.replicas:
                return  # another thread has
            shard.replicas.remove(dead)
            shard.replicas.append(self._start(shard, self._emptiest(shard, failures)))
            self._restarts += 1
        self._end(dead)

    def _end(self, replica: _Replica) -> None:
        try:
            self._ray.kill(replica.actor)
        except (self._ray.exceptions.RayError, ValueError):
            return  # gone already

    def rebalance(self) -> int:
        """Spread the replicas evenly over the machines that are there now.

        A new machine holds nothing until this is called, or until a replica dies. A replica that
        moves is started at its new place, and answers there, before the old one ends.

        Returns
        -------
        int
            How many replicas moved.
        """
        moved = 0
        while True:
            with self._lock:
                move = self._move()
            if move is None:
                return moved
            shard, old, node = move
            new = self._start(shard, node)
            self._ray.get(new.actor.call.remote("info"), timeout=self._timeout_s)
            new.node = self._ray.get(new.started)
            with self._lock:
                if old not in shard.replicas:  # it died meanwhile, and has a successor
                    self._end(new)
                    continue
                shard.replicas.remove(old)
                shard.replicas.append(new)
            self._end(old)
            moved += 1

    def _move(self) -> tuple[_Shard, _Replica, str] | None:
        load = self._load()
        least = min(load, key=lambda node: (load[node], node))
        most = max(load, key=lambda node: (load[node], node))
        if load[most] - load[least] < 2:
            return None
        movable = [
            (shard, replica)
            for shard in self._shards
            for replica in shard.replicas
            if replica.node == most
        ]
        # rather one whose shard the other machine does not hold yet
        movable.sort(key=lambda pair: any(r.node == least for r in pair[0].replicas))
        return (*movable[0], least)

    def health(self) -> dict[str, Any]:
        """Whether every replica answers, and where it is.

        Returns
        -------
        dict
            ``items``; ``restarts`` (replicas that were replaced since the start); ``shards``: a
            list of path, items and ``replicas``, each with its ``node``, ``pid`` and ``alive``.
        """
        shards = []
        for shard in self._shards:
            with self._lock:
                replicas = list(shard.replicas)
            shown = []
            for replica in replicas:
                try:
                    info = self._ray.get(replica.actor.call.remote("info"), timeout=self._timeout_s)
                    replica.node = self._ray.get(replica.started)
                    shown.append({"node": replica.node, "pid": info["pid"], "alive": True})
                except self._gone:
                    shown.append({"node": replica.node, "pid": None, "alive": False})
                    self._replace(shard, replica, Counter([replica.node]))
            shards.append({"path": shard.path, "items": shard.items, "replicas": shown})
        return {"items": len(self), "restarts": self._restarts, "shards": shards}

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        if not self._ray.is_initialized():
            return
        for shard in self._shards:
            for replica in shard.replicas:
                self._end(replica)
            shard.replicas = []
        if self._own:
            self._ray.shutdown()

    def __len__(self) -> int:
        return sum(shard.items for shard in self._shards)

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"ShardedIndex({len(self)} items in {len(self._shards)} shards, "
            f"{self._wanted} replicas each)"
        )


def _taken(ids: Any, here: npt.NDArray[np.bool_]) -> Any:
    if isinstance(ids, list):
        return [item for item, wanted in zip(ids, here.tolist(), strict=True) if wanted]
    return ids[here]
