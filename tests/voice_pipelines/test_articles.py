"""The article before a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.adapters.articles import settled, with_articles


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("A iced mocha with sugar.", "An iced mocha with sugar."),
        (
            "Sure. A eight ounce tea, a iced tea and an large latte.",
            "Sure. An eight ounce tea, an iced tea and a large latte.",
        ),
        ("That's an one-off and an euro.", "That's a one-off and a euro."),
        ("A latte and an espresso", "A latte and an espresso"),
        (
            "an small tea, an three, an chai, an straw, an quiche, an twelve",
            "a small tea, a three, a chai, a straw, a quiche, a twelve",
        ),
    ],
)
def test_it_is_what_the_word_behind_it_asks_for(written: str, right: str) -> None:
    assert with_articles(written) == right


@pytest.mark.parametrize(
    "text",
    [
        "Vitamin A is good.",
        "Take plan A or B.",
        "Is it a or b?",
        "a SUV",
        "an MRI",
        "a 8 oz cup",
        "banana iced",
        "I want A",
        "",
    ],
)
def test_letters_abbreviations_and_figures_are_left_alone(text: str) -> None:
    assert with_articles(text) == text


@given(st.lists(st.sampled_from(["A", "a", "an", "iced", "one", "large", "tea,", "and", "Sure.", "hour"]), max_size=12))
def test_what_was_said_is_never_taken_back_however_it_comes(words: list[str]) -> None:
    whole = " ".join(words)
    said = ""
    for end in range(len(whole) + 1):
        now = with_articles(settled(whole[:end]))
        assert now.startswith(said)
        said = now
    assert with_articles(whole).startswith(said)
    assert with_articles(with_articles(whole)) == with_articles(whole)


def test_only_an_article_and_its_word_wait() -> None:
    assert settled("I've got a") == "I've got "
    assert settled("I've got a ic") == "I've got "
    assert settled("I've got a iced ") == "I've got a iced "
    assert settled("I've got tea") == "I've got tea"
    assert settled("I've got a latte.") == "I've got a latte."
