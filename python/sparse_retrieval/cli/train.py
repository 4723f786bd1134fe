"""``sparse-retrieval train``: embeddings in, a CompresSAE out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval.cli._errors import INTERRUPTED, CommandError
from sparse_retrieval.cli._options import Rows
from sparse_retrieval.cli._sources import read_source


def command(
    x: Rows,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the model into.")],
    hidden_dim: Annotated[
        int, typer.Option(min=1, help="Latents: the width of the code space.")
    ] = 4096,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Nonzeros an item.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: same weights.")] = 0,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of a .parquet file, tensor of a .safetensors one; by default the only "
            "suitable one."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a CompresSAE on embeddings, which are read batch by batch.

    Ctrl-C ends the training after the step under way, writes the model as it is then, and
    exits with 130.
    """
    import sparse_retrieval as sr
    from sparse_retrieval.training import TrainingInterrupted

    rows = read_source(x, column)
    model = sr.CompresSAE(input_dim=rows.dim, hidden_dim=hidden_dim, k=k, seed=seed)
    _must_be_writable(out)  # said now, not after the training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingInterrupted)  # said below, on one line
        history = sr.train(
            model,
            rows,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            progress=False if quiet else None,
        )
    model.save_pretrained(out)
    if history.interrupted:
        raise CommandError(
            f"interrupted after step {len(history)} of {steps}; "
            f"the model as it is now was written to {out}",
            INTERRUPTED,
        )
    typer.echo(
        f"wrote {out} after {len(history)} steps: loss {history.loss[-1]:.4f}, "
        f"cosine {history.cosine_k[-1]:.4f}"
    )


def _must_be_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "permission denied", str(folder))
