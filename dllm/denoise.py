"""The forwards: a prompt into the cache, and a batch of canvases one step on.

Dimensions: B drafts, W canvas positions, P prefix tokens, G key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.cache import PrefixEntry
from dllm.models.family import LayerStore
from dllm.models.llama import LlamaDiffusion

PREFILL_CHUNK = 512
"""Tokens per prefill forward: bounds the [T, P + T] mask of a long prompt."""


def prefill(
    model: LlamaDiffusion, tokens: Sequence[int], cached: PrefixEntry | None, cached_length: int
) -> tuple[LayerStore, ...]:
    """Keys and values of `tokens`, of which the first `cached_length` are copied from `cached`.

    Returns:
        Per layer [1, G, len(tokens), D], owned by the caller.
    """
    device = model.embed_tokens.weight.device
    stores = model.new_stores(1, len(tokens))
    if cached is not None:
        for store, source in zip(stores, cached.stores, strict=True):
            store.keys[:, :, :cached_length] = source.keys[:, :, :cached_length]
            store.values[:, :, :cached_length] = source.values[:, :, :cached_length]
    for start in range(cached_length, len(tokens), PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, len(tokens))
        positions = torch.arange(start, stop, device=device)
        mask = torch.arange(stop, device=device) <= positions.unsqueeze(1)
        ids = torch.tensor([tokens[start:stop]], device=device)
        model(ids, positions.unsqueeze(0), mask.view(1, 1, stop - start, stop), stores, start)
    return tuple(stores)


class DenoiseBatch:
    """Canvases that share forwards: their prefixes side by side in one padded buffer, built once for as long as the company stays.

    The canvas's own keys and values are written behind the longest prefix and overwritten by the next step.
    """

    def __init__(
        self,
        model: LlamaDiffusion,
        prefixes: Sequence[Sequence[LayerStore]],
        lengths: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        weight = model.embed_tokens.weight
        self._model, self._widths = model, tuple(widths)
        self._start, self._width = max(lengths), max(widths)
        total = self._start + self._width
        rows = len(prefixes)
        if rows == 1:
            self._mask: Tensor | None = None
        else:
            key = torch.arange(total, device=weight.device)
            prefix_length = torch.tensor(lengths, device=weight.device).unsqueeze(1)
            canvas_end = self._start + torch.tensor(widths, device=weight.device).unsqueeze(1)
            seen = (key < prefix_length) | ((key >= self._start) & (key < canvas_end))
            self._mask = torch.zeros(seen.shape, dtype=weight.dtype, device=weight.device)
            self._mask = self._mask.masked_fill_(~seen, float("-inf")).view(rows, 1, 1, total)
        self._stores = model.new_stores(rows, total)
        for layer, store in enumerate(self._stores):
            for row, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
                store.keys[row, :, :length] = prefix[layer].keys[0]
                store.values[row, :, :length] = prefix[layer].values[0]
                # Masked keys still meet the softmax as 0 * value: what is there must be a number.
                store.keys[row, :, length : self._start] = 0
                store.values[row, :, length : self._start] = 0
        offsets = torch.arange(self._width, device=weight.device)
        self._positions = torch.tensor(lengths, device=weight.device).unsqueeze(1) + offsets

    def logits(self, canvases: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Tensor:
        """One step.

        Args:
            canvases: Token ids per draft, masks included.
            wanted: Positions per draft whose logits are asked for.

        Returns:
            [N, V] float32, the wanted rows in order.
        """
        device = self._positions.device
        filler = canvases[0][0]
        ids = torch.tensor([[*canvas, *[filler] * (self._width - len(canvas))] for canvas in canvases], device=device)
        hidden = self._model(ids, self._positions, self._mask, self._stores, self._start)
        rows = torch.tensor(
            [row * self._width + at for row, positions in enumerate(wanted) for at in positions], device=device
        )
        return self._model.logits(hidden.flatten(0, 1)[rows]).float()
