"""One conversation: the asyncio edge that carries out what the pure modules decide.

Audio comes in through `push_audio`, events go out through `emit`. Commands are plain calls that return at once; whatever takes time runs in
tasks of this conversation's own group, so nothing survives it and nothing of it reaches another conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeAlias, assert_never

from voiceagent import turn as turns
from voiceagent.agent import AgentProfile, NoteTaker
from voiceagent.asking import Asking
from voiceagent.backends import (
    INPUT_RATE_HZ,
    LOOK_BACK_S,
    Drafter,
    Partial,
    Samples,
    Synthesizer,
    Transcriber,
    TurnScorer,
    TurnSoFar,
    VoiceDetector,
)
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.costs import Cost, Stage
from voiceagent.errors import BackendError, ProtocolError
from voiceagent.events import (
    AnyItem,
    AudioCleared,
    AudioCommitted,
    ConversationEvent,
    Item,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemTruncated,
    ResponseCalled,
    ResponseFinished,
    ResponseItemStarted,
    ResponseStarted,
    ResponseStatus,
    ResponseText,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TranscriptPartial,
    TurnTraced,
)
from voiceagent.hearing import Hearing
from voiceagent.history import History
from voiceagent.listener import KEEP_S, Endpoint, Listener, Onset, Utter
from voiceagent.playout import Playout
from voiceagent.reply import Reply, ReplyRequest
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tool_runner import ToolDesk
from voiceagent.tool_turn import ToolTurn
from voiceagent.tools import ToolSpec
from voiceagent.trace import TurnTrace

log = logging.getLogger(__name__)

MIN_COMMIT_S = 0.1
"""The shortest audio that may be committed (protocol: 100 ms)."""
MAX_BACKLOG_S = 300.0
"""Audio that may wait to be listened to. A client that sends faster than we listen is told instead of filling memory."""
MANUAL_LIMIT_S = 120.0
"""The longest turn that a client may commit itself; older audio of a microphone left open is forgotten."""
REMEMBERED_PLAYOUTS = 64


@dataclass(frozen=True, slots=True)
class Backends:
    """The models that all conversations share."""

    vad: VoiceDetector
    asr: Transcriber
    llm: Drafter
    tts: Synthesizer
    scorer: TurnScorer | None = None
    """Says whether a caller's words are a whole turn; without one, silence alone ends turns."""


@dataclass(slots=True)
class _Turn:
    """When the caller's last turn ended, and what was heard."""

    speech_end: float
    endpoint: float
    asr_expected: Cost
    """What was expected at the endpoint: afterwards the outcome is part of what is known."""
    asr_final: float | None = None
    transcript: str = ""


@dataclass(slots=True)
class _Running:
    """A response and everything that must be known to end it properly."""

    reply: Reply
    options: ResponseOptions
    task: asyncio.Task[None] | None = None
    is_waiting: bool = True
    """Its draft has not started: whatever is still being recognised will be in its prompt."""
    is_finished: bool = False
    is_traced: bool = False


@dataclass(frozen=True, slots=True)
class _Audio:
    samples: Samples
    arrived: float


@dataclass(frozen=True, slots=True)
class _Commit:
    """The client ends the turn; `samples` of audio came since the last turn."""

    samples: int


@dataclass(frozen=True, slots=True)
class _Clear:
    pass


_Inbound: TypeAlias = _Audio | _Commit | _Clear


