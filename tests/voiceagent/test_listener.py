from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.voiceagent.standins import LevelDetector, silence, tone
from voiceagent.backends import Samples
from voiceagent.endpoint import EndedBy
from voiceagent.listener import LEAD_S, Endpoint, Heard, Judge, Listener, Onset, Utter
from voiceagent.session import TurnDetection

DETECTION = TurnDetection(silence_s=0.4, prefix_padding_s=0.3)


def heard(audio: Samples, sizes: list[int], detection: TurnDetection = DETECTION) -> list[Heard]:
    async def scenario() -> list[Heard]:
        listener, found, position, turn = Listener(LevelDetector(), 512), [], 0, 0
        while position < audio.size:
            size = sizes[turn % len(sizes)]
            turn += 1
            piece = audio[position : position + size]
            position += piece.size
            found += [h async for h in listener.hear(piece, position / 16_000, detection, agent_audible=False)]
        return found

    return asyncio.run(scenario())


AUDIO = np.concatenate([silence(1.0), tone(1.0), silence(0.2), tone(0.5), silence(1.0)])


def test_an_utterance_has_a_beginning_its_audio_and_an_end() -> None:
    found = heard(AUDIO, [320])
    onset, *middle, endpoint = found
    assert isinstance(onset, Onset)
    assert onset.start_sample == pytest.approx(16_000 - 4_800, abs=512)
    assert isinstance(endpoint, Endpoint)
    assert endpoint.end_sample == pytest.approx(16_000 * 2.7, abs=512), (
        "a pause shorter than the hangover does not end it"
    )
    assert endpoint.speech_end == pytest.approx(2.7, abs=0.04)
    audio = np.concatenate([h.samples for h in middle if isinstance(h, Utter)])
    assert audio.size / 16_000 == pytest.approx(0.3 + 1.7 + 0.4, abs=0.1)


@pytest.mark.parametrize("sizes", [[1, 511, 2, 4000], [160], [512], [16_000], [AUDIO.size], [7, 1201]])
def test_the_same_is_heard_however_the_audio_is_cut(sizes: list[int]) -> None:
    def flat(found: list[Heard]) -> tuple[list[int], list[int], Samples]:
        onsets = [h.start_sample for h in found if isinstance(h, Onset)]
        ends = [h.end_sample for h in found if isinstance(h, Endpoint)]
        return onsets, ends, np.concatenate([h.samples for h in found if isinstance(h, Utter)])

    expected, got = flat(heard(AUDIO, [320])), flat(heard(AUDIO, sizes))
    assert got[:2] == expected[:2]
    np.testing.assert_array_equal(got[2], expected[2])


def test_audio_that_came_in_one_burst_was_not_spoken_before_it_began_to_arrive() -> None:
    async def scenario() -> list[Heard]:
        listener = Listener(LevelDetector(), 512)
        first = [h async for h in listener.hear(silence(0.5), 10.0, DETECTION, agent_audible=False)]
        rest = [h async for h in listener.hear(AUDIO, 10.1, DETECTION, agent_audible=False)]
        return first + rest

    endpoint = asyncio.run(scenario())[-1]
    assert isinstance(endpoint, Endpoint)
    assert 10.0 <= endpoint.speech_end <= 10.1


def test_media_time_runs_on_while_the_client_ends_its_turns_itself() -> None:
    async def scenario() -> list[Heard]:
        listener = Listener(LevelDetector(), 512)
        listener.skip(tone(5.0), 5.0)
        return [h async for h in listener.hear(AUDIO, 8.7, DETECTION, agent_audible=False)]

    found = asyncio.run(scenario())
    assert isinstance(found[0], Onset)
    assert found[0].start_sample == pytest.approx(16_000 * 5.7, abs=512)


# --- with the words ---------------------------------------------------------------------------------------------------

WORDS = replace(DETECTION, weighs_words=True, min_silence_s=0.2, max_silence_s=1.5)
LONG = np.concatenate([silence(0.5), tone(1.0), silence(3.0)])


