"""What was found, judged and compared, as the result file holds it.

A run adds to the file: sets that were not run, and settings of which the study's folder has no
answer, stay as they are in it, as long as the rows of the set are the same but for rounding. What
is compared query by query needs both answers, now or when both were measured for the file; with
one that is in the file alone, the interval is that of two independent means, which is wider, and
says so (``paired``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import _machine
from study import datasets, energy, measures, ours
from study.measures import PerQuery
from study.run import Plan, kept_path, settings

#: families that search only a part of what they hold: no match for an exhaustive search's recall
PARTIAL = ("HNSW", "IVF", "usearch", "ours, rescored")


def assembled(plan: Plan, command: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the study's folder has of these data sets, and what the file had before.

    Parameters
    ----------
    plan : Plan
    command : str
        What the file says that it is remade by.
    before : dict, optional
        An earlier result.
    """
    kept = {} if before is None else before["sets"]
    for of in kept.values():
        for row in of["rows"]:
            row.setdefault("date", before["machine"]["date"] if before else None)
    made = {name: of_set(plan, name, kept.get(name)) for name in plan.names if _begun(plan, name)}
    machine = _machine.describe(("turbovec", "usearch", "scann", "sentence-transformers"))
    earlier = [] if before is None else before.get("cpus", [before["machine"]["cpu"]])
    return {
        "benchmark": "study",
        "command": command,
        "machine": machine,
        # of this run and of those whose rows are still here
        "cpus": list(dict.fromkeys([*earlier, machine["cpu"]])),
        "seeds": sorted({*plan.seeds, *([] if before is None else before.get("seeds", []))}),
        "rounds": ours.ROUNDS,
        "confidence": measures.CONFIDENCE,
        "energy": energy.readable(),
        "sets": {
            name: made.get(name) or kept[name]
            for name in datasets.DATA_SETS
            if name in made or name in kept
        },
    }


def _begun(plan: Plan, name: str) -> bool:
    return (plan.folder(name) / "answers").is_dir()


def of_set(plan: Plan, name: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """One data set: its settings with all measures, and ours against the best at each size."""
    parts = plan.split(name)
    known = datasets.DATA_SETS[name]
    sha256, outline = datasets.digest(parts), datasets.outline(parts)
    if (
        before is not None
        and before["sha256"] != sha256
        and not datasets.same_outline(before.get("outline", []), outline)
    ):
        before = None
    earlier: dict[str, dict[str, Any]] = {}
    if before is not None:
        earlier = {row["setting"]: row for row in before["rows"]}
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, list[PerQuery]]] = {}
    missing: dict[str, int] = {}  # settings of each family that have not been run
    for setting in settings(dataclasses.replace(plan, only=(), named=()), name):
        path = kept_path(plan, name, setting)
        row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        then = earlier.get(setting.name)
        # what was stopped takes no answer's place, and is known to be stopped until it answers
        if then is not None and (not row or ("stopped_s" in row and "recall@100" in then)):
            rows.setdefault(setting.name, then)
            continue
        if not row:
            missing[setting.family] = missing.get(setting.family, 0) + 1
            continue
        if "stopped_s" in row:
            rows.setdefault(setting.name, row)
            continue
        ids = np.load(path.with_suffix(".npy")).astype(np.int64)
        judged = measures.judged(ids, parts.truth, parts.item_labels, parts.query_labels)
        # several seeds of one setting: one row, the first seed's sizes, all seeds' answers
        if setting.name not in found:
            rows[setting.name] = row
        of = found.setdefault(setting.name, {})
        for measure, values in judged.items():
            of.setdefault(measure, []).append(values)
    tables = {of: {m: np.array(v) for m, v in by.items()} for of, by in found.items()}
    for of, by in tables.items():
        row = rows[of]
        row["total_bytes"] = round(row["bytes"] + row["shared_bytes"] / len(parts.items), 1)
        row["seeds"] = len(by["recall@100"])
        row |= {measure: measures.summary(values) for measure, values in by.items()}
        row.pop("seed")
    exact = {}
    if parts.item_labels is not None and parts.query_labels is not None:
        same = measures.same_label(parts.truth, parts.item_labels, parts.query_labels)
        exact = {"label@10": measures.summary(same)}
    return {
        "title": known.title,
        "origin": known.origin,
        "items": len(parts.items),
        "queries": len(parts.queries),
        "columns": int(parts.items.shape[1]),
        "sha256": sha256,
        "outline": outline,
        "exact": exact,
        "rows": sorted(rows.values(), key=lambda row: (row.get("bytes", np.inf), row["setting"])),
        "margins": margins(rows, tables, 2.0 * parts.items.shape[1], _compared(before, found)),
        "missing": missing,
        "latency": _latency(plan.folder(name) / "latency.json") or _still(before, rows),
    }


