"""A checkpoint as a record of six choices: backbone, corruption, attention mask, logit shift, block and special tokens.

A family (`dllm.models`) turns its published config.json into a `ModelSpec` and back; everything else in `dllm` looks at this record
and at nothing else. Field names follow Hugging Face's configurations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dllm.errors import ConfigError

MaskKind: TypeAlias = Literal["full", "causal", "block_causal", "causal_prefix_bidir_block", "encoder_decoder"]
"""Who sees whom. full: everyone everyone. causal: a token sees itself and what is before. block_causal: a token sees its whole block
and the blocks before, on a grid that starts at absolute position 0. causal_prefix_bidir_block: finished text is causal, the live
canvas sees all of it and is bidirectional inside itself. encoder_decoder: as before, but the canvas has a decoder pass of its own."""

Corruption: TypeAlias = Literal["absorbing", "uniform"]
"""What a position that is not decided holds: the mask token, or a random token of the vocabulary."""

Activation: TypeAlias = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class DialogueTokens:
    """Ids of the built-in family's tokens that are never text. `end` closes every turn."""

    pad: int = 0
    mask: int = 1
    end: int = 2
    system: int = 3
    user: int = 4
    note: int = 5
    agent: int = 6
    call: int = 7
    """First token of an agent's turn that is a tool call."""
    reserved: int = 8
    """How many further ids after `call` are kept for later use."""

    @property
    def forbidden_in_reply(self) -> tuple[int, ...]:
        """Everything but `end`, `call` and text."""
        kept = range(self.call + 1, self.first_text)
        return (self.pad, self.mask, self.system, self.user, self.note, self.agent, *kept)

    @property
    def first_text(self) -> int:
        """The lowest id that stands for text."""
        return self.call + 1 + self.reserved


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids with a meaning of their own."""

    mask: int | None
    """None under uniform corruption."""
    ends: tuple[int, ...]
    """Any of them ends a reply; the first is written where one is needed."""
    pad: int | None = None
    bos: int | None = None
    forbidden: tuple[int, ...] = ()
    """Never part of a reply, beside the mask: role markers, image tokens, rows of the head that no token has."""
    delete: int | None = None
    split: int | None = None
    """Edit ids (LLaDA2.2): remove this position; insert a mask before it."""

    @property
    def end(self) -> int:
        return self.ends[0]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions.

    `partial` is the share of each head that is rotated (its first dimensions). With `yarn_factor` above 1 the frequencies are those of
    YaRN (arXiv:2309.00071) over `yarn_original` positions; `query_scale_beta` is Llama 4's temperature on queries beyond
    `yarn_original`: 1 + beta * log(1 + floor(position / yarn_original)).
    """

    theta: float = 10_000.0
    partial: float = 1.0
    yarn_factor: float = 1.0
    yarn_original: int = 0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_mscale: float | None = None
    yarn_mscale_all_dim: float | None = None
    query_scale_beta: float = 0.0


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts in place of the dense feed-forward from layer `first_dense` on."""

    experts: int
    experts_per_token: int
    expert_size: int
    shared_size: int = 0
    first_dense: int = 0
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    has_bias: bool = False
    """A bias per expert that is added for the choice only (LLaDA2)."""
    groups: int = 1
    groups_kept: int = 1
    normalise: bool = True
    """Whether the chosen experts' weights are made to sum to one."""
    scale: float = 1.0
    per_block: int = 0
    """Most distinct experts that one block may use (LLaDA2.2); 0 is no cap. With a cap, groups are not looked at."""

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ConfigError("moe.experts", self.experts, "a positive number")
        if not 1 <= self.experts_per_token <= self.experts:
            raise ConfigError("moe.experts_per_token", self.experts_per_token, f"1 to {self.experts}")
        if self.groups < 1 or self.experts % self.groups:
            raise ConfigError("moe.groups", self.groups, f"a divisor of the {self.experts} experts")
        if not 1 <= self.groups_kept <= self.groups:
            raise ConfigError("moe.groups_kept", self.groups_kept, f"1 to {self.groups}")
        if self.groups_kept * (self.experts // self.groups) < self.experts_per_token:
            raise ConfigError("moe.groups_kept", self.groups_kept, f"room for {self.experts_per_token} experts")
        if self.per_block and not self.experts_per_token <= self.per_block <= self.experts:
            raise ConfigError("moe.per_block", self.per_block, f"{self.experts_per_token} to {self.experts}, or 0")


@dataclass(frozen=True, slots=True)
class SlidingSpec:
    """Most layers look back `window` positions; `full_layers` see everything, with heads and rotary positions of their own (Gemma).

    `ModelSpec` gives the geometry of the sliding layers. The full layers' rotary positions turn the first share `partial` of the pairs
    (i, i + head_dim / 2), at frequencies counted over the whole head.
    """

    window: int
    full_layers: tuple[int, ...]
    full_head_dim: int
    full_key_value_heads: int
    full_rope: RopeSpec

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError("sliding.window", self.window, "a positive number")
        if self.full_head_dim < 2 or self.full_head_dim % 2:
            raise ConfigError("sliding.full_head_dim", self.full_head_dim, "an even number (rotary halves)")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Geometry and rules of one checkpoint.

    Raises:
        ConfigError: If the numbers do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    special: SpecialTokens
    family: str
    """Name of the `dllm.models` family that reads and writes this checkpoint."""
    rope: RopeSpec = field(default_factory=RopeSpec)
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    activation: Activation = "silu"
    moe: MoeSpec | None = None
    sliding: SlidingSpec | None = None
    logit_softcap: float = 0.0
    """Logits are `cap * tanh(z / cap)`; 0 leaves them alone."""
    condition_size: int = 0
    """Width of the noise-level embedding that modulates every layer (DiT); 0 for models without one."""
    sees_noise: bool = False
    """Whether that embedding is of the noise level; otherwise it is of zero, always (MDLM)."""
    corruption: Corruption = "absorbing"
    mask_kind: MaskKind = "full"
    logit_shift: Literal[0, 1] = 0
    block: int = 1
    """Positions of a block (block-causal families) or of the live canvas (causal prefix)."""
    sub_block: int = 0
    """Positions that are decoded together inside a block; 0 is the whole block (Fast-dLLM v2: 8)."""
    max_canvas: int = 0
    """Widest canvas that the model was trained for; 0 is no limit but its positions."""
    canvas_multiple: int = 1
    self_conditioning: bool = False
    seeds_block: bool = False
    """The first token of a canvas is the next token of the causal pass before it (Nemotron-Labs-Diffusion)."""
    edit_capable: bool = False
    """Trained to overwrite its own decided tokens (LLaDA2.1 and later, uniform corruption)."""
    causal_verify: bool = False
    """The same weights are a causal language model: self-speculation may verify with them."""
    dialogue: DialogueTokens | None = None
    """The built-in family's role tokens; others render a chat template."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "a positive number")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError("num_key_value_heads", self.num_key_value_heads, "a divisor of num_attention_heads")
        if self.sliding is not None and (
            self.sliding.full_key_value_heads < 1 or self.num_attention_heads % self.sliding.full_key_value_heads
        ):
            raise ConfigError(
                "sliding.full_key_value_heads", self.sliding.full_key_value_heads, "a divisor of num_attention_heads"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError("head_dim", self.head_dim, "an even number (rotary halves)")
        if self.block < 1:
            raise ConfigError("block", self.block, "at least 1")
        if self.sub_block and (self.sub_block < 0 or self.block % self.sub_block):
            raise ConfigError("sub_block", self.sub_block, f"a divisor of the block, {self.block}")
        if (self.corruption == "absorbing") != (self.special.mask is not None):
            raise ConfigError(
                "special.mask", self.special.mask, "a mask token exactly when the corruption is absorbing"
            )
        ids = [self.special.mask, *self.special.ends, self.special.pad, self.special.bos]
        for token in ids:
            if token is not None and not 0 <= token < self.vocab_size:
                raise ConfigError("special", token, f"a token id below vocab_size, {self.vocab_size}")
        if not self.special.ends:
            raise ConfigError("special.ends", (), "at least one token that ends a reply")


def dialogue_spec(
    *,
    vocab_size: int = 4096,
    hidden_size: int = 256,
    intermediate_size: int = 640,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    head_dim: int = 64,
    rope_theta: float = 10_000.0,
    rms_norm_eps: float = 1e-6,
    max_position_embeddings: int = 2048,
    tie_word_embeddings: bool = True,
    max_canvas: int = 64,
    canvas_multiple: int = 8,
    dialogue: DialogueTokens | None = None,
) -> ModelSpec:
    """A model of the built-in family; the defaults are the shipped model's geometry."""
    tokens = dialogue or DialogueTokens()
    return ModelSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        special=SpecialTokens(tokens.mask, (tokens.end,), tokens.pad, forbidden=tokens.forbidden_in_reply),
        family="dllm_llama",
        rope=RopeSpec(rope_theta),
        rms_norm_eps=rms_norm_eps,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        qk_norm=True,
        mask_kind="causal_prefix_bidir_block",
        block=max_canvas,
        max_canvas=max_canvas,
        canvas_multiple=canvas_multiple,
        causal_verify=True,
        dialogue=tokens,
    )
