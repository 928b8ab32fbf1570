"""How a reply compares with its reference, and how a score tells two kinds apart. Pure: texts and numbers in, numbers out.

Measures of replies are counts that can be added over replies (`dllm.evaluate.bootstrap`), so corpus figures and their intervals come
from the same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from dllm.evaluate.bootstrap import Floats
from dllm.spoken import spoken_form
from dllm.text import clean

# --- overlap with the reference ---------------------------------------------------------------------------------------

CHRF_ORDER = 6
CHRF_BETA = 2.0


def chrf_counts(reply: str, reference: str) -> list[float]:
    """For each order 1 to 6: character n-grams of the reply, of the reference, and common ones. White space does not count."""
    counts: list[float] = []
    left, right = "".join(reply.split()), "".join(reference.split())
    for order in range(1, CHRF_ORDER + 1):
        ours = Counter(left[at : at + order] for at in range(len(left) - order + 1))
        theirs = Counter(right[at : at + order] for at in range(len(right) - order + 1))
        counts += [ours.total(), theirs.total(), (ours & theirs).total()]
    return counts


def chrf(sums: Floats) -> Floats:
    """chrF2 in [0, 100] of summed `chrf_counts`, [R, 18] to [R].

    Precision and recall are averaged over the orders that both sides have, then F with beta 2. Source: Popović 2015 (W15-3049), as
    sacrebleu computes it for a corpus (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`).
    """
    by_order = sums.reshape(len(sums), CHRF_ORDER, 3)
    ours, theirs, common = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    counts = (ours > 0) & (theirs > 0)
    orders = np.maximum(counts.sum(axis=1), 1)
    precision = np.divide(common, ours, out=np.zeros_like(common), where=counts).sum(axis=1) / orders
    recall = np.divide(common, theirs, out=np.zeros_like(common), where=counts).sum(axis=1) / orders
    factor = CHRF_BETA**2
    below = factor * precision + recall
    return np.asarray(
        100 * np.divide((1 + factor) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
    )


_WORD = re.compile(r"\$?\w+(?:[.:,]\d+)*(?:'\w+)?")
_PLAIN_WORDS = frozenset(
    "a an the and or but if of to in on at for from by with as is are was were be been am do does did has have had it its it's i i'm "
    "you your you're we our us he she they them their his her my me this that that's these those there there's here what which who "
    "how when where will would can could may might shall should not no yes so then than too also just only any some all please".split()
)
"""Words that every sentence has: agreement in them says nothing."""


def words_of(text: str) -> list[str]:
    """Words and figures in lower case: "$5.10" and "7:30" are one each."""
    return [found.group().casefold() for found in _WORD.finditer(text)]


def content_f1(reply: str, reference: str) -> float | None:
    """F1 over content words, each as often as it stands there; None where the reference has none."""
    theirs = Counter(word for word in words_of(reference) if word not in _PLAIN_WORDS)
    if not theirs:
        return None
    ours = Counter(word for word in words_of(reply) if word not in _PLAIN_WORDS)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def rouge_l(reply: str, reference: str) -> float:
    """F1 over the longest common subsequence of words. Source: Lin 2004 (W04-1013), with beta 1."""
    ours, theirs = words_of(reply), words_of(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for at, other in enumerate(theirs, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return 2 * row[-1] / (len(ours) + len(theirs))


def word_agreement(one: str, other: str) -> float:
    """F1 over all words of two replies; 1 for two empty ones."""
    left, right = Counter(words_of(one)), Counter(words_of(other))
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 1.0


# --- facts ------------------------------------------------------------------------------------------------------------

FactKind: TypeAlias = Literal["price", "time", "number", "name", "pin"]
FACT_KINDS: tuple[FactKind, ...] = ("price", "time", "number", "name", "pin")


@dataclass(frozen=True, slots=True)
class Fact:
    """A piece of text that a reply states because the prompt does. pin: none of the others, but marked in the data as a tool's."""

    text: str
    kind: FactKind


_FIGURES: tuple[tuple[FactKind, re.Pattern[str]], ...] = (
    ("price", re.compile(r"\$\d[\d,]*(?:\.\d\d)?")),
    ("time", re.compile(r"\b\d{1,2}(?::\d\d)? ?[ap]\.?m\b|\b\d{1,2}:\d\d\b", re.IGNORECASE)),
    ("number", re.compile(r"(?<![\w$.:])[A-Za-z]{0,3}-?\d[\d,-]*(?:\.\d+)?\w*")),
)
_NAME = re.compile(r"(?P<title>(?:Dr|Mr|Mrs|Ms)\. )?[A-Z][\w'&-]+(?: (?:of |the |and |& )?[A-Z][\w'&-]+)*")
_SENTENCE_START = re.compile(r"(?:^|[.?!:] |[\"“] ?)$")
_NO_NAMES = frozenset("I'm I'll I've I'd OK Okay Yes No Mr Mrs Ms Monday's".split())


def facts_in(reference: str, known: str, pins: Sequence[str] = ()) -> list[Fact]:
    """Prices, times, other figures and names that the reference states and the prompt's facts and notes hold, and what is pinned.

    A word at the beginning of a sentence is no name, its capital says nothing; a title and a word are. No fact lies inside another.
    """
    found: list[tuple[int, int, FactKind]] = []

    def free(start: int, end: int) -> bool:
        return all(end <= other or start >= stop for other, stop, _ in found)

    for kind, pattern in _FIGURES:
        for match in pattern.finditer(reference):
            start, end = match.start(), match.start() + len(match.group().rstrip(",-"))
            if free(start, end) and states(known, reference[start:end]):
                found.append((start, end, kind))
    for match in _NAME.finditer(reference):
        start, end = match.start(), match.end()
        if _SENTENCE_START.search(reference[:start]) and not match["title"]:
            continue
        if match.group() not in _NO_NAMES and free(start, end) and states(known, match.group()):
            found.append((start, end, "name"))
    for pin in pins:
        start = reference.find(pin)
        if start >= 0 and pin.strip() and free(start, start + len(pin)):
            found.append((start, start + len(pin), "pin"))
    facts = dict.fromkeys(Fact(reference[start:end], kind) for start, end, kind in sorted(found))
    return list(facts)


def states(text: str, fact: str) -> bool:
    """Whether a text says a fact exactly, as whole words; "$5" is not in "$5.10", nor "10" in it. Case does not count."""
    pattern = r"(?<![\w$])(?<!\d[.,:])" + re.escape(clean(fact)) + r"(?!\w)(?![.,:]\d)"
    return re.search(pattern, clean(text), re.IGNORECASE) is not None


def invented_figures(reply: str, prompt: str, heard: str, reference: str) -> list[str]:
    """Figures in a reply that come from nowhere: not in the prompt's facts or notes, not said by the caller, not in the reference."""
    sources = f"{prompt} {reference}"
    spoken = f" {spoken_form(heard)} "
    invented = []
    taken: list[tuple[int, int]] = []
    for _, pattern in _FIGURES:
        for match in pattern.finditer(reply):
            start, end = match.start(), match.start() + len(match.group().rstrip(",-"))
            if any(start < stop and end > begin for begin, stop in taken):
                continue
            taken.append((start, end))
            figure = reply[start:end]
            if not states(sources, figure) and f" {spoken_form(figure)} " not in spoken:
                invented.append(figure)
    return invented


# --- what should not happen -------------------------------------------------------------------------------------------


def repeats(text: str) -> bool:
    """Whether words repeat themselves: a word twice in a row, two to four words twice in a row, or a sentence of three words or more
    that was there before. Figures are left out: codes and telephone numbers do repeat.
    """
    words = [word for word in words_of(text) if not any(char.isdigit() for char in word)]
    for span in range(1, 5):
        if any(words[at : at + span] == words[at + span : at + 2 * span] for at in range(len(words) - 2 * span + 1)):
            return True
    sentences = [tuple(words_of(part)) for part in re.split(r"(?<=[.?!]) ", text)]
    long = [sentence for sentence in sentences if len(sentence) >= 3]
    return len(set(long)) < len(long)


# --- telling two kinds apart ------------------------------------------------------------------------------------------


def area_under_curve(scores: Sequence[float] | Floats, is_positive: Sequence[bool] | Floats) -> float:
    """Probability that a positive has the higher score, ties counting half (Mann-Whitney); not a number with one kind only."""
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((mean_ranks[inverse][positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


@dataclass(frozen=True, slots=True)
class Bin:
    """Turns whose predicted probability lies in [low, high)."""

    low: float
    high: float
    predicted: float
    """Mean of the predictions."""
    observed: float
    """Share that were what was predicted."""
    count: int


def reliability(probabilities: Sequence[float], is_true: Sequence[bool], bins: int = 10) -> list[Bin]:
    """What became of predictions of about the same probability; empty bins are left out."""
    found: dict[int, list[int]] = {}
    for index, probability in enumerate(probabilities):
        found.setdefault(min(int(probability * bins), bins - 1), []).append(index)
    return [
        Bin(
            number / bins,
            (number + 1) / bins,
            sum(probabilities[index] for index in members) / len(members),
            sum(is_true[index] for index in members) / len(members),
            len(members),
        )
        for number, members in sorted(found.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of predicted and observed, by how many there are (ECE; Guo et al., arXiv:1706.04599)."""
    total = sum(entry.count for entry in bins)
    return sum(entry.count * abs(entry.predicted - entry.observed) for entry in bins) / max(1, total)
