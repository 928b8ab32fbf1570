"""Two processes train what one does: rows shared by FSDP, or matrices shared by tensor parallelism."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from dllm.errors import ConfigError
from dllm.models.transformer import Transformer
from dllm.train import distributed
from dllm.train.checkpoints import read_state
from dllm.train.config import TrainConfig
from dllm.train.distributed import Place
from dllm.train.feed import Feed
from dllm.train.start import Start, make_task
from dllm.train.tasks import DialoguePart
from dllm.train.trainer import Budget, Trainer
from tests.dllm import tiny

STEPS = 3
PATIENCE = timedelta(seconds=120)
CLOSE = 2e-4
"""float32: sums in another order; Muon and AdamW divide by what is small at first. Relative, after three steps."""
SAME_WAY = 0.02
"""The same for weights: how far apart, as a share of how far they have moved."""

BASE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rows_per_step": 4,
    "rows_per_forward": 1,
    "warmup_steps": 2,
    "compiled": False,
    "samples": 0,
}
WAYS: dict[str, dict[str, Any]] = {
    "rows of packed documents": {"objective": "masked", "row_tokens": 96, "optimiser": "adamw", "adamw_lr": 3e-3},
    "rows of dialogues, Muon": {"max_jump": 0},
    "matrices, Muon": {"tensor_parallel": 2, "objective": "causal", "row_tokens": 96},
}


def trainer(data: Path, out: Path, config: TrainConfig, place: Place | None = None) -> Trainer:
    spec, codec = config.model_spec(), tiny.codec()
    network = Transformer(spec)
    network.reset_parameters(torch.Generator().manual_seed(config.seed))
    start = Start(spec, network, codec)
    return Trainer(out, start, make_task(start, [data], config), config, Budget(50_000), place)


def losses(one: Trainer, steps: int) -> list[tuple[float, float, int]]:
    reports = [one.train_step() for _ in range(steps)]
    return [(report.loss, report.gradient_norm, report.tokens) for report in reports]


def train_as(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = {"init_method": f"file://{folder / 'meet'}", "rank": rank, "world_size": 2, "timeout": PATIENCE}
    found: dict[str, Any] = {}
    for number, (name, changes) in enumerate(WAYS.items()):
        config = TrainConfig(**BASE | changes)
        store["init_method"] = f"file://{folder / f'meet{number}'}"
        with distributed.join("cpu", config.tensor_parallel, **store) as place:
            one = trainer(folder / "data", folder / name, config, place)
            found[name] = losses(one, STEPS)
            one.save()
            resumed = trainer(folder / "data", folder / name, config, place)
            resumed.restore()
            found[f"{name}, resumed"] = losses(resumed, 1)
            found[f"{name}, went on"] = losses(one, 1)
            if name.startswith("rows of packed"):
                with pytest.raises(ConfigError, match="2 processes to divide the 1 forwards"):
                    trainer(folder / "data", folder / name, TrainConfig(**BASE | {"rows_per_step": 1}), place)
    torch.save(found, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_dialogues(folder / "data")
    spawn(train_as, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_lose_and_learn_what_one_does(
    runs: tuple[Path, list[dict[str, Any]]], tmp_path: Path, name: str
) -> None:
    folder, found = runs
    one = trainer(folder / "data", tmp_path, TrainConfig(**BASE | WAYS[name] | {"tensor_parallel": 1}))
    before = {name: weight.detach().clone() for name, weight in one.parameters.items()}
    alone = losses(one, STEPS)
    assert found[0][name] == found[1][name]
    for mine, theirs in zip(alone, found[0][name], strict=True):
        assert mine == pytest.approx(theirs, rel=CLOSE)
    together = read_state(folder / name)["model"]
    assert together.keys() == one.parameters.keys()
    for key, weight in one.parameters.items():
        moved = (weight - before[key]).norm()
        assert moved > 0
        assert (weight - together[key]).norm() < SAME_WAY * moved, key


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_resume_their_own_state_bit_for_bit(runs: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    found = runs[1][0]
    assert found[f"{name}, resumed"][0] == found[f"{name}, went on"][0]


@pytest.mark.parametrize("name", WAYS)
def test_one_process_continues_what_two_saved(
    runs: tuple[Path, list[dict[str, Any]]], tmp_path: Path, name: str
) -> None:
    folder, found = runs
    alone = trainer(folder / "data", folder / name, TrainConfig(**BASE | WAYS[name] | {"tensor_parallel": 1}))
    alone.restore()
    assert alone.step == STEPS
    assert losses(alone, 1)[0] == pytest.approx(found[0][f"{name}, went on"][0], rel=CLOSE)


def test_rows_made_ahead_by_another_process_are_those_made_in_between(
    runs: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    one = trainer(runs[0] / "data", tmp_path, TrainConfig(**BASE))
    feed = Feed(one.task, workers=1)
    try:
        # 7: as a resumed run begins. What was made ahead of the jump is dropped.
        for step in (0, 1, 7):
            for ours, theirs in zip(one.task.parts(step), feed.parts(step), strict=True):
                assert isinstance(ours, DialoguePart) and isinstance(theirs, DialoguePart)
                assert (ours.counts, ours.shape) == (theirs.counts, theirs.shape)
                assert torch.equal(ours.batch.ids, theirs.batch.ids)
    finally:
        feed.close()


def test_a_process_alone_needs_no_others() -> None:
    with distributed.join() as place:
        assert place == Place()
        assert place.is_first and place.gather(7) == [7] and place.agree(3) == 3
    with pytest.raises(ConfigError, match="torchrun"), distributed.join("cpu", 2):
        pass
