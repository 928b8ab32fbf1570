"""Options on logits, against the same rules written over lists; draws, against their distribution."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dllm.canvas import Canvas, TokenTable, repeats_span
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.process import LENGTH_PULL, Processor, Rows, Vocabulary, draw_seeds, sample
from tests.dllm.no_sync import no_host_sync

V, END, MASK = 10, 0, 1
WORDS, STOPS, COMMAS = frozenset({2, 3, 4}), frozenset({5}), frozenset({6})
TABLE = TokenTable(END, MASK, frozenset({9}), STOPS, COMMAS, frozenset(), WORDS, {}, WORDS)
LARGE = Vocabulary.of(V, (END, 8), {MASK, 9}, "cpu")
SMALL = Vocabulary.of_table(TABLE, V, "cpu")

canvases = st.lists(st.none() | st.sampled_from([END, 2, 3, 5, 7]), min_size=1, max_size=12)
phrases = st.lists(st.lists(st.sampled_from([2, 3, 5, 7]), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


def tensors(canvas: list[int | None]) -> tuple[Tensor, Tensor]:
    return torch.tensor([MASK if token is None else token for token in canvas]), torch.tensor(
        [token is not None for token in canvas]
    )


def processed(
    options: DecodeOptions, canvas: list[int | None], logits: Tensor | None = None, vocabulary: Vocabulary = LARGE
) -> Tensor:
    """Logits [W, V] of all positions."""
    out = torch.zeros(len(canvas), V) if logits is None else logits.clone()
    processor, (tokens, decided) = Processor([options], vocabulary), tensors(canvas)
    rows = Rows.of_one(torch.arange(len(canvas)))
    with no_host_sync():
        processor.apply(out, rows, tokens.unsqueeze(0), decided.unsqueeze(0))
    return out


def impossible(logits: Tensor) -> set[tuple[int, int]]:
    return {(row, token) for row in range(len(logits)) for token in range(V) if logits[row, token] == -math.inf}


def contains(canvas: list[int | None], phrase: tuple[int, ...]) -> bool:
    return any(tuple(canvas[at : at + len(phrase)]) == phrase for at in range(len(canvas)))


def completes(canvas: list[int | None], at: int, token: int, phrase: tuple[int, ...]) -> bool:
    """Whether the token takes part in the phrase."""
    changed = canvas[:at] + [token] + canvas[at + 1 :]
    starts = range(max(0, at - len(phrase) + 1), at + 1)
    return any(tuple(changed[start : start + len(phrase)]) == phrase for start in starts)


def as_canvas(cells: list[int | None]) -> Canvas:
    canvas = Canvas(len(cells), TABLE)
    for at, token in enumerate(cells):
        if token is not None:
            canvas.commit(at, token, 1.0)
    return canvas


def test_default_options_forbid_specials_and_the_empty_reply_only() -> None:
    expected = {(row, token) for row in range(4) for token in (MASK, 9)} | {(0, END), (0, 8)}
    assert impossible(processed(DecodeOptions(), [None] * 4)) == expected


def test_ends_wait_for_the_least_length_and_are_pulled_to_the_target() -> None:
    logits = processed(DecodeOptions(min_tokens=2, target_tokens=4), [None] * 10)
    assert {at for at, token in impossible(logits) if token == 8} == {0, 1}
    expected = [LENGTH_PULL * max(-1, min(1, (at - 4) / 4)) for at in range(2, 10)]
    for end in (END, 8):
        assert logits[2:, end].tolist() == expected
    assert logits[:, 2].tolist() == [0.0] * 10


def test_biases_of_one_token_add_up() -> None:
    logits = processed(DecodeOptions(logit_bias=((3, 1.5), (4, -100.0), (3, 1.0))), [None, None])
    assert logits[:, 3].tolist() == [2.5, 2.5] and logits[:, 4].tolist() == [-100.0, -100.0]


@given(canvases, st.sampled_from([0.5, 1.25, 2.0]))
def test_repetition_penalty_is_once_per_token_that_stands_in_the_reply(
    canvas: list[int | None], penalty: float
) -> None:
    logits = torch.linspace(-3, 3, len(canvas) * V).view(len(canvas), V)
    plain, out = (
        processed(DecodeOptions(), canvas, logits),
        processed(DecodeOptions(repetition_penalty=penalty), canvas, logits),
    )
    for token in range(V):
        before = plain[:, token]
        is_hit = token in canvas and token not in (END, 8)
        after = torch.where(before > 0, before / penalty, before * penalty) if is_hit else before
        assert torch.equal(out[:, token], after)


@settings(max_examples=300)
@given(canvases, phrases)
def test_a_token_is_banned_exactly_where_it_would_complete_a_banned_phrase(
    canvas: list[int | None], banned: list[tuple[int, ...]]
) -> None:
    options = DecodeOptions(banned=tuple(banned))
    added = impossible(processed(options, canvas)) - impossible(processed(DecodeOptions(), canvas))
    assert added == {
        (at, token)
        for at in range(len(canvas))
        for token in range(V)
        if any(completes(canvas, at, token, phrase) for phrase in banned)
    }


class _Work(TorchDispatchMode):
    """Counts the numbers that operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = call(*args, **(kwargs or {}))
        self.numbers += sum(one.numel() for one in tree_leaves(result) if isinstance(one, Tensor))
        return result


