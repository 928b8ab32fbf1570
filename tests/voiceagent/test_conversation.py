"""A whole conversation on the manual clock, with instant models."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.voiceagent.conversing import REPLY, Line, talk
from tests.voiceagent.standins import silence, tone
from voiceagent.budget_terms import WhenLate
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    AudioCommitted,
    Item,
    ItemAdded,
    ResponseAudio,
    ResponseFinished,
    ResponseStarted,
    ResponseText,
    SpeechStarted,
    SpeechStopped,
    TranscriptFinal,
    TurnTraced,
)
from voiceagent.foresight import Foresight
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.turn import Phase


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
        foresights.append(line.conversation._replying.budget.room.foresight)
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
            counts.append((budget.open_utterances, len(budget.room.awaited)))

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


def test_notes_reach_the_prompt_and_what_must_be_said_is_pinned() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    request = talk(scenario).llm.drafts[0].request
    assert [turn.role for turn in request.turns] == ["system", "user", "note"]
    assert request.must_say == ("$4.75",)


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


def test_audio_that_is_committed_before_its_decoder_has_opened_is_heard_whole() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.push_audio(tone(1.0))
        line.conversation.commit_audio()  # a short recording, sent by a program: both messages arrive together
        await line.clock.settle()

    line = talk(scenario, settings=SessionSettings(instructions="x", turn_detection=None))
    assert [utterance.fed for utterance in line.asr.utterances] == [16_000]
    assert [final.text for final in line.of(TranscriptFinal)] == ["a mocha please"]


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


def test_a_deleted_item_is_not_in_the_next_prompt() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        line.conversation.delete_item(line.of(ItemAdded)[0].item.id)
        line.conversation.create_response()
        await line.clock.advance(10.0)

    texts = [turn.text for turn in talk(scenario).llm.drafts[1].request.turns]
    assert "a mocha please" not in texts
