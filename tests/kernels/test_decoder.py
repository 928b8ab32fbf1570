"""All layers in one compiled call, against the layers one by one; and what is compiled, kept and refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
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
from dllm_kernels.native import kept
from tests.kernels.instructions import BUILT, has_half, using

TYPES = [
    (name, dtype)
    for name in BUILT
    for dtype in (torch.float32, torch.bfloat16)
    if dtype.itemsize == 4 or has_half(name)
]
for_each = pytest.mark.parametrize("instructions", BUILT, indirect=True)
for_each_type = pytest.mark.parametrize(("instructions", "dtype"), TYPES, indirect=["instructions"], ids=str)

ATOL = 2e-5
"""Float32 sums in another order, over three layers, of numbers up to 5."""


@pytest.fixture
def instructions(request: pytest.FixtureRequest) -> Iterator[native.Instructions]:
    with using(request.param):
        yield request.param


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
        LayerStore(*(randn(*part.shape, seed=7).bfloat16().to(part.dtype) for part in store.parts))
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
    assert_no_further_from_exact(network, got, expected, *arguments)


def assert_no_further_from_exact(
    network: Transformer, got: list[Tensor], expected: list[Tensor], *arguments: Any
) -> None:
    """Than `expected` is, of which the numbers in twice the bits are the measure."""
    wide = torch.float64 if got[0].dtype == torch.float32 else torch.float32
    *rest, mask = arguments
    mask = mask.to(wide) if isinstance(mask, Tensor) and mask.is_floating_point() else mask
    exact = outcome(without_decoder(network).to(wide), "reference", *rest, mask)
    for one, other, right in zip(got, expected, exact, strict=True):
        assert one.shape == right.shape and one.isfinite().all()
        # Of a single token's few numbers the means scatter.
        assert (one.to(wide) - right).abs().mean() <= 1.25 * (other.to(wide) - right).abs().mean()


def outcome(network: Transformer, *arguments: Any) -> list[Tensor]:
    hidden, stores = run(network, *arguments)
    return [hidden, *(part for store in stores for part in store.parts)]


def without_decoder(network: Transformer) -> Transformer:
    twin = network_of(network.embed_tokens.weight.dtype)
    twin.load_state_dict(network.state_dict())
    return twin


@for_each_type
@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 23, 24, 25, 40])
def test_every_length_of_a_window_gives_what_the_layers_give(
    instructions: str, dtype: torch.dtype, length: int
) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 1, length, 17, None)


@for_each_type
@pytest.mark.parametrize("start", [0, 1, 15, 31])
def test_every_number_of_stored_tokens_does(instructions: str, dtype: torch.dtype, start: int) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 2, 8, start, None)


@for_each_type
def test_rows_with_starts_and_masks_of_their_own_do(instructions: str, dtype: torch.dtype) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    starts, length, slots = torch.tensor([20, 3, 0]), 9, 29
    seen = torch.rand(3, 1, length, slots, generator=torch.Generator().manual_seed(5)) > 0.4
    seen[..., 0] = True
    assert_same(network, 3, length, starts, seen)
    assert_same(network, 3, length, starts, torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).to(dtype))
    assert_same(network, 3, length, starts, seen[:, :, :1])
    assert_same(network, 3, length, 20, seen[:1])


@for_each
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
def test_other_geometries_do(instructions: str, changes: dict[str, Any]) -> None:
    network = network_of(**changes)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 2, 8, 5, None)


@for_each_type
def test_a_row_is_the_same_bits_in_any_company_and_behind_any_padding(instructions: str, dtype: torch.dtype) -> None:
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    ids = torch.randint(16, 96, (5, 24), generator=torch.Generator().manual_seed(3))
    alone, together = filled(network, 1, 64), filled(network, 5, 64)
    for one, many in zip(alone, together, strict=True):
        for left, right in zip(one.parts, many.parts, strict=True):
            left.copy_(right[:1])
    mask = torch.zeros(5, 1, 1, 60, dtype=torch.bool)
    mask[0, ..., :16], mask[1:] = True, True
    with torch.inference_mode():
        got = network(ids[:1, :7], torch.arange(9, 16).unsqueeze(0), None, alone, 9)
        positions = torch.arange(24) + torch.tensor([[9], [30], [30], [30], [30]])
        beside = network(ids, positions, mask, together, torch.tensor([9, 30, 30, 30, 30]))
    # The padding behind the seven tokens writes slots that they do not see.
    assert torch.equal(got[0], beside[0, :7])


@for_each
def test_new_tokens_are_all_that_is_written(instructions: str) -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED
    _, stores = run(network, "compiled", 2, 5, 7, None)
    for before, after in zip(filled(network, 2, 64), stores, strict=True):
        for left, right in zip(before.parts, after.parts, strict=True):
            changed = (left != right).any(dim=3).any(dim=1).any(dim=0)
            assert changed.nonzero().flatten().tolist() == [7, 8, 9, 10, 11]


@for_each
def test_what_lies_outside_the_stores_is_never_written(instructions: str) -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED
    decoder = network.decoder
    assert isinstance(decoder, Decoder)
    turn = torch.zeros(1, 1, 8, 32)
    good = [store.parts for store in network.new_stores(1, 16)]
    x = torch.zeros(1, 8, 64)
    for start in (-1, 9, torch.tensor([9]), torch.tensor([0, 0])):
        with pytest.raises(ValueError, match="start"):
            decoder(x, turn, turn, good, start)
    with pytest.raises(ValueError, match="start"):
        decoder(x, turn, turn, good, 0, torch.ones(1, 1, 1, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        decoder(x, turn, turn, good, 0, torch.ones(2, 1, 1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="keys"):
        decoder(x, turn, turn, [store.parts for store in network.new_stores(2, 16)], 0)
    with pytest.raises(ValueError, match="stores"):
        decoder(x, turn, turn, good[:2], 0)
    with pytest.raises(ValueError, match="values"):
        decoder(x, turn, turn, [*good[:2], (good[2][0], good[2][1].half())], 0)
    with pytest.raises(ValueError, match="x:"):
        decoder(x[..., :32], turn, turn, good, 0)
    with pytest.raises(ValueError, match="cos"):
        decoder(x, turn[:, :, :7], turn, good, 0)
    decoder(x, turn, turn, good, 0)


@for_each
def test_networks_that_it_was_not_written_for_keep_their_layers(instructions: str) -> None:
    unfit: list[dict[str, Any]] = [{"hidden_size": 48}, {"head_dim": 16}, {"intermediate_size": 100}]
    for changes in unfit:
        network = network_of(**changes)
        assert not compile_layers(network) and network.decoder is None
    assert not compile_layers(network_of().half())
    assert not compile_layers(torch.nn.Sequential(torch.nn.Linear(32, 32)))
    assert SMALL_BYTES >= 2**28


@for_each
def test_layers_run_one_by_one_without_stores(instructions: str) -> None:
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the compiled call is for tokens that are stored")

    network.decoder = refuse  # type: ignore[assignment]
    network(torch.zeros(1, 4, dtype=torch.int64), torch.arange(4).unsqueeze(0), None)


@for_each
def test_what_was_compiled_runs_whatever_threads_the_calling_thread_has(instructions: str) -> None:
    """PyTorch counts threads for each thread by itself: the engine's must not take other layers than the one that loaded them."""
    network = network_of()
    assert compile_layers(network) == LAYERS_COMPILED
    decoder, calls, threads = network.decoder, [], torch.get_num_threads()
    assert isinstance(decoder, Decoder)

    def count(*arguments: Any) -> Tensor:
        calls.append(torch.get_num_threads())
        return decoder(*arguments)

    network.decoder = count  # type: ignore[assignment]
    ids, positions = torch.zeros(1, 4, dtype=torch.int64), torch.arange(4).unsqueeze(0)
    try:
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            network(ids, positions, None, network.new_stores(1, 8), 0)
    finally:
        torch.set_num_threads(threads)
    assert calls == [1, 2]


