"""The loop that the tuning commands share, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dllm.cli import build_parser
from dllm.errors import ConfigError, TrainingDivergedError
from dllm.loader import Checkpoint
from dllm.train.data import Turn
from dllm.train.preference import read_pairs
from dllm.train.reinforce import find_reward
from dllm.train.tuning import Budget, TuneConfig, Tuner
from tests.dllm import tiny

PAGE = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text("utf-8")


def test_a_step_that_is_no_number_leaves_the_weights_alone(tmp_path: Path) -> None:
    tuner = Tuner(
        tmp_path, Checkpoint(tiny.spec(), tiny.model(), tiny.codec(), tmp_path), TuneConfig(), Budget(steps=2)
    )
    before = {name: weight.clone() for name, weight in tuner.checkpoint.model.state_dict().items()}
    parameter = next(iter(tuner.network.parameters()))  # type: ignore[attr-defined]
    with pytest.raises(TrainingDivergedError, match="step 0"):
        tuner.update([lambda: (parameter * torch.nan).sum()])
    assert tuner.step == 0
    for name, weight in tuner.checkpoint.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(("steps", "seconds"), [(0, 0.0), (3, 5.0)])
def test_a_budget_is_of_steps_or_of_seconds(steps: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        Budget(steps=steps, seconds=seconds)


# --- docs/tuning.md ---------------------------------------------------------------------------------------------------


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("command", ["distill", "prefer", "reinforce"])
def test_the_page_tells_of_every_option_and_of_no_other(command: str) -> None:
    parser = build_parser([command], {})
    (commands,) = (action for action in parser._actions if action.dest == "command")
    options = {name for name in commands.choices[command]._option_string_actions if name.startswith("--")}  # type: ignore[union-attr,index]
    told = set(re.findall(r"`(--[a-z-]+)", section(command) + section("What they have in common")))
    assert options - {"--help", "--data"} <= told
    assert told <= options | {"--undistilled"}  # of `dllm eval card`


def test_the_pair_of_the_page_is_one(tmp_path: Path) -> None:
    (body,) = re.findall(r"```json\n(.*?)```", section("prefer"), re.DOTALL)
    path = tmp_path / "pairs.jsonl"
    path.write_text(body.replace("\n", " ") + "\n", encoding="utf-8")
    assert len(read_pairs(path, tiny.codec(), tiny.spec())) == 1


def test_the_reward_of_the_page_is_one(tmp_path: Path) -> None:
    (body,) = re.findall(r"```python\n(.*?)```", section("reinforce"), re.DOTALL)
    path = tmp_path / "rewards.py"
    path.write_text(body, encoding="utf-8")
    reward, answer = find_reward(f"{path}:exact"), Turn("agent", "That's $5.10, ready at 7.")
    assert [reward((), text, answer) for text in ("$5.10 at 7", "$5.10.", "$6", "Hello.")] == [2.0, 1.0, -1.0, 0.0]
