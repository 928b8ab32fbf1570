"""The diffusion engine behind the `Drafter` contract, with models that cost nothing: the built-in family and published ones."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from dllm import draft as dllm_draft
from dllm import loader, outcome
from dllm.drafts import Event
from dllm.guard import Action
from dllm.hub_codec import HubCodec
from dllm.loader import Checkpoint
from dllm.models.registry import family_named
from tests.conftest import run_async
from tests.dllm.models.tiny_checkpoints import random_network
from tests.dllm.models.tiny_tokenizer import write_tokenizer
from tests.dllm.tiny import codec, model
from tests.voice_pipelines import families
from tests.voiceagent.standins import LevelDetector, ScriptedTranscriber, ToneSynthesizer, silence, tone
from voice_pipelines.adapters.diffusion import (
    CACHE_BYTES,
    FLOOR_STEPS,
    DiffusionDraft,
    DiffusionDrafter,
    cache_bytes,
    canvas_widths,
    decode_options,
    floor_steps,
    prompt_room,
    read_quality_curve,
    takes_pins,
)
from voice_pipelines.adapters.remote_text import says
from voice_pipelines.loopback import Call, call
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    BackendInfo,
    Backends,
    Draft,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftRevised,
    DraftStepped,
    HasEngine,
    PromptTurn,
    StepPlan,
    TokenState,
)
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.errors import BackendError
from voiceagent.events import ConversationEvent
from voiceagent.session import SessionSettings

T = TypeVar("T")
INFO = BackendInfo("llm", "tiny", "test")
PLAN = StepPlan(canvas_width=16, steps_first=4, steps_rest=4, threshold=0.9)
TURNS = (PromptTurn("system", "Be brief."), PromptTurn("user", "I'd like a large mocha, please."))


FAMILIES = ("sdar", "llada", "dream", "nemotron", "fast_dllm", "diffusion_gemma")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    return functools.cache(lambda family: families.checkpoint(family, tmp_path_factory.mktemp(family)))


def builtin() -> Checkpoint:
    tiny = model()
    return Checkpoint(tiny.spec, tiny, codec(), Path("nowhere"))


def with_drafter(scenario: Callable[[DiffusionDrafter], Awaitable[None]], checkpoint: Checkpoint | None = None) -> None:
    async def main() -> None:
        drafter = DiffusionDrafter(checkpoint or builtin(), INFO)
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


def test_the_engine_tells_what_it_has_worked_by_the_clock_and_on_a_processor() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        assert isinstance(drafter, HasEngine)
        before, begun_s = drafter.work, time.monotonic()
        assert (before.clock_s, before.thread_s) == (0.0, 0.0) and before.threads >= 1
        events = await write(drafter, DraftRequest("call", TURNS, PLAN))
        after, passed_s = drafter.work, time.monotonic() - begun_s
        computed_s = sum(event.compute_s for event in events if isinstance(event, DraftStepped | DraftPrefilled))
        assert computed_s <= after.clock_s <= passed_s
        assert 0.0 < after.thread_s <= after.clock_s + 0.01, "the two clocks are read one after the other"

    with_drafter(scenario)


async def ended(events: asyncio.Queue[DraftEvent]) -> list[DraftEvent]:
    found: list[DraftEvent] = []
    while not found or not isinstance(found[-1], DraftFinished | DraftFailed):
        found.append(await asyncio.wait_for(events.get(), 10))
    return found


def of(kind: type[T], events: Sequence[DraftEvent]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def test_a_draft_that_the_convergence_guard_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = outcome._keep

    def going_in_circles(draft: dllm_draft.Draft, values: Sequence[float], size: int) -> Any:
        found = list(values)
        found[3 * size + 2] = float(Action.FINISH_GREEDILY)
        return keep(draft, found, size)

    async def scenario(drafter: DiffusionDrafter) -> None:
        last = (await write(drafter, DraftRequest("call", TURNS, PLAN)))[-1]
        assert isinstance(last, DraftFinished) and last.guards == 0
        monkeypatch.setattr(outcome, "_keep", going_in_circles)
        last = (await write(drafter, DraftRequest("call", TURNS, PLAN)))[-1]
        assert isinstance(last, DraftFinished) and last.guards == 1

    with_drafter(scenario)


def test_a_finished_draft_can_still_be_revised_and_its_words_are_asked_for_again() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        assert drafter.can_revise
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        draft = drafter.start(DraftRequest("call", TURNS, PLAN), events.put_nowait)
        cold = (await ended(events))[-1]
        again: asyncio.Queue[DraftEvent] = asyncio.Queue()
        drafter.revise(draft, DraftRequest("call", (*TURNS, PromptTurn("note", "one mocha")), PLAN), again.put_nowait)
        told = await ended(again)
        (revised,) = of(DraftRevised, told)
        assert revised.asked_tokens > 0 and revised.forwards in (1, 2)
        states = [token.state for token in revised.canvas]
        assert len(states) == PLAN.canvas_width and states.count(TokenState.COMMITTED) == revised.kept_tokens
        assert isinstance(told[0], DraftPrefilled) and told[1] is revised
        assert isinstance(cold, DraftFinished) and isinstance(told[-1], DraftFinished)
        assert events.empty(), "nothing more is told of a draft that was revised"

    with_drafter(scenario)


def test_a_draft_that_is_being_written_is_revised_without_a_word_more_of_the_old_one() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        old: asyncio.Queue[DraftEvent] = asyncio.Queue()
        draft = drafter.start(DraftRequest("call", TURNS, replace(PLAN, canvas_width=32)), old.put_nowait)
        new: asyncio.Queue[DraftEvent] = asyncio.Queue()
        drafter.revise(draft, DraftRequest("call", TURNS[:1], PLAN), new.put_nowait)
        told = await ended(new)
        assert isinstance(told[-1], DraftFinished)
        assert all(len(event.canvas) == PLAN.canvas_width for event in of(DraftStepped, told))
        assert not of(DraftFinished, [old.get_nowait() for _ in range(old.qsize())])

    with_drafter(scenario)


@pytest.mark.parametrize("unheard", [None, "all"])
def test_words_that_change_twice_while_the_engine_is_busy_keep_what_was_written(unheard: str | None) -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        draft = drafter.start(DraftRequest("call", TURNS, PLAN), events.put_nowait)
        whole = (await ended(events))[-1]
        assert isinstance(whole, DraftFinished)
        goes_on, again = threading.Event(), asyncio.Queue[DraftEvent]()
        busy = asyncio.ensure_future(drafter.ask_engine(lambda engine: goes_on.wait(5.0)))
        await asyncio.sleep(0)
        said = whole.text if unheard else None
        between = drafter.revise(draft, DraftRequest("call", TURNS[:1], PLAN), events.put_nowait, unheard=said)
        drafter.revise(between, DraftRequest("call", TURNS, PLAN), again.put_nowait)
        goes_on.set()
        assert await busy
        (revised,) = of(DraftRevised, await ended(again))
        assert revised.asked_tokens > 0 and events.empty()

    with_drafter(scenario)


def test_a_revised_reply_says_what_must_be_said_now_and_not_what_had_to_be_said_before() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        for before, after in (
            (("$4.50",), ("$12.75",)),
            (("$4.50",), ()),
            ((), ("$12.75",)),
            (("a mocha",), ("$12.75", "a tea")),
        ):
            events: asyncio.Queue[DraftEvent] = asyncio.Queue()
            wide = replace(PLAN, canvas_width=24)
            draft = drafter.start(DraftRequest("call", TURNS, wide, must_say=before), events.put_nowait)
            await ended(events)
            again: asyncio.Queue[DraftEvent] = asyncio.Queue()
            drafter.revise(draft, DraftRequest("call", TURNS, wide, must_say=after), again.put_nowait)
            last = (await ended(again))[-1]
            assert isinstance(last, DraftFinished), last
            assert all(text in last.text for text in after) and not any(text in last.text for text in before)

    with_drafter(scenario)


def test_the_unheard_end_of_a_reply_is_asked_for_under_the_new_prompt() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        asked: dict[str, int] = {}
        for part in ("end", "all", "other"):
            events: asyncio.Queue[DraftEvent] = asyncio.Queue()
            draft = drafter.start(DraftRequest("call", TURNS, PLAN), events.put_nowait)
            whole = (await ended(events))[-1]
            assert isinstance(whole, DraftFinished)
            unheard = {"end": whole.text[-2:], "all": whole.text, "other": "something else"}[part]
            again: asyncio.Queue[DraftEvent] = asyncio.Queue()
            drafter.revise(draft, DraftRequest("call", TURNS, PLAN), again.put_nowait, unheard=unheard)
            asked[part] = sum(event.asked_tokens for event in of(DraftRevised, await ended(again)))
        assert 0 < asked["end"] < asked["all"]
        assert asked["other"] == 0, "no end of the reply reads so"

    with_drafter(scenario)


def test_an_interrupted_reply_with_as_much_to_say_is_asked_for_as_a_whole_and_one_with_more_is_not() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        wide, asked = replace(PLAN, canvas_width=24), {}
        for after in (("$12.75",), ("$12.75", "a tea")):
            events: asyncio.Queue[DraftEvent] = asyncio.Queue()
            draft = drafter.start(DraftRequest("call", TURNS, wide, must_say=("$4.50",)), events.put_nowait)
            whole = (await ended(events))[-1]
            assert isinstance(whole, DraftFinished)
            again: asyncio.Queue[DraftEvent] = asyncio.Queue()
            request = DraftRequest("call", TURNS, wide, must_say=after)
            drafter.revise(draft, request, again.put_nowait, unheard=whole.text[-2:])
            told = await ended(again)
            asked[after] = sum(event.asked_tokens for event in of(DraftRevised, told))
            last = told[-1]
            assert isinstance(last, DraftFinished) and all(text in last.text for text in after)
        assert asked["$12.75",] > 2 and asked["$12.75", "a tea"] == 0

    with_drafter(scenario)


def test_a_speculative_plan_stands_back_until_it_is_replaced() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        early: asyncio.Queue[DraftEvent] = asyncio.Queue()
        draft = drafter.start(DraftRequest("a", TURNS, replace(PLAN, is_speculative=True)), early.put_nowait)
        assert isinstance((await write(drafter, DraftRequest("b", TURNS, PLAN)))[-1], DraftFinished)
        draft.replan(PLAN)
        assert isinstance((await ended(early))[-1], DraftFinished)

    with_drafter(scenario)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_families_revise_or_say_that_they_cannot(family: str, published: Callable[[str], Checkpoint]) -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        assert drafter.can_revise is (family != "diffusion_gemma")
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        draft = drafter.start(DraftRequest("call", TURNS, PLAN), events.put_nowait)
        await ended(events)
        again: asyncio.Queue[DraftEvent] = asyncio.Queue()
        drafter.revise(draft, DraftRequest("call", TURNS[1:], PLAN), again.put_nowait)
        assert isinstance((await ended(again))[-1], DraftFinished)

    with_drafter(scenario, published(family))


def test_what_must_be_said_is_in_the_reply_and_marked_as_pinned() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events = await write(drafter, DraftRequest("call", TURNS, PLAN, must_say=("$5.10", "$5.10")))
        assert isinstance(events[-1], DraftFinished)
        assert events[-1].text.count("$5.10") == 1
        last = [event for event in events if isinstance(event, DraftStepped)][-1]
        assert "".join(t.text for t in last.canvas if t.state is TokenState.PINNED).strip() == "$5.10"

    with_drafter(scenario)


def test_the_built_in_model_s_articles_are_those_that_the_words_ask_for_and_nothing_that_was_told_changes() -> None:
    turns = (
        PromptTurn("system", "You are the voice of a small cafe."),
        PromptTurn("agent", "Hi, what can I get you?"),
        PromptTurn("user", "make me a light roast eight ounce iced mocha"),
        PromptTurn("system", "order: eight ounce light roast iced mocha\nsize missing: iced mocha"),
    )
    plan = StepPlan(canvas_width=32, steps_first=6, steps_rest=6, threshold=0.9)

    async def scenario(drafter: DiffusionDrafter) -> None:
        must_say = ("eight ounce light roast iced mocha",)
        events = await write(drafter, DraftRequest("c", turns, plan, must_say=must_say))
        (finished,) = of(DraftFinished, events)
        assert "An eight ounce light roast iced mocha" in finished.text, "left to itself the model says a eight ounce"
        assert all(finished.text.startswith(step.committed_text) for step in of(DraftStepped, events))

    with_drafter(scenario, loader.load())


def test_what_must_be_said_and_is_too_long_for_the_canvas_is_added() -> None:
    """A reply that failed for it would fail again in every later turn: nothing would ever have been said."""
    long = " ".join(["seven p m"] * 40)

    async def scenario(drafter: DiffusionDrafter) -> None:
        last = (await write(drafter, DraftRequest("call", TURNS, PLAN, must_say=(long, "$5.10"))))[-1]
        assert isinstance(last, DraftFinished)
        assert says(last.text, long) and says(last.text, "$5.10")
        assert drafter.counts.repaired == 1

    with_drafter(scenario)


def test_a_reply_that_cannot_be_read_fails_instead_of_being_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> str:
        raise OverflowError("a bug of ours")

    async def scenario(drafter: DiffusionDrafter) -> None:
        last = (await write(drafter, DraftRequest("call", TURNS, PLAN)))[-1]
        assert isinstance(last, DraftFailed) and "a bug of ours" in str(last.error)

    monkeypatch.setattr(DiffusionDrafter, "_whole", broken)
    with caplog.at_level(logging.CRITICAL):
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
        engine = drafter._runner.engine
        warmed, loop, warm = asyncio.Event(), asyncio.get_running_loop(), engine.warm

        def warm_and_tell(conversation: str, tokens: Sequence[int]) -> int:
            count = warm(conversation, tokens)
            loop.call_soon_threadsafe(warmed.set)
            return count

        engine.warm = warm_and_tell  # type: ignore[method-assign]
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
        assert drafter._runner.active == 0 and drafter._runner.engine.drafts == ()

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


def test_a_step_tells_of_the_text_that_it_made_certain_itself() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events = await write(drafter, DraftRequest("call", TURNS, PLAN))
        steps = [event for event in events if isinstance(event, DraftStepped)]
        last_of_first = [event for event in steps if event.phase == "first"][-1]
        # The next step would tell it one forward too late.
        assert last_of_first.committed_text

    with_drafter(scenario)


def test_a_new_plan_counts_its_steps_from_the_start_of_the_phase() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        slow = replace(PLAN, steps_first=200, steps_rest=200, threshold=1.0)
        drafts: list[DiffusionDraft] = []
        rounds = drafter._runner.engine.run_round

        def replan_after_two_steps() -> list[Event]:
            found = rounds()
            if drafts and drafts[0].handle is not None and (draft := drafts[0].handle.draft) and draft.steps == 2:
                drafter._replan(draft, replace(slow, steps_first=5))
            return found

        drafter._runner.engine.run_round = replan_after_two_steps  # type: ignore[method-assign]
        drafts.append(drafter.start(DraftRequest("call", TURNS, slow), events.put_nowait))
        while not isinstance(event := await events.get(), DraftFinished):
            assert not isinstance(event, DraftFailed)
        assert event.steps_first <= 5

    with_drafter(scenario)


def test_a_broken_engine_fails_every_draft_and_says_why() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        def fail() -> list[Event]:
            raise RuntimeError("no memory left on the device")

        drafter._runner.engine.run_round = fail  # type: ignore[method-assign]
        ends = await asyncio.gather(*(write(drafter, DraftRequest(f"call {n}", TURNS, PLAN)) for n in range(3)))
        for events in ends:
            assert isinstance(events[-1], DraftFailed)
            assert isinstance(events[-1].error, BackendError) and "no memory left" in str(events[-1].error)

    with_drafter(scenario)


def test_a_closed_drafter_fails_what_is_started_later() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        await drafter.aclose()
        (only,) = await write(drafter, DraftRequest("call", TURNS, PLAN))
        assert isinstance(only, DraftFailed) and isinstance(only.error, BackendError)

    with_drafter(scenario)


# --- other families ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_replies_and_says_what_must_be_said(
    family: str, published: Callable[[str], Checkpoint]
) -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        plan = replace(PLAN, canvas_width=32)
        turns = (PromptTurn("system", "be brief"), PromptTurn("user", "a large tea"), PromptTurn("note", "total $5.10"))
        plain = await write(drafter, DraftRequest("call", turns, plan))
        events = await write(drafter, DraftRequest("call", turns, plan, must_say=("$5.10",)))
        for found in (plain, events):
            last = found[-1]
            assert isinstance(last, DraftFinished), getattr(last, "error", None)
            steps = [event for event in found if isinstance(event, DraftStepped)]
            texts = [event.committed_text for event in steps] + [last.text]
            assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
            assert all(len(event.canvas) == plan.canvas_width for event in steps)
        assert isinstance(events[-1], DraftFinished) and "$5.10" in events[-1].text
        pinned = any(t.state is TokenState.PINNED for e in events if isinstance(e, DraftStepped) for t in e.canvas)
        assert pinned == (family in ("llada", "dream"))
        # What a random model says by itself is never a price: it was added, and that is counted.
        assert drafter.counts.repaired == (0 if pinned else 1)
        assert pinned or says(events[-1].text, "$5.10")

    with_drafter(scenario, published(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_options_are_the_family_s_with_ends_held_where_blocks_do_not_hold_them(family: str) -> None:
    spec, defaults = families.spec_of(family), family_named(family).defaults
    options = decode_options(spec, defaults, 32)
    assert options.rule == defaults.rule and options.edit_threshold == defaults.edit_threshold
    assert options.hold_ends == (family != "diffusion_gemma")
    assert not decode_options(spec, defaults, spec.block).hold_ends or spec.mask_kind == "full"


def test_the_built_in_family_is_decoded_as_it_was_trained_to_be() -> None:
    options = decode_options(model().spec, family_named("dllm_llama").defaults, 16)
    assert options.hold_ends and options.no_stutter and options.rule == "threshold"


def test_pins_are_for_canvases_that_are_open_as_a_whole() -> None:
    assert takes_pins(model().spec, 64)
    nemotron = families.spec_of("nemotron")
    assert takes_pins(nemotron, nemotron.block) and not takes_pins(nemotron, nemotron.block + 8)
    sdar = families.spec_of("sdar")
    assert not takes_pins(sdar, sdar.block), "its canvas begins inside a block of the prompt's"
    assert takes_pins(families.spec_of("dream"), 64)
    assert not takes_pins(families.spec_of("diffusion_gemma"), 16)


def test_canvases_and_prompts_fit_the_model() -> None:
    assert canvas_widths(model().spec) == (16, 24, 32, 40)
    assert prompt_room(model().spec, 40) == 256 - 64, "pins may ask for the widest canvas there is"
    sdar = families.spec_of("sdar")
    assert canvas_widths(sdar) == (16, 32, 48, 64)
    assert canvas_widths(replace(sdar, max_position_embeddings=60)) == (16,)
    assert canvas_widths(replace(sdar, max_position_embeddings=20)) == (10,)
    assert canvas_widths(replace(sdar, canvas_multiple=24)) == (24, 48, 72)
    assert prompt_room(replace(sdar, max_position_embeddings=1023), 64) == 1020 - 64
    assert prompt_room(replace(sdar, max_position_embeddings=32_768), 64) == 2048


def test_the_prefix_cache_grows_with_what_a_prompt_takes(published: Callable[[str], Checkpoint]) -> None:
    sdar = published("sdar")
    assert cache_bytes(sdar, 1024) == CACHE_BYTES
    # Two layers, keys and values of two heads of eight float32 numbers.
    assert cache_bytes(sdar, 10**6) == 4 * (10**6 + 4) * 2 * 2 * 2 * 8 * 4
    assert cache_bytes(published("llada"), 10**6) == CACHE_BYTES, "a full-mask model stores nothing"


def test_a_checkpoint_without_a_template_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = families.spec_of("sdar")
    folder = write_tokenizer(tmp_path, spec)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    network = random_network(spec)
    with pytest.raises(BackendError, match="chat_template"):
        DiffusionDrafter(Checkpoint(spec, network, HubCodec.load(folder, spec), tmp_path), INFO)  # type: ignore[arg-type]
    assert not [thread for thread in threading.enumerate() if thread.name == "diffusion-engine"]


def test_a_family_that_keeps_no_prefix_has_none_in_eight_bits(published: Callable[[str], Checkpoint]) -> None:
    with pytest.raises(BackendError, match="cache_dtype.*every llada token sees all others"):
        DiffusionDrafter(published("llada"), INFO, cache_dtype=torch.float8_e4m3fn)


class Waited:
    """A drafter whose drafts the manual clock waits for: a real engine takes none of its time."""

    def __init__(self, inner: DiffusionDrafter) -> None:
        self.inner = inner
        self.info, self.canvas_widths = inner.info, inner.canvas_widths
        self.quality_curve, self.min_steps = inner.quality_curve, inner.min_steps
        self.can_revise = inner.can_revise
        self.warm, self.forget, self.aclose = inner.warm, inner.forget, inner.aclose
        self.is_idle = asyncio.Event()
        self.is_idle.set()
        self.drafts: list[DiffusionDraft] = []
        self.ends: list[DraftEvent] = []

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> Held:
        return self._held(self.inner.start(request, self._watched(on_event)))

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> Held:
        assert isinstance(draft, Held)
        return self._held(self.inner.revise(draft.draft, request, self._watched(on_event), unheard=unheard))

    def _watched(self, on_event: Callable[[DraftEvent], None]) -> Callable[[DraftEvent], None]:
        self.is_idle.clear()

        def take(event: DraftEvent) -> None:
            on_event(event)
            if isinstance(event, DraftFinished | DraftFailed):
                self.ends.append(event)
                self.is_idle.set()

        return take

    def _held(self, draft: DiffusionDraft) -> Held:
        self.drafts.append(draft)
        return Held(draft, self.is_idle)


@dataclass
class Held:
    """A draft that tells when it is cancelled."""

    draft: DiffusionDraft
    is_idle: asyncio.Event

    def replan(self, plan: StepPlan) -> None:
        self.draft.replan(plan)

    def cancel(self) -> None:
        self.draft.cancel()
        self.is_idle.set()


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_conversation_flows_with_a_published_checkpoint(family: str, published: Callable[[str], Checkpoint]) -> None:
    # The second utterance interrupts the first reply.
    audio = np.concatenate([silence(0.5), tone(1.0), silence(1.2), tone(1.0), silence(1.0)])

    async def scenario(drafter: DiffusionDrafter) -> None:
        clock = ManualClock(time.monotonic())
        waited = Waited(drafter)

        def open_conversation(emit: Callable[[ConversationEvent], None]) -> Conversation:
            heard = ScriptedTranscriber("a large tea please", "no a mocha")
            return Conversation(
                backends=Backends(LevelDetector(), heard, waited, ToneSynthesizer(0.2)),
                agent=AgentProfile("be brief"),
                settings=SessionSettings(),
                clock=clock,
                emit=emit,
                budget=BudgetController(),
            )

        calling = asyncio.create_task(call(open_conversation, audio, clock))
        while not calling.done():
            await waited.is_idle.wait()
            await clock.advance(0.02)
        result: Call = await calling
        assert result.transcripts == ["a large tea please", "no a mocha"]
        assert len(waited.drafts) >= 2
        assert all(isinstance(end, DraftFinished) for end in waited.ends), waited.ends
        assert [finished.status for finished in result.finished][-1] == "completed"
        assert result.track is not None
        # Nothing of the call is left but the cache of others.
        await drafter._runner.call(lambda engine: None)
        assert drafter._runner.active == 0

    with_drafter(scenario, published(family))


def test_a_cancel_in_mid_reply_stops_the_engine(published: Callable[[str], Checkpoint]) -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        stepped, events = asyncio.Event(), []
        go, rounds = threading.Semaphore(3), drafter._runner.engine.run_round

        def paced() -> list[Event]:
            go.acquire()
            return rounds()

        drafter._runner.engine.run_round = paced  # type: ignore[method-assign]

        def take(event: DraftEvent) -> None:
            events.append(event)
            if isinstance(event, DraftStepped):
                stepped.set()

        slow = replace(PLAN, steps_first=200, steps_rest=200, threshold=1.0)
        draft = drafter.start(DraftRequest("call", TURNS, slow), take)
        await stepped.wait()
        told = len(events)
        draft.cancel()
        for _ in range(100):
            go.release()
        assert await drafter._runner.call(lambda engine: engine.drafts) == ()
        assert len(events) == told

    with_drafter(scenario, published("sdar"))


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
