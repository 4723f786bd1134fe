"""``sparse-retrieval explore``: an index to look at, in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval._extras import require
from sparse_retrieval.cli._options import IndexFile
from sparse_retrieval.cli.serve import Host, Names, Port


def command(
    index: IndexFile,
    names: Names = None,
    x: Annotated[
        Path | None,
        typer.Option(
            "--x",
            metavar="FILE",
            help="The items' embeddings in the index's order (.npy): exact neighbours and recall.",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            "-q",
            help="Held-out embeddings (.npy) to measure recall with; by default some of the items.",
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Browse an index in the browser: items, their atoms and neighbours; until Ctrl-C."""
    require("fastapi", "explore")
    from sparse_retrieval.service import ServiceConfig, serve

    config = ServiceConfig(
        index=str(index),
        names=None if names is None else str(names),
        host=host,
        port=port,
        explore=True,
        originals=None if x is None else str(x),
        queries=None if queries is None else str(queries),
    )

    def started(url: str) -> None:
        typer.echo(f"explore {index} at {url}")
        if show:
            webbrowser.open(url)

    serve(config, on_start=started)
