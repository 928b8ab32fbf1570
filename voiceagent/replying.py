"""The agent's side of a conversation: each response from its start to the end of its playout, and the history that follows it.

At most one response is being made; earlier ones may still be heard. What a caller did not hear does not stay in the history.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from voiceagent import turn as turns
from voiceagent.asking import Asking
from voiceagent.backends import Drafter, Synthesizer
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.early import EarlyDrafts
from voiceagent.echo import EchoGate
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    ConversationEvent,
    Item,
    ItemTruncated,
    ResponseCalled,
    ResponseFinished,
    ResponseItemStarted,
    ResponseStarted,
    ResponseStatus,
    ResponseText,
    TurnTraced,
)
from voiceagent.history import History
from voiceagent.listening import CallerTurn
from voiceagent.playout import Playout
from voiceagent.questions import has_asked
from voiceagent.reply import Reply, ReplyRequest
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tasks import TaskGroup, new_id
from voiceagent.tool_runner import ToolDesk
from voiceagent.tool_turn import ToolTurn
from voiceagent.trace import TurnTrace

log = logging.getLogger(__name__)

REMEMBERED_PLAYOUTS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A response that somebody asked for, other than by ending a turn. `text` is spoken as it stands."""

    response_id: str
    options: ResponseOptions
    text: str | None = None


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