def test_a_banned_phrase_of_twice_the_length_is_twice_the_work() -> None:
    def work(length: int) -> int:
        with _Work() as counted:
            processor = Processor([DecodeOptions(banned=(tuple([2, 3] * (length // 2)),))], SMALL)
            rows = Rows.of_one(torch.arange(128))
            tokens, decided = torch.full((1, 128), 2), torch.zeros(1, 128, dtype=torch.bool)
            processor.apply(torch.zeros(128, V), rows, tokens, decided)
            processor.joint_conflicts(tokens, decided, ~decided)
        return counted.numbers

    assert work(128) < 2.2 * work(64)


@given(phrases, st.permutations(range(8)), st.randoms(use_true_random=False))
def test_no_order_of_commits_writes_a_banned_phrase(banned: list[tuple[int, ...]], order: list[int], random) -> None:  # type: ignore[no-untyped-def]
    canvas: list[int | None] = [None] * 8
    for at in order:
        row = processed(DecodeOptions(banned=tuple(banned), min_tokens=0), canvas)[at].tolist()
        canvas[at] = random.choice([token for token in range(V) if row[token] > -math.inf])
    assert not any(contains(canvas, phrase) for phrase in banned)


@settings(max_examples=300)
@given(canvases.filter(lambda cells: None in cells))
def test_stutters_are_banned_where_the_canvas_says_they_are(cells: list[int | None]) -> None:
    # Ends are made unlikely: where a stutter beats the end, the end goes too, and that has a test of its own.
    logits = torch.zeros(len(cells), V)
    logits[:, END] = 1.0
    out = impossible(processed(DecodeOptions(min_tokens=0, no_stutter=True), cells, logits, SMALL))
    canvas = as_canvas(cells)
    for at in canvas.masked():
        for token in range(2, 9):
            assert ((at, token) in out) == repeats_span(canvas, at, token)


def test_a_reply_does_not_end_where_a_stutter_was_likelier() -> None:
    logits = torch.zeros(3, V)
    logits[:, 2], logits[2, END] = 0.5, 0.75
    out = processed(DecodeOptions(min_tokens=0, no_stutter=True), [None, 2, None], logits, SMALL)
    assert out[0, END] == -math.inf
    assert out[2, END] == 0.75


@given(
    st.lists(st.tuples(st.sampled_from([2, 3, 5, 7]), st.booleans(), st.booleans()), min_size=1, max_size=12), phrases
)
def test_what_a_step_chose_together_writes_no_banned_phrase_and_no_stutter(
    cells: list[tuple[int, bool, bool]], banned: list[tuple[int, ...]]
) -> None:
    tokens = torch.tensor([token for token, _, _ in cells])
    decided = torch.tensor([is_decided for _, is_decided, _ in cells])
    chosen = torch.tensor([is_chosen for _, _, is_chosen in cells]) & ~decided
    options = DecodeOptions(banned=tuple(banned), no_stutter=True)
    with no_host_sync():
        waits = Processor([options], SMALL).joint_conflicts(*(one.unsqueeze(0) for one in (tokens, decided, chosen)))[0]
    new = [at for at, is_new in enumerate(chosen.tolist()) if is_new]
    held = [at for at, is_held in enumerate(waits.tolist()) if is_held]
    assert set(held) <= set(new[1:])
    before = [token if is_decided else None for token, is_decided, _ in cells]
    after = [
        token if at in set(new) - set(held) or is_decided else None for at, (token, is_decided, _) in enumerate(cells)
    ]
    # Whatever is wrong afterwards is what one new token did alone, and that one `apply` rules out.
    allowed = processed(options, before, None, SMALL)
    if all(allowed[at, int(tokens[at])] > -math.inf for at in new):
        for phrase in banned:
            assert contains(before, phrase) or not contains(after, phrase)
        for at in sorted(set(new) - set(held)):
            assert not repeats_span(as_canvas(after[:at] + [None] + after[at + 1 :]), at, cells[at][0])
    if held:
        # No wait without a reason.
        everything = [token if at in new or is_decided else None for at, (token, is_decided, _) in enumerate(cells)]
        assert any(contains(everything, phrase) for phrase in banned) or any(
            repeats_span(as_canvas(everything[:at] + [None] + everything[at + 1 :]), at, cells[at][0]) for at in held
        )


asked = st.builds(
    DecodeOptions,
    repetition_penalty=st.sampled_from([1.0, 1.1, 0.7]),
    logit_bias=st.lists(st.tuples(st.integers(2, 9), st.sampled_from([1.5, -math.inf])), max_size=3).map(tuple),
    target_tokens=st.sampled_from([0, 3]),
    min_tokens=st.integers(0, 3),
    no_stutter=st.booleans(),
    banned=st.one_of(st.just(()), phrases.map(tuple)),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(asked, canvases), min_size=1, max_size=4), st.integers(0, 99))
def test_a_draft_is_ruled_alike_in_any_company(
    company: list[tuple[DecodeOptions, list[int | None]]], seed: int
) -> None:
    """To the bit, beside canvases of other widths and rules of other kinds."""
    width = max(len(canvas) for _, canvas in company)
    padded = [[*canvas, *[MASK] * (width - len(canvas))] for _, canvas in company]
    tokens, decided = (torch.stack(part) for part in zip(*map(tensors, padded), strict=True))
    chosen = ~decided & (torch.rand(decided.shape, generator=torch.Generator().manual_seed(seed)) < 0.6)
    guesses = torch.where(decided, tokens, (tokens + torch.arange(width)) % V)
    places = [(row, at) for row, (_, canvas) in enumerate(company) for at in range(len(canvas))]
    row, at = torch.tensor(places).unbind(1)
    logits = torch.randn(len(places), V, generator=torch.Generator().manual_seed(seed))
    together, processor = logits.clone(), Processor([options for options, _ in company], SMALL)
    with no_host_sync():
        processor.apply(together, Rows(row, at, row * width + at), tokens, decided)
        waits = processor.joint_conflicts(guesses, decided, chosen)
    first = 0
    for number, (options, canvas) in enumerate(company):
        rows, cells = slice(first, first + len(canvas)), (slice(number, number + 1), slice(len(canvas)))
        first += len(canvas)
        own, one = logits[rows].clone(), Processor([options], SMALL)
        one.apply(own, Rows.of_one(torch.arange(len(canvas))), tokens[cells], decided[cells])
        assert torch.equal(together[rows], own)
        alone = one.joint_conflicts(guesses[cells], decided[cells], chosen[cells])
        assert torch.equal(waits[cells], alone)


def test_tokens_outside_the_vocabulary_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="logit_bias"):
        Processor([DecodeOptions(logit_bias=((V, 1.0),))], LARGE)
    with pytest.raises(ConfigError, match="banned"):
        Processor([DecodeOptions(banned=((2, V),))], LARGE)
    with pytest.raises(ConfigError, match="ends"):
        Vocabulary.of(V, (V,), (), "cpu")


def allowed_by_definition(row: list[float], options: DecodeOptions) -> list[int]:
    """Top k, then the nucleus among them, ties to the lowest id."""
    order = sorted(
        (token for token in range(len(row)) if row[token] > -math.inf), key=lambda token: (-row[token], token)
    )
    order = order[: options.top_k or None]
    weights = [math.exp(row[token] / options.temperature) for token in order]
    kept, total = 0, 0.0
    while kept < len(order) and total < options.top_p * sum(weights) * (1 - 1e-6):
        total += weights[kept]
        kept += 1
    return order[:kept]


@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(temperature=1.0),
        DecodeOptions(temperature=0.7, top_k=3),
        DecodeOptions(temperature=1.5, top_p=0.8),
        DecodeOptions(temperature=0.9, top_k=5, top_p=0.9),
        DecodeOptions(temperature=2.0, top_k=2),
    ],
)
def test_draws_follow_the_filtered_softmax(options: DecodeOptions) -> None:
    draws = 20_000
    row = [1.0, 0.5, 2.0, -math.inf, 2.0, 0.0, -1.0, 1.0]
    logits = torch.tensor(row).expand(draws, -1).contiguous()
    seeds = draw_seeds(7, 3, torch.arange(draws))
    with no_host_sync():
        stats = sample(logits, options, seeds)
    kept = allowed_by_definition(row, options)
    weights = {token: math.exp(row[token] / options.temperature) for token in kept}
    counts = Counter(stats.token.tolist())
    assert set(counts) <= set(kept)
    chi_square = 0.0
    for token, weight in weights.items():
        expected = draws * weight / sum(weights.values())
        chi_square += (counts[token] - expected) ** 2 / expected
    # 24.3 is passed once in a thousand with 7 degrees of freedom, of which no case has more. The seeds are fixed.
    assert chi_square < 24.3
    # Reported over all allowed tokens at temperature 1, to float32's rounding of an exponential.
    expected_probability = torch.softmax(logits, 1).gather(1, stats.token.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(stats.probability, expected_probability, rtol=1e-5, atol=1e-7)


@given(
    st.lists(st.sampled_from([-2.0, 0.0, 0.5, 0.5, 3.0]), min_size=1, max_size=9),
    st.integers(0, 10),
    st.sampled_from([0.1, 0.37, 0.6, 0.93, 1.0]),
    st.sampled_from([0.25, 1.0, 3.0]),
)
def test_only_tokens_that_pass_both_filters_are_drawn(
    row: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    options = DecodeOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    stats = sample(torch.tensor([row] * 64), options, draw_seeds(1, 0, torch.arange(64)))
    assert set(stats.token.tolist()) <= set(allowed_by_definition(row, options))


@pytest.mark.parametrize(
    "options", [DecodeOptions(temperature=0.8), DecodeOptions(temperature=0.8, top_k=20, top_p=0.9)]
)
def test_a_draw_is_the_same_whatever_its_company(options: DecodeOptions) -> None:
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(3))
    seeds = draw_seeds(11, 2, torch.arange(12))
    together = sample(logits, options, seeds)
    order = torch.tensor([5, 0, 11, 3])
    apart = sample(logits[order], options, seeds[order])
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one[order], other)


def test_seeds_differ_by_draft_step_and_position_alone() -> None:
    positions = torch.arange(200)
    with no_host_sync():
        seeds = torch.cat([draw_seeds(seed, torch.tensor(step), positions) for seed in (0, 2**61) for step in (0, 9)])
    assert len(set(seeds.tolist())) == 800 and int(seeds.min()) >= 0
    assert draw_seeds(0, 9, torch.tensor([17])).item() == seeds[200 + 17].item()


def test_without_temperature_the_best_is_taken_and_a_row_without_choice_says_so() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [-math.inf] * 3])
    for options in (
        DecodeOptions(top_k=1),
        DecodeOptions(temperature=1.0, top_k=1),
        DecodeOptions(temperature=1.0, top_p=0.4),
    ):
        stats = sample(logits, options, torch.tensor([1, 2]))
        assert stats.token.tolist() == [1, -1]
        assert stats.probability[1].item() == 0.0
