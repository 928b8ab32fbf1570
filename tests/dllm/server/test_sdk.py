"""The official clients, unmodified, against a real server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dllm.server import ServerSettings
from tests.dllm import tiny
from tests.dllm.server.serving import Live, live

SIZES = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "order", "description": "Order a tea", "parameters": SIZES}}
]
CALL = '<tool_call>{"name": "order", "arguments": {"size": "large"}}</tool_call>'
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def client(server: Live, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_python_chats_and_streams() -> None:
    with live() as server, client(server) as sdk:
        assert [model.id for model in sdk.models.list()] == ["dllm"]
        assert sdk.models.retrieve("dllm").id == "dllm"
        whole = sdk.chat.completions.create(model="dllm", messages=HELLO, seed=1)
        assert whole.choices[0].message.content == "Hello there." and whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 2
        assert whole.usage.model_extra is not None and whole.usage.model_extra["dllm"]["forwards"]["prefill"] == 1
        options: Any = {"include_usage": True}
        chunks = list(sdk.chat.completions.create(model="dllm", messages=HELLO, stream=True, stream_options=options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Hello there." and chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_python_gets_several_choices_stops_and_log_probabilities() -> None:
    with live("one STOP two") as server, client(server) as sdk:
        reply = sdk.chat.completions.create(model="dllm", messages=HELLO, n=2, stop="STOP", logprobs=True)
        assert [choice.message.content for choice in reply.choices] == ["one ", "one "]
        assert reply.choices[1].logprobs is not None and reply.choices[1].logprobs.content
        with sdk.chat.completions.stream(model="dllm", messages=HELLO, stop=["STOP"]) as stream:
            assert stream.get_final_completion().choices[0].message.content == "one "


def test_python_reads_tool_calls() -> None:
    with live(CALL) as server, client(server) as sdk:
        reply = sdk.chat.completions.create(model="dllm", messages=HELLO, tools=TOOLS, tool_choice="required")
        assert reply.choices[0].finish_reason == "tool_calls" and reply.choices[0].message.tool_calls
        call: Any = reply.choices[0].message.tool_calls[0]
        assert call.function.name == "order" and json.loads(call.function.arguments) == {"size": "large"}
        with sdk.chat.completions.stream(model="dllm", messages=HELLO, tools=TOOLS) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.message.tool_calls and final.message.tool_calls[0].function.arguments == call.function.arguments
        # What was read can be sent back.
        history = [*HELLO, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
        assert sdk.chat.completions.create(model="dllm", messages=history, tools=TOOLS).choices


def test_python_parses_structured_output() -> None:
    pydantic = pytest.importorskip("pydantic")
    order: Any = pydantic.create_model("Order", size=(str, ...), count=(int, ...))
    with live('{"size": "large", "count": 2}') as server, client(server) as sdk:
        parsed = sdk.chat.completions.parse(model="dllm", messages=HELLO, response_format=order)
        assert parsed.choices[0].message.parsed == order(size="large", count=2)


def test_python_completes_and_fills_in() -> None:
    with live("x y z") as server, client(server) as sdk:
        assert sdk.completions.create(model="dllm", prompt="a").choices[0].text == "x y z"
        parts = [
            chunk.choices[0].text for chunk in sdk.completions.create(model="dllm", prompt="a", suffix="b", stream=True)
        ]
        assert "".join(parts) == "x y z"
        fim = openai.OpenAI(base_url=f"{server.url}/v1/fim", api_key="none")
        assert fim.completions.create(model="dllm", prompt="a", suffix="b").choices[0].text == "x y z"


def test_python_sees_canvases_when_it_asks_for_them() -> None:
    extra = {"diffusing": True, "realtime": True, "reasoning_effort": "instant", "reasoning_summary": True}
    with live() as server, client(server) as sdk:
        chunks = list(sdk.chat.completions.create(model="dllm", messages=HELLO, stream=True, extra_body=extra))
    frames = [chunk for chunk in chunks if chunk.model_extra and "diffusion_meta" in chunk.model_extra]
    assert frames[-1].choices[0].delta.content == "Hello there."
    assert frames[-1].model_extra["diffusion_meta"]["diffusion_progress"] == 1.0  # type: ignore[index]
    assert frames[-1].model_extra["reasoning_summary"]["status"] == "unavailable"  # type: ignore[index]


def test_python_raises_the_errors_it_has_names_for() -> None:
    settings = ServerSettings(api_keys=("secret",))
    with live(settings=settings) as server, client(server) as stranger, client(server, "secret") as sdk:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.NotFoundError) as missing:
            sdk.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            sdk.chat.completions.create(model="dllm", messages=HELLO, presence_penalty=1)
        assert wrong.value.param == "presence_penalty" and wrong.value.request_id
        assert sdk.chat.completions.create(model="dllm", messages=HELLO).choices


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_the_engine(is_streamed: bool) -> None:
    gate = threading.Semaphore(2 if is_streamed else 0)
    settings = ServerSettings(max_drafts=1)
    with live("word " * 20, settings, gate=gate, piece=1) as server, client(server) as sdk:
        if is_streamed:
            stream = sdk.chat.completions.create(model="dllm", messages=HELLO, stream=True)
            assert next(iter(stream)).choices
            stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                sdk.chat.completions.create(model="dllm", messages=HELLO, timeout=0.2)
            assert server.engine.was_submitted.wait(10)
        sdk.close()
        while httpx.get(f"{server.url}/healthz").json()["awaited"]:
            pass
        # The engine stood still until here; it finds the cancellation when its forward is over.
        gate.release()
        assert server.engine.was_cancelled.wait(10)
        assert server.engine.rounds <= 3
        gate.release(1000)
        with client(server) as again:
            assert again.chat.completions.create(model="dllm", messages=HELLO, max_tokens=3).choices


def test_an_error_in_the_middle_of_a_stream_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    rounds: list[int] = []

    def break_third() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise RuntimeError("a bug")

    with (
        caplog.at_level("CRITICAL"),
        live(before_round=break_third, piece=1) as server,
        client(server) as sdk,
        pytest.raises(openai.APIError, match="a bug"),
    ):
        list(sdk.chat.completions.create(model="dllm", messages=HELLO, stream=True))


# --- JavaScript -------------------------------------------------------------------------------------------------------

NPM_VERSION = "7.57.0"

SCRIPT = """
import OpenAI from "openai";
const base = process.argv[2];
const client = new OpenAI({ baseURL: base + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const tools = JSON.parse(process.argv[3]);
const out = {};
out.models = (await client.models.list()).data.map((model) => model.id);
const whole = await client.chat.completions.create({ model: "dllm", messages, stop: ["STOP"], n: 2 });
out.texts = whole.choices.map((choice) => choice.message.content);
out.work = whole.usage.dllm.forwards.prefill;
const stream = await client.chat.completions.create({
  model: "dllm", messages, stream: true, stop: "STOP", stream_options: { include_usage: true },
});
out.streamed = "";
for await (const chunk of stream) {
  out.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) out.completion_tokens = chunk.usage.completion_tokens;
}
const runner = client.chat.completions.stream({ model: "dllm", messages: [{ role: "user", content: "call" }], tools });
const call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;
out.call = { name: call.name, arguments: JSON.parse(call.arguments) };
const form = {
  type: "json_schema",
  json_schema: { name: "size", strict: true, schema: tools[0].function.parameters },
};
const parsed = await client.chat.completions.parse({
  model: "dllm", messages: [{ role: "user", content: "json" }], response_format: form,
});
out.json = JSON.parse(parsed.choices[0].message.content);
out.text = (await client.completions.create({ model: "dllm", prompt: "a", suffix: "b" })).choices[0].text;
try {
  await client.chat.completions.create({ model: "other", messages });
} catch (error) {
  out.error = [error.constructor.name, error.status, error.code];
}
const left = await client.chat.completions.create({ model: "dllm", messages: [{ role: "user", content: "leave" }], stream: true });
for await (const chunk of left) break;
console.log(JSON.stringify(out));
"""


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official package in it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        if os.environ.get("CI"):
            pytest.fail("node and npm are missing; CI must run this test")
        pytest.skip("node and npm are not installed here; CI has them")
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"openai@{NPM_VERSION}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


def test_javascript_does_the_same(node_project: Path) -> None:
    def script(spec: Any) -> str:
        if spec.given:
            return "x y z"
        prompt = tiny.codec().decode(spec.prompt)
        for word, reply in (("call", CALL), ("json", '{"size": "large"}')):
            if prompt.endswith(word):
                return reply
        return "one STOP two"

    (node_project / "main.js").write_text(SCRIPT)
    with live(script) as server:
        done = subprocess.run(
            ["node", "main.js", server.url, json.dumps(TOOLS)],
            cwd=node_project,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["models"] == ["dllm"] and out["texts"] == ["one ", "one "] and out["streamed"] == "one "
    assert out["work"] == 2 and out["completion_tokens"] > 0
    assert out["call"] == {"name": "order", "arguments": {"size": "large"}} and out["json"] == {"size": "large"}
    assert out["text"] == "x y z" and out["error"] == ["NotFoundError", 404, "model_not_found"]
