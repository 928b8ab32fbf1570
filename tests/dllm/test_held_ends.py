"""Held ends-of-turn, with the built-in model, whose first guesses of an end are often wrong."""

from __future__ import annotations

import pytest

from dllm import loader
from dllm.drafts import DraftSpec, Finished, Plan, Stepped
from dllm.engine import Engine
from dllm.options import DecodeOptions

HELD = DecodeOptions(hold_ends=True, no_stutter=True)


@pytest.fixture(scope="module")
def builtin() -> loader.Checkpoint:
    return loader.load(None)


def steps_of(checkpoint: loader.Checkpoint, prompt: tuple[int, ...], plan: Plan) -> tuple[list[Stepped], Finished]:
    engine = Engine(checkpoint.model, checkpoint.codec.token_table, cache_bytes=2**24)
    engine.submit(DraftSpec(prompt, "call", 16, plan, options=HELD))
    steps: list[Stepped] = []
    while True:
        for event in engine.run_round():
            if isinstance(event, Stepped):
                steps.append(event)
            if isinstance(event, Finished):
                return steps, event


@pytest.mark.parametrize(
    "text", ["i would like a large mocha", "what time do you close", "yes please", "thank you bye"]
)
def test_an_unsure_end_is_never_decided_in_the_step_that_decides_the_last_word(
    builtin: loader.Checkpoint, text: str
) -> None:
    codec = builtin.dialogue_codec
    prompt = tuple(codec.encode_prompt([("system", "You answer the phone of a small cafe."), ("user", text)]))
    steps, last = steps_of(builtin, prompt, Plan(1000, 1000, threshold=1.0))
    # At a threshold of 1 nothing is sure, and with so many steps left the floor asks for one position at a time.
    assert [step.committed for step in steps] == [1] * (len(last.tokens) + 1)


def test_at_the_last_step_an_unsure_end_is_decided_all_the_same(builtin: loader.Checkpoint) -> None:
    prompt = tuple(16 + (index * 7919) % 4000 for index in range(300))
    steps, last = steps_of(builtin, prompt, Plan(1, 1, threshold=1.0))
    assert len(steps) <= 2 and last.reason == "end_of_turn"
