"""One draft's events as the client sees them: text that only grows, or whole canvases. Pure.

Text leaves at whole characters. It ends at the first stop string or at the token limit, and what lies behind never leaves. The answer
does not depend on where the engine cuts its commits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dllm.codec import Codec
from dllm.detokenize import IncrementalDecoder
from dllm.drafts import Cell, CellState, Committed, Event, Finished, Prefilled, Stepped, Usage
from dllm.stops import StopFinder

Reason: TypeAlias = Literal["stop", "length"]

MASK_SIGN = "▒"
"""How an undecided position without a guess looks in a canvas."""


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A visible token and its probability when it was decided, at temperature 1."""

    text: bytes
    probability: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str
    chances: tuple[TokenChance, ...]
    """Of the tokens that ended inside this text."""


@dataclass(frozen=True, slots=True)
class CanvasShown:
    """The whole reply as it stands, guesses included."""

    text: str
    progress: float
    """Share of the reply's positions that are decided."""


Delta: TypeAlias = TextDelta | CanvasShown


class Reply:
    """One draft's text.

    Args:
        limit: Most tokens of the text.
        stops: Strings that end it.
        over_limit: Why a reply that reaches the limit ends: an infilled hole is simply full.
        drops_space: Whether the family writes a space before the first word.
        shows_canvas: Report `CanvasShown` for each step instead of text.
    """

    def __init__(
        self,
        codec: Codec,
        limit: int,
        stops: Sequence[str] = (),
        *,
        over_limit: Reason = "length",
        drops_space: bool = False,
        shows_canvas: bool = False,
    ) -> None:
        self._codec, self._limit, self._over_limit = codec, limit, over_limit
        self._drops_space, self._shows_canvas = drops_space, shows_canvas
        self._decoder = IncrementalDecoder(codec)
        self._finder = StopFinder(stops)
        self._tokens: list[int] = []
        self._ends: list[int] = []
        """Characters of the text up to and with each token."""
        self._chances: list[float | None] = []
        self._told = 0
        self._read = 0
        self._canvas: tuple[Cell, ...] = ()
        self._usage = Usage()
        self._steps = 0
        self.text = ""
        """All of it so far."""
        self.reason: Reason | None = None
        """Why it ended; None while it goes on. Nothing more is needed of the draft then."""

    @property
    def visible_tokens(self) -> int:
        """Tokens that are in the text, one that a stop string cut through included."""
        starts = [0, *self._ends][: len(self._ends)]
        return sum(
            end <= len(self.text) if end == start else start < len(self.text)
            for start, end in zip(starts, self._ends, strict=True)
        )

    @property
    def steps(self) -> int:
        """Denoising steps so far."""
        return self._steps

    @property
    def usage(self) -> Usage:
        """What it cost: the engine's own account once the draft is finished, and what its events told until then."""
        return dataclasses.replace(self._usage, visible_tokens=self.visible_tokens)

    def feed(self, event: Event) -> list[Delta]:
        """What the client learns from one event."""
        if self.reason is not None:
            return []
        match event:
            case Prefilled():
                self._usage = dataclasses.replace(
                    self._usage,
                    prompt_tokens=event.cached_tokens + event.new_tokens,
                    cached_tokens=event.cached_tokens,
                    forwards_prefill=int(event.new_tokens > 0),
                    seconds_prefill=event.seconds,
                )
                return []
            case Stepped():
                return self._stepped(event)
            case Committed():
                return self._committed(event)
            case Finished():
                return self._finished(event)
            case _:
                return []

    def _stepped(self, event: Stepped) -> list[Delta]:
        self._canvas, self._steps = event.canvas, event.step
        self._usage = dataclasses.replace(
            self._usage,
            forwards_denoise=event.step,
            seconds_denoise=self._usage.seconds_denoise + event.seconds,
            forced=self._usage.forced + event.forced,
        )
        if not self._shows_canvas:
            return []
        return [
            show_canvas(event.canvas[: self._limit], self._codec, self._finder.stops, drops_space=self._drops_space)
        ]

    def _committed(self, event: Committed) -> list[Delta]:
        known = [
            self._canvas[at].confidence if at < len(self._canvas) and self._canvas[at].token == token else None
            for at, token in enumerate(event.tokens, event.start)
        ]
        text = self._append(event.tokens, known)
        if self.reason is not None:
            return self._close(text)
        return self._delta(text)

    def _finished(self, event: Finished) -> list[Delta]:
        self._usage, self._steps = event.usage, event.steps_first + event.steps_rest
        for at, chance in enumerate(event.probabilities[: len(self._chances)]):
            self._chances[at] = chance
        behind = len(self._tokens)
        text = self._append(event.tokens[behind:], event.probabilities[behind:])
        if self.reason is None:
            self.reason = self._over_limit if event.reason == "canvas_full" else "stop"
        return self._close(text)

    def _append(self, tokens: Sequence[int], chances: Sequence[float | None]) -> str:
        """Take in tokens one by one, so that the text's end is the same however they arrive; text that may leave now."""
        released = []
        for token, chance in zip(tokens, chances, strict=True):
            if len(self._tokens) == self._limit:
                self.reason = self._over_limit
                break
            piece = self._decoder.feed((token,))
            if self._drops_space and not self._read and piece:
                piece = piece.removeprefix(" ")
                self._drops_space = False
            self._read += len(piece)
            self._tokens.append(token)
            self._ends.append(self._read)
            self._chances.append(chance)
            released.append(self._finder.feed(piece))
            if self._finder.found is not None:
                self.reason = "stop"
                break
        return "".join(released)

    def _close(self, text: str) -> list[Delta]:
        text += self._finder.flush()
        deltas = self._delta(text, is_last=True)
        if self._shows_canvas:
            return [CanvasShown(self.text, 1.0)]
        return deltas

    def _delta(self, text: str, *, is_last: bool = False) -> list[Delta]:
        self.text += text
        chances: list[TokenChance] = []
        last = self.visible_tokens if is_last else len(self._ends)
        while self._told < last and (is_last or self._ends[self._told] <= len(self.text)):
            chance = self._chances[self._told]
            if chance is not None:
                chances.append(TokenChance(self._codec.token_bytes(self._tokens[self._told]), chance))
            elif not is_last:
                break  # the finished reply will tell it
            self._told += 1
        if self._shows_canvas or not (text or chances):
            return []
        return [TextDelta(text, tuple(chances))]


def show_canvas(
    cells: Sequence[Cell], codec: Codec, stops: Sequence[str] = (), *, drops_space: bool = False
) -> CanvasShown:
    """A canvas as text up to its first end-of-turn or stop string, decided or guessed."""
    ends_reply = codec.token_table.ends_reply
    length = next(
        (at for at, cell in enumerate(cells) if ends_reply(cell.token) and cell.state is not CellState.MASKED),
        len(cells),
    )
    shown = cells[:length]
    raw = b"".join(
        MASK_SIGN.encode() if cell.state is CellState.MASKED else codec.token_bytes(cell.token) for cell in shown
    )
    text = raw.decode("utf-8", "ignore")
    if drops_space:
        text = text.removeprefix(" ")
    finder = StopFinder(stops)
    text = finder.feed(text) + finder.flush()
    decided = sum(cell.state in (CellState.COMMITTED, CellState.PINNED) for cell in shown)
    return CanvasShown(text, round(decided / max(1, length), 4))