def silence_of(
    judge: Judge | None, text: str, detection: TurnDetection = WORDS, sizes: tuple[int, ...] = (320,)
) -> float:
    """Silence heard before the endpoint, where the recogniser has `text` as soon as speech begins."""

    async def scenario() -> float:
        listener, position, turn = Listener(LevelDetector(), 512, judge), 0, 0
        while position < LONG.size:
            piece = LONG[position : position + sizes[turn % len(sizes)]]
            position, turn = position + piece.size, turn + 1
            heard_s = 0.0
            async for event in listener.hear(piece, position / 16_000, detection, agent_audible=False):
                match event:
                    case Onset():
                        listener.hear_words(text)
                    case Utter(samples=samples):
                        heard_s = float(np.abs(samples).max() == 0) * samples.size / 16_000
                        silences.append(heard_s)
                    case Endpoint():
                        return sum(silences)
        raise AssertionError("no endpoint")

    silences: list[float] = []
    return asyncio.run(scenario())


def judge_at(probability: float | None) -> Judge:
    return lambda text, answer: answer(probability)


def test_an_utterance_without_words_tells_of_no_probability_that_anybody_gave() -> None:
    async def completeness(text: str) -> float | None:
        listener, detection = Listener(LevelDetector(), 512, judge_at(0.99)), replace(WORDS, cut_off_cost_s=1.0)
        for at in range(0, LONG.size, 320):
            async for event in listener.hear(LONG[at : at + 320], at / 16_000, detection, agent_audible=False):
                if isinstance(event, Onset) and text:
                    listener.hear_words(text)
                if isinstance(event, Endpoint):
                    return event.ended_by.completeness
        raise AssertionError("no endpoint")

    assert asyncio.run(completeness("a tea")) == 0.99
    assert asyncio.run(completeness("")) is None


@pytest.mark.parametrize("judge", [judge_at(0.99), None])
@pytest.mark.parametrize("confidence", [0.7, None])
def test_what_ended_a_turn_tells_how_sure_the_recogniser_was_of_its_words_whoever_ended_it(
    judge: Judge | None, confidence: float | None
) -> None:
    async def scenario() -> list[float | None]:
        listener = Listener(LevelDetector(), 512, judge)
        told: list[float | None] = []
        audio = np.concatenate([LONG, LONG])
        async for event in listener.hear(audio, audio.size / 16_000, WORDS, agent_audible=False):
            if isinstance(event, Onset) and not told:
                listener.hear_words("a", 0.1)
                listener.hear_words("a tea", confidence)
            if isinstance(event, Endpoint):
                told.append(event.ended_by.confidence)
        return told

    assert asyncio.run(scenario()) == [confidence, None], "of the newest words, and not those of the turn before"


def test_complete_words_end_sooner_than_unfinished_ones() -> None:
    assert silence_of(judge_at(0.99), "a tea") == pytest.approx(0.2, abs=0.07)
    assert silence_of(judge_at(0.01), "a") == pytest.approx(1.5, abs=0.07)


@pytest.mark.parametrize("sizes", [(1, 511, 2, 4000), (160,), (16_000,), (LONG.size,)])
@pytest.mark.parametrize("probability", [0.01, 0.7, 0.99])
def test_the_words_give_the_same_end_however_the_audio_is_cut(probability: float, sizes: tuple[int, ...]) -> None:
    expected = silence_of(judge_at(probability), "a tea")
    assert silence_of(judge_at(probability), "a tea", sizes=sizes) == expected


def test_without_a_judge_or_its_answer_silence_alone_decides() -> None:
    for judge in (None, judge_at(None), lambda text, answer: None):
        assert silence_of(judge, "a tea") == pytest.approx(0.4, abs=0.07)
    assert silence_of(judge_at(0.99), "a tea", replace(WORDS, weighs_words=False)) == pytest.approx(0.4, abs=0.07)


def test_the_judge_is_asked_once_for_words_that_stay_the_same() -> None:
    asked: list[str] = []

    def judge(text: str, answer: Callable[[float | None], None]) -> None:
        asked.append(text)
        answer(0.01)

    silence_of(judge, "a tea")
    assert asked == ["a tea"]


# --- with the sound ---------------------------------------------------------------------------------------------------

TWICE = np.concatenate([silence(0.5), tone(4.0), silence(0.4), tone(0.7), silence(3.0)])


