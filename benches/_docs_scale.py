"""The model of ``docs/scale.md``: what was measured up to 10^7 items, carried to 10^8 and 10^9.

Every figure is computed from ``benches/results``; what is assumed beside them stands here by name
and is printed with the tables. Nothing in this file was measured at the sizes that it speaks of.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from _results import load

SIZES = (10**8, 10**9)
#: the server that is imagined: cores, and what its memory gives to a scan, bytes a second
CORES, BANDWIDTH = 32, 200e9
#: dollars a month for a gigabyte of memory, for one of fast disk, and for a core: list prices of
#: large clouds lie around these; change them and run `make docs`
MEMORY_DOLLARS, DISK_DOLLARS, CORE_DOLLARS = 3.0, 0.1, 20.0
#: share of the exact top 100 that approximate search is asked to keep
KEPT = 0.97
#: numbers of an embedding, and bytes of one in half precision on disk
WIDTH = 384


def slope(points: list[tuple[float, float]]) -> float:
    """What one more item costs, between the two largest sizes measured."""
    (x0, y0), (x1, y1) = sorted(points)[-2:]
    return (y1 - y0) / (x1 - x0)


def bytes_an_item() -> float:
    """Bytes of the file that one more item takes."""
    return slope([(row["rows"], row["file_mb"] * 1e6) for row in load("scale")["rows"]])


def scan_ms(column: str) -> float:
    """Milliseconds of exact search that one more item takes, by the column of ``scale.json``."""
    return slope([(row["rows"], row[column]) for row in load("scale")["rows"]])


def thread_share() -> float:
    """What a second thread gives to a single scan, of what it could give: the median over sizes.

    Of one run on one machine: a quotient of runs on several says nothing of threads.
    """
    results = load("scale")
    return statistics.median(
        row["one_ms"] / row["one_all_threads_ms"] / results["machine"]["cores"]
        for row in results["rows"]
    )


def approximate_points() -> list[tuple[int, float, float]]:
    """Items, ms alone and bytes an item of the cheapest setting that keeps KEPT, by corpus."""
    points = []
    for corpus in load("approximate")["corpora"].values():
        enough = [row for row in corpus["rows"] if row["kept"] is not None]
        enough = [r for r in enough if r["kept"] >= KEPT and r["series"] != "ours, exact"]
        best = min(enough, key=lambda row: row["ms_alone"])
        points.append((corpus["items"], best["ms_alone"], best["bytes_per_item"]))
    return sorted(points)


def growth() -> float:
    """Exponent with which the time of approximate search grows between the two largest corpora."""
    (n0, ms0, _), (n1, ms1, _) = approximate_points()[-2:]
    return math.log(ms1 / ms0) / math.log(n1 / n0)


def _scan(n: int, per_item_ms: float) -> float:
    """Seconds of one exact search on the server: what its cores take, or its memory."""
    cores = n * per_item_ms / 1e3 / (CORES * thread_share())
    return max(cores, n * bytes_an_item() / BANDWIDTH)


def memory() -> str:
    """Render memory, disk and dollars of the ways to hold so many items."""
    peers = {
        row["system"]: row["bytes"] for part in load("search")["parts"] for row in part["systems"]
    }
    codes, clustered = bytes_an_item(), approximate_points()[-1][2]
    ways: list[tuple[str, float, float]] = [
        ("ours, codes", codes, 0.0),
        ("ours, codes and clusters", clustered, 0.0),
        ("ours, codes; float16 originals on disk", codes, 2.0 * WIDTH),
        *(
            (name, peers[name], 0.0)
            for name in ("faiss PQ128x4fs", "turbovec 2 bits", "turbovec 4 bits")
        ),
        ("float16 vectors, scanned", 2.0 * WIDTH, 0.0),
        ("faiss HNSW32, float32", peers["faiss HNSW32"], 0.0),
        ("by qdrant's formula, float32", 4.0 * WIDTH * 1.5, 0.0),
        ("by ScyllaDB's formula, float32, m = 16", (4.0 * WIDTH + 16 * 16) * 1.2, 0.0),
    ]
    lines = [
        "| held | bytes an item | "
        + " | ".join(f"GB at {_power(n)}" for n in SIZES)
        + " | "
        + " | ".join(f"$ a month at {_power(n)}" for n in SIZES)
        + " |",
        "|---|---:|" + "---:|" * (2 * len(SIZES)),
    ]
    for name, in_memory, on_disk in ways:
        sizes = [f"{n * in_memory / 1e9:,.0f}" for n in SIZES]
        if on_disk:
            sizes = [
                f"{size}, disk {n * on_disk / 1e9:,.0f}"
                for size, n in zip(sizes, SIZES, strict=True)
            ]
        dollars = [
            f"{n / 1e9 * (in_memory * MEMORY_DOLLARS + on_disk * DISK_DOLLARS):,.0f}" for n in SIZES
        ]
        lines.append(f"| {name} | {in_memory:.0f} | " + " | ".join([*sizes, *dollars]) + " |")
    note = (
        f"Vectors of {WIDTH} numbers. Bytes of ours: what the file grew by between the two largest "
        "sizes of `scale.json`; of faiss and turbovec: `search.json`. Assumed: "
        f"${MEMORY_DOLLARS:g} a month for a GB of memory, ${DISK_DOLLARS:g} of disk; one copy, "
        "nothing kept free. The dictionary (3 to 6 MB) is left out."
    )
    return "\n".join([*lines, "", note])


def latency() -> str:
    """Render latency and throughput on the imagined server."""
    share, exponent = thread_share(), growth()
    _, reached_ms, _ = approximate_points()[-1]
    base = approximate_points()[-1][0]
    one, batch = scan_ms("one_ms"), scan_ms("batch_ms")
    rows: list[tuple[str, list[str], list[float]]] = [
        (
            "exact scan, one query on all cores",
            [_ms(1e3 * _scan(n, one)) for n in SIZES],
            [1 / _scan(n, one) for n in SIZES],
        ),
        (
            f"exact scan, {load('scale')['batch']} queries a call, one call a core",
            [_ms(n * batch * load("scale")["batch"]) for n in SIZES],
            [CORES * share * 1e3 / (n * batch) for n in SIZES],
        ),
    ]
    grown = [reached_ms * (n / base) ** exponent for n in SIZES]
    sharded = [reached_ms * n / base for n in SIZES]
    rows.append(
        (
            f"approximate, one core a query, growing as n^{exponent:.2f}",
            [_ms(ms) for ms in grown],
            [CORES * share * 1e3 / ms for ms in grown],
        )
    )
    rows.append(
        (
            f"approximate, shards of {base:,} that share the cores",
            [_ms(ms / (CORES * share)) for ms in sharded],
            [CORES * share * 1e3 / ms for ms in sharded],
        )
    )
    lines = [
        "| search | "
        + " | ".join(f"ms at {_power(n)}" for n in SIZES)
        + " | "
        + " | ".join(f"queries a second at {_power(n)}" for n in SIZES)
        + " | "
        + " | ".join(f"$ a million queries at {_power(n)}" for n in SIZES)
        + " |",
        "|---|" + "---:|" * (3 * len(SIZES)),
    ]
    for name, times, rates in rows:
        dollars = [CORES * CORE_DOLLARS / (30 * 86_400) / rate * 1e6 for rate in rates]
        lines.append(
            f"| {name} | "
            + " | ".join([*times, *(f"{r:,.1f}" for r in rates), *(f"{d:,.2f}" for d in dollars)])
            + " |"
        )
    loads = [load("scale")["machine"]["load_average"]]
    loads += [
        corpus["machine"]["load_average"] for corpus in load("approximate")["corpora"].values()
    ]
    note = (
        f"Measured on one core: {one * 1e6:.1f} ms a million items more for one query, "
        f"{batch * 1e6:.2f} in a batch (`scale.json`, between 10^6 and 10^7); approximate search "
        f"that keeps {KEPT:.0%} of the exact top 100: "
        + ", ".join(f"{ms:.2f} ms at {n:,}" for n, ms, _ in approximate_points())
        + f" (`approximate.json`). Assumed: {CORES} such cores, each as well used as the second "
        f"was here ({share:.0%}), memory of {BANDWIDTH / 1e9:g} GB/s, ${CORE_DOLLARS:g} a core and "
        "month, always busy. The machine had other work "
        f"(load {min(loads):g} to {max(loads):g} on {load('scale')['machine']['cores']} cores), "
        "so all times are too long rather than too short."
    )
    return "\n".join([*lines, "", note])


def building() -> str:
    """Render the time to encode and to cluster."""
    encode_us = load("encoding")["us_a_row"]["pursuit, int8"]["cpu_us"]
    corpora = load("approximate")["corpora"].values()
    made = [(c["items"], c["made"]["cpu_s"]) for c in corpora if c["made"]]
    cluster_us = max(made)[1] / max(made)[0] * 1e6
    lines = [
        "| step | us an item, one core | "
        + " | ".join(f"core-hours at {_power(n)}" for n in SIZES)
        + f" | hours on {CORES} cores at {_power(SIZES[-1])} |",
        "|---|---:|" + "---:|" * (len(SIZES) + 1),
    ]
    for name, micro in (("encoding (pursuit)", encode_us), ("clusters", cluster_us)):
        hours = [n * micro / 1e6 / 3600 for n in SIZES]
        lines.append(
            f"| {name} | {micro:.0f} | "
            + " | ".join(f"{h:.1f}" for h in hours)
            + f" | {hours[-1] / CORES / thread_share():.1f} |"
        )
    note = (
        "Learning is of a sample and does not grow. Encoding: `encoding.json`; clusters: "
        "`approximate.json`, at the largest corpus; a shard at a time, so that both grow linearly."
    )
    return "\n".join([*lines, "", note])


def _power(n: int) -> str:
    return f"10^{round(math.log10(n))}"


def _ms(ms: float) -> str:
    return f"{ms:,.1f}" if ms < 100 else f"{ms:,.0f}"


BLOCKS: dict[str, Callable[[], str]] = {
    "scale-memory": memory,
    "scale-latency": latency,
    "scale-building": building,
}
