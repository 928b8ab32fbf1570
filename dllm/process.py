"""What a caller's options make of logits before tokens are chosen, and how tokens are drawn from the result.

`Processor` changes the logits of one draft's positions in place; `sample` draws. Both work without a word to the host.

Dimensions: n rows of logits (canvas positions), V vocabulary, W canvas positions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.canvas import TokenTable
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.staging import counting, staged
from dllm_kernels import CommitStats, commit_from_logits
from dllm_kernels.philox import philox_4x32

LENGTH_PULL = 8.0
"""Most that `target_tokens` adds to an end's logit or takes from it: a probability of 1 in 3,000 becomes an even chance."""

_SPAN = 3
"""Tokens of a stutter's repeated span, as in `dllm.canvas.repeats_span`."""
_UNDECIDED = -1
_OUTSIDE = -2
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
    stutters: Tensor | None
    """[V] bool: words and marks that may not stand twice in a row; with it repeated spans of three are refused as well. None allows
    both, which a large model deserves."""

    @classmethod
    def of(
        cls,
        size: int,
        ends: Sequence[int],
        forbidden: Collection[int],
        device: torch.device | str,
        stutters: Collection[int] | None = None,
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
            None if stutters is None else marks(set(stutters) - set(ends)),
        )

    @classmethod
    def of_table(cls, table: TokenTable, size: int, device: torch.device | str) -> Vocabulary:
        """For a small model: with the refusal of stutters."""
        stutters = table.word | table.sentence_end | table.clause_end
        return cls.of(size, (table.end,), {*table.forbidden, table.mask}, device, stutters)


