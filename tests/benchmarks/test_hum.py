"""The benchmark that sets the judge of hums, without a recording."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from voiceagent import hum_weights
from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.hum import likeness, traits


@pytest.fixture
def hum(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("hum")


@pytest.fixture
def sounds(hum: ModuleType) -> ModuleType:
    return importlib.import_module("hum_sounds")


def recording(sounds: ModuleType, *, is_reported: bool = False) -> object:
    """A voice that says a low vowel four times."""
    t = np.arange(round(0.3 * INPUT_RATE_HZ)) / INPUT_RATE_HZ
    vowel = sum(np.sin(2 * np.pi * 120 * k * t) / k**2 for k in range(1, 20)) * np.hanning(t.size)
    samples = np.concatenate([np.zeros(3200), *[vowel, np.zeros(1600)] * 4]).astype(np.float32) * 0.2
    return sounds.Recording("read", "somebody", is_reported, samples, 0.2)


def test_weights_are_written_as_the_module_that_is_read(hum: ModuleType) -> None:
    generator = np.random.default_rng(1)
    net = hum.Perceptron(generator.normal(size=(7, 5)), generator.normal(size=5), generator.normal(size=5), -0.5)
    found: dict[str, np.ndarray] = {}
    exec(hum.module(hum.Judge(np.arange(7.0), np.ones(7), net)), found)
    assert found["INTO"].shape == (7, 5) and found["OUT_BIAS"] == -0.5 + hum.FAVOUR
    for name, wanted in (("INTO", net.into), ("INTO_BIAS", net.into_bias), ("OUT", net.out), ("MEANS", np.arange(7.0))):
        np.testing.assert_allclose(found[name], wanted, atol=6e-4)  # Three decimals.


def test_fitting_tells_what_is_easy_apart(hum: ModuleType, sounds: ModuleType) -> None:
    generator = np.random.default_rng(1)
    made = list(sounds.hummed(80, generator))
    noise = [sounds.Sound("word", False, False, generator.standard_normal(8000).astype(np.float32) * 0.1) for _ in made]
    judge = hum.fitted([hum.Judged(each, True, each.samples) for each in (*made, *noise)], rounds=120)
    assert judge.means.shape == hum_weights.MEANS.shape
    again = [*sounds.hummed(20, generator)]
    standard = [(traits(each.samples) - judge.means) / judge.spreads for each in (*again, *noise[:20])]
    odds = judge.net.log_odds(np.clip(standard, -4, 4))
    assert (odds[:20] > 0).mean() > 0.9 and (odds[20:] < 0).mean() > 0.9


def test_a_voice_reported_on_is_neither_set_on_nor_chosen_by(hum: ModuleType, sounds: ModuleType) -> None:
    groups = [
        {voice.split("+")[1] for voice in voices}
        for voices in (sounds.VOICES, sounds.CHOSEN_VOICES, hum.REPORTED_VOICES)
    ]
    assert [len(each) for each in groups] == [len(sounds.VOICES), len(sounds.CHOSEN_VOICES), len(hum.REPORTED_VOICES)]
    assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])


def test_half_of_the_people_and_their_voices_are_only_reported_on(sounds: ModuleType) -> None:
    reported = [speaker for speaker in map("order-{:02}".format, range(60)) if sounds.is_reported_on("order", speaker)]
    assert 20 <= len(reported) <= 40
    assert sounds.is_reported_on("command", "google-1") and not sounds.is_reported_on("digit", "fsdd-lucas")
    generator = np.random.default_rng(1)
    for is_reported in (False, True):
        said = recording(sounds, is_reported=is_reported)
        tracts = tuple(sounds.resonances(said, 2, generator))
        made = [*sounds.hummed(4, generator, tracts), *sounds.stretches(said, 6, generator), sounds.beginning(said)]
        assert len(tracts) == 2 and len(made) > 6
        assert {each.is_reported for each in made} == {is_reported}
        assert {each.whose for each in made} == {"somebody"}


def test_most_stretches_begin_and_end_between_syllables(sounds: ModuleType) -> None:
    said = recording(sounds)
    cuts = list(sounds.stretches(said, 20, np.random.default_rng(2)))
    assert cuts and all(0.15 <= each.samples.size / INPUT_RATE_HZ <= 1.2 for each in cuts)
    edges = [
        [np.abs(part).max() / np.abs(each.samples).max() for part in (each.samples[:160], each.samples[-160:])]
        for each in cuts
    ]
    assert (np.median(edges, axis=0) < 0.3).all()


def test_hums_through_a_voices_resonances_are_bounded(sounds: ModuleType) -> None:
    generator = np.random.default_rng(3)
    tracts = tuple(sounds.resonances(recording(sounds), 3, generator))
    for each in (*sounds.hummed(12, generator), *sounds.hummed(12, generator, tracts)):
        assert each.is_hum and np.isfinite(each.samples).all() and 0.02 < np.abs(each.samples).max() < 4
        assert 0 <= likeness(each.samples) <= 1
