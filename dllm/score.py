"""How probable texts are under a network: likelihoods, bounds of them, and distributions at masked positions. Reads, decides nothing.

A masked model has no likelihood of its own that could be computed; it has one for each order in which tokens may be revealed. The mean
of their logarithms over all orders is a lower bound of the logarithm of their mixture, and that is what diffusion models are trained
on and reported by (MDLM, arXiv:2406.07524; any-order view: arXiv:2110.02037). Written as a draw over patterns it is: choose how many
of N tokens are masked, k, uniformly; choose which; N / k times the sum of log-probabilities at the masked ones (LLaDA,
arXiv:2502.09992). Block-causal models reveal blocks left to right, so their bound is the sum of their blocks' (BD3-LM,
arXiv:2503.09573), and blocks of one token make it the exact autoregressive likelihood.

All of it is at temperature 1, in nats, over every token but the mask, which no text holds.

Dimensions: R rows of one forward, T window tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from dllm.errors import ConfigError, PromptTooLongError
from dllm.masks import prefix_mask, visible, visible_counts
from dllm.models.family import LayerStore, Network
from dllm.spec import ModelSpec

ROWS = 16
"""Patterns per forward unless the caller says otherwise."""
_LOGIT_ROWS = 256
"""Rows of logits at once: 256 of 152,000 tokens are 150 MB in float32."""
_MASK_CELLS = 2**24
"""Largest mask of questions of different lengths: each query's own row of keys, 64 MB in float32."""


@dataclass(frozen=True, slots=True)
class Score:
    """What is known of a text's probability."""

    log_probability: float
    """Nats; for a bound, the true one is at least this, up to the error."""
    standard_error: float
    """Of the drawn patterns, in nats; 0 when every pattern was asked."""
    tokens: int
    forwards: int
    """Rows that went through the network, those of the prompt left out."""
    kind: Literal["causal", "bound"]
    is_greedy: bool
    """Whether every token was the most probable one each time it was asked for."""

    @property
    def per_token(self) -> float:
        """Nats per token, at most 0."""
        return self.log_probability / self.tokens


def score(
    network: Network,
    prompt: Sequence[int],
    reply: Sequence[int],
    *,
    draws: int = 128,
    seed: int = 0,
    width: int | None = None,
    rows: int = ROWS,
) -> Score:
    """The exact likelihood where the model is also a causal one, else the bound."""
    if network.spec.causal_verify:
        return causal_likelihood(network, prompt, reply)
    return likelihood_bound(network, prompt, reply, draws=draws, seed=seed, width=width, rows=rows)


@torch.inference_mode()
def causal_likelihood(network: Network, prompt: Sequence[int], reply: Sequence[int]) -> Score:
    """Exact log-probability of writing `reply` left to right; one forward.

    Raises:
        ConfigError: If the model has no causal mode, or a token is none of its.
        PromptTooLongError: If the text exceeds the model's positions.
    """
    spec = network.spec
    if not spec.causal_verify and spec.mask_kind != "causal":
        raise ConfigError("causal", spec.family, "a family with a causal mode")
    _check(spec, prompt, reply, 0)
    tokens = [*prompt, *reply]
    counts = visible_counts("causal", 1, 0, len(tokens), total=len(tokens))
    device = _device(network)
    ids = torch.tensor([tokens], device=device)
    hidden = network(
        ids, torch.arange(len(tokens), device=device).unsqueeze(0), prefix_mask(counts, len(tokens), device)
    )
    chances, best = _chances(network, hidden[0, len(prompt) - 1 : -1], ids[0, len(prompt) :])
    return Score(float(chances.sum()), 0.0, len(reply), 1, "causal", bool(best.all()))


