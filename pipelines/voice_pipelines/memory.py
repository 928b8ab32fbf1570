"""How much memory is left for this process: what the machine has, and what the quota of a container leaves of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from voice_pipelines.processors import quota_folders


def available_gib() -> float:
    """Memory that can be had without swapping, where the system says so, else all that the machine has; never more than its container may take."""
    left = left_bytes(quota_folders(controller="memory"))
    machine = _of_machine_bytes()
    return (machine if left is None else min(machine, left)) / 2**30


def left_bytes(folders: Sequence[Path]) -> int | None:
    """What the tightest of these control groups leaves, at least 0, or None where none has a limit.

    Pages of files that nobody has read of late count as free: they are given up first.
    """
    found = [left for folder in folders if (left := _left_in(folder)) is not None]
    return min(found, default=None)


def _left_in(folder: Path) -> int | None:
    try:
        if (limit := folder / "memory.max").exists():
            used, idle_name = folder / "memory.current", "inactive_file"
        else:
            limit, used, idle_name = (
                folder / "memory.limit_in_bytes",
                folder / "memory.usage_in_bytes",
                "total_inactive_file",
            )
        allowed = limit.read_text().strip()
        if allowed == "max":
            return None
        counts = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines() if " " in line)
        return max(int(allowed) - int(used.read_text()) + int(counts.get(idle_name, 0)), 0)
    except (OSError, ValueError):
        return None


def _of_machine_bytes() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 2**10
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
