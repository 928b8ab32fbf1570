"""Phone calls over the door in process, with a phone network in small on the manual clock."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from websockets.asyncio.client import connect as connect_websocket

from tests.voiceagent.house import House, serve
from tests.voiceagent.standins import silence, tone
from tests.voiceagent.telephony.calling import GREETING, LONG, greeted, said
from tests.voiceagent.telephony.phone import PATH, Phone, media_message, phone, start_message, to_ulaw
from tests.voiceagent.test_serving import Place, scene
from voiceagent.audio import PCMU_8K
from voiceagent.events import Item
from voiceagent.server_settings import ServerSettings

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
            await caller.talk(tone(0.9))
            assert len(caller.clears) == 1
            assert caller.queued_s == 0, "nothing more is sent"
            running = conversation._replying._running
            assert running is not None and running.reply.trace.reason == "turn_detected"
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


def test_a_phone_is_held_for_as_long_as_a_long_backchannel_takes_and_every_word_is_heard() -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock) as caller:
            await greeted(caller)
            before_s = caller.heard_s
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            while caller.heard_s == before_s:
                await caller.wait(0.02)
            await caller.wait(0.7)
            await caller.talk(tone(0.56))
            assert len(caller.clears) == 1
            at_s = caller.heard_s
            await caller.talk(silence(0.06))
            assert caller.heard_s <= at_s + 0.001, "held, and not stopped after 0.4 s"
            await caller.wait(30.0)
            assert len(caller.clears) == 1
            spoken_s = sum(0.05 * len(text.strip()) for text in house.runtime.tts.spoken[1:])
            assert caller.heard_s - before_s - spoken_s == pytest.approx(0.0, abs=0.26)
            assert said(house) == [GREETING, LONG.strip()] and said(house, "user") == ["a mocha please"]

    serve(scenario, heard=("a mocha please", "got", "got it"), written=(LONG,))


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
            await caller.talk(tone(0.9))
            assert len(caller.clears) == 2, "nobody knows whether the greeting was played, so it is cleared as well"
            assert said(house)[0] == GREETING, "and counts as heard"
            assert 20 < len(said(house)[-1]) < 100, "about 3 s of speech"

    serve(scenario, written=(LONG,))


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.15])
def test_a_network_without_marks_is_held_where_time_tells_and_loses_no_word(latency_s: float) -> None:
    async def scenario(house: House) -> None:
        async with phone(house.app, house.clock, marks=False, latency_s=latency_s) as caller:
            await greeted(caller)
            await caller.wait(3.0)
            before_s = caller.heard_s
            await caller.talk(np.concatenate([tone(0.8), silence(0.6)]))
            await caller.wait(2.0)
            clears = len(caller.clears)
            await caller.talk(tone(0.3))
            await caller.wait(max(latency_s - 0.1, 0.0))
            assert len(caller.clears) == clears + 1
            at_s = caller.heard_s
            await caller.wait(0.1)
            assert caller.heard_s <= at_s + 0.001, "nothing plays in doubt"
            await caller.wait(30.0)
            spoken_s = sum(0.05 * len(text.strip()) for text in house.runtime.tts.spoken[1:])
            assert -0.02 <= caller.heard_s - before_s - spoken_s <= 2 * latency_s + 0.3, "nothing is lost"
            assert said(house) == [GREETING, LONG.strip()]

    serve(scenario, heard=("a mocha please", "uh-huh"), written=(LONG,))


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
