"""``sparse-retrieval demo``: the main job from end to end on the repository's sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from sparse_retrieval._extras import require
from sparse_retrieval.cli._curves import (
    MODES,
    Point,
    Stopwatch,
    curve,
    exact_report,
    pca_curve,
    queries_for,
)
from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._picture import draw
from sparse_retrieval.cli.sample import DEFAULT_FOLDER, Sample, load_sample
from sparse_retrieval.evaluate import Report, TopK, evaluate_index, exact_top_k

if TYPE_CHECKING:
    from sparse_retrieval import CompresSAE, SparseCodes, SparseIndex

DEPTH = 100
# Held out like all queries, so that the model has seen none of them.
SHOWN = ("nginx", "tuxmath", "openssh-server", "docker.io")
NEIGHBOURS = 5
PCA_AXES = (16, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class _Split:
    """Queries and the items that they are asked of; no row is both."""

    items: NDArray[np.float32]
    item_names: list[str]
    queries: NDArray[np.float32]
    query_names: list[str]


def command(
    data: Annotated[
        Path, typer.Option(help="Folder of the sample, examples/data of a clone.")
    ] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path(
        "demo"
    ),
    hidden_dim: Annotated[int, typer.Option(min=1, help="Latents.")] = 4096,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Nonzeros an item.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 1024,
    held_out: Annotated[int, typer.Option("--queries", min=10, help="Rows held out.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and training.")] = 0,
) -> None:
    """Train, encode, index, search and measure, on real embeddings of package descriptions.

    Needs the sample of a clone and the extras train and cli; takes about two minutes on two
    cores. Writes the model, two index files and a picture.
    """
    for library, purpose in (("torch", "training"), ("matplotlib", "the picture")):
        require(library, purpose)  # before two minutes of work, not after
    watch = Stopwatch()
    split = _split(load_sample(data), held_out, seed)
    if k > hidden_dim or len(split.items) < DEPTH:
        raise CommandError(
            f"k is {k} of {hidden_dim} latents and {len(split.items)} items are left, "
            f"expected k <= latents and at least {DEPTH} items",
            USAGE,
        )
    out.mkdir(parents=True, exist_ok=True)
    say = typer.echo
    say(f"{len(split.items)} items and {len(split.queries)} held-out queries from {data}")
    true = exact_top_k(split.items, split.queries, DEPTH)

    watch.lap_s()
    model = _train(split.items, hidden_dim, k, steps, batch_size, seed)
    model.save_pretrained(out / "model")
    say(f"trained {steps} steps of {batch_size} in {watch.lap_s():.0f} s: {out / 'model'}")
    widest = min(2 * k, hidden_dim)
    codes, asked = (model.sparse_codes(rows, k=widest) for rows in (split.items, split.queries))
    say(f"encoded {len(codes)} items and {len(asked)} queries in {watch.lap_s():.1f} s")

    indexes = _write_indexes(codes.top(k), model, out)
    _print_reports(split, asked.top(k), indexes, true)
    _print_neighbours(split, indexes[8], true)

    points = _points(codes, asked, split, model, true, k)
    draw(
        points,
        out / "recall_against_bytes.png",
        title=f"{len(split.items)} package descriptions, values in 8 bits",
        depth=DEPTH,
    )
    say(f"measured {len(points)} compressions in {watch.lap_s():.0f} s")
    say(f"picture: {out / 'recall_against_bytes.png'}")


def _split(sample: Sample, held_out: int, seed: int) -> _Split:
    """Hold out the packages shown and, at random, as many others as are asked for."""
    n = len(sample.names)
    if held_out >= n:
        raise CommandError(f"--queries is {held_out}, but the sample has {n} rows", USAGE)
    position = {name: row for row, name in enumerate(sample.names)}
    shown = [position[name] for name in SHOWN if name in position]
    shuffled = np.random.default_rng(seed).permutation(n)
    rest = shuffled[~np.isin(shuffled, shown)]
    asked = np.concatenate([np.array(shown, dtype=np.int64), rest])[:held_out]
    kept = np.setdiff1d(np.arange(n), asked)
    return _Split(
        items=sample.embeddings[kept],
        item_names=[sample.names[row] for row in kept],
        queries=sample.embeddings[asked],
        query_names=[sample.names[row] for row in asked],
    )


def _train(
    items: NDArray[np.float32], hidden_dim: int, k: int, steps: int, batch_size: int, seed: int
) -> CompresSAE:
    import sparse_retrieval as sr

    model = sr.CompresSAE(input_dim=items.shape[1], hidden_dim=hidden_dim, k=k, seed=seed)
    sr.train(model, items, steps=steps, batch_size=batch_size, seed=seed)
    return model


def _write_indexes(codes: SparseCodes, model: CompresSAE, out: Path) -> dict[int, SparseIndex]:
    """Write an index at 32 and at 8 bits a value; return both, opened mapped."""
    import sparse_retrieval as sr

    dictionary = model.dictionary()
    opened = {}
    for value_bits in (32, 8):
        path = out / f"packages-{value_bits}bit.sridx"
        index = sr.SparseIndex.from_codes(
            codes, dictionary=dictionary, metric="cosine", value_bits=value_bits, modes=MODES
        )
        index.save(path)
        watch = Stopwatch()
        opened[value_bits] = sr.SparseIndex.open(path, mmap=True)
        typer.echo(
            f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), "
            f"opened mapped in {watch.lap_s() * 1e3:.1f} ms"
        )
    return opened


def _print_reports(
    split: _Split, codes: SparseCodes, indexes: dict[int, SparseIndex], true: TopK
) -> None:
    from rich.console import Console
    from rich.table import Table

    dense_bytes = split.items.shape[1] * 4
    table = Table(title=f"Recall against exact search of {len(split.items)} items")
    table.add_column("asked", no_wrap=True)
    for heading in ("bits", "bytes an item", "of float32", f"recall@{DEPTH}", "ms a query"):
        table.add_column(heading, justify="right", no_wrap=True)

    def add(report: Report, bits: str) -> None:
        table.add_row(
            report.mode,
            bits,
            f"{report.bytes_per_item:g}",
            f"1/{dense_bytes / report.bytes_per_item:.1f}",
            f"{report.recall:.3f}",
            f"{report.ms_per_query:.2f}",
        )

    add(exact_report(split.items, split.queries, DEPTH), "32")
    table.add_section()
    for bits, index in indexes.items():
        for mode in MODES:
            asked = queries_for(mode, split.queries, codes)
            add(evaluate_index(index, asked, true.ids, k=DEPTH, mode=mode), str(bits))
        table.add_section()
    Console().print(table)


def _print_neighbours(split: _Split, index: SparseIndex, true: TopK) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Nearest packages (compressed: {index.bytes_per_item:g} bytes an item)")
    for heading in ("query", "exact", "compressed, dense query"):
        table.add_column(heading)
    for row, name in enumerate(split.query_names[: len(SHOWN)]):
        found: Any = index.search(split.queries[row], NEIGHBOURS, mode="dense").ids
        columns = [
            "\n".join(split.item_names[item] for item in ids[:NEIGHBOURS])
            for ids in (true.ids[row], found)
        ]
        table.add_row(name, *columns)
        table.add_section()
    Console().print(table)


def _points(
    codes: SparseCodes,
    asked: SparseCodes,
    split: _Split,
    model: CompresSAE,
    true: TopK,
    k: int,
) -> list[Point]:
    ks = sorted({max(1, k // 4), max(1, k // 2), max(1, 3 * k // 4), k, min(2 * k, codes.dim)})
    axes = [width for width in PCA_AXES if width <= split.items.shape[1]]
    measured = curve(
        codes, asked, split.queries, model.dictionary(), true.ids, ks=ks, value_bits=8, depth=DEPTH
    )
    return [
        *sorted(measured, key=lambda point: -MODES.index(point.series)),
        *pca_curve(split.items, split.queries, true.ids, components=axes, depth=DEPTH),
    ]
