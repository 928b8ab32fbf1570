"""A checkpoint as a record: geometry, attention mask kind and special tokens.

Source: the six-axis record of diffusion language models; field names on disk follow Hugging Face's Qwen3 configuration.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from dllm.errors import ConfigError

MaskKind: TypeAlias = Literal["causal_prefix_bidir_block"]
"""Finished text is causal; the live canvas sees all of it and is bidirectional inside itself."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that are never text. `end` closes every turn."""

    pad: int = 0
    mask: int = 1
    end: int = 2
    system: int = 3
    user: int = 4
    note: int = 5
    agent: int = 6
    reserved: int = 9
    """How many further ids after `agent` are kept for later use."""

    @property
    def forbidden_in_reply(self) -> tuple[int, ...]:
        """Everything but `end` and text."""
        return (
            self.pad,
            self.mask,
            self.system,
            self.user,
            self.note,
            self.agent,
            *tuple(range(self.agent + 1, self.agent + 1 + self.reserved)),
        )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Geometry of one checkpoint.

    Raises:
        ConfigError: If the numbers do not fit together.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    max_canvas: int = 64
    canvas_multiple: int = 8
    family: str = "dllm_llama"
    mask_kind: MaskKind = "causal_prefix_bidir_block"
    special: SpecialTokens = SpecialTokens()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "a positive number")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError("num_key_value_heads", self.num_key_value_heads, "a divisor of num_attention_heads")
        if self.head_dim % 2:
            raise ConfigError("head_dim", self.head_dim, "an even number (rotary halves)")
        if self.mask_kind != "causal_prefix_bidir_block":
            raise ConfigError("mask_kind", self.mask_kind, "'causal_prefix_bidir_block'")

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        body = asdict(self)
        special = body.pop("special")
        body["model_type"] = body.pop("family")
        body["architectures"] = ["LlamaDiffusion"]
        body["torch_dtype"] = "bfloat16"
        body["mask_token_id"] = special["mask"]
        body["eos_token_id"] = special["end"]
        body["pad_token_id"] = special["pad"]
        body["special_tokens"] = special
        return body

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote; unknown keys are ignored.

        Raises:
            ConfigError: If `mask_token_id` and the special-token table disagree, or the geometry is impossible.
        """
        special = SpecialTokens(**body["special_tokens"]) if "special_tokens" in body else SpecialTokens()
        if body.get("mask_token_id", special.mask) != special.mask:
            raise ConfigError("mask_token_id", body["mask_token_id"], f"{special.mask}, as in special_tokens.mask")
        names = set(cls.__dataclass_fields__) - {"family", "special"}
        known = {key: value for key, value in body.items() if key in names}
        return cls(family=body.get("model_type", "dllm_llama"), special=special, **known)
