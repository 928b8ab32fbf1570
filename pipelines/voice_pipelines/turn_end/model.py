"""The model: a recurrent network over words, beside a table of the last few. numpy only, and well under a millisecond for a turn.

    model = TurnEndModel.load()
    model.completeness("i'd like a large", asked="What can I get you?")     # probability that nothing follows

Words are known by the hashes of the commonest; all others are one word, "unknown", and tell something by the hashes of their first and last letters. So a name that
was never met is a name behind "What's your name?". The network reads what the agent said last, a mark that tells whether it was a question, and the caller's words so far; the
table has the one to four words at the end, how many there are, and what the agent's last sentence begins with. Both give log-odds, which add up.

Sources: gated recurrent units are Cho et al.'s (arXiv:1406.1078); a table of crossed features beside a network is wide and deep learning
(arXiv:1606.07792); that words alone foretell the end of a turn, TurnGPT (arXiv:2010.10874).

Dimensions: B turns, T words of a row, E embedding, H hidden.
"""

from __future__ import annotations

import functools
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dllm.spoken import spoken_form
from voiceagent.endpoint_dictation import last_sentence
from voiceagent.errors import BackendError

WEIGHTS = Path(__file__).parent / "weights.npz"
LETTER_BITS, TABLE_BITS = 11, 18
LETTERS = 3
"""First and last ones of a word that are hashed."""
MOST_ASKED, MOST_WORDS = 12, 40
"""Words that are read of the agent's turn and of the caller's, the last ones."""
OPENING_WORDS = 2
FEW_WORDS = 3
"""Of the caller's, that are looked up together with what the agent's last sentence begins with."""
NEWEST_CHARS = 2_000
"""Of either text, looked at for those words: an endless one must not hold up whoever waits for the answer, and others with them."""
STATEMENT, QUESTION, UNKNOWN = 1, 2, 3
"""Hashes of the mark between the agent's words and the caller's, and of all words that are not known; 0 is no word."""
MOST_ODDS = 8.0
"""Log-odds are kept so far from certainty."""
CROSSES = 10
"""Entries of the table per place."""

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]


FIRST = MOST_ASKED + 1
"""Where the caller's words begin in a row."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the agent said last."""

    words: tuple[str, ...] = ()
    """The last `MOST_ASKED`."""
    opening: tuple[str, ...] = ()
    """First words of the last sentence: "how many", "would you"."""
    is_question: bool = False


def asked_of(text: str) -> Asked:
    """As the agent wrote it, with its marks."""
    newest = _newest(text)
    opening = spoken_form(last_sentence(newest)).split()[:OPENING_WORDS]
    words = spoken_form(newest).split()[-MOST_ASKED:]
    return Asked(tuple(words), tuple(opening), newest.rstrip().endswith("?"))


class Rows(NamedTuple):
    """Turns as hashes."""

    words: Hashes
    """[B, FIRST + longest]: what the agent said to the left of the mark, the caller's words to its right; 0 where there is nothing."""
    beginnings: Hashes
    """The same of their first letters."""
    endings: Hashes
    """The same of their last letters."""
    opening: Hashes
    """[B, OPENING_WORDS]"""


def rows(turns: Sequence[tuple[Asked, Sequence[str]]]) -> Rows:
    """
    Args:
        turns: What the agent said and the caller's words, which are not more than `MOST_WORDS`.
    """
    longest = max(len(words) for _, words in turns)
    hashes = np.zeros((3, len(turns), FIRST + longest), np.uint64)
    opening = np.zeros((len(turns), OPENING_WORDS), np.uint64)
    for at, (asked, words) in enumerate(turns):
        mark = QUESTION if asked.is_question else STATEMENT
        read = [*map(_hashes, asked.words), (mark, mark, mark), *map(_hashes, words)]
        hashes[:, at, MOST_ASKED - len(asked.words) : FIRST + len(words)] = np.array(read, np.uint64).T
        opening[at, : len(asked.opening)] = [_hash(word) for word in asked.opening]
    return Rows(hashes[0], hashes[1], hashes[2], opening)


def places(hashes: Hashes, known: Hashes) -> NDArray[np.int64]:
    """Where each stands among those that are known, which are in order; that of `UNKNOWN` for others."""
    found = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(np.where(known[found] == hashes, found, UNKNOWN), np.int64)


def _newest(text: str) -> str:
    """The end of a text, from the beginning of a word."""
    return text if len(text) <= NEWEST_CHARS else text[-NEWEST_CHARS:].partition(" ")[2]


@functools.lru_cache(maxsize=65_536)
def _hashes(word: str) -> tuple[int, int, int]:
    return _hash(word), _hash(word[:LETTERS]), _hash(word[-LETTERS:])


def _hash(word: str) -> int:
    """32 bits, none of the marks."""
    return max(zlib.crc32(word.encode("utf-8")), UNKNOWN + 1)


