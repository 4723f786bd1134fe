"""Write every measured figure of the docs from the result files, or check that they agree.

    python benches/render_docs.py [--check]

A document holds a block between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``; what lies
between is replaced by what ``BLOCKS[NAME]`` renders from ``benches/results``. So no figure is
typed by hand. A new block is a function here and two marker lines where it shall appear.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
PICTURE = ROOT / "docs" / "images" / "recall_against_bytes.svg"
LATENCY_PICTURE = ROOT / "docs" / "images" / "recall_against_latency.svg"
_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def _provenance(results: dict[str, Any]) -> str:
    machine, data, model = results["machine"], results["data"], results["model"]
    return (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}, "
        f"{data['columns']} dimensions); CompresSAE with {model['hidden_dim']} latents, "
        f"k = {model['k']}, {model['steps']} steps of {model['batch_size']}. "
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"load {machine.get('load_average', 'unknown')}, "
        f"{machine['date']}. "
        f"Remade by `{results['command']}` and `make docs`."
    )


def recall_modes_short() -> str:
    """Render one line a mode, values in 8 bits, under the exact scan."""
    results = _load("recall_modes")
    exact = results["exact"]
    lines = [
        f"| stored | asked | bytes an item | recall@{results['depth']} | ms a query |",
        "|---|---|---:|---:|---:|",
        f"| float32 | exact scan, numpy | {exact['bytes_per_item']:g} | 1 | "
        f"{exact['ms_per_query']:.2f} |",
    ]
    lines += [
        f"| k = {results['model']['k']}, 8-bit values | {row['mode']} | "
        f"{row['bytes_per_item']:g} | {row['recall']:.3f} | {row['ms_per_query']:.2f} |"
        for row in results["modes"]
        if row["value_bits"] == 8
    ]
    return "\n".join([*lines, "", _provenance(results)])


def recall_modes_full() -> str:
    """Render every mode at every width, with both ways of timing."""
    results = _load("recall_modes")
    exact = results["exact"]
    lines = [
        f"| asked | value bits | bytes an item | of float32 | recall@{results['depth']} | "
        "ms a query, alone | ms a query, in a batch |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| exact scan, numpy | 32 | {exact['bytes_per_item']:g} | 1 | 1 | "
        f"{exact['ms_per_query']:.2f} | {exact['ms_per_query_batch']:.3f} |",
    ]
    lines += [
        f"| {row['mode']} | {row['value_bits']} | {row['bytes_per_item']:g} | "
        f"1/{exact['bytes_per_item'] / row['bytes_per_item']:.1f} | {row['recall']:.4f} | "
        f"{row['ms_per_query']:.2f} | {row['ms_per_query_batch']:.3f} |"
        for row in results["modes"]
    ]
    return "\n".join([*lines, "", _provenance(results)])


def recall_curve() -> str:
    """Render the points of the picture."""
    results = _load("recall_modes")
    lines = [
        f"| stored | setting | bytes an item | recall@{results['depth']} |",
        "|---|---|---:|---:|",
    ]
    lines += [
        f"| {point['series']} | {point['setting']} | {point['bytes_per_item']:g} | "
        f"{point['recall']:.4f} |"
        for point in results["curve"]
    ]
    return "\n".join(lines)


def _per_bytes_rows(*prefixes: str) -> list[dict[str, Any]]:
    """Rows of all parts whose name begins so, seeds put together: median, least and most."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for name, part in _load("recall_per_bytes")["parts"].items():
        if name.startswith(prefixes):
            for row in part["rows"]:
                by_setting.setdefault(row["setting"], []).append(row)
    joined = []
    for rows in by_setting.values():
        recalls = sorted(row["recall"] for row in rows)
        joined.append(
            rows[0]
            | {
                "recall": statistics.median(recalls),
                "range": f"{recalls[0]:.3f} - {recalls[-1]:.3f}" if len(rows) > 1 else "",
                "seeds": len(rows),
            }
        )
    return sorted(joined, key=lambda row: (row["bytes"], -row["recall"]))


_RIVALS = ("PQ", "OPQ", "RQ", "RaBitQ", "pca")


