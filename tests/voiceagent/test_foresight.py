import math
import re

import pytest

from tests.voiceagent.crowd import Costs, Crowd
from voiceagent.foresight import (
    CEILING,
    DEVIATIONS,
    MEMORY_S,
    REPLY_ON_PROCESSORS,
    ROOMY,
    SETTLED,
    Foresight,
    Need,
)

TARGET_S = 0.6
GUESS = REPLY_ON_PROCESSORS + Need(mean=0.035, variance=0.005)
"""With PocketSphinx's."""


def told(foresight: Foresight, *busy_s: float, callers: int, start: float = 0.0) -> float:
    """A second each in which so much was needed, with so many callers throughout. Returns when it is over."""
    foresight.callers, worked_s = callers, 0.0
    foresight.read(start, worked_s)
    for seconds in busy_s:
        start, worked_s = start + 1.0, worked_s + seconds
        foresight.read(start, worked_s)
    return start


def crowd(
    arrivals: list[float], until: float, *, seed: int, foresight: Foresight | None, costs: Costs | None = None
) -> Crowd:
    """Callers at a machine of two cores, behind the door where there is one."""

    def admits(callers: int) -> bool:
        if foresight is None:
            return True
        foresight.callers = callers
        return foresight.refusal() is None

    def read(now: float, worked_s: float, callers: int) -> None:
        if foresight is not None:
            foresight.callers = callers
            foresight.read(now, worked_s)

    made = Crowd(2, admits=admits, read=read, costs=costs, seed=seed)
    made.run(arrivals, until)
    return made


# --- on a machine with callers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("over_s", "let_in"), [(120.0, 13), (40.0, 11), (6.0, 11), (0.5, 11)])
def test_callers_are_let_in_up_to_what_the_machine_holds_however_fast_they_come(
    over_s: float, let_in: int, seed: int
) -> None:
    arrivals = [over_s * number / 28 for number in range(28)]
    door = Foresight(cores=2.0, guess=GUESS)
    behind_it = crowd(arrivals, over_s + 40.0, seed=seed, foresight=door)
    assert behind_it.refused
    assert behind_it.on_time(TARGET_S, since=0.0) >= 0.95
    assert len(behind_it.callers) >= let_in, "no more are turned away than have to be: some 17 would just be on time"
    without = crowd(arrivals, over_s + 40.0, seed=seed, foresight=None)
    assert without.on_time(TARGET_S, since=over_s) < 0.8


def test_the_same_callers_are_more_where_each_needs_less() -> None:
    arrivals = [float(number) for number in range(40)]
    plain, cheap = (
        crowd(arrivals, 60.0, seed=1, foresight=Foresight(cores=2.0, guess=GUESS), costs=costs)
        for costs in (Costs(), Costs(speech=0.05, reply=0.03, rest=0.03))
    )
    assert len(cheap.callers) > 1.4 * len(plain.callers)
    assert cheap.on_time(TARGET_S, since=0.0) >= 0.95


def test_eight_callers_beside_a_load_generator_that_has_just_started_are_all_let_in() -> None:
    for seed in range(1, 5):
        door, others_s = Foresight(cores=2.0, guess=GUESS), 0.0
        for second in range(-8, 0):
            others_s += 1.0
            door.read(float(second), 0.0, others_s)

        def admits(callers: int, door: Foresight = door) -> bool:
            door.callers = callers
            return door.refusal() is None

        def read(now: float, worked_s: float, callers: int, door: Foresight = door, begun_s: float = others_s) -> None:
            door.callers = callers
            door.read(now, worked_s, begun_s + 0.25 * now)

        made = Crowd(2, admits=admits, read=read, seed=seed)
        made.run([2.5 * number for number in range(8)], 60.0)
        assert not made.refused, "they need 0.6 cores of 2"


def test_who_leaves_makes_room_for_another() -> None:
    foresight = Foresight(cores=2.0)
    told(foresight, *[1.2] * 30, callers=12)
    assert foresight.refusal() is None
    foresight.callers = 18
    assert foresight.refusal() is not None
    foresight.callers = 12
    assert foresight.refusal() is None


# --- what is learned ------------------------------------------------------------------------------------------------------


def test_a_caller_needs_the_mean_and_varies_by_their_share_of_what_all_vary() -> None:
    foresight = Foresight(cores=2.0)
    told(foresight, *[0.4, 0.8] * 200, callers=10)
    need = foresight.need
    assert need is not None
    assert need.mean == pytest.approx(0.06, rel=0.02)
    assert need.variance == pytest.approx(0.2**2 / 10, rel=0.05)
    assert need.of(20) == pytest.approx(20 * need.mean + DEVIATIONS * math.sqrt(20 * need.variance))


