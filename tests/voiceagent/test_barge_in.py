"""Voice over the agent's, judged window by window: all times are samples, nothing is heard."""

from __future__ import annotations

from dataclasses import replace

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
    Origin,
    Restore,
    Stop,
    is_backchannel,
)


def test_voice_ducks_within_two_windows_and_stops_the_agent_when_it_goes_on() -> None:
    ear = Ear()
    ear.quiet(0.32)
    assert ear.voice(0.064) == [Duck(10 * WINDOW)]
    (ask,) = ear.voice(0.32)
    assert isinstance(ask, Ask)
    (stop,) = ear.voice(0.032)
    assert isinstance(stop, Stop)
    assert stop.start_sample == 10 * WINDOW
    assert (stop.voice_end_sample - stop.start_sample) / 16_000 <= 0.42
    assert not ear.barge_in.is_watching


def test_words_of_a_voice_that_goes_on_can_only_hold_the_stop_back() -> None:
    for text, longest_s in (("oh", 0.8), ("okay a", 0.8), ("can", 0.4), ("", 0.46), ("with a", 0.46)):
        ear = Ear()
        _, ask = ear.voice(0.256)
        assert isinstance(ask, Ask)
        ear.barge_in.answer(ask.number, text)
        voiced_s = 0.256
        while not (said := ear.voice(0.032)):
            voiced_s += 0.032
        assert isinstance(said[0], Stop)
        assert voiced_s == pytest.approx(longest_s, abs=0.033), text


@pytest.mark.parametrize("text", ["stop", "no no", "Wait,"])
def test_a_stopping_word_stops_while_the_voice_goes_on(text: str) -> None:
    ear = Ear()
    _, ask = ear.voice(0.256)
    assert isinstance(ask, Ask)
    ear.barge_in.answer(ask.number, text)
    assert ear.voice(0.032) == [Stop(0, 8 * WINDOW)]


def test_a_stopping_word_in_a_voice_that_sounds_like_a_hum_waits_until_it_does_not() -> None:
    barge_in = BargeIn()
    ask = hear(barge_in, 0, 8, 0.95)[-1]
    assert isinstance(ask, Ask)
    assert barge_in.listens_from(8 * WINDOW, 9 * WINDOW) is None
    barge_in.answer(ask.number, "no")
    assert barge_in.listens_from(8 * WINDOW, 9 * WINDOW) == 0, "its sound is wanted with its words"
    assert hear(barge_in, 8, 1, 0.95, hum=0.8) == []
    assert barge_in.listens_from(9 * WINDOW, 10 * WINDOW) == 0
    assert hear(barge_in, 9, 1, 0.95, hum=0.3) == [Stop(0, 9 * WINDOW)]


def test_a_drawn_out_backchannel_is_asked_about_again_at_its_end() -> None:
    ear = Ear()
    _, early = ear.voice(0.256)
    assert isinstance(early, Ask)
    ear.barge_in.answer(early.number, "okay")
    ear.voice(0.32)
    (ask,) = ear.quiet(0.096)
    assert isinstance(ask, Ask) and ask.number != early.number
    ear.barge_in.answer(ask.number, "okay")
    assert ear.quiet(0.032) == [Restore(Dismissed.BACKCHANNEL)]


def test_one_window_of_noise_does_nothing() -> None:
    ear = Ear()
    for _ in range(10):
        assert ear.voice(0.032) + ear.quiet(0.096) == []


def test_voice_that_ends_soon_is_asked_about_and_its_words_decide() -> None:
    for text, expected in (
        ("uh-huh", Restore(Dismissed.BACKCHANNEL)),
        ("Okay, right.", Restore(Dismissed.BACKCHANNEL)),
        ("", Restore(Dismissed.NO_WORDS)),
        ("with a", Restore(Dismissed.NO_WORDS)),
        ("a tea", Stop(0, 7 * WINDOW)),
        ("stop", Stop(0, 7 * WINDOW)),
        ("okay but I want", Stop(0, 7 * WINDOW)),
    ):
        ear = Ear()
        assert ear.voice(0.224) == [Duck(0)]
        (ask,) = ear.quiet(0.128)
        assert isinstance(ask, Ask) and ask.start_sample == 0
        ear.barge_in.answer(ask.number, text)
        assert ear.quiet(0.032) == [expected]
        assert ear.quiet(1.0) == []


def test_words_that_do_not_come_bring_the_agent_back_and_may_stop_it_later() -> None:
    ear = Ear()
    ear.voice(0.224)
    (ask,) = ear.quiet(0.128)
    assert isinstance(ask, Ask)
    assert ear.quiet(0.5) == [Restore(Dismissed.UNANSWERED)]
    ear.barge_in.answer(ask.number, "wait")
    assert ear.quiet(0.032) == [Stop(0, 7 * WINDOW)]


