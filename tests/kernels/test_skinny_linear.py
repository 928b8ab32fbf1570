"""Skinny products: against float64, whatever follows them and however their inputs are divided."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import skinny_linear
from dllm_kernels.choose import Kind
from dllm_kernels.four_bits import quantise_groups, unpack_groups
from dllm_kernels.quantise_rows import quantise_rows
from tests.kernels.both import ATOL, DTYPES, KINDS, RTOL, on, randn

both = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(1, 2, 1), (3, 10, 7), (16, 64, 128), (33, 66, 600), (2, 8, 2100), (130, 6, 40)]
"""(rows, outputs, inputs); the long ones are divided over their inputs, 130 rows are two tiles."""


def plain(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, gate: str | None
) -> Tensor:
    out = x.double() @ weight.double().T
    out = out if scale is None else out * scale
    out = out if bias is None else out + bias
    if gate is not None:
        first, second = out.chunk(2, dim=1)
        out = (F.silu(first) if gate == "silu" else F.gelu(first, approximate="tanh")) * second
    return out if residual is None else out + residual


def assert_close(got: Tensor, expected: Tensor) -> None:
    """One rounding to the result's dtype, and float32 sums of unit size before it; a gate multiplies two of them."""
    rtol, atol = RTOL[got.dtype], ATOL[got.dtype] + 2e-5
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, in Triton's interpreter
@both
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_and_what_follows_them(kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x, weight = randn(rows, inputs, dtype=dtype), (randn(outputs, inputs) / inputs**0.5).to(dtype)
    bias = randn(outputs, dtype=dtype)
    for gate in (None, "silu"):
        residual = randn(rows, outputs if gate is None else outputs // 2, dtype=dtype)
        for options in ({}, {"bias": bias, "residual": residual}):
            got = on(kind, skinny_linear, x, weight, gate=gate, **options)
            assert got.dtype == dtype
            assert_close(got, plain(x, weight, None, options.get("bias"), options.get("residual"), gate))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@both
@each_dtype
def test_weights_in_eight_bits_have_a_scale_per_output(kind: Kind, dtype: torch.dtype) -> None:
    rows, outputs, inputs = 5, 24, 1100
    x = randn(rows, inputs, dtype=dtype)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    scale = (randn(outputs).abs() + 0.1) / (70 * inputs**0.5)
    bias, residual = randn(outputs, dtype=dtype), randn(rows, outputs, dtype=dtype)
    for gate in (None, "gelu_tanh"):
        kept = None if gate else residual
        got = on(kind, skinny_linear, x, weight, scale=scale, bias=bias, residual=kept, gate=gate)
        assert_close(got, plain(x, weight, scale, bias, kept, gate))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@both
@each_dtype
def test_weights_in_e4m3_under_activations_of_sixteen_bits_and_of_eight(kind: Kind, dtype: torch.dtype) -> None:
    """Odd shapes, and inputs that are divided; what follows the product is in the dtype of the result."""
    for rows, outputs, inputs in ((5, 24, 1100), (1, 2, 1), (18, 66, 200)):
        x, weight = randn(rows, inputs), randn(outputs, inputs) / inputs**0.5
        held, x_held = quantise_rows(weight, torch.float8_e4m3fn), quantise_rows(x, torch.float8_e4m3fn)
        scale = held.scale.squeeze(1)
        bias, residual = randn(outputs, dtype=dtype), randn(rows, outputs, dtype=dtype)
        for gate in (None, "silu"):
            kept = None if gate else residual
            options = {"scale": scale, "bias": bias, "residual": kept, "gate": gate}
            got = on(kind, skinny_linear, x.to(dtype), held.values, **options)
            assert_close(got, plain(x.to(dtype), held.values, scale, bias, kept, gate))
            got = on(kind, skinny_linear, x_held.values, held.values, x_scale=x_held.scale, dtype=dtype, **options)
            assert got.dtype == dtype
            wide = x_held.values.double() * x_held.scale
            assert_close(got, plain(wide, held.values, scale, bias, kept, gate))


@both
def test_eight_by_eight_bits_give_bfloat16_unless_told_otherwise(kind: Kind) -> None:
    x, weight = (quantise_rows(randn(2, 40), torch.float8_e4m3fn) for _ in range(2))
    got = on(kind, skinny_linear, x.values, weight.values, x_scale=x.scale, scale=weight.scale.squeeze(1))
    assert got.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@both
@each_dtype
@pytest.mark.parametrize("group", [32, 64, 128])
def test_weights_in_four_bits_have_a_scale_per_group(kind: Kind, dtype: torch.dtype, group: int) -> None:
    """Inputs that fill their last group and that do not, outputs that fill no tile, and groups that are divided over programs."""
    for rows, outputs, inputs in ((5, 24, 1100), (1, 2, 1), (18, 66, 256)):
        x = randn(rows, inputs, dtype=dtype)
        packed, scale = quantise_groups(randn(outputs, inputs) / inputs**0.5, group)
        weight = unpack_groups(packed, scale, inputs)
        bias, residual = randn(outputs, dtype=dtype), randn(rows, outputs, dtype=dtype)
        for gate in (None, "gelu_tanh"):
            kept = None if gate else residual
            got = on(kind, skinny_linear, x, packed, scale=scale, bias=bias, residual=kept, gate=gate)
            assert_close(got, plain(x, weight, None, bias, kept, gate))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@both
def test_no_rows_are_none_and_a_wrong_number_stays_in_its_row(kind: Kind) -> None:
    x, weight = randn(3, 20), randn(4, 20)
    assert on(kind, skinny_linear, x[:0], weight).shape == (0, 4)
    x[1, 3] = torch.inf
    got = on(kind, skinny_linear, x, weight)
    assert got.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x"),
        ({"x": torch.zeros(4, 2).T}, "x"),
        ({"weight": torch.zeros(6, 5)}, "weight"),
        ({"weight": torch.zeros(6, 4, dtype=torch.int8)}, "weight"),
        ({"scale": torch.zeros(6)}, "weight"),
        ({"weight": torch.zeros(6, 4, dtype=torch.float8_e4m3fn)}, "weight"),
        ({"x": torch.zeros(2, 4, dtype=torch.float8_e4m3fn)}, "x"),
        ({"x_scale": torch.zeros(2, 1)}, "x"),
        ({"x": torch.zeros(2, 4, dtype=torch.float8_e4m3fn), "x_scale": torch.zeros(2)}, "x_scale"),
        ({"x": torch.zeros(2, 4, dtype=torch.float8_e4m3fn), "x_scale": torch.zeros(2, 1)}, "weight"),
        ({"x": torch.zeros(2, 4, dtype=torch.float8_e4m3fn), "x_scale": torch.zeros(2, 1), "weight": torch.zeros(6, 4, dtype=torch.float8_e4m3fn)}, "scale"),
        ({"dtype": torch.bfloat16}, "dtype"),
        ({"weight": torch.zeros(6, 16, dtype=torch.uint8)}, "weight.*none"),
        ({"weight": torch.zeros(6, 17, dtype=torch.uint8), "scale": torch.zeros(6, 1).bfloat16()}, "weight"),
        ({"weight": torch.zeros(6, 16, dtype=torch.uint8), "scale": torch.zeros(6, 1)}, "weight"),
        ({"bias": torch.zeros(5)}, "bias"),
        ({"residual": torch.zeros(2, 3)}, "residual"),
        ({"gate": "silu", "residual": torch.zeros(2, 6)}, "residual"),
        ({"gate": "relu"}, "gate"),
        ({"gate": "silu", "weight": torch.zeros(5, 4)}, "gate"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skinny_linear(**({"x": torch.zeros(2, 4), "weight": torch.zeros(6, 4)} | change))  # type: ignore[arg-type]


@pytest.mark.gpu
@each_dtype
@pytest.mark.parametrize("rows", [16, 32, 64, 256])
@pytest.mark.parametrize("shape", [(4096, 4096), (24_576, 4096), (4096, 12_288)], ids=str)
def test_on_the_gpu_at_a_published_size(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    x, weight = randn(rows, inputs, dtype=dtype), (randn(outputs, inputs) / inputs**0.5).to(dtype)
    x, weight = x.cuda(), weight.cuda()
    for gate in (None, "silu"):
        assert_close(skinny_linear(x, weight, gate=gate), plain(x, weight, None, None, None, gate))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64, 256])
def test_on_the_gpu_in_eight_and_four_bits(rows: int) -> None:
    """The fewer bits that e4m3 products are added in: two in 2^14 of the largest partial sum."""
    x, weight = randn(rows, 4096, dtype=torch.bfloat16).cuda(), (randn(6144, 4096) / 64).cuda()
    held, x_held = quantise_rows(weight, torch.float8_e4m3fn), quantise_rows(x, torch.float8_e4m3fn)
    scale = held.scale.squeeze(1)
    got = skinny_linear(x_held.values, held.values, x_scale=x_held.scale, scale=scale)
    wide = x_held.values.double() * x_held.scale
    torch.testing.assert_close(got.double(), plain(wide, held.values, scale, None, None, None), rtol=2**-7, atol=2**-8)
    assert_close(skinny_linear(x, held.values, scale=scale), plain(x, held.values, scale, None, None, None))
    packed, scales = quantise_groups(weight)
    assert_close(skinny_linear(x, packed, scale=scales), plain(x, unpack_groups(packed, scales, 4096), *[None] * 4))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    weight = torch.zeros(2**18 + 64, 8192, dtype=torch.bfloat16, device="cuda")
    weight[-1] = 1.0
    got = skinny_linear(torch.ones(2, 8192, dtype=torch.bfloat16, device="cuda"), weight)
    assert got[:, -1].tolist() == [8192.0, 8192.0] and got[:, :-1].abs().max().item() == 0.0
