"""``sparse-retrieval eval``: recall, bytes and time of an index, against exact search."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._files import read_matrix
from sparse_retrieval.cli._options import Format, IndexFile, Mode, Threads
from sparse_retrieval.cli._queries import read_queries
from sparse_retrieval.evaluate import Report, evaluate_index, exact_top_k


def command(
    index: IndexFile,
    x: Annotated[
        Path, typer.Option("--x", help="Embeddings of the items, in the order of the index.")
    ],
    queries: Annotated[Path, typer.Option("--queries", "-q", help="Embeddings of the queries.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Depth of the recall.")] = 100,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(help="Way of asking, repeatable; by default all that the index serves."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="Encodes the queries, for the modes sparse and reconstructed."
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="A table, or one JSON array.")] = (
        Format.table
    ),
    threads: Threads = None,
) -> None:
    """Measure recall against exact cosine search, bytes an item and time a query."""
    import sparse_retrieval as sr

    opened = sr.SparseIndex.open(index)
    items, asked = read_matrix(x), read_matrix(queries)
    if len(items) != len(opened):
        raise CommandError(f"{x}: {len(items)} rows, but {index} holds {len(opened)} items", USAGE)
    if k > len(items):
        raise CommandError(f"--k is {k}, but the index holds {len(items)} items", USAGE)
    if mode:
        modes = [one.value for one in mode]
    else:
        # Without a model nothing encodes the queries, and only one mode takes them as they are.
        modes = [one for one in opened.modes if one == "dense" or model is not None]
        for one in sorted(set(opened.modes) - set(modes)):
            typer.echo(
                f"mode {one} is left out: unless --mode asks for it, which then encodes queries "
                "by pursuit, it needs --model",
                err=True,
            )
    if not modes:
        raise CommandError(f"{index}: none of its modes can be asked without --model", USAGE)
    true_ids = opened.ids[exact_top_k(items, asked, k).ids]
    reports = [
        evaluate_index(
            opened, read_queries(queries, model, one), true_ids, k=k, mode=one, threads=threads
        )
        for one in modes
    ]
    if form is Format.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(report) for report in reports]) + "\n")
    else:
        _print_table(reports, items.shape[1] * 4)


def _print_table(reports: list[Report], dense_bytes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{reports[0].n_items} items, {reports[0].n_queries} queries")
    table.add_column("mode")
    for heading in (
        "bytes an item",
        "of float32",
        f"recall@{reports[0].k}",
        "ms a query",
        "ms in a batch",
    ):
        table.add_column(heading, justify="right")
    for report in reports:
        table.add_row(
            report.mode,
            f"{report.bytes_per_item:g}",
            f"1/{dense_bytes / report.bytes_per_item:.1f}",
            f"{report.recall:.3f}",
            f"{report.ms_per_query:.2f}",
            f"{report.ms_per_query_batch:.3f}",
        )
    Console().print(table)
