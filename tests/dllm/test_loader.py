"""Checkpoints: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dllm import loader
from dllm.errors import (
    CheckpointError,
    ConfigError,
    MissingShardError,
    MissingTensorError,
    SpecialTokenError,
    TensorShapeError,
    TensorTypeError,
    TiedHeadError,
    UnexpectedTensorError,
    UnrecognisedModelError,
)
from dllm.hub_codec import HubCodec
from dllm.models.registry import family_named, family_of
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from tests.dllm import tiny
from tests.dllm.models import test_diffusion_gemma, test_llada2, test_llada_moe
from tests.dllm.models.tiny_checkpoints import CONFIGS, random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer

FAMILIES = [name for name in CONFIGS if name != "dllm_llama"]
SHARD = 20_000
"""Bytes: a tiny checkpoint becomes several files."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loader.save(tmp_path, tiny.spec(), dict(tiny.model().named_parameters()), tiny.codec())
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """An SDAR checkpoint in several files."""
    return write("sdar", tmp_path / "sharded", max_shard_bytes=SHARD)


def write(family: str, folder: Path, **options: Any) -> Path:
    spec = tiny_spec(family)
    network = random_network(spec)
    codec = HubCodec.load(write_tokenizer(folder / "tokenizer", spec), spec)
    loader.save(folder / "model", spec, network.state_dict(), codec, **({"dtype": None} | options))
    return folder / "model"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    body = json.loads(path.read_text())
    change(body["weight_map"])
    path.write_text(json.dumps(body))


# --- what is written comes back ---------------------------------------------------------------------------------------


def test_saved_weights_come_back_as_bfloat16_values(folder: Path) -> None:
    loaded = loader.load(folder)
    found = dict(loaded.model.named_parameters())
    for name, parameter in tiny.model().named_parameters():
        torch.testing.assert_close(found[name], parameter.bfloat16().float(), atol=0, rtol=0)
    assert loaded.spec == tiny.spec()


@pytest.mark.parametrize("limit", [loader.MAX_SHARD_BYTES, SHARD, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_saved_and_loaded_has_the_same_bits(family: str, limit: int, tmp_path: Path) -> None:
    loaded = loader.load(write(family, tmp_path, max_shard_bytes=limit))
    expected = random_network(tiny_spec(family)).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.spec == tiny_spec(family)
    assert loaded.family is family_named(family) and loaded.defaults is loaded.family.defaults
    assert loaded.bytes == sum(tensor.numel() * 4 for tensor in expected.values())
    files = sorted(path.name for path in loaded.path.glob("*.safetensors"))
    tensors = len(loaded.family.tensors(loaded.spec))
    assert len(files) == {loader.MAX_SHARD_BYTES: 1, 1: tensors}.get(limit, len(files))
    assert limit == loader.MAX_SHARD_BYTES or files[0] == f"model-00001-of-{len(files):05d}.safetensors"


def test_loading_and_saving_again_writes_the_same_files(sharded: Path, tmp_path: Path) -> None:
    loaded = loader.load(sharded)
    again = tmp_path / "again"
    loader.save(again, loaded.spec, loaded.model.state_dict(), loaded.codec, None, SHARD)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in sharded.iterdir()
    }


def test_saving_over_a_sharded_checkpoint_leaves_no_old_file(sharded: Path) -> None:
    loaded = loader.load(sharded)
    loader.save(sharded, loaded.spec, loaded.model.state_dict(), loaded.codec, torch.bfloat16)
    assert [path.name for path in sharded.glob("*.safetensors*")] == ["model.safetensors"]
    assert json.loads((sharded / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert loader.load(sharded).spec == loaded.spec


MIXTURES = {
    "llada_moe": test_llada_moe.CONFIG,
    "llada2": test_llada2.CONFIG,
    "llada2_editing": test_llada2.CONFIG | {"edit_capable": True},
    "diffusion_gemma": {"model_type": "diffusion_gemma", "canvas_length": 8, "text_config": test_diffusion_gemma.TEXT},
}


def mixture(name: str) -> nn.Module:
    network: nn.Module = (family := family_of(MIXTURES[name])).build(family.read_config(MIXTURES[name]))
    generator = torch.Generator().manual_seed(3)
    network.reset_parameters(generator)  # type: ignore[operator]
    for buffer in network.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator))
    return network


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_and_their_buffers_come_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    network = mixture(name).bfloat16()
    spec: ModelSpec = network.spec  # type: ignore[assignment]
    expected = network.state_dict()
    codec = HubCodec.load(write_tokenizer(tmp_path / "tokenizer", spec), spec)
    loader.save(tmp_path / "model", spec, expected, codec, None, SHARD)
    loaded = loader.load(tmp_path / "model", dtype=torch.bfloat16)
    found = loaded.model.state_dict()
    assert loaded.spec == spec and found.keys() == expected.keys()
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_router_s_bias_keeps_its_bits_whatever_the_weights_become(tmp_path: Path) -> None:
    network = mixture("llada2")
    spec: ModelSpec = network.spec  # type: ignore[assignment]
    codec = HubCodec.load(write_tokenizer(tmp_path / "tokenizer", spec), spec)
    loader.save(tmp_path / "model", spec, network.state_dict(), codec, None)
    found = loader.load(tmp_path / "model", dtype=torch.bfloat16).model.state_dict()
    biases = [name for name in found if name.endswith("expert_bias")]
    assert biases and all(torch.equal(found[name], network.state_dict()[name]) for name in biases)


def test_factors_that_a_checkpoint_leaves_out_are_one(tmp_path: Path) -> None:
    network = mixture("diffusion_gemma")
    spec: ModelSpec = network.spec  # type: ignore[assignment]
    codec = HubCodec.load(write_tokenizer(tmp_path / "tokenizer", spec), spec)
    kept = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("encoder_scalar")}
    loader.save(tmp_path / "model", spec, kept, codec, None)
    found = loader.load(tmp_path / "model").model.state_dict()
    factors = [tensor for name, tensor in found.items() if name.endswith("encoder_scalar")]
    assert factors and all(torch.equal(factor, torch.ones_like(factor)) for factor in factors)


