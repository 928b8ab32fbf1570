"""Starts the real server in a process of its own for a benchmark, and stops it again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence


class ServerFailed(RuntimeError):
    """The server ended before it listened; the message holds what it printed."""


@contextlib.contextmanager
def server(arguments: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """`voiceagent run` on a free port: yields its websocket address, its process and its start-up lines.

    Raises:
        ServerFailed: If it does not come up.
    """
    command = [sys.executable, "-m", "voice_pipelines.cli", "run", "--port", "0", *arguments]
    with launched(command) as (address, process, lines):
        yield address.replace("http", "ws", 1) + "/v1/realtime?model=voiceagent&extensions=1", process, lines


@contextlib.contextmanager
def launched(
    command: Sequence[str], cores: Collection[int] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """A program that prints that it "listens on" an address: yields that, its process and what it prints.

    Args:
        cores: The processor cores that it may use; None leaves that to the system, which is all that some systems offer.
        environment: Its environment variables instead of ours.

    Raises:
        ServerFailed: If it ends before it listens.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
    )
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            process.pid, cores
        )  # Before it has imported anything, so that all of its threads inherit it.
    assert process.stdout is not None
    lines: list[str] = []
    try:
        address = ""
        for line in process.stdout:
            lines.append(line.rstrip())
            if "listens on " in line:
                address = line.split("listens on ", 1)[1].split()[0]
                break
        if not address:
            raise ServerFailed("\n".join(lines))
        # The pipe must be drained or a talkative server would stop when it is full.
        drain = threading.Thread(target=lambda: lines.extend(text.rstrip() for text in process.stdout), daemon=True)  # type: ignore[union-attr]
        drain.start()
        yield address, process, lines
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
