"""What the caller has heard so far: pure bookkeeping of the audio that left and of where each word lies in it.

The client owns the loudspeaker. Until it reports a position, the estimate assumes that playing starts when audio arrives and pauses
only when the queue is empty. While somebody speaks over it a reply is ducked or held: what plays ducked counts as heard once it is
restored, and not when it is stopped; what is held or muted waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class SpokenClause:
    """A clause and the stretch of the reply's audio that speaks it, in seconds from the reply's first sample."""

    text: str
    start_s: float
    end_s: float
    is_complete: bool = False
    """Whether all of its audio has left; until then its true end is a guess."""


SECONDS_PER_CHAR = 0.06
"""Length of speech by its letters, for a clause whose audio is not complete: 170 words a minute, six letters each."""


CONFIRMED_S = 0.02
"""Clients report whole samples of another rate, or milliseconds: so little may be missing."""


@dataclass(slots=True)
class Playout:
    """One reply's audio. Mutable, owned by one conversation; every time is passed in.

    `not_before` is when the caller's queue runs dry of an earlier reply that is still playing: this one is heard after it.
    """

    not_before: float = float("-inf")
    clauses: list[SpokenClause] = field(default_factory=list)
    sent_s: float = 0.0
    _dry_at: float | None = None
    _reported_s: float | None = None
    _cut_s: float | None = None
    """Where the client has cut it: what lies behind is not heard, whatever was sent."""
    _stopped_s: float | None = None
    """What had been heard when it was stopped, by our estimate; the client may know better."""
    _ducked_s: float | None = None
    """What had been played when it was ducked."""
    _held_at: float | None = None
    """Since when nothing is played; times after it move by the length of the hold when it ends."""

    def begin_clause(self, text: str) -> None:
        """Audio that follows speaks `text`."""
        self.clauses.append(SpokenClause(text, self.sent_s, self.sent_s))

    def end_clause(self) -> None:
        """The last clause's audio is complete."""
        if self.clauses:
            self.clauses[-1] = replace(self.clauses[-1], is_complete=True)

    def sent(self, duration_s: float, now: float) -> float:
        """Another piece of audio left for the caller; when it will have been played."""
        now = self._time(now)
        if self.is_over:
            self.sent_s += duration_s
            return now
        start = max(now, self.not_before if self._dry_at is None else self._dry_at)
        self._dry_at = start + duration_s
        self.sent_s += duration_s
        if self.clauses:
            last = self.clauses[-1]
            self.clauses[-1] = replace(last, end_s=self.sent_s)
        return self._dry_at

    def wait_for(self, earlier: Playout) -> None:
        """Be heard behind an earlier reply, which is playing."""
        assert earlier._dry_at is not None
        self.not_before, self._held_at = earlier._dry_at, earlier._held_at

    def report(self, played_s: float, now: float) -> None:
        """The client says how much it has played; later estimates start from there. Less than it said before is old news."""
        now = self._time(now)
        played_s = min(max(played_s, 0.0), self.sent_s)
        if self.is_over or (self._reported_s is not None and played_s < self._reported_s):
            return
        self._reported_s = played_s
        if self._dry_at is not None:
            # All of it was played by now, but perhaps earlier: the report may have come late.
            self._dry_at = min(self._dry_at, now) if self.is_confirmed else now + self.sent_s - played_s

    def cut(self, end_s: float, now: float) -> float:
        """The client plays nothing behind `end_s`, or behind an earlier cut; where the audio ends now."""
        self._cut_s = min(max(end_s, 0.0), self.sent_s if self._cut_s is None else self._cut_s)
        self._ducked_s = None
        if self._dry_at is not None:
            self._dry_at = min(self._dry_at, max(self._time(now), self.not_before))
        if self._held_at is not None and self.not_before <= self._held_at:
            self._held_at = None  # Else what plays before it is held, and it is over when that is.
        return self._cut_s

    def follow(self, earlier_dry_at: float) -> None:
        """What plays before it ends at another moment than was thought: what waits for that moves with it."""
        if self._dry_at is not None and self.is_over:
            self._dry_at = min(self._dry_at, earlier_dry_at)  # Cut before it began, it was over when that was.
            if self._held_at is not None and earlier_dry_at <= self._held_at:
                self._held_at = None
        elif self._dry_at is not None and self._reported_s is None:
            # It begins where that ends, unless it came later.
            moves = self._dry_at - self.sent_s <= self.not_before + 1e-6
            self._dry_at += earlier_dry_at - self.not_before if moves else 0.0
        self.not_before = earlier_dry_at

    def stop(self, now: float) -> None:
        """The client was told to play no more of it: nothing waits for its end, and what was heard stays."""
        if self._stopped_s is None:
            self._stopped_s, self._held_at = self.heard_s(now), None
            if self._dry_at is not None:
                self._dry_at = min(self._dry_at, now)

    @property
    def is_over(self) -> bool:
        """It was cut or stopped: what is sent of it from now on is not played."""
        return self._cut_s is not None or self._stopped_s is not None

    @property
    def is_cut(self) -> bool:
        return self._cut_s is not None

    def duck(self, now: float) -> None:
        """What plays from now on is turned down, because somebody may be speaking over it."""
        if self._ducked_s is None:
            self._ducked_s = self.played_s(now)

    def restore(self) -> None:
        """It is turned up again, and has been heard."""
        self._ducked_s = None

    def hold(self, now: float) -> None:
        """The client plays nothing until `resume`, and so nothing ducked."""
        if self._held_at is None:
            self._held_at, self._ducked_s = now, None

    def mute(self, now: float) -> None:
        """The client, which has ducked it, plays nothing until `resume`; what played ducked is as little heard as before."""
        if self._held_at is None:
            self._held_at = now

    def resume(self, now: float) -> None:
        """The client plays on where it was held."""
        if self._held_at is None:
            return
        held_s, self._held_at = max(now - self._held_at, 0.0), None
        self.not_before += held_s
        if self._dry_at is not None:
            self._dry_at += held_s

    def is_playing(self, now: float) -> bool:
        """Whether something of what was sent has still to be played, as far as is known; also while it is held."""
        return self._dry_at is not None and (self.is_held or self._dry_at > now)

    @property
    def is_held(self) -> bool:
        return self._held_at is not None

    def _time(self, now: float) -> float:
        return now if self._held_at is None else self._held_at

    @property
    def is_confirmed(self) -> bool | None:
        """Whether the client says that all of it was played; None where it has said nothing."""
        return None if self._reported_s is None else self._reported_s >= self.sent_s - CONFIRMED_S

    def dry_at(self) -> float | None:
        """When the caller's queue runs empty if nothing more is sent; None before the first audio. Held, by the clock that stood still when that began."""
        return self._dry_at

    def due_at(self, now: float) -> float | None:
        """The same for whoever makes more of it: held, it is as if that ended now."""
        return None if self._dry_at is None else self._dry_at + max(now - self._time(now), 0.0)

    def played_s(self, now: float) -> float:
        """Seconds of the reply played by `now`."""
        if self._dry_at is None:
            return 0.0
        ended_s = self._stopped_s if self._cut_s is None else self._cut_s
        if ended_s is not None:
            return ended_s
        now = self._time(now)
        estimate = self.sent_s - max(self._dry_at - now, 0.0)
        return min(max(estimate, self._reported_s or 0.0, 0.0), self.sent_s)

    def heard_s(self, now: float) -> float:
        """Seconds of the reply heard by `now`, should it be stopped now: what is ducked is not heard."""
        played_s = self.played_s(now)
        return played_s if self._ducked_s is None else min(self._ducked_s, played_s)

    @property
    def text(self) -> str:
        """All the words that have or will have audio, as far as is known: what was heard is their beginning."""
        return " ".join(clause.text.strip() for clause in self.clauses)

    def heard_text(self, played_s: float) -> str:
        """The words that were spoken to their end within the first `played_s` seconds.

        Inside a clause, words are placed by their share of its characters: synthesizers report no word times, and over a clause
        of two seconds the error is about one short word. A word that is cut does not count as heard.
        """
        heard: list[str] = []
        for clause in self.clauses:
            if clause.end_s <= clause.start_s:
                continue  # Not a sample of it has left.
            end_of_clause_s = clause.end_s
            if not clause.is_complete:
                end_of_clause_s = max(clause.end_s, clause.start_s + SECONDS_PER_CHAR * len(clause.text.strip()))
            if end_of_clause_s <= played_s + 1e-6:
                heard.append(clause.text.strip())
                continue
            length = max(len(clause.text.strip()), 1)
            end_char = 0
            for word in clause.text.split():
                end_char += len(word)
                end_s = clause.start_s + (end_of_clause_s - clause.start_s) * end_char / length
                if end_s > played_s:
                    return " ".join(heard)
                heard.append(word)
                end_char += 1
            return " ".join(heard)
        return " ".join(part for part in heard if part)