def test_saving_without_some_weights_names_them(tmp_path: Path) -> None:
    weights = random_network(tiny_spec("sdar")).state_dict()
    del weights["norm.weight"]
    with pytest.raises(MissingTensorError, match=r"model\.norm\.weight"):
        loader.save(tmp_path, tiny_spec("sdar"), weights, tiny.codec())


@pytest.mark.parametrize("family", FAMILIES)
def test_config_and_names_alone_tell_the_family(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path)
    assert loader.load(folder).spec.family == family
    edit(folder, architectures=["SomethingElse"])
    assert loader.load(folder).spec.family == family


def test_family_is_what_the_caller_says(tmp_path: Path) -> None:
    folder = write("sdar", tmp_path)
    edit(folder, architectures=None, model_type="qwen3")
    with pytest.raises(UnrecognisedModelError, match="'qwen3'"):
        loader.load(folder)
    assert loader.load(folder, family="sdar").spec == tiny_spec("sdar")


def test_weights_have_the_type_asked_for_and_float32_on_a_cpu_otherwise(folder: Path) -> None:
    assert {parameter.dtype for parameter in loader.load(folder).model.parameters()} == {torch.float32}
    half = loader.load(folder, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    ids = torch.arange(300 % 200).unsqueeze(0)
    mask = torch.ones(1, 1, 1, ids.shape[1], dtype=torch.bool)
    wide, narrow = (model.logits(model(ids, ids, mask)).float() for model in (loader.load(folder).model, half))
    # bfloat16 keeps 8 bits; rotary tables in it would be off by whole radians instead.
    assert (wide - narrow).abs().max() < 0.1 * wide.abs().max()


def test_progress_ends_with_all_bytes_and_names_files(sharded: Path) -> None:
    seen: list[loader.LoadProgress] = []
    loaded = loader.load(sharded, progress=seen.append)
    done = [step.done_bytes for step in seen]
    assert done == sorted(done) and done[-1] == loaded.bytes == seen[0].total_bytes
    assert [step.file for step in seen] == sorted(step.file for step in seen)
    assert {step.file for step in seen} == {path.name for path in sharded.glob("*.safetensors")}
    assert loaded.seconds > 0


def test_builtin_model_loads_with_its_own_codec() -> None:
    loaded = loader.load()
    assert isinstance(loaded.codec, DialogueCodec) and loaded.dialogue_codec is loaded.codec
    assert loaded.family.name == "dllm_llama" and loaded.path == loader.BUILTIN


def test_published_models_have_no_role_tokens(sharded: Path) -> None:
    with pytest.raises(ConfigError, match="model = 'sdar'"):
        _ = loader.load(sharded).dialogue_codec


def test_layout_is_the_one_other_tools_read(folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["mask_token_id"] == tiny.spec().special.mask
    assert config["model_type"] == "dllm_llama"


def test_remote_code_is_not_looked_at(sharded: Path) -> None:
    edit(sharded, auto_map={"AutoModel": "modeling.Model"})
    (sharded / "modeling.py").write_text("raise SystemExit('ran')")
    assert loader.load(sharded).spec == tiny_spec("sdar")


# --- what is wrong is named -------------------------------------------------------------------------------------------


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        loader.load(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file, nor"):
        loader.load(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read"):
        loader.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        loader.load(folder)


def test_missing_shards_are_named(sharded: Path) -> None:
    second = sorted(sharded.glob("*.safetensors"))[1]
    second.unlink()
    with pytest.raises(MissingShardError, match=f"named in the index are missing: {second.name}"):
        loader.load(sharded)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: no such file"):
        loader.load(sharded)


def test_index_that_lacks_a_tensor_of_the_files_does_no_harm(sharded: Path) -> None:
    edit_index(sharded, lambda where: where.__delitem__("model.norm.weight"))
    loader.load(sharded)


def test_index_that_promises_too_much_is_refused(sharded: Path) -> None:
    first = min(path.name for path in sharded.glob("*.safetensors"))
    edit_index(sharded, lambda where: where.update({"model.imagined.weight": first}))
    with pytest.raises(MissingTensorError, match=rf"{first}: .*model\.imagined\.weight"):
        loader.load(sharded)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"x": "../../etc/passwd"}}'])
def test_broken_index_is_a_checkpoint_error(content: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        loader.load(sharded)


def test_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(MissingTensorError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        loader.load(folder)


def test_all_missing_tensors_are_known_and_the_first_are_shown(folder: Path) -> None:
    edit(folder, num_hidden_layers=3)
    with pytest.raises(MissingTensorError, match=r"model\.layers\.2.* and 7 more") as caught:
        loader.load(folder)
    assert len(caught.value.names) == 11


def test_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit(folder, intermediate_size=40)
    with pytest.raises(
        TensorShapeError, match=r"gate_proj\.weight has shape \[48, 32\], the configuration asks for \[40, 32\]"
    ):
        loader.load(folder)


def test_unexpected_tensors_are_refused_unless_the_family_knows_them(tmp_path: Path) -> None:
    folder = write("nemotron", tmp_path)
    edit_weights(folder, lambda tensors: tensors.update({"linear_spec_lora.0.weight": torch.zeros(2)}))
    loader.load(folder)
    edit_weights(folder, lambda tensors: tensors.update({"encoder.layers.0.self_attn.sinks": torch.zeros(2)}))
    with pytest.raises(
        UnexpectedTensorError, match=r"a nemotron model does not have: encoder\.layers\.0\.self_attn\.sinks"
    ):
        loader.load(folder)


def test_more_layers_than_the_config_says_are_refused(sharded: Path) -> None:
    edit(sharded, num_hidden_layers=1)
    with pytest.raises(UnexpectedTensorError, match=r"model\.layers\.1\.input_layernorm\.weight and|and \d+ more"):
        loader.load(sharded)


def test_tied_config_with_another_head_is_refused(tmp_path: Path) -> None:
    folder = write("sdar", tmp_path)
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(TiedHeadError, match=r"says that the embedding is the output head.*lm_head\.weight"):
        loader.load(folder)

    def tie(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(folder, tie)
    assert loader.load(folder).spec.tie_word_embeddings


def test_untied_config_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = write("sdar", tmp_path)
    edit_weights(folder, lambda tensors: tensors.__delitem__("lm_head.weight"))
    with pytest.raises(TiedHeadError, match=r"asks for lm_head\.weight, which the weights lack"):
        loader.load(folder)
    edit(folder, tie_word_embeddings=True)
    loader.load(folder)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_quantised_weights_are_refused(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    folder = write("sdar", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(TensorTypeError, match=rf"{name} is stored as {kind}; readable: F64, F32, F16, BF16"):
        loader.load(folder)
    edit(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=r"the weights are quantised \(fp8\)"):
        loader.load(folder)


def test_unknown_family_is_refused(folder: Path) -> None:
    edit(folder, model_type="mamba", architectures=["MambaForCausalLM"])
    edit_weights(folder, lambda tensors: tensors.update({"backbone.mixer": torch.zeros(1)}))
    with pytest.raises(UnrecognisedModelError, match=r"MambaForCausalLM.*known: dllm_llama"):
        loader.load(folder)
    with pytest.raises(UnrecognisedModelError, match="the name 'gpt'"):
        loader.load(folder, family="gpt")


def test_mask_token_disagreement_is_refused(folder: Path) -> None:
    edit(folder, mask_token_id=5)
    with pytest.raises(CheckpointError, match="mask_token_id = 5: expected 1"):
        loader.load(folder)
    special = json.loads((folder / "config.json").read_text())["special_tokens"]
    edit(folder, mask_token_id=1, special_tokens=special | {"reserved": 12})
    with pytest.raises(SpecialTokenError, match="<reserved8>"):
        loader.load(folder)


def test_published_mask_token_disagreement_is_refused(sharded: Path) -> None:
    edit(sharded, mask_token_id=94)
    with pytest.raises(SpecialTokenError, match="the id 94"):
        loader.load(sharded)


def test_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    spec = tiny.spec()
    edit(folder, vocab_size=spec.vocab_size - 1)

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()

    edit_weights(folder, cut)
    with pytest.raises(CheckpointError, match="the tokenizer has"):
        loader.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object, found list"),
        ('{"model_type": "dllm_llama", "head_dim": "x"}', "config.json"),
        ('{"model_type": "sdar"}', "vocab_size is missing, which sdar needs"),
    ],
)
def test_broken_config_is_a_checkpoint_error(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        loader.load(folder)


def test_file_that_is_not_safetensors_is_a_checkpoint_error(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"not weights", b"", whole[: len(whole) // 2]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="not safetensors"):
            loader.load(folder)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_impossible_geometry_names_the_key(folder: Path, changes: dict[str, int], key: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}"):
        loader.load(folder)
