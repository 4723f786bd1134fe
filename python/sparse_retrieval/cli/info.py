"""``sparse-retrieval info``: what an index file holds, from its header alone."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from sparse_retrieval.cli._options import Format, IndexFile


def command(
    index: IndexFile,
    form: Annotated[Format, typer.Option("--format", help="A table, or one JSON object.")] = (
        Format.table
    ),
) -> None:
    """Show what an index file holds, without reading its rows."""
    import sparse_retrieval as sr

    stats = sr.SparseIndex.open(index).stats()
    if form is Format.json:
        sys.stdout.write(json.dumps(stats) + "\n")
    else:
        _print_tables(stats)


def _print_tables(stats: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table.grid(padding=(0, 2))
    for name, value in stats.items():
        if name != "sections":
            facts.add_row(name.replace("_", " "), _shown(value))
    console.print(facts)
    sections = Table("section", "dtype", "shape", "bytes", "bytes an item")
    for column in (3, 4):
        sections.columns[column].justify = "right"
    for section in stats["sections"]:
        share = section["bytes_per_item"]
        sections.add_row(
            section["name"],
            section["dtype"],
            " x ".join(str(size) for size in section["shape"]),
            f"{section['bytes']:,}",
            "" if share is None else f"{share:g}",
        )
    console.print(sections)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