@torch.inference_mode()
def likelihood_bound(
    network: Network,
    prompt: Sequence[int],
    reply: Sequence[int],
    *,
    draws: int = 128,
    seed: int = 0,
    width: int | None = None,
    rows: int = ROWS,
) -> Score:
    """The any-order lower bound of a reply's log-probability, for absorbing models.

    Patterns come in pairs: k masked tokens, and N + 1 - k masked ones from the other end of the same shuffled order, so that both
    the numbers and the places balance. A block with at most `draws` patterns is asked for all of them instead, once each.

    Args:
        reply: Tokens to be scored, an end-of-turn only if it is to count.
        draws: Patterns per block, at least 4 and even.
        width: Canvas positions; those behind the reply stay masked and do not count. None is the least the model takes.
        rows: Patterns per forward.

    Raises:
        ConfigError: Under uniform corruption, whose models predict no single masked position; if the canvas is wider than the model
            was trained for; if the reply is empty or holds the mask or a token that the model has not.
        PromptTooLongError: If prompt and canvas exceed the model's positions.
    """
    spec = network.spec
    _check_masked(spec)
    if draws < 4 or draws % 2:
        raise ConfigError("draws", draws, "an even number of at least 4")
    if rows < 1:
        raise ConfigError("rows", rows, "at least 1")
    wide = _canvas_width(spec, len(prompt), len(reply), width)
    _check(spec, prompt, reply, wide - len(reply))
    generator = torch.Generator().manual_seed(seed)
    reader = _Reader(network, rows)
    total = variance = 0.0
    forwards, is_greedy = 0, True
    for block in _blocks(spec, prompt, reply, wide):
        mean, error, asked, greedy = _block_bound(reader, block, draws, generator)
        total, variance, forwards, is_greedy = total + mean, variance + error**2, forwards + asked, is_greedy and greedy
    return Score(total, math.sqrt(variance), len(reply), forwards, "bound", is_greedy)


@dataclass(frozen=True, slots=True)
class Question:
    """Which tokens stand at some masked positions?"""

    prompt: tuple[int, ...]
    canvas: tuple[int, ...]
    """Tokens, and the mask token where nothing is known."""
    positions: tuple[int, ...]
    """Canvas positions that are asked for; each holds the mask token."""
    labels: tuple[int, ...] = ()
    """The only tokens that count as answers; none are all but the mask."""


@dataclass(frozen=True, slots=True)
class Answer:
    probabilities: Tensor
    """[positions, labels or V] float32, each row sums to one."""
    mass: Tensor
    """[positions] float32: how much of the whole distribution the labels had. Little of it means that none of them fits."""


