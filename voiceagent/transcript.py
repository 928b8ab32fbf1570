"""What was heard so far: normal form, agreement between successive hypotheses, and word errors.

A streaming recogniser revises its hypothesis as audio arrives. Words that several hypotheses in a row agree on become stable and never
change again; the rest is unstable. Source: local agreement (Liu et al. 2020, arXiv:2005.11185).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from voiceagent.backends import Partial

_APOSTROPHES = str.maketrans("\u2019\u02bc\u2018", "'''")
_NOT_WORD = re.compile(r"[^\w']+|_|(?<!\w)'+|'+(?!\w)")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation but the apostrophe inside a word ("I'd LIKE a flat-white!" -> "i'd like a flat white")."""
    return " ".join(_NOT_WORD.sub(" ", text.casefold().translate(_APOSTROPHES)).split())


@dataclass(frozen=True, slots=True)
class LocalAgreement:
    """Which words of a growing hypothesis are settled. A value: `hear` returns the next one.

    A word is settled when the last `agreeing` hypotheses all have it in its place and at least `holdback` words follow it; words are
    compared in normal form and shown as the newest hypothesis spells them. Settled words stay as they are even if a later hypothesis
    disagrees; its remaining words then follow the prefix that fits the settled ones best.
    """

    agreeing: int = 2
    holdback: int = 1
    stable: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    _recent: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """The last hypotheses after the settled words, oldest first, at most `agreeing`."""

    def __post_init__(self) -> None:
        if self.agreeing < 1 or self.holdback < 0:
            raise ValueError(f"agreeing = {self.agreeing}, holdback = {self.holdback}: expected at least 1 and 0")

    def hear(self, words: Sequence[str]) -> LocalAgreement:
        """Take in the next hypothesis for the whole utterance."""
        rest = tuple(words[_fitting_prefix(self.stable, words) :])
        recent = (*self._recent, rest)[-self.agreeing :]
        agreed = 0
        if len(recent) == self.agreeing:
            columns = zip(*([normalise(word) for word in hypothesis] for hypothesis in recent), strict=False)
            agreed = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
            agreed = max(min(agreed, len(rest) - self.holdback), 0)
        return replace(
            self,
            stable=self.stable + rest[:agreed],
            unstable=rest[agreed:],
            _recent=tuple(hypothesis[agreed:] for hypothesis in recent),
        )

    @property
    def partial(self) -> Partial:
        return Partial(" ".join(self.stable), " ".join(self.unstable))


def _fitting_prefix(settled: Sequence[str], words: Sequence[str]) -> int:
    """How many leading `words` say what `settled` says: the prefix with the fewest word errors; ties go to the nearest length."""
    if not settled:
        return 0
    a, b = [normalise(word) for word in settled], [normalise(word) for word in words]
    if b[: len(a)] == a:
        return len(a)
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, start=1):
        row = _next_row(row, i, word, b)
    return min(range(len(row)), key=lambda length: (row[length], abs(length - len(a))))


def _next_row(row: Sequence[int], i: int, word: str, others: Sequence[str]) -> list[int]:
    """One row of the edit distance table, all errors costing one."""
    following = [i]
    for j, other in enumerate(others, start=1):
        following.append(min(row[j - 1] + (word != other), row[j] + 1, following[j - 1] + 1))
    return following


@dataclass(frozen=True, slots=True)
class WordErrors:
    """The fewest edits that turn a reference into a hypothesis. Sums with `+` over many utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_words: int = 0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_words + other.reference_words,
        )

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Word error rate; 0 when nothing was said and nothing heard, infinite when words were made up from nothing."""
        if self.reference_words == 0:
            return 0.0 if self.total == 0 else float("inf")
        return self.total / self.reference_words


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """Align two word sequences. Among alignments with equally few errors the one with the most substitutions is counted."""
    # Cells are (errors, -substitutions, deletions, insertions), so that `min` alone settles ties.
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, start=1):
        following = [(i, 0, i, 0)]
        for j, other in enumerate(hypothesis, start=1):
            errors, subs, dels, ins = row[j - 1]
            kept = (errors, subs, dels, ins) if word == other else (errors + 1, subs - 1, dels, ins)
            errors, subs, dels, ins = row[j]
            dropped = (errors + 1, subs, dels + 1, ins)
            errors, subs, dels, ins = following[j - 1]
            added = (errors + 1, subs, dels, ins + 1)
            following.append(min(kept, dropped, added))
        row = following
    _, subs, dels, ins = row[-1]
    return WordErrors(-subs, dels, ins, len(reference))
