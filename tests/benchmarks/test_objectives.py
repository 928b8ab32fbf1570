"""The comparison of objectives: all see the same rows, likelihoods are what they are called, and a stopped study goes on."""

from __future__ import annotations

import importlib
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dllm.errors import ConfigError
from dllm.evaluate.likelihood import causal_log_likelihoods
from dllm.evaluate.prompts import Prompt
from dllm.models.transformer import Transformer
from dllm.train.config import TrainConfig
from dllm.train.objectives.base import Packed, Terms
from tests.dllm import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("objectives")


@pytest.fixture
def prompt() -> Prompt:
    codec = tiny.codec()
    asked = (codec.special.user, *codec.encode_text("a large tea"), codec.special.end, codec.special.agent)
    text = "A large mocha, that's $5.10."
    return Prompt("tea", "0", asked, tuple(codec.encode_text(text)), text)


def asking(bench: ModuleType, data: Path, out: Path, *more: str) -> list[str]:
    tiny.write_dialogues(data)
    tiny.write_dialogues(data, split="dev", count=4)
    geometry = ["--hidden", "32", "--layers", "1", "--vocab", "512", "--tokens", "1", "--replies", "2"]
    return ["--data", str(data), "--out", str(out), *geometry, *more]


def test_left_to_right_nothing_is_learned_behind_the_first_end(bench: ModuleType) -> None:
    end, seen = 2, []

    def remember(network: Any, batch: Packed, generator: torch.Generator) -> Terms:
        seen.append(batch.learned.int().tolist())
        return Terms(torch.zeros(()), 1.0)

    #                    prompt  answer   rest    prompt  answer alone
    ids = torch.tensor([[9, end, 7, end, end, end, 9, end, end, 8, end]])
    learned = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]]).bool()
    batch = Packed(ids, torch.zeros_like(ids), torch.arange(11).unsqueeze(0), learned)
    bench.WithoutRest(remember, end)(None, batch, torch.Generator())
    assert seen == [[[0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]]], "an end in the prompt does not count, an answer may be empty"


def test_the_likelihood_left_to_right_is_exact(bench: ModuleType, prompt: Prompt) -> None:
    subject = bench.SUBJECTS["causal"]
    network = tiny.model()
    objective = subject.make(network.spec, subject.measured)
    expected = -causal_log_likelihoods(network, prompt.tokens, [prompt.reference])[0]
    # float32 sums in another order.
    assert bench.nats_of(network, objective, prompt, 1, 0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["masked", "block"])
@pytest.mark.parametrize("draws", [1, 5])
def test_a_network_without_opinions_pays_for_every_position_of_the_canvas(
    bench: ModuleType, prompt: Prompt, name: str, draws: int
) -> None:
    subject = bench.SUBJECTS[name]
    network = Transformer(subject.spec(tiny.spec()))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    nats = bench.nats_of(network, subject.make(network.spec, subject.measured), prompt, draws, 3)
    assert nats == pytest.approx(bench.WIDTH * math.log(network.spec.vocab_size), rel=1e-5)


def test_all_subjects_have_one_geometry_and_begin_with_the_same_weights(bench: ModuleType) -> None:
    weights = {}
    for name, subject in bench.SUBJECTS.items():
        network = Transformer(subject.spec(tiny.spec()))
        network.reset_parameters(torch.Generator().manual_seed(1))
        weights[name] = network.state_dict()
    for name, of_subject in weights.items():
        added = {"soft_proj.weight"} if bench.SUBJECTS[name].is_uniform else set()
        assert of_subject.keys() - weights["masked"].keys() == added
        assert all(torch.equal(value, of_subject[key]) for key, value in weights["masked"].items())


def test_answers_that_do_not_fit_the_canvas_are_not_learned(bench: ModuleType, tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path)
    config, codec = TrainConfig(objective="masked", row_tokens=200, spoken_share=0.0), tiny.codec()
    spec = bench.SUBJECTS["masked"].spec(tiny.spec())
    corpus = bench.Answers([tmp_path], codec, spec, config)
    assert {sum(corpus.draw(random.Random(seed)).learned) for seed in range(20)} == {bench.WIDTH}
    corpus = bench.Answers([tmp_path], codec, replace(spec, canvas_multiple=2 * bench.WIDTH), config)
    with pytest.raises(ConfigError, match="answers of fewer than 32 tokens"):
        corpus.draw(random.Random(0))


def test_every_way_of_writing_is_measured_and_a_finished_objective_is_not_trained_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names, save = ["block", "uniform", "causal"], tmp_path / "found.json"
    args = asking(bench, tmp_path / "data", tmp_path / "out", "--save", str(save))
    monkeypatch.setattr(bench, "STEPS", (1, 3))
    bench.main([*args, "--objectives", *names[:2]])
    trained: list[Any] = []
    train = bench._train

    def watched(study: Any, subject: Any, *rest: Any) -> None:
        trained.append(subject)
        train(study, subject, *rest)

    monkeypatch.setattr(bench, "_train", watched)
    bench.main([*args, "--objectives", *names])
    assert trained == [bench.SUBJECTS["causal"]]
    body = json.loads(save.read_text("utf-8"))
    assert [one["objective"] for one in body["results"]] == names and body["prompts"] == 2
    for one in body["results"]:
        assert one["training"]["steps"] == 1 and one["likelihood"]["count"] == 2
        assert [row["asked"] for row in one["replies"]] == ([None] if one["objective"] == "causal" else [1, 3])
        for row in one["replies"]:
            assert row["ms"]["p50"] <= row["ms"]["p95"] and row["forwards"] >= 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert sum(line.startswith("| uniform | ") for line in lines) == 2 * (1 + 2)
    with pytest.raises(SystemExit, match="another study is in this folder"):
        bench.main([*args, "--seed", "2"])


def test_what_was_not_measured_is_shown_as_such(bench: ModuleType) -> None:
    assert bench.shown(None) == "–"
    assert bench.shown({"value": 0.25, "low": 0.125, "high": 0.5}, 100) == "25 (12–50)"
