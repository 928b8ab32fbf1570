"""When learning is over: the best step so far, and how long nothing has been better. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST_GAIN = 0.002
"""Nats per token that count as better: less is within what another draw of masks would give."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the held-back loss, in nats per token, has been."""

    best: float
    best_step: int = 0
    """0 is the model as it was."""
    worse: int = 0
    """Measurements since."""

    def after(self, step: int, loss: float) -> Watch:
        """With one more measurement. A loss that is not a number is no better than any."""
        if loss < self.best - LEAST_GAIN:
            return Watch(loss, step)
        return replace(self, worse=self.worse + 1)

    @property
    def is_best(self) -> bool:
        """Whether the last measurement is the best one."""
        return self.worse == 0

    def is_over(self, patience: int) -> bool:
        return self.worse >= patience
