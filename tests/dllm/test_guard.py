"""What the convergence guard notices, and what it leaves alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm.guard import LEAST_REPEATED, LONGEST_SPAN, MEMORY, REPEATS, Action, History, canvas_hash, repeats, watch
from tests.dllm.no_sync import no_host_sync

END = 0

Cells = list[int | None]
cells_of = st.lists(st.none() | st.sampled_from([END, 2, 3]), min_size=1, max_size=24)


def tensors(cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.tensor([[1 if token is None else token for token in cells]])
    return tokens, torch.tensor([[token is not None for token in cells]]), tokens == END


def judge(cells: Cells, history: History, *, steps_left: int = 9, revises: bool = False) -> tuple[Action, History]:
    tokens, decided, is_end = tensors(cells)
    with no_host_sync():
        actions, history = watch(
            history, tokens, decided, is_end, torch.full((1,), steps_left), torch.full((1,), revises)
        )
    return Action(int(actions[0])), history


def judged_once(cells: Cells, steps_left: int = 9) -> Action:
    return judge(cells, History.start(1, "cpu"), steps_left=steps_left)[0]


def test_a_canvas_seen_before_ends_revision_and_only_revision() -> None:
    circle: list[Cells] = [[2, None], [2, 3], [3, None]]
    for revises, expected in ((True, Action.FINISH_GREEDILY), (False, Action.GO_ON)):
        history = History.start(1, "cpu")
        for cells in circle:
            action, history = judge(cells, history, revises=revises)
            assert action is Action.GO_ON
        assert judge(circle[0], history, revises=revises)[0] is expected


def test_circles_as_long_as_the_memory_are_seen_and_an_empty_memory_knows_nothing() -> None:
    history = History.start(1, "cpu")
    for token in range(2, 2 + MEMORY):
        action, history = judge([token], history, revises=True)
        assert action is Action.GO_ON
    assert judge([2], history, revises=True)[0] is Action.FINISH_GREEDILY
    _, history = judge([2 + MEMORY], history, revises=True)
    assert judge([2], history, revises=True)[0] is Action.GO_ON


def test_masks_left_when_the_plan_is_over_are_finished() -> None:
    assert judged_once([2, None], steps_left=0) is Action.FINISH_GREEDILY
    assert judged_once([2, None], steps_left=1) is Action.GO_ON
    assert judged_once([2, END], steps_left=0) is Action.GO_ON


def test_ends_wait_until_there_is_text() -> None:
    assert judged_once([None, None, END]) is Action.HOLD_ENDS
    assert judged_once([None, 2, END]) is Action.GO_ON
    assert judged_once([END, END, END]) is Action.GO_ON
    assert judged_once([END, None]) is Action.GO_ON
    assert judged_once([None, END], steps_left=0) is Action.FINISH_GREEDILY


def test_looping_text_is_finished_and_emphasis_is_not() -> None:
    assert judged_once([2, 3, 2, 3, 2, 3, None]) is Action.FINISH_GREEDILY
    assert judged_once([2, 2, 2, None]) is Action.GO_ON
    assert judged_once([2] * 6 + [None]) is Action.FINISH_GREEDILY
    assert judged_once([2, 3, 2, None, 2, 3, 2, 3]) is Action.GO_ON
    assert judged_once([2] + [END] * 12) is Action.GO_ON


@settings(max_examples=200)
@given(st.lists(cells_of, min_size=1, max_size=3).map(lambda rows: [row[: min(map(len, rows))] for row in rows]))
def test_repetition_is_its_definition(rows: list[Cells]) -> None:
    tokens, decided, is_end = (torch.cat(parts) for parts in zip(*map(tensors, rows), strict=True))
    with no_host_sync():
        found = repeats(tokens, decided & ~is_end)

    def by_definition(cells: Cells) -> bool:
        for span in range(1, LONGEST_SPAN + 1):
            length = max(REPEATS * span, LEAST_REPEATED)
            for start in range(len(cells) - length + 1):
                piece = cells[start : start + length]
                if not {None, END} & set(piece) and all(piece[at] == piece[at % span] for at in range(length)):
                    return True
        return False

    assert found.tolist() == [by_definition(row) for row in rows]


@given(cells_of, st.data())
def test_hashes_are_equal_for_equal_canvases_only(cells: Cells, data: st.DataObject) -> None:
    tokens, decided, _ = tensors(cells)
    noise = torch.randint(0, 99, tokens.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(canvas_hash(tokens, decided), canvas_hash(torch.where(decided, tokens, noise), decided))
    other = data.draw(st.lists(st.none() | st.sampled_from([END, 2, 3]), min_size=len(cells), max_size=len(cells)))
    is_same = bool(canvas_hash(tokens, decided) == canvas_hash(*tensors(other)[:2]))
    assert is_same == (cells == other)


@given(cells_of, cells_of)
def test_a_draft_is_judged_alone(one: Cells, other: Cells) -> None:
    width = min(len(one), len(other))
    rows = [one[:width], other[:width]]
    tokens, decided, is_end = (torch.cat(parts) for parts in zip(*map(tensors, rows), strict=True))
    left, revises = torch.tensor([0, 3]), torch.tensor([True, False])
    actions, _ = watch(History.start(2, "cpu"), tokens, decided, is_end, left, revises)
    for row, cells in enumerate(rows):
        alone = judge(cells, History.start(1, "cpu"), steps_left=int(left[row]), revises=bool(revises[row]))[0]
        assert actions[row].item() == alone
