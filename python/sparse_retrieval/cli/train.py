"""``sparse-retrieval train``: embeddings in, a CompresSAE out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval.cli._files import read_matrix
from sparse_retrieval.cli._options import Embeddings


def command(
    x: Embeddings,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the model into.")],
    hidden_dim: Annotated[
        int, typer.Option(min=1, help="Latents: the width of the code space.")
    ] = 4096,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Nonzeros an item.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: same weights.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a CompresSAE on embeddings.

    Ctrl-C ends the training early and keeps the model as it is then.
    """
    import sparse_retrieval as sr

    rows = read_matrix(x)
    model = sr.CompresSAE(input_dim=rows.shape[1], hidden_dim=hidden_dim, k=k, seed=seed)
    history = sr.train(
        model, rows, steps=steps, batch_size=batch_size, seed=seed, progress=not quiet
    )
    model.save_pretrained(out)
    typer.echo(f"wrote {out} after {len(history)} steps")
