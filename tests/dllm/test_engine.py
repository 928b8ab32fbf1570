"""The engine: phases, floors, pins, cancellation, caches, and independence of the company in a batch."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllm.draft import Draft
from dllm.drafts import CellState, Committed, DraftSpec, Event, Failed, Finished, Plan, Prefilled, Stepped
from dllm.engine import Engine
from dllm.errors import ConfigError, PinsDoNotFitError, PromptTooLongError
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from tests.dllm import tiny

CODEC = tiny.codec()
PROMPT = tuple(CODEC.encode_prompt([("system", "You sell tea."), ("user", "a large mocha")]))


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def engine(seed: int = 0, max_batch: int = 8, clock: ManualClock | None = None) -> Engine:
    return Engine(
        tiny.model(seed), CODEC.token_table, max_batch=max_batch, cache_bytes=2**20, clock=clock or ManualClock()
    )


def spec(
    prompt: tuple[int, ...] = PROMPT,
    width: int = 24,
    plan: Plan | None = None,
    pins: tuple[str, ...] = (),
    conversation: str = "a",
    temperature: float = 0.0,
    seed: int = 0,
) -> DraftSpec:
    spans = tuple(CODEC.encode_pin(pin) for pin in pins)
    return DraftSpec(
        prompt, conversation, width, plan or Plan(4, 4, 0.9), spans, DecodeOptions(temperature=temperature, seed=seed)
    )


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.drafts:
        events += engine.run_round()
    return events


def write(engine: Engine, draft_spec: DraftSpec) -> tuple[Finished, list[Event]]:
    engine.submit(draft_spec)
    events = run(engine)
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1], events


def of_draft(events: list[Event], draft: Draft) -> list[Event]:
    return [event for event in events if event.draft is draft]


# --- one draft ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 8), st.integers(1, 8), st.sampled_from([8, 24, 64]))
def test_a_draft_ends_within_its_steps_whatever_the_model_thinks(seed: int, first: int, rest: int, width: int) -> None:
    finished, events = write(engine(seed), spec(width=width, plan=Plan(first, rest, 1.0)))
    # A refused stutter can move the end of the first clause past the last step, which then takes one more each time.
    refusals = 2
    assert finished.steps_first <= first + refusals
    assert finished.steps_rest <= rest + refusals
    assert sum(isinstance(event, Stepped) for event in events) == finished.steps_first + finished.steps_rest
    assert not set(finished.tokens) & (CODEC.token_table.forbidden | {CODEC.special.end})


def test_events_come_in_order_and_committed_text_adds_up_to_the_reply() -> None:
    for seed in range(8):
        finished, events = write(engine(seed), spec(width=32))
        assert isinstance(events[0], Prefilled)
        assert [event.step for event in events if isinstance(event, Stepped)] == list(
            range(1, finished.steps_first + finished.steps_rest + 1)
        )
        pieces = [event for event in events if isinstance(event, Committed)]
        assert [piece.start for piece in pieces] == [
            0, *itertools.accumulate(len(piece.tokens) for piece in pieces[:-1])
        ]  # fmt: skip
        assert tuple(token for piece in pieces for token in piece.tokens) == finished.tokens


def test_committed_tokens_never_change_and_masks_only_shrink() -> None:
    _, events = write(engine(3), spec(width=32, pins=("$5.10",)))
    decided: dict[int, int] = {}
    for event in events:
        if isinstance(event, Stepped):
            now = {
                at: cell.token
                for at, cell in enumerate(event.canvas)
                if cell.state in (CellState.COMMITTED, CellState.PINNED)
            }
            assert decided.items() <= now.items()
            assert len(now) - len(decided) == event.committed
            decided = now


def test_phase_rest_begins_only_when_the_first_clause_is_spoken_for() -> None:
    for seed in range(8):
        _, events = write(engine(seed), spec(width=32, plan=Plan(5, 5, 1.0)))
        phases = [event.phase for event in events if isinstance(event, Stepped)]
        assert phases == sorted(phases), "first comes before rest and never again"


def test_text_is_committed_at_word_boundaries() -> None:
    for seed in range(8):
        finished, events = write(engine(seed), spec(width=32))
        table = CODEC.token_table
        closing = table.sentence_end | table.clause_end
        for event in events:
            if isinstance(event, Committed) and event.start + len(event.tokens) < len(finished.tokens):
                following = finished.tokens[event.start + len(event.tokens)]
                assert following in table.word_start or event.tokens[-1] in closing


def test_floor_commits_evenly_when_nothing_is_confident() -> None:
    _, events = write(engine(1), spec(width=64, plan=Plan(1, 8, 1.0)))
    rest = [event.committed for event in events if isinstance(event, Stepped) and event.phase == "rest"]
    assert all(count >= 1 for count in rest)
    assert sum(event.forced for event in events if isinstance(event, Stepped)) == events[-1].forced  # type: ignore[union-attr]


def test_passed_deadline_ends_the_phase_at_once() -> None:
    clock = ManualClock()
    slow = engine(2, clock=clock)
    draft = slow.submit(spec(width=32, plan=Plan(8, 8, 1.0, first_deadline=1.0, rest_deadline=1.0)))
    slow.run_round()
    assert draft.steps_first == 1
    clock.now = 2.0
    events = run(slow)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.steps_first + finished.steps_rest <= 6, "well short of sixteen"


def test_the_same_draft_twice_is_the_same_reply() -> None:
    assert write(engine(4), spec())[0].tokens == write(engine(4), spec())[0].tokens


def test_temperature_draws_by_seed() -> None:
    one = write(engine(0), spec(temperature=1.0, seed=1))[0].tokens
    again = write(engine(0), spec(temperature=1.0, seed=1))[0].tokens
    others = {write(engine(0), spec(temperature=1.0, seed=seed))[0].tokens for seed in range(2, 6)}
    assert one == again
    assert others != {one}


# --- pins -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 6), st.sampled_from([("$5.10",), ("$5.10", "$12.00"), ("seven p m",)]))
def test_pins_are_in_the_reply_once_and_whole(seed: int, steps: int, pins: tuple[str, ...]) -> None:
    finished, _ = write(engine(seed), spec(width=32, plan=Plan(steps, steps, 0.9), pins=pins))
    for pin in pins:
        span = CODEC.encode_pin(pin)
        found = [at for at in range(len(finished.tokens)) if finished.tokens[at : at + len(span)] == span]
        assert found, f"{pin} is missing from {CODEC.decode(finished.tokens)!r}"


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from([("$5",), ("$5", "twelve"), ("seven p m",), ("Hair",)]))
@example(317, 4, ("$5", "twelve"))  # its place was a gap before a word's rest
@example(345, 2, ("$5", "twelve"))  # "twelve::7" is no other figure
def test_a_pin_is_not_continued(seed: int, steps: int, pins: tuple[str, ...]) -> None:
    """ "$5" in a reply as "$5.10" or "$52", "Hair" as "Hairs", would say what no tool said."""
    finished, _ = write(engine(seed), spec(width=32, plan=Plan(steps, steps, 0.9), pins=pins))
    text = b"".join(CODEC.token_bytes(token) for token in finished.tokens).decode("utf-8", "replace")
    for pin in pins:
        # One mark joins two figures ("$5.10", "7:30"); behind a word, or behind another mark, it joins nothing.
        joined = r"(?![.,:][0-9])" if pin[-1].isdigit() else ""
        assert re.search(re.escape(pin) + r"(?![A-Za-z0-9])" + joined, text), text


@settings(max_examples=20)
@given(st.integers(0, 30), st.integers(1, 6), st.sampled_from([-100.0, 0.0, 4.0, 8.0, 100.0]))
def test_a_reply_holds_all_pins_or_is_a_call_and_holds_none(seed: int, steps: int, bias: float) -> None:
    """A pin inside a call would become part of an argument."""
    call, span = CODEC.special.call, CODEC.encode_pin("$5.10")
    plain = spec(width=32, plan=Plan(steps, steps, 0.9), pins=("$5.10",))
    options = replace(plain.options, logit_bias=((call, bias),))
    finished, _ = write(engine(seed), replace(plain, options=options, unpinned=call))
    is_pinned = any(finished.tokens[at : at + len(span)] == span for at in range(len(finished.tokens)))
    assert is_pinned != (finished.tokens[0] == call)
    assert abs(bias) < 100 or is_pinned == (bias < 0)


def test_pins_that_fill_the_canvas_but_one_are_placed() -> None:
    span = CODEC.encode_pin("$5.10")
    pins = ("$5.10",) * ((8 - 1) // len(span))
    finished, _ = write(engine(0), spec(width=8, pins=pins))
    assert finished.tokens[: 6 + len(span)].count(span[1]) >= 1


def test_pins_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PinsDoNotFitError, match="pinned texts need 12 tokens"):
        engine().submit(spec(width=8, pins=("$5.10", "$6.20")))


# --- many drafts ------------------------------------------------------------------------------------------------------------


def test_a_reply_does_not_depend_on_who_shares_the_batch() -> None:
    specs = [
        spec(width=16, conversation="a"),
        spec((*PROMPT[:-1], CODEC.special.end, CODEC.special.agent), width=32, conversation="b", pins=("$5.10",)),
        spec(PROMPT[:9] + (CODEC.special.agent,), width=64, conversation="c"),
        spec(PROMPT * 3, width=24, conversation="d"),
    ]
    alone = [write(engine(7), one)[0].tokens for one in specs]
    shared = engine(7)
    drafts = [shared.submit(one) for one in specs]
    events = run(shared)
    together = [next(e.tokens for e in of_draft(events, draft) if isinstance(e, Finished)) for draft in drafts]
    assert together == alone
    assert max(event.batch for event in events if isinstance(event, Stepped)) == 4


def test_a_passed_deadline_leaves_the_floor_of_steps() -> None:
    steps = []
    for floor in (1, 3):
        clock = ManualClock()
        clock.now = 99.0
        plan = Plan(8, 8, 1.0, first_deadline=1.0, rest_deadline=1.0, floor=floor)
        finished, _ = write(engine(2, clock=clock), spec(width=64, plan=plan))
        steps.append(finished.steps_first + finished.steps_rest)
    assert steps[1] > steps[0]
    with pytest.raises(ConfigError, match="floor"):
        Plan(floor=0)


def test_nearest_deadlines_are_served_first() -> None:
    shared = engine(max_batch=1)
    late = shared.submit(spec(conversation="late", plan=Plan(4, 4, 0.9, first_deadline=9.0, rest_deadline=9.0)))
    soon = shared.submit(spec(conversation="soon", plan=Plan(4, 4, 0.9, first_deadline=1.0, rest_deadline=1.0)))
    never = shared.submit(spec(conversation="never"))
    finished = [event.draft for event in run(shared) if isinstance(event, Finished)]
    assert finished == [soon, late, never]


@pytest.mark.parametrize(("until", "gives_way"), [(None, False), (0.5, False), (2.0, True)])
def test_the_rest_of_a_reply_gives_way_to_first_clauses_until_its_time_comes(
    until: float | None, gives_way: bool
) -> None:
    clock = ManualClock()
    clock.now = 1.0
    shared = engine(clock=clock)
    playing = shared.submit(spec(conversation="playing", plan=Plan(8, 8, 1.0, rest_yields_until=until)))
    playing.phase = "rest"
    waiting = shared.submit(spec(conversation="waiting", plan=Plan(8, 8, 1.0, rest_yields_until=until)))
    stepped = {event.draft for event in shared.run_round() if isinstance(event, Stepped)}
    assert stepped == ({waiting} if gives_way else {playing, waiting}), "a first clause gives way to nobody"
    shared.cancel(waiting)
    assert [event.draft for event in shared.run_round() if isinstance(event, Stepped)] == [playing], "nobody is left"


def test_a_first_clause_lets_in_as_many_as_its_plan_says_the_nearest_deadline_first() -> None:
    shared = engine(clock=ManualClock())
    playing = []
    for number, deadline in enumerate((3.0, 2.0, 4.0)):
        plan = Plan(8, 8, 1.0, rest_deadline=deadline, rest_yields_until=1.5)
        playing.append(shared.submit(spec(conversation=f"playing {number}", plan=plan)))
        playing[-1].phase = "rest"
    one = shared.submit(spec(conversation="waits", plan=Plan(8, 8, 1.0, first_deadline=9.0, first_guests=2)))
    assert {event.draft for event in shared.run_round() if isinstance(event, Stepped)} == {one, playing[1], playing[0]}
    hurried = shared.submit(spec(conversation="hurried", plan=Plan(8, 8, 1.0, first_deadline=1.0)))
    stepped = {event.draft for event in shared.run_round() if isinstance(event, Stepped)}
    assert stepped == {one, hurried}, "nobody is let in beside one that needs the engine"


def test_a_draft_that_fails_leaves_the_others_writing() -> None:
    class Fragile(Transformer):
        """Refuses one token, as a broken prompt would break a forward."""

        def forward(self, ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
            if bool((ids == 299).any()):
                raise RuntimeError("token 299")
            return super().forward(ids, *args, **kwargs)  # type: ignore[arg-type]

    model = Fragile(tiny.spec())
    model.load_state_dict(tiny.model(1).state_dict())
    shared = Engine(model.eval(), CODEC.token_table, cache_bytes=2**20, clock=ManualClock())
    bad = shared.submit(spec((*PROMPT[:4], 299, *PROMPT[4:]), conversation="bad"))
    pinned = shared.submit(replace(spec(conversation="pinned"), pins=((299,),)))
    good = shared.submit(spec(conversation="good"))
    events = run(shared)
    assert [type(event) for event in of_draft(events, bad)] == [Failed]
    assert isinstance(of_draft(events, pinned)[-1], Failed), "fails in a shared forward, after its pin is on the canvas"
    assert isinstance(of_draft(events, good)[-1], Finished)
    assert not shared.drafts


def test_replan_takes_effect_before_the_next_forward() -> None:
    one = engine(2)
    draft = one.submit(spec(width=32, plan=Plan(30, 30, 1.0)))
    one.run_round()
    one.replan(draft, Plan(1, 1, 1.0))
    run(one)
    assert draft.steps_first <= 3


# --- cancelling and caching ---------------------------------------------------------------------------------------------------


def pages(engine: Engine) -> dict[tuple[int, ...], list[torch.Tensor]]:
    """Every stored prefix with the keys and values of all its layers."""
    cache, found = engine.cache, {}
    for tokens in cache.stored():
        text = cache.open(tokens)
        rows = engine.model.new_stores(1, len(tokens))
        cache.read(text, [store.of(0) for store in rows])
        cache.close(text)
        found[tokens] = [part for store in rows for part in store.parts]
    return found


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_cancel_leaves_the_cache_as_it_was(rounds: int) -> None:
    one = engine(5)
    write(one, spec(conversation="a"))
    before, free = pages(one), one.cache.free_pages
    longer = (
        *PROMPT,
        *CODEC.encode_text("A mocha."),
        CODEC.special.end,
        *CODEC.encode_turn("user", "yes"),
        CODEC.special.agent,
    )
    draft = one.submit(spec(longer, conversation="a", plan=Plan(8, 8, 1.0)))
    for _ in range(rounds):
        one.run_round()
    one.cancel(draft)
    one.cancel(draft)
    after = pages(one)
    assert after.keys() == before.keys()
    assert one.cache.free_pages == free
    for tokens, tensors in before.items():
        for now, then in zip(after[tokens], tensors, strict=True):
            assert torch.equal(now, then)
    assert one.run_round() == []


def test_the_next_turn_prefills_only_what_is_new() -> None:
    one = engine(5)
    write(one, spec())
    longer = (
        *PROMPT,
        *CODEC.encode_text("A mocha."),
        CODEC.special.end,
        *CODEC.encode_turn("user", "yes"),
        CODEC.special.agent,
    )
    _, events = write(one, spec(longer))
    prefilled = events[0]
    assert isinstance(prefilled, Prefilled)
    assert (prefilled.cached_tokens, prefilled.new_tokens) == (len(PROMPT), len(longer) - len(PROMPT))


def test_a_cached_reply_is_the_uncached_reply() -> None:
    longer = (
        *PROMPT,
        *CODEC.encode_text("A mocha."),
        CODEC.special.end,
        *CODEC.encode_turn("user", "yes"),
        CODEC.special.agent,
    )
    warm = engine(5)
    write(warm, spec())
    assert write(warm, spec(longer))[0].tokens == write(engine(5), spec(longer))[0].tokens


def test_conversations_share_the_system_turn_even_after_one_is_forgotten() -> None:
    one = engine(5)
    write(one, spec(conversation="a"))
    one.forget("a")
    other = tuple(CODEC.encode_prompt([("system", "You sell tea."), ("user", "goodbye")]))
    _, events = write(one, spec(other, conversation="b"))
    prefilled = events[0]
    assert isinstance(prefilled, Prefilled)
    assert prefilled.cached_tokens >= PROMPT.index(CODEC.special.end) + 1


def test_warming_moves_the_prefill_out_of_the_draft() -> None:
    one = engine(5)
    assert one.warm("a", PROMPT[:-1]) == len(PROMPT) - 1
    assert one.warm("a", PROMPT[:-1]) == 0
    _, events = write(one, spec())
    prefilled = events[0]
    assert isinstance(prefilled, Prefilled)
    assert prefilled.new_tokens == 1


# --- mistakes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, -8, 12, 72])
def test_widths_the_model_does_not_know_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="width"):
        engine().submit(spec(width=width))


def test_prompts_that_are_empty_or_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompt"):
        engine().submit(spec(()))
    with pytest.raises(PromptTooLongError, match="the model has 256"):
        engine().submit(spec(PROMPT * 30))


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"steps_first": 0}, "steps_first"), ({"steps_rest": 0}, "steps_rest"), ({"threshold": 0.0}, "threshold")],
)
def test_impossible_plans_are_refused(changes: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Plan(**changes)  # type: ignore[arg-type]
