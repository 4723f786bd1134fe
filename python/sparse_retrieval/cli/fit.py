"""``sparse-retrieval fit``: embeddings in, a dictionary learnt in closed form out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval._progress import bar
from sparse_retrieval.cli._files import check_writable, read_rows
from sparse_retrieval.cli._options import Column, NAtoms, Quiet, Rows, Threads


def command(
    x: Rows,
    out: Annotated[Path, typer.Option("--out", "-o", help="Dictionary to write (.safetensors).")],
    n_atoms: NAtoms = None,
    k: Annotated[
        int, typer.Option("--k", "-k", min=1, help="Nonzeros of a code while learning.")
    ] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of pursuit and update.")] = 8,
    held_out: Annotated[
        int, typer.Option(min=0, help="Rows that are not learnt from but reported on.")
    ] = 0,
    sample: Annotated[
        int, typer.Option(min=1, help="Rows to learn from at most, drawn at random.")
    ] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Draws first atoms and samples.")] = 0,
    column: Column = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Learn a dictionary from embeddings in closed form; torch is not needed."""
    import sparse_retrieval as sr

    rows = read_rows(x, column)
    check_writable(out)
    with bar("learning", False if quiet else None) as advance:
        dictionary = sr.Dictionary.fit(
            rows,
            n_atoms,
            k,
            rounds=rounds,
            held_out=held_out,
            sample=sample,
            seed=seed,
            threads=threads,
            progress=advance,
        )
    dictionary.save(out)
    last = dictionary.history[-1]
    unseen = "" if last.held_out_cosine is None else f", held out {last.held_out_cosine:.4f}"
    typer.echo(
        f"wrote {out}: {dictionary.n_atoms} atoms of width {dictionary.embedding_dim} after "
        f"{rounds} rounds; when the last began, cosine {last.cosine:.4f}{unseen}"
    )
