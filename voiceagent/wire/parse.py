"""One client event, read and checked: JSON fields in, a command out. Source: protocols 1.3 and 1.5."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Literal, cast

from voiceagent.errors import ProtocolError
from voiceagent.events import AnyItem, CallItem, Item, ItemStatus, OutputItem, Role
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tools import ToolCall
from voiceagent.wire.commands import (
    AppendAudio,
    CancelResponse,
    ClearAudio,
    Command,
    CommitAudio,
    CreateItem,
    CreateResponse,
    DeleteItem,
    Greet,
    ItemReference,
    Playout,
    ResponseInput,
    RetrieveItem,
    SessionUpdate,
    TruncateItem,
)
from voiceagent.wire.fields import INVALID_JSON, MAX_TEXT_CHARS, Fields, Json, clean_json, parse_object
from voiceagent.wire.session import (
    WireSession,
    read_format,
    read_max_output_tokens,
    read_modality,
    read_tool_choice,
    read_tools,
    read_voice,
    read_when_late,
    update_session,
)

MAX_APPEND_BYTES = 15 * 1024 * 1024
"""Decoded audio in one append; the vendor's limit."""

MAX_ID_CHARS = 64
"""Ids that clients choose are at most 32 characters long (seen); twice that is still no burden."""

MAX_POSITION_MS = 24 * 3600 * 1000

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "agent"}


def parse_event(event: Fields, session: WireSession, defaults: SessionSettings, make_id: Callable[[], str]) -> Command:
    """The command that `event` asks for. `make_id` names an item that the client left unnamed.

    Raises:
        ProtocolError: With the protocol's code and the path of the field at fault; never with the client's event id, which
            the caller knows.
    """
    event_id = event_id_of(event)
    match event.required_string("type"):
        case "session.update":
            updated = update_session(session, event.required_child("session"), defaults)
            return SessionUpdate(session=updated, event_id=event_id)
        case "input_audio_buffer.append":
            return AppendAudio(audio=_read_audio(event), event_id=event_id)
        case "input_audio_buffer.commit":
            return CommitAudio(event_id=event_id)
        case "input_audio_buffer.clear":
            return ClearAudio(event_id=event_id)
        case "conversation.item.create":
            item = _read_item(event.required_child("item"), make_id)
            return CreateItem(item=item, previous_item_id=event.string("previous_item_id"), event_id=event_id)
        case "conversation.item.retrieve":
            return RetrieveItem(item_id=event.required_string("item_id"), event_id=event_id)
        case "conversation.item.delete":
            return DeleteItem(item_id=event.required_string("item_id"), event_id=event_id)
        case "conversation.item.truncate":
            return _read_truncate(event, event_id)
        case "response.create":
            return _read_response(event.child("response"), make_id, event_id)
        case "response.cancel":
            return CancelResponse(response_id=event.string("response_id"), event_id=event_id)
        case "voiceagent.playout":
            played_ms = _required_ms(event, "played_ms")
            return Playout(item_id=event.required_string("item_id"), played_s=played_ms / 1000, event_id=event_id)
        case "voiceagent.greet":
            return Greet(event_id=event_id)
        case "output_audio_buffer.clear":
            raise ProtocolError(
                "invalid_value",
                "output_audio_buffer.clear is for WebRTC and SIP; over a websocket the client owns the playback buffer.",
                param="type",
            )
        case _:
            raise event.invalid("type", "a client event of the Realtime protocol")


def event_id_of(event: Fields) -> str | None:
    """The client's own id of its event; one that is not a string is of no use to anybody and ignored."""
    value = event.data.get("event_id")
    return event.string("event_id") if isinstance(value, str) else None


def _read_audio(event: Fields) -> bytes:
    text = event.required_string("audio")
    try:
        audio = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(
            "invalid_value", f"Invalid value for 'audio': not base64 ({error}).", param="audio"
        ) from error
    if len(audio) > MAX_APPEND_BYTES:
        raise ProtocolError(
            "invalid_value",
            f"Invalid value for 'audio': {len(audio)} bytes in one append; the limit is {MAX_APPEND_BYTES}.",
            param="audio",
        )
    return audio


def _required_ms(event: Fields, key: str) -> float:
    value = event.number(key, 0, MAX_POSITION_MS)
    if value is None:
        param = event.param(key)
        raise ProtocolError("missing_required_parameter", f"Missing required parameter: '{param}'.", param=param)
    return value


def _read_truncate(event: Fields, event_id: str | None) -> TruncateItem:
    item_id = event.required_string("item_id")
    if event.integer("content_index", 0, 1_000_000) not in (None, 0):
        raise event.invalid("content_index", "0: every item here has one content part")
    return TruncateItem(item_id=item_id, audio_end_s=_required_ms(event, "audio_end_ms") / 1000, event_id=event_id)


# --- items ------------------------------------------------------------------------------------------------------------


