"""Agents that can be held, voices that sound like a hum, and what the agent has asked: what a voice over theirs comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voiceagent.ear import WINDOW, Ear, hear
from voiceagent.barge_in import (
    Action,
    Ask,
    BargeIn,
    BargeInSettings,
    Dismissed,
    Duck,
    Mute,
    Restore,
    Stop,
)

# --- silent first, decided later --------------------------------------------------------------------------------------


def muted(early: str, *, at_the_end: str, voice_s: float = 0.56, hum: float = 0.0) -> tuple[list[Action], BargeIn]:
    """Everything that a voice leads to over an agent that can be held, with these words after 0.26 s and when it has ended."""
    barge_in, said = BargeIn(), []
    for number in range(60):
        probability = 0.95 if number * WINDOW < voice_s * 16_000 else 0.02
        said += hear(barge_in, number, 1, probability, hum=hum, can_be_held=True)
        if isinstance(said[-1] if said else None, Ask):
            is_over = probability < 0.5
            barge_in.answer(said[-1].number, at_the_end if is_over else early)  # type: ignore[union-attr]
    return said, barge_in


def test_voice_that_lasts_mutes_an_agent_that_can_be_held_when_it_would_stop_another_and_stops_it_later() -> None:
    plain, held = Ear(), Ear(can_be_held=True)
    stopped = next(index for index in range(40) if any(isinstance(each, Stop) for each in plain.voice(0.032)))
    said = [held.voice(0.032) for _ in range(40)]
    assert said[stopped] == [Mute(0)]
    stop = next(index for index, each in enumerate(said) if any(isinstance(action, Stop) for action in each))
    assert stop == 24, "0.8 s of voice"
    assert said[stop] == [Stop(0, 25 * WINDOW)], "with all of the voice"


@pytest.mark.parametrize(
    ("text", "comes_back"),
    [
        ("got it", True),
        ("I see, okay", True),
        ("got", False),
        ("got it thanks", False),
        ("stop", False),
        ("", False),
        ("with a", False),
        ("oh a", False),
    ],
)
def test_only_a_backchannel_as_it_was_heard_brings_a_muted_agent_back(text: str, comes_back: bool) -> None:
    said, barge_in = muted("got", at_the_end=text)
    kinds = [type(action) for action in said]
    assert kinds == [Duck, Ask, Mute, Ask, Restore if comes_back else Stop]
    assert not barge_in.is_doubted
    if comes_back:
        assert said[-1] == Restore(Dismissed.BACKCHANNEL)
    else:
        assert said[-1] == Stop(0, 18 * WINDOW), "the turn begins with the voice, and its pause where that ended"


@pytest.mark.parametrize(
    ("text", "hum", "comes_back"),
    [("", 0.9, True), ("with a", 0.7, True), ("a medium", 0.9, True), ("both a medium tea", 0.9, False)]
    + [("", 0.5, False), ("a medium", 0.5, False), ("stop", 0.99, False)],
)
def test_a_muted_agent_comes_back_from_what_surely_sounds_like_a_hum(text: str, hum: float, comes_back: bool) -> None:
    barge_in = BargeIn()
    said = hear(barge_in, 0, 13, 0.95, hum=0.1, can_be_held=True)
    assert isinstance(said[-1], Mute)
    said = hear(barge_in, 13, 5, 0.95, hum=hum, can_be_held=True)
    asks = [each for each in hear(barge_in, 18, 4, 0.02, hum=hum, can_be_held=True) if isinstance(each, Ask)]
    barge_in.answer(asks[-1].number, text)
    (action,) = hear(barge_in, 22, 1, 0.02, can_be_held=True)
    assert type(action) is (Restore if comes_back else Stop)


def test_a_muted_agent_is_stopped_when_the_recogniser_is_late() -> None:
    ear = Ear(can_be_held=True)
    ear.voice(0.56)
    (ask,) = ear.quiet(0.128)
    assert isinstance(ask, Ask)
    (stop,) = ear.quiet(0.5)
    assert isinstance(stop, Stop)
    ear.barge_in.answer(ask.number, "okay")
    assert ear.quiet(0.5) == []


def test_a_muted_agent_is_stopped_by_a_noise_that_stutters_on() -> None:
    ear = Ear(can_be_held=True)
    said = ear.voice(0.448)
    for _ in range(30):
        said += ear.quiet(0.064) + ear.voice(0.032)
    assert [type(action) for action in said][:4] == [Duck, Ask, Mute, Stop]


def test_words_of_a_voice_that_went_on_meanwhile_mute_and_the_whole_decides() -> None:
    for whole, expected in (("all right", Restore), ("all of them", Stop)):
        ear = Ear(can_be_held=True)
        ear.voice(0.224)
        (ask,) = ear.quiet(0.096)
        ear.voice(0.064)
        ear.barge_in.answer(ask.number, "all")  # type: ignore[union-attr]
        assert ear.voice(0.064)[0] == Mute(0), "silent as soon as an agent that cannot be held"
        (ask,) = ear.quiet(0.128)
        ear.barge_in.answer(ask.number, whole)  # type: ignore[union-attr]
        assert [type(action) for action in ear.quiet(0.032)] == [expected]


@pytest.mark.parametrize("can_be_held", [True, False])
def test_words_of_half_a_voice_that_come_when_all_of_it_is_over_are_not_all_of_its_words(can_be_held: bool) -> None:
    for whole, expected in (("okay a latte", Stop), ("okay okay", Restore)):
        ear = Ear(can_be_held=can_be_held)
        ear.voice(0.192)
        (ask,) = ear.quiet(0.128)
        ear.voice(0.192)
        assert ear.quiet(0.096) == []
        ear.barge_in.answer(ask.number, "okay")  # type: ignore[union-attr]
        (ask,) = ear.quiet(0.032)
        assert isinstance(ask, Ask)
        ear.barge_in.answer(ask.number, whole)
        assert [type(action) for action in ear.quiet(0.032)] == [expected]


def test_a_stopping_word_stops_a_muted_agent_though_the_caller_goes_on() -> None:
    ear = Ear(can_be_held=True)
    ear.voice(0.224)
    (ask,) = ear.quiet(0.096)
    ear.voice(0.064)
    ear.barge_in.answer(ask.number, "stop it")  # type: ignore[union-attr]
    assert [type(action) for action in ear.voice(0.032)] == [Stop]


def test_where_a_backchannel_may_last_longer_than_a_drawn_one_nothing_is_muted() -> None:
    ear = Ear(BargeInSettings(backchannel_s=1.0), can_be_held=True)
    assert [type(action) for action in ear.voice(1.2)][:3] == [Duck, Ask, Stop]


# --- words that somebody hears sooner, and somebody else better -------------------------------------------------------


def asked(
    voice_s: float = 0.3, *, can_be_held: bool = True, settings: BargeInSettings | None = None
) -> tuple[Ear, Ask]:
    """A voice over the agent that has just ended, and the question about all of it."""
    ear = Ear(settings, can_be_held=can_be_held)
    ear.voice(voice_s)
    said = ear.quiet(0.128)
    (ask,) = (each for each in said if isinstance(each, Ask))
    return ear, ask


@pytest.mark.parametrize("voice_s", [0.288, 0.512], ids=["ducked", "muted"])
@pytest.mark.parametrize(
    ("first", "better", "expected"),
    [("an ham", "Mm.", Restore), ("receive", "I see.", Restore), ("", "Three.", Stop), ("with a", "Six.", Stop)],
)
def test_words_that_may_be_anything_wait_for_better_ones_which_decide(
    voice_s: float, first: str, better: str, expected: type[Action]
) -> None:
    ear, ask = asked(voice_s)
    assert ask.is_whole
    ear.barge_in.answer(ask.number, first, is_last=False)
    assert ear.quiet(0.096) == []
    ear.barge_in.answer(ask.number, better)
    assert [type(action) for action in ear.quiet(0.032)] == [expected]


@pytest.mark.parametrize("voice_s", [0.288, 0.512], ids=["ducked", "muted"])
@pytest.mark.parametrize(("first", "expected"), [("stop it", Stop), ("mhm", Restore), ("I see okay", Restore)])
def test_words_that_are_plain_wait_for_nobody(voice_s: float, first: str, expected: type[Action]) -> None:
    ear, ask = asked(voice_s)
    ear.barge_in.answer(ask.number, first, is_last=False)
    assert [type(action) for action in ear.quiet(0.032)] == [expected]


def test_better_words_that_come_when_the_agent_is_back_still_stop_it() -> None:
    for better, expected in (("S.", [Stop]), ("Yes.", [])):
        ear, ask = asked()
        ear.barge_in.answer(ask.number, "yes", is_last=False)
        ear.quiet(0.032)
        ear.barge_in.answer(ask.number, better)
        assert [type(action) for action in ear.quiet(0.032)] == expected


def test_late_words_of_a_voice_that_was_taken_for_a_hum_are_not_said_again() -> None:
    for better, expected in (("Then.", []), ("Stop.", [Stop])):
        barge_in = BargeIn()
        hear(barge_in, 0, 9, 0.95, hum=0.9, can_be_held=True)
        (ask,) = (each for each in hear(barge_in, 9, 4, 0.02, hum=0.9, can_be_held=True) if isinstance(each, Ask))
        barge_in.answer(ask.number, "an ham", is_last=False)
        (restore,) = hear(barge_in, 13, 14, 0.02, can_be_held=True)
        assert restore == Restore(Dismissed.BACKCHANNEL)
        barge_in.answer(ask.number, better)
        assert [type(action) for action in hear(barge_in, 27, 1, 0.02, can_be_held=True)] == expected


@pytest.mark.parametrize("voice_s", [0.288, 0.512], ids=["ducked", "muted"])
@pytest.mark.parametrize("first", ["a latte", "an ham", "", "with a", "see", "mhm"])
@pytest.mark.parametrize("hum", [0.0, 0.9])
def test_where_better_words_do_not_come_in_time_the_first_ones_decide_as_if_there_were_no_others(
    voice_s: float, first: str, hum: float
) -> None:
    def outcome(*, is_last: bool) -> tuple[type[Action], int]:
        barge_in, windows = BargeIn(), round(voice_s * 16_000 / WINDOW)
        hear(barge_in, 0, windows, 0.95, hum=hum, can_be_held=True, has_asked=False)
        for number in range(windows, windows + 30):
            for action in hear(barge_in, number, 1, 0.02, hum=hum, can_be_held=True, has_asked=False):
                if not isinstance(action, Ask):
                    return type(action), number - windows
                barge_in.answer(action.number, first, is_last=is_last)
        raise AssertionError("no doubt lasts")

    (alone, soon), (waited, late) = outcome(is_last=True), outcome(is_last=False)
    assert waited is alone
    assert late == soon if first == "mhm" else 12 <= late - soon <= 13, "0.4 s"


def test_first_words_of_half_a_voice_are_none_of_the_whole() -> None:
    ear, ask = asked(0.224)
    ear.voice(0.064)
    ear.barge_in.answer(ask.number, "all", is_last=False)
    assert Mute(0) in ear.voice(0.064), "silent as soon as by the only words"
    said = ear.quiet(0.128)
    assert [type(each) for each in said] == [Ask]
    assert [type(each) for each in ear.quiet(0.5)] == [Stop], "nobody has said what the whole was"


def test_first_words_count_for_nothing_once_the_voice_goes_on() -> None:
    ear, ask = asked(0.224)
    ear.barge_in.answer(ask.number, "a latte", is_last=False)
    assert ear.quiet(0.064) == []
    ear.voice(0.096)
    said = ear.quiet(0.128)
    ear.barge_in.answer(ask.number, "Aha.")
    assert [type(each) for each in (*said, *ear.quiet(0.064))] == [Ask, Restore]


@pytest.mark.parametrize(("left_s", "is_answer"), [(0.3, True), (0.8, False)])
def test_a_yes_that_muted_the_agent_is_an_answer_by_what_the_agent_had_left_to_say(
    left_s: float, is_answer: bool
) -> None:
    ear = Ear(can_be_held=True)
    ear.voice(0.56)
    (ask,) = ear.quiet(0.096)
    ear.barge_in.answer(ask.number, "yes")  # type: ignore[union-attr]
    ear.quiet(0.032)
    ear.quiet(left_s)
    assert bool(ear.quiet(0.032, agent=False)) == is_answer


@given(
    st.lists(st.sampled_from([0.0, 0.4, 0.6, 1.0, 1.0]), max_size=80),
    st.lists(st.sampled_from(["", "okay", "a", "a tea", "stop"]), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_an_agent_that_can_be_held_is_silent_as_soon_as_one_that_cannot_be(
    windows: list[float], words: list[str], late: int, likeness: float
) -> None:
    plain, held = BargeIn(), BargeIn()
    answers: list[tuple[int, int, str]] = []
    for number, probability in enumerate(windows):
        for at, asked, text in answers:
            if at == number:
                plain.answer(asked, text)
                held.answer(asked, text)
        said = hear(plain, number, 1, probability, hum=likeness)
        also = hear(held, number, 1, probability, hum=likeness, can_be_held=True)
        is_stopped = any(isinstance(each, Stop) for each in said)
        assert any(isinstance(each, Mute | Stop) for each in also) == is_stopped, "as soon, and no sooner"
        if is_stopped:
            return
        assert said == also
        answers += [
            (number + late, each.number, words[each.number % len(words)]) for each in said if isinstance(each, Ask)
        ]


# --- by its sound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "level_db", "needed"), [(0.95, -30.0, 1), (0.95, -52.0, 2), (0.3, -30.0, 2)])
def test_one_window_ducks_if_it_is_voice_and_louder_than_the_background(
    probability: float, level_db: float, needed: int
) -> None:
    barge_in = BargeIn()
    hear(barge_in, 0, 10, 0.02, level_db=-58.0)
    said = [hear(barge_in, number, 1, probability, level_db=level_db) for number in (10, 11)]
    assert said.index([Duck(10 * WINDOW)]) == needed - 1


def test_what_only_stirs_ducks_but_is_no_voice() -> None:
    barge_in = BargeIn()
    hear(barge_in, 0, 10, 0.02, level_db=-58.0)
    assert hear(barge_in, 10, 10, 0.3, level_db=-50.0) == [], "hardly louder than the room"
    assert hear(barge_in, 20, 2, 0.3) == [Duck(20 * WINDOW)]
    assert hear(barge_in, 22, 60, 0.3) == [Restore(Dismissed.NO_WORDS)], "and does so once"
    assert len(hear(barge_in, 82, 20, 0.3)) == 2


def test_where_echo_is_possible_one_window_never_ducks() -> None:
    barge_in = BargeIn()
    hear(barge_in, 0, 10, 0.02, level_db=-58.0)
    start = 10 * WINDOW
    said = barge_in.update(0.99, start, start + WINDOW, agent_is_audible=True, level_db=-20.0, is_unsure=True)
    assert said == ()


def test_the_background_is_the_quietest_window_and_creeps_up() -> None:
    barge_in = BargeIn()
    hear(barge_in, 0, 400, 0.02, level_db=-30.0)
    assert hear(barge_in, 400, 1, 0.95, level_db=-25.0) == [], "a loud room"
    hear(barge_in, 401, 5, 0.02, level_db=-60.0)
    assert hear(barge_in, 406, 1, 0.95, level_db=-25.0) == [Duck(406 * WINDOW)]


def test_a_voice_that_sounds_like_a_hum_is_waited_for_as_a_drawn_backchannel_is() -> None:
    for hum, longest in ((0.0, 13), (0.79, 13), (0.8, 25)):
        barge_in = BargeIn()
        at = 0
        while not any(isinstance(each, Stop) for each in hear(barge_in, at, 1, 0.95, hum=hum)):
            at += 1
        assert at + 1 == pytest.approx(longest, abs=1), hum


def test_a_hum_that_turns_into_words_stops_the_agent_with_the_next_window() -> None:
    barge_in = BargeIn()
    hear(barge_in, 0, 16, 0.95, hum=0.9)
    assert barge_in.is_doubted
    (stop,) = hear(barge_in, 16, 1, 0.95, hum=0.1)
    assert isinstance(stop, Stop) and stop.start_sample == 0


def judged(text: str, hum: float, settings: BargeInSettings | None = None, barge_in: BargeIn | None = None) -> Action:
    """What comes of a voice of 0.3 s with these words."""
    barge_in = barge_in or BargeIn(settings)
    at = 0 if barge_in._unheeded is None else barge_in._unheeded // WINDOW + 40
    hear(barge_in, at, 10, 0.95, hum=hum)
    asks = [each for each in hear(barge_in, at + 10, 4, 0.02, hum=hum) if isinstance(each, Ask)]
    barge_in.answer(asks[-1].number, text)
    (action,) = hear(barge_in, at + 14, 1, 0.02)
    return action


def test_words_made_of_a_hum_bring_the_agent_back_and_all_others_stop_it() -> None:
    back = Restore(Dismissed.BACKCHANNEL)
    assert judged("both a medium", 0.9) == back
    for text, hum in (("both a medium", 0.55), ("stop", 0.99), ("a hold", 0.99), ("one more large tea", 0.99)):
        assert isinstance(judged(text, hum), Stop), text
    assert isinstance(judged("do", 0.99, BargeInSettings(hum=1.0)), Stop), "switched off"
    assert isinstance(judged("do", 0.99, BargeInSettings(stopping_words=("do",))), Stop)


def test_what_was_heard_of_half_the_voice_already_is_a_word_unless_nothing_sounds_more_like_a_hum() -> None:
    for hum, early, whole, action in (
        (0.8, "both", "both a medium", Stop),
        (0.8, "", "both a medium", Restore),
        (0.8, "medium", "both a medium", Restore),
        (0.94, "both", "both a medium", Stop),
        (0.95, "both", "both a medium", Restore),
        (0.95, "stop", "stop", Stop),
    ):
        barge_in = BargeIn()
        said = hear(barge_in, 0, 10, 0.95, hum=hum)
        barge_in.answer(next(each.number for each in said if isinstance(each, Ask)), early)
        said = hear(barge_in, 10, 4, 0.02, hum=hum)
        barge_in.answer(next(each.number for each in said if isinstance(each, Ask)), whole)
        (done,) = hear(barge_in, 14, 1, 0.02)
        assert isinstance(done, action), (hum, early)


def test_whoever_says_it_again_is_heard() -> None:
    barge_in = BargeIn()
    assert judged("still", 0.9, barge_in=barge_in) == Restore(Dismissed.BACKCHANNEL)
    assert isinstance(judged("still", 0.9, barge_in=barge_in), Stop)


# --- what was asked ---------------------------------------------------------------------------------------------------


def over_a_teller(
    early: str,
    whole: str,
    *,
    voice: int,
    hum: float = 0.0,
    has_asked: bool = False,
    barge_in: BargeIn | None = None,
    at: int = 0,
) -> list[Action]:
    """All that comes of so many windows of voice with these words, over an agent that can be held and has asked nothing."""
    barge_in, said = barge_in or BargeIn(), []
    for number in range(voice + 20):
        probability = 0.95 if number < voice else 0.02
        new = hear(barge_in, at + number, 1, probability, hum=hum, can_be_held=True, has_asked=has_asked)
        for ask in (each for each in new if isinstance(each, Ask)):
            barge_in.answer(ask.number, early if number < voice else whole)
        said += new
    return said


@pytest.mark.parametrize("voice", [9, 14, 20])
@pytest.mark.parametrize(
    ("text", "is_left"),
    [("see", True), ("Got.", True), ("see you", False), ("see the menu", False), ("see see", False), ("all", False)],
)
def test_what_is_left_of_a_backchannel_is_one_where_nothing_was_asked(text: str, is_left: bool, voice: int) -> None:
    assert over_a_teller("see", text, voice=voice)[-1] == (
        Restore(Dismissed.BACKCHANNEL) if is_left else Stop(0, voice * WINDOW)
    )
    assert isinstance(over_a_teller("see", text, voice=voice, has_asked=True)[-1], Stop)


@pytest.mark.parametrize("voice", [8, 12])
@pytest.mark.parametrize("late", [15, 30])
@pytest.mark.parametrize("has_asked", [False, True])
def test_words_that_come_late_are_judged_by_what_the_agent_had_asked_when_they_were_said(
    has_asked: bool, late: int, voice: int
) -> None:
    barge_in, said = BargeIn(), []
    due = asked = -1
    for number in range(voice + 60):
        # Nobody knows what is asked while nothing is doubted.
        told = has_asked if barge_in.is_doubted else not has_asked
        new = hear(barge_in, number, 1, 0.95 if number < voice else 0.02, has_asked=told)
        for ask in (each for each in new if isinstance(each, Ask) and number >= voice):
            due, asked = number + late, ask.number
        if number == due:
            barge_in.answer(asked, "see")
        said += new
    assert Restore(Dismissed.UNANSWERED) in said
    assert (said[-1] == Stop(0, voice * WINDOW)) is has_asked


def test_what_is_left_of_a_backchannel_follows_from_the_lists_and_holds_nobody_back_for_long() -> None:
    german = BargeIn(BargeInSettings(backchannels=("ach so", "genau"), fragments=("ach",)))
    assert over_a_teller("so", "so", voice=9, barge_in=german)[-1] == Restore(Dismissed.BACKCHANNEL)
    german = BargeIn(BargeInSettings(backchannels=("ach so", "genau"), fragments=("ach",)))
    assert isinstance(over_a_teller("see", "see", voice=9, barge_in=german)[-1], Stop)
    for has_asked, longest in ((True, 13), (False, 15)):
        barge_in, at = BargeIn(), 0
        while not any(isinstance(each, Stop) for each in hear(barge_in, at, 1, 0.95, has_asked=has_asked)):
            at += 1
            if at == 8:
                barge_in.answer(2, "see")
        assert at + 1 == longest, "windows of voice that stop an agent that cannot be held"


def test_a_whole_backchannel_is_waited_for_as_long_where_nothing_was_asked() -> None:
    kinds = [type(each) for each in over_a_teller("okay", "okay", voice=20)]
    assert kinds == [Duck, Ask, Ask, Restore], "without a mute"


@pytest.mark.parametrize(("early", "text", "voice"), [("so", "so", 9), ("see", "see the", 9), ("", "you", 18)])
def test_nothing_else_is_a_backchannel_where_nothing_was_asked(early: str, text: str, voice: int) -> None:
    hum = 0.94 if early else 0.3
    done = over_a_teller(early, text, voice=voice, hum=hum)[-1]
    assert isinstance(done, Stop), "it may have been a stop, or a number"


@given(
    st.lists(st.sampled_from([0.0, 0.4, 0.6, 1.0, 1.0]), max_size=80),
    st.lists(st.sampled_from(["", "okay", "see", "you", "do", "a tea", "stop"]), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    st.booleans(),
)
def test_what_silences_an_agent_that_has_asked_nothing_would_have_silenced_one_that_has(
    windows: list[float], words: list[str], late: int, likeness: float, can_be_held: bool
) -> None:
    asked, teller = BargeIn(), BargeIn()
    answers: list[tuple[int, int, str]] = []
    for number, probability in enumerate(windows):
        for at, ask, text in answers:
            if at == number:
                asked.answer(ask, text)
                teller.answer(ask, text)
        said, also = (
            hear(each, number, 1, probability, hum=likeness, can_be_held=can_be_held, has_asked=has_asked)
            for each, has_asked in ((asked, True), (teller, False))
        )
        if any(isinstance(each, Stop | Mute) for each in said):
            return  # As soon or sooner.
        assert not any(isinstance(each, Stop | Mute) for each in also)
        if any(isinstance(each, Restore) for each in also) and not any(isinstance(each, Restore) for each in said):
            return
        answers += [
            (number + late, each.number, words[each.number % len(words)])
            for each in {*said, *also}
            if isinstance(each, Ask)
        ]
