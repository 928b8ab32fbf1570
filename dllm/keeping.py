"""What of an earlier draft a new one may start from, once prompt and pins have changed. Pure.

A pin is never kept as words: it was a fact of the old prompt. Where the new prompt has a pin in its stead that pin takes its place, and what
stood behind moves along; where it has none, or more, nothing from there on is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllm.canvas import Canvas
from dllm.drafts import CellState

Pin = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """For `DraftSpec.keep` and `DraftSpec.keep_pins`."""

    tokens: tuple[int, ...] = ()
    pins: tuple[tuple[int, int], ...] = ()


def kept_canvas(canvas: Canvas, old: Sequence[Pin], new: Sequence[Pin], width: int) -> Kept:
    """The decided tokens of a canvas up to its end-of-turn, masks where nothing was decided.

    Args:
        old: The pins of the draft that the canvas belongs to.
        new: Those of the draft that is to follow.
        width: Canvas positions of that draft.
    """
    heirs = _heirs(old, new)
    kept, is_whole = _walk(canvas, old, new, heirs, width, 0)
    if is_whole and len(heirs) < len(new) and len(kept.pins) < len(new):
        return Kept()  # No pin of the old draft says where the new ones may go.
    return kept


def kept_tail(canvas: Canvas, old: Sequence[Pin], new: Sequence[Pin], width: int, start: int) -> Kept:
    """The same from position `start` on, for a reply of which the beginning was heard.

    It answered other words, so figures and names in it are kept as pins only. Where the new prompt has a pin that has no place in it, nothing is
    kept: that pin would come after everything else.
    """
    kept, _ = _walk(canvas, old, new, _heirs(old, new), width, start, with_facts=False)
    return kept if len(kept.pins) == len(new) else Kept()


def _walk(
    canvas: Canvas,
    old: Sequence[Pin],
    new: Sequence[Pin],
    heirs: Mapping[int, int],
    width: int,
    start: int,
    *,
    with_facts: bool = True,
) -> tuple[Kept, bool]:
    """Tokens and pins from `start` on, and whether that was all there is."""
    places, mask = pin_places(canvas, old), canvas.table.mask
    end = min(canvas.reply_end() + 1, canvas.width)
    tokens: list[int] = []
    pins: list[tuple[int, int]] = []
    at, is_whole = start, True
    while at < end and len(tokens) < width:
        index = places.get(at)
        if index is None:
            # A pin's token that belongs to no place is a `given` one, which the next draft is given itself.
            is_kept = canvas.states[at] is CellState.COMMITTED and (with_facts or not canvas.is_fact(at))
            tokens.append(canvas.tokens[at] if is_kept else mask)
            at += 1
            continue
        heir = heirs.get(index)
        is_last = len(pins) + 1 == len(heirs) < len(new)
        if heir is None or len(tokens) + len(new[heir]) >= width:
            is_whole = False
            break
        pins.append((heir, len(tokens)))
        tokens += [mask] * len(new[heir])
        at += len(old[index])
        if is_last:
            is_whole = False
            break  # The others need room behind.
    has_words = any(token != mask for token in tokens)
    return (Kept(tuple(tokens), tuple(pins)) if has_words else Kept()), is_whole


def pin_places(canvas: Canvas, pins: Sequence[Pin]) -> dict[int, int]:
    """Where each pin that has its place stands: its index by position."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    for index, pin in enumerate(pins):
        for start in range(canvas.width - len(pin) + 1):
            span = range(start, start + len(pin))
            is_pinned = all(canvas.states[at] is CellState.PINNED and at not in taken for at in span)
            if is_pinned and tuple(canvas.tokens[start : start + len(pin)]) == pin:
                found[start] = index
                taken.update(span)
                break
    return found


def _heirs(old: Sequence[Pin], new: Sequence[Pin]) -> dict[int, int]:
    """Which new pin takes the place of an old one: as many pins follow one another in order, otherwise the same ones do."""
    if len(old) == len(new):
        return {index: index for index in range(len(old))}
    return {index: new.index(pin) for index, pin in enumerate(old) if pin in new}