def test_nobody_is_refused_before_anything_is_known_unless_there_is_a_guess() -> None:
    foresight = Foresight(cores=2.0, callers=500)
    assert foresight.need is None and foresight.refusal() is None and foresight.room() == 1.0
    guessing = Foresight(cores=2.0, guess=Need(0.1, 0.01), callers=500)
    assert guessing.refusal() is not None and guessing.room() == 0.0


def test_a_guess_gives_way_to_what_is_seen() -> None:
    foresight = Foresight(cores=2.0, guess=Need(0.5, 0.0))
    told(foresight, *[0.5] * (SETTLED + 6), callers=10)
    need = foresight.need
    assert need is not None and 0.2 < need.mean < 0.3, "about a minute of callers each"
    assert need.variance < 0.001, "a guess that is far off is no sign of callers who vary"
    told(foresight, *[0.5] * round(4 * MEMORY_S), callers=10)
    need = foresight.need
    assert need is not None and need.mean == pytest.approx(0.05, rel=0.1), "it has faded"


def test_callers_who_have_just_come_do_not_teach_that_callers_need_nothing() -> None:
    foresight = Foresight(cores=2.0)
    end = told(foresight, *[0.2] * 60, callers=2)
    worked_s = foresight._worked_s
    foresight.callers = 12
    for second in range(1, 1 + SETTLED):
        foresight.read(end + second, worked_s + 0.2 * second)
        assert foresight.need is not None and foresight.need.mean == pytest.approx(0.1, rel=0.01)
    for second in range(1 + SETTLED, 60):
        foresight.read(end + second, worked_s + 0.2 * second)
    assert foresight.need is not None and foresight.need.mean < 0.03, "they need no more now"


def test_callers_who_come_one_after_the_other_seem_to_need_no_more_than_they_do() -> None:
    foresight, worked_s = Foresight(cores=2.0, guess=Need(0.1, 0.0)), 0.0
    for second in range(40):
        foresight.callers = 1 + second // 2
        worked_s += 0.1 * foresight.callers
        foresight.read(float(second), worked_s)
        assert foresight.need is not None and foresight.need.mean < 0.13, second


def test_an_old_need_is_forgotten_while_callers_are_there_and_kept_while_nobody_is() -> None:
    foresight = Foresight(cores=2.0)
    end = told(foresight, *[1.0] * 60, callers=10)
    end = told(foresight, *[0.0] * 600, callers=0, start=end)
    need = foresight.need
    assert need is not None and need.mean == pytest.approx(0.1, rel=0.1)
    told(foresight, *[0.2] * round(4 * MEMORY_S), callers=10, start=end)
    need = foresight.need
    assert need is not None and need.mean == pytest.approx(0.02, rel=0.1)


def test_a_machine_without_a_number_of_cores_and_a_first_caller_are_never_refused() -> None:
    foresight = Foresight(cores=None)
    told(foresight, *[5.0] * 60, callers=50)
    assert foresight.refusal() is None and foresight.room() == 1.0 and foresight.free == math.inf
    tiny = Foresight(cores=1.0, guess=Need(5.0, 1.0))
    assert tiny.refusal() is None
    tiny.callers = 1
    assert tiny.refusal() is not None


def test_readings_that_do_not_move_on_or_go_back_do_no_harm() -> None:
    foresight = Foresight(cores=2.0)
    end = told(foresight, *[1.0] * 30, callers=10)
    foresight.read(end, 0.0)
    foresight.read(end - 5.0, 3.0)
    foresight.read(end + 1.0, 0.0)
    need = foresight.need
    assert need is not None and 0.0 <= need.mean < 0.11 and need.variance >= 0.0
    foresight.read(end + 600.0, 600.0)
    assert foresight.need == need, "nobody knows who was there meanwhile"


@pytest.mark.parametrize("callers", [1, 2, 4])
def test_a_caller_whose_message_holds_the_event_loop_does_not_make_everybody_seem_to_need_as_much(callers: int) -> None:
    for held_s in (0.5, 1.0, 2.0, 3.0, 4.0, 8.0):
        foresight = Foresight(cores=2.0, guess=GUESS)
        end = told(foresight, *[0.075 * callers] * 60, callers=callers)
        # While it lasts nothing is read, and a whole processor is busy.
        foresight.read(end + 1.0 + held_s, 0.075 * callers * 61 + held_s)
        assert foresight.refusal() is None, f"held for {held_s} s"


def test_the_reason_tells_what_would_be_needed_and_what_there_is() -> None:
    foresight = Foresight(cores=2.0)
    told(foresight, *[1.3] * 60, callers=13)
    foresight.callers = 18
    reason = foresight.refusal()
    assert reason is not None
    needed, allowed, free = (float(number) for number in re.findall(r"\d+\.\d\d", reason))
    assert needed > allowed, "both sides of what was compared"
    assert (needed, allowed, free) == pytest.approx((foresight.need.of(19), CEILING * 2.0, 2.0), abs=0.005)
    assert reason.startswith("the processors are full: 19 callers would at times need ")
    assert len(reason.encode()) <= 123, "it fits into the close frame of a websocket (RFC 6455, 5.5)"


