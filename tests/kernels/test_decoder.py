"""All layers in one compiled call, against the layers one by one; and what is compiled, kept and refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm_kernels
from dllm.models.family import LayerStore
from dllm.models.transformer import Transformer
from dllm.packing import LAYERS_COMPILED, SMALL_BYTES, compile_layers
from dllm.spec import ModelSpec, dialogue_spec
from dllm_kernels import native
from dllm_kernels.decoder import Decoder

compiled = pytest.mark.skipif(native.prepare().library is None, reason=native.prepare().reason)
library = native.library()
HAS_HALF = library is not None and bool(library.has_half())
DTYPES = [torch.float32, *([torch.bfloat16] if HAS_HALF else [])]

ATOL = 2e-5
"""Float32 sums in another order, over three layers, of numbers up to 5."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec_of(**changes: Any) -> ModelSpec:
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
    }
    return dialogue_spec(**(sizes | changes))


def network_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    network = Transformer(spec_of(**changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return network.to(dtype)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(network: Transformer, rows: int, slots: int) -> list[LayerStore]:
    return [
        LayerStore(*(randn(*part.shape, seed=7).bfloat16().to(part.dtype) for part in store))
        for store in network.new_stores(rows, slots)
    ]


def run(
    network: Transformer, kind: str, rows: int, length: int, start: int | Tensor, mask: Tensor | None, room: int = 64
) -> tuple[Tensor, list[LayerStore]]:
    stores = filled(network, rows, room)
    ids = torch.randint(16, 96, (rows, length), generator=torch.Generator().manual_seed(3))
    first = torch.tensor([[start]]) if isinstance(start, int) else start.unsqueeze(1)
    positions = first + torch.arange(length)
    dllm_kernels.use("auto" if kind == "compiled" else "reference")
    try:
        with torch.inference_mode():
            return network(ids, positions, mask, stores, start), stores
    finally:
        dllm_kernels.use("auto")


def assert_same(network: Transformer, *arguments: Any) -> None:
    """In float32 what the layers give. In bfloat16 no further from the same numbers in float32 than the layers are: those round the residual
    stream, the norms and the scores, the compiled call only what a product reads."""
    dtype = network.embed_tokens.weight.dtype
    got, expected = (outcome(network, kind, *arguments) for kind in ("compiled", "reference"))
    assert got[0].dtype == expected[0].dtype == dtype
    if dtype == torch.float32:
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=ATOL)
        return
    *rest, mask = arguments
    wide = mask.float() if isinstance(mask, Tensor) and mask.is_floating_point() else mask
    exact = outcome(without_decoder(network).float(), "reference", *rest, wide)
    for one, other, right in zip(got, expected, exact, strict=True):
        assert one.shape == right.shape
        # Of a single token's few numbers the means scatter.
        assert (one.float() - right).abs().mean() <= 1.25 * (other.float() - right).abs().mean()


def outcome(network: Transformer, *arguments: Any) -> list[Tensor]:
    hidden, stores = run(network, *arguments)
    return [hidden, *(part for store in stores for part in store)]


def without_decoder(network: Transformer) -> Transformer:
    twin = network_of(network.embed_tokens.weight.dtype)
    twin.load_state_dict(network.state_dict())
    return twin


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 23, 24, 25, 40])
def test_every_length_of_a_window_gives_what_the_layers_give(dtype: torch.dtype, length: int) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 1, length, 17, None)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 1, 15, 31])
def test_every_number_of_stored_tokens_does(dtype: torch.dtype, start: int) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 2, 8, start, None)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_with_starts_and_masks_of_their_own_do(dtype: torch.dtype) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    starts, length, slots = torch.tensor([20, 3, 0]), 9, 29
    seen = torch.rand(3, 1, length, slots, generator=torch.Generator().manual_seed(5)) > 0.4
    seen[..., 0] = True
    assert_same(network, 3, length, starts, seen)
    assert_same(network, 3, length, starts, torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).to(dtype))
    assert_same(network, 3, length, starts, seen[:, :, :1])
    assert_same(network, 3, length, 20, seen[:1])


@compiled
@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"intermediate_size": 32, "hidden_size": 160},
        {"num_hidden_layers": 1},
    ],
    ids=str,
)
def test_other_geometries_do(changes: dict[str, Any]) -> None:
    network = network_of(**changes)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 2, 8, 5, None)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_bits_in_any_company_and_behind_any_padding(dtype: torch.dtype) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    ids = torch.randint(16, 96, (5, 24), generator=torch.Generator().manual_seed(3))
    alone, together = filled(network, 1, 64), filled(network, 5, 64)
    for one, many in zip(alone, together, strict=True):
        for left, right in zip(one, many, strict=True):
            left.copy_(right[:1])
    mask = torch.zeros(5, 1, 1, 60, dtype=torch.bool)
    mask[0, ..., :16], mask[1:] = True, True
    with torch.inference_mode():
        got = network(ids[:1, :7], torch.arange(9, 16).unsqueeze(0), None, alone, 9)
        positions = torch.arange(24) + torch.tensor([[9], [30], [30], [30], [30]])
        beside = network(ids, positions, mask, together, torch.tensor([9, 30, 30, 30, 30]))
    # The padding behind the seven tokens writes slots that they do not see.
    assert torch.equal(got[0], beside[0, :7])


