"""Packed rows through the whole trainer: resuming, cutting a step into parts, bfloat16, adapters, and what is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dllm import loader
from dllm.errors import CheckpointError, ConfigError, TrainingDivergedError
from dllm.hub_codec import HubCodec
from dllm.models.family import Network
from dllm.models.registry import family_named
from dllm.train import lora
from dllm.train.accounting import Counts
from dllm.train.config import TrainConfig
from dllm.train.objectives.base import Packed, Terms
from dllm.train.start import Start, begin, make_task
from dllm.train.tasks import PackedTask
from dllm.train.throughput import cost_of, matrix_rate, mean_row
from dllm.train.trainer import Budget, StepReport, Trainer
from tests.dllm import tiny
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer

CONFIG = TrainConfig(
    objective="masked",
    row_tokens=160,
    rows_per_step=4,
    rows_per_forward=2,
    spoken_share=0.0,
    optimiser="adamw",
    adamw_lr=3e-3,
    warmup_steps=2,
    answer_padding=4,
    compiled=False,
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of another family, and data."""
    tiny.write_dialogues(tmp_path / "data")
    return write_checkpoint(tmp_path, "llada"), tmp_path / "data"


def write_checkpoint(folder: Path, family: str) -> Path:
    spec = tiny_spec(family)
    codec = HubCodec.load(write_tokenizer(folder / "tokenizer", spec), spec)
    loader.save(folder / family, spec, random_network(spec, scale=2.0).state_dict(), codec, None)
    return folder / family


def trainer(folders: tuple[Path, Path], out: Path, config: TrainConfig = CONFIG, tokens: int = 50_000) -> Trainer:
    config = replace(config, init=str(folders[0]))
    start = begin(config, [folders[1]])
    return Trainer(out, start, make_task(start, [folders[1]], config), config, Budget(tokens))


def without_time(report: StepReport) -> StepReport:
    return replace(report, seconds=0.0, step_s=0.0)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}], ids=["all weights", "adapters"])
