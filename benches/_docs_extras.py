"""The measured block of ``docs/integrations.md``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results" / "extras.json"


def extras() -> str:
    """Render what installing each extra alone gave."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    machine = results["machine"]
    rows = [
        f"| `{row['extra']}` | {row['packages']} | {row['megabytes']:,} | yes |"
        if row["works"]
        else f"| `{row['extra']}` | | | no: {row['error'].splitlines()[-1]} |"
        for row in results["extras"]
        if row["extra"]
    ]
    return "\n".join(
        [
            "| extra, installed alone | packages | MB, all together | works |",
            "|---|---:|---:|---|",
            *rows,
            "",
            "Each in a new virtual environment, with a small program that uses it: "
            f"{machine['system']}, Python {machine['python']}, {machine['date']}. Remade by "
            f"`{results['command']}` and `make docs`.",
        ]
    )


BLOCKS: dict[str, Callable[[], str]] = {"extras": extras}
