"""Questions about a caller's turn: what is read off the canvas, and for whom."""

from __future__ import annotations

import json

import pytest
import torch

from dllm import cli
from dllm.engine import Engine
from dllm.errors import ConfigError, PromptTooLongError
from dllm.masks import prefix_mask, visible
from dllm.models.transformer import Transformer
from dllm.score import causal_likelihood
from dllm.transcript import HeardTurn, heard_words, turn_end, turn_ends, word_chances
from tests.dllm import tiny
from tests.dllm.models import tiny_checkpoints

CODEC = tiny.codec()
SPEC = tiny.spec()
SPECIAL = CODEC.special


def plain_logits(model: Transformer, prompt: list[int], canvas: list[int]) -> torch.Tensor:
    """[len(canvas), V] by one forward over one row, with no padding."""
    total = len(prompt) + len(canvas)
    mask = prefix_mask(visible(SPEC, 0, total, total=total, live=len(prompt)), total, torch.device("cpu"))
    positions = torch.arange(total).unsqueeze(0)
    hidden = model(torch.tensor([[*prompt, *canvas]]), positions, mask.expand(1, 1, total, total))
    return model.logits(hidden[0, len(prompt) :])


def test_the_end_of_a_turn_is_the_first_position_of_a_canvas_of_masks() -> None:
    model = tiny.model()
    prompts = [[SPECIAL.user, *CODEC.encode_text(text)] for text in ("a tea", "a large mocha please", "hi")]
    found = turn_ends(model, prompts, rows=2)
    for prompt, chance in zip(prompts, found, strict=True):
        logits = plain_logits(model, prompt, [SPECIAL.mask] * SPEC.canvas_multiple)[0]
        logits[SPECIAL.mask] = -torch.inf
        # Padding to the longest row of a forward changes the order of float32 sums.
        assert chance == pytest.approx(float(torch.softmax(logits, -1)[SPECIAL.end]), rel=1e-4)
    assert turn_ends(model, []) == []


def test_the_end_of_a_turn_is_the_same_on_a_cached_prefix_and_leaves_the_cache_alone() -> None:
    model = tiny.model()
    engine = Engine(model, CODEC.token_table)
    before = [
        *CODEC.encode_turn("system", "You take orders at a café."),
        *CODEC.encode_turn("agent", "Hi, what can I get you?"),
    ]
    prompt = [*before, SPECIAL.user, *CODEC.encode_text("a large mocha with")]
    (expected,) = turn_ends(model, [prompt])
    found = turn_end(engine, prompt)
    assert found.probability == pytest.approx(expected, rel=1e-4)
    assert not engine.cache.stored()
    words = prompt[len(before) + 1 :]
    nats = -causal_likelihood(model, prompt[: len(before) + 1], words).per_token
    assert found.surprise == pytest.approx(nats, rel=1e-4)
    engine.warm("call", before)
    stored, free = engine.cache.stored(), engine.cache.free_pages
    cached = turn_end(engine, prompt)
    assert (cached.probability, cached.surprise) == pytest.approx((expected, nats), rel=1e-4)
    whole = turn_end(engine, before)
    assert whole.probability == pytest.approx(turn_ends(model, [before])[0], rel=1e-4) and whole.surprise == 0.0
    assert (engine.cache.stored(), engine.cache.free_pages) == (stored, free)
    with pytest.raises(PromptTooLongError):
        turn_end(engine, [SPECIAL.user] * SPEC.max_position_embeddings)


