"""What a result file says of the machine and the libraries that gave it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LIBRARIES = ("sparse_retrieval", "numpy", "torch", "scipy", "faiss-cpu")


def today() -> str:
    """Return the date, as result files write it."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def describe(libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return CPU, cores, load, system, versions and date, as a result file records them.

    Versions are those of the usual libraries and of ``libraries``.
    """
    return {
        "date": today(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        # above the cores: others were at work, and times are too long
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: version
            for name in dict.fromkeys((*_LIBRARIES, *libraries))
            if (version := _version(name)) is not None
        },
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
