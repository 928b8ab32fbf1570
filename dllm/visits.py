"""How many denoising steps a company takes between two visits of the host. Pure decisions, no clock.

The host decides what a draft's next forward looks like, when a phase is over, what may be spoken and who joins. Where none of that can change
for some steps, they follow each other on the device, and the host hears of all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from dllm.draft import Draft, Live, Work
from dllm.reading import needs_host


def steps_together(works: Sequence[tuple[Draft, Work]], most: int, before_deadline: int) -> int:
    """Steps that the company may take unseen, at least one: the largest power of two, so that recordings are few.

    Args:
        most: What the engine was told.
        before_deadline: Steps until the first deadline of the company.
    """
    limit = min([most, before_deadline, *(steps_alone(draft, work) for draft, work in works)])
    return 1 << max(limit, 1).bit_length() - 1


def steps_alone(draft: Draft, work: Work) -> int:
    """Steps for which a draft needs no decision of the host's, as long as it has something open."""
    if not isinstance(work, Live) or work.shadow or work.commits:
        return 1
    if needs_host(draft, work):
        return 1
    return max(min(work.alike, work.steps_left), 1)


def goes_on_from(work: Work | None, before: Live, steps: int) -> bool:
    """Whether what a draft wants now is what it wanted so many steps before, with as many less left."""
    if not isinstance(work, Live):
        return False

    def place(live: Live) -> tuple[object, ...]:
        window = live.window
        return (
            *(window.start, window.length, tuple(window.visible), live.lead, live.lo, live.hi, live.stop),
            *(live.open_lo, live.open_hi, live.due_hi, live.beyond, live.commits),
        )

    return place(work) == place(before) and work.steps_left == before.steps_left - steps


def steps_before(deadline: float, now: float, step_s: float | None, most: int) -> int:
    """Steps that fit before a deadline, as far as is known what one takes; at least one, at most `most`.

    What is late already takes one step at a time: its plan may end at any of them.
    """
    if deadline <= now:
        return 1
    if not step_s or deadline == float("inf"):
        return most
    return min(max(int((deadline - now) / step_s), 1), most)
