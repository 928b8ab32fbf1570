"""Held-back dialogues: how probable their replies are under a network, and what it writes in their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.calls import Call, read_call
from dllm.codec import Codec
from dllm.drafts import Plan
from dllm.errors import CallError, ConfigError
from dllm.evaluate.bootstrap import Estimate, estimate
from dllm.evaluate.likelihood import has_bound
from dllm.evaluate.metrics import chrf, chrf_counts, facts_in, states
from dllm.evaluate.prompts import Prompt
from dllm.evaluate.writing import CHUNK, Way, Writer
from dllm.habits import family_options, usual_steps, widest_canvas
from dllm.models.family import DecodeDefaults, Network
from dllm.score import likelihood_bound
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from dllm.train.finetune.dialogues import Line, heard, prompt_and_answer

DRAWS = 8
"""Mask patterns of a reply's bound. The same ones at every measurement, so that differences are the network's."""
LEAST_WIDTH = 40
"""Positions of a canvas unless a reply needs more."""
CALL_MARK = "<call>"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a network wrote."""

    text: str
    is_finished: bool
    """It ended the reply itself."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One state of the network on the held-back replies."""

    nats: Estimate
    """Per token of the true replies, an upper bound of their negative log-likelihood."""
    facts: Estimate
    """Share of the prices, times, names and pinned texts that a true reply takes from the prompt and the written one has exactly."""
    calls: Estimate
    """Share of the true calls that were written exactly."""
    chrf: Estimate
    """Overlap of written and true replies, 0 to 100."""
    unfinished: Estimate
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Replies to measure."""

    prompts: tuple[Prompt, ...]
    shown: tuple[int, ...] = field(default=())
    """Which of them are written."""


def check_model(spec: ModelSpec) -> None:
    """
    Raises:
        ConfigError: If the family has no bound to stop by.
    """
    if not has_bound(spec):
        raise ConfigError(
            "--model", spec.family, "a family with a mask token: others have no held-back bound to stop by"
        )


def held_back(lines: Sequence[Line], codec: Codec, spec: ModelSpec, shown: int) -> HeldBack:
    """Every agent's turn that a canvas holds, callers as a recogniser writes them.

    Args:
        shown: How many are written: the first of each dialogue, then the second, and so on.
    """
    prompts: list[Prompt] = []
    order: list[tuple[int, int]] = []
    for line in lines:
        turns = [heard(turn) for turn in line.dialogue.turns]
        within = 0
        for at, turn in enumerate(turns):
            if turn.role != "agent" or not turn.text or not at:
                continue
            try:
                tokens, reference = prompt_and_answer(turns, at, codec)
            except ConfigError:  # the survey has told
                continue
            known = " ".join(other.text for other in turns[:at] if other.role in ("system", "note"))
            said = " ".join(other.text for other in turns[:at] if other.role == "user")
            call = read_call(turn.text) if turn.is_call else None
            facts = () if turn.is_call else tuple(facts_in(turn.text, known, turn.pins))
            prompt = Prompt("company", line.dialogue.id, tokens, reference, turn.text, known, said, call, facts)
            if _fits(prompt, spec):
                order.append((within, len(prompts)))
                prompts.append(prompt)
                within += 1
    chosen = tuple(sorted(index for _, index in sorted(order)[:shown]))
    return HeldBack(tuple(prompts), chosen)


def _fits(prompt: Prompt, spec: ModelSpec) -> bool:
    tokens = len(prompt.reference) + 1
    # A block may have to be filled behind the reply.
    room = spec.max_position_embeddings - len(prompt.tokens) - spec.block * (spec.mask_kind == "block_causal")
    return bool(prompt.reference) and tokens <= (min(spec.max_canvas, room) if spec.max_canvas else room)


def nats_of(network: Network, prompts: Sequence[Prompt]) -> list[list[float]]:
    """[prompts][2] nats and tokens of each true reply with its end-of-turn."""
    end = network.spec.special.end
    found = []
    for prompt in prompts:
        reply = (*prompt.reference, end)
        bound = likelihood_bound(network, prompt.tokens, reply, draws=DRAWS, rows=DRAWS)
        found.append([-bound.log_probability, float(len(reply))])
    return found


def loss_of(network: Network, prompts: Sequence[Prompt]) -> float:
    """Nats per token over all prompts."""
    counts = nats_of(network, prompts)
    total = sum(nats for nats, _ in counts) / sum(tokens for _, tokens in counts)
    return total if math.isfinite(total) else math.inf


def measure(network: Network, codec: Codec, defaults: DecodeDefaults, held: HeldBack, seed: int) -> Measured:
    """Likelihood of all held-back replies, and the shown ones written."""
    groups = [prompt.group for prompt in held.prompts]
    nats = estimate(nats_of(network, held.prompts), groups, seed=seed)
    shown = [held.prompts[index] for index in held.shown]
    replies = write(network, codec, defaults, shown)
    facts, calls, overlaps, unfinished = [], [], [], []
    for prompt, reply in zip(shown, replies, strict=True):
        unfinished.append([float(not reply.is_finished), 1.0])
        overlaps.append(chrf_counts(reply.text, told(prompt)))
        if prompt.call is not None:
            calls.append(([float(is_call(reply.text, prompt.call)), 1.0], prompt.group))
        elif prompt.facts:
            stated = sum(states(reply.text, fact.text) for fact in prompt.facts)
            facts.append(([float(stated), float(len(prompt.facts))], prompt.group))
    of_shown = [prompt.group for prompt in shown]
    return Measured(
        nats,
        estimate([counts for counts, _ in facts], [group for _, group in facts], seed=seed),
        estimate([counts for counts, _ in calls], [group for _, group in calls], seed=seed),
        estimate(overlaps, of_shown, chrf, seed=seed),
        estimate(unfinished, of_shown, seed=seed),
        tuple(replies),
    )


def told(prompt: Prompt) -> str:
    """The true reply as it is shown: a call with its mark."""
    return f"{CALL_MARK} {prompt.text}" if prompt.call is not None else prompt.text


def is_call(text: str, call: Call) -> bool:
    """Whether a shown reply is this call, word for word."""
    if not text.startswith(CALL_MARK):
        return False
    try:
        return read_call(text.removeprefix(CALL_MARK).strip()) == call
    except CallError:
        return False


def write(network: Network, codec: Codec, defaults: DecodeDefaults, prompts: Sequence[Prompt]) -> list[Reply]:
    """Replies as the family writes them when nobody says otherwise, on a canvas that holds the longest true one."""
    if not prompts:
        return []
    spec = network.spec
    multiple = spec.canvas_multiple
    wanted = max(LEAST_WIDTH, *(len(prompt.reference) + 1 for prompt in prompts))
    room = min(widest_canvas(spec, len(prompt.tokens)) for prompt in prompts)
    width = min(-(-wanted // multiple) * multiple, room)
    steps = usual_steps(width, defaults.steps)
    plan = Plan(steps, steps, defaults.threshold, by_clause=False)
    way = Way("usual", plan, family_options(defaults, spec), width)
    writer = Writer(network, codec.token_table)
    replies: list[Reply] = []
    for first in range(0, len(prompts), CHUNK):
        (written,) = writer.write(prompts[first : first + CHUNK], [way])
        replies += [Reply(_text(codec, one.tokens), one.is_finished) for one in written]
    return replies


def _text(codec: Codec, tokens: Sequence[int]) -> str:
    text = codec.decode(tokens).strip()
    if isinstance(codec, DialogueCodec) and tokens[:1] == (codec.special.call,):
        return f"{CALL_MARK} {text}"
    return text
