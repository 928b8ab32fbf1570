"""The diffusion engine behind the `Drafter` contract, with a model that costs nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dllm.loader import Checkpoint
from tests.conftest import run_async
from tests.dllm.tiny import codec, model
from voice_pipelines.adapters.diffusion import (
    FLOOR_STEPS,
    DiffusionDrafter,
    floor_steps,
    read_quality_curve,
)
from voiceagent.backends import (
    BackendInfo,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    StepPlan,
    TokenState,
)
from voiceagent.errors import BackendError

INFO = BackendInfo("llm", "tiny", "test")
PLAN = StepPlan(canvas_width=16, steps_first=4, steps_rest=4, threshold=0.9)
TURNS = (PromptTurn("system", "Be brief."), PromptTurn("user", "I'd like a large mocha, please."))


def with_drafter(scenario: Callable[[DiffusionDrafter], Awaitable[None]]) -> None:
    async def main() -> None:
        tiny = model()
        drafter = DiffusionDrafter(Checkpoint(tiny.spec, tiny, codec(), Path("nowhere")), INFO)
        try:
            await scenario(drafter)
        finally:
            await drafter.aclose()
        assert not [thread for thread in threading.enumerate() if thread.name == "diffusion-engine"]

    run_async(main())


async def write(drafter: DiffusionDrafter, request: DraftRequest) -> list[DraftEvent]:
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    drafter.start(request, events.put_nowait)
    found: list[DraftEvent] = []
    while not found or not isinstance(found[-1], DraftFinished | DraftFailed):
        found.append(await events.get())
    return found


def test_a_draft_is_prefilled_stepped_and_finished_within_its_plan() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        first, *steps, last = await write(drafter, DraftRequest("call", TURNS, PLAN))
        assert isinstance(first, DraftPrefilled) and first.new_tokens > 0
        assert isinstance(last, DraftFinished)
        stepped = [event for event in steps if isinstance(event, DraftStepped)]
        assert len(stepped) == len(steps) == last.steps_first + last.steps_rest
        assert last.steps_first <= PLAN.steps_first and last.steps_rest <= PLAN.steps_rest
        assert [event.step for event in stepped] == list(range(1, len(steps) + 1))
        assert all(len(event.canvas) == PLAN.canvas_width for event in stepped)
        texts = [event.committed_text for event in stepped] + [last.text]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))

    with_drafter(scenario)


def test_what_must_be_said_is_in_the_reply_and_marked_as_pinned() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events = await write(drafter, DraftRequest("call", TURNS, PLAN, must_say=("$5.10", "$5.10")))
        assert isinstance(events[-1], DraftFinished)
        assert events[-1].text.count("$5.10") == 1
        last = [event for event in events if isinstance(event, DraftStepped)][-1]
        assert "".join(t.text for t in last.canvas if t.state is TokenState.PINNED).strip() == "$5.10"

    with_drafter(scenario)


def test_the_same_request_gives_the_same_reply_alone_and_in_company() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        alone = (await write(drafter, DraftRequest("alone", TURNS, PLAN)))[-1]
        others = [write(drafter, DraftRequest(f"call {i}", TURNS, PLAN)) for i in range(5)]
        for events in await asyncio.gather(*others):
            assert isinstance(alone, DraftFinished) and isinstance(events[-1], DraftFinished)
            assert events[-1].text == alone.text

    with_drafter(scenario)


def test_a_warmed_prompt_is_found_in_the_cache() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        await write(drafter, DraftRequest("call", TURNS, PLAN))
        longer = (*TURNS, PromptTurn("agent", "A large mocha."), PromptTurn("user", "yes"))
        first = (await write(drafter, DraftRequest("call", longer, PLAN)))[0]
        assert isinstance(first, DraftPrefilled)
        assert first.cached_tokens > first.new_tokens > 0
        warmed, loop, warm = asyncio.Event(), asyncio.get_running_loop(), drafter._engine.warm

        def warm_and_tell(conversation: str, tokens: Sequence[int]) -> int:
            count = warm(conversation, tokens)
            loop.call_soon_threadsafe(warmed.set)
            return count

        drafter._engine.warm = warm_and_tell  # type: ignore[method-assign]
        drafter.warm("other", (PromptTurn("system", "Another agent entirely."),))
        await warmed.wait()
        other = (PromptTurn("system", "Another agent entirely."), PromptTurn("user", "hello"))
        first = (await write(drafter, DraftRequest("other", other, PLAN)))[0]
        assert isinstance(first, DraftPrefilled) and first.cached_tokens > 0

    with_drafter(scenario)


def test_a_cancelled_draft_is_silent_and_the_next_one_works() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events: list[DraftEvent] = []
        draft = drafter.start(DraftRequest("call", TURNS, PLAN), events.append)
        draft.cancel()
        draft.cancel()
        assert isinstance((await write(drafter, DraftRequest("next", TURNS, PLAN)))[-1], DraftFinished)
        assert events == []
        assert drafter._drafts == {}

    with_drafter(scenario)


def test_a_draft_that_cannot_be_written_fails_alone() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        bad, good = await asyncio.gather(
            write(drafter, DraftRequest("bad", TURNS, replace(PLAN, canvas_width=13))),
            write(drafter, DraftRequest("good", TURNS, PLAN)),
        )
        assert isinstance(bad[-1], DraftFailed) and "width" in str(bad[-1].error)
        assert isinstance(good[-1], DraftFinished)

    with_drafter(scenario)


def test_a_long_conversation_loses_its_oldest_turns_and_never_its_instructions() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        system = drafter._codec.encode_turn("system", "Be brief.")
        turns = [PromptTurn("system", "Be brief.")]
        starts: list[tuple[int, ...]] = []
        for index in range(60):
            turns += [PromptTurn("user", f"a large mocha {index}"), PromptTurn("agent", "A large tea. Goodbye!")]
            tokens = drafter._tokens("call", turns)
            assert tokens[: len(system)] == system
            assert len(tokens) + PLAN.canvas_width <= drafter._spec.max_position_embeddings
            starts.append(tuple(tokens[: len(system) + 16]))
        # The cut moves seldom: a cut that moved every turn would make the prefix cache useless.
        moves = sum(earlier != later for earlier, later in itertools.pairwise(starts[10:]))
        assert moves <= 15

    with_drafter(scenario)


def test_the_curve_sets_the_floor_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "quality_curve.json"
    assert floor_steps(read_quality_curve(path)) == FLOOR_STEPS
    path.write_text(
        json.dumps({"widths": [16, 32], "steps": [1, 2, 4, 8], "quality": [[0.5, 0.95, 0.97, 1], [0.4, 0.8, 0.92, 1]]})
    )
    assert floor_steps(read_quality_curve(path)) == 2
    assert floor_steps(read_quality_curve(path), worth=0.96) == 4


@pytest.mark.parametrize("text", ["not json", "[]", '{"widths": [16], "steps": [1, 2], "quality": [[0.5]]}'])
def test_a_broken_curve_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quality_curve.json"
    path.write_text(text)
    with pytest.raises(BackendError, match="quality"):
        read_quality_curve(path)