@for_each
@pytest.mark.parametrize("factor", [1e4, 1e-12, 0.0])
def test_embeddings_that_are_huge_or_next_to_nothing_give_what_the_layers_give(
    instructions: str, factor: float
) -> None:
    network = network_of()
    with torch.no_grad():
        network.embed_tokens.weight.mul_(factor)
    assert compile_layers(network) == LAYERS_COMPILED
    assert_same(network, 2, 9, 5, None)


@for_each
def test_scores_far_beyond_where_the_exponential_ends_give_what_the_layers_give(instructions: str) -> None:
    """A few hundred apart: all but one share of a softmax is nothing. Rounding is magnified as much, so the layers are no measure of it."""
    network = network_of()
    with torch.no_grad():
        for layer in network.layers:
            layer.get_parameter("self_attn.q_norm.weight").mul_(100.0)
    assert compile_layers(network) == LAYERS_COMPILED
    arguments = (2, 9, 5, None)
    got, expected = (outcome(network, kind, *arguments) for kind in ("compiled", "reference"))
    assert_no_further_from_exact(network, got, expected, *arguments)


@for_each_type
def test_what_is_not_written_before_it_is_read_is_never_read(
    instructions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that the call gets is full of NaN; so are slots of the stores behind what a forward sees."""
    network = network_of(dtype)
    assert compile_layers(network) == LAYERS_COMPILED
    arguments = (torch.tensor([[16, 17, 18]]), torch.arange(9, 12).unsqueeze(0), None)
    clean, dirty = filled(network, 1, 40), filled(network, 1, 40)
    for store in dirty:
        for part in store.parts:
            part[:, :, 12:] = float("nan")
    with torch.inference_mode():
        expected = network(*arguments, clean, 9)
        monkeypatch.setattr(torch, "empty", lambda *shape, dtype: torch.full(shape, float("nan"), dtype=dtype))
        got = network(*arguments, dirty, 9)
    assert torch.equal(got, expected)
    for one, other in zip(clean, dirty, strict=True):
        assert all(
            torch.equal(left[:, :, :12], right[:, :, :12]) for left, right in zip(one.parts, other.parts, strict=True)
        )


@for_each
def test_a_type_that_the_compiled_code_does_not_multiply_is_told_of(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that is older than the processor leaves its products in bfloat16 out."""
    monkeypatch.setattr("dllm.packing.takes", lambda dtype: dtype == torch.float32)
    network = network_of(torch.bfloat16)
    assert compile_layers(network).startswith("layers not compiled: no products in bfloat16 (compiled with ")
    assert network.decoder is None


# --- compiling ------------------------------------------------------------------------------------------------------------


@for_each
def test_what_is_compiled_is_kept_and_found_again(
    instructions: native.Instructions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native.build(instructions, tmp_path)
    assert first.library is not None and [path.suffix for path in tmp_path.iterdir()] == [".so"]
    assert first.reason.endswith(f" for {native.NAMES[instructions]}")
    monkeypatch.setattr(native, "compile_to", lambda *_: pytest.fail("it was there already"))
    assert native.build(instructions, tmp_path).library is not None


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more"])
def test_what_is_kept_and_damaged_is_compiled_anew(content: bytes, tmp_path: Path) -> None:
    sound, other = tmp_path / "sound", tmp_path / "other"
    sound.mkdir()
    other.mkdir()
    assert native.build(None, sound).library is not None
    kept = other / next(sound.iterdir()).name
    kept.write_bytes(content)
    assert native.build(None, other).library is not None
    assert kept.stat().st_size > 10_000


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
def test_a_kept_library_that_is_not_ours_is_compiled_anew(home: Path, tmp_path: Path) -> None:
    assert native.build().library is not None
    (ours,) = home.iterdir()
    source, folder = tmp_path / "stranger.c", tmp_path / "strange"
    source.write_text("int stranger(void) { return 1; }\n")
    folder.mkdir()
    compiler = next(found for name in native.COMPILERS if (found := shutil.which(name)))
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / ours.name)], check=True)
    assert native.build(folder=folder).library is not None
    assert [path.name for path in folder.iterdir()] == [ours.name]
    assert (folder / ours.name).read_bytes() == ours.read_bytes()


