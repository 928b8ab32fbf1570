"""Two questions about what a caller said, read off the built-in family's canvas: is the turn complete, and which words are doubtful?

Complete: the narrowest canvas, all masks, behind the words so far. Its first position holds `<end>` with the probability that nothing
follows. Doubtful: a canvas that holds the words themselves. The model says at each position what was meant there, and how probable the
word is that stands there. One forward either way; the model is trained for both (`dllm.train.objective`, `rest_canvas` and
`transcript_canvas`), other families are not.

Source: token-to-token denoising as in LLaDA 2.1; the idea of reading the end of a turn off a language model is TurnGPT's
(arXiv:2010.10874).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dllm.engine import Engine
from dllm.errors import ConfigError, PromptTooLongError
from dllm.masks import prefix_mask, visible
from dllm.models.family import LayerStore, Network
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
    total = len(prompt) + spec.canvas_multiple
    if total > spec.max_position_embeddings:
        raise PromptTooLongError(total, spec.max_position_embeddings)
    stores = network.new_stores(1, total)
    text = engine.cache.open(prompt)
    try:
        known = text.length
        engine.cache.read(text, [LayerStore(store.keys[0], store.values[0]) for store in stores])
    finally:
        engine.cache.close(text)
    window = [*prompt[known:], *[mask] * spec.canvas_multiple]
    device = stores[0].keys.device
    counts = visible(spec, known, len(window), total=total, live=len(prompt))
    positions = torch.arange(known, total, device=device).unsqueeze(0)
    hidden = network(
        torch.tensor([window], device=device), positions, prefix_mask(counts, total, device), stores, known
    )
    roles = [at for at, token in enumerate(prompt) if token == spec.dialogue.user] if spec.dialogue is not None else []
    first = max(roles[-1] if roles else 0, known)
    logits = network.logits(hidden[0, [*range(first - known, len(prompt) - known - 1), len(prompt) - known]]).float()
    logits[:, mask] = -torch.inf
    chances = torch.log_softmax(logits, dim=-1)
    told = chances[:-1].gather(1, torch.tensor(prompt[first + 1 :], device=device).unsqueeze(1))
    return TurnEnd(float(chances[-1, end].exp()), -float(told.mean()) if len(told) else 0.0)


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
    width = -(-(len(heard) + 1) // spec.canvas_multiple) * spec.canvas_multiple
    if not heard or width > spec.max_canvas:
        raise ConfigError("transcript", len(heard), f"1 to {spec.max_canvas - 1} tokens")
    canvas = (*heard, *[spec.special.end] * (width - len(heard)))
    with torch.inference_mode():
        hidden = hidden_states(network, [Question(tuple(prompt), canvas, ())])[
            0, len(prompt) : len(prompt) + len(heard)
        ]
        logits = network.logits(hidden).float()
        logits[:, list(spec.special.forbidden)] = -torch.inf
        spread = torch.softmax(logits, dim=-1)
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
    chances = word_chances(network, prompt, heard)
    starts = [at for at, token in enumerate(heard) if codec.token_bytes(token)[:1] == b" "]
    words = []
    for start, stop in zip(starts, [*starts[1:], len(heard)], strict=True):
        instead = codec.decode([token for _, token in chances[start:stop]]).strip()
        least = min(chance for chance, _ in chances[start:stop])
        words.append(HeardWord(codec.decode(heard[start:stop]).strip(), least, instead))
    return words


def _dialogue_spec(network: Network) -> ModelSpec:
    if network.spec.dialogue is None:
        raise ConfigError(
            "family", network.spec.family, "the built-in family, which is trained for questions about turns"
        )
    return network.spec
