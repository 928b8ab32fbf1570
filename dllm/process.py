"""What callers' options make of logits before tokens are chosen, and how tokens are drawn from the result.

`Processor` changes the logits of several drafts' positions in place; `sample` draws. Both work without a word to the host.

Dimensions: B drafts, n rows of logits (canvas positions), V vocabulary, W canvas positions, K biases.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.canvas import TokenTable
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.phrases import UNDECIDED, Phrases, impossible
from dllm.staging import staged
from dllm_kernels import CommitStats, commit_from_logits, stutters
from dllm_kernels.philox import philox_4x32
from dllm_kernels.stutters import Classes

LENGTH_PULL = 8.0
"""Most that `target_tokens` adds to an end's logit or takes from it: a probability of 1 in 3,000 becomes an even chance."""

_ONE = 2**40
"""1 in the fixed point in which probabilities are added: 2^22 tokens of it fit, and sums are exact."""
_DRAW_STREAM = 0x64726177


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Classes of tokens on the model's device; one serves every draft."""

    size: int
    ends: tuple[int, ...]
    """Tokens that end a reply."""
    end_ids: Tensor
    """[E] int64, the same."""
    forbidden: Tensor
    """[F] int64: never written."""
    is_forbidden: Tensor
    """[V] bool, the same."""
    is_end: Tensor
    """[V] bool."""
    stutters: Tensor
    """[V] bool: words and marks that may not stand twice in a row for drafts with `no_stutter`, to which repeated spans of three are refused as
    well."""

    @classmethod
    def of(
        cls,
        size: int,
        ends: Sequence[int],
        forbidden: Collection[int],
        device: torch.device | str,
        singles: Collection[int] = (),
    ) -> Vocabulary:
        """Ids outside the vocabulary are left out, except among the ends.

        Raises:
            ConfigError: If an end is none of the vocabulary's tokens.
        """
        for end in ends:
            _check_token("ends", end, size)

        def marks(tokens: Iterable[int]) -> Tensor:
            known = torch.tensor(
                sorted(token for token in tokens if 0 <= token < size), dtype=torch.int64, device=device
            )
            return torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, known, True)

        ids = torch.tensor(
            sorted(token for token in set(forbidden) - set(ends) if 0 <= token < size), dtype=torch.int64, device=device
        )
        return cls(
            size,
            tuple(ends),
            torch.tensor(ends, dtype=torch.int64, device=device),
            ids,
            marks(ids.tolist()),
            marks(ends),
            marks(set(singles) - set(ends)),
        )

    @classmethod
    def of_table(cls, table: TokenTable, size: int, device: torch.device | str) -> Vocabulary:
        """With what a table says of ends, forbidden tokens, words and marks."""
        singles = table.word | table.sentence_end | table.clause_end
        return cls.of(size, (table.end,), {*table.forbidden, table.mask}, device, singles)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which canvas position each row of logits is of, [n] int64 each."""

    canvas: Tensor
    position: Tensor
    cell: Tensor
    """canvas * W + position."""

    @classmethod
    def of_one(cls, positions: Tensor) -> Rows:
        """Positions of the only canvas."""
        return cls(torch.zeros_like(positions), positions, positions)


class Processor:
    """The rules about tokens of several drafts, as columns on the device: shapes depend on which kinds of rules occur and on how many phrases
    and biases there are, never on what they say.

    Applied in this order: repetition penalty, logit bias, length target; then what is impossible, as -inf: forbidden tokens, ends before
    `min_tokens`, whatever would complete a banned phrase or a stutter among the decided tokens around it. A draft gets the same in any company.

    Args:
        options: Of each draft.
        has_grammar: Which drafts have one: what those choose together is right as it is.

    Raises:
        ConfigError: If a biased or banned token is not in the vocabulary.
    """

    def __init__(
        self, options: Sequence[DecodeOptions], vocabulary: Vocabulary, has_grammar: Sequence[bool] | None = None
    ) -> None:
        self._vocabulary = vocabulary
        device = vocabulary.end_ids.device
        has_grammar = [False] * len(options) if has_grammar is None else has_grammar
        for one in options:
            for token, _ in one.logit_bias:
                _check_token("logit_bias", token, vocabulary.size)
            for phrase in one.banned:
                for token in phrase:
                    _check_token("banned", token, vocabulary.size)

        def column(values: Sequence[float], nothing: float, dtype: torch.dtype) -> Tensor | None:
            return None if all(value == nothing for value in values) else staged(values, device, dtype)

        self._penalty = column([one.repetition_penalty for one in options], 1.0, torch.float32)
        self._least = column([one.min_tokens for one in options], 0, torch.int64)
        self._target = column([one.target_tokens for one in options], 0, torch.int64)
        self._pull = column(
            [LENGTH_PULL / one.target_tokens if one.target_tokens else 0.0 for one in options], 0.0, torch.float32
        )
        strict = [one.no_stutter and not grammar for one, grammar in zip(options, has_grammar, strict=True)]
        self._strict = staged(strict, device) if any(strict) else None
        self._bias = _biases(options, device)
        self._phrases = None
        if any(one.banned for one in options):
            self._phrases = Phrases.of([one.banned for one in options], has_grammar, device)

    @property
    def columns(self) -> list[Tensor]:
        """All that differs between companies of the same `shape`."""
        own = [self._penalty, self._least, self._target, self._pull, self._strict, *(self._bias or ())]
        return [one for one in own if one is not None] + ([] if self._phrases is None else self._phrases.columns)

    @property
    def shape(self) -> tuple[object, ...]:
        """What the host decides by: companies with equal ones do the same things to tensors of the same shapes."""
        own = (self._penalty, self._least, self._target, self._strict)
        phrases = () if self._phrases is None else tuple(one.shape for one in self._phrases.columns)
        return (*(one is None for one in own), 0 if self._bias is None else self._bias[0].shape[1], phrases)

    def copy(self) -> Processor:
        """The same with columns of its own."""
        own = copy.copy(self)
        for name in ("_penalty", "_least", "_target", "_pull", "_strict"):
            column = getattr(self, name)
            setattr(own, name, None if column is None else column.clone())
        own._bias = None if self._bias is None else (self._bias[0].clone(), self._bias[1].clone())
        own._phrases = None if self._phrases is None else self._phrases.copy()
        return own

    @property
    def parts(self) -> bool:
        """Whether any draft's choices of one step may be at odds with each other."""
        return self._strict is not None or self._phrases is not None

    def apply(self, logits: Tensor, rows: Rows, tokens: Tensor, decided: Tensor) -> None:
        """Change `logits` in place.

        Args:
            logits: [n, V] float32, finite or -inf.
            rows: What each row is of; position p is the reply's token p.
            tokens: [B, W] int64, what the canvases hold; read where decided.
            decided: [B, W] bool. A row's own position counts as undecided while its token is looked for.
        """
        vocabulary = self._vocabulary
        if self._penalty is not None:
            self._penalise(logits, rows, torch.where(decided, tokens, UNDECIDED), self._penalty[rows.canvas])
        if self._bias is not None:
            ids, biases = self._bias
            logits.scatter_add_(1, ids[rows.canvas], biases[rows.canvas])
        if self._target is not None and self._pull is not None:
            # Grows evenly from -`LENGTH_PULL` at position 0 through 0 at the target to `LENGTH_PULL` at twice the target.
            pull = (rows.position - self._target[rows.canvas]).float() * self._pull[rows.canvas]
            logits.index_add_(1, vocabulary.end_ids, self._over_ends(pull.clamp(max=LENGTH_PULL)))
        logits.index_fill_(1, vocabulary.forbidden, -math.inf)
        if self._least is not None:
            too_early = impossible(rows.position < self._least[rows.canvas])
            logits.index_add_(1, vocabulary.end_ids, self._over_ends(too_early))
        if self._phrases is not None:
            self._phrases.ban(logits, rows.canvas, rows.position, torch.where(decided, tokens, UNDECIDED))
        if self._strict is not None:
            # It also keeps a reply from ending where a stutter was likelier than its end: what must be said may still be to come.
            classes = Classes(vocabulary.is_end, vocabulary.stutters, vocabulary.end_ids)
            stutters.ban(logits, rows.canvas, rows.cell, tokens, decided, self._strict, classes)

    def joint_conflicts(self, tokens: Tensor, decided: Tensor, chosen: Tensor) -> Tensor:
        """Which of this step's choices must wait, since together they would complete a banned phrase or a stutter. [B, W] bool.

        `apply` rules out what decided tokens forbid; this rules out what tokens chosen in the same step forbid each other. Of each
        such span the rightmost new token waits. The leftmost of all new tokens never does, so every step still decides something.

        Args:
            tokens: [B, W] int64, with the new tokens in place.
            decided: [B, W] bool, before the step.
            chosen: [B, W] bool, what the step would decide.
        """
        if self._strict is None:
            waits = torch.zeros_like(chosen)
        else:
            classes = Classes(self._vocabulary.is_end, self._vocabulary.stutters, self._vocabulary.end_ids)
            waits = stutters.joint(tokens, decided, chosen, self._strict, classes)
        if self._phrases is not None:
            waits |= self._phrases.joint(torch.where(decided | chosen, tokens, UNDECIDED), chosen & ~decided)
        return waits

    def _over_ends(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1).expand(-1, len(self._vocabulary.ends))

    def _penalise(self, logits: Tensor, rows: Rows, known: Tensor, penalty: Tensor) -> None:
        """Ends are spared: one decided on the right says nothing against an end here."""
        size = self._vocabulary.size
        seen = torch.zeros(len(known), size + 1, dtype=torch.bool, device=logits.device)
        seen.scatter_(1, torch.where(known >= 0, known, size), True)
        ids = known.clamp_min(0)
        is_hit = (seen.gather(1, ids) & ~self._vocabulary.is_end[ids])[rows.canvas]
        ids, penalty = ids[rows.canvas], penalty.unsqueeze(1)
        before = logits.gather(1, ids)
        after = torch.where(before > 0, before / penalty, before * penalty)
        # Positions that hold the same token write the same value, so their order does not matter.
        logits.scatter_(1, ids, torch.where(is_hit, after, before))


