"""Whole numbers as English words, as a recogniser writes them: no hyphens, no commas, and "and" before the last two figures."""

from __future__ import annotations

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
LARGEST = 999_999_999


def cardinal(number: int) -> str:
    """ "one thousand two hundred and five" for 1205.

    Raises:
        ValueError: If the number is negative or above `LARGEST`.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"number is {number}, expected 0 to {LARGEST}")
    if number < 100:
        return _below_hundred(number)
    words = []
    for size, name in ((1_000_000, "million"), (1_000, "thousand")):
        count, number = divmod(number, size)
        if count:
            words.append(f"{_below_thousand(count)} {name}")
    if number >= 100 or not words:
        words.append(_below_thousand(number))
    elif number:
        words.append(f"and {_below_hundred(number)}")
    return " ".join(words)


def ordinal(number: int) -> str:
    """ "twenty first" for 21.

    Raises:
        ValueError: See `cardinal`.
    """
    before, _, last = cardinal(number).rpartition(" ")
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{before} {last}".strip()


def year(number: int) -> str:
    """ "nineteen oh five" for 1905, "twenty twenty six" for 2026; the cardinal where nobody pairs the figures, as in 2005.

    Raises:
        ValueError: See `cardinal`.
    """
    century, rest = divmod(number, 100)
    if not 10 <= century <= 99 or (century % 10 == 0 and rest < 10):
        return cardinal(number)
    if not rest:
        return f"{_below_hundred(century)} hundred"
    return f"{_below_hundred(century)} {'oh ' if rest < 10 else ''}{_below_hundred(rest)}"


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    return f"{_SMALL[hundreds]} hundred" + (f" and {_below_hundred(rest)}" if rest else "")


def _below_hundred(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_SMALL[ones]}" if ones else "")
