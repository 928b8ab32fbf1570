"""The model: a recurrent network over words, beside a table of the last few. numpy only, and well under a millisecond for a turn.

    model = TurnEndModel.load()
    model.completeness("i'd like a large", asked="What can I get you?")     # probability that nothing follows

Words are known by their hashes alone, so there is no vocabulary: one hash of the word, one of its last letters, which tells something of words
never met. The network reads what the agent said last, a mark, and the caller's words so far; the table has the one to four words at the end and
how many there are. Both give log-odds, which add up.

Sources: gated recurrent units are Cho et al.'s (arXiv:1406.1078); a table of crossed features beside a network is wide and deep learning
(arXiv:1606.07792); that words alone foretell the end of a turn, TurnGPT (arXiv:2010.10874).

Dimensions: B turns, T words of a row, E embedding, H hidden.
"""

from __future__ import annotations

import functools
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dllm.spoken import spoken_form
from voiceagent.errors import BackendError

WEIGHTS = Path(__file__).parent / "weights.npz"
WORD_BITS, ENDING_BITS, TABLE_BITS = 14, 11, 17
ENDING_LETTERS = 3
MOST_ASKED, MOST_WORDS = 12, 40
"""Words that are read of the agent's turn and of the caller's, the last ones."""
NEWEST_CHARS = 2_000
"""Of either text, looked at for those words: an endless one must not hold up whoever waits for the answer, and others with them."""
MARK = 1
"""Hash of the mark between the agent's words and the caller's; 0 is no word."""
MOST_ODDS = 8.0
"""Log-odds are kept so far from certainty."""
CROSSES = 7
"""Entries of the table per place."""

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]


FIRST = MOST_ASKED + 1
"""Where the caller's words begin in a row."""


def rows(turns: Sequence[tuple[Sequence[str], Sequence[str]]]) -> tuple[Hashes, Hashes]:
    """Turns as the network reads them: [B, FIRST + longest] hashes of the words, and of their last letters.

    What the agent said last stands to the left of the mark, the caller's words to its right; 0 where there is nothing.

    Args:
        turns: The agent's words and the caller's, which are not more than `MOST_WORDS`.
    """
    longest = max(len(words) for _, words in turns)
    hashes = np.zeros((len(turns), FIRST + longest), np.uint64)
    endings = np.zeros_like(hashes)
    for at, (asked, words) in enumerate(turns):
        asked = asked[-MOST_ASKED:]
        pairs = [*map(_pair, asked), (MARK, MARK), *map(_pair, words)]
        place = slice(MOST_ASKED - len(asked), FIRST + len(words))
        hashes[at, place], endings[at, place] = zip(*pairs, strict=True)
    return hashes, endings


def _newest(text: str) -> str:
    """The end of a text, from the beginning of a word."""
    return text if len(text) <= NEWEST_CHARS else text[-NEWEST_CHARS:].partition(" ")[2]


@functools.lru_cache(maxsize=65_536)
def _pair(word: str) -> tuple[int, int]:
    return _hash(word), _hash(word[-ENDING_LETTERS:])


def _hash(word: str) -> int:
    """32 bits, neither `MARK` nor 0."""
    return max(zlib.crc32(word.encode("utf-8")), 2)


def crosses(words: Hashes) -> NDArray[np.int64]:
    """[B, T, CROSSES] table entries at each of the caller's words; `words` [B, T] begin with the caller's first."""
    before = [np.roll(words, shift, axis=1) for shift in range(4)]
    for shift, column in enumerate(before):
        column[:, :shift] = 0
    count = np.broadcast_to(np.minimum(np.arange(1, words.shape[1] + 1), 12).astype(np.uint64), words.shape)
    first = np.broadcast_to(words[:, :1], words.shape)
    kinds = (
        (before[0],),
        (before[1], before[0]),
        (before[2], before[1], before[0]),
        (before[3], before[2], before[1], before[0]),
        (count, before[0]),
        (count, first),
        (before[2], before[0]),
    )
    return np.stack([_mixed(number, parts) for number, parts in enumerate(kinds, 1)], axis=-1)


