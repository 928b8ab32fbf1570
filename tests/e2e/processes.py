"""The real server as a process of its own, for tests that talk to it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Against a hang; a busy machine may take a minute to load everything.
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 120.0


@dataclass
class ServerProcess:
    """A running `voiceagent run`. `lines` is what it has printed so far."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]


@contextmanager
def running_server(*options: str) -> Iterator[ServerProcess]:
    """Start `voiceagent run` with the built-in models on a free port; on leaving, stop it with SIGTERM and expect status 0."""
    places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "pipelines")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "import sys; from voice_pipelines.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        # Whatever else keeps the machine busy: who is refused then is tested elsewhere.
        [*command, "run", "--port", "0", "--set", "server.refuse_when_full=false", *options],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines: list[str] = []
    started = threading.Event()
    reader = threading.Thread(target=_read_lines, args=(process, lines, started), daemon=True)
    reader.start()
    try:
        started.wait(START_TIMEOUT_S)
        found = re.search(r"https?://\S+:\d+", lines[-1]) if lines and process.poll() is None else None
        assert found is not None, "the server did not start:\n" + "".join(lines)
        yield ServerProcess(found.group(), process, lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0, "the server did not end well:\n" + "".join(lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _read_lines(process: subprocess.Popen[str], lines: list[str], started: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "listens on" in line:
            started.set()
    started.set()