def _per_bytes_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| stored | bytes an item | recall@100 | least - most |", "|---|---:|---:|---|"]
    lines += [
        f"| {row['setting']} | {row['bytes']:g} | {row['recall']:.3f} | {row['range']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _is_plain(row: dict[str, Any]) -> bool:
    return "ablation" not in row and "k_row" not in row


def per_bytes() -> str:
    """Render ours and the rivals, up to 256 bytes, by bytes."""
    results = _load("recall_per_bytes")
    ours = [row for row in _per_bytes_rows("ours") if _is_plain(row)]
    for row in ours:
        row["setting"] = f"**ours**, {row['setting']}"
    rivals = _per_bytes_rows(*_RIVALS)
    for row in rivals:
        name = row["setting"]
        row["setting"] = f"faiss {name}" if name[0].isupper() else f"PCA, 8 bits, {name}"
    rows = sorted(ours + rivals, key=lambda row: (row["bytes"], -row["recall"]))
    machine, data = results["machine"], results["data"]
    seeds = max((row["seeds"] for row in ours), default=0)
    note = (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}); ours: "
        f"median of {seeds} seeds, {results['rounds']} rounds of learning, dense queries, exact "
        "search. The dictionary comes on top, once: 2 bytes a number. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}. Remade by "
        f"`{results['command']}` and `make docs`."
    )
    return "\n\n".join([_per_bytes_table([r for r in rows if r["bytes"] <= 256]), note])


def per_bytes_parts() -> str:
    """Render the ablations and the prefixes."""
    return _per_bytes_table([row for row in _per_bytes_rows("ours") if not _is_plain(row)])


def per_bytes_learning() -> str:
    """Render unseen items, and learning in closed form against training."""
    lines = ["| learnt | recall@100 | cosine | seconds of learning |", "|---|---:|---:|---:|"]
    for row in _per_bytes_rows("unseen", "against"):
        cosine = f"{row['cosine']:.4f}" if "cosine" in row else ""
        seconds = f"{row['learning_s']:g}" if "learning_s" in row else ""
        lines.append(f"| {row['setting']} | {row['recall']:.3f} | {cosine} | {seconds} |")
    return "\n".join(lines)


_CORPORA = {"catalogue": "package descriptions", "jittered": "mixtures of them"}


