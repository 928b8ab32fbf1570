"""Whether somebody who heard so much of a text has been asked something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.questions import has_asked

TELLS = "Sure, one large mocha. It will be ready in ten minutes."
ASKS = "Would you like anything else with that?"


def first(words: int, text: str) -> tuple[str, str]:
    return " ".join(text.split()[:words]), text


@pytest.mark.parametrize("words", [1, 4, 6, 11])
def test_who_only_tells_has_asked_nothing_however_much_of_it_was_heard(words: int) -> None:
    assert not has_asked([first(words, TELLS)])


def test_a_question_counts_from_its_first_word_and_not_before() -> None:
    text = f"{TELLS} {ASKS} We are open."
    assert [has_asked([first(words, text)]) for words in (11, 12, 18, 21)] == [False, True, True, True]


def test_where_nothing_was_heard_or_nothing_said_nobody_knows() -> None:
    assert has_asked([])
    assert has_asked([("", TELLS), ("", "")])
    assert not has_asked([("", ASKS), first(3, TELLS)]), "what waits behind what is heard was not heard"


def test_a_question_that_was_heard_before_is_open_whatever_followed() -> None:
    assert has_asked([first(3, TELLS), (ASKS, ASKS)])


@pytest.mark.parametrize("unfinished", ["Would you like", "It is", "Sure,"])
def test_a_sentence_whose_end_is_not_written_yet_may_become_a_question(unfinished: str) -> None:
    assert has_asked([first(1, unfinished)])
    assert has_asked([(f"Sure. {unfinished}", f"Sure. {unfinished}")])


@pytest.mark.parametrize(
    "text", ["What size.", "And what's your name.", "Please tell me.", "I need your number.", "¿Algo más", "“Really?”"]
)
def test_a_question_is_known_by_its_words_or_its_mark(text: str) -> None:
    assert has_asked([(text, text)])


@pytest.mark.parametrize(
    "asks",
    [
        "Is Dr. Smith free on Monday?",
        "Shall I book 9 p.m. on Monday?",
        "Is it 5 St. James Street?",
        "Do you live on Main St. near the park?",
        "Is J. Smith the name?",
    ],
)
def test_an_abbreviation_ends_no_question(asks: str) -> None:
    stop = next(at for at, word in enumerate(asks.split(), 1) if word.endswith("."))
    assert has_asked([first(stop, asks)])


@pytest.mark.parametrize(
    "tells", ["We close at 9 p.m. Our door is open.", "We are in Main St. There is a bus.", "We close at 9 p.m."]
)
def test_a_sentence_may_end_with_an_abbreviation(tells: str) -> None:
    stop = next(at for at, word in enumerate(tells.split(), 1) if word.endswith("."))
    assert not has_asked([first(stop, tells)])
    assert not has_asked([first(stop, f"{tells} {ASKS}")])
    assert has_asked([first(len(tells.split()) + 1, f"{tells} {ASKS}")])


@given(st.integers(1, 11), st.integers(0, 11))
def test_what_was_asked_stays_asked_while_more_is_heard(heard: int, more: int) -> None:
    text = f"One. {ASKS} Two three."
    assert has_asked([first(heard + more, text)]) >= has_asked([first(heard, text)])
