"""The HTTP service on loopback: latency and throughput, and what faults do to both.

    python benches/bench_service.py --index FILE --queries FILE [--out FILE]

FILE is an index that serves the mode dense, and embeddings (.npy). Clients are threads of this
process with one connection each, asking one request after the other without a pause; every
answer is compared with the index's own. Phases of SECONDS each:

- one query a request, as JSON and as .npy bytes, from 1, 8 and 32 clients; 64 queries a request;
- the index alone, in a process of its own kind, to see what HTTP adds;
- the file replaced by another one and back, every 0.3 s, under 8 clients;
- two worker processes, one of them killed every second, under 8 clients that ask once more
  after a broken connection;
- 32 clients where 4 requests are allowed at once.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import _machine
import sparse_retrieval as sr

SECONDS = 5.0
K = 10
Bodies = list[tuple[bytes, list[list[int]]]]


@contextmanager
def serving(index: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a service on a free port and stop it with SIGTERM."""
    command = [sys.executable, "-m", "sparse_retrieval.cli", "serve", str(index), "--port", "0"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass
class Client:
    """One thread that asks, and what it met."""

    port: int
    path: str
    bodies: Bodies
    also: list[list[list[int]]] | None
    retries: int
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: int = 0
    broken: int = 0
    lost: int = 0

    def run(self, stop: float, start: int) -> None:
        """Ask until the time is up."""
        connection: http.client.HTTPConnection | None = None
        at = start
        while time.perf_counter() < stop:
            at = (at + 1) % len(self.bodies)
            begun = time.perf_counter()
            for attempt in range(self.retries + 1):
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                    connection.request("POST", self.path, body=self.bodies[at][0])
                    response = connection.getresponse()
                    content = response.read()
                except (OSError, http.client.HTTPException):
                    self.broken += 1
                    connection = None
                    self.lost += attempt == self.retries
                    continue
                self.note(response.status, content, at, time.perf_counter() - begun)
                break

    def note(self, status: int, content: bytes, at: int, seconds: float) -> None:
        """Count an answer; a good one must be that of one of the files."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status != 200:
            return
        self.latencies.append(seconds)
        if self.path.startswith("/search.npy"):
            ids = np.load(io.BytesIO(content))["id"].tolist()
        else:
            ids = [one["ids"] for one in json.loads(content)["results"]]
        expected = [self.bodies[at][1]] + ([self.also[at]] if self.also else [])
        self.wrong += ids not in expected


def load(
    port: int,
    path: str,
    bodies: Bodies,
    *,
    clients: int,
    also: list[list[list[int]]] | None = None,
    retries: int = 0,
    beside: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Let clients ask for SECONDS s, with a fault going on beside; what they met, together."""
    asking = [Client(port, path, bodies, also, retries) for _ in range(clients)]
    stop = time.perf_counter() + SECONDS
    threads = [
        threading.Thread(target=one.run, args=(stop, at * 7)) for at, one in enumerate(asking)
    ]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    if beside is not None:
        beside(stop)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    latencies = np.sort(np.concatenate([one.latencies for one in asking])) * 1000
    statuses: dict[str, int] = {}
    for one in asking:
        for status, count in one.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count
    return {
        "clients": clients,
        "answers": len(latencies),
        "per_s": len(latencies) / seconds,
        "ms_median": float(np.median(latencies)),
        "ms_p99": float(np.quantile(latencies, 0.99)),
        "ms_most": float(latencies[-1]),
        "statuses": statuses,
        "wrong": sum(one.wrong for one in asking),
        "connections_broken": sum(one.broken for one in asking),
        "requests_lost": sum(one.lost for one in asking),
    }


def json_bodies(index: sr.SparseIndex, queries: NDArray[np.float32], per: int) -> Bodies:
    """Bodies of ``per`` queries each, and the ids that answer them."""
    ids = index.search(queries, K).ids
    groups = range(0, len(queries) - per + 1, per)
    return [
        (
            json.dumps({"queries": queries[at : at + per].tolist(), "k": K}).encode(),
            ids[at : at + per].tolist(),
        )
        for at in groups
    ]


def npy_bodies(index: sr.SparseIndex, queries: NDArray[np.float32], per: int) -> Bodies:
    """The same as .npy bytes."""
    bodies = []
    for at, (_, ids) in enumerate(json_bodies(index, queries, per)):
        file = io.BytesIO()
        np.save(file, queries[at * per : (at + 1) * per])
        bodies.append((file.getvalue(), ids))
    return bodies


def alone(index: sr.SparseIndex, queries: NDArray[np.float32], per: int) -> dict[str, Any]:
    """The index in this process, one batch after the other."""
    latencies = []
    stop = time.perf_counter() + SECONDS
    at = 0
    while time.perf_counter() < stop:
        begun = time.perf_counter()
        index.search(queries[at : at + per], K)
        latencies.append((time.perf_counter() - begun) * 1000)
        at = (at + per) % (len(queries) - per + 1)
    return {
        "answers": len(latencies),
        "per_s": 1000 * len(latencies) / sum(latencies),
        "ms_median": float(np.median(latencies)),
        "ms_p99": float(np.quantile(latencies, 0.99)),
    }


def plain(path: Path, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """No faults."""
    index = sr.SparseIndex.open(path)
    rows = [{"what": "index alone", "per_request": n, **alone(index, queries, n)} for n in (1, 64)]
    one_json, one_npy = json_bodies(index, queries, 1), npy_bodies(index, queries, 1)
    with serving(path) as (_, port):
        for clients in (1, 8, 32):
            for what, route, bodies in (
                ("JSON", "/search", one_json),
                (".npy", f"/search.npy?k={K}", one_npy),
            ):
                found = load(port, route, bodies, clients=clients)
                rows.append({"what": what, "per_request": 1, **found})
        for what, route, bodies in (
            ("JSON", "/search", json_bodies(index, queries, 64)),
            (".npy", f"/search.npy?k={K}", npy_bodies(index, queries, 64)),
        ):
            rows.append({"what": what, "per_request": 64, **load(port, route, bodies, clients=2)})
    return rows


def replaced(path: Path, queries: NDArray[np.float32], folder: Path) -> dict[str, Any]:
    """Two files in turn, under load."""
    served, other = folder / "served.sridx", folder / "other.sridx"
    shutil.copy(path, served)
    smaller = sr.SparseIndex.open(path, mmap=False)
    smaller.remove(smaller.ids[::3])
    smaller.save(other)
    bodies = npy_bodies(sr.SparseIndex.open(path), queries, 1)
    also = [ids for _, ids in npy_bodies(sr.SparseIndex.open(other), queries, 1)]
    times = 0

    def replace(stop: float) -> None:
        nonlocal times
        while time.perf_counter() < stop:
            shutil.copy(other if times % 2 == 0 else path, folder / "next.sridx")
            os.replace(folder / "next.sridx", served)  # noqa: PTH105
            times += 1
            time.sleep(0.3)

    with serving(served, "--watch", "0.05") as (_, port):
        found = load(port, f"/search.npy?k={K}", bodies, clients=8, also=also, beside=replace)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        generation = json.loads(connection.getresponse().read())["generation"]
    return {"what": "file replaced", "replaced": times, "versions_served": generation, **found}


def killed(path: Path, queries: NDArray[np.float32]) -> dict[str, Any]:
    """Workers that die."""
    bodies = npy_bodies(sr.SparseIndex.open(path), queries, 1)
    with serving(path, "--workers", "2") as (process, port):
        kills = 0

        def kill(stop: float) -> None:
            nonlocal kills
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            time.sleep(1)
            while time.perf_counter() < stop:
                for pid in children.read_text().split():
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)
                        kills += 1
                        break
                time.sleep(2)

        found = load(port, f"/search.npy?k={K}", bodies, clients=8, retries=1, beside=kill)
    return {"what": "worker killed", "killed": kills, **found}


def overloaded(path: Path, queries: NDArray[np.float32]) -> dict[str, Any]:
    """More clients than requests allowed."""
    bodies = npy_bodies(sr.SparseIndex.open(path), queries, 1)
    with serving(path, "--max-concurrent", "4") as (_, port):
        found = load(port, f"/search.npy?k={K}", bodies, clients=32)
    return {"what": "overload", **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/service.json")
    arguments = parser.parse_args()
    queries = np.load(arguments.queries).astype(np.float32)
    index = sr.SparseIndex.open(arguments.index)
    index.verify()
    with tempfile.TemporaryDirectory() as folder:
        faults = [
            replaced(arguments.index, queries, Path(folder)),
            killed(arguments.index, queries),
            overloaded(arguments.index, queries),
        ]
    results = {
        "benchmark": "service",
        "command": "python benches/bench_service.py --index FILE --queries FILE",
        "rows": plain(arguments.index, queries),
        "faults": faults,
        "machine": _machine.describe(("fastapi", "uvicorn", "pydantic")),
        "index": {"items": len(index), "bytes_per_item": index.bytes_per_item},
        "k": K,
        "seconds": SECONDS,
    }
    for row in (*results["rows"], *faults):
        assert row.get("wrong", 0) == 0, row
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
