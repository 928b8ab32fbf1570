"""The counter-based generator: published words, and noise with both tails."""

from __future__ import annotations

import math

import pytest
import torch

from dllm_kernels.philox import _gumbel, gumbel_noise, philox_4x32

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_equal_the_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(int(word) for word in philox_4x32((c0, c1, c2, c3), (k0, k1))) == words


def test_noise_of_a_cell_depends_on_seed_row_and_column_only() -> None:
    whole = gumbel_noise(7, 70, 1003, CPU)
    assert torch.equal(gumbel_noise(7, 3, 41, CPU), whole[:3, :41])
    assert not torch.equal(gumbel_noise(8, 3, 41, CPU), whole[:3, :41])
    assert not torch.equal(whole[0], whole[1])


def test_a_seed_per_row_makes_rows_independent_of_their_place() -> None:
    seeds = torch.tensor([5, 2**40 + 1, 5, 0])
    noise = gumbel_noise(seeds, 4, 33, CPU)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], gumbel_noise(2**40 + 1, 1, 33, CPU))


def test_noise_has_the_moments_of_the_gumbel_distribution() -> None:
    noise = gumbel_noise(1, 256, 4096, CPU).double()
    # Mean: Euler's constant; variance: pi^2 / 6. Four standard errors of a million draws.
    assert noise.mean().item() == pytest.approx(0.5772157, abs=4 * 1.2825 / 1024)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=4 * 4.4 / 1024)


def test_both_tails_keep_their_precision_to_the_last_word() -> None:
    words = torch.tensor([0, 1, 1000, 2**31 - 1, 2**31, 2**32 - 1000, 2**32 - 2, 2**32 - 1])
    uniform = (words.double() + 0.5) / 2**32  # the distance from the near end, so a low word is close to 1
    exponential = torch.where(words < 2**31, -torch.log1p(-uniform), -torch.log(1 - uniform))
    upper = -torch.log(exponential[:4])
    got = _gumbel(words.to(torch.int32))
    assert torch.allclose(got[:4].double(), upper, rtol=1e-6)
    assert got[0].item() == pytest.approx(33 * math.log(2), rel=1e-6)
    mirrored = (2**32 - words[4:].double() - 0.5) / 2**32
    assert torch.allclose(got[4:].double(), -torch.log(-torch.log(mirrored)), rtol=1e-6)
    assert torch.isfinite(got).all()
