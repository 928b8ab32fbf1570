"""Who is next: the drafts that take part in a round. Pure but for the one question that it asks, whether there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from dllm.draft import Draft

Entry: TypeAlias = Literal["open", "waits", "failed"]
"""What became of a draft that asked for room: it has it, it waits for it, or it never will have it and is gone."""


def pick(
    drafts: Sequence[Draft], most: int, clock: Callable[[], float], enter: Callable[[Draft], Entry]
) -> list[Draft]:
    """The drafts with the nearest deadlines that have room in the cache, at most `most`; beside one that does not give way, only
    as many of those that do as its plan lets in.

    One that waits for room holds up nobody who has it, or it would wait for ever; and nobody who has not begun overtakes it. Speculative
    drafts are picked where nobody waits for another.

    Args:
        clock: Read only where a plan says until when it gives way.
        enter: Takes room for a draft that has none yet.
    """
    awaited = [draft for draft in drafts if not draft.plan.is_speculative]
    # A speculative draft may hold the very room that an awaited one waits for: then it has to come to its end.
    others = [draft for draft in drafts if draft.plan.is_speculative]
    return _pick_from(awaited, most, clock, enter) or _pick_from(others, most, clock, enter)


def _pick_from(
    awaited: list[Draft], most: int, clock: Callable[[], float], enter: Callable[[Draft], Entry]
) -> list[Draft]:
    picked: list[Draft] = []
    is_full = False
    now = clock() if any(draft.plan.rest_yields_until is not None for draft in awaited) else 0.0
    waits = {draft.number for draft in awaited if draft.gives_way(now)}
    guests = len(awaited)
    if len(waits) < len(awaited):
        guests = min(draft.guests for draft in awaited if draft.number not in waits)
    for draft in sorted(awaited, key=lambda draft: (draft.number in waits, draft.deadline, draft.number)):
        if len(picked) == most:
            break
        if draft.number in waits:
            if guests == 0:
                break
            guests -= 1
        if draft.text is not None:
            picked.append(draft)
        elif not is_full:
            entry = enter(draft)
            is_full = entry == "waits"
            if entry == "open":
                picked.append(draft)
    return picked
