"""Open files of a server's process: how many those it serves may take, and how many the system lets it have.

Without one left nobody is accepted, and whoever is served already can be harmed: no other connection and no new process is reached.
Pure but for `read_limit` and `raise_limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows, which has no such limit.
    resource = None  # type: ignore[assignment]

OWN = 192
"""What a process takes beside those it serves: 15 with two recogniser processes (three pipes and handles each, of eight at most), 64 connections that
asyncio accepts in one go, and room for files that are open for a moment. `dllm serve` takes fewer than a recogniser's server."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a server needs when everybody is there who may be."""

    guests: int
    """How many are served at one time."""
    each: int
    """Open files that one of them takes."""
    waiting: int
    """Connections that owe a request."""
    named: str
    """The guests in words, such as "conversations"."""
    option: str
    """What bounds their number, such as "server.max_sessions"."""

    @property
    def needed(self) -> int:
        """Descriptors in use then."""
        return OWN + self.waiting + self.guests * self.each

    def guests_within(self, limit: float) -> int:
        """How many guests `limit` descriptors are enough for, at most `guests`."""
        if limit >= self.needed:
            return self.guests
        return max(0, int(limit - OWN - self.waiting) // self.each)


@dataclass(frozen=True, slots=True)
class Limit:
    """RLIMIT_NOFILE: what holds, and what a process may raise it to by itself. `math.inf` is no limit."""

    soft: float
    hard: float


def raised(limit: Limit, wanted: int) -> Limit:
    """The limit when a process has raised it for `wanted` descriptors as far as it may, and no further: children inherit it."""
    return Limit(max(limit.soft, min(wanted, limit.hard)), limit.hard)


def remedy(limit: Limit, demand: Demand) -> str | None:
    """What to do where `limit` is too small even when it is raised, else None."""
    wanted, guests = demand.needed, demand.guests_within(limit.hard)
    if guests >= demand.guests:
        return None
    more = f"start the server with a higher limit (`ulimit -n {wanted}`, LimitNOFILE={wanted} of systemd, `--ulimit nofile={wanted}` of docker)"
    return f"{more}, or set {demand.option} to {guests}" if guests else more


def finding(limit: Limit, demand: Demand) -> str:
    """What is needed and what there is, in words."""
    there = "as many as it likes" if math.isinf(limit.hard) else f"{limit.hard:.0f}"
    crowd = f"{demand.guests} {demand.named} and who waits for one"
    return f"{crowd} take up to {demand.needed} open files, and this process may have {there}"


def read_limit() -> Limit | None:
    """What holds for this process; None where the system has no such limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limit(_number(soft), _number(hard))


def raise_limit(demand: Demand, tell: Callable[[str], None]) -> Limit | None:
    """Raise the limit of this process as far as `demand` asks for, and say what to do where that is too little.

    The server starts all the same: fewer guests than were allowed find room.

    Args:
        tell: Hears a sentence where the limit cannot be raised or is too small.

    Returns:
        What holds now; None where the system has no such limit.
    """
    limit = read_limit()
    if limit is None:
        return None
    after = raised(limit, demand.needed)
    if after != limit:
        hard = resource.RLIM_INFINITY if math.isinf(limit.hard) else int(limit.hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(after.soft), hard))
        except (OSError, ValueError) as error:
            # A sandbox that forbids it, or macOS, whose kernel has a limit of its own below the hard one.
            tell(f"the limit on open files could not be raised from {limit.soft:.0f} to {after.soft:.0f}: {error}")
            after = Limit(limit.soft, limit.soft)
    if (what_to_do := remedy(after, demand)) is not None:
        tell(f"{finding(after, demand)}; {what_to_do}")
    return after


def _number(value: int) -> float:
    return math.inf if resource is not None and value == resource.RLIM_INFINITY else float(value)
