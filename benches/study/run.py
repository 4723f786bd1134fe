"""Running the study part by part: processes, limits, and the files that a later run goes on from.

A family of settings is built and asked in a process of its own, a fresh interpreter: one that is
forked after OpenMP or rayon were used waits for ever for threads that it does not have. A setting
that gives no answer within the limit is stopped, and its family goes on without it. Each answer
(the ids found) is kept in the study's folder, so that measures can be added without searching.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import _machine
from sparse_retrieval._files import replacing
from study import datasets, ours, rivals, sparse
from study.systems import Setting, threads_to_build

#: where HNSW, a batch or all threads would take long, fewer queries are timed
SINGLE, BATCHES = 200, 3


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes
    ----------
    data, cache : Path
        The caller's folder of data, and the study's own.
    names : tuple of str
        Data sets.
    seeds : tuple of int
        Of our learning.
    limit_s : float
        Seconds that a setting may take.
    quick : bool
        Fewer rivals.
    only : tuple of str
        Families to run; empty for all.
    named : tuple of str
        Settings to run, of these families; empty for all.
    draw : int
        Which rows are held out.
    """

    data: Path
    cache: Path
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    limit_s: float
    quick: bool = False
    only: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    draw: int = 0

    def split(self, name: str) -> datasets.Split:
        """Items, queries and truth of a set."""
        return datasets.prepared(name, self.data, self.cache, self.draw)

    def folder(self, name: str) -> Path:
        """What is kept of a set."""
        return datasets.folder_of(name, self.cache, self.draw)


def settings(plan: Plan, name: str) -> list[Setting]:
    """All settings of a data set, ours first."""
    parts = plan.split(name)
    made = ours.settings(plan.seeds, quick=plan.quick)
    made += rivals.settings(parts.items.shape[1], len(parts.items), quick=plan.quick)
    made += [] if plan.quick else sparse.settings()
    return [
        setting
        for setting in made
        if (not plan.only or setting.family in plan.only)
        and (not plan.named or setting.name in plan.named)
    ]


def kept_path(plan: Plan, name: str, setting: Setting) -> Path:
    """Where the answer of a setting is kept."""
    safe = "".join(c if c.isalnum() else "-" for c in setting.key)
    return plan.folder(name) / "answers" / f"{safe}.json"


def answer(plan: Plan, name: str, setting: Setting, parts: datasets.Split) -> dict[str, Any]:
    """Build one setting and ask it all queries."""
    begun = time.perf_counter()
    system = setting.build(parts.items, plan.folder(name))
    built_s = time.perf_counter() - begun
    found = system.search(parts.queries, threads_to_build())
    path = kept_path(plan, name, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, found.astype(np.int32))
    return {
        "family": setting.family,
        "setting": setting.name,
        "seed": setting.seed,
        "bytes": round(system.bytes_per_item, 3),
        "shared_bytes": round(system.shared_bytes),
        "learn_cpu_s": round(system.learn_s, 2),
        "encode_cpu_s": round(system.encode_s, 2),
        "built_s": round(built_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "date": _machine.today(),
        "cosine": None if system.cosine is None else round(system.cosine, 5),
        "note": system.note,
    }


def _work(plan: Plan, name: str, keys: Sequence[str], answers: Any) -> None:
    by_key = {setting.key: setting for setting in settings(plan, name)}
    parts = plan.split(name)
    for key in keys:
        answers.put((key, answer(plan, name, by_key[key], parts)))


def run_family(plan: Plan, name: str, missing: Sequence[Setting]) -> None:
    """Run settings in one process, or in several if some have to be stopped."""
    waiting = [setting.key for setting in missing]
    by_key = {setting.key: setting for setting in missing}
    context = multiprocessing.get_context("spawn")
    while waiting:
        answers = context.Queue()
        process = context.Process(target=_work, args=(plan, name, tuple(waiting), answers))
        process.start()
        begun, ended = time.perf_counter(), False
        while waiting and not ended and time.perf_counter() - begun < plan.limit_s:
            was_alive = process.is_alive()  # before the look: what was put before the end is found
            try:
                key, row = answers.get(timeout=1)
            except queue.Empty:
                ended = not was_alive
                continue
            keep(plan, name, by_key[key], row)
            waiting.remove(key)
            begun = time.perf_counter()
        seconds = time.perf_counter() - begun
        if not waiting:
            process.join()
            return
        process.kill()
        process.join()
        if ended and process.exitcode != -9:  # that of a process that took too much memory
            raise RuntimeError(f"{waiting[0]} on {name} ended with exit code {process.exitcode}")
        stopped = by_key[waiting.pop(0)]
        row = {"family": stopped.family, "setting": stopped.name, "seed": stopped.seed}
        row |= {"stopped_s": round(seconds), "load_average": round(os.getloadavg()[0], 1)}
        row["date"] = _machine.today()
        keep(plan, name, stopped, row)


def keep(plan: Plan, name: str, setting: Setting, row: dict[str, Any]) -> None:
    """Write what is known of a setting, beside the ids that it found."""
    path = kept_path(plan, name, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
    what = f"stopped after {row['stopped_s']} s" if "stopped_s" in row else f"{row['bytes']:7.1f} B"
    print(f"{name:10} {setting.key:36} {what}  load {row['load_average']}", flush=True)


def run(plan: Plan, name: str) -> None:
    """Run what a data set lacks, family by family."""
    families: dict[str, list[Setting]] = {}
    for setting in settings(plan, name):
        if not kept_path(plan, name, setting).is_file():
            families.setdefault(setting.family, []).append(setting)
    for missing in families.values():
        run_family(plan, name, missing)
