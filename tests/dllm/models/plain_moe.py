"""LLaDA-MoE and LLaDA2 written out in float64, one token and one expert at a time, from published tensors by their published names.

Independent of `dllm`: numpy only. Slow on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Plain:
    """What the walk needs to know; the rest is in the shapes of the tensors."""

    layers: int
    heads: int
    kv_heads: int
    theta: float
    rotated: int
    eps: float
    chosen: int
    is_sigmoid: bool
    groups: int = 1
    groups_kept: int = 1
    scale: float = 1.0
    dense_layers: int = 0


def logits(plain: Plain, weights: Mapping[str, Array], ids: list[int], allowed: NDArray[np.bool_]) -> Array:
    """[T, V] for one row; `allowed` [T, T] is true where a query (first axis) sees a key."""
    fused = "model.word_embeddings.weight" in weights
    x = weights["model.word_embeddings.weight" if fused else "model.embed_tokens.weight"][ids]
    for index in range(plain.layers):
        name = f"model.layers.{index}"
        x = x + attention(plain, weights, name, norm(x, weights[f"{name}.input_layernorm.weight"], plain.eps), allowed)
        normed = norm(x, weights[f"{name}.post_attention_layernorm.weight"], plain.eps)
        if index < plain.dense_layers:
            x = x + np.stack([gated(weights, f"{name}.mlp", token) for token in normed])
        else:
            x = x + np.stack([experts(plain, weights, name, token) for token in normed])
    return norm(x, weights["model.norm.weight"], plain.eps) @ weights["lm_head.weight"].T


def norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def gated(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    gate = weights[f"{name}.gate_proj.weight"] @ x
    return weights[f"{name}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (weights[f"{name}.up_proj.weight"] @ x))


def experts(plain: Plain, weights: Mapping[str, Array], layer: str, x: Array) -> Array:
    z = weights[f"{layer}.mlp.gate.weight"] @ x
    score = 1 / (1 + np.exp(-z)) if plain.is_sigmoid else np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    biased = score + weights[f"{layer}.mlp.gate.expert_bias"] if plain.is_sigmoid else score
    width = len(z) // plain.groups
    groups = [range(first, first + width) for first in range(0, len(z), width)]
    groups.sort(key=lambda group: -sum(sorted((biased[e] for e in group), reverse=True)[:2]))
    candidates = [e for group in groups[: plain.groups_kept] for e in group]
    best = sorted(candidates, key=lambda e: -biased[e])[: plain.chosen]
    share = sum(score[e] for e in best) if plain.is_sigmoid else 1.0
    out = sum(score[e] / share * plain.scale * gated(weights, f"{layer}.mlp.experts.{e}", x) for e in best)
    for shared in (f"{layer}.mlp.shared_experts", f"{layer}.shared_expert"):
        if f"{shared}.up_proj.weight" in weights:
            out = out + gated(weights, shared, x)
    return np.asarray(out)


def attention(plain: Plain, weights: Mapping[str, Array], layer: str, x: Array, allowed: NDArray[np.bool_]) -> Array:
    if f"{layer}.attention.query_key_value.weight" in weights:
        fused = weights[f"{layer}.attention.query_key_value.weight"]
        size = fused.shape[0] // (plain.heads + 2 * plain.kv_heads)
        cuts = [plain.heads * size, (plain.heads + plain.kv_heads) * size]
        w_q, w_k, w_v = np.split(fused, cuts)
        q_norm = weights[f"{layer}.attention.query_layernorm.weight"]
        k_norm = weights[f"{layer}.attention.key_layernorm.weight"]
        w_o = weights[f"{layer}.attention.dense.weight"]
    else:
        w_q, w_k, w_v, w_o = (weights[f"{layer}.self_attn.{letter}_proj.weight"] for letter in "qkvo")
        q_norm, k_norm = (weights[f"{layer}.self_attn.{letter}_norm.weight"] for letter in "qk")
    length = len(x)
    q = (x @ w_q.T).reshape(length, plain.heads, -1)
    k = (x @ w_k.T).reshape(length, plain.kv_heads, -1)
    v = (x @ w_v.T).reshape(length, plain.kv_heads, -1)
    q, k = norm(q, q_norm, plain.eps), norm(k, k_norm, plain.eps)
    out = np.zeros_like(q)
    for i in range(length):
        for head in range(plain.heads):
            group = head // (plain.heads // plain.kv_heads)
            seen = [j for j in range(length) if allowed[i, j]]
            turned = turn(plain, q[i, head], i)
            raw = np.array([turned @ turn(plain, k[j, group], j) for j in seen]) / np.sqrt(q.shape[-1])
            p = np.exp(raw - raw.max())
            out[i, head] = (p / p.sum()) @ v[seen, group]
    return out.reshape(length, -1) @ w_o.T


def turn(plain: Plain, head: Array, position: int) -> Array:
    """Rotate the first `rotated` dimensions, pairs half of that apart."""
    out, half = head.copy(), plain.rotated // 2
    for pair in range(half):
        angle = position * plain.theta ** (-2 * pair / plain.rotated)
        a, b = head[pair], head[pair + half]
        out[pair] = a * np.cos(angle) - b * np.sin(angle)
        out[pair + half] = b * np.cos(angle) + a * np.sin(angle)
    return out
