"""What PocketSphinx must not be believed: words it finds in a quiet room, in steady noise, or stretched over a noise.

The first pass's scores do not tell babble from speech. Loudness and time do, up to a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voiceagent.backends import Word


@dataclass(frozen=True, slots=True)
class JunkOptions:
    """Rules, in this order. Levels are RMS per 100 ms in dBFS; defaults were measured, see docs/asr.md.

    - The loudest moment is below `min_level_dbfs`: a room. (Recorded rooms reach -51, the quietest word -34.)
    - The utterance lasts `steady_s` or longer and its loudest moment is less than `min_rise_db` above its quietest tenth: steady noise.
      (Babble of twelve rises 6 in the median, orders in babble at least 9.)
    - A word lasts longer than `max_word_s`: that word is a noise.
    """

    min_level_dbfs: float = -45.0
    min_rise_db: float = 8.0
    steady_s: float = 2.0
    max_word_s: float = 1.2


def believable(
    words: Sequence[Word], levels_dbfs: Sequence[float], audio_s: float, options: JunkOptions
) -> tuple[Word, ...]:
    """The words that may have been said, given the utterance's loudness in equal steps."""
    if not levels_dbfs:
        return ()
    levels = np.asarray(levels_dbfs)
    if levels.max() < options.min_level_dbfs:
        return ()
    if audio_s >= options.steady_s and levels.max() - np.percentile(levels, 10) < options.min_rise_db:
        return ()
    return tuple(word for word in words if word.end_s - word.start_s <= options.max_word_s)
