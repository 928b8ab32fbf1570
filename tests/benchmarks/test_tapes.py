"""Recordings become tapes: pauses are drawn and placed as described, and what is made of a recording once is read back the same."""

from __future__ import annotations

import importlib
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from voiceagent import endpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATE = 16_000


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tapes")


def test_a_pause_belongs_to_its_recording_and_seed(tapes: ModuleType) -> None:
    assert tapes.draw_pause("a.flac", 5, 0) == tapes.draw_pause("a.flac", 5, 0)
    assert tapes.draw_pause("a.flac", 5, 0) != tapes.draw_pause("b.flac", 5, 0)
    assert tapes.draw_pause("a.flac", 5, 0) != tapes.draw_pause("a.flac", 5, 1)


def test_pauses_have_the_lengths_and_places_that_are_claimed(tapes: ModuleType) -> None:
    drawn = [tapes.draw_pause(f"{number}.flac", 4, 0) for number in range(4000)]
    lengths = sorted(length for _, length in drawn)
    assert statistics.median(lengths) == pytest.approx(0.6, rel=0.05)
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(1.5, rel=0.1)
    counts = [sum(at == place for at, _ in drawn) for place in range(4)]
    assert sum(counts) == 4000 and min(counts) > 850, "every boundary is as likely"


def test_the_lengths_are_those_that_the_decision_expects(tapes: ModuleType) -> None:
    assert (tapes.PAUSE_MEDIAN_S, tapes.PAUSE_P95_S) == (endpoint.PAUSE_MEDIAN_S, endpoint.PAUSE_P95_S)


def noise(size: int, level: float) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(size) * level).astype(np.float32)


def test_the_cut_is_at_the_quietest_moment_near_the_boundary(tapes: ModuleType) -> None:
    samples = noise(RATE, 0.1)
    samples[8_200:8_360] = 0.0
    assert tapes.quietest(samples, 0.5) == pytest.approx(8_280, abs=40)
    assert abs(tapes.quietest(samples, 0.2) / RATE - 0.2) <= 0.045, "and never further than 40 ms away"


def test_a_boundary_at_an_edge_is_cut_inside_the_recording(tapes: ModuleType) -> None:
    samples = noise(3_200, 0.1)
    assert 0 <= tapes.quietest(samples, 0.0) < samples.size
    assert 0 <= tapes.quietest(samples, 0.2) < samples.size


def test_the_background_is_the_quietest_stretch_outside_the_speech(tapes: ModuleType) -> None:
    samples = np.concatenate([noise(RATE, 0.01), noise(RATE, 0.5), noise(RATE, 0.1)])
    taken = tapes.Background(samples, (RATE, 2 * RATE), np.random.default_rng(0)).take(12_345)
    assert taken.size == 12_345
    assert float(np.sqrt(np.square(taken).mean())) == pytest.approx(0.01, rel=0.1)


def test_a_recording_without_a_free_stretch_gets_faint_noise(tapes: ModuleType) -> None:
    taken = tapes.Background(noise(RATE, 0.5), (0, RATE), np.random.default_rng(0)).take(RATE)
    assert float(np.sqrt(np.square(taken).mean())) == pytest.approx(10 ** (-66 / 20), rel=0.05)


def test_samples_become_16_bit_numbers_and_are_clipped(tapes: ModuleType) -> None:
    found = np.frombuffer(tapes.pcm(np.array([0.0, 0.5, 1.0, -1.0, 3.0, -3.0], np.float32)), "<i2")
    assert found.tolist() == [0, 16_384, 32_767, -32_767, 32_767, -32_767]


def test_a_tape_is_read_back_as_it_was_written(tapes: ModuleType) -> None:
    heard = (tapes.Heard(0.5, "a"), tapes.Heard(0.9, "a tea"))
    tape = tapes.Tape("a.flac", "order", "a tea", 1.5, 0.7, 0.6, "a", (0.1, 0.9), heard)
    assert tapes.Tape.from_json(json.loads(json.dumps(asdict(tape)))) == tape


def test_only_recordings_of_the_kinds_whose_end_is_known_are_taken(tapes: ModuleType, tmp_path: Path) -> None:
    known = {"path": "a", "kind": "order", "speech_end_s": 1.0}
    lines = [known, {"path": "b", "kind": "order"}, {**known, "path": "c", "kind": "noise"}, {**known, "path": "d"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [entry["path"] for entry in tapes.entries(tmp_path, ("order",))] == ["a", "d"]
    assert [entry["path"] for entry in tapes.entries(tmp_path, ("order",), every=2)] == ["a"]


def test_what_was_made_once_is_taken_from_the_cache_and_a_missing_place_too(
    tapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoAligner:
        pass

    made: list[tuple[str, bool]] = []

    def make(self: object, entry: dict[str, object], *, with_pause: bool) -> object:
        made.append((str(entry["path"]), with_pause))
        if with_pause:
            return None
        return tapes.Tape(entry["path"], "order", entry["text"], 1.0, None, 0.0, "", (0.5,), ())

    monkeypatch.setattr(tapes, "Aligner", NoAligner)
    monkeypatch.setattr(tapes.TapeMaker, "_make", make)
    entry = {"path": "a.flac", "text": "tea"}
    for _ in range(2):
        maker = tapes.TapeMaker(tmp_path, tmp_path / "cache", None, "cafe", 0)
        assert maker.make(entry, with_pause=True) is None
        assert maker.make(entry, with_pause=False).text == "tea"
    assert made == [("a.flac", True), ("a.flac", False)]
    tapes.TapeMaker(tmp_path, tmp_path / "cache", None, "cafe", 1).make(entry, with_pause=False)
    assert len(made) == 3, "another seed is another tape"
