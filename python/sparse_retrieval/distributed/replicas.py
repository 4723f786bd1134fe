"""Shards on Ray actors that stay up when actors die. Of what shards answer it knows nothing.

Ray starts the processes; which replica is asked, what happens when it does not answer, and where
its successor goes is decided here, so that a question moves to a living replica at once instead of
waiting for a dead one to come back.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sparse_retrieval._extras import require
from sparse_retrieval.distributed.shards import NotOpenError, Replica

#: Replicas of one shard that may fail in a row within one search before it gives up.
ATTEMPTS = 4


@dataclass(eq=False)
class Holder:
    """An actor that holds a shard."""

    actor: Any
    node: str
    started: Any  # the answer to its first question, which comes when its file is open
    ready: bool = False
    busy: int = 0


@dataclass
class HeldShard:
    """A shard and its replicas."""

    path: str
    items: int = 0
    content: str | None = None
    replicas: list[Holder] = field(default_factory=list)


class Replicas:
    """The actors that hold some shards, with one in place of each that dies.

    Parameters
    ----------
    paths : sequence of path-like
    replicas : int
        Actors that hold each shard.
    address, mmap, timeout_s, num_cpus
        As :class:`ShardedIndex` takes them.

    Attributes
    ----------
    shards : list of HeldShard
        In the order of the paths; ``items`` and ``content`` are set by who has asked for them.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        replicas: int,
        address: str | None,
        mmap: bool,
        timeout_s: float,
        num_cpus: float,
    ) -> None:
        self.shards = [HeldShard(os.fspath(path)) for path in paths]
        self.wanted = replicas
        self._mmap = mmap
        self._timeout_s = timeout_s
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

    def start(self) -> None:
        """Start all of them."""
        for shard in self.shards:
            for _ in range(self.wanted):  # one by one: each looks where the others are
                shard.replicas.append(self._start(shard, self._emptiest(shard, Counter())))

    def sent(self, value: Any) -> Any:
        """A value that several shards are asked with, sent once for all of them."""
        return self._ray.put(value)

    def ask(self, shard: HeldShard, method: str, *arguments: Any) -> Any:
        """Ask a replica of one shard: call a method of it."""
        return self._ask([(shard, method, arguments)])[0]

    def ask_all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Ask a replica of each shard, all at once; arguments are one tuple a shard."""
        pairs = zip(self.shards, arguments, strict=True)
        return self._ask([(shard, method, one) for shard, one in pairs])

    def _ask(self, questions: Sequence[tuple[HeldShard, str, tuple[Any, ...]]]) -> list[Any]:
        under_way = []
        for shard, method, arguments in questions:
            holder = self._free(shard)
            under_way.append((shard, holder, partial(self._called, method, arguments)))
        # all are asked before the first is waited for
        refs = [called(holder) for _, holder, called in under_way]
        try:
            return [self._answer(*asked, ref) for asked, ref in zip(under_way, refs, strict=True)]
        finally:
            with self._lock:
                for _, holder, _ in under_way:
                    holder.busy -= 1

    def _called(self, method: str, arguments: tuple[Any, ...], holder: Holder) -> Any:
        try:
            return holder.actor.call.remote(method, *arguments)
        except self._ray.exceptions.RayError as error:
            return error

    def _answer(
        self, shard: HeldShard, holder: Holder, called: Callable[[Holder], Any], ref: Any
    ) -> Any:
        """The answer, of another replica where one fails."""
        exceptions = self._ray.exceptions
        last: Exception = RuntimeError()
        failures: Counter[str] = Counter()
        for _ in range(ATTEMPTS):
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
            failures[holder.node] += 1
            self._replace(shard, holder, failures)
            holder = self._free(shard, counted=False)
            ref = called(holder)
        if isinstance(last, (OSError, ValueError)):
            raise last
        told = str(last).strip().splitlines()[-1:] or [type(last).__name__]
        raise RuntimeError(
            f"{shard.path}: {ATTEMPTS} replicas in a row did not answer; the last: {told[0]}"
        ) from last

    def _free(self, shard: HeldShard, *, counted: bool = True) -> Holder:
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

    def _start(self, shard: HeldShard, node: str) -> Holder:
        scheduling = self._ray.util.scheduling_strategies
        where = scheduling.NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._actor.options(scheduling_strategy=where).remote(
            shard.path, mmap=self._mmap, content=shard.content
        )
        return Holder(actor, node, actor.node.remote())

    def _has_started(self, replica: Holder) -> bool:
        """Whether it has opened its file, or failed to: then its caller finds out."""
        if not self._ray.wait([replica.started], timeout=0)[0]:
            return False
        try:
            replica.node = self._ray.get(replica.started)
        except self._ray.exceptions.RayError:
            return True
        return True

    def _emptiest(self, shard: HeldShard, failures: Counter[str]) -> str:
        """The machine that holds no replica of this shard, if there is one, and fewest of all.

        Ray counts a machine as alive for some seconds after it is lost, so one on which replicas
        failed twice in a row comes last, and of two like ones that where one failed.
        """
        load = self._load()
        mine = Counter(replica.node for replica in shard.replicas)
        return min(load, key=lambda n: (failures[n] > 1, mine[n], failures[n], load[n], n))

    def _load(self) -> dict[str, int]:
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        held = Counter(replica.node for shard in self.shards for replica in shard.replicas)
        return {node: held[node] for node in nodes}

    def _replace(self, shard: HeldShard, dead: Holder, failures: Counter[str]) -> None:
        with self._lock:
            if dead not in shard.replicas:
                return  # another thread has
            shard.replicas.remove(dead)
            shard.replicas.append(self._start(shard, self._emptiest(shard, failures)))
            self._restarts += 1
        self._end(dead)

    def _end(self, replica: Holder) -> None:
        try:
            self._ray.kill(replica.actor)
        except (self._ray.exceptions.RayError, ValueError):
            return  # gone already

    def rebalance(self) -> int:
        """Spread the replicas evenly over the machines of now; how many moved.

        A replica that moves answers at its new place before the old one ends.
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

    def _move(self) -> tuple[HeldShard, Holder, str] | None:
        load = self._load()
        least = min(load, key=lambda node: (load[node], node))
        most = max(load, key=lambda node: (load[node], node))
        if load[most] - load[least] < 2:
            return None
        movable = [
            (shard, replica)
            for shard in self.shards
            for replica in shard.replicas
            if replica.node == most
        ]
        # rather one whose shard the other machine does not hold yet
        movable.sort(key=lambda pair: any(r.node == least for r in pair[0].replicas))
        return (*movable[0], least)

    def health(self) -> dict[str, Any]:
        """``restarts`` and ``shards``, as :meth:`ShardedIndex.health` tells them."""
        shards = []
        for shard in self.shards:
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
        return {"restarts": self._restarts, "shards": shards}

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        if not self._ray.is_initialized():
            return
        for shard in self.shards:
            for replica in shard.replicas:
                self._end(replica)
            shard.replicas = []
        if self._own:
            self._ray.shutdown()
