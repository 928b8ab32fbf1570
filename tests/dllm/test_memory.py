"""What the engine holds is what it says it holds, and what leaves it is gone."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dllm.draft import Draft
from dllm.drafts import DraftSpec, Plan, Prefilled
from dllm.engine import Engine
from dllm.models.family import EIGHT_BITS
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.spec import dialogue_spec
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run, table_of, write
from tests.dllm.test_decoding import network

SMALL = Plan(steps_first=6, steps_rest=6, threshold=0.6, by_clause=False)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that were held at once of those that `work` allocated, by the allocator's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        most = max(most, held)
    return most


def live_tensors() -> tuple[int, int]:
    """How many tensors Python can reach, and the bytes of their storages."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}
    return len(found), sum(storages.values())


def some_spec(draw: random.Random, number: int, multiple: int = 8) -> DraftSpec:
    options = DecodeOptions(temperature=draw.choice((0.0, 0.8)), seed=draw.randrange(99))
    prompt = prompt_of(draw.randrange(5, 40), draw.randrange(6))
    return draft_spec(prompt, multiple * draw.randrange(1, 4), options, SMALL, f"c{number % 7}")


def large_model() -> Transformer:
    """32 M parameters: large enough for a step's activations to be small beside it."""
    spec = dialogue_spec(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=4
    )
    model = Transformer(spec).eval().requires_grad_(False)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def write_three(model: Transformer) -> Engine:
    engine = Engine(model, table_of(model.spec), max_batch=4)
    plan = Plan(steps_first=2, steps_rest=1, threshold=1.0, by_clause=False)
    for number in range(3):
        engine.submit(draft_spec(prompt_of(150, number), 32, plan=plan, conversation=f"c{number}"))
    run(engine)
    return engine


def check_peak(engine: Engine, allocated: int) -> None:
    """allocated: Most bytes at once of what the engine allocated beside the weights."""
    weights = sum(part.numel() * part.element_size() for part in (*engine.model.parameters(), *engine.model.buffers()))  # type: ignore[attr-defined]
    stated, peak = engine.memory(), weights + allocated
    assert stated.weights == weights
    total = stated.weights + stated.cache + stated.workspace
    assert total < peak, "the peak holds activations as well"
    assert peak < 1.10 * total, f"{peak / total:.3f} times what is stated"


def test_the_peak_is_the_weights_the_cache_and_the_workspace_that_are_stated() -> None:
    model, engines = large_model(), list[Engine]()
    allocated = peak_bytes(lambda: engines.append(write_three(model)))
    check_peak(engines[0], allocated)


@pytest.mark.gpu
def test_on_the_gpu_the_peak_is_what_is_stated() -> None:
    model = large_model().cuda()
    write_three(model)  # libraries take their own memory at their first call
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = write_three(model)
    check_peak(engine, torch.cuda.max_memory_allocated() - before)


def test_the_stated_workspace_and_cache_are_their_tensors() -> None:
    engine = engine_of(tiny.model(), cache_bytes=2**18)
    engine.submit(draft_spec(prompt_of(20), 16, plan=SMALL))
    engine.run_round()
    pool = [part for store in engine.cache.pool for part in store.parts]
    rows = [part for store in engine.workspace.stores for part in store.parts]
    assert engine.memory().cache == sum(part.untyped_storage().nbytes() for part in pool)
    assert engine.memory().workspace == sum(part.untyped_storage().nbytes() for part in rows)


def test_a_thousand_cancelled_drafts_leave_nothing() -> None:
    engine, draw = engine_of(tiny.model(), max_batch=4, cache_bytes=2**20), random.Random(7)
    waiting: list[Draft] = []
    done = 0

    def cancel_many(count: int) -> None:
        """Submit, step and cancel in any order; the few that finish before are forgotten with their conversations."""
        nonlocal done
        stop = done + count
        while done < stop:
            match draw.randrange(5):
                case 0 | 1 if len(waiting) < 6:
                    waiting.append(engine.submit(some_spec(draw, done)))
                case 2:
                    engine.run_round()
                    waiting[:] = [draft for draft in waiting if draft in engine.drafts]
                case _ if waiting:
                    engine.cancel(waiting.pop(draw.randrange(len(waiting))))
                    done += 1
                case _:
                    pass
        for draft in waiting:
            engine.cancel(draft)
        waiting.clear()
        for conversation in range(7):
            engine.forget(f"c{conversation}")

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    cancel_many(100)  # the workspace reaches its size, and lazily made things are made
    pages, stored, tensors, things = engine.cache.free_pages, engine.cache.stored(), live_tensors(), objects()
    assert pages == engine.cache.capacity_pages and not stored
    cancel_many(1000)
    assert engine.drafts == ()
    assert engine.cache.free_pages == pages and not engine.cache.stored()
    assert not any(engine.workspace.has(number) for number in range(3000))
    count, size = live_tensors()
    assert count == tensors[0]
    # The mask of the last forward is kept for the next: a few hundred bytes, as wide as its windows were.
    assert abs(size - tensors[1]) < 16_384
    # Step costs by shape and the interpreter's own caches grow a little; a leak of one object a draft would be a thousand.
    assert objects() - things < 500


