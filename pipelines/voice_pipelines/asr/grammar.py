"""Phrases with slots: what an agent's callers say, written by hand, and the n-grams to expect from it.

    can i (get|have) [a] {size} {drink}      (a|b) one of, [a] perhaps, {slot} one phrase of a slot
    /3/ yes [please]                         /n/ in front of a phrase or an alternative: n times as likely as the others

A slot's phrases may use other slots but not, however indirectly, their own. Alternatives are equally likely unless weighted, optional
parts are there half of the time. The n-gram counts are exact expectations over all sentences, not samples: two halves of a sequence are
chosen independently, so the words on both sides of a joint need only the last words of the left and the first words of the right.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from voice_pipelines.asr.ngrams import END, ORDER, START, Context, Counts
from voice_pipelines.asr.text import spoken_words

_EDGE = ORDER - 1
"""How many words on each side of a joint can be in one n-gram with the other side."""
OPTIONAL_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class Words:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    name: str


@dataclass(frozen=True, slots=True)
class Series:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options, each with its probability; they sum to one."""

    options: tuple[tuple[float, Expression], ...]


Expression: TypeAlias = Words | Slot | Series | Choice


class GrammarError(ValueError):
    """A phrase cannot be read: where and why."""


_TOKEN = re.compile(
    r"\s*(?:/(?P<weight>[\d.]+)/|\{(?P<slot>[^{}]*)\}|(?P<sign>[()\[\]|])|(?P<words>[^/{}()\[\]|]+)|(?P<bad>\S))"
)


def parse(phrase: str) -> Expression:
    """Read one phrase.

    Raises:
        GrammarError: If brackets do not match, or a weight or slot is malformed.
    """
    return _Parser(phrase).whole()


def choice_of(phrases: Sequence[str]) -> Choice:
    """One of several phrases, each perhaps with a weight in front.

    Raises:
        GrammarError: If there are none or one cannot be read.
    """
    if not phrases:
        raise GrammarError("expected at least one phrase")
    weighted = [_Parser(phrase).weighted() for phrase in phrases]
    return _normalised(weighted)


def _normalised(weighted: Sequence[tuple[float, Expression]]) -> Choice:
    total = sum(weight for weight, _ in weighted)
    return Choice(tuple((weight / total, expression) for weight, expression in weighted))


class _Parser:
    def __init__(self, phrase: str) -> None:
        self._phrase = phrase
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while phrase[position:].strip():
            match = _TOKEN.match(phrase, position)
            kind = match.lastgroup if match else "bad"
            if match is None or kind is None or kind == "bad":
                raise self._error(f"unexpected {phrase[position:].strip()[0]!r}")
            self._tokens.append((kind, match[kind]))
            position = match.end()
        self._at = 0

    def _error(self, message: str) -> GrammarError:
        return GrammarError(f"{self._phrase!r}: {message}")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def whole(self) -> Expression:
        expression = self._alternatives()
        if self._peek()[0] != "end":
            raise self._error(f"unexpected {self._peek()[1]!r}")
        return expression

    def weighted(self) -> tuple[float, Expression]:
        return self._weight(), self.whole()

    def _weight(self) -> float:
        if self._peek()[0] != "weight":
            return 1.0
        try:
            weight = float(self._peek()[1])
        except ValueError:
            weight = 0.0
        if not weight > 0:
            raise self._error(f"/{self._peek()[1]}/ is not a positive weight")
        self._at += 1
        return weight

    def _alternatives(self) -> Expression:
        options = [(self._weight(), self._sequence())]
        while self._peek() == ("sign", "|"):
            self._at += 1
            options.append((self._weight(), self._sequence()))
        return options[0][1] if len(options) == 1 else _normalised(options)

    def _sequence(self) -> Expression:
        parts: list[Expression] = []
        while True:
            kind, text = self._peek()
            if kind == "words":
                self._at += 1
                parts.append(Words(tuple(spoken_words(text))))
            elif kind == "slot":
                self._at += 1
                if not text.strip():
                    raise self._error("a slot needs a name: {name}")
                parts.append(Slot(text.strip()))
            elif kind == "sign" and text in "([":
                self._at += 1
                inner = self._alternatives()
                if self._peek() != ("sign", ")" if text == "(" else "]"):
                    raise self._error(f"{text!r} is not closed")
                self._at += 1
                parts.append(
                    inner
                    if text == "("
                    else Choice(((OPTIONAL_PROBABILITY, inner), (1 - OPTIONAL_PROBABILITY, Words(()))))
                )
            elif kind == "weight":
                raise self._error(f"/{text}/ stands in front of a phrase or an alternative only")
            else:
                return parts[0] if len(parts) == 1 else Series(tuple(parts))


