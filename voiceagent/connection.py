"""One Realtime client and one conversation: messages in become commands, events become messages out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias, assert_never

from starlette.websockets import WebSocket

from voiceagent.backends import Samples
from voiceagent.clock import Clock
from voiceagent.errors import ProtocolError
from voiceagent.events import AnyItem, ConversationEnded, ConversationEvent, Item
from voiceagent.line import Close, Line
from voiceagent.server_settings import ServerSettings
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.turn import Phase
from voiceagent.wire.codec import RealtimeCodec
from voiceagent.wire.commands import (
    AppendAudio,
    CancelResponse,
    ClearAudio,
    CommitAudio,
    CreateItem,
    CreateResponse,
    DeleteItem,
    Greet,
    ItemReference,
    Playout,
    RetrieveItem,
    SessionUpdate,
    TruncateItem,
)
from voiceagent.wire.fields import INVALID_JSON, Json

APPEND_SLICE_BYTES = 96_000
"""A long append is taken in slices (2 s of PCM) with the event loop running in between: others are speaking."""

_log = logging.getLogger("voiceagent.server")


class ConversationPort(Protocol):
    """What a connection asks of its conversation; `voiceagent.conversation.Conversation` is one."""

    @property
    def id(self) -> str: ...
    @property
    def phase(self) -> Phase: ...

    async def run(self) -> None: ...
    async def aclose(self, *, drain_s: float = 0.0) -> None: ...
    def push_audio(self, samples: Samples) -> None: ...
    def clear_audio(self) -> None: ...
    def commit_audio(self) -> None: ...
    def create_response(self, options: ResponseOptions = ...) -> str: ...
    def cancel_response(self, response_id: str | None = None) -> None: ...
    def add_item(self, item: AnyItem, previous_item_id: str | None = None) -> None: ...
    def item(self, item_id: str) -> tuple[AnyItem, str | None]: ...
    def delete_item(self, item_id: str) -> None: ...
    def truncate_item(self, item_id: str, audio_end_s: float) -> None: ...
    def heard_item(self, item_id: str, heard_s: float) -> None: ...
    def report_playout(self, item_id: str, played_s: float) -> None: ...
    def hold_playout(self) -> None: ...
    def resume_playout(self) -> None: ...
    def update(self, settings: SessionSettings) -> None: ...
    def greet(self) -> None: ...
    def interrupt(self) -> None: ...
    def hear_text(self, text: str) -> None: ...


class Connection:
    """A client's connection. `emit` may be called before `run`; the client hears of it after `session.created`."""

    def __init__(self, websocket: WebSocket, settings: ServerSettings, clock: Clock) -> None:
        self._line = Line(websocket, settings, clock)
        self._clock = clock
        self._codec: RealtimeCodec | None = None
        self._held: list[ConversationEvent] | None = []

    @property
    def is_admitted(self) -> bool:
        """A Realtime client has its conversation from the first moment."""
        return True

    def emit(self, event: ConversationEvent) -> None:
        """Tell the client of `event`. Called by the conversation; never blocks and never raises."""
        if self._held is not None:
            self._held.append(event)
            return
        assert self._codec is not None
        try:
            self._put(self._codec.send(event, self._clock.now()))
            if isinstance(event, ConversationEnded):
                self._line.end(Close(1000, event.message))
        except Exception:
            _log.exception("a conversation event could not be sent")
            self._line.end(Close(1011, "internal error"))

    async def run(self, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        """Serve the client until either side ends it. The websocket is accepted; afterwards it is closed and nothing runs."""
        self._codec = codec
        self._put(codec.opened())
        self._release()
        await self._line.run(
            conversation,
            lambda text: self._handle(text, conversation, codec),
            lambda error: self._put(codec.refused(error)),
        )

    async def drain(self, drain_s: float) -> None:
        """Let what is being said finish, for at most `drain_s`, then close with 1001."""
        await self._line.drain(drain_s)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _handle(self, text: str, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        try:
            command = codec.receive(text)
        except ProtocolError as error:
            self._put(codec.refused(error))
            self._line.count_malformed(error.code == INVALID_JSON)
            return
        self._line.count_malformed(False)
        try:
            if isinstance(command, AppendAudio):
                await self._append(command.audio, conversation, codec)
            else:
                self._carry_out(command, conversation, codec)
        except ProtocolError as error:
            self._put(codec.refused(error, command))

    async def _append(self, audio: bytes, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        if self._line.is_draining:
            return
        for start in range(0, len(audio), APPEND_SLICE_BYTES):
            if start:
                await asyncio.sleep(0)
            conversation.push_audio(codec.input_samples(audio[start : start + APPEND_SLICE_BYTES]))

    def _carry_out(self, command: _Immediate, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        if self._line.is_draining and isinstance(command, CommitAudio | CreateResponse | Greet):
            raise ProtocolError("server_shutting_down", "The server is shutting down.", type="server_error")
        # Events that a command causes at once wait until the codec knows of the command: a response's own format must be
        # known before its first event, and `session.updated` comes before anything that follows from it.
        self._held = []
        try:
            match command:
                case SessionUpdate(session=session):
                    conversation.update(session.settings)
                    self._put(codec.apply(command))
                case CommitAudio():
                    conversation.push_audio(codec.input_tail())
                    conversation.commit_audio()
                case ClearAudio():
                    codec.reset_input()
                    conversation.clear_audio()
                case CreateItem(item=item, previous_item_id=previous):
                    conversation.add_item(item, previous)
                case RetrieveItem(item_id=item_id):
                    self._put(codec.retrieved(conversation.item(item_id)[0]))
                case DeleteItem(item_id=item_id):
                    conversation.delete_item(item_id)
                case TruncateItem(item_id=item_id, audio_end_s=audio_end_s):
                    conversation.truncate_item(item_id, audio_end_s)
                case CreateResponse():
                    response_id = conversation.create_response(_resolve(command, conversation))
                    codec.requested(response_id, command)
                case CancelResponse(response_id=response_id_or_none):
                    conversation.cancel_response(response_id_or_none)
                case Playout(item_id=item_id, played_s=played_s):
                    conversation.report_playout(item_id, played_s)
                case Greet():
                    conversation.greet()
                case _:
                    assert_never(command)
        finally:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held or [], None
        for event in held:
            self.emit(event)

    def _put(self, messages: Sequence[Json]) -> None:
        for message in messages:
            # ASCII: a lone surrogate in what a client wants echoed must not break the frame.
            self._line.put(json.dumps(message, separators=(",", ":"), allow_nan=False))


_Immediate: TypeAlias = (
    SessionUpdate
    | CommitAudio
    | ClearAudio
    | CreateItem
    | RetrieveItem
    | DeleteItem
    | TruncateItem
    | CreateResponse
    | CancelResponse
    | Playout
    | Greet
)


def _resolve(request: CreateResponse, conversation: ConversationPort) -> ResponseOptions:
    """The response's options, with items that its input refers to looked up."""
    if request.context is None:
        return request.options
    turns: list[tuple[Literal["system", "user", "agent"], str]] = []
    for entry in request.context:
        if isinstance(entry, ItemReference):
            item, _ = conversation.item(entry.item_id)
            if not isinstance(item, Item):
                message = f"Item {entry.item_id} is no message, and only messages can be the input of one response."
                raise ProtocolError("invalid_value", message, param="response.input")
            turns.append((item.role, item.text or ""))
        else:
            turns.append(entry)
    return replace(request.options, turns=tuple(turns))
