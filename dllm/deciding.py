"""Whether a reply is the call of a tool, of which one, and with what: read off one forward of the causal mode before a word is written.

A small model says well whether something is asked of it and which of a caller's words belong where, and spells badly: of 43 turns of made agents it wrote
not one call without a slip (`benchmarks/tool_calls.py`). So it is not asked to spell. Each argument is one of the values that the caller said
(`dllm.said`); the model says how probable each is behind `<call> name; key:`, how much likelier the conversation makes the name of a tool,
and how probable a call is at all. No two arguments share words, what is required and was not said makes no call, and then the reply is words, as
a rule a question.

Source: scoring a closed set of continuations instead of generating them, as in constrained semantic parsing (arXiv:2104.08768); names are weighed by what
they gain over an empty conversation (PMI-DC, arXiv:2104.08315).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dllm.branches import Branches, Tree, grow
from dllm.calls import Call, Tool, read_call, write_call
from dllm.codec import Codec
from dllm.engine import Engine
from dllm.errors import CallError, PromptTooLongError
from dllm.said import Heard, Kind, Value, asks_for, kind_of, like, names, stem, values_of
from dllm.text import DialogueCodec

# In nats. Set on the [tune] half of benchmarks/tool_calls.toml.
REQUIRED_BONUS, OPTIONAL_BONUS = 6.0, 4.0
"""What an argument brings: a value that is less likely than that is as good as none."""
LEAST = 2.5
"""A required value that brings less was not said: a question is better than a wrong booking."""
MISSING = -4.0
PRIOR_SHARE = 0.3
"""Of how unlikely a word of a value is where nobody has said anything: rare words are no worse than common ones."""
SURE_FLOOR, SURE_BONUS, TOLD_BONUS, ANSWER_BONUS = -1.0, 1.0, 4.0, 3.0
KIND_FLOORS: Mapping[Kind, float] = {"day": -3.0, "time": -3.0, "digits": -3.0, "number": -5.0}
"""A day is a day, however the model puts it."""
KIND_BONUS = 1.0
OTHER_COST, EARLIER_COST = 4.0, 0.5
LEAST_SENTENCE = 0.125
"""Of what was said: a smaller piece of it is no message, unless it is told to be one."""
WITHOUT_ARGUMENTS = 4.0
"""The fit of a tool that requires nothing."""
CALL_ABOVE = 3.5
MOST_TREE = 256
"""Nodes: what callers say adds no more of them. Names of tools and arguments come first, and all of them: ten tools of five arguments are 350."""
MOST_HEARD = 200
"""Words of the caller's, the latest: values are looked for in no others, so that somebody who says much holds up nobody."""
_BEAM, _MOST_VALUES = 64, 12


@dataclass(frozen=True, slots=True)
class Fit:
    """A tool with the best values that were said."""

    tool: Tool
    values: Mapping[str, Value]
    total: float
    """What the values bring, in nats; what is missing costs."""
    required: float
    """Mean of what the required ones bring."""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(key for key in self.tool.required if key not in self.values)

    @property
    def call(self) -> Call:
        return Call(self.tool.name, {key: value.text for key, value in self.values.items()})


@dataclass(frozen=True, slots=True)
class Decision:
    """What one forward said."""

    call: Call | None
    """None where the reply is words."""
    score: float
    """Nats over which it would be a call at `CALL_ABOVE`."""
    missing: tuple[str, ...] = ()
    """Of the tool that fits best: what is required and was not said."""


def best_fit(tool: Tool, scores: Mapping[str, Sequence[tuple[float, Value]]]) -> Fit:
    """The values that bring most together, of which no two share words.

    Args:
        scores: For each argument what each value brings, in nats; what brings less than nothing is as good as not said.
    """
    beam: list[tuple[float, float, frozenset[tuple[int, int]], dict[str, Value]]] = [(0.0, 0.0, frozenset(), {})]
    for key in tool.properties:
        is_required = key in tool.required
        nothing, least = (MISSING, LEAST) if is_required else (0.0, 0.0)
        found = heapq.nlargest(_MOST_VALUES, scores.get(key, ()), key=lambda entry: entry[0])
        longer = []
        for total, required, taken, values in beam:
            longer.append((total + nothing, required, taken, values))
            longer += [
                (total + score, required + is_required * score, taken | value.places, {**values, key: value})
                for score, value in found
                if score > least and taken.isdisjoint(value.places)
            ]
        beam = heapq.nlargest(_BEAM, longer, key=lambda entry: entry[0])
    total, required, _, values = beam[0]
    return Fit(tool, values, total, required / len(tool.required) if tool.required else WITHOUT_ARGUMENTS)


