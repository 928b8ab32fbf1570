"""Deterministic automata over bytes: what a regular expression becomes, and how two of them make a third.

outlines_core compiles the expressions. It reads them as a search does and stops at the first match (0.2.14 refuses "abc" for `a(bc)?`),
so U+10FFFF, which is no character, is put behind every pattern and taken off again: what remains is exactly what a full match accepts,
of the texts without U+10FFFF.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dllm.errors import ConfigError
from dllm.patterns import MEMORY_BYTES, PROCESSOR_S, is_too_large

MAX_STATES = 30_000
"""More are refused: 30 MB of transitions, and seconds to spread over a vocabulary."""

UNREACHABLE = 2**40

_SENTINEL = "\U0010ffff"
_BYTE_VOCABULARY = {bytes([byte]): [byte] for byte in range(256)}


@dataclass(frozen=True, slots=True)
class Automaton:
    """States 0 to S - 1, minimal, beginning in 0; every state can be reached and can still accept, but for a lone start."""

    table: NDArray[np.int32]
    """[S, 256]: the state after each byte, -1 where nothing obeys any more."""
    final: NDArray[np.bool_]
    """[S]: where a text may end."""

    @property
    def is_empty(self) -> bool:
        """Whether no text at all is accepted."""
        return not bool(self.final.any())

    def accepts(self, text: bytes) -> bool:
        state = 0
        for byte in text:
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.final[state])


def escape(text: str) -> str:
    """A pattern that matches exactly this text, in Rust's syntax."""
    return "".join(char if char.isalnum() or not char.isascii() else f"\\x{{{ord(char):x}}}" for char in text)


def from_regex(pattern: str) -> Automaton:
    """The automaton of all full matches, as UTF-8.

    Syntax is that of Rust's `regex` crate; `^` in front and `$` behind may be written and mean nothing.

    Raises:
        ConfigError: If the pattern does not compile (look-around, back references and `\\b` do not), or needs over `MAX_STATES` states; of
            strangers (`dllm.patterns`), also if that would take too long to find out.
    """
    from outlines_core import Index, Vocabulary

    body = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(?:\\\\)*\$\Z", body):
        body = body[:-1]
    expression = f"(?:{body}){_SENTINEL}"
    if is_too_large(expression):
        limit = f"one that {PROCESSOR_S} s of processor time and {MEMORY_BYTES // 2**30} GiB are enough to compile"
        raise ConfigError("pattern", pattern[:200], limit)
    try:
        index = Index(expression, Vocabulary(256, _BYTE_VOCABULARY))
    except ValueError as error:
        raise ConfigError("pattern", pattern, f"a regular expression ({_reason(body, error)})") from error
    transitions = index.get_transitions()
    if len(transitions) > MAX_STATES:
        raise ConfigError("pattern", pattern[:200], f"at most {MAX_STATES} states, not {len(transitions)}")
    names = sorted(transitions, key=lambda state: (state != index.get_initial_state(), state))
    number = {state: at for at, state in enumerate(names)}
    table = np.full((len(names), 256), -1, np.int32)
    for state, edges in transitions.items():
        for byte, target in edges.items():
            if byte < 256:
                table[number[state], byte] = number[target]
    ends = np.zeros(len(names) + 1, np.bool_)
    ends[[number[state] for state in index.get_final_states()]] = True
    behind = np.arange(len(names))
    for byte in _SENTINEL.encode():
        behind = np.where(behind < 0, -1, table[behind, byte])
    found = minimal(table, ends[behind])
    behind = np.arange(len(found.final))
    for byte in _SENTINEL.encode():
        behind = np.where(behind < 0, -1, found.table[behind, byte])
    return both(found, _without_sentinel()) if (behind >= 0).any() else found


def _without_sentinel() -> Automaton:
    """Bytes in which U+10FFFF never occurs; state s has just read the first s bytes of it."""
    spelled = _SENTINEL.encode()
    table = np.zeros((4, 256), np.int32)
    table[:, spelled[0]] = 1
    table[[1, 2, 3], list(spelled[1:])] = [2, 3, -1]
    return Automaton(table, np.ones(4, np.bool_))


def _reason(pattern: str, error: ValueError) -> str:
    try:
        re.compile(pattern)
    except re.error as known:
        return str(known)
    return f"{error}; look-around, back references and \\b are not regular".replace("\n", " ")


