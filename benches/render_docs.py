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


def _measured_on(results: dict[str, Any]) -> str:
    machine, data = results["machine"], results["data"]
    return (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}, "
        f"{data['columns']} dimensions). {machine['cpu']}, {machine['cores']} cores, load "
        f"{machine['load_average']}, {machine['date']}. Remade by `{results['command']}` and "
        "`make docs`."
    )


def rescore() -> str:
    """Render codes alone, codes rescored, and HNSW: recall, memory, times."""
    results = _load("rescore")
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
    """Render latencies of many threads searching while the file is replaced."""
    results = _load("threads")
    lines = [
        "| callers | threads a search | file replaced | searches | wrong | median ms | p99 ms | "
        "p99 / median |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['callers']} | {row['threads'] or 'all'} | {row['replaced']} times | "
        f"{row['searches']:,} | {row['wrong'] + len(row['errors'])} | {row['ms_median']:.2f} | "
        f"{row['ms_p99']:.2f} | {row['ms_p99'] / row['ms_median']:.2f} |"
        for row in results["rows"]
    ]
    note = f"{results['seconds']:g} seconds each. {_measured_on(results)}"
    return "\n".join([*lines, "", note])


BLOCKS: dict[str, Callable[[], str]] = {
    "per-bytes": per_bytes,
    "per-bytes-parts": per_bytes_parts,
    "per-bytes-learning": per_bytes_learning,
    "recall-modes-short": recall_modes_short,
    "recall-modes-full": recall_modes_full,
    "recall-curve": recall_curve,
    "rescore": rescore,
    "threads": threads,
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


def out_of_step() -> list[str]:
    """Name every document and picture that does not show what the result files hold."""
    stale = [
        str(path.relative_to(ROOT))
        for path in documents()
        if (text := path.read_text(encoding="utf-8")) != rendered(text)
    ]
    if not PICTURE.is_file() or picture_digest() not in PICTURE.read_text(encoding="utf-8"):
        stale.append(str(PICTURE.relative_to(ROOT)))
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
    if str(PICTURE.relative_to(ROOT)) in stale:
        draw_picture()
    print(f"renewed: {', '.join(stale) or 'nothing, all was in step'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
