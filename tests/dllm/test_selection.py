"""Which positions a step commits: every rule against its definition, written out over lists with exact fractions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.options import DecodeOptions, Rule
from dllm.schedule import deadline_floor
from dllm.selection import RuleTable, Scores, Selection, select
from tests.dllm.no_sync import no_host_sync

RULES: tuple[Rule, ...] = get_args(Rule)
GRAIN = 2**-20
"""Drawn values are multiples of it: every sum and product of a definition is then exact in the function's fixed point too."""


@dataclass(frozen=True)
class Row:
    """One draft: per position (probability, margin, entropy, is open, is urgent, is stable)."""

    options: DecodeOptions
    threshold: float
    floor: int
    cells: tuple[tuple[float, float, float, bool, bool, bool], ...]

    @property
    def open(self) -> list[int]:
        return [at for at, cell in enumerate(self.cells) if cell[3]]

    @property
    def urgent(self) -> list[int]:
        return [at for at, cell in enumerate(self.cells) if cell[3] and cell[4]]


def grains(low: float, high: float) -> st.SearchStrategy[float]:
    return st.integers(round(low / GRAIN), round(high / GRAIN)).map(lambda count: count * GRAIN)


# Ties, certainty and near-certainty come up often.
probabilities = st.sampled_from([0.0, 0.5, 0.75, 0.9375, 1 - GRAIN, 1.0]) | grains(0, 1)
entropies = st.sampled_from([0.0, 0.0, GRAIN, 0.25]) | grains(0, 12)


@st.composite
def rows(draw: st.DrawFn, width: int, rules: tuple[Rule, ...] = RULES) -> Row:
    options = DecodeOptions(
        rule=draw(st.sampled_from(rules)),
        factor=draw(st.sampled_from([0.25, 1.0, 2.0, 64.0]) | grains(GRAIN, 4)),
        entropy_bound=draw(st.sampled_from([0.0, 0.25]) | grains(0, 4)),
        seed=draw(st.integers(0, 2**62)),
    )
    cell = st.tuples(probabilities, probabilities, entropies, st.booleans(), st.booleans(), st.booleans())
    cells = draw(st.lists(cell, min_size=width, max_size=width))
    threshold = draw(st.sampled_from([0.5, 0.9375, 1.0]) | grains(GRAIN, 1))
    return Row(options, threshold, draw(st.integers(0, width + 2)), tuple(cells))


batches = st.integers(1, 12).flatmap(lambda width: st.lists(rows(width), min_size=1, max_size=4))


def run(batch: list[Row]) -> list[tuple[list[int], list[int]]]:
    """(chosen, forced) positions per row."""
    columns = [torch.tensor([[cell[index] for cell in row.cells] for row in batch]) for index in range(6)]
    probability, margin, entropy, is_open, urgent, stable = columns
    # What is closed may hold anything at all.
    probability, margin, entropy = (x.masked_fill(~is_open, torch.nan) for x in (probability, margin, entropy))
    scores = Scores(torch.zeros_like(is_open, dtype=torch.int64), probability, margin, entropy)
    rules = RuleTable.of([row.options for row in batch], [row.threshold for row in batch])
    with no_host_sync():
        selection = select(scores, is_open, urgent & is_open, torch.tensor([row.floor for row in batch]), rules, stable)
    return listed(selection)


def listed(selection: Selection) -> list[tuple[list[int], list[int]]]:
    pairs = zip(selection.chosen.tolist(), selection.forced.tolist(), strict=True)
    return [tuple([at for at, on in enumerate(flags) if on] for flags in pair) for pair in pairs]  # type: ignore[misc]