def product(
    left: Automaton, right: Automaton, accept: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]]
) -> Automaton:
    """Both automata read the same text; `accept` joins what they say of it: `np.logical_and` is what both accept.

    Raises:
        ConfigError: If over `MAX_STATES` pairs of states meet.
    """
    rows, byte_class = byte_classes(np.concatenate([_with_dead_row(left.table), _with_dead_row(right.table)]))
    left_table, right_table = np.split(rows, [len(left.final) + 1])
    width = len(right_table)
    seen = {0}
    frontier = np.zeros(1, np.int64)
    while frontier.size:
        after = np.unique(left_table[frontier // width].astype(np.int64) * width + right_table[frontier % width])
        frontier = np.array([pair for pair in after.tolist() if pair not in seen], np.int64)
        seen.update(frontier.tolist())
        if len(seen) > MAX_STATES:
            raise ConfigError(
                "grammar", f"{len(left.final)} and {len(right.final)} states", f"at most {MAX_STATES} together"
            )
    pairs = np.array(sorted(seen), np.int64)
    after = left_table[pairs // width].astype(np.int64) * width + right_table[pairs % width]
    final = accept(np.append(left.final, False)[pairs // width], np.append(right.final, False)[pairs % width])
    return minimal(np.searchsorted(pairs, after).astype(np.int32)[:, byte_class], final)


def both(left: Automaton, right: Automaton) -> Automaton:
    return product(left, right, np.logical_and)


def either(left: Automaton, right: Automaton) -> Automaton:
    return product(left, right, np.logical_or)


def without(left: Automaton, right: Automaton) -> Automaton:
    """What `left` accepts and `right` does not."""
    return product(left, right, lambda first, second: first & ~second)


def chain(left: Automaton, right: Automaton) -> Automaton:
    """A text of `left`, then one of `right`. No text of `left` may begin another, and none may be empty."""
    assert not left.final[0] and not (left.table[left.final] >= 0).any()
    offset = len(left.final)
    first = np.where(left.table >= 0, left.table, -1)
    first = np.where((first >= 0) & left.final[first], offset, first).astype(np.int32)
    second = np.where(right.table >= 0, right.table + offset, -1).astype(np.int32)
    return minimal(np.concatenate([first, second]), np.concatenate([np.zeros_like(left.final), right.final]))


def minimal(table: NDArray[np.int32], final: NDArray[np.bool_]) -> Automaton:
    """Keep what the start 0 reaches and what can still accept, and merge states with the same future (Moore's refinement)."""
    useful = _reachable(table) & _can_accept(table, final)
    useful[0] = True
    renamed = np.full(len(table) + 1, -1, np.int32)
    renamed[:-1][useful] = np.arange(int(useful.sum()), dtype=np.int32)
    table, final = renamed[table[useful]], final[useful]
    columns, byte_class = byte_classes(table)
    label = _same_future(columns, final)
    kept, which = np.unique(label, return_index=True)
    merged = np.append(label, -1).astype(np.int32)[columns[which]][:, byte_class]
    # The start comes first, the others in the order of their labels.
    order = np.concatenate([[label[0]], kept[kept != label[0]]])
    rank = np.full(len(kept) + 1, -1, np.int32)
    rank[order] = np.arange(len(kept), dtype=np.int32)
    return Automaton(np.ascontiguousarray(rank[merged[order]]), np.ascontiguousarray(final[which][order]))


def byte_classes(table: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """[S, 256] to its distinct columns, and which of them each byte has."""
    known: dict[bytes, int] = {}
    byte_class = np.array([known.setdefault(column.tobytes(), len(known)) for column in table.T], np.int64)
    return table[:, np.unique(byte_class, return_index=True)[1]], byte_class


def _same_future(columns: NDArray[np.int32], final: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[S] labels 0 to K - 1, equal where two states accept the same continuations.

    Rows are compared by a random sum, which may take two for one; each round draws anew, and the last is checked exactly.
    """
    random = np.random.default_rng(0)
    label = np.unique(final, return_inverse=True)[1].ravel()
    while True:
        after = np.append(label, len(label))[columns]
        weights = random.integers(1, 2**63, (1 + columns.shape[1]), dtype=np.uint64)
        sums = label.astype(np.uint64) * weights[0] + (after.astype(np.uint64) * weights[1:]).sum(
            axis=1, dtype=np.uint64
        )
        _, which, finer = np.unique(sums, return_index=True, return_inverse=True)
        finer = finer.ravel()
        if len(which) == label.max() + 1:
            chosen = which[finer]
            if (after == after[chosen]).all() and (label == label[chosen]).all():
                return finer
        label = finer


def _with_dead_row(table: NDArray[np.int32]) -> NDArray[np.int32]:
    dead = len(table)
    return np.concatenate([np.where(table < 0, dead, table), np.full((1, 256), dead)]).astype(np.int32)


def _reachable(table: NDArray[np.int32]) -> NDArray[np.bool_]:
    seen = np.zeros(len(table) + 1, np.bool_)
    frontier: NDArray[np.int32] = np.zeros(1, np.int32)
    while frontier.size:
        seen[frontier] = True
        after = np.unique(table[frontier])
        frontier = after[(after >= 0) & ~seen[after]]
    return seen[:-1]


def _can_accept(table: NDArray[np.int32], final: NDArray[np.bool_]) -> NDArray[np.bool_]:
    columns, _ = byte_classes(table)
    origin, at = np.nonzero(columns >= 0)
    return distances(origin, columns[origin, at].astype(np.int64), final) < UNREACHABLE


def distances(origin: NDArray[np.int64], target: NDArray[np.int64], final: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[S]: the fewest edges, each from `origin[e]` to `target[e]`, to a final state; `UNREACHABLE` if none lead there."""
    order = np.argsort(target, kind="stable")
    before = origin[order]
    starts = np.searchsorted(target[order], np.arange(len(final) + 1))
    found: NDArray[np.int64] = np.where(final, 0, UNREACHABLE)
    frontier, step = np.flatnonzero(final), 0
    while frontier.size:
        step += 1
        reached = np.unique(before[spans(starts[frontier], starts[frontier + 1])])
        frontier = reached[found[reached] == UNREACHABLE]
        found[frontier] = step
    return found


def spans(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers in [starts[k], stops[k]) for each k, one run behind the other."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    numbers: NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(
        starts - (ends - lengths), lengths
    )
    return numbers
