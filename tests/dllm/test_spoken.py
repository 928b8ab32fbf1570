"""From what is spoken back to how it was written."""

from __future__ import annotations

import pytest

from dllm.spoken import spoken_form, typed_form, written_form

TEXT = "It's for Anna Lee (Müller), on Friday at 7:30 p.m.; the number is 555-1234. No, on friday!"


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("anna lee", "Anna Lee"),
        ("lee m ller", "Lee (Müller"),
        ("m ller", "Müller"),
        ("seven thirty p m", "7:30 p.m."),
        ("five five five one two three four", "555-1234"),
        ("friday", "friday"),
        ("on friday at seven thirty p m", "on Friday at 7:30 p.m."),
        ("it's for", "It's for"),
    ],
)
def test_words_are_found_as_they_were_written_where_they_stand_last(spoken: str, written: str) -> None:
    assert written_form(spoken, TEXT) == written


@pytest.mark.parametrize("spoken", ["", "lee anna", "five five five", "saturday"])
def test_what_no_whole_words_say_is_not_found(spoken: str) -> None:
    assert written_form(spoken, TEXT) is None


def test_marks_alone_are_no_form() -> None:
    assert written_form("a", '"a."') == "a" and written_form("percent", "5 %") == "%"
    assert spoken_form("%") == "percent"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("+1 (555) 123-4567", "one five five five one two three four five six seven"),
        ("555-1234.", "five five five one two three four"),
        ("rooms 12-14", "rooms twelve fourteen"),
        ("at 7:30 for 12 50", "at seven thirty for twelve fifty"),
        ("$1,200 2026", "one thousand two hundred dollars twenty twenty six"),
    ],
)
def test_a_telephone_number_that_was_typed_is_dictated(text: str, spoken: str) -> None:
    assert typed_form(text) == spoken
    if text[0] in "+5":
        assert written_form(spoken, f"it is {text} thanks") == text.strip(".")


def test_a_dash_between_words_is_not_spoken() -> None:
    assert written_form("anna lee", "for Anna - Lee") == "Anna - Lee"
