"""Whisper as a caller's words reach the agent: what the adapter's window asks for, one decode at a time, and when it would be there. No event loop.

The server does the same on threads; here each decode begins at the end of a block of audio and takes the processor time it took, or a given
time, so that a tape does not depend on what else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voice_pipelines.adapters.whisper import Decode, WhisperDecoder
from voice_pipelines.adapters.whisper_guards import SILENCE_DBFS, believable
from voice_pipelines.adapters.whisper_window import Span, UtteranceWindow, WindowOptions
from voice_pipelines.models import choose_model
from voiceagent.backends import Samples, Word
from voiceagent.transcript import LocalAgreement


def load(folder: Path, hot_words: Sequence[str], beam_size: int = 1) -> WhisperDecoder:
    """As the server loads it on a small machine, on one thread."""
    choice = replace(choose_model("cpu", 1, 4.0), beam_size=beam_size)
    return WhisperDecoder(folder, choice, vocabulary=hot_words)


@dataclass(frozen=True, slots=True)
class Told:
    """A text; `at_s` is when it was there."""

    at_s: float
    text: str


class WhisperEar:
    """One utterance.

    Args:
        decode_s: What a decode takes; None is the processor time that it takes here.
        options: What is decoded when; None is as the server does it alone.
        said_before: Text that stands before it.
    """

    def __init__(
        self,
        decode: Decode,
        decode_s: float | None = None,
        options: WindowOptions | None = None,
        said_before: str = "",
    ) -> None:
        self._decode, self._decode_s = decode, decode_s
        self._window, self._agreement, self._shown = UtteranceWindow(options, said_before), LocalAgreement(), ""
        self._running: tuple[float, Span, tuple[Word, ...]] | None = None
        self.cpu_s = 0.0
        """Of all decodes so far."""

    def feed(self, samples: Samples, at_s: float) -> list[Told]:
        """The next block, which ends at `at_s`; what was told since the one before."""
        self._window.feed(samples)
        told = self._settle(at_s)
        if self._running is None and (span := self._window.due()) is not None:
            self._begin(span, at_s)
        return told

    def finish(self, at_s: float) -> Told:
        """No more audio: the final text."""
        self._window.close()
        while True:
            if self._running is not None:
                at_s = max(at_s, self._running[0])
                self._settle(at_s)
            if (span := self._window.due()) is None:
                return Told(at_s, " ".join(word.text for word in self._window.words))
            self._begin(span, at_s)

    def _begin(self, span: Span, at_s: float) -> None:
        level_dbfs = self._window.level_dbfs(span)
        if level_dbfs < SILENCE_DBFS:
            self._running = (at_s, span, ())
            return
        began = time.process_time()
        segments = believable(self._decode(self._window.audio(span), self._window.prompt), level_dbfs)
        took = time.process_time() - began
        self.cpu_s += took
        words = tuple(word for segment in segments for word in segment.words)
        self._running = (at_s + (took if self._decode_s is None else self._decode_s), span, words)

    def _settle(self, at_s: float) -> list[Told]:
        if self._running is None or self._running[0] > at_s:
            return []
        done_s, span, words = self._running
        self._running = None
        self._window.absorb(span, words)
        self._agreement = self._agreement.hear([word.text for word in self._window.words])
        text = self._agreement.partial.text
        if text == self._shown or not text:
            return []
        self._shown = text
        return [Told(done_s, text)]
