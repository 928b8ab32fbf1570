"""How a command ends: as it says, interrupted, with nobody who reads on, or with nowhere to write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from webserving.command import INTERRUPTED, ended, interrupted_at_once

ROOT = Path(__file__).parents[2]


def program(code: str, *, stdout: int = subprocess.PIPE, options: Sequence[str] = ()) -> tuple[int, str]:
    """Status and errors of a Python program that has this code and keeps what it prints until it is flushed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)  # fmt: skip
    return done.returncode, done.stderr


def test_a_command_ends_with_its_own_status_or_as_interrupted() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert ended("tool", lambda: 7) == 7
    assert ended("tool", interrupted) == INTERRUPTED == 130


@pytest.mark.parametrize("last", ["return 3", "sys.exit(3)"])
def test_a_reader_who_has_enough_is_no_error_however_the_command_ends(last: str) -> None:
    code = f"""
import sys
from webserving.command import ended
def act():
    print("much")
    {last}
sys.exit(ended("tool", act))
"""
    reading, writing = os.pipe()
    os.close(reading)
    assert program(code, stdout=writing) == (0, "")
    os.close(writing)
    assert program(code) == (3, ""), "read to the end it has its own status"


def test_a_reader_who_has_enough_hides_no_failure_of_ours() -> None:
    code = """
import sys
from webserving.command import ended
def act():
    print("much")
    raise ValueError("a bug")
sys.exit(ended("tool", act))
"""
    reading, writing = os.pipe()
    os.close(reading)
    status, told = program(code, stdout=writing)
    os.close(writing)
    assert status != 0 and "ValueError: a bug" in told


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")


@needs_full
@pytest.mark.parametrize(
    "act",
    [
        "print('much')",
        "print('much', flush=True)",
        "print('much'); sys.exit(3)",
        "asyncio.run(in_a_group())",
        "print('much'); raise KeyboardInterrupt",
    ],
)
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_output_that_cannot_be_written_is_told_in_a_line(act: str, options: list[str]) -> None:
    code = f"""
import asyncio, sys
from webserving.command import ended
async def tell():
    print("much", flush=True)
async def in_a_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
def act():
    {act}
    return 0
sys.exit(ended("tool", act))
"""
    with FULL.open("wb") as full:
        status, told = program(code, stdout=full.fileno(), options=options)
    assert (status, told) == (1, "tool: the output cannot be written: No space left on device\n")


def test_a_reader_who_has_enough_is_no_error_in_a_task_group_either() -> None:
    code = """
import asyncio, sys
from webserving.command import ended
async def tell():
    print("much", flush=True)
async def in_a_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
sys.exit(ended("tool", lambda: asyncio.run(in_a_group())))
"""
    reading, writing = os.pipe()
    os.close(reading)
    assert program(code, stdout=writing) == (0, "")
    os.close(writing)


@pytest.mark.parametrize("error", ["BrokenPipeError(32, 'Broken pipe')", "OSError(28, 'No space left on device')"])
@pytest.mark.parametrize("has_reader", [True, False])
def test_what_breaks_elsewhere_is_an_error_whether_or_not_anybody_reads(error: str, has_reader: bool) -> None:
    code = f"""
import sys
from webserving.command import ended
def act():
    try:
        print("much", flush=True)
    except OSError:
        pass
    raise {error}
sys.exit(ended("tool", act))
"""
    reading, writing = os.pipe()
    if not has_reader:
        os.close(reading)
    status, told = program(code, stdout=writing)
    os.close(writing)
    if has_reader:
        os.close(reading)
    assert status != 0 and error.split("(")[0] in told and "tool:" not in told


def test_output_that_was_closed_from_the_start_goes_nowhere() -> None:
    code = """
import sys
sys.stdout = None
from webserving.command import ended
def act():
    print("much")
    return 3
sys.exit(ended("tool", act))
"""
    assert program(code) == (3, "")


def test_an_interrupt_amid_imports_ends_the_process_even_where_it_would_be_lost_and_behind_them_raises_again() -> None:
    code = """
import os, signal
from webserving.command import interrupted_at_once
with interrupted_at_once():
    {}
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise SystemExit(5)
"""
    lost = "try: os.kill(os.getpid(), signal.SIGINT)\n    except KeyboardInterrupt: pass"
    assert program(code.format(lost)) == (INTERRUPTED, "")
    assert program(code.format("pass")) == (5, "")


def test_who_has_a_handler_of_their_own_keeps_it() -> None:
    def own(number: int, frame: object) -> None:
        heard.append(number)

    heard: list[int] = []
    before = signal.signal(signal.SIGINT, own)
    try:
        with interrupted_at_once():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
