"""How far a reply reaches, read off many canvases at once without asking the host.

The same answers as `Canvas.decided_prefix`, `reply_end` and `first_clause_end` (a test compares them), for tensors on any device.

Dimensions: B drafts, W canvas positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.canvas import SOFT_BOUNDARY_WORDS, TokenTable
from dllm.staging import counting

_END, _SENTENCE, _CLAUSE, _DIGIT, _WORD_START, _WORD, _CAPITAL, _CONTINUES, _WORD_END, _JOINING = (
    1 << bit for bit in range(10)
)


class TokenClasses:
    """A `TokenTable` as two bytes per token, on a device."""

    def __init__(self, table: TokenTable, vocab_size: int, device: torch.device) -> None:
        self.table = table
        bits = torch.zeros(vocab_size, dtype=torch.int16)
        for tokens, bit in (
            ({table.end} | table.other_ends, _END),
            (table.sentence_end, _SENTENCE),
            (table.clause_end, _CLAUSE),
            (table.digit, _DIGIT),
            (table.word_start, _WORD_START),
            (table.word, _WORD),
            (table.capital, _CAPITAL),
            (_continuing(table, vocab_size), _CONTINUES),
            (table.word_end, _WORD_END),
            (table.joining, _JOINING),
        ):
            ids = torch.tensor(sorted(token for token in tokens if token < vocab_size), dtype=torch.int64)
            bits[ids] |= bit
        self._bits = bits.to(device)
        self.calls = torch.tensor(
            sorted(token for token in table.call if token < vocab_size), dtype=torch.int64, device=device
        )
        """[C] int64: tokens behind which a call is written."""
        joins, is_mark = (bits & _JOINING) != 0, (bits & (_SENTENCE | _CLAUSE)) != 0
        rules = torch.stack((torch.zeros_like(joins), joins, joins | is_mark, joins & ((bits & _DIGIT) != 0)))
        self.continuing = torch.zeros(rules.shape).masked_fill_(rules, float("-inf")).to(device)
        """[4, V] float32, -inf for what may not be said: nothing; what continues the word before it; that, and marks, which between figures
        belong to them; what continues the figure before it."""

    def of(self, tokens: Tensor) -> Tensor:
        """[...] int16 class bits of tokens [...] int64."""
        return self._bits[tokens]

    def is_end(self, tokens: Tensor) -> Tensor:
        return (self._bits[tokens] & _END).bool()

    def is_word_end(self, tokens: Tensor) -> Tensor:
        return (self._bits[tokens] & _WORD_END).bool()

    def is_joining(self, tokens: Tensor) -> Tensor:
        return (self._bits[tokens] & _JOINING).bool()

    def is_fact(self, tokens: Tensor) -> Tensor:
        """[B, W] bool: what a listener writes down, of canvases [B, W]: figures, names to their last token, and all that a tool is called with.

        A name is a word with a capital that does not begin a sentence; at a sentence's beginning a capital says nothing.
        """
        bits = self._bits[tokens]
        in_sentence = torch.zeros_like(tokens, dtype=torch.bool)
        in_sentence[:, 1:] = (bits[:, :-1] & (_SENTENCE | _END)) == 0
        begins_name = (bits & _CAPITAL).bool() & in_sentence
        at = counting(tokens.shape[1], tokens.device)
        begins = torch.where((bits & _CONTINUES).bool(), 0, at).cummax(dim=1).values
        """Where the word of each position begins."""
        is_call = (tokens.unsqueeze(2) == self.calls).any(dim=2)
        in_call = (is_call.cumsum(dim=1) > is_call.long()) & (bits & _END == 0)
        return (bits & _DIGIT).bool() | begins_name.gather(1, begins) | in_call

    def repeats_badly(self, tokens: Tensor) -> Tensor:
        """Tokens that may not stand twice in a row: words and punctuation marks."""
        return (self._bits[tokens] & (_WORD | _SENTENCE | _CLAUSE)).bool()


def _continuing(table: TokenTable, vocab_size: int) -> frozenset[int]:
    """Tokens that go on a word, whatever bytes they hold: an accented letter is a token of half letters."""
    others = table.word_start | table.sentence_end | table.clause_end | table.other_ends | table.forbidden
    return frozenset(range(vocab_size)) - others - {table.end, table.mask}


def first_where(found: Tensor, otherwise: Tensor) -> Tensor:
    """[B] int64: the first true position of each row of `found` [B, W], else `otherwise` [B]."""
    at = counting(found.shape[1], found.device)
    first = torch.where(found, at, found.shape[1]).amin(dim=1)
    return torch.minimum(first, otherwise)


def decided_prefix(decided: Tensor, width: Tensor) -> Tensor:
    """[B] how many positions from the left are decided; `decided` [B, W] bool, `width` [B]."""
    return first_where(~decided, width)


def reply_end(classes: Tensor, width: Tensor) -> Tensor:
    """[B] position of the first end-of-turn, or the width; `classes` [B, W] from `TokenClasses.of`."""
    return first_where((classes & _END).bool(), width)


def first_clause_end(classes: Tensor, width: Tensor) -> Tensor:
    """[B] positions in the first clause, its boundary included, or the width. See `Canvas.first_clause_end` for what a clause is."""
    columns = classes.shape[1]
    at = counting(columns, classes.device)
    words = (classes & _WORD_START).bool().cumsum(dim=1)
    closes = ((classes & _SENTENCE).bool() & (words > 0)) | (
        (classes & _CLAUSE).bool() & (words >= SOFT_BOUNDARY_WORDS)
    )
    is_digit = (classes & _DIGIT).bool()
    after_digit = torch.zeros_like(is_digit)
    after_digit[:, 1:] = is_digit[:, :-1]
    before_digit = torch.zeros_like(is_digit)
    before_digit[:, :-1] = is_digit[:, 1:]
    closes &= (at + 1 < width.unsqueeze(1)) & ~(after_digit & before_digit)
    is_end = (classes & _END).bool() & (at < width.unsqueeze(1))
    # The clause reaches one position further where a boundary stands behind a digit: the next position tells that no more follow.
    reach = at + 1 + (closes & after_digit & ~is_end).long()
    found = closes | is_end
    first = torch.where(found, at, columns).amin(dim=1, keepdim=True)
    value = reach.gather(1, first.clamp_max(columns - 1)).squeeze(1)
    return torch.where(first.squeeze(1) < columns, torch.minimum(value, width), width)


def continues_pin(classes: Tensor, decided: Tensor, pinned: Tensor) -> Tensor:
    """[B, W] int64: which row of `TokenClasses.continuing` would make a pin left of the cell another word ("Hairs") or figure ("$82.50").

    `classes` [B, W] from `TokenClasses.of`; `decided`, `pinned` [B, W] bool.
    """
    is_digit, is_mark = (classes & _DIGIT).bool(), (classes & (_SENTENCE | _CLAUSE)).bool()
    joins = _left(pinned & (classes & _WORD_END).bool())
    figure_behind = torch.nn.functional.pad((decided & is_digit & (classes & _JOINING).bool())[:, 1:], (0, 1))
    # Two behind: what stands between may become the figure's point or comma.
    joins_again = _left(joins & _left(is_digit) & (~decided | is_mark)) & ~joins
    return torch.where(joins, 1 + figure_behind.long(), 3 * joins_again.long()) * ~pinned


def _left(cells: Tensor) -> Tensor:
    """Each cell's left neighbour, False at the edge."""
    return torch.nn.functional.pad(cells[:, :-1], (1, 0))