def test_of_words_that_come_late_the_first_stop_the_agent_only_where_they_are_there_for_it() -> None:
    for text, is_stopped in (("in the game", False), ("wait", True)):
        ear = Ear()
        ear.voice(0.224)
        (ask,) = ear.quiet(0.128)
        assert isinstance(ask, Ask)
        assert ear.quiet(0.5) == [Restore(Dismissed.UNANSWERED)]
        ear.barge_in.answer(ask.number, text, is_last=False)
        assert ear.quiet(0.032) == ([Stop(0, 7 * WINDOW)] if is_stopped else [])
        if not is_stopped:
            ear.barge_in.answer(ask.number, text)
            assert ear.quiet(0.032) == [Stop(0, 7 * WINDOW)], "and the last ones do"


def test_words_that_come_much_too_late_or_of_another_voice_change_nothing() -> None:
    ear = Ear()
    ear.voice(0.224)
    (ask,) = ear.quiet(0.128)
    assert isinstance(ask, Ask)
    ear.quiet(3.0)
    ear.barge_in.answer(ask.number, "wait")
    assert ear.quiet(0.1) == []
    assert ear.voice(0.224)[0] == Duck((ear.windows - 7) * WINDOW)
    ear.barge_in.answer(ask.number, "wait")
    assert ear.quiet(0.064) == []


def test_words_of_a_voice_that_went_on_meanwhile_are_not_all_of_it() -> None:
    ear = Ear()
    ear.voice(0.16)
    (ask,) = ear.quiet(0.096)
    assert isinstance(ask, Ask)
    ear.voice(0.096)
    ear.barge_in.answer(ask.number, "okay")
    assert ear.voice(0.032) == []
    again = ear.quiet(0.128)
    assert again == [ask], "the whole voice is asked about again"


def test_two_short_voices_with_a_gap_between_count_together() -> None:
    ear = Ear()
    said = ear.voice(0.224) + ear.quiet(0.064) + ear.voice(0.192)
    assert [type(action) for action in said] == [Duck, Ask, Stop]


def test_once_the_agent_has_ended_nothing_is_a_backchannel() -> None:
    ear = Ear()
    ear.voice(0.16)
    assert ear.voice(0.032, agent=False) == [Stop(0, 5 * WINDOW)], "what was in doubt is the caller's turn"
    ear = Ear()
    ear.voice(0.224)
    (ask,) = ear.quiet(0.128)
    assert isinstance(ask, Ask)
    ear.barge_in.answer(ask.number, "yes")
    assert ear.quiet(0.032) == [Restore(Dismissed.BACKCHANNEL)]
    assert ear.quiet(0.096, agent=False) == [Stop(0, 7 * WINDOW)], "yes, to a question that had hardly been asked"
    ear = Ear()
    ear.voice(0.224)
    ear.quiet(2.0)
    assert ear.quiet(0.5, agent=False) == [], "that was long before"
    assert not ear.barge_in.is_watching


def test_a_click_at_the_agents_last_word_is_no_turn() -> None:
    ear = Ear()
    ear.voice(0.064)
    assert ear.quiet(0.032, agent=False) == [Restore(Dismissed.NO_WORDS)]


def test_a_stutter_of_noise_does_not_keep_the_agent_down() -> None:
    ear = Ear()
    said: list[Action] = []
    for _ in range(60):
        said += ear.voice(0.032) + ear.quiet(0.064)
    restores = [action for action in said if isinstance(action, Restore)]
    assert restores or not any(isinstance(action, Duck) for action in said)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.6, 1.0]), st.booleans()), max_size=150),
    st.integers(0, 150),
    st.sampled_from(["okay", "", "a tea"]),
    st.booleans(),
)
def test_every_duck_is_followed_by_a_stop_or_a_restore_within_a_second(
    windows: list[tuple[float, bool]], answered: int, words: str, can_be_held: bool
) -> None:
    barge_in, ducked_at, asked, mutes = BargeIn(), None, 0, 0
    for number, (probability, agent) in enumerate(windows):
        if asked and number == answered:
            barge_in.answer(asked, words)
        for action in barge_in.update(
            probability, number * 512, number * 512 + 512, agent_is_audible=agent, can_be_held=can_be_held
        ):
            match action:
                case Mute():
                    assert ducked_at is not None and can_be_held and not mutes
                    mutes += 1
                case Duck(start_sample=start):
                    assert ducked_at is None and start <= number * 512
                    ducked_at = number
                case Ask(number=asked):
                    assert ducked_at is not None
                case Stop(start_sample=start, voice_end_sample=end):
                    assert start < end <= number * 512 + 512
                    ducked_at, mutes = None, 0
                case Restore():
                    assert ducked_at is not None
                    ducked_at, mutes = None, 0
        assert barge_in.is_doubted == (ducked_at is not None)
        assert ducked_at is None or (number - ducked_at) * 0.032 < 1.5


