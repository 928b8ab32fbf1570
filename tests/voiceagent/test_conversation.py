"""A whole conversation on the manual clock, with instant models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedScorer,
    ScriptedTranscriber,
    ToneSynthesizer,
    silence,
    tone,
)
from voiceagent.agent import AgentProfile, Note
from voiceagent.backends import Backends, Samples
from voiceagent.budget import BudgetController, WhenLate
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.errors import BackendError, ProtocolError
from voiceagent.events import (
    AudioCommitted,
    ConversationEvent,
    Item,
    ItemAdded,
    ItemTruncated,
    ResponseAudio,
    ResponseFinished,
    ResponseItemStarted,
    ResponseStarted,
    ResponseStepped,
    ResponseText,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TurnTraced,
)
from voiceagent.foresight import Foresight
from voiceagent.session import ResponseOptions, SessionSettings, TurnDetection
from voiceagent.tools import ToolCall
from voiceagent.turn import Phase

E = TypeVar("E")
REPLY = "Sure, one mocha. What size would you like?"


@dataclass
class Line:
    """A conversation under test and everything it emitted."""

    clock: ManualClock
    conversation: Conversation
    llm: ScriptedDrafter
    asr: ScriptedTranscriber
    tts: ToneSynthesizer
    events: list[ConversationEvent] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    async def play(self, audio: Samples, frame: int = 320) -> None:
        """Send audio at the pace of speech."""
        for start in range(0, audio.size, frame):
            piece = audio[start : start + frame]
            await self.clock.advance(piece.size / 16_000)
            self.conversation.push_audio(piece)
        await self.clock.settle()

    async def speak_turn(self) -> None:
        await self.play(np.concatenate([tone(0.8), silence(0.5)]))


class FixedNotes:
    def hear(self, text: str) -> Note | None:
        if "crash" in text:
            raise RuntimeError("menu on fire")
        return Note("order: mocha, size missing", ("$4.75",)) if "mocha" in text else None


def talk(
    scenario: Callable[[Line], Awaitable[None]],
    *,
    heard: tuple[str | Exception, ...] = ("a mocha please",),
    written: tuple[str | Exception | ToolCall, ...] = (REPLY,),
    settings: SessionSettings | None = None,
    tts: ToneSynthesizer | None = None,
    gate: asyncio.Event | None = None,
    step_s: float = 0.01,
    scorer: ScriptedScorer | None = None,
) -> Line:
    async def main() -> Line:
        clock = ManualClock(100.0)
        asr = ScriptedTranscriber(*heard, gate=gate)
        llm = ScriptedDrafter(clock, *written, step_s=step_s)
        voice = tts or ToneSynthesizer()
        events: list[ConversationEvent] = []
        conversation = Conversation(
            backends=Backends(LevelDetector(), asr, llm, voice, scorer),
            agent=AgentProfile("café", "You take orders.", "Welcome to the café.", FixedNotes),
            settings=settings or SessionSettings(instructions="You take orders."),
            clock=clock,
            emit=events.append,
            budget=BudgetController(),
        )
        line = Line(clock, conversation, llm, asr, voice, events)
        async with conversation:
            await clock.settle()
            await scenario(line)
        await clock.settle()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left running: {others}"
        return line

    return run_async(main())


def test_a_spoken_turn_is_heard_answered_and_traced_in_the_protocols_order() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario)
    wanted = [
        "SpeechStarted",
        "SpeechStopped",
        "AudioCommitted",
        "ItemAdded",
        "ItemDone",
        "TranscriptFinal",
        "ResponseStarted",
        "ResponsePlanned",
        "ResponseItemStarted",
        "ResponseText",
        "ResponseAudio",
        "ResponseFinished",
        "TurnTraced",
    ]
    names = line.names()
    assert [names.index(name) for name in wanted] == sorted(names.index(name) for name in wanted)
    assert "".join(event.delta for event in line.of(ResponseText)) == REPLY
    assert line.of(ResponseFinished)[0].status == "completed"
    assert line.of(TranscriptFinal)[0].text == "a mocha please"
    assert (
        line.of(SpeechStarted)[0].item_id == line.of(AudioCommitted)[0].item_id == line.of(TranscriptFinal)[0].item_id
    )
    assert line.conversation.phase is Phase.IDLE


def test_the_timeline_holds_every_stage_with_its_prediction() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    timeline = talk(scenario).of(TurnTraced)[0].timeline
    assert timeline["transcript"] == "a mocha please"
    assert timeline["reply"] == REPLY
    marks = {mark["name"]: mark["at_ms"] for mark in timeline["marks"]}  # type: ignore[index, attr-defined]
    assert {
        "speech_end",
        "endpoint",
        "asr_final",
        "prefill",
        "step 1",
        "first_clause",
        "first_audio",
        "playout_end",
    } <= set(marks)
    assert marks["speech_end"] == 0
    assert 350 <= marks["endpoint"] <= 420, "the hangover and at most one window and a frame"
    assert marks["first_audio"] == timeline["server_latency_ms"]
    stages = {stage["name"]: stage for stage in timeline["stages"]}  # type: ignore[index, attr-defined]
    assert set(stages) == {"endpoint", "asr", "prefill", "denoise_first", "tts", "transport"}
    assert stages["denoise_first"]["predicted_p95_ms"] > 0
    assert timeline["plan"]["on_time"] is True, "two steps of 15 ms at p95 still fit"  # type: ignore[index]
    ended_by: Any = timeline["ended_by"]
    assert ended_by["rule"] == "silence" and ended_by["silence_alone_ms"] == 350
    assert ended_by["silence_ms"] == pytest.approx(marks["endpoint"], abs=33), "a window of audio may wait in its frame"
    assert timeline["plan"]["spent_ms"] == pytest.approx(marks["asr_final"], abs=1.0)  # type: ignore[index]


def test_the_first_clause_is_spoken_while_the_rest_is_denoised() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    names = talk(scenario, step_s=0.05).names()
    assert names.index("ResponseAudio") < len(names) - 1 - names[::-1].index("ResponseStepped")


def test_an_answer_that_cannot_be_there_in_time_is_acknowledged_if_the_session_says_so() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(8.0)

    settings = SessionSettings(target_s=0.05, when_late=WhenLate.ACKNOWLEDGE, acknowledgements=("One moment please.",))
    line = talk(scenario, settings=settings)
    assert line.tts.spoken[0] == "One moment please." and len(line.tts.spoken) > 1
    timeline = line.of(TurnTraced)[0].timeline
    assert timeline["plan"]["acknowledgement"] == "One moment please."  # type: ignore[index]
    assert timeline["reply"] == f"One moment please. {REPLY}"
    assert [stage["name"] for stage in timeline["stages"]] == ["endpoint", "asr", "tts", "transport"]  # type: ignore[attr-defined]
    assert talk(scenario, settings=SessionSettings(target_s=0.05)).tts.spoken[0] == "Sure, one mocha."


def test_the_drafts_being_written_are_counted_until_they_end() -> None:
    counts: list[tuple[int, int]] = []

    async def scenario(line: Line) -> None:
        await line.play(np.concatenate([tone(0.8), silence(0.36)]))
        for _ in range(8):
            await line.clock.advance(0.01)
            counts.append(
                (line.conversation._replying.budget.first_drafts, line.conversation._replying.budget.running_drafts)
            )
        line.conversation.cancel_response()
        await line.clock.settle()
        counts.append(
            (line.conversation._replying.budget.first_drafts, line.conversation._replying.budget.running_drafts)
        )

    talk(scenario, written=("One word after the other without an end to it",), step_s=0.05)
    assert (1, 1) in counts and counts[-1] == (0, 0)


def test_callers_are_counted_while_they_are_there() -> None:
    foresights: list[Foresight] = []

    async def scenario(line: Line) -> None:
        foresights.append(line.conversation._replying.budget.foresight)
        await line.clock.settle()
        assert foresights[0].callers == 1
        await line.conversation.aclose()
        assert foresights[0].callers == 0

    talk(scenario)
    assert foresights[0].callers == 0


def test_utterances_are_counted_while_they_are_recognised_and_not_when_they_are_over_or_dropped() -> None:
    gate = asyncio.Event()
    counts: list[tuple[int, int]] = []

    async def scenario(line: Line) -> None:
        budget = line.conversation._replying.budget

        async def count() -> None:
            await line.clock.settle()
            counts.append((budget.open_utterances, len(budget.awaited)))

        await count()
        await line.play(tone(0.8))
        await count()
        await line.play(silence(0.5))
        await count()
        gate.set()
        await count()
        await line.clock.advance(5.0)
        await line.play(tone(0.8))
        await count()
        line.conversation.clear_audio()
        await count()
        gate.clear()
        await line.speak_turn()
        await line.conversation.aclose()
        await count()

    talk(scenario, gate=gate)
    assert counts == [(0, 0), (1, 0), (1, 1), (0, 0), (1, 0), (0, 0), (0, 0)]


def test_a_turn_whose_transcript_is_empty_says_nothing() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(5.0)

    line = talk(scenario, heard=("",))
    assert line.of(TranscriptFinal)[0].text == ""
    assert not line.of(ResponseStarted)
    assert not line.llm.drafts
    assert line.conversation.phase is Phase.IDLE


def test_barge_in_stops_the_voice_cancels_the_draft_and_keeps_only_heard_words() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(1.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario, heard=("a mocha please", "no a latte"), step_s=0.5)
    first, second = line.of(ResponseFinished)
    assert (first.status, first.reason) == ("cancelled", "turn_detected")
    assert first.item is not None and first.item.status == "incomplete"
    assert first.item.text is not None and REPLY.startswith(first.item.text) and len(first.item.text) < len(REPLY)
    assert second.status == "completed"
    assert line.llm.drafts[0].is_cancelled
    prompt = " | ".join(turn.text for turn in line.llm.drafts[1].request.turns)
    assert REPLY not in prompt
    end = line.events.index(first)
    late = [e for e in line.events[end + 1 :] if getattr(e, "response_id", None) == first.response_id]
    assert [type(event) for event in late] == [TurnTraced]


def test_speech_over_a_finished_reply_cuts_the_history_at_a_word() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        assert line.of(ResponseFinished)[0].status == "completed"
        assert line.conversation.phase is Phase.SPEAKING
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario, step_s=0.0)
    said = [turn for turn in line.llm.drafts[1].request.turns if turn.role == "agent"]
    assert len(said) == 1
    assert said[0].text and REPLY.startswith(said[0].text) and said[0].text != REPLY
    assert len(line.of(TurnTraced)) == 2


def test_an_interruption_by_the_client_cuts_the_reply_and_changes_nothing_when_nobody_speaks() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.interrupt()
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.interrupt()
        assert line.conversation.phase is Phase.IDLE
        line.conversation.interrupt()
        await line.clock.advance(10.0)

    line = talk(scenario, step_s=0.0)
    (kept,) = [item.text for item in line.conversation._history if isinstance(item, Item) and item.role == "agent"]
    assert kept and REPLY.startswith(kept) and kept != REPLY
    assert len(line.llm.drafts) == 1


def test_what_the_caller_typed_is_noted_and_answered_like_speech() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.hear_text("a mocha")
        await line.clock.advance(0.2)
        line.conversation.hear_text("two")  # Over the answer.
        await line.clock.advance(10.0)

    line = talk(scenario, step_s=0.001, written=(REPLY, "Two it is."))
    prompt = [(turn.role, turn.text) for turn in line.llm.drafts[-1].request.turns]
    assert prompt[1:3] == [("user", "a mocha"), ("note", "order: mocha, size missing")]
    assert prompt[-1] == ("user", "two")
    assert REPLY not in [text for _, text in prompt], "only what was heard of it"
    assert line.of(ResponseFinished)[-1].status == "completed" and len(line.llm.drafts) == 2


def test_typing_while_words_are_recognised_gets_one_answer_to_both() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        line.conversation.hear_text("2")
        gate.set()
        await line.clock.advance(10.0)

    gate = asyncio.Event()
    line = talk(scenario, gate=gate)
    assert len(line.of(ResponseStarted)) == 1
    assert [turn.text for turn in line.llm.drafts[0].request.turns if turn.role == "user"][-1].endswith("2")
    assert any("a mocha please" in turn.text for turn in line.llm.drafts[0].request.turns)


def test_the_clients_truncation_decides_what_was_heard() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        item = line.of(ResponseItemStarted)[0].item
        line.conversation.truncate_item(item.id, 0.5)
        assert line.of(ItemTruncated)[0].text == "Sure, one"
        line.conversation.truncate_item(item.id, 999.0)
        assert line.of(ItemTruncated)[1].text == REPLY

    talk(scenario)


def test_notes_reach_the_prompt_and_what_must_be_said_is_pinned() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    request = talk(scenario).llm.drafts[0].request
    assert [turn.role for turn in request.turns] == ["system", "user", "note"]
    assert request.must_say == ("$4.75",)


def test_a_failing_note_function_does_not_cost_the_reply() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    assert talk(scenario, heard=("crash",)).of(ResponseFinished)[0].status == "completed"


def test_a_failed_recogniser_is_reported_and_the_next_turn_works() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(1.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario, heard=(BackendError("asr", "worker died"), "a mocha"))
    assert "worker died" in line.of(TranscriptFailed)[0].message
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]


@pytest.mark.parametrize("part", ["llm", "tts"])
def test_a_failed_model_fails_its_response_and_the_next_turn_works(part: str) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    written = (BackendError("llm", "out of memory"), REPLY) if part == "llm" else ("Broken words here.", REPLY)
    line = talk(scenario, written=written, tts=ToneSynthesizer(fail_on="Broken"))
    first, second = line.of(ResponseFinished)
    assert first.status == "failed" and first.reason
    assert second.status == "completed"


def test_a_typed_turn_is_answered_on_request_in_text() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.add_item(Item("mine", "user", "a mocha please"))
        line.conversation.create_response(ResponseOptions(modality="text", metadata={"k": "v"}))
        await line.clock.advance(5.0)

    line = talk(scenario)
    finished = line.of(ResponseFinished)[0]
    assert finished.metadata == {"k": "v"}
    assert finished.item is not None and finished.item.text == REPLY
    assert not line.of(ResponseAudio)
    assert line.of(TurnTraced)[0].timeline["origin"] == "request"


def test_commit_and_request_right_behind_it_wait_for_the_words() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(1.0))
        line.conversation.commit_audio()
        await line.clock.settle()
        line.conversation.create_response()
        await line.clock.advance(0.5)
        assert line.of(ResponseStarted) and not line.llm.drafts
        gate.set()
        await line.clock.advance(10.0)

    gate = asyncio.Event()
    line = talk(scenario, gate=gate, settings=SessionSettings(instructions="x", turn_detection=None))
    assert line.llm.drafts[0].request.turns[1].text == "a mocha please"
    timeline: Any = line.of(TurnTraced)[0].timeline
    assert timeline["transcript"] == "a mocha please" and timeline["ended_by"]["rule"] == "client"
    assert not line.of(SpeechStopped)


def test_commands_that_make_no_sense_are_protocol_errors_and_the_conversation_lives() -> None:
    async def scenario(line: Line) -> None:
        conversation = line.conversation
        for act, code in (
            (lambda: conversation.commit_audio(), "input_audio_buffer_commit_empty"),
            (lambda: conversation.cancel_response(), "response_cancel_not_active"),
            (lambda: conversation.truncate_item("item_no", 1.0), "item_truncate_invalid_item_id"),
            (lambda: conversation.delete_item("item_no"), "item_delete_invalid_item_id"),
            (lambda: conversation.item("item_no"), "item_retrieve_invalid_item_id"),
            (lambda: conversation.push_audio(np.zeros(16_000 * 301, np.float32)), "input_audio_buffer_overflow"),
        ):
            with pytest.raises(ProtocolError) as caught:
                act()
            assert caught.value.code == code
        conversation.create_response()
        with pytest.raises(ProtocolError) as caught:
            conversation.create_response()
        assert caught.value.code == "conversation_already_has_active_response"
        await line.clock.advance(10.0)

    assert talk(scenario).of(ResponseFinished)[0].status == "completed"


def test_a_cancelled_response_ends_at_once_and_another_can_start() -> None:
    async def scenario(line: Line) -> None:
        response = line.conversation.create_response()
        await line.clock.advance(0.015)
        line.conversation.cancel_response(response)
        assert line.conversation.active_response_id is None
        line.conversation.create_response()
        await line.clock.advance(10.0)

    line = talk(scenario)
    assert [event.status for event in line.of(ResponseFinished)] == ["cancelled", "completed"]
    assert line.of(ResponseFinished)[0].reason == "client_cancelled"


def test_an_out_of_band_response_leaves_no_trace_in_the_history() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.create_response(
            ResponseOptions(in_conversation=False, turns=(("user", "classify this"),), instructions="One word.")
        )
        await line.clock.advance(10.0)
        line.conversation.create_response()
        await line.clock.advance(10.0)

    line = talk(scenario)
    assert [turn.text for turn in line.llm.drafts[0].request.turns] == ["One word.", "classify this"]
    assert REPLY not in [turn.text for turn in line.llm.drafts[1].request.turns]


def test_the_greeting_is_spoken_once_and_only_before_anything_else() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.greet()
        await line.clock.advance(10.0)
        line.conversation.greet()
        await line.clock.advance(10.0)

    line = talk(scenario)
    assert line.tts.spoken == ["Welcome to the café."]
    assert not line.llm.drafts


def test_without_interruption_the_reply_is_finished_and_the_next_turn_answered_after_it() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.2)
        await line.speak_turn()
        await line.clock.advance(20.0)

    settings = SessionSettings(instructions="x", turn_detection=TurnDetection(interrupt_response=False))
    line = talk(scenario, settings=settings)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed", "completed"]
    first, second = line.of(ResponseStarted)
    names = [(type(e).__name__, getattr(e, "response_id", "")) for e in line.events]
    assert names.index(("ResponseFinished", first.response_id)) < names.index(("ResponseStarted", second.response_id))


def test_cleared_audio_is_never_transcribed() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(0.8))
        line.conversation.clear_audio()
        await line.play(silence(1.0))
        await line.clock.advance(5.0)

    line = talk(scenario)
    assert "AudioCleared" in line.names()
    assert not line.of(TranscriptFinal)
    assert all(utterance.is_cancelled for utterance in line.asr.utterances)


@pytest.mark.parametrize(
    ("text", "has_audio"),
    [("One mocha coming right up for you now.", False), ("Sure. What size would you like it then?", True)],
)
def test_closing_mid_denoise_or_mid_audio_leaves_nothing_running(text: str, has_audio: bool) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(1.5)
        assert line.of(ResponseStepped)
        assert bool(line.of(ResponseAudio)) == has_audio

    line = talk(scenario, written=(text,), step_s=1.0)
    assert line.of(ResponseFinished)[-1].reason == "shutdown"
    assert line.llm.drafts[0].is_cancelled
    assert line.llm.forgotten == [line.conversation.id]


def test_speech_that_is_noticed_while_closing_opens_no_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gate, look = asyncio.Event(), LevelDetector.probability

        async def slow(detector: LevelDetector, window: Samples) -> float:
            await gate.wait()
            return await look(detector, window)

        monkeypatch.setattr(LevelDetector, "probability", slow)
        clock, asr = ManualClock(), ScriptedTranscriber()
        conversation = Conversation(
            backends=Backends(LevelDetector(), asr, ScriptedDrafter(clock), ToneSynthesizer()),
            agent=AgentProfile("café"),
            settings=SessionSettings(),
            clock=clock,
            emit=lambda event: None,
            budget=BudgetController(),
        )
        talking = asyncio.create_task(conversation.run())
        conversation.push_audio(tone(0.8))
        await clock.settle()
        await conversation.aclose()
        gate.set()
        await clock.settle()
        assert talking.done() and not asr.utterances

    run_async(main())


def test_draining_lets_the_reply_be_said_to_its_end() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        closing = asyncio.create_task(line.conversation.aclose(drain_s=30.0))
        await line.clock.advance(20.0)
        await closing

    line = talk(scenario)
    assert line.of(ResponseFinished)[0].status == "completed"
    assert "playout_end" in {mark["name"] for mark in line.of(TurnTraced)[0].timeline["marks"]}  # type: ignore[index, attr-defined]


def test_draining_has_an_end() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        closing = asyncio.create_task(line.conversation.aclose(drain_s=0.1))
        await line.clock.advance(0.2)
        assert closing.done()

    assert talk(scenario, step_s=5.0).of(ResponseFinished)[0].reason == "shutdown"


def test_a_deleted_item_is_not_in_the_next_prompt() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        line.conversation.delete_item(line.of(ItemAdded)[0].item.id)
        line.conversation.create_response()
        await line.clock.advance(10.0)

    texts = [turn.text for turn in talk(scenario).llm.drafts[1].request.turns]
    assert "a mocha please" not in texts


def test_a_hundred_turns_leave_tasks_memory_and_latency_as_they_were() -> None:
    tasks: list[int] = []

    async def scenario(line: Line) -> None:
        for _ in range(100):
            await line.speak_turn()
            await line.clock.advance(8.0)
            tasks.append(len(asyncio.all_tasks()))

    line = talk(scenario)
    assert len(set(tasks)) == 1
    latencies = [event.timeline["server_latency_ms"] for event in line.of(TurnTraced)]
    assert len(latencies) == 100
    assert max(latencies[50:]) <= max(latencies[:50]) * 1.1  # type: ignore[type-var, operator]
    assert len(line.conversation._replying._playouts) <= 64


def test_two_utterances_that_are_recognised_together_get_one_answer() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.speak_turn()
        gate.set()
        await line.clock.advance(20.0)

    gate = asyncio.Event()
    line = talk(scenario, heard=("a mocha", "and a latte"), gate=gate)
    assert len(line.of(ResponseStarted)) == 1
    assert line.llm.drafts[0].request.turns[-1].text.endswith("and a latte") or "latte" in str(
        line.llm.drafts[0].request
    )


def test_a_cough_while_the_words_are_recognised_does_not_lose_the_answer() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(tone(0.4))
        gate.set()
        await line.play(silence(0.6))
        await line.clock.advance(20.0)

    gate = asyncio.Event()
    line = talk(scenario, heard=("a mocha please", ""), gate=gate)
    assert [event.text for event in line.of(TranscriptFinal)] == ["a mocha please", ""]
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]


def test_a_cough_before_the_answer_is_audible_only_delays_it() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(np.concatenate([tone(0.4), silence(0.6)]))
        await line.clock.advance(20.0)

    line = talk(scenario, heard=("a mocha please", ""), step_s=0.3)
    assert [event.status for event in line.of(ResponseFinished)] == ["cancelled", "completed"]


def test_audio_of_a_turn_that_was_recognised_is_not_heard_again_by_a_commit() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(20.0)
        await line.play(silence(0.2))
        line.conversation.commit_audio()
        await line.clock.advance(1.0)

    line = talk(scenario, heard=("a mocha please", ""))
    first, second = line.asr.utterances
    assert first.fed > 16_000 * 0.8
    assert second.fed <= 16_000 * 0.4


def test_an_interruption_cuts_every_reply_that_is_still_playing() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.create_response(ResponseOptions())
        await line.clock.advance(0.3)
        await line.speak_turn()
        await line.clock.advance(20.0)

    line = talk(scenario, step_s=0.0)
    said = [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "agent"]
    assert len(said) == 1, "nothing of the second reply was heard: it waited behind the first"
    assert REPLY.startswith(said[0]) and said[0] != REPLY


def test_a_reply_that_fails_after_its_first_clause_keeps_what_was_heard_and_is_traced() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(20.0)
        await line.speak_turn()
        await line.clock.advance(20.0)

    line = talk(scenario, written=("One mocha. Broken words.", REPLY), tts=ToneSynthesizer(fail_on="Broken"))
    assert line.of(ResponseFinished)[0].status == "failed"
    assert len(line.of(TurnTraced)) == 2
    said = [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "agent"]
    assert said == ["One mocha."], "what had left played on"


def test_what_plays_on_of_a_reply_that_failed_is_cut_where_the_caller_interrupts() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.2)
        await line.speak_turn()
        await line.clock.advance(20.0)

    first = "One mocha for you with quite a lot of extra foam on the top of it."
    line = talk(scenario, written=(f"{first} Broken words.", REPLY), tts=ToneSynthesizer(fail_on="Broken"))
    assert [event.status for event in line.of(ResponseFinished)] == ["failed", "completed"]
    (said,) = [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "agent"]
    assert said and first.startswith(said) and said != first


# --- the end of a turn -------------------------------------------------------------------------------------------------

BY_WORDS = SessionSettings(
    instructions="You take orders.",
    turn_detection=TurnDetection(weighs_words=True, silence_s=0.6, min_silence_s=0.2, max_silence_s=1.0),
)


def end_of_turn_s(scorer: ScriptedScorer) -> float:
    """Silence from the end of a caller's words to the moment when their turn was over."""
    times: list[float] = []

    async def scenario(line: Line) -> None:
        await line.play(tone(0.8))
        began = line.clock.now()
        while not line.of(SpeechStopped):
            await line.play(silence(0.02))
        times.append(line.clock.now() - began)

    line = talk(scenario, heard=("mocha",), settings=BY_WORDS, scorer=scorer)
    assert line.of(SpeechStarted)
    return times[0]


