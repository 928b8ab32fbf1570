"""Several denoising steps between two looks of the host: every draft's events are those of one step per look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dllm.draft import Draft, Live
from dllm.drafts import Committed, DraftSpec, Event, Failed, Finished, Plan, Prefilled, Stepped
from dllm.engine import Engine
from dllm.errors import ConfigError
from dllm.graphs import Recorded
from dllm.options import DecodeOptions
from dllm.stepping import Round
from dllm.visits import goes_on_from, steps_before, steps_together
from dllm.window import Window, Workspace
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, finished, prompt_of, run, table_of
from tests.dllm.test_decoding import network
from tests.dllm.test_graphs import StandIn, graphs


def engine_of(model: Any, steps_per_visit: int, table: Any = None) -> Engine:
    return Engine(
        model,
        table or table_of(model.spec),
        max_batch=3,
        cache_bytes=2**19,
        clock=lambda: 0.0,
        steps_per_visit=steps_per_visit,
    )


def told(events: list[Event], draft: Draft) -> tuple[list[tuple[object, ...]], list[float]]:
    """What was said of one draft, but for times and company; and all its confidences, which differ in their last digits where products of
    other shapes add in another order."""
    said: list[tuple[object, ...]] = []
    sure: list[float] = []
    for event in events:
        if event.draft is not draft:
            continue
        match event:
            case Stepped(_, step, phase, canvas, committed, forced):
                said.append((step, phase, committed, forced, *((cell.token, cell.state) for cell in canvas)))
                sure += [cell.confidence for cell in canvas]
            case Finished():
                usage = replace(event.usage, seconds_prefill=0.0, seconds_denoise=0.0)
                said.append((event.reason, event.tokens, event.steps_first, event.steps_rest, event.forced, usage))
                sure += event.probabilities
            case Committed():
                said.append((event.start, event.tokens, event.phase))
            case Failed():
                said.append((str(event.error),))
            case Prefilled():
                said.append((event.cached_tokens, event.new_tokens))
            case _:
                raise AssertionError(event)
    return said, sure


class Looks:
    """Counts the host's visits, their steps and the forwards over windows."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.visits = self.steps = self.forwards = 0
        look, forward = Round.look, Workspace.forward

        def watched_look(round: Round, results: torch.Tensor) -> Any:
            self.visits += 1
            self.steps += len(results)
            return look(round, results)

        def watched_forward(*args: Any, **options: Any) -> Any:
            self.forwards += 1
            return forward(*args, **options)

        patch.setattr(Round, "look", watched_look)
        patch.setattr(Workspace, "forward", watched_forward)


def both_ways(model: Any, specs: list[DraftSpec], patch: pytest.MonkeyPatch, table: Any = None) -> tuple[Looks, Looks]:
    """Write the same drafts with one step and with up to four per visit, and compare what is said of each."""
    said, looks = [], []
    for steps_per_visit in (1, 4):
        engine = engine_of(model, steps_per_visit, table)
        with patch.context() as patched:
            counted = Looks(patched)
            drafts = [engine.submit(spec) for spec in specs]
            events = run(engine)
        said.append([told(events, draft) for draft in drafts])
        looks.append(counted)
    for (one, sure), (other, other_sure) in zip(*said, strict=True):
        assert other == one
        assert other_sure == pytest.approx(sure, rel=1e-3, abs=1e-5)
    return looks[0], looks[1]


