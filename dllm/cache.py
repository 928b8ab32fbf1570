"""Prefix cache: exact keys and values of token sequences, in pages that conversations share.

A page holds the keys and values of up to `page_size` consecutive tokens in every layer. Pages form a tree: a node is a page, its tokens,
and the page before it, so equal prefixes are stored once whoever wrote them. A `CachedText` is one sequence in use: it shares the
tree's pages for as far as they match (a page that matches in part is copied, so any prefix is reused to the token) and owns the rest until
it publishes them. A page that somebody uses is never written by another and never evicted; unused leaves go in the order of
last use when room is needed.

For block-causal models a prefix is only exact at block borders; `grid` cuts matches there.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from dllm.errors import CacheFullError, ConfigError
from dllm.models.family import LayerStore, Network
from dllm.staging import staged


@dataclass(slots=True, eq=False)
class Node:
    """One page of the tree."""

    tokens: tuple[int, ...]
    page: int
    parent: Node | None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    uses: int = 0
    """Open texts that read this page."""
    owners: set[str | None] = field(default_factory=set)
    """Conversations that keep it; None for what all may share."""
    last_use: int = 0


@dataclass(slots=True, eq=False)
class CachedText:
    """One sequence of tokens whose keys and values are in pages. Made by `PrefixCache.open`; closed exactly once."""

    tokens: list[int]
    """Those that are stored."""
    nodes: list[Node]
    """Shared pages, from the beginning."""
    own: list[int]
    """Pages behind them that only this text writes."""
    is_closed: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def pages(self) -> list[int]:
        return [node.page for node in self.nodes] + self.own


class PrefixCache:
    """Pages in one pool of fixed size.

    Args:
        model: Says what a layer's keys and values look like.
        limit_bytes: Size of the pool; at least one page.
        page_size: Tokens a page holds; a multiple of `grid`.
        grid: Prefixes are cut at multiples of it.
        dtype: Of what is stored: None is the weights' type, or float8_e4m3fn. Rows that are written from and read into are of the same.
    """

    def __init__(
        self, model: Network, limit_bytes: int, page_size: int = 16, grid: int = 1, dtype: torch.dtype | None = None
    ) -> None:
        if page_size % grid:
            raise ConfigError("page_size", page_size, f"a multiple of the block, {grid}")
        self.page_bytes = sum(store.bytes for store in model.new_stores(1, page_size, dtype))
        pages = max(1, limit_bytes // self.page_bytes)
        self.page_size, self.grid = page_size, grid
        self.pool: list[LayerStore] = model.new_stores(pages, page_size, dtype)
        """Per layer [pages, G, page_size, D]."""
        self._free = list(range(pages - 1, -1, -1))
        self._roots: dict[tuple[int, ...], Node] = {}
        self._nodes: set[Node] = set()
        self._by_owner: dict[str | None, set[Node]] = {}
        self._tick = 0

    # --- figures ------------------------------------------------------------------------------------------------------

    @property
    def capacity_pages(self) -> int:
        return len(self.pool[0].keys)

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing; unused leaves of the tree can be had as well."""
        return len(self._free)

    @property
    def size_bytes(self) -> int:
        """What the pages in use hold."""
        return (self.capacity_pages - len(self._free)) * self.page_bytes

    @property
    def limit_bytes(self) -> int:
        return self.capacity_pages * self.page_bytes

    def stored(self) -> set[tuple[int, ...]]:
        """Every prefix that the tree holds, by its tokens. For tests and inspection."""
        return {tuple(_path_tokens(node)) for node in self._nodes}

    # --- a text's life ------------------------------------------------------------------------------------------------

    def open(self, tokens: Sequence[int], limit: int | None = None) -> CachedText:
        """A text that begins with as much of `tokens` as is stored, at most `limit` of them, cut at the grid.

        A page that matches in part is left out when there is no room for a copy of it.
        """
        most = len(tokens) if limit is None else min(limit, len(tokens))
        text = CachedText([], [], [])
        level = self._roots
        while text.length < most:
            node, common = self._best_child(level, tokens, text.length)
            common = min(common, most - text.length) // self.grid * self.grid
            if node is None or common == 0:
                break
            if common == len(node.tokens) == self.page_size:
                self._use(node)
                text.nodes.append(node)
                text.tokens += node.tokens
                level = node.children
                continue
            # It matches in part, or is a page that may still be filled up: continue on a copy of our own.
            self._use(node)
            try:
                self.reserve(text, text.length + common)
            except CacheFullError:
                break
            finally:
                node.uses -= 1
            for layer in self.pool:
                for part in layer.parts:
                    part[text.own[-1], :, :common] = part[node.page, :, :common]
            text.tokens += node.tokens[:common]
            break
        return text

    def reserve(self, text: CachedText, length: int) -> None:
        """Make sure that `text` has pages for `length` tokens.

        Raises:
            CacheFullError: If there is no room even after evicting what nobody uses. The text is as it was.
        """
        missing = -(-length // self.page_size) - len(text.nodes) - len(text.own)
        if missing <= 0:
            return
        if len(self._free) < missing:
            self._evict(missing - len(self._free))
        if len(self._free) < missing:
            raise CacheFullError(missing * self.page_size, len(self._free) * self.page_size)
        text.own += [self._free.pop() for _ in range(missing)]

    def write(self, text: CachedText, tokens: Sequence[int], row: Sequence[LayerStore], start: int) -> None:
        """Append tokens whose keys and values stand at slots [start, start + len(tokens)) of `row`, per layer [G, S, D].

        `start` is the text's present length. Pages must be reserved, and shared pages are full, so only own ones are written.
        """
        assert start == text.length and not text.is_closed
        stop = start + len(tokens)
        first, offset = divmod(start, self.page_size)
        if offset + len(tokens) <= self.page_size:
            page = text.own[first - len(text.nodes)]
            for layer, stored in zip(self.pool, row, strict=True):
                for target, source in zip(layer.parts, stored.parts, strict=True):
                    target[page, :, offset : offset + len(tokens)] = source[:, start:stop]
        else:
            slots = range(start, stop)
            held = [text.own[slot // self.page_size - len(text.nodes)] for slot in slots]
            pages, offsets = staged([held, [slot % self.page_size for slot in slots]], self.pool[0].keys.device)
            for layer, stored in zip(self.pool, row, strict=True):
                for target, source in zip(layer.parts, stored.parts, strict=True):
                    target[pages, :, offsets] = source[:, start:stop].transpose(0, 1)
        text.tokens += tokens

    def read(self, text: CachedText, row: Sequence[LayerStore]) -> None:
        """Copy the text's keys and values to slots [0, length) of `row`, per layer [G, S, D]."""
        length, count = text.length, len(text.pages)
        if not length:
            return
        pages = staged(text.pages, self.pool[0].keys.device)
        for layer, target in zip(self.pool, row, strict=True):
            for source, place in zip(layer.parts, target.parts, strict=True):
                together = source[pages].transpose(0, 1).reshape(len(place), count * self.page_size, *place.shape[2:])
                place[:, :length] = together[:, :length]

    def publish(self, text: CachedText, owner: str | None, length: int | None = None) -> list[Node]:
        """Put the text's first `length` tokens (default: all) into the tree for others to share.

        Returns:
            The nodes that the owner did not keep before.

        Full pages change hands: the text goes on reading them. A last page that is not full is copied, since the text may go on
        writing its own. Nothing is said when there is no room for that copy: then it is simply not shared.
        """
        most = text.length if length is None else min(length, text.length)
        most = most // self.grid * self.grid
        full = most // self.page_size
        while len(text.nodes) < full:
            at = len(text.nodes) * self.page_size
            parent = text.nodes[-1] if text.nodes else None
            self._adopt(text, parent, tuple(text.tokens[at : at + self.page_size]))
        claimed = [node for node in text.nodes[:full] if self._own(node, owner)]
        rest = tuple(text.tokens[full * self.page_size : most])
        if rest:
            leaf = self._leaf(text, text.nodes[full - 1] if full else None, rest, full)
            claimed += [leaf] if leaf is not None and self._own(leaf, owner) else []
        return claimed

    def close(self, text: CachedText) -> None:
        """Let go of a text: its own pages are free again, the shared ones stay for others."""
        if text.is_closed:
            return
        text.is_closed = True
        for node in reversed(text.nodes):
            node.uses -= 1
            self._prune(node)
        self._free += text.own
        text.own = []

    # --- what conversations keep --------------------------------------------------------------------------------------

    def withdraw(self, nodes: Iterable[Node], owner: str) -> None:
        """Drop the conversation's claim on pages that a publish told of: they go, unless somebody else reads, extends or keeps them."""
        self._disown(owner, [node for node in nodes if node in self._nodes])

    def keep_only(self, owner: str, text: CachedText) -> None:
        """Drop the conversation's claim on everything but the path of `text`."""
        path = set(self._path(text.tokens))
        self._disown(owner, [node for node in self._by_owner.get(owner, ()) if node not in path])

    def forget(self, owner: str) -> None:
        """Drop the conversation's claim on all its pages; those that nobody else keeps or reads are freed."""
        self._disown(owner, list(self._by_owner.get(owner, ())))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _best_child(
        self, level: dict[tuple[int, ...], Node], tokens: Sequence[int], at: int
    ) -> tuple[Node | None, int]:
        whole = level.get(tuple(tokens[at : at + self.page_size]))
        if whole is not None:
            return whole, len(whole.tokens)
        best, best_common = None, 0
        for node in level.values():
            common = common_prefix(node.tokens, tokens[at : at + self.page_size])
            if common > best_common:
                best, best_common = node, common
        return best, best_common

    def _path(self, tokens: Sequence[int]) -> list[Node]:
        """Nodes that hold these tokens from the beginning; the last may hold more."""
        path: list[Node] = []
        level = self._roots
        at = 0
        while at < len(tokens):
            node, common = self._best_child(level, tokens, at)
            if node is None or (common < len(node.tokens) and at + common < len(tokens)):
                break
            path.append(node)
            at += common
            if common < self.page_size:
                break
            level = node.children
        return path

    def _adopt(self, text: CachedText, parent: Node | None, tokens: tuple[int, ...]) -> None:
        """Turn the text's first own page into a node, or into a use of the node that is there already."""
        level = self._roots if parent is None else parent.children
        node = level.get(tokens)
        page = text.own.pop(0)
        if node is None:
            node = Node(tokens, page, parent)
            level[tokens] = node
            self._nodes.add(node)
        else:
            self._free.append(page)
        self._use(node)
        text.nodes.append(node)

    def _leaf(self, text: CachedText, parent: Node | None, tokens: tuple[int, ...], index: int) -> Node | None:
        """The node that begins with `tokens`, made from a copy of the text's page `index` where there is none; None without room."""
        level = self._roots if parent is None else parent.children
        for node in level.values():
            if node.tokens[: len(tokens)] == tokens:
                return node
        if not self._free and not self._evict(1):
            return None
        page = self._free.pop()
        source = text.pages[index]
        for layer in self.pool:
            for part in layer.parts:
                part[page, :, : len(tokens)] = part[source, :, : len(tokens)]
        node = Node(tokens, page, parent)
        level[tokens] = node
        self._nodes.add(node)
        self._touch(node)
        return node

    def _use(self, node: Node) -> None:
        node.uses += 1
        self._touch(node)

    def _touch(self, node: Node) -> None:
        self._tick += 1
        node.last_use = self._tick

    def _own(self, node: Node, owner: str | None) -> bool:
        """Let a conversation keep a page; False when it did already."""
        if owner in node.owners:
            return False
        node.owners.add(owner)
        self._by_owner.setdefault(owner, set()).add(node)
        return True

    def _disown(self, owner: str, nodes: Sequence[Node]) -> None:
        kept = self._by_owner.get(owner, set())
        for node in nodes:
            node.owners.discard(owner)
            kept.discard(node)
        if not kept:
            self._by_owner.pop(owner, None)
        for node in nodes:
            self._prune(node)

    def _prune(self, node: Node) -> None:
        """Free a page that nobody keeps, reads or extends, and those before it that were there for its sake alone."""
        at: Node | None = node
        while at is not None and at in self._nodes and not (at.owners or at.uses or at.children):
            parent = at.parent
            self._remove(at)
            at = parent

    def _evict(self, count: int) -> int:
        """Free up to `count` unused leaves, those that were used longest ago first; how many there were."""
        # No two nodes were used last at the same tick, so nodes themselves are never compared.
        leaves = [(node.last_use, node) for node in self._nodes if not node.uses and not node.children]
        heapq.heapify(leaves)
        freed = 0
        while leaves and freed < count:
            _, node = heapq.heappop(leaves)
            self._remove(node)
            freed += 1
            parent = node.parent
            if parent is not None and not parent.uses and not parent.children:
                heapq.heappush(leaves, (parent.last_use, parent))
        return freed

    def _remove(self, node: Node) -> None:
        level = self._roots if node.parent is None else node.parent.children
        del level[node.tokens]
        self._nodes.discard(node)
        for owner in node.owners:
            kept = self._by_owner.get(owner, set())
            kept.discard(node)
            if not kept:
                self._by_owner.pop(owner, None)
        self._free.append(node.page)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(left), len(right))
    if tuple(left[:limit]) == tuple(right[:limit]):
        return limit
    return next(index for index in range(limit) if left[index] != right[index])


def _path_tokens(node: Node) -> list[int]:
    parts: list[tuple[int, ...]] = []
    at: Node | None = node
    while at is not None:
        parts.append(at.tokens)
        at = at.parent
    return [token for part in reversed(parts) for token in part]
