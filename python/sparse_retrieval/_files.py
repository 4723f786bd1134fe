"""Files that appear whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would outlive the rename
        yield temporary
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
