"""Running a command under a limit of memory, page cache included, where the machine lets us.

Linux control groups of either version; a mapped file's pages count for the group whose process
touched them first, so the caller first drops them (`forget`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class NoLimitError(RuntimeError):
    """No group can be made here; the message says why."""


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache; nobody may have it mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def run(arguments: Sequence[str], limit: int, environment: dict[str, str]) -> tuple[str, int]:
    """Standard output of a command that has ``limit`` bytes, and the most that its group held.

    Raises
    ------
    NoLimitError
        Where no group can be made, or it takes no limit.
    subprocess.CalledProcessError
        Where the command fails, as when it is killed for want of memory.
    """
    first = (V1 / "memory.limit_in_bytes").is_file()
    group = (V1 if first else V2) / f"sparse-retrieval-{os.getpid()}"
    bound, most = (
        ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        if first
        else ("memory.max", "memory.peak")
    )
    try:
        group.mkdir()
    except OSError as error:
        raise NoLimitError(f"no control group can be made: {error}") from None
    try:
        try:
            (group / bound).write_text(str(limit), encoding="ascii")
        except OSError as error:
            raise NoLimitError(f"a control group takes no limit: {error}") from None
        # the shell joins, and what it becomes has the limit from its first page on
        joined = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
        done = subprocess.run(
            [*joined, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        with contextlib.suppress(OSError, ValueError):
            return done.stdout, int((group / most).read_text(encoding="ascii"))
        return done.stdout, 0
    finally:
        group.rmdir()
