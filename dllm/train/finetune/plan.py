"""From a company's data and a checkpoint to the configuration of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dllm.errors import ConfigError
from dllm.spec import ModelSpec
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.finetune.dialogues import Survey
from dllm.train.trainer import Budget

SOURCE = "company"
"""Name of the data in the mixture."""
WIDEST_WINDOW = 1024
"""Tokens of a dialogue that one row holds, at most. Attention's cost on a CPU grows with the square."""
LEAST_WINDOW = 256
_TEMPLATE_SHARE, _TEMPLATE_TOKENS = 1.25, 64
"""What a published template's marks add to a dialogue's text, generously."""
LEAST_STEPS, MOST_STEPS = 5, 100
"""Between two measurements of the held-back loss."""


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """What `dllm finetune` is told.

    Raises:
        ConfigError: If a number is out of range.
    """

    data: Path
    out: Path
    model: Path | str | None = None
    """None is the built-in model."""
    dev: Path | None = None
    """A file to hold back instead of a share of the data."""
    keep: Path | None = None
    """A folder of sources (docs/training.md) that are rehearsed against forgetting."""
    keep_share: float = 0.25
    """Of the rows."""
    hold_back: float = 0.15
    """Share of the dialogues that are held back."""
    passes: float = 30.0
    """Most passes through the data; early stopping ends most runs before."""
    minutes: float | None = None
    """Of learning, instead of `passes`; two runs are then not the same."""
    patience: int = 5
    """Measurements without a better one before the run ends."""
    rate: float = 1.0
    """Times the usual learning rates."""
    lora_rank: int = 0
    """Above 0: adapters of this rank learn, the weights stay."""
    shown: int = 24
    """Held-back replies that are written before and after."""
    seed: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, is_good, expected in (
            ("--keep-share", 0 < self.keep_share < 1, "a share between 0 and 1"),
            ("--hold-back", 0 < self.hold_back < 1, "a share between 0 and 1"),
            ("--passes", self.passes > 0, "above 0"),
            ("--minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("--patience", self.patience >= 1, "at least 1"),
            ("--rate", self.rate > 0, "above 0"),
            ("--lora", self.lora_rank >= 0, "at least 1"),
            ("--shown", self.shown >= 1, "at least 1"),
        ):
            if not is_good:
                raise ConfigError(name, getattr(self, _FIELDS.get(name, name[2:].replace("-", "_"))), expected)


_FIELDS = {"--lora": "lora_rank"}


def window(longest: int, system: int, spec: ModelSpec) -> int:
    """Tokens of a row: whole dialogues where that is affordable, and twice the system turn, which every row begins with."""
    wanted = max(longest, 2 * system)
    if spec.dialogue is None:
        wanted = int(max(wanted, longest * _TEMPLATE_SHARE + _TEMPLATE_TOKENS))
    rounded = -(-max(wanted, LEAST_WINDOW) // 64) * 64
    return min(rounded, WIDEST_WINDOW, spec.max_position_embeddings - max(spec.max_canvas, spec.block))


def run_config(
    options: FinetuneOptions, spec: ModelSpec, init: str, tokens: int, kept: Mapping[str, SourceConfig]
) -> TrainConfig:
    """A run from a checkpoint at low rates.

    Args:
        init: The checkpoint, as a path or the hub's name.
        tokens: Of a row (`window`).
        kept: Sources that are rehearsed, their weights relative to each other.
    """
    share = options.keep_share if kept else 0.0
    total = sum(source.weight for source in kept.values())
    sources = {SOURCE: SourceConfig(weight=1 - share)}
    sources |= {name: replace(source, weight=share * source.weight / total) for name, source in kept.items()}
    is_low_rank = options.lora_rank > 0
    common = TrainConfig(
        init=init,
        seed=options.seed,
        rows_per_step=8,
        rows_per_forward=4,
        warmup_steps=10,
        decay_share=0.5,
        final_lr_fraction=0.05,
        ema_decay=0.97,
        lora_rank=options.lora_rank,
        lora_alpha=2.0 * options.lora_rank,
        compiled=False,
        sources=sources,
    )
    if spec.dialogue is None:
        return replace(
            common,
            objective="masked" if spec.mask_kind == "full" else "block",
            rows_per_forward=2,
            row_tokens=tokens,
            optimiser="adamw",
            adamw_lr=(2e-4 if is_low_rank else 1e-5) * options.rate,
            weight_decay=0.0,
            dtype="float32" if options.device == "cpu" else "bfloat16",
        )
    # A tenth of the rates that the model was made with; adapters start at zero and want more.
    low = options.rate * (2.0 if is_low_rank else 1.0)
    return replace(
        common,
        objective="dialogue",
        max_clean_tokens=tokens,
        max_jump=max(0, min(384, spec.max_position_embeddings - tokens - spec.max_canvas)),
        max_answers=12,
        matrix_lr=2e-3 * low,
        embedding_lr=3e-4 * low,
        vector_lr=3e-4 * low,
        # The company's own words are to be learned; still some rows teach that what the system turn says is read.
        renamed_share=0.2,
        rest_share=0.1,
        transcript_share=0.05,
    )


def budget(options: FinetuneOptions, pass_tokens: int, is_rehearsing: bool) -> Budget:
    """How long a run is at most."""
    tokens = pass_tokens / (1 - options.keep_share if is_rehearsing else 1.0)
    return Budget(max(1, int(options.passes * tokens)), options.minutes * 60 if options.minutes else None)


def steps_between(config: TrainConfig, learned: Survey) -> int:
    """Steps from one measurement of the held-back loss to the next: about a pass through the company's data."""
    rows = float(len(learned.kept)) if config.objective == "dialogue" else learned.pass_tokens / config.row_tokens
    share = config.sources[SOURCE].weight
    return min(max(LEAST_STEPS, round(rows / share / config.rows_per_step)), MOST_STEPS)
