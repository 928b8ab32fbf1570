"""Whatever is sent, what comes of it is a request or the documented error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.drafts import Plan
from dllm.options import DecodeOptions
from dllm.server import plans
from dllm.server.fields import Fields, load_json
from dllm.server.parse import parse_chat, parse_completion, parse_edit, parse_fim
from dllm.server.problems import ApiError
from dllm.server.requests import ChatRequest, CompletionRequest
from dllm.server.settings import ServerSettings
from tests.dllm import tiny

SETTINGS = ServerSettings()
PARSERS: dict[str, Callable[[Fields, ServerSettings], ChatRequest | CompletionRequest]] = {
    "chat": parse_chat,
    "completion": parse_completion,
    "fim": parse_fim,
    "edit": parse_edit,
    "apply": lambda body, settings: parse_edit(body, settings, "apply"),
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [0, 1, -1, 2**70, 0.5, "", "auto", "required", "json_object", "json_schema", "function", "user", "text"]
    )
    | st.text(st.characters(exclude_categories=[]), max_size=5)
)
NAMES = (
    "model messages role content type text tools tool_choice function name parameters arguments tool_calls refusal response_format "
    "json_schema schema stream stream_options include_usage max_tokens max_completion_tokens temperature top_p top_k "
    "repetition_penalty seed n stop logit_bias logprobs top_logprobs presence_penalty frequency_penalty reasoning_effort "
    "reasoning_summary diffusing realtime user prompt suffix echo best_of dllm steps threshold pins deadline_ms rule factor block "
    "banned regex choices parallel_tool_calls functions 12"
).split()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
    optional={"content": anything, "tool_calls": anything},
)
tool = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": scalars}, optional={"parameters": anything}),
    }
)
bodies = st.dictionaries(st.sampled_from(NAMES), anything, max_size=6) | st.builds(
    lambda good, wild: {"messages": [{"role": "user", "content": "x"}], "prompt": "x", **good, **wild},
    st.fixed_dictionaries(
        {}, optional={"messages": st.lists(message, max_size=3), "tools": st.lists(tool, max_size=2)}
    ),
    st.dictionaries(st.sampled_from(NAMES), anything, max_size=2),
)


@pytest.mark.parametrize("kind", PARSERS)
@given(body=bodies)
def test_any_object_gives_a_request_or_an_error_that_names_a_field(kind: str, body: dict[str, Any]) -> None:
    body.pop("model", None)
    try:
        request = PARSERS[kind](Fields(body), SETTINGS)
    except ApiError as error:
        assert error.status == 400 and error.param and error.message.strip()
        # The first name in the path is a field of the API, not something the client made up.
        assert error.param.partition(".")[0].partition("[")[0] in NAMES
        json.dumps(error.body()).encode("utf-8")
    else:
        assert isinstance(request, ChatRequest | CompletionRequest)
        texts = [message.text for message in request.messages] if isinstance(request, ChatRequest) else [
            prompt for prompt in request.prompts if isinstance(prompt, str)
        ]  # fmt: skip
        for text in (*texts, *request.decoding.stop):
            text.encode("utf-8")
        plans_or_error(request)


def plans_or_error(request: ChatRequest | CompletionRequest) -> None:
    try:
        plans.options(request.decoding, DecodeOptions(), 400, 1)
    except ApiError as error:
        assert error.status == 400 and error.param


@given(st.binary(max_size=30) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_an_object_or_an_error(raw: bytes) -> None:
    try:
        fields = load_json(raw)
    except ApiError as error:
        assert (error.status, error.code) == (400, "invalid_json")
        json.dumps(error.body()).encode("utf-8")
    else:
        assert isinstance(fields.body, dict)


def test_half_characters_are_refused_where_they_stand() -> None:
    body = load_json(b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    with pytest.raises(ApiError, match="lone surrogates") as caught:
        parse_chat(body, SETTINGS)
    assert caught.value.param == "messages[0].content"


@given(st.integers(1, 300), st.integers(1, 10_000) | st.none())
def test_a_canvas_fits_the_model_and_holds_what_was_asked(prompt: int, wanted: int | None) -> None:
    spec = tiny.spec()
    try:
        room = plans.reply_room(spec, SETTINGS, prompt, wanted)
    except ValueError:
        assert prompt + spec.canvas_multiple > spec.max_position_embeddings
        return
    assert room.width % spec.canvas_multiple == 0 and 0 < room.width <= spec.max_canvas
    assert prompt + room.width <= spec.max_position_embeddings
    assert room.limit <= (wanted or SETTINGS.default_tokens)
    if room.width < spec.max_canvas and prompt < 150:
        assert room.limit == wanted and room.width > room.limit


@given(st.integers(1, 250), st.integers(1, 80), st.integers(1, 100) | st.none())
def test_a_hole_is_what_the_suffix_leaves_of_the_canvas(prompt: int, suffix: int, wanted: int | None) -> None:
    spec = tiny.spec()
    try:
        room = plans.infill_room(spec, SETTINGS, prompt, suffix, wanted)
    except (ApiError, ValueError):
        assert (
            suffix + spec.canvas_multiple
            > min(spec.max_canvas, spec.max_position_embeddings - prompt) - spec.canvas_multiple
        )
        return
    assert room.width % spec.canvas_multiple == 0 and room.width <= spec.max_canvas
    assert room.limit == room.width - suffix > 0
    hole = min(wanted or SETTINGS.infill_tokens, SETTINGS.infill_tokens)
    assert room.limit <= max(hole, spec.canvas_multiple)


def test_a_deadline_is_counted_from_now() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "dllm": {"deadline_ms": 250, "steps": 3}}
    decoding = parse_chat(Fields(body), SETTINGS).decoding
    assert plans.plan(decoding, SETTINGS, 32, 100.0) == Plan(3, 3, 0.9, 100.25, 100.25, by_clause=False)
