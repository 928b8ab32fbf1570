"""How busy this machine's processors are, as the system tells it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 2, 5, 6, 7)
"""Of a processor's columns in `/proc/stat` (man 5 proc): user, system, irq, softirq, steal. Not `nice`: who is polite gives way."""


def usable() -> frozenset[int]:
    """The processors that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def busy_s(processors: Collection[int]) -> float | None:
    """Seconds that somebody has used these processors since the machine started; None where the system does not tell."""
    try:
        return read_busy_s(_STAT.read_text(), processors, os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return None


def read_busy_s(stat: str, processors: Collection[int], ticks_per_s: int) -> float:
    """The same of the text of `/proc/stat`.

    Raises:
        ValueError: If it tells of none of them.
    """
    found = []
    for line in stat.splitlines():
        name, *ticks = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in processors:
            found.append(sum(int(ticks[column]) for column in _BUSY if column < len(ticks)) / ticks_per_s)
    if not found:
        raise ValueError("/proc/stat: no line for a processor that may be used")
    return sum(found)
