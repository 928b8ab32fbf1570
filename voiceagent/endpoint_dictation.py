"""Whether somebody is dictating: digits, a spelling, an address, an e-mail address. Pure; English.

Two signs: what was asked for, and what the words so far end with. Both look at the end only, so that a turn which began with a number
and went on is an ordinary one again.
"""

from __future__ import annotations

import re
from itertools import takewhile

from voiceagent.transcript import normalise

_DIGIT = frozenset("zero oh one two three four five six seven eight nine double triple hundred".split())
_HOUSE_NUMBER = _DIGIT | frozenset(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    " twenty thirty forty fifty sixty seventy eighty ninety".split()
)
_LETTER = frozenset("bcdefghjklmnopqrstuvwxyz")
_LETTER_WORDS = frozenset("ai")
"""Single letters as recognisers write them; "a" and "i" are words."""
_STREETS = frozenset("street avenue road lane drive boulevard court square highway apartment suite".split())
_SPOKEN_MARKS = frozenset("dot underscore hyphen dash slash".split())
_WRITTEN_MARKS = re.compile(r"\w@|\w\w\.[a-z]{2}")
"""The same where the recogniser writes the marks themselves: "tom@", "example.com"."""
_ONE_NUMBER = re.compile(r"\$\d[\d,]*(?:\.\d+)?|\b\d{1,2}:\d\d\b|(?<!\d[.-])\b\d{1,3}\.\d\d\b(?![.-]\d)")
"""Figures that are said as one: a price or a time of day. What other figures are joined to by a point or a hyphen, "415.555.12", is no price."""
_RUN_DIGITS = 3
"""So many digits in a row are dictated; "one two" is a correction and "sixteen ounce" an order."""
_RUN_LETTERS = 2
_HALVES_OF_THE_DAY = (("a", "m"), ("p", "m"))

_ASKS = re.compile(
    r"\b(?:phone|telephone|mobile|cell|contact|card|account|order|member(?:ship)?|reference|confirmation|booking|policy|flight|tracking"
    r"|serial|licen[cs]e|plate|id|your) (?:number|code|id)\b"
    r"|\bnumber (?:can|should|do|may|to)\b|\bdigits?\b|\bpin\b|\bpasscode\b"
    r"|\bspell(?:ing)?\b|\be-?mail\b|\baddress\b|\b(?:zip|post(?:al)?) ?code\b|\bpostcode\b|\bdate of birth\b"
)
_QUESTION = re.compile(r"\?\s*$|^\W*(?:please|can|could|may|what|what's|tell|give|say|spell|enter|read)\b")
_ENDS = ".!?"
_LOOKED_AT = 400
"""Characters at the end of what was asked: a client may have written an agent's words of any length."""


def is_dictation(words: str, asked: str = "") -> bool:
    """Whether more of the same kind may follow after a pause.

    Args:
        words: The caller's words so far, as a recogniser writes them.
        asked: What the agent said before them.
    """
    return asks_for_dictation(asked) or ends_in_dictation(words)


def asks_for_dictation(asked: str) -> bool:
    """Whether the last sentence asks for something that is dictated."""
    last = last_sentence(asked).lower()
    return bool(_QUESTION.search(last) and _ASKS.search(last))


def last_sentence(text: str) -> str:
    """The last sentence with its marks, of the last 400 characters."""
    tail = text[-_LOOKED_AT:].strip()
    words = tail.rstrip(_ENDS)
    return tail[max(words.rfind(mark) for mark in _ENDS) + 1 :].strip()


def ends_in_dictation(words: str) -> bool:
    """Whether the words end in digits, letters, an address, or the marks of an e-mail address."""
    said = normalise(_ONE_NUMBER.sub(" number ", words)).split()
    if tuple(said[-2:]) in _HALVES_OF_THE_DAY:
        return False
    if _run(said, _DIGIT) >= _RUN_DIGITS or _is_spelling(said):
        return True
    newest = " ".join(words.rsplit(None, 2)[-2:]).lower()
    has_marks = any(word in _SPOKEN_MARKS for word in said[-3:]) or _WRITTEN_MARKS.search(newest)
    if has_marks and ("at" in said[-8:] or "@" in newest):
        return True
    # "twelve mill street": a house number, a name and what kind of street it is; the town may follow.
    return bool(said) and said[-1] in _STREETS and any(word in _HOUSE_NUMBER or word.isdigit() for word in said[-6:-1])


def _is_spelling(said: list[str]) -> bool:
    """Whether single letters are at the end; "a" and "i" count as what they stand among."""
    letters = list(takewhile(lambda word: word in _LETTER or word in _LETTER_WORDS, reversed(said)))
    return sum(letter in _LETTER for letter in letters) >= _RUN_LETTERS


def _run(said: list[str], kind: frozenset[str]) -> int:
    """How many words at the end are of that kind; figures count as digits, each of them."""
    count = 0
    for word in reversed(said):
        if word in kind:
            count += 1
        elif kind is _DIGIT and word.isdigit():
            count += len(word)
        else:
            break
    return count
