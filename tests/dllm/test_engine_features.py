"""What a draft may ask for beyond a reply: revision, infilling, grammars, approximate caches, pipelined blocks, uniform canvases."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dllm.draft import Draft
from dllm.drafts import CellState, Committed, DraftSpec, Finished, Plan, Stepped
from dllm.engine import Engine
from dllm.errors import CacheFullError, ConfigError, NoTokenLeftError, PromptTooLongError
from dllm.models import diffusion_gemma
from dllm.models.family import LayerStore
from dllm.models.registry import family_named
from dllm.options import DecodeOptions
from dllm.process import draw_seeds
from dllm_kernels import commit_from_logits
from tests.dllm import plain_samplers, tiny
from tests.dllm.decoding import STEPS, draft_spec, engine_of, finished, prompt_of, run, write
from tests.dllm.models import test_diffusion_gemma, test_llada2, tiny_checkpoints

FAMILIES = ("sdar", "nemotron", "fast_dllm", "dream", "llada", "dllm_llama", "llada2_edit", "diffusion_gemma")


@functools.cache
def network(family: str, seed: int = 0, scale: float = 5.0) -> nn.Module:
    if family == "diffusion_gemma":
        config = {"text_config": dict(test_diffusion_gemma.TEXT), "canvas_length": 8, "model_type": "diffusion_gemma"}
        spec = replace(diffusion_gemma.FAMILY.read_config(config), max_position_embeddings=256)
        model = diffusion_gemma.FAMILY.build(spec)
        model.reset_parameters(torch.Generator().manual_seed(seed))  # type: ignore[operator]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(10.0)
        return model.eval().requires_grad_(False)
    if family == "llada2_edit":
        spec = family_named("llada2_edit").read_config(test_llada2.CONFIG)
        return tiny_checkpoints.random_network(spec, seed, scale)
    return tiny_checkpoints.random_network(tiny_checkpoints.tiny_spec(family), seed, scale)


def vocabulary(family: str) -> int:
    return int(network(family).spec.vocab_size)  # type: ignore[union-attr]


def prompt_for(family: str, length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(4 + token % (min(vocabulary(family), 90) - 8) for token in prompt_of(length, seed))


# --- uniform corruption ---------------------------------------------------------------------------------------------------


def plain_uniform(
    model: nn.Module, prompt: tuple[int, ...], width: int, steps: int, options: DecodeOptions
) -> list[int]:
    """DiffusionGemma's loop with nothing shared: encode everything, denoise a canvas, append it."""
    spec = model.spec
    noise = torch.Generator().manual_seed(options.seed)
    tokens, step_of_draft, budget = list(prompt), 0, steps
    while len(tokens) < len(prompt) + width:
        size = min(spec.block, len(prompt) + width - len(tokens))
        stores = model.new_stores(1, len(tokens) + size)
        ids, at = torch.tensor([tokens]), torch.arange(len(tokens) + size).unsqueeze(0)
        seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril().view(1, 1, len(tokens), len(tokens))
        model(ids, at[:, : len(tokens)], seen, stores, 0, causal=True)
        canvas = torch.randint(spec.vocab_size, (size,), generator=noise)
        soft, best_before = None, None
        steps = max(1, (budget - step_of_draft) // -(-(len(prompt) + width - len(tokens)) // spec.block))
        for left in range(steps, 0, -1):
            hidden = model(canvas.unsqueeze(0), at[:, len(tokens) :], None, stores, len(tokens), soft=soft)
            logits = model.logits(hidden[0]).float()
            if spec.special.forbidden:
                logits[:, list(spec.special.forbidden)] = -torch.inf
            temperature = options.anneal[1] + (options.anneal[0] - options.anneal[1]) * left / steps
            positions = torch.arange(size) + len(tokens) - len(prompt)
            drawn = commit_from_logits(
                logits, temperature=temperature, seed=draw_seeds(options.seed, step_of_draft, positions)
            ).token
            p = torch.softmax(logits / temperature, dim=-1)
            entropy = torch.special.entr(p).sum(dim=-1)
            order = entropy.argsort(stable=True)
            total = entropy[order].cumsum(0)
            accepted = torch.zeros(size, dtype=torch.bool)
            accepted[order[total - entropy[order] <= options.entropy_bound]] = True
            fresh = torch.randint(spec.vocab_size, (size,), generator=noise)
            canvas = torch.where(accepted, drawn, fresh)
            soft = model.soft_embedding((logits / temperature).unsqueeze(0))
            best = logits.argmax(dim=-1).tolist()
            step_of_draft += 1
            if best == best_before and float(entropy.mean()) < options.stable_entropy:
                break
            best_before = best
        ends = [index for index, token in enumerate(best) if token in spec.special.ends]
        tokens += best[: ends[0]] if ends else best
        if ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("bound", [0.1, 4.0])
def test_a_uniform_canvas_equals_the_plain_loop(bound: float) -> None:
    for seed in range(4):
        model = network("diffusion_gemma", seed)
        prompt = prompt_for("diffusion_gemma", 9, seed)
        options = DecodeOptions(guard=False, min_tokens=0, entropy_bound=bound, seed=seed, stable_entropy=3.0)
        for width in (5, 8, 19):
            expected = plain_uniform(model, prompt, width, 13, options)
            reply = write(model, draft_spec(prompt, width, options, Plan(13, 1, 1.0, by_clause=False)))
            assert reply.steps_first <= 13
            assert list(reply.tokens) == expected[: len(reply.tokens)]
            assert len(reply.tokens) == len(expected)


# --- revision while denoising -----------------------------------------------------------------------------------------------

REVISING = {
    "remask": DecodeOptions(remask_eta=0.5, seed=3),
    "wino": DecodeOptions(wino_threshold=0.4),
    "early": DecodeOptions(early_commit=True),
    "stability": DecodeOptions(rule="stability"),
}


@pytest.mark.parametrize("name", REVISING)
@pytest.mark.parametrize("family", ["sdar", "llada", "dllm_llama"])
@pytest.mark.parametrize("steps", [1, 6, 14])
def test_revising_drafts_end_in_their_steps_without_masks(name: str, family: str, steps: int) -> None:
    for seed in range(3):
        model = network(family, seed, 20.0)
        plan = Plan(steps, 1, 0.5, by_clause=False)
        engine = engine_of(model)
        draft = engine.submit(draft_spec(prompt_for(family, 7, seed), 16, REVISING[name], plan))
        events = run(engine)
        reply = finished(events, draft)
        assert reply.steps_first <= steps
        assert model.spec.special.mask not in reply.tokens
        pieces = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        assert tuple(pieces) == reply.tokens, "what was emitted is never taken back"


def test_remasking_and_wino_do_take_tokens_back() -> None:
    for name in ("remask", "wino"):
        engine = engine_of(network("llada", 1, 20.0))
        options = replace(REVISING[name], rule="count")
        engine.submit(draft_spec(prompt_for("llada", 7), 16, options, Plan(12, 1, 0.5, by_clause=False)))
        steps = [event for event in run(engine) if isinstance(event, Stepped)]
        decided = [{at for at, cell in enumerate(step.canvas) if cell.state is CellState.COMMITTED} for step in steps]
        assert any(before - after for before, after in itertools.pairwise(decided)), name


def test_an_editing_model_overwrites_what_it_no_longer_believes() -> None:
    changed = 0
    for seed in range(6):
        engine = engine_of(network("llada2_edit", seed, 20.0))
        options = DecodeOptions(edit_threshold=0.2, guard=False)
        draft = engine.submit(draft_spec(prompt_for("llada2_edit", 5), 24, options, Plan(60, 1, 0.05, by_clause=False)))
        events = run(engine)
        steps = [event for event in events if isinstance(event, Stepped)]
        for before, after in itertools.pairwise(steps):
            for one, other in zip(before.canvas, after.canvas, strict=True):
                if one.state is other.state is CellState.COMMITTED and one.token != other.token:
                    changed += 1
        pieces = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        assert tuple(pieces) == finished(events, draft).tokens
    assert changed


def test_a_model_that_was_not_trained_to_edit_is_not_asked_to() -> None:
    with pytest.raises(ConfigError, match=r"edit_threshold.*sdar was not trained to edit"):
        engine_of(network("sdar")).submit(draft_spec(prompt_of(5), 8, DecodeOptions(edit_threshold=0.9)))


# --- revision under a changed prompt -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdar", "llada", "dllm_llama", "dream", "nemotron", "fast_dllm"])
def test_a_revised_draft_keeps_what_still_fits_and_finishes_whole(family: str) -> None:
    model = network(family, 1, 20.0)
    old, new = prompt_for(family, 7, 1), prompt_for(family, 10, 2)
    for rounds in (0, 1, 3, 6):
        engine = engine_of(model)
        draft = engine.submit(draft_spec(old, 16, DecodeOptions(keep_above=0.3), Plan(12, 12, 0.5, by_clause=False)))
        events = [event for _ in range(rounds) for event in engine.run_round()]
        if draft not in engine.drafts:
            continue
        emitted = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        engine.revise(draft, new)
        events += run(engine)
        reply = finished(events, draft)
        assert list(reply.tokens[: len(emitted)]) == emitted
        assert model.spec.special.mask not in reply.tokens
        pieces = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        assert tuple(pieces) == reply.tokens


def test_a_kept_reply_under_its_own_prompt_takes_fewer_steps_than_a_cold_one() -> None:
    kept_steps = cold_steps = 0
    for seed in range(6):
        model = network("dllm_llama", seed, 20.0)
        prompt = prompt_for("dllm_llama", 9, seed)
        plan = Plan(16, 16, 0.5, by_clause=False)
        cold = write(model, draft_spec(prompt, 16, None, plan))
        again = write(model, replace(draft_spec(prompt, 16, DecodeOptions(keep_above=0.05), plan), keep=cold.tokens))
        cold_steps += cold.steps_first
        kept_steps += again.steps_first
        assert again.usage.forwards_denoise == again.steps_first + 2, "two forwards rate the kept tokens"
    assert kept_steps < cold_steps * 2 / 3


def test_revising_rates_each_token_given_the_rest_and_the_new_prompt() -> None:
    """Kept tokens that the model would never write there are masked again, likely ones stay."""
    model = network("llada", 3, 20.0)
    prompt = prompt_for("llada", 6, 3)
    reply = list(write(model, draft_spec(prompt, 8, DecodeOptions(block=0), STEPS)).tokens)
    if len(reply) < 8:
        reply += [4] * (8 - len(reply))
    engine = engine_of(model)
    draft = engine.submit(replace(draft_spec(prompt, 8, DecodeOptions(block=0, keep_above=0.3)), keep=tuple(reply)))
    engine.run_round()
    engine.run_round()
    mask = model.spec.special.mask
    assert mask is not None
    expected = set()
    for half in (range(0, 8, 2), range(1, 8, 2)):
        tokens = [*prompt, *(mask if at in half else token for at, token in enumerate(reply))]
        hidden = model(torch.tensor([tokens]), torch.arange(14).unsqueeze(0), None)
        p = torch.softmax(model.logits(hidden[0]), dim=-1)
        expected |= {at for at in half if float(p[6 + at, reply[at]]) < 0.3}
    assert draft.rescore is not None
    assert set(draft.rescore.doubted) == expected


# --- given text, stops, grammars ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llada", "dream", "dllm_llama", "sdar", "diffusion_gemma"])
def test_given_tokens_stand_where_they_were_given(family: str) -> None:
    model = network(family, 2)
    spec = replace(
        draft_spec(prompt_for(family, 7), 16, DecodeOptions(min_tokens=16)), given=((0, 20), (5, 21), (6, 22), (-1, 23))
    )
    reply = write(model, spec)
    assert (reply.tokens[0], reply.tokens[5], reply.tokens[6], reply.tokens[15]) == (20, 21, 22, 23)
    assert reply.probabilities[5] == 1.0


def test_infilling_sees_the_text_on_the_right() -> None:
    model = network("llada", 2)
    prompt = prompt_for("llada", 5)
    options = DecodeOptions(min_tokens=12, block=0)
    one, other = (
        write(model, replace(draft_spec(prompt, 12, options), given=tuple((at, token) for at in range(8, 12))))
        for token in (30, 60)
    )
    assert one.tokens[:8] != other.tokens[:8]


def test_stop_sequences_cut_before_they_are_emitted() -> None:
    model = network("sdar", 1)
    prompt = prompt_of(6, 1)
    whole = write(model, draft_spec(prompt, 18, DecodeOptions(guard=False))).tokens
    stop = whole[4:6]
    first = next(at for at in range(len(whole)) if whole[at : at + 2] == stop)
    engine = engine_of(model)
    draft = engine.submit(replace(draft_spec(prompt, 18, DecodeOptions(guard=False)), stop=(stop, (1, 2, 3))))
    events = run(engine)
    reply = finished(events, draft)
    assert (reply.reason, reply.tokens) == ("stop", whole[:first])
    assert tuple(t for event in events if isinstance(event, Committed) for t in event.tokens) == whole[:first]


def test_a_grammar_is_obeyed_whatever_the_rule() -> None:
    from dllm.grammar import compile_regex

    codec = tiny.codec()
    constraint = compile_regex(r" ?(large|small) (tea|mocha)( please)?", codec)
    for seed in range(6):
        for rule in ("threshold", "random", "count"):
            engine = Engine(tiny.model(seed), codec.token_table, cache_bytes=2**20, clock=lambda: 0.0)
            plan = Plan(seed + 1, 1, 0.5, by_clause=False)
            prompt = tuple(codec.encode_prompt([("user", "a large mocha")]))
            spec = DraftSpec(prompt, "a", 16, plan, options=DecodeOptions(rule=rule, seed=seed), constraint=constraint)  # type: ignore[arg-type]
            draft = engine.submit(spec)
            reply = finished(run(engine), draft)
            assert re.fullmatch(r" ?(large|small) (tea|mocha)( please)?", codec.decode(reply.tokens).strip())
            assert reply.steps_first <= seed + 1


def test_a_grammar_that_does_not_fit_fails_its_own_draft_only() -> None:
    from dllm.errors import ConstraintError
    from dllm.grammar import compile_regex

    codec = tiny.codec()
    engine = Engine(tiny.model(0), codec.token_table, cache_bytes=2**20, clock=lambda: 0.0)
    prompt = tuple(codec.encode_prompt([("user", "a large mocha")]))
    constraint = compile_regex("[0-9]{40}", codec)
    bad = engine.submit(DraftSpec(prompt, "bad", 16, STEPS, constraint=constraint))
    good = engine.submit(DraftSpec(prompt, "good", 16, STEPS))
    events = run(engine)
    finished(events, good)
    with pytest.raises(ConstraintError):
        finished(events, bad)


def test_banned_phrases_never_appear_even_in_one_step() -> None:
    model = network("llada", 1)
    prompt = prompt_of(6, 1)
    whole = write(model, draft_spec(prompt, 12, DecodeOptions(guard=False), Plan(1, 1, 1.0, by_clause=False))).tokens
    banned = (whole[3:5], (whole[7],))
    for steps in (1, 4, 12):
        options = DecodeOptions(guard=False, banned=banned)
        reply = write(model, draft_spec(prompt, 12, options, Plan(steps, 1, 1.0, by_clause=False))).tokens
        for phrase in banned:
            assert phrase not in [reply[at : at + len(phrase)] for at in range(len(reply))]


def test_banned_phrases_that_no_canvas_can_hold_cost_nothing_and_their_tokens_are_looked_at_all_the_same() -> None:
    engine, prompt, longest = engine_of(network("llada", 1)), prompt_of(6, 1), tuple([5, 6] * 6)
    banned = ((7,), longest, (*longest, 5), tuple([5, 6] * 500))
    draft = engine.submit(draft_spec(prompt, 12, DecodeOptions(guard=False, banned=banned)))
    assert draft.spec.options.banned == ((7,), longest)
    with pytest.raises(ConfigError, match="banned = 96"):
        engine.submit(draft_spec(prompt, 12, DecodeOptions(banned=(tuple([96] * 13),))))


# --- caches and blocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_approximate_cache_refreshed_at_every_step_is_exact(family: str, cache: str) -> None:
    for seed in range(3):
        model = network(family, seed)
        prompt = prompt_for(family, 7, seed)
        exact = write(model, draft_spec(prompt, 16, DecodeOptions(block=8)))
        options = DecodeOptions(block=8, cache=cache, refresh_every=1)  # type: ignore[arg-type]
        spec = draft_spec(prompt, 16, options)
        engine = engine_of(model)
        draft = engine.submit(spec)
        strategy = draft.strategy
        # Refreshing before every step: what is stored is never older than the canvas.
        strategy._options = replace(options, refresh_every=1)  # type: ignore[attr-defined]
        events = []
        while engine.drafts:
            strategy._since_refresh = 1  # type: ignore[attr-defined]
            events += engine.run_round()
        assert finished(events, draft).tokens == exact.tokens


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("refresh", [0, 3])
def test_an_approximate_cache_computes_less_and_ends(family: str, cache: str, refresh: int) -> None:
    model = network(family, 1)
    options = DecodeOptions(block=8, cache=cache, refresh_every=refresh, guard=False)  # type: ignore[arg-type]
    engine = engine_of(model)
    lengths = []
    original = engine.workspace.forward

    def counted(arranged, ids=None, **extra):  # type: ignore[no-untyped-def]
        lengths.append(arranged.ids.shape[1])
        return original(arranged, ids, **extra)

    engine.workspace.forward = counted  # type: ignore[method-assign]
    draft = engine.submit(draft_spec(prompt_for(family, 7), 24, options))
    reply = finished(run(engine), draft)
    assert model.spec.special.mask not in reply.tokens
    short = [length for length in lengths if length < 31]
    assert len(short) > len(lengths) / 2
    assert cache == "prefix" or set(short) <= {8}


def test_an_approximate_cache_survives_losing_its_row() -> None:
    """More drafts than rows: whoever comes back finds its row taken and starts from a full forward."""
    model = network("llada", 1)
    engine = engine_of(model, max_batch=1)
    specs = [
        draft_spec(prompt_of(6, seed), 16, DecodeOptions(block=8, cache="dual"), conversation=str(seed))
        for seed in range(3)
    ]
    drafts = [engine.submit(spec) for spec in specs]
    deadlines = itertools_cycle(drafts)
    events = []
    while engine.drafts:
        turn = next(deadlines)
        for draft in engine.drafts:
            engine.replan(draft, replace(draft.plan, first_deadline=1.0 if draft is turn else 9.0, steps_first=200))
        events += engine.run_round()
    for draft in drafts:
        assert model.spec.special.mask not in finished(events, draft).tokens


def itertools_cycle(drafts: list[Draft]) -> Iterator[Draft]:
    while True:
        yield from drafts


@pytest.mark.parametrize("pipeline", [2, 4])
def test_pipelined_blocks_finish_whole_and_in_order(pipeline: int) -> None:
    live = set()
    for seed in range(4):
        model = network("sdar", seed)
        engine = engine_of(model)
        plan = Plan(200, 1, 0.04, by_clause=False)
        draft = engine.submit(draft_spec(prompt_of(6, seed), 22, DecodeOptions(pipeline=pipeline, guard=False), plan))
        events = []
        while engine.drafts:
            events += engine.run_round()
            decided = {at // 4 for at in range(draft.canvas.width) if draft.canvas.is_decided(at)}
            live.add(len(decided))
        reply = finished(events, draft)
        assert model.spec.special.mask not in reply.tokens
        assert tuple(t for event in events if isinstance(event, Committed) for t in event.tokens) == reply.tokens
    assert max(live) > 1


def test_block_causal_replies_are_reused_by_the_next_turn() -> None:
    model = network("sdar", 0)
    engine = engine_of(model)
    prompt = prompt_of(9)
    first = engine.submit(draft_spec(prompt, 19, DecodeOptions(guard=False)))
    reply = finished(run(engine), first)
    longer = (*prompt, *reply.tokens, 3, 7, 8, 9)
    second = engine.submit(draft_spec(longer, 16, DecodeOptions(guard=False)))
    again = finished(run(engine), second)
    assert second.cached_tokens > len(prompt), "blocks of the reply are in the cache"
    assert again.tokens == write(model, draft_spec(longer, 16, DecodeOptions(guard=False))).tokens


def test_a_fused_commit_stores_what_a_pass_of_its_own_stores() -> None:
    """Keys and values of the finished reply, page by page, against one forward over everything."""
    for seed in range(3):
        model = network("sdar", seed)
        prompt = prompt_of(10, seed)
        engine = engine_of(model)
        draft = engine.submit(draft_spec(prompt, 22, DecodeOptions(guard=False, fused_commit=True)))
        tokens: list[int] = []
        row: list[LayerStore] = []
        while engine.drafts:
            engine.run_round()
            if draft.text is not None and draft.text.length > len(tokens):
                tokens = list(draft.text.tokens)
                row = [store.of(0) for store in model.new_stores(1, len(tokens))]
                engine.cache.read(draft.text, row)
        assert len(tokens) > len(prompt)
        stores, total = model.new_stores(1, len(tokens)), len(tokens)
        seen = plain_samplers.seen(model.spec, total, total).view(1, 1, total, total)
        model(torch.tensor([tokens]), torch.arange(total).unsqueeze(0), seen, stores, 0)
        for fused, separate in zip(row, stores, strict=True):
            # Sums over keys in another order differ in the last bits of float32.
            torch.testing.assert_close(fused.keys, separate.keys[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(fused.values, separate.values[0], atol=1e-4, rtol=1e-4)


# --- company ------------------------------------------------------------------------------------------------------------------------


def mixture(family: str, seed: int) -> list[DraftSpec]:
    """Drafts of many kinds for one model."""
    options = [
        DecodeOptions(guard=False),
        DecodeOptions(guard=False, temperature=0.8, seed=5, top_p=0.9),
        DecodeOptions(guard=False, rule="entropy")
        if family != "diffusion_gemma"
        else DecodeOptions(guard=False, seed=9),
        DecodeOptions(guard=False, repetition_penalty=1.3, logit_bias=((7, 2.0),)),
    ]
    if family in ("nemotron", "dllm_llama"):
        options.append(DecodeOptions(guard=False, mode="self_speculative"))
        options.append(DecodeOptions(guard=False, mode="causal"))
    if family in ("llada", "dream"):
        options.append(DecodeOptions(guard=False, block=4))
    if family in ("llada", "sdar"):
        options.append(DecodeOptions(guard=False, remask_eta=0.3, seed=2))
    widths = (8, 16) if family == "dllm_llama" else (5, 8, 13, 16)
    return [
        draft_spec(
            prompt_for(family, 3 + 5 * index + seed, seed),
            widths[index % len(widths)],
            option,
            Plan(4 + index, 3, 0.5, by_clause=bool(index % 2)),
            f"conversation {index % 3}",
        )
        for index, option in enumerate(options)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_is_the_same_alone_and_in_company(family: str) -> None:
    for seed in range(2):
        specs = mixture(family, seed)
        alone = [write(network(family, seed), spec) for spec in specs]
        engine = engine_of(network(family, seed))
        drafts = [engine.submit(spec) for spec in specs]
        events = run(engine)
        for draft, one in zip(drafts, alone, strict=True):
            together = finished(events, draft)
            assert together.tokens == one.tokens
            assert together.steps_first == one.steps_first
            # Sums in another order differ in the last bits of float32; the logits they come from reach some tens.
            torch.testing.assert_close(
                torch.tensor(together.probabilities), torch.tensor(one.probabilities), atol=1e-3, rtol=1e-3
            )
        assert max(event.batch for event in events if isinstance(event, Stepped)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_any_order_of_submits_cancels_replans_and_finishes_leaves_every_reply_its_own(family: str) -> None:
    """Thousands of steps in all: small batches, small caches, drafts that come and go between any two rounds."""
    model = network(family, 0)
    rng = random.Random(7)
    kinds = mixture(family, 0)
    alone = {index: write(model, spec).tokens for index, spec in enumerate(kinds)}
    engine = engine_of(model, max_batch=3, cache_bytes=60_000)
    running: dict[Draft, int] = {}
    steps = cancelled = 0
    while steps < 500:
        if len(running) < 6 and rng.random() < 0.5:
            index = rng.randrange(len(kinds))
            deadline = rng.random() + 1.0
            plan = replace(kinds[index].plan, first_deadline=deadline, rest_deadline=deadline)
            conversation = f"conversation {rng.randrange(4)}"
            running[engine.submit(replace(kinds[index], plan=plan, conversation=conversation))] = index
        if running and rng.random() < 0.08:
            draft = rng.choice(list(running))
            engine.cancel(draft)
            del running[draft]
            cancelled += 1
        if rng.random() < 0.05:
            engine.forget(f"conversation {rng.randrange(4)}")
        if rng.random() < 0.05:
            engine.warm(f"conversation {rng.randrange(4)}", rng.choice(kinds).prompt)
        for event in engine.run_round():
            steps += isinstance(event, Stepped)
            if isinstance(event, Finished):
                assert event.tokens == alone[running.pop(event.draft)]
    for draft in list(engine.drafts):
        engine.cancel(draft)
    held = engine.cache.capacity_pages - engine.cache.free_pages
    assert held == len(engine.cache._nodes)
    assert all(not node.uses for node in engine.cache._nodes)
    assert cancelled


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 5))
def test_a_long_prompt_is_stored_in_chunks_without_changing_the_reply(chunk: int, length: int, seed: int) -> None:
    model = network("sdar", seed)
    spec = draft_spec(prompt_of(length, seed), 8, DecodeOptions(guard=False))
    expected = write(model, spec).tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm.texts.PREFILL_CHUNK", chunk)
        assert write(model, spec).tokens == expected


def test_a_long_prompt_does_not_keep_the_others_from_stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm.texts.PREFILL_CHUNK", 16)
    model = network("sdar", 0)
    engine = engine_of(model, cache_bytes=2**20)
    short = engine.submit(draft_spec(prompt_of(6), 40, DecodeOptions(guard=False), conversation="short"))
    engine.run_round()
    long = engine.submit(draft_spec(prompt_of(150), 8, DecodeOptions(guard=False), conversation="long"))
    for _ in range(5):
        events = engine.run_round()
        assert any(isinstance(event, Stepped) and event.draft is short for event in events)
    assert long.pending


# --- mistakes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("sdar", {"options": DecodeOptions(mode="causal")}, "mode"),
        ("sdar", {"options": DecodeOptions(block=8)}, "block"),
        ("sdar", {"options": DecodeOptions(cache="dual")}, "cache"),
        ("llada", {"options": DecodeOptions(pipeline=2)}, "pipeline"),
        ("dream", {"options": DecodeOptions(wino_threshold=0.5)}, "wino_threshold"),
        ("diffusion_gemma", {"options": DecodeOptions(early_commit=True)}, "early_commit"),
        ("nemotron", {"options": DecodeOptions(mode="self_speculative", temperature=1.0)}, "temperature"),
        ("nemotron", {"options": DecodeOptions(mode="causal"), "given": ((3, 7),)}, "given"),
        ("llada", {"given": ((16, 7),)}, "given"),
        ("llada", {"given": ((0, 96),)}, "given"),
        ("sdar", {"prompt": (5, 96)}, "prompt"),
        ("sdar", {"width": 0}, "width"),
        ("sdar", {"options": DecodeOptions(logit_bias=((96, 1.0),))}, "logit_bias"),
        ("diffusion_gemma", {"pins": ((5, 6),)}, "pins"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(family: str, changes: dict[str, object], key: str) -> None:
    engine = engine_of(network(family))
    with pytest.raises(ConfigError, match=key):
        engine.submit(replace(draft_spec(prompt_for(family, 5), 16), **changes))  # type: ignore[arg-type]
    assert not engine.drafts


def test_prompts_beyond_the_positions_or_the_cache_are_refused() -> None:
    with pytest.raises(PromptTooLongError, match="the model has 256"):
        engine_of(network("sdar")).submit(draft_spec(prompt_of(250), 16))
    with pytest.raises(CacheFullError, match="raise cache_bytes"):
        engine_of(network("sdar"), cache_bytes=10_000).submit(draft_spec(prompt_of(120), 16))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rule": "best"}, "rule"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"edit_threshold": 0.9, "wino_threshold": 0.5}, "wino_threshold"),
        ({"remask_eta": 0.1, "wino_threshold": 0.5}, "remask_eta"),
        ({"banned": ((),)}, "banned"),
        ({"pipeline": 0}, "pipeline"),
        ({"anneal": (0.4, 0.8)}, "anneal"),
        ({"mode": "both"}, "mode"),
    ],
)
def test_contradictory_options_name_the_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        DecodeOptions(**changes)  # type: ignore[arg-type]


def test_ruling_out_every_token_fails_the_draft_with_a_reason() -> None:
    model = network("sdar")
    engine = engine_of(model)
    bias = tuple((token, float("-inf")) for token in range(96))
    draft = engine.submit(draft_spec(prompt_of(5), 7, DecodeOptions(logit_bias=bias)))
    with pytest.raises(NoTokenLeftError, match="no token is allowed at position"):
        finished(run(engine), draft)


def test_the_engine_says_what_a_step_would_cost_now() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    engine = Engine(network("sdar"), engine_of(network("sdar")).table, cache_bytes=2**18, clock=clock)  # type: ignore[arg-type]
    assert engine.load().step_p50_s is None
    engine.submit(draft_spec(prompt_of(9), 16, DecodeOptions(guard=False)))
    while engine.drafts:
        engine.run_round()
    load = engine.load(8)
    assert load.step_p50_s is not None and load.step_p50_s >= 0.25
    engine.submit(draft_spec(prompt_of(40, 3), 16))
    assert engine.load().waiting_tokens == 40
    assert engine.load().prefill_s is not None
