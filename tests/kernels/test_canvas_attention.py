"""Attention of a canvas: against scaled dot products with a mask, whichever way the keys are kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import Cache, Canvas, cache_in_eight_bits, canvas_attention
from dllm_kernels.choose import Kind
from tests.kernels.both import DTYPES, KINDS, on, randn

# Weights of the mean are rounded to half precision before they multiply: each moves the result by at most half a unit of its share, and
# the result is rounded once more. In float32 only the order of sums differs.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}

both = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def plain(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float | None = None) -> Tensor:
    """What PyTorch says, in float64."""
    shared = q.shape[1] // keys.shape[1]
    mask = (torch.arange(keys.shape[2]) < visible[:, :, None])[:, None]
    k, v = (part.double().repeat_interleave(shared, dim=1) for part in (keys, values))
    out = F.scaled_dot_product_attention(q.double(), k, v, attn_mask=mask, scale=scale)
    return out.masked_fill((visible == 0)[:, None, :, None], 0.0)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[got.dtype], atol=TOLERANCE[got.dtype])


def paged(rows: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """Rows [B, G, S, D] as pages in a random order, and the table. Slots behind the last are NaN."""
    count, groups, slots, size = rows.shape
    each = -(-slots // page)
    padded = F.pad(rows, (0, 0, 0, each * page - slots), value=torch.nan)
    pages = padded.view(count, groups, each, page, size).transpose(1, 2).reshape(count * each, groups, page, size)
    order = torch.randperm(len(pages), generator=torch.Generator().manual_seed(slots))
    stored = torch.full((len(pages) + 2, *pages.shape[1:]), torch.nan, dtype=rows.dtype)
    stored[order] = pages
    return stored, order.to(torch.int32).view(count, each)


def whole(values: list[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@both
@each_dtype
@pytest.mark.parametrize(
    ("rows", "heads", "groups", "length", "size", "slots"),
    [
        (1, 1, 1, 1, 1, 1),
        (2, 4, 2, 5, 16, 40),
        (1, 6, 2, 8, 20, 70),
        (1, 2, 1, 40, 32, 300),
        (1, 2, 1, 3, 256, 40),
        (1, 1, 1, 17, 300, 33),
    ],
)
def test_each_query_sees_a_beginning_of_its_rows_slots(
    kind: Kind, dtype: torch.dtype, rows: int, heads: int, groups: int, length: int, size: int, slots: int
) -> None:
    q = randn(rows, heads, length, size, dtype=dtype)
    keys, values = randn(rows, groups, slots, size, dtype=dtype), randn(slots, groups, rows, size, dtype=dtype)
    values = values.view(keys.shape)
    # Lengths that differ, causal and block-causal steps, and a query that is padding.
    visible = (torch.arange(rows * length, dtype=torch.int32).view(rows, length) * 7 + 1) % (slots + 1)
    expected = plain(q, keys, values, visible)
    assert_close(on(kind, canvas_attention, q, Cache(keys, values), visible), expected)
    # What nobody sees may be anything.
    most = int(visible.max())
    keys[:, :, most:], values[:, :, most:] = torch.nan, torch.nan
    assert_close(on(kind, canvas_attention, q, Cache(keys, values), visible, longest=most), expected)


@both
@pytest.mark.parametrize("page", [4, 16, 7])
@pytest.mark.parametrize("lengths", [(37, 5), (0, 16)], ids=str)
def test_pages_and_a_canvas_of_its_own_are_one_row_of_slots(kind: Kind, page: int, lengths: tuple[int, int]) -> None:
    """Two drafts behind texts of different lengths; the canvas is two blocks of 4 that see each other block by block."""
    rows, heads, groups, length, size = 2, 4, 2, 8, 16
    q = randn(rows, heads, length, size)
    keys, values = (randn(rows, groups, 48, size, scale=scale) for scale in (1.0, 2.0))
    reach = [[prefix + (at // 4 + 1) * 4 for at in range(length)] for prefix in lengths]
    new = [
        torch.stack([part[row, :, prefix : prefix + length] for row, prefix in enumerate(lengths)])
        for part in (keys, values)
    ]
    expected = plain(q, keys, values, whole(reach))
    stored, table = paged(keys, page)
    stored_values, _ = paged(values, page)
    # The pages hold nothing of the canvas.
    for row, prefix in enumerate(lengths):
        for slot in range(prefix, 48):
            stored[table[row, slot // page], :, slot % page] = torch.nan
            stored_values[table[row, slot // page], :, slot % page] = torch.nan
    canvas = Canvas(*new, torch.tensor(lengths, dtype=torch.int32))
    cache = Cache(stored, stored_values, table)
    assert_close(on(kind, canvas_attention, q, cache, whole(reach), canvas), expected)
    # And without pages.
    assert_close(on(kind, canvas_attention, q, Cache(keys, values), whole(reach), canvas, longest=45), expected)


@both
@each_dtype
@pytest.mark.parametrize("by_slot", [True, False])
def test_a_cache_in_eight_bits_is_read_as_its_numbers_times_their_scales(
    kind: Kind, dtype: torch.dtype, by_slot: bool
) -> None:
    """In rows and in pages, which hold nothing of the canvas; what is in no draft's sight, and its scales, may be anything."""
    rows, heads, groups, length, size, page = 2, 4, 2, 5, 16, 8
    q = randn(rows, heads, length, size, dtype=dtype)
    keys, values = (randn(rows, groups, 64, size, scale=scale) for scale in (1.0, 3.0))
    new = [randn(rows, groups, length, size, dtype=dtype, scale=scale) for scale in (1.0, 2.0)]
    prefix = whole([37, 16]).flatten()
    visible = prefix.unsqueeze(1) + torch.arange(1, length + 1, dtype=torch.int32)
    stored = cache_in_eight_bits(keys, values, by_slot=by_slot)
    held = [part.float() * scale.unsqueeze(3) for part, scale in ((stored[0], stored[3]), (stored[1], stored[4]))]
    for row in range(rows):
        for part, mine in zip(held, new, strict=True):
            part[row, :, prefix[row] : prefix[row] + length] = mine[row].float()
    expected = plain(q, *held, visible)
    canvas = Canvas(*new, prefix)
    assert_close(on(kind, canvas_attention, q, stored, visible, canvas), expected)

    pages = [part.view(rows, groups, 8, page, size).transpose(1, 2).flatten(0, 1) for part in (keys, values)]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = [torch.empty_like(part).index_copy_(0, order, part) for part in pages]
    paged_cache = cache_in_eight_bits(*shuffled, order.to(torch.int32).view(rows, 8), by_slot=by_slot)
    assert paged_cache.key_scale is not None and paged_cache.key_scale.shape == (16, groups, page if by_slot else 1)
    if not by_slot:
        held = [
            (part.float() * scale.unsqueeze(3))[order].view(rows, 8, groups, page, size).transpose(1, 2).flatten(2, 3)
            for part, scale in ((paged_cache[0], paged_cache[3]), (paged_cache[1], paged_cache[4]))
        ]
        for row in range(rows):
            for part, mine in zip(held, new, strict=True):
                part[row, :, prefix[row] : prefix[row] + length] = mine[row].float()
        expected = plain(q, *held, visible)
    # The last pages are behind what the second draft sees.
    for part in (paged_cache.keys.view(torch.uint8), paged_cache.values.view(torch.uint8)):
        part[order[8 + 3 :]] = 0x7F  # NaN
    for scale in (paged_cache.key_scale, paged_cache.value_scale):
        assert scale is not None
        scale[order[8 + 3 :]] = torch.nan
    assert_close(on(kind, canvas_attention, q, paged_cache, visible, canvas), expected)


