"""Where pins go, decided on the device: the answers of `dllm.pins.consider_pins` and `dllm.sampling.place_spans` without a word to the host.

For canvases that are open as a whole, so that the model has said something of every position a pin may take. One draft at a time: few have pins
without a place, and none for long.

Dimensions: n rows of logits, V vocabulary, W canvas positions, P pins of the draft, L tokens of its longest, Q orders in which they may stand.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm import extent
from dllm.draft import Draft, Live
from dllm.extent import TokenClasses
from dllm.pins import PIN_CONFIDENCE, openings_of
from dllm.sampling import MOST_PERMUTED
from dllm.staging import counting, staged

_NOWHERE = float("-inf")
_IMPOSSIBLE = -1e300
"""The least that a place is worth where there is room: what the rules forbid the model to write there may be fixed all the same."""


def is_open(draft: Draft, live: Live) -> bool:
    """Whether the next step may decide every position that is not decided: then its pins find their places on the device, if they are few."""
    is_few = len(draft.spec.pins) <= MOST_PERMUTED
    return is_few and live.open_hi == draft.canvas.width and all(at >= live.open_lo for at in draft.canvas.masked())


@dataclass(frozen=True, slots=True)
class Cells:
    """One canvas, [W] each."""

    tokens: Tensor
    confidence: Tensor
    decided: Tensor
    pinned: Tensor


@dataclass(frozen=True, slots=True)
class Placed:
    """What a step makes of a draft's pins."""

    cells: Cells
    allowed: Tensor
    """[W] bool: what may be decided beside them."""
    unplaced: Tensor
    """[P] bool."""
    count: Tensor
    """Positions that were pinned."""
    fails: Tensor
    """Bool: there is no room for them."""


class Placing:
    """A draft's pins as columns on the device."""

    def __init__(self, draft: Draft, classes: TokenClasses, device: torch.device) -> None:
        spec, table = draft.spec, classes.table
        lengths = [len(pin) for pin in spec.pins]
        longest, count = max(lengths), len(spec.pins)
        openings = sorted(openings_of(spec.pins, table))
        openings += [openings[0]] * (-len(openings) % 8)
        orders = _orders(count)
        stays = [_keeps_order(order, lengths) for order in orders]
        self._classes, self._sizes = classes, (count, longest, len(openings), len(orders))
        unplaced = [index in draft.unplaced for index in range(count)]
        self._numbers = staged(
            [
                *(token for pin in spec.pins for token in (*pin, *[0] * (longest - len(pin)))),
                *lengths,
                *openings,
                *stays,
                *unplaced,
                -1 if spec.unpinned is None else spec.unpinned,
                draft.phase == "first",
                min(draft.canvas.width, spec.width),
                draft.canvas.width,
            ],
            device,
            torch.int64,
        )
        self._orders = staged(orders, device, torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """What the host decides by."""
        return self._sizes

    @property
    def columns(self) -> list[Tensor]:
        return [self._numbers]

    def copy(self) -> Placing:
        own = copy.copy(self)
        own._numbers = self._numbers.clone()
        return own

    def start(self) -> Tensor:
        """[P] bool: pins that have no place when the visit begins."""
        return self._parts()[4].bool()

    def _parts(self) -> list[Tensor]:
        count, longest, openings, orders = self._sizes
        return list(torch.split(self._numbers, [count * longest, count, openings, orders, count, 4]))

    def place(
        self, logits: Tensor, rows: Tensor, cells: Cells, open_: Tensor, unplaced: Tensor, steps_left: Tensor
    ) -> Placed:
        """Fix pins that have a clear place.

        Args:
            logits: [n, V] of positions `rows` [n], which every undecided one is among.
            cells: With the guesses of this step.
            open_: [W] bool, positions that may be decided.
            unplaced: [P] bool.
            steps_left: Steps that the plan has left, this one included.
        """
        count, longest = self._sizes[:2]
        tokens, lengths, openings, stays, _, rest = self._parts()
        tokens = tokens.view(count, longest)
        sign, is_first, reach, width = rest.unbind()
        size, device = len(cells.tokens), logits.device
        at = counting(size, device)
        masked = open_ & ~cells.decided
        classes = self._classes.of(cells.tokens.unsqueeze(0))
        is_end = self._classes.is_end(cells.tokens)
        clause = extent.first_clause_end(classes, width.unsqueeze(0))[0]
        stop = torch.where(is_first > 0, clause, extent.reply_end(classes, width.unsqueeze(0))[0])
        # A reply that begins with the sign of what holds no pins is freed of them, once it is known that it does.
        is_freed = (cells.tokens[0] == sign) & (sign >= 0)
        waits_for_sign = is_freed & masked[0] & (steps_left > 1)

        scores = self._scores(logits, rows, tokens, lengths, masked & (at < reach - 1))
        starts, fits = _arranged(scores, lengths, unplaced, self._orders, stays.bool())
        own = torch.where(unplaced, starts, size)
        first = own.amin()
        best = torch.where(own == first, counting(count, device), count).amin().clamp_max(count - 1)
        mean = torch.exp(scores.gather(1, starts.unsqueeze(1)).squeeze(1) / lengths)
        sure = mean.gather(0, best.unsqueeze(0)).squeeze(0)
        is_opening = (cells.tokens.unsqueeze(1) == openings).any(dim=1) | is_end
        before = masked & (at < first) & ~is_opening
        due = (steps_left <= 2) & (first < stop)
        surest = torch.where(before & (at < stop), cells.confidence, 0.0).amax()
        waits = before.any() & (sure <= surest.double().clamp_max(PIN_CONFIDENCE)) & ~due
        fixed = unplaced & (due | (own == first)) & ((own == first) | (own < stop)) & fits & ~waits & ~is_freed

        left = unplaced & ~fixed & ~is_freed
        after = self._fix(cells, tokens, lengths, torch.where(fixed, own, size))
        masked_after = open_ & ~after.decided
        is_last = (steps_left <= 1) & ~left.any()
        joins = self._classes.is_joining(after.tokens) & self._behind_pin(after)
        beside = masked_after & ((at < first - 1) | is_last) & ~is_opening & ~joins
        allowed = torch.where(waits, before, beside)
        allowed = torch.where(is_freed, masked & ((at == 0) | ~waits_for_sign), allowed) | ~unplaced.any()
        return Placed(
            after,
            allowed,
            torch.where(waits_for_sign, unplaced, left),
            torch.where(fixed, lengths, 0).sum(),
            unplaced.any() & ~is_freed & ~fits,
        )

    def _scores(self, logits: Tensor, rows: Tensor, tokens: Tensor, lengths: Tensor, free: Tensor) -> Tensor:
        """[P, W] float64: the sum of log-probabilities of a pin's tokens by where it starts, -inf where it has no room."""
        (count, longest), size = tokens.shape, len(free)
        found = torch.log_softmax(logits.float(), dim=-1)[:, tokens.flatten()]
        every = found.new_zeros(size, count * longest).index_copy(0, rows, found).view(size, count, longest)
        at = counting(size, logits.device) + counting(longest, logits.device).unsqueeze(1)
        own = pad(every.permute(1, 2, 0), (0, longest)).gather(2, at.expand(count, -1, -1))
        # [P, L, 1]: a pin has that many tokens.
        counts = (counting(longest, logits.device) < lengths.unsqueeze(1)).unsqueeze(2)
        total = torch.where(counts, own, 0.0).double().sum(dim=1)
        has_room = (pad(free, (0, longest))[at] | ~counts).all(dim=1)
        return torch.where(has_room, total.clamp_min(_IMPOSSIBLE), _NOWHERE)

    def _fix(self, cells: Cells, tokens: Tensor, lengths: Tensor, starts: Tensor) -> Cells:
        """Write pins; those that start behind the canvas are left. A token decided before, which would now continue a pin's last word, is decided
        anew."""
        longest = tokens.shape[1]
        size, device = len(cells.tokens), tokens.device
        inside = counting(longest, device)
        places = torch.where(
            (inside < lengths.unsqueeze(1)) & (starts < size).unsqueeze(1), starts.unsqueeze(1) + inside, size
        ).flatten()
        written = pad(cells.tokens, (0, 1)).scatter(0, places, tokens.flatten())[:size]
        fixed = torch.zeros(size + 1, dtype=torch.bool, device=device).index_fill(0, places, True)[:size]
        behind = torch.zeros(size + 1, dtype=torch.bool, device=device)
        behind = behind.index_fill(0, torch.where(starts < size, starts + lengths, size), True)[:size]
        after = Cells(
            torch.where(fixed, written, cells.tokens),
            torch.where(fixed, 1.0, cells.confidence),
            cells.decided | fixed,
            cells.pinned | fixed,
        )
        again = behind & cells.decided & ~after.pinned & self._classes.is_joining(after.tokens)
        again &= self._behind_pin(after)
        return Cells(after.tokens, after.confidence, after.decided & ~again, after.pinned)

    def _behind_pin(self, cells: Cells) -> Tensor:
        """[W] bool: right behind a fixed cell that ends with a letter or a figure."""
        return pad((cells.pinned & self._classes.is_word_end(cells.tokens))[:-1], (1, 0))


def _orders(count: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(count)))


