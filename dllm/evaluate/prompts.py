"""Held-back prompts: what the model reads, what a person or a script answered, and what can be checked about an answer."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dllm.calls import Call, read_call
from dllm.errors import CallError
from dllm.evaluate.metrics import Fact, facts_in
from dllm.text import ROLES, DialogueCodec
from dllm.train.config import TrainConfig
from dllm.train.data import Answer, Mixture, Row


@dataclass(frozen=True, slots=True)
class Prompt:
    """One place where an agent answers."""

    source: str
    dialogue: str
    """Which dialogue of the source; intervals are made by resampling them."""
    tokens: tuple[int, ...]
    """Ends where the reply begins."""
    reference: tuple[int, ...]
    """The true reply without its end-of-turn."""
    text: str
    """The true reply; of a call, what stands behind `<call>`."""
    known: str = ""
    """The system turn and the notes: what facts may be taken from."""
    heard: str = ""
    """What the caller said."""
    call: Call | None = None
    facts: tuple[Fact, ...] = ()
    pins: tuple[tuple[int, ...], ...] = field(default=())
    """Tokens of the facts, as they are pinned."""

    @property
    def group(self) -> tuple[str, str]:
        return self.source, self.dialogue

    def fits(self, width: int) -> bool:
        """Whether the true reply and the pins leave room for an end-of-turn on such a canvas."""
        return max(len(self.reference), sum(map(len, self.pins))) + 1 <= width


def held_back(config: TrainConfig) -> TrainConfig:
    """A configuration's rows as they are measured: no word renamed, no role exchanged, every system turn there, every caller spoken."""
    sources = {
        name: replace(source, swap_roles=0.0, drop_system=0.0, weight=source.weight)
        for name, source in config.sources.items()
    }
    return replace(config, renamed_share=0.0, spoken_share=1.0, sources=sources)


def prompts_of(mixture: Mixture, codec: DialogueCodec, dialogues: int) -> dict[str, list[Prompt]]:
    """All prompts of up to so many dialogues of each source, from the beginning of its file; the same on every call."""
    found: dict[str, list[Prompt]] = {}
    for name, source in mixture.sources.items():
        rng = random.Random(f"{mixture.seed}:{name}")
        found[name] = []
        for number, dialogue in enumerate(itertools.islice(mixture.dialogues[name], dialogues)):
            row = mixture.maker.make(dialogue, source, rng)
            if row is not None:
                found[name] += prompts_from_row(row, codec, name, f"{number}:{dialogue.id}")
    return found


def prompts_from_row(row: Row, codec: DialogueCodec, source: str, dialogue: str) -> list[Prompt]:
    """The prompts in one window of a dialogue."""
    return [_prompt(row, answer, codec, source, dialogue) for answer in row.answers if answer.kind == "reply"]


def _prompt(row: Row, answer: Answer, codec: DialogueCodec, source: str, dialogue: str) -> Prompt:
    tokens = row.clean[: answer.start]
    turns = list(_turns(tokens, codec))
    known = " ".join(text for role, text in turns if role in ("system", "note"))
    heard = " ".join(text for role, text in turns if role == "user")
    reference = answer.tokens[:-1]
    text = codec.decode(reference).strip()
    call: Call | None = None
    facts: tuple[Fact, ...] = ()
    if reference[:1] == (codec.special.call,):
        try:
            call = read_call(text)
        except CallError:
            call = None
    else:
        runs = itertools.groupby(zip(answer.tokens, answer.pinned, strict=True), key=lambda pair: pair[1])
        pins = [codec.decode([token for token, _ in run]).strip() for is_pinned, run in runs if is_pinned]
        facts = tuple(facts_in(text, known, pins))
    pinned = tuple(codec.encode_pin(fact.text) for fact in facts)
    return Prompt(source, dialogue, tokens, reference, text, known, heard, call, facts, pinned)


def _turns(tokens: Sequence[int], codec: DialogueCodec) -> Iterator[tuple[str, str]]:
    """(role, text) of finished turns."""
    roles = {codec.role_id(role): role for role in ROLES}
    role, begun = "", 0
    for at, token in enumerate(tokens):
        if token in roles:
            role, begun = roles[token], at + 1
        elif token == codec.special.end and role:
            yield role, codec.decode(tokens[begun:at]).strip()
            role = ""


def choose(
    prompts: Mapping[str, Sequence[Prompt]],
    weights: Mapping[str, float],
    wanted: Callable[[Prompt], bool],
    count: int,
    seed: int = 0,
) -> list[Prompt]:
    """Up to `count` prompts, at most one of each dialogue, sources in proportion to their weights from the first prompt on.

    So every beginning of the list is a fair sample, and a measurement that runs out of time may stop anywhere.
    """
    queues: dict[str, list[Prompt]] = {}
    for name, some in prompts.items():
        of_dialogue: dict[str, list[Prompt]] = {}
        for prompt in some:
            if wanted(prompt):
                of_dialogue.setdefault(prompt.dialogue, []).append(prompt)
        rng = random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little"))
        chosen = [rng.choice(one) for one in of_dialogue.values()]
        rng.shuffle(chosen)
        if chosen:
            queues[name] = chosen[::-1]
    picked: list[Prompt] = []
    credit = dict.fromkeys(queues, 0.0)
    while queues and len(picked) < count:
        total = sum(weights[name] for name in queues)
        for name in queues:
            credit[name] += weights[name] / total
        name = max(queues, key=lambda name: credit[name])
        credit[name] -= 1.0
        picked.append(queues[name].pop())
        if not queues[name]:
            del queues[name], credit[name]
    return picked
