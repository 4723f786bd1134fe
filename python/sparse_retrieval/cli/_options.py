"""Arguments and options that several subcommands share, so that they read the same."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Mode(str, Enum):
    """The three ways of asking."""

    sparse = "sparse"
    reconstructed = "reconstructed"
    dense = "dense"


class Metric(str, Enum):
    """What a score is."""

    inner_product = "inner_product"
    cosine = "cosine"


class Format(str, Enum):
    """Kinds of output for people and for programs."""

    table = "table"
    json = "json"


Embeddings = Annotated[
    Path,
    typer.Argument(
        metavar="X", help="Embeddings, one a row: .npy, or .safetensors with one 2-D tensor."
    ),
]
Rows = Annotated[
    Path,
    typer.Argument(
        metavar="X",
        help="Embeddings, one a row: .npy, .parquet, or .safetensors with one 2-D tensor.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of a .parquet file; by default the only one that holds lists of numbers."
    ),
]
NAtoms = Annotated[
    int | None, typer.Option(min=1, help="Atoms of the dictionary; by default chosen by the rows.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
IndexFile = Annotated[Path, typer.Argument(metavar="INDEX", help="Index file (.sridx).")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of the work; by default every core."),
]
NoMmap = Annotated[
    bool,
    typer.Option(
        "--no-mmap",
        help="Read the whole file instead of mapping it, for instance from a network mount.",
    ),
]
