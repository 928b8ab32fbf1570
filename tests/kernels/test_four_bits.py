"""Weights in four bits: bounded errors, a documented place for every weight, and nothing that depends on other groups."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels.four_bits import GROUPS, quantise_groups, unpack_groups
from tests.kernels.both import randn

each_group = pytest.mark.parametrize("group", GROUPS)


@each_group
@pytest.mark.parametrize("inputs", [1, 31, 64, 200, 1000])
def test_errors_of_a_group_are_within_the_stated_bound(group: int, inputs: int) -> None:
    weights = randn(9, inputs) * torch.logspace(-12, 12, 9).unsqueeze(1)
    packed, scale = quantise_groups(weights, group)
    count = -(-inputs // group)
    assert packed.shape == (9, count * group // 2) and packed.dtype == torch.uint8
    assert scale.shape == (9, count) and scale.dtype == torch.bfloat16
    error = unpack_groups(packed, scale, inputs) - weights
    for index in range(count):
        part = slice(index * group, min((index + 1) * group, inputs))
        # Of a whole group: what fills up the last one has no error.
        rms = (error[:, part].square().sum(1) / group).sqrt()
        assert (rms <= weights[:, part].abs().amax(1) / 14 * (1 + 2**-8)).all()


@each_group
def test_what_four_bits_can_hold_comes_back_as_it_was(group: int) -> None:
    values = torch.randint(-8, 8, (5, 3 * group), generator=torch.Generator().manual_seed(group)).float()
    values[:, ::group] = -8.0
    weights = values * torch.tensor([2.0**-9, -1.0, 3.0, 2.0**20, 0.5]).unsqueeze(1)
    packed, scale = quantise_groups(weights, group)
    assert torch.equal(unpack_groups(packed, scale, 3 * group), weights)
    # The place of every weight, by the module's words.
    half = group // 2
    for at in (0, 1, half, group - 1, group, 3 * group - 1):
        inside = at % group
        byte = packed[1, at // group * half + inside % half].item()
        stored = byte & 15 if inside < half else byte >> 4
        assert (stored - 8) * scale[1, at // group].item() == weights[1, at].item()


def test_zeros_stay_zeros_and_a_group_is_alone() -> None:
    weights = randn(2, 3, 128)
    weights[0, 1] = 0.0
    packed, scale = quantise_groups(weights)
    assert not unpack_groups(packed, scale, 128)[0, 1].any()
    weights[..., 64:] *= 1000.0
    again = quantise_groups(weights)
    assert torch.equal(again.packed[..., :32], packed[..., :32]) and torch.equal(again.scale[..., :1], scale[..., :1])


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group.*32, 64, 128.*48"):
        quantise_groups(torch.zeros(2, 96), 48)
    with pytest.raises(ValueError, match="weights"):
        quantise_groups(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="weights"):
        quantise_groups(torch.zeros(2, 64, dtype=torch.int8))
