"""Selection: Triton against the reference, to the bit; `tests/dllm/test_selection.py` holds the reference to the rules' definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm_kernels.choose import Kind
from dllm_kernels.native import Instructions
from dllm_kernels.select import ONE, RULES, CanvasColumns, RuleColumns, ScoreColumns, select
from tests.kernels.both import KINDS, on
from tests.kernels.instructions import BUILT, using

both = pytest.mark.parametrize("kind", KINDS)
triton_alone = pytest.mark.parametrize("kind", KINDS[1:])
EVERY = frozenset(RULES)


def flags(generator: torch.Generator, rows: int, width: int, share: float = 0.5) -> Tensor:
    return torch.rand(rows, width, generator=generator) < share


def batch(
    width: int, seed: int, grain: int, rows: int = len(RULES)
) -> tuple[ScoreColumns, Tensor, Tensor, RuleColumns, Tensor]:
    """Rows of every rule in turn; a coarse grain makes ties, closed positions hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    is_open, urgent = flags(generator, rows, width, 0.7), flags(generator, rows, width)
    columns = [torch.randint(grain + 1, (rows, width), generator=generator) / grain for _ in range(3)]
    columns[2] *= 3.0
    token = torch.randint(-1, 50, (rows, width), generator=generator)
    scores = ScoreColumns(token, *(column.masked_fill(~is_open, torch.nan) for column in columns))
    rules = RuleColumns(
        torch.arange(rows) % len(RULES),
        torch.rand(rows, generator=generator),
        (torch.rand(rows, generator=generator).double() * 3 * ONE).long(),
        (torch.rand(rows, generator=generator).double() * 2 * ONE).long(),
        torch.randint(2**62, (rows,), generator=generator),
    )
    floor = torch.randint(width + 2, (rows,), generator=generator)
    return scores, is_open, urgent, rules, floor


def canvas_of(rows: int, width: int, steps: list[int]) -> CanvasColumns:
    return CanvasColumns(
        torch.full((rows, width), 99),
        torch.ones(rows, width, dtype=torch.bool),
        torch.full((rows, width), 7.0),
        torch.tensor(steps).repeat(rows)[:rows].contiguous(),
        torch.arange(rows),
        torch.zeros(rows, dtype=torch.int64),
    )


def assert_same(kind: Kind, width: int, grain: int, rows: int, *, has_doubtful: bool) -> None:
    scores, is_open, urgent, rules, floor = batch(width, width + grain, grain, rows)
    generator = torch.Generator().manual_seed(width)
    stable, doubtful = flags(generator, rows, width), flags(generator, rows, width, 0.3)
    options = {"occurring": EVERY, "stable": stable, "doubtful": doubtful if has_doubtful else None}
    got, expected = (on(one, select, scores, is_open, urgent, rules, floor, **options) for one in (kind, "reference"))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("instructions", BUILT)
@pytest.mark.parametrize("grain", [1, 3, 2**20])
@pytest.mark.parametrize("width", [1, 2, 7, 33, 512])
def test_the_threshold_rule_in_c_chooses_what_the_reference_chooses(
    instructions: Instructions, width: int, grain: int
) -> None:
    scores, is_open, urgent, rules, floor = batch(width, width + grain, grain, rows=24)
    rules = rules._replace(rule=torch.zeros_like(rules.rule))
    # Where a position is open a NaN is larger than any number, as PyTorch sorts, and above no threshold.
    nothing = flags(torch.Generator().manual_seed(2), 24, width, 0.05)
    scores = scores._replace(probability=scores.probability.masked_fill(nothing, torch.nan))
    doubtful = flags(torch.Generator().manual_seed(1), 24, width, 0.3)
    for given in (None, doubtful):
        options = {"occurring": {"threshold"}, "doubtful": given}
        with using(instructions):
            got = on("auto", select, scores, is_open, urgent, rules, floor, **options)
            # As they come where columns are parts of wider ones.
            strided = on("auto", select, _strided(scores), is_open, urgent, rules, floor, **options)
        expected = on("reference", select, scores, is_open, urgent, rules, floor, **options)
        assert all(torch.equal(one, other) for one, other in zip((*got, *strided), (*expected, *expected), strict=True))
        assert expected[1].any()


def _strided(scores: ScoreColumns) -> ScoreColumns:
    return ScoreColumns(*(torch.stack((column, column), dim=2)[..., 0] for column in scores))


# Few and narrow: the interpreter takes a tenth of a second to sort one row of 32.
@triton_alone
@pytest.mark.parametrize(("width", "grain"), [(1, 3), (7, 3), (33, 3), (9, 2**20), (513, 3)])
def test_triton_chooses_what_the_reference_chooses(kind: Kind, width: int, grain: int) -> None:
    assert_same(kind, width, grain, len(RULES), has_doubtful=grain == 3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 2, 31, 64, 200, 512, 1000])
@pytest.mark.parametrize("grain", [3, 2**20])
def test_on_the_gpu_triton_chooses_what_the_reference_chooses(width: int, grain: int) -> None:
    assert_same("triton", width, grain, 20 * len(RULES), has_doubtful=True)