def test_words_are_judged_where_they_stand() -> None:
    model = tiny.model()
    heard = CODEC.encode_text("a large mocha please")
    found = word_chances(model, [SPECIAL.user], heard)
    width = -(-(len(heard) + 1) // SPEC.canvas_multiple) * SPEC.canvas_multiple
    logits = plain_logits(model, [SPECIAL.user], [*heard, *[SPECIAL.end] * (width - len(heard))])
    logits[:, list(SPEC.special.forbidden)] = -torch.inf
    spread = torch.softmax(logits, -1)
    for at, (chance, meant) in enumerate(found):
        assert chance == pytest.approx(float(spread[at, heard[at]]), rel=1e-5)
        assert meant == int(spread[at].argmax())


def test_a_word_is_as_doubtful_as_its_worst_token() -> None:
    model = tiny.model()
    text = "a zyx mocha"
    tokens = CODEC.encode_text(text)
    chances = [chance for chance, _ in word_chances(model, [SPECIAL.user], tokens)]
    words = heard_words(model, CODEC, [SPECIAL.user], text)
    assert [word.text for word in words] == text.split()
    pieces = [len(CODEC.encode_text(word)) for word in text.split()]
    assert max(pieces) > 1, "one word is of several tokens"
    for word, size in zip(words, pieces, strict=True):
        assert word.probability == min(chances[:size])
        del chances[:size]


def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(ConfigError, match="transcript = 0"):
        word_chances(model, [SPECIAL.user], [])
    with pytest.raises(ConfigError, match="transcript"):
        word_chances(model, [SPECIAL.user], [20] * SPEC.max_canvas)
    with pytest.raises(PromptTooLongError):
        turn_ends(model, [[20] * SPEC.max_position_embeddings])


def test_only_the_built_in_family_is_asked() -> None:
    other = tiny_checkpoints.random_network(tiny_checkpoints.tiny_spec("sdar"))
    with pytest.raises(ConfigError, match="the built-in family"):
        turn_ends(other, [[1]])


def test_the_command_marks_what_it_doubts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcript", "i'd like a large mocha", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [word["text"] for word in told["words"]] == ["i'd", "like", "a", "large", "mocha"]
    assert 0 < told["turn_end"] < 1
    assert cli.main(["transcript", "i'd like a large mocha", "--doubt", "1"]) == 0
    assert capsys.readouterr().out.count("doubtful") == 5
    assert cli.main(["transcript", "   "]) == 2
    assert "some words" in capsys.readouterr().err


def test_a_transcript_is_questioned_on_a_cached_prefix_as_without_one() -> None:
    model = tiny.model()
    engine = Engine(model, CODEC.token_table)
    before = [*CODEC.encode_turn("system", "You take orders at a café."), *CODEC.encode_turn("agent", "Hi?")]
    prompt, text = [*before, SPECIAL.user], "a large mocha with milk please"
    expected = heard_words(model, CODEC, prompt, text)
    for _ in range(2):
        found = HeardTurn(engine, CODEC, prompt, text).words()
        assert [(word.text, word.instead) for word in found] == [(word.text, word.instead) for word in expected]
        assert [word.probability for word in found] == pytest.approx([w.probability for w in expected], rel=1e-4)
        engine.warm("call", before)


def test_what_may_stand_instead_of_words_is_read_off_masks_in_their_place() -> None:
    model = tiny.model()
    engine = Engine(model, CODEC.token_table)
    prompt, text = [SPECIAL.user], "a large mocha with milk please"
    turn = HeardTurn(engine, CODEC, prompt, text)
    spans, texts = [(1, 2), (2, 4)], [["large", "small", "extra large"], ["latte"]]
    found = turn.instead(spans, texts)
    words, width = text.split(), len(turn._canvas)
    for (first, last), some, values in zip(spans, texts, found, strict=True):
        before = CODEC.encode_text(" ".join(words[:first]))
        behind = CODEC.encode_text(" ".join(words[last:]))
        for instead, nats in zip(some, values, strict=True):
            tokens = CODEC.encode_text(instead)
            filled = [*before, *[SPECIAL.mask] * len(tokens), *behind]
            logits = plain_logits(model, prompt, [*filled, *[SPECIAL.end] * max(width - len(filled), 1)])
            logits[:, SPECIAL.mask] = -torch.inf
            rows = torch.log_softmax(logits[len(before) : len(before) + len(tokens)], -1)
            alone = sum(float(rows[at, token]) for at, token in enumerate(tokens))
            assert nats == pytest.approx(alone, rel=1e-4), f"{instead} is asked about as if alone"
    assert turn.instead([], []) == []
    assert not engine.cache.stored()


def test_a_transcript_that_is_empty_or_wider_than_a_canvas_is_refused() -> None:
    engine = Engine(tiny.model(), CODEC.token_table)
    for text in ("", "mocha " * SPEC.max_canvas):
        with pytest.raises(ConfigError, match="transcript"):
            HeardTurn(engine, CODEC, [SPECIAL.user], text)
    with pytest.raises(PromptTooLongError):
        HeardTurn(engine, CODEC, [SPECIAL.user] * SPEC.max_position_embeddings, "a mocha").words()
