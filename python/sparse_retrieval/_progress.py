"""Progress bars of long work: shown on a terminal where tqdm is installed, quiet elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparse_retrieval._extras import require


@contextmanager
def bar(what: str, progress: bool | None) -> Iterator[Callable[[int, int | None], None] | None]:
    """A function of (done, total) that moves a bar, or None where none is shown.

    Parameters
    ----------
    what : str
        Shown before the bar.
    progress : bool or None
        None shows a bar if stderr is a terminal and tqdm is installed; True insists.

    Raises
    ------
    ImportError
        If a bar is insisted on and tqdm is not installed.
    """
    if progress is None:
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        progress = on_terminal and importlib.util.find_spec("tqdm") is not None
    if not progress:
        yield None
        return
    tqdm = require("tqdm", "the progress bar").tqdm
    with tqdm(desc=what, unit="row", unit_scale=True, file=sys.stderr, dynamic_ncols=True) as shown:

        def advance(done: int, total: int | None) -> None:
            if total is not None and shown.total != total:
                shown.total = total
            shown.update(done - shown.n)

        yield advance
