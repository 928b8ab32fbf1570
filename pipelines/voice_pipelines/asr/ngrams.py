"""N-gram language models from counts: Witten-Bell smoothing, interpolation, and the ARPA file decoders read.

Words are strings; a context is a tuple of the words before, oldest first. `START` is only ever a context, `END` only ever predicted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO

START, END = "<s>", "</s>"
ORDER = 3
_NEVER = -99.0
"""ARPA's log10 probability of what is never predicted."""

Context = tuple[str, ...]


class Counts:
    """How often each sequence of 1..ORDER words occurs. Counts may be fractional (expectations)."""

    def __init__(self) -> None:
        self.tables: list[dict[Context, float]] = [{} for _ in range(ORDER)]

    def add(self, words: Context, count: float) -> None:
        """Count a sequence.

        Raises:
            ValueError: If it has no words or more than ORDER, or the count is not positive.
        """
        if not 1 <= len(words) <= ORDER or not count > 0:
            raise ValueError(f"{' '.join(words)!r} × {count}: expected 1 to {ORDER} words and a positive count")
        table = self.tables[len(words) - 1]
        table[words] = table.get(words, 0.0) + count

    @property
    def words(self) -> frozenset[str]:
        return frozenset(words[0] for words in self.tables[0]) - {START, END}


class WittenBell:
    """Smoothed conditional probabilities of counts over a vocabulary that may be larger than what was counted.

    p(w | h) = (c(hw) + T(h) p(w | h')) / (c(h) + T(h)), where T(h) is the number of different words seen after h and h' is h without
    its oldest word; below the unigrams lies the uniform distribution over the vocabulary and END.

    Source: Witten and Bell 1991; Chen and Goodman 1998, section 2.5.
    """

    def __init__(self, counts: Counts, vocabulary: Iterable[str]) -> None:
        self.vocabulary = frozenset(vocabulary) | {END}
        # After each context: the count of every word seen there. The empty context is the unigrams.
        self._seen: dict[Context, dict[str, float]] = defaultdict(dict)
        for table in counts.tables:
            for words, count in table.items():
                if words[-1] in self.vocabulary:
                    self._seen[words[:-1]][words[-1]] = count
        self._mass = {context: (sum(seen.values()), len(seen)) for context, seen in self._seen.items()}

    @property
    def contexts(self) -> Mapping[Context, Mapping[str, float]]:
        """The words seen after each context."""
        return self._seen

    def probability(self, word: str, context: Context) -> float:
        """p(word | context) for a word of the vocabulary; contexts never seen are shortened."""
        value = 1.0 / len(self.vocabulary)
        for start in range(len(context), -1, -1):
            history = context[start:]
            mass = self._mass.get(history)
            if mass is not None:
                total, types = mass
                value = (self._seen[history].get(word, 0.0) + types * value) / (total + types)
        return value


class BackoffModel:
    """An interpolation of models as one back-off model.

    Every sequence that one of the models has counted gets the weighted sum of their probabilities; all others are reached by backing
    off, with weights that make each context sum to one.
    """

    def __init__(self, weighted: Iterable[tuple[float, WittenBell]]) -> None:
        """
        Raises:
            ValueError: If weights do not sum to one or vocabularies differ.
        """
        models = list(weighted)
        total = sum(weight for weight, _ in models)
        if not math.isclose(total, 1.0) or len({model.vocabulary for _, model in models}) != 1:
            raise ValueError(f"expected models of one vocabulary with weights that sum to 1, got a sum of {total}")
        self.vocabulary = models[0][1].vocabulary
        following: dict[Context, set[str]] = {(): set(self.vocabulary)}
        for _, model in models:
            for context, seen in model.contexts.items():
                following.setdefault(context, set()).update(seen)
        # A context is only reachable when it is itself a sequence of the model: ARPA files store its back-off weight there.
        for context in sorted(following, key=len, reverse=True):
            if len(context) > 1:
                following.setdefault(context[:-1], set()).add(context[-1])
        self._probability: dict[Context, dict[str, float]] = {}
        self._backoff: dict[Context, float] = {}
        for context in sorted(following, key=lambda words: (len(words), words)):
            table = {
                word: sum(weight * model.probability(word, context) for weight, model in models)
                for word in sorted(following[context])
            }
            self._probability[context] = table
            if context:
                left = 1.0 - sum(table.values())
                left_below = 1.0 - sum(self.probability(word, context[1:]) for word in table)
                self._backoff[context] = max(left, 1e-12) / max(left_below, 1e-12)

    def probability(self, word: str, context: Context) -> float:
        """p(word | context), backing off where the sequence is not stored."""
        table = self._probability.get(context)
        if table is not None and word in table:
            return table[word]
        return self._backoff.get(context, 1.0) * self.probability(word, context[1:])

    def write_arpa(self, out: TextIO) -> None:
        """Write the model in ARPA format, in a fixed order."""
        levels: list[list[tuple[Context, float]]] = [[] for _ in range(ORDER)]
        levels[0].append(((START,), 0.0))
        for context, table in self._probability.items():
            levels[len(context)].extend(((*context, word), probability) for word, probability in table.items())
        out.write("\\data\\\n")
        out.writelines(f"ngram {order}={len(level)}\n" for order, level in enumerate(levels, start=1))
        for order, level in enumerate(levels, start=1):
            out.write(f"\n\\{order}-grams:\n")
            out.writelines(self._arpa_lines(level, has_backoff=order < ORDER))
        out.write("\n\\end\\\n")

    def _arpa_lines(self, level: list[tuple[Context, float]], *, has_backoff: bool) -> Iterator[str]:
        for words, probability in sorted(level):
            log = math.log10(probability) if probability > 0 else _NEVER
            backoff = self._backoff.get(words)
            ending = f"\t{math.log10(backoff):.4f}" if has_backoff and backoff is not None else ""
            yield f"{log:.4f}\t{' '.join(words)}{ending}\n"
