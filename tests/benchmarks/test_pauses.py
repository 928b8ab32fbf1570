"""Pauses are drawn and put in as described."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from voiceagent import endpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATE = 16_000


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pauses")


def test_a_pause_belongs_to_its_recording_and_seed(pauses: ModuleType) -> None:
    assert pauses.draw_pause("a.flac", 5, 0) == pauses.draw_pause("a.flac", 5, 0)
    assert pauses.draw_pause("a.flac", 5, 0) != pauses.draw_pause("b.flac", 5, 0)
    assert pauses.draw_pause("a.flac", 5, 0) != pauses.draw_pause("a.flac", 5, 1)


def test_pauses_have_the_lengths_and_places_that_are_claimed(pauses: ModuleType) -> None:
    drawn = [pauses.draw_pause(f"{number}.flac", 4, 0) for number in range(4000)]
    lengths = sorted(length for _, length in drawn)
    assert statistics.median(lengths) == pytest.approx(0.6, rel=0.05)
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(1.5, rel=0.1)
    counts = [sum(at == place for at, _ in drawn) for place in range(4)]
    assert sum(counts) == 4000 and min(counts) > 850, "every boundary is as likely"


def test_the_lengths_are_those_that_the_decision_expects(pauses: ModuleType) -> None:
    assert (pauses.PAUSE_MEDIAN_S, pauses.PAUSE_P95_S) == (endpoint.PAUSE_MEDIAN_S, endpoint.PAUSE_P95_S)


def noise(size: int, level: float) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(size) * level).astype(np.float32)


def test_the_cut_is_at_the_quietest_moment_near_the_boundary(pauses: ModuleType) -> None:
    samples = noise(RATE, 0.1)
    samples[8_200:8_360] = 0.0
    assert pauses.quietest(samples, 0.5) == pytest.approx(8_280, abs=40)
    assert abs(pauses.quietest(samples, 0.2) / RATE - 0.2) <= 0.045, "and never further than 40 ms away"


def test_a_boundary_at_an_edge_is_cut_inside_the_recording(pauses: ModuleType) -> None:
    samples = noise(3_200, 0.1)
    assert 0 <= pauses.quietest(samples, 0.0) < samples.size
    assert 0 <= pauses.quietest(samples, 0.2) < samples.size


def test_the_background_is_the_quietest_stretch_outside_the_speech(pauses: ModuleType) -> None:
    samples = np.concatenate([noise(RATE, 0.01), noise(RATE, 0.5), noise(RATE, 0.1)])
    taken = pauses.Background(samples, (RATE, 2 * RATE), np.random.default_rng(0)).take(12_345)
    assert taken.size == 12_345
    assert float(np.sqrt(np.square(taken).mean())) == pytest.approx(0.01, rel=0.1)


def test_a_recording_without_a_free_stretch_gets_faint_noise(pauses: ModuleType) -> None:
    taken = pauses.Background(noise(RATE, 0.5), (0, RATE), np.random.default_rng(0)).take(RATE)
    assert float(np.sqrt(np.square(taken).mean())) == pytest.approx(10 ** (-66 / 20), rel=0.05)


def test_samples_become_16_bit_numbers_and_are_clipped(pauses: ModuleType) -> None:
    found = np.frombuffer(pauses.pcm(np.array([0.0, 0.5, 1.0, -1.0, 3.0, -3.0], np.float32)), "<i2")
    assert found.tolist() == [0, 16_384, 32_767, -32_767, 32_767, -32_767]


def test_only_recordings_of_the_kinds_whose_end_is_known_are_taken(pauses: ModuleType, tmp_path: Path) -> None:
    known = {"path": "a", "kind": "order", "speech_end_s": 1.0}
    lines = [known, {"path": "b", "kind": "order"}, {**known, "path": "c", "kind": "noise"}, {**known, "path": "d"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [entry["path"] for entry in pauses.entries(tmp_path, ("order",))] == ["a", "d"]
    assert [entry["path"] for entry in pauses.entries(tmp_path, ("order",), every=2)] == ["a"]


class Boundaries:
    """Alignment that is known: a word ends at each half second."""

    def word_ends(self, samples: Any, words: list[str]) -> list[float] | None:
        return None if words == ["hm", "hm"] else [1.5 + 0.5 * at for at in range(len(words))]


def test_a_folder_with_pauses_says_where_they_are_and_when_speech_ends(
    pauses: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "Aligner", Boundaries)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    texts = {"a.flac": "a tea please", "b.flac": "tea", "c.flac": "hm hm"}
    entry = {"kind": "order", "speech_start_s": 0.25, "speech_end_s": 1.75, "speaker": "s", "slots": {}}
    lines = [{**entry, "path": path, "text": text} for path, text in texts.items()]
    (data / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for path in texts:
        soundfile.write(
            data / path, np.concatenate([noise(4_000, 0.001), noise(24_000, 0.3), noise(8_000, 0.001)]), RATE
        )
    for share in (1.0, 0.0):
        made = pauses.write(data, ("order",), share, 0, out)
        assert made == [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        for line in made:
            _, length_s = pauses.draw_pause(line["path"], 2, 0)
            is_paused = share == 1.0 and line["path"] == "a.flac"
            assert line["pause_s"] == pytest.approx(length_s if is_paused else 0.0, abs=1e-3)
            assert line["speech_end_s"] == pytest.approx(2.5 + line["pause_s"], abs=1e-3), "one second leads in"
            assert (line["pause_at_s"] is not None) == is_paused and "slots" not in line
            samples, rate = soundfile.read(out / line["path"], dtype="float32")
            assert rate == RATE and samples.size / RATE == pytest.approx(line["speech_end_s"] + 2.6, abs=1e-3)
            if is_paused:
                at = round((line["pause_at_s"] + line["pause_s"] / 2) * RATE)
                assert float(np.abs(samples[at - 800 : at + 800]).max()) < 0.01, (
                    "its own background, not silence or speech"
                )
