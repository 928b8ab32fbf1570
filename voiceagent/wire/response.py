"""The server events of one response, from `response.created` to `response.done`. Source: protocols 1.6 and 1.7."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from voiceagent.events import (
    Item,
    ResponseAudio,
    ResponseCalled,
    ResponseFinished,
    ResponseItemStarted,
    ResponseStarted,
    ResponseText,
    Usage,
)
from voiceagent.wire.audio import OutputAudio
from voiceagent.wire.build import arguments_json, item_json, metadata_json, part_json, status_details_json, usage_json
from voiceagent.wire.commands import CreateResponse
from voiceagent.wire.fields import Json
from voiceagent.wire.session import WireSession, format_json, max_output_tokens_json

RATE_LIMITS: list[Json] = [
    {"name": "requests", "limit": 1_000_000, "remaining": 1_000_000, "reset_seconds": 0.0},
    {"name": "tokens", "limit": 1_000_000_000, "remaining": 1_000_000_000, "reset_seconds": 0.0},
]
"""No rate is limited; the figures only say so in the words that clients parse (protocols 1.10)."""


class EventMaker(Protocol):
    def __call__(self, kind: str, **fields: object) -> Json: ...


class ResponseWriter:
    """Turns the events of one response into the protocol's.

    The content part is opened with the item and closed with the response, so every delta lies between its `added` and `done`.
    """

    def __init__(
        self,
        started: ResponseStarted,
        *,
        session: WireSession,
        request: CreateResponse | None,
        conversation_id: str | None,
        make_event: EventMaker,
    ) -> None:
        self._id = started.response_id
        self._modality = started.modality
        self._metadata = started.metadata
        self._conversation_id = conversation_id
        self._event = make_event
        self._format = (request and request.output_format) or session.output_format
        self._voice = (request and request.voice) or session.voice
        limit = request.options.max_output_tokens if request else None
        self._max_output_tokens = session.settings.max_output_tokens if limit is None else limit
        self._output: OutputAudio | None = None
        self._texts: list[str] = []
        self._open_item: Item | None = None
        self._calls: list[Json] = []

    def created(self) -> Json:
        return self._event("response.created", response=self._response("in_progress", None, [], None))

    def item_started(self, event: ResponseItemStarted) -> Iterator[Json]:
        item = item_json(event.item)
        self._open_item = event.item
        yield self._event("response.output_item.added", response_id=self._id, output_index=0, item=item)
        if self._conversation_id is not None:
            yield self._event("conversation.item.added", item=item, previous_item_id=event.previous_item_id)
        yield self._located("response.content_part.added", event.item.id, part=part_json(self._modality, ""))

    def text(self, event: ResponseText) -> Iterator[Json]:
        if event.delta:
            self._texts.append(event.delta)
            kind = "output_audio_transcript" if self._modality == "audio" else "output_text"
            yield self._located(f"response.{kind}.delta", event.item_id, delta=event.delta)

    def audio(self, event: ResponseAudio) -> Iterator[Json]:
        if self._output is None:
            self._output = OutputAudio(event.rate_hz, self._format)
        yield from self._audio_deltas(event.item_id, self._output.encode(event.samples))

    def called(self, event: ResponseCalled) -> Iterator[Json]:
        """A call for the client, whole from its first event: nothing of it can be acted on before it is."""
        call_item, previous = event.item, event.previous_item_id
        opened, item = item_json(replace(call_item, status="in_progress")), item_json(call_item)
        where = {"response_id": self._id, "output_index": len(self._calls) + (self._open_item is not None)}
        self._calls.append(item)
        arguments = arguments_json(call_item.call.arguments)
        located = {**where, "item_id": call_item.id, "call_id": call_item.call_id}
        yield self._event("response.output_item.added", **where, item=opened)
        if self._conversation_id is not None:
            yield self._event("conversation.item.added", item=opened, previous_item_id=previous)
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **located, delta=arguments)
        yield self._event(f"{kind}.done", **located, name=call_item.call.name, arguments=arguments)
        if self._conversation_id is not None:
            yield self._event("conversation.item.done", item=item, previous_item_id=previous)
        yield self._event("response.output_item.done", **where, item=item)

    def finished(self, event: ResponseFinished) -> Iterator[Json]:
        items: list[Json] = []
        if event.item is not None:
            if self._open_item is None:
                opened = Item(event.item.id, "agent", None, "in_progress", event.item.spoken)
                yield from self.item_started(ResponseItemStarted(self._id, opened, event.previous_item_id))
            item = item_json(event.item)
            items.append(item)
            yield from self._close_part(event.item.id, flush=event.status == "completed")
            if self._conversation_id is not None:
                yield self._event("conversation.item.done", item=item, previous_item_id=event.previous_item_id)
            yield self._event("response.output_item.done", response_id=self._id, output_index=0, item=item)
        items += self._calls
        details = status_details_json(event.status, event.reason)
        yield self._event("response.done", response=self._response(event.status, details, items, event.usage))
        yield self._event("rate_limits.updated", rate_limits=RATE_LIMITS)

    def _close_part(self, item_id: str, *, flush: bool) -> Iterator[Json]:
        text = "".join(self._texts)
        if self._modality == "audio":
            if flush and self._output is not None:
                yield from self._audio_deltas(item_id, self._output.finish())
            yield self._located("response.output_audio.done", item_id)
            yield self._located("response.output_audio_transcript.done", item_id, transcript=text)
        else:
            yield self._located("response.output_text.done", item_id, text=text)
        yield self._located("response.content_part.done", item_id, part=part_json(self._modality, text))

    def _audio_deltas(self, item_id: str, chunks: Iterator[bytes]) -> Iterator[Json]:
        for chunk in chunks:
            delta = base64.b64encode(chunk).decode("ascii")
            yield self._located("response.output_audio.delta", item_id, delta=delta)

    def _located(self, kind: str, item_id: str, **fields: object) -> Json:
        return self._event(kind, response_id=self._id, item_id=item_id, output_index=0, content_index=0, **fields)

    def _response(self, status: str, details: Json | None, output: list[Json], usage: Usage | None) -> Json:
        response: Json = {
            "id": self._id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "conversation_id": self._conversation_id,
            "output_modalities": [self._modality],
            "max_output_tokens": max_output_tokens_json(self._max_output_tokens),
            "metadata": metadata_json(self._metadata),
            "usage": None if usage is None else usage_json(usage),
        }
        # Two validators refuse a voice that is an object here, and nobody needs it.
        if self._modality == "audio" and isinstance(self._voice, str):
            response["audio"] = {"output": {"format": format_json(self._format), "voice": self._voice}}
        return response