@compiled
def test_new_tokens_are_all_that_is_written() -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED
    _, stores = run(network, "compiled", 2, 5, 7, None)
    for before, after in zip(filled(network, 2, 64), stores, strict=True):
        for left, right in zip(before, after, strict=True):
            changed = (left != right).any(dim=3).any(dim=1).any(dim=0)
            assert changed.nonzero().flatten().tolist() == [7, 8, 9, 10, 11]


@compiled
def test_what_lies_outside_the_stores_is_never_written() -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED
    decoder = network.decoder
    assert isinstance(decoder, Decoder)
    turn = torch.zeros(1, 1, 8, 32)
    good = network.new_stores(1, 16)
    x = torch.zeros(1, 8, 64)
    for start in (-1, 9, torch.tensor([9]), torch.tensor([0, 0])):
        with pytest.raises(ValueError, match="start"):
            decoder(x, turn, turn, good, start)
    with pytest.raises(ValueError, match="start"):
        decoder(x, turn, turn, good, 0, torch.ones(1, 1, 1, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        decoder(x, turn, turn, good, 0, torch.ones(2, 1, 1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="keys"):
        decoder(x, turn, turn, network.new_stores(2, 16), 0)
    with pytest.raises(ValueError, match="stores"):
        decoder(x, turn, turn, good[:2], 0)
    with pytest.raises(ValueError, match="values"):
        decoder(x, turn, turn, [*good[:2], LayerStore(good[2].keys, good[2].values.half())], 0)
    with pytest.raises(ValueError, match="x:"):
        decoder(x[..., :32], turn, turn, good, 0)
    with pytest.raises(ValueError, match="cos"):
        decoder(x, turn[:, :, :7], turn, good, 0)
    decoder(x, turn, turn, good, 0)


@compiled
def test_networks_that_it_was_not_written_for_keep_their_layers() -> None:
    unfit: list[dict[str, Any]] = [{"hidden_size": 48}, {"head_dim": 16}, {"intermediate_size": 100}]
    for changes in unfit:
        network = network_of(**changes)
        assert not compile_layers(network) and network.decoder is None
    assert not compile_layers(network_of().half())
    assert not compile_layers(torch.nn.Sequential(torch.nn.Linear(32, 32)))
    assert SMALL_BYTES >= 2**28


@compiled
def test_layers_run_one_by_one_without_stores_and_on_several_threads() -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the compiled call is for one thread, and for tokens that are stored")

    network.decoder = refuse  # type: ignore[assignment]
    ids, positions = torch.zeros(1, 4, dtype=torch.int64), torch.arange(4).unsqueeze(0)
    network(ids, positions, None)
    torch.set_num_threads(2)
    network(ids, positions, None, network.new_stores(1, 8), 0)


# --- compiling ------------------------------------------------------------------------------------------------------------


@compiled
def test_what_is_compiled_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = native._prepare(tmp_path)
    assert first.library is not None and [path.suffix for path in tmp_path.iterdir()] == [".so"]
    monkeypatch.setattr(native, "compile_to", lambda *_: pytest.fail("it was there already"))
    assert native._prepare(tmp_path).library is not None


@compiled
@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more"])
def test_what_is_kept_and_damaged_is_compiled_anew(content: bytes, tmp_path: Path) -> None:
    compiler = next(found for name in native.COMPILERS if (found := shutil.which(name)))
    kept = tmp_path / f"kernels-{native._digest(compiler)}.so"
    kept.write_bytes(content)
    assert native._prepare(tmp_path).library is not None
    assert kept.stat().st_size > 10_000


def test_why_there_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert native._prepare(tmp_path) == native.Prepared(None, "this processor has no AVX-512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert native._prepare(tmp_path) == native.Prepared(None, "no C compiler on the path (cc, gcc, clang)")
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sh")

    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["cc"], stderr="decoder.c:1: error\nno such option")

    monkeypatch.setattr(subprocess, "run", fails)
    assert native._prepare(tmp_path) == native.Prepared(None, "/bin/sh failed: no such option")
    assert list(tmp_path.iterdir()) == [], "half a library is never left"


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    own = native._folder()
    assert own == tmp_path / ".cache" / "dllm"
    own.chmod(0o777)
    assert tmp_path not in native._folder().parents