def _biases(options: Sequence[DecodeOptions], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Token ids and what is added to their logits, [B, K] each; those of one token add up. Nothing is added where a draft has fewer."""
    rows: list[dict[int, float]] = []
    for one in options:
        rows.append({})
        for token, bias in one.logit_bias:
            rows[-1][token] = rows[-1].get(token, 0.0) + bias
    most = max(map(len, rows))
    if not most:
        return None
    ids = [[*row, *[0] * (most - len(row))] for row in rows]
    biases = [[*row.values(), *[0.0] * (most - len(row))] for row in rows]
    return staged(ids, device, torch.int64), staged(biases, device, torch.float32)


def sample(logits: Tensor, options: DecodeOptions, seeds: Tensor) -> CommitStats:
    """Draw a token per row.

    Temperature 0 takes the best token, ties to the lowest id. Otherwise the token is drawn from the softmax of logits / temperature over
    the `top_k` best tokens (ties to the lowest ids), of those over the fewest best whose probabilities reach `top_p`, by the Gumbel-max
    trick: the filters come first, so the draw is exact. A draw depends on its row and seed alone.

    Args:
        logits: [n, V] float32, processed. Not changed.
        seeds: [n] int64 in [0, 2^63), a different one per draft, step and position: see `draw_seeds`.

    Returns:
        Probability, margin and entropy are those of the softmax at temperature 1 over all allowed tokens, before the filters: a
        threshold means the same however tokens are drawn.

    Source: nucleus sampling, arXiv:1904.09751; confidence at temperature 1 as in `dllm_kernels.commit_from_logits`.
    """
    is_filtered = 0 < options.top_k < logits.shape[1] or options.top_p < 1.0
    if options.temperature == 0.0:
        return commit_from_logits(logits)
    if not is_filtered:
        return commit_from_logits(logits, temperature=options.temperature, seed=seeds)
    best = commit_from_logits(logits)
    kept = _filtered(logits, options)
    token = commit_from_logits(kept, temperature=options.temperature, seed=seeds).token
    gap = logits.gather(1, best.token.clamp_min(0).unsqueeze(1)) - logits.gather(1, token.clamp_min(0).unsqueeze(1))
    probability = best.probability * torch.exp(-gap.squeeze(1))
    return CommitStats(token, torch.where(token >= 0, probability, 0.0), best.margin, best.entropy)


def draw_seeds(seed: Tensor | int, step: Tensor | int, positions: Tensor) -> Tensor:
    """A seed per position for `sample`, [n] int64 in [0, 2^63): a function of the draft's seed, its step and the position only.

    Args:
        seed: In [0, 2^62); an int64 tensor that broadcasts against the positions, on their device, gives each its own.
        step: In [0, 2^32); likewise.
        positions: [n] int64.
    """
    zero = torch.zeros_like(positions)
    key = (zero + (seed & 0xFFFFFFFF), zero + (seed >> 32))
    words = philox_4x32((positions, zero + step, zero, zero + _DRAW_STREAM), key)
    return ((words[0] & 0x7FFFFFFF) << 32) | words[1]


def _filtered(logits: Tensor, options: DecodeOptions) -> Tensor:
    """Logits with -inf outside the top k and the nucleus. No float sum decides: a row's set does not depend on its company."""
    size = logits.shape[1]
    limit = min(options.top_k or size, size)
    z = logits.nan_to_num(nan=-math.inf, posinf=torch.finfo(torch.float32).max, neginf=-math.inf)
    best = z.topk(limit, dim=1).values
    count = torch.full_like(best[:, :1], limit, dtype=torch.int64)
    if options.top_p < 1.0:
        shares = torch.softmax((best - best[:, :1]) / options.temperature, dim=1).nan_to_num(nan=0.0)
        shares = shares.mul(_ONE).to(torch.int64)
        before = shares.cumsum(dim=1) - shares
        count = (before < math.ceil(options.top_p * _ONE)).sum(dim=1, keepdim=True)
    cutoff = best.gather(1, count - 1)
    is_above, is_tied = z > cutoff, z == cutoff
    room = count - is_above.sum(dim=1, keepdim=True)
    is_kept = is_above | (is_tied & (is_tied.cumsum(dim=1) <= room))
    return z.masked_fill_(~is_kept, -math.inf)


def _check_token(key: str, token: int, size: int) -> None:
    if not 0 <= token < size:
        raise ConfigError(key, token, f"token ids below the vocabulary's {size}")
