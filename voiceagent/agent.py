"""Who the caller talks to: instructions, greeting, and the function that turns what was said into facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from voiceagent.tools import ServerTool


@dataclass(frozen=True, slots=True)
class Note:
    """Facts for the model, from a tool. `must_say` is pinned into the reply word for word; the model chooses where."""

    text: str
    must_say: tuple[str, ...] = ()


class NoteTaker(Protocol):
    """Listens to one conversation and keeps its own state, such as an order book."""

    def hear(self, text: str) -> Note | None:
        """The facts that follow from the caller's words, or None when there are none. Must be quick: it runs before the first step."""
        ...


@runtime_checkable
class ImaginingNoteTaker(NoteTaker, Protocol):
    """One that can be asked beforehand. Replies to callers of others are drafted once their turn is over, and not before."""

    def imagine(self, text: str) -> Note | None:
        """What `hear` would return, without having heard it."""
        ...


@dataclass(frozen=True, slots=True)
class AgentProfile:
    """An agent as its preset describes it. `notes` makes a fresh note taker for each conversation; `tools` are shared by all."""

    name: str
    instructions: str = ""
    greeting: str = ""
    notes: Callable[[], NoteTaker] | None = None
    tools: tuple[ServerTool, ...] = ()
