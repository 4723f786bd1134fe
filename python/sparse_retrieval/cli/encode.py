"""``sparse-retrieval encode``: embeddings and a model in, sparse codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_retrieval.cli._files import read_matrix, write_codes
from sparse_retrieval.cli._options import Embeddings


def command(
    x: Embeddings,
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder that `train` wrote.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Codes to write (.npz, as scipy.sparse saves CSR).")
    ],
    k: Annotated[
        int | None,
        typer.Option("--k", "-k", min=1, help="Nonzeros an item; by default the model's k."),
    ] = None,
) -> None:
    """Encode embeddings into sparse codes with a trained model."""
    import sparse_retrieval as sr

    rows = read_matrix(x)
    codes = sr.CompresSAE.from_pretrained(model).sparse_codes(rows, k=k)
    write_codes(out, codes)
    typer.echo(f"wrote {out}: {len(codes)} codes, {codes.nnz} nonzeros, {codes.dim} latents")
