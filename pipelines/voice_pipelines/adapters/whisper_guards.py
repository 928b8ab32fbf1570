"""What Whisper must not be believed: text made up for silence, noise or its own repetitions.

Pure: segments and the loudness under them in, segments out. Nothing is dropped only because the model is unsure, unless it is so far beyond what
any speech got; each other rule needs a second sign, because a caller who says "thank you" softly is right and a guard that swallows it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from voiceagent.backends import Word
from voiceagent.transcript import normalise

SILENCE_DBFS = -60.0
"""Quieter than this is no speech from any microphone: 16-bit telephone noise floors lie near -66 dBFS."""
NO_SPEECH_PROBABILITY = 0.6
"""Whisper's own default (arXiv:2212.04356, section 4.5; `no_speech_threshold` of its `transcribe`)."""
MIN_AVG_LOGPROB = -1.0
"""Whisper's own default (the same section; `logprob_threshold`)."""
LEAST_AVG_LOGPROB = -1.8
"""Text less likely than this is noise whatever else tells of it. Of 250 recorded utterances that `tiny.en` heard right the least likely had -1.3, of what it
wrote for rooms and babble half lay below -2.0: with hot words, those ("coffee,")."""
MAX_COMPRESSION_RATIO = 2.4
"""Whisper's own default (the same section; `compression_ratio_threshold`): text that zips this well repeats itself."""
LOW_ENERGY_DBFS = -40.0
"""Below this a known phrase is not believed. Speech on the recordings we test with lies above -35 dBFS."""
MAX_WORD_REPEATS = 6
"""One word more often than this in a row is a loop; people do say "no no no" and dictate "five five five five"."""
MAX_PHRASE_REPEATS = 3
"""The same for two words and more; "five five six" three times may be a telephone number."""
LONGEST_PHRASE_WORDS = 12
REPEATED_WORDS = 4
"""So many words that have just been said make a text worth a second look: four times the same word behind it, or a phrase of four once more."""

KNOWN_PHRASES = frozenset(
    {
        "bye",
        "bye bye",
        "please subscribe",
        "please subscribe to my channel",
        "so",
        "subtitles by the amara org community",
        "thank you",
        "thank you for watching",
        "thank you so much for watching",
        "thank you very much",
        "thanks for watching",
        "you",
    }
)
"""What Whisper most often writes for sounds that are not speech (arXiv:2501.11378, "bag of hallucinations")."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a decoded window, times in seconds from the window's start, with Whisper's own measures of itself."""

    text: str
    words: tuple[Word, ...]
    avg_logprob: float
    no_speech_probability: float
    compression_ratio: float


def believable(segments: Sequence[Segment], level_dbfs: float) -> tuple[Segment, ...]:
    """Drop what was made up and cut loops down to one round.

    Args:
        segments: One window's segments in order.
        level_dbfs: RMS level of the loudest 20 ms audio frame under them.
    """
    kept = (without_loops(segment) for segment in segments if doubt(segment, level_dbfs) is None)
    return tuple(segment for segment in kept if segment.words)


def doubt(segment: Segment, level_dbfs: float) -> str | None:
    """Why a segment is not to be believed, or None."""
    if not normalise(segment.text):
        return "no words"
    if level_dbfs < SILENCE_DBFS:
        return f"the audio is silent ({level_dbfs:.0f} dBFS)"
    if segment.no_speech_probability > NO_SPEECH_PROBABILITY and segment.avg_logprob < MIN_AVG_LOGPROB:
        return f"probably no speech ({segment.no_speech_probability:.2f}) and unlikely text ({segment.avg_logprob:.2f})"
    if segment.avg_logprob < LEAST_AVG_LOGPROB:
        return f"text that nobody says ({segment.avg_logprob:.2f})"
    if segment.avg_logprob < MIN_AVG_LOGPROB and level_dbfs < LOW_ENERGY_DBFS:
        return f"unlikely text ({segment.avg_logprob:.2f}) at {level_dbfs:.0f} dBFS"
    if normalise(segment.text) in KNOWN_PHRASES:
        if level_dbfs < LOW_ENERGY_DBFS:
            return f"a phrase Whisper writes for noise, at {level_dbfs:.0f} dBFS"
        if segment.no_speech_probability > NO_SPEECH_PROBABILITY:
            return f"a phrase Whisper writes for noise, and probably no speech ({segment.no_speech_probability:.2f})"
    if segment.compression_ratio > MAX_COMPRESSION_RATIO and segment.avg_logprob < MIN_AVG_LOGPROB:
        return f"repeats itself (compression ratio {segment.compression_ratio:.1f}) and unlikely text"
    return None


def repeats_itself(segment: Segment) -> bool:
    """Whether a segment may be a loop: the same four words or more twice in a row, fewer until there are four words more, or one word of many letters
    alike. People say such things too, so it is a reason to listen again and not to drop anything."""
    words = [normalise(word.text) for word in segment.words]
    if segment.compression_ratio > MAX_COMPRESSION_RATIO:
        return True
    for length in range(1, len(words) // 2 + 1):
        run = 0
        for earlier, later in zip(words, words[length:], strict=False):
            run = run + 1 if earlier == later else 0
            if run >= max(length, REPEATED_WORDS):
                return True
    return False


def without_loops(segment: Segment) -> Segment:
    """Keep one round of any phrase that repeats in a row more often than people say it."""
    words = list(segment.words)
    length = 1
    while length <= min(LONGEST_PHRASE_WORDS, len(words) // 2):
        limit = MAX_WORD_REPEATS if length == 1 else MAX_PHRASE_REPEATS
        start = 0
        while start + length <= len(words):
            repeats = _repeats(words, start, length)
            if repeats > limit:
                del words[start + length : start + repeats * length]
            start += 1
        length += 1
    if len(words) == len(segment.words):
        return segment
    return replace(segment, words=tuple(words), text=" ".join(word.text for word in words))


def _repeats(words: Sequence[Word], start: int, length: int) -> int:
    """How often the `length` words at `start` come in a row, at least once."""
    phrase = [normalise(word.text) for word in words[start : start + length]]
    count = 1
    at = start + length
    while [normalise(word.text) for word in words[at : at + length]] == phrase:
        count += 1
        at += length
    return count
