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
import _docs_scale
import _docs_search
import _docs_service
import _docs_study
import _docs_training
from _docs_search import CORPORA

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
IMAGES = ROOT / "docs" / "images"
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
    """Rows of all parts whose name begins so, seeds put together: median, least and most.

    Rivals that were stopped for slowness have no recall and are left out: see `_stopped`.
    """
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for name, part in _load("recall_per_bytes")["parts"].items():
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
        for part in _load("recall_per_bytes")["parts"].values()
        for row in part["rows"]
        if row["recall"] is None
    ]


def _unmeasured(kind: str) -> str:
    """A sentence on the parts of a kind that the benchmark has and the result file lacks."""
    results = _load("recall_per_bytes")
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
    results = _load("recall_per_bytes")
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


def approximate() -> str:
    """Render every setting of ours and of faiss's, one table a corpus."""
    results = _load("approximate")
    parts = []
    for name, corpus in results["corpora"].items():
        machine = corpus["machine"]
        parts.append(
            f"{corpus['items']:,} {CORPORA[name]}, {results['queries']:,} held-out queries, "
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
    """Render what approximate search gains over exact, and over IVF-PQ of no more recall."""
    lines = [
        "| corpus | what is reached | our setting | ms alone | exact scan / this | IVF-PQ / this |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, corpus in _load("approximate")["corpora"].items():
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
    for name, corpus in _load("approximate")["corpora"].items():
        lines += [
            f"| {corpus['items']:,} {CORPORA[name]} | {row['target']:g} | {row['queries']} | "
            f"{row['clusters']} clusters, {row['rerank']} rows | {row['reached']:.4f} | "
            f"{row['kept']:.4f} |"
            for row in corpus["tuned"]
        ]
    return "\n".join(lines)


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
    results = _load("encoding")
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
    """Render latencies of many threads searching while the file is replaced, all rounds."""
    results = _load("threads")
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


def _reliability() -> dict[str, Any]:
    parts: dict[str, Any] = _load("reliability")["parts"]
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


def sparse_search() -> str:
    """Render exact sparse search: ours and the peers, both corpora, by CPU time."""
    results = _load("sparse_search")
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
    note = (
        f"One thread, {results['isa']}; codes of {results['nonzeros']} nonzeros over "
        f"{results['atoms']:,} latents. {versions}. {machine['cpu']}, {machine['cores']} cores, "
        f"load {machine.get('load_average', 'unknown')}, {machine['date']}. Remade by "
        f"`{results['command']}` and `make docs`."
    )
    return "\n".join([*lines, "", note])


def sparse_search_work() -> str:
    """Render what a query touches, and the time for each posting that it adds."""
    lines = [
        "| items | postings a query | of the query's sign | ns for each of these, k = 10 | "
        "bytes of postings an item |",
        "|---:|---:|---:|---:|---:|",
    ]
    for corpus in _load("sparse_search")["corpora"].values():
        ours = next(row for row in corpus["rows"] if row["k"] == 10)
        lines.append(
            f"| {corpus['items']:,} | {corpus['postings_a_query']:,.0f} | "
            f"{corpus['postings_of_right_sign']:,.0f} | "
            f"{ours['cpu_ms'] * 1e6 / corpus['postings_of_right_sign']:.2f} | "
            f"{corpus['postings_bytes_per_item']:.1f} |"
        )
    return "\n".join(lines)


def search() -> str:
    """Render latencies of dense search, ours and rivals', by rows and threads."""
    results = _load("search")
    parts = []
    for part in results["parts"]:
        ours = part["systems"][0]
        machine = part["machine"]
        lines = [
            f"| {part['rows']:,} rows, {part['threads']} thread"
            f"{'s' if part['threads'] > 1 else ''} | bytes an item | recall@{results['depth']} | "
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


def reconstructed() -> str:
    """Render the two ways to the weights of the reconstructed mode."""
    results = _load("reconstructed")
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


BLOCKS: dict[str, Callable[[], str]] = {
    "reconstructed": reconstructed,
    "reliability": reliability,
    "reliability-writer": reliability_writer,
    "reliability-additions": reliability_additions,
    "search": search,
    "sparse-search": sparse_search,
    "sparse-search-work": sparse_search_work,
    "encoding": encoding,
    "approximate": approximate,
    "approximate-short": approximate_short,
    "approximate-tuned": approximate_tuned,
    "per-bytes": per_bytes,
    "per-bytes-ablations": per_bytes_ablations,
    "per-bytes-parts": per_bytes_parts,
    "per-bytes-learning": per_bytes_learning,
    "per-bytes-short": per_bytes_short,
    "recall-modes-short": recall_modes_short,
    "recall-modes-full": recall_modes_full,
    "recall-curve": recall_curve,
    "rescore": rescore,
    "threads": threads,
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
    results = _load("recall_modes")
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
    results = _load("recall_per_bytes")
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
