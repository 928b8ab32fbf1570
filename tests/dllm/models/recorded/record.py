"""Record logits of a family's published modelling code: `python record.py FAMILY FOLDER`.

FOLDER is where the modelling files lie in a checkout of the repository that `SOURCES` names, at its commit. Run it from the repository's
root, in an environment with transformers 4.52.4 (LLaDA2: 4.57.1). The published files are imported under a name of their own, since one
of their packages is called like ours; nothing of ours but `seeded` is imported.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from seeded import seeded

ZHZ = ("ZHZisZZ/dllm", "ca176752fbceec49c6b4777a2c18ae88e4eb10ed")
SDAR = ("JetAstra/SDAR", "c2041a8333333d685f6e15122c84f60f51f85ebd")
SOURCES = {
    "llada": (*ZHZ, "dllm/pipelines/llada/models/modeling_llada.py"),
    "llada_moe": (*ZHZ, "dllm/pipelines/llada/models/modeling_lladamoe.py"),
    "llada2": (*ZHZ, "dllm/pipelines/llada2/models/modeling_llada2_moe.py"),
    "llada2_edit": (*ZHZ, "dllm/pipelines/llada21/models/modeling_llada21_moe.py"),
    "dream": (*ZHZ, "dllm/pipelines/dream/models/modeling_dream.py"),
    "mdlm": ("kuleshov-group/mdlm", "c112c526d193436838c98d81455ee51f90309470", "models/dit.py"),
    "sedd": (
        "louaaron/Score-Entropy-Discrete-Diffusion",
        "0605786da5ccb5747545e26d66fdf477187598b6",
        "model/transformer.py",
    ),
    "sdar": (*SDAR, "training/model/SDAR-4B-Chat/modeling_sdar.py"),
}
VOCAB, SEED, BLOCK = 61, 1, 4
LENGTHS = (1, 7, 13)

QWEN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "mask_token_id": 60,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
LLADA2 = QWEN | {
    "architectures": ["LLaDA2MoeModelLM"],
    "rope_theta": 6e5,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 12,
    "num_experts": 16,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "head_dim": 8,
    "block_size": BLOCK,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llada": {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "bos_token_id": 1,
        "bias_for_layer_norm": False,
        "d_model": 32,
        "embedding_dropout": 0.0,
        "embedding_size": VOCAB,
        "eos_token_id": 2,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_device": "cpu",
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 60,
        "max_sequence_length": 64,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": 0,
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 5e5,
        "vocab_size": VOCAB - 3,
        "weight_tying": False,
    },
    "llada_moe": {key: value for key, value in QWEN.items() if key != "intermediate_size"}
    | {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        "dense_intermediate_size": 40,
        "expert_intermediate_size": 12,
        "shared_expert_intermediate_size": 20,
        "moe_layer_freq": [0, 1],
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "qk_layernorm": True,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "rope_theta": 5e4,
        "partial_rotary_factor": 1,
    },
    "llada2": LLADA2 | {"model_type": "llada2_moe"},
    "llada2_edit": LLADA2 | {"model_type": "llada21_moe"},
    "dream": QWEN | {"model_type": "Dream", "architectures": ["DreamModel"]},
    "sdar": QWEN
    | {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "head_dim": 8, "block_size": BLOCK}
    | {"attention_bias": False, "fuse_cross_entropy": True},
    "mdlm": {
        "model_type": "mdlm",
        "vocab_size": VOCAB,
        "hidden_dim": 32,
        "n_heads": 4,
        "n_blocks": 2,
        "model_length": 64,
        "cond_dim": 16,
        "time_conditioning": False,
    },
    "sedd": {
        "tokens": VOCAB - 1,
        "graph": {"type": "absorb"},
        "noise": {"type": "loglinear"},
        "model": {"type": "ddit", "hidden_size": 32, "cond_dim": 16, "length": 64, "n_blocks": 2, "n_heads": 4}
        | {"scale_by_sigma": True, "dropout": 0.1},
    },
}
NOISES = {1: 0.2, 7: 1.3, 13: 4.0}
"""SEDD's total noise by length of the case: below and above the border where its code changes formula."""


def published(family: str, folder: Path) -> types.ModuleType:
    package = types.ModuleType("published")
    package.__path__ = [str(folder)]
    sys.modules["published"] = package
    return importlib.import_module(f"published.{Path(SOURCES[family][2]).stem}")


