"""Files that appear whole or not at all, and heads that say what a folder's files are."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    Synced before the rename, and the folder after it; after an error (Ctrl-C too) the
    temporary file is gone and the target as it was.

    Parameters
    ----------
    path : path-like
        The target. It keeps its suffix in the temporary name, for writers that look at it.

    Yields
    ------
    pathlib.Path
        Where to write.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(suffix=target.suffix, prefix=".sr-", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's 0600 would outlive the rename, and so would that of a writer that made the file
        # anew, as safetensors does
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 text file, which end with a line feed alone, or with one after CR.

    What Unicode calls a line separator may stand in a line: whoever numbers lines by ``wc`` or an
    editor does not count it.

    Raises
    ------
    OSError
        If the file cannot be read.
    UnicodeDecodeError
        If it is not UTF-8; a byte order mark at its head is left out.
    """
    text = Path(path).read_bytes().decode("utf-8-sig")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def write_head(path: Path, head: dict[str, Any]) -> None:
    """Write what :func:`read_head` reads: ``format`` and ``version``, and what goes with them."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")


def read_head(path: Path, *formats: str, version: int, writer: str) -> dict[str, Any]:
    """Read a JSON file that says what the files beside it are.

    Parameters
    ----------
    path : pathlib.Path
    *formats : str
        Those of which ``format`` must be one.
    version : int
        What ``version`` must be.
    writer : str
        What writes such a file, for the message where there is none.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is no JSON object, or of another format or version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {writer} writes it")
    try:
        head: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON file: {error}") from None
    if not isinstance(head, dict) or head.get("format") not in formats:
        raise ValueError(f"{path} does not describe a {' or a '.join(formats)}")
    if head.get("version") != version:
        raise ValueError(
            f"{path} has version {head.get('version')!r}, this release reads {version}; "
            "upgrade sparse_retrieval"
        )
    return head
