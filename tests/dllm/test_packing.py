"""Layers laid out for the CPU's products: the same numbers, rows that know nothing of each other, the same replies."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm import loader, packing
from dllm.drafts import DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.layers.packed import PackedLinear
from dllm.machine import has_bfloat16_units
from dllm.models.transformer import Transformer
from dllm.packing import LAYERS_COMPILED
from dllm.quantize import Quantisation
from tests.dllm.decoding import finished, run
from tests.dllm.models.tiny_checkpoints import CONFIGS, random_network, tiny_spec

IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and torch._C._has_mkldnn
pytestmark = pytest.mark.skipif(not IS_X86, reason="layers are packed on x86 with oneDNN alone")

ROUNDING = 1e-5
"""Of float32 sums over a few hundred products in another order, relative to the sum of magnitudes."""
HALF_ROUNDING = 2**-7
"""The same in bfloat16, whose last rounding may fall to the other side: eight bits of mantissa."""
NOT_HERE = "layers are compiled for processors with AVX2, AVX-512 or NEON, which this is not"
DTYPES = (torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
    not has_bfloat16_units(), reason="this processor has no bfloat16 units"
)))  # fmt: skip
PLAN = Plan(steps_first=6, steps_rest=8, threshold=0.9)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(512, 256), (256, 640), (33, 17), (1, 1)])
@pytest.mark.parametrize("rows", [1, 7, 8, 31, 100])
def test_packed_layer_computes_what_the_layer_did(dtype: torch.dtype, outputs: int, inputs: int, rows: int) -> None:
    weight, x = numbers(outputs, inputs, dtype=dtype), numbers(rows, inputs, dtype=dtype, seed=1)
    bias = nn.Parameter(numbers(outputs, dtype=dtype, seed=2), requires_grad=False)
    for given in (None, bias):
        out, wanted = PackedLinear(weight, given)(x), F.linear(x.double(), weight.double(), None)
        wanted = wanted if given is None else wanted + given.double()
        scale = F.linear(x.double().abs(), weight.double().abs()) + (0 if given is None else given.double().abs())
        assert out.dtype == dtype and out.shape == (rows, outputs)
        assert ((out.double() - wanted).abs() <= (ROUNDING if dtype == torch.float32 else HALF_ROUNDING) * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    layer, x = PackedLinear(numbers(96, 640, dtype=dtype)), numbers(67, 640, dtype=dtype, seed=1)
    together = layer(x)
    for count in (1, 2, 3, 8, 9, 33):
        assert torch.equal(layer(x[:count]), together[:count]), count
    assert torch.equal(layer(x.view(1, 67, 640))[0], together)


def test_strided_rows_and_no_rows() -> None:
    weight, x = numbers(24, 16), numbers(16, 10).t()
    layer = PackedLinear(weight)
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert layer(x[:0]).shape == (0, 24)


def test_packed_network_counts_its_parameters_once_and_its_bytes_as_held() -> None:
    plain, packed = loader.load(), loader.load(packed=True)
    count = sum(part.numel() for part in plain.model.parameters())
    assert sum(part.numel() for part in packed.model.parameters()) == count
    head = plain.spec.vocab_size * plain.spec.hidden_size * 4
    stated = [Engine(one.model, one.codec.token_table).memory().weights for one in (plain, packed)]
    assert stated[1] == stated[0] + head, "the tied head is held as a copy"


def test_large_tied_head_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "COPIED_HEAD_BYTES", 1000)
    checkpoint = loader.load(packed=True)
    assert isinstance(checkpoint.model, Transformer)
    assert checkpoint.model.lm_head is None
    assert any(isinstance(module, PackedLinear) for module in checkpoint.model.modules())


def test_what_would_not_gain_stays_as_it_is() -> None:
    half = random_network(tiny_spec("sdar")).half()
    assert packing.pack(half) == 0
    assert not any(isinstance(module, PackedLinear) for module in half.modules())
    with torch.device("meta"):
        assert packing.pack(nn.Sequential(nn.Linear(8, 8))) == 0
    trained = loader.load()
    assert not any(isinstance(module, PackedLinear) for module in trained.model.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_family_says_the_same_packed(name: str) -> None:
    spec = tiny_spec(name)
    plain, packed = random_network(spec), random_network(spec)
    assert packing.pack(packed) > 0
    hidden = numbers(5, spec.hidden_size)
    with torch.inference_mode():
        one, other = plain.logits(hidden), packed.logits(hidden)  # type: ignore[operator]
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_quantised_network_keeps_its_layers_and_packs_its_head() -> None:
    checkpoint = loader.load(quantize=Quantisation("int8"), compiled=True)
    assert checkpoint.compiled == "", "it is not for layers in eight bits"
    found = [name for name, module in checkpoint.model.named_modules() if isinstance(module, PackedLinear)]  # type: ignore[attr-defined]
    assert found == ["lm_head"]


@pytest.mark.parametrize("how", ["packed", "compiled"])
def test_replies_in_float32_are_the_same_token_for_token(how: str) -> None:
    fast, plain = (replies(loader.load(packed=True, compiled=how == "compiled")), replies(loader.load()))
    assert [reply.tokens for reply in fast] == [reply.tokens for reply in plain]


def test_a_draft_is_the_same_bits_in_any_company() -> None:
    checkpoint = loader.load(compiled=True)
    if checkpoint.compiled != LAYERS_COMPILED:
        pytest.skip(checkpoint.compiled or NOT_HERE)
    together = replies(checkpoint)
    alone = [reply for number in range(3) for reply in replies(checkpoint, [number])]
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.probabilities) == (other.tokens, other.probabilities)


def replies(checkpoint: loader.Checkpoint, numbers: Sequence[int] = (0, 1, 2)) -> list[Finished]:
    engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=3)
    codec = checkpoint.dialogue_codec
    asked = ("hello there", "what time do you close on Sunday", "book a table for two")
    drafts = [
        engine.submit(DraftSpec(tuple(codec.encode_prompt([("user", asked[number])])), f"c{number}", 32, PLAN))
        for number in numbers
    ]
    events = run(engine)
    return [finished(events, draft) for draft in drafts]


def test_memory_counts_what_the_compiled_call_holds() -> None:
    packed, compiled = (loader.load(packed=True, compiled=how) for how in (False, True))
    decoder = getattr(compiled.model, "decoder", None)
    if decoder is None:
        pytest.skip(compiled.compiled or NOT_HERE)
    stated = [Engine(one.model, one.codec.token_table).memory().weights for one in (packed, compiled)]
    assert stated[1] - stated[0] == decoder.held_bytes > 2**23
