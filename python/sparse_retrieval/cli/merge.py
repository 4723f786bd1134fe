"""``sparse-retrieval merge``: several index files in, one out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Index file to write (.sridx); it may be one of IN."),
    ],
    parts: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Index files of one model, in order.")
    ],
) -> None:
    """Join index files into one: all items of the first, then those of the second, and so on.

    Rows are copied as they are stored, with the changes in journals, so files must agree in
    latents, metric, modes, dictionary and, where values are coded by rank, codebooks.
    """
    import sparse_retrieval as sr

    n = sr.merge(parts, out)
    typer.echo(f"wrote {out}: {n} items of {len(parts)} file{'s' if len(parts) > 1 else ''}")
