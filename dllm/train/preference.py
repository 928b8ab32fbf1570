"""Preference optimisation: what people prefer becomes more likely than what they reject, measured from a frozen reference.

DPO (arXiv:2305.18290) on any-order likelihood bounds, as in VRPO (LLaDA 1.5, arXiv:2505.19223): a bound is the mean over draws of
N / k times the sum of log-probabilities at k masked ones of N tokens. The loss bends what it averages, so noise in the bounds is a
bias in the loss. It is kept small by many times t with one mask each, spread evenly, and by the same draws for policy and reference.
Both replies of a pair have the same draws as well, which helps where they are alike.

Dimensions: N tokens of a reply, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.calls import Call, write_call
from dllm.codec import Codec
from dllm.errors import CallError, ConfigError, DataError, PromptTooLongError
from dllm.models.family import Network
from dllm.spec import ModelSpec
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec, clean
from dllm.train.canvases import Asked, State, canvas_width, check_spec, frozen_copy, logits_at
from dllm.train.corpus import encode_prompt
from dllm.train.data import Turn, dialogue_of
from dllm.train.files import check_text, read_objects
from dllm.train.objective import antithetic_times
from dllm.train.tuning import Tuner


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt; each ends with its end-of-turn."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def read_pairs(path: Path, codec: Codec, spec: ModelSpec) -> list[Pair]:
    """Lines `{"turns": [...], "chosen": ..., "rejected": ...}`: turns and tools as in dialogue files, replies a text or a call's
    `{"name": ..., "arguments": {...}}`.

    Raises:
        DataError: With file and line, on the first line that is none, or whose replies are the same or do not fit a canvas.
    """
    pairs = []
    for number, body in read_objects(path):
        prompt = tuple(prompt_tokens(codec, dialogue_of(path, number, body).turns))
        chosen, rejected = (
            _reply(path, number, name, body.get(name), codec, spec, len(prompt)) for name in ("chosen", "rejected")
        )
        if chosen == rejected:
            raise DataError(path, number, '"chosen" and "rejected" are the same')
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def prompt_tokens(codec: Codec, turns: Sequence[Turn]) -> list[int]:
    """Tokens up to where the reply begins; for the built-in family user turns are written as a recogniser does."""
    if isinstance(codec, DialogueCodec):
        turns = [
            replace(turn, text=spoken_form(turn.text) or turn.text) if turn.role == "user" else turn for turn in turns
        ]
    return encode_prompt(codec, turns)


def _reply(
    path: Path, number: int, name: str, value: object, codec: Codec, spec: ModelSpec, prompt: int
) -> tuple[int, ...]:
    tokens: list[int]
    if isinstance(value, str) and value.strip():
        text = clean(check_text(path, number, value))
        tokens = codec.encode_text(text) if isinstance(codec, DialogueCodec) else codec.encode(text)
    elif isinstance(value, Mapping) and isinstance(codec, DialogueCodec):
        try:
            call = Call(str(value["name"]), {str(key): str(one) for key, one in value.get("arguments", {}).items()})
            tokens = [codec.special.call, *codec.encode_text(write_call(call))]
        except (CallError, KeyError, AttributeError) as error:
            raise DataError(path, number, f'"{name}" is no call: {error}') from error
    else:
        raise DataError(path, number, f'expected "{name}" to be a text that is not empty')
    reply = (*tokens, spec.special.end)
    try:
        canvas_width(spec, prompt, len(reply))
    except (ConfigError, PromptTooLongError) as error:
        raise DataError(path, number, f'"{name}": {error}') from error
    return reply


# --- likelihood bounds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draw:
    """One time and an order of places; the same draw masks replies of any length alike."""

    t: float
    order: tuple[float, ...]
    """A number for each canvas position: the lowest are masked first."""

    def masked(self, low: int, high: int) -> tuple[int, ...]:
        """The ceil(t N) masked ones of the N positions in [low, high), ascending."""
        count = max(1, math.ceil(self.t * (high - low)))
        return tuple(sorted(sorted(range(low, high), key=lambda at: self.order[at])[:count]))


def draw_noise(count: int, width: int, generator: torch.Generator) -> list[Draw]:
    """`count` draws for canvases of up to `width` positions: times spread evenly over (0, 1], one order each."""
    return [Draw(t, tuple(torch.rand(width, generator=generator).tolist())) for t in antithetic_times(count, generator)]


def check_bound(spec: ModelSpec) -> int:
    """The mask token.

    Raises:
        ConfigError: If the family's bound is not a matter of masked canvases alone.
    """
    if spec.seeds_block:
        raise ConfigError("model", spec.family, "a family that fills its blocks from masks alone")
    return check_spec(spec)


def bounds(
    network: Network,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    draws: Sequence[Sequence[Draw]],
) -> Tensor:
    """The bound of each reply in nats, [replies], estimated from its draws; one forward. Positions behind a reply stay masked.

    Replies to one prompt that follow each other share it where the family allows (`dllm.train.canvases`).
    Block-causal families reveal blocks left to right: their bound is the sum of their blocks'.
    """
    spec = network.spec
    mask = check_bound(spec)
    asked: list[tuple[tuple[int, ...], list[State]]] = []
    targets, scale, owner = [], [], []
    for number, (prompt, reply, own) in enumerate(zip(prompts, replies, draws, strict=True)):
        width = canvas_width(spec, len(prompt), len(reply))
        if not asked or asked[-1][0] != tuple(prompt):
            asked.append((tuple(prompt), []))
        for draw in own:
            for low, high in _blocks(spec, len(prompt), len(reply)):
                hidden = draw.masked(low, high)
                shown = [mask if at in hidden else token for at, token in enumerate(reply[:high])]
                asked[-1][1].append(State((*shown, *[mask] * (width - high)), hidden))
                targets += [reply[at] for at in hidden]
                scale += [(high - low) / len(hidden) / len(own)] * len(hidden)
                owner += [number] * len(hidden)
    logits = logits_at(network, [Asked(prompt, tuple(states)) for prompt, states in asked])
    device = logits.device
    chances = -F.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
    total = torch.zeros(len(replies), device=device)
    return total.index_add(0, torch.tensor(owner, device=device), chances * torch.tensor(scale, device=device))


def _blocks(spec: ModelSpec, prompt: int, reply: int) -> Iterator[tuple[int, int]]:
    """Runs of a reply's positions that are revealed in any order."""
    low = 0
    while low < reply:
        size = spec.block - (prompt + low) % spec.block if spec.mask_kind == "block_causal" else reply
        yield low, min(low + size, reply)
        low += size


