"""Exit codes, and the one place where an exception becomes one line on stderr.

=====  ==================================================================================
code   meaning
=====  ==================================================================================
0      done
1      it failed: a file is missing, damaged, of an unknown kind or cannot be written; an
       optional library is missing; ``verify`` found damage
2      it was asked wrongly: an unknown option, or arguments and data that do not fit
       together (wrong width, NaN, k out of range)
130    interrupted by Ctrl-C
141    whoever read the output went away (``sparse-retrieval ... | head``)
=====  ==================================================================================

Only the errors that the package raises on purpose are turned into a line; anything else is a
bug and keeps its traceback. With ``SPARSE_RETRIEVAL_TRACEBACK=1`` every error does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

PROGRAM = "sparse-retrieval"

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

# One paragraph a code, so that typer keeps them on lines of their own.
EPILOG = (
    "Exit codes: 0 done; 1 failed (a file is missing, damaged or cannot be written, a library "
    "is missing); 2 asked wrongly (an unknown option, or arguments and data that do not fit "
    "together); 130 interrupted; 141 whoever read the output went away."
)


class CommandError(Exception):
    """A failure that a subcommand found itself.

    Parameters
    ----------
    message : str
        One line: what was got, what was expected, how to mend it.
    exit_code : int, default 1
        ``FAILED`` or ``USAGE``.
    """

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(arguments: Sequence[str] | None) -> int:
    """Run the typer application and return the exit code, whatever happens on the way."""
    from_shell = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # typer and rich come with an extra: their absence is an error of one line like others.
        from sparse_retrieval._extras import require

        require("typer", "the command line")
        from sparse_retrieval.cli._app import app

        # Outside its standalone mode typer raises usage errors instead of printing boxes.
        code = app(args=from_shell, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer returns what a Ctrl-C amounts to
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except BaseException as error:
        code, line = _described(error)
        if code == BROKEN_PIPE:
            # The interpreter flushes stdout at exit and would complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return code
        if line is None or os.environ.get("SPARSE_RETRIEVAL_TRACEBACK") == "1":
            raise
        print(line, file=sys.stderr)
        return code


def _described(error: BaseException) -> tuple[int, str | None]:
    """Exit code and line for an error; no line for one that is a bug."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return INTERRUPTED, f"{PROGRAM}: interrupted"
    # typer turns a broken pipe into an exit of its own; the cause hangs on it.
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, BrokenPipeError):
        return BROKEN_PIPE, None
    code = _exit_code(error)
    return (code, f"{PROGRAM}: error: {_message(error)}") if code else (FAILED, None)


def _exit_code(error: BaseException) -> int | None:
    if isinstance(error, CommandError):
        return error.exit_code
    # typer's usage errors; by shape, because their class moved between typer's releases.
    if hasattr(error, "format_message") and isinstance(getattr(error, "exit_code", None), int):
        return USAGE
    if type(error).__name__ == "IndexFormatError":
        return FAILED
    if isinstance(error, ValueError | TypeError | IndexError):
        # A TypeError or IndexError from anywhere but the package's own checks is a bug.
        return USAGE if isinstance(error, ValueError) or _raised_by_package(error) else None
    if isinstance(error, OSError | ImportError | MemoryError | FloatingPointError):
        return FAILED
    return None


def _raised_by_package(error: BaseException) -> bool:
    """Whether the innermost Python frame is the package's own: its check, or its native call."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.startswith("sparse_retrieval.") and not module.startswith("sparse_retrieval.cli")


def _message(error: BaseException) -> str:
    if hasattr(error, "format_message"):
        text = str(error.format_message())
        # typer puts each near match of a mistyped option on a line of its own.
        text = text.rstrip(".")
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{os.fspath(error.filename)}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    elif isinstance(error, MemoryError) and not str(error):
        text = "out of memory"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
