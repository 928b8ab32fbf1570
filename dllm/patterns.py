"""Expressions of strangers: each is tried in a process of its own first, which may be ended.

A short expression can have more states than any memory holds (`(a|b)*a(a|b){40}`), the library that compiles it counts them when it has them
all, and a thread that is in it cannot be stopped.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from dllm.errors import TrialEndedError, TrialFailedError, TrialUnavailableError

PROCESSOR_S = 10
"""The largest automata that are taken need up to 4 s (a core of an Intel Xeon)."""
MEMORY_BYTES = 2 * 2**30
_WAIT_S = 120.0
"""By the clock, where nobody limits processor time or the machine is very busy."""

_READY = b"ready"
_NO_MEMORY = 77
_TRY = """
seconds, size = map(int, sys.argv[1:])
try:
    import resource
except ImportError:
    resource = None  # Windows

def limit(name, soft, hard):
    try:
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))
    except (AttributeError, ValueError, OSError):
        pass  # This system has no such limit; the others count.

limit("RLIMIT_CPU", seconds, seconds + 1)
limit("RLIMIT_AS", size, size)
limit("RLIMIT_CORE", 0, 0)
from outlines_core import Index, Vocabulary
expression = sys.stdin.buffer.read().decode()
print("ready", flush=True)
try:
    Index(expression, Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)}))
except ValueError:
    pass  # It is no expression, which is found as well where it is wanted.
except MemoryError:
    sys.exit(77)
"""


class Trial:
    """What is tried for one request. Any thread may end it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def end(self) -> None:
        """End what is being tried at once, and try nothing more. Does not block."""
        self._is_over = True
        if self._process is not None:
            self._process.kill()

    def compiles(self, expression: str) -> bool:
        """Whether the limits are enough to compile it. Blocks.

        Raises:
            TrialEndedError: If `end` was called.
            TrialUnavailableError: If no process can be had at the moment.
            TrialFailedError: If the process failed for a reason of its own.
            _Unsure: If it was ended for what may be the machine's fault: by the clock, or by a signal that the system sends when it runs out of memory.
        """
        # The parent's path, for the library may be anywhere on it; before anything is imported, for `-c` puts the working directory in front.
        program = f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!a}\n{_TRY}"
        command = [sys.executable, "-c", program, str(PROCESSOR_S), str(MEMORY_BYTES)]
        if self._is_over:
            raise TrialEndedError()
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C is the server's, which ends it.
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise TrialUnavailableError(str(error)) from error
        is_late = False
        with process:
            self._process = process
            try:
                if self._is_over:  # since it was asked above
                    process.kill()
                told, complaint = process.communicate(expression.encode(), _WAIT_S)
            except subprocess.TimeoutExpired:
                is_late = True
                process.kill()
                told, complaint = process.communicate()
            except BaseException:
                process.kill()
                raise
            finally:
                self._process = None
        if self._is_over:
            raise TrialEndedError()
        return _verdict(process.returncode, complaint, is_ready=told.startswith(_READY), is_late=is_late)


class _Unsure(Exception):
    """Too large as far as anybody knows, which is not remembered."""


def _verdict(status: int, complaint: bytes, *, is_ready: bool, is_late: bool) -> bool:
    """What the end of a trial says of its expression; raises as `Trial.compiles` does."""
    ended_by = _signal_name(-status) if status < 0 else ""
    if not is_ready and (is_late or ended_by == "SIGKILL"):
        raise TrialUnavailableError(f"its process was ended before it began ({ended_by or status})")
    if is_ready:
        if is_late or ended_by == "SIGKILL":
            raise _Unsure
        if status == 0:
            return True
        has_no_memory = status == _NO_MEMORY or (ended_by == "SIGABRT" and b"memory allocation" in complaint)
        if has_no_memory or ended_by == "SIGXCPU":
            return False
    lines = complaint.decode(errors="replace").strip().splitlines()
    raise TrialFailedError(f"{ended_by or f'status {status}'}: {lines[-1][:200] if lines else 'it said nothing'}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_trial: ContextVar[Trial | None] = ContextVar("expressions_of_strangers", default=None)


@contextmanager
def of_strangers(trial: Trial | None = None) -> Iterator[None]:
    """Expressions that are compiled inside come from outside, and `is_too_large` tries them; others are believed to be small.

    Args:
        trial: What another thread may end them by.
    """
    token = _trial.set(trial or Trial())
    try:
        yield
    finally:
        _trial.reset(token)


def is_too_large(expression: str) -> bool:
    """Whether a stranger's expression needs more than `PROCESSOR_S` of processor time or `MEMORY_BYTES` to compile.

    Blocks. Remembers its answers, but for those that the machine may be to blame for.

    Raises:
        TrialEndedError, TrialUnavailableError, TrialFailedError: If that could not be found out.
    """
    if _trial.get() is None:
        return False
    try:
        return not _can_be_compiled(expression)
    except _Unsure:
        return True


@lru_cache(maxsize=1024)
def _can_be_compiled(expression: str) -> bool:
    """Only what is returned is remembered, nothing that is raised."""
    trial = _trial.get()
    assert trial is not None
    return trial.compiles(expression)
