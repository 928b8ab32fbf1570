"""What is said into long silences: the rule by values, and whole conversations and calls on the manual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.voiceagent.conversing import REPLY, Line, talk
from tests.voiceagent.house import House, pump, serve, speak
from tests.voiceagent.realtime import connect
from tests.voiceagent.standins import ToneSynthesizer, silence, tone
from tests.voiceagent.telephony.phone import Phone, phone
from voiceagent.config import load_config
from voiceagent.errors import ConfigError
from voiceagent.events import CallItem, ConversationEnded, Item, OutputItem, ResponseCalled, ResponseFinished
from voiceagent.session import SessionSettings, TurnDetection
from voiceagent.silences import Remark, Silence, SilenceSettings
from voiceagent.tools import ToolCall, ToolSpec
from voiceagent.turn import Agent, Caller, TurnState

THERE, HELLO, BYE = "Are you there?", "Hello?", "Goodbye then."
SETTINGS = SilenceSettings(5.0, (THERE, HELLO), BYE)
QUIET = TurnState()
AUDIBLE = TurnState(agent=Agent.PLAYING)

# --- the rule ---------------------------------------------------------------------------------------------------------


def spoken_to(at: float) -> Silence:
    """Since `at` the agent, who was heard, is quiet."""
    return Silence().observe(AUDIBLE, at - 1.0).observe(QUIET, at)


def test_silence_counts_from_when_the_agent_was_heard_to_its_end() -> None:
    assert spoken_to(10.0).due(SETTINGS) == 15.0
    assert spoken_to(10.0).observe(QUIET, 12.0).due(SETTINGS) == 15.0


def test_who_was_not_spoken_to_is_not_silent() -> None:
    assert Silence().observe(QUIET, 10.0).due(SETTINGS) is None


def test_without_a_wait_nothing_is_ever_said() -> None:
    assert spoken_to(10.0).due(SilenceSettings()) is None


@pytest.mark.parametrize(
    "state",
    [
        TurnState(caller=Caller.SPEAKING),
        TurnState(caller=Caller.RECOGNISING),
        TurnState(agent=Agent.THINKING),
        TurnState(agent=Agent.SPEAKING),
        AUDIBLE,
    ],
)
def test_nothing_is_due_while_anybody_is_heard_or_expected_and_silence_begins_anew(state: TurnState) -> None:
    busy = spoken_to(10.0).observe(state, 14.0)
    assert busy.due(SETTINGS) is None
    assert busy.observe(QUIET, 20.0).due(SETTINGS) == 25.0


def remarks(silence: Silence, settings: SilenceSettings) -> list[Remark]:
    """All that is said, each remark heard and met with silence."""
    said, now = [], 100.0
    while silence.due(settings) is not None and len(said) < 10:
        silence, remark = silence.speak(settings)
        said.append(remark)
        if remark.is_goodbye:
            break
        now += 10.0
        silence = silence.observe(AUDIBLE, now).observe(QUIET, now + 1.0)
    return said


def test_the_prompts_come_in_order_and_then_the_goodbye() -> None:
    assert remarks(spoken_to(10.0), SETTINGS) == [Remark(THERE, False), Remark(HELLO, False), Remark(BYE, True)]
    assert remarks(spoken_to(10.0), replace(SETTINGS, prompts=())) == [Remark(BYE, True)]
    assert remarks(spoken_to(10.0), replace(SETTINGS, goodbye="")) == [Remark(THERE, False), Remark(HELLO, False)]


def test_the_prompts_begin_anew_when_something_was_said_and_not_after_a_cough() -> None:
    silence, _ = spoken_to(10.0).speak(SETTINGS)
    coughed = silence.observe(TurnState(caller=Caller.SPEAKING), 17.0).observe(QUIET, 18.0)
    assert coughed.speak(SETTINGS)[1].text == HELLO
    assert coughed.answered(18.5).speak(SETTINGS)[1].text == THERE


def test_a_sound_during_the_goodbye_takes_it_back() -> None:
    silence, _ = spoken_to(10.0).speak(replace(SETTINGS, prompts=()))
    assert silence.observe(AUDIBLE, 15.0).is_parting
    assert not silence.observe(TurnState(Caller.SPEAKING, Agent.PLAYING), 15.0).is_parting


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt_after_s", 0.5),
        ("prompt_after_s", 601.0),
        ("prompts", ("Hi", " ")),
        ("prompts", ("Hi", "x" * 1001)),
        ("goodbye", "x" * 1001),
    ],
)
def test_settings_out_of_range_name_the_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"silence.{key}"):
        replace(SETTINGS, **{key: value})  # type: ignore[arg-type]


def test_the_configuration_reaches_calls_and_only_on_request_other_clients() -> None:
    config = load_config([{"silence": {"prompt_after_s": 5, "prompts": [THERE, HELLO], "goodbye": BYE}}])
    settings = config.session_settings()
    assert settings.silence == SETTINGS
    assert settings.for_client().silence == replace(SETTINGS, prompt_after_s=None)
    all_clients = load_config([{"silence": {"prompt_after_s": 5, "for_clients": True}}]).session_settings()
    assert all_clients.for_client() == all_clients
    with pytest.raises(ConfigError, match=r"silence\.prompt_after_s = 0\.5"):
        load_config([{"silence": {"prompt_after_s": 0.5}}])


# --- conversations ----------------------------------------------------------------------------------------------------

PATIENCE = SessionSettings(instructions="x", silence=SETTINGS)
GREETING_S = 0.05 * len("Welcome to the café.")


def said(line: Line) -> list[str]:
    return [event.item.text or "" for event in line.of(ResponseFinished) if event.item is not None]


def talk_with(scenario: Callable[[Line], Awaitable[None]], settings: SessionSettings = PATIENCE, **how: Any) -> Line:
    async def greeted(line: Line) -> None:
        line.conversation.greet()
        await line.clock.advance(GREETING_S + 0.2)
        await scenario(line)

    return talk(greeted, settings=settings, **how)


def test_a_caller_who_stays_silent_is_prompted_then_told_goodbye_and_the_conversation_ends() -> None:
    async def scenario(line: Line) -> None:
        for count, text in enumerate((THERE, HELLO, BYE), start=2):
            await line.clock.advance(4.7)
            assert len(said(line)) == count - 1
            await line.clock.advance(0.2)
            assert len(said(line)) == count
            assert not line.of(ConversationEnded), "the goodbye has to be heard first"
            await line.clock.advance(0.05 * len(text) + 0.1)
        await line.clock.advance(0.5)

    line = talk_with(scenario)
    assert said(line)[1:] == [THERE, HELLO, BYE]
    (ended,) = line.of(ConversationEnded)
    assert ended.reason == "silence" and line.events[-1] is ended
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"] * 4


def test_an_answer_goes_before_and_the_prompts_begin_anew() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.8)
        await line.speak_turn()
        await line.clock.advance(2.5 + 5.5)

    line = talk_with(scenario)
    assert said(line)[1] == THERE and said(line)[-1] == THERE and len(said(line)) == 4
    assert not line.of(ConversationEnded)


@pytest.mark.parametrize("interrupts", [True, False])
@pytest.mark.parametrize("after_s", [0.1, 0.6], ids=["while it is said", "right behind it"])
def test_a_caller_who_speaks_into_the_goodbye_is_heard_and_the_call_goes_on(after_s: float, interrupts: bool) -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1)
        assert line.tts.spoken[-1] == BYE
        await line.clock.advance(after_s)
        await line.speak_turn()
        await line.clock.advance(3.0)
        assert not line.of(ConversationEnded)
        assert "a mocha please" in [turn.text for turn in line.llm.drafts[-1].request.turns]
        await line.clock.advance(10.0)
        assert line.of(ConversationEnded), "and then they are silent again"

    settings = replace(
        PATIENCE,
        silence=replace(SETTINGS, prompts=()),
        turn_detection=TurnDetection(interrupt_response=interrupts),
    )
    talk_with(scenario, settings)


def test_a_cough_into_the_goodbye_brings_it_once_more() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1)
        await line.speak_turn()
        await line.clock.advance(1.0)
        assert not line.of(ConversationEnded)
        await line.clock.advance(8.0)

    settings = replace(PATIENCE, silence=replace(SETTINGS, prompts=()))
    line = talk_with(scenario, settings, heard=("",))
    assert line.tts.spoken[-2:] == [BYE, BYE] and line.of(ConversationEnded)


def test_a_client_that_reports_positions_has_to_report_the_goodbyes_end() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1)
        item = line.of(ResponseFinished)[-1].item
        assert item is not None and item.text == BYE
        line.conversation.report_playout(item.id, 0.1)
        await line.clock.advance(0.05 * len(BYE) + 0.8)
        assert not line.of(ConversationEnded), "it was heard for 0.1 s so far"
        line.conversation.report_playout(item.id, 0.05 * len(BYE))
        await line.clock.advance(0.2)
        assert line.of(ConversationEnded)

    talk_with(scenario, replace(PATIENCE, silence=replace(SETTINGS, prompts=())))


def test_a_client_that_stops_reporting_is_not_waited_for_for_ever() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1)
        item = line.of(ResponseFinished)[-1].item
        assert item is not None
        line.conversation.report_playout(item.id, 0.1)
        await line.clock.advance(0.05 * len(BYE) + 2.3)
        assert line.of(ConversationEnded)

    talk_with(scenario, replace(PATIENCE, silence=replace(SETTINGS, prompts=())))


def test_a_goodbye_that_cannot_be_spoken_ends_the_conversation_all_the_same() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(6.0)

    settings = replace(PATIENCE, silence=replace(SETTINGS, prompts=()))
    line = talk_with(scenario, settings, tts=ToneSynthesizer(fail_on="Goodbye"))
    assert line.of(ResponseFinished)[-1].status == "failed" and line.of(ConversationEnded)


LOOK = ToolSpec("look", "Looks something up.")


def test_silence_while_the_clients_tool_runs_is_not_the_callers() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(3.0)
        (called,) = line.of(ResponseCalled)
        line.conversation.add_item(Item("system", "system", "The tool is slow today."))
        await line.clock.advance(30.0)
        assert said(line)[1:] == []
        line.conversation.add_item(OutputItem("out", called.item.call_id, "done"))
        await line.clock.advance(4.9)
        assert said(line)[1:] == []
        await line.clock.advance(0.2)
        assert said(line)[1:] == [THERE]

    talk_with(scenario, replace(PATIENCE, tools=(LOOK,)), written=(ToolCall("look", {}),))


@pytest.mark.parametrize("what", ["system items", "agent items", "calls", "calls with their outputs"])
def test_a_client_that_keeps_adding_items_of_its_own_does_not_keep_the_call(what: str) -> None:
    async def scenario(line: Line) -> None:
        for count in range(30):
            call = CallItem(f"call_item_{count}", f"call_{count}", ToolCall("look", {}))
            match what:
                case "system items":
                    line.conversation.add_item(Item(f"item_{count}", "system", f"The caller scrolled to {count}."))
                case "agent items":
                    line.conversation.add_item(Item(f"item_{count}", "agent", "Noted."))
                case _:
                    line.conversation.add_item(call)
                    if what == "calls with their outputs":
                        line.conversation.add_item(OutputItem(f"out_{count}", call.call_id, "done"))
            await line.clock.advance(1.0)
        assert line.of(ConversationEnded)

    assert said(talk_with(scenario))[1:] == [THERE, HELLO, BYE]


def test_a_response_that_the_client_asks_for_is_heard_and_the_prompts_go_on_behind_it() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.8)
        line.conversation.create_response()
        await line.clock.advance(2.0)
        assert said(line)[1:] == [THERE, REPLY]
        await line.clock.advance(5.5)

    line = talk_with(scenario)
    assert said(line)[1:] == [THERE, REPLY, HELLO], "it was the client that asked, not the caller"


def test_a_response_asked_for_behind_the_goodbye_keeps_the_call_until_the_next_goodbye() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1 + 0.05 * len(BYE))
        assert said(line)[1:] == [BYE] and not line.of(ConversationEnded)
        line.conversation.create_response()
        await line.clock.advance(4.0)
        assert said(line)[1:] == [BYE, REPLY] and not line.of(ConversationEnded)
        await line.clock.advance(6.0)

    line = talk_with(scenario, replace(PATIENCE, silence=replace(SETTINGS, prompts=())))
    assert said(line)[1:] == [BYE, REPLY, BYE] and line.of(ConversationEnded)


@pytest.mark.parametrize(
    "settings",
    [
        replace(PATIENCE, silence=SilenceSettings()),
        replace(PATIENCE, modality="text"),
        replace(PATIENCE, turn_detection=None),
    ],
    ids=["switched off", "text", "push to talk"],
)
def test_where_silence_means_nothing_nothing_is_said(settings: SessionSettings) -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(120.0)
        assert len(said(line)) == 1 and not line.of(ConversationEnded)

    talk_with(scenario, settings)


def test_it_can_be_switched_on_and_off_while_the_conversation_runs() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(60.0)
        line.conversation.update(PATIENCE)
        await line.clock.advance(0.5)
        assert said(line)[1:] == [THERE], "the silence is older than the setting"
        line.conversation.update(replace(PATIENCE, silence=SilenceSettings()))
        await line.clock.advance(60.0)
        assert said(line)[1:] == [THERE]

    talk_with(scenario, replace(PATIENCE, silence=SilenceSettings()))


def test_typing_is_a_sign_of_life() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.8)
        assert said(line)[1:] == [THERE]
        line.conversation.add_item(Item("typed", "user", "one moment"))
        await line.clock.advance(6.5)
        assert said(line)[1:] == [THERE, THERE]

    talk_with(scenario)


def test_a_sign_of_life_is_not_asked_for_another_at_once() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(4.5)
        line.conversation.add_item(Item("typed", "user", "one moment"))
        await line.clock.advance(4.9)
        assert said(line)[1:] == []
        await line.clock.advance(0.2)
        assert said(line)[1:] == [THERE]

    talk_with(scenario)


def test_a_key_behind_the_goodbye_keeps_the_call() -> None:
    async def scenario(line: Line) -> None:
        await line.clock.advance(5.1 + 0.05 * len(BYE))
        line.conversation.interrupt()
        await line.clock.advance(1.0)
        assert not line.of(ConversationEnded)
        line.conversation.hear_text("42")
        await line.clock.advance(3.0)
        assert line.llm.drafts[-1].request.turns[-1].text == "42"

    talk_with(scenario, replace(PATIENCE, silence=replace(SETTINGS, prompts=())))


# --- doors ------------------------------------------------------------------------------------------------------------

CALLS = SessionSettings(instructions="You take orders.", silence=replace(SETTINGS, prompts=(THERE,)))


@pytest.mark.parametrize(("latency_s", "marks"), [(0.0, True), (0.3, True), (0.05, False)])
def test_a_call_ends_after_its_goodbye_was_heard_to_the_end(latency_s: float, marks: bool) -> None:
    async def scenario(house: House) -> None:
        house.runtime.default_settings = CALLS
        async with phone(house.app, house.clock, latency_s=latency_s, marks=marks) as caller:
            await caller.dial()
            await caller.wait(1.0)
            while caller.ended is None:
                await caller.wait(0.1)
            assert (caller.ended.code, caller.ended.reason) == (1000, "nobody spoke any more")
            spoken_s = 0.05 * sum(map(len, house.runtime.tts.spoken))
            assert house.runtime.tts.spoken == ["Welcome.", THERE, BYE]
            assert caller.heard_s == pytest.approx(spoken_s, abs=0.06), "nothing was cut off"
        assert house.runtime.llm.forgotten

    serve(scenario)


def test_a_caller_who_speaks_into_the_goodbye_keeps_the_call() -> None:
    async def scenario(house: House) -> None:
        house.runtime.default_settings = replace(CALLS, silence=replace(SETTINGS, prompts=()))
        async with phone(house.app, house.clock) as caller:
            await caller.dial()
            await said_goodbye(house, caller)
            await caller.talk(tone(0.8))
            await caller.talk(silence(4.0))
            assert caller.ended is None and len(caller.clears) == 1
            assert house.runtime.tts.spoken[-1] not in ("Welcome.", BYE), "what they said is answered"
            assert (await caller.hang_up()).reason == "the call is over"

    serve(scenario)


async def said_goodbye(house: House, caller: Phone) -> None:
    """Return while the goodbye plays."""
    while house.runtime.tts.spoken[-1:] != [BYE]:
        await caller.wait(0.1)
    await caller.wait(0.2)


def test_a_realtime_client_has_to_ask_and_can_tell_the_end_from_an_error() -> None:
    async def scenario(house: House) -> None:
        house.runtime.default_settings = replace(CALLS, silence=replace(SETTINGS, prompts=()))
        async with connect(house.app, "extensions=1") as client:
            created = await client.next()
            assert created["session"]["voiceagent"]["silence"] is None
            await client.send("voiceagent.greet")
            await pump(house, client.until("voiceagent.turn.timeline"))
            await house.clock.advance(30.0)
            asked = {"type": "realtime", "voiceagent": {"silence": {"prompt_after_ms": 2000}}}
            await client.send("session.update", session=asked)
            updated = await pump(house, client.until("session.updated"))
            shown = updated["session"]["voiceagent"]["silence"]
            assert shown == {"prompt_after_ms": 2000, "prompts": [], "goodbye": BYE}, "the texts are the agent's"
            ended = await pump(house, client.until("voiceagent.session.ended"))
            assert (ended["reason"], ended["message"]) == ("silence", "nobody spoke any more")
            closed = await pump(house, client.closed())
            assert (closed.code, closed.reason) == (1000, "nobody spoke any more")
            assert "error" not in client.names()

    serve(scenario)


def test_a_plain_realtime_client_is_never_prompted() -> None:
    async def scenario(house: House) -> None:
        house.runtime.default_settings = CALLS
        async with connect(house.app) as client:
            await speak(house, client)
            await pump(house, client.until("response.done"))
            await house.clock.advance(120.0)
            responses = client.names().count("response.created")
            await client.send("input_audio_buffer.clear")
            await pump(house, client.until("input_audio_buffer.cleared"))
            assert client.names().count("response.created") == responses == 1

    serve(scenario)
