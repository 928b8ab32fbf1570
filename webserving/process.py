"""What Prometheus is told of the process itself, under the names that its own clients use."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

from webserving.metrics import Gauge, Metric


def process_metrics() -> tuple[Metric, ...]:
    """Processor time in seconds, and resident memory in bytes where the system tells it in `/proc`."""
    return (
        Gauge("process_cpu_seconds_total", "Processor time of the process.", time.process_time, is_counter=True),
        Gauge("process_resident_memory_bytes", "Resident memory of the process.", _memory),
    )


def _memory() -> float | None:
    if not sys.platform.startswith("linux"):
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * mmap.PAGESIZE)
