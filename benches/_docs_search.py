"""Search in the docs: tables of every way to search, and pictures of recall, time and scale."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import load

#: corpora of `approximate.json`, as the docs call them
CORPORA = {
    "catalogue": "package descriptions",
    "jittered-100k": "mixtures of them",
    "jittered": "mixtures of them",
    "jittered-10m": "mixtures of them",
}
#: shares of the exact top k in the table of depths
DEPTH_TARGETS = (0.95, 0.99)


def _measured_on(results: dict[str, Any]) -> str:
    machine, data = results["machine"], results["data"]
    return (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}, "
        f"{data['columns']} dimensions). {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_average']}, {machine['date']}. Remade by `{results['command']}` and "
        "`make docs`."
    )


def search() -> str:
    """Render latencies of dense search, ours and rivals', by rows and threads."""
    results = load("search")
    parts = []
    for part in results["parts"]:
        ours = part["systems"][0]
        machine = part["machine"]
        lines = [
            f"| {part['rows']:,} rows, {part['threads']} thread"
            f"{'s' if part['threads'] > 1 else ''}, {part['isa'].upper()} | "
            f"bytes an item | recall@{results['depth']} | "
            "ms a query, batch | of ours | ms a query, alone | of ours |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['system']} | {row['bytes']:g} | {row['recall']:.3f} | {row['batch_ms']:.3f} | "
            f"{row['batch_ms'] / ours['batch_ms']:.1f} | {row['single_ms']:.3f} | "
            f"{row['single_ms'] / ours['single_ms']:.1f} |"
            for row in part["systems"]
        ]
        note = (
            f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}, "
            f"{machine['date']}."
        )
        parts.append("\n".join([*lines, "", note]))
    return "\n\n".join([*parts, f"Remade by `{results['command']}` and `make docs`."])


#: Runs of the same benchmark: every peer, and a CPU of another kind.
SPARSE_RUNS = ("sparse_search", "sparse_search_avx512")


def sparse_search() -> str:
    """Render exact sparse search: ours and the peers, both corpora, by CPU time, run by run."""
    return "\n\n".join(_sparse_run(load(name)) for name in SPARSE_RUNS)


