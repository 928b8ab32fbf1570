"""Open files of the server's process: how many its callers may take, and how many the system lets it have.

Without one left nobody is accepted, and whoever talks already can be harmed: no tool, no remote model and no new recogniser process is reached.
Pure but for `raise_limit`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from voiceagent.server_settings import ServerSettings

try:
    import resource
except ImportError:  # Windows, which has no such limit.
    resource = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

OWN = 192
"""What the process takes beside its callers: 15 with two recogniser processes (three pipes and handles each, of eight at most), 64 connections that
asyncio accepts in one go, and room for files that are open for a moment."""


@dataclass(frozen=True, slots=True)
class Limit:
    """RLIMIT_NOFILE: what holds, and what a process may raise it to by itself. `math.inf` is no limit."""

    soft: float
    hard: float


def needed(settings: ServerSettings, each: int = 1) -> int:
    """Descriptors that are in use when everybody is there who may be.

    Args:
        each: What a conversation takes: its own socket, and those to a remote model and to tools.
    """
    # As many phone bridges as conversations may have connected without a call yet.
    return OWN + settings.max_waiting + settings.max_sessions * (each + 1)


def sessions_within(limit: float, settings: ServerSettings, each: int = 1) -> int:
    """How many conversations `limit` descriptors are enough for, at most `settings.max_sessions`."""
    if limit >= needed(settings, each):
        return settings.max_sessions
    return max(0, int(limit - OWN - settings.max_waiting) // (each + 1))


def raised(limit: Limit, wanted: int) -> Limit:
    """The limit when a process has raised it for `wanted` descriptors as far as it may, and no further: children inherit it."""
    return Limit(max(limit.soft, min(wanted, limit.hard)), limit.hard)


def remedy(limit: Limit, settings: ServerSettings, each: int = 1) -> str | None:
    """What to do where `limit` is too small even when it is raised, else None."""
    wanted, sessions = needed(settings, each), sessions_within(limit.hard, settings, each)
    if sessions >= settings.max_sessions:
        return None
    more = f"start the server with a higher limit (`ulimit -n {wanted}`, LimitNOFILE={wanted} of systemd, `--ulimit nofile={wanted}` of docker)"
    return f"{more}, or set server.max_sessions to {sessions}" if sessions else more


def finding(limit: Limit, settings: ServerSettings, each: int = 1) -> str:
    """What is needed and what there is, in words."""
    there = "as many as it likes" if math.isinf(limit.hard) else f"{limit.hard:.0f}"
    callers = f"{settings.max_sessions} conversations and who waits for one"
    return f"{callers} take up to {needed(settings, each)} open files, and this process may have {there}"


def read_limit() -> Limit | None:
    """What holds for this process; None where the system has no such limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limit(_number(soft), _number(hard))


def raise_limit(settings: ServerSettings, each: int = 1) -> Limit | None:
    """Raise the limit of this process as far as `settings` ask for, and log what to do where that is too little.

    The server starts all the same: fewer callers than `max_sessions` find room.

    Returns:
        What holds now; None where the system has no such limit.
    """
    limit = read_limit()
    if limit is None:
        return None
    after = raised(limit, needed(settings, each))
    if after != limit:
        hard = resource.RLIM_INFINITY if math.isinf(limit.hard) else int(limit.hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(after.soft), hard))
        except (
            OSError,
            ValueError,
        ) as error:  # A sandbox that forbids it, or macOS, whose kernel has a limit of its own below the hard one.
            _log.warning(
                "the limit on open files could not be raised from %.0f to %.0f: %s", limit.soft, after.soft, error
            )
            after = Limit(limit.soft, limit.soft)
    if (what_to_do := remedy(after, settings, each)) is not None:
        _log.warning("%s; %s", finding(after, settings, each), what_to_do)
    return after


def _number(value: int) -> float:
    return math.inf if resource is not None and value == resource.RLIM_INFINITY else float(value)
