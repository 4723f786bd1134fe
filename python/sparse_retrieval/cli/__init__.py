"""The command line, ``sparse-retrieval``: a thin layer over the package.

Each subcommand has a file of its own that reads its inputs, calls the package and writes its
output; none holds logic that a Python user would miss. Nothing here is imported by the
package. typer and rich are optional: without them :func:`main` says what to install.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_retrieval.cli._errors import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; by default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code: see :mod:`sparse_retrieval.cli._errors`.
    """
    return run(arguments)
