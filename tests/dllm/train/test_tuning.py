"""The loop that the tuning commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dllm.errors import ConfigError, TrainingDivergedError
from dllm.loader import Checkpoint
from dllm.train.tuning import Budget, TuneConfig, Tuner
from tests.dllm import tiny


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
