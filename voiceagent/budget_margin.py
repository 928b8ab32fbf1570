"""How much earlier than its target an answer is planned, so that few that were promised in time are late. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAY_MISS = 0.003
"""Share of promises that may be broken: under half of the one in a hundred that a caller of an unloaded server is told of."""
GAIN_S = 0.03
"""A broken promise adds about this much, a kept one takes a `MAY_MISS`th part of it away."""
MOST_S = 0.1
"""The margin never eats more of a target, however unsteady the machine."""


@dataclass(slots=True)
class Margin:
    """Time kept free before every target.

    Plans add up stages at their 95th percentile. What remains (the tail of the stages behind the last step, a machine that is slow for
    all stages at once) is not known beforehand but shows in how often promises are broken, so that share is steered: online
    adaptive conformal inference (Gibbs and Candès 2021, arXiv:2106.00170), where the threshold is a time.
    """

    seconds: float = 0.0

    def answered(self, *, late: bool) -> None:
        """A turn that was planned to be on time was, or was not."""
        moved = self.seconds + GAIN_S * ((1.0 if late else 0.0) - MAY_MISS)
        self.seconds = min(max(moved, 0.0), MOST_S)