@pytest.mark.parametrize("by_slot", [True, False])
def test_the_error_of_eight_bits_is_within_its_bound(by_slot: bool) -> None:
    """Of the reference in float32, against exact attention to what was stored."""
    q, keys = randn(2, 4, 6, 32, scale=2.0), randn(2, 2, 50, 32)
    values = randn(2, 2, 50, 32, scale=4.0)
    keys[:, :, 7] *= 20.0
    visible = (torch.arange(12, dtype=torch.int32).view(2, 6) * 17) % 50 + 1
    cache = cache_in_eight_bits(keys, values, by_slot=by_slot)
    found = canvas_attention(q, cache, visible).double()
    exact = plain(q, keys, values, visible)
    assert cache.key_scale is not None and cache.value_scale is not None
    wide_q = q.double().view(2, 2, 12, 32)
    seen = (torch.arange(50) < visible.unsqueeze(2)).repeat(1, 2, 1).unsqueeze(1)
    errors = [
        torch.maximum(part.abs() / 16, scale.unsqueeze(3) / 1024).double()
        for part, scale in ((keys, cache.key_scale), (values, cache.value_scale))
    ]
    moved = (wide_q.abs() @ errors[0].transpose(2, 3) * 32**-0.5).masked_fill(~seen, 0.0).amax(-1, keepdim=True)
    scores = (wide_q @ keys.double().transpose(2, 3) * 32**-0.5).masked_fill(~seen, -torch.inf)
    away = (values.double().unsqueeze(2) - exact.view(2, 2, 12, 1, 32)).abs()
    spread = (scores.softmax(-1).unsqueeze(4) * away).sum(3)
    largest = errors[1].unsqueeze(2).masked_fill(~seen.unsqueeze(4), 0.0).amax(3)
    bound = largest + torch.expm1(2 * moved) * spread
    error = (found - exact).abs().view(2, 2, 12, 32)
    assert (error <= bound * (1 + 1e-6) + 1e-5).all()
    assert error.max() > 1e-3, "eight bits do err"


