"""A reply while it is being written: the engine's record of one draft, and what a draft brings to the next forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from torch import Tensor

from dllm.cache import CachedText, Node
from dllm.canvas import Canvas
from dllm.drafts import DraftSpec, Phase, Plan
from dllm.guard import History
from dllm.sampling import Picker
from dllm.window import Window

if TYPE_CHECKING:
    from dllm.revision import Rescore, Reviser

Stop: TypeAlias = Literal["clause", "reply", "region"]
"""What a step's floor counts up to: the end of the first clause, of the reply, or of the open positions."""


@dataclass(frozen=True, slots=True)
class Live:
    """Canvas positions that the next forward denoises."""

    window: Window
    lead: int
    """Window tokens before the first live position: the rest of the prompt's last block, a finished block, or the whole prompt."""
    lo: int
    hi: int
    """Canvas positions [lo, hi) are in the window, in order, from window token `lead` on."""
    open_lo: int
    open_hi: int
    """Those that may be decided now."""
    due_hi: int
    """Those of them that the floor counts lie before this."""
    beyond: int
    """Undecided positions that the floor must leave steps for, behind the open ones."""
    stop: Stop
    steps_left: int
    """Denoising forwards that the plan has left, this one included."""
    carry: Tensor | None = None
    """[E] hidden state that the first live position is read from, where output rows are shifted and the window does not hold it."""
    shadow: int = 0
    """Window token at which shadow rows begin (WINO), one per live position; 0 without."""
    commits: int = 0
    """Window tokens, from the first, whose keys and values this forward makes final."""
    alike: int = 1
    """Steps, this one included, for which the draft wants just this with one step less left each time, as long as an open position is
    undecided and nothing has become certain."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward that is not a denoising step: storing a block, verifying a draft, asking for probabilities."""

    window: Window
    wanted: Sequence[int]
    """Window tokens whose output is asked for."""
    absorb: Callable[[Tensor, Tensor], int]
    """Called with the hidden states [n, E] and logits [n, V] float32 of `wanted`. Returns how many window tokens, from the first, are
    final now."""
    is_step: bool = True
    """Whether it counts as a denoising forward of the plan."""
    soft: Tensor | None = None
    """[T, V] float32 processed logits of the step before (self-conditioning); None for none yet."""


Work: TypeAlias = Live | Pass


class Strategy(Protocol):
    """How a family writes a reply: which forwards follow each other. One per draft."""

    carry: Tensor | None
    """[E] hidden state of the last stored token, where `needs_carry`."""

    needs_carry: bool
    """Whether the hidden state of the last stored token is asked for."""

    def begin(self, draft: Draft) -> None:
        """Say what must be stored before the first step (`draft.pending`) from the draft's prompt."""
        ...

    def next(self, draft: Draft) -> Work | None:
        """What the next forward does; None when tokens must be stored first (`draft.pending`) or the reply is complete."""
        ...

    def stored(self, draft: Draft, carry: Tensor | None) -> None:
        """`draft.pending` is stored; `carry` [E] is the hidden state of its last token."""
        ...

    def seed_position(self, draft: Draft) -> int | None:
        """The canvas position that takes the next token of the causal pass over the stored text (`carry`), if there is one now."""
        ...

    def final_prefix(self, draft: Draft) -> int:
        """Reply tokens, from the left, that will never change."""
        ...


@dataclass(slots=True, eq=False, repr=False)
class Draft:
    """A reply being written. Only the engine and its strategy change it."""

    spec: DraftSpec
    number: int
    canvas: Canvas
    plan: Plan
    prompt: tuple[int, ...]
    strategy: Strategy
    picker: Picker
    phase: Phase = "first"
    text: CachedText | None = None
    """Its tokens in the prefix cache; None before it begins."""
    pending: list[int] = field(default_factory=list)
    """Tokens behind `text` that must be stored before the next step."""
    created: list[Node] = field(default_factory=list)
    """What its conversation keeps in the prefix cache because of this draft."""
    steps_first: int = 0
    steps_rest: int = 0
    phase_steps: int = 0
    """Steps in the present phase since its plan was set."""
    emitted: int = 0
    forced: int = 0
    unplaced: list[int] = field(default_factory=list)
    """Pins that have no place yet, by their index."""
    is_prefilled: bool = False
    cached_tokens: int = 0
    forwards_prefill: int = 0
    forwards_commit: int = 0
    forwards_wasted: int = 0
    seconds_prefill: float = 0.0
    seconds_denoise: float = 0.0
    forwards_other: int = 0
    """Denoising forwards that the plan does not count: those that rate kept tokens."""
    guards: int = 0
    reviser: Reviser | None = None
    """For options that change decided tokens or look at several steps."""
    is_settled: bool = True
    """False when the last step overwrote or masked again something: the live block goes on, although all of it is decided."""
    history: History | None = None
    """The convergence guard's memory, for drafts that are watched."""
    finishes_now: bool = False
    """The guard wants an end: no more revision, and everything is decided by the next step."""
    rescore: Rescore | None = None
    """Set while kept tokens are being rated."""
    steps_left_now: int = 1
    """Set before the strategy is asked for the next forward."""

    def __repr__(self) -> str:
        return f"<draft {self.number}: {self.phase}, {self.steps} steps, {self.canvas.decided_prefix()} tokens>"

    @property
    def deadline(self) -> float:
        deadline = self.plan.first_deadline if self.phase == "first" else self.plan.rest_deadline
        return float("inf") if deadline is None else deadline

    def gives_way(self, now: float) -> bool:
        """Whether it leaves the engine to drafts with less time."""
        if self.plan.is_speculative:
            return True
        until = self.plan.rest_yields_until
        return self.phase == "rest" and until is not None and now < until

    @property
    def guests(self) -> int:
        """Drafts that may share its forwards although they give way."""
        return self.plan.first_guests if self.phase == "first" else 0

    @property
    def steps(self) -> int:
        return self.steps_first + self.steps_rest

    def steps_left(self, now: float) -> int:
        """Steps that the present phase has left at this time, the next one included; at least one."""
        if self.finishes_now:
            return 1
        steps = self.plan.steps_first if self.phase == "first" else self.plan.steps_rest
        if now >= self.deadline:
            steps = min(steps, max(self.plan.floor, self.phase_steps + 1))
        return max(steps - self.phase_steps, 1)

    def is_spent(self, now: float) -> bool:
        """Whether the present phase has had all the steps that its plan and deadline grant."""
        steps = self.plan.steps_first if self.phase == "first" else self.plan.steps_rest
        if now >= self.deadline:
            steps = min(steps, self.plan.floor)
        return self.phase_steps >= steps

    def count_step(self) -> None:
        if self.phase == "first":
            self.steps_first += 1
        else:
            self.steps_rest += 1
        self.phase_steps += 1
