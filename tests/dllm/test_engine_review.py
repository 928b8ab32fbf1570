"""Drafts that once never ended, failed for no fault of theirs, or depended on their company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dllm.cache import PrefixCache
from dllm.drafts import Committed, DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError, NoTokenLeftError
from dllm.options import DecodeOptions
from dllm.steps import Steps
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run, write
from tests.dllm.test_cache import cache_of, encode
from tests.dllm.test_engine_features import network, prompt_for

UNSURE = Plan(3, 3, 1.0)
"""A threshold that nothing passes: the floor alone decides."""


# --- drafts that end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["threshold", "count", "left", "random"])
def test_an_end_that_is_never_sure_is_decided_within_the_steps_of_the_rest(rule: str) -> None:
    codec = tiny.codec()
    table, end = codec.token_table, codec.special.end
    first_clause = ((0, min(table.word)), (1, min(table.sentence_end)))
    for seed in range(3):
        engine = Engine(tiny.model(seed), table, cache_bytes=2**20, clock=lambda: 0.0)
        options = DecodeOptions(rule=rule, logit_bias=((end, 6.0),), min_tokens=8)  # type: ignore[arg-type]
        prompt = tuple(codec.encode_prompt([("user", "a large mocha")]))
        draft = engine.submit(DraftSpec(prompt, "a", 32, UNSURE, options=options, given=first_clause))
        reply = finished(run(engine, 40), draft)
        assert reply.reason == "end_of_turn"
        assert reply.steps_rest <= 3


@pytest.mark.parametrize("family", ["sdar", "llada", "nemotron", "dllm_llama"])
@pytest.mark.parametrize(
    "changes", [{"remask_eta": 0.3}, {"wino_threshold": 0.4}, {"remask_eta": 0.3, "hold_ends": True}]
)
def test_a_revising_draft_that_speaks_clauses_ends(family: str, changes: dict[str, Any]) -> None:
    for seed in range(3):
        engine = engine_of(network(family, seed))
        options = DecodeOptions(min_tokens=3, target_tokens=6, logit_bias=((2, 6.0),), **changes)
        draft = engine.submit(draft_spec(prompt_for(family, 7, seed), 16, options, UNSURE))
        events = run(engine, 60)
        spoken = tuple(token for event in events if isinstance(event, Committed) for token in event.tokens)
        assert spoken == finished(events, draft).tokens


@pytest.mark.parametrize("steps", [1, 2])
def test_a_full_mask_canvas_of_more_blocks_than_steps_keeps_to_its_steps(steps: int) -> None:
    plan = Plan(steps, 1, 1.0, by_clause=False)
    reply = write(
        network("llada", 1), draft_spec(prompt_of(6), 32, DecodeOptions(block=8, guard=False, min_tokens=32), plan)
    )
    assert (reply.steps_first, len(reply.tokens)) == (steps, 32)


def test_a_draft_without_room_does_not_stop_the_one_that_holds_it() -> None:
    model = network("sdar")
    engine = engine_of(model, max_batch=1, cache_bytes=3 * engine_of(model).cache.page_bytes)
    plan = Plan(200, 1, 1.0, 9.0, 9.0, by_clause=False)
    holder = engine.submit(draft_spec(prompt_of(10), 20, plan=plan, conversation="holder"))
    engine.run_round()
    soon = replace(plan, first_deadline=1.0, rest_deadline=1.0)
    urgent = engine.submit(draft_spec(prompt_of(10, 2), 20, plan=soon, conversation="urgent"))
    ended = [event.draft for event in run(engine, 200) if isinstance(event, Finished)]
    assert ended == [holder, urgent]


def test_nobody_who_has_not_begun_overtakes_a_draft_that_waits_for_room() -> None:
    model = network("sdar")
    engine = engine_of(model, max_batch=4, cache_bytes=4 * engine_of(model).cache.page_bytes)
    plan = Plan(200, 1, 1.0, by_clause=False)
    specs = [
        draft_spec(prompt_of(9, seed), width, plan=plan, conversation=str(seed))
        for seed, width in enumerate((20, 40, 3))
    ]
    small_first, large, small = [engine.submit(one) for one in specs]
    for _ in range(3):
        engine.run_round()
        assert small_first.text is not None and large.text is None and small.text is None
    assert len([event for event in run(engine) if isinstance(event, Finished)]) == 3


# --- company ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_what_a_dual_cache_holds_is_not_overwritten_by_longer_windows_beside_it(family: str) -> None:
    plan = Plan(200, 1, 0.9, by_clause=False)
    for seed in range(2):
        model = network(family, seed)
        kinds = [
            DecodeOptions(block=8, cache="dual", guard=False),
            DecodeOptions(block=6, cache="dual", guard=False),
            DecodeOptions(guard=False),
        ]
        specs = [draft_spec(prompt_for(family, 7 + at, seed), 24, one, plan, str(at)) for at, one in enumerate(kinds)]
        engine = engine_of(model)
        drafts = [engine.submit(spec) for spec in specs]
        events = run(engine)
        for draft, spec in zip(drafts, specs, strict=True):
            assert finished(events, draft).tokens == write(model, spec).tokens


def test_wino_shares_a_forward_with_a_wider_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(network("llada", 1, 20.0))
    monkeypatch.setattr(Steps, "_step_apart", lambda steps, works, error, events: pytest.fail(repr(error)))
    plan = Plan(8, 1, 0.5, by_clause=False)
    narrow = draft_spec(prompt_for("llada", 7), 16, DecodeOptions(wino_threshold=0.4), plan)
    draft = engine.submit(narrow)
    engine.submit(draft_spec(prompt_for("llada", 9), 24, None, plan, "b"))
    assert finished(run(engine), draft).tokens == write(network("llada", 1, 20.0), narrow).tokens


# --- revision -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [DecodeOptions(wino_threshold=0.4), DecodeOptions(rule="stability")])
def test_a_revision_that_widens_the_canvas_starts_the_draft_s_memory_anew(options: DecodeOptions) -> None:
    engine = engine_of(network("sdar", 1, 20.0))
    draft = engine.submit(draft_spec(prompt_for("sdar", 8), 16, options, Plan(12, 1, 0.9, by_clause=False)))
    engine.run_round()
    engine.run_round()
    engine.revise(draft, prompt_for("sdar", 9, 3))
    assert draft.canvas.width == 19
    assert finished(run(engine), draft)


@pytest.mark.parametrize("mode", ["causal", "self_speculative"])
def test_revising_left_to_right_writing_keeps_what_was_spoken_and_goes_on_causally(mode: str) -> None:
    old, new = prompt_for("nemotron", 8), prompt_for("nemotron", 9, 4)
    for rounds in (2, 5, 8):
        model = network("nemotron", 1)
        engine = engine_of(model)
        options = DecodeOptions(mode=mode, guard=False, min_tokens=0)  # type: ignore[arg-type]
        draft = engine.submit(draft_spec(old, 16, options))
        events = [event for _ in range(rounds) for event in engine.run_round()]
        spoken = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        engine.revise(draft, new)
        reply = finished(run(engine), draft)
        rest = write(model, draft_spec((*new, *spoken), 16 - len(spoken), replace(options, mode="causal")))
        assert reply.tokens == (*spoken, *rest.tokens)


def test_a_uniform_canvas_is_revised_by_keeping_what_was_spoken() -> None:
    engine = engine_of(network("diffusion_gemma"))
    options = DecodeOptions(guard=False, min_tokens=16)
    draft = engine.submit(draft_spec(prompt_for("diffusion_gemma", 8), 16, options, Plan(6, 1, 0.9, by_clause=False)))
    events = []
    while not draft.emitted:
        events += engine.run_round()
    spoken = tuple(token for event in events if isinstance(event, Committed) for token in event.tokens)
    engine.revise(draft, prompt_for("diffusion_gemma", 9, 2))
    assert finished(run(engine), draft).tokens[: len(spoken)] == spoken


@pytest.mark.parametrize("prompt", [(), (5, 96)])
def test_a_draft_is_not_revised_to_what_is_no_prompt(prompt: tuple[int, ...]) -> None:
    engine = engine_of(network("sdar"))
    draft = engine.submit(draft_spec(prompt_of(5), 8))
    with pytest.raises(ConfigError, match="prompt"):
        engine.revise(draft, prompt)
    assert finished(run(engine), draft)


# --- pins, seeds, stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdar", "fast_dllm", "nemotron"])
@pytest.mark.parametrize("length", [3, 6, 15])
@pytest.mark.parametrize("by_clause", [True, False])
def test_pins_longer_than_a_block_are_in_the_reply(family: str, length: int, by_clause: bool) -> None:
    pin = tuple(range(20, 20 + length))
    for seed in range(4):
        options, plan = DecodeOptions(guard=False), Plan(6, 6, 0.5, by_clause=by_clause)
        reply = write(
            network(family, seed), replace(draft_spec(prompt_for(family, 7, seed), 16, options, plan), pins=(pin,))
        )
        assert any(reply.tokens[at : at + length] == pin for at in range(len(reply.tokens)))


def test_a_block_s_first_token_does_not_end_the_reply_before_its_pin() -> None:
    bias = DecodeOptions(guard=False, logit_bias=((2, 50.0),))
    for seed in range(3):
        spec = replace(draft_spec(prompt_for("nemotron", 7, seed), 16, bias, Plan(6, 6, 0.5)), pins=((20, 21, 22),))
        tokens = write(network("nemotron", seed), spec).tokens
        assert any(tokens[at : at + 3] == (20, 21, 22) for at in range(len(tokens)))


@pytest.mark.parametrize("family", ["nemotron", "fast_dllm"])
def test_a_block_s_first_token_obeys_the_grammar(family: str) -> None:
    class Even:
        """Every token is an even one."""

        def complete(self, before: Any, scores: torch.Tensor, decided: Any, room: int) -> tuple[list[int], list[float]]:
            scores = scores.clone()
            scores[:, 1::2] = -torch.inf
            probabilities, tokens = scores.softmax(dim=1).max(dim=1)
            assert all(token is None or token % 2 == 0 for token in decided)
            return [int(t) if d is None else d for t, d in zip(tokens, decided, strict=True)], probabilities.tolist()

    for seed in range(3):
        spec = replace(draft_spec(prompt_for(family, 8, seed), 16), constraint=Even())  # type: ignore[arg-type]
        assert all(token % 2 == 0 for token in write(network(family, seed), spec).tokens)


def test_ruling_out_every_token_fails_a_seeded_block_with_the_reason() -> None:
    engine = engine_of(network("nemotron"))
    bias = tuple((token, float("-inf")) for token in range(96))
    draft = engine.submit(draft_spec(prompt_of(5), 8, DecodeOptions(logit_bias=bias)))
    with pytest.raises(NoTokenLeftError, match="position 0"):
        finished(run(engine), draft)


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("sdar", {"stop": ((),)}, "stop"),
        ("diffusion_gemma", {"keep": (20, 21)}, "keep"),
        ("nemotron", {"keep": (20, 21), "options": DecodeOptions(mode="causal")}, "keep"),
        ("diffusion_gemma", {"options": DecodeOptions(remask_eta=0.1)}, "remask_eta"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_fails(family: str, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        engine_of(network(family)).submit(replace(draft_spec(prompt_for(family, 5), 16), **changes))


def test_shadow_rows_and_a_dual_cache_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="dual"):
        DecodeOptions(wino_threshold=0.5, cache="dual")


# --- the cache --------------------------------------------------------------------------------------------------------------


def test_cancelled_drafts_leave_no_claim_on_shared_pages() -> None:
    engine = engine_of(network("sdar"))
    engine.submit(draft_spec(prompt_of(40), 8, conversation="base"))
    run(engine)
    for number in range(3):
        draft = engine.submit(draft_spec(prompt_of(40), 8, conversation=f"cancelled {number}"))
        engine.run_round()
        engine.cancel(draft)
    engine.forget("base")
    assert engine.cache.free_pages == engine.cache.capacity_pages


def filled(pages: int) -> tuple[PrefixCache, tuple[int, ...]]:
    """A cache of so many pages of 4 that one conversation's text fills, its last page in part."""
    model = tiny.model()
    cache, tokens = cache_of(model, pages), tuple(prompt_of(4 * pages - 1))
    text = cache.open(tokens)
    encode(model, cache, text, tokens)
    cache.publish(text, "a")
    cache.close(text)
    return cache, tokens


