"""What is counted of agents that are not the café."""

from __future__ import annotations

import importlib
import tomllib
from types import ModuleType

import pytest

from tests.benchmarks.test_tapes import BENCHMARKS
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.turn_end.model import TurnEndModel
from voice_pipelines.turn_end.phrases import PhraseEnds

AGENTS = tomllib.loads((BENCHMARKS / "own_agents.toml").read_text("utf-8"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("own_agents")


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_said_inside_an_agents_phrases_is_waited_for_no_longer_than_without_them(
    bench: ModuleType, name: str
) -> None:
    model, phrases = TurnEndModel.load(), PhraseEnds(Vocabulary.from_table(AGENTS[name]["vocabulary"]).grammar)
    heard = [bench.Heard(said, 0.0, 1.0) for said in AGENTS[name]["inside"]]
    assert heard
    for each in heard:
        assert bench.waited_s(each, model, phrases) <= bench.waited_s(each, model, None)


def test_sentences_that_were_misheard_are_counted_apart(bench: ModuleType) -> None:
    heard = [bench.Heard("a", 0.0, 0.01), bench.Heard("b", 0.2, 1.0), bench.Heard("c", 0.8, 0.02)]
    counted = bench.recognised(heard)
    assert (counted["right"], counted["misheard"]) == (2, 1)
    assert (counted["right, surely misheard"], counted["misheard, surely misheard"]) == (1, 1)
    assert bench.recognised([])["sentences"] == 0
