"""Where a reply is cut for speaking."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.clauses import ClauseFinder, ClauseSettings


def clauses(text: str, *, cut: int | None = None) -> list[str]:
    finder, found = ClauseFinder(), []
    for start in range(0, len(text), cut or len(text) or 1):
        found += finder.push(text[start : start + (cut or len(text))])
    return found + finder.flush()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure. One latte.", ["Sure.", "One latte."]),
        ("Is that all? Great! Bye.", ["Is that all?", "Great!", "Bye."]),
        ("Sure; one latte: coming up.", ["Sure;", "one latte: coming up."]),
        ("Sure — one latte.", ["Sure —", "one latte."]),
        ("well—no", ["well—", "no"]),
        ("Sure, one latte with oat milk, right away, sir.", ["Sure, one latte with oat milk,", "right away, sir."]),
        ("Hi, sure.", ["Hi, sure."]),
        ('He said "Hi." Then he left.', ['He said "Hi."', "Then he left."]),
        ("No. I don't. So do I. Yes!", ["No.", "I don't.", "So do I.", "Yes!"]),
        ("- Latte\n- Mocha\n\nThat is all", ["- Latte", "- Mocha", "That is all"]),
        ("1. Latte 2. Mocha", ["1. Latte 2.", "Mocha"]),
        ("", []),
        ("  \n ", []),
        ("...", ["..."]),
    ],
)
def test_text_is_cut_at_its_boundaries(text: str, expected: list[str]) -> None:
    assert clauses(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "That is $4.50 with tax",
        "We open at 7:30 a.m. today and close at 9 p.m. tonight",
        "Ask Mr. Smith of 5 Main St. in town",
        "J. R. Smith of the U.S. team",
        "It costs 1,000 dollars",
        "Well... let me see",
        "A 12 oz. latte and a 3.5 oz. tin",
        "Version 2.1.3 at example.com",
    ],
)
def test_figures_abbreviations_and_ellipses_do_not_end_a_clause(text: str) -> None:
    assert clauses(text) == [text]


def test_later_clauses_end_at_commas_only_when_they_are_long() -> None:
    short = "Sure. A latte, a mocha, a tea."
    assert clauses(short) == ["Sure.", "A latte, a mocha, a tea."]
    long = "Sure. " + "we have latte and mocha and tea and juice and water and cake, all fresh today."
    assert clauses(long)[1].endswith("cake,")


def test_text_without_boundaries_is_cut_after_the_longest_clause() -> None:
    found = clauses("word " * 100)
    assert [len(clause.split()) for clause in found] == [40, 40, 20]


def test_a_clause_waits_until_its_end_is_certain() -> None:
    finder = ClauseFinder()
    assert finder.push("That is $4.") == []
    assert finder.push("50 then. ") == ["That is $4.50 then."]


def test_a_known_word_boundary_saves_the_wait() -> None:
    finder = ClauseFinder()
    assert finder.push("Sure.", ends_word=True) == ["Sure."]
    assert finder.push(" One latte,", ends_word=True) == []
    assert finder.flush() == ["One latte,"]


def test_flush_begins_a_new_reply() -> None:
    finder = ClauseFinder()
    assert finder.push("Sure, one latte, yes") + finder.flush() == ["Sure, one latte,", "yes"]
    assert finder.push("Sure, one latte, yes") + finder.flush() == ["Sure, one latte,", "yes"]


@pytest.mark.parametrize("name", ["first_comma_words", "comma_words", "max_words"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 0"):
        ClauseSettings(**{name: 0})


PROSE = st.text(alphabet="ab I1.,;:?!—–-\"')\n$", max_size=120) | st.text(max_size=60)


@given(PROSE, st.integers(1, 9))
def test_the_same_clauses_come_out_however_the_text_is_cut(text: str, cut: int) -> None:
    assert clauses(text, cut=cut) == clauses(text)


@given(PROSE)
def test_pieces_that_end_at_word_boundaries_give_the_same_clauses(text: str) -> None:
    finder, found = ClauseFinder(), []
    for word in re.findall(r"\s*\S+", text):
        found += finder.push(word, ends_word=True)
    assert found + finder.flush() == clauses(text.rstrip())


@given(PROSE)
def test_nothing_is_lost_or_added(text: str) -> None:
    assert "".join("".join(clauses(text)).split()) == "".join(text.split())