def _compared(
    before: dict[str, Any] | None, found: dict[str, Any]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Paired comparisons of before, by the two settings, neither of which was measured anew."""
    return {
        (row["ours"], row["rival"]): row
        for row in (before["margins"] if before is not None else ())
        if row["paired"] and row["ours"] not in found and row["rival"] not in found
    }


def margins(
    rows: dict[str, dict[str, Any]],
    tables: dict[str, dict[str, PerQuery]],
    vector_bytes: float,
    compared: Mapping[tuple[str, str], dict[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Ours less the best rival within each size, paired by query, with intervals.

    What takes more than the vectors in half precision, with all that is shared, is no compression:
    of small sets the codebooks of additive quantisers may know every item by heart. Such rivals are
    named beside the others ("larger") where they recall more than ours.
    """
    made = []
    for budget in ours.BUDGETS:
        within = [
            row
            for name, row in rows.items()
            if "recall@100" in row and row["bytes"] <= budget and row["family"] not in PARTIAL
        ]
        compressing = [row for row in within if row["total_bytes"] <= vector_bytes]
        own = [row for row in compressing if row["family"] == "ours"]
        rivals = [row for row in compressing if row["family"] != "ours"]
        if not own or not rivals:
            continue

        def recall(row: dict[str, Any]) -> float:
            return float(row["recall@100"]["mean"])

        best, rival = max(own, key=recall), max(rivals, key=recall)
        names = best["setting"], rival["setting"]
        others = [row for row in within if row not in compressing and row["family"] != "ours"]
        larger = max(others, key=recall, default=best)
        paired = all(name in tables for name in names) or names in compared
        row = {"bytes": budget, "ours": names[0], "rival": names[1], "paired": paired}
        if recall(larger) > recall(best):
            row["larger"] = larger["setting"]
        for measure in ("recall@1", "recall@10", "recall@100", "ndcg@10"):
            if names in compared:
                row[measure] = compared[names][measure]
            elif paired:
                apart = tables[names[0]][measure] - tables[names[1]][measure]
                row[measure] = measures.summary(apart)
            else:
                row[measure] = measures.apart(best[measure], rival[measure])
        made.append(row)
    return made


def _still(before: dict[str, Any] | None, rows: dict[str, dict[str, Any]]) -> Any:
    """Times of before, of settings that are what they were then."""
    if before is None or before["latency"] is None:
        return None
    then = {row["setting"]: row for row in before["rows"]}
    same = [
        row
        for row in before["latency"]["rows"]
        if all(
            then[row["setting"]].get(size) == rows[row["setting"]].get(size)
            for size in ("bytes", "shared_bytes", "note")
        )
    ]
    return before["latency"] | {"rows": same}


def _latency(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What two result files disagree on, beyond their intervals; sets and rows they share.

    Bytes must be equal, and every measure of every setting must agree.
    """
    found = []
    for name in one["sets"].keys() & other["sets"].keys():
        theirs = {row["setting"]: row for row in other["sets"][name]["rows"]}
        for row in one["sets"][name]["rows"]:
            peer = theirs.get(row["setting"])
            if peer is None or "stopped_s" in row or "stopped_s" in peer:
                continue
            what = f"{name}, {row['setting']}"
            if abs(row["bytes"] - peer["bytes"]) > 0.01 * peer["bytes"]:
                found.append(f"{what}: {row['bytes']} bytes, expected {peer['bytes']}")
            found += [
                f"{what}: {measure} is {row[measure]['mean']}, expected {peer[measure]['mean']}"
                for measure in ("recall@1", "recall@10", "recall@100", "ndcg@10")
                if not measures.agree(row[measure], peer[measure])
            ]
    return found
