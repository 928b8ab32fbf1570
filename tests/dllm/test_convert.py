"""Autoregressive checkpoints as diffusion checkpoints, against transformers' own models and tokenizers."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from dllm import cli, loader
from dllm.codec import Message
from dllm.convert.annealing import annealed_mask
from dllm.convert.backbone import TARGETS
from dllm.convert.checkpoint import convert, with_mask_row
from dllm.engine import Engine
from dllm.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    MissingTensorError,
    TensorShapeError,
    TensorTypeError,
    TiedHeadError,
    UnexpectedTensorError,
)
from dllm.masks import prefix_mask, visible_counts
from tests.dllm.decoding import draft_spec, finished, run

KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
TOKENS = 262
"""256 bytes and six added tokens."""
ROWS = 288
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOLERANCE = 2e-5
"""float32, logits around 1: our projections are fused, so sums run in another order."""


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer in the files of a Qwen checkpoint."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    assert tokenizer.get_vocab_size() == TOKENS
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(256 + at): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        | {"special": True}
        for at, name in enumerate(names)
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": decoder,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def autoregressive(
    folder: Path, kind: str, *, tied: bool = False, rows: int = ROWS, shard: str = "5GB", **changes: Any
) -> nn.Module:
    """A tiny random checkpoint as transformers saves it, and the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        body: dict[str, Any] = {
            "vocab_size": rows,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "tie_word_embeddings": tied,
            "eos_token_id": 256,
            "bos_token_id": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "initializer_range": 0.2,
            "attn_implementation": "eager",
        }
        torch.manual_seed(7)
        config = getattr(transformers, f"{KINDS[kind]}Config")(**body | changes)
        model: nn.Module = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms of one and biases of zero would hide a wrong place
                    parameter.add_(0.3 * torch.randn(parameter.shape))
                assert name
        model.save_pretrained(folder, max_shard_size=shard)  # type: ignore[operator]
    write_tokenizer(folder)
    return model


def causal_logits(checkpoint: loader.Checkpoint, ids: Tensor) -> Tensor:
    rows, length = ids.shape
    mask = prefix_mask(visible_counts("causal", 1, 0, length, total=length), length)
    model: Any = checkpoint.model
    logits: Tensor = model.logits(model(ids, torch.arange(length).expand(rows, length), mask))
    return logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("to", TARGETS)
