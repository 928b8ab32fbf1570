"""Which words of a transcript were misheard, and what was said instead: the rule, by evidence that somebody else brings. Pure.

A word is replaced when three things hold: that it was meant is improbable, another word sounds like it, and that word is many times as likely
in its place. Any one alone is no reason: callers say unexpected words, sounds are shared by many, and a language model always knows a
better one. The sound stands for what the recogniser's own scores would say if it gave any (a noisy channel: Kernighan, Church and Gale, A
Spelling Correction Program Based on a Noisy Channel Model, 1990).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from voiceagent.backends import Proposal
from voiceagent.errors import ConfigError

RepairMode: TypeAlias = Literal["off", "show", "use"]
REPAIR_MODES: tuple[RepairMode, ...] = ("off", "show", "use")
_TAIL = re.compile(r"[^\w']+$")


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """How much evidence it takes. The defaults are those that `benchmarks/repair.py` chose on one half of its speakers, heard without the agent's
    vocabulary.

    Raises:
        ConfigError: If a value is out of the range stated beside it.
    """

    mode: RepairMode = "off"
    """`show` tells what would be replaced, `use` replaces it."""
    below: float = 0.95
    """0 to 1. Words at least as probable as this are left alone."""
    factor: float = 100.0
    """1 to 1e9. The other word must be so many times as likely in the place."""
    distance: float = 0.35
    """0 to 1. How different the two may sound: 0 is the same, 1 has nothing in common."""

    def __post_init__(self) -> None:
        if self.mode not in REPAIR_MODES:
            raise ConfigError("asr.repair", self.mode, "'off', 'show' or 'use'")
        for name, low, high in (("below", 0.0, 1.0), ("factor", 1.0, 1e9), ("distance", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"asr.repair_{name}", getattr(self, name), f"a number from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Repair:
    """A transcript and what is replaced in it."""

    heard: str
    meant: str
    """With the replacements; the same where there are none."""
    replaced: tuple[Proposal, ...] = ()
    is_used: bool = False
    """Whether the agent goes by `meant`."""
    missed: Literal["overdue", "failed"] | None = None
    """Why nobody has said anything about it although they were asked."""

    @property
    def text(self) -> str:
        """What the agent goes by."""
        return self.meant if self.is_used else self.heard

    def as_json(self) -> dict[str, object] | None:
        """For timelines and clients; None where nothing is replaced."""
        if not self.replaced:
            return None
        words = [
            {
                "first": each.first,
                "heard": each.heard,
                "meant": each.meant,
                "probability": round(each.probability, 4),
                "factor": round(each.factor, 2),
                "distance": round(each.distance, 3),
            }
            for each in self.replaced
        ]
        return {"heard": self.heard, "meant": self.meant, "used": self.is_used, "words": words}


def repair(heard: str, proposals: Sequence[Proposal], settings: RepairSettings) -> Repair:
    """Choose among what is proposed: the likeliest first, and no word twice; ties go to the one that sounds more alike.

    Args:
        heard: The transcript; words are what blanks separate.
        proposals: For words of it.
    """
    words = heard.split()
    chosen: list[Proposal] = []
    taken: set[int] = set()
    fit = [each for each in proposals if is_convincing(each, settings)]
    for each in sorted(fit, key=lambda each: (-each.factor, each.distance, each.first)):
        places = set(range(each.first, each.last))
        if not places & taken and 0 <= each.first < each.last <= len(words):
            taken |= places
            chosen.append(each)
    chosen.sort(key=lambda each: each.first)
    for each in reversed(chosen):
        # What a recogniser writes behind a word stays.
        tail = _TAIL.search(words[each.last - 1])
        words[each.first : each.last] = [each.meant + (tail[0] if tail else "")]
    meant = " ".join(words) if chosen else heard
    return Repair(heard, meant, tuple(chosen), settings.mode == "use" and bool(chosen))


def is_convincing(proposal: Proposal, settings: RepairSettings) -> bool:
    """Whether one replacement has the evidence that is asked for."""
    return (
        proposal.probability < settings.below
        and proposal.distance <= settings.distance
        and proposal.factor >= settings.factor
    )