def test_words_that_are_complete_end_the_turn_and_others_keep_it_open() -> None:
    assert end_of_turn_s(ScriptedScorer(0.99)) == pytest.approx(0.2, abs=0.07)
    assert end_of_turn_s(ScriptedScorer(0.01)) == pytest.approx(1.0, abs=0.07)


def test_a_scorer_that_fails_or_never_answers_leaves_silence_alone() -> None:
    for scorer in (ScriptedScorer(BackendError("endpoint", "no such model")), ScriptedScorer(None)):
        assert end_of_turn_s(scorer) == pytest.approx(0.6, abs=0.07)


def test_the_scorer_is_told_the_conversation_and_asked_once_for_the_same_words() -> None:
    scorer = ScriptedScorer(0.99)

    async def scenario(line: Line) -> None:
        line.conversation.greet()
        await line.clock.advance(10.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    talk(scenario, heard=("mocha",), settings=BY_WORDS, scorer=scorer)
    assert [[(turn.role, turn.text) for turn in asked.turns] for asked in scorer.asked] == [
        [("system", "You take orders."), ("agent", "Welcome to the café."), ("user", "mocha")]
    ]


def test_words_after_an_unanswered_turn_are_judged_together_with_it() -> None:
    scorer = ScriptedScorer(0.99)
    settings = SessionSettings(
        turn_detection=TurnDetection(weighs_words=True, min_silence_s=0.2, create_response=False)
    )

    async def scenario(line: Line) -> None:
        for _ in range(2):
            await line.speak_turn()

    talk(scenario, heard=("tea", "please"), settings=settings, scorer=scorer)
    assert [[(turn.role, turn.text) for turn in asked.turns] for asked in scorer.asked] == [
        [("user", "tea")],
        [("user", "tea please")],
    ]


def test_who_hangs_up_while_the_answer_plays_leaves_its_timeline() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(silence(0.3))
        assert line.conversation.phase is Phase.SPEAKING and line.of(ResponseFinished) and not line.of(TurnTraced)

    line = talk(scenario, step_s=0.0)
    (traced,) = line.of(TurnTraced)
    assert traced.timeline["status"] == "completed"
