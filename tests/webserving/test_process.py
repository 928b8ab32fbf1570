from __future__ import annotations

import sys

from tests.webserving.exposition import read
from webserving.metrics import exposition
from webserving.process import process_metrics


def test_the_process_tells_its_processor_time_and_where_the_system_does_its_memory() -> None:
    text = exposition(process_metrics())
    assert "# TYPE process_cpu_seconds_total counter\n" in text
    values = {name: value for name, _, value in read(text)}
    assert values["process_cpu_seconds_total"] > 0
    assert (values.get("process_resident_memory_bytes", 0.0) > 1e6) == sys.platform.startswith("linux")
