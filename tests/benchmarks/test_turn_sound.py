"""The benchmark that sets the judge of how turns sound at their end, without a recording."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voiceagent.standins import LevelDetector, silence, tone
from voiceagent.endpoint_sound import NAMES
from voiceagent.endpoint_sound_weights import TRAITS


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("turn_sound")


def made(bench: ModuleType, count: int, *, speakers: int = 12, telling: int = 0) -> list[Any]:
    """Ends and pauses, whose trait number `telling` tells them apart."""
    generator = np.random.default_rng(1)
    found = []
    for number in range(count):
        is_end = number % 2 == 0
        measured = generator.standard_normal(len(NAMES))
        measured[telling] += 3.0 if is_end else -3.0
        nature = ("end", "end, cut")[number // 2 % 2] if is_end else ("put in", "own pause")[number // 2 % 2]
        found.append(bench.Example("order", f"speaker {number // 2 % speakers}", nature, 2.0, tuple(measured.tolist())))
    return found


def test_weights_are_written_as_the_module_that_is_read(bench: ModuleType) -> None:
    found: dict[str, object] = {}
    exec(bench.module(TRAITS), found)
    assert found["TRAITS"] == TRAITS


@pytest.mark.parametrize(
    ("name", "value"), [("PLACES", 3), ("OWN_PAUSE_S", 0.2), ("CUT_NEAR_S", 0.1), ("NAMES", ("a",))]
)
def test_examples_of_before_are_not_used_where_what_made_them_has_changed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: object
) -> None:
    (tmp_path / "manifest.jsonl").write_text("{}\n", "utf-8")
    before = bench.seen(tmp_path)
    assert bench.seen(tmp_path) == before
    monkeypatch.setattr(bench, name, value)
    assert bench.seen(tmp_path) != before


def test_examples_of_before_are_not_used_where_the_voice_activity_has_changed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "manifest.jsonl").write_text("{}\n", "utf-8")
    before = bench.seen(tmp_path)
    (tmp_path / "vad.py").write_text("# another\n", "utf-8")
    monkeypatch.setattr(bench.vad, "__file__", str(tmp_path / "vad.py"))
    assert bench.seen(tmp_path) != before


def test_what_tells_ends_from_pauses_gets_the_weight(bench: ModuleType) -> None:
    table = bench.fitted(made(bench, 200, telling=3), keep=1.0)
    assert list(table) == [*NAMES, "bias"] == list(TRAITS)
    others = [abs(weight) for name, (_, _, weight) in table.items() if name not in (NAMES[3], "bias")]
    assert table[NAMES[3]][2] > 3 * max(others)


def test_nobody_is_judged_by_who_has_heard_them(bench: ModuleType) -> None:
    known = made(bench, 240)
    # One speaker's ends and pauses are the other way round: whoever has heard only the others is wrong about them.
    turned = [
        bench.Example(each.kind, each.speaker, each.nature, each.heard_s, tuple(-value for value in each.measured))
        if each.speaker == "speaker 5"
        else each
        for each in known
    ]
    ears = bench.Ears(turned)
    is_right = {each: (ears.odds(each) > 0) == each.is_end for each in turned}
    assert sum(right for each, right in is_right.items() if each.speaker != "speaker 5") > 0.9 * 220
    assert not any(right for each, right in is_right.items() if each.speaker == "speaker 5")


def test_readers_are_judged_and_nothing_is_learned_of_them(bench: ModuleType) -> None:
    callers = made(bench, 120)
    readers = [
        bench.Example("read", "a reader", each.nature, each.heard_s, tuple(-value for value in each.measured))
        for each in callers[:20]
    ]
    assert bench.fitted([*callers, *readers]) == bench.fitted(callers)
    ears = bench.Ears([*callers, *readers])
    assert sum((ears.odds(each) > 0) != each.is_end for each in readers) > 15, "who sound the other way round"
    assert {row["who"] for row in bench.report([*callers, *readers])} == {"callers", "readers"}


def test_the_area_is_how_often_an_end_has_the_higher_odds(bench: ModuleType) -> None:
    assert bench.area([0.9, 0.8, 0.1], [True, True, False]) == 1.0
    assert bench.area([0.1, 0.9], [True, False]) == 0.0
    assert bench.area([0.5, 0.5, 0.7, 0.1], [True, False, False, False]) == pytest.approx(0.5)


def test_every_kind_of_end_is_told_against_every_kind_of_pause(bench: ModuleType) -> None:
    rows = bench.report(made(bench, 120))
    assert {(row["end"], row["pause"]) for row in rows} == {
        (end, pause) for end in ("end", "end, cut") for pause in ("own pause", "put in")
    }
    assert all(row["area"] > 0.9 and row["odds_ends"] > 0 > row["odds_pauses"] for row in rows)


def test_a_stop_is_what_the_voice_detector_says_and_nothing_behind_it_is_heard(bench: ModuleType) -> None:
    audio = np.concatenate([silence(0.5), tone(1.0), silence(0.5), tone(3.5), silence(0.5)])
    first, last = run_async(bench.stops(audio, LevelDetector()))
    assert first.start == pytest.approx(8_000, abs=512) and first.voice_end == pytest.approx(24_000, abs=512)
    assert first.resumed == pytest.approx(32_000, abs=512) and last.resumed is None
    assert first.heard(audio).size == first.voice_end - first.start
    assert last.heard(audio).size == 48_000 and np.array_equal(last.heard(audio), audio[: last.voice_end][-48_000:])