@pytest.mark.parametrize(
    ("machine", "capability", "expected"),
    [
        ("x86_64", "AVX512", ("avx512", "avx2")),
        ("AMD64", "AVX2", ("avx2",)),
        ("x86_64", "DEFAULT", ()),
        ("aarch64", "DEFAULT", ("neon",)),
        ("arm64", "DEFAULT", ("neon",)),
        ("ppc64le", "VSX", ()),
    ],
)
def test_the_best_instructions_that_there_are_come_first(
    machine: str, capability: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert native.available() == expected


def test_instructions_that_the_processor_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: ("avx2",))
    assert native.build("avx512") == native.Prepared(None, "this processor has no AVX-512")


def test_why_there_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: ())
    assert native.build(None, tmp_path) == native.Prepared(None, "this processor has no AVX2 or AVX-512")
    monkeypatch.setattr(native, "available", lambda: ("avx2",))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert native.build(None, tmp_path) == native.Prepared(None, "no C compiler on the path (cc, gcc, clang)")
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sh")

    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["cc"], stderr="decoder.c:1: error\nno such option")

    monkeypatch.setattr(subprocess, "run", fails)
    assert native.build(None, tmp_path) == native.Prepared(None, "/bin/sh failed: no such option")
    assert list(tmp_path.iterdir()) == [], "half a library is never left"


