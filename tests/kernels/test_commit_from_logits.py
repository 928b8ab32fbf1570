"""Commit-from-logits: the reference against float64 by definition, and Triton against the reference.

Without a GPU Triton's interpreter runs the kernel; tests marked `gpu` run the same checks on the device.
"""

from __future__ import annotations

import sys
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from dllm_kernels import CommitStats, Given, commit_from_logits
from dllm_kernels.commit_from_logits import native as in_c
from dllm_kernels.commit_from_logits import reference
from dllm_kernels.commit_from_logits.contract import empty_stats
from tests.kernels.both import to
from tests.kernels.instructions import BUILT, using

INFINITY = float("inf")
NAN = float("nan")
SHAPES = [(1, 1), (1, 2), (3, 5), (2, 64), (5, 127), (4, 4096), (3, 4097), (37, 5003)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Float32 sums of up to 5,003 terms in two different orders: 1e-6 is about 16 units in the last place of the total.
RTOL, ATOL = 1e-5, 2e-6

Seed: TypeAlias = int | Tensor

# Triton exists for Linux only.
IMPLEMENTATIONS = ["reference", *(["triton"] if sys.platform == "linux" else [])]
IMPLEMENTATIONS += BUILT


def run(
    implementation: str,
    logits: Tensor,
    temperature: float = 0.0,
    seed: Seed = 0,
    forbidden: Tensor | None = None,
    given: Given | None = None,
) -> CommitStats:
    """One implementation, writing into buffers full of NaN: what it forgets to write shows."""
    out = empty_stats(logits)
    out.token.fill_(-(2**62))
    for statistic in out[1:]:
        statistic.fill_(NAN)
    if given is not None:
        given.log_probability.fill_(NAN)
    if implementation == "reference":
        reference.commit_from_logits(logits, temperature, seed, forbidden, given, out)
    elif implementation in BUILT:
        with using(implementation):
            in_c.commit_from_logits(logits, temperature, seed, forbidden, given, out)
    else:
        from dllm_kernels.commit_from_logits import triton

        # On a GPU where there is one; otherwise the interpreter takes tensors of the CPU.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        moved, asked = to(out, device), to(given, device)
        triton.commit_from_logits(
            logits.to(device),
            temperature,
            seed.to(device) if isinstance(seed, Tensor) else seed,
            to(forbidden, device),
            asked,
            moved,
        )
        out = to(moved, str(logits.device))
        if given is not None:
            given.log_probability.copy_(asked.log_probability)
    return out


def by_definition(logits: Tensor, forbidden: Tensor | None = None) -> CommitStats:
    """Temperature 0, in float64, from the formulas. For rows of finite logits."""
    z = logits.double()
    if forbidden is not None:
        z = z.masked_fill(forbidden, -INFINITY)
    p = z.softmax(dim=-1)
    best = p.amax(dim=-1)
    token = torch.stack([(row == row.max()).nonzero()[0, 0] for row in z])
    second = p.scatter(1, token[:, None], 0.0).amax(dim=-1)
    entropy = torch.special.entr(p).sum(dim=-1)
    return CommitStats(token, best, best - second, entropy)


def assert_close(got: CommitStats, expected: CommitStats) -> None:
    assert got.token.tolist() == expected.token.tolist()
    for name in ("probability", "margin", "entropy"):
        torch.testing.assert_close(
            getattr(got, name).double().cpu(), getattr(expected, name).double().cpu(), rtol=RTOL, atol=ATOL, msg=name
        )


def random_logits(rows: int, vocabulary: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100_003 + vocabulary)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_equal_their_definition(implementation: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    logits = random_logits(*shape, dtype)
    kept = logits.clone()
    assert_close(run(implementation, logits), by_definition(logits))
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_forbidden_tokens_count_for_nothing(implementation: str, shape: tuple[int, int]) -> None:
    logits = random_logits(*shape)
    forbidden = torch.zeros(shape[1], dtype=torch.bool)
    forbidden[logits[0].argmax()] = True
    assert_close(run(implementation, logits, forbidden=forbidden), by_definition(logits, forbidden))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strided_rows_give_the_same_answer(implementation: str, temperature: float) -> None:
    logits = random_logits(5, 2 * 129)
    for view in (logits[:, ::2], logits[1:, 3:90], logits[:, :5].T, logits[:1].expand(3, -1)):
        assert_close(run(implementation, view, temperature), run(implementation, view.contiguous(), temperature))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_go_to_the_lowest_index_across_tiles_too(implementation: str) -> None:
    logits = torch.zeros(4, 9000)
    logits[1, [17, 4000, 8999]] = 3.0
    logits[2, [5000, 8999]] = 3.0
    logits[3, 4096] = 3.0
    stats = run(implementation, logits)
    assert stats.token.tolist() == [0, 17, 5000, 4096]
    assert stats.margin[:3].tolist() == [0.0, 0.0, 0.0]
    assert stats.margin[3] > 0.0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_without_any_allowed_token_says_so(implementation: str, temperature: float) -> None:
    logits = torch.full((4, 5000), -INFINITY)
    logits[1] = NAN
    logits[2, 7] = 5.0
    logits[3, 8] = -50.0
    forbidden = torch.zeros(5000, dtype=torch.bool)
    forbidden[7] = True
    stats = run(implementation, logits, temperature, forbidden=forbidden)
    assert stats.token.tolist() == [-1, -1, -1, 8]
    assert stats.probability.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert stats.margin.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert stats.entropy.tolist() == [0.0, 0.0, 0.0, 0.0]


# Triton's interpreter computes with NumPy, which warns where a GPU silently makes an infinity.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_extreme_values_stay_finite(implementation: str, temperature: float) -> None:
    largest = torch.finfo(torch.float32).max
    rows = [
        [INFINITY, 0.0, -INFINITY, NAN, 1.0],
        [1.0, INFINITY, INFINITY, 0.0, 0.0],
        [-largest, -largest, -INFINITY, -INFINITY, -INFINITY],
        [NAN, -INFINITY, 3.0, NAN, -largest],
        [largest, -largest, 0.0, 0.0, 0.0],
        [1e-45, 0.0, -1e-45, -INFINITY, -INFINITY],
        [60000.0, 59999.0, -60000.0, 0.0, 0.0],
        [-INFINITY, NAN, -largest, -INFINITY, -INFINITY],
    ]
    stats = run(implementation, torch.tensor(rows), temperature)
    if temperature == 0.0:
        assert stats.token.tolist() == [0, 1, 0, 2, 0, 0, 0, 2]
    third = 1 / 3
    expected = [1.0, 0.5, 0.5, 1.0, 1.0, third]
    torch.testing.assert_close(stats.probability[:6], torch.tensor(expected), rtol=RTOL, atol=ATOL)
    assert all(torch.isfinite(statistic).all() for statistic in stats)
    assert all(rows[row][token] > -INFINITY for row, token in enumerate(stats.token.tolist()))
    torch.testing.assert_close(stats.entropy[1:3], torch.full((2,), 0.6931472), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_bfloat16_row_that_is_nearly_sure_is_not_rounded_to_certainty(implementation: str) -> None:
    # bfloat16 itself has no number between 0.99609 and 1: a threshold of 0.999 would mean nothing.
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    logits[:, 3] = torch.tensor([14.0, 16.0, 19.0])
    stats = run(implementation, logits)
    expected = [1.0 / (1.0 + 999.0 * torch.tensor(-z, dtype=torch.float64).exp().item()) for z in (14.0, 16.0, 19.0)]
    assert stats.probability.tolist() == pytest.approx(expected, abs=2e-7)
    assert all(p < 1.0 for p in stats.probability.tolist())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_near_tie_keeps_the_digits_of_its_margin(implementation: str) -> None:
    gap = 2.0**-20
    stats = run(implementation, torch.tensor([[0.0, -gap]]))
    assert stats.margin.item() == pytest.approx(gap / 2, rel=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[:-1], (2, 5003)], ids=str)
def test_both_draw_the_same_tokens_for_the_same_seed(
    implementation: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    logits = random_logits(*shape, dtype, scale=2.0)
    forbidden = torch.zeros(shape[1], dtype=torch.bool)
    forbidden[1::7] = True
    row_seeds = torch.arange(shape[0]) * 2**33 + 5
    for temperature, seed in ((1.0, 0), (0.6, 12345), (1.7, 2**62 + 99), (1.0, row_seeds)):
        assert_close(
            run(implementation, logits, temperature, seed, forbidden),
            run("reference", logits, temperature, seed, forbidden),
        )


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_given_token_has_its_log_probability_whatever_is_picked(
    implementation: str, temperature: float, dtype: torch.dtype
) -> None:
    """First, last, best, forbidden and no tokens; rows that several programs share, a row of its own each, and rows with nothing."""
    for rows, vocabulary in ((5, 4500), (2, 4500), (37, 130), (1, 1)):
        logits = random_logits(rows, vocabulary, dtype)
        forbidden = torch.zeros(vocabulary, dtype=torch.bool)
        forbidden[3 % vocabulary] = vocabulary > 1
        token = torch.tensor([0, vocabulary - 1, int(logits[0].argmax()), 3, -1, 4096, vocabulary, 2**40])
        token = token.repeat(5)[:rows].contiguous()
        given = Given.of(token)
        stats = run(implementation, logits, temperature, 4, forbidden, given)
        exact = logits.double().masked_fill(forbidden, -INFINITY).log_softmax(dim=-1)
        is_token = (token >= 0) & (token < vocabulary)
        expected = exact.gather(1, token.clamp(0, vocabulary - 1)[:, None])[:, 0].masked_fill(~is_token, -INFINITY)
        torch.testing.assert_close(given.log_probability.double(), expected, rtol=RTOL, atol=ATOL)
        assert_close(stats, run("reference", logits, temperature, 4, forbidden))
    nothing, tied = Given.of(torch.tensor([4, -1])), Given.of(torch.tensor([1]))
    assert run(implementation, torch.full((2, 5000), NAN), temperature, given=nothing).token.tolist() == [-1, -1]
    assert nothing.log_probability.tolist() == [-INFINITY] * 2
    run(implementation, torch.tensor([[INFINITY, INFINITY, NAN]]), temperature, given=tied)
    assert tied.log_probability.tolist() == pytest.approx([-0.6931472])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_their_temperature(temperature: float) -> None:
    """Of the reference; Triton draws the same tokens, as the test above shows."""
    draws = 4000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 1.5, -INFINITY])
    expected = (logits.double() / temperature).softmax(dim=-1)[:8] * draws
    tokens = run("reference", logits.expand(draws, -1), temperature, seed=3).token
    counts = torch.bincount(tokens, minlength=9).double()
    assert counts[8] == 0
    # Chi-square with 7 degrees of freedom passes 24.3 once in a thousand seeds; this seed is fixed.
    assert ((counts[:8] - expected) ** 2 / expected).sum() < 24.3


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """4,096 equal tokens 9 nats below one: a noise whose tail is cut would draw them too seldom."""
    logits = torch.zeros(3000, 4097)
    logits[:, 0] = 9.0
    share = (run("reference", logits, 1.0, seed=11).token != 0).double().mean().item()
    expected = 4096 / (4096 + torch.tensor(9.0).exp().item())
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 3000) ** 0.5)


