"""Many continuations in one forward: each is as probable as alone."""

from __future__ import annotations

import math

import pytest

from dllm.branches import Tree, grow
from dllm.engine import Engine
from dllm.errors import PromptTooLongError
from dllm.score import causal_likelihood
from tests.dllm import tiny

CODEC = tiny.codec()
END = CODEC.special.end


def test_each_branch_has_the_likelihood_that_it_has_alone_and_the_cache_is_left_as_it_was() -> None:
    engine = Engine(tiny.model(), CODEC.token_table)
    prompt = CODEC.encode_prompt([("system", "You take orders."), ("user", "a large mocha with almond milk please")])
    texts = [CODEC.encode_text(text) for text in ("a large mocha", "a large tea", "almond milk", "a")]
    expected = [causal_likelihood(engine.model, prompt, [*text, END]).log_probability for text in texts]
    for warm in (0, len(prompt) // 2):
        engine.warm("call", prompt[:warm])
        stored = engine.cache.stored()
        tree = Tree()
        for text in texts:
            tree.add(text)
        assert len(tree.tokens) < sum(map(len, texts)), "beginnings are shared"
        found = grow(engine, prompt, tree)
        for text, nats in zip(texts, expected, strict=True):
            assert sum(found.closed(text, closing=[END])) == pytest.approx(nats, rel=1e-4)
        assert engine.cache.stored() == stored


def test_what_the_tree_does_not_hold_is_beyond_hope() -> None:
    engine = Engine(tiny.model(), CODEC.token_table)
    tree = Tree()
    tree.add(CODEC.encode_text("tea"))
    found = grow(engine, [CODEC.special.agent], tree)
    assert math.isinf(found.nats([*CODEC.encode_text("large mocha"), END]))


def test_a_tree_beyond_the_models_positions_is_refused() -> None:
    engine = Engine(tiny.model(), CODEC.token_table)
    tree = Tree()
    tree.add([END] * 20)
    with pytest.raises(PromptTooLongError):
        grow(engine, [CODEC.special.agent] * (tiny.spec().max_position_embeddings - 19), tree)
