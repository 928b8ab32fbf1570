"""What callers ask of the engine and what it tells them: plans, drafts and events. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from dllm.errors import ConfigError
from dllm.options import DecodeOptions

if TYPE_CHECKING:
    from dllm.constraints import Constraint
    from dllm.draft import Draft

Phase: TypeAlias = Literal["first", "rest"]
FinishReason: TypeAlias = Literal["end_of_turn", "canvas_full", "stop"]
"""end_of_turn: the model ended its reply. canvas_full: the canvas was too narrow; a plan that speaks clauses cuts after the last whole
sentence. stop: one of the draft's stop sequences was reached."""


class CellState(StrEnum):
    MASKED = "masked"
    PROVISIONAL = "provisional"
    COMMITTED = "committed"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps and deadlines of one draft. Deadlines are absolute readings of the engine's clock; None is far away.

    Raises:
        ConfigError: If a number is out of range.
    """

    steps_first: int = 6
    """Denoising forwards until the first clause is decided. `by_clause=False` makes the whole reply one phase with this many."""
    steps_rest: int = 10
    threshold: float = 0.9
    first_deadline: float | None = None
    rest_deadline: float | None = None
    floor: int = 1
    """Steps that a phase gets even when its deadline is over: committing everything at once is no reply worth hearing."""
    rest_yields_until: float | None = None
    """Until then phase *rest* gives way: it takes no part in forwards while a draft is there that does not. None never gives way."""
    first_guests: int = 0
    """So many drafts take part in its forwards although they give way: its first clause has its steps all the same."""
    by_clause: bool = True
    """Two phases: the first clause, then the rest. False for text that nobody listens to while it is written."""
    is_speculative: bool = False
    """Nobody waits for it yet: it takes no part in forwards while a draft is there that somebody does."""
    fact_threshold: float = 0.0
    """As `threshold`, for figures and names, where it is above it: what is not that sure of itself waits until the floor asks for it."""

    def __post_init__(self) -> None:
        for name in ("floor", "steps_first", "steps_rest"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        if self.first_guests < 0:
            raise ConfigError("first_guests", self.first_guests, "at least 0")
        if not 0 < self.threshold <= 1:
            raise ConfigError("threshold", self.threshold, "a probability in (0, 1]")
        if not 0 <= self.fact_threshold <= 1:
            raise ConfigError("fact_threshold", self.fact_threshold, "a probability in [0, 1]")


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """A reply to be written after `prompt`, which ends where the reply begins.

    `given` fixes canvas positions beforehand: (position, token) pairs, for infilling and for editing around kept text. A negative
    position counts from the canvas's end. Unlike `pins`, whose place the model chooses.
    """

    prompt: tuple[int, ...]
    conversation: str
    width: int
    """Canvas positions: the longest reply, its end-of-turn included."""
    plan: Plan = field(default_factory=Plan)
    pins: tuple[tuple[int, ...], ...] = ()
    """Spans that must be in the reply; the model chooses where."""
    options: DecodeOptions = field(default_factory=DecodeOptions)
    given: tuple[tuple[int, int], ...] = ()
    constraint: Constraint | None = None
    stop: tuple[tuple[int, ...], ...] = ()
    """Token sequences before which the reply is cut."""
    keep: tuple[int, ...] = ()
    """An earlier draft of this reply: its tokens are kept where they still fit the prompt, and denoised anew elsewhere; mask tokens in it
    are nothing to keep."""
    keep_pins: tuple[tuple[int, int], ...] = ()
    """Where pins stood in it: (index into `pins`, position). They stay there as long as anything else is kept."""
    keep_least: float = 0.0
    """Share of the kept tokens that must still fit; with fewer all of it is forgotten, the places of pins included."""
    keep_clause: bool = False
    """The same where any token of the first clause does not fit: a word that is put into a gap among kept ones and pins has its length."""
    unpinned: int | None = None
    """A reply that begins with this token holds no pins: a call of a tool, whose arguments they would become."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One canvas position as an event shows it."""

    token: int
    state: CellState
    confidence: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a draft cost."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    visible_tokens: int = 0
    """Reply tokens without its end-of-turn and what lies behind."""
    forwards_prefill: int = 0
    forwards_denoise: int = 0
    forwards_commit: int = 0
    """Forwards whose only purpose was to store a finished block."""
    forwards_wasted: int = 0
    """Denoising forwards after which nothing was decided, and drafted tokens' verifications that accepted none."""
    seconds_prefill: float = 0.0
    seconds_denoise: float = 0.0
    """Wall time of the forwards this draft took part in, shared ones in full."""
    forced: int = 0
    """Positions decided by the plan's floor although the rule did not want them yet."""
    guards: int = 0
    """Times that the convergence guard stepped in."""

    @property
    def tokens_per_forward(self) -> float:
        """Visible tokens by denoising and committing forwards."""
        return self.visible_tokens / max(1, self.forwards_denoise + self.forwards_commit)


@dataclass(frozen=True, slots=True)
class Prefilled:
    draft: Draft
    cached_tokens: int
    new_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Revised:
    """Kept tokens were asked for under a new prompt."""

    draft: Draft
    kept: int
    """Those that stay, of those that were asked for."""
    asked: int
    forwards: int
    """Forwards that it took."""
    canvas: tuple[Cell, ...] = ()
    """What stands, and masks where the others were."""


@dataclass(frozen=True, slots=True)
class Stepped:
    draft: Draft
    step: int
    """1 for the draft's first denoising forward."""
    phase: Phase
    canvas: tuple[Cell, ...]
    committed: int
    """Positions decided by this step, pins included; negative when more were masked again than decided."""
    forced: int
    """Those of them that the rule alone would not have decided."""
    seconds: float
    """The whole batch's forward and selection."""
    batch: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens [start, start + len(tokens)) of the reply are final and end at a word boundary. Never taken back."""

    draft: Draft
    start: int
    tokens: tuple[int, ...]
    phase: Phase


@dataclass(frozen=True, slots=True)
class Finished:
    draft: Draft
    reason: FinishReason
    tokens: tuple[int, ...]
    """The reply without its end-of-turn."""
    probabilities: tuple[float, ...]
    """Of each of those tokens when it was decided, at temperature 1; 1 for given and pinned ones."""
    steps_first: int
    steps_rest: int
    forced: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    draft: Draft
    error: Exception


Event: TypeAlias = Prefilled | Revised | Stepped | Committed | Finished | Failed