def test_voice_that_echo_explains_is_nobodys() -> None:
    ear = Ear()
    assert ear.hear(2.0, 0.95, origin=Origin.AGENT, comes_back=True) == []
    assert ear.voice(0.16) == [], "where there is echo, what it does not explain for a moment is no caller"
    assert ear.voice(0.032) == [Duck(62 * WINDOW)]
    assert [type(action) for action in ear.voice(0.256)] == [Ask, Stop]


def test_a_doubt_from_before_the_echo_was_known_ends_when_it_is() -> None:
    ear = Ear()
    assert ear.hear(0.16, 0.95, is_unsure=True) == []
    assert ear.hear(0.064, 0.95, is_unsure=True) == [Duck(0)]
    assert ear.hear(0.096, 0.95, origin=Origin.AGENT, comes_back=True) == [Restore(Dismissed.ECHO)]
    assert ear.quiet(0.064, agent=False) == [], "and is no answer to anything"


def test_a_voice_that_cannot_be_the_agents_ducks_within_two_windows_where_there_is_echo() -> None:
    ear = Ear()
    ear.hear(1.0, 0.95, origin=Origin.AGENT, comes_back=True)
    assert ear.hear(0.032, 0.95, origin=Origin.CALLER, comes_back=True) == []
    assert ear.hear(0.032, 0.02, origin=Origin.CALLER, comes_back=True) == [], "what is no voice counts for nothing"
    assert ear.hear(0.032, 0.95, origin=Origin.CALLER, comes_back=True) == [Duck(31 * WINDOW)]


def test_what_was_heard_before_the_echo_was_known_does_not_duck_afterwards() -> None:
    ear = Ear()
    assert ear.hear(0.16, 0.95, is_unsure=True) == []
    assert ear.hear(0.16, 0.95, is_unsure=True, comes_back=True) == []
    assert ear.hear(0.032, 0.95, is_unsure=True, comes_back=True) == [Duck(0)], (
        "what is not explained for long enough does"
    )


def test_a_doubt_that_nothing_of_the_agents_explains_does_not_end_as_echo() -> None:
    ear = Ear()
    ear.hear(0.224, 0.95, is_unsure=True)
    assert isinstance(ear.hear(0.096, 0.02, comes_back=True)[0], Ask), "the echo may be elsewhere"


@pytest.mark.parametrize(("between", "windows"), [(Origin.CALLER, 13), (Origin.AGENT, 13), (Origin.UNKNOWN, 13)])
def test_speech_that_the_agents_own_covers_between_two_moments_of_the_callers_is_the_callers(
    between: Origin, windows: int
) -> None:
    ear = Ear()
    stops: list[int] = []
    for number in range(16):
        origin = between if number % 3 == 1 else Origin.CALLER
        if any(isinstance(each, Stop) for each in ear.hear(0.032, 0.95, origin=origin, comes_back=True)):
            stops.append(number + 1)
    assert stops[0] == pytest.approx(windows, abs=1)


def test_speech_that_the_agents_own_covers_counts_for_nobody_unless_the_caller_goes_on() -> None:
    ear = Ear()
    ear.hear(0.288, 0.95, origin=Origin.CALLER, comes_back=True)
    for _ in range(6):
        said = ear.hear(0.064, 0.95, origin=Origin.AGENT, comes_back=True)
        said += ear.hear(0.032, 0.95, origin=Origin.UNKNOWN, comes_back=True)
        if any(isinstance(each, Stop) for each in said):
            break
    assert ear.windows >= 9 + 4 * 3, "four windows of unknown voice on top of nine"


def test_a_word_over_echo_is_asked_about() -> None:
    ear = Ear()
    ear.hear(1.0, 0.95, origin=Origin.AGENT, comes_back=True)
    assert isinstance(ear.voice(0.256)[0], Duck)
    assert isinstance(ear.hear(0.128, 0.95, origin=Origin.AGENT, comes_back=True)[0], Ask)


