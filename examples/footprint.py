"""What a process and its workers use, from `/proc` (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def family(pid: int) -> list[int]:
    """The process and everybody that it has started."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # A worker, or a thread of it, has just ended.
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def footprint(pid: int) -> dict[str, int]:
    """Memory, threads, open files and processes of the server with its workers."""
    members = family(pid)
    total = {"rss_kb": 0, "threads": 0, "files": 0, "processes": len(members)}
    for member in members:
        status = Path(f"/proc/{member}/status").read_text(encoding="utf-8")
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        total["rss_kb"] += int(values["VmRSS"].split()[0])
        total["threads"] += int(values["Threads"])
        total["files"] += len(list(Path(f"/proc/{member}/fd").iterdir()))
    return total


def cpu_s(pid: int) -> float:
    """Processor time of the process and its workers, theirs that have ended included; to a tick of the system, usually 10 ms."""
    ticks = 0
    for member in family(pid):
        # The name of the program is in parentheses and may hold blanks; utime, stime, cutime and cstime are fields 14 to 17.
        fields = Path(f"/proc/{member}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += sum(int(value) for value in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")
