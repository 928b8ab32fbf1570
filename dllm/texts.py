"""Texts of finished tokens: their keys and values are computed, kept in the prefix cache, shared and let go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm.cache import CachedText, PrefixCache
from dllm.canvas import TokenTable
from dllm.draft import Draft
from dllm.errors import CacheFullError, ConfigError, PromptTooLongError
from dllm.masks import visible
from dllm.models.family import Network
from dllm.window import Window, Workspace

PREFILL_CHUNK = 512
"""Prompt tokens per round: a long prompt stalls the drafts beside it for one such forward at most."""


class Texts:
    """The prefix cache of one model, filled.

    Args:
        workspace: Where forwards work; the rows of drafts are named by their numbers. What it stores is of the cache's type.
        cache_bytes: Size of the prefix cache.

    Raises:
        ConfigError: If that type is asked for and the model keeps no prefix.
    """

    def __init__(self, model: Network, table: TokenTable, workspace: Workspace, cache_bytes: int) -> None:
        self.spec, self.workspace, self._table = model.spec, workspace, table
        self.is_cached = self.spec.mask_kind != "full"
        """Whether the model stores anything from one draft to the next."""
        if workspace.dtype is not None and not self.is_cached:
            raise ConfigError(
                "cache_dtype",
                workspace.dtype,
                f"None: every {self.spec.family} token sees all others, so no prefix is kept",
            )
        self.chunk = PREFILL_CHUNK
        """Tokens that one forward stores at most."""
        grid = self.spec.block if self.spec.mask_kind == "block_causal" else 1
        page = max(16, grid)
        size = page if page % grid == 0 else grid
        self.cache = PrefixCache(model, cache_bytes if self.is_cached else 0, size, grid, workspace.dtype)

    @property
    def room(self) -> int | None:
        """Tokens that the cache holds in all; None where nothing is stored."""
        return self.cache.capacity_pages * self.cache.page_size if self.is_cached else None

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        """Put the keys and values of a prompt's beginning into the cache; how many tokens that took.

        Nothing happens for full-mask models, or when there is no room.
        """
        if len(tokens) > self.spec.max_position_embeddings:
            raise PromptTooLongError(len(tokens), self.spec.max_position_embeddings)
        wanted = list(tokens[: len(tokens) // self.cache.grid * self.cache.grid])
        if not self.is_cached or not wanted:
            return 0
        text = self.cache.open(wanted)
        cached, key = text.length, object()
        try:
            self.cache.reserve(text, len(wanted))
            with torch.inference_mode():
                chunk = max(self.chunk // self.cache.grid, 1) * self.cache.grid
                while text.length < len(wanted):
                    self.encode([(key, text, wanted[text.length : text.length + chunk])])
            self.share_system_turn(text)
            self.cache.publish(text, conversation)
            self.cache.keep_only(conversation, text)
        except CacheFullError:
            return 0
        finally:
            self.workspace.drop(key)
            self.cache.close(text)
        return len(wanted) - cached

    def encode(self, jobs: Sequence[tuple[Hashable, CachedText, Sequence[int]]]) -> Tensor:
        """Run finished tokens and append their keys and values to their texts; hidden states [B, T, E] in the order of jobs."""
        longest = max(len(tokens) for _, _, tokens in jobs)
        keys = [key for key, _, _ in jobs]
        texts = {key: text for key, text, _ in jobs}
        slots = max(text.length for text in texts.values()) + longest
        order = self.workspace.place(keys, slots, lambda key, row: self.cache.read(texts[key], row))
        windows = [
            Window(
                tokens,
                text.length,
                visible(self.spec, text.length, len(tokens), total=text.length + len(tokens)),
            )
            for _, text, tokens in (jobs[index] for index in order)
        ]
        extra: dict[str, Any] = {"causal": True} if self.spec.mask_kind == "encoder_decoder" else {}
        hidden = self.workspace.forward(self.workspace.arrange(windows), **extra)
        for key, text, tokens in jobs:
            self.cache.write(text, tokens, self.workspace.row(key), text.length)
        back = [order.index(index) for index in range(len(jobs))]
        return hidden if back == sorted(back) else hidden[back]

    def share_system_turn(self, text: CachedText) -> None:
        """The system turn belongs to everybody."""
        dialogue, end = self.spec.dialogue, self._table.end
        if dialogue is not None and text.tokens and text.tokens[0] == dialogue.system and end in text.tokens:
            self.cache.publish(text, None, text.tokens.index(end) + 1)

    def close(self, draft: Draft, *, keep: bool) -> None:
        """Let go of a draft's memory; with `keep` its conversation goes on from what is stored, else nothing of it stays."""
        self.workspace.drop(draft.number)
        text, draft.text = draft.text, None
        if text is None or not self.is_cached:
            return
        if keep:
            self.cache.publish(text, draft.spec.conversation)
            self.cache.keep_only(draft.spec.conversation, text)
        self.cache.close(text)
        if not keep:
            self.cache.withdraw(draft.created, draft.spec.conversation)
        draft.created = []


def text_of(draft: Draft) -> CachedText:
    """The stored text of a draft that has begun."""
    assert draft.text is not None
    return draft.text