def sounds_heard(
    said: list[float | None], text: str = "a tea", detection: TurnDetection = WORDS, sizes: tuple[int, ...] = (320,)
) -> tuple[list[Samples], list[tuple[str, float | None]], Endpoint]:
    """What the judge of sound was given, what was asked with what it said, and the end."""
    given: list[Samples] = []
    asked: list[tuple[str, float | None]] = []

    def sound(voice: Samples) -> float | None:
        given.append(voice)
        return said[min(len(given), len(said)) - 1]

    async def scenario() -> Endpoint:
        def judge(text: str, answer: Callable[[float | None], None]) -> None:
            asked.append((text, listener.sound))
            answer(0.01)

        listener, position, turn = Listener(LevelDetector(), 512, judge, sound=sound), 0, 0
        while position < TWICE.size:
            piece = TWICE[position : position + sizes[turn % len(sizes)]]
            position, turn = position + piece.size, turn + 1
            async for event in listener.hear(piece, position / 16_000, detection, agent_audible=False):
                if isinstance(event, Onset) and text:
                    listener.hear_words(text)
                if isinstance(event, Endpoint):
                    return event
        raise AssertionError("no endpoint")

    end = asyncio.run(scenario())
    return given, asked, end


def test_the_sound_before_each_pause_is_judged_once_and_nothing_behind_it_is_heard() -> None:
    given, asked, end = sounds_heard([0.2, 0.4])
    assert [voice.size / 16_000 for voice in given] == pytest.approx([3.0, 3.0], abs=1e-9)
    assert all(np.abs(voice[-512:]).max() > 0.2 for voice in given), "up to the last voiced window"
    assert asked == [("a tea", 0.2), ("a tea", 0.4)], "the same words are asked about again where they sound otherwise"
    assert end.ended_by.sound == 0.4 and end.ended_by.rule == "ceiling"


@pytest.mark.parametrize("sizes", [(1, 511, 2, 4000), (160,), (16_000,), (TWICE.size,)])
def test_the_same_sound_is_judged_however_the_audio_is_cut(sizes: tuple[int, ...]) -> None:
    expected, asked, end = sounds_heard([0.2, 0.4])
    given, asked_now, end_now = sounds_heard([0.2, 0.4], sizes=sizes)
    assert (asked_now, end_now.end_sample, end_now.ended_by) == (asked, end.end_sample, end.ended_by)
    for one, other in zip(expected, given, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["", "my number is five five five"])
def test_nobody_listens_to_a_pause_without_words_or_after_dictated_ones(text: str) -> None:
    given, asked, end = sounds_heard([0.95], text=text)
    assert not given and end.ended_by.sound is None
    assert asked == ([(text, None)] if text else [])


@pytest.mark.parametrize("sizes", [(320,), (1, 511, 2, 4000), (16_000,), (TWICE.size,)])
def test_a_judge_that_hears_is_given_the_voice_from_before_it_began_in_each_pause(sizes: tuple[int, ...]) -> None:
    voices: list[Samples] = []

    async def scenario() -> Endpoint:
        def judge(text: str, answer: Callable[[float | None], None]) -> None:
            voices.append(listener.voice)
            answer(0.01)

        listener, position, turn = Listener(LevelDetector(), 512, judge, judge_hears=True), 0, 0
        while position < TWICE.size:
            piece = TWICE[position : position + sizes[turn % len(sizes)]]
            position, turn = position + piece.size, turn + 1
            async for event in listener.hear(piece, position / 16_000, WORDS, agent_audible=False):
                if isinstance(event, Onset):
                    listener.hear_words("a tea")
                if isinstance(event, Endpoint):
                    return event
        raise AssertionError("no endpoint")

    end = asyncio.run(scenario())
    assert end.ended_by.sound is None and len(voices) == 2, "once in each pause"
    first, second = voices
    for voice, stops_s in ((first, 4.5), (second, 5.6)):
        assert np.abs(voice[: round(0.2 * 16_000)]).max() < 0.01, "it begins with what led up to it"
        ended = np.flatnonzero(np.abs(voice) > 0.1)[-1]
        assert 0.03 < (voice.size - ended) / 16_000 < 0.25, "and ends with the silence so far"
        assert (ended / 16_000 + 0.5 - LEAD_S) == pytest.approx(stops_s, abs=0.05)


@pytest.mark.parametrize(
    ("text", "detection"), [("my number is five five five", WORDS), ("a tea", replace(WORDS, weighs_sound=False))]
)
def test_a_judge_that_hears_is_given_nothing_of_dictated_words_or_where_the_sound_is_switched_off(
    text: str, detection: TurnDetection
) -> None:
    voices: list[Samples] = []

    async def scenario() -> None:
        def judge(_: str, answer: Callable[[float | None], None]) -> None:
            voices.append(listener.voice)
            answer(0.01)

        listener = Listener(LevelDetector(), 512, judge, judge_hears=True)
        async for event in listener.hear(TWICE, TWICE.size / 16_000, detection, agent_audible=False):
            if isinstance(event, Onset):
                listener.hear_words(text)

    asyncio.run(scenario())
    assert [voice.size for voice in voices] == [0]


