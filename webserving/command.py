"""How a command of a terminal ends where it does not end by itself: interrupted, or with nobody who reads what it prints.

Imports little, so that it can be there before what takes time to import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Status of a program that SIGINT ended, as shells tell it."""


def ended(act: Callable[[], int]) -> int:
    """The status that `act` returns, with what it printed written out; `INTERRUPTED` if it was, and 0 if nobody reads on."""
    try:
        try:
            status = act()
        except (SystemExit, KeyboardInterrupt):
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
