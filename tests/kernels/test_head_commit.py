"""Head and commit in one: the same statistics and the same draws as the commit of logits that were made first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm_kernels import CommitStats, Given, Held, commit_from_logits, head_commit
from dllm_kernels.choose import Kind
from tests.kernels.both import DTYPES, KINDS, on, randn

# Logits of 1 to 4 differ by float32 sums of up to 300 terms in another order, 2^-19 or so, and probabilities by as much of themselves.
RTOL, ATOL = 3e-5, 3e-6

both = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(1, 1, 1), (3, 7, 5), (17, 300, 33), (2, 1025, 300), (65, 40, 64)]
"""(rows, vocabulary, inputs)."""


def assert_close(got: CommitStats, expected: CommitStats) -> None:
    assert got.token.tolist() == expected.token.tolist()
    for name in ("probability", "margin", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=RTOL, atol=ATOL, msg=name)


def given(rows: int, vocabulary: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states and a head whose logits are a few large, the best of them by far more than rounding: no ties to fall otherwise."""
    hidden, weight = randn(rows, size), randn(vocabulary, size) / size**0.5
    best = torch.arange(rows) * 5 % vocabulary
    return (hidden + weight[best] * 3 * size**0.5).to(dtype), weight.to(dtype)


@both
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_commit_of_the_product(kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    hidden, weight = given(*shape, dtype)
    logits = (hidden.double() @ weight.double().T).float()
    assert_close(on(kind, head_commit, hidden, weight), commit_from_logits(logits))
    expected = Given.of(torch.arange(shape[0]) * 7919 % (shape[1] + 1) - 1)
    stats, got = on(kind, commit_and_ask, hidden, weight, expected.token)
    assert_close(stats, commit_from_logits(logits, given=expected))
    torch.testing.assert_close(got, expected.log_probability, rtol=RTOL, atol=ATOL)


def commit_and_ask(hidden: Tensor, weight: Tensor, token: Tensor) -> tuple[CommitStats, Tensor]:
    given = Given.of(token)
    return head_commit(hidden, weight, given=given), given.log_probability


@both
def test_forbidden_tokens_scales_and_draws(kind: Kind) -> None:
    rows, vocabulary, size = 5, 301, 48
    hidden = randn(rows, size)
    weight = torch.randint(-127, 128, (vocabulary, size), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    scale = (randn(vocabulary).abs() + 0.1) / 127
    forbidden = torch.arange(vocabulary) % 3 == 0
    logits = (hidden.double() @ weight.double().T * scale).float()
    seeds = torch.arange(rows) * 2**33 + 7
    for temperature, seed in ((0.0, 0), (0.8, 5), (1.3, seeds)):
        options = {"temperature": temperature, "seed": seed, "forbidden": forbidden}
        expected = commit_from_logits(logits, **options)
        assert_close(on(kind, head_commit, hidden, weight, scale=scale, **options), expected)


@both
@each_dtype
def test_held_tokens_are_forbidden_to_the_rows_that_hold_them(kind: Kind, dtype: torch.dtype) -> None:
    hidden, weight = given(19, 300, 33, dtype)
    held = Held(torch.arange(300) % 5 == 0, torch.arange(19) % 3 == 0)
    logits = (hidden.double() @ weight.double().T).float()
    logits[held.rows.unsqueeze(1) & held.tokens] = -torch.inf
    forbidden = torch.arange(300) == 299
    for temperature in (0.0, 0.8):
        got = on(kind, head_commit, hidden, weight, temperature=temperature, seed=2, forbidden=forbidden, held=held)
        assert_close(got, commit_from_logits(logits, temperature=temperature, seed=2, forbidden=forbidden))


@both
def test_ties_go_left_across_parts_and_rows_without_tokens_say_so(kind: Kind) -> None:
    hidden, weight = torch.ones(3, 16), torch.zeros(900, 16)
    weight[[77, 400, 899]] = 1.0
    hidden[2] = torch.nan
    stats = on(kind, head_commit, hidden, weight)
    assert stats.token.tolist() == [77, 77, -1]
    assert stats.margin.tolist() == [0.0, 0.0, 0.0]
    everything = torch.ones(900, dtype=torch.bool)
    stats = on(kind, head_commit, hidden, weight, forbidden=everything)
    assert [column.tolist() for column in stats] == [[-1] * 3, *([[0.0] * 3] * 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 4, dtype=torch.float64)}, "hidden"),
        ({"hidden": torch.zeros(8, 2).T}, "hidden"),
        ({"weight": torch.zeros(9, 5)}, "weight"),
        ({"weight": torch.zeros(9, 4, dtype=torch.int8)}, "weight"),
        ({"scale": torch.ones(9)}, "weight"),
        ({"weight": torch.zeros(9, 4, dtype=torch.int8), "scale": torch.ones(8)}, "scale"),
        ({"forbidden": torch.zeros(8, dtype=torch.bool)}, "forbidden"),
        ({"held": Held(torch.zeros(8, dtype=torch.bool), torch.zeros(2, dtype=torch.bool))}, "held tokens"),
        ({"held": Held(torch.zeros(9, dtype=torch.bool), torch.zeros(2))}, "held rows"),
        ({"temperature": -1.0}, "temperature"),
        ({"given": Given.of(torch.zeros(3, dtype=torch.int64))}, "given"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, "seed"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_commit(**({"hidden": torch.zeros(2, 4), "weight": torch.zeros(9, 4)} | change))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rows", [1, 32, 64, 100])
def test_on_the_gpu_at_a_published_size(rows: int, temperature: float) -> None:
    hidden, weight = (part.cuda() for part in given(rows, 151_936, 2048, torch.bfloat16))
    logits = hidden.float() @ weight.float().T
    got = head_commit(hidden, weight, temperature=temperature, seed=3)
    assert_close(got, commit_from_logits(logits, temperature=temperature, seed=3))


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    weight = torch.zeros(2**18 + 64, 8192, dtype=torch.bfloat16, device="cuda")
    weight[-1] = 1.0
    assert (
        head_commit(torch.ones(2, 8192, dtype=torch.bfloat16, device="cuda"), weight).token.tolist() == [2**18 + 63] * 2
    )
