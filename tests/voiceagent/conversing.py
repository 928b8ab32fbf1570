"""A whole conversation on the manual clock, with instant models: what the tests of conversations share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tests.conftest import run_async
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedScorer,
    ScriptedTranscriber,
    ToneSynthesizer,
    silence,
    tone,
)
from voiceagent.agent import AgentProfile, Note
from voiceagent.backends import Backends, Samples, Transcriber
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.events import ConversationEvent
from voiceagent.session import SessionSettings
from voiceagent.tools import ToolCall

E = TypeVar("E")
REPLY = "Sure, one mocha. What size would you like?"


async def live_through(conversation: Conversation, clock: ManualClock, scenario: Awaitable[None]) -> None:
    """Open the conversation, let it happen, and close it; nothing of it may go on then."""
    async with conversation:
        await clock.settle()
        await scenario
    await clock.settle()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"left running: {others}"


@dataclass
class Line:
    """A conversation under test and everything it emitted."""

    clock: ManualClock
    conversation: Conversation
    llm: ScriptedDrafter
    asr: ScriptedTranscriber
    tts: ToneSynthesizer
    events: list[ConversationEvent] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    async def play(self, audio: Samples, frame: int = 320) -> None:
        """Send audio at the pace of speech."""
        for start in range(0, audio.size, frame):
            piece = audio[start : start + frame]
            await self.clock.advance(piece.size / 16_000)
            self.conversation.push_audio(piece)
        await self.clock.settle()

    async def speak_turn(self) -> None:
        await self.play(np.concatenate([tone(0.8), silence(0.5)]))


class FixedNotes:
    def hear(self, text: str) -> Note | None:
        if "crash" in text:
            raise RuntimeError("menu on fire")
        return Note("order: mocha, size missing", ("$4.75",)) if "mocha" in text else None


def talk(
    scenario: Callable[[Line], Awaitable[None]],
    *,
    heard: tuple[str | Exception, ...] = ("a mocha please",),
    written: tuple[str | Exception | ToolCall, ...] = (REPLY,),
    settings: SessionSettings | None = None,
    tts: ToneSynthesizer | None = None,
    gate: asyncio.Event | None = None,
    step_s: float = 0.01,
    scorer: ScriptedScorer | None = None,
    ears: Callable[[ManualClock], Transcriber] | None = None,
) -> Line:
    """`ears` hear instead of those that hear `heard`."""

    async def main() -> Line:
        clock = ManualClock(100.0)
        asr = ScriptedTranscriber(*heard, gate=gate)
        llm = ScriptedDrafter(clock, *written, step_s=step_s)
        voice = tts or ToneSynthesizer()
        events: list[ConversationEvent] = []
        conversation = Conversation(
            backends=Backends(LevelDetector(), asr if ears is None else ears(clock), llm, voice, scorer),
            agent=AgentProfile("café", "You take orders.", "Welcome to the café.", FixedNotes),
            settings=settings or SessionSettings(instructions="You take orders."),
            clock=clock,
            emit=events.append,
            budget=BudgetController(),
        )
        line = Line(clock, conversation, llm, asr, voice, events)
        await live_through(conversation, clock, scenario(line))
        return line

    return run_async(main())