def test_a_run_stopped_in_the_middle_continues_bit_for_bit(
    folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = replace(CONFIG, **changes)
    whole = trainer(folders, tmp_path / "whole", config)
    expected = [whole.train_step() for _ in range(6)]
    half = trainer(folders, tmp_path / "half", config)
    half.run(should_stop=lambda: half.step == 3)
    config = replace(config, init=str(folders[0]))
    start = begin(config, [folders[1]], resumed=tmp_path / "half")
    resumed = Trainer(tmp_path / "half", start, make_task(start, [folders[1]], config), config, Budget(50_000))
    resumed.restore()
    for one in expected[3:]:
        assert without_time(one) == without_time(resumed.train_step())
    for name, weight in whole.ema.weights.items():
        assert torch.equal(weight, resumed.ema.weights[name])
    assert whole.ledger.sources == resumed.ledger.sources


def test_a_state_of_the_first_format_is_continued(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one = trainer(folders, tmp_path / "run")
    one.train_step()
    one.save()
    path = tmp_path / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    old = {key: value for key, value in state.items() if key not in ("sources", "earlier_tokens")}
    torch.save(old | {"format": 1}, path)
    resumed = trainer(folders, tmp_path / "run")
    resumed.restore()
    assert resumed.tokens == one.tokens
    assert without_time(resumed.train_step()).loss == without_time(one.train_step()).loss
    assert resumed.tokens == one.tokens
    torch.save(old | {"format": 99}, path)
    with pytest.raises(CheckpointError, match="state format 99"):
        resumed.restore()
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a state"):
        resumed.restore()


class Counting:
    """Next-token loss without any draw, so that the cut into parts is all that differs."""

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        mask = batch.same_document().tril().unsqueeze(1)
        logits = network.logits(network(batch.ids, batch.positions, mask))[:, :-1]
        learned = batch.learned[:, 1:] & (batch.positions[:, 1:] > 0)
        entropies = nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        total = (entropies * learned).sum()
        return Terms(total, float(learned.sum()), {"again": float(total.detach())})


class SameRows(PackedTask):
    """The same rows however they are cut into parts."""

    def parts(self, step: int, rank: int = 0, ranks: int = 1) -> list[Any]:
        config = self.config
        self.config = replace(config, rows_per_forward=1)
        ones = super().parts(step)
        self.config = config
        size = config.rows_per_forward
        return [joined(ones[at : at + size]) for at in range(0, len(ones), size)]


def joined(parts: list[Any]) -> Any:
    length = max(part.packed.ids.shape[1] for part in parts)
    fills = {"ids": 0, "document": -1, "positions": 0, "learned": False}
    columns = {
        name: torch.cat(
            [nn.functional.pad(getattr(p.packed, name), (0, length - p.packed.ids.shape[1]), value=fill) for p in parts]
        )
        for name, fill in fills.items()
    }
    return replace(parts[0], packed=Packed(**columns))


def test_cutting_a_step_into_parts_changes_nothing_but_rounding(folders: tuple[Path, Path], tmp_path: Path) -> None:
    reports = {}
    for size in (1, 4):
        config = replace(CONFIG, init=str(folders[0]), rows_per_forward=size, objective="causal")
        start = begin(config, [folders[1]])
        task = make_task(start, [folders[1]], config)
        assert isinstance(task, PackedTask)
        same = SameRows(task.corpus, Counting(), config)
        one = Trainer(tmp_path / str(size), start, same, config, Budget(50_000))
        reports[size] = [one.train_step() for _ in range(3)]
    for left, right in zip(reports[1], reports[4], strict=True):
        # float32 sums in another order; AdamW's first steps divide by small second moments.
        assert left.loss == pytest.approx(right.loss, rel=1e-4)
        assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-3)
        assert left.parts["again"] == pytest.approx(left.loss, rel=1e-5)


def test_bfloat16_products_leave_weights_and_loss_in_float32(folders: tuple[Path, Path], tmp_path: Path) -> None:
    exact = trainer(folders, tmp_path / "a").train_step()
    half = trainer(folders, tmp_path / "b", replace(CONFIG, dtype="bfloat16"))
    report = half.train_step()
    # bfloat16 keeps 8 bits: 0.4 % per product, less after averaging over tokens.
    assert report.loss == pytest.approx(exact.loss, rel=0.02)
    assert report.loss != exact.loss
    assert {p.dtype for p in half.parameters.values()} == {torch.float32}


def test_every_position_is_counted_once_by_source(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one = trainer(folders, tmp_path / "run")
    report = one.train_step()
    counts = report.sources
    assert set(counts) == {"tea", ""}
    positions = sum(rows * length for rows, length in report.shapes)
    assert counts["tea"].tokens + counts[""].padding == positions
    assert counts["tea"].padding == 0 and counts["tea"].learned == counts["tea"].noisy > 0
    assert report.tokens == one.tokens == counts["tea"].tokens
    one.train_step()
    assert one.ledger.total.tokens == one.tokens > report.tokens
    assert Counts(1, 2, 3, 4) + Counts(1, 1, 1, 1) == Counts(2, 3, 4, 5)


def test_the_export_is_a_checkpoint_of_the_family_with_its_tokenizer(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    one = trainer(folders, tmp_path / "run")
    one.train_step()
    one.save()
    loaded = loader.load(tmp_path / "run" / "export")
    assert loaded.family.name == "llada"
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter, one.ema.weights[name].bfloat16().float(), atol=0, rtol=0)


def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    one = trainer(folders, tmp_path / "run")
    one.train_step()
    with torch.no_grad():
        one.parameters["norm.weight"][0] = float("nan")
    before = one.parameters["embed_tokens.weight"].clone()
    with pytest.raises(TrainingDivergedError, match="step 2: loss nan"):
        one.train_step()
    assert torch.equal(before, one.parameters["embed_tokens.weight"])


def test_what_a_model_cannot_be_trained_with_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llada has no role tokens"):
        trainer(folders, tmp_path, replace(CONFIG, objective="dialogue"))
    with pytest.raises(ConfigError, match="row_tokens = 300: expected at most the model's 256"):
        trainer(folders, tmp_path, replace(CONFIG, row_tokens=300))
    with pytest.raises(ConfigError, match=r"masked\.depth"):
        trainer(folders, tmp_path, replace(CONFIG, options={"masked": {"depth": 1}}))


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(family: str, folder: Path, **changes: Any) -> tuple[Start, lora.Adapters, TrainConfig]:
    config = replace(CONFIG, lora_rank=2, lora_alpha=6.0, **changes)
    spec = tiny_spec(family)
    codec = HubCodec.load(write_tokenizer(folder / "tokenizer", spec), spec)
    network = random_network(spec, scale=2.0)
    adapters = lora.adapt(network, family_named(family).tensors(spec), config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".up." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return Start(spec, network, codec), adapters, config


@pytest.mark.parametrize("family", ["llada", "sdar", "dream"])
def test_merged_adapters_compute_what_adapters_beside_the_weights_do(family: str, tmp_path: Path) -> None:
    start, adapters, _ = adapted(family, tmp_path)
    merged = family_named(family).build(start.spec)
    weights = adapters.merged(start.network.state_dict())
    merged.load_state_dict(weights, strict=False)
    assert weights.keys() == merged.state_dict().keys()
    plain = random_network(start.spec, scale=2.0)
    ids = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [net(ids, torch.arange(9).expand(2, -1), None) for net in (start.network, merged.eval(), plain)]
    # float32, two products added after instead of before the sum over inputs.
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)


def test_fresh_adapters_change_nothing(tmp_path: Path) -> None:
    spec = tiny_spec("llada")
    plain, network = random_network(spec), random_network(spec)
    lora.adapt(network, family_named("llada").tensors(spec), replace(CONFIG, lora_rank=2))
    ids = torch.arange(4, 12).unsqueeze(0)
    positions = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(plain(ids, positions, None), network(ids, positions, None))


def test_adapters_are_saved_as_peft_names_them(tmp_path: Path) -> None:
    start, adapters, config = adapted("sdar", tmp_path, lora_matrices=("q_proj", "v_proj", "down_proj"))
    state = start.network.state_dict()
    adapters.save(tmp_path / "adapter", state, "someone/model")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    spec = start.spec
    inner = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
    assert set(tensors) == {
        f"base_model.model.model.layers.{layer}.{part}.{name}.lora_{side}.weight"
        for layer in range(2)
        for name, part in inner.items()
        for side in "AB"
    }
    down = tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"]
    up = tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    keys = spec.num_key_value_heads * spec.head_dim
    assert (down.shape, up.shape) == ((2, spec.hidden_size), (keys, 2))
    # What PEFT adds to the published v_proj is what merging adds to its rows of the fused matrix.
    merged, base = adapters.merged(state), random_network(spec, scale=2.0).state_dict()
    slot = family_named("sdar").tensors(spec)["model.layers.1.self_attn.v_proj.weight"]
    difference = slot.of(merged[slot.parameter]) - slot.of(base[slot.parameter])
    torch.testing.assert_close(difference, up @ down * (6.0 / 2), atol=1e-5, rtol=1e-5)
    untouched = family_named("sdar").tensors(spec)["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(untouched.of(merged[untouched.parameter]), untouched.of(base[untouched.parameter]))
    body = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (body["r"], body["lora_alpha"], body["target_modules"]) == (2, 6.0, ["down_proj", "q_proj", "v_proj"])
    assert body["base_model_name_or_path"] == "someone/model" and body["peft_type"] == "LORA"
    assert config.lora_rank == 2


def test_a_run_with_adapters_exports_the_merged_weights_and_the_adapters_alone(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, lora_rank=2, lora_matrices=("q_proj",), ema_decay=0.0)
    one = trainer(folders, tmp_path / "run", config)
    assert all("qkv_proj" in name for name in one.parameters)
    for _ in range(3):
        one.train_step()
    one.save()
    base, merged = loader.load(folders[0]), loader.load(tmp_path / "run" / "export")
    before, after = dict(base.model.named_parameters()), dict(merged.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    assert changed == {f"layers.{layer}.self_attn.qkv_proj.weight" for layer in range(2)}
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"].keys() == one.parameters.keys()


def test_a_matrix_that_is_not_there_is_named() -> None:
    spec = tiny_spec("sdar")
    config = replace(CONFIG, lora_rank=2, lora_matrices=("q_proj", "query"))
    with pytest.raises(ConfigError, match=r"\['query'\].*down_proj"):
        lora.adapt(random_network(spec), family_named("sdar").tensors(spec), config)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_counted_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    spec = replace(tiny.spec(), num_key_value_heads=4)
    network = family_named("dllm_llama").build(spec)
    network.reset_parameters(torch.Generator().manual_seed(1))  # type: ignore[operator]
    shapes = {name: p.shape for name, p in network.named_parameters()}
    ids, positions = torch.full((2, 16), 20), torch.arange(16).expand(2, -1)
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        hidden = network(ids, positions, None)
        cast(Network, network).logits(hidden).sum().backward()  # type: ignore[no-untyped-call]
    cost = cost_of(spec, shapes, shapes.keys())
    assert cost.of(32, 32, 16) == counter.get_total_flops()


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    spec = tiny.spec()
    shapes = {name: p.shape for name, p in family_named("dllm_llama").build(spec).named_parameters()}
    assert cost_of(spec, shapes, ()).position == pytest.approx(4 / 6 * cost_of(spec, shapes, shapes.keys()).position)


def test_the_matrix_rate_is_a_rate() -> None:
    rate = matrix_rate(tiny.spec(), 64, torch.device("cpu"), torch.float32, seconds=0.01)
    assert 1e6 < rate < 1e16
    assert mean_row([(2, 10), (1, 20)]) == 15.0
