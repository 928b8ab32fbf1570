"""DiffusionGemma: an encoder pass writes the prompt's keys and values, a decoder pass denoises a canvas that reads them.

Both passes share all weights but one factor per layer. Text only: the vision tower of a checkpoint is not read. Geometry, masks and
numbers follow the published implementation (transformers, `diffusion_gemma`); a test compares with it.

Dimensions: B rows, T new tokens, S visible slots, H query heads, G key/value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.layers.attention import Slots, fold_mask
from dllm.layers.feed_forward import FeedForward
from dllm.layers.moe import Experts, choose_experts
from dllm.layers.rotary import Turn, rotate
from dllm.models.family import DecodeDefaults, Family, Head, LayerStore, Slot
from dllm.models.layout import expect, feed_forward_slots
from dllm.spec import ModelSpec, MoeSpec, RopeSpec, SlidingSpec, SpecialTokens
from dllm_kernels import Choice

MODEL_TYPE = "diffusion_gemma"
ARCHITECTURE = "DiffusionGemmaForBlockDiffusion"


class GemmaNorm(nn.Module):
    """RMSNorm in float32 through to the product with the weight, rounded once at the end."""

    def __init__(self, size: int, eps: float, has_weight: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if has_weight else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(wide)
        return F.rms_norm(x.to(wide), (x.shape[-1],), weight, self.eps).to(x.dtype)


def turn_of(rope: RopeSpec, head_dim: int, positions: Tensor, dtype: torch.dtype) -> Turn:
    """Turns of whole heads at `positions`, [B, T] int64. Pairs beyond the share `partial` do not turn.

    No table: for 262,144 positions and two kinds of heads it would take half a gigabyte.
    """
    turning = int(rope.partial * head_dim // 2)
    exponents = torch.arange(head_dim // 2, dtype=torch.float64, device=positions.device) * 2 / head_dim
    per_position = torch.where(exponents < turning * 2 / head_dim, rope.theta**-exponents, 0.0)
    angles = positions.unsqueeze(-1) * per_position
    wide = torch.promote_types(dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    return Turn(torch.cat((cos, cos), dim=-1).unsqueeze(1), torch.cat((-sin, sin), dim=-1).unsqueeze(1))


class GemmaAttention(nn.Module):
    """Scale 1, normed queries, keys and values; a full layer's value is its key before norm and rotation."""

    def __init__(self, spec: ModelSpec, is_full: bool) -> None:
        super().__init__()
        sliding = spec.sliding
        assert sliding is not None
        self.is_full = is_full
        self.heads = spec.num_attention_heads
        self.kv_heads = sliding.full_key_value_heads if is_full else spec.num_key_value_heads
        self.head_dim = sliding.full_head_dim if is_full else spec.head_dim
        self.groups = [self.heads, self.kv_heads] if is_full else [self.heads, self.kv_heads, self.kv_heads]
        self.qkv_proj = nn.Linear(spec.hidden_size, sum(self.groups) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, spec.hidden_size, bias=False)
        self.q_norm = GemmaNorm(self.head_dim, spec.rms_norm_eps)
        self.k_norm = GemmaNorm(self.head_dim, spec.rms_norm_eps)
        self.v_norm = GemmaNorm(self.head_dim, spec.rms_norm_eps, has_weight=False)

    def forward(self, x: Tensor, turn: Turn, mask: Tensor | None, store: LayerStore | None, slots: Slots) -> Tensor:
        rows, length, _ = x.shape
        parts = torch.split(self.qkv_proj(x).view(rows, length, sum(self.groups), self.head_dim), self.groups, dim=2)
        q = rotate(self.q_norm(parts[0]).transpose(1, 2), turn)
        k = rotate(self.k_norm(parts[1]).transpose(1, 2), turn)
        v = self.v_norm(parts[-1])
        if store is None:
            v = v.transpose(1, 2)
        else:
            k, v = slots.write(store, k.transpose(1, 2), v)
        q = q.reshape(rows, self.kv_heads, self.heads // self.kv_heads * length, self.head_dim)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        out = out.reshape(rows, self.heads, length, self.head_dim)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, self.heads * self.head_dim))
        return projected


class GemmaRouter(nn.Module):
    """Chooses experts from the normed residual; each expert's weight has a factor of its own."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.moe is not None
        self.moe = spec.moe
        self.norm = GemmaNorm(spec.hidden_size, spec.rms_norm_eps, has_weight=False)
        self.proj = nn.Linear(spec.hidden_size, spec.moe.experts, bias=False)
        self.scale = nn.Parameter(torch.ones(spec.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(spec.moe.experts))

    def forward(self, x: Tensor) -> Choice:
        """[N, E]."""
        logits = self.proj(self.norm(x) * self.scale * x.shape[-1] ** -0.5)
        wide = torch.promote_types(x.dtype, torch.float32)
        choice = choose_experts(logits.to(wide), self.moe)
        return Choice(choice.experts, choice.weights * self.per_expert_scale[choice.experts])


class GemmaLayer(nn.Module):
    """Attention, then a dense feed-forward and experts side by side; norms before and after each."""

    def __init__(self, spec: ModelSpec, is_full: bool) -> None:
        super().__init__()
        assert spec.moe is not None
        size, eps = spec.hidden_size, spec.rms_norm_eps
        self.self_attn = GemmaAttention(spec, is_full)
        self.mlp = FeedForward(size, spec.intermediate_size, spec.activation)
        self.router = GemmaRouter(spec)
        self.experts = Experts(spec.moe.experts, size, spec.moe.expert_size, spec.activation)
        self.input_layernorm = GemmaNorm(size, eps)
        self.post_attention_layernorm = GemmaNorm(size, eps)
        self.pre_feedforward_layernorm = GemmaNorm(size, eps)
        self.pre_feedforward_layernorm_2 = GemmaNorm(size, eps)
        self.post_feedforward_layernorm = GemmaNorm(size, eps)
        self.post_feedforward_layernorm_1 = GemmaNorm(size, eps)
        self.post_feedforward_layernorm_2 = GemmaNorm(size, eps)
        self.encoder_scalar: Tensor
        self.decoder_scalar: Tensor
        self.register_buffer("encoder_scalar", torch.ones(1))
        self.register_buffer("decoder_scalar", torch.ones(1))

    def forward(
        self, x: Tensor, turn: Turn, mask: Tensor | None, store: LayerStore | None, slots: Slots, is_encoder: bool
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), turn, mask, store, slots)
        x = x + self.post_attention_layernorm(attended)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        tokens = x.flatten(0, 1)
        routed = self.experts(self.pre_feedforward_layernorm_2(tokens), self.router(tokens)).view_as(x)
        both = dense + self.post_feedforward_layernorm_2(routed)
        scalar = self.encoder_scalar if is_encoder else self.decoder_scalar
        scaled: Tensor = (x + self.post_feedforward_layernorm(both)) * scalar
        return scaled


class SelfConditioning(nn.Module):
    """Adds what the last step believed to what the canvas holds."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.pre_norm = GemmaNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = FeedForward(spec.hidden_size, spec.intermediate_size, spec.activation)
        self.post_norm = GemmaNorm(spec.hidden_size, spec.rms_norm_eps, has_weight=False)

    def forward(self, x: Tensor, soft: Tensor) -> Tensor:
        conditioned: Tensor = self.post_norm(x + self.mlp(self.pre_norm(soft)))
        return conditioned


class DiffusionGemma(nn.Module):
    """See `dllm.models.family.Network`; `forward` documents what this family adds."""

    takes_sight = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.sliding is not None
        self.spec, self.sliding = spec, spec.sliding
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(
            GemmaLayer(spec, index in spec.sliding.full_layers) for index in range(spec.num_hidden_layers)
        )
        self.norm = GemmaNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_conditioning = SelfConditioning(spec)
        self.lm_head: nn.Module | None = (
            None if spec.tie_word_embeddings else nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        )

    def reset_buffers(self) -> None:
        """The layers' factors are one where a checkpoint does not hold them. This family keeps no rotary tables."""
        for buffer in self.buffers():
            buffer.fill_(1.0)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Normal(0, .02) everywhere; projections that write to the residual stream are scaled down by depth; factors are one."""
        depth_scale = (2 * self.spec.num_hidden_layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(1.0)
                    continue
                scale = depth_scale if "o_proj" in name or "down_proj" in name else 1.0
                parameter.normal_(0.0, 0.02 * scale, generator=generator)
        self.reset_buffers()

    def new_stores(self, rows: int, length: int, dtype: torch.dtype | None = None) -> list[LayerStore]:
        """One store per layer; full layers have other heads than sliding ones, so shapes differ."""
        weight = self.embed_tokens.weight
        stores = []
        for index in range(self.spec.num_hidden_layers):
            is_full = index in self.sliding.full_layers
            heads = self.sliding.full_key_value_heads if is_full else self.spec.num_key_value_heads
            size = self.sliding.full_head_dim if is_full else self.spec.head_dim
            shape = (rows, heads, length, size)
            stores.append(LayerStore.zeros(shape, weight, dtype))
        return stores

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled embeddings. The factor is rounded to the weights' type, as in training."""
        embedded: Tensor = self.embed_tokens(ids) * self._embedding_scale()
        return embedded

    def _embedding_scale(self) -> float:
        return float(torch.tensor(self.spec.hidden_size**0.5).to(self.embed_tokens.weight.dtype))

    def soft_embedding(self, logits: Tensor) -> Tensor:
        """The expected embedding under the last step's processed logits, [B, T, V] to [B, T, E]: `forward`'s `soft`."""
        weight = self.embed_tokens.weight
        wide = torch.promote_types(logits.dtype, torch.float32)
        return (logits.softmax(-1, dtype=wide).to(weight.dtype) @ weight) * self._embedding_scale()

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        stores: Sequence[LayerStore] | None = None,
        start: int | Tensor = 0,
        soft: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, E]. See `Network.__call__`; beyond it:

        The stored slot j holds position j. The caller's mask says which slots exist for a row; causality and the sliding layers'
        windows are worked out here from `positions`. A decoder pass writes the canvas behind the prompt, where the next pass overwrites
        it.

        Args:
            soft: [B, T, E], from `soft_embedding`; None is zero (first step). Decoder passes only: what it feeds is applied always.
            causal: An encoder pass: a token sees itself and what is before, in sliding layers the last `window` of them. Otherwise a
                decoder pass: canvas tokens see the whole canvas and all of the prompt, in sliding layers its last `window - 1` tokens.

        Raises:
            ValueError: If an encoder pass is given `soft`, or `start` is a tensor and there is no mask.
        """
        if causal and soft is not None:
            raise ValueError("soft: expected None in an encoder pass (causal=True), which has no self-conditioning")
        x = self.embed(ids)
        if not causal:
            x = self.self_conditioning(x, torch.zeros_like(x) if soft is None else soft.to(x.dtype))
        slots = Slots.of(start, ids.shape[1], mask)
        masks = self._masks(positions, mask, start, slots.read, causal, x.dtype)
        sliding = self.sliding
        turns = (
            turn_of(self.spec.rope, self.spec.head_dim, positions, x.dtype),
            turn_of(sliding.full_rope, sliding.full_head_dim, positions, x.dtype),
        )
        for index, layer in enumerate(self.layers):
            is_full = index in sliding.full_layers
            store = None if stores is None else stores[index]
            x = layer(x, turns[is_full], masks[is_full], store, slots, causal)
        normed: Tensor = self.norm(x)
        return normed

    def _masks(
        self, positions: Tensor, mask: Tensor | None, start: int | Tensor, read: int, causal: bool, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """What sliding and full layers see, as `fold_mask` gives it."""
        spec, window = self.spec, self.sliding.window
        rows, length = positions.shape
        device = positions.device
        first = start if isinstance(start, Tensor) else torch.full((rows,), start, device=device)
        columns = first.unsqueeze(1) + torch.arange(length, device=device)
        held = torch.arange(read, device=device).repeat(rows, 1).scatter_(1, columns, positions)[:, None, None]
        if causal:
            query = positions[:, None, :, None]
            full: Tensor | None = held <= query
            near = (held <= query) & (held > query - window)
        else:
            is_new = torch.zeros(rows, read, dtype=torch.bool, device=device).scatter_(1, columns, True)
            full = None
            near = is_new[:, None, None] | (held > positions[:, None, :1, None] - window)
        shared = spec.num_attention_heads // spec.num_key_value_heads
        full_shared = spec.num_attention_heads // self.sliding.full_key_value_heads
        return (
            fold_mask(_both(near, mask), shared, dtype),
            fold_mask(_both(full, mask), full_shared, dtype),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] to [..., V], soft-capped, at least float32."""
        raw: Tensor = F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        cap = self.spec.logit_softcap
        return cap * torch.tanh(raw / cap) if cap else raw

    def head(self) -> Head | None:
        """None: logits are soft-capped."""
        return None