# --- what others take -----------------------------------------------------------------------------------------------------


def test_what_other_programs_take_is_not_there_for_callers_and_comes_back() -> None:
    foresight = Foresight(cores=2.0, guess=Need(0.1, 0.0), callers=10)

    def pass_by(start: float, seconds: int, others: float) -> float:
        taken_s = foresight._others_s
        for second in range(1, seconds + 1):
            foresight.read(start + second, 1.0 * (start + second), taken_s + others * second)
        return start + seconds

    foresight.read(0.0, 0.0, 0.0)
    assert foresight.refusal() is None
    end = pass_by(0.0, 40, 1.0)
    assert foresight.free == pytest.approx(1.0, abs=0.05)
    assert f"of {foresight.free:.2f} free" in (foresight.refusal() or "")
    assert foresight.room() == 0.0, "those who are there get the fewest steps"
    end = pass_by(end, 40, 2.0)
    assert foresight.free == 1.0, "processors are shared"
    foresight.callers = 5
    assert foresight.refusal() is None, "a few callers are not turned away for it"
    foresight.callers = 10
    pass_by(end, 60, 0.0)
    assert foresight.refusal() is None and foresight.free == pytest.approx(2.0, abs=0.05)


def test_a_set_of_processors_that_changes_is_not_what_others_took() -> None:
    foresight = Foresight(cores=2.0, callers=5)
    for second in range(10):
        foresight.read(float(second), 0.0, 0.1 * second)
    foresight.read(10.0, 0.0, 90_000.0)
    for second in range(11, 50):
        foresight.read(float(second), 0.0, 90_000.0 + 0.1 * (second - 10))
    assert foresight.free > 1.8


def test_a_server_that_gives_way_to_others_has_only_what_they_leave() -> None:
    foresight = Foresight(cores=2.0, guess=Need(0.1, 0.0), callers=4, least_free=0.1)
    for second in range(60):
        foresight.read(float(second), 0.4 * second, 2.0 * second)
    assert foresight.free == pytest.approx(0.2)
    assert foresight.refusal() is not None


# --- a quota --------------------------------------------------------------------------------------------------------------


def test_a_quota_bounds_what_is_free_however_many_processors_there_are() -> None:
    foresight = Foresight(cores=64.0, guess=Need(0.1, 0.0), quota=1.0, callers=7)
    assert foresight.free == 1.0 and foresight.refusal() is None
    foresight.callers = 8
    assert "of 1.00 free" in (foresight.refusal() or "")
    for second in range(60):
        foresight.read(float(second), 0.0, 40.0 * second)
    assert foresight.free == 1.0, "what others take elsewhere is no part of it"


def test_others_under_the_same_quota_take_of_it() -> None:
    foresight = Foresight(cores=64.0, quota=2.0)
    for second in range(60):
        foresight.read(float(second), 0.0, mates_s=0.5 * second)
    assert foresight.free == pytest.approx(1.5, abs=0.01)


def test_a_second_in_which_the_quota_held_everybody_still_counts_twice() -> None:
    def need(held: float) -> Need:
        foresight = Foresight(cores=64.0, quota=2.0, callers=10)
        for second in range(200):
            foresight.read(float(second), 1.0 * second, held_s=held * second)
        assert foresight.need is not None
        return foresight.need

    assert need(0.0).mean == pytest.approx(0.1)
    assert need(0.5).mean == pytest.approx(0.15)
    assert need(1.0).mean == need(7.0).mean == pytest.approx(0.2), "there are no more periods than all"


def test_work_that_is_told_late_is_others_for_a_moment_only() -> None:
    foresight = Foresight(cores=2.0, callers=5)
    for second in range(60):
        late_s = 0.1 * (second % 2)
        foresight.read(float(second), 0.5 * second - late_s, late_s)
    assert 1.9 <= foresight.free <= 2.0


# --- fewer steps before that ----------------------------------------------------------------------------------------------


def test_steps_shrink_before_anybody_is_refused() -> None:
    foresight = Foresight(cores=2.0)
    told(foresight, *[1.0] * 60, callers=10)
    roomy = next(n for n in range(1, 99) if foresight.fullness(n) > ROOMY)
    full = next(n for n in range(1, 99) if foresight.fullness(n) > 1.0)
    assert full in (16, 17) and roomy < full, "0.8 of two cores, a tenth of a core each"
    rooms = []
    for foresight.callers in range(1, full + 1):
        rooms.append(foresight.room())
    assert rooms[: roomy - 1] == [1.0] * (roomy - 1) and rooms[-1] == 0.0
    assert rooms == sorted(rooms, reverse=True) and 0.0 < rooms[full - 3] < 0.5
