"""Text as a recogniser writes it: figures in words, no case, no punctuation."""

from __future__ import annotations

import re

from dllm.numerals import cardinal, ordinal, year

_MONEY = re.compile(r"\$\s?(\d[\d,]*)(?:\.(\d\d))?\b")
_CLOCK = re.compile(r"\b(\d{1,2})(?::(\d\d))?\s?([ap])\.?m\b\.?", re.IGNORECASE)
_CLOCK_24 = re.compile(r"\b(\d{1,2}):(\d\d)\b")
_ORDINAL = re.compile(r"\b(\d{1,4})(?:st|nd|rd|th)\b", re.IGNORECASE)
_DECIMAL = re.compile(r"\b(\d[\d,]*)(?:\.(\d+)\b)?")
"""With what is no decimal, so that a long run of figures is looked at once and not from each of them."""
_NUMBER = re.compile(r"\d[\d,]*\d|\d")
_NOT_SPOKEN = re.compile(r"[^a-z'\s]")
_LOOSE_APOSTROPHE = re.compile(r"(?<![a-z])'|'(?![a-z])")
_GROUPS = re.compile(r"(?<![\w.,$:])\+?\(?\d+\)?(?:[ -]\(?\d{2,}\)?)+(?![\w:])")
_LEAST_DICTATED = 7
_MOST_SILENT = 1
"""Dashes and their like that may stand between words."""
_SYMBOLS = {"%": " percent ", "&": " and ", "+": " plus ", "@": " at ", "=": " equals "}


def spoken_form(text: str) -> str:
    """Text as a recogniser would write it: lower case, no punctuation but apostrophes, figures as words.

    "$30" is "thirty dollars", "7 pm" is "seven p m". Letters outside a-z are dropped with their marks: the built-in recognisers
    write none.
    """
    text = text.replace("\u2019", "'")
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    text = _MONEY.sub(_spoken_money, text)
    text = _CLOCK.sub(_spoken_clock, text)
    text = _CLOCK_24.sub(_spoken_clock, text)
    text = _ORDINAL.sub(lambda found: f" {ordinal(int(found[1]))} ", text)
    text = _DECIMAL.sub(_spoken_decimal, text)
    text = _NUMBER.sub(lambda found: f" {_digits(found[0])} ", text)
    text = _NOT_SPOKEN.sub(" ", text.lower())
    return " ".join(_LOOSE_APOSTROPHE.sub(" ", text).split())


def typed_form(text: str) -> str:
    """The same of a text that was typed: a long number in groups, as telephones have, is dictated figure by figure."""
    return spoken_form(_GROUPS.sub(_dictated, text))


def _dictated(found: re.Match[str]) -> str:
    figures = re.findall(r"\d", found[0])
    return f" {' '.join(figures)} " if len(figures) >= _LEAST_DICTATED else found[0]


def written_form(spoken: str, text: str) -> str | None:
    """How a typed text writes what is spoken so, where it says it last; None where no words of it are spoken so.

    `written_form("anna lee", "It's for Anna Lee, please.")` is "Anna Lee". Marks around the words are left out.
    """
    words, wanted = text.split(), spoken.split()
    for first in range(len(words) - 1, -1, -1):
        begins = typed_form(words[first]).split()[:1] == wanted[:1]
        if not wanted or not (begins or any(letter.isdigit() for letter in words[first])):
            continue
        for last in range(first + 1, min(first + len(wanted) + _MOST_SILENT, len(words)) + 1):
            if typed_form(" ".join(words[first:last])).split() == wanted:
                return _without_marks(" ".join(words[first:last]))
    return None


def _without_marks(text: str) -> str:
    bare = text.strip("\"'(),;:!?\u201c\u201d\u2018\u2019\u2026")
    # The last full stop of "p.m." is not the sentence's.
    return bare if bare.split()[-1:] and bare.split()[-1].count(".") > 1 else bare.strip(".") or text


def _spoken_money(found: re.Match[str]) -> str:
    dollars, cents = _digits(found[1]), found[2]
    spoken = f" {dollars} dollar{'' if dollars == 'one' else 's'} "
    return spoken + (f"and {cardinal(int(cents))} cents " if cents and int(cents) else "")


def _spoken_decimal(found: re.Match[str]) -> str:
    if found[2] is None:
        return found[0]
    return f" {_digits(found[1])} point {' '.join(cardinal(int(digit)) for digit in found[2])} "


def _spoken_clock(found: re.Match[str]) -> str:
    hour, minute = cardinal(int(found[1])), found[2]
    if minute is None or minute == "00":
        spoken_minute = "" if found.lastindex == 3 or minute is None else "o'clock"
    else:
        spoken_minute = ("oh " if minute[0] == "0" else "") + cardinal(int(minute))
    half = f"{found[3].lower()} m" if found.re is _CLOCK else ""
    return f" {hour} {spoken_minute} {half} "


def _digits(figures: str) -> str:
    """A cardinal up to 9999; longer ones and those with a leading zero digit by digit, as people dictate them."""
    plain = figures.replace(",", "")
    if (len(plain) > 1 and plain[0] == "0") or len(plain) > (7 if "," in figures else 4):
        return " ".join(cardinal(int(digit)) for digit in plain)
    if len(plain) == 4 and "," not in figures and plain[0] in "12" and plain[1:3] != "00":
        return year(int(plain))
    return cardinal(int(plain))