def wanted_by_definition(row: Row) -> set[int]:
    """The rule's own set, word for word from the definitions."""
    p, h = ([Fraction(cell[index]) for cell in row.cells] for index in (0, 2))
    margin = [Fraction(cell[1]) for cell in row.cells]
    tau, f, gamma = Fraction(row.threshold), Fraction(row.options.factor), Fraction(row.options.entropy_bound)
    descending = sorted(row.open, key=lambda at: -p[at])
    ascending = sorted(row.open, key=lambda at: h[at])
    counts = range(1, len(row.open) + 1)
    doubt = [1 - p[at] for at in descending]
    match row.options.rule:
        case "threshold":
            return {at for at in row.open if p[at] > tau}
        case "margin":
            return {at for at in row.open if margin[at] > tau}
        case "stability":
            return {at for at in row.open if p[at] > tau and row.cells[at][5]}
        case "factor":
            return set(descending[: max((n for n in counts if (n + 1) * doubt[n - 1] < f), default=0)])
        case "profile":
            return set(descending[: max((n for n in counts if sum(doubt[:n]) + doubt[n - 1] < f), default=0)])
        case "entropy":
            return {at for k, at in enumerate(ascending) if sum(h[other] for other in ascending[:k]) <= gamma}
        case "count" | "left" | "random":
            return set()


def order_by_definition(row: Row) -> list[int]:
    p, margin, h = ([cell[index] for cell in row.cells] for index in range(3))
    match row.options.rule:
        case "margin":
            return sorted(row.urgent, key=lambda at: -margin[at])
        case "entropy":
            return sorted(row.urgent, key=lambda at: h[at])
        case "left":
            return sorted(row.urgent)
        case _:
            return sorted(row.urgent, key=lambda at: -p[at])


@given(batches)
def test_every_rule_is_its_definition_and_the_floor(batch: list[Row]) -> None:
    for row, (chosen, forced) in zip(batch, run(batch), strict=True):
        wanted = wanted_by_definition(row)
        missing = max(0, min(len(row.urgent), max(1, row.floor)) - len(wanted & set(row.urgent)))
        if row.options.rule == "random":
            assert len(forced) == missing and set(forced) <= set(row.urgent)
        else:
            waiting = [at for at in order_by_definition(row) if at not in wanted]
            assert set(forced) == set(waiting[:missing])
        assert set(chosen) == wanted | set(forced)


@given(batches)
def test_something_is_chosen_while_something_is_urgent_and_never_a_closed_position(batch: list[Row]) -> None:
    for row, (chosen, forced) in zip(batch, run(batch), strict=True):
        assert set(chosen) <= set(row.open)
        assert set(forced) <= set(chosen) & set(row.urgent)
        assert not row.urgent or set(chosen) & set(row.urgent)


@given(batches, st.randoms(use_true_random=False))
def test_a_row_is_decided_alone(batch: list[Row], random) -> None:  # type: ignore[no-untyped-def]
    together = run(batch)
    assert together == [run([row])[0] for row in batch]
    order = list(range(len(batch)))
    random.shuffle(order)
    assert run([batch[index] for index in order]) == [together[index] for index in order]


@given(batches, st.integers(1, 5))
def test_columns_of_padding_change_nothing(batch: list[Row], padding: int) -> None:
    nothing = ((1.0, 1.0, 0.0, False, False, True),) * padding
    wider = [Row(row.options, row.threshold, row.floor, row.cells + nothing) for row in batch]
    assert run(wider) == run(batch)


@given(st.integers(1, 12).flatmap(lambda width: rows(width, ("factor",))))
def test_profile_chooses_what_factor_chooses_and_more(row: Row) -> None:
    profile = Row(DecodeOptions(rule="profile", factor=row.options.factor), row.threshold, 0, row.cells)
    factor = Row(row.options, row.threshold, 0, row.cells)
    (narrow, _), (wide, _) = run([factor, profile])
    assert set(wanted_by_definition(factor)) <= set(wide)
    if len({cell[0] for cell in row.cells if cell[3]}) == 1:
        assert narrow == wide


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(2**-10, 8))
def test_profile_is_no_narrower_than_factor_at_any_rounding(values: list[float], factor: float) -> None:
    cells = tuple((value, 0.0, 0.0, True, False, False) for value in values)
    narrow, wide = run([Row(DecodeOptions(rule=rule, factor=factor), 1.0, 0, cells) for rule in ("factor", "profile")])  # type: ignore[arg-type]
    assert set(narrow[0]) <= set(wide[0])


