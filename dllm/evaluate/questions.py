"""Two questions about a caller's turn, asked of held-back dialogues: is it complete, and which of its words are doubtful?

A complete turn is one that a person sent off; an incomplete one is the same kind of turn cut behind some word. Cuts that happen to leave a
whole sentence count as incomplete, so no model can be right always. Doubtful words were exchanged for others of similar spelling.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dllm.evaluate.bootstrap import Estimate, estimate, estimate_of
from dllm.evaluate.metrics import area_under_curve, calibration_error, reliability
from dllm.evaluate.replies import Limit
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec
from dllm.train.data import Dialogue, alike_words

CONTEXT = 200
"""Tokens of earlier turns that are shown."""
LONGEST = 56
"""Tokens of the longest turn that is asked about."""
CORRUPTED_SHARE = 0.12
DOUBT = (0.02, 0.1, 0.5)
"""Probabilities below which a word is called doubtful."""
_TOGETHER = 16
"""Turns that share a forward."""


@dataclass(frozen=True, slots=True)
class TurnSample:
    """A caller's turn up to where it stands."""

    group: tuple[str, str]
    prompt: tuple[int, ...]
    """Earlier turns, the caller's role token, and what was said so far."""
    is_whole: bool
    words: int


@dataclass(frozen=True, slots=True)
class WordSample:
    """A caller's turn as it was heard."""

    group: tuple[str, str]
    prompt: tuple[int, ...]
    """Earlier turns and the caller's role token."""
    heard: tuple[int, ...]
    words: tuple[tuple[int, int], ...]
    """[start, end) of each word in `heard`."""
    is_wrong: tuple[bool, ...]
    """For each word."""


TurnEnds: TypeAlias = Callable[[Sequence[Sequence[int]]], list[float]]
"""Probabilities that nothing follows in the turns that the prompts end with (`dllm.transcript.turn_ends`)."""
WordChances: TypeAlias = Callable[[Sequence[int], Sequence[int]], list[float]]
"""From the tokens before a turn, and the turn as it was heard: the probability that each of its tokens was meant."""


def turn_samples(
    dialogues: Mapping[str, Sequence[Dialogue]], codec: DialogueCodec, count: int, seed: int = 0
) -> list[TurnSample]:
    """About as many whole turns as cut ones, one of each dialogue, sources in turns."""
    samples = []
    for group, context, text, rng in _user_turns(dialogues, codec, count, seed):
        words = text.split()
        is_whole = rng.random() < 0.5
        said = words if is_whole else words[: rng.randrange(1, len(words))]
        prompt = (*context, *codec.encode_text(" ".join(said)))
        samples.append(TurnSample(group, prompt, is_whole, len(said)))
    return samples


def word_samples(
    dialogues: Mapping[str, Sequence[Dialogue]], codec: DialogueCodec, count: int, seed: int = 0
) -> list[WordSample]:
    """Turns in which some words that are one token are exchanged for others that look like them."""
    texts = {token: codec.token_bytes(token) for token in range(codec.vocab_size)}
    alike = alike_words({token: text for token, text in texts.items() if re.fullmatch(rb" [a-z']+", text)})
    samples = []
    for group, context, text, rng in _user_turns(dialogues, codec, count, seed + 1):
        heard = list(codec.encode_text(text))
        starts = [at for at, token in enumerate(heard) if texts[token][:1] == b" "]
        words = tuple(zip(starts, [*starts[1:], len(heard)], strict=True))
        is_wrong = []
        for start, end in words:
            wrong = end - start == 1 and heard[start] in alike and rng.random() < CORRUPTED_SHARE
            if wrong:
                heard[start] = rng.choice(alike[heard[start]])
            is_wrong.append(wrong)
        samples.append(WordSample(group, context, tuple(heard), words, tuple(is_wrong)))
    return samples


def _user_turns(
    dialogues: Mapping[str, Sequence[Dialogue]], codec: DialogueCodec, count: int, seed: int
) -> Iterator[tuple[tuple[str, str], tuple[int, ...], str, random.Random]]:
    """(group, context tokens, the turn's words, a generator of its own) of turns of two words or more."""
    made = 0
    for number in range(max((len(some) for some in dialogues.values()), default=0)):
        for name, some in dialogues.items():
            if number >= len(some):
                continue
            digest = hashlib.sha256(f"{seed}:{name}:{number}".encode()).digest()
            rng = random.Random(int.from_bytes(digest[:8], "little"))
            turns = some[number].turns
            asked = [at for at, turn in enumerate(turns) if turn.role == "user" and _fits(turn.text, codec)]
            if not asked:
                continue
            at = rng.choice(asked)
            if made == count:
                return
            made += 1
            yield (
                (name, f"{number}:{some[number].id}"),
                _context(some[number], at, codec),
                spoken_form(turns[at].text),
                rng,
            )


