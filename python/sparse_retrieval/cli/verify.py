"""``sparse-retrieval verify``: every byte of an index file against its checksums."""

from __future__ import annotations

import typer

from sparse_retrieval.cli._errors import CommandError
from sparse_retrieval.cli._options import IndexFile


def command(index: IndexFile) -> None:
    """Read a whole index file and check it; exit code 1 if it is damaged."""
    import sparse_retrieval as sr

    opened = sr.SparseIndex.open(index)
    try:
        opened.verify()
    except sr.IndexFormatError as error:
        # An open index does not name the file it came from.
        raise CommandError(f"{index}: {str(error).removeprefix(f'{index}: ')}") from None
    typer.echo(f"{index}: sound, {len(opened)} items")
