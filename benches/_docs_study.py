"""The measured blocks and pictures of the study, in ``docs/benchmarks.md``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import load

MEASURES = ("recall@1", "recall@10", "recall@100", "ndcg@10")
#: what the table of the front holds: bytes an item at most, recall@100 at least
FRONT_BYTES, FRONT_RECALL = 128, 0.8
#: bytes an item that the pictures show at most
MOST_BYTES = 512
#: colours beyond those of the package's own pictures
LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#777777", "x"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "+"),
    ("#8C564B", "<"),
    ("#17BECF", ">"),
    ("#BCBD22", "*"),
    ("#7F7F00", "1"),
    ("#9467BD", "p"),
    ("#E377C2", "h"),
)


def _provenance(results: dict[str, Any]) -> str:
    machine = results["machine"]
    loads = [
        row["load_average"]
        for of in results["sets"].values()
        for row in of["rows"]
        if "load_average" in row
    ]
    dates = sorted(
        row.get("date", machine["date"]) for of in results["sets"].values() for row in of["rows"]
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Ours: {results['rounds']} rounds of learning; intervals of {results['confidence']:.0%} "
        "over queries and seeds. "
        f"{' and '.join(results.get('cpus', [machine['cpu']]))}, {machine['cores']} cores, load "
        f"{min(loads):g} to {max(loads):g}, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"Python {machine['python']}, {versions}. Remade by "
        f"`{results['command']}` and `make docs`."
    )


def _span(summary: dict[str, float], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{summary['mean']:{form}} ({summary['least']:{form}} to {summary['most']:{form}})"


def sets() -> str:
    """Render what was studied."""
    lines = [
        "| set | items | queries | dimensions | where from | SHA-256 begins |",
        "|---|---:|---:|---:|---|---|",
    ]
    lines += [
        f"| {of['title']} | {of['items']:,} | {of['queries']:,} | {of['columns']} | "
        f"{of['origin']} | `{of['sha256'][:8]}` |"
        for of in load("study")["sets"].values()
    ]
    return "\n".join(lines)


def margins() -> str:
    """Render ours less the best rival of each size, on every set."""
    results = load("study")
    lines = [
        "| set | bytes, at most | best rival | recall@1 | recall@10 | recall@100 | nDCG@10 |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for of in results["sets"].values():
        lines += [
            f"| {of['title']} | {row['bytes']} | {row['rival']}"
            f"{'' if row.get('paired', True) else ' (unpaired)'} | "
            + " | ".join(_marked(row[measure]) for measure in MEASURES)
            + " |"
            for row in of["margins"]
        ]
    missing = [
        f"{of['title']}: {', '.join(f'{n} of {family}' for family, n in of['missing'].items())}"
        for of in results["sets"].values()
        if of["missing"]
    ]
    stopped = [
        f"{of['title']}: {row['setting']} (after {row['stopped_s']} s)"
        for of in results["sets"].values()
        for row in of["rows"]
        if "stopped_s" in row
    ]
    notes = [_provenance(results), *_elsewhere(results)]
    notes += [f"Not run yet. {'; '.join(missing)}."] if missing else []
    notes += [f"Stopped without an answer. {'; '.join(stopped)}."] if stopped else []
    return "\n\n".join(["\n".join(lines), *notes])


def _elsewhere(results: dict[str, Any]) -> list[str]:
    """Rivals that `recall_per_bytes.py` measured on the catalogue, where they are better still."""
    of = results["sets"].get("catalogue")
    other = load("recall_per_bytes")
    if of is None or other["data"]["items"] != of["items"]:
        return []
    by_name = {row["setting"]: row for row in of["rows"]}
    parts = []
    for margin in of["margins"]:
        own, rival = by_name[margin["ours"]], by_name[margin["rival"]]
        known = [
            row
            for part in other["parts"].values()
            for row in part["rows"]
            if row["setting"] in other["rivals"]
            and row["recall"] is not None
            and row["bytes"] <= margin["bytes"]
            and row["recall"] > rival["recall@100"]["mean"]
        ]
        if known:
            best = max(known, key=lambda row: row["recall"])
            less = own["recall@100"]["mean"] - best["recall"]
            name = best["setting"]
            parts.append(f"{margin['bytes']} bytes, {name} {best['recall']:.3f} ({less:+.3f})")
    if not parts:
        return []
    return [
        f"{of['title'].capitalize()}: better rivals, learnt from all rows, were measured on the "
        "same split in the next section, by recall@100 alone (in brackets, ours less "
        f"theirs): {'; '.join(parts)}."
    ]


def fresh() -> str:
    """Render ours less the best rivals on queries that no default was chosen by."""
    results = load("study_fresh")
    lines = [
        "| set | bytes, at most | rival | recall@100, ours | ours less rival, these queries | "
        "the study's queries |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for of in results["sets"].values():
        lines += [
            f"| {of['title']} | {row['bytes']} | {row['rival']} | {_span(row['recall@100'])} | "
            f"{_marked(row['margin'])} | {_marked(row['margin_of_study'])} |"
            for row in of["margins"]
        ]
    machines = [of["machine"] for of in results["sets"].values()]
    cpus = dict.fromkeys(machine["cpu"] for machine in machines)
    dates = dict.fromkeys((machines[0]["date"], machines[-1]["date"]))
    note = (
        f"Ours: one seed, {results['rounds']} rounds; intervals of {results['confidence']:.0%} "
        f"over queries. {' and '.join(cpus)}, {' to '.join(dates)}. "
        f"Remade by `{results['command']}`."
    )
    return "\n".join([*lines, "", note])


def _marked(summary: dict[str, float]) -> str:
    """Bold where ours is ahead beyond doubt, italic where it is behind beyond doubt."""
    text = _span(summary, sign=True)
    if summary["least"] > 0:
        return f"**{text}**"
    return f"*{text}*" if summary["most"] < 0 else text


def lost() -> str:
    """Render where a rival is ahead of ours: within the sizes, and among all settings."""
    lines = ["| set | where | rival | its recall@100 | ours | bytes, theirs / ours |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for of in load("study")["sets"].values():
        measured = [row for row in of["rows"] if "recall@100" in row]
        ours = [row for row in measured if row["family"] == "ours"]
        for row in of["margins"]:
            if row["recall@100"]["mean"] < 0:
                rival = next(r for r in measured if r["setting"] == row["rival"])
                own = next(r for r in measured if r["setting"] == row["ours"])
                lines.append(_loss(of, f"at most {row['bytes']} bytes", rival, own))
            if "larger" in row:
                rival = next(r for r in measured if r["setting"] == row["larger"])
                own = next(r for r in measured if r["setting"] == row["ours"])
                where = f"at most {row['bytes']} bytes, in more than the vectors"
                lines.append(_loss(of, where, rival, own))
        if not ours:
            continue
        most = max(ours, key=lambda row: row["recall@100"]["mean"])
        beyond = [
            row
            for row in measured
            if not row["family"].startswith("ours")
            and row["recall@100"]["mean"] > most["recall@100"]["mean"]
        ]
        if beyond:
            least = min(beyond, key=lambda row: row["bytes"])
            lines.append(_loss(of, "more recall than ours at any size here", least, most))
        for own in ours:
            smaller = [
                row
                for row in measured
                if not row["family"].startswith("ours")
                and row["recall@100"]["mean"] > own["recall@100"]["mean"]
                and row["total_bytes"] <= own["total_bytes"]
            ]
            if smaller:
                row = max(smaller, key=lambda row: row["recall@100"]["mean"])
                where = f"{own['bytes']:.0f} bytes, with all that is shared"
                lines.append(_loss(of, where, row, own, "total_bytes"))
    return "\n".join(dict.fromkeys(lines))  # two budgets may have led to one setting


def _loss(
    of: dict[str, Any], where: str, rival: dict[str, Any], own: dict[str, Any], size: str = "bytes"
) -> str:
    return (
        f"| {of['title']} | {where} | {rival['setting']} | {rival['recall@100']['mean']:.3f} | "
        f"{own['recall@100']['mean']:.3f} | {rival[size]:.0f} / {own[size]:.0f} |"
    )


def _table(of: dict[str, Any]) -> list[str]:
    latency = {row["setting"]: row for row in (of["latency"] or {}).get("rows", [])}
    labelled = any("label@10" in row for row in of["rows"])
    head = "| stored | bytes an item | with what is shared | recall@1 | recall@10 | recall@100 | "
    head += "nDCG@10 | " + ("same class@10 | " if labelled else "") + "learn, CPU s | encode |"
    columns = 9 + labelled
    if latency:
        head += " ms alone | p99 | ms in a batch | all threads |"
        columns += 4
    lines = [head, "|---|" + "---:|" * (columns - 1)]
    for row in of["rows"]:
        if "stopped_s" in row:
            continue
        name = f"**{row['setting']}**" if row["family"].startswith("ours") else row["setting"]
        cells = [name, f"{row['bytes']:.0f}", f"{row['total_bytes']:.0f}"]
        cells += [f"{row[m]['mean']:.3f}" for m in MEASURES[:2]]
        cells += [_span(row["recall@100"]), f"{row['ndcg@10']['mean']:.3f}"]
        cells += [_span(row["label@10"])] if labelled else []
        cells += [f"{row['learn_cpu_s']:.1f}", f"{row['encode_cpu_s']:.1f}"]
        if latency:
            times = latency.get(row["setting"], {})
            cells += [
                f"{times[key]:.3f}" if key in times else ""
                for key in ("alone_ms", "alone_p99_ms", "batch_ms", "batch_all_threads_ms")
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tables(name: str = "study") -> str:
    """Render every setting of every set."""
    results = load(name)
    parts = []
    for of in results["sets"].values():
        head = f"**{of['title'].capitalize()}**, {of['items']:,} items of {of['columns']} numbers."
        if of["exact"]:
            head += f" Of exact search the same class@10 is {_span(of['exact']['label@10'])}."
        seeds = [row["seeds"] for row in of["rows"] if row["family"] == "ours" and "seeds" in row]
        if seeds:
            head += f" Ours: {min(seeds)} {'seed' if min(seeds) == 1 else 'seeds'}."
        if of["latency"]:
            head += f" Times at load {of['latency']['load_average']:g}, one thread."
        parts += [head, "\n".join(_table(of))]
    return "\n\n".join([*parts, _provenance(results)])


def quick() -> str:
    """Render the quick study, which every test run compares itself with."""
    return tables("study_quick")


def front() -> str:
    """Render recall against latency within 128 bytes, and who is beaten in neither.

    From two result files, since not all systems were timed in one run: what each of them says of
    its load is printed beside.
    """
    timed = {
        (part["rows"], part["isa"]): part
        for part in load("search")["parts"]
        if part["threads"] == 1
    }
    lines = [
        "| items | system | bytes an item | recall@100 | ms a query, alone | on the front |",
        "|---:|---|---:|---:|---:|---|",
    ]
    loads = []
    for corpus in load("approximate")["corpora"].values():
        rows = [
            (
                f"{row['series']}, {row['setting']}",
                row["bytes_per_item"],
                row["recall"],
                row["ms_alone"],
            )
            for row in corpus["rows"]
        ]
        part = timed.get((corpus["items"], corpus["isa"]))
        if part is None:  # a size at which the other systems were not asked, or not on such a CPU
            continue
        rows += [
            (row["system"], row["bytes"], row["recall"], row["single_ms"])
            for row in part["systems"]
            if not row["system"].startswith("sparse_retrieval")
        ]
        loads.append(
            f"{corpus['items']:,} items: ours and IVF at load "
            f"{corpus['machine']['load_average']:g}, the others {part['machine']['load_average']:g}"
        )
        rows = [row for row in rows if row[1] <= FRONT_BYTES and row[2] >= FRONT_RECALL]
        for name, n_bytes, recall, ms in sorted(rows, key=lambda row: row[3]):
            beaten = any(r >= recall and m <= ms and (r, m) != (recall, ms) for _, _, r, m in rows)
            lines.append(
                f"| {corpus['items']:,} | {name} | {n_bytes:g} | {recall:.3f} | {ms:.3f} | "
                f"{'' if beaten else 'yes'} |"
            )
    note = (
        f"All that reach {FRONT_RECALL:.0%} of exact within {FRONT_BYTES} bytes, one thread "
        f"(`approximate.json`, `search.json`). {'; '.join(loads)}."
    )
    return "\n".join([*lines, "", note])


def picture_data() -> list[dict[str, Any]]:
    """Lines of every panel: of each family what nothing smaller of its own is as good as."""
    panels = []
    for of in load("study")["sets"].values():
        families: dict[str, list[tuple[float, float, float, float]]] = {}
        for row in of["rows"]:  # by bytes
            if "recall@100" not in row or row["bytes"] > MOST_BYTES:
                continue
            line = families.setdefault(row["family"], [])
            recall = row["recall@100"]
            if not line or recall["mean"] > line[-1][1]:
                line.append((row["bytes"], recall["mean"], recall["least"], recall["most"]))
        if families:
            title = f"{of['title']}: {of['items']:,} x {of['columns']}"
            panels.append({"title": title, "families": families})
    return panels


def digest() -> str:
    """SHA-256 of what the picture shows."""
    return hashlib.sha256(json.dumps(picture_data(), sort_keys=True).encode()).hexdigest()


def draw(path: Path) -> None:
    """Draw recall against bytes, one panel a set, as SVG or PNG by the suffix."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = picture_data()
    seen = {family for panel in panels for family in panel["families"]}
    names = sorted(seen, key=lambda family: (not family.startswith("ours"), family))
    style = {"svg.hashsalt": "sparse_retrieval", "svg.fonttype": "path", "font.size": 8}
    with matplotlib.rc_context(style):
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for axes, panel in zip(grid, panels, strict=False):
            for family in names:
                line = panel["families"].get(family)
                if not line:
                    continue
                colour, marker = LOOKS[names.index(family) % len(LOOKS)]
                sizes, means, least, most = zip(*line, strict=True)
                below = [m - low for m, low in zip(means, least, strict=True)]
                above = [high - m for m, high in zip(means, most, strict=True)]
                handles[family] = axes.errorbar(
                    sizes,
                    means,
                    yerr=[below, above],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    linewidth=1.8 if family == "ours" else 0.9,
                    elinewidth=0.7,
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_title(panel["title"], loc="left", fontsize=8)
            axes.set_ylim(0, 1.02)
            axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("bytes an item (logarithmic)")
        figure.supylabel("recall@100, 95% intervals")
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=7, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = path.suffix.removeprefix(".")
        metadata = {"Description": digest(), **({"Date": None} if kind == "svg" else {})}
        figure.savefig(path, format=kind, dpi=110, metadata=metadata)


BLOCKS: dict[str, Callable[[], str]] = {
    "study-sets": sets,
    "study-margins": margins,
    "study-lost": lost,
    "study": tables,
    "study-quick": quick,
    "study-front": front,
    "study-fresh": fresh,
}

#: pictures that are drawn here: of each name what it shows, as a digest, and who draws it
DRAWN: dict[str, tuple[Callable[[], str], Callable[[Path], None]]] = {
    "study.svg": (digest, draw),
    "study.png": (digest, draw),
}
