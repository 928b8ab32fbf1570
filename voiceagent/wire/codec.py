"""One connection's side of the Realtime protocol, with no socket in it.

Client text goes in at `receive` and comes out as a command; what the conversation says goes in at `send` and comes out as
server events. The codec keeps what the protocol makes a server remember: the effective session, the audio formats with their
resampler states, the responses under way, and which ids it has given out, to tell a late request from a wrong one.
"""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Iterator
from typing import assert_never

from voiceagent.backends import Samples
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    DUCK_DB,
    MUTED_DB,
    AnyItem,
    AudioCleared,
    AudioCommitted,
    ConversationEnded,
    ConversationEvent,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemTruncated,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseAudio,
    ResponseCalled,
    ResponseFinished,
    ResponseItemStarted,
    ResponsePlanned,
    ResponseStarted,
    ResponseStepped,
    ResponseText,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TranscriptPartial,
    TurnTraced,
)
from voiceagent.session import SessionSettings
from voiceagent.wire.audio import InputAudio
from voiceagent.wire.build import canvas_json, error_json, item_json, plan_json
from voiceagent.wire.commands import CancelResponse, Command, CreateResponse, Playout, SessionUpdate, TruncateItem
from voiceagent.wire.fields import Fields, Json, parse_object
from voiceagent.wire.parse import event_id_of, parse_event
from voiceagent.wire.response import ResponseWriter
from voiceagent.wire.session import open_session, session_json

REMEMBERED_RESPONSES = 64


