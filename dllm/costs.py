"""What steps cost on this machine, learned from those that ran."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_KEPT = 64
"""Steps remembered per shape: enough for a 95th percentile, few enough to follow a machine that changes."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine would make of one more draft now. Times are None until something like it has been measured."""

    drafts: int
    """Unfinished ones."""
    batch: int
    """Drafts that would share its forwards."""
    step_p50_s: float | None
    step_p95_s: float | None
    waiting_tokens: int
    """Prompt tokens that must be stored before all present drafts can step."""
    prefill_s: float | None
    """Time those take."""


class StepCosts:
    """Durations of forwards by shape: drafts in the batch, window tokens rounded up to a power of two."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, int], deque[float]] = {}
        self._prefill: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def observe_step(self, batch: int, width: int, seconds: float) -> None:
        self._steps.setdefault((batch, _bucket(width)), deque(maxlen=_KEPT)).append(seconds)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        self._prefill.append((tokens, seconds))

    def load(self, drafts: int, batch: int, width: int, waiting_tokens: int) -> EngineLoad:
        """The cost of a step in that company, from the nearest shape that was measured."""
        near = min(
            self._steps,
            key=lambda shape: (abs(shape[0] - batch), abs(shape[1] - _bucket(width)), shape),
            default=None,
        )
        times = sorted(self._steps[near]) if near is not None else []
        tokens = sum(count for count, _ in self._prefill)
        per_token = sum(seconds for _, seconds in self._prefill) / tokens if tokens else None
        return EngineLoad(
            drafts,
            batch,
            times[len(times) // 2] if times else None,
            times[min(len(times) - 1, int(len(times) * 0.95))] if times else None,
            waiting_tokens,
            per_token * waiting_tokens if per_token is not None else None,
        )


def _bucket(width: int) -> int:
    return 1 << max(width - 1, 0).bit_length()
