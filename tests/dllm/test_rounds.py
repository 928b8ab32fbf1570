"""Running an engine to the end of its drafts."""

from __future__ import annotations

import pytest

from dllm.drafts import Finished
from dllm.rounds import run_out
from tests.dllm.test_engine import engine, run, spec


def test_all_drafts_are_run_to_their_end_and_tell_what_rounds_tell() -> None:
    here, there = engine(), engine()
    for each in (here, there):
        for conversation in "abc":
            each.submit(spec(conversation=conversation))
    told = list(run_out(here))
    assert [type(event) for event in told] == [type(event) for event in run(there)]
    assert sum(isinstance(event, Finished) for event in told) == 3 and not here.drafts
    assert list(run_out(here)) == []


def test_what_a_draft_fails_with_is_raised() -> None:
    broken = engine()
    broken.submit(spec())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the device is gone")

    broken.model.forward = fail  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(run_out(broken))
