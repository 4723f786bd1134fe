"""The picture of recall against bytes. Needs matplotlib; draws without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sparse_retrieval._extras import require
from sparse_retrieval.cli._curves import Point
from sparse_retrieval.cli._files import write_atomically

# Told apart by marker as well as by colour (Okabe and Ito's palette), in order of first use.
_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#777777", "x"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
)


def draw(
    points: Sequence[Point], path: Path, *, title: str, depth: int = 100, description: str = ""
) -> None:
    """Draw one line a series and write it as PNG or SVG, by the suffix of ``path``.

    The same points give the same SVG, so that a committed picture changes only when its
    figures do.

    Parameters
    ----------
    points : sequence of Point
        Lines appear in the order of their first point, and join points by bytes.
    path : Path
        ``.png`` or ``.svg``.
    title : str
        What was measured on what.
    depth : int, default 100
        Depth of the recall, for the axis.
    description : str, optional
        Written into the file's metadata, not shown.
    """
    matplotlib = require("matplotlib", "the picture")
    figure_module = require("matplotlib.figure", "the picture")
    style = {"svg.hashsalt": "sparse_retrieval", "svg.fonttype": "path", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = figure_module.Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for number, series in enumerate(dict.fromkeys(point.series for point in points)):
            line = sorted(
                (point for point in points if point.series == series),
                key=lambda point: point.bytes_per_item,
            )
            colour, marker = _LOOKS[number % len(_LOOKS)]
            axes.plot(
                [point.bytes_per_item for point in line],
                [point.recall for point in line],
                color=colour,
                marker=marker,
                markersize=5,
                label=series,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("bytes an item (logarithmic)")
        axes.set_ylabel(f"recall@{depth}")
        axes.set_ylim(0, 1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        kind = path.suffix.removeprefix(".")
        metadata = {"Description": description, **({"Date": None} if kind == "svg" else {})}

        def write(file: IO[bytes]) -> None:
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)

        write_atomically(path, write)