def test_under_a_causal_mask_the_converted_model_gives_the_logits_of_the_original(
    to: str, tied: bool, tmp_path: Path
) -> None:
    theirs = autoregressive(tmp_path / "ar", TARGETS[to].source, tied=tied)
    made = convert(tmp_path / "ar", tmp_path / "out", to)
    checkpoint = loader.load(tmp_path / "out")
    assert checkpoint.spec == made.spec and checkpoint.family.name == to
    assert checkpoint.spec.tie_word_embeddings == tied
    ids = torch.randint(TOKENS, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        actual = causal_logits(checkpoint, ids)
    assert expected.std() > 0.3, "opinions to compare"
    torch.testing.assert_close(actual[..., :TOKENS], expected[..., :TOKENS], atol=TOLERANCE, rtol=TOLERANCE)


def test_the_families_read_the_next_token_where_the_original_gave_it() -> None:
    """Shift 1 keeps the original's meaning of a row; shift 0 families learn another."""
    assert {name: target.logit_shift for name, target in TARGETS.items()} == {
        "sdar": 0,
        "dream": 1,
        "fast_dllm": 1,
        "llada": 0,
        "nemotron": 0,
    }


@pytest.mark.parametrize("to", TARGETS)
def test_the_engine_writes_with_a_converted_model(to: str, tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", TARGETS[to].source)
    convert(tmp_path / "ar", tmp_path / "out", to)
    checkpoint = loader.load(tmp_path / "out")
    prompt = checkpoint.codec.encode_chat([Message("user", "hello")])
    engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=1, cache_bytes=2**20)
    draft = engine.submit(draft_spec(prompt, 8))
    tokens = finished(run(engine), draft).tokens
    assert not set(tokens) & {checkpoint.spec.special.mask, *range(TOKENS, ROWS)}


def test_sharded_weights_are_copied_bit_for_bit_into_shards_of_their_own(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3", shard="40KB")
    assert len(list((tmp_path / "ar").glob("model-*.safetensors"))) > 2
    convert(tmp_path / "ar", tmp_path / "out", "sdar", max_shard_bytes=50_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    before = {k: v for file in (tmp_path / "ar").glob("*.safetensors") for k, v in load_file(file).items()}
    after = {k: v for file in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(file).items()}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        rest = torch.arange(len(tensor)) != TOKENS if "embed" in name or "head" in name else slice(None)
        assert torch.equal(tensor[rest], after[name][rest]), name
    loader.load(tmp_path / "out")


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    model = autoregressive(tmp_path / "ar", "qwen2")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "ar")  # type: ignore[operator]
    convert(tmp_path / "ar", tmp_path / "out", "dream")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_mask_token_takes_a_spare_row_and_its_embedding_is_the_mean(tmp_path: Path) -> None:
    model = autoregressive(tmp_path / "ar", "qwen3")
    made = convert(tmp_path / "ar", tmp_path / "out", "sdar")
    assert (made.spec.special.mask, made.spec.vocab_size, made.rows_before) == (TOKENS, ROWS, ROWS)
    embedding = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    tokens = model.state_dict()["model.embed_tokens.weight"][:TOKENS]
    torch.testing.assert_close(embedding[TOKENS], tokens.mean(dim=0), atol=1e-6, rtol=1e-6)  # float32 sums


def test_a_full_vocabulary_grows_and_no_reply_holds_the_new_rows(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen2", rows=TOKENS)
    made = convert(tmp_path / "ar", tmp_path / "out", "fast_dllm")
    assert (made.spec.special.mask, made.spec.vocab_size) == (TOKENS, 320)
    table = loader.load(tmp_path / "out").codec.token_table
    assert table.forbidden.issuperset(range(TOKENS, 320))


def test_noise_spreads_the_mask_around_the_mean_the_same_way_each_time() -> None:
    table = torch.randn(40, 512, generator=torch.Generator().manual_seed(3)) * 2 + 1

    def row(noise: float) -> Tensor:
        return with_mask_row(table, 40, 30, 30, noise, torch.Generator().manual_seed(5))[30]

    mean = table[:30].mean(dim=0)
    torch.testing.assert_close(row(0.0), mean, atol=1e-6, rtol=1e-6)
    assert torch.equal(row(0.5), row(0.5))
    assert 0.8 < (row(0.5) - mean).std() < 1.2, "half of a spread of two, over 512 draws"


def test_a_mask_token_that_the_tokenizer_has_is_used(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    made = convert(tmp_path / "ar", tmp_path / "out", "sdar", mask_text="<think>")
    assert (made.mask_text, made.spec.special.mask) == ("<think>", 261)
    loader.load(tmp_path / "out")


def test_tokenizer_and_chat_template_come_along(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen2")
    convert(tmp_path / "ar", tmp_path / "out", "dream")
    codec = loader.load(tmp_path / "out").codec
    text = bytes(b for token in codec.encode_chat([Message("user", "hi")]) for b in codec.token_bytes(token)).decode()
    assert text == "user\nhi\nassistant\n"
    assert codec.encode("<|mask|>") != [TOKENS], "text that spells the mask is text"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids("<|mask|>") == TOKENS and theirs.mask_token == "<|mask|>"
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "<|im_start|>user\nhi<|im_end|>\n"
    )


def test_a_turn_ends_where_the_template_ends_it_even_if_a_base_models_config_says_otherwise(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    assert convert(tmp_path / "ar", tmp_path / "out", "sdar").spec.special.ends == (258, 256)


def test_the_block_is_chosen_where_the_family_has_blocks(tmp_path: Path) -> None:
    autoregressive(tmp_path / "qwen3", "qwen3")
    autoregressive(tmp_path / "qwen2", "qwen2")
    assert convert(tmp_path / "qwen3", tmp_path / "a", "sdar", block=16).spec.block == 16
    assert convert(tmp_path / "qwen2", tmp_path / "b", "fast_dllm", block=12).spec.sub_block == 0
    with pytest.raises(ConfigError, match="--block.*no block"):
        convert(tmp_path / "qwen2", tmp_path / "c", "dream", block=8)


# --- what does not fit ------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_refused(folder: Path, to: str, error: type[Exception], match: str) -> None:
    out = folder.parent / "out"
    with pytest.raises(error, match=match):
        convert(folder, out, to)
    assert not out.exists(), "nothing was written"


def test_another_architecture_is_named_with_what_would_fit(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen2")
    assert_refused(tmp_path / "ar", "sdar", ConversionError, "'qwen2'.*made from 'qwen3'.*there is dream, fast_dllm")
    edit_config(tmp_path / "ar", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    assert_refused(tmp_path / "ar", "dream", ConversionError, "model_type 'gpt2', architecture 'GPT2LMHeadModel'")
    assert_refused(tmp_path / "ar", "mdlm", ConfigError, "--to = 'mdlm': expected one of sdar, dream")


def test_missing_and_unknown_tensors_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    edit_weights(tmp_path / "ar", lambda tensors: tensors.update(strange=torch.zeros(1)))
    assert_refused(tmp_path / "ar", "sdar", UnexpectedTensorError, "a qwen3 model does not have: strange")
    edit_weights(tmp_path / "ar", lambda tensors: (tensors.pop("strange"), tensors.pop("model.norm.weight")))
    assert_refused(tmp_path / "ar", "sdar", MissingTensorError, "model.norm.weight")
    edit_weights(tmp_path / "ar", lambda tensors: tensors.update({"model.norm.weight": torch.zeros(7)}))
    assert_refused(tmp_path / "ar", "sdar", TensorShapeError, r"model.norm.weight has shape \[7\].*\[32\]")


def test_a_head_that_contradicts_the_config_is_refused_and_an_equal_one_is_dropped(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "llama", tied=True)
    edit_config(tmp_path / "ar", tie_word_embeddings=False)
    assert_refused(tmp_path / "ar", "llada", TiedHeadError, "asks for lm_head.weight")
    edit_config(tmp_path / "ar", tie_word_embeddings=True)
    edit_weights(tmp_path / "ar", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert_refused(tmp_path / "ar", "llada", TiedHeadError, "bring another")
    edit_weights(tmp_path / "ar", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    convert(tmp_path / "ar", tmp_path / "out", "llada")
    loader.load(tmp_path / "out")


def test_quantised_weights_and_other_formats_are_refused(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    edit_config(tmp_path / "ar", quantization_config={"quant_method": "awq"})
    assert_refused(tmp_path / "ar", "sdar", CheckpointError, "quantised .awq.")
    edit_config(tmp_path / "ar", quantization_config=None)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(tmp_path / "ar", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    assert_refused(tmp_path / "ar", "sdar", TensorTypeError, "up_proj.weight is stored as I8")
    (tmp_path / "ar" / "model.safetensors").rename(tmp_path / "ar" / "pytorch_model.bin")
    assert_refused(tmp_path / "ar", "sdar", CheckpointError, "pytorch_model.bin is not read")


@pytest.mark.parametrize(
    ("kind", "to", "changes", "match"),
    [
        ("llama", "llada", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "llama3"),
        ("llama", "llada", {"attention_bias": True}, "attention_bias"),
        ("llama", "llada", {"head_dim": 16}, "llada cannot tell of head_dim = 16 .it would be 8."),
        ("qwen2", "dream", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", "sdar", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("qwen3", "sdar", {"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_what_the_network_or_the_layout_cannot_do_is_named(
    kind: str, to: str, changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    autoregressive(tmp_path / "ar", kind)
    edit_config(tmp_path / "ar", **changes)
    assert_refused(tmp_path / "ar", to, ConversionError, match)


def test_a_checkpoint_without_a_tokenizer_or_an_end_is_refused(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    (tmp_path / "ar" / "chat_template.jinja").unlink()
    (tmp_path / "ar" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "ar" / "generation_config.json").unlink(missing_ok=True)
    edit_config(tmp_path / "ar", eos_token_id=None)
    assert_refused(tmp_path / "ar", "sdar", ConversionError, "no token ends a reply")
    (tmp_path / "ar" / "tokenizer.json").unlink()
    assert_refused(tmp_path / "ar", "sdar", CheckpointError, "tokenizer.json: no such file")


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    before = (tmp_path / "ar" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="--out"):
        convert(tmp_path / "ar", tmp_path / "ar", "sdar")
    assert (tmp_path / "ar" / "config.json").read_bytes() == before


def test_the_command_tells_what_it_made_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    autoregressive(tmp_path / "ar", "qwen3")
    command = ["convert", "--from", str(tmp_path / "ar"), "--out", str(tmp_path / "out"), "--to"]
    assert cli.main([*command, "dream"]) == 2
    assert "dream is made from 'qwen2'" in capsys.readouterr().err
    assert cli.main([*command, "sdar", "--block", "8", "--noise", "0.1"]) == 0
    assert "mask token <|mask|> is 262 of 288 rows" in capsys.readouterr().out
    assert loader.load(tmp_path / "out").spec.block == 8


# --- annealing --------------------------------------------------------------------------------------------------------


def positions(length: int) -> Tensor:
    return torch.arange(length)


def test_the_annealed_mask_goes_from_causal_to_the_target_and_never_back() -> None:
    target = torch.ones(2, 24, 24, dtype=torch.bool)
    causal = target.tril()
    masks = [
        annealed_mask(target, positions(24), positions(24), progress, torch.Generator().manual_seed(1))
        for progress in (0.0, 0.3, 0.6, 1.0)
    ]
    assert torch.equal(masks[0], causal) and torch.equal(masks[3], target)
    for earlier, later in itertools.pairwise(masks):
        assert torch.equal(earlier & later, earlier)
    ahead = masks[1][~causal].float().mean()
    assert 0.25 < ahead < 0.35, "552 draws with a chance of .3: five standard errors are .1"


def test_the_annealed_mask_opens_nothing_that_the_target_forbids() -> None:
    block = positions(16) // 4
    target = block.unsqueeze(1) >= block.unsqueeze(0)
    mask = annealed_mask(target, positions(16), positions(16), 0.5, torch.Generator().manual_seed(1))
    assert not (mask & ~target).any() and torch.equal(mask.tril(), target.tril()) and mask.diagonal().all()


def test_a_noisy_copy_looks_back_by_its_logical_positions() -> None:
    twice = torch.cat((positions(4), positions(4)))
    target = torch.ones(8, 8, dtype=torch.bool)
    mask = annealed_mask(target, twice, twice, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(mask[4:, :4], torch.ones(4, 4, dtype=torch.bool).tril())
    assert torch.equal(mask[:4, 4:], torch.ones(4, 4, dtype=torch.bool).tril())


def test_annealing_ends_where_it_is_told_and_refuses_what_is_no_share() -> None:
    target, generator = torch.ones(4, 4, dtype=torch.bool), torch.Generator()
    assert annealed_mask(target, positions(4), positions(4), 0.25, generator, until=0.25).all()
    for progress, until in ((1.5, 1.0), (-0.1, 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="share of the run"):
            annealed_mask(target, positions(4), positions(4), progress, generator, until)