def _mixed(kind: int, parts: Sequence[Hashes]) -> NDArray[np.int64]:
    total = np.full(parts[0].shape, kind * 0x9E3779B97F4A7C15 % 2**64, np.uint64)
    for part in parts:
        total = (total ^ part) * np.uint64(0xFF51AFD7ED558CCD)  # the multiplier of MurmurHash3's last step
        total ^= total >> np.uint64(33)
    return (total >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


class TurnEndModel:
    """Weights, ready to be asked. Immutable: any thread may ask.

    Args:
        weights: `words` [2^WORD_BITS, E], `endings` [2^ENDING_BITS, E], `input` [3H, E], `input_bias` [3H], `hidden` [3H, H], `hidden_bias` [3H],
            `output` [H], `table` [2^TABLE_BITS], `bias` [1]; gates in the order reset, update, new.

    Raises:
        BackendError: If one is missing or has another shape.
    """

    def __init__(self, weights: dict[str, Floats]) -> None:
        try:
            size, width = weights["output"].shape[0], weights["words"].shape[1]
        except (KeyError, IndexError) as error:
            raise BackendError("endpoint", f"turn-end weights: {error!r}") from error
        shapes = {
            "words": (2**WORD_BITS, width),
            "endings": (2**ENDING_BITS, width),
            "input": (3 * size, width),
            "input_bias": (3 * size,),
            "hidden": (3 * size, size),
            "hidden_bias": (3 * size,),
            "output": (size,),
            "table": (2**TABLE_BITS,),
            "bias": (1,),
        }
        for name, shape in shapes.items():
            found = weights[name].shape if name in weights else None
            if found != shape:
                raise BackendError("endpoint", f"turn-end weights: {name} has shape {found}, expected {shape}")
        self._weights = {name: weights[name].astype(np.float32) for name in shapes}

    @staticmethod
    def load(path: Path = WEIGHTS) -> TurnEndModel:
        """Raises:
        BackendError: If the file cannot be read or holds something else.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return TurnEndModel({name: found[name] for name in found.files})
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise BackendError("endpoint", f"cannot load {path}: {error}") from error

    def completeness(self, words: str, asked: str = "") -> float:
        """Probability that nothing follows, where a pause within a turn is as likely as one behind it; 0.5 without words.

        Args:
            words: The caller's so far, as any recogniser writes them.
            asked: What the agent said before.
        """
        said = spoken_form(_newest(words)).split()
        if not said:
            return 0.5
        odds = float(self.log_odds(spoken_form(_newest(asked)).split(), said)[-1])
        return 1 / (1 + math.exp(-min(max(odds, -MOST_ODDS), MOST_ODDS)))

    def log_odds(self, asked: Sequence[str], words: Sequence[str]) -> Floats:
        """Log-odds that the turn is over behind each of the caller's words, at most the last `MOST_WORDS` of them."""
        (hashes,), (endings,) = rows([(asked, words[-MOST_WORDS:])])
        weights, size = self._weights, self._weights["output"].shape[0]
        seen = (
            weights["words"][hashes % np.uint64(2**WORD_BITS)] + weights["endings"][endings % np.uint64(2**ENDING_BITS)]
        )
        gates = seen @ weights["input"].T + weights["input_bias"]
        state = np.zeros(size, np.float32)
        states = np.empty((len(gates), size), np.float32)
        for at, given in enumerate(gates):
            own = weights["hidden"] @ state + weights["hidden_bias"]
            both = 1 / (1 + np.exp(-(given[: 2 * size] + own[: 2 * size])))
            new = np.tanh(given[2 * size :] + both[:size] * own[2 * size :])
            state = new + both[size:] * (state - new)
            states[at] = state
        crossed = weights["table"][crosses(hashes[None, FIRST:])[0]].sum(axis=-1)
        return np.asarray(states[FIRST:] @ weights["output"] + crossed + weights["bias"], np.float32)
