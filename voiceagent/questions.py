"""Whether somebody who heard this much of what the agent says has been asked something. Pure.

It errs to the side of having been asked: a sentence counts as a question from its first word, since people answer before it has ended, and one whose
end is not written yet may become one.
"""

from __future__ import annotations

from collections.abc import Iterable

from voiceagent.clauses import is_abbreviation
from voiceagent.transcript import normalise

ASKING_WORDS = frozenset(
    "what which who whom whose when where why how please tell say spell give choose repeat know need".split()
)
"""English words that ask without a question mark: "what size", "tell me your name", "I need your number"."""

_QUESTION_MARKS = "?？؟¿"
_SENTENCE_ENDS = tuple(".!?…。！？؟")
_CLOSERS = "\"'”’)]}*_"
_BEFORE_NAMES = frozenset("mr mrs ms dr prof st mt".split())
"""Abbreviations that a name follows, so that what begins with a capital behind them is no sentence."""


def has_asked(told: Iterable[tuple[str, str]]) -> bool:
    """Whether anything of `told` asks, or nothing of it was heard: then nobody knows what the caller speaks to.

    Args:
        told: Of each text the words that were heard of it, and all of it that is known. What was heard is its beginning, word by word.
    """
    texts = [(heard.split(), text.split()) for heard, text in told]
    return not any(heard for heard, _ in texts) or any(_asks(heard, text) for heard, text in texts)


def _asks(heard: list[str], text: list[str]) -> bool:
    begun = heard
    if heard and not _ends_sentence(heard[-1], text[len(heard) : len(heard) + 1]):
        rest = text[len(heard) :]
        end = next((at for at, word in enumerate(rest) if _ends_sentence(word, rest[at + 1 : at + 2])), None)
        if end is None:
            return True
        begun = [*heard, *rest[: end + 1]]
    if any(mark in word for word in begun for mark in _QUESTION_MARKS):
        return True
    return any(word.partition("'")[0] in ASKING_WORDS for word in normalise(" ".join(heard)).split())


def _ends_sentence(word: str, following: list[str]) -> bool:
    """Whether a sentence ends with `word`; `following` is the next one, if there is one."""
    if not word.rstrip(_CLOSERS).endswith(_SENTENCE_ENDS):
        return False
    if not following or not is_abbreviation(word):
        return True  # All that is known ends with it: replies come by whole clauses, which end behind no "Dr.".
    known = normalise(word)
    is_before_name = known in _BEFORE_NAMES or len(known) == 1  # "J. Smith"
    return following[0].lstrip("\"'“‘([{*_¿¡")[:1].isupper() and not is_before_name
