"""``sparse-retrieval info``: what an index file holds, from its header alone."""

from __future__ import annotations

import typer

from sparse_retrieval.cli._options import IndexFile


def command(index: IndexFile) -> None:
    """Show what an index file holds, without reading its rows."""
    import sparse_retrieval as sr

    typer.echo(str(sr.SparseIndex.open(index).stats()))