FAMILIES = ("sdar", "llada2", "fast_dllm", "nemotron", "dllm_llama", "llada", "dream", "llada_moe")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by_clause", [True, False])
@pytest.mark.parametrize("steps", [7, 24])
def test_every_family_says_the_same(family: str, by_clause: bool, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(steps, steps + 2, 0.6, by_clause=by_clause)
    options = [DecodeOptions(rule="count"), DecodeOptions(), DecodeOptions(rule="entropy", guard=False)]
    specs = [draft_spec(prompt_of(6 + 5 * at, at), 16, one, plan, f"c{at}") for at, one in enumerate(options)]
    ones, fours = both_ways(network(family), specs, monkeypatch)
    # With few steps for many blocks, several blocks are live, and how many changes from step to step.
    assert fours.visits < ones.visits or steps == 7


OPTIONS: dict[str, list[DecodeOptions]] = {
    "the agent's": [DecodeOptions(hold_ends=True, no_stutter=True, seed=at) for at in range(3)],
    "drawn": [DecodeOptions(temperature=0.8, seed=at) for at in range(2)] + [DecodeOptions(temperature=1.1, top_k=20)],
    "weighed": [
        DecodeOptions(repetition_penalty=1.3, min_tokens=6),
        DecodeOptions(banned=((20, 21), (22,)), target_tokens=9),
        DecodeOptions(logit_bias=((30, 2.0),)),
    ],
    "revised": [DecodeOptions(remask_eta=0.3), DecodeOptions(wino_threshold=0.3), DecodeOptions()],
    "looking back": [DecodeOptions(rule="stability"), DecodeOptions(early_commit=True), DecodeOptions(rule="random")],
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("steps", [3, 12])
def test_every_option_says_the_same(case: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Plan(steps, steps, 0.7, fact_threshold=0.8 * at / 2) for at in range(3)]
    specs = [
        draft_spec(prompt_of(6 + 5 * at, at), 16, one, plans[at], f"c{at}") for at, one in enumerate(OPTIONS[case])
    ]
    both_ways(tiny.model(), specs, monkeypatch, tiny.codec().token_table)


def test_drafts_with_pins_stop_sequences_and_given_tokens_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = tiny.model(), Plan(6, 8, 0.8)
    plain = draft_spec(prompt_of(9), 16, DecodeOptions(min_tokens=8), plan, "plain")
    reply = finished(*_written(model, plain))
    specs = [
        replace(plain, conversation="pinned", pins=((40, 41), (50,))),
        replace(plain, conversation="given", given=((3, 60), (-1, 61))),
        replace(plain, conversation="stopped", stop=(tuple(reply.tokens[3:5]),)),
        plain,
    ]
    both_ways(model, specs, monkeypatch)


def test_what_stands_behind_a_pin_is_judged_by_the_canvas_of_every_step() -> None:
    """A figure may stand two behind a price once a word stands between; that word may have been decided in the same visit."""
    codec = tiny.codec()
    table = codec.token_table
    figures = tuple((token, 9.0) for token in sorted(table.joining & table.digit))
    options = DecodeOptions(rule="left", min_tokens=14, logit_bias=figures, guard=False, keep_above=0.0)
    for seed in range(3):
        spec = replace(
            draft_spec(prompt_of(6, seed), 16, options, Plan(12, 14, 1.0, by_clause=False)),
            pins=(tuple(codec.encode_pin("$5.10")),),
            keep=(50, 51),
            keep_pins=((0, 2),),
        )
        said = []
        for steps_per_visit in (1, 4):
            engine = engine_of(tiny.model(seed, 4.0), steps_per_visit, table)
            draft = engine.submit(spec)
            said.append(finished(run(engine), draft).tokens)
        assert said[0] == said[1]


def _written(model: Any, spec: DraftSpec) -> tuple[list[Event], Draft]:
    engine = engine_of(model, 1)
    draft = engine.submit(spec)
    return run(engine), draft


def test_one_draft_alone_is_visited_a_quarter_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen positions, one a step: four visits of four steps, and not a forward more than there are steps."""
    options = DecodeOptions(rule="count", guard=False, min_tokens=16)
    spec = draft_spec(prompt_of(8), 16, options, Plan(16, 1, 1.0, by_clause=False))
    ones, fours = both_ways(tiny.model(), [spec], monkeypatch)
    assert (ones.visits, ones.steps) == (16, 16)
    assert (fours.visits, fours.steps) == (4, 16)
    assert fours.forwards == ones.forwards


def test_a_new_plan_takes_effect_at_the_next_visit() -> None:
    engine = engine_of(tiny.model(), 4)
    options = DecodeOptions(rule="count", guard=False, min_tokens=16)
    draft = engine.submit(draft_spec(prompt_of(8), 16, options, Plan(16, 1, 1.0, by_clause=False)))
    while not draft.steps:
        engine.run_round()
    assert draft.steps == 4
    engine.replan(draft, Plan(2, 1, 1.0, by_clause=False))
    events = run(engine)
    assert sum(isinstance(event, Stepped) for event in events) == 2
    assert finished(events, draft).steps_first == 6


def test_a_draft_that_fails_within_a_visit_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    nothing = DecodeOptions(logit_bias=tuple((token, -float("inf")) for token in range(model.spec.vocab_size)))
    plan = Plan(8, 8, 0.9, by_clause=False)
    specs = [
        draft_spec(prompt_of(7), 16, nothing, plan, "bad"),
        draft_spec(prompt_of(8), 16, DecodeOptions(), plan, "good"),
    ]
    both_ways(model, specs, monkeypatch)


def test_a_cancelled_draft_leaves_its_company_as_it_was() -> None:
    model, replies = tiny.model(), []
    spec = draft_spec(prompt_of(9), 16, DecodeOptions(), Plan(16, 16, 0.95, by_clause=False), "stays")
    for has_company in (False, True):
        engine = engine_of(model, 4)
        draft = engine.submit(spec)
        events: list[Event] = []
        if has_company:
            other = engine.submit(replace(spec, conversation="goes", prompt=prompt_of(12, 3)))
            while not other.steps:
                events += engine.run_round()
            engine.cancel(other)
        events += run(engine)
        replies.append(finished(events, draft).tokens)
    assert replies[0] == replies[1]


def live(**changes: Any) -> Live:
    window = Window([5, 1, 1, 1], 8, [12] * 4)
    base = Live(window, 0, 0, 4, 0, 4, 4, 0, "region", 6, alike=6)
    return replace(base, **changes)


def test_a_company_takes_as_many_steps_as_its_most_demanding_draft_lets_it() -> None:
    engine = engine_of(tiny.model(), 1)
    free = engine.submit(draft_spec(prompt_of(8), 16))
    pinned = engine.submit(replace(draft_spec(prompt_of(8), 16), pins=((40,),)))

    def count(*works: tuple[Draft, Any], most: int = 8, before: int = 99) -> int:
        return steps_together(works, most, before)

    assert count((free, live())) == 4
    assert count((free, live()), most=2) == 2
    assert count((free, live()), before=3) == 2
    assert count((free, live()), (free, live(alike=3))) == 2
    assert count((free, live(steps_left=1))) == 1
    for other in ((pinned, live()), (free, live(commits=2)), (free, live(shadow=4)), (free, live(alike=-3))):
        assert count((free, live()), other) == 1


def test_what_was_run_ahead_counts_only_for_the_same_window_with_one_step_less() -> None:
    before = live()
    assert goes_on_from(live(steps_left=5), before, 1)
    assert goes_on_from(live(steps_left=5, window=Window([5, 9, 1, 1], 8, [12] * 4)), before, 1)
    for change in ({"steps_left": 6}, {"open_lo": 1}, {"beyond": 2}, {"stop": "reply"}, {"commits": 1}):
        assert not goes_on_from(live(**{"steps_left": 5, **change}), before, 1)
    assert not goes_on_from(live(steps_left=5, window=Window([5, 1, 1, 1], 4, [12] * 4)), before, 1)
    assert not goes_on_from(None, before, 1)


def test_visits_end_before_deadlines() -> None:
    assert steps_before(float("inf"), 5.0, 0.01, 8) == 8
    assert steps_before(5.1, 5.0, 0.03, 8) == 3
    assert steps_before(5.01, 5.0, 0.03, 8) == 1
    assert steps_before(4.0, 5.0, 0.03, 8) == 1
    assert steps_before(9.0, 5.0, None, 8) == 8
    with pytest.raises(ConfigError, match="steps_per_visit"):
        engine_of(tiny.model(), 0)


# --- recorded whole ---------------------------------------------------------------------------------------------------


_SIGN = 30
RECORDABLE = {
    "the agent's": [
        DecodeOptions(hold_ends=True, no_stutter=True, seed=at, logit_bias=((_SIGN, -float("inf")),)) for at in range(3)
    ],
    "weighed": [
        DecodeOptions(repetition_penalty=1.3, min_tokens=6),
        DecodeOptions(banned=((20, 21), (22,), (20, 21, 40)), target_tokens=9, no_stutter=True),
        DecodeOptions(logit_bias=((_SIGN, 2.0), (31, -1.0))),
    ],
    "filtered": [DecodeOptions(temperature=0.8, seed=at, top_k=10 * at, no_stutter=True) for at in range(3)],
    "some weighed": [DecodeOptions(), DecodeOptions(no_stutter=True), DecodeOptions(temperature=0.9, seed=1)],
    "rules": [DecodeOptions(rule="count"), DecodeOptions(), DecodeOptions(rule="entropy", guard=False)],
    "drawn": [DecodeOptions(temperature=0.8, seed=at) for at in range(3)],
    "held": [DecodeOptions(hold_ends=True, seed=at, min_tokens=at) for at in range(3)],
    "some drawn": [DecodeOptions(), DecodeOptions(temperature=0.9, seed=1), DecodeOptions()],
}


@pytest.mark.parametrize("family", ["dllm_llama", "sdar", "fast_dllm", "llada", "dream"])
@pytest.mark.parametrize("case", RECORDABLE)
def test_recorded_visits_say_the_same(case: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Companies that come and go fill recordings that others made; the stand-in repeats on the tensors it was recorded with, as a GPU does."""
    monkeypatch.setattr(
        "dllm.reading.runs_kernels", lambda *tensors: True
    )  # heads by the front door, here its reference
    model = network(family)
    specs = [
        draft_spec(
            prompt_of(5 + 3 * at, at),
            16,
            RECORDABLE[case][at % 3],
            Plan(20, 9 + at, 0.6, by_clause=at % 2 == 0),
            f"c{at}",
        )
        for at in range(6)
    ]
    said = []
    recorder = StandIn()
    for is_recorded in (False, True):
        engine = Engine(
            model,
            table_of(model.spec),
            max_batch=2,
            cache_bytes=2**19,
            clock=lambda: 0.0,
            forward=graphs(model, recorder) if is_recorded else None,
            steps_per_visit=4 if is_recorded else 1,
        )
        drafts = [engine.submit(spec) for spec in specs]
        events = run(engine)
        said.append([told(events, draft) for draft in drafts])
    for (one, sure), (other, other_sure) in zip(*said, strict=True):
        assert other == one
        assert other_sure == pytest.approx(sure, rel=1e-3, abs=1e-5)
    assert recorder.replays > 0


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_agents_replies_with_pins_and_facts_say_the_same(is_whole: bool) -> None:
    """As the voice agent asks, over the built-in family with a table of words, marks and figures; recorded, and as they come."""
    codec = tiny.codec()
    table, said = codec.token_table, []
    texts = [("$5.10",), (), ("mocha", "$5.10"), ("large",), (), ("seven", "mocha")]
    recorder = StandIn()
    for steps_per_visit in (1, 4):
        told_of: list[list[tuple[object, ...]]] = []
        for seed in range(4):
            model = tiny.model(seed)
            engine = Engine(
                model,
                table,
                max_batch=2,
                cache_bytes=2**19,
                clock=lambda: 0.0,
                forward=graphs(model, recorder) if is_whole and steps_per_visit > 1 else None,
                steps_per_visit=steps_per_visit,
            )
            drafts = [
                engine.submit(
                    replace(
                        draft_spec(prompt_of(5 + at, at), 24, RECORDABLE["the agent's"][at % 3]),
                        conversation=f"c{at}",
                        plan=Plan(5 + at % 2, 14, 0.3, by_clause=at % 3 > 0, fact_threshold=0.5),
                        pins=tuple(tuple(codec.encode_pin(one)) for one in pins),
                        unpinned=_SIGN,
                    )
                )
                for at, pins in enumerate(texts)
            ]
            events = run(engine)
            told_of += [told(events, draft)[0] for draft in drafts]
        said.append(told_of)
    assert said[0] == said[1]
    assert bool(recorder.replays) is is_whole


def test_visits_of_several_steps_are_recorded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm.reading.runs_kernels", lambda *tensors: True)
    model = tiny.model()
    recorder, told_of = StandIn(), list[Recorded]()
    fast = graphs(model, recorder, progress=told_of.append)
    engine = Engine(model, table_of(model.spec), cache_bytes=2**19, clock=lambda: 0.0, forward=fast, steps_per_visit=4)
    options = DecodeOptions(rule="count", min_tokens=16)
    for at in range(3):
        engine.submit(draft_spec(prompt_of(8, at), 16, options, Plan(16, 1, 1.0, by_clause=False), f"c{at}"))
        run(engine)
    visits = [recorded for recorded in told_of if recorded.shape.steps]
    assert [(recorded.shape.steps, recorded.error) for recorded in visits] == [(4, "")]


def test_drafts_whose_rules_look_at_logits_are_recorded_whole_and_those_that_need_the_host_are_not() -> None:
    model = tiny.model()
    plan = Plan(16, 1, 1.0, by_clause=False)
    agent = DecodeOptions(hold_ends=True, no_stutter=True, logit_bias=((_SIGN, -float("inf")),))
    cases = {
        True: [agent, DecodeOptions(top_k=5, temperature=0.5), DecodeOptions(banned=((20, 21),), target_tokens=8)],
        False: [DecodeOptions(remask_eta=0.3), DecodeOptions(early_commit=True), DecodeOptions(rule="stability")],
    }
    for is_recorded, options in cases.items():
        for one in options:
            fast = graphs(model, StandIn())
            engine = Engine(
                model, table_of(model.spec), cache_bytes=2**19, clock=lambda: 0.0, forward=fast, steps_per_visit=4
            )
            for at in range(3):
                engine.submit(draft_spec(prompt_of(8, at), 16, one, plan, f"c{at}"))
                run(engine)
            assert any(shape.steps for shape in fast.shapes) is is_recorded, one