@triton_alone
@pytest.mark.parametrize("rule", RULES)
def test_a_company_of_one_rule_is_served_by_a_kernel_for_it_alone(kind: Kind, rule: str) -> None:
    scores, is_open, urgent, rules, floor = batch(8, 5, 7, 2)
    rules = rules._replace(rule=torch.full_like(rules.rule, RULES.index(rule)))
    stable = flags(torch.Generator().manual_seed(1), 2, 8) if rule == "stability" else None
    got, expected = (
        on(one, select, scores, is_open, urgent, rules, floor, occurring={rule}, stable=stable)
        for one in (kind, "reference")
    )
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@both
def test_zeros_of_either_sign_and_the_largest_numbers_sort_as_numbers(kind: Kind) -> None:
    largest = torch.finfo(torch.float32).max
    margin = torch.tensor([[-0.0, 0.0, -largest, largest, 1e-45, -1e-45, 0.0]])
    scores = ScoreColumns(torch.arange(7)[None], margin.clone().fill_(torch.nan), margin, margin)
    rules = RuleColumns(
        torch.tensor([RULES.index("margin")]), torch.tensor([torch.inf]), *torch.zeros(3, 1, dtype=torch.int64)
    )
    every = torch.ones(1, 7, dtype=torch.bool)
    order: list[int] = []
    for count in range(1, 8):
        chosen, forced = on(kind, select, scores, every, every, rules, torch.tensor([count]), occurring={"margin"})
        assert torch.equal(chosen, forced)
        order += [at for at in range(7) if chosen[0, at] and at not in order]
    assert order == [3, 4, 0, 1, 6, 5, 2]


@both
def test_the_canvas_is_written_where_chosen_and_steps_count_down(kind: Kind) -> None:
    width = 11
    scores, is_open, urgent, rules, _ = batch(width, 3, 5)
    rows = len(is_open)
    stable = torch.ones(rows, width, dtype=torch.bool)

    def step(
        scores: ScoreColumns, is_open: Tensor, urgent: Tensor, rules: RuleColumns, stable: Tensor, canvas: CanvasColumns
    ) -> tuple[tuple[Tensor, Tensor], CanvasColumns]:
        return select(scores, is_open, urgent, rules, occurring=EVERY, stable=stable, canvas=canvas), canvas

    before = canvas_of(rows, width, [0, 1, 3, 8])
    (chosen, forced), after = on(kind, step, scores, is_open, urgent, rules, stable, before)
    # The tensors above were moved; on the CPU they are the caller's own, and changed.
    before = canvas_of(rows, width, [0, 1, 3, 8])
    assert torch.equal(after.tokens, torch.where(chosen, scores.token, before.tokens))
    assert torch.equal(after.confidence, torch.where(chosen, scores.probability, before.confidence))
    assert torch.equal(after.is_masked, ~chosen)
    assert torch.equal(after.steps_left, (before.steps_left - 1).clamp_min(0))
    assert torch.equal(after.committed, before.committed + chosen.sum(1))
    assert torch.equal(after.forced, forced.sum(1))
    # The deadline's floor: with one step left or none, all that is urgent.
    due = urgent & is_open & (scores.token >= 0)
    assert not (due & ~chosen)[before.steps_left <= 1].any()
    least = torch.minimum(due.sum(1), -(-due.sum(1) // before.steps_left.clamp_min(1)))
    assert ((due & chosen).sum(1) >= least).all()


@both
def test_no_drafts_and_nothing_open_choose_nothing(kind: Kind) -> None:
    scores, is_open, urgent, rules, floor = batch(8, 1, 4)
    nothing = torch.zeros_like(is_open)
    chosen, forced = on(kind, select, scores, nothing, urgent, rules, floor, occurring=EVERY, stable=nothing)
    assert not chosen.any() and not forced.any()
    empty = [part[:0] for part in (is_open, urgent, floor)]
    none = on(
        kind, select, ScoreColumns(*(part[:0] for part in scores)), empty[0], empty[1],
        RuleColumns(*(part[:0] for part in rules)), empty[2], occurring={"count"},
    )  # fmt: skip
    assert none[0].shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"open": torch.ones(9, 0, dtype=torch.bool)}, "W above 0"),
        ({"urgent": torch.ones(9, 7, dtype=torch.bool)}, "urgent"),
        ({"floor": torch.ones(3, dtype=torch.int64)}, "floor"),
        ({"floor": None}, "floor"),
        ({"occurring": {"stability"}}, "stable"),
        ({"occurring": {"best"}}, "occurring"),
        ({"canvas": canvas_of(9, 7, [1])}, "tokens"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    scores, is_open, urgent, rules, floor = batch(8, 1, 4)
    given = {
        "scores": scores,
        "open": is_open,
        "urgent": urgent,
        "rules": rules,
        "floor": floor,
        "occurring": {"count"},
    }
    with pytest.raises(ValueError, match=message):
        select(**(given | change))  # type: ignore[arg-type]
