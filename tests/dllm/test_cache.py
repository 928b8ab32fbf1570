"""The prefix cache: exact, shared, bounded."""

from __future__ import annotations

import pytest
import torch

from dllm.cache import PrefixCache, PrefixEntry, common_prefix
from dllm.denoise import DenoiseBatch, prefill
from tests.dllm import tiny

TOKENS = tuple(int(token) for token in torch.randint(16, 300, (61,), generator=torch.Generator().manual_seed(3)))


def entry(tokens: tuple[int, ...], owner: str | None = "a") -> PrefixEntry:
    return PrefixEntry(tokens, prefill(tiny.model(), tokens, None, 0), owner)


@pytest.mark.parametrize("cut", [1, 2, 7, 30, 33, 60])
def test_a_prompt_extended_from_any_cut_equals_the_whole(cut: int) -> None:
    model = tiny.model()
    whole = prefill(model, TOKENS, None, 0)
    other = entry(TOKENS[:cut] + (17, 18, 19))
    extended = prefill(model, TOKENS, other, cut)
    for left, right in zip(whole, extended, strict=True):
        torch.testing.assert_close(left.keys, right.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left.values, right.values, atol=1e-5, rtol=1e-5)


def test_cached_denoising_equals_one_uncached_forward() -> None:
    model = tiny.model()
    width, prefix = 16, len(TOKENS)
    mask_token = model.spec.special.mask
    batch = DenoiseBatch(model, [prefill(model, TOKENS, None, 0)], [prefix], [width])
    logits = batch.logits([[mask_token] * width], [range(width)])
    total = prefix + width
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    seen[prefix:, prefix:] = True
    ids = torch.tensor([[*TOKENS, *[mask_token] * width]])
    hidden = model(ids, torch.arange(total).unsqueeze(0), seen.view(1, 1, total, total))
    torch.testing.assert_close(logits, model.logits(hidden[0, prefix:]), atol=1e-4, rtol=1e-4)


def test_longest_common_prefix_wins_whoever_made_it() -> None:
    cache = PrefixCache(10**9)
    short, long = entry(TOKENS[:10], "a"), entry(TOKENS[:20], "b")
    cache.add(short)
    cache.add(long)
    assert cache.find(TOKENS) == (long, 20)
    assert cache.find(TOKENS[:12] + (1,)) == (long, 12)
    assert cache.find((1, 2)) == (None, 0)


def test_least_recently_used_goes_first() -> None:
    first, second, third = entry(TOKENS[:20], "a"), entry(TOKENS[20:40], "b"), entry(TOKENS[40:60], "c")
    cache = PrefixCache(2 * first.size_bytes)
    cache.add(first)
    cache.add(second)
    cache.find(TOKENS[:20])
    cache.add(third)
    assert cache.find(TOKENS[:20])[1] == 20
    assert cache.find(TOKENS[20:40])[1] == 0
    assert cache.size_bytes <= cache.limit_bytes


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    big = entry(TOKENS)
    cache = PrefixCache(big.size_bytes - 1)
    assert not cache.add(big)
    assert len(cache) == 0


def test_what_is_covered_is_not_stored_twice_and_what_is_superseded_goes() -> None:
    cache = PrefixCache(10**9)
    old, new = entry(TOKENS[:20]), entry(TOKENS[:30])
    assert cache.add(old)
    assert cache.add(new)
    assert not cache.add(entry(TOKENS[:25]))
    cache.supersede(new)
    assert len(cache) == 1
    cache.forget("a")
    assert len(cache) == 0


@pytest.mark.parametrize(("left", "right", "length"), [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 3), (1, 2), 1)])
def test_common_prefix(left: tuple[int, ...], right: tuple[int, ...], length: int) -> None:
    assert common_prefix(left, right) == length
