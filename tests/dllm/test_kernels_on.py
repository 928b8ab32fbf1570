"""The engine's networks with Triton's kernels in place of the references, in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels.choose import Kind
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, prompt_of, write
from tests.kernels.both import KINDS, device_of, on

# A few float32 layers whose sums are taken in another order.
RTOL, ATOL = 1e-4, 1e-5

triton_alone = pytest.mark.parametrize("kind", KINDS[1:])


@triton_alone
def test_a_forward_is_the_same_and_stores_the_same(kind: Kind) -> None:
    ids = torch.tensor([prompt_of(9), prompt_of(9, seed=1)])
    positions = torch.arange(9).expand(2, 9) + 3
    mask = torch.ones(2, 1, 9, 14, dtype=torch.bool)

    def forward(
        ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        network = tiny.model().to(ids.device)
        stores = network.new_stores(2, 16)
        first = network(ids, positions, mask, stores, start)
        second = network(ids[:, :4], positions[:, :4], None, stores, 3)
        return first, second, *(part for store in stores for part in store)

    with torch.inference_mode():
        arguments = (ids, positions, mask, torch.tensor([5, 2]))
        for got, expected in zip(on(kind, forward, *arguments), on("reference", forward, *arguments), strict=True):
            torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


@triton_alone
def test_replies_have_the_same_tokens(kind: Kind) -> None:
    def reply(device: str) -> tuple[int, ...]:
        return tuple(write(tiny.model().to(device), draft_spec(prompt_of(6), 8)).tokens)

    assert on(kind, reply, device_of(kind)) == on("reference", reply, "cpu")
