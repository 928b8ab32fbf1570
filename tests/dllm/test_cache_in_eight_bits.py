"""An engine that keeps keys and values in e4m3: what a token stores depends on that token alone, so all else is as with floats."""

from __future__ import annotations

import pytest
import torch

from dllm.drafts import Plan
from dllm.engine import Engine
from dllm.errors import ConfigError
from dllm.models.family import EIGHT_BITS, LayerStore
from dllm.options import DecodeOptions
from dllm_kernels.quantise_rows import quantise_rows
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run, table_of, write
from tests.dllm.test_engine_features import network, prompt_for
from tests.dllm.test_graphs import StandIn, graphs

PLAN = Plan(6, 6, 0.5, by_clause=False)
PLAIN = DecodeOptions(guard=False)
FAMILIES = ("sdar", "llada2_edit", "fast_dllm", "nemotron", "dllm_llama", "diffusion_gemma")
"""Those that keep a prefix."""
WIDTH = 16


def stored(engine: Engine, tokens: tuple[int, ...]) -> list[torch.Tensor]:
    """What the cache holds of a text, to the byte."""
    text = engine.cache.open(tokens)
    assert text.length == len(tokens)
    rows = engine.model.new_stores(1, len(tokens), EIGHT_BITS)
    engine.cache.read(text, [store.of(0) for store in rows])
    engine.cache.close(text)
    return [part for store in rows for part in store.parts]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_is_the_same_in_company_and_on_what_others_stored(family: str) -> None:
    model = network(family)
    first = prompt_for(family, 17)
    prompts = [first, (*first, *prompt_for(family, 9, 1)), prompt_for(family, 30, 2)]
    alone = [write(model, draft_spec(prompt, WIDTH, PLAIN, PLAN), EIGHT_BITS).tokens for prompt in prompts]
    together = engine_of(model, cache_dtype=EIGHT_BITS)
    for _ in range(2):  # nothing stored, then all of it
        drafts = [
            together.submit(draft_spec(prompt, WIDTH, PLAIN, PLAN, f"c{at}")) for at, prompt in enumerate(prompts)
        ]
        events = run(together)
        assert [finished(events, draft).tokens for draft in drafts] == alone


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 32, 40])
def test_stored_bytes_are_the_same_however_a_prompt_is_cut(cut: int) -> None:
    """A last bit of float32 may send a number to its neighbour in e4m3, which is then one of very few."""
    prompt = prompt_of(41)
    whole, parts = (engine_of(tiny.model(), cache_dtype=EIGHT_BITS) for _ in range(2))
    whole.warm("a", prompt)
    parts.warm("a", prompt[:cut])
    parts.warm("b", prompt)
    for one, other in zip(stored(whole, prompt), stored(parts, prompt), strict=True):
        if one.dtype == torch.uint8:
            assert (one != other).float().mean() < 1e-3
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_stored_numbers_are_those_of_floats_rounded_once() -> None:
    """Of the first layer, whose inputs have not met an attention."""
    prompt, model = prompt_of(23), tiny.model()
    eight, floats = engine_of(model, cache_dtype=EIGHT_BITS), engine_of(model)
    eight.warm("a", prompt)
    floats.warm("a", prompt)
    text = floats.cache.open(prompt)
    rows = model.new_stores(1, len(prompt))
    floats.cache.read(text, [store.of(0) for store in rows])
    keys, values, key_scale, value_scale = stored(eight, prompt)[:4]
    for got, scale, expected in ((keys, key_scale, rows[0].keys), (values, value_scale, rows[0].values)):
        exact = quantise_rows(expected, EIGHT_BITS)
        assert torch.equal(got, exact.values.view(torch.uint8)) and torch.equal(scale, exact.scale.squeeze(3))


@pytest.mark.parametrize("family", ["dllm_llama", "sdar"])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_cancel_leaves_every_stored_byte_and_page_as_it_was(family: str, rounds: int) -> None:
    model = tiny.model() if family == "dllm_llama" else network(family)
    engine = engine_of(model, cache_dtype=EIGHT_BITS)
    first = prompt_of(21)
    engine.submit(draft_spec(first, 8, PLAIN, PLAN))
    run(engine)
    kept, free = engine.cache.stored(), engine.cache.free_pages
    before = {tokens: stored(engine, tokens) for tokens in kept}
    draft = engine.submit(draft_spec((*first, *prompt_of(13, 3)), 16, PLAIN, Plan(8, 8, 1.0)))
    for _ in range(rounds):
        engine.run_round()
    engine.cancel(draft)
    assert engine.cache.stored() == kept and engine.cache.free_pages == free
    for tokens, parts in before.items():
        assert all(map(torch.equal, stored(engine, tokens), parts))


def test_pages_that_match_in_part_are_copied_with_their_scales() -> None:
    model, prompt = tiny.model(), prompt_of(29)
    other = (*prompt[:21], *prompt_of(12, 5))
    engine = engine_of(model, cache_dtype=EIGHT_BITS)
    engine.warm("a", prompt)
    text = engine.cache.open(other)
    assert text.length == 21
    rows = model.new_stores(1, 21, EIGHT_BITS)
    engine.cache.read(text, [store.of(0) for store in rows])
    own = [part[:, :, :21] for part in stored(engine, prompt)]
    assert all(map(torch.equal, [part for store in rows for part in store.parts], own))


@pytest.mark.parametrize("family", FAMILIES)
def test_few_guesses_differ_from_a_float_caches(family: str) -> None:
    """Canvases decided in one step by random weights, many of whose guesses are near ties: docs/quantisation.md states the rates, up to .08.
    DiffusionGemma's are drawn, from deeper layers: there .33."""
    model = network(family)
    step = Plan(1, 1, 1.0, by_clause=False)
    options = DecodeOptions(guard=False, rule="count", min_tokens=WIDTH)
    differ = total = 0
    for seed in range(8):
        spec = draft_spec(prompt_for(family, 24, seed), WIDTH, options, step)
        got, expected = (torch.tensor(write(model, spec, dtype).tokens) for dtype in (EIGHT_BITS, None))
        differ, total = differ + int((got != expected).sum()), total + len(expected)
    assert 0 < total and differ / total <= (0.5 if family == "diffusion_gemma" else 0.16)


def test_recorded_steps_write_the_same() -> None:
    def written(is_recorded: bool) -> list[tuple[int, ...]]:
        model, recorder = tiny.model(), StandIn()
        forward = graphs(model, recorder) if is_recorded else None
        engine = Engine(
            model,
            table_of(model.spec),
            cache_bytes=2**18,
            clock=lambda: 0.0,
            forward=forward,
            cache_dtype=EIGHT_BITS,
        )
        drafts = [engine.submit(draft_spec(prompt_of(9 + at), 8, PLAIN, PLAN, f"c{at}")) for at in range(2)]
        events = run(engine)
        assert not is_recorded or recorder.replays > 0
        return [finished(events, draft).tokens for draft in drafts]

    assert written(True) == written(False)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_family_that_keeps_no_prefix_says_so(family: str) -> None:
    with pytest.raises(ConfigError, match=f"cache_dtype.*expected None: every {family} token sees all others"):
        engine_of(network(family), cache_dtype=EIGHT_BITS)


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="cache_dtype.*float32, which the weights have, or torch.float8_e4m3fn"):
        engine_of(tiny.model(), cache_dtype=torch.float16)
    assert LayerStore.zeros((1, 2, 3, 4), torch.zeros(1), torch.float32).key_scale is None
