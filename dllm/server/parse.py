"""JSON to requests: OpenAI's chat and text completions, Inception's fill-in-the-middle, edit and apply.

Unknown fields are ignored, but for those of our own object `dllm`; known ones with a wrong type or an impossible value are refused, and
so are those that would change the reply and are not done here: nothing is silently left out. Everything is raised as `ApiError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, Literal, cast, get_args

from dllm.codec import ChatRole, Message
from dllm.options import DecodeOptions
from dllm.server.fields import Fields, as_integer, as_number, as_object, as_text
from dllm.server.problems import ApiError, wrong
from dllm.server.requests import (
    ChatRequest,
    CompletionRequest,
    Decoding,
    Effort,
    Grammar,
    Streaming,
    Tool,
    ToolMode,
)
from dllm.server.settings import ServerSettings

MAX_STOPS = 16
"""OpenAI allows 4 and Inception names no limit."""
MAX_TOOLS = 128
FIM_TOKENS = 512
EDIT_TOKENS = 1024
"""Inception's defaults."""

_ROLES: dict[str, ChatRole] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip
_EFFORTS: dict[str, Effort] = {
    "instant": "instant", "none": "instant", "minimal": "instant", "low": "low", "medium": "medium", "high": "high",
    "xhigh": "high",
}  # fmt: skip
_OWN_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "logit_bias", "seed")
"""Decoding options that the API has a field for; the rest may stand in a request's `dllm` object."""
_EXTENSION = ("steps", "threshold", "deadline_ms", "pins", "regex", "choices")
"""What else may stand in it."""
_PENALTIES = ("presence_penalty", "frequency_penalty")


def parse_chat(body: Fields, settings: ServerSettings) -> ChatRequest:
    """`POST /v1/chat/completions`."""
    _check_model(body, settings)
    messages = tuple(_message(as_object(entry, path)) for entry, path in body.items("messages"))
    if not messages:
        raise wrong("messages", "at least one message", body.get("messages"))
    for legacy, modern in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(legacy):
            raise ApiError(400, f"{legacy} is not supported; use {modern}", param=legacy)
    tools = _tools(body)
    mode, forced = _tool_choice(body, tools)
    _refuse_penalties(body)
    streaming = _streaming(body)
    decoding = _decoding(body, settings)
    top = body.integer("top_logprobs", 0, 20) or 0
    if body.flag("logprobs"):
        if streaming.diffusing:
            raise ApiError(400, "logprobs: expected false with diffusing: canvases carry none", param="logprobs")
        if top > 1:
            raise ApiError(400, f"top_logprobs: {_ONLY_CHOSEN}", param="top_logprobs")
        decoding = dataclasses.replace(decoding, logprobs=True, top_logprobs=top)
    elif top:
        raise ApiError(400, "top_logprobs: expected only with logprobs: true", param="top_logprobs")
    may_repeat = body.get("parallel_tool_calls") is None or body.flag("parallel_tool_calls")
    return ChatRequest(
        messages,
        decoding,
        streaming,
        tools,
        mode,
        forced,
        may_repeat and forced is None,
        _grammar(body),
        body.text("user"),
        body.flag("reasoning_summary"),
    )


def parse_completion(body: Fields, settings: ServerSettings) -> CompletionRequest:
    """`POST /v1/completions`."""
    _check_model(body, settings)
    _refuse_penalties(body)
    decoding = _decoding(body, settings)
    best_of = body.integer("best_of", 1, 2**31)
    if best_of is not None and best_of != decoding.n:
        raise ApiError(400, f"best_of: expected {decoding.n} (n); replies are not ranked", param="best_of")
    echo = body.flag("echo")
    streaming = _streaming(body)
    if body.has("logprobs"):
        if streaming.diffusing:
            raise ApiError(400, "logprobs: expected null with diffusing: canvases carry none", param="logprobs")
        if echo:
            raise ApiError(
                400,
                "logprobs: a diffusion model has no left-to-right probabilities of a prompt, so they cannot be echoed",
                param="logprobs",
            )
        if body.integer("logprobs", 0, 5) not in (0, 1):
            raise ApiError(400, f"logprobs: {_ONLY_CHOSEN}", param="logprobs")
        decoding = dataclasses.replace(decoding, logprobs=True, top_logprobs=body.integer("logprobs", 0, 1) or 0)
    suffix = _suffix(body)
    return CompletionRequest(
        _prompts(body, settings), decoding, streaming, suffix, echo, _grammar(body), body.text("user")
    )


