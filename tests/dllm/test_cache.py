"""The prefix cache: exact, shared, bounded, and consistent in whatever order it is used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dllm.cache import CachedText, PrefixCache, common_prefix
from dllm.errors import CacheFullError, ConfigError
from dllm.masks import visible
from dllm.models.family import LayerStore, Network
from dllm.window import Window, Workspace
from tests.dllm import tiny
from tests.dllm.models import tiny_checkpoints

TOKENS = tuple(int(token) for token in torch.randint(16, 300, (61,), generator=torch.Generator().manual_seed(3)))
PAGE = 4


def cache_of(model: Network, pages: int, page_size: int = PAGE, grid: int = 1) -> PrefixCache:
    probe = PrefixCache(model, 1, page_size, grid)
    return PrefixCache(model, pages * probe.page_bytes, page_size, grid)


def encode(model: Network, cache: PrefixCache, text: CachedText, tokens: tuple[int, ...]) -> None:
    """Append what is missing of `tokens`, in one forward."""
    missing = tokens[text.length :]
    if not missing:
        return
    cache.reserve(text, len(tokens))
    workspace = Workspace(model, 1)
    workspace.place(["x"], len(tokens), lambda key, row: cache.read(text, row))
    window = Window(missing, text.length, visible(model.spec, text.length, len(missing), total=len(tokens)))
    workspace.forward(workspace.arrange([window]))
    cache.write(text, missing, workspace.row("x"), text.length)


def stored(model: Network, cache: PrefixCache, text: CachedText) -> list[torch.Tensor]:
    """Keys and values, layer by layer, [G, length, D]."""
    rows = model.new_stores(1, max(text.length, 1))
    cache.read(text, [store.of(0) for store in rows])
    return [part[0, :, : text.length] for store in rows for part in store.parts]


def recomputed(model: Network, tokens: tuple[int, ...]) -> list[torch.Tensor]:
    """The same from one forward over everything."""
    stores = model.new_stores(1, len(tokens))
    seen = torch.arange(len(tokens)) < torch.tensor(visible(model.spec, 0, len(tokens), total=len(tokens))).unsqueeze(1)
    positions = torch.arange(len(tokens)).unsqueeze(0)
    model(torch.tensor([tokens]), positions, seen.view(1, 1, len(tokens), len(tokens)), stores, 0)
    return [part[0] for store in stores for part in store.parts]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        # Sums over keys in another order differ in the last bits of float32.
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 30, 32, 60])
def test_a_prompt_extended_from_any_cut_equals_the_whole(cut: int) -> None:
    model = tiny.model()
    cache = cache_of(model, 64)
    first = cache.open(TOKENS[:cut] + (17, 18, 19))
    encode(model, cache, first, TOKENS[:cut] + (17, 18, 19))
    cache.publish(first, "a")
    cache.close(first)
    text = cache.open(TOKENS)
    assert text.length == cut, "reused to the token, whatever the page size"
    encode(model, cache, text, TOKENS)
    same(stored(model, cache, text), recomputed(model, TOKENS))


def test_a_block_causal_prefix_is_reused_in_whole_blocks_only() -> None:
    spec = tiny_checkpoints.tiny_spec("sdar")
    model = tiny_checkpoints.random_network(spec, 0)
    tokens = tuple(token % 90 for token in TOKENS[:32])
    cache = cache_of(model, 64, 8, spec.block)
    first = cache.open(tokens)
    encode(model, cache, first, tokens)
    cache.publish(first, "a")
    other = (*tokens[:22], tokens[22] + 1, *tokens[23:])
    text = cache.open(other)
    assert text.length == 22 // spec.block * spec.block
    encode(model, cache, text, other)
    same(stored(model, cache, text), recomputed(model, other))


def test_a_limit_leaves_something_to_compute() -> None:
    model = tiny.model()
    cache = cache_of(model, 64)
    first = cache.open(TOKENS)
    encode(model, cache, first, TOKENS)
    cache.publish(first, "a")
    assert cache.open(TOKENS, len(TOKENS) - 1).length == len(TOKENS) - 1


def test_the_longest_common_prefix_wins_whoever_made_it() -> None:
    model = tiny.model()
    cache = cache_of(model, 64)
    for owner, tokens in (("a", TOKENS[:10]), ("b", TOKENS[:22])):
        text = cache.open(tokens)
        encode(model, cache, text, tokens)
        cache.publish(text, owner)
        cache.close(text)
    assert cache.open(TOKENS).length == 22
    assert cache.open(TOKENS[:13] + (1,)).length == 13
    assert cache.open((1, 2)).length == 0


def test_equal_prefixes_are_stored_once() -> None:
    model = tiny.model()
    cache = cache_of(model, 64)
    for owner in "abc":
        text = cache.open(TOKENS[:40])
        encode(model, cache, text, TOKENS[:40])
        cache.publish(text, owner)
        cache.close(text)
    assert cache.capacity_pages - cache.free_pages == 40 // PAGE


def test_least_recently_used_goes_first_and_what_is_read_never_goes() -> None:
    model = tiny.model()
    cache = cache_of(model, 10)
    for owner, tokens in (("a", TOKENS[:16]), ("b", TOKENS[16:32])):
        text = cache.open(tokens)
        encode(model, cache, text, tokens)
        cache.publish(text, owner)
        cache.close(text)
    reading = cache.open(TOKENS[:16])
    text = cache.open(TOKENS[32:56])
    encode(model, cache, text, TOKENS[32:56])
    cache.publish(text, "c")
    assert cache.open(TOKENS[16:32]).length == 0
    same(stored(model, cache, reading), recomputed(model, TOKENS[:16]))


def test_a_full_cache_says_how_much_is_missing_and_leaves_the_text_alone() -> None:
    model = tiny.model()
    cache = cache_of(model, 4)
    text = cache.open(TOKENS)
    with pytest.raises(CacheFullError, match="room for 16 tokens, 64 are needed"):
        cache.reserve(text, len(TOKENS))
    assert cache.free_pages == 4
    cache.reserve(text, 16)
    cache.close(text)
    assert cache.free_pages == 4


def test_forgetting_a_conversation_frees_what_only_it_kept() -> None:
    model = tiny.model()
    cache = cache_of(model, 64)
    shared = TOKENS[:9]
    for owner, tokens in (("a", TOKENS[:30]), ("b", TOKENS[:20] + (3, 4, 5))):
        text = cache.open(tokens)
        encode(model, cache, text, tokens)
        cache.publish(text, None, len(shared))
        cache.publish(text, owner)
        cache.close(text)
    cache.forget("a")
    reading = cache.open(TOKENS[:30])
    assert reading.length == 20
    cache.forget("b")
    same(stored(model, cache, reading), recomputed(model, TOKENS[:20]))
    cache.close(reading)
    assert cache.open(TOKENS[:30]).length == len(shared)


def test_a_page_must_hold_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="page_size"):
        PrefixCache(tiny.model(), 10_000, page_size=6, grid=4)


def test_common_prefix_counts_equal_tokens() -> None:
    assert [common_prefix((1, 2, 3), other) for other in ((1, 2), (1, 9, 3), (), (1, 2, 3, 4))] == [2, 1, 0, 3]


class CacheMachine(RuleBasedStateMachine):
    """Any order of opening, extending, publishing, closing and forgetting, with keys that name their own token and position.

    Instead of a network, a token's stored key is a function of all tokens up to it, so that a page in the wrong place is seen.
    """

    @initialize(grid=st.sampled_from([1, 2, 4]))
    def begin(self, grid: int) -> None:
        self.model = tiny.model()
        self.cache = cache_of(self.model, 12, 4, grid)
        self.texts: list[tuple[CachedText, str]] = []

    def fake_row(self, tokens: tuple[int, ...]) -> list[LayerStore]:
        row = [store.of(0) for store in self.model.new_stores(1, len(tokens))]
        for layer, store in enumerate(row):
            total = 0
            for at, token in enumerate(tokens):
                total = (total * 31 + token + 1) % 65_521
                store.keys[:, at] = total + layer
                store.values[:, at] = -total - layer
        return row

    @rule(tokens=st.lists(st.integers(0, 2), max_size=24), owner=st.sampled_from("ab"))
    def open(self, tokens: list[int], owner: str) -> None:
        try:
            text = self.cache.open(tokens)
        except CacheFullError:
            return
        assert text.tokens == tokens[: text.length]
        self.texts.append((text, owner))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=st.lists(st.integers(0, 2), min_size=1, max_size=9))
    def extend(self, data: st.DataObject, more: list[int]) -> None:
        text, _ = data.draw(st.sampled_from(self.texts))
        whole = (*text.tokens, *more)
        try:
            self.cache.reserve(text, len(whole))
        except CacheFullError:
            return
        self.cache.write(text, more, self.fake_row(whole), text.length)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), withdraws=st.booleans())
    def publish(self, data: st.DataObject, withdraws: bool) -> None:
        text, owner = data.draw(st.sampled_from(self.texts))
        created = self.cache.publish(text, owner)
        if withdraws:
            self.cache.withdraw(created, owner)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), keeps=st.booleans())
    def close(self, data: st.DataObject, keeps: bool) -> None:
        text, owner = data.draw(st.sampled_from(self.texts))
        self.texts = [entry for entry in self.texts if entry[0] is not text]
        if keeps:
            self.cache.publish(text, owner)
            self.cache.keep_only(owner, text)
        self.cache.close(text)

    @rule(owner=st.sampled_from("ab"))
    def forget(self, owner: str) -> None:
        self.cache.forget(owner)

    @invariant()
    def every_open_text_reads_what_was_written(self) -> None:
        for text, _ in getattr(self, "texts", []):
            if not text.length:
                continue
            expected = self.fake_row(tuple(text.tokens))
            for one, other in zip(
                stored(self.model, self.cache, text), [part for store in expected for part in store.parts], strict=True
            ):
                assert torch.equal(one, other)

    @invariant()
    def pages_are_free_or_held_once(self) -> None:
        if not hasattr(self, "cache"):
            return
        held = [page for text, _ in self.texts for page in text.own] + [node.page for node in self.cache._nodes]
        assert len(held) == len(set(held))
        assert len(held) + self.cache.free_pages == self.cache.capacity_pages
        assert not set(held) & set(self.cache._free)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