class Processor:
    """One draft's rules about tokens.

    Applied in this order: repetition penalty, logit bias, length target; then what is impossible, as -inf: forbidden tokens, ends before
    `min_tokens`, whatever would complete a banned phrase or a stutter among the decided tokens around it.

    Raises:
        ConfigError: If a biased or banned token is not in the vocabulary.
    """

    def __init__(self, options: DecodeOptions, vocabulary: Vocabulary) -> None:
        device = vocabulary.end_ids.device
        self._options, self._vocabulary = options, vocabulary
        biases: dict[int, float] = {}
        for token, bias in options.logit_bias:
            _check_token("logit_bias", token, vocabulary.size)
            biases[token] = biases.get(token, 0.0) + bias
        self._bias = (
            (torch.tensor(list(biases), device=device), torch.tensor(list(biases.values()), device=device))
            if biases
            else None
        )
        for token in {token for phrase in options.banned for token in phrase}:
            _check_token("banned", token, vocabulary.size)
        self._phrases = _Phrases(options.banned, device) if options.banned else None

    def apply(self, logits: Tensor, positions: Tensor, tokens: Tensor, decided: Tensor) -> None:
        """Change `logits` in place.

        Args:
            logits: [n, V] float32, finite or -inf.
            positions: [n] int64, the canvas position of each row; position p is the reply's token p.
            tokens: [W] int64, what the canvas holds; read where decided.
            decided: [W] bool. A row's own position counts as undecided while its token is looked for.
        """
        vocabulary, options = self._vocabulary, self._options
        known = torch.where(decided, tokens, _UNDECIDED)
        if options.repetition_penalty != 1.0:
            self._penalise(logits, known)
        if self._bias is not None:
            logits.index_add_(1, self._bias[0], self._bias[1].expand(len(logits), -1))
        if options.target_tokens:
            logits.index_add_(1, vocabulary.end_ids, self._over_ends(self._pull(positions)))
        logits.index_fill_(1, vocabulary.forbidden, -math.inf)
        if options.min_tokens:
            logits.index_add_(1, vocabulary.end_ids, self._over_ends(_impossible(positions < options.min_tokens)))
        if self._phrases is not None:
            self._phrases.ban(logits, positions, known)
        if vocabulary.stutters is not None:
            self._ban_stutters(logits, positions, known, vocabulary.stutters)

    def joint_conflicts(self, tokens: Tensor, decided: Tensor, chosen: Tensor) -> Tensor:
        """Which of this step's choices must wait, since together they would complete a banned phrase or a stutter. [W] bool.

        `apply` rules out what decided tokens forbid; this rules out what tokens chosen in the same step forbid each other. Of each
        such span the rightmost new token waits. The leftmost of all new tokens never does, so every step still decides something.

        Args:
            tokens: [W] int64, with the new tokens in place.
            decided: [W] bool, before the step.
            chosen: [W] bool, what the step would decide.
        """
        known = torch.where(decided | chosen, tokens, _UNDECIDED)
        is_new = chosen & ~decided
        waits = torch.zeros_like(chosen)
        if self._phrases is not None:
            waits |= self._phrases.joint(known, is_new)
        if self._vocabulary.stutters is not None:
            waits |= self._joint_stutters(known, is_new, self._vocabulary.stutters)
        return waits

    def _over_ends(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1).expand(-1, len(self._vocabulary.ends))

    def _pull(self, positions: Tensor) -> Tensor:
        """Grows evenly from -`LENGTH_PULL` at position 0 through 0 at the target to `LENGTH_PULL` at twice the target."""
        target = self._options.target_tokens
        return ((positions - target).float() * (LENGTH_PULL / target)).clamp(max=LENGTH_PULL)

    def _penalise(self, logits: Tensor, known: Tensor) -> None:
        """Ends are spared: one decided on the right says nothing against an end here."""
        size = self._vocabulary.size
        seen = torch.zeros(size + 1, dtype=torch.bool, device=logits.device)
        seen.index_fill_(0, torch.where(known >= 0, known, size), True)
        ids = known.clamp_min(0)
        is_hit = seen[ids] & ~self._vocabulary.is_end[ids]
        before = logits.index_select(1, ids)
        penalty = self._options.repetition_penalty
        after = torch.where(before > 0, before / penalty, before * penalty)
        # Positions that hold the same token write the same value, so their order does not matter.
        logits.scatter_(1, ids.expand(len(logits), -1), torch.where(is_hit, after, before))

    def _ban_stutters(self, logits: Tensor, positions: Tensor, known: Tensor, stutters: Tensor) -> None:
        # The canvas with room around it: cell p is at p + 2 * _SPAN.
        width, edge = len(known), 2 * _SPAN
        cells = torch.nn.functional.pad(known, (edge, edge), value=_OUTSIDE)
        ids = cells.clamp_min(0)
        is_known = cells >= 0
        is_text = is_known & ~self._vocabulary.is_end[ids]
        doubles = is_known & stutters[ids]
        # A repeated span is three pairs of cells, three apart. A token is ruled out if it would complete the third: where two further
        # pairs in a row with its own are equal.
        equal = (cells[:-_SPAN] == cells[_SPAN:]) & is_text[:-_SPAN]
        size = width + _SPAN
        before, after = equal[2 : 2 + size], equal[4 : 4 + size]
        completes = (after & equal[5 : 5 + size]) | (
            before & (after | equal[1 : 1 + size])
        )  # as pair p - _SPAN, ..., width - 1

        def beside(offset: int) -> slice:
            return slice(edge + offset, edge + offset + width)

        places = [beside(offset) for offset in (-1, 1, -_SPAN, _SPAN)]
        banned = torch.stack([ids[place] for place in places])[:, positions].T
        is_banned = torch.stack(
            [
                doubles[places[0]],
                doubles[places[1]],
                is_text[places[2]] & completes[:width],
                is_text[places[3]] & completes[_SPAN:],
            ]
        )[:, positions].T
        # Nor may the reply end where a stutter was likelier than its end: what must be said may still be to come.
        end = logits.index_select(1, self._vocabulary.end_ids).amax(dim=1)
        stutter = logits.gather(1, banned).masked_fill_(~is_banned, -math.inf).amax(dim=1)
        logits.scatter_add_(1, banned, _impossible(is_banned))
        logits.index_add_(1, self._vocabulary.end_ids, self._over_ends(_impossible(stutter > end)))

    def _joint_stutters(self, known: Tensor, is_new: Tensor, stutters: Tensor) -> Tensor:
        ids = known.clamp_min(0)
        is_known = known >= 0
        is_text = is_known & ~self._vocabulary.is_end[ids]
        double = (known[:-1] == known[1:]) & is_known[:-1] & stutters[ids[:-1]] & is_new[:-1] & is_new[1:]
        waits = torch.nn.functional.pad(double, (1, 0))
        equal = (known[:-_SPAN] == known[_SPAN:]) & is_text[:-_SPAN]
        repeats = equal[:-2] & equal[1:-1] & equal[2:]
        repeats = torch.nn.functional.pad(repeats, (0, len(known) - len(repeats)))
        return waits | _last_new(repeats, 2 * _SPAN, is_new)


