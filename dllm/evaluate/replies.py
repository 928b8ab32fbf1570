"""Many replies scored against their references: every measure of the model card, each with its interval."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dllm.calls import read_call
from dllm.errors import CallError, ConfigError
from dllm.evaluate.bootstrap import Combine, Estimate, estimate, ratio
from dllm.evaluate.likelihood import causal_log_likelihoods, has_causal_mode
from dllm.evaluate.metrics import (
    FACT_KINDS,
    chrf,
    chrf_counts,
    content_f1,
    invented_figures,
    repeats,
    rouge_l,
    states,
    word_agreement,
)
from dllm.evaluate.prompts import Prompt
from dllm.evaluate.writing import CHUNK, Way, Writer, Written
from dllm.models.family import Network
from dllm.text import DialogueCodec

Item = TypeVar("Item")

FIRST_CHUNK = 3
"""Prompts that tell how long the others will take."""

COMBINE: dict[str, Combine] = {"chrf": chrf}
"""How a measure's sums become its value; all others are ratios."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One reply's counts by measure. A measure that does not apply to it is absent."""

    group: tuple[str, str]
    counts: dict[str, list[float]]


@dataclass(slots=True)
class Judge:
    """A causal mode that says how probable replies are. Replies that are equal are asked for once.

    Raises:
        ConfigError: If the network has no causal mode: it was never taught to look back only.
    """

    network: Network
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not has_causal_mode(self.network.spec):
            raise ConfigError("--judge", self.network.spec.family, "a checkpoint with a causal mode")

    def __call__(self, prompt: Prompt, replies: Sequence[Written]) -> list[float]:
        """Nats of each reply with its end-of-turn."""
        new = [t for t in dict.fromkeys(reply.tokens for reply in replies) if (prompt.tokens, t) not in self.known]
        if new:
            found = causal_log_likelihoods(self.network, prompt.tokens, new)
            self.known |= {(prompt.tokens, tokens): value for tokens, value in zip(new, found, strict=True)}
        return [self.known[prompt.tokens, reply.tokens] for reply in replies]


def score_reply(
    prompt: Prompt, written: Written, codec: DialogueCodec, nats: float | None = None, against: Written | None = None
) -> Scored:
    """Count everything about one reply.

    Args:
        nats: Its log-probability under the judge.
        against: The same prompt's reply at most steps, for self-consistency.
    """
    text = codec.decode(written.tokens).strip()
    is_call = written.tokens[:1] == (codec.special.call,)
    wants_call = prompt.reference[:1] == (codec.special.call,)
    counts: dict[str, list[float]] = {
        "chrf": chrf_counts(text, prompt.text),
        "rouge_l": [rouge_l(text, prompt.text), 1],
        "repeating": [repeats(text), 1],
        "unfinished": [not written.is_finished, 1],
        "faulty": [repeats(text) or not written.is_finished, 1],
        "tokens": [len(written.tokens), 1],
        "steps": [written.steps_first + written.steps_rest, 1],
        "tokens_per_forward": [len(written.tokens), max(1, written.forwards)],
    }
    if (overlap := content_f1(text, prompt.text)) is not None:
        counts["content_f1"] = [overlap, 1]
    if nats is not None:
        counts["log_likelihood"] = [nats, len(written.tokens) + 1]
    if against is not None:
        counts["self_consistency"] = [word_agreement(text, codec.decode(against.tokens)), 1]
    if wants_call:
        counts["call_exact"] = [is_call and _is_same_call(text, prompt), 1]
        counts["call_named"] = [is_call and _is_same_call(text, prompt, name_only=True), 1]
    else:
        counts["call_unasked"] = [is_call, 1]
        counts["invented"] = [bool(invented_figures(text, prompt.known, prompt.heard, prompt.text)), 1]
    if prompt.facts:
        stated = {fact: states(text, fact.text) for fact in prompt.facts}
        counts["facts"] = [sum(stated.values()), len(stated)]
        # What the data marks as a tool's and is no figure or name is whole phrases; the facts are the others.
        exact = {fact: is_stated for fact, is_stated in stated.items() if fact.kind != "pin"}
        if exact:
            counts["exact_facts"] = [sum(exact.values()), len(exact)]
        for kind in FACT_KINDS:
            if of_kind := [is_stated for fact, is_stated in stated.items() if fact.kind == kind]:
                counts[f"facts_{kind}"] = [sum(of_kind), len(of_kind)]
    return Scored(prompt.group, {name: [float(value) for value in values] for name, values in counts.items()})


def _is_same_call(text: str, prompt: Prompt, *, name_only: bool = False) -> bool:
    try:
        call = read_call(text)
    except CallError:
        return False
    if prompt.call is None:
        return False
    return call.name == prompt.call.name if name_only else call == prompt.call


def summarise(scored: Sequence[Scored], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every measure's estimate as JSON, by name."""
    names = dict.fromkeys(name for one in scored for name in one.counts)
    return {name: measure(scored, name, seed).to_json() for name in names}


