"""Who is let in, and what the server answers over HTTP."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.voiceagent.house import KEYED, House, _shown, get, refusal, serve
from tests.voiceagent.realtime import connect
from voiceagent.conversation import Conversation
from voiceagent.errors import OverloadedError
from voiceagent.server_settings import ServerSettings

# --- letting in -------------------------------------------------------------------------------------------------------


def test_handshakes_without_and_with_subprotocols_are_answered_as_clients_need() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app, headers={"authorization": "Bearer secret-key"}) as client:
            assert client.subprotocol is None
        offered = ["realtime", "openai-insecure-api-key.secret-key", "openai-agents-sdk.0.20.0"]
        async with connect(house.app, subprotocols=offered) as client:
            assert client.subprotocol == "realtime"

    serve(scenario, settings=KEYED)


def test_a_wrong_or_missing_key_is_refused_before_the_upgrade_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        for how in (
            {},
            {"headers": {"authorization": "Bearer wrong-key"}},
            {"subprotocols": ["realtime", "openai-insecure-api-key.wrong-key"]},
        ):
            refused = await refusal(house, **how)
            assert refused.status == 401
            assert refused.body["error"]["code"] == "invalid_api_key"
            assert refused.body["error"]["type"] == "authentication_error"
            assert "wrong-key" not in str(refused.body) + str(refused.headers)
        assert not house.runtime.conversations

    with caplog.at_level(logging.DEBUG):
        serve(scenario, settings=KEYED)
    assert "wrong-key" not in caplog.text and "secret-key" not in caplog.text


def test_foreign_pages_and_rebound_names_are_refused() -> None:
    async def open_house(house: House) -> None:
        refused = await refusal(house, headers={"origin": "http://evil.org"})
        assert (refused.status, refused.body["error"]["code"]) == (403, "forbidden_origin")
        refused = await refusal(house, headers={"origin": "http://evil.org", "host": "evil.org"})
        assert (refused.status, refused.body["error"]["code"]) == (403, "forbidden_host")
        async with connect(house.app, headers={"origin": "http://localhost:8080"}) as client:
            await client.next()

    async def keyed_house(house: House) -> None:
        key = {"authorization": "Bearer secret-key", "host": "voice.example"}
        assert (await refusal(house, headers={**key, "origin": "http://evil.org"})).status == 403
        for origin in ("https://app.example", "https://voice.example"):
            async with connect(house.app, headers={**key, "origin": origin}) as client:
                await client.next()

    serve(open_house)
    serve(keyed_house, settings=KEYED)


def test_nobody_is_let_in_over_the_limit_and_a_place_that_is_left_is_free_again() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app):
            refused = await refusal(house)
            assert (refused.status, refused.headers["retry-after"]) == (503, "5")
            assert "1 conversations are active and the limit is 1" in refused.body["error"]["message"]
            ready = await get(house, "/readyz")
            assert ready.status_code == 503 and "limit is 1" in ready.json()["reason"]
        async with connect(house.app) as client:
            await client.next()

    serve(scenario, settings=ServerSettings(max_sessions=1))


def test_a_runtime_that_is_loading_or_overloaded_refuses_with_the_reason() -> None:
    async def scenario(house: House) -> None:
        house.runtime.ready = False
        assert "loading" in (await refusal(house)).body["error"]["message"]
        house.runtime.ready = True

        def overloaded(conversation: Conversation) -> Any:
            raise OverloadedError(3, 3)

        house.runtime.wrap = overloaded
        refused = await refusal(house)
        assert refused.status == 503 and "3 conversations" in refused.body["error"]["message"]

    serve(scenario)


def test_whoever_sends_callers_is_told_that_the_models_have_no_room_and_the_process_is_well() -> None:
    async def scenario(house: House) -> None:
        house.runtime.full = "the processors are full"
        ready = await get(house, "/readyz")
        assert (ready.status_code, ready.json()["ready"], ready.json()["reason"]) == (
            503,
            False,
            "the processors are full",
        )
        assert ready.json()["parts"], "the page still says what would serve"
        assert (await get(house, "/healthz")).status_code == 200
        house.runtime.full = None
        assert (await get(house, "/readyz")).status_code == 200

    serve(scenario)


@pytest.mark.parametrize("query", ["call_id=rtc_1", "intent=transcription"])
def test_kinds_of_session_that_are_not_offered_are_not_found(query: str) -> None:
    async def scenario(house: House) -> None:
        assert (await refusal(house, query)).status == 404

    serve(scenario)


def test_a_websocket_to_any_other_address_is_refused() -> None:
    async def scenario(house: House) -> None:
        assert (await refusal(house, path="/v1/else")).status == 403

    serve(scenario)


# --- http -------------------------------------------------------------------------------------------------------------


def test_a_request_that_lost_its_upgrade_on_the_way_is_told_so() -> None:
    async def scenario(house: House) -> None:
        answer = await get(house, "/v1/realtime?model=m")
        assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
        assert "proxy" in answer.json()["error"]["message"]

    serve(scenario)


def test_what_is_not_offered_is_said_in_the_shape_that_clients_of_the_protocol_read() -> None:
    async def scenario(house: House) -> None:
        transport = httpx.ASGITransport(house.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            for method, path in (
                ("POST", "/v1/realtime/client_secrets"),
                ("POST", "/v1/realtime/calls"),
                ("GET", "/v1/models"),
            ):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
                assert path in answer.json()["error"]["message"]

    serve(scenario)


def test_readiness_names_the_parts_and_whether_a_key_is_needed() -> None:
    async def scenario(house: House) -> None:
        assert (await get(house, "/healthz")).json() == {"status": "ok"}
        ready = await get(house, "/readyz")
        assert ready.status_code == 200
        body = ready.json()
        assert (body["ready"], body["reason"], body["key_required"]) == (True, None, False)
        assert body["agent"] == {"name": "café", "greeting": "Welcome."}
        assert [part["part"] for part in body["parts"]] == ["vad", "asr", "llm", "tts"]
        assert all(part["reason"] for part in body["parts"])

    serve(scenario)


def test_the_page_and_its_files_come_with_their_types_and_a_policy() -> None:
    async def scenario(house: House) -> None:
        page = await get(house, "/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-cache" and page.headers["etag"]
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
        assert "connect-src 'self' ws://localhost:8080 wss://localhost:8080" in policy
        assert page.headers["permissions-policy"] == "microphone=(self)"
        for path in ("/app.js", "/static/app.js"):
            script = await get(house, path)
            assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")
        assert (await get(house, "/app.js", **{"if-none-match": script.headers["etag"]})).status_code == 304
        for path in ("/../server.py", "/%2e%2e/server.py", "/static/..%2fserver.py", "/nothing.js"):
            assert (await get(house, path)).status_code == 404

    serve(scenario)


def test_an_open_server_shows_nothing_to_a_rebound_name() -> None:
    async def scenario(house: House) -> None:
        for path in ("/", "/readyz", "/app.js"):
            assert (await get(house, path, host="evil.org")).status_code == 403

    serve(scenario)
    serve(lambda house: _shown(house), settings=replace(KEYED))


def test_a_strange_host_header_does_not_get_into_the_policy() -> None:
    async def scenario(house: House) -> None:
        page = await get(house, "/readyz", host="a; script-src *")
        assert "script-src *" not in page.headers["content-security-policy"]

    serve(scenario, settings=KEYED)