class Conversation:
    """A caller and an agent. Use as an async context manager, or `run` it in a task and `aclose` it."""

    def __init__(
        self,
        *,
        backends: Backends,
        agent: AgentProfile,
        settings: SessionSettings,
        clock: Clock,
        emit: Callable[[ConversationEvent], None],
        budget: BudgetController,
        id: str | None = None,
    ) -> None:
        self.id = id or _new_id("conv")
        self.settings = settings
        self._backends = backends
        self._agent = agent
        self._clock = clock
        self._emit = emit
        self._budget = budget
        self._notes: NoteTaker | None = agent.notes() if agent.notes else None
        self._history = History()
        server_tools = tuple(tool.spec for tool in agent.tools)
        self._asking = Asking(self.id, self._history, backends.llm, budget.settings.threshold, server_tools)
        self._desk = ToolDesk(agent.tools, clock=clock, history=self._history, emit=emit, spawn=self._spawn)
        self._state = turns.TurnState()
        self._listener = Listener(
            backends.vad.open(), backends.vad.window_samples, self._judge if backends.scorer is not None else None
        )
        self._inbox: asyncio.Queue[_Inbound] = asyncio.Queue()
        self._backlog_samples = 0
        self._uncommitted_samples = 0
        self._hearing: Hearing | None = None
        self._recognising: set[asyncio.Task[None]] = set()
        self._turn: _Turn | None = None
        self._turns = 0
        self._next: tuple[str, ResponseOptions, str | None] | None = None
        self._running: _Running | None = None
        self._still_playing: list[Reply] = []
        """Replies made before the current one, in case the caller still hears them."""
        self._playouts: dict[str, Playout] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._is_closed = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._main = asyncio.create_task(self.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self) -> None:
        """Listen until closed. A failing turn is reported in its own events and does not end the conversation."""
        self._asking.warm(self.settings)
        while not self._is_closed:
            match await self._inbox.get():
                case _Commit(samples=count):
                    self._commit_now(count)
                case _Clear():
                    self._clear_now()
                case _Audio(samples=samples, arrived=arrived):
                    self._backlog_samples -= samples.size
                    await self._listen(samples, arrived)

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        """End the conversation; with `drain_s` the reply under way may first be said to its end, for at most that long."""
        if drain_s > 0 and not self._quiet.is_set():
            quiet = asyncio.ensure_future(self._quiet.wait())
            limit = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + drain_s))
            try:
                await asyncio.wait((quiet, limit), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiter in (quiet, limit):
                    waiter.cancel()
            await asyncio.gather(quiet, limit, return_exceptions=True)
        if self._is_closed:
            return
        self._is_closed = True
        self._happened(turns.ReplyCancelled("shutdown"))
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None
        tasks = [*self._tasks, *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._backends.llm.forget(self.id)

    @property
    def phase(self) -> turns.Phase:
        return self._state.phase

    @property
    def active_response_id(self) -> str | None:
        running = self._running
        return None if running is None or running.is_finished else running.reply.request.response_id

    # --- commands -----------------------------------------------------------------------------------------------------

    def push_audio(self, samples: Samples) -> None:
        """Queue 16 kHz audio of any length.

        Raises:
            ProtocolError: `input_audio_buffer_overflow` when more than `MAX_BACKLOG_S` of audio waits.
        """
        if self._is_closed or samples.size == 0:
            return
        if self._backlog_samples + samples.size > MAX_BACKLOG_S * INPUT_RATE_HZ:
            raise ProtocolError(
                "input_audio_buffer_overflow",
                f"More than {MAX_BACKLOG_S:.0f} s of audio wait to be processed; send no faster than real time.",
                param="audio",
            )
        self._backlog_samples += samples.size
        self._uncommitted_samples += samples.size
        self._inbox.put_nowait(_Audio(samples, self._clock.now()))

    def commit_audio(self) -> None:
        """End the caller's turn here, whatever the voice detector thinks. Does not start a response."""
        if self._uncommitted_samples < MIN_COMMIT_S * INPUT_RATE_HZ:
            have_ms = 1000 * self._uncommitted_samples / INPUT_RATE_HZ
            raise ProtocolError(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: expected at least 100ms of audio, the buffer has {have_ms:.0f}ms.",
            )
        self._inbox.put_nowait(_Commit(self._uncommitted_samples))
        self._uncommitted_samples = 0

    def clear_audio(self) -> None:
        """Forget audio that was not committed, also when its speech has been noticed."""
        self._uncommitted_samples = 0
        self._inbox.put_nowait(_Clear())

    def create_response(self, options: ResponseOptions | None = None) -> str:
        """Start a reply to the conversation as it stands; returns the response's id."""
        self._require_no_response()
        options = options or ResponseOptions()
        self._require_free_names(options.tools or (), "response.tools")
        response_id = _new_id("resp")
        self._next = (response_id, options, None)
        self._happened(turns.ReplyRequested())
        return response_id

    def greet(self) -> None:
        """Speak the agent's greeting; nothing happens when it has none, or once the conversation has begun."""
        if not self._agent.greeting or self._state.is_making_reply or len(self._history):
            return
        self._next = (_new_id("resp"), ResponseOptions(), self._agent.greeting)
        self._happened(turns.ReplyRequested())

    def interrupt(self) -> None:
        """Stop an agent that can be heard, as speech would; the history keeps what was heard."""
        is_audible = self._state.agent in (turns.Agent.SPEAKING, turns.Agent.PLAYING)
        if is_audible and self._state.caller is not turns.Caller.SPEAKING:
            self._happened(turns.SpeechBegan(interrupts=True))
            self._happened(turns.SpeechDropped())

    def hear_text(self, text: str) -> None:
        """Take what the caller typed, on the keys of a phone, as what they said: it interrupts and is answered."""
        self.interrupt()
        self.add_item(Item(_new_id("item"), "user", text))
        self._happened(turns.TranscriptReady(is_empty=False, wants_reply=True))

    def cancel_response(self, response_id: str | None = None) -> None:
        """Stop the running response."""
        active = self.active_response_id
        if active is None or response_id not in (None, active):
            raise ProtocolError(
                "response_cancel_not_active", "Cancellation failed: no active response found", param="response_id"
            )
        self._happened(turns.ReplyCancelled("client_cancelled"))

    def add_item(self, item: AnyItem, previous_item_id: str | None = None) -> None:
        """Insert an item; a user's text also reaches the note taker."""
        previous = self._history.add_from_client(item, previous_item_id)
        if isinstance(item, Item) and item.role == "user" and item.text:
            self._take_note(item.id, item.text)
        self._emit(ItemAdded(item, previous))
        self._emit(ItemDone(item, previous))

    def item(self, item_id: str) -> tuple[AnyItem, str | None]:
        return self._history.get(item_id), self._history.previous_id(item_id)

    def delete_item(self, item_id: str) -> None:
        self._history.delete(item_id)
        self._emit(ItemDeleted(item_id))

    def truncate_item(self, item_id: str, audio_end_s: float) -> None:
        """The caller heard only the first `audio_end_s` of this reply; a position past its end is read as its end."""
        item = self._history.said(item_id, code="item_truncate_invalid_item_id")
        if item.role != "agent":
            raise ProtocolError("item_truncate_invalid_item_id", f"Item {item_id} is not the agent's.", param="item_id")
        playout = self._playouts.get(item_id)
        if playout is not None:
            heard_s = min(audio_end_s, playout.sent_s)
            playout.report(heard_s, self._clock.now())
            item = replace(item, text=playout.heard_text(heard_s))
            self._history.put(item)
        self._emit(ItemTruncated(item_id, audio_end_s, item.text or ""))

    def report_playout(self, item_id: str, played_s: float) -> None:
        """The client's own word on how much of a reply it has played."""
        playout = self._playouts.get(item_id)
        if playout is not None:
            playout.report(played_s, self._clock.now())

    def update(self, settings: SessionSettings) -> None:
        self._require_free_names(settings.tools, "session.tools")
        self.settings = settings

    # --- listening ----------------------------------------------------------------------------------------------------

    async def _listen(self, samples: Samples, arrived: float) -> None:
        detection = self.settings.turn_detection
        if detection is None:
            self._listen_manually(samples, arrived)
            return
        agent_audible = self._state.agent in (turns.Agent.SPEAKING, turns.Agent.PLAYING)
        async for heard in self._listener.hear(samples, arrived, detection, agent_audible=agent_audible):
            if self._is_closed:
                return  # Closed while the detector looked at it: nobody would end what begins here.
            match heard:
                case Onset(start_sample=start):
                    item_id = _new_id("item")
                    self._begin_hearing(item_id)
                    self._emit(SpeechStarted(item_id, start / INPUT_RATE_HZ))
                    self._happened(turns.SpeechBegan(detection.interrupt_response))
                    self._listener.expect(self._asking.last_said())
                    self._asking.warm(self.settings)  # After the interruption: the history now holds what was heard.
                case Utter(samples=piece):
                    if self._hearing is not None:
                        self._hearing.feed(piece)
                case Endpoint(end_sample=end, speech_end=speech_end):
                    self._uncommitted_samples = 0
                    self._end_of_speech(end, speech_end)
                case _:
                    assert_never(heard)

    def _listen_manually(self, samples: Samples, arrived: float) -> None:
        """Without turn detection all audio since the last commit is one utterance, which the client ends."""
        self._listener.skip(samples, arrived)
        if self._hearing is not None and self._hearing.audio_s > MANUAL_LIMIT_S:
            self._hearing.cancel()
            self._hearing = None
        if self._hearing is None:
            self._begin_hearing(_new_id("item"))
        assert self._hearing is not None
        self._hearing.feed(samples)

    def _begin_hearing(self, item_id: str) -> None:
        if self._hearing is not None:
            self._hearing.cancel()

        def on_partial(partial: Partial) -> None:
            if not self._is_closed:
                if self._hearing is not None and self._hearing.item_id == item_id:
                    self._listener.hear_words(partial.text)
                self._emit(TranscriptPartial(item_id, partial.stable, partial.unstable))

        self._hearing = Hearing(self._backends.asr, item_id, on_partial)

    def _judge(self, words: str, answer: Callable[[float | None], None]) -> None:
        self._spawn(self._ask_scorer(words, answer))

    async def _ask_scorer(self, words: str, answer: Callable[[float | None], None]) -> None:
        assert self._backends.scorer is not None
        turn = TurnSoFar(
            self.id,
            self._asking.so_far(self.settings, words),
            self._asking.tools(self.settings, ResponseOptions()),
            self._listener.recent(LOOK_BACK_S),
        )
        try:
            answer(await self._backends.scorer.completeness(turn))
        except BackendError as error:
            log.warning("conversation %s: whether the caller has finished cannot be said: %s", self.id, error)
            answer(None)

    def _commit_now(self, samples: int) -> None:
        """The client ended the turn: the same as an endpoint, at the newest sample."""
        if self._hearing is None:
            # Turn detection heard no speech in this audio; the client decides that it counts all the same.
            self._begin_hearing(_new_id("item"))
            assert self._hearing is not None
            # Audio of the turn before has been transcribed: heard twice it would be ordered twice.
            self._hearing.feed(self._listener.recent(KEEP_S)[-samples:])
        if self._state.caller is not turns.Caller.SPEAKING:
            self._happened(turns.SpeechBegan(interrupts=False))
        self._listener.restart()
        self._end_of_speech(None, self._clock.now())

    def _clear_now(self) -> None:
        self._listener.restart()
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None
        self._happened(turns.SpeechDropped())
        self._emit(AudioCleared())

    def _end_of_speech(self, end_sample: int | None, speech_end: float) -> None:
        """`end_sample` is None when the client ended the turn, which needs no `SpeechStopped`."""
        hearing, self._hearing = self._hearing, None
        if hearing is None:
            return
        self._turn = _Turn(speech_end, self._clock.now(), self._budget.costs.predict(Stage.ASR))
        if end_sample is not None:
            self._emit(SpeechStopped(hearing.item_id, end_sample / INPUT_RATE_HZ))
        item = Item(hearing.item_id, "user", None, spoken=True)
        previous = self._history.add(item)
        self._emit(AudioCommitted(item.id, previous))
        self._emit(ItemAdded(item, previous))
        self._emit(ItemDone(item, previous))
        self._happened(turns.SpeechEnded())
        detection = self.settings.turn_detection
        wants_reply = end_sample is not None and detection is not None and detection.create_response
        self._spawn(self._recognise(hearing, self._turn, wants_reply), self._recognising)

    async def _recognise(self, hearing: Hearing, turn: _Turn, wants_reply: bool) -> None:
        try:
            transcript = await hearing.finish()
        except Exception as error:
            log.warning("conversation %s: recognition failed", self.id, exc_info=error)
            self._emit(TranscriptFailed(hearing.item_id, str(error)))
            if self._turn is turn:
                self._turn = None
            self._happened(turns.TranscriptReady(is_empty=True, wants_reply=False))
            return
        finally:
            hearing.cancel()
        turn.asr_final = self._clock.now()
        turn.transcript = transcript.text.strip()
        self._budget.costs.observe(Stage.ASR, max(turn.asr_final - turn.endpoint, 0.0))
        if hearing.item_id in self._history:  # The client may have deleted it meanwhile.
            self._history.put(replace(self._history.said(hearing.item_id), text=turn.transcript))
            if turn.transcript:
                self._take_note(hearing.item_id, turn.transcript)
        self._emit(TranscriptFinal(hearing.item_id, turn.transcript, hearing.audio_s))
        current = asyncio.current_task()
        if current is not None:
            self._recognising.discard(current)
        if wants_reply and self._will_be_answered():
            wants_reply = False
        self._happened(turns.TranscriptReady(is_empty=not turn.transcript, wants_reply=wants_reply))

    def _will_be_answered(self) -> bool:
        """A reply is open that waits for these words: they need none of their own."""
        running = self._running
        return (
            running is not None
            and running.is_waiting
            and not running.is_finished
            and running.reply.request.text is None
            and running.options.turns is None
        )

    def _take_note(self, item_id: str, text: str) -> None:
        self._desk.turn_began()
        if self._notes is None:
            return
        try:
            note = self._notes.hear(text)
        except Exception:
            log.exception("conversation %s: the note function failed on %r", self.id, text)
            return
        if note is not None and note.text:
            self._history.note(item_id, note)

    # --- replying -----------------------------------------------------------------------------------------------------

    def _happened(self, happened: turns.TurnInput) -> None:
        self._state, effects = turns.advance(self._state, happened)
        for effect in effects:
            match effect:
                case turns.OpenUtterance() | turns.FinishUtterance() | turns.DropUtterance():
                    pass  # The listening side has done it: it is what noticed.
                case turns.StartReply():
                    self._start_reply()
                case turns.StopReply(reason=reason):
                    self._stop_reply(reason)
                    self._cut_earlier()
                case turns.StopPlayout():
                    self._stop_playout()
                    self._cut_earlier()
                case _:
                    assert_never(effect)
        if self._state.agent is turns.Agent.QUIET:
            self._quiet.set()
        else:
            self._quiet.clear()

    def _start_reply(self) -> None:
        response_id, options, text = self._next or (_new_id("resp"), ResponseOptions(), None)
        was_asked, self._next = self._next is not None, None
        turn, self._turn = self._turn, None
        now = self._clock.now()
        is_spoken = turn is not None and not (was_asked and turn.asr_final is not None)
        modality = options.modality or self.settings.modality
        self._turns += 1
        trace = TurnTrace(
            turn=self._turns,
            origin=turn.speech_end if turn is not None and is_spoken else now,
            target_s=options.target_s or self.settings.target_s,
            is_spoken=is_spoken,
        )
        trace.asr_expected = None if turn is None else turn.asr_expected
        request = ReplyRequest(
            response_id,
            _new_id("item"),
            modality,
            trace.target_s,
            text=text,
            when_late=options.when_late or self.settings.when_late,
            acknowledgements=self.settings.acknowledgements,
        )
        reply = Reply(
            request=request,
            llm=self._backends.llm,
            tts=self._backends.tts,
            budget=self._budget,
            clock=self._clock,
            emit=lambda event: self._reply_event(running, event),
            trace=trace,
            on_audio=lambda: self._happened(turns.AudioBegan()),
            tools=ToolTurn(
                self._desk,
                trace,
                response_id,
                emit=lambda event: self._reply_event(running, event),
                client_tools={s.name: s for s in (self.settings.tools if options.tools is None else options.tools)},
                keeps_history=options.in_conversation,
            ),
        )
        if self._running is not None:
            self._keep_playing(self._running, reply)
            self._end_trace(self._running)
        self._running = running = _Running(reply, options)
        self._emit(ResponseStarted(response_id, request.item_id, modality, options.metadata))
        running.task = self._spawn(self._run_reply(running, turn if is_spoken else None))

    async def _run_reply(self, running: _Running, turn: _Turn | None) -> None:
        reply = running.reply
        try:
            # A client that commits and asks for a response at once is answered when its words are known.
            while self._recognising:
                await asyncio.wait(self._recognising)
            await self._desk.settled()  # What an interrupted reply has set going is known before this one is written.
            if turn is not None:
                reply.trace.transcript = turn.transcript
                reply.trace.mark("endpoint", turn.endpoint)
                if turn.asr_final is not None:
                    reply.trace.mark("asr_final", turn.asr_final)
            running.is_waiting = False
            if reply.request.text is None:
                reply.request = replace(
                    reply.request,
                    draft=self._asking.request(self.settings, running.options),
                    prompt_tokens=self._asking.new_prompt_tokens(self.settings, running.options),
                )
            await reply.run()
        except Exception as error:
            log.warning("conversation %s: reply failed", self.id, exc_info=error)
            # What has left already plays on at the caller's.
            self._finish_reply(running, "failed", str(error))
        else:
            self._finish_reply(running, "completed", None)
        has_audio = reply.playout.dry_at() is not None
        self._happened(turns.ReplyMade(has_audio=has_audio))
        while (dry_at := reply.playout.dry_at()) is not None and dry_at > self._clock.now():
            await self._clock.sleep_until(dry_at)
        if has_audio:
            reply.trace.mark("playout_end", self._clock.now())
        if self._running is running:
            self._still_playing.clear()
        self._end_trace(running)
        if self._running is running:
            self._happened(turns.PlayoutEnded())

    def _reply_event(self, running: _Running, event: ConversationEvent) -> None:
        """Everything a reply emits passes here: a reply that has ended is silent, and the history follows what is said."""
        if running.is_finished:
            return
        keeps = running.options.in_conversation
        match event:
            case ResponseItemStarted(item=item):
                previous = self._history.add(item) if keeps else None
                self._playouts[item.id] = running.reply.playout
                while len(self._playouts) > REMEMBERED_PLAYOUTS:
                    self._playouts.pop(next(iter(self._playouts)))
                event = replace(event, previous_item_id=previous)
            case ResponseCalled(item=call):
                event = replace(event, previous_item_id=self._history.add(call) if keeps else None)
            case ResponseText(item_id=item_id) if keeps and item_id in self._history:
                self._history.put(replace(self._history.said(item_id), text=running.reply.said))
            case _:
                pass
        self._emit(event)

    def _finish_reply(self, running: _Running, status: ResponseStatus, reason: str | None) -> None:
        if running.is_finished:
            return
        running.is_finished = True
        reply, options = running.reply, running.options
        reply.trace.status, reply.trace.reason = status, reason
        item: Item | None = None
        previous: str | None = None
        if reply.item_started:
            text = reply.said if status == "completed" else self._heard(reply)
            item = Item(
                reply.request.item_id,
                "agent",
                text,
                "completed" if status == "completed" else "incomplete",
                spoken=reply.request.modality == "audio",
            )
            if options.in_conversation and item.id in self._history:
                self._history.put(item)
                previous = self._history.previous_id(item.id)
        self._emit(
            ResponseFinished(
                reply.request.response_id,
                item,
                previous,
                reply.request.modality,
                status,
                reason,
                reply.usage,
                options.metadata,
            )
        )

    def _heard(self, reply: Reply) -> str:
        if reply.request.modality == "text":
            return reply.said
        return reply.playout.heard_text(reply.playout.played_s(self._clock.now()))

    def _stop_reply(self, reason: str) -> None:
        running = self._running
        if running is None or running.is_finished:
            return
        self._finish_reply(running, "cancelled", reason)
        if not running.reply.item_started or not self._heard(running.reply):
            self._desk.reply_unheard()
        self._end_trace(running)
        if running.task is not None and running.task is not asyncio.current_task():
            running.task.cancel()

    def _keep_playing(self, earlier: _Running, reply: Reply) -> None:
        """A reply starts while an earlier one still plays: it is heard after it, and an interruption cuts both."""
        dry_at = earlier.reply.playout.dry_at()
        if dry_at is not None and dry_at > self._clock.now():
            reply.playout.not_before = dry_at
            self._still_playing.append(earlier.reply)

    def _cut_history(self, reply: Reply) -> None:
        if reply.request.item_id in self._history:
            item = self._history.said(reply.request.item_id)
            heard = self._heard(reply)
            if heard != item.text:
                self._history.put(replace(item, text=heard, status="incomplete"))

    def _cut_earlier(self) -> None:
        earlier, self._still_playing = self._still_playing, []
        for reply in earlier:
            self._cut_history(reply)

    def _stop_playout(self) -> None:
        """The reply was made but the caller spoke over it: keep what they heard."""
        running = self._running
        if running is None:
            return
        self._cut_history(running.reply)
        running.reply.trace.reason = "turn_detected"
        self._end_trace(running)
        if running.task is not None and running.task is not asyncio.current_task():
            running.task.cancel()

    def _end_trace(self, running: _Running) -> None:
        if not running.is_traced:
            running.is_traced = True
            self._emit(TurnTraced(running.reply.request.response_id, running.reply.trace.as_json()))

    # --- small things -------------------------------------------------------------------------------------------------

    def _require_no_response(self) -> None:
        active = self.active_response_id
        if active is not None:
            raise ProtocolError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active}. Wait until it is finished.",
            )

    def _require_free_names(self, tools: Sequence[ToolSpec], param: str) -> None:
        if taken := [spec.name for spec in tools if spec.name in self._desk.tools]:
            message = f"The server has a tool named {taken[0]!r} of its own; give yours another name."
            raise ProtocolError("invalid_value", message, param=param)

    def _spawn(
        self, work: Coroutine[None, None, None], also: set[asyncio.Task[None]] | None = None
    ) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if also is not None:
            also.add(task)
            task.add_done_callback(also.discard)
        task.add_done_callback(_report)
        return task


def _report(task: asyncio.Task[None]) -> None:
    """A task of ours never raises but for a bug; say so instead of losing it."""
    with contextlib.suppress(asyncio.CancelledError):
        if error := task.exception():
            log.error("a conversation's task failed", exc_info=error)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
