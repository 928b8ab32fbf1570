"""Chat completions over ASGI."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import httpx
import pytest

from dllm.drafts import DraftSpec, Event
from dllm.errors import ConstraintError
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import CREATED, events_of, served, text_of
from tests.dllm.standin import StandInEngine


def ask(script: Any = "Hello there.", settings: ServerSettings | None = None, **fields: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with served(script, settings) as server:
            response = await server.chat(**fields)
            assert response.status_code == 200, response.text
            body: dict[str, Any] = response.json()
            return body

    return run_async(main())


def asked_of_engine(**fields: Any) -> DraftSpec:
    async def main() -> DraftSpec:
        async with served() as server:
            response = await server.chat(**fields)
            assert response.status_code == 200, response.text
            return server.engine.specs[0]

    return run_async(main())


def refused(status: int = 400, **fields: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with served() as server:
            response = await server.chat(**fields)
            assert response.status_code == status, response.text
            assert not server.engine.specs
            error: dict[str, Any] = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            return error

    return run_async(main())


def stream(script: Any = "Hello there.", **fields: Any) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        async with served(script) as server:
            return await server.stream(**fields)

    return run_async(main())


def test_a_chat_is_answered_as_openai_answers() -> None:
    body = ask()
    assert body["object"] == "chat.completion" and body["model"] == "dllm" and body["created"] == CREATED
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_usage_counts_visible_tokens_and_tells_the_work_behind_them() -> None:
    usage = ask(seed=7)["usage"]
    tokens = len(tiny.codec().encode(" Hello there."))
    prompt = len(tiny.codec().encode_prompt([("user", "hello")]))
    assert usage["completion_tokens"] == tokens and usage["prompt_tokens"] == prompt
    assert usage["total_tokens"] == prompt + tokens
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["cached_input_tokens"] == 2
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["reasoning_tokens"] == 0
    steps = math.ceil(tokens / 3)
    assert usage["dllm"] == {
        "forwards": {"prefill": 1, "denoise": steps, "commit": 0, "wasted": 0},
        "steps": steps,
        "tokens_per_forward": round(tokens / steps, 3),
        "forced_tokens": 0,
        "guards": 0,
        "seconds": {"prefill": 0.5, "denoise": 0.25 * steps},
        "seed": 7,
    }


def test_a_stream_joins_to_the_whole_reply() -> None:
    chunks = stream(stream_options={"include_usage": True})
    assert text_of(chunks) == "Hello there."
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len(chunks) > 4, "the text came in several pieces"


def test_a_stream_without_the_option_has_no_usage() -> None:
    assert all("usage" not in chunk for chunk in stream())


@pytest.mark.parametrize("is_streamed", (False, True))
def test_a_stop_string_ends_the_text_and_the_work(is_streamed: bool) -> None:
    async def main() -> tuple[str, str, dict[str, Any]]:
        # Rounds for the text up to the stop string, and no more before the answer is there.
        gate = threading.Semaphore(len(tiny.codec().encode(" one two STOP")))
        async with served("one two STOP three four five six seven eight", piece=1, gate=gate) as server:
            response = await server.chat(
                stop=["STOP"],
                stream=is_streamed,
                **({"stream_options": {"include_usage": True}} if is_streamed else {}),
            )
            gate.release()
            await server.runner.call(lambda engine: None)
            assert len(server.engine.cancelled) == 1
            if is_streamed:
                chunks = events_of(response.content)
                return text_of(chunks), chunks[-2]["choices"][0]["finish_reason"], chunks[-1]["usage"]
            body = response.json()
            return body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"], body["usage"]

    text, reason, usage = run_async(main())
    assert text == "one two " and reason == "stop"
    visible = tiny.codec().encode(" one two ")
    assert usage["completion_tokens"] in (len(visible) - 1, len(visible)), (
        "the tokens of the stop string are not counted"
    )
    assert usage["dllm"]["steps"] >= usage["completion_tokens"]


def test_max_tokens_cuts_the_text_and_says_length() -> None:
    tokens = tiny.codec().encode(" one two three four")
    for name in ("max_tokens", "max_completion_tokens"):
        body = ask("one two three four", **{name: 5})
        assert body["choices"][0]["message"]["content"] == tiny.codec().decode(tokens[:5]).removeprefix(" ")
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 5


def test_max_completion_tokens_wins() -> None:
    assert asked_of_engine(max_tokens=30, max_completion_tokens=10).width == 16


def test_more_tokens_than_the_model_has_are_cut_to_its_canvas() -> None:
    assert asked_of_engine(max_tokens=100_000).width == 64


def test_several_choices_are_several_drafts_of_one_prompt() -> None:
    async def main() -> tuple[dict[str, Any], list[DraftSpec]]:
        async with served(lambda spec: f"seed {spec.options.seed % 10}") as server:
            return (await server.chat(n=3, seed=5, temperature=0.7)).json(), server.engine.specs

    body, specs = run_async(main())
    assert [choice["message"]["content"] for choice in body["choices"]] == ["seed 5", "seed 6", "seed 7"]
    assert [spec.options.temperature for spec in specs] == [0.7] * 3
    assert body["usage"]["prompt_tokens"] == len(specs[0].prompt)


def test_streamed_choices_are_told_apart_by_index() -> None:
    chunks = stream(lambda spec: "x" * (spec.options.seed % 7), n=3, seed=2)
    assert [text_of(chunks, index) for index in range(3)] == ["xx", "xxx", "xxxx"]
    reasons = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(choice["index"] for choice in reasons) == [0, 1, 2]


def test_sampling_fields_reach_the_engine() -> None:
    options = asked_of_engine(
        temperature=0.5, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=-1, logit_bias={"30": -100, "31": 2.5}
    ).options
    assert (options.temperature, options.top_p, options.top_k, options.repetition_penalty) == (0.5, 0.9, 20, 1.2)
    assert options.seed == 2**62 - 1
    assert options.logit_bias[:2] == ((30, -100.0), (31, 2.5))


def test_the_engines_own_options_stand_in_an_object_of_their_own() -> None:
    spec = asked_of_engine(dllm={"rule": "factor", "factor": 0.5, "steps": 9, "threshold": 0.6, "pins": ["large tea"]})
    assert (spec.options.rule, spec.options.factor) == ("factor", 0.5)
    assert (spec.plan.steps_first, spec.plan.threshold) == (9, 0.6)
    assert spec.pins == (tiny.codec().encode_pin("large tea"),)


def test_effort_and_realtime_choose_the_plan() -> None:
    plans = {
        effort: asked_of_engine(reasoning_effort=effort, max_tokens=63).plan
        for effort in ("none", "minimal", "instant", "low", "medium", "high", "xhigh")
    }
    assert [plan.steps_first for plan in plans.values()] == [8, 8, 8, 16, 32, 64, 64]
    assert not any(plan.by_clause for plan in plans.values())
    assert asked_of_engine(max_tokens=63).plan == plans["medium"]
    realtime = asked_of_engine(realtime=True).plan
    assert realtime.by_clause and realtime.steps_first == 6


def test_log_probabilities_are_those_of_the_decisions() -> None:
    body = ask(logprobs=True, top_logprobs=1)
    content = body["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == b" Hello there."
    assert all(entry["logprob"] == pytest.approx(math.log(0.5)) for entry in content)
    assert all([top["token"] for top in entry["top_logprobs"]] == [entry["token"]] for entry in content)
    assert len(content) == body["usage"]["completion_tokens"]


def test_streamed_log_probabilities_are_all_there_once() -> None:
    chunks = stream(logprobs=True)
    told = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in told) == b" Hello there."
    assert all(entry["top_logprobs"] == [] for entry in told)


def test_a_diffusing_stream_replaces_the_text_until_it_is_whole() -> None:
    chunks = stream(diffusing=True)
    frames = [chunk for chunk in chunks if "diffusion_meta" in chunk]
    texts = [frame["choices"][0]["delta"]["content"] for frame in frames]
    progress = [frame["diffusion_meta"]["diffusion_progress"] for frame in frames]
    assert "▒" in texts[0] and texts[-1] == "Hello there." and progress[-1] == 1.0
    assert progress == sorted(progress) and len(frames) > 2
    assert all(frame["diffusion_meta"]["diffusion_content"] is True for frame in frames)
    assert chunks[-1]["choices"][0]["delta"] == {} and chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_messages_become_the_prompt_the_model_was_trained_on() -> None:
    prompt = asked_of_engine(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a tea"}, {"type": "text", "text": "please"}]},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "user", "content": "why?"},
        ]
    ).prompt
    turns = [("system", "Be brief."), ("user", "a tea please"), ("agent", "No."), ("user", "why?")]
    assert prompt == tuple(tiny.codec().encode_prompt(turns))  # type: ignore[arg-type]


def test_the_conversation_is_the_headers_or_the_users_and_forgotten_when_others_come() -> None:
    async def main() -> tuple[list[str], list[str]]:
        async with served(settings=ServerSettings(max_conversations=2)) as server:
            for user, header in (("anna", "c1"), ("anna", ""), ("", ""), ("", ""), ("", ""), ("ben", "")):
                body = {"messages": [{"role": "user", "content": "hello"}], "user": user}
                await server.client.post("/v1/chat/completions", json=body, headers={"X-Conversation": header})
            await server.runner.call(lambda engine: None)
            return [spec.conversation for spec in server.engine.specs], server.engine.forgotten

    conversations, forgotten = run_async(main())
    assert conversations[:2] == ["conversation c1", "user anna"] and conversations[-1] == "user ben"
    assert all(name.startswith("req_") for name in conversations[2:5])
    # Two of each kind are kept.
    assert forgotten == [conversations[2], "conversation c1"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "expected an array, got 'hi'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "got 'robot'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string or an array of text parts, got null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "this model reads nothing else",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "four"}}]},
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
            "arguments = 'four': expected a JSON object as a string",
        ),
        ({"temperature": "hot"}, "temperature", "expected a number from 0 to 2, got 'hot'"),
        ({"temperature": 3}, "temperature", "expected a number from 0 to 2, got 3"),
        ({"temperature": 0.0001}, "temperature", "between 0.001 and 100"),
        ({"top_p": 0}, "top_p", "(0, 1]"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "whole number"),
        ({"n": 99}, "n", "from 1 to 8"),
        ({"stop": ["a", ""]}, "stop", "not empty"),
        ({"stop": [1]}, "stop[0]", "a string"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "a token id"),
        ({"logit_bias": {"99999": 1}}, "logit_bias.99999", "a token id below"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs", "expected 0 or 1"),
        ({"top_logprobs": 1}, "top_logprobs", "logprobs: true"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty", "repetition_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"diffusing": True}, "diffusing", "stream: true"),
        ({"diffusing": True, "stream": True, "logprobs": True}, "logprobs", "with diffusing"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "one of instant"),
        ({"functions": [{}]}, "functions", "use tools"),
        ({"tools": [{"type": "search"}]}, "tools[0].type", "function"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "a JSON schema"),
        ({"dllm": {"rule": "fastest"}}, "dllm.rule", "one of threshold"),
        ({"dllm": {"steps": 0}}, "dllm.steps", "whole number"),
        ({"dllm": {"stepz": 3}}, "dllm.stepz", "did you mean steps"),
        ({"dllm": {"temperature": 1}}, "dllm.temperature", "beside the dllm object"),
        ({"dllm": {"threshold": 0}}, "threshold", "(0, 1]"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_was_expected(fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(**fields)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_unknown_fields_are_ignored() -> None:
    assert ask(store=True, service_tier="auto", verbosity="low", whatever={"x": 1}, prediction=None)["choices"]


def test_another_model_is_not_found() -> None:
    error = refused(404, model="gpt-4o")
    assert error["code"] == "model_not_found" and error["param"] == "model"


def test_a_prompt_beyond_the_context_is_refused_as_openai_refuses_it() -> None:
    error = refused(text="tea " * 300)
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert "256" in error["message"]


def test_too_many_drafts_at_once_are_sent_away_and_room_is_made_again() -> None:
    async def main() -> None:
        gate = threading.Semaphore(0)
        async with served(settings=ServerSettings(max_drafts=2), gate=gate) as server:
            waiting = asyncio.ensure_future(server.chat(n=2))
            await asyncio.to_thread(server.engine.was_submitted.wait, 30)
            refusal = await server.chat()
            assert refusal.status_code == 429
            assert refusal.headers["retry-after"] == "1"
            assert refusal.json()["error"]["code"] == "rate_limit_exceeded"
            gate.release(99)
            assert (await waiting).status_code == 200
            assert (await server.chat()).status_code == 200

    run_async(main())


def test_a_draft_that_takes_too_long_is_cancelled() -> None:
    async def main() -> None:
        async with served(settings=ServerSettings(timeout_s=1e-9)) as server:
            response = await server.chat()
            assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
            assert response.headers["x-should-retry"] == "false"
            assert len(server.engine.cancelled) == 1

    run_async(main())


def test_an_engine_that_breaks_in_the_middle_ends_the_stream_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    rounds: list[int] = []

    def break_third() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise RuntimeError("a bug")

    async def main() -> list[dict[str, Any]]:
        async with served(before_round=break_third, piece=1) as server:
            return await server.stream()

    with caplog.at_level("CRITICAL"):
        chunks = run_async(main())
    assert chunks[-1]["error"]["type"] == "server_error" and "a bug" in chunks[-1]["error"]["message"]
    assert text_of(chunks[:-1]) != ""


def test_one_choice_that_fails_fails_the_request_and_cancels_the_others() -> None:
    class Picky(StandInEngine):
        def run_round(self) -> list[Event]:
            bad = [draft for draft in self.open_drafts if draft.spec.options.seed == 2]
            return [self.fail(draft, ConstraintError("nothing obeys")) for draft in bad] + super().run_round()

    async def main() -> None:
        gate = threading.Semaphore(4)
        standin = Picky(lambda _: tiny.codec().encode(" one two three"), piece=1, gate=gate)
        async with EngineRunner(standin) as runner:
            transport = httpx.ASGITransport(create_app(runner, tiny.codec(), tiny.spec()))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                body = {"messages": [{"role": "user", "content": "hello"}], "n": 3, "seed": 1}
                response = await client.post("/v1/chat/completions", json=body)
                assert response.status_code == 400 and response.json()["error"]["message"] == "nothing obeys"
                gate.release()
                await runner.call(lambda engine: None)
                assert sorted(draft.spec.options.seed for draft in standin.cancelled) == [1, 3]

    run_async(main())


def test_a_closed_engine_is_unavailable() -> None:
    async def main() -> None:
        async with served() as server:
            assert (await server.client.get("/healthz")).json() == {
                "status": "ok",
                "drafts": 0,
                "awaited": 0,
                "limit": 64,
            }
            await server.runner.aclose()
            for is_streamed in (False, True):
                response = await server.chat(stream=is_streamed)
                assert response.status_code == 503 and response.headers["retry-after"] == "1"
            assert (await server.client.get("/healthz")).status_code == 503

    with_logs_off(main)


def with_logs_off(main: Any) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    try:
        run_async(main())
    finally:
        logging.disable(logging.NOTSET)
