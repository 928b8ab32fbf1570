"""What a training run is made of, read from TOML.

A run is reproducible from its configuration, its data folders and its token budget; a wall-clock budget trades that for certainty
about when it ends.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dllm.errors import ConfigError
from dllm.spec import ModelSpec, dialogue_spec

ObjectiveName = Literal["dialogue", "masked", "block", "score_entropy", "uniform", "causal"]
"""dialogue: the built-in family's rows (`dllm.train.objective`). The others take packed sequences (`dllm.train.objectives`)."""
CHOICES: dict[str, tuple[str, ...]] = {
    "objective": get_args(ObjectiveName),
    "dtype": ("float32", "bfloat16"),
    "optimiser": ("muon", "adamw"),
    "schedule": ("linear", "cosine"),
}


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

    objective: str = "dialogue"
    """dialogue, masked, block, score_entropy, uniform or causal. Each may have a table of its own options, `[masked]` say."""
    init: str = ""
    """Checkpoint folder or the hub's ORG/NAME to start from, of any family; the geometry keys are then the checkpoint's. Empty: random
    weights of the built-in family."""
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    seed: int = 1
    rows_per_step: int = 16
    """Rows per optimiser step, on all devices together: dialogue windows, or packed rows."""
    rows_per_forward: int = 4
    """Rows in one forward of one device; gradients of the forwards of a step are added up."""
    row_tokens: int = 512
    """Positions of a packed row."""
    answer_padding: int = 32
    """Packed rows of families with full attention: most end tokens behind an answer, which are learned too. Block-causal families fill the
    answer's last block instead."""
    max_clean_tokens: int = 256
    max_jump: int = 384
    """Largest gap in positions after the system turn; 0 for none."""
    max_answers: int = 6
    """Canvases per row; further agent turns are only read."""
    optimiser: str = "muon"
    """muon: Muon for matrices at `matrix_lr`, AdamW for embeddings and vectors. adamw: AdamW for all, at `adamw_lr`."""
    adamw_lr: float = 3e-4
    schedule: str = "linear"
    """How the learning rate falls after the warm-up: linear over the last `decay_share` of the budget, or cosine over all of it."""
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
    copied_weight: float = 1.0
    """Loss weight of a reply's words and figures that were told before, by the system turn or a note; of a call, by the caller too."""
    pinned_share: float = 0.9
    """Probability that a turn's pins are left unmasked."""
    renamed_share: float = 0.5
    """Probability that content words which answers take from elsewhere are exchanged for random words: teaches reading, not reciting."""
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
    dtype: str = "float32"
    """bfloat16: products in bfloat16 (autocast), weights, optimiser and loss in float32."""
    lora_rank: int = 0
    """Above 0: the weights stay and low-rank adapters on the matrices learn (LoRA, arXiv:2106.09685)."""
    lora_alpha: float = 16.0
    """Adapters count alpha / rank times."""
    lora_matrices: tuple[str, ...] = ()
    """Published names of the matrices that get an adapter, such as "q_proj"; empty: every matrix of every layer."""
    tensor_parallel: int = 1
    """Devices that share each layer's matrices; the rest of torchrun's processes share the rows (FSDP)."""
    data_workers: int = 0
    """Processes that make rows ahead of time; 0 makes them in between steps. For GPUs."""
    samples: int = 4
    """Held-back prompts that are answered at every checkpoint, for samples.jsonl."""
    compiled: bool = True
    """Compile the layers where there is a C++ compiler: about 1.4 times faster on two AVX2 cores, results differ in the last bits."""
    tokens: int = 12_000_000
    """Budget when no wall-clock budget is given: clean and noisy positions."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options by objective; in TOML each is a table with the objective's name."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(name, getattr(self, name), f"one of {', '.join(choices)}")
        for name in ("rows_per_step", "rows_per_forward", "row_tokens", "tensor_parallel", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        for name in ("lora_rank", "answer_padding", "data_workers", "samples"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "0 or more")
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
        """As `from_json` reads it: the objectives' options as tables beside the keys."""
        body = asdict(self)
        options: dict[str, Any] = body.pop("options")
        return body | options

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> TrainConfig:
        """Build from plain values.

        Raises:
            ConfigError: On an unknown key or a value of the wrong kind.
        """
        if not isinstance(body, dict):
            raise ConfigError("configuration", body, "a table")
        tables = body.get("sources", {})
        if not isinstance(tables, dict):
            raise ConfigError("sources", tables, "a table of sources")
        sources = {name: _source(name, value) for name, value in tables.items()}
        defaults = cls()
        known = {entry.name for entry in fields(cls)} - {"sources", "options"}
        values: dict[str, Any] = {}
        options: dict[str, dict[str, Any]] = {}
        for key, value in body.items():
            if key == "sources":
                continue
            if key in CHOICES["objective"] and isinstance(value, dict):
                options[key] = value
                continue
            if key not in known:
                raise ConfigError(key, value, f"one of {', '.join(sorted(known))}")
            values[key] = _of_kind(key, value, getattr(defaults, key))
        return replace(defaults, sources=sources, options=options, **values)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """
        Raises:
            ConfigError: If the file cannot be read or is not TOML, and as `from_json` does.
        """
        try:
            body = tomllib.loads(path.read_text("utf-8-sig"))
        except OSError as error:
            raise ConfigError("--config", str(path), f"a readable file ({error.strerror or error})") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError("--config", str(path), f"TOML ({error})") from error
        return cls.from_json(body)


def _of_kind(key: str, value: object, default: object) -> object:
    """The value as the type of its default: whole numbers may stand for others, lists for tuples of strings."""
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise ConfigError(key, value, "a list of strings")
    expected = type(default)
    is_bool = isinstance(value, bool)
    if expected is float and isinstance(value, int) and not is_bool:
        return float(value)
    if not isinstance(value, expected) or (is_bool and expected is not bool):
        raise ConfigError(key, value, f"a value of type {expected.__name__}")
    return value


def _source(name: str, body: object) -> SourceConfig:
    if not isinstance(body, dict):
        raise ConfigError(f"sources.{name}", body, "a table")
    defaults = {entry.name: entry.default for entry in fields(SourceConfig)}
    for key in body:
        if key not in defaults:
            raise ConfigError(f"sources.{name}.{key}", body[key], f"one of {', '.join(defaults)}")
    values: dict[str, Any] = {
        key: _of_kind(f"sources.{name}.{key}", value, defaults[key]) for key, value in body.items()
    }
    return SourceConfig(**values)
