"""What the service counts, for Prometheus. Names no index and no route of its own.

With several processes each writes its counts to files of a folder that ``run`` makes
(``PROMETHEUS_MULTIPROC_DIR``), and any of them answers for all.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one process, in a registry of their own so that two apps do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "sparse_retrieval_requests_total",
            "Requests answered.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "sparse_retrieval_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "sparse_retrieval_requests_in_flight",
            "Requests that are read, wait or run.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.refused = Counter(
            "sparse_retrieval_refused_total",
            "Requests refused: no token, too many at once, too long, or waited too long.",
            ["reason"],
            registry=registry,
        )
        self.search_seconds = Histogram(
            "sparse_retrieval_search_seconds",
            "Seconds of a search in the index.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.search_queries = Histogram(
            "sparse_retrieval_search_queries",
            "Queries that were searched for together.",
            buckets=_QUERIES,
            registry=registry,
        )
        self.reloads = Counter(
            "sparse_retrieval_reloads_total",
            "Versions of the file that were opened, or could not be.",
            ["outcome"],
            registry=registry,
        )
        self.items = Gauge(
            "sparse_retrieval_index_items",
            "Items of the index.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.generation = Gauge(
            "sparse_retrieval_index_generation",
            "Versions of the file since the start.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def batch(self, queries: int, seconds: float) -> None:
        """Count one search in the index."""
        self.search_queries.observe(queries)
        self.search_seconds.observe(seconds)

    def render(self) -> bytes:
        """Return all counts in the text format."""
        folder = os.environ.get(_FOLDER)
        if folder is None:
            return generate_latest(self.registry)
        _forget_the_dead(Path(folder))
        whole = CollectorRegistry()
        MultiProcessCollector(whole, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(whole)


def _forget_the_dead(folder: Path) -> None:
    """Drop the gauges of processes that are gone; their counters still count."""
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        if pid.isdecimal() and not Path("/proc", pid).exists() and Path("/proc").exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]
