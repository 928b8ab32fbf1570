"""Tools that take long: what is said meanwhile, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.voiceagent.standins import silence, tone
from tests.voiceagent.tool_line import BOOK, DONE, Desk, Line, one_turn, talk, tool
from voiceagent.acknowledging import Acknowledgements
from voiceagent.backends import Samples
from voiceagent.clock import ManualClock
from voiceagent.events import PlaybackMuted, PlaybackRestored, ResponseFinished, ResponseText, TurnTraced
from voiceagent.session import SessionSettings
from voiceagent.tools import ToolCall


def test_a_slow_tool_is_covered_by_its_acknowledgement_once() -> None:
    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.5)
        assert not line.of(ResponseText)
        await line.clock.advance(0.5)
        assert [event.delta for event in line.of(ResponseText)] == ["One moment."]
        gate.set()
        await line.clock.advance(20.0)

    gate = asyncio.Event()
    line = talk(scenario, BOOK, DONE, tools=(tool(Desk(gate=gate), say_while_running=("One moment.",)),))
    assert line.tts.spoken == ["One moment.", DONE]
    (finished,) = line.of(ResponseFinished)
    assert finished.item is not None and finished.item.text == f"One moment. {DONE}"
    assert "One moment." not in str(line.request().turns), "the draft continues the turn that the call began"


def test_a_quick_tool_needs_no_acknowledgement() -> None:
    line = talk(one_turn, BOOK, DONE, tools=(tool(Desk(), say_while_running=("One moment.",)),))
    assert line.tts.spoken == [DONE]


def test_a_result_that_comes_while_the_agent_is_muted_is_said_when_it_is_back() -> None:
    waiting = "One moment please, I look that up for you in our book."

    async def play(line: Line, audio: Samples) -> None:
        for start in range(0, audio.size, 320):
            await line.clock.advance(0.02)
            line.conversation.push_audio(audio[start : start + 320])
        await line.clock.settle()

    async def scenario(line: Line) -> None:
        await line.say()
        while not line.tts.spoken:
            await line.clock.advance(0.1)
        await play(line, np.concatenate([silence(1.2), tone(0.5)]))
        assert len(line.of(PlaybackMuted)) == 1
        playout = line.conversation._replying._running.reply.playout  # type: ignore[union-attr]
        heard_s = playout.played_s(line.clock.now())
        gate.set()
        await play(line, np.concatenate([tone(0.06), silence(0.12)]))
        assert line.tts.spoken[-1] == DONE and playout.played_s(line.clock.now()) == pytest.approx(heard_s)
        await play(line, silence(0.5))
        assert len(line.of(PlaybackRestored)) == 1
        while not line.of(TurnTraced):
            await line.clock.advance(0.1)
        assert playout.played_s(line.clock.now()) == pytest.approx(playout.sent_s, abs=0.05)

    gate = asyncio.Event()
    slow = tool(Desk(gate=gate), say_while_running=(waiting,))
    settings = SessionSettings(can_be_held=True)
    line = talk(scenario, BOOK, DONE, tools=(slow,), heard=("got", "got it"), settings=settings)
    (finished,) = line.of(ResponseFinished)
    assert (finished.status, finished.item.text) == ("completed", f"{waiting} {DONE}")  # type: ignore[union-attr]


@dataclass
class SlowDesk(Desk):
    """Answers after `takes_s` of the conversation's clock."""

    takes_s: float = 2.0
    clock: ManualClock | None = None

    async def run(self, arguments: Mapping[str, object]) -> object:
        assert self.clock is not None
        await self.clock.sleep_until(self.clock.now() + self.takes_s)
        return await super().run(arguments)


def slow_turns(desk: SlowDesk, count: int = 1, *, settings: SessionSettings | None = None, **options: Any) -> Line:
    """Turns that each call the tool, with another argument each time."""

    async def scenario(line: Line) -> None:
        desk.clock = line.clock
        for number in range(count):
            await line.say(f"turn {number}")
            await line.clock.advance(20.0)

    calls = [ToolCall("book_table", {"people": number + 1}) for number in range(count)]
    written = [text for call in calls for text in (call, DONE)]
    return talk(scenario, *written, tools=(tool(desk, **options),), settings=settings)


def test_an_acknowledgement_is_not_said_twice_running() -> None:
    texts = ("One moment.", "Let me see.", "Just a second.")
    line = slow_turns(SlowDesk(), 5, say_while_running=texts)
    assert [text for text in line.tts.spoken if text != DONE] == [*texts, *texts[:2]]
    assert line.tts.spoken[1::2] == [DONE] * 5, "and then comes the answer"


@pytest.mark.parametrize(("takes_s", "is_said"), [(0.95, False), (1.05, True)])
def test_a_tool_says_how_long_is_long(takes_s: float, is_said: bool) -> None:
    line = slow_turns(SlowDesk(takes_s=takes_s), say_while_running=("One moment.",), acknowledge_after_s=1.0)
    assert line.tts.spoken == (["One moment."] if is_said else []) + [DONE]


@pytest.mark.parametrize(
    "options", [{"acknowledge_after_s": None}, {"say_while_running": ()}], ids=["switched off", "no words"]
)
def test_a_wait_is_not_covered_where_nobody_wants_it(options: dict[str, Any]) -> None:
    line = slow_turns(SlowDesk(), **{"say_while_running": ("One moment.",), **options})
    assert line.tts.spoken == [DONE]


def test_a_reader_needs_no_words_for_a_wait() -> None:
    line = slow_turns(SlowDesk(), settings=SessionSettings(modality="text"), say_while_running=("One moment.",))
    assert "".join(event.delta for event in line.of(ResponseText)) == DONE


def test_the_timeline_tells_what_was_said_first_and_that_a_tool_was_waited_for() -> None:
    timeline: Any = slow_turns(SlowDesk(), say_while_running=("One moment.",)).of(TurnTraced)[0].timeline
    assert timeline["plan"]["acknowledgement"] == "One moment."
    stages = {stage["name"]: stage["took_ms"] for stage in timeline["stages"]}
    assert stages["tools"] == pytest.approx(700, abs=1), "the first sound did not wait for the result"
    assert not {"prefill", "denoise_first"} & set(stages)
    assert timeline["missed_deadline"]["cause"] == "tool"


def test_the_words_said_least_come_first_and_the_last_ones_not_again() -> None:
    said = Acknowledgements()
    assert [said.choose(("a", "b")) for _ in range(4)] == ["a", "b", "a", "b"]
    assert said.choose(("b", "c")) == "c"
    assert said.choose(("c",)) == "c", "the only ones are better than none"
    assert said.choose(()) == ""


def test_an_interrupted_acknowledgement_is_kept_as_far_as_it_was_heard() -> None:
    gate = asyncio.Event()

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(2.0)
        await line.speak()
        gate.set()
        await line.clock.advance(20.0)

    spec = tool(Desk({"must_say": "K72"}, gate), say_while_running=("One moment.",), timeout_s=60.0)
    line = talk(scenario, BOOK, DONE, tools=(spec,))
    turns = [(turn.role, turn.text) for turn in line.request().turns[1:]]
    assert turns[1:4] == [("agent", ""), ("note", "book_table: done"), ("agent", "One moment.")]
    assert line.request().must_say == ("K72",), "a result that came too late is still to be told"
