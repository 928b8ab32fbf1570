"""What a phone has played, told by the marks that come back. Pure bookkeeping; every time is passed in.

A bridge plays what it is sent as a queue, and returns a mark once everything in front of it was played. What a mark confirms was
heard; behind the newest one time itself tells how far the next piece has come, but never past the mark that has not come back yet. So
the position errs to the early side: a word counts as heard when it was. A bridge that returns no marks plays what it gets as it arrives, as far as anybody knows.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

RATE_HZ = 8000
MAX_PENDING = 4096
"""Marks remembered; a bridge that returns none lets them grow, and the oldest have long been played."""
OVERDUE_S = 2.0
"""A first mark that is so much later than its audio can have been played: this bridge returns none."""

EARLY_S = 0.2
"""By which the place where such a bridge goes on after a hold errs to the early side: its distance and its buffer are not known, and a word that
is heard twice is better than one that is lost."""
ROUND_TRIP_S = 0.2
"""A piece that left so long before a mark came back was in the queue behind it, and began to play when that mark was passed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an item's audio: µ-law at 8 kHz, and where it lies in seconds from the item's first sample."""

    item_id: str
    start_s: float
    end_s: float
    audio: bytes = b""

    def after(self, heard_s: float) -> Piece:
        """The same without what was heard of it."""
        at = min(max(math.floor((heard_s - self.start_s) * RATE_HZ), 0), len(self.audio))
        return replace(self, start_s=self.start_s + at / RATE_HZ, audio=self.audio[at:])


@dataclass(frozen=True, slots=True)
class _Sent:
    piece: Piece
    at: float


class Marks:
    """The pieces on their way to the caller's ear, each with its mark."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._epoch = 1
        self._pending: OrderedDict[str, _Sent] = OrderedDict()
        self._returned_at: float | None = None
        """When the newest mark came back; what is queued behind it has been playing since."""
        self._ever_returned = False
        self._returns_none = False
        """Known once a mark was overdue, and not forgotten with the queue: the next reply is no news about the bridge."""

    @property
    def is_playing(self) -> bool:
        """Whether anything has been sent that no mark has confirmed."""
        return bool(self._pending)

    def sent(self, piece: Piece, now: float) -> str:
        """Another piece left; the name of the mark that has to follow it."""
        name = f"{self._epoch}.{next(self._numbers)}"
        self._pending[name] = _Sent(piece, now)
        if len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
        return name

    def returned(self, name: str, now: float) -> Mapping[str, float]:
        """A mark has come back; how much of which items has been played, by item id in seconds.

        A mark that is not ours, or was in the queue when it was cleared, says nothing: bridges return those at once, unplayed.
        """
        if name not in self._pending:
            return {}
        self._ever_returned, self._returns_none = True, False
        self._returned_at = now
        played: dict[str, float] = {}
        while True:  # A queue: what lies in front of this mark was played too.
            first, sent = self._pending.popitem(last=False)
            played[sent.piece.item_id] = sent.piece.end_s
            if first == name:
                return played

    def heard(self, now: float) -> Mapping[str, float] | None:
        """How much was heard of every item that is still playing; None when this bridge does not tell."""
        if not self._pending:
            return {}
        first = next(iter(self._pending.values()))
        piece = first.piece
        if not self._ever_returned and now > first.at + (piece.end_s - piece.start_s) + OVERDUE_S:
            self._returns_none = True
        if self._returns_none:
            return None
        heard = {sent.piece.item_id: 0.0 for sent in reversed(self._pending.values())}
        played_s = 0.0
        if self._returned_at is not None and first.at + ROUND_TRIP_S <= self._returned_at:
            played_s = min(max(now - self._returned_at, 0.0), piece.end_s - piece.start_s)
        heard[piece.item_id] = piece.start_s + played_s
        return heard

    def unheard(self, now: float) -> list[Piece]:
        """What was sent and not heard, in order, the first piece from where it was."""
        heard = self.heard(now)
        if heard is None:
            return self._unheard_by_time(now - EARLY_S)
        pieces = [sent.piece for sent in self._pending.values()]
        return [pieces[0].after(heard[pieces[0].item_id]), *pieces[1:]] if pieces else []

    def _unheard_by_time(self, now: float) -> list[Piece]:
        unheard: list[Piece] = []
        dry_at = -math.inf
        for sent in self._pending.values():
            began, piece = max(sent.at, dry_at), sent.piece
            dry_at = began + piece.end_s - piece.start_s
            if now < dry_at:
                unheard.append(piece.after(piece.start_s + max(now - began, 0.0)))
        return unheard

    def cleared(self) -> None:
        """The bridge was told to forget its queue; the marks that it returns for that reason no longer count."""
        self._pending.clear()
        self._epoch += 1
