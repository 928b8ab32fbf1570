"""Grammars that a canvas must obey, whatever the order in which its positions are decided.

Left-to-right libraries (llguidance, xgrammar) answer "which token may come next" and need every earlier token; a canvas has holes. So
the grammar is taken as a deterministic automaton, and each step solves the whole window by dynamic programming: the most probable
filling on which every decided token lies (DINGO, arXiv:2505.23061). All guesses of a step come from that one filling, so any subset of
them may be decided, in any order, and the window stays fillable.

Dimensions: W positions of the window, V tokens, C classes of tokens that the automaton cannot tell apart, S states. A JSON schema sorts
152 000 tokens into a few hundred classes, so one maximum per class is all that is read from the logits; the rest is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.automata import UNREACHABLE, Automaton, byte_classes, distances, spans
from dllm.canvas import TokenTable
from dllm.errors import ConfigError, ConstraintError

_ROW = 128
"""Tokens whose maximum is taken together: most classes have fewer, the few large ones are cut into rows of so many."""


class Constraint(Protocol):
    """A compiled grammar over one codec's tokens. Immutable; one serves many drafts."""

    def complete(
        self, prefix: Sequence[int], log_probabilities: Tensor, decided: Sequence[int | None], ahead: int
    ) -> tuple[list[int], list[float]]:
        """The most probable way to fill a window so that the whole reply can still obey.

        Args:
            prefix: Reply tokens before the window, all final.
            log_probabilities: [W, V] float32, of the window's positions; -inf forbids a token.
            decided: W entries: a token that may not change, or None.
            ahead: How many free positions follow the window.

        Returns:
            W tokens (equal to `decided` where that is given; ends of reply behind the grammar's end), and the probability of each, 1 for
            decided ones. Equally probable fillings: the one with the lowest token at the leftmost difference.

        Raises:
            ConstraintError: If nothing obeys.
        """
        ...


