"""Measured blocks of ``docs/reliability.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _results import load


def _reliability() -> dict[str, Any]:
    parts: dict[str, Any] = load("reliability")["parts"]
    return parts


def reliability() -> str:
    """Render counts of faults, each with what came of it."""
    parts = _reliability()
    fuzz, kills, damage = parts["fuzz"], parts["kills"], parts["damage"]
    faults, model, mapped = parts["faults"], parts["model"], parts["mapped"]
    targets = ", ".join(f"{name} {n['executions']:,}" for name, n in fuzz["targets"].items())
    guided = parts["guided"]
    edges = ", ".join(f"{name} {n['edges']:,}" for name, n in guided["targets"].items())
    works = ", ".join(f"{what} {n}" for what, n in faults["by_work"].items())
    killed = ", ".join(f"{what} {n}" for what, n in kills["by_work"].items())
    return "\n".join(
        [
            "| done | times | came of it |",
            "|---|---:|---|",
            f"| inputs mutated ({targets}) | {fuzz['executions']:,} | "
            f"{fuzz['failures']} failures |",
            f"| inputs made by a fuzzer guided by coverage, under the {guided['sanitizer']} "
            f"sanitizer (edges of code reached: {edges}) | {guided['executions']:,} | "
            f"{guided['crashes']} crashes |",
            f"| inputs mutated under valgrind | {parts['memcheck']['executions']:,} | "
            f"{parts['memcheck']['errors']} errors |",
            f"| processes killed (SIGKILL: {killed}) | {kills['kills']:,} | "
            f"{kills['lost']} of {kills['acknowledged_changes']:,} acknowledged changes lost, "
            f"{kills['torn']} torn |",
            f"| calls that change the disk made to fail ({works}) | "
            f"{sum(faults['by_work'].values()):,} | {faults['lost_or_torn']} lost or torn |",
            f"| file and journal cut, at every byte | {damage['cuts']:,} | see below |",
            f"| bits flipped, every one | {damage['flipped_bits']:,} | {damage['missed']} missed "
            f"(cuts too), {damage['harmless']} harmless |",
            f"| steps of changes against a model, in {model['sequences']} sequences | "
            f"{model['steps']:,} | {model['differences']} differences |",
            "| opened, searched and fetched from a mapped file of "
            f"{mapped['file_mb']:.0f} MB | 1 | "
            f"{mapped['above_interpreter_mb']:.0f} MB beside the page cache |",
            "",
            "A cut file is refused. A cut journal is read up to its last whole commit, and one "
            "that is shorter than its header refused. " + _reliability_machine(kills),
        ]
    )


def _reliability_machine(part: dict[str, Any]) -> str:
    machine = part["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}."


def reliability_writer() -> str:
    """Render memory and time of writing many rows."""
    part = _reliability()["writer"]
    lines = [
        "| rows | file | memory above the interpreter | time |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {run['rows']:,} | {run['file_mb']:.0f} MB | {run['above_interpreter_mb']:.0f} MB | "
        f"{run['seconds']:.0f} s |"
        for run in part["runs"]
    ]
    same = "the same bytes" if part["same_bytes"] else "different bytes"
    return "\n".join(
        [
            *lines,
            "",
            f"{part['nonzeros']} nonzeros a row, 4-bit values, ids in no order. The two runs of "
            f"equal length wrote {same}. {_reliability_machine(part)}",
        ]
    )


def reliability_additions() -> str:
    """Render times of additions and what searches lose by them."""
    part = _reliability()["additions"]
    lines = [
        f"{part['batch']:,} rows added to {part['rows']:,}: found by a search after "
        f"{part['visible_ms']:.0f} ms (packing, addition and search), durable after another "
        f"{part['commit_ms']:.0f} ms (syncing 100 KB alone takes "
        f"{part['fsync_of_100_kb_ms']:.0f} ms on this disk). Medians of 10.",
        "",
        "| added | time of a query, against the base alone | of a query in a batch of 32 |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {row['added']:,} | {row['ratio_1']:.3f} | {row['ratio_32']:.3f} |"
        for row in part["searches"]
    ]
    return "\n".join([*lines, "", f"One thread, medians. {_reliability_machine(part)}"])


BLOCKS: dict[str, Callable[[], str]] = {
    "reliability": reliability,
    "reliability-writer": reliability_writer,
    "reliability-additions": reliability_additions,
}