class _Phrases:
    """Banned token sequences, and every way in which one more token completes one of them."""

    def __init__(self, phrases: Sequence[Sequence[int]], device: torch.device) -> None:
        self._phrases = sorted({tuple(phrase) for phrase in phrases}, key=lambda phrase: (len(phrase), phrase))
        longest = max(map(len, self._phrases))
        targets, offsets, wanted, matters = [], [], [], []
        for phrase in self._phrases:
            for at, token in enumerate(phrase):
                others = [(index - at, other) for index, other in enumerate(phrase) if index != at]
                padding = longest - 1 - len(others)
                targets.append(token)
                offsets.append([offset for offset, _ in others] + [0] * padding)
                wanted.append([other for _, other in others] + [_OUTSIDE] * padding)
                matters.append([True] * len(others) + [False] * padding)
        self._targets = torch.tensor(targets, device=device)
        shape = (len(targets), longest - 1)
        self._offsets = torch.tensor(offsets, dtype=torch.int64, device=device).view(shape)
        self._wanted = torch.tensor(wanted, dtype=torch.int64, device=device).view(shape)
        self._matters = torch.tensor(matters, dtype=torch.bool, device=device).view(shape)
        self._spans = [torch.tensor(phrase, device=device) for phrase in self._phrases]

    def ban(self, logits: Tensor, positions: Tensor, known: Tensor) -> None:
        near = _at(known, positions.view(-1, 1, 1) + self._offsets)
        completes = ((near == self._wanted) | ~self._matters).all(dim=2)
        logits.index_add_(1, self._targets, _impossible(completes))

    def joint(self, known: Tensor, is_new: Tensor) -> Tensor:
        starts = counting(len(known), known.device)
        waits = torch.zeros_like(is_new)
        for phrase, span in zip(self._phrases, self._spans, strict=True):
            if len(phrase) > 1:
                found = (_around(known, starts, range(len(phrase))) == span).all(dim=1)
                waits |= _last_new(found, len(phrase), is_new)
        return waits


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


def _at(known: Tensor, places: Tensor) -> Tensor:
    """What stands at canvas places, `_OUTSIDE` beyond either end."""
    inside = (places >= 0) & (places < len(known))
    return torch.where(inside, known[places.clamp(0, len(known) - 1)], _OUTSIDE)


def _around(known: Tensor, positions: Tensor, offsets: Iterable[int]) -> Tensor:
    """[n, offsets]: what stands at those distances from each position."""
    return _at(known, positions.unsqueeze(1) + staged(list(offsets), positions.device))


def _last_new(found: Tensor, length: int, is_new: Tensor) -> Tensor:
    """[W] bool: the last new position of each found span [start, start + length) with two of them. `found` is [W] bool by start."""
    width, count = len(found), is_new.cumsum(0)
    at = counting(width, found.device)
    # A found span never reaches past the canvas.
    end = (at + (length - 1)).clamp_max(width - 1)
    waits = found & (count[end] - count + is_new >= 2)
    last = torch.where(is_new, at, -1).cummax(0).values[end]
    return found.new_zeros(width + 1).scatter_(0, torch.where(waits, last, width), True)[:width]


def _impossible(where: Tensor) -> Tensor:
    """-inf where true, to be added."""
    return torch.zeros(where.shape, device=where.device).masked_fill_(where, -math.inf)


def _check_token(key: str, token: int, size: int) -> None:
    if not 0 <= token < size:
        raise ConfigError(key, token, f"token ids below the vocabulary's {size}")
