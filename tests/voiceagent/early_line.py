"""Conversations whose replies are drafted early, on the manual clock: what their tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tests.conftest import run_async
from tests.voiceagent.conversing import live_through
from tests.voiceagent.standins import (
    RATE_HZ,
    LevelDetector,
    ScriptedDrafter,
    ScriptedScorer,
    ToneSynthesizer,
    silence,
    tone,
)
from voiceagent.agent import AgentProfile, Note, NoteTaker
from voiceagent.backends import BackendInfo, Backends, Partial, Samples, Transcript
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import BudgetSettings
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.events import ConversationEvent, ResponseText, TurnTraced
from voiceagent.session import SessionSettings
from voiceagent.tools import ServerTool, ToolCall

E = TypeVar("E")
REPLY = "Sure, one mocha. What size would you like?"
OTHER = "Two teas then. Anything else for you?"


Heard = Sequence[tuple[float, str]]
"""What the recogniser writes after so many seconds of an utterance; the last is its final word."""


class Utterance:
    def __init__(self, heard: Heard, on_partial: Callable[[Partial], None]) -> None:
        self._heard, self._on_partial, self._fed, self._told = list(heard), on_partial, 0, 0

    def feed(self, samples: Samples) -> None:
        self._fed += samples.size
        while self._told + 1 < len(self._heard) and self._heard[self._told][0] * RATE_HZ <= self._fed:
            self._on_partial(Partial("", self._heard[self._told][1]))
            self._told += 1

    async def finish(self) -> Transcript:
        return Transcript(self._heard[-1][1])

    def cancel(self) -> None:
        pass


class Transcriber:
    info = BackendInfo("asr", "timed", "stand-in")
    words_after_s = 0.0
    tells_confidence = False

    def __init__(self, *heard: Heard) -> None:
        self._heard, self._opened = heard, 0

    async def open(self, on_partial: Callable[[Partial], None]) -> Utterance:
        self._opened += 1
        return Utterance(self._heard[min(self._opened, len(self._heard)) - 1], on_partial)

    async def aclose(self) -> None:
        pass


class Orders:
    """A note taker that can be asked beforehand."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def hear(self, text: str) -> Note | None:
        self.heard.append(text)
        return self._note(self.heard)

    def imagine(self, text: str) -> Note | None:
        if "crash" in text:
            raise RuntimeError("menu on fire")
        return self._note([*self.heard, text])

    def _note(self, heard: Sequence[str]) -> Note:
        return Note(f"order: {len(heard)}", (f"item {len(heard)}",))


@dataclass
class Line:
    clock: ManualClock
    conversation: Conversation
    llm: ScriptedDrafter
    budget: BudgetController
    notes: NoteTaker
    events: list[ConversationEvent] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def play(self, *parts: Samples) -> None:
        audio = np.concatenate(parts)
        for start in range(0, audio.size, 320):
            piece = audio[start : start + 320]
            await self.clock.advance(piece.size / RATE_HZ)
            self.conversation.push_audio(piece)
        await self.clock.settle()

    @property
    def speculation(self) -> Any:
        (turn,) = self.of(TurnTraced)
        return turn.timeline["speculation"]

    @property
    def said(self) -> str:
        return "".join(event.delta for event in self.of(ResponseText))


def talk(
    scenario: Callable[[Line], Awaitable[None]],
    *heard: Heard,
    written: tuple[str | Exception | ToolCall, ...] = (REPLY,),
    notes: Callable[[], NoteTaker] = Orders,
    scorer: ScriptedScorer | None = None,
    settings: SessionSettings | None = None,
    tools: tuple[ServerTool, ...] = (),
    llm: type[ScriptedDrafter] = ScriptedDrafter,
) -> Line:
    async def main() -> Line:
        clock = ManualClock(100.0)
        drafter = llm(clock, *written)
        taker = notes()
        controller = BudgetController(BudgetSettings())
        events: list[ConversationEvent] = []
        conversation = Conversation(
            backends=Backends(LevelDetector(), Transcriber(*heard), drafter, ToneSynthesizer(), scorer),
            agent=AgentProfile("café", notes=lambda: taker, tools=tools),
            settings=settings or SessionSettings(instructions="You take orders."),
            clock=clock,
            emit=events.append,
            budget=controller,
        )
        line = Line(clock, conversation, drafter, controller, taker, events)
        await live_through(conversation, clock, scenario(line))
        return line

    return run_async(main())


SPOKEN = ((0.5, "a mocha please"), (9.9, "A mocha, please."))


async def one_turn(line: Line) -> None:
    await line.play(tone(0.8), silence(0.6))
    await line.clock.advance(10.0)


class Slow(ScriptedDrafter):
    """Still writing when the turn is over."""

    def __init__(self, clock: ManualClock, *texts: str | Exception | ToolCall) -> None:
        super().__init__(clock, *texts, steps=8, step_s=1.0)
