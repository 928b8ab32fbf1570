"""How many tokens by which step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.schedule import deadline_floor, deadline_floors
from tests.dllm.no_sync import HostSyncError, no_host_sync


@given(st.integers(1, 64), st.integers(1, 64))
def test_floor_finishes_in_exactly_the_budget(masks: int, steps: int) -> None:
    left, used = masks, 0
    while left:
        left -= deadline_floor(left, steps - used)
        used += 1
    assert used == min(steps, masks)


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_remainder_is_decided_first(masks: int, steps: int) -> None:
    left = masks
    for step in range(steps):
        due = deadline_floor(left, steps - step)
        assert due == masks // steps + (1 if step < masks % steps else 0)
        left -= due


def test_no_step_left_means_everything_now() -> None:
    assert deadline_floor(7, 0) == 7
    assert deadline_floor(7, -3) == 7


@given(st.lists(st.tuples(st.integers(0, 4096), st.integers(-3, 300)), min_size=1, max_size=8))
def test_floors_of_a_batch_are_those_of_its_rows(rows: list[tuple[int, int]]) -> None:
    masks, steps = torch.tensor(rows).unbind(1)
    with no_host_sync():
        floors = deadline_floors(masks, steps)
    assert floors.tolist() == [deadline_floor(*row) for row in rows]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x[x > 2],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 2),
        lambda x: x.index_put_((x > 2,), x.new_zeros(())),
        lambda x: x.unique(),
        lambda x: x[: x.long().sum()],
        lambda x: torch.equal(x, x),
        lambda x: x.numpy(),
    ],
)
def test_the_guard_against_waiting_sees_what_waits(read: object) -> None:
    with pytest.raises(HostSyncError), no_host_sync():
        read(torch.arange(6.0))  # type: ignore[operator]
