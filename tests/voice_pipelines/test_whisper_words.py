"""What faster-whisper calls words, joined to words."""

from __future__ import annotations

import pytest

from voice_pipelines.adapters.whisper_words import whole_words, without_last_comma
from voiceagent.backends import Word


def said(*pieces: str) -> list[Word]:
    return [Word(piece, 0.5 * i, 0.5 * i + 0.5, 0.9 - 0.1 * i) for i, piece in enumerate(pieces)]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((" a", " 20", "-ounce", " single", "-shot", " latte."), ["a", "20-ounce", "single-shot", "latte."]),
        ((" $5", ".50", " please"), ["$5.50", "please"]),
        (("tea", " please"), ["tea", "please"]),
        ((" ", "tea", " ", "please", " "), ["tea", "please"]),
        ((" tea ", "please"), ["tea", "please"]),
        ((" -", "ounce"), ["-ounce"]),
        ((), []),
        ((" ",), []),
    ],
)
def test_a_piece_without_a_blank_before_it_belongs_to_the_word_before(
    pieces: tuple[str, ...], words: list[str]
) -> None:
    assert [word.text for word in whole_words(said(*pieces))] == words
    assert " ".join(words) == " ".join("".join(pieces).split()), "the words say what the text says"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((" medium", "-", " roast", " espresso"), "medium-roast espresso"),
        ((" medium-", " roast"), "medium-roast"),
        ((" twenty", "-", " five", "-", " ounce"), "twenty-five-ounce"),
        ((" medium", "-"), "medium-"),
        ((" I", "-", " I", " want"), "I- I want"),
        ((" a", " str", "-", " strong", " tea"), "a str- strong tea"),
        ((" tea", " -", " please"), "tea - please"),
        ((" tea", "--", " please"), "tea-- please"),
        ((" tea", "-", ' "please"'), 'tea- "please"'),
    ],
)
def test_a_blank_behind_a_hyphen_joins_two_words_unless_one_was_begun_again(
    pieces: tuple[str, ...], words: str
) -> None:
    assert " ".join(word.text for word in whole_words(said(*pieces))) == words


def test_a_joined_word_lasts_as_long_as_its_pieces_and_is_as_sure_as_the_least_of_them() -> None:
    assert whole_words(said(" 20", "-ounce", " latte"))[0] == Word("20-ounce", 0.0, 1.0, 0.8)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["4,", "8,", "6,"], "4, 8, 6"),
        (["a", "room,,"], "a room"),
        (["tea", ","], "tea"),
        (["tea", "please."], "tea please."),
        ([","], ""),
        ([], ""),
    ],
)
def test_only_the_comma_behind_the_last_word_goes(words: list[str], kept: str) -> None:
    assert " ".join(word.text for word in without_last_comma(said(*words))) == kept
