"""Which positions a step commits, and how many by when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dllm.schedule import deadline_floor
from dllm.selection import select

confidences = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(st.integers(1, 64), st.integers(1, 64))
def test_floor_finishes_in_exactly_the_budget(masks: int, steps: int) -> None:
    left, used = masks, 0
    while left:
        left -= deadline_floor(left, steps - used)
        used += 1
    assert used == min(steps, masks)


def test_no_step_left_means_everything_now() -> None:
    assert deadline_floor(7, 0) == 7
    assert deadline_floor(7, -3) == 7


@given(confidences, st.floats(0.05, 1), st.integers(0, 50))
def test_selection_is_confident_positions_and_at_least_the_floor(
    confidence: list[float], threshold: float, floor: int
) -> None:
    masked = list(range(len(confidence)))
    urgent = masked[: len(masked) // 2 + 1]
    chosen = select(confidence, masked, urgent, threshold, floor)
    assert set(chosen.positions) <= set(masked)
    assert {at for at in masked if confidence[at] > threshold} <= set(chosen.positions)
    assert len(set(chosen.positions) & set(urgent)) >= min(len(urgent), max(floor, 1))
    assert set(chosen.forced) <= set(urgent)
    assert all(confidence[at] <= threshold for at in chosen.forced)


def test_ties_go_left_and_the_threshold_is_strict() -> None:
    chosen = select([0.5, 0.5, 0.5, 0.5], [0, 1, 2, 3], [1, 2, 3], 0.5, 2)
    assert chosen.positions == (1, 2)
    assert chosen.forced == (1, 2)


def test_confident_urgent_positions_count_towards_the_floor() -> None:
    chosen = select([0.95, 0.1, 0.2], [0, 1, 2], [0, 1, 2], 0.9, 1)
    assert chosen.positions == (0,)
    assert chosen.forced == ()


def test_nothing_urgent_means_nothing_forced() -> None:
    assert select([0.3, 0.4], [0, 1], [], 0.9, 5).positions == ()