def test_what_the_best_instructions_do_not_compile_for_is_compiled_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def old_compiler(compiler: str, options: tuple[str, ...], target: Path) -> None:
        compiled.append(options)
        if "-march=native" in options:
            raise subprocess.CalledProcessError(1, ["cc"], stderr="error: unknown instructions")
        target.write_bytes(b"")

    monkeypatch.setattr(native, "available", lambda: ("avx512", "avx2"))
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sh")
    monkeypatch.setattr(native, "compile_to", old_compiler)
    monkeypatch.setattr(native, "_load", lambda target: target)
    found = native.build(None, tmp_path)
    assert found.library is not None and len(compiled) == 2
    assert found.reason == "compiled with /bin/sh for AVX2; for AVX-512 /bin/sh failed: error: unknown instructions"
    assert native.build("avx512", tmp_path).library is None, "whoever names them gets no others"


# --- where it is kept -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's compiled code is kept; there is none yet. Compiling is copying what was compiled before."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(kept, "_of_this_process", lambda: SimpleNamespace(name=str(own)))
    library = native.prepare().library
    if library is not None:
        monkeypatch.setattr(
            native, "compile_to", lambda compiler, options, target: shutil.copyfile(library._name, target)
        )
    return tmp_path / ".cache" / "dllm"


