"""Requests that pages of other websites send to a server of this machine."""

from __future__ import annotations

from dllm.server.guard import AccessRules
from dllm.server.settings import ServerSettings
from tests.conftest import run_async
from tests.dllm.server.serving import served

OPEN = AccessRules("127.0.0.1")


def test_an_open_server_of_this_machine_does_not_answer_to_a_rebound_name() -> None:
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert OPEN.allows_host(host)
    for foreign in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "u@localhost",
        "localhost/x",
        "",
        None,
    ):
        assert not OPEN.allows_host(foreign)


def test_a_key_a_named_origin_or_an_address_that_others_reach_lets_other_names_through() -> None:
    assert AccessRules("127.0.0.1", has_keys=True).allows_host("chat.example")
    assert AccessRules("127.0.0.1", origins=("https://chat.example",)).allows_host("chat.example")
    assert AccessRules("0.0.0.0").allows_host("chat.example")
    assert not AccessRules("127.0.0.1", origins=("*",)).allows_host("chat.example")


def test_pages_of_other_origins_may_not_call_an_open_server() -> None:
    host = "localhost:8000"
    for own in (None, "http://localhost:8000"):
        assert OPEN.allows_origin(own, host)
    for foreign in ("https://evil.example", "null", "http://localhost:3000", "file://", "http://u@localhost:8000", ""):
        assert not OPEN.allows_origin(foreign, host)
    assert not AccessRules("0.0.0.0").allows_origin("https://evil.example", host)
    listed = AccessRules("127.0.0.1", origins=("https://chat.example",))
    assert listed.allows_origin("https://chat.example", host) and not listed.allows_origin("https://evil.example", host)
    assert AccessRules("127.0.0.1", origins=("*",)).allows_origin("https://evil.example", host)


def test_a_foreign_request_is_refused_before_anything_is_written() -> None:
    body = '{"model": "dllm", "messages": [{"role": "user", "content": "hello"}]}'

    async def main(settings: ServerSettings, **headers: str) -> tuple[int, str | None]:
        async with served(settings=settings) as server:
            sent = {"content-type": "text/plain", **headers}
            response = await server.client.post("/v1/chat/completions", content=body, headers=sent)
            return response.status_code, response.json().get("error", {}).get("code")

    settings = ServerSettings()
    assert run_async(main(settings)) == (200, None)
    assert run_async(main(settings, host="evil.example")) == (403, "forbidden_host")
    assert run_async(main(settings, origin="https://evil.example")) == (403, "forbidden_origin")
    listed = ServerSettings(cors_origins=("https://chat.example",))
    assert run_async(main(listed, origin="https://chat.example")) == (200, None)
    assert run_async(main(ServerSettings(host="0.0.0.0"), host="chat.example")) == (200, None)