def parse_fim(body: Fields, settings: ServerSettings) -> CompletionRequest:
    """`POST /v1/fim/completions`: one prompt, and a suffix that may be missing. A blank line ends it unless `stop` says otherwise."""
    _check_model(body, settings)
    prompt = body.required_text("prompt")
    decoding = _decoding(body, settings)
    if decoding.max_tokens is None:
        decoding = dataclasses.replace(decoding, max_tokens=FIM_TOKENS)
    if body.get("stop") is None:
        decoding = dataclasses.replace(decoding, stop=("\n\n",))
    suffix = _suffix(body)
    streaming = _streaming(body)
    if not prompt and suffix is None:
        raise wrong("prompt", "some text, here or in suffix", prompt)
    return CompletionRequest(
        (prompt,), decoding, streaming, suffix, grammar=_grammar(body), user=body.text("user"), warnings=_warn(body)
    )


_EDIT = (
    "You edit code. The user shows a file, recent edits, and a window of code between <|code_to_edit|> and <|/code_to_edit|> with the "
    "marker <|cursor|>. Reply with the text that replaces the window, whole, without the tags, without the marker, and nothing else."
)
_APPLY = (
    "You edit code. The user shows a file between <|original_code|> and <|/original_code|> and a change between <|update_snippet|> and "
    "<|/update_snippet|>. Reply with the whole file after the change and nothing else."
)
_EDIT_TAGS: dict[str, tuple[str, ...]] = {"edit": ("code_to_edit",), "apply": ("original_code", "update_snippet")}


def parse_edit(body: Fields, settings: ServerSettings, task: Literal["edit", "apply"] = "edit") -> ChatRequest:
    """`POST /v1/edit/completions` and `/v1/apply/completions`: one user message with tagged blocks, found by tag and not by place."""
    _check_model(body, settings)
    messages = [as_object(entry, path) for entry, path in body.items("messages")]
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise wrong("messages", "exactly one message, of role user", body.get("messages"))
    message = _message(messages[0])
    for tag in _EDIT_TAGS[task]:
        if tagged(message.text, tag) is None:
            where = messages[0].where("content")
            raise ApiError(400, f"{where}: expected a block <|{tag}|> … <|/{tag}|>", param=where)
    decoding = _decoding(body, settings)
    if decoding.max_tokens is None:
        decoding = dataclasses.replace(decoding, max_tokens=EDIT_TOKENS)
    instruction = Message("system", _EDIT if task == "edit" else _APPLY)
    streaming = _streaming(body)
    return ChatRequest((instruction, message), decoding, streaming, user=body.text("user"), warnings=_warn(body))


def tagged(text: str, tag: str) -> str | None:
    """What stands between the first `<|tag|>` and the `<|/tag|>` behind it; None if there is no such block."""
    found = re.search(rf"<\|{tag}\|>(.*?)<\|/{tag}\|>", text, re.DOTALL)
    return None if found is None else found[1]


# --- messages ---------------------------------------------------------------------------------------------------------


def _message(fields: Fields) -> Message:
    role = fields.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(fields.where("role"), f"one of {', '.join(_ROLES)}", role)
    calls = tuple(_call(as_object(entry, path)) for entry, path in fields.items("tool_calls"))
    if calls and role != "assistant":
        raise ApiError(400, f"{fields.where('tool_calls')}: only an assistant calls tools", param=fields.path)
    text = _content(fields, is_optional=role == "assistant")
    return Message(_ROLES[role], text, fields.text("name"), calls, fields.text("tool_call_id"))


def _content(fields: Fields, *, is_optional: bool) -> str:
    content, where = fields.get("content"), fields.where("content")
    if content is None and is_optional:
        return fields.text("refusal") or ""
    if isinstance(content, str):
        return as_text(content, where)
    if not isinstance(content, list):
        raise wrong(where, "a string or an array of text parts", content)
    parts = [as_object(entry, path) for entry, path in fields.items("content")]
    texts = []
    for part in parts:
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise wrong(part.where("type"), "text: this model reads nothing else", kind)
        texts.append(part.required_text(str(kind)))
    return "\n".join(texts)


def _call(fields: Fields) -> dict[str, Any]:
    function = fields.object("function")
    if function is None:
        raise wrong(fields.where("function"), "an object with name and arguments", None)
    name, arguments = function.required_text("name"), function.text("arguments") or "{}"
    return {
        "id": fields.text("id") or "",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


# --- tools and grammars -----------------------------------------------------------------------------------------------

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _tools(body: Fields) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for entry, path in body.items("tools"):
        fields = as_object(entry, path)
        if fields.get("type") != "function":
            raise wrong(fields.where("type"), "function", fields.get("type"))
        function = fields.object("function")
        if function is None:
            raise wrong(fields.where("function"), "an object", None)
        name = function.required_text("name")
        if not _TOOL_NAME.fullmatch(name):
            raise wrong(function.where("name"), "up to 64 letters, digits, dots, dashes and underscores", name)
        if name in (tool.name for tool in tools):
            raise wrong(function.where("name"), "a name of its own", name)
        parameters = function.object("parameters")
        function.text("description")
        _check_texts(fields.body, path)
        tools.append(Tool(name, {"type": "object"} if parameters is None else parameters.body, fields.body))
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"at most {MAX_TOOLS}", body.get("tools"))
    return tuple(tools)


