"""What conversations are asked in which somebody speaks over the agent."""

from __future__ import annotations

from tests.voiceagent.conversing import Line
from tests.voiceagent.standins import silence
from voiceagent.events import (
    Item,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    SpeechStarted,
)
from voiceagent.turn import Phase

LONG = "One two three four five six. " * 6


def agents_words(line: Line) -> list[str]:
    return [item.text or "" for item in line.conversation._history if isinstance(item, Item) and item.role == "agent"]


async def answered(line: Line) -> None:
    """A turn was spoken and its answer plays."""
    await line.speak_turn()
    await line.play(silence(1.3))
    assert line.conversation.phase is Phase.SPEAKING


def over(line: Line) -> list[str]:
    kinds = (PlaybackDucked, PlaybackMuted, PlaybackRestored, SpeechStarted)
    return [type(event).__name__ for event in line.events if isinstance(event, kinds)][1:]
