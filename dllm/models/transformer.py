"""The network of every Llama-like family: RMSNorm, rotary positions, grouped-query attention, gated feed-forward or experts.

What differs between families is in `ModelSpec`; the attention mask is the caller's.

Dimensions: B rows, T new tokens, S stored tokens, G key/value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.attention import Attention, Slots, fold_mask
from dllm.layers.feed_forward import FeedForward
from dllm.layers.norm import RMSNorm
from dllm.layers.rotary import RotaryTable, Turn, query_scale
from dllm.models.family import Head, LayerStore, Sight
from dllm.spec import ModelSpec
from dllm_kernels import Decoder, embed
from dllm_kernels.choose import runs_native


class Shared(NamedTuple):
    """What all layers of one forward have in common."""

    turn: Turn
    mask: Tensor | Sight | None
    slots: Slots
    q_scale: Tensor | None
    blocks: Tensor | None
    """[B, T], each token's block, where experts are capped per block."""


class Layer(nn.Module):
    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = _feed_forward(spec, index)
        self._has_experts = spec.moe is not None and index >= spec.moe.first_dense

    def forward(
        self, x: Tensor, delta: Tensor | None, shared: Shared, store: LayerStore | None
    ) -> tuple[Tensor, Tensor]:
        """The stream and what is still to be added to it, both [B, T, E], to the same behind this layer: the next norm adds them up in one
        pass. The new tokens' keys and values go into `store`."""
        x, normed = self.input_layernorm.after(x, delta)
        attended = self.self_attn(normed, shared.turn, shared.mask, store, shared.slots, shared.q_scale)
        x, normed = self.post_attention_layernorm.after(x, attended)
        fed: Tensor = self.mlp(normed, shared.blocks) if self._has_experts else self.mlp(normed)
        return x, fed


def _feed_forward(spec: ModelSpec, index: int) -> nn.Module:
    if spec.moe is None or index < spec.moe.first_dense:
        return FeedForward(spec.hidden_size, spec.intermediate_size, spec.activation)
    from dllm.layers.moe import MoeFeedForward  # families without experts do not pay for it

    return MoeFeedForward(spec)


class Transformer(nn.Module):
    """See `dllm.models.family.Network` for what a forward takes and gives."""

    takes_sight = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, index) for index in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.lm_head: nn.Module | None = (
            None if spec.tie_word_embeddings else nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        )
        self.soft_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False) if spec.self_conditioning else None
        self.decoder: Decoder | None = None
        """All layers in one call, for this CPU (`dllm.packing`)."""
        self.rotary = RotaryTable(spec.rope, spec.head_dim, spec.max_position_embeddings)

    def reset_buffers(self) -> None:
        self.rotary.reset()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Normal(0, .02) everywhere; projections that write to the residual stream are scaled down by depth (GPT-2).

        Norms start at one, biases at zero.
        """
        depth_scale = (2 * self.spec.num_hidden_layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                scale = depth_scale if "o_proj" in name or "down_proj" in name else 1.0
                parameter.normal_(0.0, 0.02 * scale, generator=generator)

    def new_stores(self, rows: int, length: int, dtype: torch.dtype | None = None) -> list[LayerStore]:
        """Zeroed room for `length` tokens of `rows` sequences, one store per layer."""
        shape = (rows, self.spec.num_key_value_heads, length, self.spec.head_dim)
        return [LayerStore.zeros(shape, self.embed_tokens.weight, dtype) for _ in self.layers]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None,
        stores: Sequence[LayerStore] | None = None,
        start: int | Tensor = 0,
        **extra: Any,
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, E]. See `Network.__call__`; beyond it, where `spec.self_conditioning`:

        Args:
            soft: [B, T, E], from `soft_embedding`; zero, as none at all, where there is no guess yet. Added to the embeddings.

        Raises:
            ValueError: If `start` is a tensor and there is no mask.
            TypeError: If anything is in `extra`, which these families have no use for.
        """
        soft: Tensor | None = None if self.soft_proj is None else extra.pop("soft", None)
        if extra:
            raise TypeError(f"{self.spec.family} takes no {', '.join(sorted(extra))}")
        spec = self.spec
        table = self.embed_tokens.weight
        guess = None if self.soft_proj is None or soft is None else self.soft_proj(soft.to(table.dtype)).flatten(0, 1)
        x = embed(ids.flatten(), table, guess).view(*ids.shape, -1)
        turn = self.rotary.at(positions, x.dtype)
        is_float = stores is not None and stores[0].key_scale is None
        if (
            self.decoder is not None
            and stores is not None
            and is_float
            and not isinstance(mask, Sight)
            and runs_native()
        ):
            places = [(store.keys, store.values) for store in stores]
            return self.decoder(x, turn.cos, turn.signed_sin, places, start, mask)
        shared = Shared(
            turn,
            mask
            if isinstance(mask, Sight)
            else fold_mask(mask, spec.num_attention_heads // spec.num_key_value_heads, x.dtype),
            Slots.of(start, ids.shape[1], mask),
            query_scale(spec.rope, positions) if spec.rope.query_scale_beta else None,
            positions // spec.block if spec.moe is not None and spec.moe.per_block else None,
        )
        delta: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, delta = layer(x, delta, shared, None if stores is None else stores[index])
        return self.norm.after(x, delta)[1]

    def head(self) -> Head | None:
        """See `Network.head`; None where hooks do more (a head that is cut over devices), or activations are quantised too."""
        from dllm.layers.linear import QuantLinear  # which brings experts with it

        head = self.lm_head
        if head is None:
            return Head(self.embed_tokens.weight)
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        if head._forward_hooks or head._forward_pre_hooks:
            return None
        if type(head) is nn.Linear and head.bias is None and head.weight.shape == shape:
            return Head(head.weight)
        if isinstance(head, QuantLinear) and head.mode == "int8" and head.bias is None and head.values.shape == shape:
            return Head(head.values, head.scale)
        return None

    def soft_embedding(self, logits: Tensor) -> Tensor:
        """The expected embedding under the last step's logits, [B, T, V] to [B, T, E]: `forward`'s `soft`."""
        weight = self.embed_tokens.weight
        return logits.softmax(-1, dtype=torch.float32).to(weight.dtype) @ weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] to [..., V]."""
        logits: Tensor = F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        return logits
