"""What was found, judged and compared, as the result file holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import _machine
from study import datasets, measures, ours
from study.measures import PerQuery
from study.run import Plan, kept_path, settings

#: families that search only a part of what they hold: no match for an exhaustive search's recall
PARTIAL = ("HNSW", "IVF", "usearch", "ours, rescored")


def assembled(plan: Plan, command: str) -> dict[str, Any]:
    """Everything that the study's folder has of these data sets."""
    return {
        "benchmark": "study",
        "command": command,
        "machine": _machine.describe(("turbovec", "usearch", "scann", "sentence-transformers")),
        "seeds": list(plan.seeds),
        "rounds": ours.ROUNDS,
        "confidence": measures.CONFIDENCE,
        "sets": {name: of_set(plan, name) for name in plan.names if _begun(plan, name)},
    }


def _begun(plan: Plan, name: str) -> bool:
    return (plan.cache / name / "answers").is_dir()


def of_set(plan: Plan, name: str) -> dict[str, Any]:
    """One data set: its settings with all measures, and ours against the best at each size."""
    parts = datasets.prepared(name, plan.data, plan.cache)
    known = datasets.DATA_SETS[name]
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, list[PerQuery]]] = {}
    missing: dict[str, int] = {}  # settings of each family that have not been run
    for setting in settings(plan, name):
        path = kept_path(plan, name, setting)
        if not path.is_file():
            missing[setting.family] = missing.get(setting.family, 0) + 1
            continue
        row = json.loads(path.read_text(encoding="utf-8"))
        if "stopped_s" in row:
            rows.setdefault(setting.name, row)
            continue
        ids = np.load(path.with_suffix(".npy")).astype(np.int64)
        judged = measures.judged(ids, parts.truth, parts.item_labels, parts.query_labels)
        # several seeds of one setting: one row, the first seed's sizes, all seeds' answers
        rows[setting.name] = rows.get(setting.name, row)
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
        "sha256": datasets.digest(parts),
        "exact": exact,
        "rows": sorted(rows.values(), key=lambda row: (row.get("bytes", np.inf), row["setting"])),
        "margins": margins(rows, tables),
        "missing": missing,
        "latency": _latency(plan.cache / name / "latency.json"),
    }


def margins(
    rows: dict[str, dict[str, Any]], tables: dict[str, dict[str, PerQuery]]
) -> list[dict[str, Any]]:
    """Ours less the best rival within each size, paired by query, with intervals."""
    made = []
    for budget in ours.BUDGETS:
        within = [
            row
            for name, row in rows.items()
            if name in tables and row["bytes"] <= budget and row["family"] not in PARTIAL
        ]
        own = [row for row in within if row["family"] == "ours"]
        rivals = [row for row in within if row["family"] != "ours"]
        if not own or not rivals:
            continue

        def recall(row: dict[str, Any]) -> float:
            return float(row["recall@100"]["mean"])

        best, rival = max(own, key=recall), max(rivals, key=recall)
        row = {"bytes": budget, "ours": best["setting"], "rival": rival["setting"]}
        for measure in ("recall@1", "recall@10", "recall@100", "ndcg@10"):
            apart = tables[best["setting"]][measure] - tables[rival["setting"]][measure]
            row[measure] = measures.summary(apart)
        made.append(row)
    return made


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
