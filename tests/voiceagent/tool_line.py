"""Conversations whose replies call tools, on the manual clock, with stand-in drafters and tools that the test holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tests.conftest import run_async
from tests.voiceagent.conversing import live_through
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedTranscriber,
    ToneSynthesizer,
    silence,
    tone,
)
from voiceagent.agent import AgentProfile
from voiceagent.backends import Backends, DraftRequest
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.events import ConversationEvent, Item, ItemAdded, OutputItem, TurnTraced
from voiceagent.session import SessionSettings
from voiceagent.tools import ServerTool, ToolCall, ToolSpec, parameters_schema

E = TypeVar("E")
DONE = "Table 12 is yours."
BOOK = ToolCall("book_table", {"people": 4}, "book_table; people: four")
LOOK = ToolCall("opening_hours")
SPEC = ToolSpec("book_table", "books a table", parameters_schema("p", {"people": "integer", "day": "string?"}))


@dataclass
class Desk:
    """A tool under the test's hand. With a gate it answers when that is set."""

    answer: object = "table 12"
    gate: asyncio.Event | None = None
    asked: list[Mapping[str, object]] = field(default_factory=list)
    cancelled: int = 0

    async def run(self, arguments: Mapping[str, object]) -> object:
        self.asked.append(arguments)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@dataclass
class Line:
    clock: ManualClock
    conversation: Conversation
    llm: ScriptedDrafter
    tts: ToneSynthesizer
    events: list[ConversationEvent]

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def say(self, text: str = "a table for four") -> None:
        self.conversation.add_item(Item(f"typed_{len(self.events)}", "user", text))
        self.conversation.create_response()
        await self.clock.settle()

    async def speak(self) -> None:
        audio = np.concatenate([tone(0.8), silence(0.5)])
        for start in range(0, audio.size, 320):
            await self.clock.advance(0.02)
            self.conversation.push_audio(audio[start : start + 320])
        await self.clock.settle()

    def request(self, number: int = -1) -> DraftRequest:
        return self.llm.drafts[number].request

    def notes(self, number: int = -1) -> list[str]:
        return [turn.text for turn in self.request(number).turns if turn.role == "note"]

    def outputs(self) -> list[OutputItem]:
        return [event.item for event in self.of(ItemAdded) if isinstance(event.item, OutputItem)]

    def outcomes(self) -> list[Any]:
        tools: Any = [event.timeline["tools"] for event in self.of(TurnTraced)]
        return [record["outcome"] for records in tools for record in records]


def talk(
    scenario: Callable[[Line], Awaitable[None]],
    *written: str | Exception | ToolCall,
    tools: tuple[ServerTool, ...] = (),
    heard: tuple[str, ...] = ("and a high chair",),
    settings: SessionSettings | None = None,
) -> Line:
    async def main() -> Line:
        clock = ManualClock(100.0)
        llm, voice = ScriptedDrafter(clock, *written), ToneSynthesizer()
        events: list[ConversationEvent] = []
        conversation = Conversation(
            backends=Backends(LevelDetector(), ScriptedTranscriber(*heard), llm, voice),
            agent=AgentProfile("luigi", tools=tools),
            settings=settings or SessionSettings(instructions="You take bookings."),
            clock=clock,
            emit=events.append,
            budget=BudgetController(),
        )
        line = Line(clock, conversation, llm, voice, events)
        await live_through(conversation, clock, scenario(line))
        return line

    return run_async(main())


async def one_turn(line: Line) -> None:
    await line.say()
    await line.clock.advance(20.0)


def tool(desk: Desk, **options: Any) -> ServerTool:
    return ServerTool(SPEC, desk.run, **options)
