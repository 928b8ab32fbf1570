"""Expressions of strangers, which may not hold up anybody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dllm import patterns
from dllm.automata import from_regex
from dllm.errors import ConfigError
from dllm.patterns import is_too_large, of_strangers
from dllm.server.grammars import Grammars
from dllm.server.problems import ApiError
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
        grammars.compile(grammar)
    assert (caught.value.status, caught.value.param) == (400, field)
    assert grammars.compile(Grammar(regex="yes|no")) is not None
