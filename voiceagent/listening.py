"""The caller's side of a conversation: audio in, utterances and their words out.

Audio and commands about it wait in one inbox, so that a commit falls where the client meant it. What is heard goes through the voice
detector, the rule that ends turns, and the recogniser; each utterance becomes an item of the history when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

import numpy as np

from voiceagent import endpoint_sound
from voiceagent import turn as turns
from voiceagent.asking import Asking
from voiceagent.backends import (
    INPUT_RATE_HZ,
    Backends,
    Partial,
    Samples,
    TurnSoFar,
)
from voiceagent.barge_in import Dismissed
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.costs import Cost, Stage
from voiceagent.early import EarlyDrafts
from voiceagent.echo import EchoGate
from voiceagent.endpoint import EndedBy
from voiceagent.errors import BackendError, OverloadedError, ProtocolError
from voiceagent.events import (
    AudioCleared,
    AudioCommitted,
    ConversationEvent,
    Item,
    ItemAdded,
    ItemDone,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TranscriptPartial,
)
from voiceagent.hearing import Hearing, takes
from voiceagent.history import History
from voiceagent.inbox import Inbox
from voiceagent.listener import KEEP_S, Answer, Doubt, Endpoint, Hush, Listener, Onset, Relief, Utter, WordsWanted
from voiceagent.repair import Repair, repair
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tasks import TaskGroup, new_id

log = logging.getLogger(__name__)

MIN_COMMIT_S = 0.1
"""The shortest audio that may be committed (protocol: 100 ms)."""
MAX_BACKLOG_S = 300.0
"""Audio that may wait to be listened to. A client that sends faster than we listen is told instead of filling memory."""
REPAIR_WITHIN_S = 0.25
"""A transcript is not held back longer by the question which of its words were misheard."""
MANUAL_LIMIT_S = 120.0
"""The longest turn that a client may commit itself; older audio of a microphone left open is forgotten."""

DOUBT_LIMIT_S = 1.0
"""A voice over the agent's is judged half a second after the longest that may be a backchannel; so long after that, the audio has stopped coming."""


@dataclass(slots=True)
class CallerTurn:
    """When the caller's last turn ended, and what was heard."""

    speech_end: float
    endpoint: float
    ended_by: EndedBy
    asr_expected: Cost
    """What was expected at the endpoint: afterwards the outcome is part of what is known."""
    asr_company: int
    """Utterances that were being recognised then, this one included."""
    asr_final: float | None = None
    asr_waited_s: float = 0.0
    """What recognition took longer because of the others."""
    transcript: str = ""
    repair: Repair | None = None


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


