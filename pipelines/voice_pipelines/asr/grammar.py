"""Phrases with slots: what an agent's callers say, written by hand, and the n-grams to expect from it.

    can i (get|have) [a] {size} {drink}      (a|b) one of, [a] perhaps, {slot} one phrase of a slot
    /3/ yes [please]                         /n/ in front of a phrase or an alternative: n times as likely as the others

A slot's phrases may use other slots but not, however indirectly, their own. Alternatives are equally likely unless weighted, optional
parts are there half of the time. The n-gram counts are exact expectations over all sentences, not samples: two halves of a sequence are
chosen independently, so the words on both sides of a joint need only the last words of the left and the first words of the right, and each
count goes into one table with how often its phrase is said: copied from part to whole, the café's took seven times as long.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
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


@dataclass(frozen=True)
class _Edges:
    """How the texts of an expression begin and end, each with its probability, as far as it can be in an n-gram with what stands beside them.

    Texts shorter than _EDGE words are kept whole in `short`, because their first and last words overlap; of longer ones the first and last
    _EDGE words are enough, and independent of each other as far as joints are concerned. Nothing here is changed once it is made.
    """

    short: Mapping[Context, float] = field(default_factory=dict)
    heads: Mapping[Context, float] = field(default_factory=dict)
    tails: Mapping[Context, float] = field(default_factory=dict)

    @staticmethod
    def of_words(words: Context) -> _Edges:
        if len(words) < _EDGE:
            return _Edges(short={words: 1.0})
        return _Edges(heads={words[:_EDGE]: 1.0}, tails={words[-_EDGE:]: 1.0})

    @staticmethod
    def mixed(weighted: Iterable[tuple[float, _Edges]]) -> _Edges:
        """Those of a choice."""
        short, heads, tails = _sums(), _sums(), _sums()
        for weight, edges in weighted:
            for mine, theirs in ((short, edges.short), (heads, edges.heads), (tails, edges.tails)):
                for words, p in theirs.items():
                    mine[words] += weight * p
        return _Edges(short, heads, tails)

    @cached_property
    def first(self) -> Mapping[int, Mapping[Context, float]]:
        """The first 1.._EDGE words of those texts that have so many."""
        return {count: self._cut(self.heads, slice(count), count) for count in range(1, _EDGE + 1)}

    @cached_property
    def last(self) -> Mapping[int, Mapping[Context, float]]:
        """The last 1.._EDGE words of those texts that have so many."""
        return {count: self._cut(self.tails, slice(-count, None), count) for count in range(1, _EDGE + 1)}

    def _cut(self, long: Mapping[Context, float], where: slice, count: int) -> Mapping[Context, float]:
        found = _sums()
        for words, p in chain(self.short.items(), long.items()):
            if len(words) >= count:
                found[words[where]] += p
        return found

    def across(self, other: _Edges) -> Iterator[tuple[Context, float]]:
        """N-grams with words on both sides of the joint to `other`, which follows and is chosen independently."""
        for before in range(1, _EDGE + 1):
            for after in range(1, ORDER + 1 - before):
                beginnings = other.first[after].items()
                for left, p in self.last[before].items():
                    for right, q in beginnings:
                        yield left + right, p * q

    def then(self, other: _Edges) -> _Edges:
        """Those of both, one behind the other."""
        short, heads, tails = _sums(), _sums(self.heads), _sums(other.tails)
        for left, p in self.short.items():
            missing = _EDGE - len(left)
            for right, q in other.first[missing].items():
                heads[left + right] += p * q
            for right, q in other.short.items():
                if len(right) < missing:
                    short[left + right] += p * q
        for right, q in other.short.items():
            for left, p in self.last[_EDGE - len(right)].items():
                tails[left + right] += p * q
        return _Edges(short, heads, tails)


@dataclass(slots=True)
class _Tally:
    """Expected counts, and how often each slot is used. What is inside the slots is left to their own tallies."""

    counts: dict[Context, float] = field(default_factory=lambda: _sums())
    uses: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: _Tally, times: float) -> None:
        for ngram, count in other.counts.items():
            self.counts[ngram] += times * count
        for name, uses in other.uses.items():
            self.uses[name] += times * uses


def _sums(begun: Mapping[Context, float] | None = None) -> defaultdict[Context, float]:
    return defaultdict(float, begun or {})


def _ngrams(words: Context) -> list[Context]:
    """All n-grams of a text."""
    return [words[i : i + n] for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)]


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
        known: dict[str, tuple[_Edges, _Tally]] = {}

        def tell(expression: Expression, times: float, tally: _Tally) -> _Edges:
            """Add what is inside an expression that is said so many times to the tally; its edges."""
            match expression:
                case Words(words):
                    for ngram in _ngrams(words):
                        tally.counts[ngram] += times
                    return _Edges.of_words(words)
                case Series(parts):
                    edges = _Edges.of_words(())
                    for part in parts:
                        following = tell(part, times, tally)
                        for ngram, p in edges.across(following):
                            tally.counts[ngram] += times * p
                        edges = edges.then(following)
                    return edges
                case Choice(options):
                    return _Edges.mixed([(weight, tell(option, times * weight, tally)) for weight, option in options])
                case Slot(name):
                    tally.uses[name] += times
                    if name not in known:
                        inside = _Tally()
                        known[name] = tell(self._slots[name], 1.0, inside), inside
                    return known[name][0]
                case _:
                    assert_never(expression)

        total = _Tally()
        for weight, phrase in self.root.options:
            tell(Series((Words((START,)), phrase, Words((END,)))), weight, total)
        # `known` was filled innermost slots first, so a slot's own uses are complete when its turn comes.
        for name, (_, inside) in reversed(known.items()):
            total.add(inside, total.uses[name])
        counts = Counts()
        for ngram, value in total.counts.items():
            if (expected := value * sentences) > max(least, 1e-9):
                counts.add(ngram, expected)
        return counts
