"""Text completions, infills, edits and model lists over ASGI."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dllm.drafts import DraftSpec
from dllm.server import ServerSettings
from dllm.server.parse import tagged
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import Served, events_of, served


def post(path: str, script: Any = "Hello there.", **fields: Any) -> tuple[dict[str, Any], list[DraftSpec]]:
    async def main() -> tuple[dict[str, Any], list[DraftSpec]]:
        async with served(script) as server:
            response = await server.client.post(path, json=fields)
            assert response.status_code == 200, response.text
            return response.json(), server.engine.specs

    return run_async(main())


def stream(path: str, script: Any = "Hello there.", **fields: Any) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        async with served(script) as server:
            return events_of((await server.client.post(path, json={"stream": True, **fields})).content)

    return run_async(main())


def error_of(path: str, status: int = 400, **fields: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with served() as server:
            response = await server.client.post(path, json=fields)
            assert response.status_code == status, response.text
            error: dict[str, Any] = response.json()["error"]
            return error

    return run_async(main())


def test_a_prompt_is_continued() -> None:
    body, [spec] = post("/v1/completions", prompt="i would like")
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    [choice] = body["choices"]
    assert choice == {"index": 0, "text": "Hello there.", "logprobs": None, "finish_reason": "stop"}
    assert spec.prompt == tuple(tiny.codec().encode("i would like"))
    assert body["usage"]["prompt_tokens"] == len(spec.prompt)


def test_several_prompts_and_choices_come_in_order() -> None:
    body, specs = post("/v1/completions", lambda spec: f"{len(spec.prompt)}", prompt=["a", "tea or a"], n=2, seed=1)
    lengths = [len(tiny.codec().encode(prompt)) for prompt in ("a", "tea or a")]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == [str(length) for length in lengths for _ in range(2)]
    assert body["usage"]["prompt_tokens"] == sum(lengths)
    assert [spec.options.seed for spec in specs] == [1, 2, 1, 2]


def test_token_arrays_are_prompts_as_they_are() -> None:
    assert post("/v1/completions", prompt=[40, 41, 42])[1][0].prompt == (40, 41, 42)
    assert [spec.prompt for spec in post("/v1/completions", prompt=[[40], [41, 42]])[1]] == [(40,), (41, 42)]


def test_an_empty_prompt_begins_where_text_begins() -> None:
    assert post("/v1/completions", prompt="")[1][0].prompt == (tiny.spec().special.end,)


def test_echo_repeats_the_prompt() -> None:
    assert post("/v1/completions", prompt="tea", echo=True)[0]["choices"][0]["text"] == "teaHello there."
    text = "".join(chunk["choices"][0]["text"] for chunk in stream("/v1/completions", prompt="tea", echo=True))
    assert text == "teaHello there."


def test_legacy_log_probabilities_are_columns() -> None:
    logprobs = post("/v1/completions", prompt="tea", logprobs=1)[0]["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == " Hello there."
    assert logprobs["token_logprobs"] == pytest.approx([math.log(0.5)] * len(logprobs["tokens"]))
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"] == sorted(logprobs["text_offset"])
    chunks = stream("/v1/completions", prompt="tea", logprobs=0)
    columns = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert "".join(token for column in columns for token in column["tokens"]) == " Hello there."
    assert [offset for column in columns for offset in column["text_offset"]] == logprobs["text_offset"]


def test_a_stream_of_text_joins_to_the_whole() -> None:
    chunks = stream("/v1/completions", prompt="tea", stream_options={"include_usage": True})
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Hello there."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(("path", "prompt"), [("/v1/completions", "def f("), ("/v1/fim/completions", "def f(")])
def test_a_suffix_is_fixed_at_the_canvas_end_and_only_the_hole_is_returned(path: str, prompt: str) -> None:
    suffix = tiny.codec().encode(" return a")

    def fill(spec: DraftSpec) -> str:
        return "a large tea" + "x" * 64

    body, [spec] = post(path, fill, prompt=prompt, suffix=" return a", max_tokens=8)
    assert [token for _, token in spec.given] == suffix
    assert [position for position, _ in spec.given] == list(range(-len(suffix), 0))
    hole = spec.width - len(suffix)
    assert hole <= 8
    expected = tiny.codec().decode(tiny.codec().encode("a large tea" + "x" * 64)[:hole])
    [choice] = body["choices"]
    assert choice["text"] == expected and choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == hole


def test_a_hole_may_be_filled_before_its_end() -> None:
    body, _ = post("/v1/completions", "a tea", prompt="def f(", suffix="b")
    assert body["choices"][0]["text"] == "a tea"


def test_a_suffix_wider_than_the_canvas_is_refused() -> None:
    error = error_of("/v1/completions", prompt="a", suffix="tea " * 100)
    assert error["param"] == "suffix" and "fewer than 64 tokens" in error["message"]


def test_fill_in_the_middle_ends_at_a_blank_line_unless_told_otherwise() -> None:
    assert post("/v1/fim/completions", "a\n\nb", prompt="x")[0]["choices"][0]["text"] == "a"
    assert post("/v1/fim/completions", "a\n\nb", prompt="x", stop=["b"])[0]["choices"][0]["text"] == "a\n\n"


def test_habitual_penalties_of_editors_are_told_about_and_not_refused() -> None:
    body, _ = post("/v1/fim/completions", prompt="x", presence_penalty=1.5)
    assert body["warning"] == "presence_penalty was not applied; use repetition_penalty"
    assert error_of("/v1/completions", prompt="x", presence_penalty=1.5)["param"] == "presence_penalty"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "prompt", "a string, strings, token ids"),
        ({"prompt": []}, "prompt", "a list of 0"),
        ({"prompt": [1, "a"]}, "prompt[0]", "a string"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]", "a whole number"),
        ({"prompt": [4000]}, "prompt", "below"),
        ({"prompt": "a", "logprobs": 5}, "logprobs", "expected 0 or 1"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "a whole number"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "logprobs", "left-to-right"),
        ({"prompt": "a", "best_of": 3}, "best_of", "not ranked"),
        ({"prompt": "a", "suffix": "b", "dllm": {"regex": "c"}}, "suffix", "beside a grammar"),
        ({"prompt": ["a"] * 40, "n": 2}, "n", "at most 64 replies in one request, got 80"),
        ({"prompt": "tea " * 300}, "prompt", "maximum context length is 256"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    error = error_of("/v1/completions", **fields)
    assert error["param"] == param and message in error["message"]


WINDOW = "<|code_to_edit|>\na = <|cursor|>1\n<|/code_to_edit|>"
NESTED = (
    f"<|recently_viewed_code_snippets|><|/recently_viewed_code_snippets|>\n"
    f"<|current_file_content|>\ncurrent_file_path: a.py\n{WINDOW}\n<|/current_file_content|>\n"
    f"<|edit_diff_history|><|/edit_diff_history|>"
)


@pytest.mark.parametrize("content", [WINDOW, NESTED])
def test_blocks_are_found_by_their_tags_wherever_they_stand(content: str) -> None:
    assert tagged(content, "code_to_edit") == "\na = <|cursor|>1\n"
    assert tagged(content, "original_code") is None


def test_an_edit_is_a_message_that_replaces_the_window() -> None:
    messages = [{"role": "user", "content": WINDOW}]
    body, [spec] = post("/v1/edit/completions", "a = 2", model="dllm", messages=messages)
    assert body["object"] == "edit.completion"
    assert body["choices"][0]["message"]["content"] == "a = 2"
    # The instruction comes before the user's message.
    assert spec.prompt[0] == tiny.codec().role_id("system")


def test_an_edit_may_be_streamed_as_a_chat() -> None:
    chunks = stream("/v1/edit/completions", "a = 2", messages=[{"role": "user", "content": WINDOW}])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "a = 2"


def test_edits_need_one_user_message_with_its_window() -> None:
    error = error_of("/v1/edit/completions", messages=[{"role": "user", "content": "fix this"}])
    assert error["param"] == "messages[0].content" and "<|code_to_edit|>" in error["message"]
    two = [{"role": "user", "content": WINDOW}] * 2
    assert error_of("/v1/edit/completions", messages=two)["param"] == "messages"
    error = error_of(
        "/v1/apply/completions", messages=[{"role": "user", "content": "<|original_code|>a<|/original_code|>"}]
    )
    assert "<|update_snippet|>" in error["message"]


def get(
    path: str, settings: ServerSettings | None = None, **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    async def main() -> tuple[int, dict[str, Any], dict[str, str]]:
        async with served(settings=settings) as server:
            response = await server.client.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            return response.status_code, response.json(), dict(response.headers)

    return run_async(main())


def test_models_are_listed_for_both_kinds_of_clients() -> None:
    _, body, _ = get("/v1/models", ServerSettings(model="tiny", aliases=("mercury-2",)))
    assert [model["id"] for model in body["data"]] == ["tiny", "mercury-2"]
    model = body["data"][0]
    assert model["object"] == "model" and model["context_length"] == 256 and model["max_output_length"] == 64
    assert model["pricing"]["prompt"] == "0" and "/v1/fim/completions" in model["supported_endpoints"]
    for endpoint in ("chat", "fim", "edit"):
        assert get(f"/v1/{endpoint}/completions/models")[0] == 200


def test_one_model_is_found_by_its_name_only() -> None:
    settings = ServerSettings(model="org/tiny")
    assert get("/v1/models/org/tiny", settings)[1]["id"] == "org/tiny"
    status, body, _ = get("/v1/models/other", settings)
    assert status == 404 and body["error"]["code"] == "model_not_found"


def test_a_key_is_asked_for_when_there_is_one() -> None:
    settings = ServerSettings(api_keys=("first", "second"))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic second"}):
        status, body, answered = get("/v1/models", settings, **headers)
        assert status == 401 and body["error"]["code"] == "invalid_api_key" and answered["x-request-id"]
    assert get("/v1/models", settings, authorization="Bearer second")[0] == 200
    assert get("/healthz", settings)[0] == 200


def test_pages_of_named_origins_may_call() -> None:
    settings = ServerSettings(cors_origins=("https://a.example",))
    assert (
        get("/v1/models", settings, origin="https://a.example")[2]["access-control-allow-origin"] == "https://a.example"
    )
    status, _, headers = get("/v1/models", settings, origin="https://b.example")
    assert status == 403 and "access-control-allow-origin" not in headers


async def _raw(server: Served, content: bytes) -> tuple[int, dict[str, Any]]:
    response = await server.client.post("/v1/chat/completions", content=content)
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "an array, expected an object"),
        (b'{"temperature": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(content: bytes, message: str) -> None:
    async def main() -> None:
        async with served() as server:
            status, error = await _raw(server, content)
            assert status == 400 and error["code"] == "invalid_json" and message in error["message"]

    run_async(main())


def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    async def main() -> None:
        async with served(settings=ServerSettings(max_body_bytes=100)) as server:
            status, error = await _raw(server, b'{"messages": "' + b"x" * 100)
            assert status == 413 and error["code"] == "request_too_large"

    run_async(main())


def test_unknown_paths_and_methods_are_errors_of_the_same_shape() -> None:
    status, body, _ = get("/v1/nothing")
    assert status == 404 and body["error"]["code"] == "not_found"
    status, body, headers = get("/v1/chat/completions")
    assert status == 405 and body["error"]["code"] == "method_not_allowed" and headers["allow"] == "POST"
