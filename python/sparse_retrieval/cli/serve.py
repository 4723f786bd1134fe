"""``sparse-retrieval serve``: an index over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval._extras import require
from sparse_retrieval.cli._options import IndexFile, NoMmap, Threads

Host = Annotated[
    str, typer.Option(help="Address to listen at. There is no TLS: see docs/service.md.")
]
Port = Annotated[
    int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")
]
Names = Annotated[
    Path | None, typer.Option(help="Text file; line i (from 0) names the item of id i.")
]


def command(
    index: IndexFile,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    names: Names = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="SPARSE_RETRIEVAL_TOKEN_FILE",
            help="Text file of tokens, one a line; all but /health and /ready then needs one.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; those that die are started again.")
    ] = 1,
    searches: Annotated[
        int, typer.Option(min=1, help="Searches at a time in a process; those that wait join.")
    ] = 2,
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Requests at once in a process; one more gets a 503.")
    ] = 256,
    max_wait: Annotated[
        float, typer.Option(help="Seconds that a search may wait for its turn, else 503.")
    ] = 10.0,
    max_body_bytes: Annotated[
        int, typer.Option(min=1024, help="Bytes of a request, else 413.")
    ] = 16 * 2**20,
    max_batch: Annotated[int, typer.Option(min=1, help="Queries of a request.")] = 1024,
    max_k: Annotated[int, typer.Option(min=1, help="Items to return a query, at most.")] = 1000,
    watch: Annotated[
        float,
        typer.Option(min=0, help="Look for a new version of the file every so many s; 0 never."),
    ] = 2.0,
    stop: Annotated[
        float, typer.Option(min=0, help="Seconds that requests get to finish when stopped.")
    ] = 30.0,
    threads: Threads = None,
    no_mmap: NoMmap = False,
) -> None:
    """Serve an index over HTTP, until Ctrl-C or SIGTERM."""
    require("fastapi", "serve")
    from sparse_retrieval.service import ServiceConfig, serve

    config = ServiceConfig(
        index=str(index),
        names=None if names is None else str(names),
        mmap=not no_mmap,
        host=host,
        port=port,
        token_file=None if token_file is None else str(token_file),
        workers=workers,
        threads=threads,
        searches=searches,
        max_concurrent=max_concurrent,
        max_wait_s=max_wait,
        max_body_bytes=max_body_bytes,
        max_batch=max_batch,
        max_k=max_k,
        watch_s=watch,
        stop_s=stop,
    )
    serve(config, on_start=lambda url: typer.echo(f"serving {index} at {url}"))
