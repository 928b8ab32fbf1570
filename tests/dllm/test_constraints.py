"""Filling a window under a grammar: the most probable way, in any order, or the reason why there is none."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.constraints import GrammarConstraint, Lexicon
from dllm.errors import ConfigError, ConstraintError, DraftError
from dllm.grammar import compile_choices, compile_regex
from tests.dllm.spelling import END, MASK, NEVER, SpellingCodec, letters

PATTERNS = [
    "a*",
    "(ab|c)+",
    "a?b?c?",
    "(a|ab)(c|bcd)?",
    "[^a]+",
    "(a|b)*abb",
    "a{2,4}",
    "ab|aab|bca",
    "(ca)*(bc)*",
    ".b.*",
]


def uniform(width: int, codec: SpellingCodec) -> torch.Tensor:
    return torch.zeros(width, codec.vocab_size)


def dyadic(width: int, codec: SpellingCodec, seed: int) -> torch.Tensor:
    """Log-probabilities in eighths, some of them -inf: sums are exact, so that ties are ties, and there are many."""
    generator = torch.Generator().manual_seed(seed)
    values = -torch.randint(0, 24, (width, codec.vocab_size), generator=generator).float() / 8
    return values.masked_fill(torch.rand(values.shape, generator=generator) < 0.1, -torch.inf)


def split_at_end(tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    at = next((at for at, token in enumerate(tokens) if token == END), len(tokens))
    return list(tokens[:at]), list(tokens[at:])


def is_obeyed(pattern: str, codec: SpellingCodec, tokens: Sequence[int]) -> bool:
    text, rest = split_at_end(tokens)
    legal = all(token > NEVER for token in text) and all(token == END for token in rest)
    return legal and re.fullmatch(pattern, b"".join(map(codec.token_bytes, text)).decode()) is not None


def by_brute_force(
    pattern: str, codec: SpellingCodec, log_probabilities: torch.Tensor, decided: Sequence[int | None]
) -> tuple[float, list[int]] | None:
    rows = log_probabilities.double().tolist()
    best: tuple[float, list[int]] | None = None
    choices = [range(codec.vocab_size) if fixed is None else [fixed] for fixed in decided]
    for tokens in itertools.product(*choices):  # in ascending order: the first of equals stays
        score = sum(0.0 if decided[at] is not None else rows[at][token] for at, token in enumerate(tokens))
        if score > -math.inf and (best is None or score > best[0]) and is_obeyed(pattern, codec, tokens):
            best = (score, list(tokens))
    return best


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_filling_is_the_best_of_all_fillings_and_ties_go_to_low_tokens_on_the_left(pattern: str) -> None:
    codec = letters()
    constraint = compile_regex(pattern, codec, leading_space=False)
    choose = random.Random(pattern)
    for seed in range(6):
        width = 1 + seed % 3
        log_probabilities = dyadic(width, codec, seed)
        decided = [choose.choice([None, None, 0, 3, 4, 6]) for _ in range(width)]
        expected = by_brute_force(pattern, codec, log_probabilities, decided)
        if expected is None:
            with pytest.raises(ConstraintError):
                constraint.complete([], log_probabilities, decided, 0)
        else:
            tokens, probabilities = constraint.complete([], log_probabilities, decided, 0)
            assert tokens == expected[1]
            for at, token in enumerate(tokens):
                sure = 1.0 if decided[at] is not None else math.exp(log_probabilities[at, token])
                assert probabilities[at] == sure


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 10_000), width=st.integers(3, 9), at_once=st.integers(1, 4)
)
def test_committing_guesses_in_any_order_ends_in_a_text_that_matches(
    pattern: str, seed: int, width: int, at_once: int
) -> None:
    codec = letters()
    constraint = compile_regex(pattern, codec, leading_space=False)
    choose = random.Random(seed)
    decided: list[int | None] = [None] * width
    while None in decided:
        log_probabilities = torch.randn(
            width, codec.vocab_size, generator=torch.Generator().manual_seed(choose.randrange(2**30))
        )
        tokens, _ = constraint.complete([], log_probabilities, decided, 0)
        assert all(fixed in (None, token) for fixed, token in zip(decided, tokens, strict=True))
        masked = [at for at, fixed in enumerate(decided) if fixed is None]
        for at in choose.sample(masked, min(at_once, len(masked))):
            decided[at] = tokens[at]
    assert is_obeyed(pattern, codec, [token for token in decided if token is not None])


_REGEX = st.recursive(
    st.sampled_from(["a", "b", "c", "[ab]", "[^c ]", "bc"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        inner.map(lambda one: f"(?:{one})*"),
        inner.map(lambda one: f"(?:{one})?"),
        inner.map(lambda one: f"(?:{one}){{1,2}}"),
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(pattern=_REGEX, seed=st.integers(0, 10_000), width=st.integers(1, 8))
def test_any_expression_is_obeyed_or_the_canvas_is_named_too_narrow(pattern: str, seed: int, width: int) -> None:
    codec = letters()
    constraint = compile_regex(pattern, codec, leading_space=False)
    log_probabilities = torch.randn(width, codec.vocab_size, generator=torch.Generator().manual_seed(seed))
    if constraint.shortest() > width:
        with pytest.raises(ConstraintError, match="too narrow"):
            constraint.complete([], log_probabilities, [None] * width, 0)
    else:
        tokens, _ = constraint.complete([], log_probabilities, [None] * width, 0)
        assert is_obeyed(pattern, codec, tokens)
        assert constraint.accepts(tokens)


@settings(max_examples=40, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 10_000), width=st.integers(3, 9), block=st.integers(1, 4))
def test_windows_one_behind_the_other_make_a_whole_that_matches(
    pattern: str, seed: int, width: int, block: int
) -> None:
    codec = letters()
    constraint = compile_regex(pattern, codec, leading_space=False)
    log_probabilities = torch.randn(width, codec.vocab_size, generator=torch.Generator().manual_seed(seed))
    prefix: list[int] = []
    while len(prefix) < width:
        stop = min(width, len(prefix) + block)
        window = log_probabilities[len(prefix) : stop]
        prefix += constraint.complete(prefix, window, [None] * len(window), width - stop)[0]
    assert is_obeyed(pattern, codec, prefix)


@pytest.mark.parametrize(("text", "least"), [("aab", 1), ("aabbc", 2), ("cabca", 3), ("abcabc", 3), ("abcabca", 4)])
def test_the_narrowest_canvas_is_found_exactly(text: str, least: int) -> None:
    codec = letters()
    constraint = compile_choices([text], codec, leading_space=False)
    assert constraint.shortest() == least
    tokens, _ = constraint.complete([], uniform(least, codec), [None] * least, 0)
    assert codec.decode(tokens) == text
    with pytest.raises(ConstraintError, match=f"needs at least {least} tokens, the canvas has {least - 1}"):
        constraint.complete([], uniform(least - 1, codec), [None] * (least - 1), 0)


def test_free_positions_ahead_make_up_for_a_narrow_window() -> None:
    codec = letters()
    constraint = compile_choices(["abcabc"], codec, leading_space=False)
    first, _ = constraint.complete([], uniform(1, codec), [None], 2)
    assert constraint.shortest(first) <= 2
    with pytest.raises(ConstraintError, match="needs at least 3 tokens, the canvas has 2"):
        constraint.complete([], uniform(1, codec), [None], 1)


def test_behind_a_whole_reply_there_are_only_ends() -> None:
    codec = letters()
    constraint = compile_choices(["ab"], codec, leading_space=False)
    tokens, _ = constraint.complete([], uniform(5, codec), [None] * 5, 0)
    assert codec.decode(tokens) == "ab"
    assert tokens[-3:] == [END] * 3
    assert constraint.complete([*codec.encode("ab"), END], uniform(2, codec), [None] * 2, 0)[0] == [END, END]


def test_a_model_that_wants_to_go_on_is_ended_where_the_grammar_ends() -> None:
    codec = letters()
    constraint = compile_regex("a{1,2}", codec, leading_space=False)
    log_probabilities = torch.full((6, codec.vocab_size), -30.0)
    log_probabilities[:, 3] = 0.0
    assert constraint.complete([], log_probabilities, [None] * 6, 0)[0] == [3, 3, END, END, END, END]


def test_any_of_several_ends_closes_a_reply_and_the_probable_one_does() -> None:
    codec = SpellingCodec((b"a", b"b"), other_ends=frozenset({NEVER}))
    constraint = compile_regex("a", codec, leading_space=False)
    log_probabilities = uniform(3, codec)
    log_probabilities[1, NEVER] = 2.0
    assert constraint.complete([], log_probabilities, [None] * 3, 0)[0] == [3, NEVER, END]


def test_special_tokens_take_no_part_unless_they_are_given_a_spelling() -> None:
    codec = letters()
    log_probabilities = uniform(1, codec)
    log_probabilities[0, [MASK, NEVER]] = 9.0
    assert compile_regex("b", codec).complete([], log_probabilities, [None], 0)[0] == [4]
    spelled = compile_regex("b", Lexicon.read(codec, spelled={NEVER: b"b"}))
    assert spelled.complete([], log_probabilities, [None], 0)[0] == [NEVER]


def test_a_character_may_be_spread_over_tokens_but_not_left_half() -> None:
    codec = SpellingCodec((b"\xc3", b"\xa9", b"e"))
    constraint = compile_regex("é|e", codec, leading_space=False)
    log_probabilities = uniform(2, codec)
    log_probabilities[0, 3] = 5.0
    assert constraint.complete([], log_probabilities, [None] * 2, 0)[0] == [3, 4]
    assert constraint.complete([], log_probabilities[:1], [None], 0)[0] == [5]


def test_the_models_padded_vocabulary_is_never_chosen() -> None:
    codec = letters()
    log_probabilities = torch.zeros(1, codec.vocab_size + 20)
    log_probabilities[0, codec.vocab_size :] = 9.0
    assert compile_regex("b", codec).complete([], log_probabilities, [None], 0)[0] == [4]


def test_tokens_that_the_model_does_not_know_are_never_chosen() -> None:
    codec = letters()
    constraint = compile_regex("bc", codec, leading_space=False)
    assert constraint.complete([], uniform(2, codec)[:, :6], [None] * 2, 0)[0] == [4, 5]
    with pytest.raises(ConstraintError, match="at position 0 is forbidden"):
        constraint.complete([], uniform(1, codec)[:, :6], [None], 0)


def test_classes_of_hundreds_of_tokens_give_their_best_and_lowest() -> None:
    codec = SpellingCodec(
        tuple(bytes([65 + first % 26, 97 + second % 26]) for first in range(26) for second in range(26))
    )
    constraint = compile_regex("[A-Z][a-z]", codec, leading_space=False)
    log_probabilities = uniform(1, codec)
    assert constraint.complete([], log_probabilities, [None], 0)[0] == [3]
    log_probabilities[0, [600, 650]] = 1.0
    assert constraint.complete([], log_probabilities, [None], 0)[0] == [600]


def test_decided_tokens_stand_where_the_model_forbids_them() -> None:
    codec = letters()
    log_probabilities = uniform(2, codec)
    log_probabilities[0, 4] = -torch.inf
    tokens, probabilities = compile_regex("b+", codec).complete([], log_probabilities, [4, None], 0)
    assert tokens[0] == 4
    assert probabilities[0] == 1.0


def test_a_decided_token_that_contradicts_the_grammar_is_named_with_its_place() -> None:
    codec = letters()
    constraint = compile_regex("a+b", codec, leading_space=False)
    with pytest.raises(ConstraintError, match="decided token 5 at position 4 contradicts"):
        constraint.complete([3, 3], uniform(4, codec), [3, None, 5, None], 0)
    with pytest.raises(ConstraintError, match="decided token 2 at position 0 contradicts"):
        constraint.complete([], uniform(4, codec), [NEVER, None, None, None], 0)


def test_an_end_decided_too_early_is_named() -> None:
    codec = letters()
    constraint = compile_choices(["abcabc"], codec, leading_space=False)
    with pytest.raises(ConstraintError, match="decided token 0 at position 2 contradicts"):
        constraint.complete([], uniform(6, codec), [None, None, END, None, None, None], 0)


def test_forbidding_all_that_the_grammar_allows_is_named_with_its_place() -> None:
    codec = letters()
    log_probabilities = uniform(3, codec)
    log_probabilities[1, 3] = -torch.inf
    with pytest.raises(ConstraintError, match="at position 1 is forbidden"):
        compile_regex("a{3}", codec, leading_space=False).complete([], log_probabilities, [None] * 3, 0)


def test_a_reply_so_far_that_contradicts_the_grammar_is_named_with_its_place() -> None:
    codec = letters()
    constraint = compile_regex("a+", codec, leading_space=False)
    with pytest.raises(ConstraintError, match="token 4 at its position 1"):
        constraint.complete([3, 4], uniform(1, codec), [None], 0)
    assert not constraint.accepts([3, 4])
    assert not constraint.accepts([10**6])


def test_a_grammar_that_no_token_spells_is_refused_when_it_is_compiled() -> None:
    with pytest.raises(ConfigError, match="tokens can spell"):
        compile_regex("z+", letters())


def test_a_constraint_error_is_the_drafts_and_the_callers() -> None:
    assert issubclass(ConstraintError, DraftError)
    assert issubclass(ConstraintError, ValueError)


def test_an_empty_window_is_complete_when_the_rest_fits_ahead() -> None:
    codec = letters()
    constraint: GrammarConstraint = compile_regex("aab", codec, leading_space=False)
    assert constraint.complete([], uniform(0, codec), [], 1) == ([], [])
    with pytest.raises(ConstraintError, match="too narrow"):
        constraint.complete([], uniform(0, codec), [], 0)
