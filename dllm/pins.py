"""Spans that must be in a reply: the model chooses where, the engine sees to it that they are there, once and whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.canvas import Canvas, TokenTable
from dllm.draft import Draft
from dllm.drafts import CellState
from dllm.errors import PinsDoNotFitError
from dllm.sampling import place_spans

PIN_CONFIDENCE = 0.5
"""A pin is fixed once its tokens' mean probability at the best place is above this."""


def openings_of(pins: Sequence[Sequence[int]], table: TokenTable) -> set[int]:
    """Tokens that begin a pin, in any case: beside a pin they would say it twice."""
    variants = table.case_variants
    return {other for pin in pins for token in pin[:2] for other in (token, *variants.get(token, ()))}


def joins_pin(canvas: Canvas, position: int) -> bool:
    """Whether a token here stands right behind a pin that ends with a letter or a figure."""
    before = position - 1
    return before >= 0 and canvas.states[before] is CellState.PINNED and canvas.tokens[before] in canvas.table.word_end


def consider_pins(draft: Draft, positions: Sequence[int], logits: Tensor, steps_left: int) -> tuple[list[int], int]:
    """Fix pinned spans, left to right, once it is clear where they go.

    On an all-masked canvas every place is a little likely, and a wrong one forces words into a gap of the wrong size. So text is
    committed to the left of the leftmost span's likely place first, which makes it sharp; the span is fixed when the model is
    sure of it or surer than of any word before it, when no such word is left, or when the steps run out. The others are looked
    for again in the next step.

    A canvas that is written block by block may have a better place, or the only one, where the model has not looked yet: then the span
    waits for its block, or begins where the model would end the reply.

    A reply that the model begins with `DraftSpec.unpinned` is freed of its pins.

    Args:
        positions: Masked canvas positions, ascending, with the guesses of this step on the canvas.
        logits: [N, V] of those positions.

    Returns:
        Positions that may be committed in this step, and how many were pinned.

    Raises:
        PinsDoNotFitError: If there is no run of undecided positions for one of them.
    """
    canvas = draft.canvas
    if canvas.tokens[0] == draft.spec.unpinned:
        if positions[0] == 0 and steps_left > 1:
            return [0], 0  # Whether it is one is decided before anything else.
        draft.unplaced.clear()
        return list(positions), 0
    pins = [draft.spec.pins[index] for index in draft.unplaced]
    stop = canvas.first_clause_end() if draft.phase == "first" else canvas.reply_end()
    width = min(canvas.width, draft.spec.width)
    unseen = [at for at in canvas.masked() if at > positions[-1]]
    placement = place_spans(logits, positions, pins, width, unseen)
    if placement is None:
        raise PinsDoNotFitError(sum(len(pin) for pin in pins), width)
    spans = sorted(zip(placement.starts, draft.unplaced, placement.confidences, strict=True))
    first = spans[0][0]
    closing = {canvas.table.end, *canvas.table.other_ends}
    openings = openings_of(draft.spec.pins, canvas.table) | closing
    before = [at for at in positions if at < first and canvas.tokens[at] not in openings]
    due = steps_left <= 2 and first < stop
    if first > positions[-1] and not due:
        wanted = next((at for at in positions if canvas.tokens[at] in openings), None)
        if wanted != positions[0]:
            return [at for at in positions if wanted is None or at < wanted], 0
        first, index = _leftmost(draft, canvas.masked()) or spans[0][:2]
        spans, due = [(first, index, 1.0)], True  # the model would end here, or begin a pin
    surest = max((canvas.confidence[at] for at in before if at < stop), default=0.0)
    if before and spans[0][2] <= min(PIN_CONFIDENCE, surest) and not due:
        return before, 0
    pinned = 0
    for start, index, _ in spans if due else spans[:1]:
        if start == first or start < stop:
            _fix(draft, start, index)
            pinned += len(draft.spec.pins[index])
    # What is beside the pins and right of them was guessed without them; it waits for a step, unless there is none.
    open_positions = [at for at in canvas.masked() if at < first - 1 or (steps_left <= 1 and not draft.unplaced)]
    joining = canvas.table.joining
    return [
        at
        for at in open_positions
        if canvas.tokens[at] not in openings and not (canvas.tokens[at] in joining and joins_pin(canvas, at))
    ], pinned


def keep_room(draft: Draft, position: int) -> bool:
    """Pin the leftmost span where it must begin now: whether deciding `position`, the first that is open, would leave it no room."""
    canvas = draft.canvas
    if _leftmost(draft, [at for at in canvas.masked() if at != position]) is not None:
        return False
    found = _leftmost(draft, canvas.masked())
    if found is None:
        return False
    _fix(draft, *found)
    return True


def has_room(draft: Draft) -> bool:
    """Whether the pins that have no place yet fit among the undecided positions."""
    return not draft.unplaced or _leftmost(draft, draft.canvas.masked()) is not None


def _fix(draft: Draft, start: int, index: int) -> None:
    """Write a pin. A token decided before, which would now continue its last word, is decided anew; nobody has heard what is right of a gap."""
    canvas, pin = draft.canvas, draft.spec.pins[index]
    canvas.pin(start, pin)
    draft.unplaced.remove(index)
    behind = start + len(pin)
    if behind == canvas.width or canvas.states[behind] is not CellState.COMMITTED:
        return
    if canvas.tokens[behind] in canvas.table.joining and joins_pin(canvas, behind):
        canvas.remask(behind)


def _leftmost(draft: Draft, free: Sequence[int]) -> tuple[int, int] | None:
    """Start and index of the pin that comes first when all are put as far left as `free` positions allow; None without room."""
    # With a vocabulary of one token all places are alike, and ties go left.
    pins = [(0,) * len(draft.spec.pins[index]) for index in draft.unplaced]
    placement = place_spans(torch.zeros(0, 1), [], pins, min(draft.canvas.width, draft.spec.width), free)
    if placement is None:
        return None
    first = min(placement.starts)
    return first, draft.unplaced[placement.starts.index(first)]
