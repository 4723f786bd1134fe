"""``sparse-retrieval build``: sparse codes in, an index file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_retrieval.cli._errors import USAGE, CommandError
from sparse_retrieval.cli._files import read_codes, read_ids
from sparse_retrieval.cli._options import Metric, Mode


def command(
    codes: Annotated[Path, typer.Argument(metavar="CODES", help="Codes that `encode` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Index file to write (.sridx).")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="Folder that `train` wrote: its decoder becomes the dictionary."
        ),
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="Dictionary file (.safetensors), instead of a model."),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="What a score is.")] = Metric.cosine,
    value_bits: Annotated[
        float | None,
        typer.Option(
            help="Bits a value: 32, 16, 8, or 1 to 7 (coded by rank, 4 is a good choice); by "
            "default the library's choice."
        ),
    ] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            help="Way of asking to build for, repeatable. By default sparse without a "
            "dictionary, dense and reconstructed with one."
        ),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Integer id of each item (.npy); by default its position.")
    ] = None,
    postings: Annotated[
        bool, typer.Option("--postings", help="Add postings, for fast exact search of codes.")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Add clusters, for `search --approximate`.")
    ] = False,
    tune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Find and store the cheapest approximate setting that keeps this share of the "
            "exact results, say 0.99; implies --approximate.",
        ),
    ] = None,
) -> None:
    """Build an index file from sparse codes."""
    import sparse_retrieval as sr

    if model is not None and dictionary is not None:
        raise CommandError("--model and --dictionary both given, expected one", USAGE)
    approximate = approximate or tune is not None
    options: dict[str, Any] = {
        "metric": metric.value,
        "postings": postings,
        "approximate": approximate,
    }
    if value_bits is not None:
        options["value_bits"] = value_bits
    if mode:
        options["modes"] = tuple(one.value for one in mode)
    if ids is not None:
        options["ids"] = read_ids(ids)
    held = None
    if model is not None:
        held = sr.CompresSAE.from_pretrained(model).dictionary()
    elif dictionary is not None:
        held = sr.Dictionary.load(dictionary)
    index = sr.SparseIndex.from_codes(read_codes(codes), dictionary=held, **options)
    if tune is not None:
        setting = index.tune(tune)
        typer.echo(f"tuned: {setting.clusters} clusters, {setting.rerank} rows rescored")
    index.save(out)
    typer.echo(f"wrote {out}: {len(index)} items, {index.bytes_per_item:g} bytes an item")
