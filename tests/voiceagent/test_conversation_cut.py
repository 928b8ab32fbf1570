"""Callers and clients who cut a conversation short: speech over speech, cancellations, coughs, and what history then holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from tests.voiceagent.conversing import REPLY, Line, talk
from tests.voiceagent.standins import ToneSynthesizer, silence, tone
from voiceagent.backends import Samples
from voiceagent.clock import ManualClock
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    Item,
    ItemTruncated,
    PlaybackDucked,
    ResponseAudio,
    ResponseFinished,
    ResponseItemStarted,
    ResponseStarted,
    TranscriptFinal,
    TurnTraced,
)
from voiceagent.session import ResponseOptions, SessionSettings, TurnDetection
from voiceagent.turn import Phase


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


def test_the_clients_truncation_decides_what_was_heard() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        item = line.of(ResponseItemStarted)[0].item
        line.conversation.truncate_item(item.id, 0.5)
        assert line.of(ItemTruncated)[0].text == "Sure, one"
        line.conversation.truncate_item(item.id, 999.0)
        assert line.of(ItemTruncated)[1].text == "Sure, one", "what was cut does not come back"
        line.conversation.truncate_item(item.id, 0.0)
        assert line.of(ItemTruncated)[2].text == ""

    talk(scenario)


def test_a_truncation_past_the_end_is_one_at_the_end() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        line.conversation.truncate_item(line.of(ResponseItemStarted)[0].item.id, 1e12)
        assert line.of(ItemTruncated)[0].text == REPLY

    talk(scenario)


@pytest.mark.parametrize("step_s", [0.0, 0.4], ids=["reply made", "reply being made"])
def test_a_client_that_truncates_by_itself_has_stopped_the_agent(step_s: float) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        while not line.of(ResponseAudio):
            await line.clock.advance(0.05)
        await line.clock.advance(1.0)
        line.conversation.truncate_item(line.of(ResponseItemStarted)[0].item.id, 0.5)
        await line.clock.advance(0.05)
        assert line.conversation.phase is Phase.IDLE, "nothing plays any more"
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert not line.of(PlaybackDucked), "a yes is no backchannel where nobody speaks"
        await line.clock.advance(1.0)

    line = talk(scenario, heard=("a mocha please", "yes"), step_s=step_s)
    first, *_ = [item.text for item in line.conversation._history if isinstance(item, Item) and item.role == "agent"]
    assert first == "Sure, one"
    assert len(line.llm.drafts) == 2, "it is answered"


class SlowVoice(ToneSynthesizer):
    """Takes 0.09 s for every 0.1 s of sound: a reply is made for almost as long as it plays."""

    clock: ManualClock

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        async with contextlib.aclosing(super().speak(clause)) as audio:
            async for samples in audio:
                await self.clock.sleep_until(self.clock.now() + 0.09)
                yield samples


@pytest.mark.parametrize("heard_s", [0.0, 1.0], ids=["before its first audio", "while it is heard"])
def test_a_reply_that_its_client_cuts_while_it_is_made_ends_there_and_a_yes_is_answered(heard_s: float) -> None:
    async def scenario(line: Line) -> None:
        voice.clock = line.clock
        await line.speak_turn()
        while not line.of(ResponseItemStarted):
            await line.clock.advance(0.001)
        await line.clock.advance(heard_s)
        line.conversation.truncate_item(line.of(ResponseItemStarted)[0].item.id, heard_s / 2)
        assert line.conversation.phase is Phase.IDLE, "nothing plays any more"
        (end,), sent = line.of(ResponseFinished), len(line.of(ResponseAudio))
        assert (end.status, end.reason) == ("cancelled", "client_cancelled")
        assert end.item is not None and end.item.status == "incomplete"
        assert end.item.text == ("" if heard_s == 0 else "Sure, one")
        assert (sent > 0) == (heard_s > 0)
        await line.clock.advance(0.5)
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert not line.of(PlaybackDucked), "a yes is no backchannel where nobody speaks"
        await line.clock.advance(20.0)
        first = [event for event in line.of(ResponseAudio) if event.response_id == end.response_id]
        assert len(first) == sent, "nothing more of it is made for nobody"
        assert line.conversation.phase is Phase.IDLE

    voice = SlowVoice()
    line = talk(scenario, heard=("a mocha please", "yes"), written=(REPLY, "Two."), tts=voice)
    assert [event.status for event in line.of(ResponseFinished)] == ["cancelled", "completed"]
    assert len(line.llm.drafts) == 2


@pytest.mark.parametrize("step_s", [0.0, 0.4], ids=["reply made", "reply being made"])
def test_a_reply_that_is_in_no_history_is_silent_too_once_its_client_has_cut_it(step_s: float) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        while not line.of(ResponseAudio):
            await line.clock.advance(0.05)
        await line.clock.advance(1.0)
        item = line.of(ResponseItemStarted)[0].item
        line.conversation.delete_item(item.id)
        with pytest.raises(ProtocolError, match=item.id):
            line.conversation.truncate_item(item.id, 0.5)
        await line.clock.advance(0.05)
        assert line.conversation.phase is Phase.IDLE, "nothing plays any more"

    talk(scenario, step_s=step_s)


def test_an_earlier_reply_that_its_client_cuts_leaves_the_one_being_made_alone() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.create_response(ResponseOptions())
        line.conversation.truncate_item(line.of(ResponseItemStarted)[0].item.id, 0.5)
        await line.clock.advance(20.0)

    line = talk(scenario, step_s=0.0)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed", "completed"]


def test_what_is_behind_a_reply_that_its_client_cuts_is_heard_and_over_so_much_sooner() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.create_response(ResponseOptions())
        await line.clock.advance(0.1)
        first, second = line.of(ResponseItemStarted)
        line.conversation.truncate_item(first.item.id, 0.5)
        sent = [event for event in line.of(ResponseAudio) if event.item_id == second.item.id]
        left_s = sum(event.samples.size / event.rate_hz for event in sent)
        assert left_s > 1.0
        await line.clock.advance(left_s - 0.05)
        assert line.conversation.phase is Phase.SPEAKING
        await line.clock.advance(0.1)
        assert line.conversation.phase is Phase.IDLE, "it waits for nothing that was cut"

    talk(scenario, step_s=0.0)


@pytest.mark.parametrize("lag_s", [0.4, -0.4])
def test_where_the_client_says_it_is_in_an_earlier_reply_moves_what_was_heard_of_the_one_behind_it(
    lag_s: float,
) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.5)
        line.conversation.create_response(ResponseOptions())
        await line.clock.advance(0.1)
        first, _ = line.of(ResponseItemStarted)
        replying = line.conversation._replying
        earlier, behind = replying._audible()
        before, was_dry_at = behind.dry_at(), earlier.dry_at()
        assert before is not None and was_dry_at is not None
        line.conversation.report_playout(first.item.id, earlier.played_s(line.clock.now()) - lag_s)
        assert behind.dry_at() == pytest.approx(before + lag_s) and earlier.dry_at() == pytest.approx(
            was_dry_at + lag_s
        )
        await line.clock.advance(was_dry_at + lag_s - line.clock.now())
        assert behind.played_s(line.clock.now()) == pytest.approx(0.0, abs=0.01)
        line.conversation.report_playout(first.item.id, earlier.sent_s)
        await line.clock.advance(0.7)
        line.conversation.report_playout(first.item.id, earlier.sent_s)
        assert behind.played_s(line.clock.now()) == pytest.approx(0.7, abs=0.01), "its end told late moves nothing"
        await line.clock.advance(before + lag_s - line.clock.now() - 0.05)
        assert line.conversation.phase is Phase.SPEAKING
        await line.clock.advance(0.1)
        assert line.conversation.phase is Phase.IDLE

    talk(scenario, step_s=0.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the later one first"])
def test_where_a_client_cuts_all_that_it_has_queued_nothing_plays_any_more(order: tuple[int, int]) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.create_response(ResponseOptions())
        await line.clock.advance(0.1)
        items = [event.item.id for event in line.of(ResponseItemStarted)]
        for number in order:
            line.conversation.truncate_item(items[number], 0.0)
        await line.clock.advance(0.05)
        assert line.conversation.phase is Phase.IDLE

    talk(scenario, step_s=0.0)


def test_the_rest_of_a_reply_is_due_sooner_when_its_client_cuts_the_one_before() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(0.3)
        line.conversation.create_response(ResponseOptions())
        await line.clock.advance(0.1)
        first, _ = line.of(ResponseItemStarted)
        draft = line.llm.drafts[-1]
        before = draft.plans[-1].rest_deadline
        line.conversation.truncate_item(first.item.id, 0.5)
        after = draft.plans[-1].rest_deadline
        assert before is not None and after is not None and after < before - 0.5
        await line.clock.advance(20.0)

    talk(scenario, step_s=0.04)


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
