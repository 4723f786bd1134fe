"""Pictures of search in the docs: recall against latency, and time against the number of items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
#: corpora of `approximate.json`, as the docs call them
CORPORA = {
    "catalogue": "package descriptions",
    "jittered-100k": "mixtures of them",
    "jittered": "mixtures of them",
}


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def scale() -> str:
    """Render the cost of exact search by the number of items."""
    results = _load("scale")
    machine = results["machine"]
    lines = [
        f"| items | file, MB | ms, one query, one thread | all threads | ms a query of "
        f"{results['batch']}, one thread | all threads | anonymous memory, MB | grown by "
        "searching |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['rows']:,} | {row['file_mb']:,.0f} | {row['one_ms']:.2f} | "
        f"{row['one_all_threads_ms']:.2f} | {row['batch_ms']:.3f} | "
        f"{row['batch_all_threads_ms']:.3f} | {row['anonymous_mb']:.0f} | "
        f"{row['anonymous_growth_mb']:.0f} |"
        for row in results["rows"]
    ]
    exponents = results["exponents"]
    note = (
        f"k = {results['k']}, 66 bytes an item and 4-bit values, the best {results['depth']}, "
        f"files mapped. Time grows as n^{exponents['one_ms']:.2f} for one query and as "
        f"n^{exponents['batch_ms']:.2f} in a batch. {machine['cpu']}, {machine['cores']} cores, "
        f"load {machine['load_average']}, {machine['date']}. Remade by `{results['command']}` and "
        "`make docs`."
    )
    return "\n".join([*lines, "", note, "", _limited(results["limited"], results["batch"])])


def _limited(limited: dict[str, Any], batch: int) -> str:
    """The largest file under a limit of memory, in a sentence."""
    if "missing" in limited:
        return f"Under a limit of memory nothing was measured: {limited['missing']}."
    return (
        f"The file of {limited['rows']:,} items by a process whose memory, page cache included, "
        f"was limited to {limited['limit_mb']:,.0f} MB (it came to {limited['most_mb']:,.0f}), so "
        f"that every search reads the disk: {limited['one_ms']:,.0f} ms a query on one thread, "
        f"{limited['one_all_threads_ms']:,.0f} on all; in a batch of {batch}, which reads it "
        f"twice, {limited['batch_ms']:,.1f} and {limited['batch_all_threads_ms']:,.1f}. "
        f"{limited['anonymous_mb']:.0f} MB of its memory were not the file's, and "
        f"{limited['anonymous_growth_mb']:.0f} more after the batches. "
        f"{limited['machine']['cpu']}, load {limited['machine']['load_average']}, "
        f"{limited['machine']['date']}; remade by "
        "`python benches/bench_scale.py --data PATH --limited-alone`."
    )


def scale_picture() -> dict[str, list[tuple[int, float]]]:
    """Lines of the picture of scale: items and milliseconds."""
    results = _load("scale")
    exponents = results["exponents"]
    lines = {
        f"{what}, one thread: n^{exponents[name]:.2f}": [
            (row["rows"], row[name]) for row in results["rows"]
        ]
        for what, name in (("one query", "one_ms"), (f"{results['batch']} a call", "batch_ms"))
    }
    limited = results["limited"]
    if "missing" not in limited:
        beyond = f"limited to {limited['limit_mb']:,.0f} MB"
        lines[f"one query, {beyond}"] = [(limited["rows"], limited["one_ms"])]
        lines[f"{results['batch']} a call, {beyond}"] = [(limited["rows"], limited["batch_ms"])]
    return lines


def scale_digest() -> str:
    """SHA-256 of what the picture of scale shows."""
    return hashlib.sha256(json.dumps(scale_picture()).encode()).hexdigest()


def draw_scale(path: Path) -> None:
    """Draw milliseconds a query against the number of items, both logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    from sparse_retrieval.cli._picture import _LOOKS

    style = {"svg.hashsalt": "sparse_retrieval", "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for number, (label, points) in enumerate(scale_picture().items()):
            colour, marker = _LOOKS[number % len(_LOOKS)]
            items, times = zip(*points, strict=True)
            axes.plot(items, times, color=colour, marker=marker, markersize=5, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("items")
        axes.set_ylabel("ms a query")
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
        metadata = {"Description": scale_digest(), "Date": None}
        figure.savefig(path, format="svg", metadata=metadata)


def latency_digest() -> str:
    """SHA-256 of what the picture of latency shows."""
    corpora = _load("approximate")["corpora"]
    shown = json.dumps([[name, corpus["rows"]] for name, corpus in corpora.items()])
    return hashlib.sha256(shown.encode()).hexdigest()


def draw_latency(path: Path) -> None:
    """Draw recall against latency, one panel a corpus, one line a method."""
    import matplotlib
    from matplotlib.figure import Figure

    from sparse_retrieval.cli._picture import _LOOKS

    results = _load("approximate")
    style = {"svg.hashsalt": "sparse_retrieval", "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(style):
        corpora = results["corpora"]
        figure = Figure(figsize=(5.2 * len(corpora), 4.4), layout="constrained")
        names = list(
            dict.fromkeys(row["series"] for corpus in corpora.values() for row in corpus["rows"])
        )
        panels = figure.subplots(1, len(corpora), squeeze=False)[0]
        for axes, (name, corpus) in zip(panels, corpora.items(), strict=True):
            for number, series in enumerate(names):
                line = [row for row in corpus["rows"] if row["series"] == series]
                if not line:
                    continue
                colour, marker = _LOOKS[number % len(_LOOKS)]
                axes.plot(
                    [row["ms_alone"] for row in line],
                    [row["recall"] for row in line],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=f"{series} ({line[0]['bytes_per_item']:.0f} bytes an item)",
                )
            axes.set_xscale("log")
            axes.set_xlabel("ms a query, alone, one thread (logarithmic)")
            axes.set_ylabel(f"recall@{results['depth']}")
            axes.set_title(f"{corpus['items']:,} {CORPORA[name]}", loc="left", fontsize=10)
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
            axes.legend(frameon=False, fontsize=7)
        metadata = {"Description": latency_digest(), "Date": None}
        figure.savefig(path, format="svg", metadata=metadata)


BLOCKS: dict[str, Callable[[], str]] = {"scale": scale}

#: pictures by file name: what their digest is made of, and what draws them
DRAWN: dict[str, tuple[Callable[[], str], Callable[[Path], None]]] = {
    "recall_against_latency.svg": (latency_digest, draw_latency),
    "scale.svg": (scale_digest, draw_scale),
}