def _both(seen: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Restrict the caller's mask, boolean or additive, to what is `seen`."""
    if seen is None or mask is None:
        return mask if seen is None else seen
    if mask.dtype == torch.bool:
        return mask & seen
    return torch.where(seen, mask, float("-inf"))


IMAGE_TOKENS = {"boi_token_id": 255_999, "eoi_token_id": 258_882, "image_token_id": 258_880}
"""Keys of tokens that stand for images, with the published ids."""


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    text: Mapping[str, Any] = config["text_config"]
    expect(text, {"attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"})
    # "vision" makes image tokens alone bidirectional: text is causal all the same.
    expect(text, {"use_bidirectional_attention": "vision"})
    layers = int(text["num_hidden_layers"])
    kinds = text.get("layer_types") or [
        "full_attention" if index % 6 == 5 else "sliding_attention" for index in range(layers)
    ]
    full_layers = tuple(index for index, kind in enumerate(kinds) if kind == "full_attention" or index == layers - 1)
    head_dim, kv_heads = int(text["head_dim"]), int(text["num_key_value_heads"])
    full_head_dim, full_kv_heads = _full_heads(text, full_layers)
    ropes = text.get("rope_parameters") or {}
    near, far = ropes.get("sliding_attention", {}), ropes.get("full_attention", {})
    expect(near, {"rope_type": "default", "partial_rotary_factor": 1.0})
    expect(far, {"rope_type": "proportional", "factor": 1.0})
    ends = config.get("eos_token_id", text.get("eos_token_id", 1))
    vocabulary = int(text["vocab_size"])
    images = (config.get(key, default) for key, default in IMAGE_TOKENS.items())
    canvas = int(config.get("canvas_length", 256))
    return ModelSpec(
        vocab_size=vocabulary,
        hidden_size=int(text["hidden_size"]),
        intermediate_size=int(text["intermediate_size"]),
        num_hidden_layers=layers,
        num_attention_heads=int(text["num_attention_heads"]),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        special=SpecialTokens(
            mask=None,
            ends=tuple(ends) if isinstance(ends, list | tuple) else (int(ends),),
            pad=text.get("pad_token_id", 0),
            bos=text.get("bos_token_id", 2),
            forbidden=tuple(token for token in images if token is not None and token < vocabulary),
        ),
        family=FAMILY.name,
        rope=RopeSpec(float(near.get("rope_theta", 10_000.0))),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(text.get("max_position_embeddings", 131_072)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
        qk_norm=True,
        activation="gelu_tanh",
        moe=MoeSpec(
            experts=int(text["num_experts"]),
            experts_per_token=int(text["top_k_experts"]),
            expert_size=int(text["moe_intermediate_size"]),
        ),
        sliding=SlidingSpec(
            window=int(text.get("sliding_window", 512)),
            full_layers=full_layers,
            full_head_dim=full_head_dim,
            full_key_value_heads=full_kv_heads,
            full_rope=RopeSpec(float(far.get("rope_theta", 1e6)), float(far.get("partial_rotary_factor", 0.25))),
        ),
        logit_softcap=float(text.get("final_logit_softcapping", 30.0) or 0.0),
        corruption="uniform",
        mask_kind="encoder_decoder",
        block=canvas,
        self_conditioning=True,
    )


def _full_heads(text: Mapping[str, Any], full_layers: tuple[int, ...]) -> tuple[int, int]:
    """Head size and key/value heads of full layers: written per layer by newer transformers, as global numbers by older ones."""
    kv_heads = int(text["num_key_value_heads"])
    per_layer = text.get("per_layer_config")
    if per_layer is None:
        return int(text.get("global_head_dim") or 512), int(text.get("num_global_key_value_heads") or kv_heads)
    found = {
        (int(own.get("head_dim", text["head_dim"])), int(own.get("num_key_value_heads", kv_heads)))
        for own in (per_layer.get(str(index), per_layer.get(index, {})) for index in full_layers)
    }
    if len(found) != 1:
        raise ConfigError("text_config.per_layer_config", per_layer, "the same heads in all full layers")
    return found.pop()


def write_config(spec: ModelSpec) -> dict[str, Any]:
    sliding, moe = spec.sliding, spec.moe
    assert sliding is not None and moe is not None
    full = {"head_dim": sliding.full_head_dim, "num_key_value_heads": sliding.full_key_value_heads}
    images = dict(zip(IMAGE_TOKENS, spec.special.forbidden, strict=False))
    text = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "per_layer_config": {str(index): full for index in sliding.full_layers},
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "pad_token_id": spec.special.pad,
        "eos_token_id": list(spec.special.ends),
        "bos_token_id": spec.special.bos,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": spec.rope.theta},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": sliding.full_rope.theta,
                "partial_rotary_factor": sliding.full_rope.partial,
            },
        },
        "sliding_window": sliding.window,
        "layer_types": [
            "full_attention" if index in sliding.full_layers else "sliding_attention"
            for index in range(spec.num_hidden_layers)
        ],
        "final_logit_softcapping": spec.logit_softcap or None,
        "num_experts": moe.experts,
        "top_k_experts": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_size,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "text_config": text,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "canvas_length": spec.block,
        **{key: images.get(key) for key in IMAGE_TOKENS},
    }