@given(st.lists(st.sampled_from([0.0, 1e-30, 2**-20, 0.3, 2.0]), min_size=1, max_size=12))
def test_entropy_bound_of_zero_takes_every_zero_entropy_and_the_next(values: list[float]) -> None:
    cells = tuple((0.5, 0.0, value, True, True, False) for value in values)
    chosen, forced = run([Row(DecodeOptions(rule="entropy", entropy_bound=0.0), 1.0, 0, cells)])[0]
    zeros = [at for at, value in enumerate(values) if value == 0.0]
    others = sorted((value, at) for at, value in enumerate(values) if value > 0.0)
    assert set(chosen) == {*zeros, *(at for _, at in others[:1])}
    assert forced == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "random"])
def test_ties_go_left(rule: Rule) -> None:
    cells = ((0.5, 0.5, 1.0, True, False, True), *((0.5, 0.5, 1.0, True, True, True),) * 7)
    options = DecodeOptions(rule=rule, factor=0.5, entropy_bound=0.0)
    chosen, _ = run([Row(options, 0.5, 3, cells)])[0]
    assert chosen == ([0, 1, 2, 3] if rule == "entropy" else [1, 2, 3])


def test_many_ties_go_left_too() -> None:
    cells = tuple((at % 3 / 4, 0.0, 0.0, True, True, False) for at in range(3000))
    assert run([Row(DecodeOptions(rule="count"), 1.0, 700, cells)])[0][0] == list(range(2, 2100, 3))


def test_thresholds_are_strict() -> None:
    cells = ((0.5, 0.75, 0.0, True, False, True), (0.75, 0.5, 0.0, True, False, True))
    for rule, expected in (("threshold", [1]), ("margin", [0]), ("stability", [1])):
        assert run([Row(DecodeOptions(rule=rule), 0.5, 0, cells)])[0] == (expected, [])  # type: ignore[arg-type]


def test_confident_urgent_positions_count_towards_the_floor() -> None:
    cells = ((0.95, 0.0, 0.0, True, True, False), (0.1, 0.0, 0.0, True, True, False), (0.99, 0, 0, True, False, False))
    assert run([Row(DecodeOptions(), 0.9, 1, cells)])[0] == ([0, 2], [])
    assert run([Row(DecodeOptions(), 0.9, 2, cells)])[0] == ([0, 1, 2], [1])


def test_nothing_urgent_means_nothing_forced() -> None:
    cells = ((0.3, 0.3, 0.3, True, False, True),) * 3
    for rule in RULES:
        assert run([Row(DecodeOptions(rule=rule, factor=0.1, entropy_bound=0.0), 0.9, 5, cells)])[0][1] == []
    assert run([Row(DecodeOptions(rule="count"), 0.9, 5, cells)])[0] == ([], [])


def test_a_position_where_no_token_is_allowed_is_never_chosen() -> None:
    ones = torch.ones(1, 3)
    every = torch.ones(1, 3, dtype=torch.bool)
    for rule in RULES:
        rules = RuleTable.of([DecodeOptions(rule=rule)], [0.5])
        scores = Scores(torch.tensor([[4, -1, 5]]), ones, ones, 0 * ones)
        assert listed(select(scores, every, every, torch.tensor([9]), rules, every))[0][0] == [0, 2]


