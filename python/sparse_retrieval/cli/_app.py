"""The typer application: which subcommands there are, in the order in which one needs them."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Annotated

import typer

from sparse_retrieval.cli import (
    build,
    compress,
    demo,
    encode,
    evaluate,
    explore,
    fit,
    info,
    merge,
    search,
    serve,
    train,
    verify,
)
from sparse_retrieval.cli._errors import EPILOG

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparse-retrieval {version('sparse_retrieval')}")
        raise typer.Exit


def _unwrapped(docstring: str | None) -> str:
    """Join the lines of each paragraph: typer would keep the source's line breaks."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_ABOUT = """
Short sparse codes of dense embeddings, one compact mapped file, exact top-k search.

From embeddings to answers: compress and search. Step by step: fit (or train), encode, build,
search. To see it all on real data, run the demo in a clone of the repository.
"""


@app.callback(invoke_without_command=True, help=_unwrapped(_ABOUT))
def _root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Without a subcommand, print the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _module, _name in (
    (compress, "compress"),
    (train, "train"),
    (fit, "fit"),
    (encode, "encode"),
    (build, "build"),
    (search, "search"),
    (evaluate, "eval"),
    (info, "info"),
    (verify, "verify"),
    (merge, "merge"),
    (serve, "serve"),
    (explore, "explore"),
    (demo, "demo"),
):
    app.command(_name, help=_unwrapped(_module.command.__doc__), epilog=EPILOG)(_module.command)
