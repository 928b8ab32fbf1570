"""Quality by number of steps and canvas width: what the latency budget may expect from n denoising steps on a canvas of w tokens.

For every prompt, width and n a reply is written with n steps for its first clause and n for the rest, threshold 1 so that the floor alone
decides. Quality is the mean log-likelihood per token of the replies under a judge, as exp(mean - best mean) over all n of that width;
agreement is the share of words that the reply of the largest n has too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dllm.drafts import Plan
from dllm.evaluate.prompts import Prompt
from dllm.evaluate.replies import Judge, Limit, score_trial, summarise, write_all
from dllm.evaluate.writing import Way, Writer
from dllm.options import DecodeOptions
from dllm.text import DialogueCodec

FILE_NAME = "quality_curve.json"
WIDTHS = (16, 24, 32, 40, 64)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
OPTIONS = DecodeOptions(hold_ends=True, no_stutter=True)
"""How replies are written in a call: the budget that reads the curve grants steps to such drafts."""


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Tables are [len(widths)][len(steps)]."""

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    quality: tuple[tuple[float, ...], ...]
    log_likelihood: tuple[tuple[float, ...], ...]
    agreement: tuple[tuple[float, ...], ...]
    prompts: tuple[int, ...]
    """How many prompts each width was measured on: those whose true answer fits it."""
    measures: tuple[tuple[dict[str, Any], ...], ...] = ()
    """Every other measure of the replies (`dllm.evaluate.replies`)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def curve(self) -> dict[str, Any]:
        """What stands beside the weights for the latency budget."""
        return {name: value for name, value in asdict(self).items() if name != "measures"}


def measure(
    writer: Writer,
    codec: DialogueCodec,
    judge: Judge,
    prompts: Sequence[Prompt],
    widths: Sequence[int] = WIDTHS,
    steps: Sequence[int] = STEPS,
    limit: Limit | None = None,
) -> QualityReport:
    """Write every prompt's reply at every width and step count, and score them; widths share the time alike.

    A width that no prompt's true answer fits is left out.
    """
    limit = limit or Limit()
    each = Limit(None if limit.seconds is None else limit.seconds / len(widths), limit.clock)
    kept, quality, likelihoods, agreements, counts, measures = [], [], [], [], [], []
    most = max(range(len(steps)), key=lambda index: steps[index])
    for width in widths:
        ways = [Way(f"{count} steps", Plan(count, count, 1.0), OPTIONS, width) for count in steps]
        fitting = [prompt for prompt in prompts if prompt.fits(width)]
        if not fitting:  # nothing is known of such a width: a row for it would be a claim
            continue
        kept.append(width)
        trial = write_all([(writer, ways)], fitting, each)
        scored = score_trial(trial, codec, judge, [most] * len(ways))
        counts.append(len(trial.prompts))
        # Every reply counts alike, however long it is.
        scores = [
            sum(one.counts["log_likelihood"][0] / one.counts["log_likelihood"][1] for one in of_way) / len(of_way)
            for of_way in scored
        ]
        likelihoods.append(tuple(round(score, 4) for score in scores))
        quality.append(tuple(round(math.exp(score - max(scores)), 4) for score in scores))
        agreements.append(
            tuple(round(sum(one.counts["self_consistency"][0] for one in of_way) / len(of_way), 4) for of_way in scored)
        )
        measures.append(tuple(summarise(of_way) for of_way in scored))
    return QualityReport(
        tuple(kept),
        tuple(steps),
        tuple(quality),
        tuple(likelihoods),
        tuple(agreements),
        tuple(counts),
        tuple(measures),
    )


def curve_path(checkpoint: Path) -> Path:
    """Where the curve of a checkpoint lives."""
    return checkpoint / FILE_NAME