def _fits(text: str, codec: DialogueCodec) -> bool:
    spoken = spoken_form(text)
    return len(spoken.split()) > 1 and len(codec.encode_text(spoken)) <= LONGEST


def _context(dialogue: Dialogue, at: int, codec: DialogueCodec) -> tuple[int, ...]:
    """The system turn and the latest turns before turn `at`, and the caller's role token."""
    pieces: list[list[int]] = []
    for turn in dialogue.turns[:at]:
        if turn.is_call:
            special = codec.special
            pieces.append([special.agent, special.call, *codec.encode_text(turn.text), special.end])
        else:
            text = spoken_form(turn.text) if turn.role == "user" else turn.text
            pieces.append(codec.encode_turn(turn.role, text))
    head = pieces[:1] if dialogue.turns[0].role == "system" and at else []
    tail: list[list[int]] = []
    room = CONTEXT - sum(map(len, head))
    for piece in reversed(pieces[len(head) :]):
        room -= len(piece)
        if room < 0:
            break
        tail.insert(0, piece)
    return (*(token for piece in head + tail for token in piece), codec.role_id("user"))


# --- answers ----------------------------------------------------------------------------------------------------------


def measure_turns(
    ends: TurnEnds, samples: Sequence[TurnSample], limit: Limit | None = None, seed: int = 0
) -> dict[str, Any]:
    """Accuracy at one half, area under the curve and reliability; silence alone and the turn's length for comparison."""
    together = [samples[at : at + _TOGETHER] for at in range(0, len(samples), _TOGETHER)]
    chances = [chance for some in (limit or Limit()).within(together) for chance in ends([s.prompt for s in some])]
    samples = samples[: len(chances)]
    whole = np.array([sample.is_whole for sample in samples])
    groups = [sample.group for sample in samples]
    lengths = np.array([sample.words for sample in samples], dtype=np.float64)

    def area(scores: NDArray[np.float64]) -> dict[str, Any]:
        return estimate_of(lambda rows: area_under_curve(scores[rows], whole[rows]), groups, seed=seed).to_json()

    right = [[float((chance > 0.5) == sample.is_whole), 1.0] for chance, sample in zip(chances, samples, strict=True)]
    majority = max(whole.mean(), 1 - whole.mean()) if len(whole) else 0.0
    bins = reliability(chances, [sample.is_whole for sample in samples])
    return {
        "turns": len(samples),
        "whole": int(whole.sum()),
        "accuracy": estimate(right, groups, seed=seed).to_json(),
        "area": area(np.array(chances)),
        # Silence follows a pause inside a turn as it follows its end: the same for both kinds.
        "silence": {"area": 0.5, "accuracy": round(float(majority), 5)},
        "length": {"area": area(lengths)},
        "reliability": [asdict(entry) for entry in bins],
        "calibration_error": round(calibration_error(bins), 5),
    }


def measure_doubts(
    word_chances: WordChances, samples: Sequence[WordSample], limit: Limit | None = None, seed: int = 0
) -> dict[str, Any]:
    """How well a low probability of the word that stands there finds words that were misheard."""
    chances: list[float] = []
    wrong: list[bool] = []
    groups: list[tuple[str, str]] = []
    asked = 0
    for sample in (limit or Limit()).within(samples):
        asked += 1
        of_token = word_chances(sample.prompt, sample.heard)
        for (start, end), is_wrong in zip(sample.words, sample.is_wrong, strict=True):
            chances.append(min(of_token[start:end]))
            wrong.append(is_wrong)
            groups.append(sample.group)
    scores, labels = -np.array(chances), np.array(wrong)

    def share(rows: list[list[float]]) -> dict[str, Any]:
        found = estimate(rows, groups, seed=seed)
        return Estimate(found.value, found.low, found.high, int(sum(row[1] for row in rows)), found.groups).to_json()

    at = []
    for bound in DOUBT:
        called = [chance < bound for chance in chances]
        both = [one and other for one, other in zip(called, wrong, strict=True)]
        at.append(
            {
                "below": bound,
                "precision": share([[float(hit), float(one)] for hit, one in zip(both, called, strict=True)]),
                "recall": share([[float(hit), float(one)] for hit, one in zip(both, wrong, strict=True)]),
            }
        )
    return {
        "turns": asked,
        "words": len(chances),
        "wrong": sum(wrong),
        "area": estimate_of(lambda rows: area_under_curve(scores[rows], labels[rows]), groups, seed=seed).to_json(),
        "at": at,
    }
