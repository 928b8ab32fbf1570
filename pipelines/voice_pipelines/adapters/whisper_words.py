"""Words from what faster-whisper calls words: pieces of text, of which those without a blank in front belong to the piece before. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from voiceagent.backends import Word

_COMMAS = ",\uff0c\u3001"


def whole_words(pieces: Iterable[Word]) -> tuple[Word, ...]:
    """Join pieces to words that have no blank around them: " 20", "-ounce" are "20-ounce".

    A blank behind a hyphen joins too: `tiny.en` writes " medium", "-", " roast" in a quarter of the windows over one recording and " medium", "-roast"
    in most others. Not where somebody began a word again: "I- I want". A word lasts from its first piece to the end of its last, and is as probable as the least probable of them. Pieces without text are left out.
    """
    words: list[Word] = []
    starts_word = True
    for piece in pieces:
        text = piece.text.strip()
        starts_word = starts_word or piece.text[:1].isspace()
        if starts_word and words and text and _joins(words[-1].text, text):
            starts_word = False
        if text and starts_word:
            words.append(replace(piece, text=text))
        elif text:
            first = words[-1]
            words[-1] = Word(
                first.text + text,
                first.start_s,
                max(first.end_s, piece.end_s),
                min(first.probability, piece.probability),
            )
        starts_word = piece.text[-1:].isspace() or (starts_word and not text)
    return tuple(words)


def _joins(before: str, text: str) -> bool:
    """Whether the hyphen that `before` ends with belongs between the two: both are words, and the second is not the first begun again."""
    begun = before.removesuffix("-")
    is_compound = begun != before and begun[-1:].isalnum() and text[:1].isalnum()
    return is_compound and not text.casefold().startswith(begun.rpartition("-")[2].casefold())


def without_last_comma(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words without a comma behind the last: with a list of hot words before it, Whisper ends what it writes as that list would go on."""
    if not words:
        return ()
    *before, last = words
    text = last.text.rstrip(_COMMAS)
    return (*before, replace(last, text=text)) if text else tuple(before)