def test_cancelling_while_nothing_else_runs_frees_every_page_at_any_moment() -> None:
    for moment in range(9):
        engine = engine_of(tiny.model(), cache_bytes=2**20)
        draft = engine.submit(draft_spec(prompt_of(33), 16, plan=SMALL))
        for _ in range(moment):
            engine.run_round()
        if draft not in engine.drafts:
            break
        engine.cancel(draft)
        assert engine.cache.free_pages == engine.cache.capacity_pages, f"after {moment} rounds"
    assert moment > 2


def check_under_pressure(
    model: torch.nn.Module, pages: int, multiple: int, cache_dtype: torch.dtype | None = None
) -> int:
    """Replies in a cache that is far too small for all of them equal those of engines of their own; evictions seen."""
    page_bytes = engine_of(model, cache_dtype=cache_dtype).cache.page_bytes
    engine = engine_of(model, max_batch=3, cache_bytes=pages * page_bytes, cache_dtype=cache_dtype)
    evict, evicted = engine.cache._evict, []

    def counted(*args: object) -> bool:
        found: bool = evict(*args)  # type: ignore[arg-type]
        evicted.append(found)
        return found

    engine.cache._evict = counted  # type: ignore[method-assign]
    draw = random.Random(3)
    specs = [some_spec(draw, number, multiple) for number in range(24)]
    drafts: list[Draft] = []
    events = []
    for spec in specs:
        drafts.append(engine.submit(spec))
        for _ in range(draw.randrange(4)):
            events += engine.run_round()
        if draw.random() < 0.2 and engine.drafts:
            engine.warm(f"w{draw.randrange(5)}", prompt_of(30, draw.randrange(9)))
    events += run(engine)
    for spec, draft in zip(specs, drafts, strict=True):
        assert finished(events, draft).tokens == write(model, spec, cache_dtype).tokens
    assert sum(isinstance(event, Prefilled) for event in events) == len(specs)
    return sum(evicted)


def test_evictions_while_drafts_run_change_no_reply() -> None:
    assert check_under_pressure(tiny.model(), 8, 8) > 20


def test_evictions_change_no_reply_of_a_block_causal_model() -> None:
    assert check_under_pressure(network("sdar"), 8, 4) > 20


def test_evictions_change_no_reply_of_a_cache_in_eight_bits() -> None:
    assert check_under_pressure(tiny.model(), 8, 8, EIGHT_BITS) > 20
    assert check_under_pressure(network("sdar"), 8, 4, EIGHT_BITS) > 20


def test_the_stated_bytes_of_a_cache_in_eight_bits_are_its_tensors() -> None:
    """One byte a number and four a head of a token, of keys and of values: a quarter of float32's and a half of bfloat16's, and the scales."""
    model = tiny.model()
    engine = engine_of(model, cache_bytes=2**20, cache_dtype=EIGHT_BITS)
    engine.submit(draft_spec(prompt_of(33), 16, plan=SMALL))
    run(engine)
    pool = [part for store in engine.cache.pool for part in store.parts]
    rows = [part for store in engine.workspace.stores for part in store.parts]
    assert engine.memory().cache == sum(part.untyped_storage().nbytes() for part in pool)
    assert engine.memory().workspace == sum(part.untyped_storage().nbytes() for part in rows)
    spec = model.spec
    heads = 2 * spec.num_hidden_layers * spec.num_key_value_heads
    assert engine.cache.page_bytes == engine.cache.page_size * heads * (spec.head_dim + 4)
