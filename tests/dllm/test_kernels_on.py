"""The engine's networks with Triton's kernels in place of the references, in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from dllm_kernels.choose import Kind
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, prompt_of, write
from tests.kernels.both import KINDS, on

# A few float32 layers whose sums are taken in another order.
RTOL, ATOL = 1e-4, 1e-5

triton_alone = pytest.mark.parametrize("kind", KINDS[1:])


@triton_alone
def test_a_forward_is_the_same_and_stores_the_same(kind: Kind) -> None:
    network = tiny.model()
    ids = torch.tensor([prompt_of(9), prompt_of(9, seed=1)])
    positions = torch.arange(9).expand(2, 9) + 3

    def forward() -> tuple[torch.Tensor, ...]:
        stores = network.new_stores(2, 16)
        mask = torch.ones(2, 1, 9, 14, dtype=torch.bool)
        first = network(ids, positions, mask, stores, torch.tensor([5, 2]))
        second = network(ids[:, :4], positions[:, :4], None, stores, 3)
        return first, second, *(part for store in stores for part in store)

    with torch.inference_mode():
        for got, expected in zip(on(kind, forward), on("reference", forward), strict=True):
            torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


@triton_alone
def test_replies_have_the_same_tokens(kind: Kind) -> None:
    network = tiny.model()

    def reply() -> tuple[int, ...]:
        return tuple(write(network, draft_spec(prompt_of(6), 8)).tokens)

    assert on(kind, reply) == on("reference", reply)