class RealtimeCodec:
    """See the module. `expires_at` is in seconds of the Unix epoch; `transcriber` is the recogniser's name."""

    def __init__(
        self,
        *,
        session_id: str,
        conversation_id: str,
        model: str,
        defaults: SessionSettings,
        transcriber: str,
        expires_at: int,
        extensions: bool = False,
    ) -> None:
        self.session = open_session(defaults, transcriber=transcriber, extensions=extensions)
        self._session_id = session_id
        self._conversation_id = conversation_id
        self._model = model
        self._defaults = defaults
        self._expires_at = expires_at
        self._numbers = itertools.count(1)
        self._input = InputAudio(self.session.input_format)
        self._requests: dict[str, CreateResponse] = {}
        self._responses: dict[str, ResponseWriter] = {}
        self._finished: deque[str] = deque(maxlen=REMEMBERED_RESPONSES)
        self._was_cancelled = False
        self._issued_items: set[str] = set()
        self._committed: dict[str, str] = {}
        self._has_spoken = False
        self._is_ducked = False
        """The client was told to turn down what it plays, and has to be told when that is over."""

    # --- from the client ----------------------------------------------------------------------------------------------

    def receive(self, text: str) -> Command:
        """The command in one client message. Nothing changes but the codec's own counters.

        Raises:
            ProtocolError: With the protocol's code, the path of the field at fault and the client's event id.
        """
        event = Fields(parse_object(text))
        try:
            command = parse_event(event, self.session, self._defaults, _new_item_id)
            if isinstance(command, SessionUpdate):
                self._check_voice(command)
        except ProtocolError as error:
            error.event_id = event_id_of(event)
            raise
        return command

    def input_samples(self, audio: bytes) -> Samples:
        """Appended audio as 16 kHz samples. A sample cut in two by the client's chunking is kept for the next call."""
        return self._input.samples(audio)

    def input_tail(self) -> Samples:
        """The samples still inside the resampler, when the client commits; a fresh stream begins."""
        return self._input.finish()

    def reset_input(self) -> None:
        """Forget what is inside the resampler, when the client clears its buffer."""
        self._input = InputAudio(self.session.input_format)

    # --- to the client, in answer -------------------------------------------------------------------------------------

    def opened(self) -> list[Json]:
        return [self._event("session.created", session=self._session_json())]

    def apply(self, update: SessionUpdate) -> list[Json]:
        """Make `update` the session, once the conversation has taken its settings."""
        previous, self.session = self.session, update.session
        if self.session.input_format != previous.input_format:
            self.reset_input()
        return [self._event("session.updated", session=self._session_json())]

    def requested(self, response_id: str, request: CreateResponse) -> None:
        """Remember what the client wanted of a response. To be called before the response's first event is sent."""
        self._requests[response_id] = request

    def retrieved(self, item: AnyItem) -> list[Json]:
        return [self._event("conversation.item.retrieved", item=item_json(item))]

    def refused(self, error: ProtocolError, command: Command | None = None) -> list[Json]:
        """The answer to a message that could not be carried out; `command` is None when it could not even be read.

        What a client cannot avoid is not an error (protocols 1.9): a truncation or a playout report for an item that has gone,
        and a cancellation that crossed the end of its response on the way.
        """
        match command:
            case TruncateItem(item_id=item_id) if item_id in self._issued_items:
                return [self._truncated(item_id, command.audio_end_s)]
            case Playout():
                return []
            case CancelResponse(response_id=response_id) if error.code == "response_cancel_not_active":
                if self._was_cancelled or response_id in self._finished:
                    return []
            case _:
                pass
        event_id = None if command is None else command.event_id
        return [self._event("error", error=error_json(error, event_id))]

    # --- to the client, from the conversation -------------------------------------------------------------------------

    def send(self, event: ConversationEvent, now: float) -> list[Json]:
        """The server events that tell the client of `event`, in order. `now` is the clock that the event's deadlines refer to."""
        return list(self._send(event, now))

    def _send(self, event: ConversationEvent, now: float) -> Iterator[Json]:
        match event:
            case SpeechStarted():
                self._is_ducked = False
                audio_ms = _ms(event.audio_start_s)
                yield self._event("input_audio_buffer.speech_started", item_id=event.item_id, audio_start_ms=audio_ms)
            case SpeechStopped():
                audio_ms = _ms(event.audio_end_s)
                yield self._event("input_audio_buffer.speech_stopped", item_id=event.item_id, audio_end_ms=audio_ms)
            case AudioCommitted(item_id=item_id, previous_item_id=previous):
                self._committed[item_id] = ""
                yield self._event("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous)
            case AudioCleared():
                yield self._event("input_audio_buffer.cleared")
            case TranscriptPartial() | TranscriptFinal() | TranscriptFailed():
                yield from self._transcript(event)
            case ItemAdded(item=item, previous_item_id=previous):
                self._issued_items.add(item.id)
                yield self._event("conversation.item.added", item=item_json(item), previous_item_id=previous)
            case ItemDone(item=item, previous_item_id=previous):
                yield self._event("conversation.item.done", item=item_json(item), previous_item_id=previous)
            case ItemDeleted(item_id=item_id):
                yield self._event("conversation.item.deleted", item_id=item_id)
            case ItemTruncated(item_id=item_id, audio_end_s=audio_end_s):
                yield self._truncated(item_id, audio_end_s)
            case ResponseStarted():
                yield from self._started(event)
            case ResponseItemStarted() | ResponseCalled() | ResponseText() | ResponseAudio() | ResponseFinished():
                yield from self._progressed(event)
            case ResponsePlanned() | ResponseStepped() | TurnTraced() | PlaybackDucked() | PlaybackMuted():
                if self.session.extensions:
                    self._is_ducked |= isinstance(event, PlaybackDucked | PlaybackMuted)
                    yield self._extension(event, now)
            case PlaybackRestored():
                if self.session.extensions or self._is_ducked:  # Owed also to who wants no more of our events.
                    self._is_ducked = False
                    yield self._extension(event, now)
            case ConversationEnded(reason=reason, message=message):
                if self.session.extensions:
                    yield self._event("voiceagent.session.ended", reason=reason, message=message)
            case _:
                assert_never(event)

    def _transcript(self, event: TranscriptPartial | TranscriptFinal | TranscriptFailed) -> Iterator[Json]:
        """Transcription events, which come only after the item was committed and only when the client wants them.

        The joined deltas are a prefix of the final text, or the client sees the difference in `completed`.
        """
        item_id = event.item_id
        if isinstance(event, TranscriptPartial) and self.session.extensions:
            words = {"stable": event.stable, "unstable": event.unstable}
            yield self._event("voiceagent.transcript.partial", item_id=item_id, **words)
        is_last = not isinstance(event, TranscriptPartial)
        sent = self._committed.pop(item_id, None) if is_last else self._committed.get(item_id)
        if sent is None or self.session.transcription is None:
            return
        kind = "conversation.item.input_audio_transcription"
        if isinstance(event, TranscriptFailed):
            error = {"type": "server_error", "code": "transcription_failed", "message": event.message, "param": None}
            yield self._event(f"{kind}.failed", item_id=item_id, content_index=0, error=error)
            return
        text = event.stable if isinstance(event, TranscriptPartial) else event.text
        if len(text) > len(sent) and text.startswith(sent):
            if not is_last:
                self._committed[item_id] = text
            yield self._event(f"{kind}.delta", item_id=item_id, content_index=0, delta=text[len(sent) :])
        if isinstance(event, TranscriptFinal):
            usage = {"type": "duration", "seconds": round(event.audio_s, 3)}
            yield self._event(f"{kind}.completed", item_id=item_id, content_index=0, transcript=text, usage=usage)
            shown = None if event.repair is None else event.repair.as_json()
            if shown is not None and self.session.extensions:
                yield self._event("voiceagent.transcript.repaired", item_id=item_id, **shown)

    def _started(self, event: ResponseStarted) -> Iterator[Json]:
        request = self._requests.pop(event.response_id, None)
        in_conversation = request is None or request.options.in_conversation
        writer = ResponseWriter(
            event,
            session=self.session,
            request=request,
            conversation_id=self._conversation_id if in_conversation else None,
            make_event=self._event,
        )
        self._responses[event.response_id] = writer
        self._was_cancelled = False
        yield writer.created()

    def _progressed(
        self, event: ResponseItemStarted | ResponseCalled | ResponseText | ResponseAudio | ResponseFinished
    ) -> Iterator[Json]:
        """What follows `ResponseStarted`; events of a response that is over, or was never announced, tell the client nothing."""
        writer = self._responses.get(event.response_id)
        if writer is None:
            return
        match event:
            case ResponseItemStarted(item=item):
                self._issued_items.add(item.id)
                yield from writer.item_started(event)
            case ResponseCalled(item=call):
                self._issued_items.add(call.id)
                yield from writer.called(event)
            case ResponseText():
                yield from writer.text(event)
            case ResponseAudio():
                self._has_spoken = True
                yield from writer.audio(event)
            case ResponseFinished():
                del self._responses[event.response_id]
                self._finished.append(event.response_id)
                self._was_cancelled = event.status == "cancelled"
                yield from writer.finished(event)
            case _:
                assert_never(event)

    def _extension(
        self,
        event: ResponsePlanned | ResponseStepped | TurnTraced | PlaybackDucked | PlaybackMuted | PlaybackRestored,
        now: float,
    ) -> Json:
        match event:
            case PlaybackDucked() | PlaybackMuted():
                gain_db = -MUTED_DB if isinstance(event, PlaybackMuted) else -DUCK_DB
                audio_ms = _ms(event.audio_start_s)
                return self._event("voiceagent.playback.ducked", audio_start_ms=audio_ms, gain_db=gain_db)
            case PlaybackRestored():
                return self._event("voiceagent.playback.restored", reason=event.reason.value)
            case ResponsePlanned():
                plan = plan_json(event.plan, now)
                return self._event(
                    "voiceagent.response.plan", response_id=event.response_id, plan=plan, reason=event.reason
                )
            case ResponseStepped():
                return self._event(
                    "voiceagent.response.step",
                    response_id=event.response_id,
                    step=event.step,
                    phase=event.phase,
                    canvas=canvas_json(event.canvas),
                    committed_text=event.committed_text,
                    forced_tokens=event.forced_tokens,
                    compute_ms=round(event.compute_s * 1000, 3),
                    batch=event.batch,
                    early_ms=None if event.early_s is None else round(event.early_s * 1000, 3),
                    kept=None if event.kept is None else {"tokens": event.kept[0], "asked": event.kept[1]},
                )
            case TurnTraced():
                timeline = dict(event.timeline)
                return self._event("voiceagent.turn.timeline", response_id=event.response_id, timeline=timeline)
            case _:
                assert_never(event)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: object) -> Json:
        return {"type": kind, "event_id": f"event_{next(self._numbers)}", **fields}

    def _session_json(self) -> Json:
        return session_json(self.session, session_id=self._session_id, model=self._model, expires_at=self._expires_at)

    def _truncated(self, item_id: str, audio_end_s: float) -> Json:
        end_ms = _ms(audio_end_s)
        return self._event("conversation.item.truncated", item_id=item_id, content_index=0, audio_end_ms=end_ms)

    def _check_voice(self, update: SessionUpdate) -> None:
        if self._has_spoken and update.session.voice != self.session.voice:
            raise ProtocolError(
                "cannot_update_voice",
                "The voice cannot change after the first audio of the conversation.",
                param="session.audio.output.voice",
            )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _new_item_id() -> str:
    return f"item_{uuid.uuid4().hex[:24]}"
