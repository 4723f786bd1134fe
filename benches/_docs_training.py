"""The measured blocks and the picture of ``docs/training.md``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from _results import load


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}, "
        f"{machine['date']}. Remade by `{results['command']}` and `make docs`."
    )


def _data(results: dict[str, Any]) -> str:
    data = results["data"]
    return (
        f"{data['items']:,} items, {data['queries']:,} held-out queries ({data['name']}, "
        f"{data['columns']} dimensions), s = {results['model']['hidden_dim']}"
    )


def training_step() -> str:
    """Render time and memory of a step against the reference formulation."""
    results = load("training_step")
    steps = results["steps"]
    dense = steps["dense"]
    lines = [
        "| step | seconds, median | times as fast | CPU seconds | peak memory, MB | of the "
        "reference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, step in steps.items():
        shown = "reference: dense masks, two decodes" if name == "dense" else name
        memory = step["peak_over_baseline_mb"]
        lines.append(
            f"| {shown} | {step['median_s']:.2f} | {dense['median_s'] / step['median_s']:.1f} | "
            f"{step['cpu_median_s']:.2f} | {memory:.0f} | "
            f"{memory / dense['peak_over_baseline_mb']:.2f} |"
        )
    share = ""
    if encode := results.get("encode_median_s"):
        of_step, half = (
            encode["full"] / steps["sparse"]["median_s"],
            encode["full"] / encode["bf16"],
        )
        share = (
            f"The encoder's product and the selection are {of_step:.0%} of the step; bfloat16 "
            f"makes them {half:.1f} times as fast. "
        )
    note = (
        f"{share}Batch {results['batch']}, d = {results['columns']}, s = {results['hidden_dim']}, "
        f"k = {results['k']}, {results['threads']} threads, {results['rounds']} interleaved "
        "rounds in one process; memory is the peak of two steps in a fresh process above what it "
        f"held before, so Adam's moments count. {_machine(results)}"
    )
    return "\n".join([*lines, "", note])


def training_gpu() -> str:
    """Render time and memory of a step on a GPU against the reference formulation."""
    results = load("training_gpu")
    steps = results["steps"]
    lines = [
        "| step | ms, median | of the reference in the same precision | peak memory, GB |",
        "|---|---:|---:|---:|",
    ]
    for name, step in steps.items():
        formulation, _, precision = name.partition(", ")
        reference = steps.get(f"dense, {precision}", steps["dense, TF32"])
        shown = f"reference, {precision}" if formulation == "dense" else name
        lines.append(
            f"| {shown} | {step['median_s'] * 1e3:.1f} | "
            f"{step['median_s'] / reference['median_s']:.2f} | {step['peak_mb'] / 1e3:.1f} |"
        )
    note = (
        f"Batch {results['batch']:,}, d = {results['columns']}, s = {results['hidden_dim']}, "
        f"k = {results['k']}, {results['rounds']} interleaved rounds; {results['device']}, CUDA "
        f"{results['cuda']}, torch {results['machine']['versions']['torch']}. {_machine(results)}"
    )
    return "\n".join([*lines, "", note])


def _trial_note(results: dict[str, Any]) -> str:
    training = results["training"]
    return (
        f"{_data(results)}, k = {results['model']['k']} unless the row says otherwise; "
        f"{training['steps']} steps of {training['batch_size']}; codes by the model's own encoder. "
        f"{_machine(results)}"
    )


def _gains(results: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """Recall of a trial less that of a constant rate alone, at each seed of both."""
    k = str(results["model"]["k"])
    base = results["trials"]["plain"]["seeds"]
    return [
        trial["dense_recall"][k] - base[seed]["dense_recall"][k]
        for seed, trial in row["seeds"].items()
        if seed in base
    ]


def ablation_noise(results: dict[str, Any]) -> float:
    """Most that a gain of any trial changed from one seed to the next.

    With two or three seeds a trial's own spread may be small by luck, so the largest of all counts
    for each.
    """
    spreads = [
        max(gains) - min(gains)
        for name, row in results["trials"].items()
        if name != "plain" and "k" not in row["options"]
        if len(gains := _gains(results, row)) > 1
    ]
    return max(spreads)


def ablation_verdict(gains: list[float], noise: float) -> str:
    """Whether a gain is told from what changes with the seed."""
    if len(gains) < 2:
        return "one seed"
    if abs(statistics.fmean(gains)) <= noise:
        return "within the spread"
    return "gains" if gains[0] > 0 else "loses"


def training_ablations() -> str:
    """Render each option changed alone: recall at the model's k, its spread over seeds."""
    results = load("training_ablations")
    k, trials = str(results["model"]["k"]), results["trials"]
    noise = ablation_noise(results)
    lines = [
        f"| changed | seeds | recall@{results['depth']}, dense query | gain, mean (spread) | "
        "| sparse query | held-out cosine | dead latents |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, row in trials.items():
        if "k" in row["options"]:
            continue
        seeds = list(row["seeds"].values())
        gains = _gains(results, row)
        gain = f"{statistics.fmean(gains):+.4f}"
        if len(gains) > 1:
            gain += f" ({max(gains) - min(gains):.4f})"
        verdict = ablation_verdict(gains, noise)
        if name == "plain":
            name, gain, verdict = "nothing: constant rate", "", ""
        elif name == "cooldown":
            name += " (the default)"
        recall, sparse, cosine, dead = (
            statistics.fmean(values)
            for values in (
                [seed["dense_recall"][k] for seed in seeds],
                [seed["sparse_recall"] for seed in seeds],
                [seed["held_out_cosine"][k] for seed in seeds],
                [seed["dead"] for seed in seeds],
            )
        )
        lines.append(
            f"| {name} | {len(seeds)} | {recall:.4f} | {gain} | {verdict} | {sparse:.4f} | "
            f"{cosine:.4f} | {dead:.1%} |"
        )
    note = (
        "Means over seeds; a gain is the difference from the first row at the same seed, so with "
        "the same rows held out, and its spread is that between the largest and the smallest. "
        f"What gains or loses no more than {noise:.4f}, the largest spread of all rows, is within "
        "the spread. "
    )
    return "\n".join([*lines, "", note + _trial_note(results)])


def training_nested() -> str:
    """Render one model for every k against models for one k, each judged at every k."""
    results = load("training_ablations")
    trials = results["trials"]
    ks = list(trials["plain"]["seeds"]["0"]["dense_recall"])
    shown = {"trained at k = 32": "plain", "trained at k = 8": "k = 8"}
    shown |= {"trained at k = 128": "k = 128", "trained for every k": "nested k"}
    lines = [
        f"| recall@{results['depth']}, dense query | " + " | ".join(f"k = {k}" for k in ks) + " |",
        "|---|" + "---:|" * len(ks),
    ]
    for name, trial in shown.items():
        found = trials[trial]["seeds"]["0"]["dense_recall"]
        lines.append(f"| {name} | " + " | ".join(f"{found[k]:.4f}" for k in ks) + " |")
    return "\n".join([*lines, "", "Constant rate, seed 0. " + _trial_note(results)])


def paper_figure() -> str:
    """Render the paper's figure as a table."""
    results = load("paper_figure")
    ks = [point["bytes"] // 8 for point in results["principal axes, cut"]]
    lines = [
        f"| recall@{results['depth']} | "
        + " | ".join(f"k = {k}, {8 * k} bytes" for k in ks)
        + " |",
        "|---|" + "---:|" * len(ks),
    ]
    for series, points in _series(results).items():
        lines.append(f"| {series} | " + " | ".join(f"{recall:.3f}" for _, recall in points) + " |")
    model = results["model"]
    note = (
        f"{_data(results)}, {model['steps']} steps of {model['batch_size']}; bytes as the paper "
        "counts them, 8 a nonzero; principal axes at 4 bytes a coordinate, so twice as many as "
        f"nonzeros. {_machine(results)}"
    )
    return "\n".join([*lines, "", note])


def _series(results: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Points (bytes, recall) by line of the figure."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for model, points in results["models"].items():
        for point in points:
            series = lines.setdefault(f"{point['mode']}, {model}", [])
            series.append((point["bytes"], point["recall"]))
    cut = results["principal axes, cut"]
    lines["principal axes, cut"] = [(point["bytes"], point["recall"]) for point in cut]
    return lines


def _paper_picture() -> dict[str, Any]:
    results = load("paper_figure")
    return {
        "points": [
            (series, f"{n_bytes} bytes", n_bytes, recall)
            for series, points in _series(results).items()
            if "every k" not in series  # the table has them; seven lines are too many to see
            for n_bytes, recall in points
        ],
        "title": f"{results['data']['items']:,} package descriptions, CompresSAE, as the paper "
        "counts bytes",
        "depth": results["depth"],
    }


def interactions() -> str:
    """Render item factors from interactions: compressed against full."""
    results = load("interactions")
    data, rows = results["data"], results["rows"]
    names = ("ndcg@10", "ndcg@100", "recall@20", "recall@100")
    lines = [
        "| items | bytes an item | shared bytes | " + " | ".join(names) + " |",
        "|---|---:|---:|" + "---:|" * len(names),
    ]
    lines += [
        f"| {row['items']} | {row['bytes']:g} | {row['shared_bytes']:,} | "
        + " | ".join(f"{row[name]:.4f}" for name in names)
        + " |"
        for row in rows
    ]
    agreed = all(row["checked_by_ir_measures"] for row in rows)
    note = (
        f"{data['name']}: {data['interactions']:,} interactions, factors of width "
        f"{results['width']} for {data['items']:,} items from {data['learnt_users']} users, "
        f"judged on {data['held_out_users']} others. "
        + ("Every figure agrees with `ir_measures` to 1e-6. " if agreed else "")
        + f"Remade by `{results['command']}` and `make docs`."
    )
    return "\n".join([*lines, "", note])


BLOCKS: dict[str, Callable[[], str]] = {
    "training-step": training_step,
    "training-gpu": training_gpu,
    "training-ablations": training_ablations,
    "training-nested": training_nested,
    "paper-figure": paper_figure,
    "interactions": interactions,
}

PICTURES: dict[str, Callable[[], dict[str, Any]]] = {"paper_figure.svg": _paper_picture}