def approximate() -> str:
    """Render every setting of ours and of faiss's, one table a corpus."""
    results = _load("approximate")
    parts = []
    for name, corpus in results["corpora"].items():
        machine = corpus["machine"]
        parts.append(
            f"{corpus['items']:,} {_CORPORA[name]}, {results['queries']:,} held-out queries, "
            f"recall@{results['depth']}; {corpus['clusters']:,} clusters. One thread of "
            f"{machine['cpu']}, load {machine['load_average']} on {machine['cores']} cores, "
            f"{machine['date']}; medians, methods in turn."
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
    """Render what approximate search gains over exact, and over IVF-PQ at equal recall."""
    lines = [
        "| corpus | what is kept | our setting | ms alone | exact scan / this | "
        "fastest IVF-PQ of no less recall / this |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, corpus in _load("approximate")["corpora"].items():
        ours = [row for row in corpus["rows"] if row["series"] == "ours, approximate"]
        exact = next(row for row in corpus["rows"] if row["series"] == "ours, exact")
        ivf = [row for row in corpus["rows"] if "IVF" in row["series"]]

        def against(row: dict[str, Any], ivf: list[dict[str, Any]] = ivf) -> str:
            rivals = [r["ms_alone"] for r in ivf if r["recall"] >= row["recall"]]
            return f"{min(rivals) / row['ms_alone']:.2f}" if rivals else "none reaches it"

        def fastest(of: str, least: float, ours: list[dict[str, Any]] = ours) -> Any:
            enough = [row for row in ours if row[of] >= least]
            return min(enough, key=lambda row: row["ms_alone"]) if enough else None

        wanted = [
            ("99% of the exact top 100", fastest("kept", 0.99)),
            ("99% of the exact recall", fastest("recall", 0.99 * exact["recall"])),
            *(
                (f"recall of {r['series'].removeprefix('faiss ')}, {r['setting']}", found)
                for r in ivf
                if (found := fastest("recall", r["recall"])) is not None
            ),
        ]
        for what, row in wanted:
            if row is not None:
                lines.append(
                    f"| {corpus['items']:,} {_CORPORA[name]} | {what} | {row['setting']} | "
                    f"{row['ms_alone']:.3f} | {exact['ms_alone'] / row['ms_alone']:.1f} | "
                    f"{against(row)} |"
                )
    return "\n".join(lines)


def approximate_tuned() -> str:
    """Render what tuning finds, and what it keeps on queries that it has not seen."""
    lines = [
        "| corpus | target | tuned with | setting | reached | kept on other queries |",
        "|---|---:|---|---|---:|---:|",
    ]
    for name, corpus in _load("approximate")["corpora"].items():
        lines += [
            f"| {corpus['items']:,} {_CORPORA[name]} | {row['target']:g} | {row['queries']} | "
            f"{row['clusters']} clusters, {row['rerank']} rows | {row['reached']:.4f} | "
            f"{row['kept']:.4f} |"
            for row in corpus["tuned"]
        ]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "approximate": approximate,
    "approximate-short": approximate_short,
    "approximate-tuned": approximate_tuned,
    "per-bytes": per_bytes,
    "per-bytes-parts": per_bytes_parts,
    "per-bytes-learning": per_bytes_learning,
    "recall-modes-short": recall_modes_short,
    "recall-modes-full": recall_modes_full,
    "recall-curve": recall_curve,
}


def documents() -> Iterator[Path]:
    """List the files that may hold blocks."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def rendered(text: str) -> str:
    """Return ``text`` with every block renewed.

    Raises
    ------
    ValueError
        For a block whose name is not in ``BLOCKS``, or a marker without its partner.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"no block is called {name!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[name]()}\n{match[3]}"

    renewed, count = _BLOCK.subn(replace, text)
    markers = len(re.findall(r"<!-- (?:begin|end): ", text))
    if markers != 2 * count:
        raise ValueError(f"{markers} markers make {count} blocks: one lacks its partner")
    return renewed


def picture_digest() -> str:
    """SHA-256 of what the picture shows: it is written into the SVG and compared."""
    results = _load("recall_modes")
    shown = json.dumps([results["curve"], results["data"], results["depth"]], sort_keys=True)
    return hashlib.sha256(shown.encode()).hexdigest()


def draw_picture() -> None:
    """Draw the curve of the result file as SVG."""
    from sparse_retrieval.cli._curves import Point
    from sparse_retrieval.cli._picture import draw

    results = _load("recall_modes")
    points = [Point(**point) for point in results["curve"]]
    order = ("dense", "reconstructed", "sparse")
    points.sort(key=lambda p: order.index(p.series) if p.series in order else len(order))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(
        points,
        PICTURE,
        title=f"{results['data']['items']:,} package descriptions, CompresSAE, values in 8 bits",
        depth=results["depth"],
        description=picture_digest(),
    )


def latency_digest() -> str:
    """SHA-256 of what the picture of latency shows."""
    corpora = _load("approximate")["corpora"]
    shown = json.dumps([[name, corpus["rows"]] for name, corpus in corpora.items()])
    return hashlib.sha256(shown.encode()).hexdigest()


def draw_latency() -> None:
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
            axes.set_title(f"{corpus['items']:,} {_CORPORA[name]}", loc="left", fontsize=10)
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
            axes.legend(frameon=False, fontsize=7)
        LATENCY_PICTURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            LATENCY_PICTURE, format="svg", metadata={"Description": latency_digest(), "Date": None}
        )


def pictures() -> Iterator[tuple[Path, Callable[[], str], Callable[[], None]]]:
    """List the pictures: where, what they show, and what draws them."""
    yield PICTURE, picture_digest, draw_picture
    yield LATENCY_PICTURE, latency_digest, draw_latency


def out_of_step() -> list[str]:
    """Name every document and picture that does not show what the result files hold."""
    stale = [
        str(path.relative_to(ROOT))
        for path in documents()
        if (text := path.read_text(encoding="utf-8")) != rendered(text)
    ]
    stale += [
        str(path.relative_to(ROOT))
        for path, digest, _ in pictures()
        if not path.is_file() or digest() not in path.read_text(encoding="utf-8")
    ]
    return stale


def main() -> int:
    """Write the documents, or with --check only say which are out of step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    options = parser.parse_args()
    stale = out_of_step()
    if options.check:
        for name in stale:
            print(f"{name} is out of step with benches/results: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        path.write_text(rendered(text), encoding="utf-8")
    for path, _, draw in pictures():
        if str(path.relative_to(ROOT)) in stale:
            draw()
    print(f"renewed: {', '.join(stale) or 'nothing, all was in step'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
