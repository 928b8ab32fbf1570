"""Which audio of an utterance Whisper should decode next, and what the words it returned add up to.

Pure: samples and decoded words in, spans to decode out; no threads and no clock. Three promises:

- The final result depends on the audio alone, not on how it was cut or which partial decodes found time: every span that counts
  ends at a place computed from the samples.
- Once the caller pauses, the span that the final result needs is already known, so it is decoded during the endpoint's wait.
- Whisper sees at most 30 s. A window that grows past 15 s is cut behind a sentence that two decodes agree on, and what lies
  before the cut is never decoded again (local agreement, arXiv:2307.14743).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from voice_pipelines.adapters.whisper_guards import SILENCE_DBFS
from voiceagent.backends import INPUT_RATE_HZ, Samples, Word
from voiceagent.transcript import normalise

FRAME_SAMPLES = INPUT_RATE_HZ // 50
VOICED_BELOW_PEAK_DB = 40.0
"""An audio frame this far below the utterance's loudest is a pause.

On 214 recorded utterances the final span then reaches past the labelled end of speech in all but one (0.2 s short, a digit string
whose last digits are much fainter), and leaves out part of 0.8 s of room sound behind it in 154. At 30 dB three are short.
"""
MIN_CUT_S = 5.0
"""A cut that frees less than this is not made: word times may be wrong, and every cut costs two decodes."""


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """When to decode. Defaults: every 0.75 s is about one partial every two words at 150 words a minute."""

    partials: bool = True
    """Whether anything is decoded while the caller speaks, short of what a long window is cut by."""
    step_s: float = 0.75
    first_s: float = 0.75
    """Shortest audio worth a partial."""
    tail_s: float = 0.3
    """Audio kept after the last voiced frame; also the pause after which the final span is decoded ahead."""
    trim_s: float = 15.0
    """A window this long is cut at the next agreed sentence end."""
    longest_s: float = 25.0
    """A window this long is cut whether or not the decodes agree; below Whisper's 30 s."""
    margin_s: float = 1.0
    """Words this close to the end of a window may still change and are never cut off."""

    def __post_init__(self) -> None:
        if min(self.step_s, self.first_s, self.tail_s, self.margin_s) <= 0:
            raise ValueError("every duration of the window must be positive")
        if not self.margin_s + self.step_s + MIN_CUT_S < self.trim_s <= self.longest_s <= 28.0:
            raise ValueError(f"need margin + step + 5 s < trim <= longest <= 28 s, got {self}")


IN_PAUSES = WindowOptions(partials=False, tail_s=0.1)
"""Where another recogniser tells what is heard meanwhile. The final is decoded as soon as a pause is one, before the shortest that ends a turn: 0.25 s behind
28 recorded orders it was there at once for half of them and 0.04 s later for 95 %, with 0.15 s of tail 0.02 and 0.11 s, with 0.3 s 0.15 and 0.18 s; no tail misread more, and
each took a fifth of what partials take (0.04 of real time instead of 0.22, one thread of a busy machine)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Audio to decode, in samples from the utterance's start. `purpose` orders the work of several callers."""

    start_samples: int
    end_samples: int
    purpose: Literal["partial", "pause", "anchor"]

    def same_audio(self, other: Span | None) -> bool:
        return other is not None and (self.start_samples, self.end_samples) == (other.start_samples, other.end_samples)


