"""Our network against transformers' Qwen3 on a checkpoint written in the real layout."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm import loader
from tests.dllm import tiny


@pytest.mark.parametrize("kind", ["causal", "causal prefix and bidirectional block"])
def test_logits_equal_qwen3_with_the_same_mask(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Qwen3Config, Qwen3ForCausalLM
    model = tiny.model(seed=5, scale=2.0)
    loader.save(tmp_path, tiny.spec(), dict(model.named_parameters()), tiny.codec(), torch.float32)
    ours = loader.load(tmp_path).model
    body = json.loads((tmp_path / "config.json").read_text())
    geometry = tiny.spec()
    config = Qwen3Config(
        **{key: body[key] for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
        )},
        rope_parameters={"rope_type": "default", "rope_theta": geometry.rope_theta},
        attn_implementation="eager",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = Qwen3ForCausalLM(config).eval()
        missing, unexpected = oracle.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    oracle.tie_weights()

    prefix, length = 11, 27
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if kind != "causal":
        seen[prefix:, prefix:] = True
    ids = torch.randint(16, geometry.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(length).expand(2, length)
    additive = torch.zeros(2, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = oracle(input_ids=ids, attention_mask=additive, position_ids=positions).logits
        actual = ours.logits(ours(ids, positions, seen.view(1, 1, length, length)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
