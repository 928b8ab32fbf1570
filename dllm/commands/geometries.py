"""Sizes to measure with random weights, where no checkpoint is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm.errors import ConfigError

if TYPE_CHECKING:
    from dllm.spec import ModelSpec

SDAR: dict[str, dict[str, object]] = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "layers": 28, "heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "layers": 36, "heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "layers": 36, "heads": 32},
}
"""Qwen3's, as SDAR publishes them: 8 key/value heads of 128, a head of their own."""
NAMES = ("0.03B", *SDAR)


def spec_of(name: str) -> ModelSpec:
    """The built-in family at 0.03B, SDAR with blocks of four above.

    Raises:
        ConfigError: If there is no such size.
    """
    from dllm.models.sdar import read_config
    from dllm.spec import dialogue_spec

    if name == "0.03B":
        return dialogue_spec(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=10,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
    if name not in SDAR:
        raise ConfigError("--geometry", name, f"one of {', '.join(NAMES)}")
    size = SDAR[name]
    return read_config(
        {
            "vocab_size": 151936,
            "hidden_size": size["hidden_size"],
            "intermediate_size": size["intermediate_size"],
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "block_size": 4,
        }
    )
