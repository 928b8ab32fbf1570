"""What fixed pins rule out, against the same rules written over the canvas on the host."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.beside import Beside
from dllm.canvas import Canvas
from dllm.drafts import CellState, DraftSpec
from dllm.extent import TokenClasses
from dllm.pins import openings_of
from dllm.process import Rows
from tests.dllm import tiny
from tests.dllm.no_sync import no_host_sync

TABLE, V = tiny.codec().token_table, tiny.codec().vocab_size
CLASSES = TokenClasses(TABLE, V, torch.device("cpu"))
ENDS = torch.tensor([TABLE.end])
PINS = tuple(tuple(tiny.codec().encode_pin(text)) for text in ("$5.10", "mocha", "7"))
SIGN = 30
FIGURES, MARKS = sorted(TABLE.joining & TABLE.digit), sorted(TABLE.sentence_end | TABLE.clause_end)
TOKENS = [FIGURES[0], FIGURES[3], *MARKS[:3], *PINS[1], sorted(TABLE.word)[5], sorted(TABLE.joining - TABLE.digit)[4]]

specs = st.builds(
    lambda pins, sign: DraftSpec((5,), "a", 12, pins=pins, unpinned=sign),
    st.lists(st.sampled_from(PINS), max_size=2).map(tuple),
    st.sampled_from([None, SIGN]),
)
cells = st.lists(st.tuples(st.sampled_from(TOKENS), st.sampled_from([*CellState])), min_size=3, max_size=12)


def canvas_of(held: list[tuple[int, CellState]], spec: DraftSpec, at: int) -> Canvas:
    """With the draft's pins put into it from `at` on, as far as they fit."""
    canvas = Canvas(len(held), TABLE)
    for place, (token, state) in enumerate(held):
        if state is not CellState.MASKED:
            canvas.tokens[place], canvas.states[place] = token, state
    for pin in spec.pins:
        if at + len(pin) <= len(held):
            canvas.pin(at, pin)
        at += len(pin) + 1
    return canvas


def ruled_out(canvas: Canvas, spec: DraftSpec) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    is_fixed = [state is CellState.PINNED for state in canvas.states]

    def joins(at: int) -> bool:
        return at >= 1 and is_fixed[at - 1] and canvas.tokens[at - 1] in TABLE.word_end

    for at in range(canvas.width):
        banned = {TABLE.end} if at <= canvas.last_pin() else set()
        if spec.pins:
            if any(is_fixed[max(0, at - 2) : at + 3]):
                banned |= openings_of(spec.pins, TABLE)
            if spec.unpinned is not None and any(is_fixed):
                banned.add(spec.unpinned)
            if is_fixed[at]:
                pass
            elif joins(at):
                banned |= TABLE.joining
                if at + 1 < canvas.width and canvas.is_decided(at + 1) and canvas.tokens[at + 1] in FIGURES:
                    banned |= set(MARKS)
            elif joins(at - 1) and canvas.tokens[at - 2] in TABLE.digit:
                between = canvas.tokens[at - 1]
                if not canvas.is_decided(at - 1) or between in MARKS:
                    banned |= set(FIGURES)
        found |= {(at, token) for token in banned}
    return found


@settings(max_examples=300)
@given(st.lists(st.tuples(specs, cells, st.integers(0, 6)), min_size=1, max_size=3))
def test_fixed_pins_rule_out_what_the_canvases_say(
    company: list[tuple[DraftSpec, list[tuple[int, CellState]], int]],
) -> None:
    canvases = [canvas_of(held, spec, at) for spec, held, at in company]
    # What is fixed belongs to a pin or was given: the bound on how many rows stand behind one is taken from there.
    given = [
        replace(spec, given=tuple((at, 5) for at, state in enumerate(canvas.states) if state is CellState.PINNED))
        for (spec, _, _), canvas in zip(company, canvases, strict=True)
    ]
    width = max(canvas.width for canvas in canvases)
    padding = [width - canvas.width for canvas in canvases]
    tokens = torch.tensor([[*one.tokens, *[TABLE.mask] * more] for one, more in zip(canvases, padding, strict=True)])
    decided = torch.tensor([[*one.decided(), *[True] * more] for one, more in zip(canvases, padding, strict=True)])
    fixed = torch.tensor(
        [
            [*(state is CellState.PINNED for state in one.states), *[False] * more]
            for one, more in zip(canvases, padding, strict=True)
        ]
    )
    places = [(row, at) for row, canvas in enumerate(canvases) for at in range(canvas.width)]
    row, at = torch.tensor(places).unbind(1)
    logits = torch.zeros(len(places), V)
    beside = Beside.of(CLASSES, ENDS, given, torch.device("cpu"))
    if beside is not None:
        with no_host_sync():
            beside.apply(logits, Rows(row, at, row * width + at), tokens, decided, fixed)
    found = {
        (number, int(token)) for number in range(len(places)) for token in (logits[number] < 0).nonzero().flatten()
    }
    expected: set[tuple[int, int]] = set()
    for number, (canvas, spec) in enumerate(zip(canvases, given, strict=True)):
        first = places.index((number, 0))
        expected |= {(first + place, token) for place, token in ruled_out(canvas, spec)}
    assert found == expected
