"""``sparse-retrieval encode``: embeddings and a model or dictionary in, sparse codes out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._files import check_writable, read_rows, write_codes
from sparse_retrieval.cli._options import Column, Quiet, Rows, Threads
from sparse_retrieval.cli._sources import read_source

if TYPE_CHECKING:
    from sparse_retrieval import SparseCodes


class Method(str, Enum):
    """How a dictionary's atoms are chosen."""

    pursuit = "pursuit"
    omp = "omp"
    topk = "topk"
    topk_refit = "topk_refit"


def command(
    x: Rows,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Codes to write (.npz, as scipy.sparse saves CSR).")
    ],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Folder that `train` wrote.")
    ] = None,
    dictionary: Annotated[
        Path | None, typer.Option(help="Dictionary that `fit` wrote, instead of a model.")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--k", "-k", min=1, help="Nonzeros an item; by default the model's k, or 32."),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="How to encode with a dictionary; by default by matching pursuit."),
    ] = None,
    column: Column = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Encode embeddings into sparse codes, with a trained model or a learnt dictionary."""
    if model is not None and dictionary is not None:
        raise CommandError("--model and --dictionary both given, expected one", USAGE)
    if out.suffix != ".npz":  # by which `build` knows them
        raise CommandError(f"--out {out}: codes are written to a file .npz", USAGE)
    check_writable(out)
    if dictionary is not None:
        chosen = Method.pursuit if method is None else method
        codes = _pursue(x, dictionary, 32 if k is None else k, chosen, column, threads, quiet)
    elif model is not None:
        if method is not None or threads is not None:
            raise CommandError(
                "--method and --threads go with --dictionary, not with --model", USAGE
            )
        codes = _apply(x, model, k, column)
    else:
        raise CommandError("neither --model nor --dictionary given, expected one", USAGE)
    write_codes(out, codes)
    typer.echo(f"wrote {out}: {len(codes)} codes, {codes.nnz} nonzeros, {codes.dim} latents")


def _pursue(
    x: Path,
    dictionary: Path,
    k: int,
    method: Method,
    column: str | None,
    threads: int | None,
    quiet: bool,
) -> SparseCodes:
    import sparse_retrieval as sr
    from sparse_retrieval._progress import bar

    atoms = sr.Dictionary.load(dictionary)
    rows = read_rows(x, column)
    with bar("encoding", False if quiet else None) as advance:
        return atoms.encode(rows, k, method.value, threads=threads, progress=advance)


def _apply(x: Path, model: Path, k: int | None, column: str | None) -> SparseCodes:
    import sparse_retrieval as sr

    rows = read_source(x, column)
    codes: SparseCodes = sr.CompresSAE.from_pretrained(model).sparse_codes(rows, k=k)
    return codes
