"""Phone calls to a server in process: what their tests share."""

from __future__ import annotations

from tests.voiceagent.house import House
from tests.voiceagent.telephony.phone import Phone
from voiceagent.events import Item
from voiceagent.server_settings import ServerSettings

GREETING = "Welcome."
LONG = "One two three four five six. " * 12
KEYED = ServerSettings(host="0.0.0.0", api_key="secret-key")


def said(house: House, role: str = "agent") -> list[str]:
    """What the newest conversation remembers."""
    history = house.runtime.conversations[-1]._history
    return [item.text or "" for item in history if isinstance(item, Item) and item.role == role]


async def greeted(caller: Phone, **parameters: str) -> None:
    """A call that has begun and whose greeting was heard."""
    await caller.dial(**parameters)
    await caller.wait(1.0)
    assert caller.heard_s > 0.3