# --- the loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreferenceConfig:
    """What a step consists of.

    Raises:
        ConfigError: If a number is out of range.
    """

    beta: float = 0.1
    """How far the policy may move for a preference: rewards are `beta` times the gain in nats over the reference."""
    draws: int = 8
    """Times per reply, one mask each."""
    pairs_per_step: int = 8
    pairs_per_forward: int = 2
    chosen_weight: float = 0.0
    """Weight of the chosen replies' own loss per token; above 0 where both replies become unlikely together."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError("beta", self.beta, "above 0")
        for name in ("draws", "pairs_per_step", "pairs_per_forward"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        if not self.chosen_weight >= 0:
            raise ConfigError("chosen_weight", self.chosen_weight, "at least 0")


def preference_losses(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (gain of the chosen - gain of the rejected)) per pair, [pairs]; a gain is policy less reference, in nats.

    Args:
        policy: [pairs, 2] float32, bounds of the chosen and the rejected replies.
        reference: [pairs, 2] float32.
    """
    gain = policy - reference
    return -F.logsigmoid(beta * (gain[:, 0] - gain[:, 1]))


class PreferenceTuner:
    """Steps of preference optimisation. The reference is the network as it is when this is made.

    Raises:
        ConfigError: If there is no pair, or the family has no such bound.
    """

    def __init__(self, tuner: Tuner, pairs: Sequence[Pair], config: PreferenceConfig) -> None:
        if not pairs:
            raise ConfigError("pairs", 0, "at least one")
        check_bound(tuner.network.spec)
        self.tuner, self.pairs, self.config = tuner, list(pairs), config
        self._reference = frozen_copy(tuner.network)
        self._sums: dict[str, float] = {}

    def take_step(self) -> dict[str, Any]:
        """One optimiser step, and its line for the log: `margin` is the chosen replies' reward less the rejected ones', `accuracy` the
        share of pairs where it is above zero."""
        config, generator = self.config, self.tuner.generator()
        rng = random.Random(self.tuner.config.seed * 7_919 + self.tuner.step)
        # Pairs come in rounds, so that each is met before one is met again.
        chosen: list[Pair] = []
        while len(chosen) < config.pairs_per_step:
            chosen += rng.sample(self.pairs, min(len(self.pairs), config.pairs_per_step - len(chosen)))
        noise = [draw_noise(config.draws, max(len(pair.chosen), len(pair.rejected)), generator) for pair in chosen]
        self._sums = dict.fromkeys(("margin", "accuracy", "chosen_gain", "rejected_gain"), 0.0)
        size = config.pairs_per_forward
        parts: list[Callable[[], Tensor]] = [
            partial(self._loss, chosen[first : first + size], noise[first : first + size])
            for first in range(0, len(chosen), size)
        ]
        report = self.tuner.update(parts)
        return asdict(report) | {name: round(value / len(chosen), 5) for name, value in self._sums.items()}

    def _loss(self, pairs: Sequence[Pair], noise: Sequence[Sequence[Draw]]) -> Tensor:
        config = self.config
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
        draws = [own for own in noise for _ in range(2)]
        policy = bounds(self.tuner.network, prompts, replies, draws).view(-1, 2)
        with torch.no_grad():
            reference = bounds(self._reference, prompts, replies, draws).view(-1, 2)
        gain = (policy - reference).detach()
        margin = config.beta * (gain[:, 0] - gain[:, 1])
        for name, value in (
            ("margin", margin),
            ("accuracy", (margin > 0).float()),
            ("chosen_gain", gain[:, 0]),
            ("rejected_gain", gain[:, 1]),
        ):
            self._sums[name] += float(value.sum())
        losses = preference_losses(policy, reference, config.beta)
        if config.chosen_weight:
            lengths = torch.tensor([len(pair.chosen) for pair in pairs], device=policy.device)
            losses = losses - config.chosen_weight * policy[:, 0] / lengths
        return losses.sum() / config.pairs_per_step