def crosses(words: Hashes, opening: Hashes) -> NDArray[np.int64]:
    """[B, T, CROSSES] table entries at each of the caller's words.

    Args:
        words: [B, 1 + T] the mark, and the caller's words; unknown ones are `UNKNOWN`.
        opening: [B, OPENING_WORDS] of the agent's last sentence.
    """
    mark, words = words[:, :1], words[:, 1:]
    before = [np.roll(words, shift, axis=1) for shift in range(4)]
    for shift, column in enumerate(before):
        column[:, :shift] = 0
    counts = np.broadcast_to(np.arange(1, words.shape[1] + 1), words.shape)
    count = np.minimum(counts, 12).astype(np.uint64)
    first, mark, opened, then = (
        np.broadcast_to(column, words.shape) for column in (words[:, :1], mark, opening[:, :1], opening[:, 1:2])
    )
    is_few = counts <= FEW_WORDS
    few = (np.where(is_few, count, 0), np.where(is_few, before[1], 0), np.where(is_few, before[0], 0))
    kinds: tuple[tuple[Hashes, ...], ...] = (
        (before[0],),
        (before[1], before[0]),
        (before[2], before[1], before[0]),
        (before[3], before[2], before[1], before[0]),
        (count, before[0]),
        (count, first),
        (before[2], before[0]),
        (mark, *few),
        (mark, opened, *few),
        (mark, opened, then, *few),
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
        weights: `known` [V] uint32, 0 to `UNKNOWN` and the hashes of the words that are known, in order; `words` [V, E], `beginnings` and `endings`
            [2^LETTER_BITS, E], `input` [3H, E], `input_bias` [3H], `hidden` [3H, H], `hidden_bias` [3H], `output` [H], `table` [2^TABLE_BITS],
            `bias` [1]; gates in the order reset, update, new.

    Raises:
        BackendError: If one is missing or has another shape.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        try:
            size, (count, width) = weights["output"].shape[0], weights["words"].shape
        except (KeyError, IndexError, ValueError) as error:
            raise BackendError("endpoint", f"turn-end weights: {error!r}") from error
        shapes = {
            "words": (count, width),
            "beginnings": (2**LETTER_BITS, width),
            "endings": (2**LETTER_BITS, width),
            "input": (3 * size, width),
            "input_bias": (3 * size,),
            "hidden": (3 * size, size),
            "hidden_bias": (3 * size,),
            "output": (size,),
            "table": (2**TABLE_BITS,),
            "bias": (1,),
        }
        for name, shape in {"known": (count,), **shapes}.items():
            found = weights[name].shape if name in weights else None
            if found != shape:
                raise BackendError("endpoint", f"turn-end weights: {name} has shape {found}, expected {shape}")
        self._weights: dict[str, Floats] = {name: weights[name].astype(np.float32) for name in shapes}
        self._known: Hashes = weights["known"].astype(np.uint64)
        if count <= UNKNOWN or not (self._known[: UNKNOWN + 1] == np.arange(UNKNOWN + 1)).all():
            raise BackendError("endpoint", "turn-end weights: known does not begin with the marks")

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
            asked: What the agent said before, with its marks.
        """
        said = spoken_form(_newest(words)).split()
        if not said:
            return 0.5
        odds = float(self.log_odds(asked_of(asked), said)[-1])
        return 1 / (1 + math.exp(-min(max(odds, -MOST_ODDS), MOST_ODDS)))

    def log_odds(self, asked: Asked, words: Sequence[str]) -> Floats:
        """Log-odds that the turn is over behind each of the caller's words, at most the last `MOST_WORDS` of them."""
        row = rows([(asked, words[-MOST_WORDS:])])
        weights, size = self._weights, self._weights["output"].shape[0]
        found = places(row.words, self._known)
        letters = np.uint64(2**LETTER_BITS)
        seen = weights["words"][found[0]]
        seen += weights["beginnings"][row.beginnings[0] % letters]
        seen += weights["endings"][row.endings[0] % letters]
        gates = seen @ weights["input"].T + weights["input_bias"]
        state = np.zeros(size, np.float32)
        states = np.empty((len(gates), size), np.float32)
        for at, given in enumerate(gates):
            own = weights["hidden"] @ state + weights["hidden_bias"]
            both = 1 / (1 + np.exp(-(given[: 2 * size] + own[: 2 * size])))
            new = np.tanh(given[2 * size :] + both[:size] * own[2 * size :])
            state = new + both[size:] * (state - new)
            states[at] = state
        known = self._known[found]
        entries = crosses(known[:, FIRST - 1 :], self._known[places(row.opening, self._known)])
        crossed = weights["table"][entries[0]].sum(axis=-1)
        return np.asarray(states[FIRST:] @ weights["output"] + crossed + weights["bias"], np.float32)
