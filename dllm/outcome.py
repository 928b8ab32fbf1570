"""What the steps of one visit left, on its way from the device into the drafts.

Dimensions: B drafts, T window tokens, E hidden size, R remembered canvases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dllm.draft import Draft
from dllm.drafts import CellState
from dllm.errors import NoTokenLeftError, PinsDoNotFitError
from dllm.guard import Action, History

PINNED = 2
"""The state of a fixed cell on its way; 1 is any other decided one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did to one draft."""

    committed: int
    """Positions decided, less those masked again."""
    forced: int


@dataclass(frozen=True, slots=True)
class Visit:
    """What the steps of one visit left, on the host. A draft that is told nothing of it is as it was."""

    steps: list[list[list[float]]]
    """Per step and draft: tokens, states and confidence of `size` cells each, the counts, whether there is no room for pins, which have no place,
    and whether the next step went on with it."""
    size: int
    errors: dict[int, Exception]
    histories: list[Tensor]
    """Per step the guard's memory, [B, R + 1] int64 on the device; empty where nobody is watched."""
    hidden: Tensor
    """[B, T, E], of the last forward."""
    placing: frozenset[int] = frozenset()
    """Drafts whose pins were looked after on the device."""

    def put(self, draft: Draft, row: int, step: int) -> Outcome | Exception:
        """Put a step's result into the draft."""
        if row in self.errors:
            return self.errors[row]
        if draft.history is not None:
            kept = self.histories[step][row : row + 1]
            draft.history = History(kept[:, :-1], kept[:, -1])
        values = self.steps[step][row]
        if row in self.placing:
            is_full, *without = values[3 * self.size + 4 : -1]
            if is_full:
                pins = [draft.spec.pins[index] for index in draft.unplaced]
                return PinsDoNotFitError(sum(map(len, pins)), min(draft.canvas.width, draft.spec.width))
            draft.unplaced = [index for index in draft.unplaced if without[index]]
        return _keep(draft, values, self.size)

    def goes_on(self, row: int, step: int) -> bool:
        """Whether the draft took the step after it as well."""
        return step + 1 < len(self.steps) and bool(self.steps[step][row][-1])


def _keep(draft: Draft, values: Sequence[float], size: int) -> Outcome | Exception:
    """Put a round's result into the draft: tokens, states and confidence of `size` cells each, then the counts."""
    canvas = draft.canvas
    for at in range(canvas.width):
        if canvas.states[at] is CellState.PINNED:
            continue
        if values[size + at] == PINNED:
            canvas.pin(at, (int(values[at]),))
        else:
            canvas.put(at, int(values[at]), values[2 * size + at], is_decided=bool(values[size + at]))
    committed, forced, action, changed = map(int, values[3 * size : 3 * size + 4])
    draft.is_settled = not changed or draft.steps_left_now <= 1
    if action == Action.FINISH_GREEDILY and not draft.finishes_now:
        draft.finishes_now, draft.guards = True, draft.guards + 1
    elif action == Action.HOLD_ENDS:
        draft.guards += 1
    for at, is_decided in enumerate(canvas.decided()):
        if is_decided and canvas.tokens[at] == canvas.table.mask:
            return NoTokenLeftError(at)
    return Outcome(committed, forced)