def _keeps_order(order: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether spans of one length stand as they were given."""
    return all(
        order.index(one) < order.index(other)
        for one, other in itertools.combinations(range(len(lengths)), 2)
        if lengths[one] == lengths[other]
    )


def _arranged(
    scores: Tensor, lengths: Tensor, unplaced: Tensor, orders: Tensor, stays: Tensor
) -> tuple[Tensor, Tensor]:
    """Starts [P] of pins with the best total over all orders, ties to the first order and to the left; and whether they fit. Pins that have
    their place take no room."""
    count, size = scores.shape
    ends = counting(size + 1, scores.device).expand(len(orders), -1)
    best = torch.zeros(ends.shape, dtype=torch.float64, device=scores.device)
    lengths = torch.where(unplaced, lengths, 0)
    scores = pad(torch.where(unplaced.unsqueeze(1), scores, 0.0), (0, 1))
    candidates: list[Tensor] = []
    reached: list[Tensor] = []
    for step in range(count):
        pin = orders[:, step]
        start = ends - lengths[pin].unsqueeze(1)
        value = best.gather(1, start.clamp_min(0)) + scores[pin].gather(1, start.clamp_min(0))
        # The sum of two that are impossible is one.
        value = torch.where(value > _NOWHERE, value.clamp_min(_IMPOSSIBLE), _NOWHERE)
        candidates.append(torch.where(start >= 0, value, _NOWHERE))
        best = candidates[-1].cummax(dim=1).values
        reached.append(best)
    total = torch.where(stays, best[:, -1], _NOWHERE)
    chosen = torch.where(total == total.amax(), counting(len(orders), scores.device), len(orders)).amin().unsqueeze(0)
    end = torch.full_like(chosen, size)
    starts = torch.zeros(count, dtype=torch.int64, device=scores.device)
    for step in reversed(range(count)):
        own, value = candidates[step][chosen], reached[step][chosen].gather(1, end.unsqueeze(1))
        end = torch.where(own == value, ends[:1], size).amin(dim=1)
        pin = orders[chosen, step]
        end = (end - lengths[pin]).clamp_min(0)
        starts = starts.scatter(0, pin, end)
    return starts.clamp_max(size - 1), total.amax() > _NOWHERE
