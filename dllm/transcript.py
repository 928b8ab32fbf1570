"""Questions about what a caller said, read off the built-in family's canvas: is the turn complete, and which words are doubtful?

Complete: the narrowest canvas, all masks, behind the words so far. Its first position holds `<end>` with the probability that nothing
follows. Doubtful: a canvas that holds the words themselves. The model says at each position what was meant there, and how probable the
word is that stands there. One forward either way; the model is trained for both (`dllm.train.objective`, `rest_canvas` and
`transcript_canvas`), other families are not. What else may have been meant: the same canvas with the doubtful words masked again, which the
model is trained for on its own replies only.

Source: token-to-token denoising as in LLaDA 2.1; the idea of reading the end of a turn off a language model is TurnGPT's
(arXiv:2010.10874).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.engine import Engine
from dllm.errors import ConfigError, PromptTooLongError
from dllm.models.family import Network
from dllm.score import Question, hidden_states, probabilities
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec


@dataclass(frozen=True, slots=True)
class HeardWord:
    """One word of a transcript."""

    text: str
    probability: float
    """That this word was meant, the least of its tokens'."""
    instead: str
    """What the model would have written; the word itself where it agrees. Empty where that is no text."""


def turn_ends(network: Network, prompts: Sequence[Sequence[int]], *, rows: int = 16) -> list[float]:
    """Probabilities that nothing follows in the user's turns that the prompts end with.

    Args:
        prompts: Tokens up to the last word said so far; the user's role token is among them, no `<end>` behind it.
        rows: Prompts that share a forward.

    Raises:
        ConfigError: If the model is not of the built-in family.
        PromptTooLongError: If a prompt and its canvas exceed the model's positions.
    """
    spec = _dialogue_spec(network)
    mask, end = spec.special.mask, spec.special.end
    assert mask is not None, "the built-in family has a mask token"
    canvas = (mask,) * spec.canvas_multiple
    questions = [Question(tuple(prompt), canvas, (0,)) for prompt in prompts]
    return [float(answer.probabilities[0, end]) for answer in probabilities(network, questions, rows=rows)]


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What one forward tells of a turn so far."""

    probability: float
    """That nothing follows; what `turn_ends` gives."""
    surprise: float
    """Nats per token of the turn's words that the cache did not hold, each given what is before it; 0 where there are none. Words that were
    misheard, or of which the model knows nothing, surprise it: then the other number means little."""


@torch.inference_mode()
def turn_end(engine: Engine, prompt: Sequence[int]) -> TurnEnd:
    """`turn_ends` for one prompt, on what an engine's prefix cache holds of it: a forward of the words that are new and the canvas.

    For the engine's thread. The cache is left as it was.

    Raises:
        As `turn_ends`.
    """
    network = engine.model
    spec = _dialogue_spec(network)
    mask, end = spec.special.mask, spec.special.end
    assert mask is not None, "the built-in family has a mask token"
    (logits,), told = _on_prefix(engine, prompt, [(mask,) * spec.canvas_multiple])
    roles = [at for at, token in enumerate(prompt) if token == spec.dialogue.user] if spec.dialogue is not None else []
    # Of the words, those that have a token before them whose state was computed just now.
    first = max(roles[-1] if roles else 0, len(prompt) - len(told))
    words = torch.tensor(prompt[first + 1 :], device=told.device)
    rows = told[first - (len(prompt) - len(told)) : -1]
    nats = torch.log_softmax(rows, dim=-1).gather(1, words.unsqueeze(1))
    surprise = -float(nats.mean()) if len(words) else 0.0
    return TurnEnd(float(torch.softmax(logits[0], dim=-1)[end]), surprise)


@torch.inference_mode()
def _on_prefix(engine: Engine, prompt: Sequence[int], canvases: Sequence[Sequence[int]]) -> tuple[list[Tensor], Tensor]:
    """Canvases behind a prompt, all in one forward in which none sees another, on what the engine's prefix cache holds of the prompt.

    Returns:
        For each canvas [positions, V] float32 logits, the mask's -inf; and the same for the last prompt tokens, those that the cache did
        not hold.

    Raises:
        PromptTooLongError: If the prompt and its longest canvas exceed the model's positions.
    """
    network, spec, size = engine.model, engine.model.spec, len(prompt)
    longest = size + max(map(len, canvases))
    if longest > spec.max_position_embeddings:
        raise PromptTooLongError(longest, spec.max_position_embeddings)
    total = size + sum(map(len, canvases))
    stores = network.new_stores(1, total, engine.cache_dtype)
    text = engine.cache.open(prompt)
    try:
        known = text.length
        engine.cache.read(text, [store.of(0) for store in stores])
    finally:
        engine.cache.close(text)
    device = stores[0].keys.device
    owners = torch.tensor([0] * size + [at for at, canvas in enumerate(canvases, 1) for _ in canvas], device=device)
    keys, queries = torch.arange(total, device=device), torch.arange(known, total, device=device).unsqueeze(1)
    is_canvas = owners[known:].unsqueeze(1) > 0
    seen = torch.where(is_canvas, (keys < size) | (owners == owners[known:].unsqueeze(1)), keys <= queries)
    places = [*range(known, size), *[size + at for canvas in canvases for at in range(len(canvas))]]
    window = [*prompt[known:], *[token for canvas in canvases for token in canvas]]
    hidden = network(
        torch.tensor([window], device=device),
        torch.tensor([places], device=device),
        seen.view(1, 1, total - known, total),
        stores,
        known,
    )
    logits = network.logits(hidden[0]).float()
    logits[:, spec.special.mask] = -torch.inf
    told, *found = torch.split(logits, [size - known, *map(len, canvases)])
    return found, told


def word_chances(network: Network, prompt: Sequence[int], heard: Sequence[int]) -> list[tuple[float, int]]:
    """For each token of a transcript the probability that it was meant, and the token that most probably was.

    Args:
        prompt: Tokens up to the user's role token.
        heard: The transcript's tokens.

    Raises:
        ConfigError: If the model is not of the built-in family, or the transcript is empty or wider than a canvas.
        PromptTooLongError: If prompt and canvas exceed the model's positions.
    """
    spec = _dialogue_spec(network)
    canvas = _transcript(spec, heard)
    with torch.inference_mode():
        hidden = hidden_states(network, [Question(tuple(prompt), canvas, ())])[
            0, len(prompt) : len(prompt) + len(heard)
        ]
        return _chances(spec, network.logits(hidden).float(), heard)


def _transcript(spec: ModelSpec, heard: Sequence[int]) -> tuple[int, ...]:
    """The canvas that holds these tokens and the end behind them."""
    width = -(-(len(heard) + 1) // spec.canvas_multiple) * spec.canvas_multiple
    if not heard or width > spec.max_canvas:
        raise ConfigError("transcript", len(heard), f"1 to {spec.max_canvas - 1} tokens")
    return (*heard, *[spec.special.end] * (width - len(heard)))


def _chances(spec: ModelSpec, logits: Tensor, heard: Sequence[int]) -> list[tuple[float, int]]:
    """Read off the logits of the canvas's first positions what `word_chances` returns."""
    logits[:, list(spec.special.forbidden)] = -torch.inf
    spread = torch.softmax(logits[: len(heard)], dim=-1)
    meant = spread.argmax(dim=-1)
    return [(float(spread[at, token]), int(meant[at])) for at, token in enumerate(heard)]


