"""Quality by number of steps: what the latency budget may expect from n denoising steps on a canvas of w tokens.

For every prompt, width and n a reply is written with n steps for its first clause and n for the rest, threshold 1 so that the floor alone
decides. Quality is the mean log-likelihood per token of the replies under the model's own causal mode, as exp(mean - best mean) over
all n of that width; agreement is the share of positions equal to the reply of the largest n.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dllm.canvas import TokenTable
from dllm.drafts import DraftSpec, Failed, Finished, Plan
from dllm.engine import Engine
from dllm.evaluate.likelihood import causal_log_likelihood
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.train.data import Row

FILE_NAME = "quality_curve.json"
WIDTHS = (16, 24, 32, 40, 64)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
OPTIONS = DecodeOptions(hold_ends=True, no_stutter=True)
"""How replies are written in a call: the budget that reads the curve grants steps to such drafts."""


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A held-back prompt and the texts that its answer must say."""

    prompt: tuple[int, ...]
    pins: tuple[tuple[int, ...], ...]
    answer_tokens: int


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def prompts_from_rows(rows: Iterable[Row]) -> list[EvalPrompt]:
    """One prompt per row, at its last answer: the longest context."""
    prompts = []
    for row in rows:
        answer = row.answers[-1]
        pins = [
            tuple(token for token, _ in run)
            for is_pinned, run in itertools.groupby(
                zip(answer.tokens, answer.pinned, strict=True), key=lambda pair: pair[1]
            )
            if is_pinned
        ]
        prompts.append(EvalPrompt(row.clean[: answer.start], tuple(pins), len(answer.tokens) - 1))
    return prompts


def measure(
    model: Transformer,
    table: TokenTable,
    prompts: Sequence[EvalPrompt],
    widths: Sequence[int] = WIDTHS,
    steps: Sequence[int] = STEPS,
) -> QualityReport:
    """Write every prompt's reply at every width and step count, and score them."""
    quality, likelihoods, agreements, counts = [], [], [], []
    for width in widths:
        fitting = [p for p in prompts if p.answer_tokens + 1 <= width and sum(map(len, p.pins)) + 1 <= width]
        counts.append(len(fitting))
        replies = {count: _write(model, table, fitting, width, count) for count in steps}
        best = replies[max(steps)]
        scores = []
        for count in steps:
            total = sum(
                causal_log_likelihood(model, entry.prompt, reply)
                for entry, reply in zip(fitting, replies[count], strict=True)
            )
            scores.append(total / max(1, len(fitting)))
        top = max(scores)
        likelihoods.append(tuple(round(score, 4) for score in scores))
        quality.append(tuple(round(math.exp(score - top), 4) for score in scores))
        agreements.append(tuple(round(_agreement(replies[count], best), 4) for count in steps))
    return QualityReport(
        tuple(widths), tuple(steps), tuple(quality), tuple(likelihoods), tuple(agreements), tuple(counts)
    )


def _write(
    model: Transformer, table: TokenTable, prompts: Sequence[EvalPrompt], width: int, steps: int
) -> list[tuple[int, ...]]:
    engine = Engine(model, table, max_batch=16, cache_bytes=2**26)
    plan = Plan(steps_first=steps, steps_rest=steps, threshold=1.0)
    drafts = [
        engine.submit(DraftSpec(entry.prompt, f"eval{index}", width, plan, entry.pins, OPTIONS))
        for index, entry in enumerate(prompts)
    ]
    replies: dict[int, tuple[int, ...]] = {}
    while engine.drafts:
        for event in engine.run_round():
            match event:
                case Finished(draft=draft, tokens=tokens):
                    replies[draft.number] = tokens
                case Failed(error=error):
                    raise error
                case _:
                    pass
    return [replies[draft.number] for draft in drafts]


def _agreement(replies: Sequence[tuple[int, ...]], best: Sequence[tuple[int, ...]]) -> float:
    same = total = 0
    for reply, reference in zip(replies, best, strict=True):
        total += max(len(reply), len(reference))
        same += sum(left == right for left, right in zip(reply, reference, strict=False))
    return same / max(1, total)


def curve_path(checkpoint: Path) -> Path:
    """Where the curve of a checkpoint lives."""
    return checkpoint / FILE_NAME
