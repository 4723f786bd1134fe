"""The measured blocks of ``docs/service.md`` and ``docs/distributed.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _results import load


def _provenance(results: dict[str, Any]) -> str:
    machine, index = results["machine"], results["index"]
    return (
        f"{index['items']:,} items of {index['bytes_per_item']:g} bytes, k = {results['k']}, mode "
        f"dense, {results['seconds']:g} s each; callers and what they call share the machine: "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}, "
        f"{machine['date']}. Every answer was compared with the index's own. Remade by "
        f"`{results['command']}` and `make docs`."
    )


def service_load() -> str:
    """Render latency and throughput without faults."""
    results = load("service")
    lines = [
        "| asked by | queries a request | clients | queries a second | ms, median | ms, p99 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['what']} | {row['per_request']} | {row.get('clients', 1)} | "
        f"{row['per_s'] * row['per_request']:,.0f} | {row['ms_median']:.1f} | {row['ms_p99']:.1f} |"
        for row in results["rows"]
    ]
    return "\n".join([*lines, "", _provenance(results)])


def service_faults() -> str:
    """Render what faults did."""
    results = load("service")
    lines = [
        "| fault | clients | answers | wrong | lost | 503 | ms, median | ms, p99 | ms, most |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["faults"]:
        count = row.get("replaced", row.get("killed"))
        what = row["what"] + (f" ({count} times)" if count else "")
        lines.append(
            f"| {what} | {row['clients']} | {row['answers']:,} | {row['wrong']} | "
            f"{row['requests_lost']} | {row['statuses'].get('503', 0):,} | "
            f"{row['ms_median']:.1f} | {row['ms_p99']:.1f} | {row['ms_most']:.0f} |"
        )
    return "\n".join([*lines, "", _provenance(results)])


def sharded() -> str:
    """Render one index, its shards, and its shards while actors are killed."""
    results = load("sharded")
    lines = [
        "| what | replicas | callers | queries a call | answers | wrong | failed | ms, median "
        "| ms, p99 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        what = row["what"] + (f" ({row['killed']} times)" if "killed" in row else "")
        lines.append(
            f"| {what} | {row['replicas'] or ''} | {row['callers']} | {row['per_request']} | "
            f"{row['answers']:,} | {row['wrong']} | {row['failed']} | {row['ms_median']:.1f} | "
            f"{row['ms_p99']:.1f} |"
        )
    return "\n".join([*lines, "", _provenance(results)])


BLOCKS: dict[str, Callable[[], str]] = {
    "service-load": service_load,
    "service-faults": service_faults,
    "sharded": sharded,
}