class UtteranceWindow:
    """The audio of one utterance and what has been heard in it so far.

    Args:
        said_before: Text that stands before it.
    """

    def __init__(self, options: WindowOptions | None = None, said_before: str = "") -> None:
        self._said_before = said_before
        self._options = options or WindowOptions()
        self._audio: list[Samples] = []
        self._audio_start = 0
        self._total = 0
        self._frame = np.zeros(0, np.float32)
        self._levels: list[float] = []
        self._peak_dbfs = SILENCE_DBFS
        self._voiced_end = 0
        self._start = 0
        self._cut_words: tuple[Word, ...] = ()
        self._heard: Span | None = None
        self._heard_words: tuple[Word, ...] = ()
        self._anchors_done = 0
        self._anchor_words: tuple[Word, ...] = ()
        self._closed = False

    def feed(self, samples: Samples) -> None:
        """Append 16 kHz samples, any number of them."""
        if not len(samples):
            return
        samples = np.array(samples, dtype=np.float32)
        self._audio.append(samples)
        self._total += len(samples)
        frames = np.concatenate((self._frame, samples))
        whole = len(frames) // FRAME_SAMPLES
        for frame in frames[: whole * FRAME_SAMPLES].reshape(whole, FRAME_SAMPLES):
            self._measure(frame)
        self._frame = frames[whole * FRAME_SAMPLES :]

    def close(self) -> None:
        """No more audio: from now on only spans that the final result needs are due."""
        if len(self._frame) and not self._closed:
            self._measure(self._frame)
        self._closed = True

    @property
    def words(self) -> tuple[Word, ...]:
        """All words heard so far; after `close` and once nothing is due, the final ones."""
        if self._closed and self._heard is None:
            return self._cut_words
        return self._cut_words + self._heard_words

    @property
    def prompt(self) -> str:
        """Text before the window, which Whisper may read as context."""
        return " ".join((self._said_before, *(word.text for word in self._cut_words))).strip()

    def due(self) -> Span | None:
        """The span to decode next, or None when no decode would tell more."""
        anchor, pair_end = self._next_anchor()
        if (pair_end if self._closed else anchor) <= self._total:
            return Span(self._start, anchor, "anchor")
        end = self._speech_end()
        if end <= self._start:
            return None
        if self._closed or self._total - self._voiced_end >= self._samples(self._options.tail_s):
            span = Span(self._start, end, "pause")
            return None if span.same_audio(self._heard) else span
        if not self._options.partials:
            return None
        step = self._samples(self._options.step_s)
        grid = self._start + (end - self._start) // step * step
        long_enough = grid - self._start >= self._samples(self._options.first_s)
        is_new = self._heard is None or grid > self._heard.end_samples
        return Span(self._start, grid, "partial") if long_enough and is_new else None

    def audio(self, span: Span) -> Samples:
        """The samples of a span that was due and not yet absorbed."""
        whole = np.concatenate(self._audio) if len(self._audio) > 1 else self._audio[0]
        self._audio = [whole]
        return whole[span.start_samples - self._audio_start : span.end_samples - self._audio_start]

    def level_dbfs(self, span: Span) -> float:
        """RMS level of the loudest 20 ms audio frame of a span."""
        levels = self._levels[span.start_samples // FRAME_SAMPLES : math.ceil(span.end_samples / FRAME_SAMPLES)]
        return max(levels, default=SILENCE_DBFS - 40.0)

    def absorb(self, span: Span, words: Sequence[Word]) -> None:
        """Take the words decoded from a span, their times relative to the span's start.

        A span from before a cut changes nothing. Otherwise the newest result counts, even where an anchor heard further.
        """
        if span.start_samples != self._start:
            return
        offset_s = span.start_samples / INPUT_RATE_HZ
        timed = tuple(replace(w, start_s=w.start_s + offset_s, end_s=w.end_s + offset_s) for w in words)
        self._heard, self._heard_words = span, timed
        if span.purpose == "anchor":
            self._absorb_anchor(span, timed)

    # --- where the speech is ----------------------------------------------------------------------------------------

    def _measure(self, frame: Samples) -> None:
        power = float(np.mean(np.square(frame, dtype=np.float64)))
        level = 10.0 * math.log10(max(power, 1e-12))
        self._levels.append(level)
        self._peak_dbfs = max(self._peak_dbfs, level)
        if level > max(SILENCE_DBFS, self._peak_dbfs - VOICED_BELOW_PEAK_DB):
            self._voiced_end = min(len(self._levels) * FRAME_SAMPLES, self._total)

    def _speech_end(self) -> int:
        """Where the last voiced audio frame and its tail end; the window's start when nothing was voiced since."""
        if self._voiced_end <= self._start:
            return self._start
        return min(self._voiced_end + self._samples(self._options.tail_s), self._total)

    # --- cutting a long window --------------------------------------------------------------------------------------

    def _next_anchor(self) -> tuple[int, int]:
        """Where the next compulsory decode and its pair end.

        They come in pairs, a step apart, so that the cut depends on the audio alone and not on which partials found time.
        """
        options = self._options
        attempt, second = divmod(self._anchors_done, 2)
        pair_end = self._start + self._samples(min(options.trim_s + 5.0 * attempt, options.longest_s))
        return pair_end if second else pair_end - self._samples(options.step_s), pair_end

    def _absorb_anchor(self, span: Span, words: tuple[Word, ...]) -> None:
        self._anchors_done += 1
        if self._anchors_done % 2:
            self._anchor_words = words
            return
        end_s = span.end_samples / INPUT_RATE_HZ
        length_s = end_s - span.start_samples / INPUT_RATE_HZ
        must = length_s >= self._options.longest_s - 1e-6
        settled_s = end_s - self._options.step_s - self._options.margin_s
        kept = cut_after(self._anchor_words, words, end_s - length_s + MIN_CUT_S, settled_s, must=must)
        if kept:
            last_end_s = words[kept - 1].end_s
            next_start_s = words[kept].start_s if kept < len(words) else last_end_s + self._options.tail_s
            self._cut_at(self._samples((last_end_s + max(next_start_s, last_end_s)) / 2), words, kept)
        elif must:
            kept = sum(1 for word in words if word.end_s <= settled_s)
            self._cut_at(self._samples(settled_s), words, kept)

    def _cut_at(self, at: int, words: tuple[Word, ...], kept: int) -> None:
        self._cut_words += words[:kept]
        self._start = at
        self._heard, self._heard_words = None, words[kept:]
        self._anchors_done, self._anchor_words = 0, ()
        whole = np.concatenate(self._audio)
        self._audio = [whole[self._start - self._audio_start :]]
        self._audio_start = self._start

    @staticmethod
    def _samples(duration_s: float) -> int:
        return round(duration_s * INPUT_RATE_HZ)


def cut_after(earlier: Sequence[Word], later: Sequence[Word], from_s: float, settled_s: float, *, must: bool) -> int:
    """How many words of `later` a cut may leave behind.

    Args:
        earlier, later: Two decodes of windows with the same start; words with absolute times.
        from_s: A cut before this would gain too little.
        settled_s: Words that end after this may still change.
        must: Cut behind any agreed word when no agreed sentence ends in time.

    Returns:
        The number of words up to the last agreed sentence end; with `must`, up to the last agreed word; 0 when there is no
        such place.
    """
    agreed = 0
    for a, b in zip(earlier, later, strict=False):
        if normalise(a.text) != normalise(b.text):
            break
        agreed += 1
    places = [count for count in range(agreed, 0, -1) if from_s <= later[count - 1].end_s <= settled_s]
    sentence_ends = [count for count in places if later[count - 1].text.endswith((".", "?", "!"))]
    if sentence_ends:
        return sentence_ends[0]
    return places[0] if must and places else 0
