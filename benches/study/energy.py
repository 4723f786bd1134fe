"""Energy, where the machine lets it be read: the counters of RAPL, by powercap or perf.

Virtual machines hide them as a rule. The result file then says that it was not readable, and the
docs do too: nothing is estimated in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
PERF = Path("/sys/bus/event_source/devices/power/events")


def readable(powercap: Path = POWERCAP, perf: Path = PERF) -> dict[str, Any]:
    """Which counters of energy can be read here.

    Returns
    -------
    dict
        ``counters``: the zones of powercap whose microjoules can be read, and the events of perf;
        ``looked_at``: where they were looked for.
    """
    zones = []
    for path in sorted(powercap.glob("*/energy_uj")):
        try:
            int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        zones.append(str(path))
    events = sorted(str(path) for path in perf.glob("energy-*") if "." not in path.name)
    return {"counters": zones + events, "looked_at": [str(powercap), str(perf)]}


def joules(powercap: Path = POWERCAP) -> float | None:
    """What the packages have used since some time, in joules; None where it cannot be read.

    The zones of whole packages, of which the others are parts. Counters wrap, after minutes at
    full power: take differences of short spans.
    """
    total, found = 0, False
    for zone in sorted(powercap.glob("*:*")):
        if zone.name.count(":") != 1:  # a part of a package
            continue
        try:
            total += int((zone / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        found = True
    return total / 1e6 if found else None
