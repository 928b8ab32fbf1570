"""Expressions of strangers, which may not hold up anybody else."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm import patterns
from dllm.automata import from_regex
from dllm.errors import ConfigError, TrialEndedError, TrialFailedError, TrialUnavailableError
from dllm.patterns import Trial, is_too_large, of_strangers
from dllm.server.grammars import Grammars, Order, ordered
from dllm.server.problems import ApiError, from_exception
from dllm.server.requests import Grammar
from tests.dllm import tiny

ENDLESS = "(a|b)*a(a|b){40}"
"""2^41 states."""


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patterns, "PROCESSOR_S", 1)
    patterns._can_be_compiled.cache_clear()
    yield
    patterns._can_be_compiled.cache_clear()


def test_an_expression_of_a_stranger_that_never_comes_to_an_end_is_refused() -> None:
    with of_strangers(), pytest.raises(ConfigError, match="processor time"):
        from_regex(ENDLESS)


def test_what_compiles_is_the_same_for_a_stranger_and_what_is_no_expression_is_told_as_ever() -> None:
    with of_strangers():
        assert from_regex("(yes|no)[.!]*").accepts(b"no!!")
        with pytest.raises(ConfigError, match="unterminated"):
            from_regex("(a")


def test_our_own_expressions_are_not_tried_beforehand() -> None:
    assert not is_too_large(ENDLESS)
    with of_strangers():
        assert is_too_large(ENDLESS)
    assert not is_too_large(ENDLESS)


@pytest.mark.parametrize(
    ("grammar", "field"),
    [
        (Grammar(regex=ENDLESS), "dllm.regex"),
        (Grammar(schema={"type": "string", "pattern": f"^{ENDLESS}$"}), "response_format"),
    ],
)
def test_a_request_with_a_grammar_that_never_comes_to_an_end_is_told_which_field_and_the_next_one_is_served(
    grammar: Grammar, field: str
) -> None:
    grammars = Grammars(tiny.codec())
    with pytest.raises(ApiError, match="processor time") as caught:
        grammars.compile(order_of(grammar))
    assert (caught.value.status, caught.value.param) == (400, field)
    assert grammars.compile(order_of(Grammar(regex="yes|no"))) is not None


def order_of(grammar: Grammar) -> Order:
    order = ordered(grammar)
    assert order is not None
    return order


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a module in front of outlines_core, on this process's path only, as PYTHONPATH or a user's own packages may."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def write(code: str) -> None:
        lines = ["class Vocabulary:", "    def __init__(self, *_): pass", "class Index:", "    def __init__(self, *_):"]
        (tmp_path / "outlines_core.py").write_text("\n".join([*lines, f"        {code}", ""]))

    return write


def test_a_trial_finds_the_library_where_the_server_finds_it(library: Callable[[str], None]) -> None:
    library("raise MemoryError")
    with of_strangers():
        assert is_too_large("yes|no")


@pytest.mark.parametrize("code", ["raise ImportError('half a library')", "import os; os.abort()"])
def test_a_trial_that_fails_by_itself_is_no_expression_that_is_too_large_and_is_not_remembered(
    library: Callable[[str], None], code: str
) -> None:
    library(code)
    with of_strangers():
        with pytest.raises(TrialFailedError) as caught:
            is_too_large("yes|no")
        assert from_exception(caught.value, "prompt").status == 500
        library("pass")
        assert not is_too_large("yes|no")


def test_a_library_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "outlines_core.py").write_text("raise ImportError('no such library here')\n")
    with of_strangers(), pytest.raises(TrialFailedError, match="no such library here"):
        is_too_large("yes|no")


def test_what_the_machine_may_be_to_blame_for_is_refused_but_not_remembered(library: Callable[[str], None]) -> None:
    library("import os; os.kill(os.getpid(), 9)")
    with of_strangers():
        assert is_too_large("yes|no")
        library("pass")
        assert not is_too_large("yes|no")


def test_an_expression_that_takes_too_long_by_the_clock_is_refused_but_not_remembered(
    library: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library("import time; time.sleep(600)")
    was_given: list[float | None] = []
    communicate = subprocess.Popen.communicate

    def hurried(process: subprocess.Popen[bytes], sent: bytes | None = None, timeout: float | None = None) -> Any:
        was_given.append(timeout)
        if timeout is None:
            return communicate(process, sent)
        assert process.stdin is not None
        process.stdin.write(sent or b"")
        process.stdin.close()
        process.stdin = None
        select.select([process.stdout], [], [])  # It has begun: only now the clock runs out.
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", hurried)
    with of_strangers():
        assert is_too_large("yes|no")
        monkeypatch.undo()
        assert not is_too_large("yes|no")
    assert was_given == [patterns._WAIT_S, None]


def test_no_process_at_the_moment_is_the_servers_fault_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with of_strangers():
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", none_left)
            with pytest.raises(TrialUnavailableError) as caught:
                is_too_large("yes|no")
        problem = from_exception(caught.value, "prompt")
        assert (problem.status, problem.headers) == (503, {"retry-after": "1"})
        assert not is_too_large("yes|no")


@pytest.mark.parametrize(
    ("status", "complaint", "answer"),
    [
        (0, b"", True),
        (-signal.SIGXCPU, b"", False),
        (-signal.SIGABRT, b"memory allocation of 4096 bytes failed", False),
        (patterns._NO_MEMORY, b"", False),
    ],
)
def test_only_the_limits_make_an_expression_too_large_and_only_once_it_was_begun(
    status: int, complaint: bytes, answer: bool
) -> None:
    assert patterns._verdict(status, complaint, is_ready=True, is_late=False) is answer
    with pytest.raises(TrialFailedError):
        patterns._verdict(status, complaint, is_ready=False, is_late=False)


def test_an_end_before_it_began_is_the_machines() -> None:
    for is_late in (False, True):
        with pytest.raises(TrialUnavailableError):
            patterns._verdict(-signal.SIGKILL, b"", is_ready=False, is_late=is_late)


def test_a_limit_that_cannot_be_raised_keeps_no_other_from_being_set(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "outlines_core.py").write_text(
        "import resource\nclass Vocabulary:\n    def __init__(self, *_): pass\n"
        "class Index:\n    def __init__(self, *_):\n"
        f"        with open({str(told)!r}, 'w') as file:\n"
        "            print(*(resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)), file=file)\n"
    )
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (7, 7)); "
        f"sys.path[:] = {[str(tmp_path), *sys.path]!r}\n"
        "from dllm.patterns import is_too_large, of_strangers\nwith of_strangers(): assert not is_too_large('a')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert told.read_text().split() == ["7", str(patterns.MEMORY_BYTES)]


def test_a_trial_that_was_ended_tries_nothing_more() -> None:
    trial = Trial()
    trial.end()
    with of_strangers(trial), pytest.raises(TrialEndedError):
        is_too_large("yes|no")
