"""How a command of a terminal ends where it does not end by itself: interrupted, or with nowhere to write what it prints.

Imports little, so that it can be there before what takes time to import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, TypeVar, cast

T = TypeVar("T")

INTERRUPTED = 130
"""Status of a program that SIGINT ended, as shells tell it."""


def ended(program: str, act: Callable[[], int]) -> int:
    """The status that `act` returns, with what it printed written out.

    `INTERRUPTED` if it was; 0 if nobody reads the output any more; 1, and a line that says why, if the output cannot be written. The same
    errors from anywhere else, as from a socket, are raised like all others.
    """
    try:
        return act() if sys.stdout is None else _written(program, act)
    except KeyboardInterrupt:
        return INTERRUPTED


def _written(program: str, act: Callable[[], int]) -> int:
    output = _Output(sys.stdout)
    with redirect_stdout(cast(TextIO, output)):
        try:
            try:
                status = act()
            except (SystemExit, KeyboardInterrupt):
                output.finish()
                raise
            output.finish()
            return status
        except BaseException as error:
            if not output.explains(error):
                raise
    # Python would complain once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    failure = output.failures[0]
    if isinstance(failure, BrokenPipeError):
        return 0  # Whoever read it has enough.
    print(f"{program}: the output cannot be written: {failure.strerror or failure}", file=sys.stderr)
    return 1


class _Output:
    """Standard output that keeps in mind why it could not be written: the error itself does not tell where it comes from."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failures: list[OSError] = []

    def write(self, text: str) -> int:
        return self._kept(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._kept(self._stream.flush)

    def finish(self) -> None:
        """Write out what is left, and raise what somebody has passed over, as argparse does."""
        self.flush()
        if self.failures:
            raise self.failures[0]

    def _kept(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            self.failures.append(error)
            raise

    def explains(self, error: BaseException) -> bool:
        """Whether `error` is nothing but that, once or several times; a task group wraps it."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.explains, error.exceptions))
        return any(error is failure for failure in self.failures)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """End the process when it is interrupted: for imports, before there is anything to be closed.

    They take a second or more. An exception amid them is a traceback, or is lost in one of them and the command goes on.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
