"""What goes to a remote chat endpoint and what comes back, as values: no socket and no clock.

Two dialects of `POST {url}/chat/completions` with server-sent events. OpenAI's streams pieces of text that add up. Inception's, with
`diffusing`, streams whole canvases: each frame replaces the one before, and is final where its progress is 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from voiceagent.backends import DraftRequest, PromptTurn
from voiceagent.tools import ToolCall

CANVAS_WIDTHS = (16, 24, 32, 40, 64, 96, 128)
"""Lengths a plan may ask for, up to the endpoint's own limit: this is how a client's `max_output_tokens` gets here."""

ROLES = {"system": "system", "user": "user", "agent": "assistant", "note": "system"}
MUST_SAY = "Your next reply must contain, word for word: {texts}."

# Our own estimate of how long a model that thinks first keeps silent, by effort: the most that fits the time to the deadline is asked for.
EFFORTS: tuple[tuple[float, str], ...] = ((6.0, "high"), (3.0, "medium"), (1.5, "low"))
"""Seconds until the first clause is due from which an effort is worth its wait; below the last one, `instant`."""

MESSAGE_CHARS = 300
"""How much of an endpoint's own words an error repeats."""


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """Where a remote model is and how it is asked. `url` is the base that `/chat/completions` is appended to."""

    url: str
    model: str = ""
    dialect: Literal["openai", "inception"] = "openai"
    api_key: str = field(default="", repr=False)
    timeout_s: float = 10.0
    """Longest wait for the next piece of text, the first included."""
    pause_s: float = 1.0
    """Silence between two sentences after which a reply ends with the last whole one."""
    max_tokens: int = 128
    reasoning_effort: str = "auto"
    """`auto` follows the plan in Inception's dialect and is left out in OpenAI's; `none` is sent as it is."""
    diffusing: bool = False

    @property
    def host(self) -> str:
        """Host and port, for reports and errors."""
        return urlsplit(self.url).netloc

    @property
    def canvas_widths(self) -> tuple[int, ...]:
        return tuple(width for width in CANVAS_WIDTHS if width <= self.max_tokens) or (self.max_tokens,)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def without_key(self, text: str) -> str:
        """`text` with the key taken out: endpoints repeat a refused one in their message."""
        return text.replace(self.api_key, "(hidden)") if self.api_key else text


# --- the request ------------------------------------------------------------------------------------------------------


def chat_messages(turns: Sequence[PromptTurn], must_say: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The prompt as chat messages. A note is a system message behind the words it is about, and so is what must be said; the note of a
    call is its tool's answer."""
    messages = [_message(turn) for turn in turns]
    if must_say:
        demand = MUST_SAY.format(texts=", ".join(f'"{text}"' for text in dict.fromkeys(must_say)))
        if turns and turns[-1].role == "note":
            messages[-1]["content"] += f"\n{demand}"
        else:
            messages.append({"role": "system", "content": demand})
    return messages


def _message(turn: PromptTurn) -> dict[str, Any]:
    if turn.call is not None:
        arguments = json.dumps(dict(turn.call.arguments), ensure_ascii=False, default=str)
        function = {"name": turn.call.name, "arguments": arguments}
        calls = [{"id": turn.call_id, "type": "function", "function": function}]
        return {"role": "assistant", "content": "", "tool_calls": calls}
    if turn.role == "note" and turn.call_id:
        return {"role": "tool", "tool_call_id": turn.call_id, "content": turn.text}
    return {"role": ROLES[turn.role], "content": turn.text}


def request_body(endpoint: RemoteEndpoint, request: DraftRequest, now: float) -> dict[str, Any]:
    """The JSON of one reply. The plan's time becomes `reasoning_effort` and `realtime`, its width the limit of tokens."""
    width = request.plan.canvas_width
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": chat_messages(request.turns, request.must_say),
        "stream": True,
        "max_completion_tokens": endpoint.max_tokens if width >= endpoint.canvas_widths[-1] else width,
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)},
            }
            for spec in request.tools
        ]
        # A forced function is the only one offered.
        body["tool_choice"] = request.tool_choice.mode
    due = request.plan.first_deadline
    effort = endpoint.reasoning_effort
    if endpoint.dialect == "openai":
        # Models that reason refuse a temperature, and an effort is asked of those only.
        if effort in ("auto", "none"):
            body["temperature"] = request.temperature
    else:
        # Inception resets a temperature outside 0.5 to 1 and warns; its own default is left alone unless it was asked for.
        if request.temperature >= 0.5:
            body["temperature"] = min(request.temperature, 1.0)
        # Somebody waits for the first clause: time to the first token counts more than the endpoint's throughput.
        body["realtime"] = due is not None
        if endpoint.diffusing:
            body["diffusing"] = True
        if effort == "auto" and due is not None:
            effort = next((name for seconds, name in EFFORTS if due - now >= seconds), "instant")
    if effort != "auto":
        body["reasoning_effort"] = effort
    return body


