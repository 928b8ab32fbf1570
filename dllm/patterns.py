"""Expressions of strangers: each is tried in a process of its own first, which may be ended.

A short expression can have more states than any memory holds (`(a|b)*a(a|b){40}`), the library that compiles it counts them when it has them
all, and a thread that is in it cannot be stopped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

PROCESSOR_S = 10
"""The largest automata that are taken need up to 4 s (a core of an Intel Xeon)."""
MEMORY_BYTES = 2 * 2**30
_WAIT_S = 120.0
"""By the clock, where nobody limits processor time or the machine is very busy."""

_TRY = """
import sys
seconds, size = map(int, sys.argv[1:])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
from outlines_core import Index, Vocabulary
try:
    Index(sys.stdin.buffer.read().decode(), Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)}))
except ValueError:
    pass  # It is no expression, which is found as well where it is wanted.
"""

_is_strangers: ContextVar[bool] = ContextVar("expressions_of_strangers", default=False)


@contextmanager
def of_strangers() -> Iterator[None]:
    """Expressions that are compiled inside come from outside, and `is_too_large` tries them; others are believed to be small."""
    token = _is_strangers.set(True)
    try:
        yield
    finally:
        _is_strangers.reset(token)


def is_too_large(expression: str) -> bool:
    """Whether a stranger's expression needs more than `PROCESSOR_S` of processor time or `MEMORY_BYTES` to compile. Blocks; remembers its answers."""
    return _is_strangers.get() and not _can_be_compiled(expression)


@lru_cache(maxsize=1024)
def _can_be_compiled(expression: str) -> bool:
    try:
        limits = (str(PROCESSOR_S), str(MEMORY_BYTES))
        command = [sys.executable, "-I", "-c", _TRY, *limits]
        tried = subprocess.run(command, input=expression.encode(), capture_output=True, timeout=_WAIT_S)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