def worth(
    nats: float, closing: float, before: float, value: Value, kind: Kind, *, is_required: bool, turns: int
) -> float:
    """What a value brings.

    Args:
        nats, closing: Log-probability of its words behind the key, and of the end or the next key behind them.
        before: Log-probability of its words where nobody has said anything.
        turns: How many turns of the caller's there are.
    """
    score = nats - PRIOR_SHARE * before / (value.last - value.first) + (0.0 if kind == "number" else closing)
    score = min(score, 0.0)
    if value.is_sure:
        score = max(score, SURE_FLOOR) + SURE_BONUS
    elif kind in KIND_FLOORS:
        score = max(score, KIND_FLOORS[kind]) + (KIND_BONUS if kind != "number" else 0.0)
    score += TOLD_BONUS * value.is_told - OTHER_COST * value.is_other
    score += ANSWER_BONUS * (value.is_answer and value.turn == turns - 1) - EARLIER_COST * (value.turn < turns - 1)
    return score + (REQUIRED_BONUS if is_required else OPTIONAL_BONUS)


def decider_of(engine: object, codec: Codec) -> Decider | None:
    """Who decides the calls of a checkpoint: one of the built-in family, with its causal mode. None for all others, which spell them."""
    if isinstance(engine, Engine) and isinstance(codec, DialogueCodec) and engine.model.spec.causal_verify:
        return Decider(engine, codec)
    return None