@torch.inference_mode()
def probabilities(network: Network, questions: Sequence[Question], *, rows: int = ROWS) -> list[Answer]:
    """The distribution at masked positions, a forward for every `rows` questions; nothing is written to any cache.

    All positions of a question are asked at once: each distribution is given the canvas as it stands, not given the other answers.

    Raises:
        ConfigError: If a position holds no mask, labels repeat, or the model is of uniform corruption.
        PromptTooLongError: If a prompt and canvas exceed the model's positions.
    """
    spec = network.spec
    mask = _check_masked(spec)
    answers: list[Answer] = []
    for question in questions:
        _check_question(spec, question)
    longest = max((len(question.prompt) + len(question.canvas) for question in questions), default=1)
    # Padding would change the noise level that a model reads off its tokens.
    together = 1 if spec.sees_noise else max(1, min(rows, _MASK_CELLS // longest**2))
    for first in range(0, len(questions), together):
        some = questions[first : first + together]
        hidden = hidden_states(network, some)
        for row, question in enumerate(some):
            at = torch.tensor([len(question.prompt) + place - spec.logit_shift for place in question.positions])
            logits = network.logits(hidden[row, at.to(hidden.device)]).float()
            logits[:, mask] = -torch.inf
            spread = torch.softmax(logits, dim=-1)
            mass = torch.ones_like(spread[:, 0])
            if question.labels:
                labels = torch.tensor(question.labels, device=logits.device)
                mass = spread[:, labels].sum(dim=-1)
                spread = torch.softmax(logits[:, labels], dim=-1)
            answers.append(Answer(spread.cpu(), mass.cpu()))
    return answers


def classify(
    network: Network,
    prompt: Sequence[int],
    labels: Sequence[Sequence[int]],
    *,
    draws: int = 128,
    seed: int = 0,
    closes: bool = True,
) -> list[float]:
    """Probabilities of a few replies, given that the reply is one of them.

    Args:
        labels: Tokens of each.
        closes: Whether an end-of-turn follows and counts. Without it, labels of one token each take a single forward.

    Raises:
        ConfigError: If there are fewer than two labels, one is empty, or two are equal.
    """
    spec = network.spec
    if len(labels) < 2 or not all(labels) or len({tuple(label) for label in labels}) < len(labels):
        raise ConfigError("labels", [list(label) for label in labels], "at least two texts, different and not empty")
    if not closes and all(len(label) == 1 for label in labels):
        mask = _check_masked(spec)
        canvas = (mask,) * _canvas_width(spec, len(prompt), 1, None)
        question = Question(tuple(prompt), canvas, (0,), tuple(label[0] for label in labels))
        return [float(value) for value in probabilities(network, [question])[0].probabilities[0]]
    ending = (spec.special.end,) if closes else ()
    # One canvas for all: a wider one is another question.
    width = _canvas_width(spec, len(prompt), max(len(label) for label in labels) + len(ending), None)
    found = [
        score(network, prompt, [*label, *ending], draws=draws, seed=seed, width=width).log_probability
        for label in labels
    ]
    return [float(value) for value in torch.softmax(torch.tensor(found, dtype=torch.float64), dim=0)]


# --- blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """Positions that are revealed in any order, behind finished text."""

    before: tuple[int, ...]
    """Finished tokens that the cache may hold: the mask lets none of them see the block."""
    window: tuple[int, ...]
    """What goes through the network for each pattern: fixed tokens, then the reply's, then masks."""
    first: int
    """Window token at which the block's tokens begin."""
    targets: tuple[int, ...]
    seed: int | None = None
    """The token that the pass over `before` gives the block (Nemotron, Fast-dLLM v2); it stands in the window, fixed."""


def _blocks(spec: ModelSpec, prompt: Sequence[int], reply: Sequence[int], width: int) -> Iterator[_Block]:
    assert spec.special.mask is not None
    start = len(prompt)
    text = (*prompt, *reply, *[spec.special.mask] * (width - len(reply)))
    if spec.mask_kind == "full":
        yield _Block((), text, start, tuple(reply))
        return
    is_grid = spec.mask_kind == "block_causal"
    at, end = start, start + len(reply)
    while at < end:
        stop = at // spec.block * spec.block + spec.block if is_grid else min(at + spec.block, len(text))
        # Where a block begins, some models take its first token from the pass over what is before it.
        is_seeded = spec.seeds_block and (not is_grid or at % spec.block == 0)
        begin = at // spec.block * spec.block if is_grid else at
        if spec.logit_shift and begin == at and not is_seeded:
            # Others that are shifted read it off the row before, which must be in the window then (with its block).
            begin = (at - 1) // spec.block * spec.block if is_grid else at - 1
        first = at + 1 if is_seeded else at
        seed = text[at] if is_seeded else None
        yield _Block(text[:begin], text[begin:stop], first - begin, tuple(text[first : min(stop, end)]), seed)
        at = stop


def _block_bound(
    reader: _Reader, block: _Block, draws: int, generator: torch.Generator
) -> tuple[float, float, int, bool]:
    """Mean and standard error in nats, patterns asked, and whether every answer was the best one."""
    seeded, is_greedy = reader.open(block)
    count = len(block.targets)
    if not count:
        return seeded, 0.0, 0, is_greedy
    if 2**count - 1 <= draws:
        patterns = [pattern for size in range(1, count + 1) for pattern in combinations(range(count), size)]
        sums, best = reader.ask(block, patterns)
        # Every size weighs the same, and every pattern of a size: 1 / N * N / k / C(N, k).
        weights = torch.tensor([1 / (len(pattern) * math.comb(count, len(pattern))) for pattern in patterns])
        return seeded + float((sums * weights.double()).sum()), 0.0, len(patterns), is_greedy and best
    patterns = []
    for _ in range(draws // 2):
        order = torch.randperm(count, generator=generator).tolist()
        size = int(torch.randint(1, count + 1, (), generator=generator))
        patterns += [tuple(order[:size]), tuple(order[size - 1 :])]
    sums, best = reader.ask(block, patterns)
    sizes = torch.tensor([len(pattern) for pattern in patterns], dtype=torch.float64)
    pairs = (sums * count / sizes).view(-1, 2).mean(dim=1)
    error = float(pairs.std()) / math.sqrt(len(pairs))
    return seeded + float(pairs.mean()), error, len(patterns), is_greedy and best


class _Reader:
    """Many patterns of one block over finished text that is encoded once."""

    def __init__(self, network: Network, rows: int) -> None:
        self._network, self._rows, self._spec = network, rows, network.spec
        self._device = _device(network)
        self._kept: list[LayerStore] = []
        """The finished text, one row."""
        self._known: tuple[int, ...] = ()
        self._last: Tensor | None = None
        """[E] hidden state of its last token."""

    def open(self, block: _Block) -> tuple[float, bool]:
        """Encode what is new of the block's finished text; the log-probability of its seed, and whether that is the best token."""
        before = block.before
        known = len(self._known)
        if known < len(before):
            total = len(before)
            grown = self._network.new_stores(1, total)
            for old, new in zip(self._kept, grown, strict=False):
                new.keys[:, :, :known], new.values[:, :, :known] = old.keys, old.values
            counts = visible(self._spec, known, total - known, total=total)
            hidden = self._network(
                torch.tensor([before[known:]], device=self._device),
                torch.arange(known, total, device=self._device).unsqueeze(0),
                prefix_mask(counts, total, self._device),
                grown,
                known,
            )
            self._kept, self._known, self._last = grown, before, hidden[0, -1]
        if block.seed is None:
            return 0.0, True
        assert self._last is not None
        chances, best = _chances(self._network, self._last[None], torch.tensor([block.seed], device=self._device))
        return float(chances[0]), bool(best[0])

    def ask(self, block: _Block, patterns: Sequence[Sequence[int]]) -> tuple[Tensor, bool]:
        """[patterns] float64 sums of log-probabilities at the masked targets, and whether all were the best tokens."""
        start, length = len(block.before), len(block.window)
        total = start + length
        assert self._spec.special.mask is not None
        live = start + block.first - (block.seed is not None)
        mask = prefix_mask(visible(self._spec, start, length, total=total, live=live), total, self._device)
        sums, all_best = [], True
        for first in range(0, len(patterns), self._rows):
            some = patterns[first : first + self._rows]
            ids = torch.tensor([block.window] * len(some), device=self._device)
            row = torch.tensor([index for index, pattern in enumerate(some) for _ in pattern], device=self._device)
            at = torch.tensor([place + block.first for pattern in some for place in pattern], device=self._device)
            ids[row, at] = self._spec.special.mask
            positions = torch.arange(start, total, device=self._device).expand(len(some), length)
            hidden = self._network(ids, positions, mask, self._stores(len(some), total), start)
            targets = torch.tensor([block.targets[place] for pattern in some for place in pattern], device=self._device)
            chances, best = _chances(self._network, hidden[row, at - self._spec.logit_shift], targets)
            of_row = torch.zeros(len(some), dtype=torch.float64, device=self._device)
            sums.append(of_row.index_add_(0, row, chances))
            all_best = all_best and bool(best.all())
        return torch.cat(sums).cpu(), all_best

    def _stores(self, rows: int, total: int) -> list[LayerStore] | None:
        """The finished text for each row, and room for the window."""
        known = len(self._known)
        if not known:
            return None
        stores = self._network.new_stores(rows, total)
        for kept, store in zip(self._kept, stores, strict=True):
            store.keys[:, :, :known], store.values[:, :, :known] = kept.keys, kept.values
        return stores


# --- forwards ---------------------------------------------------------------------------------------------------------


def _chances(network: Network, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[n] float64 log-probabilities of `targets` [n] at `hidden` [n, E], and [n] bool whether each is the most probable token."""
    chances, best = [], []
    for first in range(0, len(targets), _LOGIT_ROWS):
        logits = network.logits(hidden[first : first + _LOGIT_ROWS]).float()
        if network.spec.special.mask is not None:
            logits[:, network.spec.special.mask] = -torch.inf
        some = targets[first : first + _LOGIT_ROWS]
        # Not `commit_from_logits`: on a CPU its other statistics would take eight times as long as these two.
        chosen = logits.gather(1, some.unsqueeze(1)).squeeze(1)
        chances.append((chosen - logits.logsumexp(dim=-1)).double())
        best.append(chosen >= logits.amax(dim=-1))
    return torch.cat(chances), torch.cat(best)


def hidden_states(network: Network, questions: Sequence[Question]) -> Tensor:
    """[R, T, E]: each row a prompt and canvas in one forward, padded on the right with tokens that nobody sees."""
    spec, device = network.spec, _device(network)
    totals = [len(question.prompt) + len(question.canvas) for question in questions]
    longest = max(totals)
    ids = [
        [*question.prompt, *question.canvas, *[question.prompt[0]] * (longest - total)]
        for question, total in zip(questions, totals, strict=True)
    ]
    masks = []
    for question, total in zip(questions, totals, strict=True):
        counts = visible(spec, 0, total, total=total, live=len(question.prompt))
        masks.append(prefix_mask([*counts, *[1] * (longest - total)], longest, device).expand(1, 1, longest, longest))
    positions = torch.arange(longest, device=device).expand(len(questions), longest)
    return network(torch.tensor(ids, device=device), positions, torch.cat(masks))


def _device(network: Network) -> torch.device:
    found: torch.device = next(iter(network.parameters())).device  # type: ignore[attr-defined]
    return found


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_masked(spec: ModelSpec) -> int:
    """The mask token."""
    if spec.special.mask is None:
        raise ConfigError(
            "corruption",
            spec.corruption,
            f"absorbing: {spec.family} has no mask token to ask behind, and no such bound",
        )
    return spec.special.mask


def _canvas_width(spec: ModelSpec, prompt: int, tokens: int, width: int | None) -> int:
    """Positions of a canvas for so many tokens: whole multiples, whole blocks on the grid."""
    multiple = spec.canvas_multiple
    wide = -(-tokens // multiple) * multiple if width is None else width
    if wide < tokens:
        raise ConfigError("width", wide, f"at least the {tokens} tokens of the reply")
    if spec.max_canvas and wide > spec.max_canvas:
        raise ConfigError("reply", tokens, f"at most the {spec.max_canvas} positions of a canvas")
    if spec.mask_kind == "block_causal":
        return -(-(prompt + wide) // spec.block) * spec.block - prompt
    return wide


def _check(spec: ModelSpec, prompt: Sequence[int], reply: Sequence[int], behind: int) -> None:
    if not prompt:
        raise ConfigError("prompt", (), "at least one token")
    if not reply:
        raise ConfigError("reply", (), "at least one token")
    for name, tokens in (("prompt", prompt), ("reply", reply)):
        for token in tokens:
            if not 0 <= token < spec.vocab_size:
                raise ConfigError(name, token, f"token ids in [0, {spec.vocab_size})")
    if spec.special.mask in reply:
        raise ConfigError("reply", spec.special.mask, "no mask token")
    total = len(prompt) + len(reply) + behind
    if total > spec.max_position_embeddings:
        raise PromptTooLongError(total, spec.max_position_embeddings)


def _check_question(spec: ModelSpec, question: Question) -> None:
    total = len(question.prompt) + len(question.canvas)
    if not question.prompt or not question.canvas:
        raise ConfigError("question", total, "a prompt and a canvas of at least one token each")
    if total > spec.max_position_embeddings:
        raise PromptTooLongError(total, spec.max_position_embeddings)
    for token in (*question.prompt, *question.canvas, *question.labels):
        if not 0 <= token < spec.vocab_size:
            raise ConfigError("question", token, f"token ids in [0, {spec.vocab_size})")
    for place in question.positions:
        if not 0 <= place < len(question.canvas) or question.canvas[place] != spec.special.mask:
            raise ConfigError("positions", place, "canvas positions that hold the mask token")
    if len(set(question.labels)) < len(question.labels) or spec.special.mask in question.labels:
        raise ConfigError("labels", question.labels, "different tokens, none of them the mask")
