"""Measured blocks of ``docs/benchmarks.md`` on the parts of ours: what each gives and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _results import load


def _signed(summary: dict[str, float]) -> str:
    text = f"{summary['mean']:+.3f} ({summary['least']:+.3f} to {summary['most']:+.3f})"
    if summary["least"] > 0:
        return f"**{text}**"
    return f"*{text}*" if summary["most"] < 0 else text


def parts() -> str:
    """Render what each choice changes, all sets side by side."""
    results = load("study_parts")
    sets = results["sets"]
    head = "| part | instead | " + "".join(
        f"{of['title']}: bytes | change of recall@100 | learn + encode, CPU s | "
        for of in sets.values()
    )
    lines = [head.rstrip(), "|---|---|" + "---:|---:|---:|" * len(sets)]
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, of in sets.items():
        for row in of["rows"]:
            if row["of"]:
                # what differs between sets by their size alone stands in one line
                choice = row["choice"].partition(", k = ")[0].partition(" at the same k")[0]
                choice = choice + row["choice"].partition(", k = ")[2].lstrip("0123456789")
                cells.setdefault((row["of"], choice), {})[name] = row
    order = list(dict.fromkeys(of for of, _ in cells))
    for part in order:
        for (of, choice), by_set in cells.items():
            if of != part:
                continue
            line = f"| {of} | {choice} | "
            for name in sets:
                row = by_set.get(name)
                line += (
                    "| | | "
                    if row is None
                    else (
                        f"{row['bytes']:.0f} | {_signed(row['change'])} | "
                        f"{row['learn_cpu_s']:.0f} + {row['encode_cpu_s']:.1f} | "
                    )
                )
            lines.append(line.rstrip())
    notes = []
    for of in sets.values():
        base = next(row for row in of["rows"] if not row["of"])
        recall, machine = base["recall"], of["machine"]
        notes.append(
            f"{of['title'].capitalize()}, as it is: {of['items']:,} items, {of['atoms']:,} atoms, "
            f"k = {of['k']}, {of['value_bits']:g} bits a value, {base['bytes']:.0f} bytes, "
            f"recall@100 {recall['mean']:.3f} ({recall['least']:.3f} to {recall['most']:.3f}), "
            f"{base['learn_cpu_s']:.0f} + {base['encode_cpu_s']:.1f} CPU seconds "
            f"({machine['cpu']}, load {machine['load_average']}, {machine['date']})."
        )
    note = (
        f"One seed; intervals of {results['confidence']:.0%} over queries, paired. Remade by "
        f"`{results['command']}` and `make docs`."
    )
    return "\n\n".join(["\n".join(lines), " ".join(notes), note])


def defaults() -> str:
    """Render ours before and after atoms, bits and kinds of codes were chosen by trial."""
    before, after = load("study_defaults"), load("study")
    lines = [
        "| set | bytes, at most | atoms | k, bits a value | recall@100 before | after | "
        "with what is shared, before | after |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, of in before["sets"].items():
        now = {row["setting"]: row for row in after["sets"][name]["rows"]}
        for setting, row in of.items():
            new = now[setting]
            if not new.get("note"):
                continue
            # complete codes have axes, and a value for each
            note = new["note"].replace(" axes, ", " axes atoms, all, ")
            atoms, _, code = note.partition(" atoms, ")
            lines.append(
                f"| {after['sets'][name]['title']} | {setting.split()[1]} | {atoms} | "
                f"{code.removesuffix(' bits a value').replace('k = ', '')} | "
                f"{row['recall@100']['mean']:.3f} | {new['recall@100']['mean']:.3f} | "
                f"{row['total_bytes']:.0f} | {new['total_bytes']:.0f} |"
            )
    return "\n".join([*lines, "", f"Before: {before['what']}."])


def errors() -> str:
    """Render how near items come back: ours and the best rival of each size."""
    lines = [
        "| set | bytes, at most | ours: atoms, k, bits | 1 - cosine, ours | best rival | "
        "1 - cosine, rival | recall@100, ours less rival |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for of in load("study")["sets"].values():
        rows = {row["setting"]: row for row in of["rows"]}
        for margin in of["margins"]:
            own, rival = rows[margin["ours"]], rows[margin["rival"]]
            if own.get("cosine") is None:
                continue
            known = rival.get("cosine")
            lines.append(
                f"| {of['title']} | {margin['bytes']} | {own['note'].replace(' bits a value', '')} "
                f"| {1 - own['cosine']:.2g} | {rival['setting']} | "
                f"{'' if known is None else f'{1 - known:.2g}'} | {_signed(margin['recall@100'])} |"
            )
    return "\n".join(lines)


def energy() -> str:
    """Render whether energy could be read."""
    results = load("study")
    read = results["energy"]
    if read["counters"]:
        return f"Energy can be read on this machine: {', '.join(read['counters'])}."
    where = " and ".join(f"`{path}`" for path in read["looked_at"])
    return (
        f"Energy was not readable on this machine ({results['machine']['cpu']}, virtual): "
        f"{where} hold no counter. None is estimated in its place."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "study-parts": parts,
    "study-defaults": defaults,
    "study-errors": errors,
    "study-energy": energy,
}