@dataclass(slots=True)
class Replying:
    """Makes one conversation's responses.

    Args:
        happened: Told what a response comes to: its first audio, its end, the end of its playout.
        words_known: Waits until nothing is being recognised any more.
        echo: Told what the caller's loudspeaker plays, and when.
    """

    conversation_id: str
    llm: Drafter
    tts: Synthesizer
    budget: BudgetController
    clock: Clock
    history: History
    asking: Asking
    desk: ToolDesk
    tasks: TaskGroup
    emit: Callable[[ConversationEvent], None]
    happened: Callable[[turns.TurnInput], None]
    words_known: Callable[[], Awaitable[None]]
    echo: EchoGate
    early: EarlyDrafts
    _turns: int = 0
    _running: _Running | None = None
    _still_playing: list[Reply] = field(default_factory=list)
    """Replies made before the current one, in case the caller still hears them."""
    _playouts: dict[str, Playout] = field(default_factory=dict)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a playout ends elsewhere than was thought: the client plays on after a hold, or has cut it."""

    @property
    def active_response_id(self) -> str | None:
        running = self._running
        return None if running is None or running.is_finished else running.reply.request.response_id

    def will_answer(self) -> bool:
        """A reply is open that waits for the words now being recognised: they need none of their own."""
        running = self._running
        return (
            running is not None
            and running.is_waiting
            and not running.is_finished
            and running.reply.request.text is None
            and running.options.turns is None
        )

    def has_asked(self) -> bool:
        """Whether the agent, since the caller's last words, has asked something that they have heard; also where that cannot be told."""
        now = self.clock.now()
        items = self.history.unanswered()
        ids = {item.id for item in items}
        audible = [reply for reply in self._replies() if reply.playout.is_playing(now)]
        if any(reply.request.item_id not in ids for reply in audible):
            return True  # A reply outside the conversation, or one from before those words.
        told: list[tuple[str, str]] = []
        for item in items:
            playout, text = self._playouts.get(item.id), item.text or ""
            if playout is None or not item.spoken:
                told.append((text, text))  # Read, or said so long ago that it has been heard.
            else:
                told.append((playout.heard_text(playout.played_s(now)), playout.text))
        return has_asked(told)

    # --- what was heard -----------------------------------------------------------------------------------------------

    def truncate(self, item_id: str, audio_end_s: float) -> None:
        """The caller heard only the first `audio_end_s` of this reply and hears no more of it; a position past its end is read as its end.

        Raises:
            ProtocolError: If there is no such item, or it is not the agent's. One that is in no history plays no more all the same.
        """
        playout, heard = self._playouts.get(item_id), None
        if playout is not None:
            was_dry_at = playout.dry_at()
            heard = playout.heard_text(playout.cut(audio_end_s, self.clock.now()))
            self._cut_queue(playout, was_dry_at)
        item = self.history.said(item_id, code="item_truncate_invalid_item_id")
        if item.role != "agent":
            raise ProtocolError("item_truncate_invalid_item_id", f"Item {item_id} is not the agent's.", param="item_id")
        if heard is not None:
            item = replace(item, text=heard)
            self.history.put(item)
        self.emit(ItemTruncated(item_id, audio_end_s, item.text or ""))

    def _cut_queue(self, playout: Playout, was_dry_at: float | None) -> None:
        """One reply of those that the caller's queue holds was cut: nothing of it is heard any more, and what is behind it comes sooner."""
        self._moved.set()
        dry_at = playout.dry_at()
        if was_dry_at is None or dry_at is None or was_dry_at <= dry_at:
            return
        if self._follow(playout):
            self.echo.skip(dry_at, was_dry_at)
        else:
            self.echo.cut(dry_at)

    def _follow(self, playout: Playout) -> bool:
        """What the caller's queue holds behind this one moves with its end; whether there is anything."""
        behind = list(itertools.dropwhile(lambda each: each is not playout, self._audible()))[1:]
        dry_at = playout.dry_at()
        if not behind or dry_at is None:
            return False
        for each in behind:
            each.follow(dry_at)
            dry_at = each.dry_at() or dry_at
        self._plan_again()
        return True

    def _plan_again(self) -> None:
        """What is being made has until another moment than was thought."""
        if self._running is not None and not self._running.is_finished:
            self._running.reply.drafting.more_is_queued()

    def is_speaking(self, item_id: str) -> bool:
        """This item's response is still being made, for the ear."""
        running = self._running
        if running is None or running.is_finished:
            return False
        request = running.reply.request
        return request.item_id == item_id and request.modality == "audio"

    def report_playout(self, item_id: str, played_s: float) -> None:
        """The client's own word on how much of a reply it has played."""
        playout = self._playouts.get(item_id)
        if playout is None:
            return
        was_dry_at = playout.dry_at()
        playout.report(played_s, self.clock.now())
        if playout.dry_at() != was_dry_at and self._follow(playout):
            self._moved.set()

    def duck(self) -> None:
        """Somebody may be speaking: what plays is turned down."""
        for playout in self._audible():
            playout.duck(self.clock.now())

    def mute(self) -> None:
        """They go on: it is held where it is."""
        for playout in self._audible():
            playout.mute(self.clock.now())
        self.echo.hold(self.clock.now())

    def restore(self) -> None:
        """Nobody spoke: it is turned up again, and goes on if it was held."""
        for playout in self._audible():
            playout.restore()
        self.resume()

    def hold(self) -> None:
        """The client plays nothing until `resume`."""
        for playout in self._audible():
            playout.hold(self.clock.now())
        self.echo.hold(self.clock.now())

    def resume(self) -> None:
        """The client plays on where it was held."""
        held = [playout for playout in self._audible() if playout.is_held]
        for playout in held:
            playout.resume(self.clock.now())
        self.echo.resume(self.clock.now())
        self._moved.set()
        if held:
            self._plan_again()

    def _replies(self) -> list[Reply]:
        """Those that the caller may hear, in that order."""
        current = [] if self._running is None else [self._running.reply]
        return [*self._still_playing, *current]

    def _audible(self) -> list[Playout]:
        return [reply.playout for reply in self._replies()]

    def is_heard(self) -> bool | None:
        """Whether the client has reported the newest reply as played to its end; None where it has reported nothing."""
        return None if self._running is None else self._running.reply.playout.is_confirmed

    # --- making -------------------------------------------------------------------------------------------------------

    def start(self, settings: SessionSettings, turn: CallerTurn | None, asked: Asked | None) -> None:
        """Start a response: to the turn that ended, or because it was asked for."""
        was_asked = asked is not None
        asked = asked or Asked(new_id("resp"), ResponseOptions())
        response_id, options, text = asked.response_id, asked.options, asked.text
        now = self.clock.now()
        is_spoken = turn is not None and not (was_asked and turn.asr_final is not None)
        modality = options.modality or settings.modality
        self._turns += 1
        trace = TurnTrace(
            turn=self._turns,
            origin=turn.speech_end if turn is not None and is_spoken else now,
            target_s=options.target_s or settings.target_s,
            is_spoken=is_spoken,
        )
        trace.asr_expected = None if turn is None else turn.asr_expected
        request = ReplyRequest(
            response_id,
            new_id("item"),
            modality,
            trace.target_s,
            text=text,
            when_late=options.when_late or settings.when_late,
            acknowledgements=settings.acknowledgements,
        )
        detection = settings.turn_detection
        reply = Reply(
            request=request,
            llm=self.llm,
            tts=self.tts,
            budget=self.budget,
            clock=self.clock,
            emit=lambda event: self._tell(running, event),
            trace=trace,
            on_audio=lambda: self.happened(turns.AudioBegan()),
            plays=self.echo.played if detection is not None and detection.echo_gate else None,
            tools=ToolTurn(
                self.desk,
                trace,
                response_id,
                emit=lambda event: self._tell(running, event),
                client_tools={s.name: s for s in (settings.tools if options.tools is None else options.tools)},
                keeps_history=options.in_conversation,
                is_spoken=modality == "audio",
            ),
        )
        if self._running is not None:
            self._keep_playing(self._running, reply)
            self._end_trace(self._running)
        self._running = running = _Running(reply, options)
        self.emit(ResponseStarted(response_id, request.item_id, modality, options.metadata))
        running.task = self.tasks.spawn(self._run(running, settings, turn if is_spoken else None))

    async def _run(self, running: _Running, settings: SessionSettings, turn: CallerTurn | None) -> None:
        reply = running.reply
        try:
            # A client that commits and asks for a response at once is answered when its words are known.
            await self.words_known()
            await self.desk.settled()  # What an interrupted reply has set going is known before this one is written.
            if turn is not None:
                reply.trace.transcript, reply.trace.repair = turn.transcript, turn.repair
                reply.trace.ended_by = turn.ended_by
                reply.trace.mark("endpoint", turn.endpoint)
                if turn.asr_final is not None:
                    reply.trace.mark("asr_final", turn.asr_final)
                    reply.trace.asr_waited_s = turn.asr_waited_s
            running.is_waiting = False
            if reply.request.text is None:
                reply.request = replace(
                    reply.request,
                    draft=self.asking.request(settings, running.options),
                    prompt_tokens=self.asking.new_prompt_tokens(settings, running.options),
                )
                if (
                    running.options.in_conversation
                    and running.options.turns is None
                    and reply.request.draft is not None
                ):
                    reply.beginning = self.early.take(reply.request.draft)
            await reply.run()
        except Exception as error:
            log.warning("conversation %s: reply failed", self.conversation_id, exc_info=error)
            # What has left already plays on at the caller's.
            self._finish(running, "failed", str(error))
        else:
            self._finish(running, "completed", None)
        has_audio = reply.playout.dry_at() is not None
        self.happened(turns.ReplyMade(has_audio=has_audio))
        await self._played_out(reply.playout)
        if has_audio:
            reply.trace.mark("playout_end", self.clock.now())
        self._end_trace(running)
        if self._running is running and not has_audio:
            for earlier in tuple(self._still_playing):
                await self._played_out(earlier.playout)
        if self._running is running:
            self._still_playing.clear()
            self.happened(turns.PlayoutEnded())
        elif not any(each.playout.is_playing(self.clock.now()) for each in self._still_playing):
            self.happened(turns.EarlierEnded())

    async def _played_out(self, playout: Playout) -> None:
        while (dry_at := playout.dry_at()) is not None and playout.is_playing(self.clock.now()):
            self._moved.clear()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._moved.wait())]
            if not playout.is_held:
                waits.append(asyncio.ensure_future(self.clock.sleep_until(dry_at)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()

    def _tell(self, running: _Running, event: ConversationEvent) -> None:
        """Everything a reply emits passes here: a reply that has ended is silent, and the history follows what is said."""
        if running.is_finished:
            return
        keeps = running.options.in_conversation
        match event:
            case ResponseItemStarted(item=item):
                previous = self.history.add(item) if keeps else None
                self._playouts[item.id] = running.reply.playout
                while len(self._playouts) > REMEMBERED_PLAYOUTS:
                    self._playouts.pop(next(iter(self._playouts)))
                event = replace(event, previous_item_id=previous)
            case ResponseCalled(item=call):
                event = replace(event, previous_item_id=self.history.add(call) if keeps else None)
            case ResponseText(item_id=item_id) if (
                keeps and item_id in self.history and not running.reply.playout.is_cut
            ):
                self.history.put(replace(self.history.said(item_id), text=running.reply.said))
            case _:
                pass
        self.emit(event)

    def _finish(self, running: _Running, status: ResponseStatus, reason: str | None) -> None:
        if running.is_finished:
            return
        running.is_finished = True
        reply, options = running.reply, running.options
        reply.trace.status, reply.trace.reason = status, reason
        item: Item | None = None
        previous: str | None = None
        if reply.item_started:
            is_whole = status == "completed" and not reply.playout.is_cut
            text = reply.said if is_whole else self._heard(reply)
            if status == "failed" and reply.request.modality == "audio":
                end_s = reply.playout.heard_s(self.clock.now()) if reply.playout.is_cut else reply.playout.sent_s
                text = reply.playout.heard_text(end_s)  # It plays on, and is cut if it is interrupted.
            item = Item(
                reply.request.item_id,
                "agent",
                text,
                "completed" if status == "completed" else "incomplete",
                spoken=reply.request.modality == "audio",
            )
            if options.in_conversation and item.id in self.history:
                self.history.put(item)
                previous = self.history.previous_id(item.id)
        self.emit(
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
        return reply.playout.heard_text(reply.playout.heard_s(self.clock.now()))

    def stop(self, reason: str) -> None:
        """End the response being made; what was heard of it stays."""
        self._silence_echo()
        running = self._running
        if running is None or running.is_finished:
            return
        running.reply.playout.stop(self.clock.now())
        self._finish(running, "cancelled", reason)
        self._interrupted(running)
        if not running.reply.item_started or not self._heard(running.reply):
            self.desk.reply_unheard()
        self._end_trace(running)
        if running.task is not None and running.task is not asyncio.current_task():
            running.task.cancel()

    def _silence_echo(self) -> None:
        """The caller's loudspeaker plays nothing from now on, held or not."""
        self.echo.resume(self.clock.now())
        self.echo.cut(self.clock.now())

    def close(self) -> None:
        """The conversation is over: a reply that was made and still played is accounted for as far as it went."""
        if self._running is not None:
            self._end_trace(self._running)

    def _interrupted(self, running: _Running) -> None:
        """What the caller did not hear of the reply may fit into the next one."""
        reply, heard = running.reply, self._heard(running.reply)
        if running.options.in_conversation and reply.said.startswith(heard):
            self.early.interrupted(reply.drafting.last_draft, reply.said[len(heard) :].strip())

    def _keep_playing(self, earlier: _Running, reply: Reply) -> None:
        """A reply starts while earlier ones still play: it is heard after them, and an interruption cuts all."""
        now = self.clock.now()
        self._still_playing = [each for each in (*self._still_playing, earlier.reply) if each.playout.is_playing(now)]
        if self._still_playing:
            reply.playout.wait_for(self._still_playing[-1].playout)

    def _cut_history(self, reply: Reply) -> None:
        reply.playout.stop(self.clock.now())
        if reply.request.item_id in self.history:
            item = self.history.said(reply.request.item_id)
            heard = self._heard(reply)
            if heard != item.text:
                self.history.put(replace(item, text=heard, status="incomplete"))

    def cut_earlier(self) -> None:
        """Earlier replies that were still playing are heard no further."""
        earlier, self._still_playing = self._still_playing, []
        for reply in earlier:
            self._cut_history(reply)
        self._moved.set()

    def stop_playout(self) -> None:
        """The reply was made but the caller spoke over it: keep what they heard."""
        self._silence_echo()
        running = self._running
        if running is None:
            return
        self._cut_history(running.reply)
        self._interrupted(running)
        running.reply.trace.reason = "turn_detected"
        self._end_trace(running)
        if running.task is not None and running.task is not asyncio.current_task():
            running.task.cancel()

    def _end_trace(self, running: _Running) -> None:
        if not running.is_traced:
            running.is_traced = True
            running.reply.trace.echo_windows = self.echo.take_explained()
            self.emit(TurnTraced(running.reply.request.response_id, running.reply.trace.as_json()))
