"""Voice over the agent's, judged window by window: all times are samples, nothing is heard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

WINDOW = 512


class Ear:
    """Feeds windows to a `BargeIn`."""

    def __init__(self, settings: BargeInSettings | None = None, *, can_be_held: bool = False) -> None:
        self.barge_in = BargeIn(settings)
        self.can_be_held = can_be_held
        self.windows = 0

    def hear(self, seconds: float, probability: float, *, agent: bool = True, **echo: Any) -> list[Action]:
        new: list[Action] = []
        for _ in range(round(seconds * 16_000 / WINDOW)):
            start = self.windows * WINDOW
            self.windows += 1
            new += self.barge_in.update(
                probability, start, start + WINDOW, agent_is_audible=agent, can_be_held=self.can_be_held, **echo
            )
        return new

    def voice(self, seconds: float, *, agent: bool = True) -> list[Action]:
        return self.hear(seconds, 0.95, agent=agent)

    def quiet(self, seconds: float, *, agent: bool = True) -> list[Action]:
        return self.hear(seconds, 0.02, agent=agent)


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


def hear(
    barge_in: BargeIn,
    at: int,
    windows: int,
    probability: float,
    *,
    hum: float = 0.0,
    level_db: float = -20.0,
    can_be_held: bool = False,
    has_asked: bool = True,
) -> list[Action]:
    """Windows from number `at` on; the sound is told only where it is asked for."""
    said: list[Action] = []
    for number in range(at, at + windows):
        start, end = number * WINDOW, (number + 1) * WINDOW
        told = None if barge_in.listens_from(start, end) is None else hum
        said += barge_in.update(
            probability,
            start,
            end,
            agent_is_audible=True,
            level_db=level_db,
            hum=told,
            can_be_held=can_be_held,
            has_asked=has_asked,
        )
    return said


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
    for hum, longest in ((0.0, 13), (0.39, 13), (0.4, 25)):
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


def test_what_was_heard_of_half_the_voice_already_is_a_word() -> None:
    for early, action in (("both", Stop), ("", Restore), ("medium", Restore)):
        barge_in = BargeIn()
        said = hear(barge_in, 0, 10, 0.95, hum=0.9)
        barge_in.answer(next(each.number for each in said if isinstance(each, Ask)), early)
        said = hear(barge_in, 10, 4, 0.02, hum=0.9)
        barge_in.answer(next(each.number for each in said if isinstance(each, Ask)), "both a medium")
        (done,) = hear(barge_in, 14, 1, 0.02)
        assert isinstance(done, action), early


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
    hum = 0.95 if early else 0.3
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