class Listening:
    """Listens to one caller.

    Args:
        settings: The session's, as they are now.
        state: Whose turn it is now.
        happened: Told when speech begins and ends and when its words are known.
        take_note: Given each utterance's item and words.
        is_answered: Whether a reply that waits for these words is open already.
        has_asked: Whether the agent has asked something that the caller has heard and not answered.
        echo: Tells the agent's own voice from the caller's.
        early: Told of pauses, in which a reply may be drafted.
    """

    def __init__(
        self,
        conversation_id: str,
        *,
        backends: Backends,
        clock: Clock,
        budget: BudgetController,
        history: History,
        asking: Asking,
        tasks: TaskGroup,
        emit: Callable[[ConversationEvent], None],
        settings: Callable[[], SessionSettings],
        state: Callable[[], turns.TurnState],
        happened: Callable[[turns.TurnInput], None],
        take_note: Callable[[str, str], None],
        is_answered: Callable[[], bool],
        has_asked: Callable[[], bool],
        echo: EchoGate,
        early: EarlyDrafts,
    ) -> None:
        self._id = conversation_id
        self._backends = backends
        self._clock = clock
        self._budget = budget
        self._history = history
        self._asking = asking
        self._tasks = tasks
        self._emit = emit
        self._settings = settings
        self._state = state
        self._happened = happened
        self._take_note = take_note
        self._is_answered = is_answered
        self._early = early
        self._listener = Listener(
            backends.vad.open(),
            backends.vad.window_samples,
            self._judge if backends.scorer is not None else None,
            echo,
            endpoint_sound.completeness if backends.scorer is not None and backends.scorer.weighs_sound else None,
            has_asked,
            judge_hears=backends.scorer is not None and backends.scorer.hears_voice,
        )
        self._inbox: Inbox[_Inbound] = Inbox()
        self._backlog_samples = 0
        self._uncommitted_samples = 0
        self._hearing: Hearing | None = None
        self._recognising: set[asyncio.Task[None]] = set()
        self._turn: CallerTurn | None = None
        self._doubts = 0
        self._finding_words: asyncio.Task[None] | None = None
        """Asks what the voice in doubt said; the next question, and an utterance, make it pointless."""
        self._is_closed = False

    async def run(self) -> None:
        """Listen until closed. A failing turn is reported in its own events and does not end the conversation."""
        while not self._is_closed:
            match await self._inbox.get():
                case _Commit(samples=count):
                    self._commit_now(count)
                case _Clear():
                    self._clear_now()
                case _Audio(samples=samples, arrived=arrived):
                    self._backlog_samples -= samples.size
                    await self._listen(samples, arrived)

    def close(self) -> None:
        """Hear nothing more."""
        self._is_closed = True
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None

    def take_turn(self) -> CallerTurn | None:
        """The turn that ended last and has had no reply; the next call gives None."""
        turn, self._turn = self._turn, None
        return turn

    async def words_known(self) -> None:
        """Wait until nothing is being recognised any more."""
        while self._recognising:
            await asyncio.wait(self._recognising)

    # --- from the client ----------------------------------------------------------------------------------------------

    def push(self, samples: Samples) -> None:
        """Queue 16 kHz audio of any length.

        Raises:
            ProtocolError: `input_audio_buffer_overflow` when more than `MAX_BACKLOG_S` of audio waits.
        """
        if samples.size == 0:
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

    def commit(self) -> None:
        """End the caller's turn here, whatever the voice detector thinks.

        Raises:
            ProtocolError: `input_audio_buffer_commit_empty` when there is hardly any audio since the last turn.
        """
        if self._uncommitted_samples < MIN_COMMIT_S * INPUT_RATE_HZ:
            have_ms = 1000 * self._uncommitted_samples / INPUT_RATE_HZ
            raise ProtocolError(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: expected at least 100ms of audio, the buffer has {have_ms:.0f}ms.",
            )
        self._inbox.put_nowait(_Commit(self._uncommitted_samples))
        self._uncommitted_samples = 0

    def hold(self) -> None:
        """The client plays nothing as long as this doubt lasts, and then goes on where it was."""
        self._listener.hold()

    def clear(self) -> None:
        """Forget audio that was not committed, also when its speech has been noticed."""
        self._uncommitted_samples = 0
        self._inbox.put_nowait(_Clear())

    # --- listening ----------------------------------------------------------------------------------------------------

    async def _listen(self, samples: Samples, arrived: float) -> None:
        settings = self._settings()
        detection = settings.turn_detection
        if detection is None:
            self._listen_manually(samples, arrived)
            return
        agent_audible = self._state().is_audible
        async for heard in self._listener.hear(
            samples, arrived, detection, agent_audible=agent_audible, can_be_held=settings.can_be_held
        ):
            if self._is_closed:
                return  # Closed while the detector looked at it: nobody would end what begins here.
            match heard:
                case Onset(start_sample=start):
                    self._forget_words()
                    if not detection.interrupt_response:  # Switched off while the agent was in doubt: it plays on.
                        self._relieve(Dismissed.GIVEN_UP)
                    item_id = new_id("item")
                    self._begin_hearing(item_id)
                    self._emit(SpeechStarted(item_id, start / INPUT_RATE_HZ))
                    self._happened(turns.SpeechBegan(detection.interrupt_response))
                    self._listener.expect(self._asking.last_said())
                    self._asking.warm(self._settings())  # After the interruption: the history now holds what was heard.
                case Utter(samples=piece):
                    if self._hearing is not None:
                        self._hearing.feed(piece)
                    if detection.create_response:
                        self._draft_early()
                case Endpoint(end_sample=end, speech_end=speech_end, ended_by=ended_by):
                    self._uncommitted_samples = 0
                    self._end_of_speech(end, speech_end, ended_by)
                case Doubt(start_sample=start):
                    self._doubt(start, DOUBT_LIMIT_S + detection.longest_backchannel_s)
                case Hush(start_sample=start):
                    self._hush(start)
                case WordsWanted():
                    self._forget_words()
                    self._finding_words = self._tasks.spawn(
                        self._find_words(heard, (*detection.stopping_words, *detection.backchannels))
                    )
                case Relief(reason=reason):
                    self._relieve(reason)
                case _:
                    assert_never(heard)

    def _draft_early(self) -> None:
        """Nobody is answered who can still be heard to go on; but what they would be told may be written."""
        pause = self._listener.pause()
        if pause is not None and self._state().agent is turns.Agent.QUIET:
            self._early.consider(pause)

    # --- voice over the agent's ---------------------------------------------------------------------------------------

    def _doubt(self, start_sample: int, limit_s: float) -> None:
        self._happened(turns.VoiceDoubted())
        if self._state().is_ducked:
            self._emit(PlaybackDucked(start_sample / INPUT_RATE_HZ))
            self._doubts += 1
            self._tasks.spawn(self._give_up(self._doubts, self._clock.now() + limit_s))

    def _hush(self, start_sample: int) -> None:
        self._happened(turns.VoiceLasted())
        if self._state().is_muted:
            self._emit(PlaybackMuted(start_sample / INPUT_RATE_HZ))

    def _relieve(self, reason: Dismissed) -> None:
        if self._state().is_ducked:
            self._happened(turns.VoiceDismissed())
            self._emit(PlaybackRestored(reason))

    async def _give_up(self, doubt: int, at: float) -> None:
        """No doubt lasts: audio that does not come decides nothing, and an agent that stays ducked is not heard."""
        await self._clock.sleep_until(at)
        if doubt == self._doubts and self._state().is_ducked:
            self._listener.dismiss()
            self._relieve(Dismissed.GIVEN_UP)

    def _forget_words(self) -> None:
        """A recogniser that is slow has one question of a caller before it, not all that their noises ever raised."""
        if self._finding_words is not None:
            self._finding_words.cancel()
            self._finding_words = None

    async def _find_words(self, wanted: WordsWanted, likely: Sequence[str]) -> None:
        """What the voice in doubt said, for the listener alone: nothing of it is an utterance yet."""
        heard = takes(self._backends.asr, wanted.samples, self._budget, is_whole=wanted.is_whole, likely=likely)
        try:
            async with aclosing(heard):
                async for take in heard:
                    self._listener.hear_answer(wanted.number, take.text, is_last=take.is_last)
        except (BackendError, OverloadedError) as error:
            log.warning("conversation %s: whether the caller said something cannot be told: %s", self._id, error)
            self._listener.hear_answer(wanted.number, "")

    def _listen_manually(self, samples: Samples, arrived: float) -> None:
        """Without turn detection all audio since the last commit is one utterance, which the client ends."""
        self._relieve(Dismissed.GIVEN_UP)
        self._listener.skip(samples, arrived)
        if self._hearing is not None and self._hearing.audio_s > MANUAL_LIMIT_S:
            self._hearing.cancel()
            self._hearing = None
        if self._hearing is None:
            self._begin_hearing(new_id("item"))
        assert self._hearing is not None
        self._hearing.feed(samples)

    def _begin_hearing(self, item_id: str) -> None:
        if self._hearing is not None:
            self._hearing.cancel()

        def on_partial(partial: Partial) -> None:
            if not self._is_closed:
                if self._hearing is not None and self._hearing.item_id == item_id:
                    self._listener.hear_words(partial.text, partial.confidence)
                self._emit(TranscriptPartial(item_id, partial.stable, partial.unstable))

        self._hearing = Hearing(self._backends.asr, item_id, on_partial, self._budget)

    def _judge(self, words: str, answer: Answer) -> None:
        # What was heard is taken now: when the task begins there may be more of it, which depends on how the audio was cut.
        self._tasks.spawn(
            self._ask_scorer(words, self._listener.sound, self._listener.voice, self._listener.confidence, answer)
        )

    async def _ask_scorer(
        self,
        words: str,
        sound: float | None,
        voice: Samples,
        confidence: float | None,
        answer: Answer,
    ) -> None:
        assert self._backends.scorer is not None
        turn = TurnSoFar(
            self._id,
            self._asking.so_far(self._settings(), words),
            self._asking.tools(self._settings(), ResponseOptions()),
            voice,
            sound,
            confidence,
        )
        try:
            judged = await self._backends.scorer.judge(turn)
        except BackendError as error:
            log.warning("conversation %s: whether the caller has finished cannot be said: %s", self._id, error)
            judged = None
        if judged is None:
            answer(None)
        else:
            answer(judged.completeness, is_misheard=judged.is_misheard)

    def _commit_now(self, samples: int) -> None:
        """The client ended the turn: the same as an endpoint, at the newest sample."""
        self._relieve(Dismissed.GIVEN_UP)
        if self._hearing is None:
            # Turn detection heard no speech in this audio; the client decides that it counts all the same.
            self._begin_hearing(new_id("item"))
            assert self._hearing is not None
            # Audio of the turn before has been transcribed: heard twice it would be ordered twice.
            self._hearing.feed(self._listener.recent(KEEP_S)[-samples:])
        if self._state().caller is not turns.Caller.SPEAKING:
            self._happened(turns.SpeechBegan(interrupts=False))
        self._listener.restart()
        self._end_of_speech(None, self._clock.now(), EndedBy("client"))

    def _clear_now(self) -> None:
        self._relieve(Dismissed.GIVEN_UP)
        self._listener.restart()
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None
        self._early.drop()
        self._happened(turns.SpeechDropped())
        self._emit(AudioCleared())

    def _end_of_speech(self, end_sample: int | None, speech_end: float, ended_by: EndedBy) -> None:
        """`end_sample` is None when the client ended the turn, which needs no `SpeechStopped`."""
        hearing, self._hearing = self._hearing, None
        if hearing is None:
            return
        self._budget.room.awaited[hearing] = self._clock.now()
        company = self._budget.open_utterances
        expected = self._budget.costs.predict(Stage.ASR, company=company)
        self._turn = CallerTurn(speech_end, self._clock.now(), ended_by, expected, company)
        if end_sample is not None:
            self._emit(SpeechStopped(hearing.item_id, end_sample / INPUT_RATE_HZ))
        item = Item(hearing.item_id, "user", None, spoken=True)
        previous = self._history.add(item)
        self._emit(AudioCommitted(item.id, previous))
        self._emit(ItemAdded(item, previous))
        self._emit(ItemDone(item, previous))
        self._happened(turns.SpeechEnded())
        detection = self._settings().turn_detection
        wants_reply = end_sample is not None and detection is not None and detection.create_response
        task = self._tasks.spawn(self._recognise(hearing, self._turn, wants_reply), self._recognising)
        task.add_done_callback(lambda _: hearing.cancel())  # Also when it was cancelled before it had begun.

    async def _recognise(self, hearing: Hearing, turn: CallerTurn, wants_reply: bool) -> None:
        try:
            transcript = await hearing.finish()
        except Exception as error:
            log.warning("conversation %s: recognition failed", self._id, exc_info=error)
            self._emit(TranscriptFailed(hearing.item_id, str(error)))
            if self._turn is turn:
                self._turn = None
            self._early.drop()
            self._happened(turns.TranscriptReady(is_empty=True, wants_reply=False))
            return
        finally:
            hearing.cancel()
        turn.repair = await self._repair(transcript.text.strip())
        turn.transcript = turn.repair.text
        turn.asr_final = self._clock.now()
        if not turn.transcript:
            self._early.drop()
        held_s = self._budget.room.held_s(turn.endpoint, turn.asr_final)
        turn.asr_waited_s = self._budget.recognised(max(turn.asr_final - turn.endpoint, 0.0), turn.asr_company, held_s)
        if hearing.item_id in self._history:  # The client may have deleted it meanwhile.
            self._history.put(replace(self._history.said(hearing.item_id), text=turn.transcript))
            if turn.transcript:
                self._take_note(hearing.item_id, turn.transcript)
        shown = turn.repair if turn.repair.replaced else None
        self._emit(TranscriptFinal(hearing.item_id, turn.transcript, hearing.audio_s, shown))
        current = asyncio.current_task()
        if current is not None:
            self._recognising.discard(current)
        if wants_reply and self._is_answered():
            wants_reply = False
        self._happened(turns.TranscriptReady(is_empty=not turn.transcript, wants_reply=wants_reply))

    async def _repair(self, heard: str) -> Repair:
        """Words that were probably misheard; none where nobody looks for them, cannot, or takes longer than a caller would wait."""
        repairer, settings = self._backends.repairer, self._settings().repair
        if repairer is None or settings.mode == "off" or not heard:
            return Repair(heard, heard)
        turn = TurnSoFar(
            self._id,
            self._asking.so_far(self._settings(), heard),
            self._asking.tools(self._settings(), ResponseOptions()),
            np.zeros(0, np.float32),
        )
        asked = asyncio.ensure_future(repairer.proposals(turn, heard))
        limit = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + REPAIR_WITHIN_S))
        try:
            await asyncio.wait((asked, limit), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return repair(heard, asked.result(), settings)
            log.warning("conversation %s: no word on misheard words within %g s", self._id, REPAIR_WITHIN_S)
            return Repair(heard, heard, missed="overdue")
        except Exception as error:  # The words are known: whatever fails here, they are answered.
            log.warning("conversation %s: misheard words cannot be found: %s", self._id, error, exc_info=error)
            return Repair(heard, heard, missed="failed")
        finally:
            asked.cancel()
            limit.cancel()
