"""What PocketSphinx must not be believed: words it finds in noise."""

from __future__ import annotations

from dataclasses import dataclass

from voice_pipelines.asr.decoder import Hypothesis


@dataclass(frozen=True, slots=True)
class JunkOptions:
    """When a result is taken for noise. Defaults were measured; see docs/asr.md.

    `min_probability` is the mean probability of the words, in [0, 1], below which the whole result is dropped.
    """

    min_probability: float = 0.0


def without_junk(heard: Hypothesis, options: JunkOptions) -> Hypothesis:
    """The hypothesis, or an empty one when it is more likely noise than speech."""
    if not heard.words:
        return heard
    mean = sum(word.probability for word in heard.words) / len(heard.words)
    return heard if mean >= options.min_probability else Hypothesis()
