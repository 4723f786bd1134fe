"""``sparse-retrieval compress``: embeddings in, an index out; learns, encodes and builds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_retrieval.cli._files import check_writable, read_ids, read_rows
from sparse_retrieval.cli._options import Column, Metric, Mode, NAtoms, Quiet, Rows, Threads


def command(
    x: Rows,
    out: Annotated[Path, typer.Option("--out", "-o", help="Index file to write (.sridx).")],
    bytes_per_item: Annotated[
        float | None, typer.Option("--bytes", help="Bytes an item at most, instead of --k.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", "-k", min=1, help="Nonzeros an item; by default 32.")
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="Dictionary that `fit` wrote; by default one is learnt."),
    ] = None,
    n_atoms: NAtoms = None,
    value_bits: Annotated[
        float | None,
        typer.Option(
            help="Bits a value: 32, 16, 8, or 1 to 7 (coded by rank). By default 4, or with "
            "--bytes what decodes best."
        ),
    ] = None,
    complete: Annotated[
        bool | None,
        typer.Option(
            "--complete/--sparse",
            help="A value for each of the principal axes instead of few atoms of many, or not. By "
            "default, with --bytes alone, what recalls more.",
        ),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="What a score is.")] = Metric.cosine,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            help="Way of asking to build for, repeatable. By default dense and reconstructed."
        ),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Integer id of each item (.npy); by default its position.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of learning.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the learning.")] = 0,
    column: Column = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Learn a dictionary, encode embeddings and build an index, in one command."""
    import sparse_retrieval as sr

    rows = read_rows(x, column)
    check_writable(out)
    given: dict[str, Any] = {}
    if dictionary is not None:
        given["dictionary"] = sr.Dictionary.load(dictionary)
    if mode:
        given["modes"] = tuple(one.value for one in mode)
    if ids is not None:
        given["ids"] = read_ids(ids)
    index = sr.SparseIndex.from_embeddings(
        rows,
        k=k,
        bytes_per_item=bytes_per_item,
        n_atoms=n_atoms,
        value_bits=value_bits,
        complete=complete,
        metric=metric.value,
        rounds=rounds,
        seed=seed,
        threads=threads,
        progress=False if quiet else None,
        **given,
    )
    index.save(out)
    cosine = index.stats()["reconstruction_cosine"]
    known = "" if cosine is None else f", reconstruction cosine {cosine:.4f}"
    typer.echo(f"wrote {out}: {len(index)} items, {index.bytes_per_item:g} bytes an item{known}")