def _sparse_run(results: dict[str, Any]) -> str:
    lines = [
        "| items | k | method | setting | ms a query, CPU | ms, wall | times ours | agreement |",
        "|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for corpus in results["corpora"].values():
        for row in corpus["rows"]:
            name = row["method"]
            lines.append(
                f"| {corpus['items']:,} | {row['k']} | "
                f"{f'**{name}**' if name.startswith('ours') else name} | {row['setting']} | "
                f"{row['cpu_ms']:.3f} | {row['wall_ms']:.3f} | {row['times_ours']:.1f} | "
                f"{row['agreement']:.4f} |"
            )
    machine = results["machine"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("scipy", "sparse_dot_topn", "sp_matmul_rs", "pyvsag", "kannolo")
        if name in machine["versions"]
    )
    absent = f" Not installed there: {', '.join(results['missing'])}." if results["missing"] else ""
    note = (
        f"One thread, {results['isa']}; codes of {results['nonzeros']} nonzeros over "
        f"{results['atoms']:,} latents. {versions}.{absent} {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine.get('load_average', 'unknown')}, "
        f"{machine['date']}. Remade by `{results['command']}` and `make docs`."
    )
    return "\n".join([*lines, "", note])


def sparse_search_work() -> str:
    """Render what a query touches, and the time for each posting that it adds."""
    lines = [
        "| items | postings a query | of the query's sign | ns for each of these, k = 10 | "
        "bytes of postings an item |",
        "|---:|---:|---:|---:|---:|",
    ]
    for corpus in load("sparse_search")["corpora"].values():
        ours = next(row for row in corpus["rows"] if row["k"] == 10)
        lines.append(
            f"| {corpus['items']:,} | {corpus['postings_a_query']:,.0f} | "
            f"{corpus['postings_of_right_sign']:,.0f} | "
            f"{ours['cpu_ms'] * 1e6 / corpus['postings_of_right_sign']:.2f} | "
            f"{corpus['postings_bytes_per_item']:.1f} |"
        )
    return "\n".join(lines)


def approximate() -> str:
    """Render every setting of ours and of faiss's, one table a corpus."""
    results = load("approximate")
    parts = []
    for name, corpus in results["corpora"].items():
        machine = corpus["machine"]
        parts.append(
            f"{corpus['items']:,} {CORPORA[name]}, {results['queries']:,} held-out queries, "
            f"recall@{results['depth']}; {corpus['clusters']:,} clusters. One thread of "
            f"{machine['cpu']} ({corpus['isa'].upper()}), load {machine['load_average']} on "
            f"{machine['cores']} cores, {machine['date']}; medians, methods in turn."
        )
        lines = [
            "| method | setting | bytes an item | recall | of our exact top 100 | "
            "ms a query, alone | ms a query, in a batch |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for row in corpus["rows"]:
            kept = "" if row["kept"] is None else f"{row['kept']:.4f}"
            lines.append(
                f"| {row['series']} | {row['setting']} | {row['bytes_per_item']:g} | "
                f"{row['recall']:.4f} | {kept} | {row['ms_alone']:.3f} | {row['ms_batch']:.3f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, f"Remade by `{results['command']}` and `make docs`."])


def approximate_short() -> str:
    """Render what approximate search gains over exact, and over IVF-PQ of no more recall."""
    lines = [
        "| corpus | what is reached | our setting | ms alone | exact scan / this | IVF-PQ / this |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, corpus in load("approximate")["corpora"].items():
        ours = [row for row in corpus["rows"] if row["series"] == "ours, approximate"]
        exact = next(row for row in corpus["rows"] if row["series"] == "ours, exact")
        ivf = [row for row in corpus["rows"] if "IVF" in row["series"]]
        # those that no other of theirs beats in both
        ivf = [
            r
            for r in ivf
            if not any(o["recall"] > r["recall"] and o["ms_alone"] <= r["ms_alone"] for o in ivf)
        ]
        wanted: list[tuple[str, str, float, float | None]] = [
            ("99% of the exact top 100", "kept", 0.99, None),
            ("99% of the exact recall", "recall", 0.99 * exact["recall"], None),
        ]
        wanted += [
            (
                f"recall {r['recall']:.3f} of {r['series'].removeprefix('faiss ')}, {r['setting']}",
                "recall",
                r["recall"],
                r["ms_alone"],
            )
            for r in ivf
        ]
        for what, of, least, rival in wanted:
            enough = [row for row in ours if row[of] >= least]
            if not enough:
                continue
            row = min(enough, key=lambda row: row["ms_alone"])
            against = "beyond it" if rival is None else f"{rival / row['ms_alone']:.2f}"
            lines.append(
                f"| {corpus['items']:,} {CORPORA[name]} | {what} | {row['setting']} | "
                f"{row['ms_alone']:.3f} | {exact['ms_alone'] / row['ms_alone']:.1f} | {against} |"
            )
    return "\n".join(lines)


def approximate_tuned() -> str:
    """Render what tuning finds, and what it keeps on queries that it has not seen."""
    lines = [
        "| corpus | target | tuned with | setting | reached | kept on other queries |",
        "|---|---:|---|---|---:|---:|",
    ]
    for name, corpus in load("approximate")["corpora"].items():
        lines += [
            f"| {corpus['items']:,} {CORPORA[name]} | {row['target']:g} | {row['queries']} | "
            f"{row['clusters']} clusters, {row['rerank']} rows | {row['reached']:.4f} | "
            f"{row['kept']:.4f} |"
            for row in corpus["tuned"]
        ]
    return "\n".join(lines)


def approximate_depth() -> str:
    """Render how far a query must look for a share of the exact top k, by the number of items."""
    lines = [
        "| items | clusters | target | clusters looked at | rows scored | of the exact 100 |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for corpus in load("approximate")["corpora"].values():
        lines += [
            f"| {corpus['items']:,} | {corpus['clusters']:,} | {row['target']:g} | "
            f"{row['clusters']:,} | {row['rerank']:,} | {row['kept']:.4f} |"
            for row in corpus["tuned"]
            if row["target"] in DEPTH_TARGETS and row["queries"] == "held-out queries"
        ]
    return "\n".join(lines)


def rescore() -> str:
    """Render codes alone, codes rescored, and HNSW: recall, memory, times."""
    results = load("rescore")
    items, model = results["data"]["items"], results["model"]
    lines = [
        f"| searched | vectors | memory, MB | bytes an item | recall@{results['depth']} | ms a "
        "query, alone | cold | in a batch |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        setting, disk = row["setting"], row["disk"]
        place = f"`{disk}`" if disk else ("in memory" if setting.startswith("HNSW") else "not read")
        cold = f"{row['ms_cold']:.1f}" if "ms_cold" in row else ""
        lines.append(
            f"| {setting} | {place} | {row['ram_bytes'] / 1e6:.1f} | "
            f"{row['ram_bytes'] / items:.0f} | {row['recall']:.4f} | {row['ms_alone']:.2f} | "
            f"{cold} | {row['ms_batch']:.3f} |"
        )
    read = [row["kb_read_cold"] for row in results["rows"] if row["disk"] == ".npy"]
    note = (
        f"{model['n_atoms']:,} atoms, k = {model['k']}, {model['value_bits']}-bit values. Memory "
        "of ours: rows, scales, the dictionary and its copy in single precision; of HNSW: its "
        f"serialised index (efConstruction {results['hnsw_efconstruction']}, built in "
        f"{results['hnsw_build_s']:g} s). The vectors on disk take "
        f"{results['disk_bytes']['.npy'] / 1e6:.1f} MB as `.npy`, of which a cold query reads "
        f"{min(read) / 1e3:.1f} to {max(read) / 1e3:.1f} MB, and "
        f"{results['disk_bytes']['.parquet'] / 1e6:.1f} MB as `.parquet` with "
        f"{results['parquet_group_rows']:,} rows a group. {_measured_on(results)}"
    )
    return "\n".join([*lines, "", note])


def threads() -> str:
    """Render latencies of many threads searching while the file is replaced, all rounds."""
    results = load("threads")
    kinds: dict[tuple[int, int | None], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        kinds.setdefault((row["callers"], row["threads"]), []).append(row)
    lines = [
        "| callers | threads a search | file replaced | searches | wrong | median ms | p99 ms | "
        "p99 / median, least - most |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (callers, of_search), rows in kinds.items():
        ratios = [row["ms_p99"] / row["ms_median"] for row in rows]
        lines.append(
            f"| {callers} | {of_search or 'open'} | {sum(row['replaced'] for row in rows)} times | "
            f"{sum(row['searches'] for row in rows):,} | "
            f"{sum(row['wrong'] + len(row['errors']) for row in rows)} | "
            f"{statistics.median(row['ms_median'] for row in rows):.2f} | "
            f"{statistics.median(row['ms_p99'] for row in rows):.2f} | "
            f"{statistics.median(ratios):.2f}, {min(ratios):.2f} - {max(ratios):.2f} |"
        )
    note = (
        f"{len(rows)} rounds of {results['seconds']:g} seconds; medians over rounds. "
        f"{_measured_on(results)}"
    )
    return "\n".join([*lines, "", note])


def reconstructed() -> str:
    """Render the two ways to the weights of the reconstructed mode."""
    results = load("reconstructed")
    machine = results["machine"]
    lines = [
        "| precision | queries | ms a query, W (W^T c) | ms a query, K c | W, MB | K, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['precision']} | {row['queries']} | {row['thin_ms']:.3f} | {row['gram_ms']:.3f} | "
        f"{row['dictionary_mb']:.0f} | {row['gram_mb']:.0f} |"
        for row in results["rows"]
    ]
    note = (
        f"{results['atoms']:,} atoms of width {results['width']}, k = {results['k']}, numpy, one "
        f"thread. {machine['cpu']}, load {machine['load_average']}, {machine['date']}. Remade by "
        f"`{results['command']}` and `make docs`."
    )
    return "\n".join([*lines, "", note])


def scale() -> str:
    """Render the cost of exact search by the number of items."""
    results = load("scale")
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
    results = load("scale")
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
    corpora = load("approximate")["corpora"]
    shown = json.dumps([[name, corpus["rows"]] for name, corpus in corpora.items()])
    return hashlib.sha256(shown.encode()).hexdigest()


def draw_latency(path: Path) -> None:
    """Draw recall against latency, one panel a corpus, one line a method."""
    import matplotlib
    from matplotlib.figure import Figure

    from sparse_retrieval.cli._picture import _LOOKS

    results = load("approximate")
    style = {"svg.hashsalt": "sparse_retrieval", "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(style):
        corpora = results["corpora"]
        # two panels side by side
        lines = (len(corpora) + 1) // 2
        figure = Figure(figsize=(5.2 * min(len(corpora), 2), 4.4 * lines), layout="constrained")
        names = list(
            dict.fromkeys(row["series"] for corpus in corpora.values() for row in corpus["rows"])
        )
        panels = figure.subplots(lines, min(len(corpora), 2), squeeze=False).ravel()
        for empty in panels[len(corpora) :]:
            empty.set_axis_off()
        for axes, (name, corpus) in zip(panels, corpora.items(), strict=False):
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


BLOCKS: dict[str, Callable[[], str]] = {
    "approximate": approximate,
    "approximate-depth": approximate_depth,
    "approximate-short": approximate_short,
    "approximate-tuned": approximate_tuned,
    "reconstructed": reconstructed,
    "rescore": rescore,
    "scale": scale,
    "search": search,
    "sparse-search": sparse_search,
    "sparse-search-work": sparse_search_work,
    "threads": threads,
}

#: pictures by file name: what their digest is made of, and what draws them
DRAWN: dict[str, tuple[Callable[[], str], Callable[[Path], None]]] = {
    "recall_against_latency.svg": (latency_digest, draw_latency),
    "scale.svg": (scale_digest, draw_scale),
}