def test_a_page_that_cannot_be_copied_is_written_anew() -> None:
    cache, tokens = filled(1)
    text = cache.open((*tokens[:2], 7))
    assert text.length == 0
    cache.reserve(text, 3)
    assert cache.free_pages == 0 and not cache.stored()


def test_a_path_is_evicted_from_its_end_and_no_further_than_needed() -> None:
    cache, tokens = filled(6)
    text = cache.open((1, 2, 3))
    cache.reserve(text, 12)
    assert max(cache.stored(), key=len) == tokens[:12]


def test_forgetting_frees_what_was_there_for_its_sake_alone() -> None:
    model = tiny.model()
    cache, tokens = cache_of(model, 16), tuple(prompt_of(24))
    text = cache.open(tokens)
    encode(model, cache, text, tokens)
    cache.publish(text, "shallow", 8)
    cache.publish(text, "deep")
    cache.close(text)
    cache.forget("shallow")
    cache.forget("deep")
    assert cache.free_pages == 16


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_first_clause_in_small_blocks_keeps_to_its_steps_whether_or_not_its_end_is_in_sight(steps: int) -> None:
    """No token of this table ends a clause, so the end never is."""
    for seed in range(3):
        plan = Plan(steps, 60, 1.0)
        reply = write(network("sdar", seed), draft_spec(prompt_of(7, seed), 40, DecodeOptions(guard=False), plan))
        assert reply.steps_first <= steps


def test_rows_that_a_long_text_made_long_are_let_go_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    import dllm.window as module

    monkeypatch.setattr(module, "KEPT_CAPACITY", 64)
    engine = engine_of(network("sdar"), cache_bytes=2**20)
    for length, is_kept in ((20, True), (150, False)):
        engine.submit(draft_spec(prompt_of(length), 12, DecodeOptions(guard=False)))
        run(engine)
        assert (engine.workspace.size_bytes > 0) is is_kept