def test_a_folder_that_others_may_write_to_is_not_trusted(home: Path) -> None:
    assert next(kept.folders()) == home
    home.chmod(0o777)
    assert home not in kept.folders()


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
@pytest.mark.parametrize("lacks", ["takes_code", "runs_code"], ids=["read-only", "noexec"])
def test_code_that_the_home_does_not_take_is_compiled_for_this_process_and_that_is_said_once(
    lacks: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_ever = getattr(kept, lacks)
    monkeypatch.setattr(kept, lacks, lambda folder: folder != home and as_ever(folder))
    assert native.build().library is not None
    assert list(home.iterdir()) == []
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(home) in told and "noexec" in told


FULL = """/usr/bin/ld: final link failed: No space left on device
collect2: error: ld returned 1 exit status
"""


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
@pytest.mark.parametrize("instructions", BUILT)
def test_a_compiler_that_finds_the_home_full_compiles_for_the_same_instructions_elsewhere(
    instructions: native.Instructions, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_to = native.compile_to

    def in_a_full_home(compiler: str, options: tuple[str, ...], target: Path) -> None:
        if target.parent == home:
            raise subprocess.CalledProcessError(1, ["cc"], stderr=FULL)
        compile_to(compiler, options, target)

    monkeypatch.setattr(native, "compile_to", in_a_full_home)
    found = native.build(instructions)
    assert found.library is not None and found.reason.endswith(f" for {native.NAMES[instructions]}")
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{home}: /usr/bin/ld: final link failed: No space left on device" in told


def test_a_compiler_that_fails_everywhere_is_asked_for_the_next_instructions_and_nobody_is_warned(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def old_compiler(compiler: str, options: tuple[str, ...], target: Path) -> None:
        if "-march=native" in options:
            raise subprocess.CalledProcessError(1, ["cc"], stderr="error: unknown instructions")
        target.write_bytes(b"")

    monkeypatch.setattr(native, "available", lambda: ("avx512", "avx2"))
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sh")
    monkeypatch.setattr(native, "compile_to", old_compiler)
    monkeypatch.setattr(native, "_load", lambda target: target)
    found = native.build()
    assert found.reason == "compiled with /bin/sh for AVX2; for AVX-512 /bin/sh failed: error: unknown instructions"
    assert isinstance(found.library, Path) and found.library.parent == home and caplog.records == []


def test_the_compiler_keeps_what_it_needs_on_the_way_beside_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(command: list[str], **_: object) -> None:
        made = Path(command[command.index("-o") + 1])
        assert made.parent.parent == tmp_path and "-save-temps=obj" in command
        made.write_bytes(b"made")

    monkeypatch.setattr(subprocess, "run", looks)
    native.compile_to("cc", (), tmp_path / "made.so")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"made"]


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
def test_what_is_in_a_home_that_is_read_only_by_now_is_still_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.build().library is not None
    monkeypatch.setattr(kept, "takes_code", lambda _: False)
    monkeypatch.setattr(native, "compile_to", lambda *_: pytest.fail("it was there already"))
    assert native.build().library is not None


def test_where_no_folder_takes_code_pytorch_runs_and_the_folders_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: ("avx2",))
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/sh")
    monkeypatch.setattr(kept, "takes_code", lambda _: False)
    monkeypatch.setattr(kept, "_of_this_process", lambda: None)
    found = native.build()
    assert found.library is None and f"{home} cannot be written to" in found.reason


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="this system does not tell")
def test_a_file_system_that_lets_no_programs_run_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept.runs_code(tmp_path) and kept.takes_code(tmp_path)
    flags = os.statvfs(tmp_path).f_flag | os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert not kept.runs_code(tmp_path) and not kept.takes_code(tmp_path)


@pytest.mark.skipif(not BUILT, reason=native.prepare().reason)
def test_code_that_nobody_has_loaded_for_long_goes_when_new_code_comes(home: Path) -> None:
    home.mkdir(mode=0o700, parents=True)
    old, lately, killed, other = (home / name for name in ("kernels-1.so", "kernels-2.so", "kernels-tmp", "weights"))
    killed.mkdir()
    for path in (old, lately, killed / "kernels-3.so", other):
        path.write_bytes(b"")
    long_ago = time.time() - kept.UNUSED_S - 60.0
    for path in (old, killed, other):
        os.utime(path, (long_ago, long_ago))
    assert native.build().library is not None
    (made,) = set(home.iterdir()) - {lately, other}
    os.utime(made, (long_ago, long_ago))
    assert native.build().library is not None
    assert made.stat().st_mtime > long_ago + 60.0, "it is in use"
