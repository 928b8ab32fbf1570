"""How a family is decoded when nobody says otherwise: its defaults as options, how wide a canvas may be, how many steps it gets."""

from __future__ import annotations

import math
from typing import cast

from dllm.errors import PromptTooLongError
from dllm.models.family import DecodeDefaults
from dllm.options import DecodeOptions, Rule
from dllm.spec import ModelSpec

STEPS_PER_TOKEN = 0.5
"""Steps are a ceiling: whatever is surer than the threshold is decided earlier. One step per token is as good as it gets; half of it is
what the families' authors use, and an eighth is where small models' words begin to repeat."""
FEWEST_STEPS = 4


def family_options(defaults: DecodeDefaults, spec: ModelSpec) -> DecodeOptions:
    """A family's habits as options."""
    return DecodeOptions(
        rule=cast(Rule, defaults.rule),
        entropy_bound=defaults.entropy_bound,
        temperature=defaults.temperature,
        block=defaults.block if spec.mask_kind == "full" else -1,
        edit_threshold=defaults.edit_threshold,
        hold_ends=defaults.hold_ends,
        no_stutter=defaults.no_stutter,
    )


def usual_steps(width: int, steps: float = 0.0, share: float = 1.0) -> int:
    """Steps for a canvas: a family's own number where it has one, else in proportion to the width, times `share`."""
    return max(FEWEST_STEPS, math.ceil((steps or width * STEPS_PER_TOKEN) * share))


def widest_canvas(spec: ModelSpec, prompt_tokens: int) -> int:
    """The widest canvas behind a prompt of so many tokens.

    Raises:
        PromptTooLongError: If the prompt leaves no room for a canvas.
    """
    multiple = spec.canvas_multiple
    # Block-causal canvases end where a block does.
    grid = spec.block if spec.mask_kind == "block_causal" else 1
    room = spec.max_position_embeddings // grid * grid - prompt_tokens
    if spec.max_canvas:
        room = min(room, spec.max_canvas)
    if room < multiple:
        raise PromptTooLongError(prompt_tokens + multiple, spec.max_position_embeddings)
    return room // multiple * multiple
