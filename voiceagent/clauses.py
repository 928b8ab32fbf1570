"""Where a reply can be cut so that speaking starts before writing has ended. Pure.

Committed text comes in pieces; the same clauses come out however it is cut. No clause loses or gains a character, spaces between
clauses aside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class ClauseSettings:
    """How long a clause has to be before a weak boundary may end it.

    Raises:
        ValueError: If a count is not positive.
    """

    first_comma_words: int = 3
    """The first clause may end at a comma after this many words."""
    comma_words: int = 12
    """Later ones may end at a comma, semicolon, colon or dash after this many words."""
    max_words: int = 40
    """Text without any boundary is cut after this many words: a synthesizer would keep everyone waiting."""

    def __post_init__(self) -> None:
        for name in ("first_comma_words", "comma_words", "max_words"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")


class _Boundary(Enum):
    NONE = 0
    COMMA = 1
    BREAK = 2
    """Semicolon, colon, dash."""
    SENTENCE = 3


# A word runs to white space or to the end of a dash, which may join two words; `--` only counts where it ends a word.
_WORD = re.compile(r"\s*(?:[^\s—]*—+|[^\s—]+)")
_LINE_BREAK = re.compile(r"\s*\n\s*")
_CLOSERS = "\"'”’)]}*_"
_OPENERS = "\"'“‘([{*_"
_ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|jr|sr|st|ave|rd|blvd|hwy|apt|dept|inc|ltd|est|etc|vs|approx|oz|fl|lb|lbs|tsp|tbsp|pt|qt|gal|min|mins|hr|hrs"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]?\.?")


class ClauseFinder:
    """Collects committed text and hands out the clauses that are complete."""

    def __init__(self, settings: ClauseSettings | None = None) -> None:
        self._settings = settings or ClauseSettings()
        self._start_over()

    def _start_over(self) -> None:
        self._clause = ""
        """The words of the clause being collected."""
        self._words = 0
        self._tail = ""
        """Text after them that may still grow into another word."""
        self._is_first = True

    def push(self, text: str, *, ends_word: bool = False) -> list[str]:
        """Take the next piece; return the clauses that are now known to be complete.

        Args:
            ends_word: The piece ends at a word boundary: what follows will begin with white space. Saves waiting for it.
        """
        return self._take(self._tail + text, is_end=ends_word)

    def flush(self) -> list[str]:
        """The text is complete: what is left, cut like everything before. The next `push` begins a new reply."""
        clauses = self._take(self._tail, is_end=True)
        clauses += self._finish(self._clause + self._tail)
        self._start_over()
        return clauses

    def _take(self, text: str, *, is_end: bool) -> list[str]:
        clauses: list[str] = []
        position = 0
        while match := _WORD.match(text, position):
            word = match.group()
            # A word is complete when something follows it. A dash at the very end may be the first of two.
            if match.end() == len(text) and not is_end:
                break
            line_break = _LINE_BREAK.match(word)
            if line_break and self._words:
                clauses += self._finish(self._clause)
            position = match.end()
            self._clause += word
            self._words += any(character.isalnum() for character in word)
            if self._ends_clause(word):
                clauses += self._finish(self._clause)
        self._tail = text[position:]
        return clauses

    def _ends_clause(self, word: str) -> bool:
        has_letters = any(character.isalpha() for character in self._clause)
        if not has_letters:
            return False  # the number of a list item, a stray mark
        boundary = _boundary_after(word.strip())
        if boundary is _Boundary.SENTENCE or self._words >= self._settings.max_words:
            return True
        if self._is_first:
            is_long_enough = self._words >= self._settings.first_comma_words
            return boundary is _Boundary.BREAK or (boundary is _Boundary.COMMA and is_long_enough)
        return boundary is not _Boundary.NONE and self._words >= self._settings.comma_words

    def _finish(self, clause: str) -> list[str]:
        self._clause = ""
        self._words = 0
        if not (stripped := clause.strip()):
            return []
        self._is_first = False
        return [stripped]


def _boundary_after(word: str) -> _Boundary:
    """The strongest boundary that a complete word, with its punctuation, puts behind itself."""
    bare = word.rstrip(_CLOSERS)
    if bare.endswith(("—", "–", "--", ";", ":")):
        return _Boundary.BREAK
    if bare.endswith(","):
        return _Boundary.COMMA
    if bare.endswith(("?", "!")):
        return _Boundary.SENTENCE
    if not bare.endswith(".") or bare.endswith(("..", "…")) or is_abbreviation(word):
        return _Boundary.NONE
    return _Boundary.SENTENCE


def is_abbreviation(word: str) -> bool:
    """Whether the full stop of this word belongs to it, so that it need not end a sentence: "Dr.", "p.m.", "St."."""
    bare = word.rstrip(_CLOSERS)
    core = bare.removesuffix(".").lstrip(_OPENERS)
    if core == bare.lstrip(_OPENERS):
        return False
    # "a.m.", "U.S.", "J. Smith"; but "I." can only be the end of "so do I."
    return bool(_ABBREVIATION.fullmatch(core)) or (core != "I" and bool(_INITIALS.fullmatch(core + ".")))
