"""Whose phone calls are let in, and what strange bridges do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import run_async
from tests.voiceagent.house import House, get, serve
from tests.voiceagent.realtime import Refused, connect
from tests.voiceagent.standins import silence, tone
from tests.voiceagent.telephony.calling import KEYED, greeted
from tests.voiceagent.telephony.phone import PATH, media_message, phone, start_message, to_ulaw
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.server_settings import ServerSettings
from voiceagent.telephony.call import PhoneCall
from voiceagent.telephony.signature import twilio_signature

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