class Decider:
    """Decides for one engine, on its thread.

    Args:
        engine: Of the built-in family: it has a causal mode.
    """

    def __init__(self, engine: Engine, codec: DialogueCodec) -> None:
        self._engine, self._codec = engine, codec
        self._closing = (codec.encode(";")[0], codec.special.end)

    @property
    def sign(self) -> int:
        """The token that begins a call."""
        return self._codec.special.call

    def decide(self, prompt: Sequence[int], tools: Sequence[Tool], *, must_call: bool = False) -> Decision:
        """
        Args:
            prompt: Tokens up to the agent's role token.
            tools: What may be called.
            must_call: Whether the reply has to be a call: then it is one, whatever is missing.
        """
        heard = heard_so_far(self._codec, prompt, tools)
        turns, tools = lately(heard.turns), [tool for tool in tools if heard.may_call(tool)]
        if not tools or not any(turn.words for turn in turns):
            return Decision(None, float("-inf"))
        values = {
            tool.name: {key: values_of(key, schema, turns) for key, schema in tool.properties.items()} for tool in tools
        }
        try:
            found = self._asked(prompt, tools, values)
        except PromptTooLongError:
            return Decision(None, float("-inf"))
        empty = self._asked(self._opening(prompt), tools, values)
        sign = (self._codec.special.call,)
        fits, own = [], _own_words(tools)
        for tool in tools:
            scores = _scores(tool, values[tool.name], turns, found, empty, own)
            gained = found.name(tool) - empty.name(tool)
            fits.append((gained, best_fit(tool, scores)))
        gained, fit = max(fits, key=lambda entry: entry[0] + entry[1].total)
        score = found.branches.nats(sign) + gained + fit.required
        calls = must_call or (not fit.missing and score > CALL_ABOVE)
        return Decision(fit.call if calls else None, score, fit.missing)

    def tokens(self, call: Call) -> tuple[int, ...]:
        """The reply that is this call, its end included."""
        special = self._codec.special
        return (special.call, *self._codec.encode_text(write_call(call)), special.end)

    def _asked(
        self, prompt: Sequence[int], tools: Sequence[Tool], values: Mapping[str, Mapping[str, Sequence[Value]]]
    ) -> _Asked:
        tree, heads = Tree(), {tool.name: self._head(tool) for tool in tools}
        ends: dict[tuple[str, str], int] = {}
        for tool in tools:
            behind = tree.add(heads[tool.name])[-1]
            for key, some in values[tool.name].items():
                ends[tool.name, key] = at = tree.add(self._codec.encode(f"; {key}:"), behind)[-1]
                # The latest first: where a tree grows too large, what was said long ago is not asked for.
                for value in reversed(some):
                    if len(tree.tokens) < MOST_TREE:
                        tree.add(self._codec.encode_text(value.text), at)
        return _Asked(grow(self._engine, prompt, tree), tree, self._codec, heads, ends, self._closing)

    def _head(self, tool: Tool) -> list[int]:
        return [self._codec.special.call, *self._codec.encode_text(tool.name)]

    def _opening(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The prompt of a conversation in which nobody has said anything."""
        special = self._codec.special
        has_system = prompt[0] == special.system and special.end in prompt
        return (*(prompt[: prompt.index(special.end) + 1] if has_system else ()), special.agent)


def _scores(
    tool: Tool,
    values: Mapping[str, Sequence[Value]],
    turns: Sequence[Heard],
    found: _Asked,
    empty: _Asked,
    own: frozenset[str],
) -> dict[str, list[tuple[float, Value]]]:
    """What each value of a tool's arguments brings."""
    sure = [value for some in values.values() for value in some if value.is_sure]
    kinds = {kind_of(key, schema) for key, schema in tool.properties.items()}
    scores: dict[str, list[tuple[float, Value]]] = {}
    for key, some in values.items():
        kind, is_required = kind_of(key, tool.properties[key]), key in tool.required
        others = [other for other in tool.properties if other != key]
        scores[key] = []
        for value in some:
            if kind in ("name", "address") and not (value.is_sure or value.is_told or value.is_answer):
                continue
            share = (value.last - value.first) / len(turns[value.turn].words)
            if kind == "sentence" and share < LEAST_SENTENCE and not (value.is_told or value.is_answer):
                continue
            if kind == "number" and any(value.places < other.places for other in sure):
                continue
            if kind in ("words", "name", "sentence", "address") and not value.is_sure:
                words = value.text.split()
                if any(value.places & other.places for other in sure) or like(value.text) in kinds:
                    continue
                ends = (words[0], words[-1])
                if not value.is_told and any(
                    stem(word) in own or any(names(word, other) for other in others) for word in ends
                ):
                    continue
            nats, closing = found.value(tool, key, value)
            if math.isinf(nats):
                continue
            before = empty.value(tool, key, value)[0]
            score = worth(nats, closing, before, value, kind, is_required=is_required, turns=len(turns))
            asked_else = (
                value.is_answer and not value.is_told and any(asks_for(other, turns[value.turn]) for other in others)
            )
            scores[key].append((score - OTHER_COST * asked_else, value))
    return scores


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the forward says of names and values."""

    branches: Branches
    tree: Tree
    codec: DialogueCodec
    heads: Mapping[str, Sequence[int]]
    ends: Mapping[tuple[str, str], int]
    closing: tuple[int, int]

    def name(self, tool: Tool) -> float:
        """Log-probability of a tool's name in a call."""
        head = self.heads[tool.name]
        return self.branches.nats(head) - self.branches.nats(head[:1])

    def value(self, tool: Tool, key: str, value: Value) -> tuple[float, float]:
        """Log-probability of a value, and of what closes it; beyond all hope where it was not asked for."""
        return self.branches.closed(self.codec.encode_text(value.text), self.ends[tool.name, key], self.closing)


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller said of which no call has been made yet, and what has been called."""

    turns: Sequence[Heard]
    ran: frozenset[str] = frozenset()
    """Tools that were carried out for what the caller said before their last turn."""
    ran_now: frozenset[str] = frozenset()
    """Tools that were carried out since."""

    def may_call(self, tool: Tool) -> bool:
        """Whether a tool may be called again. One that needs nothing has nothing to spend: it takes words of its own, in a later turn."""
        if tool.required or tool.name not in self.ran | self.ran_now:
            return True
        if tool.name in self.ran_now or not self.turns:
            return False
        own = {word for word in _own_words([tool]) if len(word) > 3}
        return any(stem(word) in own for word in self.turns[-1].words)


def heard_so_far(codec: DialogueCodec, prompt: Sequence[int], tools: Sequence[Tool]) -> Said:
    """What the caller said of which no call has been made yet, with what they were asked.

    A call that was carried out has spent the words that it was made of; of what was said before it nothing else counts but in the caller's last turn,
    and that no longer when they speak again: thanks are no order. Right behind one that failed there is nothing: the same would fail again.
    """
    special = codec.special
    properties = {tool.name: tool.properties for tool in tools}
    roles = {special.system, special.user, special.note, special.agent}
    starts = [at for at, token in enumerate(prompt) if token in roles]
    turns: list[Heard] = []
    ran: set[str] = set()
    ran_now: set[str] = set()
    asked, spent = "", Call("")
    for start, stop in itertools.pairwise([*starts, len(prompt)]):
        role, body = prompt[start], [token for token in prompt[start + 1 : stop] if token != special.end]
        text = codec.decode(body).strip()
        if role == special.user:
            if ran_now:
                turns, ran, ran_now = [], ran | ran_now, set()
            # What is said after a greeting answers no question.
            turns.append(Heard.of(text, asked if special.user in prompt[:start] else ""))
            asked = ""
        elif role == special.agent and special.call in body:
            spent = _read(text)
        elif role == special.agent:
            asked = " ".join(_words(text))
        elif role == special.note and spent.name and text.startswith(f"{spent.name}:"):
            turns = [turn.without(spent.arguments, properties.get(spent.name, {})) for turn in turns[-1:]]
            ran_now.add(spent.name)
            spent = Call("")
    # The last of them is the reply that is to be written.
    last = [prompt[at] for at in starts[:-1]][-1:]
    return Said([] if spent.name and last == [special.note] else turns, frozenset(ran), frozenset(ran_now))


def lately(turns: Sequence[Heard], most: int = MOST_HEARD) -> list[Heard]:
    """The latest turns with so many words between them, of the first perhaps its end alone."""
    found: list[Heard] = []
    for turn in reversed(turns):
        if most <= 0:
            break
        found.insert(0, replace(turn, words=turn.words[-most:]))
        most -= len(turn.words)
    return found


def _words(text: str) -> Iterable[str]:
    return "".join(letter if letter.isalpha() or letter in "' " else " " for letter in text.lower()).split()


def _read(text: str) -> Call:
    try:
        return read_call(text)
    except CallError:
        return Call(text.split(";")[0].strip())


def _own_words(tools: Sequence[Tool]) -> frozenset[str]:
    """Stems of what tools are told by: "a table" is no day, where a tool books a table."""
    return frozenset(
        stem(word) for tool in tools for word in _words(f"{tool.name.replace('_', ' ')} {tool.description}")
    )
