"""Tools as a configuration declares them: Python functions in threads, HTTP endpoints on a local server, and every mistake named."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import run_async
from tests.voice_pipelines.scripted_endpoint import Exchange, endpoint
from voice_pipelines import settings
from voice_pipelines.doctor import refusal
from voice_pipelines.toolbox import ANSWER_BYTES, SAID_CHARS, HttpClient, HttpTool, Toolbox, in_thread, python_tool
from voiceagent.clock import ManualClock
from voiceagent.config import Config, assignment_layer, load_config
from voiceagent.errors import ConfigError, ToolError
from voiceagent.tool_runner import run_tool

HERE = "tests.voice_pipelines.test_toolbox"
KEY = "sk-secret-1234"


def book(people: int, day: str = "today") -> dict[str, object]:
    return {"table": people, "day": day, "thread": threading.current_thread().name}


async def look(day: str) -> str:
    return f"{day}: open"


NOT_CALLABLE = 5


def configure(**tool: object) -> Config:
    return load_config([{"tools": {"book": tool}}])


# --- Python functions -------------------------------------------------------------------------------------------------


def test_a_plain_function_runs_in_a_thread_and_an_async_one_on_the_loop() -> None:
    async def main() -> None:
        result = await python_tool(book)({"people": 4})
        assert result == {"table": 4, "day": "today", "thread": "tool"}
        assert await python_tool(look)({"day": "friday"}) == "friday: open"

    run_async(main())


@pytest.mark.parametrize("error", [ValueError("full"), StopIteration("full"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_function_raises_reaches_the_loop_as_an_error(error: BaseException) -> None:
    def fail() -> object:
        raise error

    with pytest.raises((ValueError, RuntimeError)):
        run_async(in_thread(fail))


def test_a_function_that_hangs_is_given_up_and_holds_nobody() -> None:
    release = threading.Event()

    async def main() -> None:
        clock = ManualClock()
        (tool,) = Toolbox.open(configure(function=f"{HERE}:look", parameters={"day": "string"}), {}).tools
        object.__setattr__(tool, "run", python_tool(lambda day: release.wait()))
        running = asyncio.ensure_future(run_tool(tool, {"day": "x"}, clock))
        await clock.advance(tool.timeout_s)
        outcome, _ = await running
        assert outcome == "timed_out"

    try:
        run_async(main())
    finally:
        release.set()


# --- what is declared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (None, ("Wait.", "Hm.")),
        ("One moment, please.", ("One moment, please.", "Wait.", "Hm.")),
        (["Wait."], ("Wait.", "Hm.")),
        (["One.", "Two."], ("One.", "Two.")),
        ("", ("Wait.", "Hm.")),
    ],
)
def test_the_agents_words_stand_in_where_a_tools_own_are_too_few(own: object, said: tuple[str, ...]) -> None:
    table = {"function": f"{HERE}:book", "parameters": {"people": "integer", "day": "string?"}}
    if own is not None:
        table["say_while_running"] = own
    config = load_config([{"tools": {"book": table}, "reply": {"tool_acknowledgements": ["Wait.", "Hm."]}}])
    (tool,) = Toolbox.open(config, {}).tools
    assert tool.say_while_running == said


def test_a_list_of_texts_can_be_given_on_the_command_line() -> None:
    pairs = [f"tools.book.function={HERE}:book", 'tools.book.say_while_running=["One, two.", "Three."]']
    assert load_config([assignment_layer(pairs)]).tools["book"].say_while_running == ("One, two.", "Three.")
    one = assignment_layer([pairs[0], "tools.book.say_while_running=One moment, please."])
    assert load_config([one]).tools["book"].say_while_running == ("One moment, please.",)


@pytest.mark.parametrize(
    ("key", "value"), [("say_while_running", [" "]), ("say_while_running", 5), ("acknowledge_after_s", 0.0)]
)
def test_what_cannot_be_said_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"tools\.book\.{key}"):
        configure(function=f"{HERE}:book", **{key: value})


def test_a_declared_tool_has_its_schema_and_its_rules() -> None:
    config = configure(
        description="books",
        parameters={"people": "integer", "day": "string?"},
        function=f"{HERE}:book",
        side_effect=False,
        timeout_s=2,
        say_while_running="One moment.",
        result={"type": "object"},
    )
    (tool,) = Toolbox.open(config, {}).tools
    assert tool.spec.name == "book" and tool.spec.parameters["required"] == ["people"]
    assert (tool.side_effect, tool.timeout_s, tool.acknowledge_after_s) == (False, 2.0, 0.7)
    assert tool.say_while_running[0] == "One moment." and len(tool.say_while_running) > 2
    assert tool.result == {"type": "object"}


@pytest.mark.parametrize(
    ("tool", "key", "expected"),
    [
        ({"function": "no.such:thing"}, "tools.book.function", "an importable 'package.module:function'"),
        ({"function": f"{HERE}:nothing"}, "tools.book.function", "an importable"),
        ({"function": f"{HERE}:NOT_CALLABLE"}, "tools.book.function", "something that can be called"),
        ({"function": f"{HERE}:look"}, "tools.book.function", "a function of the declared parameters: none"),
        (
            {"function": f"{HERE}:look", "parameters": {"day": "string", "hat": "string?"}},
            "tools.book.function",
            "declared parameters: day, hat (optional)",
        ),
        ({"url": "http://h/x", "headers": {"A": "${NOT_SET}"}}, "tools.book.headers.A", "a variable that is set"),
        ({"url": "http://h/x", "headers": {"A": "caf\u00e9"}}, "tools.book.headers.A", "visible ASCII"),
        ({"url": "http://h/x", "headers": {"A b": "x"}}, "tools.book.headers.A b", "the name of a header"),
    ],
)
def test_a_tool_that_cannot_work_is_named_before_anything_runs(
    tool: dict[str, object], key: str, expected: str
) -> None:
    config = configure(**tool)
    with pytest.raises(ConfigError) as caught:
        Toolbox.open(config, {})
    assert caught.value.key == key and expected in str(caught.value)
    assert refusal(lambda: Toolbox.open(config, {})) == str(caught.value), "the doctor says the same"


def test_the_example_is_complete_and_its_functions_lie_beside_it() -> None:
    config = settings.load(file=Path(__file__).parents[2] / "examples" / "tools" / "booking.toml")
    hours, booking = Toolbox.open(config, {}).tools
    assert (hours.side_effect, booking.side_effect) == (False, True)

    async def main() -> None:
        outcome, result = await run_tool(booking, {"people": 4, "day": "friday"}, ManualClock())
        assert outcome == "ok" and result.note.startswith("book_table: table: 1; time: seven p m; code: K")
        assert len(result.must_say) == 1 and result.must_say[0] in result.note
        outcome, result = await run_tool(booking, {"people": 40, "day": "friday"}, ManualClock())
        assert (outcome, result.note) == ("failed", "book_table failed: only 16 seats are free on friday")
        for arguments, reason in (
            ({"people": -4, "day": "friday"}, "nobody comes"),
            ({"people": 4, "day": "Monday"}, "closed on monday"),
        ):
            outcome, result = await run_tool(booking, arguments, ManualClock())
            assert (outcome, result.note) == ("failed", f"book_table failed: {reason}")

    run_async(main())


# --- HTTP endpoints ---------------------------------------------------------------------------------------------------


def ask(
    script: Callable[[Exchange], Awaitable[None]],
    *,
    method: str = "POST",
    query: str = "",
    arguments: dict[str, object] | None = None,
) -> tuple[object, Exchange]:
    """What a tool gives whose endpoint answers as scripted, and what the endpoint was asked."""

    async def main() -> tuple[object, Exchange]:
        async with endpoint(script) as remote:
            client = HttpClient()
            tool = HttpTool(client, method, f"{remote.url}/book{query}", {"Authorization": f"Bearer {KEY}"})
            try:
                found: object = await tool.run(arguments or {"people": 4, "day": "friday"})
            except ToolError as error:
                found = error
            finally:
                await client.aclose()
            return found, (remote.exchanges or remote.listings)[0]

    return run_async(main())


def answering(status: str, body: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def script(exchange: Exchange) -> None:
        exchange.refuse(status, body)

    return script


def test_arguments_go_as_json_and_the_answer_is_the_result() -> None:
    found, exchange = ask(answering("200 OK", b'{"table": 12}'))
    assert found == {"table": 12}
    assert (exchange.method, exchange.path, exchange.body) == ("POST", "/v1/book", {"people": 4, "day": "friday"})
    assert exchange.headers["authorization"] == f"Bearer {KEY}"


def test_a_get_sends_them_as_query_and_keeps_the_urls_own() -> None:
    _, exchange = ask(answering("200 OK", b""), method="GET", query="?shop=7", arguments={"day": "a b", "out": True})
    assert exchange.path == "/v1/book?shop=7&day=a+b&out=true" or "day=a%20b" in exchange.path
    _, exchange = ask(answering("200 OK", b""), method="GET", query="?tag=a&tag=b&day=1", arguments={"day": "2"})
    assert exchange.path == "/v1/book?tag=a&tag=b&day=2", (
        "an argument replaces the URL's own, what is there twice stays"
    )


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("409 Conflict", b'{"error": "no table"}', "the service answered 409 Conflict: no table"),
        ("401 No", json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), "401 No: bad key (hidden)"),
        ("503 Service Unavailable", b"<html>", "the service answered 503 Service Unavailable"),
        ("302 Found", b"", "the service answered 302 Found"),
        ("200 OK", b"hello", "the service answered with what is not JSON"),
        ("200 OK", b"[" * 50_000, "the service answered with what is not JSON"),
        ("200 OK", b'"' + b"x" * ANSWER_BYTES + b'"', f"the service answered with more than {ANSWER_BYTES} bytes"),
    ],
)
def test_an_endpoint_that_refuses_or_misbehaves_is_a_failure_with_its_reason(
    status: str, body: bytes, reason: str
) -> None:
    found, _ = ask(answering(status, body))
    assert isinstance(found, ToolError) and str(found).endswith(reason)


def test_no_caller_waits_for_the_connection_of_another() -> None:
    callers = 101  # One more than a client of httpx2 has connections unless it is told.

    async def main() -> None:
        asked, all_are_there = 0, asyncio.Event()

        async def script(exchange: Exchange) -> None:
            nonlocal asked
            asked += 1
            if asked == callers:
                all_are_there.set()
            await all_are_there.wait()
            exchange.refuse("200 OK", b"{}")

        async with endpoint(script) as remote:
            client = HttpClient()
            tool = HttpTool(client, "POST", f"{remote.url}/book")
            assert await asyncio.gather(*(tool.run({}) for _ in range(callers))) == [{}] * callers
            await client.aclose()

    run_async(main())


@pytest.mark.parametrize("before", [0, SAID_CHARS - len(KEY) - 1, SAID_CHARS - 8])
def test_no_part_of_a_key_is_told_or_logged(before: int, caplog: pytest.LogCaptureFixture) -> None:
    """Endpoints repeat a refused key; one that the words' end cuts is hidden all the same."""
    with caplog.at_level(logging.DEBUG):
        found, exchange = ask(answering("401 No", json.dumps({"detail": f"{'x' * before} {KEY}"}).encode()))
    assert KEY in exchange.headers["authorization"]
    assert isinstance(found, ToolError) and KEY[:6] not in str(found)
    assert KEY[:6] not in caplog.text


def test_an_endpoint_that_is_not_there_is_a_failure_and_the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        client = HttpClient()
        tool = HttpTool(client, "POST", "http://127.0.0.1:9/book", {"Authorization": f"Bearer {KEY}"})
        assert KEY not in repr(tool)
        with pytest.raises(ToolError, match="cannot be reached"):
            await tool.run({})
        await client.aclose()

    with caplog.at_level(logging.DEBUG):
        run_async(main())
    assert KEY not in caplog.text
