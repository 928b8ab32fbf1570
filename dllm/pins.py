"""Spans that must be in a reply: the model chooses where, the engine sees to it that they are there, once and whole."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dllm.draft import Draft
from dllm.errors import PinsDoNotFitError
from dllm.sampling import place_spans

_PIN_CONFIDENCE = 0.5
"""A pin is fixed once its tokens' mean probability at the best place is above this."""


def pin_openings(draft: Draft) -> set[int]:
    """Tokens that begin a pin, in any case: beside a pin they would say it twice."""
    variants = draft.canvas.table.case_variants
    return {other for pin in draft.spec.pins for token in pin[:2] for other in (token, *variants.get(token, ()))}


def consider_pins(draft: Draft, positions: Sequence[int], logits: Tensor, steps_left: int) -> tuple[list[int], int]:
    """Fix pinned spans, left to right, once it is clear where they go.

    On an all-masked canvas every place is a little likely, and a wrong one forces words into a gap of the wrong size. So text is
    committed to the left of the leftmost span's likely place first, which makes it sharp; the span is fixed when the model is
    sure of it or surer than of any word before it, when no such word is left, or when the steps run out. The others are looked
    for again in the next step.

    Args:
        positions: Masked canvas positions, ascending, with the guesses of this step on the canvas.
        logits: [N, V] of those positions.

    Returns:
        Positions that may be committed in this step, and how many were pinned.

    Raises:
        PinsDoNotFitError: If there is no run of masked positions for one of them.
    """
    canvas, pins = draft.canvas, [draft.spec.pins[index] for index in draft.unplaced]
    stop = canvas.first_clause_end() if draft.phase == "first" else canvas.reply_end()
    placement = place_spans(logits, positions, pins, canvas.width)
    if placement is None:
        raise PinsDoNotFitError(sum(len(pin) for pin in pins), canvas.width)
    spans = sorted(zip(placement.starts, draft.unplaced, placement.confidences, strict=True))
    first = spans[0][0]
    closing = {canvas.table.end, *canvas.table.other_ends}
    openings = pin_openings(draft) | closing
    before = [at for at in positions if at < first and canvas.tokens[at] not in openings]
    surest = max((canvas.confidence[at] for at in before if at < stop), default=0.0)
    due = steps_left <= 2 and first < stop
    if spans[0][2] <= min(_PIN_CONFIDENCE, surest) and not due:
        return before, 0
    pinned = 0
    for start, index, _ in spans if due else spans[:1]:
        if start == first or start < stop:
            canvas.pin(start, draft.spec.pins[index])
            draft.unplaced.remove(index)
            pinned += len(draft.spec.pins[index])
    # What is beside the pins and right of them was guessed without them; it waits for a step, unless there is none.
    open_positions = [at for at in canvas.masked() if at < first - 1 or (steps_left <= 1 and not draft.unplaced)]
    return [at for at in open_positions if canvas.tokens[at] not in openings], pinned