@both
def test_the_canvas_is_divided_over_the_prefix_when_few_programs_share_it(kind: Kind) -> None:
    q, keys, values = randn(1, 2, 4, 16), randn(1, 1, 700, 16), randn(1, 1, 700, 16, scale=3.0)
    for most in (1, 127, 128, 300, 700):
        visible = whole([[most, most // 2 + 1, 1, 0]])
        got = on(kind, canvas_attention, q, Cache(keys, values), visible)
        assert_close(got, plain(q, keys, values, visible))
    assert_close(
        on(kind, canvas_attention, q, Cache(keys, values), visible, scale=2.0),
        plain(q, keys, values, visible, scale=2.0),
    )


@both
def test_scores_far_apart_do_not_overflow(kind: Kind) -> None:
    q = torch.full((1, 1, 2, 16), 1e4)
    keys = torch.stack([torch.full((16,), sign * 1e4) for sign in (-1.0, 1.0, -1.0)]).view(1, 1, 3, 16)
    values = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 16).contiguous()
    got = on(kind, canvas_attention, q, Cache(keys, values), whole([[3, 1]]))
    assert got[0, 0, :, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 2, 4, 8).transpose(1, 2)}, "q"),
        ({"cache": Cache(*torch.zeros(2, 1, 3, 6, 8))}, "keys"),
        ({"cache": Cache(*torch.zeros(2, 2, 1, 6, 8))}, "keys"),
        ({"cache": Cache(torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 5, 8))}, "values"),
        ({"cache": Cache(*torch.zeros(2, 9, 1, 6, 8), torch.zeros(1, 3))}, "table"),
        ({"cache": Cache(*torch.zeros(2, 1, 1, 6, 8).to(torch.float8_e4m3fn))}, "keys"),
        ({"cache": Cache(*torch.zeros(2, 1, 1, 6, 8), None, *torch.ones(2, 1, 1, 6))}, "keys"),
        ({"cache": Cache(*torch.zeros(2, 1, 1, 6, 8).to(torch.float8_e4m3fn), None, torch.ones(1, 1, 6))}, "value_scale"),
        ({"cache": Cache(*torch.zeros(2, 1, 1, 6, 8).to(torch.float8_e4m3fn), None, *torch.ones(2, 1, 1, 5))}, "key_scale"),
        ({"visible": torch.zeros(1, 4, dtype=torch.int64)}, "visible"),
        ({"canvas": Canvas(*torch.zeros(2, 1, 1, 4, 8), torch.zeros(2, dtype=torch.int32))}, "prefix"),
        ({"canvas": Canvas(*torch.zeros(2, 1, 1, 5, 8), torch.zeros(1, dtype=torch.int32))}, "canvas keys"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    right = {
        "q": torch.zeros(1, 2, 4, 8),
        "cache": Cache(*torch.zeros(2, 1, 1, 6, 8)),
        "visible": whole([[1, 2, 3, 6]]),
    }
    canvas_attention(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        canvas_attention(**(right | change))  # type: ignore[arg-type]


@pytest.mark.gpu
@each_dtype
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_on_the_gpu_at_a_published_size(dtype: torch.dtype, rows: int) -> None:
    q, keys, values = randn(rows, 32, 32, 128), randn(rows, 8, 600, 128), randn(rows, 8, 600, 128, scale=2.0)
    visible = (torch.arange(rows * 32, dtype=torch.int32) * 13 % 601).view(rows, 32)
    q, keys, values = (part.to(dtype) for part in (q, keys, values))
    expected = plain(q, keys, values, visible)
    stored, table = paged(keys, 16)
    stored_values, _ = paged(values, 16)
    assert_close(on("triton", canvas_attention, q, Cache(keys, values), visible), expected)
    assert_close(on("triton", canvas_attention, q, Cache(stored, stored_values, table), visible), expected)
    eight = cache_in_eight_bits(stored.nan_to_num(0.0), stored_values.nan_to_num(0.0), table)
    assert_close(
        on("triton", canvas_attention, q, eight, visible), on("reference", canvas_attention, q, eight, visible).double()
    )


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    keys = torch.zeros(4, 8, 2**19 + 64, 128, dtype=torch.bfloat16, device="cuda")
    values = torch.zeros_like(keys)
    values[-1, -1, -1] = 1.0
    keys[-1, -1, -1] = 50.0
    q = torch.ones(4, 8, 1, 128, dtype=torch.bfloat16, device="cuda")
    visible = torch.full((4, 1), 2**19 + 64, dtype=torch.int32, device="cuda")
    assert canvas_attention(q, Cache(keys, values), visible)[-1, -1].float().mean().item() == 1.0
