"""Numbers as words: what a well-known library writes, without needing it."""

from __future__ import annotations

import random

import pytest
from num2words import num2words

from dllm.numerals import LARGEST, cardinal, ordinal, year


def as_library(number: int, kind: str) -> str:
    return str(num2words(number, to=kind)).replace("-", " ").replace(",", "")


def numbers() -> list[int]:
    rng = random.Random(1)
    edges = [10**power * first + rest for power in range(2, 9) for first in (1, 3) for rest in (0, 1, 20, 99, 100, 101)]
    return [*range(1200), *edges, *(rng.randrange(LARGEST) for _ in range(200)), LARGEST]


def test_words_are_those_of_the_library() -> None:
    for number in numbers():
        assert cardinal(number) == as_library(number, "cardinal")
        assert ordinal(number) == as_library(number, "ordinal")


def test_years_are_read_in_pairs_where_people_do() -> None:
    for number in range(1000, 2200):
        assert year(number) == as_library(number, "year")
    assert year(1905) == "nineteen oh five" and year(2005) == "two thousand and five"


@pytest.mark.parametrize("number", [-1, LARGEST + 1])
def test_what_has_no_words_here_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        cardinal(number)