def guess_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of a prompt, guessed from its words (4 for 3, the usual ratio of English): endpoints say only at the end, if at all."""
    return max(sum(len(message["content"].split()) for message in messages) * 4 // 3, 1)


# --- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Appended:
    """More text behind what came before."""

    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """The whole text as it stands; final when `progress` is 1."""

    text: str
    progress: float


@dataclass(frozen=True, slots=True)
class CallPiece:
    """More of the tool call with this number; `name` and `arguments` add up, the first brings the name."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Ended:
    """No more text will come."""

    reason: str


Update: TypeAlias = Appended | Shown | CallPiece | Ended


class EndpointError(Exception):
    """The endpoint refused, failed or sent what is no answer; the message says which, in its words where it gave any."""


def read_event(data: str) -> tuple[Update, ...]:
    """What the data of one server-sent event says; nothing for roles, usage and reasoning.

    Raises:
        EndpointError: If it is not JSON, not a chunk, or an error that the endpoint reports in mid-stream.
    """
    if data.strip() == "[DONE]":
        return (Ended("done"),)
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"sent an event that is not JSON: {_short(data)!r}") from error
    if not isinstance(chunk, dict):
        raise EndpointError(f"sent an event that is not an object: {_short(data)!r}")
    if chunk.get("error"):
        raise EndpointError(f"failed in mid-reply: {_said(chunk['error'])}")
    try:
        choices = chunk.get("choices") or []
        if not choices:
            return ()
        delta = choices[0].get("delta") or {}
        content, reason = delta.get("content"), choices[0].get("finish_reason")
        if not isinstance(content, str | None) or not isinstance(reason, str | None):
            raise TypeError
        meta = chunk.get("diffusion_meta") or {}
        progress = float(meta.get("diffusion_progress", 0.0)) if meta.get("diffusion_content") else None
        pieces = [_call_piece(piece, at) for at, piece in enumerate(delta.get("tool_calls") or ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EndpointError(f"sent an event that is not a chat completion chunk: {_short(data)!r}") from error
    updates: list[Update] = []
    if content:
        updates.append(Appended(content) if progress is None else Shown(content, progress))
    updates += pieces
    if reason:
        updates.append(Ended(reason))
    return tuple(updates)


def _call_piece(piece: dict[str, Any], at: int) -> CallPiece:
    function = piece.get("function") or {}
    index, name, arguments = piece.get("index", at), function.get("name") or "", function.get("arguments") or ""
    if not isinstance(index, int) or not isinstance(name, str) or not isinstance(arguments, str):
        raise TypeError
    return CallPiece(index, name, arguments)


def read_call(pieces: Sequence[CallPiece]) -> ToolCall | None:
    """The first call that the pieces make; a conversation carries out one at a time."""
    if not pieces:
        return None
    first = [piece for piece in pieces if piece.index == min(each.index for each in pieces)]
    name, text = "".join(piece.name for piece in first), "".join(piece.arguments for piece in first)
    try:
        arguments = json.loads(text or "{}", parse_constant=_refuse)
        # It is told again in every later request, which takes no lone surrogate and no number like 1e999.
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return ToolCall(name[:64], {}, problem="the arguments were not the text of a JSON object")
    return ToolCall(name, arguments)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def refusal(status: int, reason: str, body: bytes) -> str:
    """An answer other than 200 in one line: the status and what the endpoint said."""
    text = body.decode("utf-8", errors="replace").strip()
    try:
        said = json.loads(text)
        # FastAPI's own errors come as {"detail": …}.
        text = _said(said.get("error") or said.get("detail") or said) if isinstance(said, dict) else text
    except (ValueError, RecursionError):
        pass
    line = f"answered {status} {reason}".rstrip()
    return f"{line}: {_short(text)}" if text else line


def read_models(body: bytes) -> tuple[str, ...] | None:
    """Names in an answer to `GET {url}/models`, or None when it is not such a list."""
    try:
        return tuple(str(entry["id"]) for entry in json.loads(body)["data"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _said(error: object) -> str:
    """An error object's message and code; clients know both."""
    if not isinstance(error, dict) or not error.get("message"):
        return _short(error if isinstance(error, str) else json.dumps(error))
    kind = error.get("code") or error.get("type")
    return _short(str(error["message"])) + (f" ({kind})" if kind else "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_CHARS else f"{line[:MESSAGE_CHARS]}…"
