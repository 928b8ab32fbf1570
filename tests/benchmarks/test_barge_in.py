"""What the barge-in benchmark reads from a waveform, on waveforms whose answer is known."""

from __future__ import annotations

import asyncio
import importlib
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

RATE = 16_000


@pytest.fixture
def loudspeaker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("loudspeaker")


@pytest.fixture
def interjections(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("interjections")


@pytest.fixture
def barge_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("barge_in")


def undisturbed(seconds: float) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_a_duck_a_stop_and_a_restore_are_read_where_they_are(loudspeaker: ModuleType) -> None:
    ideal = undisturbed(4.0)
    stopped = ideal.copy()
    stopped[round(2.15 * RATE) :] *= 0.05
    stopped[round(2.55 * RATE) :] = 0.0
    assert loudspeaker.read_waveform(stopped, ideal, 2.0) == (
        pytest.approx(0.15, abs=0.006),
        pytest.approx(0.55, abs=0.006),
        None,
    )
    restored = ideal.copy()
    restored[round(2.15 * RATE) : round(2.8 * RATE)] *= 0.05
    assert loudspeaker.read_waveform(restored, ideal, 2.0) == (
        pytest.approx(0.15, abs=0.006),
        None,
        pytest.approx(0.8, abs=0.006),
    )
    assert loudspeaker.read_waveform(ideal, ideal, 2.0) == (None, None, None)
    restored[round(3.3 * RATE) :] = 0.0
    assert loudspeaker.read_waveform(restored, ideal, 2.0)[1] == pytest.approx(1.3, abs=0.006), "back, and stopped then"


def test_the_loudspeaker_starts_ducks_restores_and_is_flushed(loudspeaker: ModuleType) -> None:
    speaker, now = loudspeaker.Loudspeaker(), 10.0
    speaker.push(np.ones(4 * RATE, np.float32) * 0.5, RATE, now)
    levels = []
    for number in range(60):
        if number == 20:
            speaker.turn(0.05, speaker.FADE_S)
        if number == 35:
            speaker.turn(1.0, speaker.RISE_S)
        if number == 50:
            speaker.flush()
        levels.append(float(np.abs(speaker.render(now + 0.02 * number)).max()))
    assert max(levels[:3]) == 0.0
    assert levels[15] == pytest.approx(0.5, abs=0.02)
    assert levels[22] == pytest.approx(0.025, abs=0.002)
    assert levels[45] == pytest.approx(0.5, abs=0.02)
    assert loudspeaker.turned_after(speaker, 0.3) == pytest.approx(0.1, abs=0.006), "within the ramp of 5 ms"
    assert loudspeaker.turned_after(speaker, 0.8) == pytest.approx(0.2, abs=0.001), "the flush"
    assert levels[52:] == [0.0] * 8


def test_a_loudspeaker_that_is_muted_holds_what_it_plays_and_goes_on_where_it_was(loudspeaker: ModuleType) -> None:
    whole = undisturbed(4.0) * np.linspace(0.5, 1.0, 4 * RATE, dtype=np.float32)
    for comes_back in (True, False):
        speaker = loudspeaker.Loudspeaker()
        speaker.push(whole, RATE, 0.0)
        for number in range(170):
            if number == 50:
                speaker.turn(0.05, speaker.FADE_S)
            if number == 70:
                speaker.turn(1e-6, speaker.FADE_S)
            if number == 100 and comes_back:
                speaker.turn(1.0, speaker.RISE_S)
            elif number == 100:
                speaker.flush()
            speaker.render(0.02 * number)
        played, ideal = np.concatenate(speaker.played), np.concatenate(speaker.undisturbed)
        ducked, silent, back = loudspeaker.read_waveform(played, ideal, 1.0)
        assert ducked == pytest.approx(0.0, abs=0.011)
        if comes_back:
            assert silent is None and back == pytest.approx(1.0, abs=0.07)
            assert loudspeaker.held_for(speaker) == pytest.approx(0.6, abs=0.02)
            heard = played[np.abs(played) > 0]
            assert heard.size == pytest.approx((170 - 3 - 30) * 0.02 * RATE, abs=0.03 * RATE)
            np.testing.assert_allclose(played[-RATE:], ideal[-RATE:])
        else:
            assert silent == pytest.approx(0.4, abs=0.011) and loudspeaker.held_for(speaker) is None


def test_the_onset_is_where_a_recording_becomes_loud(interjections: ModuleType) -> None:
    sound = np.concatenate([1e-4 * np.ones(RATE, np.float32), undisturbed(1.0)])
    assert interjections.audible_onset_s(sound, 1.1) == pytest.approx(1.0, abs=0.011)


def test_made_cases_are_the_same_for_a_seed_and_fit_the_scale(interjections: ModuleType) -> None:
    for make in (interjections.coughs, interjections.keyboards):
        first, again = list(make(3, 7)), list(make(3, 7))
        assert [case.name for case in first] == [case.name for case in again]
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.sound, other.sound)
            assert one.is_made and not one.interrupts and np.abs(one.sound).max() <= 1.0


class LevelDetector:
    """Whatever is loud is speech."""

    info, window_samples = None, 512

    def open(self) -> LevelDetector:
        return self

    async def probability(self, window: np.ndarray) -> float:
        return 0.9 if np.abs(window).max() > 0.02 else 0.0

    def reset(self) -> None:
        pass


class SlowDecoder:
    """Hears "uh-huh", and takes processor time for it."""

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s

    def start(self) -> None:
        pass

    def feed(self, pcm: bytes) -> None:
        began = time.process_time()
        while time.process_time() < began + self._takes_s:
            pass

    def finish(self) -> SimpleNamespace:
        return SimpleNamespace(text="uh-huh")


def test_a_busy_machine_changes_nothing_in_what_a_replay_finds(barge_in: ModuleType, interjections: ModuleType) -> None:
    case = interjections.Case("backchannel", "made", True, False, undisturbed(0.3), 0.0)
    agent = barge_in.Speech("I tell something.", undisturbed(6.0), RATE)

    def outcome(takes_s: float, pace: float) -> object:
        decoder = SlowDecoder(takes_s)
        setting = barge_in.Setting(
            LevelDetector(),
            lambda clock: barge_in.Sphinx(decoder, clock, pace),
            agent,
            barge_in.TurnDetection(),
            0.02,
        )
        return asyncio.run(barge_in.run_case(case, setting, 2.0, 7))

    idle = outcome(0.0, 0.13)
    assert idle == outcome(0.1, 0.13)
    assert len(idle.events) == 2 and "restored (backchannel)" in idle.events[1]  # type: ignore[attr-defined]
    assert idle != outcome(0.0, 0.5), "what the recogniser takes on the clock does count"
