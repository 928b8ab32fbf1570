"""Windows: what each draft brings to a shared forward, and the memory that the forward attends to.

Every attention mask of the families here is one integer per query: a token of a window sees the draft's slots [0, visible), its own
slot, and no others. Where kernels run, attention takes those integers as they are; elsewhere, and for what they cannot say (a slot in the
middle that is not seen), they become a mask. Slots below the window's start hold what earlier forwards stored; the window's own keys and values are written
from its start on and stay until the next forward overwrites them. Whether they are final is for the draft to know.

Dimensions: B drafts, T window tokens, S slots, G key/value heads, D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.models.family import LayerStore, Network, Sight
from dllm.staging import staged
from dllm_kernels.choose import runs_kernels

CAPACITY_STEP = 64
"""Slots are allocated in multiples of it: rows seldom need to grow, and shapes repeat."""

KEPT_CAPACITY = 2048
"""Slots per row that are kept while idle. More is made anew when it is needed: an allocation is nothing beside such a prefill."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive slots of one draft in one forward."""

    tokens: Sequence[int]
    start: int
    """Slot of the first token."""
    visible: Sequence[int]
    """Per token: it sees slots [0, visible) and itself."""
    blind: Sequence[int] | None = None
    """Per token a slot that it does not see, or -1 (shadow rows of WINO)."""
    positions: Sequence[int] | None = None
    """Logical positions where they differ from the slots."""

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def looks_ahead(self) -> bool:
        """Whether it sees what is stored behind it, which padding would overwrite: it must be the longest of its forward."""
        return max(self.visible) > self.start + self.length


@dataclass(frozen=True, slots=True)
class Arranged:
    """Windows side by side, padded to the longest."""

    ids: Tensor
    """[B, T] int64."""
    positions: Tensor
    mask: Tensor | Sight | None
    """[B, 1, T or 1, S] additive in the weights' dtype; or what each token sees, where attention is the kernel's."""
    start: int | Tensor
    lengths: tuple[int, ...]