def heard_words(network: Network, codec: DialogueCodec, prompt: Sequence[int], text: str) -> list[HeardWord]:
    """The words of a transcript with their chances.

    Args:
        prompt: Tokens up to the user's role token.
        text: As a recogniser writes: lower case, no punctuation.

    Raises:
        As `word_chances`.
    """
    heard = codec.encode_text(text)
    return _words(codec, heard, word_chances(network, prompt, heard))


def _words(codec: DialogueCodec, heard: Sequence[int], chances: Sequence[tuple[float, int]]) -> list[HeardWord]:
    words = []
    for start, stop in _word_spans(codec, heard):
        instead = codec.decode([token for _, token in chances[start:stop]]).strip()
        least = min(chance for chance, _ in chances[start:stop])
        words.append(HeardWord(codec.decode(heard[start:stop]).strip(), least, instead))
    return words


def _word_spans(codec: DialogueCodec, heard: Sequence[int]) -> list[tuple[int, int]]:
    """Where each word's tokens begin and end."""
    starts = [at for at, token in enumerate(heard) if codec.token_bytes(token)[:1] == b" "]
    return list(zip(starts, [*starts[1:], len(heard)], strict=True))


class HeardTurn:
    """A transcript under question on an engine's prefix cache; its questions belong on the engine's thread.

    Args:
        prompt: Tokens up to the user's role token.
        text: As a recogniser writes: lower case, no punctuation.

    Raises:
        As `word_chances`.
    """

    def __init__(self, engine: Engine, codec: DialogueCodec, prompt: Sequence[int], text: str) -> None:
        self._engine, self._codec, self._prompt = engine, codec, list(prompt)
        self._spec = _dialogue_spec(engine.model)
        self._heard = codec.encode_text(text)
        self._canvas = _transcript(self._spec, self._heard)
        self._spans = _word_spans(codec, self._heard)

    @torch.inference_mode()
    def words(self) -> list[HeardWord]:
        """What `heard_words` gives; one forward."""
        (logits,), _ = _on_prefix(self._engine, self._prompt, [self._canvas])
        return _words(self._codec, self._heard, _chances(self._spec, logits, self._heard))

    @torch.inference_mode()
    def instead(self, spans: Sequence[tuple[int, int]], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """How probable texts are in place of words, in nats: the words are masked again, as many masks as the text has tokens.

        Each text's is the sum over its tokens, which are asked for at once: given the words around them, not given each other. One
        forward for all.

        Args:
            spans: First word, and one past the last.
            texts: For each span.
        """
        mask, end = self._spec.special.mask, self._spec.special.end
        assert mask is not None, "the built-in family has a mask token"
        tokens = [[self._codec.encode_text(text) for text in some] for some in texts]
        slots = [(span, length) for span, some in zip(spans, tokens, strict=True) for length in {len(t) for t in some}]
        canvases = []
        for (first, last), length in slots:
            before, behind = self._heard[: self._spans[first][0]], self._heard[self._spans[last - 1][1] :]
            filled = [*before, *[mask] * length, *behind]
            canvases.append([*filled, *[end] * max(len(self._canvas) - len(filled), 1)])
        if not canvases:
            return [[] for _ in texts]
        found, _ = _on_prefix(self._engine, self._prompt, canvases)
        tables: dict[tuple[tuple[int, int], int], Tensor] = {}
        for ((first, last), length), logits in zip(slots, found, strict=True):
            start = self._spans[first][0]
            tables[(first, last), length] = torch.log_softmax(logits[start : start + length], dim=-1)
        return [
            [sum(float(tables[span, len(text)][at, token]) for at, token in enumerate(text)) for text in some]
            for span, some in zip(spans, tokens, strict=True)
        ]


def _dialogue_spec(network: Network) -> ModelSpec:
    if network.spec.dialogue is None:
        raise ConfigError(
            "family", network.spec.family, "the built-in family, which is trained for questions about turns"
        )
    return network.spec
