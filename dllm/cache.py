"""Prefix cache: exact keys and values of token sequences that prompts begin with.

Entries are immutable. A lookup gives the entry that shares the longest prefix with a prompt, whoever made it: a conversation's own last
prompt, or another conversation's with the same system turn. Attention over finished text is causal, so a prefix may be cut anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.models.family import LayerStore


@dataclass(frozen=True, slots=True, eq=False)
class PrefixEntry:
    """Keys and values of `tokens`, per layer, each store [1, G, len(tokens), D]."""

    tokens: tuple[int, ...]
    stores: tuple[LayerStore, ...]
    owner: str | None
    """The conversation it belongs to; None for one shared by all."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for store in self.stores for tensor in store)


class PrefixCache:
    """Least recently used entries go when the limit is passed."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[int, PrefixEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def find(self, tokens: Sequence[int]) -> tuple[PrefixEntry | None, int]:
        """The entry with the longest common prefix, and that prefix's length; (None, 0) when nothing matches."""
        best: PrefixEntry | None = None
        best_length = 0
        for entry in self._entries.values():
            length = common_prefix(entry.tokens, tokens)
            if length > best_length:
                best, best_length = entry, length
        if best is not None:
            self._entries.move_to_end(id(best))
        return best, best_length

    def add(self, entry: PrefixEntry) -> bool:
        """Keep an entry; False when one that covers it is there already, or it is larger than the whole cache."""
        for other in self._entries.values():
            if other.owner == entry.owner and common_prefix(other.tokens, entry.tokens) == len(entry.tokens):
                return False
        if entry.size_bytes > self.limit_bytes:
            return False
        self._entries[id(entry)] = entry
        while self.size_bytes > self.limit_bytes:
            self._entries.popitem(last=False)
        return True

    def remove(self, entry: PrefixEntry) -> None:
        """Drop one entry; nothing happens when it is gone already."""
        self._entries.pop(id(entry), None)

    def supersede(self, entry: PrefixEntry) -> None:
        """Drop its owner's other entries."""
        for other in [other for other in self._entries.values() if other.owner == entry.owner and other is not entry]:
            self.remove(other)

    def forget(self, owner: str) -> None:
        """Drop all entries of a conversation."""
        for entry in [entry for entry in self._entries.values() if entry.owner == owner]:
            self.remove(entry)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(left), len(right))
    if tuple(left[:limit]) == tuple(right[:limit]):
        return limit
    return next(index for index in range(limit) if left[index] != right[index])
