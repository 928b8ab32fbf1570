"""The caller speaks over an agent that can be held, or that has asked something, or not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.voiceagent.conversing import Line, talk
from tests.voiceagent.over_the_agent import LONG, agents_words, answered, over
from tests.voiceagent.standins import silence, tone
from voiceagent.barge_in import Dismissed
from voiceagent.events import (
    Item,
    ItemTruncated,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseFinished,
    ResponseItemStarted,
    ResponsePlanned,
    SpeechStarted,
)
from voiceagent.session import ResponseOptions, SessionSettings, TurnDetection
from voiceagent.turn import Phase

# --- silent first, decided later --------------------------------------------------------------------------------------

HELD = SessionSettings(can_be_held=True)


async def heard_so_far(line: Line, *, is_made: bool) -> None:
    """A turn was spoken, and some of its answer was heard."""
    await line.speak_turn()
    while not line.conversation._state.is_audible:
        await line.play(silence(0.02))
    await line.play(silence(0.5))
    assert line.conversation._state.is_making_reply != is_made


def heard_s(line: Line) -> float:
    playout = line.conversation._replying._running.reply.playout  # type: ignore[union-attr]
    return playout.heard_s(line.clock.now())


@pytest.mark.parametrize("step_s", [0.0, 3.0], ids=["reply made", "reply being made"])
def test_a_backchannel_that_lasts_costs_half_a_second_of_silence_and_no_word(step_s: float) -> None:
    async def scenario(line: Line) -> None:
        await heard_so_far(line, is_made=not step_s)
        began_s, began = heard_s(line), line.clock.now()
        while not line.of(PlaybackMuted):
            await line.play(tone(0.02))
        muted_at = line.clock.now()
        await line.play(np.concatenate([tone(0.1), silence(0.6)]))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted", "PlaybackRestored"]
        assert line.of(PlaybackMuted)[0].audio_start_s == line.of(PlaybackDucked)[0].audio_start_s
        elsewhere_s = line.clock.now() - began - (heard_s(line) - began_s)
        assert 0.1 < elsewhere_s < 0.4, "it stood still from the mute to the end of the words, and all else was heard"
        assert muted_at - began <= 0.56
        assert line.conversation.phase is Phase.SPEAKING
        await line.play(silence(20.0))
        assert agents_words(line) == [LONG.strip()], "heard to its end"
        assert line.conversation.phase is Phase.IDLE

    heard = ("a mocha please", "got", "got it")
    line = talk(scenario, heard=heard, written=(LONG,), step_s=step_s, settings=HELD)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]
    assert len(line.of(SpeechStarted)) == 1, "of the order"


def test_what_was_said_into_a_mute_is_a_turn_with_all_its_audio_and_the_history_ends_where_it_was_ducked() -> None:
    lengths: list[int] = []
    for can_be_held in (True, False):

        async def scenario(line: Line, can_be_held: bool = can_be_held) -> None:
            await answered(line)
            await line.play(np.concatenate([tone(0.56), silence(0.6)]))
            assert over(line)[-1] == "SpeechStarted" and ("PlaybackMuted" in over(line)) == can_be_held
            lengths.append(len(agents_words(line)[0].split()))
            await line.play(silence(1.0))
            assert line.asr.utterances[-1].fed / 16_000 > 0.3 + 0.56

        line = talk(
            scenario,
            heard=("a mocha please", "a", "a latte", "a latte"),
            written=(LONG, "Yes?"),
            step_s=0.0,
            settings=replace(HELD, can_be_held=can_be_held),
        )
        assert [turn.text for turn in line.llm.drafts[1].request.turns if turn.role == "user"][1:] == ["a latte"]
    assert lengths[0] == lengths[1], "not a word more than without"


def test_who_goes_on_speaking_is_heard_in_silence_from_the_same_moment_and_stops_the_agent_after_eight_tenths() -> None:
    times: list[list[float]] = []
    for settings in (HELD, SessionSettings()):

        async def scenario(line: Line) -> None:
            await answered(line)
            began, at = line.clock.now(), []
            for _ in range(60):
                count = len(line.events)
                await line.play(tone(0.02))
                new = [event for event in line.events[count:] if isinstance(event, PlaybackMuted | SpeechStarted)]
                at += [line.clock.now() - began] * len(new)
            times.append(at)

        talk(scenario, written=(LONG,), step_s=0.0, settings=settings)
    assert times[0][0] == times[1][0] <= 0.56
    assert len(times[0]) == 2 and times[0][1] == pytest.approx(0.83, abs=0.05)


@pytest.mark.parametrize("switched_off", ["by the client", "immediate"])
def test_without_mutes_and_in_immediate_mode_the_decision_is_where_it_was(switched_off: str) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([tone(0.56), silence(0.6)]))
        assert "PlaybackMuted" not in over(line) and over(line)[-1] == "SpeechStarted"

    detection = TurnDetection(mutes=False) if switched_off == "by the client" else TurnDetection(barge_in="immediate")
    settings = replace(HELD, turn_detection=detection)
    talk(scenario, heard=("a mocha please", "got", "got it"), written=(LONG, "Yes?"), step_s=0.0, settings=settings)


def test_audio_that_stops_coming_while_the_agent_is_muted_brings_it_back_where_it_was() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.5))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted"]
        await line.clock.advance(2.0)
        assert over(line)[2:] == ["PlaybackRestored"]
        assert line.of(PlaybackRestored)[0].reason is Dismissed.GIVEN_UP
        await line.clock.advance(16.0)
        assert agents_words(line) == [LONG.strip()] and line.conversation.phase is Phase.IDLE

    talk(scenario, written=(LONG,), step_s=0.0, settings=HELD)


@pytest.mark.parametrize("backchannel_s", [0.1, 0.4])
def test_a_recogniser_that_is_late_with_a_voice_that_muted_the_agent_has_it_stopped_and_not_given_up(
    backchannel_s: float,
) -> None:
    gate = asyncio.Event()

    async def scenario(line: Line) -> None:
        gate.set()
        await answered(line)
        gate.clear()
        await line.play(np.concatenate([tone(0.78), silence(0.6)]))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted", "SpeechStarted"]
        gate.set()

    settings = replace(HELD, turn_detection=TurnDetection(backchannel_s=backchannel_s))
    heard = ("a mocha please", "so", "okay")
    talk(scenario, heard=heard, written=(LONG, "Yes?"), step_s=0.0, gate=gate, settings=settings)


def test_a_call_that_ends_while_the_agent_is_muted_keeps_what_was_heard_and_leaves_nothing_running() -> None:
    async def scenario(line: Line) -> None:
        await heard_so_far(line, is_made=False)
        await line.play(tone(0.5))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted"]

    line = talk(scenario, written=(LONG,), step_s=3.0, settings=HELD)
    (kept,) = agents_words(line)
    assert kept and LONG.startswith(kept) and kept != LONG.strip()
    assert line.of(ResponseFinished)[-1].status == "cancelled"


@pytest.mark.parametrize("step_s", [0.0, 3.0], ids=["reply made", "reply being made"])
def test_a_client_that_truncates_a_muted_reply_has_stopped_it_and_the_next_yes_is_a_turn(step_s: float) -> None:
    async def scenario(line: Line) -> None:
        await heard_so_far(line, is_made=not step_s)
        await line.play(tone(0.5))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted"]
        line.conversation.truncate_item(line.of(ResponseItemStarted)[0].item.id, 0.5)
        cut = line.of(ItemTruncated)[0].text
        await line.play(np.concatenate([tone(0.1), silence(1.0)]))
        assert over(line)[2:] == ["SpeechStarted"]
        assert agents_words(line)[0] == cut and LONG.startswith(cut) and not line.conversation._state.is_muted

    heard = ("a mocha please", "so", "yes", "yes")
    talk(scenario, heard=heard, written=(LONG, "Good."), step_s=step_s, settings=HELD)


def test_an_agent_that_is_muted_is_turned_up_when_the_client_switches_interruption_off() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.5))
        detection = TurnDetection(interrupt_response=False)
        line.conversation.update(replace(HELD, turn_detection=detection))
        await line.play(np.concatenate([tone(0.3), silence(0.2)]))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted", "PlaybackRestored", "SpeechStarted"]
        assert not line.conversation._state.is_muted

    talk(scenario, written=(LONG,), step_s=0.0, settings=HELD)


def test_a_response_that_is_asked_for_while_the_agent_is_muted_plays_behind_what_waits() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.5))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted"]
        replying = line.conversation._replying
        earlier = replying._running.reply.playout  # type: ignore[union-attr]
        rest_s = earlier.sent_s - earlier.played_s(line.clock.now())
        line.conversation.add_item(Item("typed", "user", "a large one"))
        line.conversation.create_response()
        await line.clock.settle()
        behind = replying._running.reply.playout  # type: ignore[union-attr]
        assert behind is not earlier and behind.is_held
        line.conversation.clear_audio()
        await line.clock.settle()
        assert not earlier.is_held and not behind.is_held
        assert behind.dry_at() - behind.sent_s - line.clock.now() == pytest.approx(rest_s, abs=0.02)  # type: ignore[operator]

    talk(scenario, heard=("a mocha please", "so"), written=(LONG, "Yes, of course?"), step_s=0.0, settings=HELD)


@pytest.mark.parametrize("can_be_held", [False, True])
def test_a_text_that_is_asked_for_while_the_agent_speaks_leaves_it_audible(can_be_held: bool) -> None:
    text = ResponseOptions(modality="text", in_conversation=False)
    for words, expected in (("uh-huh", "PlaybackRestored"), ("a latte", "SpeechStarted")):

        async def scenario(line: Line, expected: str = expected) -> None:
            await answered(line)
            line.conversation.create_response(text)
            await line.play(silence(0.2))
            assert line.conversation.phase is Phase.SPEAKING
            await line.play(np.concatenate([tone(0.3), silence(0.6)]))
            assert over(line) == ["PlaybackDucked", expected]
            await line.clock.advance(20.0)
            if expected == "PlaybackRestored":
                assert line.conversation.phase is Phase.IDLE and agents_words(line) == [LONG.strip()]
            else:
                assert LONG.startswith(agents_words(line)[0]) and agents_words(line)[0] != LONG.strip()

        settings = replace(HELD, can_be_held=can_be_held)
        talk(scenario, heard=("a mocha please", words), written=(LONG, "ok"), step_s=0.0, settings=settings)


def test_a_text_that_is_asked_for_while_the_agent_is_muted_does_not_lose_what_waits() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.5))
        assert over(line) == ["PlaybackDucked", "PlaybackMuted"]
        first = line.conversation._replying._running.reply.playout  # type: ignore[union-attr]
        line.conversation.create_response(ResponseOptions(modality="text", in_conversation=False))
        await line.clock.advance(2.5)
        assert over(line)[-1] == "PlaybackRestored"
        assert not first.is_held and line.conversation.phase is Phase.SPEAKING
        line.conversation.create_response()
        await line.clock.settle()
        behind = line.conversation._replying._running.reply.playout  # type: ignore[union-attr]
        assert behind.not_before == first.dry_at(), "it waits for what plays, not for the text before it"
        await line.clock.advance(20.0)
        assert line.conversation.phase is Phase.IDLE

    talk(scenario, written=(LONG, "ok", "Yes, of course?"), step_s=0.0, settings=HELD)


def test_a_backchannel_over_what_precedes_the_call_of_a_client_costs_no_answer() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.2))
        line.conversation.create_response()  # With the output of its tool.
        await line.play(silence(1.0))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        await line.clock.advance(20.0)
        assert agents_words(line) == [LONG.strip(), "It is ready."]

    line = talk(scenario, heard=("a mocha please", "uh-huh"), written=(LONG, "It is ready."), step_s=0.1)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"] * 2


def test_keys_that_are_pressed_while_the_agent_plays_and_thinks_are_answered_once_with_all_that_was_asked() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(silence(0.2))
        line.conversation.create_response()
        await line.play(silence(0.05))
        assert line.conversation.phase is Phase.SPEAKING
        line.conversation.hear_text("12")
        await line.clock.advance(20.0)
        assert line.conversation.phase is Phase.IDLE
        assert [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "user"][-1] == "12"

    line = talk(scenario, written=(LONG, "One moment.", "Twelve it is.", "And again."), step_s=0.1)
    assert agents_words(line)[1:] == ["Twelve it is."]


@pytest.mark.parametrize("held_by", ["mute", "phone"])
def test_what_is_still_being_made_has_so_much_more_time_as_the_agent_was_held(held_by: str) -> None:
    async def scenario(line: Line) -> None:
        await heard_so_far(line, is_made=False)
        running = line.conversation._replying._running
        assert running is not None
        playout, before = running.reply.playout, line.of(ResponsePlanned)[-1].plan
        dry_at = playout.dry_at()
        if held_by == "mute":
            await line.play(np.concatenate([tone(0.6), silence(0.4)]))
            assert over(line) == ["PlaybackDucked", "PlaybackMuted", "PlaybackRestored"]
        else:
            line.conversation.hold_playout()
            await line.clock.advance(0.5)
            line.conversation.resume_playout()
        after = running.reply.drafting._plan
        assert before.rest_deadline is not None and after is not None and after.rest_deadline is not None
        moved_s = playout.dry_at() - dry_at  # type: ignore[operator]
        assert moved_s > 0.2 and after.rest_deadline - before.rest_deadline == pytest.approx(moved_s, abs=0.01)

    talk(scenario, heard=("a mocha please", "got", "got it"), written=(LONG,), step_s=3.0, settings=HELD)


@pytest.mark.parametrize("then", ["brought back", "stopped"])
def test_a_queued_reply_that_is_truncated_while_the_one_before_it_is_muted_leaves_that_where_it_was(then: str) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.5))
        first = line.conversation._replying._running.reply.playout  # type: ignore[union-attr]
        line.conversation.create_response()
        await line.clock.settle()
        line.conversation.truncate_item(line.of(ResponseItemStarted)[-1].item.id, 0.0)
        assert line.conversation._replying.echo._held_since is not None
        if then == "stopped":
            await line.play(silence(0.3))
            assert over(line)[-1] == "SpeechStarted"
        else:
            await line.clock.advance(2.5)
            assert over(line)[-1] == "PlaybackRestored"
            await line.clock.advance(first.dry_at() - line.clock.now() - 0.2)  # type: ignore[operator]
            assert line.conversation.phase is Phase.SPEAKING, "the first is still heard"
        assert not first.is_held and line.conversation._replying.echo._held_since is None
        await line.clock.advance(20.0)
        assert line.conversation.phase is (Phase.IDLE if then == "brought back" else Phase.LISTENING)
        names = [getattr(task.get_coro(), "__qualname__", "") for task in line.conversation._tasks._tasks]
        assert "Replying._run" not in names, "nobody waits for the end of what was stopped"

    heard = ("a mocha please", "so", "a latte")
    talk(scenario, heard=heard, written=(LONG, "Yes, of course?"), step_s=0.0, settings=HELD)


def test_who_interrupts_twice_running_stops_both_replies_where_they_were() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([tone(0.8), silence(1.3)]))
        assert line.conversation.phase is Phase.SPEAKING, "the second reply"
        await line.play(np.concatenate([tone(0.8), silence(1.3)]))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"] * 2

    line = talk(scenario, written=(LONG, LONG, "Yes?"), step_s=0.0)
    first, second, third = agents_words(line)
    assert all(kept and LONG.startswith(kept) and kept != LONG.strip() for kept in (first, second))
    assert third == "Yes?"


def test_a_caller_who_speaks_as_the_first_clause_begins_is_heard_at_once() -> None:
    async def scenario(line: Line) -> None:
        await line.play(np.concatenate([tone(0.8), silence(0.2)]))
        while not line.conversation._state.is_audible:
            await line.play(silence(0.02))
        began = line.clock.now()
        while len(line.of(SpeechStarted)) < 2:
            await line.play(tone(0.02))
        assert line.clock.now() - began <= 0.56
        assert over(line) == ["PlaybackDucked", "SpeechStarted"]
        await line.play(silence(1.3))

    line = talk(scenario, written=(LONG, "Yes?"), step_s=0.0)
    assert agents_words(line)[0] in ("", "One"), "in its first second nobody knows whether the agent hears itself"
    assert [turn.text for turn in line.llm.drafts[1].request.turns if turn.role == "user"] == ["a mocha please"] * 2


@pytest.mark.parametrize("in_doubt", [False, True])
@pytest.mark.parametrize("door", ["keys", "Realtime"])
def test_text_that_is_typed_over_the_agent_is_answered_and_the_answer_is_not_turned_down(
    door: str, in_doubt: bool
) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.2) if in_doubt else silence(0.2))
        if door == "keys":
            line.conversation.hear_text("a large one")
        else:
            line.conversation.add_item(Item("typed", "user", "a large one"))
            line.conversation.create_response()
        await line.play(silence(1.0))
        assert not line.conversation._state.is_ducked
        assert over(line).count("PlaybackDucked") - over(line).count("PlaybackRestored") in (0, int(in_doubt))
        await line.play(silence(15.0))

    line = talk(scenario, heard=("a mocha please", ""), written=(LONG, "Yes, of course?"), step_s=0.0)
    first, second = agents_words(line)
    assert second == "Yes, of course?"
    assert (first == LONG.strip()) == (door == "Realtime"), "a response that a client asks for waits for its turn"


# --- what was asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (LONG, "PlaybackRestored"),
        (f"What size would you like? {LONG}", "SpeechStarted"),
        (f"{LONG} What size would you like?", "PlaybackRestored"),
        (f"Would you like {LONG.lower().replace('.', ',')} or more?", "SpeechStarted"),
    ],
    ids=["only tells", "has asked", "will ask later", "is asking"],
)
def test_see_is_a_backchannel_as_long_as_nothing_was_heard_that_asks(written: str, expected: str) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", expected]

    talk(scenario, heard=("a mocha please", "see"), written=(written, "Yes?"), step_s=0.0)


@pytest.mark.parametrize(("written", "stops"), [(LONG, False), (f"What size would you like? {LONG}", True)])
def test_see_that_is_recognised_after_the_agent_is_back_stops_it_only_if_it_had_asked(
    written: str, stops: bool
) -> None:
    gate = asyncio.Event()

    async def scenario(line: Line) -> None:
        gate.set()
        await answered(line)
        gate.clear()
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        gate.set()
        await line.play(silence(0.3))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored", *["SpeechStarted"] * stops]

    talk(scenario, heard=("a mocha please", "see"), written=(written, "Yes?"), step_s=0.0, gate=gate)


@pytest.mark.parametrize(("answers", "expected"), [(False, "SpeechStarted"), (True, "PlaybackRestored")])
def test_a_question_of_an_earlier_reply_is_open_until_the_caller_says_something(answers: bool, expected: str) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(silence(4.0))
        assert line.conversation.phase is Phase.IDLE
        if answers:
            line.conversation.add_item(Item("typed", "user", "a large one"))
        line.conversation.create_response()
        await line.play(silence(1.3))
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", expected]

    talk(scenario, heard=("a mocha please", "see"), written=("What size would you like?", LONG, "Yes?"), step_s=0.0)


def test_over_a_reply_that_is_in_no_history_it_is_not_known_what_was_asked() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(silence(4.0))
        line.conversation.create_response(ResponseOptions(in_conversation=False))
        await line.play(silence(1.3))
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"]

    talk(scenario, heard=("a mocha please", "see"), written=("Sure.", LONG, "Yes?"), step_s=0.0)


def test_an_agent_of_whom_no_word_was_heard_yet_may_have_been_asked_anything() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        while not line.conversation._state.is_audible:
            await line.play(silence(0.02))
        await line.play(tone(0.2))
        assert line.conversation._replying.has_asked()
        await line.play(silence(3.0))
        assert not line.conversation._replying.has_asked()

    talk(scenario, heard=("a mocha please", "uh-huh"), written=("Acknowledgements. " + LONG,), step_s=0.0)