def test_what_is_doubtful_waits_for_the_floor() -> None:
    ones = torch.ones(1, 3)
    every = torch.ones(1, 3, dtype=torch.bool)
    doubtful = torch.tensor([[False, True, False]])
    scores = Scores(torch.tensor([[4, 6, 5]]), 0.95 * ones, ones, 0 * ones)
    rules = RuleTable.of([DecodeOptions()], [0.9])
    assert listed(select(scores, every, every, torch.tensor([1]), rules, None, doubtful))[0] == ([0, 2], [])
    assert listed(select(scores, every, every, torch.tensor([3]), rules, None, doubtful))[0] == ([0, 1, 2], [1])


@settings(max_examples=60)
@given(st.data(), st.sampled_from(RULES), st.integers(1, 12), st.integers(1, 8))
def test_the_deadline_floor_finishes_any_rule_in_the_budget(
    data: st.DataObject, rule: Rule, width: int, steps: int
) -> None:
    row = data.draw(rows(width, (rule,)))
    # A rule that never wants anything takes exactly the budget.
    is_shy = data.draw(st.booleans())
    left, used = set(range(width)), 0
    while left:
        floor = deadline_floor(len(left), steps - used)
        cells = tuple(
            (*((0.0, 0.0, 12.0) if is_shy else row.cells[at][:3]), *(at in left,) * 2, True) for at in range(width)
        )
        options = DecodeOptions(rule=rule, factor=row.options.factor, entropy_bound=row.options.entropy_bound)
        left -= set(run([Row(options, row.threshold, floor, cells)])[0][0])
        used += 1
        assert used <= steps
    if rule in ("count", "left", "random") or (is_shy and row.options.factor <= 1 and rule != "entropy"):
        assert used == min(steps, width)


def test_random_order_is_every_order_equally_often() -> None:
    batch = 4000
    options = [DecodeOptions(rule="random", seed=seed * 7919) for seed in range(batch)]
    every = torch.ones(batch, 4, dtype=torch.bool)
    ones = torch.ones(batch, 4)
    scores = Scores(torch.zeros(batch, 4, dtype=torch.int64), ones, ones, ones)
    rules = RuleTable.of(options, [1.0] * batch)
    chosen = listed(select(scores, every, every, torch.full((batch,), 2), rules))
    counts = {}
    for positions, _ in chosen:
        counts[tuple(positions)] = counts.get(tuple(positions), 0) + 1
    # Six pairs; chi-square with 5 degrees of freedom passes 20.5 once in a thousand. The seeds are fixed, so it does or does not.
    expected = batch / 6
    assert len(counts) == 6 and sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5


def test_random_order_stays_the_same_from_step_to_step() -> None:
    def chosen(left: set[int], floor: int) -> set[int]:
        cells = tuple((0.5, 0.0, 0.0, at in left, True, False) for at in range(16))
        return set(run([Row(DecodeOptions(rule="random", seed=5), 1.0, floor, cells)])[0][0])

    everything = set(range(16))
    first = chosen(everything, 4)
    assert first | chosen(everything - first, 4) == chosen(everything, 8)


@pytest.mark.gpu
def test_a_gpu_chooses_the_same_without_waiting() -> None:
    generator = torch.Generator().manual_seed(5)
    options = [DecodeOptions(rule=rule, factor=2.0, entropy_bound=3.0, seed=at) for at, rule in enumerate(RULES)]
    shape = (len(options), 96)
    # Few different values, so that there are many ties.
    values = [torch.randint(0, 9, shape, generator=generator) / 8 for _ in range(3)]
    flags = [torch.rand(shape, generator=generator) < 0.7 for _ in range(3)]
    floor, results = torch.arange(len(options)), []
    for device in ("cpu", "cuda"):
        scores = Scores(torch.zeros(shape, dtype=torch.int64, device=device), *(value.to(device) for value in values))
        rules = RuleTable.of(options, [0.75] * len(options), device)
        is_open, urgent, stable = (flag.to(device) for flag in flags)
        due = floor.to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode announces that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            selection = select(scores, is_open, urgent, due, rules, stable)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(listed(selection))
    assert results[0] == results[1]
