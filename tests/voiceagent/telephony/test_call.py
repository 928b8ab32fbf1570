"""The phone door in process: real conversations over instant models, a phone network in small, and a clock that only the test moves."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect as connect_websocket

from tests.conftest import run_async
from tests.voiceagent.house import House, get, serve
from tests.voiceagent.realtime import Refused, connect
from tests.voiceagent.standins import silence, tone
from tests.voiceagent.telephony.phone import PATH, Phone, media_message, phone, start_message, to_ulaw
from tests.voiceagent.test_serving import Place, scene
from voiceagent.audio import PCMU_8K
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.events import Item
from voiceagent.server_settings import ServerSettings
from voiceagent.telephony.call import PhoneCall
from voiceagent.telephony.signature import twilio_signature

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


# --- talking ----------------------------------------------------------------------------------------------------------


def test_a_call_is_greeted_heard_answered_and_ends() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await caller.dial()
            await caller.wait(1.2)
            assert said(house) == [GREETING]
            assert caller.heard_s == pytest.approx(0.05 * len(GREETING), abs=0.04), "µ-law for as long as it is spoken"
            assert float(np.abs(PCMU_8K.decode(bytes(caller.heard))).max()) > 0.2
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await caller.wait(2.5)
            assert said(house, "user") == ["a mocha please"]
            assert said(house) == [GREETING, "Sure. What size would you like?"]
            assert caller.heard_s > 1.5 and not caller.clears
            closed = await caller.hang_up()
            assert (closed.code, closed.reason) == (1000, "the call is over")
        assert house.runtime.llm.forgotten == [house.runtime.conversations[0].id]

    serve(scenario)


def test_every_piece_of_audio_is_followed_by_its_mark_and_is_at_most_200_ms() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            kinds = [event["event"] for event in caller.events]
            assert kinds == ["media", "mark"] * (len(kinds) // 2)
            sizes = [len(base64.b64decode(e["media"]["payload"])) for e in caller.events if e["event"] == "media"]
            assert max(sizes) <= 1600
            names = [event["mark"]["name"] for event in caller.events if event["event"] == "mark"]
            assert len(set(names)) == len(names)

    serve(scenario)


def test_two_calls_at_once_do_not_hear_each_other() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as one, phone(house.app, house.clock) as other:
            await greeted(one)
            await other.dial()
            await one.talk(np.concatenate([tone(0.8), silence(0.6)]))
            assert said(house, "user") == [], "the newest conversation is the other's"
            assert (await other.hang_up()).code == 1000
            await one.wait(2.0)
            assert one.heard_s > 1.5

    serve(scenario)


# --- barge-in and what was heard --------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("step_s", [0.01, 3.0], ids=["reply made", "reply being made"])
def test_speech_clears_the_queue_and_no_unheard_word_stays_in_the_history(latency_s: float, step_s: float) -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = step_s
        async with phone(house.app, house.clock, latency_s=latency_s) as caller:
            await greeted(caller)
            before_s = caller.heard_s
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            while caller.heard_s == before_s:
                await caller.wait(0.02)
            await caller.wait(3.07 if step_s < 1 else 1.1)
            conversation, spoken = house.runtime.conversations[0], list(house.runtime.tts.spoken)
            await caller.talk(tone(0.6))
            assert len(caller.clears) == 1
            assert caller.queued_s == 0, "nothing more is sent"
            kept = said(house)[-1]
            playout = conversation._replying._playouts[next(reversed(conversation._replying._playouts))]
            truly = playout.heard_text(caller.heard_s - before_s)
            assert truly.startswith(kept), "a word that was not heard is in the history"
            assert len(truly.split()) - len(kept.split()) <= 2 + round(latency_s / 0.1)
            assert kept and kept in " ".join(text.strip() for text in spoken)
            await caller.wait(1.0)
            assert said(house)[1] == kept, "marks that the clear returned change nothing"

    serve(scenario, written=(LONG,))


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("step_s", [0.01, 3.0], ids=["reply made", "reply being made"])
def test_a_backchannel_is_a_silence_after_which_every_word_is_heard(latency_s: float, step_s: float) -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = step_s
        async with phone(house.app, house.clock, latency_s=latency_s) as caller:
            await greeted(caller)
            before_s = caller.heard_s
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            while caller.heard_s == before_s:
                await caller.wait(0.02)
            await caller.wait(0.7)
            await caller.talk(tone(0.3))
            await caller.wait(max(latency_s - 0.1, 0.0))
            assert len(caller.clears) == 1
            at_s = caller.heard_s
            await caller.wait(0.1)
            assert caller.heard_s <= at_s + 0.001, "nothing plays in doubt"
            await caller.wait(30.0)
            spoken_s = sum(0.05 * len(text.strip()) for text in house.runtime.tts.spoken[1:])
            twice_s = caller.heard_s - before_s - spoken_s
            assert -0.02 <= twice_s <= 2 * latency_s + 0.25, "nothing is lost; what was on its way is heard twice"
            assert said(house) == [GREETING, LONG.strip()]
            assert said(house, "user") == ["a mocha please"]

    serve(scenario, heard=("a mocha please", "uh-huh"), written=(LONG,))


def test_a_word_over_the_agent_stops_it_where_it_was_held() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            before_s = caller.heard_s
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await caller.wait(2.0)
            await caller.talk(np.concatenate([tone(0.3), silence(0.2)]))
            assert len(caller.clears) == 1 and caller.queued_s == 0
            playout = house.runtime.conversations[0]._replying._running.reply.playout  # type: ignore[union-attr]
            truly = playout.heard_text(caller.heard_s - before_s)
            assert said(house)[-1] and truly.startswith(said(house)[-1])
            assert len(truly.split()) - len(said(house)[-1].split()) <= 2

    serve(scenario, heard=("a mocha please", "stop"), written=(LONG,))


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.1])
def test_a_yes_over_the_last_words_of_a_question_is_its_answer(latency_s: float) -> None:
    question = "Is a large one fine?"

    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, latency_s=latency_s) as caller:
            await greeted(caller)
            until_s = caller.heard_s + 0.05 * len(question) - 0.3
            await caller.talk(np.concatenate([tone(0.8), silence(0.5)]))
            while caller.heard_s < until_s:
                await caller.wait(0.02)
            await caller.talk(np.concatenate([tone(0.3), silence(2.0)]))
            assert len(caller.clears) == 1
            assert said(house, "user") == ["a mocha please", "yes"]
            assert said(house)[:2] == [GREETING, question] and len(said(house)) == 3

    serve(scenario, heard=("a mocha please", "yes"), written=(question,))


def test_what_was_said_before_any_mark_came_back_counts_as_unheard() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, latency_s=0.5) as caller:
            await greeted(caller)
            await caller.wait(1.0)
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            assert len(said(house)) == 2
            await caller.talk(np.concatenate([tone(0.3), silence(0.6)]))
            assert len(caller.clears) == 1
            assert said(house)[1] == ""

    serve(scenario, written=(LONG,))


def test_a_network_without_marks_gets_the_estimate() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, marks=False) as caller:
            await greeted(caller)
            await caller.wait(3.0)
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await caller.wait(3.0)
            await caller.talk(tone(0.6))
            assert len(caller.clears) == 2, "nobody knows whether the greeting was played, so it is cleared as well"
            assert said(house)[0] == GREETING, "and counts as heard"
            assert 20 < len(said(house)[-1]) < 100, "about 3 s of speech"

    serve(scenario, written=(LONG,))


def test_speech_after_everything_was_played_clears_nothing() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            await caller.wait(0.5)
            await caller.talk(tone(0.5))
            assert not caller.clears
            assert said(house) == [GREETING]

    serve(scenario)


# --- keys -------------------------------------------------------------------------------------------------------------


async def press(caller: Phone, *digits: str) -> None:
    for digit in digits:
        await caller.say({"event": "dtmf", "streamSid": "MZ1", "dtmf": {"track": "inbound_track", "digit": digit}})
        await caller.wait(0.1)


@pytest.mark.parametrize("is_in_doubt", [False, True])
def test_keys_that_are_complete_while_the_agent_speaks_stop_it_and_are_answered(is_in_doubt: bool) -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, latency_s=0.02) as caller:
            await greeted(caller)
            await caller.talk(np.concatenate([tone(0.8), silence(0.1)]))
            await press(caller, "4")
            await caller.talk(silence(0.5))
            await caller.wait(1.15)
            before_s = caller.heard_s
            assert caller.queued_s > 10.0, "the answer to what was said plays"
            if is_in_doubt:
                await caller.talk(tone(0.22))
            await caller.wait(0.8)
            assert len(caller.clears) == 1
            assert said(house, "user")[:2] == ["a mocha please", "4"]
            await caller.wait(4.0)
            assert len(said(house)[1]) < 60, "it was cut where it was stopped"
            assert caller.heard_s - before_s > 4.0, "the keys are answered, and the answer is heard"

    serve(scenario, heard=("a mocha please", "uh-huh"), written=(LONG,))


def test_keys_are_what_the_caller_said_once_they_pause() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            await press(caller, "4", "2")
            await caller.wait(1.7)
            assert said(house, "user") == []
            await caller.wait(3.0)
            assert said(house, "user") == ["42"]
            assert said(house)[-1] == "Sure. What size would you like?"

    serve(scenario)


def test_a_hash_ends_the_keys_at_once_and_alone_is_a_key() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            await press(caller, "1", "*", "#")
            assert said(house, "user") == ["1*"]
            await caller.wait(3.0)
            await press(caller, "#")
            assert said(house, "user") == ["1*", "#"]

    serve(scenario)


def test_the_first_key_stops_the_agent_and_the_history_keeps_what_was_heard() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await caller.wait(2.0)
            await press(caller, "7")
            assert len(caller.clears) == 1 and caller.queued_s == 0
            assert said(house)[-1] and LONG.startswith(said(house)[-1])
            await caller.wait(3.0)
            assert said(house, "user") == ["a mocha please", "7"]
            assert caller.queued_s > 0, "it is answered"

    serve(scenario, written=(LONG,))


def test_a_call_that_ends_between_two_keys_leaves_nothing_running() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            await press(caller, "4")
            await caller.hang_up()
        assert said(house, "user") == []

    serve(scenario)


# --- strange bridges --------------------------------------------------------------------------------------------------


def test_a_wrong_message_is_passed_over_and_many_in_a_row_end_this_call_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as good, phone(house.app, house.clock) as bad:
            await greeted(good)
            await bad.dial()
            for _ in range(3):
                for _ in range(2):
                    await bad.send_text('{"event":"media","streamSid":"MZ1","media":{"payload":"?"}}')
                await bad.wait(0.1)
            for _ in range(3):
                await bad.send_text("{")
            closed = await bad.closing()
            assert closed.code == 1007
            assert closed.reason.startswith("3 messages in a row were refused; the last: The message is not valid JSON")
            await good.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await good.wait(2.5)
            assert good.heard_s > 1.5

    with caplog.at_level(logging.WARNING):
        serve(scenario, settings=ServerSettings(max_malformed_messages=3))
    assert [record.message for record in caplog.records] == [
        "a message was refused: media.payload is not base64 (Only base64 data is allowed)."
    ], "told once a call"


def test_what_cannot_go_on_is_closed_with_the_reason() -> None:
    linear = start_message()
    linear["start"]["mediaFormat"]["encoding"] = "audio/x-l16"

    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await caller.say(linear)
            closed = await caller.closing()
            assert closed.code == 1003 and "only audio/x-mulaw" in closed.reason
        async with phone(house.app, house.clock) as caller:
            await caller.send_bytes(b"\xff" * 160)
            closed = await caller.closing()
            assert closed.code == 1003 and "binary" in closed.reason
        async with phone(house.app, house.clock) as caller:
            await caller.say({"event": "connected", "protocol": "Call", "version": "1.0.0"})
            await house.clock.advance(9.0)
            assert caller._from_server.empty()
            closed = await caller.closing()
            assert (closed.code, closed.reason) == (1008, "no start message within 10 s")
        assert not house.runtime.conversations

    serve(scenario)


def test_a_long_reason_fits_into_a_close_frame() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            message = start_message()
            message["start"]["mediaFormat"]["encoding"] = "é" * 200
            await caller.say(message)
            closed = await caller.closing()
            assert closed.code == 1003 and len(closed.reason.encode()) <= 123

    serve(scenario)


@pytest.mark.parametrize("key", ["#", "4"])
def test_a_bug_ends_only_the_call_that_met_it(key: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self, conversation: Conversation) -> None:
            self._conversation = conversation

        def hear_text(self, text: str) -> None:
            raise RuntimeError("bug")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conversation, name)

    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as good, phone(house.app, house.clock) as bad:
            await good.dial()
            await bad.dial()
            await bad.say({"event": "dtmf", "dtmf": {"digit": key}})
            assert (await bad.closing()).code == 1011
            await good.wait(1.0)
            assert good.heard_s > 0.3

    with caplog.at_level(logging.ERROR):
        serve(scenario, wrap=Broken)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("moment", ["connected", "started", "speaking"])
def test_a_bridge_that_vanishes_leaves_nothing_running(moment: str) -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            if moment != "connected":
                await caller.dial()
                await house.settle()
            if moment == "speaking":
                await caller.wait(0.3)
        assert len(house.runtime.llm.forgotten) == (moment != "connected")

    serve(scenario)  # `serve` checks for tasks that are left


@dataclass
class Listening:
    """A conversation that only notes what a call does with it."""

    id: str = "conv_1"
    done: list[str] = field(default_factory=list)

    async def run(self) -> None:
        pass

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.done.append(name)


TALK = [
    start_message(),
    media_message(to_ulaw(tone(0.02))),
    {"event": "mark", "streamSid": "MZ1", "mark": {"name": "1.1"}},
    {"event": "dtmf", "streamSid": "MZ1", "dtmf": {"digit": "#"}},
    {"event": "connected"},
    {"event": "stop"},
    {"event": "mark", "mark": {"name": ""}},
    {"event": "media"},
]


@given(st.lists(st.sampled_from([json.dumps(message) for message in TALK]), max_size=12))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_messages_in_any_order_are_carried_out_or_refused(texts: list[str]) -> None:
    async def main() -> None:
        conversation = Listening()
        call = PhoneCall(
            websocket=None,  # type: ignore[arg-type]
            settings=ServerSettings(),
            clock=ManualClock(),
            key=None,
            why_full=lambda: None,
            open_conversation=lambda emit: conversation,  # type: ignore[arg-type, return-value]
            tell_refused=lambda reason: None,
            interrupts=True,
        )
        for text in texts:
            await call._handle(text)
        assert call.is_admitted == any('"start"' in text for text in texts)
        assert (conversation.done[:1] == ["greet"]) == call.is_admitted
        await call.aclose()

    run_async(main())


# --- letting in -------------------------------------------------------------------------------------------------------


async def refusal(house: House, query: str = "", **headers: str) -> Refused:
    with pytest.raises(Refused) as caught:
        async with phone(house.app, house.clock, query, headers=headers):
            pass
    return caught.value


def test_the_key_may_come_as_a_parameter_of_the_start(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller, key="secret-key")
        for parameters, reason in (({}, "is missing"), ({"key": "wrong-key"}, "is not the API key")):
            async with phone(house.app, house.clock) as caller:
                await caller.dial(**parameters)
                closed = await caller.closing()
                assert closed.code == 1008 and closed.reason.endswith(reason)
        assert len(house.runtime.conversations) == 1

    with caplog.at_level(logging.DEBUG):
        serve(scenario, settings=KEYED)
    assert "secret-key" not in caplog.text and "wrong-key" not in caplog.text


def test_a_bridge_that_can_send_the_key_with_its_request_is_refused_before_the_upgrade() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, headers={"authorization": "Bearer secret-key"}) as caller:
            await greeted(caller)
        async with phone(house.app, house.clock, "key=secret-key") as caller:
            await greeted(caller)
        for refused in (
            await refusal(house, "key=wrong-key"),
            await refusal(house, authorization="Bearer wrong-key"),
        ):
            assert refused.status == 401 and refused.body["error"]["code"] == "invalid_api_key"
            assert "wrong-key" not in str(refused.body) + str(refused.headers)

    serve(scenario, settings=KEYED)


def signed(key: str | None) -> ServerSettings:
    url = "https://voice.example"
    return ServerSettings(host="localhost", api_key=key, twilio_auth_token="12345", public_url=url)


@pytest.mark.parametrize("key", [None, "secret-key"])
def test_twilios_signature_opens_the_door(key: str | None) -> None:
    async def scenario(house: House) -> None:
        good = twilio_signature("12345", f"wss://voice.example{PATH}")
        async with phone(house.app, house.clock, headers={"x-twilio-signature": good}) as caller:
            await greeted(caller)
        refused = await refusal(house, **{"x-twilio-signature": good[:-2] + "A="})
        assert (refused.status, refused.body["error"]["code"]) == (403, "invalid_signature")
        refused = await refusal(house, "key=1" if key is None else "key=wrong", **{"x-twilio-signature": "x"})
        assert refused.status in (401, 403)
        if key is None:
            assert (await refusal(house)).status == 401

    serve(scenario, settings=signed(key))


def test_foreign_pages_and_rebound_names_are_refused() -> None:
    async def scenario(house: House) -> None:
        assert (await refusal(house, origin="http://evil.org")).status == 403
        assert (await refusal(house, host="evil.org")).status == 403

    serve(scenario)


def test_bridges_that_have_not_started_take_no_callers_place_and_are_few() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as waiting:
            assert (await get(house, "/readyz")).json()["sessions"] == 0
            assert (await refusal(house)).status == 503
            async with connect(house.app) as other:
                await other.next()
                assert (await get(house, "/readyz")).json()["sessions"] == 1
                await waiting.dial()
                closed = await waiting.closing()
                assert closed.code == 1013 and "limit is 1" in closed.reason
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            assert (await refusal(house)).status == 503

    serve(scenario, settings=ServerSettings(max_sessions=1))


# --- ending -----------------------------------------------------------------------------------------------------------


def test_draining_lets_the_caller_hear_the_reply_to_its_end() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller, phone(house.app, house.clock) as waiting:
            await caller.dial()
            await caller.wait(0.2)
            drain = asyncio.create_task(house.app.state.realtime.drain())
            await caller.wait(0.5)
            assert caller.heard_s == pytest.approx(0.05 * len(GREETING), abs=0.04)
            assert (await caller.closing()).code == 1001
            assert (await waiting.closing()).code == 1001
            await drain

    serve(scenario)


# --- a real socket ----------------------------------------------------------------------------------------------------


def test_a_call_over_a_real_socket() -> None:
    async def scenario(place: Place) -> None:
        url = place.address.replace("http", "ws", 1) + PATH
        async with connect_websocket(url) as bridge:
            await bridge.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
            await bridge.send(json.dumps(start_message(key="secret-key")))
            first = json.loads(await bridge.recv())
            assert first["event"] == "media" and first["streamSid"] == "MZ1"
            second = json.loads(await bridge.recv())
            await bridge.send(json.dumps({"event": "mark", "streamSid": "MZ1", "mark": second["mark"]}))
            audio = to_ulaw(np.concatenate([silence(0.5), tone(0.8), silence(0.8)]))
            for begin in range(0, len(audio), 160):
                await bridge.send(json.dumps(media_message(audio[begin : begin + 160], begin // 160)))
            conversation = place.runtime.conversations[0]
            while "hello" not in [item.text for item in conversation._history if isinstance(item, Item)]:
                await bridge.recv()
            await bridge.send('{"event":"stop","stop":{}}')
            async for _ in bridge:
                pass
            assert bridge.close_code == 1000

    scene(scenario, ServerSettings(port=0, api_key="secret-key"))