@dataclass(slots=True)
class _Expected:
    """What one expression says: the distributions of its edges, the expected counts inside it, and how often it uses each slot.

    Counts inside slots are left to the slots, each of which is worked out once. Texts shorter than _EDGE words are kept whole in `short`, because their first and last words overlap; of longer ones the first
    and last _EDGE words are enough, and independent of each other as far as joints are concerned.
    """

    short: dict[Context, float] = field(default_factory=lambda: defaultdict(float))
    heads: dict[Context, float] = field(default_factory=lambda: defaultdict(float))
    tails: dict[Context, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[Context, float] = field(default_factory=lambda: defaultdict(float))
    uses: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @staticmethod
    def of_words(words: Context) -> _Expected:
        expected = _Expected()
        if len(words) < _EDGE:
            expected.short[words] = 1.0
        else:
            expected.heads[words[:_EDGE]] = expected.tails[words[-_EDGE:]] = 1.0
        for ngram in _ngrams(words):
            expected.counts[ngram] += 1.0
        return expected

    def mix(self, weight: float, other: _Expected) -> None:
        """Add another expression, said with probability `weight`."""
        for mine, theirs in (
            (self.short, other.short),
            (self.heads, other.heads),
            (self.tails, other.tails),
            (self.counts, other.counts),
        ):
            for key, value in theirs.items():
                mine[key] += weight * value
        for name, times in other.uses.items():
            self.uses[name] += weight * times

    def as_slot(self, name: str) -> _Expected:
        """The same texts, seen from outside the slot."""
        return _Expected(self.short, self.heads, self.tails, uses={name: 1.0})

    def then(self, other: _Expected) -> _Expected:
        """This expression followed by another, chosen independently."""
        result = _Expected()
        for counts in (self.counts, other.counts):
            for ngram, value in counts.items():
                result.counts[ngram] += value
        for uses in (self.uses, other.uses):
            for name, times in uses.items():
                result.uses[name] += times
        for head, p in self.heads.items():
            result.heads[head] += p
        for tail, p in other.tails.items():
            result.tails[tail] += p
        for left, is_long_left, p in self._endings():
            for right, is_long_right, q in other._beginnings():
                joined = left + right
                for ngram in _ngrams(joined, across=len(left)):
                    result.counts[ngram] += p * q
                if not is_long_left and not is_long_right and len(joined) < _EDGE:
                    result.short[joined] += p * q
                    continue
                if not is_long_left:
                    result.heads[joined[:_EDGE]] += p * q
                if not is_long_right:
                    result.tails[joined[-_EDGE:]] += p * q
        return result

    def _endings(self) -> list[tuple[Context, bool, float]]:
        return [(words, False, p) for words, p in self.short.items()] + [
            (words, True, p) for words, p in self.tails.items()
        ]

    def _beginnings(self) -> list[tuple[Context, bool, float]]:
        return [(words, False, p) for words, p in self.short.items()] + [
            (words, True, p) for words, p in self.heads.items()
        ]


def _ngrams(words: Context, across: int | None = None) -> list[Context]:
    """All n-grams of a text; with `across`, only those with words on both sides of that position."""
    spans = ((i, i + n) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))
    return [words[i:j] for i, j in spans if across is None or i < across < j]


class Grammar:
    """Phrases and the slots they use.

    Raises:
        GrammarError: If a phrase cannot be read, names a slot that does not exist, or a slot contains itself.
    """

    def __init__(self, phrases: Sequence[str], slots: Mapping[str, Sequence[str]]) -> None:
        self.root = choice_of(phrases)
        self._slots = {name: choice_of(options) for name, options in slots.items()}
        self._visit(self.root, ())
        for name, expression in self._slots.items():
            self._visit(expression, (name,))

    def _visit(self, expression: Expression, inside: tuple[str, ...]) -> None:
        """Check that every slot exists and none contains itself."""
        match expression:
            case Words():
                pass
            case Series(parts):
                for part in parts:
                    self._visit(part, inside)
            case Choice(options):
                for _, option in options:
                    self._visit(option, inside)
            case Slot(name):
                if name in inside:
                    raise GrammarError(f"{{{name}}} contains itself: {' > '.join((*inside, name))}")
                if name not in self._slots:
                    raise GrammarError(
                        f"{{{name}}} is not a slot; there are: {', '.join(sorted(self._slots)) or 'none'}"
                    )
                self._visit(self._slots[name], (*inside, name))
            case _:
                assert_never(expression)

    def words(self) -> frozenset[str]:
        """Every word of every phrase and slot."""
        found: set[str] = set()

        def collect(expression: Expression) -> None:
            match expression:
                case Words(words):
                    found.update(words)
                case Series(parts):
                    for part in parts:
                        collect(part)
                case Choice(options):
                    for _, option in options:
                        collect(option)
                case Slot():
                    pass
                case _:
                    assert_never(expression)

        for expression in (self.root, *self._slots.values()):
            collect(expression)
        return frozenset(found)

    def sample(self, rng: random.Random) -> list[str]:
        """The words of one sentence."""

        def say(expression: Expression) -> list[str]:
            match expression:
                case Words(words):
                    return list(words)
                case Series(parts):
                    return [word for part in parts for word in say(part)]
                case Choice(options):
                    (chosen,) = rng.choices([option for _, option in options], [weight for weight, _ in options])
                    return say(chosen)
                case Slot(name):
                    return say(self._slots[name])
                case _:
                    assert_never(expression)

        return say(self.root)

    def expected_counts(self, sentences: float, least: float = 0.0) -> Counts:
        """Expected n-gram counts in that many sentences, ends included; sequences expected less than `least` times are left out."""
        known: dict[str, _Expected] = {}

        def expect(expression: Expression) -> _Expected:
            match expression:
                case Words(words):
                    return _Expected.of_words(words)
                case Series(parts):
                    result = _Expected.of_words(())
                    for part in parts:
                        result = result.then(expect(part))
                    return result
                case Choice(options):
                    result = _Expected()
                    for weight, option in options:
                        result.mix(weight, expect(option))
                    return result
                case Slot(name):
                    if name not in known:
                        known[name] = expect(self._slots[name])
                    return known[name].as_slot(name)
                case _:
                    assert_never(expression)

        result = _Expected()
        ends = (_Expected.of_words((START,)), _Expected.of_words((END,)))
        for weight, phrase in self.root.options:
            result.mix(weight, ends[0].then(expect(phrase)).then(ends[1]))
        # `known` was filled innermost slots first, so a slot's own uses are complete when its turn comes.
        for name, inside in reversed(known.items()):
            result.mix(result.uses[name], _Expected(counts=inside.counts, uses=inside.uses))
        counts = Counts()
        for ngram, value in result.counts.items():
            if (expected := value * sentences) > max(least, 1e-9):
                counts.add(ngram, expected)
        return counts
