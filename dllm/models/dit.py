"""MDLM and SEDD: small diffusion transformers to study (arXiv:2406.07524, arXiv:2310.16834).

LayerNorm whose shift, scale and gate follow from the noise level (adaLN, arXiv:2212.09748), full attention, rotary positions. The two
share the network: MDLM's level is always zero, SEDD's is the total noise of the canvas.

Dimensions: B rows, T new tokens, C width of the condition, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.attention import Attention, Slots, fold_mask
from dllm.layers.rotary import RotaryTable, Turn
from dllm.models.family import DecodeDefaults, Family, Head, LayerStore, Sight, Slot
from dllm.models.layout import expect, token_id
from dllm.spec import ModelSpec, RopeSpec, SpecialTokens

WAVES = 256
"""Cosines and sines that a noise level is read by."""

_NOISE_FLOOR = 1e-3
"""Share of tokens that the log-linear schedule leaves unmasked at its end."""


class LayerNorm(nn.Module):
    """Normalised in float32, without bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.layer_norm(wide, (x.shape[-1],)).to(x.dtype) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class DitLayer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1 = LayerNorm(spec.hidden_size)
        self.self_attn = Attention(spec)
        self.norm2 = LayerNorm(spec.hidden_size)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size)
        self.modulation = nn.Linear(spec.condition_size, 6 * spec.hidden_size)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        turn: Turn,
        mask: Tensor | Sight | None,
        store: LayerStore | None,
        slots: Slots,
    ) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate_a * self.self_attn(modulate(self.norm1(x), shift_a, scale_a), turn, mask, store, slots)
        inner = F.gelu(self.up_proj(modulate(self.norm2(x), shift_m, scale_m)), approximate="tanh")
        changed: Tensor = x + gate_m * self.down_proj(inner)
        return changed


class NoiseEmbedding(nn.Module):
    """A noise level as cosines and sines, through two layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Linear(WAVES, size)
        self.second = nn.Linear(size, size)

    def forward(self, noise: Tensor) -> Tensor:
        """[B] to [B, 1, C]."""
        half = WAVES // 2
        waves = torch.exp(torch.arange(half, dtype=torch.float32, device=noise.device) * (-math.log(10_000) / half))
        angles = noise.unsqueeze(-1) * waves
        read = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.first.weight.dtype)
        return F.silu(self.second(F.silu(self.first(read)))).unsqueeze(1)


class Dit(nn.Module):
    """See `dllm.models.family.Network`; `forward` documents what this family adds."""

    takes_sight = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.noise = NoiseEmbedding(spec.condition_size)
        self.layers = nn.ModuleList(DitLayer(spec) for _ in range(spec.num_hidden_layers))
        self.norm = LayerNorm(spec.hidden_size)
        self.modulation = nn.Linear(spec.condition_size, 2 * spec.hidden_size)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size)
        self.rotary = RotaryTable(spec.rope, spec.head_dim, spec.max_position_embeddings)

    def reset_buffers(self) -> None:
        self.rotary.reset()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Normal(0, .02) matrices, norms at one, biases at zero. Gates start at zero: every layer begins as the identity (adaLN-Zero)."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "modulation" in name or name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() == 1:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, 0.02, generator=generator)

    def new_stores(self, rows: int, length: int, dtype: torch.dtype | None = None) -> list[LayerStore]:
        weight = self.embed_tokens.weight
        shape = (rows, self.spec.num_key_value_heads, length, self.spec.head_dim)
        return [LayerStore.zeros(shape, weight, dtype) for _ in self.layers]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None,
        stores: Sequence[LayerStore] | None = None,
        start: int | Tensor = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final modulated norm, [B, T, E]. See `Network.__call__`; beyond it:

        Args:
            noise: [B], total noise of each row, for models that see it (SEDD); None reads it off the share of masks among `ids`.

        Raises:
            ValueError: If the model sees no noise and is given some, or `start` is a tensor and there is no mask.
        """
        if noise is not None and not self.spec.sees_noise:
            raise ValueError(f"noise: expected None, {self.spec.family} checkpoints were trained without a noise level")
        x: Tensor = self.embed_tokens(ids)
        condition = self.noise(self._noise_of(ids) if noise is None else noise)
        turn = self.rotary.at(positions, x.dtype)
        slots = Slots.of(start, ids.shape[1], mask)
        folded = mask if isinstance(mask, Sight) else fold_mask(mask, 1, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, condition, turn, folded, None if stores is None else stores[index], slots)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)

    def _noise_of(self, ids: Tensor) -> Tensor:
        if not self.spec.sees_noise:
            return torch.zeros(ids.shape[0], device=ids.device)
        assert self.spec.special.mask is not None
        return total_noise(ids.eq(self.spec.special.mask).float().mean(-1))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] to [..., V].

        The softmax over all tokens but the mask is the guess at a masked position. SEDD's own output, the logarithm of its score, is
        this less log(exp(noise) - 1) and log(V - 1), the same for every token, and zero at the token that the position holds.
        """
        logits: Tensor = self.lm_head(hidden)
        return logits

    def head(self) -> Head | None:
        """None: the published head has a bias."""
        return None


def total_noise(masked: Tensor) -> Tensor:
    """The log-linear schedule's total noise where a share `masked` of the tokens is masked."""
    return -torch.log1p(-(1 - _NOISE_FLOOR) * masked)


