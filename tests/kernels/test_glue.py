"""Norms, gates, rotary positions and embeddings: each against its formula in float64, and Triton against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dllm_kernels import (
    Cache,
    HeadNorms,
    Target,
    add_rms_norm,
    canvas_attention,
    embed,
    rms_norm,
    rotate_and_store,
    swiglu,
)
from dllm_kernels.choose import Kind
from dllm_kernels.quantise_rows import quantise_rows, restore_rows
from tests.kernels.both import ATOL, DTYPES, KINDS, RTOL, assert_close, on, randn

EPS = 1e-6
ROWS = [(1, 1), (3, 5), (2, 3, 64), (5, 127), (7, 1536), (2, 4097)]

both = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
triton_alone = pytest.mark.parametrize("kind", KINDS[1:])


def by_definition(got: Tensor, expected: Tensor, roundings: int) -> None:
    """Within so many roundings to the result's dtype."""
    rtol, atol = RTOL[got.dtype] * roundings, ATOL[got.dtype] * roundings
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=atol)


# --- RMSNorm --------------------------------------------------------------------------------------------------------------


@both
@each_dtype
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rms_norm_equals_its_definition(kind: Kind, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, dtype=dtype, scale=3.0), randn(shape[-1], dtype=dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight.double()
    got = on(kind, rms_norm, x, weight, EPS)
    assert got.dtype == dtype and got.shape == x.shape
    by_definition(got, expected, 2)


@triton_alone
@each_dtype
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_add_rms_norm_gives_the_rounded_sum_and_its_norm(
    kind: Kind, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, delta, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, scale=0.1), randn(shape[-1], dtype=dtype)
    kept = x.clone()
    total, normed = on(kind, add_rms_norm, x, delta, weight, EPS)
    assert torch.equal(total, x + delta)
    assert_close(normed, on("reference", rms_norm, x + delta, weight, EPS))
    assert torch.equal(x, kept)
    mixed = on(kind, add_rms_norm, x.float(), delta, weight.float(), EPS)
    assert_close(mixed, on("reference", add_rms_norm, x.float(), delta, weight.float(), EPS))


@both
def test_rms_norm_of_extreme_rows(kind: Kind) -> None:
    x = torch.zeros(4, 100)
    x[1] = 1e18  # squares of it end just below float32's largest
    x[2] = 1e-30  # squares of it are 0
    x[3, 0] = torch.nan
    got = on(kind, rms_norm, x, torch.ones(100), EPS)
    assert got[0].tolist() == [0.0] * 100
    torch.testing.assert_close(got[1], torch.ones(100))
    assert got[2].abs().max() <= 1e-26
    assert got[3].isnan().all()


@both
def test_rms_norm_takes_strided_rows_no_rows_and_weights_of_another_dtype(kind: Kind) -> None:
    x, weight = randn(6, 40), randn(20)
    assert_close(on(kind, rms_norm, x[:, ::2], weight, EPS), on(kind, rms_norm, x[:, ::2].contiguous(), weight, EPS))
    assert on(kind, rms_norm, torch.zeros(0, 20), weight, EPS).shape == (0, 20)
    assert on(kind, rms_norm, x[:, :20].bfloat16(), weight, EPS).dtype == torch.float32


# --- SwiGLU ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, in Triton's interpreter
@both
@each_dtype
@pytest.mark.parametrize("shape", [(1, 2), (3, 10), (2, 3, 128), (5, 2 * 127), (3, 2 * 2049)], ids=str)
def test_swiglu_equals_its_definition(kind: Kind, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = randn(*shape, dtype=dtype, scale=3.0)
    gate, up = x.double().chunk(2, dim=-1)
    by_definition(on(kind, swiglu, x), gate * gate.sigmoid() * up, 2)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    # Where GELU is about to be 0, 1 + tanh cancels: what is left are float32's 2^-24 of the gate.
    got = on(kind, swiglu, x, "gelu_tanh").double()
    rtol, atol = RTOL[dtype] * 2, ATOL[dtype] * 20
    torch.testing.assert_close(got, 0.5 * gate * (1 + inner.tanh()) * up, rtol=rtol, atol=atol)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, in Triton's interpreter
@both
def test_swiglu_of_extreme_gates_is_what_its_limits_are(kind: Kind) -> None:
    gates = torch.tensor([[-1e30, -200.0, -88.8, 0.0, 200.0, 1e30]])
    x = torch.cat((gates, torch.ones_like(gates)), dim=1)
    for activation in ("silu", "gelu_tanh"):
        got = on(kind, swiglu, x, activation)
        assert got[0, [0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
        assert abs(got[0, 2].item()) < 1e-35
        torch.testing.assert_close(got[0, 4:], gates[0, 4:])


# --- rotary ---------------------------------------------------------------------------------------------------------------


def turns(rows: int, length: int, size: int) -> tuple[Tensor, Tensor]:
    angle = randn(rows, 1, length, size // 2, scale=30.0)
    return torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)


@triton_alone
@each_dtype
@pytest.mark.parametrize(
    ("heads", "size", "turned", "rows", "length"),
    [
        ((1, 1), 2, 2, 1, 1),
        ((4, 2), 16, 16, 2, 3),
        ((6, 3), 20, 12, 1, 4),
        ((9, 3), 128, 128, 1, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_norms", [True, False])
def test_rotary_of_triton_is_the_references(
    kind: Kind,
    dtype: torch.dtype,
    heads: tuple[int, int],
    size: int,
    turned: int,
    rows: int,
    length: int,
    has_norms: bool,
) -> None:
    qkv = randn(rows, length, heads[0] + 2 * heads[1], size, dtype=dtype)
    norms = HeadNorms(randn(size, dtype=dtype), randn(size, dtype=dtype, scale=2.0), EPS) if has_norms else None
    scale = randn(rows, 1, length, 1) if length % 2 else None
    options = {"norms": norms, "q_scale": scale}
    cos, sin = turns(rows, length, turned)
    assert_close(
        on(kind, rotate_and_store, qkv, cos, sin, heads, **options),
        on("reference", rotate_and_store, qkv, cos, sin, heads, **options),
    )
    # Rows that share positions, and a cache whose other slots stay as they are.
    cos, sin = turns(1, length, turned)
    keys = torch.full((rows, heads[1], length + 3, size), 7.0, dtype=dtype)
    columns = torch.stack([torch.randperm(length + 3)[:length] for _ in range(rows)])
    for where in ({"first": 2}, {"columns": columns}):
        got, expected = (
            on(
                one,
                rotate_and_store,
                qkv,
                cos,
                sin,
                heads,
                target=Target(keys.clone(), keys.clone(), **where),
                **options,
            )
            for one in (kind, "reference")
        )
        assert_close(got, expected)
        for stored in got[1:]:
            assert (stored == 7.0).all(dim=3).sum() == 3 * rows * heads[1]


@both
@each_dtype
@pytest.mark.parametrize(
    ("heads", "size", "turned", "rows", "length"),
    [((1, 1), 2, 2, 1, 1), ((4, 2), 16, 16, 2, 3), ((6, 3), 20, 12, 1, 4), ((9, 3), 128, 128, 2, 2)],
    ids=str,
)
def test_a_target_in_e4m3_gets_what_quantise_rows_makes_of_the_same_heads(
    kind: Kind, dtype: torch.dtype, heads: tuple[int, int], size: int, turned: int, rows: int, length: int
) -> None:
    """To the bit, and every other slot of a target full of NaN stays as it is, scales too."""
    qkv = randn(rows, length, heads[0] + 2 * heads[1], size, dtype=dtype)
    qkv[0, 0] = 0.0
    qkv[-1, -1] *= 1e-3
    norms = HeadNorms(randn(size, dtype=dtype), randn(size, dtype=dtype, scale=2.0), EPS)
    cos, sin = turns(rows, length, turned)
    slots, groups = length + 3, heads[1]
    columns = torch.stack([torch.randperm(slots)[:length] for _ in range(rows)])
    for where in ({"first": 2}, {"columns": columns}):
        floats = Target(*torch.full((2, rows, groups, slots, size), torch.nan, dtype=dtype), **where)
        q, *expected = on(kind, rotate_and_store, qkv, cos, sin, heads, norms, target=floats)
        scales = torch.full((2, rows, groups, slots), torch.nan)
        poisoned = torch.full((2, rows, groups, slots, size), torch.nan).to(torch.float8_e4m3fn)

        def stored(qkv: Tensor, cos: Tensor, sin: Tensor, target: Target) -> tuple[Tensor, Target]:
            return rotate_and_store(qkv, cos, sin, heads, norms_on(qkv.device), target=target)[0], target

        def norms_on(device: torch.device) -> HeadNorms:
            return HeadNorms(norms.q_weight.to(device), norms.k_weight.to(device), EPS)

        target = Target(*poisoned.clone(), key_scale=scales[0].clone(), value_scale=scales[1].clone(), **where)
        got_q, got = on(kind, stored, qkv, cos, sin, target)
        assert torch.equal(got_q, q)
        for heads_there, place, scale in zip(expected, got[:2], (got.key_scale, got.value_scale), strict=True):
            values, row_scale = quantise_rows(heads_there.nan_to_num(0.0), torch.float8_e4m3fn)
            is_written = ~heads_there.isnan().any(dim=3)
            assert is_written.sum() == rows * groups * length
            assert torch.equal(place.view(torch.uint8)[is_written], values.view(torch.uint8)[is_written])
            assert torch.equal(scale[is_written], row_scale.squeeze(3)[is_written])
            assert place.float()[~is_written].isnan().all() and scale[~is_written].isnan().all()


@both
def test_rows_in_eight_bits_are_restored_to_their_numbers_times_their_scales(kind: Kind) -> None:
    for stored_as in (torch.int8, torch.float8_e4m3fn):
        rows = quantise_rows(randn(3, 5, 20, scale=4.0), stored_as)
        for dtype in DTYPES:
            got = on(kind, restore_rows, rows, dtype)
            assert torch.equal(got, (rows.values.float() * rows.scale).to(dtype))


@both
def test_a_turned_pair_is_a_complex_number_times_a_phase(kind: Kind) -> None:
    heads, size, length = (2, 1), 8, 3
    qkv = randn(1, length, 4, size)
    angle = randn(1, 1, length, size // 2, scale=9.0)
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    q, k, v = on(kind, rotate_and_store, qkv, cos, sin, heads)
    both_halves = torch.complex(qkv[..., :4], qkv[..., 4:]).transpose(1, 2)
    turned = both_halves * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(torch.cat((q, k), dim=1), expected[:, :3], rtol=1e-5, atol=2e-6)
    assert torch.equal(v, qkv[:, :, 3:].transpose(1, 2))


# --- embedding ------------------------------------------------------------------------------------------------------------


@both
@each_dtype
@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 7), (9, 64), (3, 1025)])
def test_embed_looks_up_adds_and_mixes(kind: Kind, dtype: torch.dtype, count: int, size: int) -> None:
    table, soft = randn(11, size, dtype=dtype), randn(count, size, dtype=dtype, scale=2.0)
    ids = torch.arange(count) * 3 % 11
    share = torch.linspace(0.0, 1.0, count)
    soft[share == 0.0] = torch.nan  # read by nobody
    assert torch.equal(on(kind, embed, ids, table), table[ids])
    mixed = on(kind, embed, ids, table, soft, share)
    wide = share.double()[:, None]
    expected = (1 - wide) * table[ids].double() + wide * soft.double()
    by_definition(mixed, torch.where(wide == 0.0, table[ids].double(), expected), 1)
    soft = soft.nan_to_num(0.5)
    assert torch.equal(on(kind, embed, ids, table, soft), table[ids] + soft)
    assert torch.equal(on(kind, embed, ids, table.float(), soft), table[ids].float() + soft)
    assert on(kind, embed, ids[:0], table).shape == (0, size)


@triton_alone
def test_a_foreign_id_shows_as_nan_on_the_device(kind: Kind) -> None:
    got = on(kind, embed, torch.tensor([2, -1, 11, 0]), randn(11, 4))
    assert got.isnan().all(dim=1).tolist() == [False, True, True, False]


# --- rows in eight bits ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("stored_as", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 64), (4, 1025)], ids=str)
def test_quantised_rows_are_the_references_to_the_bit(
    kind: Kind, stored_as: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = randn(*shape, scale=5.0)
    x[0] = 0.0
    x[-1] *= 1e-30
    for dtype in DTYPES:
        values, scale = on(kind, quantise_rows, x.to(dtype), stored_as)
        expected, expected_scale = quantise_rows(x.to(dtype), stored_as)
        assert torch.equal(values.float(), expected.float()) and values.dtype == stored_as
        assert torch.equal(scale, expected_scale)
        error = (values.float() * scale - x.to(dtype).float()).abs()
        bound = scale / 2 if stored_as == torch.int8 else torch.maximum(x.to(dtype).float().abs() / 16, scale / 1024)
        assert (error <= bound * 1.001).all()


@both
def test_halves_round_to_even(kind: Kind) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]])
    assert on(kind, quantise_rows, x, torch.int8).values.tolist() == [[127, 0, 2, 2, 0, -2, -127]]
    # e4m3 has 16 and 18, and 1 / 512 as its smallest number.
    x = torch.tensor([[448.0, 17.0, 19.0, 1 / 1024, 3 / 1024, -448.0]])
    got = on(kind, quantise_rows, x, torch.float8_e4m3fn).values.float()
    assert got.tolist() == [[448.0, 16.0, 20.0, 0.0, 2 / 512, -448.0]]


# --- the front doors ------------------------------------------------------------------------------------------------------


@both
def test_gradients_and_float64_go_to_the_reference_on_any_device(kind: Kind) -> None:
    x = randn(3, 8).double().requires_grad_()
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        total, normed = add_rms_norm(x, x, weight, EPS)
        return (total * swiglu(torch.cat((normed, normed), -1))).sum()

    assert torch.autograd.gradcheck(lambda x, w: on(kind, loss, x, w), (x, weight))


def in_eight_bits(key_scale: Tensor | None, value_scale: Tensor | None) -> object:
    stored = torch.zeros(2, 1, 1, 5, 4).to(torch.float8_e4m3fn)
    target = Target(*stored, key_scale=key_scale, value_scale=value_scale)
    return rotate_and_store(torch.zeros(1, 2, 4, 4), *turns(1, 2, 4), (2, 1), target=target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(torch.zeros(3, 0), torch.zeros(0), EPS), "E above 0"),
        (lambda: rms_norm(torch.zeros(3, 4), torch.zeros(5), EPS), "weight"),
        (lambda: rms_norm(torch.zeros(3, 4).long(), torch.zeros(4), EPS), "floating"),
        (lambda: add_rms_norm(torch.zeros(3, 4), torch.zeros(3, 1), torch.zeros(4), EPS), "delta"),
        (lambda: swiglu(torch.zeros(2, 3)), "2F"),
        (lambda: quantise_rows(torch.zeros(2, 0), torch.int8), "K above 0"),
        (lambda: quantise_rows(torch.zeros(2, 3), torch.uint8), "dtype"),
        (lambda: swiglu(torch.zeros(2, 4), "relu"), "activation"),  # type: ignore[arg-type]
        (lambda: embed(torch.zeros(2, 1).long(), torch.zeros(3, 4)), "ids"),
        (lambda: embed(torch.zeros(2), torch.zeros(3, 4)), "ids"),
        (lambda: embed(torch.zeros(2).long(), torch.zeros(3, 4), share=torch.zeros(2)), "share"),
        (lambda: embed(torch.zeros(2).long(), torch.zeros(3, 4), torch.zeros(2, 3)), "soft"),
        (lambda: rotate_and_store(torch.zeros(1, 2, 3, 4), *turns(1, 2, 4), (2, 1)), "qkv"),
        (lambda: rotate_and_store(torch.zeros(1, 2, 4, 4), *turns(1, 2, 6), (2, 1)), "cos"),
        (lambda: rotate_and_store(torch.zeros(1, 2, 4, 4), *turns(1, 3, 4), (2, 1)), "cos"),
        (
            lambda: rotate_and_store(
                torch.zeros(1, 2, 4, 4), *turns(1, 2, 4), (2, 1), target=Target(*torch.zeros(2, 1, 1, 5, 4), first=4)
            ),
            "first",
        ),
        (
            lambda: rotate_and_store(
                torch.zeros(1, 2, 4, 4), *turns(1, 2, 4), (2, 1), target=Target(*torch.zeros(2, 1, 2, 5, 4))
            ),
            "keys",
        ),
        (lambda: in_eight_bits(torch.ones(1, 1, 5), None), "value_scale"),
        (lambda: in_eight_bits(None, None), "keys"),
        (lambda: in_eight_bits(torch.ones(1, 1, 4), torch.ones(1, 1, 4)), "key_scale"),
        (lambda: in_eight_bits(torch.ones(1, 1, 5), torch.ones(1, 1, 5).double()), "value_scale"),
        (lambda: in_eight_bits(torch.ones(1, 1, 5), torch.ones(1, 1, 10)[..., ::2]), "value_scale"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    x = torch.zeros(2**19 + 8, 4096, dtype=torch.bfloat16, device="cuda")
    x[-1] = 2.0
    assert rms_norm(x, torch.ones(4096, dtype=torch.bfloat16, device="cuda"), EPS)[-1].float().mean().item() == 1.0
    assert swiglu(x)[-1].float().mean().item() == pytest.approx(4 / (1 + math.exp(-2.0)), rel=2**-7)


@pytest.mark.gpu
def test_on_the_gpu_a_cache_in_e4m3_is_written_and_read_beyond_two_to_the_31() -> None:
    """One key/value head of 128 in 2^24 + 64 slots, 2 GiB each for keys and values: the last slots lie behind 2^31 numbers."""
    slots, size = 2**24 + 64, 128
    stored = torch.zeros(2, 1, 1, slots, size, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    scales = torch.zeros(2, 1, 1, slots, device="cuda")
    qkv = torch.zeros(1, 2, 3, size, dtype=torch.bfloat16, device="cuda")
    qkv[0, 1] = 2.0
    turn = torch.ones(1, 1, 2, size, device="cuda"), torch.zeros(1, 1, 2, size, device="cuda")
    target = Target(*stored, first=slots - 2, key_scale=scales[0], value_scale=scales[1])
    q, _, _ = rotate_and_store(qkv, *turn, (1, 1), target=target)
    for place, scale in zip(stored, scales, strict=True):
        assert (place[0, 0, -1].float() * scale[0, 0, -1]).tolist() == pytest.approx([2.0] * size, rel=2**-4)
        assert scale[0, 0, : slots - 2].amax() == 0.0
    visible = torch.full((1, 2), slots, dtype=torch.int32, device="cuda")
    cache = Cache(stored[0], stored[1], None, scales[0], scales[1])
    # All others score 0 and hold zeros; the last scores 4 * 128 / sqrt(128) = 45, so that e^45 of it stand against 2^24.
    assert canvas_attention(q[:, :, 1:].contiguous(), cache, visible[:, :1].contiguous()).float().mean() == 2.0
