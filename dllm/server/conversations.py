"""Which conversations the prefix cache keeps: the latest ones, and none that is silent for long. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conversation:
    """The prefix cache's name for requests that continue each other. One that the client did not name is its request's own."""

    key: str
    is_named: bool


class ConversationBook:
    """Conversations by when they were last used.

    Args:
        most: How many are kept.
        idle_s: Seconds of silence after which one is dropped.
    """

    def __init__(self, most: int, idle_s: float) -> None:
        self._most, self._idle_s = most, idle_s
        self._used: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def touch(self, conversation: str, now: float) -> list[str]:
        """Note that a conversation is used now; those that are to be forgotten because of it or of the time, oldest first."""
        self._used[conversation] = now
        self._used.move_to_end(conversation)
        dropped = []
        while self._used:
            oldest, used = next(iter(self._used.items()))
            if len(self._used) <= self._most and now - used < self._idle_s:
                break
            del self._used[oldest]
            dropped.append(oldest)
        return dropped