def _spec(
    family: str, body: Mapping[str, Any], sizes: Mapping[str, Any], vocab_size: int, sees_noise: bool
) -> ModelSpec:
    hidden, heads = int(sizes["hidden"]), int(sizes["heads"])
    # GPT-2's vocabulary and a mask behind it, unless the config says otherwise.
    end = token_id(body, "eos_token_id", vocab_size - 2)
    assert end is not None
    return ModelSpec(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=int(sizes["layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        special=SpecialTokens(token_id(body, "mask_token_id", vocab_size - 1), (end,)),
        family=family,
        rope=RopeSpec(10_000.0),
        rms_norm_eps=1e-5,
        max_position_embeddings=int(sizes["length"]),
        activation="gelu_tanh",
        condition_size=int(sizes["condition"]),
        sees_noise=sees_noise,
        mask_kind="full",
    )


def read_mdlm(body: Mapping[str, Any]) -> ModelSpec:
    sizes = {
        "hidden": body["hidden_dim"],
        "heads": body["n_heads"],
        "layers": body["n_blocks"],
        "length": body["model_length"],
        "condition": body["cond_dim"],
    }
    return _spec("mdlm", body, sizes, int(body["vocab_size"]), bool(body.get("time_conditioning", False)))


def write_mdlm(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model_type": "mdlm",
        "architectures": ["MDLM"],
        "vocab_size": spec.vocab_size,
        "hidden_dim": spec.hidden_size,
        "n_heads": spec.num_attention_heads,
        "n_blocks": spec.num_hidden_layers,
        "model_length": spec.max_position_embeddings,
        "cond_dim": spec.condition_size,
        "time_conditioning": spec.sees_noise,
        "mask_token_id": spec.special.mask,
        "eos_token_id": spec.special.end,
    }


def read_sedd(body: Mapping[str, Any]) -> ModelSpec:
    """SEDD's configuration is its training run's; `tokens` does not count the mask. Only the absorbing graph has one."""
    expect(body["graph"], {"type": "absorb"})
    expect(body.get("noise") or {}, {"type": "loglinear"})
    model: Mapping[str, Any] = body["model"]
    sizes = {
        "hidden": model["hidden_size"],
        "heads": model["n_heads"],
        "layers": model["n_blocks"],
        "length": model["length"],
        "condition": model["cond_dim"],
    }
    return _spec("sedd", body, sizes, int(body["tokens"]) + 1, sees_noise=True)


def write_sedd(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model_type": "sedd",
        "tokens": spec.vocab_size - 1,
        "graph": {"type": "absorb"},
        "noise": {"type": "loglinear"},
        "model": {
            "type": "ddit",
            "hidden_size": spec.hidden_size,
            "n_heads": spec.num_attention_heads,
            "n_blocks": spec.num_hidden_layers,
            "length": spec.max_position_embeddings,
            "cond_dim": spec.condition_size,
            "scale_by_sigma": True,
        },
        "mask_token_id": spec.special.mask,
        "eos_token_id": spec.special.end,
    }


def mdlm_tensors(spec: ModelSpec) -> dict[str, Slot]:
    return {f"backbone.{name}": slot for name, slot in sedd_tensors(spec).items()}


def sedd_tensors(spec: ModelSpec) -> dict[str, Slot]:
    pairs = {"vocab_embed.embedding": "embed_tokens.weight", "output_layer.norm_final.weight": "norm.weight"}
    linears = {
        "sigma_map.mlp.0": "noise.first",
        "sigma_map.mlp.2": "noise.second",
        "output_layer.linear": "lm_head",
        "output_layer.adaLN_modulation": "modulation",
    }
    for index in range(spec.num_hidden_layers):
        disk, memory = f"blocks.{index}", f"layers.{index}"
        pairs |= {
            f"{disk}.norm1.weight": f"{memory}.norm1.weight",
            f"{disk}.norm2.weight": f"{memory}.norm2.weight",
            f"{disk}.attn_qkv.weight": f"{memory}.self_attn.qkv_proj.weight",
            f"{disk}.attn_out.weight": f"{memory}.self_attn.o_proj.weight",
        }
        linears |= {
            f"{disk}.mlp.0": f"{memory}.up_proj",
            f"{disk}.mlp.2": f"{memory}.down_proj",
            f"{disk}.adaLN_modulation": f"{memory}.modulation",
        }
    for disk, memory in linears.items():
        pairs |= {f"{disk}.{kind}": f"{memory}.{kind}" for kind in ("weight", "bias")}
    return {name: Slot(parameter) for name, parameter in pairs.items()}


# The papers' sampler: positions in random order, each token drawn.
_DEFAULTS = DecodeDefaults(rule="random", temperature=1.0, block=0)

MDLM = Family(
    name="mdlm",
    model_types=("mdlm",),
    architectures=("MDLM",),
    read_config=read_mdlm,
    write_config=write_mdlm,
    tensors=mdlm_tensors,
    build=Dit,
    defaults=_DEFAULTS,
    landmarks=("backbone.sigma_map.mlp.0.weight", "backbone.vocab_embed.embedding"),
    ignored=("backbone.rotary_emb.",),
)

SEDD = Family(
    name="sedd",
    model_types=("sedd",),
    architectures=("SEDD",),
    read_config=read_sedd,
    write_config=write_sedd,
    tensors=sedd_tensors,
    build=Dit,
    defaults=_DEFAULTS,
    landmarks=("sigma_map.mlp.0.weight", "vocab_embed.embedding"),
    ignored=("rotary_emb.",),
)