def _read_item(item: Fields, make_id: Callable[[], str]) -> AnyItem:
    """An item as the conversation keeps it; of a message its parts' texts, joined.

    Lenient about part names, as clients are: an assistant part may be `input_text` or `text`.
    """
    kind = item.required_string("type")
    item_id = item.string("id")
    if item_id is not None and not 0 < len(item_id) <= MAX_ID_CHARS:
        raise item.invalid("id", f"1 to {MAX_ID_CHARS} characters")
    item_id = item_id or make_id()
    status: ItemStatus = "incomplete" if item.string("status") == "incomplete" else "completed"
    match kind:
        case "message":
            role = _read_role(item)
            text, spoken = _read_content(item)
            return Item(id=item_id, role=role, text=text, status=status, spoken=spoken and role != "system")
        case "function_call":
            call = ToolCall(item.required_string("name"), _read_arguments(item))
            return CallItem(item_id, _read_call_id(item), call, status)
        case "function_call_output":
            return OutputItem(item_id, _read_call_id(item), item.required_text("output"), status=status)
        case _:
            raise item.invalid("type", "message, function_call or function_call_output")


def _read_call_id(item: Fields) -> str:
    call_id = item.required_string("call_id")
    if not 0 < len(call_id) <= MAX_ID_CHARS:
        raise item.invalid("call_id", f"1 to {MAX_ID_CHARS} characters")
    return call_id


def _read_arguments(item: Fields) -> Json:
    """The object in a call's `arguments`, which is JSON text."""
    try:
        return cast(Json, clean_json(parse_object(item.required_text("arguments") or "{}")))
    except ProtocolError as error:
        if error.code == INVALID_JSON:
            raise item.invalid("arguments", "the text of a JSON object") from error
        raise


def _read_role(item: Fields) -> Role:
    role = item.required_string("role")
    if role not in _ROLES:
        raise item.invalid("role", "one of " + ", ".join(_ROLES))
    return _ROLES[role]


def _read_content(item: Fields) -> tuple[str, bool]:
    """Text of all parts, and whether any of them is speech."""
    texts = []
    spoken = False
    for part in item.children("content") or ():
        match part.required_string("type"):
            case "input_text" | "output_text" | "text":
                texts.append(part.required_string("text"))
            case "input_audio" | "output_audio" | "audio":
                transcript = part.string("transcript")
                if transcript is None:
                    raise ProtocolError(
                        "missing_required_parameter",
                        f"Missing required parameter: '{part.param('transcript')}'. Audio to be recognised goes through "
                        "input_audio_buffer.append.",
                        param=part.param("transcript"),
                    )
                texts.append(transcript)
                spoken = True
            case _:
                raise part.invalid("type", "a text part, or an audio part with its transcript")
    text = "\n".join(texts)
    if len(text) > MAX_TEXT_CHARS:
        raise item.invalid("content", f"at most {MAX_TEXT_CHARS} characters of text")
    return text, spoken


# --- responses --------------------------------------------------------------------------------------------------------


def _read_response(response: Fields | None, make_id: Callable[[], str], event_id: str | None) -> CreateResponse:
    if response is None:
        return CreateResponse(options=ResponseOptions(), event_id=event_id)
    audio = response.child("audio")
    output = None if audio is None else audio.child("output")
    voice = None if output is None else read_voice(output)
    extension = response.child("voiceagent")
    if extension is not None:
        extension.only(("target_ms", "when_late"))
    target_ms = None if extension is None else extension.number("target_ms", 50, 30_000)
    options = ResponseOptions(
        instructions=response.text("instructions"),
        modality=read_modality(response),
        max_output_tokens=read_max_output_tokens(response),
        metadata=_read_metadata(response),
        target_s=None if target_ms is None else target_ms / 1000,
        when_late=None if extension is None else read_when_late(extension),
        in_conversation=response.choice("conversation", ("auto", "none")) != "none",
        tools=read_tools(response),
        tool_choice=read_tool_choice(response),
    )
    return CreateResponse(
        options=options,
        context=_read_context(response, make_id),
        output_format=None if output is None else read_format(output),
        voice=voice if isinstance(voice, str) else None,
        event_id=event_id,
    )


def _read_metadata(response: Fields) -> dict[str, str] | None:
    metadata = response.child("metadata")
    if metadata is None:
        return None
    if len(metadata.data) > 16:
        raise response.invalid("metadata", "at most 16 pairs")
    return {key: metadata.required_string(key) for key in metadata.data}


def _read_context(response: Fields, make_id: Callable[[], str]) -> tuple[ResponseInput, ...] | None:
    entries = response.children("input")
    if entries is None:
        return None
    context: list[ResponseInput] = []
    for entry in entries:
        if entry.string("type") == "item_reference":
            context.append(ItemReference(entry.required_string("id")))
            continue
        item = _read_item(entry, make_id)
        if not isinstance(item, Item):
            raise entry.invalid("type", "message or item_reference as input of one response")
        role: Literal["system", "user", "agent"] = item.role
        context.append((role, item.text or ""))
    return tuple(context)
