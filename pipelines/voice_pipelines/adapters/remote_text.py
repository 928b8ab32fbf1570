"""From the text of a remote model to what may be spoken: whole clauses are committed, the rest may still change. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto

from voiceagent.backends import CanvasToken, TokenState
from voiceagent.clauses import ClauseFinder

_WORD = re.compile(r"\s*\S+")
_SENTENCE_END = re.compile(r"[.?!…][\"'”’)\]}*_]*$")
_LAST_SPACE = re.compile(r"\s+\S*$")
_THOUGHT, _THOUGHT_END = "<think>", "</think>"


class ReplyEnd(Enum):
    """Why no more text comes."""

    MODEL = auto()
    """The model ended its reply."""
    LIMIT = auto()
    """The limit of tokens ended it."""
    DEADLINE = auto()
    """The caller has heard all of it that was there and would wait in silence."""


class ReplyText:
    """Text that grows by pieces or is replaced by canvases, and how much of it is committed.

    Only whole clauses are committed: the voice speaks nothing less, and what is behind them can still be dropped at a deadline.
    The committed text never shrinks or changes, and ends at a word boundary.
    """

    def __init__(self) -> None:
        self._raw = ""
        self._text = ""
        """Final text so far, what the model thought to itself left out."""
        self._shown = ""
        """The newest canvas where it is not final; else the same as `_text`."""
        self._progress = 1.0
        self._finder = ClauseFinder()
        self._settled = ""
        """The whole words of `_text`: what the finder was given, so that it may not change any more."""
        self._committed_end = 0
        self._cells: list[CanvasToken] = []
        """The committed words."""
        self._sentence_end = 0

    @property
    def committed(self) -> str:
        return self._text[: self._committed_end]

    @property
    def ends_sentence(self) -> bool:
        """Whether the reply could end with what is committed."""
        return 0 < self._committed_end == self._sentence_end

    def append(self, piece: str) -> None:
        """More final text."""
        self._raw += piece
        self._settle(spoken_part(self._raw))

    def show(self, canvas: str, progress: float) -> None:
        """The whole text as it stands; final at a progress of 1.

        Raises:
            ValueError: If a final canvas changes the words of an earlier one.
        """
        if progress >= 1.0:
            self._raw = canvas
            self._settle(spoken_part(canvas))
        else:
            self._shown, self._progress = spoken_part(canvas), progress

    def finish(self, end: ReplyEnd, must_say: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """No more text comes, or no more is waited for.

        Args:
            end: Why. Short of the model's own end, a sentence that was begun is dropped, unless a clause of it is committed or, at the
                limit, there is nothing else.
            must_say: What the reply has to contain. A text that it lacks is added in a sentence of its own, which holds nothing else.

        Returns:
            The final text, which begins with the committed one, and the texts that had to be added.

        Raises:
            ValueError: As `show`, when the last canvas was never called final.
        """
        if end is ReplyEnd.DEADLINE:
            text = self.committed
        else:
            self._settle(self._shown)
            text = self._text.rstrip()
            if end is ReplyEnd.LIMIT and self._committed_end and not _SENTENCE_END.search(text):
                text = self.committed
        text, missing = with_missing(text, must_say)
        self._text = self._shown = text
        self._commit(len(text))
        return text, missing

    def canvas(self, width: int) -> tuple[CanvasToken, ...]:
        """A cell for each word, at least `width` of them. Confidence is the endpoint's progress, the only measure it gives."""
        shown, progress = self._shown, round(self._progress, 4)
        cells = [*self._cells]
        for word in _WORD.findall(shown[self._committed_end :]):
            cells.append(CanvasToken(word, TokenState.PROVISIONAL, progress))
        # Past the end of a finished reply nothing is open any more.
        is_over = 0 < len(shown) == self._committed_end
        empty = CanvasToken("", TokenState.COMMITTED, 1.0) if is_over else CanvasToken("", TokenState.MASKED, 0.0)
        return (*cells, *[empty] * (width - len(cells)))

    def _settle(self, text: str) -> None:
        if not text.startswith(self._settled):
            raise ValueError(f"{text[: len(self._settled) + 20]!r} does not begin with {self._settled!r}")
        self._text = self._shown = text
        self._progress = 1.0
        # A word is whole when white space follows it.
        space = _LAST_SPACE.search(text)
        whole = text[: space.start()] if space else ""
        if len(whole) <= len(self._settled):
            return
        clauses = self._finder.push(whole[len(self._settled) :], ends_word=True)
        self._settled = whole
        for clause in clauses:
            self._commit(text.index(clause, self._committed_end) + len(clause))
            if _SENTENCE_END.search(clause):
                self._sentence_end = self._committed_end

    def _commit(self, end: int) -> None:
        for word in _WORD.findall(self._text[self._committed_end : end]):
            self._cells.append(CanvasToken(word, TokenState.COMMITTED, 1.0))
        self._committed_end = end


def with_missing(text: str, must_say: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """A reply with what it lacks in a sentence of its own, which holds nothing else; and what that was."""
    missing = tuple(wanted for wanted in dict.fromkeys(must_say) if not says(text, wanted))
    if missing:
        added = ", ".join(missing).rstrip(".")
        text = f"{text} {added[:1].upper()}{added[1:]}.".lstrip()
    return text, missing


def says(text: str, wanted: str) -> bool:
    """Whether `text` contains `wanted` as whole words; case and white space cannot be heard."""
    pattern = r"\s+".join(re.escape(word) for word in wanted.split())
    return re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None


def spoken_part(raw: str) -> str:
    """What is meant for the listener: models that think aloud put that first, between tags."""
    text = raw.lstrip()
    if text.startswith(_THOUGHT):
        _, closed, after = text.partition(_THOUGHT_END)
        return after.lstrip() if closed else ""
    return "" if text and _THOUGHT.startswith(text) else text
