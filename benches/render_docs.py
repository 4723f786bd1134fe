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

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where it is loaded by its path
import _docs_parts
import _docs_reliability
import _docs_scale
import _docs_search
import _docs_service
import _docs_study
import _docs_training
from _results import load

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


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
    results = load("recall_modes")
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
    results = load("recall_modes")
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
    results = load("recall_modes")
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
    """Rows of all parts whose name begins so, seeds put together: median, least and most.

    Rivals that were stopped for slowness have no recall and are left out: see `_stopped`.
    """
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for name, part in load("recall_per_bytes")["parts"].items():
        if name.startswith(prefixes):
            for row in part["rows"]:
                if row["recall"] is not None:
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


#: Families of rivals: what they are called, and how their parts begin.
_RIVALS = {
    "faiss OPQ": ("OPQ",),
    "faiss PQ": ("PQ",),
    "faiss RQ, LSQ": ("RQ", "LSQ", "PRQ", "PLSQ"),
    "faiss RaBitQ": ("RaBitQ", "RR"),
    "turbovec": ("turbovec",),
    "PCA, 8 bits": ("pca",),
}


def _stopped() -> list[str]:
    """Settings of rivals that were stopped before they had an answer: when, beside what else."""
    return [
        f"{row['setting']} (stopped after {row['seconds']:.0f} s at load {part['load_average']:g})"
        for part in load("recall_per_bytes")["parts"].values()
        for row in part["rows"]
        if row["recall"] is None
    ]


def _unmeasured(kind: str) -> str:
    """A sentence on the parts of a kind that the benchmark has and the result file lacks."""
    results = load("recall_per_bytes")
    names = [name for name in results[kind] if name not in results["parts"]]
    return f" Not measured yet: {', '.join(names)}." if names else ""


def _per_bytes_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| stored | bytes an item | recall@100 | least - most |", "|---|---:|---:|---|"]
    lines += [
        f"| {row['setting']} | {row['bytes']:g} | {row['recall']:.4f} | {row['range']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _per_bytes_note() -> str:
    results = load("recall_per_bytes")
    machine, data = results["machine"], results["data"]
    loads = [part["load_average"] for part in results["parts"].values()]
    stopped = _stopped()
    without = f" Without an answer: {', '.join(stopped)}." if stopped else ""
    return (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}, "
        f"{data['columns']} dimensions); ours: median of {len(results['seeds'])} seeds, "
        f"{results['rounds']} rounds of learning, dense queries, exact search. The dictionary "
        "comes on top, once: 2 bytes a number. "
        f"{machine['cpu']}, {machine['cores']} cores, load {min(loads):g} to {max(loads):g}, "
        f"{machine['date']}. Remade by `{results['command']}` and `make docs`."
        f"{_unmeasured('rivals')}{without}"
    )


def _is_plain(row: dict[str, Any]) -> bool:
    return "ablation" not in row and "k_row" not in row


def _our_rows() -> list[dict[str, Any]]:
    return [row for row in _per_bytes_rows("ours") if _is_plain(row)]


def per_bytes_short() -> str:
    """Render the best of each family within some budgets of bytes."""
    families = {"ours": _our_rows()}
    families |= {name: _per_bytes_rows(*begin) for name, begin in _RIVALS.items()}
    families = {name: rows for name, rows in families.items() if rows}
    lines = [
        "| bytes an item, at most | " + " | ".join(families) + " |",
        "|---:|" + "---:|" * len(families),
    ]
    for budget in (34, 50, 66, 100, 130):
        cells = []
        for name, rows in families.items():
            within = [row for row in rows if row["bytes"] <= budget]
            best = max(within, key=lambda row: row["recall"], default=None)
            mark = "**" if name == "ours" else ""
            cells.append(
                "" if best is None else f"{mark}{best['recall']:.3f}{mark} ({best['bytes']:.0f})"
            )
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _per_bytes_note()])


def per_bytes() -> str:
    """Render ours and the rivals, up to 256 bytes, by bytes."""
    ours = _our_rows()
    for row in ours:
        row["setting"] = f"**ours**, {row['setting']}"
    rivals = []
    for name, begin in _RIVALS.items():
        for row in _per_bytes_rows(*begin):
            library = name.split()[0].strip(",")
            row["setting"] = f"{library} {row['setting'].removeprefix(library + ' ')}"
            rivals.append(row)
    rows = sorted(ours + rivals, key=lambda row: (row["bytes"], -row["recall"]))
    table = _per_bytes_table([row for row in rows if row["bytes"] <= 256])
    return "\n\n".join([table, _per_bytes_note()])


def per_bytes_parts() -> str:
    """Render the ablations and the prefixes."""
    return _per_bytes_table([row for row in _per_bytes_rows("ours") if not _is_plain(row)])


def per_bytes_ablations() -> str:
    """Render the choices of learning and packing, each changed alone."""
    rows = _per_bytes_rows("ablation-")
    lines = [
        "| 4 bits a value, one seed | bytes an item | recall@100 | seconds of learning |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['setting']} | {row['bytes']:g} | {row['recall']:.4f} | {row['fit_s']:.0f} |"
        for row in rows
    ]
    missing = _unmeasured("ablations").strip()
    return "\n\n".join(part for part in ("\n".join(lines) if rows else "", missing) if part)