@pytest.mark.parametrize(
    ("clear_s", "unknown_s", "after", "text", "action"),
    [
        (0.064, 0.16, Origin.AGENT, "they're shot", Restore(Dismissed.ECHO)),
        (0.064, 0.16, Origin.AGENT, "", Restore(Dismissed.ECHO)),
        (0.064, 0.16, Origin.AGENT, "please stop", Stop),
        (0.128, 0.096, Origin.AGENT, "they're shot", Stop),
        (0.064, 0.416, Origin.AGENT, "they're shot", Stop),
        (0.064, 0.16, Origin.UNKNOWN, "they're shot", Stop),
    ],
    ids=["words", "no words", "stopping word", "stands out", "goes on beside the ducked agent", "nothing explained"],
)
def test_words_of_a_voice_that_ends_as_the_agent_is_turned_down_and_is_the_agents_from_there_are_the_agents(
    clear_s: float, unknown_s: float, after: Origin, text: str, action: Restore | type[Stop]
) -> None:
    ear = Ear(can_be_held=True)
    ear.hear(1.0, 0.95, origin=Origin.AGENT, comes_back=True)
    said = ear.hear(clear_s, 0.95, origin=Origin.CALLER, comes_back=True)
    assert isinstance(said[0], Duck)
    said += ear.hear(unknown_s, 0.95, comes_back=True)
    said += ear.hear(0.128, 0.95 if after is Origin.AGENT else 0.02, origin=after, comes_back=True)
    asked = [each for each in said if isinstance(each, Ask)][-1]
    ear.barge_in.answer(asked.number, text)
    found = ear.hear(0.032, 0.95, origin=Origin.AGENT, comes_back=True)
    assert found == [action] if isinstance(action, Restore) else [type(each) for each in found] == [action]


def test_a_stopping_word_stops_at_once_only_where_it_cannot_be_the_agents_greeting() -> None:
    """An agent that says "Hello, what can I get you?" to an open microphone hears it before it knows its echo."""
    for is_unsure, comes_back, stops in ((True, False, False), (False, True, False), (False, False, True)):
        ear = Ear()
        said = ear.hear(0.288, 0.95, is_unsure=True)
        asked = [each for each in said if isinstance(each, Ask)][-1]
        ear.barge_in.answer(asked.number, "hello")
        found = ear.hear(0.032, 0.95, is_unsure=is_unsure, comes_back=comes_back)
        assert [type(each) for each in found] == ([Stop] if stops else [])


def test_voice_too_short_for_a_word_is_not_asked_about() -> None:
    ear = Ear()
    assert isinstance(ear.voice(0.096)[0], Duck)
    assert ear.quiet(0.128) == [Restore(Dismissed.NO_WORDS)]


def test_backchannels_are_found_whatever_their_spelling_and_number() -> None:
    for text in ("Uh-huh.", "uh huh", "mhm mhm", "I see, okay", "All right"):
        assert is_backchannel(text)
    for text in ("", "no", "okay no", "I saw", "right there"):
        assert not is_backchannel(text)
    assert is_backchannel("genau", ("genau",)) and not is_backchannel("okay", ("genau",))


@pytest.mark.parametrize(
    "change", [{"threshold": 1.0}, {"hysteresis": -0.1}, {"duck_s": -1.0}, {"wait_s": 6.0}, {"hum": 0.0}]
)
def test_settings_out_of_range_are_named(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(BargeInSettings(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("left_s", "is_answer"), [(0.5, True), (1.2, False)])
@pytest.mark.parametrize("is_held", [False, True])
def test_a_backchannel_is_an_answer_by_what_the_agent_had_left_to_say_held_or_not(
    left_s: float, is_answer: bool, is_held: bool
) -> None:
    ear = Ear()
    ear.quiet(0.32)
    ear.voice(0.064)
    doubted_at = ear.windows
    if is_held:
        ear.barge_in.hold()
    ear.voice(0.192)
    asks = [action for action in ear.quiet(0.096) if isinstance(action, Ask)]
    ear.barge_in.answer(asks[-1].number, "yes")
    assert ear.quiet(0.032) == [Restore(Dismissed.BACKCHANNEL)]
    said_meanwhile_s = 0.0 if is_held else (ear.windows - doubted_at) * WINDOW / 16_000
    assert ear.quiet(left_s - said_meanwhile_s) == []
    ended = ear.quiet(0.032, agent=False)
    assert [type(action) for action in ended] == ([Stop] if is_answer else [])


def test_a_hold_counts_for_its_own_doubt_only() -> None:
    ear = Ear()
    ear.barge_in.hold()
    ear.voice(0.192)
    asks = [action for action in ear.quiet(0.096) if isinstance(action, Ask)]
    ear.barge_in.answer(asks[-1].number, "yes")
    assert ear.quiet(0.032) == [Restore(Dismissed.BACKCHANNEL)]
    ear.quiet(0.416)
    assert ear.quiet(0.032, agent=False) == [], "nobody was held: the voice ended more than 0.5 s before the agent"


@pytest.mark.parametrize("backchannel_s", [1.0, 2.0])
def test_a_pause_in_long_voice_is_asked_about_however_long_a_backchannel_may_be(backchannel_s: float) -> None:
    ear = Ear(BargeInSettings(backchannel_s=backchannel_s))
    ear.voice(min(1.4, backchannel_s - 0.1))
    asks = [action for action in ear.quiet(0.096) if isinstance(action, Ask)]
    assert len(asks) == 1
    ear.barge_in.answer(asks[0].number, "i would like to change that")
    assert [type(action) for action in ear.quiet(0.032)] == [Stop]