class Speller(Protocol):
    """What a grammar needs of a codec; every `dllm.codec.Codec` is one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_table(self) -> TokenTable: ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for special tokens."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Lexicon:
    """What the tokens of one codec spell. Reading 152 000 of them takes a second, so make it once and compile many grammars with it."""

    vocab_size: int
    ends: tuple[int, ...]
    tokens: NDArray[np.int64] = field(repr=False)
    """[T]: the tokens that spell something, ascending."""
    lengths: NDArray[np.int64] = field(repr=False)
    """[T], in bytes."""
    spelling: NDArray[np.uint8] = field(repr=False)
    """[T, L]: their bytes, zeros behind."""

    @classmethod
    def read(cls, codec: Speller, spelled: Mapping[int, bytes] | None = None) -> Lexicon:
        """Read a codec's vocabulary.

        Args:
            codec: Its special tokens never become part of a constrained reply.
            spelled: Special tokens that a grammar may use all the same, and the bytes they count as (`{151657: b"<tool_call>"}`).
        """
        table = codec.token_table
        closing = tuple(sorted({table.end, *table.other_ends}))
        never = {*closing, table.mask, *table.forbidden}
        texts = {token: codec.token_bytes(token) for token in range(codec.vocab_size) if token not in never}
        texts = {token: text for token, text in (texts | dict(spelled or {})).items() if text}
        ordered = sorted(texts)
        lengths = np.array([len(texts[token]) for token in ordered], np.int64)
        width = int(lengths.max(initial=1))
        packed = b"".join(texts[token].ljust(width, b"\0") for token in ordered)
        spelling = np.frombuffer(packed, np.uint8).reshape(len(ordered), width)
        size = max(codec.vocab_size, 1 + max([*ordered, *closing]))
        return cls(size, closing, np.array(ordered, np.int64), lengths, spelling)


class GrammarConstraint:
    """A `Constraint` from an automaton over bytes.

    Raises:
        ConfigError: If no sequence of the lexicon's tokens spells a text that the automaton accepts.
    """

    def __init__(self, automaton: Automaton, lexicon: Lexicon) -> None:
        classes, after = _spread(automaton, lexicon)
        classes, after, final, least = _trim(classes, after, automaton.final)
        count, states = after.shape
        # One more class, the ends of a reply; one more state, behind them.
        after = np.concatenate([after, np.full((1, states), -1, np.int32)])
        after = np.concatenate([after, np.full((count + 1, 1), -1, np.int32)], axis=1)
        after[count, :states][final] = states
        after[count, states] = states
        of_token = np.full(lexicon.vocab_size, count + 1, np.int64)
        of_token[lexicon.tokens] = np.where(classes < 0, count + 1, classes)
        of_token[list(lexicon.ends)] = count
        self._class_of_token = of_token
        self._classes = count + 1
        self._after = after
        self._least = np.append(least, 0)
        self._final = np.append(final, True)
        self._edges = _Edges.of(after)
        self._rows, self._row_class = _rows_of_classes(of_token, count + 1)
        self._row_start = np.unique(self._row_class, return_index=True)[1]
        self._on_device: dict[torch.device, Tensor] = {}

    def shortest(self, prefix: Sequence[int] = ()) -> int:
        """The fewest tokens that make a whole reply of `prefix`, without an end of reply.

        Raises:
            ConstraintError: If the prefix cannot be continued.
        """
        return int(self._least[self._state_behind(prefix)])

    def accepts(self, reply: Sequence[int]) -> bool:
        """Whether these tokens, with or without ends of reply behind them, are a whole reply."""
        try:
            return bool(self._final[self._state_behind(reply)])
        except ConstraintError:
            return False

    def complete(
        self, prefix: Sequence[int], log_probabilities: Tensor, decided: Sequence[int | None], ahead: int
    ) -> tuple[list[int], list[float]]:
        """See `Constraint.complete`. On a GPU two small tensors are read back, [free positions, C], and nothing else.

        A whole reply may fill the window and what is ahead to the last position: it needs no end of reply.
        """
        start = self._state_behind(prefix)
        best = np.full((len(decided), self._classes), -np.inf)
        token = np.zeros(best.shape, np.int64)
        free = [at for at, fixed in enumerate(decided) if fixed is None]
        if free:
            best[free], token[free] = self._best_of_each_class(log_probabilities[free])
        for at, fixed in enumerate(decided):
            if fixed is not None and (kind := self._class(fixed)) < self._classes:
                best[at, kind], token[at, kind] = 0.0, fixed
        of_set = self._edges.best_of_each_set(best)
        value = self._edges.values_to_come(of_set, self._least <= ahead)
        if value[0, start] == -np.inf:
            raise self._explain(start, len(prefix), best, decided, ahead)
        tokens, probabilities = [], []
        state = start
        for at in range(len(decided)):
            kinds = self._edges.best_classes(state, of_set[at], value[at + 1], best[at])
            kind = int(kinds[token[at, kinds].argmin()])
            tokens.append(int(token[at, kind]))
            probabilities.append(math.exp(best[at, kind]))
            state = int(self._after[kind, state])
        return tokens, probabilities

    def _class(self, token: int) -> int:
        """The token's class; `_classes`, one too many, if no reply has it."""
        return int(self._class_of_token[token]) if 0 <= token < len(self._class_of_token) else self._classes

    def _state_behind(self, prefix: Sequence[int]) -> int:
        state = 0
        for at, token in enumerate(prefix):
            kind = self._class(token)
            state = int(self._after[kind, state]) if kind < self._classes else -1
            if state < 0:
                raise ConstraintError(f"the reply so far contradicts the grammar: token {token} at its position {at}")
        return state

    def _best_of_each_class(self, log_probabilities: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """[free positions, C] each: the highest log-probability in each class, and the lowest token that has it."""
        device = log_probabilities.device
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self._rows).to(device)
        rows = self._on_device[device]
        missing = len(self._class_of_token) - log_probabilities.shape[1]
        if missing > 0:  # a tokenizer may know tokens that the model does not
            log_probabilities = torch.nn.functional.pad(log_probabilities, (0, missing), value=-torch.inf)
        values = log_probabilities.index_select(1, rows.reshape(-1)).reshape(-1, *rows.shape)
        highest, first = values.max(-1)  # the first of equals, and so the lowest token
        of_row, column = highest.double().cpu().numpy(), first.cpu().numpy()
        best = np.full((len(of_row), self._classes), -np.inf)
        best[:, self._row_class[self._row_start]] = np.maximum.reduceat(of_row, self._row_start, axis=1)
        token = self._rows[np.arange(len(self._rows)), column]
        token = np.where(of_row == best[:, self._row_class], token, len(self._class_of_token))
        lowest = np.zeros(best.shape, np.int64)
        lowest[:, self._row_class[self._row_start]] = np.minimum.reduceat(token, self._row_start, axis=1)
        return best, lowest

    def _explain(
        self, start: int, written: int, best: NDArray[np.float64], decided: Sequence[int | None], ahead: int
    ) -> ConstraintError:
        """Find the first thing that cannot be, by adding one demand at a time to a canvas that has none."""
        width = len(decided)
        if self._least[start] > width + ahead:
            needed = written + int(self._least[start])
            return ConstraintError(
                f"the canvas is too narrow for the grammar: it needs at least {needed} tokens, the canvas has {written + width + ahead}"
            )
        demands = np.zeros_like(best)
        closing = self._least <= ahead

        def is_possible() -> bool:
            values = self._edges.values_to_come(self._edges.best_of_each_set(demands), closing)
            return bool(values[0, start] > -np.inf)

        for at, fixed in enumerate(decided):
            if fixed is not None:
                demands[at] = best[at]
                if not is_possible():
                    return ConstraintError(
                        f"decided token {fixed} at position {written + at} contradicts the grammar in this canvas"
                    )
        for at, fixed in enumerate(decided):
            demands[at] = best[at]
            if fixed is None and not is_possible():
                return ConstraintError(f"every token that the grammar allows at position {written + at} is forbidden")
        raise AssertionError("a canvas without a contradiction was found impossible")


