"""The training loop: resumable, and the same on every run with a token budget.

A run folder holds `config.json`, `tokenizer.json`, `state.pt` (weights, optimisers, average, counters), `log.jsonl`, and `export/`, a
checkpoint made from the averaged weights. Randomness comes from (seed, step), so the state needs no generator.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm import loader
from dllm.errors import CheckpointError, ConfigError
from dllm.models.transformer import Transformer
from dllm.text import DialogueCodec, spoken_form, train_tokenizer
from dllm.train import objective, optim
from dllm.train.config import TrainConfig
from dllm.train.data import Mixture, Row, find_sources, read_dialogues, source_weights

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after this many positions, or after this long at work (all its sittings together)."""

    tokens: int
    seconds: float | None = None

    def progress(self, tokens: int, seconds: float) -> float:
        """Share of the budget used, in [0, 1]."""
        used = tokens / self.tokens if self.seconds is None else seconds / self.seconds
        return min(1.0, used)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step. Losses are nats per token."""

    step: int
    tokens: int
    diffusion: float
    causal: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    """Work so far, all sittings."""


def learning_rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Linear warm-up by steps, constant, then linear decay to `final_lr_fraction` over the last `decay_share` of the budget.

    A constant middle lets a run be resumed with a larger budget as if it had been planned so.
    """
    left = min(1.0, (1.0 - progress) / config.decay_share)
    decay = config.final_lr_fraction + (1 - config.final_lr_fraction) * left
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * decay


def has_compiler() -> bool:
    """Whether torch.compile has the C++ compiler it needs for CPU code."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def make_codec(folders: Sequence[Path], config: TrainConfig, extra: Sequence[Path] = ()) -> DialogueCodec:
    """Train the tokenizer on a sample of the mixture, user turns in both spellings.

    Args:
        extra: Plain text files that count as one more source.
    """
    paths = find_sources(folders, "train")
    sources = source_weights(folders, list(paths), config)
    total = sum(source.weight for source in sources.values())

    def texts() -> Iterator[str]:
        for path in extra:
            yield from path.read_text("utf-8").splitlines()
        for name, source in sources.items():
            wanted = max(1, int(400_000 * source.weight / total))
            for dialogue in read_dialogues(paths[name]):
                for turn in dialogue.turns:
                    yield turn.text
                    if turn.role == "user":
                        yield spoken_form(turn.text)
                    wanted -= len(turn.text.split())
                if wanted <= 0:
                    break

    spec = config.model_spec()
    return DialogueCodec(train_tokenizer(texts(), config.vocab_size, spec.dialogue), spec.dialogue)


class Trainer:
    """One run, from a fresh start or a saved state."""

    def __init__(self, out: Path, mixture: Mixture, codec: DialogueCodec, config: TrainConfig, budget: Budget) -> None:
        self.out, self.mixture, self.codec, self.config, self.budget = out, mixture, codec, config, budget
        self.spec = config.model_spec()
        if codec.vocab_size > self.spec.vocab_size:
            raise ConfigError("vocab_size", self.spec.vocab_size, f"at least the tokenizer's {codec.vocab_size}")
        self.model = Transformer(self.spec)
        self.model.reset_parameters(torch.Generator().manual_seed(config.seed))
        self.is_compiled = config.compiled and has_compiler()
        if self.is_compiled:
            for layer in self.model.layers:
                layer.compile(dynamic=True)
        self.optimisers = optim.build(self.model, config)
        self.ema = optim.Ema(self.model, config.ema_decay)
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    @property
    def progress(self) -> float:
        return self.budget.progress(self.tokens, self.seconds)

    def train_step(self) -> StepReport:
        """One optimiser step over `rows_per_step` rows."""
        began = time.monotonic()
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        first = self.step * config.rows_per_step
        rows = sorted((self.mixture.row(first + index) for index in range(config.rows_per_step)), key=_row_length)
        times = objective.antithetic_times(sum(len(row.answers) for row in rows), generator)
        batches = []
        for start in range(0, len(rows), config.rows_per_forward):
            part = rows[start : start + config.rows_per_forward]
            count = sum(len(row.answers) for row in part)
            batches.append(objective.collate(part, times[:count], self.spec, config, generator))
            times = times[count:]
        answers = sum(batch.answers for batch in batches)
        causal_tokens = max(1, sum(len(batch.causal_at) for batch in batches))
        diffusion = causal = 0.0
        for batch in batches:
            part_losses = objective.losses(self.model, batch)
            loss = part_losses.diffusion / answers + config.causal_weight * part_losses.causal / causal_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            diffusion += float(part_losses.diffusion.detach())
            causal += float(part_losses.causal.detach())
            self.tokens += batch.tokens
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        factor = learning_rate_factor(self.step, self.progress, config)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self.step += 1
        self.seconds += time.monotonic() - began
        return StepReport(
            self.step, self.tokens, diffusion / answers, causal / causal_tokens, norm, factor, self.seconds
        )

    def run(
        self,
        on_step: Callable[[StepReport], None] = lambda _: None,
        on_checkpoint: Callable[[], None] = lambda: None,
        checkpoint_every_s: float = 300.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until the budget is used or the run is told to stop, saving on the way and at the end."""
        saved = time.monotonic()
        while self.progress < 1.0 and not should_stop():
            on_step(self.train_step())
            if time.monotonic() - saved >= checkpoint_every_s:
                self.save()
                on_checkpoint()
                saved = time.monotonic()
        self.save()
        on_checkpoint()

    def save(self) -> None:
        """Write the state and the export. A crash in between leaves the older state."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.weights,
            "ema_updates": self.ema.updates,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, self.out / "state.pt.part")
        (self.out / "state.pt.part").replace(self.out / "state.pt")
        (self.out / "config.json").write_text(json.dumps(self.config.to_json(), indent=2) + "\n", "utf-8")
        self.codec.tokenizer.save(str(self.out / "tokenizer.json"))
        self.export(self.out / "export")

    def restore(self) -> None:
        """Continue from the run folder.

        Raises:
            CheckpointError: If there is no state or it is of another shape.
        """
        path = self.out / "state.pt"
        if not path.is_file():
            raise CheckpointError(f"{path}: nothing to resume")
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: state format {state.get('format')!r}, expected {FORMAT}")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{path}: {error}") from error
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.ema.weights, self.ema.updates = state["ema"], state["ema_updates"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def export(self, path: Path) -> None:
        """Write the averaged weights as a checkpoint folder."""
        loader.save(path, self.spec, self.ema.weights, self.codec)


def _row_length(row: Row) -> int:
    return len(row.clean) + sum(len(answer.tokens) for answer in row.answers)
