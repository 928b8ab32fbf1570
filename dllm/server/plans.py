"""What was asked, as the engine is told: canvas width, steps and decoding options. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.drafts import Plan
from dllm.errors import ConfigError
from dllm.habits import usual_steps, widest_canvas
from dllm.options import DecodeOptions
from dllm.server.problems import ApiError
from dllm.server.requests import Decoding, Effort
from dllm.server.settings import ServerSettings
from dllm.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class EffortPlan:
    """How an effort differs from the usual one."""

    steps: float
    """Factor of the steps."""
    threshold: float
    """Added to the threshold, or the share of its distance to 1 when above 0."""


EFFORTS: dict[Effort, EffortPlan] = {
    "instant": EffortPlan(0.25, -0.2),
    "low": EffortPlan(0.5, -0.1),
    "medium": EffortPlan(1.0, 0.0),
    "high": EffortPlan(2.0, 0.5),
}
DEFAULT_EFFORT: Effort = "medium"
REALTIME_FIRST_STEPS = 6
"""Steps for the first clause when a client wants to hear something soon (`realtime`)."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many positions a reply gets.

    `limit` is the most visible tokens: the canvas is as much wider as its multiple and an end-of-turn need.
    """

    width: int
    limit: int


def reply_room(spec: ModelSpec, settings: ServerSettings, prompt_tokens: int, wanted: int | None) -> Room:
    """The canvas of a reply: what was asked for, as far as the model's canvas and context reach.

    Raises:
        PromptTooLongError: If the prompt leaves no room for a canvas.
    """
    limit = min(wanted or settings.default_tokens, settings.max_tokens)
    widest = widest_canvas(spec, prompt_tokens)
    width = min(_round_up(limit + 1, spec.canvas_multiple), widest)
    return Room(width, min(limit, width))


def infill_room(
    spec: ModelSpec, settings: ServerSettings, prompt_tokens: int, suffix_tokens: int, wanted: int | None
) -> Room:
    """The canvas of a hole and the text behind it; `limit` is the hole.

    Raises:
        ApiError: If hole and suffix do not fit the model's canvas or context.
    """
    multiple = spec.canvas_multiple
    hole = min(wanted or settings.infill_tokens, settings.infill_tokens)
    width = (hole + suffix_tokens) // multiple * multiple
    if width <= suffix_tokens:
        width += multiple
    widest = widest_canvas(spec, prompt_tokens)
    width = min(width, widest)
    if width <= suffix_tokens:
        raise ApiError(
            400,
            f"suffix: expected fewer than {widest} tokens, got {suffix_tokens}: it shares one canvas with the text before it",
            param="suffix",
            code="context_length_exceeded",
        )
    return Room(width, width - suffix_tokens)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan(decoding: Decoding, settings: ServerSettings, width: int, now: float) -> Plan:
    """Steps and deadline of one reply.

    Args:
        now: The engine's clock, which the plan's deadlines refer to.

    Raises:
        ConfigError: If a number is out of range.
    """
    effort = EFFORTS[decoding.effort or ("low" if decoding.realtime else DEFAULT_EFFORT)]
    steps = decoding.steps or usual_steps(width, settings.steps, effort.steps)
    threshold = decoding.threshold
    if threshold is None:
        scale = 1 - settings.threshold if effort.threshold > 0 else 1
        threshold = round(max(settings.threshold + effort.threshold * scale, 0.1), 6)
    deadline = None if decoding.deadline_s is None else now + decoding.deadline_s
    if decoding.realtime:
        return Plan(min(REALTIME_FIRST_STEPS, steps), steps, threshold, deadline, deadline)
    return Plan(steps, steps, threshold, deadline, deadline, by_clause=False)


def options(
    decoding: Decoding, defaults: DecodeOptions, vocab_size: int, seed: int, *, is_constrained: bool = False
) -> DecodeOptions:
    """The server's options with what the request says instead.

    Args:
        is_constrained: A grammar holds the reply: what the server would revise by habit stays then, as grammars need it.

    Raises:
        ApiError: If a value is out of range or two contradict each other; `param` is the request's field.
    """
    beyond = [token for token, _ in decoding.logit_bias if token >= vocab_size]
    if beyond:
        param = f"logit_bias.{beyond[0]}"
        raise ApiError(400, f"{param}: expected a token id below {vocab_size}", param=param)
    changes: dict[str, object] = {"seed": seed % 2**62, **dict(decoding.options)}
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        if (value := getattr(decoding, name)) is not None:
            changes[name] = value
    if decoding.logit_bias:
        changes["logit_bias"] = decoding.logit_bias
    if is_constrained:
        defaults = dataclasses.replace(defaults, edit_threshold=None, remask_eta=0.0, wino_threshold=None)
    try:
        return dataclasses.replace(defaults, **changes)  # type: ignore[arg-type]
    except ConfigError as error:
        param = f"dllm.{error.key}" if error.key in dict(decoding.options) else error.key
        raise ApiError(400, f"{param}: expected {error.expected}, got {error.value}", param=param) from error


def given_suffix(suffix: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The end of a canvas, fixed beforehand."""
    return tuple((index - len(suffix), token) for index, token in enumerate(suffix))
