"""JSON shapes of the protocol, without state: items, parts, responses. Source: protocols 1.4 to 1.6.

Null discipline: inside items and parts an optional string is left out rather than sent as null; the exception is the
`transcript` of a user's audio, which must be there even when it is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import assert_never

from voiceagent.backends import CanvasToken, StepPlan
from voiceagent.errors import ProtocolError
from voiceagent.events import AnyItem, CallItem, Item, Modality, OutputItem, ResponseStatus, Usage
from voiceagent.wire.fields import Json

_WIRE_ROLES = {"system": "system", "user": "user", "agent": "assistant"}

_REASONS = {
    "cancelled": ("turn_detected", "client_cancelled"),
    "incomplete": ("max_output_tokens", "content_filter"),
}
"""The reasons that typed clients accept for each final status."""


def item_json(item: AnyItem) -> Json:
    common = {"id": item.id, "object": "realtime.item"}
    match item:
        case Item(role=role, status=status):
            content = [] if role == "agent" and status == "in_progress" else [_content(item)]
            return {**common, "type": "message", "role": _WIRE_ROLES[role], "status": status, "content": content}
        case CallItem(call_id=call_id, call=call, status=status):
            # A client can act on arguments that are whole only, so they are empty until then.
            arguments = "" if status == "in_progress" else arguments_json(call.arguments)
            body = {"call_id": call_id, "name": call.name, "arguments": arguments}
            return {**common, "type": "function_call", "status": status, **body}
        case OutputItem(call_id=call_id, output=output, status=status):
            return {**common, "type": "function_call_output", "status": status, "call_id": call_id, "output": output}
        case _:
            assert_never(item)


def arguments_json(arguments: Mapping[str, object]) -> str:
    """The JSON text that `arguments` of a call are on the wire."""
    return json.dumps(dict(arguments), ensure_ascii=False, default=str)


def _content(item: Item) -> Json:
    match item.role, item.spoken:
        case "user", True:
            return {"type": "input_audio", "transcript": item.text}
        case "agent", True:
            return {"type": "output_audio", "transcript": item.text or ""}
        case "agent", False:
            return {"type": "output_text", "text": item.text or ""}
        case _:
            return {"type": "input_text", "text": item.text or ""}


def part_json(modality: Modality, text: str) -> Json:
    """A part as `response.content_part.*` names it, which differs from the names inside items."""
    return {"type": "audio", "transcript": text} if modality == "audio" else {"type": "text", "text": text}


def status_details_json(status: ResponseStatus, reason: str | None) -> Json | None:
    if status == "completed":
        return None
    if status == "failed":
        error = {"type": "server_error", "code": "server_error", "message": reason or "The response failed."}
        return {"type": "failed", "error": error}
    details: Json = {"type": status}
    if reason in _REASONS[status]:
        details["reason"] = reason
    return details


def usage_json(usage: Usage) -> Json:
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": usage.cached_tokens,
            "cached_tokens_details": {"text_tokens": usage.cached_tokens, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }


def error_json(error: ProtocolError, event_id: str | None) -> Json:
    """The `error` object. `event_id` is the client's id of the message at fault, when it gave one."""
    message = error.message
    if error.code == "response_cancel_not_active" and not message.startswith("Cancellation failed"):
        message = f"Cancellation failed: {message}"  # LiveKit recognises this benign error by its first words.
    return {
        "type": error.type,
        "code": error.code,
        "message": message,
        "param": error.param,
        "event_id": error.event_id or event_id,
    }


def plan_json(plan: StepPlan, now: float) -> Json:
    """A plan with its deadlines as milliseconds from `now`, negative when they have passed."""
    return {
        "canvas_width": plan.canvas_width,
        "steps_first": plan.steps_first,
        "steps_rest": plan.steps_rest,
        "threshold": plan.threshold,
        "first_deadline_ms": _ms_from(plan.first_deadline, now),
        "rest_deadline_ms": _ms_from(plan.rest_deadline, now),
    }


def canvas_json(canvas: Sequence[CanvasToken]) -> list[Json]:
    return [
        {"text": token.text, "state": token.state.value, "confidence": round(token.confidence, 4)} for token in canvas
    ]


def metadata_json(metadata: Mapping[str, str] | None) -> Json | None:
    return None if metadata is None else dict(metadata)


def _ms_from(deadline: float | None, now: float) -> float | None:
    return None if deadline is None else round((deadline - now) * 1000, 1)
