"""One conversation: whose turn it is, and the two sides that act on it.

Audio comes in through `push_audio`, events go out through `emit`. Commands are plain calls that return at once; whatever takes time runs in
tasks of this conversation's own group, so nothing survives it and nothing of it reaches another conversation. `listening` is the
caller's side, `replying` the agent's; what either tells goes through the state machine of `turn`, which says what the other has to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, assert_never

from voiceagent import turn as turns
from voiceagent.agent import AgentProfile, ImaginingNoteTaker, Note, NoteTaker
from voiceagent.asking import Asking
from voiceagent.backends import Backends, DraftRequest, Samples
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.early import EarlyDrafts
from voiceagent.echo import EchoGate
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    AnyItem,
    ConversationEnded,
    ConversationEvent,
    Item,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    OutputItem,
)
from voiceagent.history import History
from voiceagent.listening import Listening
from voiceagent.replying import Asked, Replying
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.silence_watch import SilenceWatch
from voiceagent.silences import NEVER, SilenceSettings
from voiceagent.tasks import TaskGroup, new_id
from voiceagent.tool_runner import ToolDesk
from voiceagent.tools import ToolSpec

log = logging.getLogger(__name__)


class Conversation:
    """A caller and an agent. Use as an async context manager, or `run` it in a task and `aclose` it: until then it counts as one caller."""

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
        self.id = id or new_id("conv")
        self.settings = settings
        self._llm = backends.llm
        self._agent = agent
        self._clock = clock
        self._emit = emit
        self._foresight = budget.room.foresight
        self._notes: NoteTaker | None = agent.notes() if agent.notes else None
        self._history = History()
        self._tasks = TaskGroup()
        server_tools = tuple(tool.spec for tool in agent.tools)
        self._asking = Asking(self.id, self._history, backends.llm, budget.settings.threshold, server_tools)
        self._desk = ToolDesk(agent.tools, clock=clock, history=self._history, emit=emit, spawn=self._tasks.spawn)
        self._state = turns.TurnState()
        echo = EchoGate()
        self._early = EarlyDrafts(backends.llm, budget, clock, self._imagine, lambda: self.settings.speculate)
        if self._early.is_on and self._notes is not None and not isinstance(self._notes, ImaginingNoteTaker):
            log.info("conversation %s: no reply is drafted early, as the note function has no `imagine`", self.id)
        self._listening = Listening(
            self.id,
            backends=backends,
            clock=clock,
            budget=budget,
            history=self._history,
            asking=self._asking,
            tasks=self._tasks,
            emit=emit,
            settings=lambda: self.settings,
            state=lambda: self._state,
            happened=self._happened,
            take_note=self._take_note,
            is_answered=lambda: self._replying.will_answer(),
            has_asked=lambda: self._replying.has_asked(),
            echo=echo,
            early=self._early,
        )
        self._replying = Replying(
            self.id,
            llm=backends.llm,
            tts=backends.tts,
            budget=budget,
            clock=clock,
            history=self._history,
            asking=self._asking,
            desk=self._desk,
            tasks=self._tasks,
            emit=emit,
            happened=self._happened,
            words_known=self._listening.words_known,
            echo=echo,
            early=self._early,
        )
        self._silence = SilenceWatch(
            clock=clock,
            tasks=self._tasks,
            settings=self._silence_settings,
            is_waiting=lambda: self._desk.is_busy or bool(self._history.awaited_calls()),
            say=self._say,
            is_heard=self._replying.is_heard,
            end=self._end,
        )
        self._asked: Asked | None = None
        """A response that was asked for and starts when the state machine says so."""
        self._main: asyncio.Task[None] | None = None
        self._is_closed = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        # From here to `aclose`: of callers who come in the same moment each must find those before counted.
        self._foresight.callers += 1

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
        await self._listening.run()

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
        self._foresight.callers -= 1
        self._happened(turns.ReplyCancelled("shutdown"))
        self._replying.close()
        self._listening.close()
        self._early.drop()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._tasks.aclose()
        self._llm.forget(self.id)

    @property
    def phase(self) -> turns.Phase:
        return self._state.phase

    @property
    def active_response_id(self) -> str | None:
        return self._replying.active_response_id

    # --- commands -----------------------------------------------------------------------------------------------------

    def push_audio(self, samples: Samples) -> None:
        """Queue 16 kHz audio of any length.

        Raises:
            ProtocolError: `input_audio_buffer_overflow` when too much audio waits.
        """
        if not self._is_closed:
            self._listening.push(samples)

    def commit_audio(self) -> None:
        """End the caller's turn here, whatever the voice detector thinks. Does not start a response.

        Raises:
            ProtocolError: `input_audio_buffer_commit_empty` when there is hardly any audio since the last turn.
        """
        self._listening.commit()

    def clear_audio(self) -> None:
        """Forget audio that was not committed, also when its speech has been noticed."""
        self._listening.clear()

    def create_response(self, options: ResponseOptions | None = None) -> str:
        """Start a reply to the conversation as it stands; returns the response's id."""
        self._require_no_response()
        self._silence.asked()
        options = options or ResponseOptions()
        self._require_free_names(options.tools or (), "response.tools")
        self._asked = Asked(new_id("resp"), options)
        response_id = self._asked.response_id
        self._happened(turns.ReplyRequested())
        return response_id

    def greet(self) -> None:
        """Speak the agent's greeting; nothing happens when it has none, or once the conversation has begun."""
        if not self._agent.greeting or self._state.is_making_reply or len(self._history):
            return
        self._say(self._agent.greeting)

    def interrupt(self) -> None:
        """Stop an agent that can be heard, as speech would; the history keeps what was heard."""
        self._silence.answered()
        if self._can_be_interrupted():
            self._happened(turns.SpeechBegan(interrupts=True))
            self._happened(turns.SpeechDropped())

    def hear_text(self, text: str) -> None:
        """Take what the caller typed, on the keys of a phone, as what they said: it interrupts and is answered."""
        interrupts = self._can_be_interrupted()
        if interrupts:
            self._happened(turns.SpeechBegan(interrupts=True))
        self.add_item(Item(new_id("item"), "user", text))
        self._happened(turns.TranscriptReady(is_empty=False, wants_reply=True))
        if interrupts:  # Only now, so that one reply answers this and what was unanswered before it.
            self._happened(turns.SpeechDropped())

    def _can_be_interrupted(self) -> bool:
        return self._state.is_audible and self._state.caller is not turns.Caller.SPEAKING

    def cancel_response(self, response_id: str | None = None) -> None:
        """Stop the running response."""
        active = self.active_response_id
        if active is None or response_id not in (None, active):
            raise ProtocolError(
                "response_cancel_not_active", "Cancellation failed: no active response found", param="response_id"
            )
        self._silence.answered()
        self._happened(turns.ReplyCancelled("client_cancelled"))

    def add_item(self, item: AnyItem, previous_item_id: str | None = None) -> None:
        """Insert an item; a user's text also reaches the note taker. Only that text, and what a call has waited for, end a silence."""
        is_awaited = isinstance(item, OutputItem) and item.call_id in self._history.awaited_calls()
        previous = self._history.add_from_client(item, previous_item_id)
        if is_awaited:
            self._silence.served()
        if isinstance(item, Item) and item.role == "user" and item.text:
            self._silence.answered()
            self._take_note(item.id, item.text)
        self._emit(ItemAdded(item, previous))
        self._emit(ItemDone(item, previous))

    def item(self, item_id: str) -> tuple[AnyItem, str | None]:
        return self._history.get(item_id), self._history.previous_id(item_id)

    def delete_item(self, item_id: str) -> None:
        self._history.delete(item_id)
        self._emit(ItemDeleted(item_id))

    def truncate_item(self, item_id: str, audio_end_s: float) -> None:
        """The client has cut this reply at `audio_end_s`; a position past its end is read as its end.

        One that is still being made ends here, as if it had been cancelled: whoever cuts a reply plays no more of it.
        """
        try:
            self.heard_item(item_id, audio_end_s)
        finally:
            if self._replying.is_speaking(item_id):
                self._happened(turns.ReplyCancelled("client_cancelled"))

    def heard_item(self, item_id: str, heard_s: float) -> None:
        """The caller heard only the first `heard_s` of this reply, which the conversation is about to stop or has stopped by itself."""
        self._replying.truncate(item_id, heard_s)

    def report_playout(self, item_id: str, played_s: float) -> None:
        """The client's own word on how much of a reply it has played."""
        self._replying.report_playout(item_id, played_s)

    def hold_playout(self) -> None:
        """The client plays nothing until `resume_playout`, and then goes on where it was."""
        self._replying.hold()
        self._listening.hold()

    def resume_playout(self) -> None:
        """The client plays on."""
        self._replying.resume()

    def update(self, settings: SessionSettings) -> None:
        self._require_free_names(settings.tools, "session.tools")
        self.settings = settings
        if not self._early.is_on:
            self._early.drop()
        self._silence.observe(self._state)

    # --- whose turn it is ---------------------------------------------------------------------------------------------

    def _happened(self, happened: turns.TurnInput) -> None:
        self._state, effects = turns.advance(self._state, happened)
        for effect in effects:
            match effect:
                case turns.OpenUtterance() | turns.FinishUtterance() | turns.DropUtterance():
                    pass  # The listening side has done it: it is what noticed.
                case turns.StartReply():
                    self._start_reply()
                case turns.StopReply(reason=reason):
                    self._replying.stop(reason)
                    self._replying.cut_earlier()
                case turns.DuckPlayout():
                    self._replying.duck()
                case turns.MutePlayout():
                    self._replying.mute()
                case turns.RestorePlayout():
                    self._replying.restore()
                case turns.StopPlayout():
                    self._replying.stop_playout()
                    self._replying.cut_earlier()
                case _:
                    assert_never(effect)
        if self._state.agent is turns.Agent.QUIET:
            self._quiet.set()
        else:
            self._quiet.clear()
        if isinstance(happened, turns.TranscriptReady) and not happened.is_empty:
            self._silence.answered()
        self._silence.observe(self._state)

    def _say(self, text: str) -> None:
        """Speak a text as a reply of its own; nobody is speaking now."""
        self._asked = Asked(new_id("resp"), ResponseOptions(), text)
        self._happened(turns.ReplyRequested())

    def _silence_settings(self) -> SilenceSettings:
        # A text is read when the reader likes, and where the client ends the turns we do not know who is speaking.
        is_spoken = self.settings.modality == "audio" and self.settings.turn_detection is not None
        return self.settings.silence if is_spoken else NEVER

    def _end(self) -> None:
        self._listening.close()
        self._emit(ConversationEnded("silence", "nobody spoke any more"))

    def _start_reply(self) -> None:
        asked, self._asked = self._asked, None
        self._replying.start(self.settings, self._listening.take_turn(), asked)

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

    def _imagine(self, words: str) -> DraftRequest | None:
        """What would be asked for if the caller's turn ended with these words; None where that cannot be said beforehand."""
        note: Note | None = None
        if self._desk.is_busy:
            return None
        if self._notes is not None:
            if not isinstance(self._notes, ImaginingNoteTaker):
                return None
            try:
                note = self._notes.imagine(words)
            except Exception:
                log.exception("conversation %s: the note function failed to imagine %r", self.id, words)
                return None
        supposed = self._history.supposing(Item(new_id("item"), "user", words, spoken=True), note)
        return self._asking.request(self.settings, ResponseOptions(), supposed)

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