@dataclass(frozen=True, eq=False, slots=True)
class _Edges:
    """All (state, next state) pairs, by state. Those with the same set of classes between them share one set."""

    state_start: NDArray[np.int64]
    """[S + 1]: state s owns edges state_start[s] to state_start[s + 1] - 1, at least one."""
    target: NDArray[np.int64]
    label: NDArray[np.int64]
    """Which set of classes leads there."""
    set_start: NDArray[np.int64]
    member: NDArray[np.int64]

    @classmethod
    def of(cls, after: NDArray[np.int32]) -> _Edges:
        kind, state = np.nonzero(after >= 0)
        target = after[kind, state].astype(np.int64)
        order = np.lexsort((kind, target, state))
        kind, state, target = kind[order], state[order], target[order]
        is_first = np.ones(len(kind), np.bool_)
        is_first[1:] = (state[1:] != state[:-1]) | (target[1:] != target[:-1])
        begins = np.flatnonzero(is_first)
        sets: dict[bytes, int] = {}
        members: list[NDArray[np.int64]] = []
        label = np.empty(len(begins), np.int64)
        for edge, group in enumerate(np.split(kind, begins[1:])):
            key = group.tobytes()
            if key not in sets:
                sets[key] = len(members)
                members.append(group)
            label[edge] = sets[key]
        set_start = np.cumsum([0] + [len(group) for group in members])
        state_start = np.searchsorted(state[begins], np.arange(after.shape[1] + 1))
        return cls(state_start, target[begins], label, set_start, np.concatenate(members))

    def best_of_each_set(self, best: NDArray[np.float64]) -> NDArray[np.float64]:
        """[W, C] to one maximum per set."""
        return (
            np.stack([np.maximum.reduceat(row[self.member], self.set_start[:-1]) for row in best])
            if len(best)
            else best
        )

    def values_to_come(self, of_set: NDArray[np.float64], closing: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[W + 1, S]: the log-probability of the best filling from each position on, from each state; -inf if none."""
        value = np.empty((len(of_set) + 1, len(closing)))
        value[-1] = np.where(closing, 0.0, -np.inf)
        for at in range(len(of_set) - 1, -1, -1):
            along = of_set[at][self.label] + value[at + 1][self.target]
            value[at] = np.maximum.reduceat(along, self.state_start[:-1])
        return value

    def best_classes(
        self, state: int, of_set: NDArray[np.float64], to_come: NDArray[np.float64], best: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Every class with which a best filling goes on from this state."""
        own = slice(self.state_start[state], self.state_start[state + 1])
        label = self.label[own]
        along = of_set[label] + to_come[self.target[own]]
        label = label[along == along.max()]
        kinds = self.member[spans(self.set_start[label], self.set_start[label + 1])]
        wanted = np.repeat(of_set[label], self.set_start[label + 1] - self.set_start[label])
        tied: NDArray[np.int64] = kinds[best[kinds] == wanted]
        return tied


def _spread(automaton: Automaton, lexicon: Lexicon) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """From bytes to tokens: [T] the class of each token (-1 for those that obey nowhere), and [C, S] the state after each class.

    A token is a function from states to states, and few of all possible functions occur. So tokens are read side by side, byte by
    byte, and those that have done the same so far are carried as one.
    """
    dead = len(automaton.final)
    columns, byte_class = byte_classes(automaton.table)
    steps = np.concatenate([np.where(columns < 0, dead, columns), np.full((1, columns.shape[1]), dead)]).astype(
        np.int32
    )
    nowhere, identity = np.full(dead, dead, np.int32), np.arange(dead, dtype=np.int32)
    known = {nowhere.tobytes(): 0, identity.tobytes(): 1}
    functions = [nowhere, identity]
    current = np.ones(len(lexicon.tokens), np.int64)
    for at in range(lexicon.spelling.shape[1]):
        alive = np.flatnonzero((lexicon.lengths > at) & (current != 0))
        pairs = current[alive] * 256 + byte_class[lexicon.spelling[alive, at]]
        distinct, inverse = np.unique(pairs, return_inverse=True)
        renamed = np.empty(len(distinct), np.int64)
        for index, pair in enumerate(distinct.tolist()):
            function = steps[functions[pair // 256], pair % 256]
            key = function.tobytes()
            if key not in known:
                known[key] = len(functions)
                functions.append(function)
            renamed[index] = known[key]
        current[alive] = renamed[inverse.ravel()]
    kept, classes = np.unique(current, return_inverse=True)
    after = np.stack([functions[index] for index in kept]) if len(kept) else np.empty((0, dead), np.int32)
    classes = classes.ravel()
    if len(kept) and kept[0] == 0:
        classes, after = classes - 1, after[1:]
    return classes, np.where(after == dead, -1, after).astype(np.int32)


def _rows_of_classes(class_of_token: NDArray[np.int64], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[R, `_ROW`] tokens, ascending, each row of one class, its last token repeated at the end; and [R] the class of each row.

    A maximum over rows needs no atomic operations, where scattering 152 000 values into a few classes would queue for each.
    """
    members = [np.flatnonzero(class_of_token == kind) for kind in range(classes)]
    rows, row_class = [], []
    for kind, tokens in enumerate(members):
        for start in range(0, len(tokens), _ROW):
            part = tokens[start : start + _ROW]
            rows.append(np.pad(part, (0, _ROW - len(part)), mode="edge"))
            row_class.append(kind)
    return np.stack(rows), np.array(row_class, np.int64)


def _trim(
    classes: NDArray[np.int64], after: NDArray[np.int32], final: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
    """Keep the states that tokens reach and from which tokens reach an end, and the classes that still differ.

    Returns:
        The classes and the table, renamed; whether a reply may end in each state; the fewest tokens to there.
    """
    reached = np.zeros(len(final) + 1, np.bool_)
    frontier: NDArray[np.int32] = np.zeros(1, np.int32)
    while frontier.size:
        reached[frontier] = True
        found = np.unique(after[:, frontier])
        frontier = found[(found >= 0) & ~reached[found]]
    kind, origin = np.nonzero(after >= 0)
    least = distances(origin, after[kind, origin].astype(np.int64), final)
    kept = np.flatnonzero(reached[:-1] & (least < UNREACHABLE))
    if not kept.size or kept[0] != 0:
        raise ConfigError("grammar", f"{len(final)} states", "a text that this tokenizer's tokens can spell")
    renamed = np.full(len(final) + 1, -1, np.int32)
    renamed[kept] = np.arange(len(kept), dtype=np.int32)
    after = renamed[after[:, kept]]
    rows: dict[bytes, int] = {np.full(len(kept), -1, np.int32).tobytes(): -1}
    merged = np.array([rows.setdefault(row.tobytes(), len(rows) - 1) for row in after], np.int64)
    distinct = np.frombuffer(bytearray(b"".join(list(rows)[1:])), np.int32).reshape(len(rows) - 1, len(kept))
    classes = np.append(merged, -1)[classes]
    return classes, distinct, final[kept], least[kept]