def _check_texts(value: object, path: str) -> None:
    """Every string inside must be text: templates and grammars encode them."""
    match value:
        case str():
            as_text(value, path)
        case list():
            for entry in value:
                _check_texts(entry, path)
        case dict():
            for key, entry in value.items():
                as_text(key, path)
                _check_texts(entry, path)
        case _:
            pass


def _tool_choice(body: Fields, tools: tuple[Tool, ...]) -> tuple[ToolMode, str | None]:
    choice = body.get("tool_choice")
    if choice is None:
        return ("auto" if tools else "none"), None
    if isinstance(choice, str):
        if choice not in get_args(ToolMode):
            raise wrong("tool_choice", "none, auto, required or a function", choice)
        if choice == "required" and not tools:
            raise ApiError(400, "tool_choice: required needs tools to choose from", param="tool_choice")
        return (cast(ToolMode, choice) if tools else "none"), None
    function = as_object(choice, "tool_choice").object("function")
    if function is None:
        raise wrong("tool_choice.function", "an object with a name", None)
    name = function.required_text("name")
    if name not in (tool.name for tool in tools):
        raise wrong("tool_choice.function.name", "the name of one of the tools", name)
    return "required", name


def _grammar(body: Fields) -> Grammar:
    extension = body.object("dllm") or Fields({}, "dllm")
    regex = extension.text("regex")
    choices = tuple(as_text(entry, path) for entry, path in extension.items("choices"))
    schema = None
    chosen = body.object("response_format")
    if chosen is not None:
        match chosen.choice("type", ("text", "json_object", "json_schema")):
            case None:
                raise wrong("response_format.type", "text, json_object or json_schema", None)
            case "json_object":
                schema = {"type": "object"}
            case "json_schema":
                outer = chosen.object("json_schema")
                inner = None if outer is None else outer.object("schema")
                if inner is None:
                    raise wrong("response_format.json_schema.schema", "a JSON schema", None)
                _check_texts(inner.body, inner.path)
                schema = inner.body
            case _:
                pass
    if (schema is not None) + (regex is not None) + bool(choices) > 1:
        param = "dllm.regex" if regex is not None else "dllm.choices"
        raise ApiError(400, f"{param}: a reply can follow one grammar only", param=param)
    return Grammar(schema, regex, choices)


# --- decoding ---------------------------------------------------------------------------------------------------------

_ONLY_CHOSEN = "expected 0 or 1; a diffusion model decides each token once, in any order, and the probabilities of those it did not take are not kept"


def _decoding(body: Fields, settings: ServerSettings) -> Decoding:
    most = body.integer("max_completion_tokens", 1, 2**31)
    if most is None:
        most = body.integer("max_tokens", 1, 2**31)
    effort = body.get("reasoning_effort")
    if effort is not None and (not isinstance(effort, str) or effort not in _EFFORTS):
        raise wrong("reasoning_effort", f"one of {', '.join(_EFFORTS)}", effort)
    top_k = body.integer("top_k", -1, 2**31)
    extension = body.object("dllm") or Fields({}, "dllm")
    deadline_ms = extension.number("deadline_ms", 0, 10**9)
    return Decoding(
        max_tokens=most,
        temperature=body.number("temperature", 0, 2),
        top_p=body.number("top_p", 0, 1),
        top_k=None if top_k is None else max(top_k, 0),
        repetition_penalty=body.number("repetition_penalty", 0.01, 100),
        seed=body.integer("seed", -(2**63), 2**64),
        n=body.integer("n", 1, settings.max_choices) or 1,
        stop=_stop(body),
        logit_bias=_logit_bias(body),
        effort=None if effort is None else _EFFORTS[effort],
        realtime=body.flag("realtime"),
        steps=extension.integer("steps", 1, 2**16),
        threshold=extension.number("threshold", 0, 1),
        pins=tuple(as_text(entry, path) for entry, path in extension.items("pins")),
        deadline_s=None if deadline_ms is None else deadline_ms / 1000,
        options=_options(extension),
    )


