"""A bar on stderr and Ctrl-C as a flag: how training meets the terminal. Knows no model."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sparse_retrieval._extras import require

from .history import StepMetrics


@contextmanager
def step_bar(
    steps: int, progress: bool | None, done: int = 0
) -> Iterator[Callable[[StepMetrics], None]]:
    """Yield a function to call after each step, which may draw a progress bar."""
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        yield lambda metrics: None
        return
    tqdm = require("tqdm", "the progress bar of train").tqdm
    options = {"file": sys.stderr, "dynamic_ncols": True}
    with tqdm(total=steps, initial=done, unit="step", **options) as bar:

        def advance(metrics: StepMetrics) -> None:
            rate = f"{metrics.items_per_second:,.0f}"
            bar.set_postfix_str(f"loss {metrics.loss:.4f}, {rate} items/s", refresh=False)
            bar.update()

        yield advance


@contextmanager
def sigint_as_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag that the loop reads between steps.

    KeyboardInterrupt may surface between any two bytecodes, also inside the optimizer with half of
    the moments updated. Python delivers signals to the main thread only, and a handler other than
    Python's own belongs to the application: in both cases nothing is changed.
    """
    flag = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            signal.default_int_handler(number, frame)
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
