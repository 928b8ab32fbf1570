"""Where what callers of the agent say ends, by its own vocabulary: a judge of turns that knows the agent's topics. Pure.

The phrases of `[vocabulary]` say not only which words to expect, but where they stop: "my laptop does not turn on" is a whole phrase of a help desk's. The turn-end model, taught by other
people's dialogues, finds it 42 % complete.
"""

from __future__ import annotations

from collections import defaultdict

from voice_pipelines.asr.grammar import Grammar
from voice_pipelines.asr.ngrams import END, START
from voice_pipelines.asr.text import spoken_words

LAST_WORDS = 3
"""That have to stand in the phrases in this order, the last two of which decide. By two alone a vocabulary of names would end every turn behind one."""


class PhraseEnds:
    """How often the phrases end behind the same words."""

    def __init__(self, grammar: Grammar) -> None:
        _, _, triples = grammar.expected_counts(1.0).tables
        all_of: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for words, count in triples.items():
            all_of[words[:-1]] += count
        self._share = {
            words: triples.get((*words[1:], END), 0.0) / all_of[words[1:]] for words in triples if words[-1] != END
        }

    def share(self, text: str) -> float | None:
        """Share of the phrases with these last words that end behind them, in [0, 1]; None where they are in none, or there are too few words to tell."""
        words = (START, *spoken_words(text))
        return self._share.get(words[-LAST_WORDS:])
