"""The canvas: token positions of one reply while it is being denoised, and what can be read off them.

Pure state. Which tokens end a clause or begin a word is told by a `TokenTable`; the canvas itself knows no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dllm.drafts import CellState

SOFT_BOUNDARY_WORDS = 4
"""Words before a comma, semicolon or colon for it to end the first clause: "Sure," alone is too short to be worth speaking."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Classes of tokens, by id. Built by `dllm.text.token_table`."""

    end: int
    """The token that is written where a reply ends."""
    mask: int
    """-1 for models without one."""
    forbidden: frozenset[int]
    """Never part of a reply."""
    sentence_end: frozenset[int]
    """. ? ! and their combinations."""
    clause_end: frozenset[int]
    """, ; : and dashes."""
    digit: frozenset[int]
    word_start: frozenset[int]
    """Tokens that begin with a space: the text before them is whole words."""
    case_variants: Mapping[int, tuple[int, ...]]
    """For a word start, the other tokens that differ from it in case only."""
    word: frozenset[int]
    """Word starts with a letter: repeating one three times is a stutter."""
    other_ends: frozenset[int] = frozenset()
    """Further tokens that end a reply as well."""
    joining: frozenset[int] = frozenset()
    """Tokens that begin with a letter or figure of ASCII, no space before it: behind a word they continue it."""
    word_end: frozenset[int] = frozenset()
    """Tokens that end with a letter or figure of ASCII."""
    capital: frozenset[int] = frozenset()
    """Tokens that begin a word with a capital, "I" and its contractions excepted: inside a sentence, a name."""
    call: frozenset[int] = frozenset()
    """Tokens behind which a reply is the call of a tool: all of it is what the tool is asked."""

    def ends_reply(self, token: int) -> bool:
        return token == self.end or token in self.other_ends


