"""What a training run is made of, read from TOML.

A run is reproducible from its configuration, its data folders and its token budget; a wall-clock budget trades that for certainty
about when it ends.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dllm.errors import ConfigError
from dllm.spec import ModelSpec, dialogue_spec


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """How one data set takes part in the mixture."""

    weight: float = 1.0
    """Share of training rows, relative to the other sources."""
    swap_roles: float = 0.0
    """Probability of exchanging user and agent, for talk between equals."""
    system: str = ""
    """System turn for dialogues without one; `{domain}` is filled in. Added to half of the rows."""
    drop_system: float = 0.0
    """Probability of leaving a dialogue's own system turn out."""
    max_agent_tokens: int = 63
    """Agent turns longer than this are cut after a sentence, or only read."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. Learning rates and the Muon/AdamW split follow K. Jordan's small-model recipe; see docs/training.md."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    seed: int = 1
    rows_per_step: int = 16
    """Dialogue windows per optimiser step."""
    rows_per_forward: int = 4
    max_clean_tokens: int = 256
    max_jump: int = 384
    """Largest gap in positions after the system turn; 0 for none."""
    max_answers: int = 6
    """Canvases per row; further agent turns are only read."""
    matrix_lr: float = 0.02
    embedding_lr: float = 0.003
    vector_lr: float = 0.003
    momentum: float = 0.95
    weight_decay: float = 0.01
    warmup_steps: int = 60
    final_lr_fraction: float = 0.02
    decay_share: float = 0.3
    """Share of the budget, at its end, over which the learning rate falls."""
    clip: float = 1.0
    ema_decay: float = 0.998
    causal_weight: float = 0.5
    """Weight of the next-token loss on finished text (Nemotron-like joint objective)."""
    closing_weight: float = 0.1
    """Loss weight of closing tokens after the first, which only fill the canvas."""
    prefix_share: float = 0.35
    """Share of canvases masked as a suffix instead of at random: what the first-clause phase meets."""
    masked_tail_share: float = 0.5
    """Share of the other canvases whose closing tokens are all masked: generation never sees where a reply ends beforehand."""
    pinned_share: float = 0.9
    """Probability that a turn's pins are left unmasked."""
    renamed_share: float = 0.5
    """Probability that content words shared by notes and answers are exchanged for random words: teaches reading, not reciting."""
    spoken_share: float = 0.85
    """Probability that a user turn is written as a recogniser would."""
    noise_share: float = 0.3
    """Probability that a spoken user turn also gets recogniser-like word errors."""
    rest_share: float = 0.2
    """Probability that a user turn is cut, or left whole, and its rest is asked for: is the turn complete?"""
    transcript_share: float = 0.1
    """Probability that a user turn becomes a canvas with misheard words that is to be set right: which words are doubtful?"""
    question_weight: float = 0.4
    """Weight of such a question beside a reply's 1."""
    compiled: bool = True
    """Compile the layers where there is a C++ compiler: about 1.4 times faster on two AVX2 cores, results differ in the last bits."""
    tokens: int = 12_000_000
    """Budget when no wall-clock budget is given: clean and noisy positions."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows_per_step % self.rows_per_forward:
            raise ConfigError("rows_per_step", self.rows_per_step, "a multiple of rows_per_forward")
        for name in (
            "prefix_share",
            "masked_tail_share",
            "pinned_share",
            "renamed_share",
            "spoken_share",
            "noise_share",
            "rest_share",
            "transcript_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "a probability")

    def model_spec(self) -> ModelSpec:
        return dialogue_spec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> TrainConfig:
        """Build from plain values.

        Raises:
            ConfigError: On an unknown key or a value of the wrong kind.
        """
        sources = {name: _source(name, value) for name, value in body.get("sources", {}).items()}
        defaults = cls()
        known = {entry.name for entry in fields(cls)} - {"sources"}
        values: dict[str, Any] = {}
        for key, value in body.items():
            if key == "sources":
                continue
            if key not in known:
                raise ConfigError(key, value, f"one of {', '.join(sorted(known))}")
            expected = type(getattr(defaults, key))
            if expected is float and isinstance(value, int):
                value = float(value)
            if not isinstance(value, expected):
                raise ConfigError(key, value, f"a value of type {expected.__name__}")
            values[key] = value
        return replace(defaults, sources=sources, **values)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        try:
            return cls.from_json(tomllib.loads(path.read_text("utf-8")))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(str(path), "", f"TOML ({error})") from error


def _source(name: str, body: object) -> SourceConfig:
    if not isinstance(body, dict):
        raise ConfigError(f"sources.{name}", body, "a table")
    try:
        return SourceConfig(**body)
    except TypeError as error:
        raise ConfigError(f"sources.{name}", body, f"known keys ({error})") from error
