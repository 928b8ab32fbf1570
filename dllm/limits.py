"""What may be asked of a model: the checks that a draft passes before it is queued. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dllm.drafts import DraftSpec
from dllm.errors import CacheFullError, ConfigError, PinsDoNotFitError, PromptTooLongError
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are checked against."""

    model: ModelSpec
    room: int | None
    """Tokens that the whole prefix cache holds; None for a model that stores nothing."""

    def check(self, spec: DraftSpec) -> DecodeOptions:
        """The options that a draft is written with.

        Raises:
            ConfigError, PromptTooLongError, PinsDoNotFitError, CacheFullError: As `dllm.engine.Engine.submit` says.
        """
        model, options = self.model, spec.options
        if spec.width < 1 or spec.width % model.canvas_multiple or (model.max_canvas and spec.width > model.max_canvas):
            expected = f"a multiple of {model.canvas_multiple}" if model.canvas_multiple > 1 else "at least 1"
            raise ConfigError(
                "width", spec.width, expected + (f" up to {model.max_canvas}" if model.max_canvas else "")
            )
        self.check_prompt(spec.prompt)
        self.check_length(len(spec.prompt) + self.canvas_width(spec))
        pinned = sum(len(pin) for pin in spec.pins)
        if pinned and pinned + 1 > spec.width:
            raise PinsDoNotFitError(pinned, spec.width)
        if spec.pins and spec.constraint is not None:
            raise ConfigError("pins", len(spec.pins), "none beside a grammar, which decides where everything goes")
        if spec.pins and (options.mode != "diffusion" or model.corruption == "uniform"):
            raise ConfigError("pins", len(spec.pins), "none: their place can be chosen on a masked canvas only")
        if spec.constraint is not None and (
            options.mode != "diffusion" or options.revises or model.corruption == "uniform"
        ):
            raise ConfigError("constraint", "given", "none, or a masked canvas whose decided tokens stay")
        for position, token in spec.given:
            if not -spec.width <= position < spec.width or not 0 <= token < model.vocab_size:
                raise ConfigError(
                    "given", (position, token), f"a position of the canvas of {spec.width} and a token id"
                )
        if spec.given and options.mode != "diffusion":
            raise ConfigError("given", len(spec.given), "none: left-to-right writing knows nothing of what follows")
        for index, start in spec.keep_pins:
            if not (0 <= index < len(spec.pins) and 0 <= start <= spec.width - len(spec.pins[index])):
                raise ConfigError("keep_pins", (index, start), "an index into `pins` and a position that leaves room")
        if not 0 <= spec.keep_least <= 1:
            raise ConfigError("keep_least", spec.keep_least, "a share in [0, 1]")
        if spec.keep and not self.can_rate(spec):
            raise ConfigError("keep", len(spec.keep), "none: only a masked canvas can say what still fits")
        if any(not stop for stop in spec.stop):
            raise ConfigError("stop", spec.stop, "sequences of at least one token")
        foreign = next(
            (token for phrase in options.banned for token in phrase if not 0 <= token < model.vocab_size), None
        )
        if foreign is not None:
            raise ConfigError("banned", foreign, f"token ids in [0, {model.vocab_size})")
        width = self.canvas_width(spec)
        if any(len(phrase) > width for phrase in options.banned):  # They have no room to stand in.
            options = replace(options, banned=tuple(phrase for phrase in options.banned if len(phrase) <= width))
        # A grammar chooses whole ways through the canvas; what would change single tokens behind its back is off.
        return replace(options, no_stutter=False, hold_ends=False) if spec.constraint is not None else options

    def check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise ConfigError("prompt", (), "at least one token")
        outside = next((token for token in prompt if not 0 <= token < self.model.vocab_size), None)
        if outside is not None:
            raise ConfigError("prompt", outside, f"token ids in [0, {self.model.vocab_size})")

    def can_rate(self, spec: DraftSpec) -> bool:
        """Whether decided tokens of the draft can be asked for behind masks."""
        return spec.options.mode == "diffusion" and self.model.corruption == "absorbing"

    def check_length(self, total: int) -> None:
        if total > self.model.max_position_embeddings:
            raise PromptTooLongError(total, self.model.max_position_embeddings)
        if self.room is not None and total > self.room:
            raise CacheFullError(total, self.room)

    def canvas_width(self, spec: DraftSpec) -> int:
        """Whole blocks on the model's grid: the model was trained on blocks that are full of masks."""
        grid = self.model.block if self.model.mask_kind == "block_causal" else 1
        return -(-(len(spec.prompt) + spec.width) // grid) * grid - len(spec.prompt)
