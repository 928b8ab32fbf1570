"""Fine-tuning of published families, one of them made from an autoregressive checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dllm import loader
from dllm.convert.checkpoint import convert
from dllm.errors import ConfigError
from dllm.hub_codec import HubCodec
from dllm.train.finetune.measure import check_model
from dllm.train.finetune.plan import FinetuneOptions
from dllm.train.finetune.run import finetune, prepare
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer
from tests.dllm.test_convert import autoregressive


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "calls.jsonl"
    bodies = [
        {"id": f"{number}", "turns": [{"role": "user", "text": text}, {"role": "agent", "text": "see you soon"}]}
        for number, text in enumerate(("bye", "thanks", "that is all", "no thanks", "good bye", "okay"))
    ]
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def published(folder: Path, family: str) -> Path:
    spec = tiny_spec(family)
    write_tokenizer(folder, spec)
    loader.save(folder, spec, random_network(spec, scale=1.0).state_dict(), HubCodec.load(folder, spec), dtype=None)
    return folder


@pytest.mark.parametrize(("family", "lora"), [("sdar", 0), ("dream", 0), ("nemotron", 0), ("sdar", 4)])
def test_a_published_family_learns_and_is_written_in_its_own_layout(
    family: str, lora: int, data: Path, tmp_path: Path
) -> None:
    model = published(tmp_path / "model", family)
    options = FinetuneOptions(
        data, tmp_path / "out", model, passes=60.0, rate=100.0 if lora else 1000.0, lora_rank=lora
    )
    report = finetune(options)
    assert report.is_better and report.family == family
    assert report.before.nats.value is not None and report.after.nats.value is not None
    assert report.after.nats.value < report.before.nats.value - (0.05 if lora else 0.3)
    checkpoint = loader.load(tmp_path / "out")
    assert checkpoint.spec == tiny_spec(family)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == (model / "tokenizer_config.json").read_text()


def test_a_converted_checkpoint_is_fine_tuned(data: Path, tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    convert(tmp_path / "ar", tmp_path / "start", "sdar")
    report = finetune(FinetuneOptions(data, tmp_path / "out", tmp_path / "start", passes=10.0, rate=100.0))
    assert report.is_better and loader.load(tmp_path / "out").family.name == "sdar"


def test_dialogues_beyond_the_models_positions_are_left_out(data: Path, tmp_path: Path) -> None:
    model = published(tmp_path / "model", "dream")
    with data.open("a") as file:
        turns = [{"role": "user", "text": "tea " * 90}, {"role": "agent", "text": "yes"}]
        file.write(json.dumps({"id": "long", "turns": turns}) + "\n")
    ready = prepare(FinetuneOptions(data, tmp_path / "out", model))
    (one,) = ready.learned.left_out
    assert (one.id, one.line) == ("long", 7) and "no agent's turn ends within" in one.reason


def test_a_template_that_refuses_a_dialogue_leaves_it_out(data: Path, tmp_path: Path) -> None:
    model = published(tmp_path / "model", "dream")
    path = model / "tokenizer_config.json"
    strict = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}user:"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": strict}))
    with data.open("a") as file:
        pair = [{"role": "user", "text": "hi"}, {"role": "agent", "text": "hello"}]
        file.write(json.dumps({"id": "twice", "turns": [*pair, *pair]}) + "\n")
    ready = prepare(FinetuneOptions(data, tmp_path / "out", model))
    (one,) = ready.learned.left_out
    assert one.id == "twice" and "one message only" in one.reason


def test_a_family_without_a_mask_token_has_no_bound_to_stop_by() -> None:
    spec = tiny_spec("dream")
    uniform = replace(spec, corruption="uniform", special=replace(spec.special, mask=None))
    with pytest.raises(ConfigError, match="no held-back bound"):
        check_model(uniform)