@dataclass(slots=True)
class Canvas:
    """`tokens[i]` is what position i holds: a decided token, or the latest guess, or the mask token."""

    width: int
    table: TokenTable = field(repr=False)
    tokens: list[int] = field(init=False)
    states: list[CellState] = field(init=False)
    confidence: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [self.table.mask] * self.width
        self.states = [CellState.MASKED] * self.width
        self.confidence = [0.0] * self.width

    def is_decided(self, position: int) -> bool:
        return self.states[position] in (CellState.COMMITTED, CellState.PINNED)

    def decided(self) -> list[bool]:
        """`is_decided` of every position."""
        return [state is CellState.COMMITTED or state is CellState.PINNED for state in self.states]

    def is_fact(self, position: int) -> bool:
        """Whether a figure, the beginning of a name or part of a call stands here (`TokenClasses.is_fact`)."""
        table, token = self.table, self.tokens[position]
        if table.call and not table.ends_reply(token) and not table.call.isdisjoint(self.tokens[:position]):
            return True
        before = self.tokens[position - 1] if position else table.end
        in_sentence = before not in table.sentence_end and not table.ends_reply(before)
        return token in table.digit or (token in table.capital and in_sentence)

    def masked(self) -> list[int]:
        """Positions not decided yet, ascending."""
        return [position for position, is_decided in enumerate(self.decided()) if not is_decided]

    def model_input(self) -> list[int]:
        """What the network reads: decided tokens, and mask tokens elsewhere."""
        mask = self.table.mask
        return [token if is_decided else mask for token, is_decided in zip(self.tokens, self.decided(), strict=True)]

    def guess(self, position: int, token: int, confidence: float) -> None:
        self.tokens[position], self.confidence[position] = token, confidence
        self.states[position] = CellState.PROVISIONAL

    def commit(self, position: int, token: int, confidence: float) -> None:
        assert not self.is_decided(position)
        self.tokens[position], self.confidence[position] = token, confidence
        self.states[position] = CellState.COMMITTED

    def put(self, position: int, token: int, confidence: float, *, is_decided: bool) -> None:
        """What a step left at a position: decided, guessed, or masked again."""
        self.tokens[position], self.confidence[position] = token, confidence
        if is_decided:
            self.states[position] = CellState.COMMITTED
        else:
            self.states[position] = CellState.MASKED if token == self.table.mask else CellState.PROVISIONAL

    def resize(self, width: int) -> None:
        """Add masked positions at the end, or drop some."""
        missing = max(width - self.width, 0)
        self.tokens = self.tokens[:width] + [self.table.mask] * missing
        self.states = self.states[:width] + [CellState.MASKED] * missing
        self.confidence = self.confidence[:width] + [0.0] * missing
        self.width = width

    def remask(self, position: int) -> None:
        assert self.states[position] is not CellState.PINNED
        self.states[position] = CellState.PROVISIONAL

    def clear(self, position: int) -> None:
        """Know nothing of a position any more."""
        self.tokens[position], self.confidence[position] = self.table.mask, 0.0
        self.states[position] = CellState.MASKED

    def pin(self, start: int, tokens: Sequence[int]) -> None:
        for offset, token in enumerate(tokens):
            self.tokens[start + offset] = token
            self.confidence[start + offset] = 1.0
            self.states[start + offset] = CellState.PINNED

    def last_pin(self) -> int:
        """The last pinned position, -1 without pins."""
        return max((at for at, state in enumerate(self.states) if state is CellState.PINNED), default=-1)

    def decided_prefix(self) -> int:
        """How many positions from the left are decided."""
        return next((at for at in range(self.width) if not self.is_decided(at)), self.width)

    def reply_end(self) -> int:
        """Position of the first end-of-turn as things stand, or the width."""
        return next((at for at, token in enumerate(self.tokens) if self.table.ends_reply(token)), self.width)

    def first_clause_end(self) -> int:
        """Positions in the first clause, its boundary token included, as things stand.

        A sentence end always closes it; a comma, semicolon or colon does after `SOFT_BOUNDARY_WORDS` words; an end-of-turn closes it too and
        is counted, so that nothing is spoken before it is certain that nothing follows. A boundary between digits is part of the
        number, so one after a digit needs the next position as well.
        """
        words = 0
        table = self.table
        for at, token in enumerate(self.tokens):
            if table.ends_reply(token):
                return at + 1
            if token in table.word_start:
                words += 1
            closes = (token in table.sentence_end and words > 0) or (
                token in table.clause_end and words >= SOFT_BOUNDARY_WORDS
            )
            if not closes or at + 1 == self.width:
                continue
            if at == 0 or self.tokens[at - 1] not in table.digit:
                return at + 1
            if self.tokens[at + 1] not in table.digit:
                return at + 2
        return self.width

    def last_sentence_end(self, start: int, stop: int | None = None) -> int:
        """Where to cut a reply that fills the canvas, of which `start` tokens are spoken: after its last sentence end or pin.

        `stop` (default: the width) when there is neither before it, and never before `start`.
        """
        stop = self.width if stop is None else stop
        for cut in range(stop, start, -1):
            if self.tokens[cut - 1] in self.table.sentence_end or self.states[cut - 1] is CellState.PINNED:
                return cut
        return start if start and self.tokens[start - 1] in self.table.sentence_end else stop

    def speakable(self, start: int, stop: int) -> int:
        """The largest cut in [start, stop] before which there are whole words, given that positions below `stop` are decided.

        A word's last token is known only when the next one starts a word or is an end-of-turn, or when it is closing punctuation
        that cannot be inside a number. Whole words are also whole UTF-8 sequences.
        """
        table = self.table
        closing = table.sentence_end | table.clause_end
        for cut in range(stop, start, -1):
            if cut == self.width:
                return cut
            if self.is_decided(cut):
                if table.ends_reply(self.tokens[cut]) or self.tokens[cut] in table.word_start:
                    return cut
            elif self.tokens[cut - 1] in closing and (cut < 2 or self.tokens[cut - 2] not in table.digit):
                return cut
        return start


def repeats_span(canvas: Canvas, position: int, token: int) -> bool:
    """Whether committing `token` here completes a stutter among decided tokens.

    A stutter is the same three tokens twice in a row, or one word or punctuation mark twice in a row: what parallel commits of a
    small model produce, and what speech almost never wants.
    """
    table = canvas.table
    if token == table.end:
        return False

    def at(place: int) -> int | None:
        if place == position:
            return token
        return canvas.tokens[place] if 0 <= place < canvas.width and canvas.is_decided(place) else None

    if token in table.word | table.sentence_end | table.clause_end and token in (at(position - 1), at(position + 1)):
        return True
    for first in range(position - 5, position + 1):
        span = [at(first + offset) for offset in range(6)]
        if None not in span and table.end not in span and span[:3] == span[3:]:
            return True
    return False
