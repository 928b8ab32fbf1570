"""What is counted of short answers, and that the made ones are what their file says they are."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from tests.benchmarks.test_tapes import BENCHMARKS
from voice_pipelines.turn_end.model import TurnEndModel
from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.endpoint import EndpointSettings, Evidence, decide, longer_pauses
from voiceagent.vad import VoicedUtterance

SETTINGS = EndpointSettings()
WINDOW = 512


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("short_answers")


@pytest.fixture
def questions(bench: ModuleType) -> Any:
    return bench.questions_of(BENCHMARKS / "short_answers.toml")


def question(bench: ModuleType, *, part: str = "looked_at", kind: str = "choice") -> Any:
    return bench.Question("a", part, kind, "Which one?", ("the left one",), ("the one with",))


def test_answers_are_one_to_four_words_without_marks_or_figures(questions: Any) -> None:
    for each in questions:
        assert 3 <= len(each.answers) <= 5 and 1 <= len(each.unfinished) <= 2, each.asked
        assert all(re.fullmatch(r"[a-z']+( [a-z']+){0,3}", words) for words in each.answers), each.answers
        assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", words) for words in each.unfinished), each.unfinished


def test_nothing_is_said_twice_to_a_question_and_no_answer_is_a_beginning_elsewhere(questions: Any) -> None:
    for each in questions:
        assert len({*each.answers, *each.unfinished}) == len(each.answers) + len(each.unfinished), each.asked
    whole = {words for each in questions for words in each.answers}
    begun = {words for each in questions for words in each.unfinished}
    assert not whole & begun


def test_each_part_has_twenty_agents_and_asks_for_each_kind(bench: ModuleType, questions: Any) -> None:
    for part in get_args(bench.Part):
        mine = [each for each in questions if each.part == part]
        assert len({each.agent for each in mine}) == 20
        assert {each.kind for each in mine} == set(get_args(bench.Kind))


def test_a_question_of_an_unknown_part_or_kind_is_refused(bench: ModuleType) -> None:
    with pytest.raises(ValueError, match="'seen' is none of looked_at, reported"):
        question(bench, part="seen")
    with pytest.raises(ValueError, match="'colour' is none of yes_no"):
        question(bench, kind="colour")


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(0.99, 1.0),
        Evidence(0.5, 1.0),
        Evidence(0.5, 1.0, is_answer=True),
        Evidence(0.02, 1.0),
        Evidence(0.9, 1.0, is_dictation=True),
        Evidence(0.05, 1.0, is_dictation=True),
    ],
)
def test_the_silence_reckoned_with_is_the_one_after_which_a_call_ends_the_turn(
    bench: ModuleType, evidence: Evidence
) -> None:
    voice_end = 10 * WINDOW
    decided = next(
        decision
        for window in range(200)
        if (
            decision := decide(
                VoicedUtterance(0, voice_end, voice_end + window * WINDOW, is_paused=True, is_stirring=False),
                SETTINGS,
                evidence,
            )
        )
    )
    after_s = (decided.endpoint_sample - decided.speech_end_sample) / INPUT_RATE_HZ
    assert 0 <= after_s - bench.silence_s(evidence, SETTINGS) < WINDOW / INPUT_RATE_HZ


def test_waits_are_counted_behind_whole_answers_and_cut_offs_behind_beginnings(bench: ModuleType) -> None:
    asked = question(bench)
    said = [bench.Said(asked, "", True, wait_s) for wait_s in (0.2, 0.35, 0.65, 1.6)]
    said += [bench.Said(asked, "", False, wait_s) for wait_s in (0.6, 2.0)]
    assert bench.counted(said, SETTINGS) == {
        "answers": 4,
        "mean_wait_s": 0.7,
        "longer_than_silence": 0.5,
        "longer_than_1_s": 0.25,
        "unfinished": 2,
        "cut_off_per_pause": pytest.approx((0.5 + longer_pauses(2.0)) / 2, abs=1e-4),
    }
    assert bench.counted([], SETTINGS)["mean_wait_s"] is None


def test_no_answer_that_is_only_reported_is_shown_nor_any_beginning(bench: ModuleType) -> None:
    shown, hidden = question(bench), question(bench, part="reported")
    said = [
        bench.Said(shown, "a", True, 0.3),
        bench.Said(hidden, "b", True, 2.0),
        bench.Said(shown, "c", False, 2.0),
        bench.Said(shown, "d", True, 0.9),
        bench.Said(shown, "e", True, 0.5),
    ]
    assert [each.words for each in bench.slowest(said, 2)] == ["d", "e"]


def test_the_model_shipped_waits_longer_behind_beginnings_than_behind_answers(
    bench: ModuleType, questions: Any
) -> None:
    some = questions[::20]
    said = bench.measure(some, TurnEndModel.load(), SETTINGS)
    assert len(said) == sum(len(each.answers) + len(each.unfinished) for each in some)
    waits = {is_whole: [each.waited_s for each in said if each.is_whole is is_whole] for is_whole in (True, False)}
    assert sum(waits[True]) / len(waits[True]) < sum(waits[False]) / len(waits[False])
    assert all(SETTINGS.min_silence_s <= wait_s <= SETTINGS.max_silence_s for wait_s in waits[True] + waits[False])


def test_results_say_of_each_part_and_kind_how_it_does_and_of_the_reported_part_no_words(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.toml"
    made.write_text(
        "".join(
            f'[{agent}]\npart = "{part}"\nquestions = [{{ kind = "choice", asked = "Which {agent}?",'
            f' answers = ["the {agent} here"], unfinished = ["the {agent} with"] }}]\n'
            for agent, part in (("lamp", "looked_at"), ("chair", "reported"))
        ),
        "utf-8",
    )
    saved = tmp_path / "results.json"
    monkeypatch.setattr("sys.argv", ["short_answers.py", "--questions", str(made), "--save", str(saved)])
    bench.main()
    printed = capsys.readouterr().out
    assert "the lamp here" in printed and "chair" not in printed
    written = saved.read_text("utf-8")
    assert "the lamp here" in written and "chair" not in written
    assert '"cut_off_per_pause"' in written
