"""The training loop: it learns, and a resumed run is the run it continues."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dllm import loader
from dllm.errors import CheckpointError, ConfigError
from dllm.models.transformer import Transformer
from dllm.train.config import TrainConfig
from dllm.train.data import Mixture
from dllm.train.optim import Ema, learning_rate_factor, orthogonalise
from dllm.train.start import Start, begin, make_codec
from dllm.train.tasks import DialoguePart, DialogueTask
from dllm.train.trainer import Budget, Trainer
from tests.dllm import tiny

CONFIG = TrainConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rows_per_step=4,
    rows_per_forward=2,
    warmup_steps=3,
    compiled=False,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny.write_dialogues(tmp_path / "data")
    return tmp_path / "data"


def trainer(data: Path, out: Path, tokens: int = 20_000, config: TrainConfig = CONFIG) -> Trainer:
    codec, spec = tiny.codec(), config.model_spec()
    network = Transformer(spec)
    network.reset_parameters(torch.Generator().manual_seed(config.seed))
    task = DialogueTask(Mixture([data], codec, config), spec, config)
    return Trainer(out, Start(spec, network, codec), task, config, Budget(tokens))


def test_loss_falls(data: Path, tmp_path: Path) -> None:
    one = trainer(data, tmp_path / "run")
    reports = [one.train_step() for _ in range(25)]
    first = sum(report.parts["diffusion"] for report in reports[:5]) / 5
    last = sum(report.parts["diffusion"] for report in reports[-5:]) / 5
    assert last < 0.7 * first


def test_resumed_run_has_the_same_losses_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole = trainer(data, tmp_path / "whole")
    expected = [whole.train_step() for _ in range(8)]
    half = trainer(data, tmp_path / "half")
    for _ in range(4):
        half.train_step()
    half.save()
    resumed = trainer(data, tmp_path / "half")
    resumed.restore()
    actual = [resumed.train_step() for _ in range(4)]
    for one, other in zip(expected[4:], actual, strict=True):
        assert replace(one, seconds=0.0, step_s=0.0) == replace(other, seconds=0.0, step_s=0.0)
    for name, weight in whole.ema.weights.items():
        assert torch.equal(weight, resumed.ema.weights[name])


def test_every_position_of_a_row_is_clean_noisy_or_padding(data: Path, tmp_path: Path) -> None:
    parts = trainer(data, tmp_path / "run").task.parts(0)
    for part in parts:
        assert isinstance(part, DialoguePart)
        (counts,) = part.counts.values()
        assert set(part.counts) == {"tea"}
        assert counts.tokens + counts.padding == part.batch.ids.numel()
        assert counts.noisy % 8 == 0 and counts.noisy >= 8 * part.batch.answers
        assert counts.learned == len(part.batch.canvas_target) + len(part.batch.causal_target)
    assert any(part.counts["tea"].padding for part in parts)


def test_a_run_ends_with_its_budget_and_leaves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    saved = []
    one = trainer(data, tmp_path / "run", tokens=3000)
    one.run(on_checkpoint=lambda: saved.append(one.step), checkpoint_every_s=0.0)
    assert one.progress == 1.0
    assert saved[-1] == one.step
    loaded = loader.load(tmp_path / "run" / "export")
    assert loaded.spec == CONFIG.model_spec()
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter, one.ema.weights[name].bfloat16().float(), atol=0, rtol=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hidden_size"] == 32


def test_a_run_told_to_stop_saves_first(data: Path, tmp_path: Path) -> None:
    one = trainer(data, tmp_path / "run")
    one.run(should_stop=lambda: one.step == 2)
    resumed = trainer(data, tmp_path / "run")
    resumed.restore()
    assert resumed.step == 2


def test_resuming_what_is_not_there_or_of_another_shape_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        trainer(data, tmp_path / "run").restore()
    trainer(data, tmp_path / "run").save()
    with pytest.raises(
        CheckpointError, match=r"gate_up_proj\.weight has shape \[96, 32\], the configuration asks for \[80, 32\]"
    ):
        trainer(data, tmp_path / "run", config=replace(CONFIG, intermediate_size=40)).restore()


def test_tokenizer_must_fit_the_model(data: Path, tmp_path: Path) -> None:
    tiny.codec().save(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size"):
        begin(replace(CONFIG, vocab_size=300), [data], tokenizer=tmp_path / "tokenizer.json")


def test_tokenizer_is_the_same_for_the_same_data(data: Path) -> None:
    config = replace(CONFIG, vocab_size=320)
    one, two = make_codec([data], config), make_codec([data], config)
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    assert one.vocab_size <= 320


def test_learning_rate_warms_up_stays_and_falls_to_its_floor() -> None:
    factors = [learning_rate_factor(step, step / 100, CONFIG) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 3, rel=0.01)
    assert factors[2] == max(factors) == factors[60] == 1.0
    assert factors[-1] == pytest.approx(CONFIG.final_lr_fraction)


def test_wall_clock_budget_counts_work() -> None:
    budget = Budget(100, seconds=60.0)
    assert budget.progress(tokens=99, seconds=30.0) == 0.5
    assert budget.progress(tokens=0, seconds=70.0) == 1.0


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrix))
    assert singular.min() > 0.3
    assert singular.max() < 1.4


def test_average_starts_as_the_weights_and_then_lags() -> None:
    model = tiny.model()
    parameters = dict(model.named_parameters())
    ema = Ema(parameters, 0.9)
    start = {name: weight.clone() for name, weight in ema.weights.items()}
    with torch.no_grad():
        model.norm.weight.add_(1.0)
    ema.update(parameters)
    moved = ema.weights["norm.weight"] - start["norm.weight"]
    assert (moved > 0).all() and (moved < 1).all()
    assert torch.equal(ema.weights["embed_tokens.weight"], start["embed_tokens.weight"])
