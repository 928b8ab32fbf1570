"""How probable continuations of a prompt are, many at once: a tree of tokens in one forward of the causal mode, on an engine's prefix cache.

Continuations that begin alike share their beginnings, so that all spans of a sentence cost about as many tokens as it has.

Dimensions: N nodes of the tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm.engine import Engine
from dllm.errors import ConfigError, PromptTooLongError

ROOT = -1
"""The prompt's end."""


@dataclass(slots=True)
class Tree:
    """Tokens, each behind another or behind the prompt."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, tokens: Sequence[int], behind: int = ROOT) -> list[int]:
        """The nodes of a run of tokens; those that are there already are used again."""
        path = []
        for token in tokens:
            key = (behind, token)
            if key not in self._known:
                self._known[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(behind)
            behind = self._known[key]
            path.append(behind)
        return path

    def child(self, behind: int, token: int) -> int | None:
        """The node of a token behind another, if there is one."""
        return self._known.get((behind, token))


class Branches:
    """What the model expects behind the prompt and behind each node of a tree."""

    def __init__(self, tree: Tree, chances: Tensor) -> None:
        self._tree, self._chances = tree, chances

    def nats(self, tokens: Sequence[int], behind: int = ROOT) -> float:
        """Log-probability of a run of tokens behind a node; minus infinity where the tree does not hold all but its last."""
        return self.closed(tokens, behind)[0]

    def closed(self, tokens: Sequence[int], behind: int = ROOT, closing: Sequence[int] = ()) -> tuple[float, float]:
        """The same, and the log-probability that one of `closing` follows the run, which the tree then holds as a whole."""
        total = 0.0
        for at, token in enumerate(tokens):
            total += float(self._chances[behind + 1, token])
            following = self._tree.child(behind, token)
            if following is None:
                return (total, 0.0) if at + 1 == len(tokens) and not closing else (-torch.inf, 0.0)
            behind = following
        return total, float(self._chances[behind + 1, list(closing)].logsumexp(0)) if closing else 0.0


@torch.inference_mode()
def grow(engine: Engine, prompt: Sequence[int], tree: Tree) -> Branches:
    """One forward over the tree and what the cache does not hold of the prompt. For the engine's thread; the cache is left as it was.

    Raises:
        ConfigError: If the model has no causal mode, or the prompt is empty.
        PromptTooLongError: If the prompt and the deepest branch exceed the model's positions.
    """
    network, spec, size = engine.model, engine.model.spec, len(prompt)
    if not spec.causal_verify or not size:
        raise ConfigError("causal", spec.family, "a family with a causal mode, and a prompt")
    depths: list[int] = []
    for parent in tree.parents:
        depths.append(0 if parent == ROOT else depths[parent] + 1)
    longest = size + max(depths, default=-1) + 1
    if longest > spec.max_position_embeddings:
        raise PromptTooLongError(longest, spec.max_position_embeddings)
    total = size + len(tree.tokens)
    stores = network.new_stores(1, total, engine.cache_dtype)
    text = engine.cache.open(prompt, size - 1)
    try:
        known = text.length
        engine.cache.read(text, [store.of(0) for store in stores])
    finally:
        engine.cache.close(text)
    device = stores[0].keys.device
    seen = torch.zeros(total, total, dtype=torch.bool)
    seen[:size, :size] = torch.ones(size, size, dtype=torch.bool).tril()
    for node, parent in enumerate(tree.parents):
        at = size + node
        if parent == ROOT:
            seen[at, :size] = True
        else:
            seen[at] = seen[size + parent]
        seen[at, at] = True
    hidden = network(
        torch.tensor([[*prompt[known:], *tree.tokens]], device=device),
        torch.tensor([[*range(known, size), *(size + depth for depth in depths)]], device=device),
        seen[known:].view(1, 1, total - known, total).to(device),
        stores,
        known,
    )
    logits = network.logits(hidden[0, size - 1 - known :]).float()
    if spec.special.mask is not None:
        logits[:, spec.special.mask] = -torch.inf
    return Branches(tree, torch.log_softmax(logits, dim=-1))
