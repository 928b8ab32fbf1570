from __future__ import annotations

from voiceagent.costs import CostModel, Stage
from voiceagent.foresight import Foresight, Need
from voiceagent.room import READY_AGAIN, STANDS_S, Room


def room(*recognised_s: float, callers: int = 0) -> Room:
    """A machine on which words have taken so long to be known alone, with processors that hold 18 callers."""
    costs = CostModel()
    for seconds in recognised_s:
        costs.observe(Stage.ASR, seconds)
    return Room(costs, Foresight(cores=2.0, guess=Need(0.1, 0.0), callers=callers))


def closes(made: Room, now: float) -> bool:
    """Whether it refuses at the second look, the first having been just before."""
    made.look(now - STANDS_S)
    return made.refusal(now) is not None


# --- words that are not known ---------------------------------------------------------------------------------------------


def test_callers_who_wait_for_their_words_close_the_door_before_they_are_answered() -> None:
    made = room(*[0.1] * 10)
    made.awaited = {"one": 10.0, "another": 10.5}
    assert not closes(made, 11.2), "one has waited for more than a second, the other has not"
    assert closes(made, 11.8)
    refusal = made.refusal(11.9)
    assert refusal is not None and refusal.code == "recogniser_full"
    assert "2 callers have waited for more than 1.0 s" in refusal.reason
    assert len(refusal.reason.encode()) <= 123, "it fits into the close frame of a websocket (RFC 6455, 5.5)"
    del made.awaited["one"]
    assert made.refusal(20.0) is None, "one alone may have met a recogniser that hangs"


def test_a_recogniser_that_always_takes_long_may_take_its_time() -> None:
    made = room(*[0.8] * 10)
    made.awaited = {"one": 10.0, "another": 10.0}
    assert not closes(made, 12.0)
    assert closes(made, 12.7)


def test_words_that_a_held_event_loop_has_not_taken_yet_turn_nobody_away() -> None:
    made = room(*[0.1] * 10)
    made.look(10.0)
    made.awaited = {"one": 10.1, "another": 10.2}
    # For 4 s nothing ran; a new caller's handshake is the first that does.
    assert made.refusal(14.0) is None
    made.awaited = {}
    assert made.refusal(14.1) is None
    made.awaited = {"one": 20.0, "another": 20.0}
    assert made.refusal(24.0) is None, "what was overdue before says nothing about these"
    assert made.refusal(24.0 + STANDS_S) is not None, "nothing held the loop since"


def test_only_what_was_held_between_two_moments_counts() -> None:
    made = room()
    made.lagged(12.0, 2.0)
    made.lagged(12.1, 0.05)
    assert made.held_s(0.0, 20.0) == 2.0, "a loop that is a little late is not held"
    assert made.held_s(11.0, 11.5) == 0.5 and made.held_s(12.0, 20.0) == 0.0 and made.held_s(0.0, 10.0) == 0.0


# --- those who send callers here ------------------------------------------------------------------------------------------


def test_whoever_sends_callers_hears_of_a_full_machine_when_the_next_would_be_refused() -> None:
    made = room(callers=14)
    assert made.unready(0.0) is None and made.refusal(0.0) is None
    made.foresight.callers = 16
    unready = made.unready(0.0)
    assert unready is not None and unready.code == "processors_full" and unready == made.refusal(0.0)


def test_after_that_a_tenth_has_to_be_free_or_they_would_come_and_go() -> None:
    made = room(callers=16)
    assert made.unready(0.0) is not None
    for made.foresight.callers in (15, 14):
        assert made.refusal(0.0) is None, "a caller who comes all the same is let in"
        assert made.unready(0.0) is not None
    made.foresight.callers = 13
    assert made.foresight.fullness(14) < READY_AGAIN and made.unready(0.0) is None
    for made.foresight.callers in (14, 13, 14):
        assert made.unready(0.0) is None, "it is ready until it is full"


def test_an_estimate_that_swings_does_not_make_them_come_and_go() -> None:
    made, answers = room(callers=15), []
    for second in range(40):
        made.foresight.guess = Need(0.1 * (1.02 if second % 2 else 0.99), 0.0)
        answers.append(made.unready(float(second)) is None)
    assert answers == [True] + [False] * 39


def test_an_empty_server_is_ready_however_small_the_machine() -> None:
    made = Room(CostModel(), Foresight(cores=1.0, guess=Need(5.0, 1.0), callers=1))
    assert made.unready(0.0) is not None
    made.foresight.callers = 0
    assert made.unready(0.0) is None


def test_what_closes_the_door_otherwise_is_told_as_well_and_leaves_no_mark() -> None:
    made = room(*[0.1] * 10, callers=14)
    for _ in range(20):
        made.admission.count(1.0, is_crowded=True)
    unready = made.unready(1.0)
    assert unready is not None and unready.code == "engine_full"
    assert made.unready(60.0) is None
