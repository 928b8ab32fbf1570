"""Pins find their places on the device where the host would put them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.draft import Draft, Live
from dllm.drafts import CellState, DraftSpec, Plan
from dllm.engine import Engine
from dllm.errors import PinsDoNotFitError
from dllm.extent import TokenClasses
from dllm.options import DecodeOptions
from dllm.pins import consider_pins
from dllm.placing import Cells, Placing, is_open
from dllm.window import Window
from tests.dllm import tiny
from tests.dllm.no_sync import no_host_sync

CODEC = tiny.codec()
TABLE, V = CODEC.token_table, CODEC.vocab_size
CLASSES = TokenClasses(TABLE, V, torch.device("cpu"))
TEXTS = ("$5.10", "mocha", "7", "large", "almond milk", "$4.20")
SIGN = 30
FIGURES = sorted(TABLE.joining & TABLE.digit)


def draft_of(pins: list[str], seed: int, width: int = 16, phase: str = "first") -> Draft:
    """A draft whose canvas is partly decided, partly guessed, some of its pins fixed."""
    engine = Engine(tiny.model(), TABLE, cache_bytes=2**18)
    spans = tuple(dict.fromkeys(tuple(CODEC.encode_pin(pin)) for pin in pins))
    while sum(map(len, spans)) + 1 > width:
        spans = spans[:-1]
    spec = DraftSpec((5,), "a", width, Plan(), spans, DecodeOptions(), unpinned=SIGN if seed % 3 == 0 else None)
    draft = engine.submit(spec)
    draft.phase = phase  # type: ignore[assignment]
    drawn, canvas = random.Random(seed), draft.canvas
    tokens = [TABLE.end, SIGN, *FIGURES[:3], *sorted(TABLE.sentence_end)[:2], *sorted(TABLE.word)[:6], *spans[0]]
    for at in range(width):
        canvas.guess(at, drawn.choice(tokens), drawn.random())
        if drawn.random() < 0.15:
            canvas.states[at] = CellState.COMMITTED
    if drawn.random() < 0.4 and len(spans) > 1:
        start = drawn.randrange(width - len(spans[0]))
        canvas.pin(start, spans[0])
        draft.unplaced.remove(0)
    elif drawn.random() < 0.3 and len(spans) > 1:
        canvas.pin(drawn.randrange(width - len(spans[-1])), spans[-1])
        draft.unplaced.pop()
    return draft


def cells_of(draft: Draft) -> Cells:
    canvas = draft.canvas
    is_pinned = [state is CellState.PINNED for state in canvas.states]
    return Cells(
        torch.tensor(canvas.tokens),
        torch.tensor(canvas.confidence),
        torch.tensor(canvas.decided()),
        torch.tensor(is_pinned),
    )


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4, unique=True),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(["first", "rest"]),
    st.sampled_from([1.0, 4.0, 12.0]),
)
def test_pins_go_where_the_host_puts_them(
    pins: list[str], seed: int, steps_left: int, phase: str, scale: float
) -> None:
    draft = draft_of(pins, seed, phase=phase)
    canvas, size = draft.canvas, draft.canvas.width + seed % 3
    positions = canvas.masked()
    if not positions or not draft.unplaced:
        return
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, V, generator=generator) * scale
    # What rules forbid the model to write may be pinned all the same.
    share = (0.0, 0.1, 0.6, 0.95)[seed % 4]
    logits.masked_fill_(torch.rand(size, V, generator=generator) < share, -float("inf"))
    found = cells_of(draft)
    # The canvas of a wider company, every position looked at.
    more = size - canvas.width
    padded = Cells(
        torch.cat((found.tokens, torch.full((more,), TABLE.mask))),
        torch.cat((found.confidence, torch.zeros(more))),
        torch.cat((found.decided, torch.ones(more, dtype=torch.bool))),
        torch.cat((found.pinned, torch.zeros(more, dtype=torch.bool))),
    )
    count = len(draft.spec.pins)
    placing = Placing(draft, CLASSES, torch.device("cpu"))
    with no_host_sync():
        open_ = torch.arange(size) < canvas.width
        placed = placing.place(
            logits[: canvas.width], torch.arange(canvas.width), padded, open_, placing.start(), torch.tensor(steps_left)
        )
    try:
        allowed, pinned = consider_pins(draft, positions, logits[positions], steps_left)
    except PinsDoNotFitError:
        assert placed.fails
        return
    assert not placed.fails
    assert allowed or pinned, "every step comes nearer to the end, or the draft would take them for ever"
    assert placed.count == pinned
    assert placed.unplaced.tolist() == [index in draft.unplaced for index in range(count)]
    after, expected = placed.cells, cells_of(draft)
    assert after.tokens[: canvas.width].tolist() == expected.tokens.tolist()
    assert after.decided[: canvas.width].tolist() == expected.decided.tolist()
    assert after.pinned[: canvas.width].tolist() == expected.pinned.tolist()
    assert after.confidence[: canvas.width].tolist() == expected.confidence.tolist()
    is_decidable = placed.allowed[:size] & open_ & ~after.decided
    assert is_decidable.nonzero().flatten().tolist() == [at for at in allowed if not canvas.is_decided(at)]


def live(**changes: Any) -> Live:
    window = Window([1] * 16, 8, [24] * 16)
    values: dict[str, Any] = {"lead": 0, "lo": 0, "hi": 16, "open_lo": 0, "open_hi": 16, "due_hi": 16}
    return Live(window, **{**values, **changes}, beyond=0, stop="region", steps_left=6, alike=6)


@pytest.mark.parametrize(("changes", "expected"), [({}, True), ({"open_hi": 8}, False), ({"open_lo": 4}, False)])
def test_only_a_canvas_that_is_open_as_a_whole_places_pins_on_the_device(
    changes: dict[str, int], expected: bool
) -> None:
    engine = Engine(tiny.model(), TABLE, cache_bytes=2**18)
    draft = engine.submit(DraftSpec((5,), "a", 16, Plan(), ((40, 41),)))
    assert is_open(draft, live(**changes)) is expected
    many = engine.submit(DraftSpec((5,), "b", 16, Plan(), ((40,), (41,), (42,), (43,), (44,))))
    assert not is_open(many, live(**changes))