def test_the_probability_is_that_of_the_drawn_token_at_temperature_one() -> None:
    logits = random_logits(50, 30, scale=1.0)
    stats = run("reference", logits, 2.0, seed=9)
    expected = logits.double().softmax(dim=-1).gather(1, stats.token[:, None])[:, 0]
    torch.testing.assert_close(stats.probability.double(), expected, rtol=RTOL, atol=ATOL)
    assert stats.token.tolist() != logits.argmax(dim=-1).tolist()


def test_a_row_seed_makes_the_draw_independent_of_the_batch() -> None:
    logits = random_logits(6, 200, scale=1.0)
    seeds = torch.tensor([4, 9, 4, 1, 0, 2**50])
    together = commit_from_logits(logits, temperature=1.0, seed=seeds)
    for row in range(6):
        alone = commit_from_logits(logits[row : row + 1], temperature=1.0, seed=seeds[row : row + 1])
        assert alone.token.item() == together.token[row].item()


def test_the_front_door_fills_the_buffers_it_is_given_and_takes_no_rows() -> None:
    logits = random_logits(3, 10)
    out = empty_stats(logits)
    stats = commit_from_logits(logits, out=out)
    assert all(one is other for one, other in zip(stats, out, strict=True))
    assert_close(stats, by_definition(logits))
    none = commit_from_logits(torch.empty(0, 10))
    assert [tensor.shape[0] for tensor in none] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(3)}, r"logits: expected \[N, V\]"),
        ({"logits": torch.zeros(3, 0)}, "V above 0"),
        ({"logits": torch.zeros(3, 4, dtype=torch.float64)}, "float64"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1e-5}, "temperature"),
        ({"temperature": NAN}, "temperature"),
        ({"temperature": INFINITY}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed"),
        ({"seed": torch.zeros(3)}, "seed"),
        ({"forbidden": torch.zeros(5, dtype=torch.bool)}, "forbidden"),
        ({"forbidden": torch.zeros(4)}, "forbidden"),
        ({"out": empty_stats(torch.zeros(2, 4))}, "token"),
        ({"given": Given.of(torch.zeros(2, dtype=torch.int64))}, "given token"),
        ({"given": Given.of(torch.zeros(3, dtype=torch.int32))}, "given token"),
        ({"given": Given(torch.zeros(3, dtype=torch.int64), torch.zeros(2))}, "log_probability"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        commit_from_logits(**{"logits": torch.zeros(3, 4), **arguments})  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 151_936)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_on_the_gpu_triton_equals_the_reference(dtype: torch.dtype, shape: tuple[int, int], temperature: float) -> None:
    logits = random_logits(*shape, dtype).cuda()
    forbidden = torch.zeros(shape[1], dtype=torch.bool, device="cuda")
    forbidden[1::9] = True
    given, asked = (Given.of(torch.arange(shape[0]) * 4001 % shape[1]) for _ in range(2))
    expected = run("reference", logits.cpu(), temperature, 77, forbidden.cpu(), given)
    found = run("triton", logits, temperature, 77, forbidden, asked)
    assert_close(found, expected)
    torch.testing.assert_close(asked.log_probability, given.log_probability, rtol=RTOL, atol=ATOL)
    assert_close(commit_from_logits(logits, temperature=temperature, seed=77, forbidden=forbidden), expected)


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    logits = torch.zeros(17_000, 126_464, dtype=torch.bfloat16, device="cuda")
    logits[-1, 5] = 4.0
    assert commit_from_logits(logits).token[-1].item() == 5