SAME_NAMES = (
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "router.proj.weight",
    "router.scale",
    "router.per_expert_scale",
    "experts.gate_up_proj",
    "experts.down_proj",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "pre_feedforward_layernorm_2.weight",
    "post_feedforward_layernorm.weight",
    "post_feedforward_layernorm_1.weight",
    "post_feedforward_layernorm_2.weight",
)
"""Tensors of a layer that are called the same on disk and in memory."""


def tensors(spec: ModelSpec) -> dict[str, Slot]:
    sliding = spec.sliding
    assert sliding is not None
    found = {
        "model.decoder.embed_tokens.weight": Slot("embed_tokens.weight"),
        "model.decoder.norm.weight": Slot("norm.weight"),
        "model.decoder.self_conditioning.pre_norm.weight": Slot("self_conditioning.pre_norm.weight"),
        **feed_forward_slots(spec.intermediate_size, "model.decoder.self_conditioning", "self_conditioning.mlp"),
    }
    if not spec.tie_word_embeddings:
        found["lm_head.weight"] = Slot("lm_head.weight")
    for index in range(spec.num_hidden_layers):
        disk, place = f"model.decoder.layers.{index}", f"layers.{index}"
        is_full = index in sliding.full_layers
        size = sliding.full_head_dim if is_full else spec.head_dim
        queries = spec.num_attention_heads * size
        keys = (sliding.full_key_value_heads if is_full else spec.num_key_value_heads) * size
        qkv = f"{place}.self_attn.qkv_proj.weight"
        found[f"{disk}.self_attn.q_proj.weight"] = Slot(qkv, 0, queries)
        found[f"{disk}.self_attn.k_proj.weight"] = Slot(qkv, queries, keys)
        if not is_full:
            found[f"{disk}.self_attn.v_proj.weight"] = Slot(qkv, queries + keys, keys)
        found |= {f"{disk}.{name}": Slot(f"{place}.{name}") for name in SAME_NAMES}
        found |= feed_forward_slots(spec.intermediate_size, f"{disk}.mlp", f"{place}.mlp")
        found[f"{disk}.layer_scalar"] = Slot(f"{place}.decoder_scalar")
        # The passes share every weight but this buffer; a checkpoint without the encoder's leaves it at one.
        encoder = f"model.encoder.language_model.layers.{index}.layer_scalar"
        found[encoder] = Slot(f"{place}.encoder_scalar", is_optional=True)
    return found


FAMILY = Family(
    name="diffusion_gemma",
    model_types=(MODEL_TYPE,),
    architectures=(ARCHITECTURE,),
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    build=DiffusionGemma,
    defaults=DecodeDefaults(rule="entropy", temperature=0.8, block=256, entropy_bound=0.1, steps=48),
    landmarks=("model.decoder.self_conditioning.pre_norm.weight",),
    ignored=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
)
