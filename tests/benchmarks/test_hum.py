"""The benchmark that sets the judge of hums, without a recording."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from voiceagent.hum import likeness, traits
from voiceagent.hum_weights import TRAITS


@pytest.fixture
def hum(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("hum")


def test_the_weights_are_named_in_the_order_of_what_is_measured(hum: ModuleType) -> None:
    assert [*hum.names(), "bias"] == list(TRAITS)
    assert len(traits(np.zeros(8000, np.float32) + 0.1)) == len(hum.names())


def test_weights_are_written_as_the_module_that_is_read(hum: ModuleType) -> None:
    found: dict[str, object] = {}
    exec(hum.module(TRAITS), found)
    assert found["TRAITS"] == TRAITS


def test_fitting_tells_what_is_easy_apart_and_nobody_reported_on_is_set_on(hum: ModuleType) -> None:
    generator = np.random.default_rng(1)
    made = list(hum.hummed(12, generator))
    assert any(each.is_reported for each in made) and all(likeness(each.samples) > 0.4 for each in made)
    noise = [
        hum.Sound("word", False, False, generator.standard_normal(8000).astype(np.float32) * 0.1) for _ in range(12)
    ]
    table = hum.fitted([hum.Judged(each, True, each.samples) for each in (*made, *noise)])
    assert list(table) == list(TRAITS)
    reported = [speaker for speaker in map("order-{:02}".format, range(60)) if hum.is_reported_on("order", speaker)]
    assert 20 <= len(reported) <= 40
    assert hum.is_reported_on("command", "google-1") and not hum.is_reported_on("digit", "fsdd-lucas")
