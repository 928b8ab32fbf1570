"""One websocket and one conversation: messages in become commands, events become messages out.

Three tasks share a connection: one reads, one writes, one watches the time. The first of them to end, or the first reason to
close, ends all three and the conversation with them; nothing outlives `Connection.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, assert_never

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from voiceagent.backends import Samples
from voiceagent.clock import Clock
from voiceagent.errors import ProtocolError
from voiceagent.events import AnyItem, ConversationEvent, Item
from voiceagent.outbox import Outbox
from voiceagent.server_settings import ServerSettings
from voiceagent.session import ResponseOptions, SessionSettings
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

CLOSE_NOW = "voiceagent.close_now"
"""ASGI extension of our own websocket protocol class: a close frame past a send buffer that the client does not empty."""

APPEND_SLICE_BYTES = 96_000
"""A long append is taken in slices (2 s of PCM) with the event loop running in between: others are speaking."""

MESSAGES_PER_BREATH = 16
"""After so many messages in a row the others get the loop, however fast this client sends."""

_log = logging.getLogger("voiceagent.server")


class ConversationPort(Protocol):
    """What a connection asks of its conversation; `voiceagent.conversation.Conversation` is one."""

    @property
    def id(self) -> str: ...

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
    def report_playout(self, item_id: str, played_s: float) -> None: ...
    def update(self, settings: SessionSettings) -> None: ...
    def greet(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Close:
    """Why a connection ends. `at_once` leaves out what still waits to be sent, because the client does not take it."""

    code: int
    reason: str
    at_once: bool = False


class Connection:
    """A client's connection. `emit` may be called before `run`; the client hears of it after `session.created`."""

    def __init__(self, websocket: WebSocket, settings: ServerSettings, clock: Clock) -> None:
        self._websocket = websocket
        self._settings = settings
        self._clock = clock
        self._codec: RealtimeCodec | None = None
        self._conversation: ConversationPort | None = None
        self._outbox = Outbox(settings.send_buffer_limit)
        self._held: list[ConversationEvent] | None = []
        self._ending: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._sending_since: float | None = None
        self._malformed = 0
        self._is_draining = False

    def emit(self, event: ConversationEvent) -> None:
        """Tell the client of `event`. Called by the conversation; never blocks and never raises."""
        if self._held is not None:
            self._held.append(event)
            return
        assert self._codec is not None
        try:
            self._put(self._codec.send(event, self._clock.now()))
        except Exception:
            _log.exception("a conversation event could not be sent")
            self._end(Close(1011, "internal error"))

    async def run(self, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        """Serve the client until either side ends it. The websocket is accepted; afterwards it is closed and nothing runs."""
        self._conversation, self._codec = conversation, codec
        self._put(codec.opened())
        self._release()
        talk = asyncio.create_task(conversation.run())
        reader = asyncio.create_task(self._read(conversation, codec))
        writer = asyncio.create_task(self._write())
        watcher = asyncio.create_task(self._watch(codec))
        try:
            ends: set[asyncio.Future[Any]] = {talk, reader, writer, watcher, self._ending}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            close = self._verdict(talk, reader, writer, watcher)
            await _stop(reader, watcher)
            await conversation.aclose()
            if close is not None:
                await self._say_goodbye(close, writer)
        finally:
            self._outbox.close()
            await _stop(reader, watcher, writer)
            await conversation.aclose()
            await _stop(talk)

    async def drain(self, drain_s: float) -> None:
        """Let what is being said finish, for at most `drain_s`, then close with 1001."""
        self._is_draining = True
        if self._conversation is not None:
            await self._conversation.aclose(drain_s=drain_s)
        self._end(Close(1001, "the server is shutting down"))

    # --- ending -------------------------------------------------------------------------------------------------------

    def _end(self, close: Close) -> None:
        """Close for this reason, unless there already is one."""
        if not self._ending.done():
            self._ending.set_result(close)

    def _verdict(
        self,
        talk: asyncio.Task[None],
        reader: asyncio.Task[None],
        writer: asyncio.Task[None],
        watcher: asyncio.Task[None],
    ) -> Close | None:
        """How to close, or None when the client has gone. A crash is logged here, once."""
        for task in (talk, reader, writer, watcher):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.error("a connection failed and is closed; the others go on", exc_info=error)
                return Close(1011, "internal error")
        if self._ending.done():
            return self._ending.result()
        if reader.done() or writer.done():
            return None
        return (
            Close(1001, "the server is shutting down") if self._is_draining else Close(1000, "the conversation is over")
        )

    async def _say_goodbye(self, close: Close, writer: asyncio.Task[None]) -> None:
        """Send what waits and then the close frame; or the close frame alone, to a client that takes nothing."""
        if not close.at_once:
            self._outbox.close()
            if await self._within(self._settings.close_timeout_s, asyncio.shield(writer)):
                with contextlib.suppress(WebSocketDisconnect, WebSocketDisconnected):
                    await self._within(self._settings.close_timeout_s, self._websocket.close(close.code, close.reason))
                return
        await _stop(writer)
        close_now: Callable[[int, str], None] | None = self._websocket.scope.get("extensions", {}).get(CLOSE_NOW)
        if close_now is not None:
            close_now(close.code, close.reason)
        else:
            with contextlib.suppress(WebSocketDisconnect, WebSocketDisconnected):
                await self._within(self._settings.close_timeout_s, self._websocket.close(close.code, close.reason))

    async def _within(self, limit_s: float, work: Awaitable[None]) -> bool:
        """Whether `work` was done in time; if not it is cancelled."""
        task = asyncio.ensure_future(work)
        timer = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + limit_s))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            await _stop(task, timer)

    # --- the three tasks ----------------------------------------------------------------------------------------------

    async def _read(self, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        """Carry out what the client sends; return when it has gone or must go."""
        received = 0
        while not self._ending.done():
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                reason = "binary messages are not part of the protocol"
                self._put(codec.refused(ProtocolError("invalid_value", f"{reason}; audio goes as base64 in JSON.")))
                self._end(Close(1003, reason))
                return
            await self._handle(text, conversation, codec)
            received += 1
            if received % MESSAGES_PER_BREATH == 0:
                await asyncio.sleep(0)

    async def _write(self) -> None:
        """Send what the outbox holds, until it is closed or the client has gone."""
        while (text := await self._outbox.get()) is not None:
            self._sending_since = self._clock.now()
            try:
                await self._websocket.send_text(text)
            except (WebSocketDisconnect, WebSocketDisconnected):
                return
            self._sending_since = None

    async def _watch(self, codec: RealtimeCodec) -> None:
        """End the session when its time is over, or when the client has stopped reading."""
        timeout_s = self._settings.send_timeout_s
        expiry = self._clock.now() + self._settings.session_s
        while (now := self._clock.now()) < expiry:
            since = self._sending_since
            if since is not None and now - since >= timeout_s:
                self._end(Close(1008, f"the client has read nothing for {timeout_s:g} s", at_once=True))
                return
            await self._clock.sleep_until(min(expiry, now + timeout_s / 4))
        limit_min = self._settings.session_s / 60
        message = f"Your session hit the maximum duration of {limit_min:g} minutes."
        self._put(codec.refused(ProtocolError("session_expired", message)))
        self._end(Close(1000, "session expired"))

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _handle(self, text: str, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        try:
            command = codec.receive(text)
        except ProtocolError as error:
            self._put(codec.refused(error))
            self._count_malformed(error.code == INVALID_JSON)
            return
        self._count_malformed(False)
        try:
            if isinstance(command, AppendAudio):
                await self._append(command.audio, conversation, codec)
            else:
                self._carry_out(command, conversation, codec)
        except ProtocolError as error:
            self._put(codec.refused(error, command))

    def _count_malformed(self, is_malformed: bool) -> None:
        self._malformed = self._malformed + 1 if is_malformed else 0
        if self._malformed >= self._settings.max_malformed_messages:
            self._end(Close(1007, f"{self._malformed} messages in a row were not JSON"))

    async def _append(self, audio: bytes, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        if self._is_draining:
            return
        for start in range(0, len(audio), APPEND_SLICE_BYTES):
            if start:
                await asyncio.sleep(0)
            conversation.push_audio(codec.input_samples(audio[start : start + APPEND_SLICE_BYTES]))

    def _carry_out(self, command: _Immediate, conversation: ConversationPort, codec: RealtimeCodec) -> None:
        if self._is_draining and isinstance(command, CommitAudio | CreateResponse | Greet):
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
            self._outbox.put(json.dumps(message, separators=(",", ":"), allow_nan=False))
        if self._outbox.overflowed:
            limit = self._settings.send_buffer_limit
            self._end(Close(1008, f"the client does not read: {limit} bytes wait for it", at_once=True))


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


async def _stop(*tasks: asyncio.Future[None]) -> None:
    """Cancel and wait; what a task had to say was heard before, or no longer matters."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