def measure(scored: Sequence[Scored], name: str, seed: int = 0) -> Estimate:
    """One measure over the replies that it applies to. `count` is how many things were measured: facts for facts, else replies."""
    having = [one for one in scored if name in one.counts]
    counts = [one.counts[name] for one in having]
    found = estimate(counts, [one.group for one in having], COMBINE.get(name, ratio), seed=seed)
    if name.startswith(("facts", "exact_facts")):
        found = dataclasses.replace(found, count=int(sum(row[1] for row in counts)))
    return found


@dataclass(frozen=True, slots=True)
class Limit:
    """When a measurement stops: a little before its time is over, at least one chunk of prompts done."""

    seconds: float | None = None
    clock: Callable[[], float] = time.perf_counter

    def within(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until the time is over; the first in any case."""
        began = self.clock()
        for number, item in enumerate(items):
            if number and self.seconds is not None and self.clock() - began > self.seconds:
                return
            yield item


@dataclass(frozen=True, slots=True)
class Trial:
    """Replies of all ways to the first so many prompts."""

    prompts: list[Prompt]
    written: list[list[Written]]
    """[ways][prompts]."""


def write_all(
    hands: Sequence[tuple[Writer, Sequence[Way]]], prompts: Sequence[Prompt], limit: Limit, chunk: int = CHUNK
) -> Trial:
    """Write as many prompts' replies as there is time for, a chunk of prompts in all ways before the next.

    The first chunk under a limit is small, the next ones are as large as their time allows.

    Args:
        hands: Who writes in which ways; the trial has the ways of all, in order.
    """
    began, slowest, done = limit.clock(), 0.0, 0
    size = chunk if limit.seconds is None else min(chunk, FIRST_CHUNK)
    written: list[list[Written]] = [[] for _, ways in hands for _ in ways]
    while done < len(prompts):
        start = limit.clock()
        if limit.seconds is not None and done:
            room = (limit.seconds - (start - began)) / slowest if slowest > 0 else chunk
            if room < 1:
                break
            size = min(chunk, int(room))
        some = prompts[done : done + size]
        new = [of_way for writer, ways in hands for of_way in writer.write(some, ways)]
        for all_of_way, of_way in zip(written, new, strict=True):
            all_of_way += of_way
        done += len(some)
        slowest = max(slowest, (limit.clock() - start) / len(some))
    return Trial(list(prompts[:done]), written)


def score_trial(
    trial: Trial, codec: DialogueCodec, judge: Judge | None = None, against: Sequence[int] | None = None
) -> list[list[Scored]]:
    """[ways][prompts] scores.

    Args:
        against: For each way the index of the way whose replies its own are compared with.
    """
    nats: list[list[float | None]] = [[None] * len(trial.prompts) for _ in trial.written]
    if judge is not None:
        for at, prompt in enumerate(trial.prompts):
            values = judge(prompt, [of_way[at] for of_way in trial.written])
            for way, value in enumerate(values):
                nats[way][at] = value
    return [
        [
            score_reply(
                prompt, reply, codec, nats[way][at], None if against is None else trial.written[against[way]][at]
            )
            for at, (prompt, reply) in enumerate(zip(trial.prompts, of_way, strict=True))
        ]
        for way, of_way in enumerate(trial.written)
    ]
