"""Replies to a few held-back prompts at every checkpoint: what the losses do not show."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dllm import loader
from dllm.codec import Codec
from dllm.drafts import DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError, DllmError
from dllm.habits import family_options, usual_steps, widest_canvas
from dllm.rounds import run_out
from dllm.spec import ModelSpec
from dllm.train.config import TrainConfig
from dllm.train.corpus import Corpus

WIDTH = 32


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    ids: tuple[int, ...]
    reference: str
    """What the data answers."""


def held_back(folders: Sequence[Path], codec: Codec, spec: ModelSpec, config: TrainConfig) -> list[SamplePrompt]:
    """The first prompts of the dev files, one from each source in turn; none where there are no dev files.

    Raises:
        DataError: If a dev file is bad.
    """
    # One answer a document, whatever the objective; and no padding behind it.
    config = replace(config, objective="masked", answer_padding=0)
    folders = [folder for folder in folders if any(folder.glob("*.dev.*"))]
    if not folders or not config.samples:
        return []
    try:
        corpus = Corpus(folders, codec, spec, config, "dev")
    except ConfigError:
        return []  # no dev file of a source that the mixture names
    rng = random.Random(config.seed)
    prompts: list[SamplePrompt] = []
    names = list(corpus.sources)
    for number in range(50 * config.samples):
        if len(prompts) == config.samples:
            break
        name = names[number % len(names)]
        items = corpus.items[name]
        item = items[(number // len(names)) % len(items)]
        made = corpus.make(item, corpus.sources[name], rng)
        if made is None:
            continue
        ids, learned = made
        # Of plain text everything is learned: its first quarter is the prompt.
        start = learned.index(True) or max(1, len(ids) // 4)
        if start + spec.canvas_multiple <= spec.max_position_embeddings:
            prompts.append(SamplePrompt(ids[:start], codec.decode(ids[start:]).strip()))
    return prompts


def write_replies(
    folder: Path, prompts: Sequence[SamplePrompt], step: int, device: torch.device
) -> list[dict[str, Any]]:
    """Answer every prompt with a checkpoint, decoded as its family is by default.

    Returns:
        Per prompt the step, the end of the prompt, the reply (or the error) and the reference.
    """
    checkpoint = loader.load(folder, device)
    spec, codec, defaults = checkpoint.spec, checkpoint.codec, checkpoint.defaults
    engine = Engine(checkpoint.model, codec.token_table, max_batch=max(1, len(prompts)), cache_bytes=2**27)
    options = family_options(defaults, spec)
    lines = []
    for number, prompt in enumerate(prompts):
        width = max(spec.canvas_multiple, WIDTH // spec.canvas_multiple * spec.canvas_multiple)
        try:
            width = min(width, widest_canvas(spec, len(prompt.ids)))
            steps = usual_steps(width, defaults.steps)
            plan = Plan(steps, steps, defaults.threshold, by_clause=False)
            reply = codec.decode(_reply(engine, DraftSpec(prompt.ids, f"sample{number}", width, plan, (), options)))
        except DllmError as error:
            reply = f"[{error}]"
        asked = codec.decode(prompt.ids[-64:]).strip()
        lines.append({"step": step, "prompt": asked, "reply": reply.strip(), "reference": prompt.reference})
    return lines


def _reply(engine: Engine, spec: DraftSpec) -> tuple[int, ...]:
    engine.submit(spec)
    [finished] = [event for event in run_out(engine) if isinstance(event, Finished)]
    return finished.tokens