def per_bytes_learning() -> str:
    """Render unseen items, and learning in closed form against training."""
    lines = [
        "| learnt | bytes an item | recall@100 | cosine | seconds of learning |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in _per_bytes_rows("unseen", "against"):
        cosine = f"{row['cosine']:.4f}" if "cosine" in row else ""
        seconds = f"{row['learning_s']:g}" if "learning_s" in row else ""
        lines.append(
            f"| {row['setting']} | {row['bytes']:g} | {row['recall']:.4f} | {cosine} | {seconds} |"
        )
    return "\n".join(lines)


def encoding() -> str:
    """Render the speed of encoding."""
    results = load("encoding")
    runs = results["us_a_row"]
    projection = runs["numpy x @ W.T"]["cpu_us"]
    lines = ["| one core | us a row, CPU | of numpy's projection |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {run['cpu_us']:.1f} | {run['cpu_us'] / projection:.2f} |"
        for name, run in runs.items()
        if "threads" not in name
    ]
    one, two = (runs[name]["wall_us"] for name in ("pursuit, int8", "pursuit, int8, 2 threads"))
    machine = results["machine"]
    note = (
        f"{results['rows']:,} rows of width {results['d']}, {results['atoms']} atoms, "
        f"k = {results['k']}; the best of {results['repeats']} interleaved repeats. Two threads: "
        f"{one / two:.2f} times as fast as one by the clock. Of scikit-learn's choices "
        f'{results["shared_with_scikit_learn"]:.1%} are those of `method="omp"`. '
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}, "
        f"{machine['date']}. Remade by `python benches/bench_encoding.py x.npy` and `make docs`."
    )
    return "\n".join([*lines, "", note])


BLOCKS: dict[str, Callable[[], str]] = {
    "encoding": encoding,
    "per-bytes": per_bytes,
    "per-bytes-ablations": per_bytes_ablations,
    "per-bytes-parts": per_bytes_parts,
    "per-bytes-learning": per_bytes_learning,
    "per-bytes-short": per_bytes_short,
    "recall-modes-short": recall_modes_short,
    "recall-modes-full": recall_modes_full,
    "recall-curve": recall_curve,
    **_docs_reliability.BLOCKS,
    **_docs_scale.BLOCKS,
    **_docs_search.BLOCKS,
    **_docs_service.BLOCKS,
    **_docs_study.BLOCKS,
    **_docs_parts.BLOCKS,
    **_docs_training.BLOCKS,
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


def _modes_picture() -> dict[str, Any]:
    results = load("recall_modes")
    points = [
        (p["series"], p["setting"], p["bytes_per_item"], p["recall"]) for p in results["curve"]
    ]
    order = ("dense", "reconstructed", "sparse")
    points.sort(key=lambda p: order.index(p[0]) if p[0] in order else len(order))
    return {
        "points": points,
        "title": f"{results['data']['items']:,} package descriptions, CompresSAE, values in 8 bits",
        "depth": results["depth"],
    }


def _rivals_picture() -> dict[str, Any]:
    """Ours and the families of rivals; of each, what nothing smaller of its own is as good as."""
    results = load("recall_per_bytes")
    families = {"ours": _our_rows()}
    families |= {name: _per_bytes_rows(*begin) for name, begin in _RIVALS.items()}
    points = []
    for name, rows in families.items():
        best = 0.0
        for row in rows:  # by bytes, the better first
            if row["bytes"] <= 256 and row["recall"] > best:
                best = row["recall"]
                points.append((name, row["setting"], row["bytes"], row["recall"]))
    return {
        "points": points,
        "title": f"{results['data']['items']:,} package descriptions, dense queries",
        "depth": results["depth"],
    }


PICTURES: dict[str, Callable[[], dict[str, Any]]] = {
    "recall_against_bytes.svg": _modes_picture,
    "recall_per_bytes.svg": _rivals_picture,
    **_docs_training.PICTURES,
}


def picture_digest(name: str) -> str:
    """SHA-256 of what a picture shows: it is written into the SVG and compared."""
    shown = json.dumps(PICTURES[name](), sort_keys=True)
    return hashlib.sha256(shown.encode()).hexdigest()


def draw_picture(name: str) -> None:
    """Draw a picture of the result files as SVG."""
    from sparse_retrieval.cli._curves import Point
    from sparse_retrieval.cli._picture import draw

    shown = PICTURES[name]()
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw(
        [Point(*point) for point in shown["points"]],
        IMAGES / name,
        title=shown["title"],
        depth=shown["depth"],
        description=picture_digest(name),
    )


#: pictures that are not drawn by the package itself: their digests, and what draws them
DRAWN = {**_docs_search.DRAWN, **_docs_study.DRAWN}


def _digest(name: str) -> str:
    return DRAWN[name][0]() if name in DRAWN else picture_digest(name)


def _stale_pictures() -> list[str]:
    return [
        name
        for name in (*PICTURES, *DRAWN)
        if not (IMAGES / name).is_file()
        # a PNG holds its description as plain text too
        or _digest(name).encode() not in (IMAGES / name).read_bytes()
    ]


def out_of_step() -> list[str]:
    """Name every document and picture that does not show what the result files hold."""
    stale = [
        str(path.relative_to(ROOT))
        for path in documents()
        if (text := path.read_text(encoding="utf-8")) != rendered(text)
    ]
    return stale + [str((IMAGES / name).relative_to(ROOT)) for name in _stale_pictures()]


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
    for name in _stale_pictures():
        if name in DRAWN:
            IMAGES.mkdir(parents=True, exist_ok=True)
            DRAWN[name][1](IMAGES / name)
        else:
            draw_picture(name)
    print(f"renewed: {', '.join(stale) or 'nothing, all was in step'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
