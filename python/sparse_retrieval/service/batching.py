"""Searches in threads; those that wait are joined to one. Knows nothing of HTTP or files.

Three queries or more read each row once (``docs/search.md``), so a batch costs far less than its
queries one by one, and gives the same bytes. So while searches run, requests that ask in the
same way pile up, and the next free thread takes all of them. Nobody waits for company: a
request that comes to an idle service starts at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.index import SearchResult
from sparse_retrieval.service.holder import Holder, Version

#: Queries that are joined at most: more than the 64 that share a pass over the rows gains little,
#: and all wait for the slowest.
JOINED_AT_MOST = 256


class OverloadedError(Exception):
    """The request waited too long for its turn."""


@dataclass
class Search:
    """What one request asks for, checked as far as it can be without the index.

    Attributes
    ----------
    queries : ndarray of float64, shape (nq, d), or SparseCodes
        Finite.
    k : int
        Results a query.
    options : dict
        Of :meth:`SparseIndex.search`: ``mode``, ``k_row``, ``approximate``.
    filter, exclude : list, optional
        Ids, as there. A search with one of them is not joined to others.
    """

    queries: npt.NDArray[np.float64] | SparseCodes
    k: int
    options: dict[str, Any] = field(default_factory=dict)
    filter: Any = None
    exclude: Any = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def key(self) -> Hashable | None:
        """What must be equal in two searches that are joined; None for one that is alone."""
        if self.filter is not None or self.exclude is not None:
            return None
        coded = isinstance(self.queries, SparseCodes)
        width = self.queries.dim if isinstance(self.queries, SparseCodes) else self.queries.shape[1]
        # the best k are the first of the best K > k in an exact search, not in an approximate one
        depth = self.k if self.options.get("approximate") else None
        return (coded, width, depth, *sorted(self.options.items(), key=lambda item: item[0]))


@dataclass
class _Job:
    search: Search
    done: asyncio.Future[tuple[SearchResult, Version]]
    since: float


class Batcher:
    """Runs searches on the newest version of an index, a few at a time.

    Parameters
    ----------
    holder : Holder
        Where the index comes from. All of one search uses one version.
    searches : int
        Searches that run at a time.
    threads : int, optional
        Threads of each.
    max_wait_s : float
        How long a search may wait for its turn.
    on_batch : callable, optional
        Called with the number of queries and the seconds of each search that ran.
    """

    def __init__(
        self,
        holder: Holder,
        *,
        searches: int,
        threads: int | None,
        max_wait_s: float,
        on_batch: Callable[[int, float], object] | None = None,
    ) -> None:
        self._holder = holder
        self._limit = searches
        self._threads = threads
        self._max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._pool: ThreadPoolExecutor | None = None

    async def search(self, search: Search) -> tuple[SearchResult, Version]:
        """Search, and say of which version the answer is.

        Raises
        ------
        OverloadedError
            If its turn did not come in time.
        TypeError, ValueError
            As :meth:`SparseIndex.search`.
        """
        loop = asyncio.get_running_loop()
        job = _Job(search, loop.create_future(), time.monotonic())
        self._waiting.append(job)
        self._start()
        return await job.done

    def close(self) -> None:
        """Let the threads end; searches that run are waited for. A later search begins anew."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._limit:
            jobs = self._next()
            if jobs:
                task = asyncio.get_running_loop().create_task(self._run(jobs))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next(self) -> list[_Job]:
        """The job that waits longest, and those that can be joined to it."""
        first = self._waiting.popleft()
        if first.done.done():  # its request was cancelled
            return []
        if time.monotonic() - first.since > self._max_wait_s:
            first.done.set_exception(OverloadedError)
            return []
        jobs, total, key = [first], len(first.search), first.search.key
        if key is None:
            return jobs
        left: deque[_Job] = deque()
        for job in self._waiting:
            fits = not job.done.done() and total + len(job.search) <= JOINED_AT_MOST
            if fits and job.search.key == key:
                jobs.append(job)
                total += len(job.search)
            else:
                left.append(job)
        self._waiting = left
        return jobs

    async def _run(self, jobs: list[_Job]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix="search")
        asked = [job.search for job in jobs]
        loop = asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._pool, self._answers, asked)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.done.done():
                continue
            if isinstance(outcome, BaseException):
                job.done.set_exception(outcome)
            else:
                job.done.set_result(outcome)

    def _answers(
        self, searches: list[Search]
    ) -> list[tuple[SearchResult, Version] | BaseException]:
        """In a thread: one answer or error for each search."""
        version = self._holder.current
        try:
            if len(searches) == 1:
                return [(self._search(version, searches[0]), version)]
            whole = self._search(version, _joined(searches))
            ends = np.cumsum([len(search) for search in searches])[:-1]
            parts = zip(np.split(whole.scores, ends), np.split(whole.ids, ends), strict=True)
            return [
                (SearchResult(scores[:, : one.k], ids[:, : one.k]), version)
                for one, (scores, ids) in zip(searches, parts, strict=True)
            ]
        except Exception as error:  # also a bug: who waits must hear of it
            if len(searches) == 1:
                return [error]
            return [self._answers([search])[0] for search in searches]  # whose fault was it?

    def _search(self, version: Version, search: Search) -> SearchResult:
        begun = time.perf_counter()
        found = version.index.search(
            search.queries,
            search.k,
            filter=search.filter,
            exclude=search.exclude,
            threads=self._threads,
            **search.options,
        )
        if self._on_batch is not None:
            self._on_batch(len(search), time.perf_counter() - begun)
        return found


def _joined(searches: list[Search]) -> Search:
    queries: Any = [search.queries for search in searches]
    coded = isinstance(queries[0], SparseCodes)
    return Search(
        SparseCodes.concatenate(queries) if coded else np.concatenate(queries),
        max(search.k for search in searches),
        searches[0].options,
    )
