"""A phone call: one bridge's websocket and one conversation.

The bridge is let in before it has said who it is, because Twilio can send a key only inside its start message; until then nothing but
that message is heard, and not for long. The call takes its place among the conversations when it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from starlette.websockets import WebSocket

from voiceagent.audio import PCMU_8K
from voiceagent.clock import Clock
from voiceagent.connection import ConversationPort
from voiceagent.errors import OverloadedError, ProtocolError
from voiceagent.events import (
    ConversationEnded,
    ConversationEvent,
    PlaybackDucked,
    PlaybackRestored,
    ResponseAudio,
    ResponseFinished,
    SpeechStarted,
)
from voiceagent.line import Close, Line, stop
from voiceagent.server_settings import ServerSettings
from voiceagent.telephony import twilio
from voiceagent.telephony.marks import Marks, Piece
from voiceagent.wire.audio import InputAudio, OutputAudio

START_TIMEOUT_S = 10.0
"""Twilio sends `start` with the connection; whoever is silent for so long is not Twilio."""
KEYS_PAUSE_S = 2.0
"""After so long without another key, or after `#`, the keys that were pressed are what the caller said."""
MAX_KEYS = 64

_log = logging.getLogger("voiceagent.telephony")


class PhoneCall:
    """One call over Twilio Media Streams, from the accepted websocket to its end.

    Args:
        key: What the start message must bring as the parameter `key`; None when the caller has been let in already.
        why_full: Why nobody can be let in now, or None; asked when the call starts.
        open_conversation: Makes the conversation, when the call starts. May raise `OverloadedError`.
        tell_refused: Told, in one word, why a call was turned away after its socket had been accepted.
        interrupts: Whether speech stops the agent.
    """

    def __init__(
        self,
        websocket: WebSocket,
        settings: ServerSettings,
        clock: Clock,
        *,
        key: str | None,
        why_full: Callable[[], str | None],
        open_conversation: Callable[[Callable[[ConversationEvent], None]], ConversationPort],
        tell_refused: Callable[[str], None],
        interrupts: bool,
    ) -> None:
        self._line = Line(websocket, settings, clock)
        self._clock = clock
        self._key = key
        self._why_full = why_full
        self._open = open_conversation
        self._tell_refused = tell_refused
        self._interrupts = interrupts
        self._started = asyncio.Event()
        self._conversation: ConversationPort | None = None
        self._stream_sid: str | None = None
        self._input = InputAudio("audio/pcmu")
        self._output: _Output | None = None
        self._marks = Marks()
        self._held: list[Piece] | None = None
        """What the caller has yet to hear, while it is held back because they may be speaking."""
        self._has_warned = False
        self._keys = ""
        self._keys_timer: asyncio.Task[None] | None = None

    @property
    def is_admitted(self) -> bool:
        """Whether the call has started and has its conversation."""
        return self._conversation is not None

    async def serve(self) -> None:
        """Carry the call until either side ends it; afterwards the websocket is closed and nothing runs."""
        await self._line.run(self, self._handle, lambda error: _log.warning("a call ends: %s", error.message))

    async def drain(self, drain_s: float) -> None:
        """Let what is being said finish, for at most `drain_s`, then close with 1001."""
        await self._line.drain(drain_s)

    # --- the line's other end -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait for the start, then converse."""
        started = asyncio.ensure_future(self._started.wait())
        timer = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + START_TIMEOUT_S))
        try:
            await asyncio.wait({started, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(started, timer)
        if self._conversation is None:
            self._refuse("no_start", Close(1008, f"no start message within {START_TIMEOUT_S:g} s"))
            return
        await self._conversation.run()

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        """End the conversation, if it had begun."""
        if self._keys_timer is not None:
            await stop(self._keys_timer)
        if self._conversation is not None:
            await self._conversation.aclose(drain_s=drain_s)

    # --- from the bridge ----------------------------------------------------------------------------------------------

    async def _handle(self, text: str) -> None:
        try:
            message = twilio.parse(text, self._stream_sid)
            self._carry_out(message)
        except twilio.UnsupportedFormatError as error:
            self._refuse("unsupported_format", Close(1003, error.message))
        except ProtocolError as error:
            # Once a call is enough: a bridge that is wrong is wrong fifty times a second.
            _log.log(logging.DEBUG if self._has_warned else logging.WARNING, "a message was refused: %s", error.message)
            self._has_warned = True
            self._line.count_malformed(True, f"were refused; the last: {error.message}")
        else:
            self._line.count_malformed(False)

    def _carry_out(self, message: twilio.Message) -> None:
        match message:
            case twilio.Start():
                self._start(message)
            case twilio.Stop():
                self._line.end(Close(1000, "the call is over"))
            case twilio.Mark(name=name):
                for item_id, played_s in self._marks.returned(name, self._clock.now()).items():
                    assert self._conversation is not None
                    self._conversation.report_playout(item_id, played_s)
            case twilio.Media(audio=audio) if self._conversation is not None and not self._line.is_draining:
                self._conversation.push_audio(self._input.samples(audio))
            case twilio.Digit(digit=digit) if not self._line.is_draining:
                self._pressed(digit)
            case _:
                pass

    def _start(self, start: twilio.Start) -> None:
        if self._line.is_draining:
            return
        if self._key is not None:
            given = start.parameters.get("key", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode()):
                reason = "the parameter 'key' is not the API key" if given else "the parameter 'key' is missing"
                self._refuse("invalid_api_key", Close(1008, reason))
                return
        try:
            if (full := self._why_full()) is not None:
                self._refuse("overloaded", Close(1013, full))
                return
            self._conversation = self._open(self.emit)
        except OverloadedError as error:
            self._refuse(error.code, Close(1013, str(error)))
            return
        self._stream_sid = start.stream_sid
        _log.info("call %s is conversation %s", start.call_sid, self._conversation.id)
        self._started.set()
        self._conversation.greet()

    def _refuse(self, reason: str, close: Close) -> None:
        self._tell_refused(reason)
        self._line.end(close)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _pressed(self, digit: str) -> None:
        """The first key stops the agent; what was pressed counts as said once it is complete."""
        if not self._keys:
            self._be_quiet()
            assert self._conversation is not None
            self._conversation.interrupt()
        if self._keys_timer is not None:
            self._keys_timer.cancel()
        if len(self._keys) < MAX_KEYS and (digit != "#" or not self._keys):
            self._keys += digit
        if digit == "#":
            self._say_keys()
        else:
            self._keys_timer = asyncio.create_task(self._wait_for_keys())

    async def _wait_for_keys(self) -> None:
        await self._clock.sleep_until(self._clock.now() + KEYS_PAUSE_S)
        try:
            self._say_keys()
        except Exception:
            _log.exception("what was pressed could not be said")
            self._line.end(Close(1011, "internal error"))

    def _say_keys(self) -> None:
        keys, self._keys = self._keys, ""
        if keys and self._conversation is not None:
            self._be_quiet()  # The agent may have begun to speak, and may be held, since the first key.
            self._conversation.hear_text(keys)

    # --- to the bridge ------------------------------------------------------------------------------------------------

    def emit(self, event: ConversationEvent) -> None:
        """Let the caller hear of `event`. Called by the conversation; never blocks and never raises."""
        try:
            self._tell(event)
        except Exception:
            _log.exception("a conversation event could not be sent")
            self._line.end(Close(1011, "internal error"))

    def _tell(self, event: ConversationEvent) -> None:
        match event:
            case ResponseAudio():
                if self._output is None or self._output.item_id != event.item_id:
                    self._output = _Output(event.item_id, event.rate_hz)
                self._play(self._output.push(event))
            case ResponseFinished(status="cancelled"):
                self._output = None
                self._be_quiet()
            case ResponseFinished(item=item):
                if self._output is not None and item is not None and item.id == self._output.item_id:
                    self._play(self._output.finish())
                    self._output = None
            case SpeechStarted() if self._interrupts:
                # Told before the conversation stops its reply: what was heard is known when the history is cut.
                self._be_quiet()
            case PlaybackDucked():
                self._hold()
            case PlaybackRestored():
                self._play_on()
            case ConversationEnded(message=message):
                self._line.end(Close(1000, message))
            case _:
                pass

    def _play(self, pieces: list[Piece]) -> None:
        if self._held is not None:
            self._held += pieces
            return
        assert self._stream_sid is not None
        now = self._clock.now()
        for piece in pieces:
            self._line.put(twilio.media(self._stream_sid, piece.audio))
            self._line.put(twilio.mark(self._stream_sid, self._marks.sent(piece, now)))

    def _hold(self) -> None:
        """A bridge has no volume: in doubt the caller hears silence, and what they have not heard is kept for later."""
        assert self._conversation is not None and self._stream_sid is not None
        if self._held is not None:
            return
        unheard = self._marks.unheard(self._clock.now())
        for item_id, heard_s in _begins(unheard).items():
            self._conversation.report_playout(item_id, heard_s)
        self._conversation.hold_playout()
        self._held = unheard
        if unheard:
            self._marks.cleared()
            self._line.put(twilio.clear(self._stream_sid))

    def _play_on(self) -> None:
        """The caller hears the agent again, from where it was."""
        held, self._held = self._held, None
        if held is not None:
            assert self._conversation is not None
            self._conversation.resume_playout()
            self._play(held)

    def _be_quiet(self) -> None:
        """The caller hears nothing more of what was sent, and the conversation knows what they did hear."""
        if self._held is not None:
            self._drop_held(self._held)
            return
        if not self._marks.is_playing or self._stream_sid is None:
            return
        assert self._conversation is not None
        self._cut(self._marks.heard(self._clock.now()) or {})
        self._marks.cleared()
        self._line.put(twilio.clear(self._stream_sid))

    def _drop_held(self, held: list[Piece]) -> None:
        self._held = None
        assert self._conversation is not None
        self._cut(_begins(held))
        self._conversation.resume_playout()

    def _cut(self, heard: Mapping[str, float]) -> None:
        assert self._conversation is not None
        for item_id, heard_s in heard.items():
            with contextlib.suppress(ProtocolError):  # An item that the history does not hold needs no cut.
                self._conversation.heard_item(item_id, heard_s)


def _begins(pieces: list[Piece]) -> dict[str, float]:
    """Where the first piece of each item begins, by item id in seconds."""
    return {piece.item_id: piece.start_s for piece in reversed(pieces)}


class _Output:
    """One reply's audio on its way to 8 kHz µ-law, with the positions of its pieces in the reply's own time."""

    def __init__(self, item_id: str, rate_hz: int) -> None:
        self.item_id = item_id
        self._encoder = OutputAudio(rate_hz, "audio/pcmu")
        self._made_s = 0.0
        self._sent_s = 0.0

    def push(self, event: ResponseAudio) -> list[Piece]:
        """Its next pieces."""
        self._made_s += event.samples.size / event.rate_hz
        return self._placed(self._encoder.encode(event.samples))

    def finish(self) -> list[Piece]:
        """The rest. The last piece ends exactly where the reply does, whatever the resampler rounded."""
        rest = self._placed(self._encoder.finish())
        if rest:
            rest[-1] = replace(rest[-1], end_s=max(self._made_s, rest[-1].start_s))
        return rest

    def _placed(self, chunks: Iterable[bytes]) -> list[Piece]:
        pieces = []
        for chunk in chunks:
            if chunk:
                end_s = self._sent_s + PCMU_8K.duration_s(len(chunk))
                pieces.append(Piece(self.item_id, self._sent_s, end_s, chunk))
                self._sent_s = end_s
        return pieces
