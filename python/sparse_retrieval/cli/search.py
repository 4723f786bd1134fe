"""``sparse-retrieval search``: an index and queries in, the best items out."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer

from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._files import read_filter, read_names, write_atomically
from sparse_retrieval.cli._options import IndexFile, Mode, NoMmap, Threads
from sparse_retrieval.cli._queries import read_queries


class Output(str, Enum):
    """Kinds of output."""

    table = "table"
    json = "json"
    npz = "npz"


def command(
    index: IndexFile,
    queries: Annotated[
        Path,
        typer.Option(
            "--queries", "-q", help="Embeddings (.npy, .safetensors) or codes (.npz), one a row."
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Items to return a query.")] = 10,
    mode: Annotated[
        Mode | None, typer.Option(help="Way of asking; by default the index's own.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Encodes the embeddings, for the modes sparse and reconstructed.",
        ),
    ] = None,
    filter_file: Annotated[
        Path | None,
        typer.Option(
            "--filter",
            metavar="FILE",
            help="Return these items only: .npy of bool, one an item, or of ids.",
        ),
    ] = None,
    rescore: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Order the best by code by their vectors in this .npy or .parquet file, one row "
            "an item in the index's order, of which only those rows are read.",
        ),
    ] = None,
    oversample: Annotated[
        float, typer.Option(min=1, help="With --rescore: candidates for each item to return.")
    ] = 3,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Look at the nearest clusters only, as the index was tuned; it must have "
            "been built with --approximate.",
        ),
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="Text file; line i (from 0) names the item of id i.")
    ] = None,
    form: Annotated[
        Output,
        typer.Option(
            "--format", help="A table, one JSON object a query, or arrays `scores` and `ids`."
        ),
    ] = Output.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write here instead of to the screen; npz needs it."),
    ] = None,
    threads: Threads = None,
    no_mmap: NoMmap = False,
) -> None:
    """Search an index for the best items of each query."""
    import sparse_retrieval as sr

    if form is Output.npz and out is None:
        raise CommandError("--format npz needs --out FILE", USAGE)
    if form is Output.table and out is not None:
        raise CommandError("--format table goes to the screen; use json or npz with --out", USAGE)
    opened = sr.SparseIndex.open(index, mmap=not no_mmap)
    labels = None if names is None else read_names(names)
    chosen: Any = None if mode is None else mode.value
    asked = read_queries(queries, model, chosen)
    result = opened.search(
        asked,
        k,
        mode=chosen,
        filter=None if filter_file is None else read_filter(filter_file),
        rescore=rescore,
        oversample=oversample,
        approximate=approximate or None,
        threads=threads,
    )
    if labels is not None and result.ids.dtype == object:
        raise CommandError(
            f"--names {names}: names stand for positions, and the ids of {index} are strings", USAGE
        )
    if form is Output.table:
        _print_table(result, labels)
        return
    if form is Output.json:
        text = "".join(f"{json.dumps(line)}\n" for line in _records(result, labels))
        if out is None:
            sys.stdout.write(text)
            return
        data = text.encode()
        write_atomically(out, lambda file: file.write(data))
    elif out is not None:
        write_atomically(out, lambda file: _write_npz(file, result))
    typer.echo(f"wrote {out}: {len(result.ids)} queries, {k} items each")


def _write_npz(file: IO[bytes], result: Any) -> None:
    ids = result.ids
    if ids.dtype == object:  # strings, which are read back without pickles; none is ""
        ids = np.array([["" if item is None else item for item in row] for row in ids], dtype=str)
    np.savez(file, scores=result.scores, ids=ids)


def _label(item: int, labels: list[str] | None) -> str:
    if labels is None:
        return str(item)
    if not 0 <= item < len(labels):
        raise CommandError(f"id {item} has no name: --names has {len(labels)} lines", USAGE)
    return labels[item]


def _records(result: Any, labels: list[str] | None) -> list[dict[str, Any]]:
    """One record a query; padding is left out."""
    records = []
    for number, (scores, ids) in enumerate(zip(result.scores, result.ids, strict=True)):
        found = np.flatnonzero(scores > -np.inf)
        record: dict[str, Any] = {
            "query": number,
            "ids": ids[found].tolist(),
            "scores": scores[found].tolist(),
        }
        if labels is not None:
            record["names"] = [_label(int(item), labels) for item in ids[found]]
        records.append(record)
    return records


def _print_table(result: Any, labels: list[str] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("query", "rank", "id" if labels is None else "name", "score")
    for column in (0, 1, 3):
        table.columns[column].justify = "right"
    for record in _records(result, labels):
        for rank, (item, score) in enumerate(zip(record["ids"], record["scores"], strict=True)):
            table.add_row(str(record["query"]), str(rank + 1), _label(item, labels), f"{score:.4f}")
    Console().print(table)
