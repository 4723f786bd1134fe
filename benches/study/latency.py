"""Latencies of one data set's timed settings, all in one process, in turn.

Rounds go around all systems, so that whatever else the machine does meets all of them. Alone: one
query a call, one thread, by the clock. In a batch: all queries in one call, on one thread and on
all of them. Each number of threads is a process of its own: some libraries read it when they are
imported.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import time
from typing import Any

import numpy as np

from sparse_retrieval._files import replacing
from study.run import Plan, kept_path, settings

ROUNDS, ALONE = 8, 25


def measure(plan: Plan, name: str, threads: int) -> list[dict[str, Any]]:
    """Build everything that answered before, then ask in turn."""
    parts = plan.split(name)
    systems = {}
    for setting in settings(plan, name):
        path = kept_path(plan, name, setting)
        if setting.timed and path.is_file() and path.with_suffix(".npy").is_file():
            systems[setting.name] = setting.build(parts.items, plan.folder(name))
    alone: dict[str, list[float]] = {of: [] for of in systems}
    batch: dict[str, list[float]] = {of: [] for of in systems}
    for number in range(ROUNDS):
        first = number * ALONE % len(parts.queries)
        for of, system in systems.items():
            for query in parts.queries[first : first + ALONE] if threads == 1 else ():
                begun = time.perf_counter()
                system.search(query[None], threads)
                alone[of].append(time.perf_counter() - begun)
            if number % 2 == 0:
                begun = time.perf_counter()
                system.search(parts.queries, threads)
                batch[of].append((time.perf_counter() - begun) / len(parts.queries))
    rows = []
    for of in systems:
        row: dict[str, Any] = {"setting": of}
        if alone[of]:
            median, tail = np.percentile(np.array(alone[of]) * 1e3, [50, 99])
            row |= {"alone_ms": round(float(median), 4), "alone_p99_ms": round(float(tail), 4)}
        kind = "batch_ms" if threads == 1 else "batch_all_threads_ms"
        rows.append(row | {kind: round(float(np.median(batch[of])) * 1e3, 4)})
    return rows


def _work(plan: Plan, name: str, threads: int, answers: Any) -> None:
    answers.put((measure(plan, name, threads), round(os.getloadavg()[0], 1)))


def run(plan: Plan, name: str) -> None:
    """Measure a data set unless it has been, and keep the figures in the study's folder."""
    path = plan.folder(name) / "latency.json"
    if path.is_file():
        return
    by_name: dict[str, dict[str, Any]] = {}
    loads = []
    before = {key: os.environ.get(key) for key in ("RAYON_NUM_THREADS", "OMP_WAIT_POLICY")}
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    for threads in sorted({1, cores}):
        os.environ |= {"RAYON_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        answers = context.Queue()
        process = context.Process(target=_work, args=(plan, name, threads, answers))
        process.start()
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value
        while True:
            try:
                rows, load = answers.get(timeout=1)
                break
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError(f"latency of {name}: {process.exitcode}") from None
        process.join()
        loads.append(load)
        for row in rows:
            by_name.setdefault(row["setting"], {}).update(row)
    kept = {"load_average": max(loads), "threads": cores, "rows": list(by_name.values())}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept) + "\n", encoding="utf-8")
