"""What `benchmarks/endpoint.py` counts: cut-offs, delays, curves, halves; from values, without recordings or a model."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.voice_pipelines.test_smart_turn import make_smart_turn
from voice_pipelines.turn_end.odds import Heard
from voiceagent.endpoint import EndpointSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WINDOW_S = 512 / 16_000


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("endpoint")


def curves() -> ModuleType:
    """What the benchmark makes of its cases; there once `bench` is."""
    return importlib.import_module("endpoint_curves")


def case(
    bench: ModuleType,
    pause_s: float,
    *,
    middle: float = 0.05,
    whole: float = 0.95,
    name: str = "a",
    tail_s: float = 2.6,
) -> Any:
    """Words, a pause, the rest of the words, silence; how complete the model finds them at either place."""
    end_s = 2.0 + pause_s
    moments = (*bench._pause(1.0, pause_s, middle, False), *bench._pause(end_s, tail_s, whole, False))
    return curves().Case(name, "order", name, end_s, moments, end_s + tail_s)


def measured(bench: ModuleType, cases: list[Any], settings: EndpointSettings, *, with_words: bool) -> Any:
    """What these settings came to."""
    curve = curves().curve_of(cases, settings, with_words=with_words)
    return curves().point_at(curve, settings.cut_off_cost_s if with_words else settings.silence_s)


def test_an_endpoint_in_the_pause_is_a_cut_off_and_has_no_delay(bench: ModuleType) -> None:
    settings = EndpointSettings(silence_s=0.5)
    point = measured(bench, [case(bench, 0.7), case(bench, 0.3)], settings, with_words=False)
    assert (point.cases, point.cut_off, point.unanswered, point.share) == (2, 1, 0, 0.5)
    assert point.mean_s == pytest.approx(0.5, abs=WINDOW_S), "of the one that was not cut off"


def test_words_that_are_unfinished_are_waited_for_and_complete_ones_are_answered_sooner(bench: ModuleType) -> None:
    cases = [case(bench, 0.7, middle=0.02, whole=0.98)]
    alone = measured(bench, cases, EndpointSettings(silence_s=0.8), with_words=False)
    words = measured(bench, cases, EndpointSettings(cut_off_cost_s=6.0), with_words=True)
    assert alone.cut_off == words.cut_off == 0
    assert words.mean_s < alone.mean_s / 2


def test_the_words_are_known_a_little_after_the_silence_began(bench: ModuleType) -> None:
    moments = bench._pause(1.0, 0.3, 0.9, True)
    assert len(moments) == int(0.3 / WINDOW_S)
    known = [evidence.completeness for _, evidence in moments]
    assert known[:3] == [None] * 3 and set(known[3:]) == {0.9}
    assert [utterance.silence_s for utterance, _ in moments] == pytest.approx(
        [WINDOW_S * count for count in range(1, len(moments) + 1)]
    )
    assert all(evidence.is_dictation for _, evidence in moments)


def test_a_decision_just_before_the_end_is_no_cut_off(bench: ModuleType) -> None:
    found = case(bench, 0.5)
    late = curves().Case(found.name, found.kind, found.speaker, found.end_s - 0.9, found.moments, found.last_s)
    settings = EndpointSettings(silence_s=0.45)
    assert measured(bench, [found], settings, with_words=False).cut_off == 1
    assert measured(bench, [late], settings, with_words=False).cut_off == 0


def test_a_turn_that_nothing_ended_counts_as_ended_with_its_recording(bench: ModuleType) -> None:
    point = measured(bench, [case(bench, 0.3, tail_s=0.4)], EndpointSettings(silence_s=0.8), with_words=False)
    assert (point.unanswered, point.cut_off) == (1, 0) and point.mean_s == pytest.approx(0.4)


def test_where_everybody_is_cut_off_there_is_no_delay(bench: ModuleType) -> None:
    point = measured(bench, [case(bench, 1.5)], EndpointSettings(silence_s=0.3), with_words=False)
    assert point.share == 1.0 and point.mean_s == math.inf
    shown = curves().as_json(point)
    assert shown["mean_s"] is None and json.dumps(shown, allow_nan=False)


def test_a_curve_of_silences_trades_cut_offs_for_delay(bench: ModuleType) -> None:
    cases = [case(bench, 0.2 + 0.1 * number, name=str(number)) for number in range(12)]
    curve = curves().curve_of(cases, EndpointSettings(), with_words=False).points()
    assert [point.setting["silence_s"] for point in curve] == sorted(curves().SILENCES), "the default is among them"
    shares = [point.share for point in curve]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0 and shares[-1] == 0.0


def test_the_best_is_the_fastest_within_the_goal_or_cuts_off_fewest(bench: ModuleType) -> None:
    delays = np.array([[1.0] * 20, [0.6] * 19 + [-1.0], [0.2] * 18 + [-1.0] * 2])
    slow, fast, hasty = (
        curves().Curve("silence_s", (0.1 * at,), delays[at : at + 1], np.zeros((1, 20), bool)) for at in range(3)
    )
    every = curves().Curve("silence_s", (0.3, 0.2, 0.1), delays, np.zeros((3, 20), bool))
    assert every.best() == 1 and every.best(goal=0.0) == 0
    hastier = curves().Curve("silence_s", (0.2, 0.1), delays[[1, 2]], np.zeros((2, 20), bool))
    assert hastier.best(goal=0.01) == 0, "the one with fewest cut-offs"
    both = slow.beside(curves().Curve("silence_s", slow.values, delays[2:], np.zeros((1, 20), bool)))
    assert both.point(0).cases == 40 and both.point(0).cut_off == 2
    assert fast.point(0, np.arange(20) < 19).share == 0.0 and hasty.point(0).share == 0.1


def test_words_that_are_right_beat_silence_on_speakers_who_had_no_part_in_choosing(bench: ModuleType) -> None:
    cases = [case(bench, 0.25 + 0.05 * (number % 20), name=str(number)) for number in range(60)]
    result = curves().compare("made cases", cases, EndpointSettings())
    words, alone = result["words held out"], result["silence held out"]
    assert words["cut off"]["mean"] <= 0.1 and words["mean_s"]["mean"] < alone["mean_s"]["mean"] / 2
    assert words["mean_s"]["least"] <= words["mean_s"]["mean"] <= words["mean_s"]["most"]


def test_no_speaker_is_on_both_sides_and_everybody_is_reported_once(bench: ModuleType) -> None:
    speakers = [f"speaker {number % 30}" for number in range(90)]
    parts = list(curves().folds(speakers, 5, 0))
    assert sum(parts).tolist() == [1] * 90
    for part in parts:
        reported = {speaker for speaker, is_reported in zip(speakers, part, strict=True) if is_reported}
        assert reported and not reported & {
            speaker for speaker, is_reported in zip(speakers, part, strict=True) if not is_reported
        }
    assert not np.array_equal(parts[0], next(curves().folds(speakers, 5, 1))), "another shuffle"


def test_turns_without_a_pause_are_half_of_all(bench: ModuleType) -> None:
    paused = [case(bench, 0.7, name=f"speaker {number}") for number in range(30)]
    also = [case(bench, 0.0, name=f"speaker {number}") for number in range(10)]
    result = curves().compare("made cases", paused, EndpointSettings(silence_s=0.35), also)
    assert result["cases"] == 60
    assert result["default silence"].share == 0.5, "of those who pause all, of the others nobody"


def test_what_is_compared_is_told_with_its_numbers(bench: ModuleType) -> None:
    cases = [case(bench, 0.25 + 0.05 * (number % 20), name=f"speaker {number}") for number in range(40)]
    result = curves().compare("made cases", cases, EndpointSettings())
    text = curves().report(result)
    assert "## made cases" in text and "held out: the words are" in text
    assert "40 cases of 40 speakers" in text
    assert json.dumps(result, default=curves().as_json)
    assert curves().told("nothing", None).startswith("| nothing | –")


def test_a_turn_of_a_dialogue_has_at_most_four_turns_before_it_and_words_as_they_are_spoken(bench: ModuleType) -> None:
    turns = [{"role": role, "text": text} for role, text in (("agent", "Hi. What can I do?"), ("user", "Tea."))]
    long = [{"role": "agent" if number % 2 else "user", "text": "yes"} for number in range(8)]
    wanted = {"id": "d", "turns": [*turns, *long, {"role": "user", "text": "Two teas for $5, please!"}]}
    ((name, before, text),) = bench._turns(wanted)
    assert name == "d#10" and len(before) == 4
    assert text == "two teas for five dollars please"
    assert list(bench._turns({"id": "e", "turns": turns})) == [], "a single word has no boundary"


def test_a_tape_is_replayed_with_the_text_that_was_there_and_an_answer_one_window_later(bench: ModuleType) -> None:
    class Scores:
        asked: list[str]

        def __init__(self) -> None:
            self.asked = []

        async def ask(
            self, before: object, words: str, heard: Heard | None = None, confidence: float | None = None
        ) -> float:
            self.asked.append(words)
            sure.append(confidence)
            sounds.append(heard)
            return 0.9

    sounds: list[Heard | None] = []
    sure: list[float | None] = []
    given: list[int] = []
    scores = Scores()
    tapes = importlib.import_module("tapes")
    heard = (tapes.Heard(0.4, "a"), tapes.Heard(0.75, "a tea", 0.6))
    voice = (*[0.9] * 20, *[0.0] * 30)
    tape = bench.Tape("a.flac", "order", "a tea", 20 * WINDOW_S, None, 0.0, "", voice, heard)
    recorded = bench.Recorded(tape, "someone", np.zeros(50 * 512, np.float32))
    found = asyncio.run(bench.case_of(recorded, (), scores, None))
    assert found.speaker == "someone" and found.end_s == 20 * WINDOW_S
    assert scores.asked == ["a", "a tea"], "each text is asked about once, and only in the pause"
    assert sure == [None, 0.6], "with what the recogniser said of it"
    answers = [evidence.completeness for utterance, evidence in found.moments if utterance.is_paused and evidence]
    assert answers[-1] == 0.9 and None in answers
    point = measured(bench, [found], EndpointSettings(cut_off_cost_s=6.0), with_words=True)
    assert point.cut_off == 0 and point.mean_s < 0.5

    def ear(voice: Any) -> float:
        given.append(voice.size)
        return 0.7

    assert sounds == [None, None]
    heard_too = asyncio.run(bench.case_of(recorded, (), scores, ear))
    assert given == [20 * 512] and sounds[2:] == [Heard(0.7), Heard(0.7)], "once per pause, and nothing behind it"
    told = [evidence for utterance, evidence in heard_too.moments if utterance.is_paused]
    assert {(each.completeness, each.sound) for each in told} == {(None, None), (0.9, 0.7)}, "told where it was weighed"


def test_a_smart_turn_is_asked_with_each_question_about_the_voice_so_far_and_alone_as_pipecat_asks_it(
    bench: ModuleType, tmp_path: Path
) -> None:
    class Scores:
        async def ask(
            self, before: object, words: str, heard: Heard | None = None, confidence: float | None = None
        ) -> float:
            told.append(heard)
            return 0.5

    told: list[Heard | None] = []
    ears = importlib.import_module("smart_ear")
    tapes = importlib.import_module("tapes")
    file = make_smart_turn(tmp_path / "st.onnx")
    ear = ears.SmartEar(file, tmp_path)
    windows = 20 * [0.9] + 20 * [0.0] + 20 * [0.9] + 110 * [0.0]
    samples = np.repeat(np.array(windows, np.float32), 512) * np.random.default_rng(0).normal(0, 0.1, 512 * 170)
    tape = bench.Tape(
        "a.flac", "order", "a tea", 60 * WINDOW_S, None, 0.0, "", tuple(windows), (tapes.Heard(0.4, "a tea"),)
    )
    recorded = bench.Recorded(tape, "someone", samples.astype(np.float32))
    found = asyncio.run(bench.case_of(recorded, (), Scores(), ear))
    assert len(told) == 2 and None not in told, "the same words are asked about again in the second pause"
    assert told[0] != told[1]
    # Made so that silence at the end is an unfinished turn: alone it waits as long as Pipecat does.
    assert found.heard_alone_s == pytest.approx(60 * WINDOW_S + bench.ALONE_GIVES_UP_S, abs=0.2)
    point = curves().alone_by_ear([found], ())["Smart Turn alone"]
    assert point.cut_off == 0 and point.mean_s == pytest.approx(bench.ALONE_GIVES_UP_S, abs=0.2)
    ear.keep()
    again = ears.SmartEar(file, tmp_path)
    asyncio.run(bench.case_of(recorded, (), Scores(), again))
    assert told[2:] == told[:2] and not again.seconds, "answers are kept"
    assert curves().alone_by_ear([asyncio.run(bench.case_of(recorded, (), Scores(), None))], ()) == {}