@pytest.mark.parametrize("is_on_first", [True, False])
def test_a_sound_that_is_switched_amid_an_utterance_is_heard_from_then_on_or_no_more(*, is_on_first: bool) -> None:
    voices: list[int] = []

    async def scenario() -> None:
        def judge(_: str, answer: Callable[[float | None], None]) -> None:
            voices.append(listener.voice.size)
            answer(0.01)

        listener = Listener(LevelDetector(), 512, judge, judge_hears=True)
        for at in range(0, TWICE.size, 320):
            is_first = at < 4.8 * 16_000
            detection = replace(WORDS, weighs_sound=is_on_first == is_first)
            async for event in listener.hear(TWICE[at : at + 320], at / 16_000, detection, agent_audible=False):
                if isinstance(event, Onset):
                    listener.hear_words("a tea")
            if 5.2 * 16_000 <= at < 5.2 * 16_000 + 320:
                listener.hear_words("a tea and")

    asyncio.run(scenario())
    assert [size > 0 for size in voices] in ([is_on_first, not is_on_first], [is_on_first, *[not is_on_first] * 2])


def test_a_pause_with_the_same_words_is_not_cut_off_where_the_second_answer_never_comes() -> None:
    async def scenario() -> EndedBy:
        asked: list[str] = []

        def judge(text: str, answer: Callable[[float | None], None]) -> None:
            asked.append(text)
            if len(asked) == 1:
                answer(0.01)

        sounds = iter([0.3, 0.6])
        listener = Listener(LevelDetector(), 512, judge, sound=lambda voice: next(sounds))
        async for event in listener.hear(TWICE, TWICE.size / 16_000, WORDS, agent_audible=False):
            if isinstance(event, Onset):
                listener.hear_words("i'd like a")
            if isinstance(event, Endpoint):
                assert len(asked) == 2
                return event.ended_by
        raise AssertionError("no endpoint")

    ended_by = asyncio.run(scenario())
    assert (ended_by.rule, ended_by.completeness, ended_by.sound) == ("ceiling", 0.01, 0.3)


def test_a_sound_that_is_switched_off_amid_an_utterance_counts_no_more() -> None:
    async def scenario() -> tuple[list[float | None], EndedBy]:
        asked: list[float | None] = []

        def judge(text: str, answer: Callable[[float | None], None]) -> None:
            asked.append(listener.sound)
            answer(0.01)

        listener = Listener(LevelDetector(), 512, judge, sound=lambda voice: 0.9)
        for at in range(0, TWICE.size, 320):
            detection = replace(WORDS, weighs_sound=at < 4.8 * 16_000)
            piece = TWICE[at : at + 320]
            async for event in listener.hear(piece, at / 16_000, detection, agent_audible=False):
                if isinstance(event, Onset):
                    listener.hear_words("a tea")
                if isinstance(event, Endpoint):
                    return asked, event.ended_by
        raise AssertionError("no endpoint")

    asked, ended_by = asyncio.run(scenario())
    assert asked == [0.9, None] and ended_by.sound is None


def test_nobody_listens_where_it_is_switched_off_or_silence_alone_decides() -> None:
    for detection in (replace(WORDS, weighs_sound=False), replace(WORDS, weighs_words=False)):
        given, _, end = sounds_heard([0.9], detection=detection)
        assert not given and end.ended_by.sound is None


def test_a_new_utterance_has_not_sounded_like_anything_yet() -> None:
    async def scenario() -> list[float | None]:
        listener = Listener(LevelDetector(), 512, judge_at(0.99), sound=lambda voice: 0.7)
        found: list[float | None] = []
        audio = np.concatenate([silence(0.2), tone(1.0), silence(1.6), tone(1.0)])
        async for event in listener.hear(audio, 3.8, WORDS, agent_audible=False):
            if isinstance(event, Onset | Endpoint):
                found.append(listener.sound)
            if isinstance(event, Onset):
                listener.hear_words("a tea")
        return found

    assert asyncio.run(scenario()) == [None, 0.7, None]