def stand_in_for_kernels() -> None:
    """Some files import GPU kernels; these are what the files' comments and the kernels' documentation say they compute."""

    def rms_norm_fn(x: Tensor, weight: Tensor, bias: None, eps: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    def flash_attn_varlen_qkvpacked_func(
        qkv: Tensor, borders: Tensor, longest: int, dropout: float, causal: bool
    ) -> Tensor:
        rows = len(borders) - 1
        q, k, v = qkv.view(rows, longest, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    def apply_rotary_emb_qkv_(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[None, :, None, None], sin[None, :, None, None]
        first, second = qkv[:, :, :2].chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((turned, qkv[:, :, 2:]), dim=2)

    for name in (
        "flash_attn",
        "flash_attn.ops",
        "flash_attn.ops.triton",
        "flash_attn.ops.triton.layer_norm",
        "flash_attn.layers",
        "flash_attn.layers.rotary",
        "flash_attn.flash_attn_interface",
    ):
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    sys.modules["flash_attn.flash_attn_interface"].flash_attn_varlen_qkvpacked_func = flash_attn_varlen_qkvpacked_func
    sys.modules["flash_attn.layers.rotary"].apply_rotary_emb_qkv_ = apply_rotary_emb_qkv_
    sys.modules["flash_attn.ops.triton.layer_norm"].rms_norm_fn = rms_norm_fn
    sys.modules["flash_attn"].flash_attn_func = flash_attn_func
    loss = types.ModuleType("published.fused_linear_diffusion_cross_entropy")
    loss.FusedLinearDiffusionCrossEntropyLoss = nn.Module
    sys.modules[loss.__name__] = loss


def build(family: str, folder: Path) -> nn.Module:
    config = dict(CONFIGS[family])
    stand_in_for_kernels()
    module = published(family, folder)
    if family == "sedd":
        return module.SEDD(config)
    if family == "mdlm":
        names = {"hidden_size": "hidden_dim", "cond_dim": "cond_dim", "n_blocks": "n_blocks", "n_heads": "n_heads"}
        sizes = {name: config[key] for name, key in names.items()} | {"dropout": 0.1, "scale_by_sigma": False}
        holder = nn.Module()
        holder.backbone = module.DIT({"model": sizes}, vocab_size=VOCAB)
        return holder
    if family == "llada":
        own = module.create_model_config_from_pretrained_config(module.LLaDAConfig(**config))
        own.init_device = "cpu"
        return module.LLaDAModelLM(module.LLaDAConfig(**config), model=module.LLaDAModel(own, init_params=False))
    names = {
        "llada_moe": ("LLaDAMoEConfig", "LLaDAMoEModelLM"),
        "llada2": ("LLaDA2MoeConfig", "LLaDA2MoeModelLM"),
        "llada2_edit": ("LLaDA2MoeConfig", "LLaDA2MoeModelLM"),
        "dream": ("DreamConfig", "DreamModel"),
        "sdar": ("SDARConfig", "SDARForCausalLM"),
    }
    config_class, model_class = (getattr(module, name) for name in names[family])
    read = config_class(**{key: value for key, value in config.items() if key != "model_type"})
    if family == "llada_moe":
        read._attn_implementation = "eager"
    return model_class(read)


def forward(family: str, model: nn.Module, ids: Tensor) -> Tensor:
    if family in ("llada", "llada_moe"):
        return model(ids).logits
    if family == "mdlm":
        return model.backbone(ids, torch.zeros(1))
    if family == "sedd":
        return model(ids, torch.tensor([NOISES[ids.shape[1]]]))
    if family == "dream":
        return model(ids, attention_mask="full").logits
    block = torch.arange(ids.shape[1]) // BLOCK
    mask = (block[:, None] >= block[None, :])[None, None]
    return model(ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None]).logits


def record(family: str, folder: Path) -> None:
    model = build(family, folder).float().eval()
    state = model.state_dict()
    model.load_state_dict(
        {
            name: torch.from_numpy(seeded(name, tuple(tensor.shape), SEED))
            for name, tensor in state.items()
            if not name.endswith("inv_freq")
        },
        strict=False,
    )
    cases = []
    with torch.no_grad():
        for length in LENGTHS:
            ids = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
            rows = forward(family, model, ids)[0].double().tolist()
            case = {"ids": ids[0].tolist(), "logits": [[round(value, 5) for value in row] for row in rows]}
            cases.append(case | ({"noise": NOISES[length]} if family == "sedd" else {}))
    repository, commit, path = SOURCES[family]
    body = {
        "repository": repository,
        "commit": commit,
        "path": path,
        "seed": SEED,
        "config": CONFIGS[family],
        "cases": cases,
    }
    target = Path(__file__).parent / f"{family}.json"
    target.write_text(json.dumps(body, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
