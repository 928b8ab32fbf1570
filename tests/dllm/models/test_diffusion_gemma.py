"""DiffusionGemma against transformers' own class: the same tiny checkpoint, encoder then decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.models.diffusion_gemma import FAMILY, DiffusionGemma
from dllm.models.family import LayerStore
from tests.dllm.models.tiny_checkpoints import from_disk

transformers = pytest.importorskip("transformers")

CLOSE = 2e-5
"""float32, three layers; the oracle also rounds its rotary angles to float32."""

TEXT: dict[str, Any] = {
    "model_type": "diffusion_gemma_text",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 12,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "eos_token_id": [1, 9, 5],
    "pad_token_id": 0,
    "bos_token_id": 2,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[nn.Module]:
    from transformers.models.diffusion_gemma import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    torch.manual_seed(0)
    config = DiffusionGemmaConfig(text_config=dict(TEXT), vision_config=VISION, canvas_length=7)
    config._attn_implementation = "eager"
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
            elif "vision" not in name:
                parameter.normal_(1.0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.7, 1.3)
    yield model


@pytest.fixture(scope="module")
def ours(oracle: nn.Module) -> DiffusionGemma:
    spec = FAMILY.read_config(oracle.config.to_dict())
    state = dict(oracle.state_dict())
    network = from_disk(spec, state)
    assert isinstance(network, DiffusionGemma)
    return network


def tokens(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def place(rows: int, first: int, length: int) -> Tensor:
    return torch.arange(first, first + length).expand(rows, length)


def prompt_then_canvas(
    network: DiffusionGemma, prompt: Tensor, canvas: Tensor, soft: Tensor | None = None
) -> tuple[Tensor, Tensor, list[LayerStore]]:
    rows, length = prompt.shape
    stores = network.new_stores(rows, length + canvas.shape[1] + 3)
    encoded = network(prompt, place(rows, 0, length), None, stores, 0, causal=True)
    hidden = network(canvas, place(rows, length, canvas.shape[1]), None, stores, length, soft=soft)
    return encoded, network.logits(hidden), stores


@pytest.mark.parametrize(("length", "width"), [(1, 7), (3, 7), (4, 7), (11, 7), (13, 5)])
@pytest.mark.parametrize("is_conditioned", [False, True])
def test_logits_equal_the_published_class(
    oracle: Any, ours: DiffusionGemma, length: int, width: int, is_conditioned: bool
) -> None:
    prompt, canvas = tokens(2, length, 1), tokens(2, width, 2)
    last = torch.randn(2, width, 61, generator=torch.Generator().manual_seed(3)) * 3 if is_conditioned else None
    with torch.no_grad():
        expected = oracle(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=last)
        soft = None if last is None else ours.soft_embedding(last)
        encoded, logits, _ = prompt_then_canvas(ours, prompt, canvas, soft)
    torch.testing.assert_close(encoded, expected.encoder_last_hidden_state, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(logits, expected.logits, atol=CLOSE, rtol=CLOSE)


def test_prompt_in_pieces_equals_prompt_at_once(ours: DiffusionGemma) -> None:
    prompt, canvas = tokens(1, 12, 4), tokens(1, 7, 5)
    _, whole, _ = prompt_then_canvas(ours, prompt, canvas)
    for cut in (1, 5, 11):
        stores = ours.new_stores(1, 19)
        ours(prompt[:, :cut], place(1, 0, cut), None, stores, 0, causal=True)
        # A denoising step in between, as when a prompt grows after a reply: what it writes must not be read later.
        ours(canvas, place(1, cut, 7), None, stores, cut)
        ours(prompt[:, cut:], place(1, cut, 12 - cut), None, stores, cut, causal=True)
        logits = ours.logits(ours(canvas, place(1, 12, 7), None, stores, 12))
        torch.testing.assert_close(logits, whole, atol=CLOSE, rtol=CLOSE)


def test_rows_of_different_lengths_equal_their_solo_runs(ours: DiffusionGemma) -> None:
    lengths, width = [3, 9, 6], 7
    canvas = tokens(3, width, 6)
    stores, solo = ours.new_stores(3, 20), []
    for row, length in enumerate(lengths):
        prompt = tokens(1, length, 10 + row)
        _, logits, own = prompt_then_canvas(ours, prompt, canvas[row : row + 1])
        solo.append(logits)
        for place_, found in zip(stores, own, strict=True):
            place_.keys[row, :, :length] = found.keys[0, :, :length]
            place_.values[row, :, :length] = found.values[0, :, :length]
    start = torch.tensor(lengths)
    positions = start[:, None] + torch.arange(width)
    seen = torch.arange(max(lengths) + width) < (start + width)[:, None]
    for mask in (seen[:, None, None], torch.zeros(3, 1, 1, 16).masked_fill(~seen[:, None, None], float("-inf"))):
        logits = ours.logits(ours(canvas, positions, mask, stores, start))
        torch.testing.assert_close(logits, torch.cat(solo), atol=CLOSE, rtol=CLOSE)


def test_canvas_behind_a_gap_keeps_its_window(ours: DiffusionGemma) -> None:
    """Stores with a fixed place for the canvas: the slots between are masked, the window follows the positions."""
    prompt, canvas = tokens(1, 8, 7), tokens(1, 7, 8)
    _, expected, stores = prompt_then_canvas(ours, prompt, canvas)
    roomy = ours.new_stores(1, 30)
    for place_, found in zip(roomy, stores, strict=True):
        place_.keys[:, :, :8] = found.keys[:, :, :8]
        place_.values[:, :, :8] = found.values[:, :, :8]
    slots = torch.arange(27)
    seen = ((slots < 8) | (slots >= 20))[None, None, None]
    logits = ours.logits(ours(canvas, place(1, 8, 7), seen, roomy, 20))
    torch.testing.assert_close(logits, expected, atol=CLOSE, rtol=CLOSE)


def test_absent_soft_embedding_is_a_zero_one_and_not_a_skipped_one(ours: DiffusionGemma) -> None:
    canvas, positions = tokens(1, 7, 9), place(1, 0, 7)
    without = ours(canvas, positions, None)
    torch.testing.assert_close(ours(canvas, positions, None, soft=torch.zeros(1, 7, 32)), without)
    assert not torch.allclose(ours(canvas, positions, None, soft=torch.ones(1, 7, 32)), without, atol=1e-3)


def test_logits_stay_below_the_soft_cap(ours: DiffusionGemma) -> None:
    assert ours.spec.logit_softcap == 30.0
    assert ours.logits(torch.full((1, 32), 1e4)).abs().max() <= 30.0


def test_stores_have_the_shape_of_their_layer(ours: DiffusionGemma) -> None:
    shapes = [store.keys.shape for store in ours.new_stores(2, 5)]
    assert shapes == [(2, 2, 5, 8), (2, 1, 5, 16), (2, 2, 5, 8), (2, 1, 5, 16)]


def test_encoder_pass_with_self_conditioning_is_refused(ours: DiffusionGemma) -> None:
    with pytest.raises(ValueError, match="no self-conditioning"):
        ours(tokens(1, 3, 0), place(1, 0, 3), None, soft=torch.zeros(1, 3, 32), causal=True)


def test_map_of_tensors_is_what_the_published_class_saves(oracle: Any, ours: DiffusionGemma, tmp_path: Any) -> None:
    from safetensors import safe_open

    oracle.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        saved_names = saved.keys()
    names = {name for name in saved_names if not name.startswith(FAMILY.ignored)}
    assert names == set(FAMILY.tensors(ours.spec))


def test_configuration_survives_being_written() -> None:
    released = {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": 256,
        "boi_token_id": 255_999,
        "eoi_token_id": 258_882,
        "image_token_id": 258_880,
        "text_config": TEXT
        | {
            "vocab_size": 262_144,
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "num_hidden_layers": 30,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "global_head_dim": 512,
            "num_global_key_value_heads": 2,
            "layer_types": None,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "sliding_window": 1024,
            "eos_token_id": [1, 106, 50],
        },
    }
    spec = FAMILY.read_config(released)
    assert spec.sliding is not None and spec.sliding.full_layers == (5, 11, 17, 23, 29)
    assert spec.sliding.full_rope.partial == 0.25 and spec.corruption == "uniform" and spec.self_conditioning
    assert spec.special.forbidden == (255_999, 258_882, 258_880) and spec.special.ends == (1, 106, 50)
    assert FAMILY.read_config(FAMILY.write_config(spec)) == spec


def test_tiny_configuration_survives_being_written(ours: DiffusionGemma) -> None:
    assert FAMILY.read_config(FAMILY.write_config(ours.spec)) == ours.spec


def test_written_configuration_means_the_same_to_the_published_class(ours: DiffusionGemma) -> None:
    from transformers.models.diffusion_gemma import DiffusionGemmaConfig

    read = DiffusionGemmaConfig.from_dict(FAMILY.write_config(ours.spec) | {"vision_config": VISION})
    assert FAMILY.read_config(read.to_dict()) == ours.spec


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"hidden_activation": "relu"}, "hidden_activation"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
        ({"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 8}}}, "text_config.per_layer_config"),
    ],
)
def test_what_the_network_cannot_do_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FAMILY.read_config({"text_config": TEXT | change})
    assert caught.value.key == key


def test_factors_that_no_checkpoint_holds_are_one(ours: DiffusionGemma) -> None:
    with torch.device("meta"):
        network = DiffusionGemma(ours.spec)
    network = network.to_empty(device="cpu")
    for buffer in network.buffers():
        buffer.fill_(float("nan"))
    network.reset_buffers()
    assert all((buffer == 1).all() for buffer in network.buffers())
    optional = [slot.parameter for slot in FAMILY.tensors(ours.spec).values() if slot.is_optional]
    assert optional == [f"layers.{index}.encoder_scalar" for index in range(4)]
