"""Stutters in C against the reference, to the bit; `tests/dllm/test_process.py` holds the reference to what a stutter is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm_kernels import stutters
from dllm_kernels.native import Instructions
from dllm_kernels.stutters import Classes
from tests.kernels.both import on
from tests.kernels.instructions import BUILT, using

V = 7
CLASSES = Classes(
    torch.tensor([True, False, False, False, False, False, True]),
    torch.tensor([False, True, True, False, False, True, False]),
    torch.tensor([0, 6]),
)
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 9, 32, 64]
DRAFTS = 40
for_each = pytest.mark.parametrize("instructions", BUILT)


def canvases(width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, decided and chosen, [B, W], and which drafts are strict. Spans repeat; undecided cells hold anything."""
    generator = torch.Generator().manual_seed(width)

    def draw(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator)

    spans = draw(V, DRAFTS, 3).repeat(1, -(-width // 3))[:, :width]
    tokens = torch.where(draw(5, DRAFTS, width) == 0, draw(V, DRAFTS, width), spans)
    decided = draw(6, DRAFTS, width) > draw(6, DRAFTS, 1)
    chosen = draw(4, DRAFTS, width) > 0
    return torch.where(decided | chosen, tokens, -1), decided, chosen, draw(4, DRAFTS) > 0


def strided(tensor: Tensor) -> Tensor:
    """The same, every second number of a wider one."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


def banned(logits: Tensor, *arguments: Tensor) -> Tensor:
    stutters.ban(logits, *arguments, CLASSES)
    return logits


@for_each
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_banned_is_what_the_reference_bans(instructions: Instructions, width: int) -> None:
    tokens, decided, _, strict = canvases(width)
    generator = torch.Generator().manual_seed(width)
    cell = torch.randperm(DRAFTS * width, generator=generator)[: DRAFTS * width // 2 + 1]
    logits = torch.randn(len(cell), V, generator=generator)
    extreme = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0])
    pick = torch.randint(30, logits.shape, generator=generator)
    logits = torch.where(pick < 6, extreme[pick.clamp_max(5)], logits)
    arguments = (cell // width, cell, tokens, decided, strict)
    expected = on("reference", banned, logits.clone(), *arguments)
    for given in (arguments, [strided(argument) for argument in arguments]):
        with using(instructions):
            got = on("auto", banned, logits.clone(), *given)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    with using(instructions):
        got = on("auto", banned, strided(logits), *arguments)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert (expected.isneginf() & ~logits.isneginf()).any() or width == 1


@for_each
@pytest.mark.parametrize("width", WIDTHS)
def test_what_waits_is_what_waits_for_the_reference(instructions: Instructions, width: int) -> None:
    arguments = canvases(width)
    expected = on("reference", stutters.joint, *arguments, CLASSES)
    for given in (arguments, [strided(argument) for argument in arguments]):
        with using(instructions):
            assert torch.equal(on("auto", stutters.joint, *given, CLASSES), expected)
    assert expected.any() or width < 6


@pytest.mark.parametrize("name", ["logits", "canvas", "cell", "tokens", "decided", "strict"])
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    arguments = {
        "logits": torch.zeros(2, V),
        "canvas": torch.zeros(2, dtype=torch.int64),
        "cell": torch.zeros(2, dtype=torch.int64),
        "tokens": torch.zeros(1, 4, dtype=torch.int64),
        "decided": torch.zeros(1, 4, dtype=torch.bool),
        "strict": torch.ones(1, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=name):
        stutters.ban(**arguments | {name: arguments[name].double()}, classes=CLASSES)