class Workspace:
    """Contiguous keys and values of the drafts in the present company, one row each.

    A row is filled from the prefix cache when its draft joins; the other rows are not touched by who joins or leaves.

    `forward` runs the network where that is not the network's own call (`dllm.graphs`); it takes and gives the same. `dtype` is that of what is
    stored: None is the weights' type.
    """

    def __init__(
        self,
        model: Network,
        max_rows: int,
        forward: Callable[..., Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.max_rows = model, max_rows
        self._run: Callable[..., Tensor] = model if forward is None else forward
        self.stores: list[LayerStore] = []
        """Per layer [rows, G, S, D]."""
        self._keys: list[Hashable | None] = []
        probe = model.new_stores(1, 1)
        self._dtype, self._device = probe[0].keys.dtype, probe[0].keys.device
        self.dtype = dtype
        self._slot_bytes = sum(store.bytes for store in model.new_stores(1, 1, dtype))
        self._probe = probe[0].keys
        self._masks: tuple[object, Tensor | Sight | None] | None = None

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.stores[0].keys.shape[2] if self.stores else 0

    @property
    def size_bytes(self) -> int:
        return len(self._keys) * self.capacity * self._slot_bytes

    def has(self, key: Hashable) -> bool:
        return key in self._keys

    def row(self, key: Hashable) -> list[LayerStore]:
        """A draft's keys and values, per layer [G, S, D]."""
        index = self._keys.index(key)
        return [store.of(index) for store in self.stores]

    def drop(self, key: Hashable) -> None:
        """A draft left; its row is free. Nothing happens when it has none.

        Rows that one long text has made long are let go once nobody has any.
        """
        if key in self._keys:
            self._keys[self._keys.index(key)] = None
        if self.capacity > KEPT_CAPACITY and not any(key is not None for key in self._keys):
            self.stores, self._keys = [], []

    def place(
        self, keys: Sequence[Hashable], slots: int, fill: Callable[[Hashable, list[LayerStore]], None]
    ) -> list[int]:
        """Make `keys` the first rows, each with at least `slots` slots.

        Args:
            fill: Called for a draft that had no row, with its row.

        Returns:
            For each of the first rows, which of `keys` stands there.
        """
        count = len(keys)
        assert count <= self.max_rows
        self._grow(count, slots)
        wanted = set(keys)
        vacant = [row for row in range(count) if self._keys[row] not in wanted]
        for key in keys:
            at = self._keys.index(key) if key in self._keys else None
            if at is not None and at < count:
                continue
            row = vacant.pop(0)
            if at is not None:
                self._swap(row, at)
                continue
            if self._keys[row] is not None and None in self._keys[count:]:
                self._swap(row, self._keys.index(None, count))
            self._keys[row] = key
            fill(key, self.row(key))
        index = {key: number for number, key in enumerate(keys)}
        return [index[key] for key in self._keys[:count] if key is not None]

    def arrange(self, windows: Sequence[Window]) -> Arranged:
        """Lay windows out for one forward, in the order of their rows."""
        length = max(window.length for window in windows)
        filler = windows[0].tokens[0]
        ids = [[*window.tokens, *[filler] * (length - window.length)] for window in windows]
        if len(windows) == 1 and windows[0].positions is None:
            positions = torch.arange(windows[0].start, windows[0].start + length, device=self._device).unsqueeze(0)
        else:
            positions = staged(
                [
                    [*(w.positions or range(w.start, w.start + w.length)), *[w.start] * (length - w.length)]
                    for w in windows
                ],
                self._device,
            )
        start: int | Tensor = windows[0].start
        if len(windows) > 1:
            start = staged([window.start for window in windows], self._device)
        return Arranged(
            staged(ids, self._device),
            positions,
            self._mask(windows, length),
            start,
            tuple(window.length for window in windows),
        )

    def forward(self, arranged: Arranged, ids: Tensor | None = None, **extra: Any) -> Tensor:
        """Hidden states [B, T, E] of the first B rows; `ids` [B, T] replaces the arranged tokens."""
        tokens = arranged.ids if ids is None else ids
        stores = self.rows(len(arranged.lengths))
        return self._run(tokens, arranged.positions, arranged.mask, stores, arranged.start, **extra)

    def rows(self, count: int) -> list[LayerStore]:
        """Keys and values of the first rows, per layer [count, G, S, D]."""
        return [store.of(slice(count)) for store in self.stores]

    def _mask(self, windows: Sequence[Window], length: int) -> Tensor | Sight | None:
        is_counted = self.model.takes_sight and runs_kernels(self._probe) and all(map(_is_beginning, windows))
        key = (is_counted, length, tuple((window.start, tuple(window.visible), window.blind) for window in windows))
        if self._masks is None or self._masks[0] != key:
            build = self._build_sight if is_counted else self._build_mask
            self._masks = (key, build(windows, length))
        return self._masks[1]

    def _build_sight(self, windows: Sequence[Window], length: int) -> Sight:
        visible = [[*window.visible, *[window.visible[-1]] * (length - window.length)] for window in windows]
        return Sight(staged(visible, self._device, torch.int32), max(max(row) for row in visible))

    def _build_mask(self, windows: Sequence[Window], length: int) -> Tensor | None:
        last = max(window.start + length for window in windows)
        reach = max(max(window.visible) for window in windows)
        is_level = all(len(set(window.visible)) == 1 and window.blind is None for window in windows)
        if len(windows) == 1 and is_level and windows[0].visible[0] == last:
            return None
        slots = max(last, reach)
        slot = torch.arange(slots, device=self._device)
        if is_level:
            visible = staged([[window.visible[0]] for window in windows], self._device)
        else:
            visible = staged([[*w.visible, *[w.visible[-1]] * (length - w.length)] for w in windows], self._device)
        seen = slot < visible.unsqueeze(2)
        if not is_level:
            starts = staged([[window.start] for window in windows], self._device)
            own = starts + torch.arange(length, device=self._device)
            if any(window.blind is not None for window in windows):
                blind = staged(
                    [[*(w.blind or [-1] * w.length), *[-1] * (length - w.length)] for w in windows], self._device
                )
                seen &= slot != blind.unsqueeze(2)
            seen |= slot == own.unsqueeze(2)
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)

    def _grow(self, rows: int, slots: int) -> None:
        """Room for `rows` rows of `slots` slots; what is stored stays."""
        capacity = max(self.capacity, -(-slots // CAPACITY_STEP) * CAPACITY_STEP)
        have = len(self._keys)
        if rows <= have and capacity == self.capacity:
            return
        total = have if rows <= have else min(self.max_rows, max(rows, 2 * have))
        stores = self.model.new_stores(total, capacity, self.dtype)
        for new, old in zip(stores, self.stores, strict=False):
            for place, kept in zip(new.parts, old.parts, strict=True):
                place[:have, :, : kept.shape[2]] = kept
        self.stores = stores
        self._keys += [None] * (total - have)

    def _swap(self, one: int, other: int) -> None:
        for store in self.stores:
            for part in store.parts:
                part[[one, other]] = part[[other, one]]
        self._keys[one], self._keys[other] = self._keys[other], self._keys[one]


def _is_beginning(window: Window) -> bool:
    """Whether every token sees a beginning of the slots with itself in it, and all of it."""
    return window.blind is None and all(at < seen for at, seen in enumerate(window.visible, window.start))