def _options(extension: Fields) -> tuple[tuple[str, Any], ...]:
    """Options of the engine's by their own names; their ranges are checked where they are put together.

    Raises:
        ApiError: If there is no such option: in a table of ours it is a slip of the pen, and what it meant would never happen.
    """
    known_names = (*_EXTENSION, *(known.name for known in dataclasses.fields(DecodeOptions)))
    for name in extension.body:
        if name not in known_names:
            path = extension.where(name[:100])
            close = difflib.get_close_matches(name, known_names, n=1, cutoff=0.5)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ApiError(400, f"{path}: there is no such option{meant}", param=path, code="unknown_parameter")
    options: list[tuple[str, Any]] = []
    for known in dataclasses.fields(DecodeOptions):
        value, path = extension.get(known.name), extension.where(known.name)
        if value is None:
            continue
        default = known.default
        if known.name in _OWN_FIELDS:
            raise ApiError(400, f"{path}: expected {known.name} beside the dllm object, not in it", param=path)
        match default:
            case bool():
                options.append((known.name, extension.flag(known.name)))
            case int():
                options.append((known.name, as_integer(value, path, -(2**62), 2**62)))
            case float() | None:
                options.append((known.name, as_number(value, path, -1e9, 1e9)))
            case str():
                options.append((known.name, as_text(value, path)))
            case _:
                raise ApiError(400, f"{path} cannot be set over HTTP", param=path)
    return tuple(options)


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.get("stop")
    entries = [(value, "stop")] if isinstance(value, str) else list(body.items("stop"))
    stops = tuple(as_text(entry, path) for entry, path in entries)
    if len(stops) > MAX_STOPS:
        raise wrong("stop", f"at most {MAX_STOPS} strings", value)
    if "" in stops:
        raise wrong("stop", "strings that are not empty", "")
    return stops


def _logit_bias(body: Fields) -> tuple[tuple[int, float], ...]:
    fields = body.object("logit_bias")
    if fields is None:
        return ()
    pairs = []
    for key, value in fields.body.items():
        path = fields.where(key)
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise wrong(path, "a token id as its key", key)
        pairs.append((int(key), as_number(value, path, -100, 100)))
    return tuple(pairs)


def _streaming(body: Fields) -> Streaming:
    is_on = body.flag("stream")
    options = body.object("stream_options")
    if options is not None and not is_on:
        raise ApiError(400, "stream_options: expected only with stream: true", param="stream_options")
    diffusing = body.flag("diffusing")
    if diffusing and not is_on:
        raise ApiError(400, "diffusing: expected only with stream: true", param="diffusing")
    return Streaming(is_on, options is not None and options.flag("include_usage"), diffusing)


def _prompts(body: Fields, settings: ServerSettings) -> tuple[str | tuple[int, ...], ...]:
    value = body.get("prompt")
    if isinstance(value, str):
        return (as_text(value, "prompt"),)
    if not isinstance(value, list) or not value:
        raise wrong("prompt", "a string, strings, token ids or arrays of token ids", value)
    if all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value):
        return (_token_ids(value, "prompt"),)
    if len(value) > settings.max_drafts:
        raise wrong("prompt", f"at most {settings.max_drafts} prompts", value)
    prompts: list[str | tuple[int, ...]] = []
    for entry, path in body.items("prompt"):
        prompts.append(_token_ids(entry, path) if isinstance(entry, list) else as_text(entry, path))
    return tuple(prompts)


def _suffix(body: Fields) -> str | None:
    suffix = body.text("suffix") or None
    if suffix is not None and not _grammar(body).is_free:
        raise ApiError(400, "suffix: expected none beside a grammar, which holds the whole reply", param="suffix")
    return suffix


def _token_ids(value: list[Any], path: str) -> tuple[int, ...]:
    return tuple(as_integer(entry, f"{path}[{index}]", 0, 2**31) for index, entry in enumerate(value))


def _refuse_penalties(body: Fields) -> None:
    for name in _PENALTIES:
        if body.number(name, -2, 2):
            raise ApiError(
                400,
                f"{name}: expected 0; it is defined for text written left to right. repetition_penalty (above 1) does the like here",
                param=name,
            )


def _warn(body: Fields) -> tuple[str, ...]:
    """Inception's clients send penalties by habit: they are told, not refused."""
    unused = [name for name in _PENALTIES if body.number(name, -2, 2)]
    return tuple(f"{name} was not applied; use repetition_penalty" for name in unused)


def _check_model(body: Fields, settings: ServerSettings) -> None:
    name = body.text("model")
    if name is not None and name not in settings.names:
        raise unknown_model(name, settings)


def unknown_model(name: str, settings: ServerSettings) -> ApiError:
    return ApiError(
        404,
        f"The model {name[:100]!r} does not exist; this server has {', '.join(settings.names)}.",
        param="model",
        code="model_not_found",
    )
