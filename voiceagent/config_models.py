"""The sections of the configuration that say which models listen, write and speak, and what they are told."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass

from voiceagent.config_keys import documented, is_endpoint_url, within
from voiceagent.errors import ConfigError
from voiceagent.repair import REPAIR_MODES, RepairMode, RepairSettings

_REPAIR = RepairSettings()


@dataclass(frozen=True, slots=True)
class ModelsConfig:
    """Which models do the work. `auto` takes the best that is on disk and says why."""

    vad: str = documented("silero", "Voice detector.", "the name of a voice detector", bool)
    asr: str = documented(
        "auto",
        "Recogniser: `pocketsphinx`, `faster-whisper:small`, or the folder of a converted Whisper.",
        "`auto`, a recogniser or a path",
        bool,
    )
    llm: str = documented(
        "auto",
        "Diffusion model: `builtin` or a checkpoint folder; or a remote model: its URL, or `remote` for that of `[remote]`.",
        "`auto`, `builtin`, a path, `remote` or a URL",
        bool,
    )
    tts: str = documented("auto", "Voice, such as `espeak` or `piper:en_US-amy-medium`.", "`auto` or a voice", bool)
    endpoint: str = documented(
        "auto",
        "Smart Turn v3 (ONNX), which listens in the place of the built-in judge of sound; `auto` takes one that was fetched.",
        "`auto`, `none` or a path",
    )
    device: str = documented(
        "auto",
        "Where the diffusion model runs; `auto` is CUDA where there is one.",
        "`auto`, `cpu`, `cuda`, `cuda:1` or `mps`",
        bool,
    )
    dtype: str = documented(
        "auto",
        "Numbers that the diffusion model computes in; `auto` on a CPU is bfloat16 where it has units for it (for the built-in model: where they are faster), else float32, and on a GPU "
        "that of the files. `int8`, `fp8` and `int4` are weights in so many bits.",
        "'auto', 'float32', 'bfloat16', 'float16', 'int8', 'fp8' or 'int4'",
        lambda v: v in ("auto", "float32", "bfloat16", "float16", "int8", "fp8", "int4"),
    )
    cache_dtype: str = documented(
        "auto",
        "Numbers that the diffusion model's prefix cache holds; `auto` is the model's own. `e4m3` is eight bits, for models that keep a prefix: "
        "half or a quarter of the bytes, and other replies now and then (docs/quantisation.md). Layers are not compiled then.",
        "'auto' or 'e4m3'",
        lambda v: v in ("auto", "e4m3"),
    )
    steps_per_visit: int = documented(
        1,
        "Most denoising steps between two looks at their outcome. More spare a GPU the waits for its host; a plan that changes, an interruption and a "
        "clause that is finished take effect that much later.",
        "an integer from 1 to 16",
        within(1, 16),
    )
    graphs: bool = documented(
        False,
        "Whether steps are recorded as CUDA graphs and replayed. For `cuda` alone; not tried on any GPU yet.",
        "true or false",
    )
    threads: int = documented(
        0,
        "CPU threads of the diffusion model; 0 is one where its layers are compiled, else all cores but one.",
        "an integer from 0 to 256",
        within(0, 256),
    )
    compile: bool = documented(
        True,
        "Whether a small model's layers are compiled for this processor (AVX-512, AVX2 or NEON) by the C compiler on the path, if there is one. For one "
        "thread.",
        "true or false",
    )
    folder: str = documented("", "Where fetched models are kept; empty is the user's data folder.", "a path, or empty")


@dataclass(frozen=True, slots=True)
class AsrConfig:
    """Who tells what a caller says while they speak, and words that were probably misheard, which the built-in model judges (docs/asr.md)."""

    partials: str = documented(
        "auto",
        "Whose words are gone by while a caller speaks, where a Whisper writes the transcripts: `pocketsphinx`, which hears beside it, or `whisper`; "
        "`auto` is PocketSphinx where the agent speaks English and has a vocabulary.",
        "'auto', 'pocketsphinx' or 'whisper'",
        lambda v: v in ("auto", "pocketsphinx", "whisper"),
    )
    repair: str = documented(
        _REPAIR.mode,
        "`show` tells clients and timelines which words were probably misheard and what was meant, `use` goes by that.",
        "'off', 'show' or 'use'",
        lambda v: v in REPAIR_MODES,
    )
    repair_below: float = documented(
        _REPAIR.below,
        "Words at least as probable as this are left alone.",
        "a probability from 0 to 1",
        within(0.0, 1.0),
    )
    repair_factor: float = documented(
        _REPAIR.factor,
        "So many times as likely must the other word be in the place.",
        "a number from 1 to 1e9",
        within(1.0, 1e9),
    )
    repair_distance: float = documented(
        _REPAIR.distance,
        "How different the two may sound: share of the sounds that differ.",
        "a number from 0 to 1",
        within(0.0, 1.0),
    )

    def settings(self) -> RepairSettings:
        mode = typing.cast(RepairMode, self.repair)
        return RepairSettings(mode, self.repair_below, self.repair_factor, self.repair_distance)


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A language model on somebody else's machine; used when `models.llm` is `remote` or a URL."""

    url: str = documented(
        "",
        "Base URL that `/chat/completions` is appended to, as OpenAI clients take it.",
        "a URL such as 'https://host/v1', or empty",
        lambda v: not v or is_endpoint_url(v),
    )
    model: str = documented("", "Name of the model; empty takes the only one that the endpoint lists.", "text")
    dialect: str = documented(
        "openai",
        "`inception` also sends `realtime`, `diffusing` and a `reasoning_effort` that follows the plan.",
        "'openai' or 'inception'",
        lambda v: v in ("openai", "inception"),
    )
    api_key: str = documented("", "Key that the endpoint asks for.", "text")
    api_key_env: str = documented(
        "", "Variable that holds the key, such as `OPENAI_API_KEY`; instead of `remote.api_key`.", "a name, or empty"
    )
    timeout_s: float = documented(
        10.0, "Longest wait for the next piece of a reply.", "seconds from 0.1 to 600", within(0.1, 600.0)
    )
    pause_s: float = documented(
        1.0,
        "Silence between two sentences after which the reply ends with the last whole one.",
        "seconds from 0 to 60",
        within(0.0, 60.0),
    )
    max_tokens: int = documented(
        128,
        "Longest reply, and with models that reason the longest thought as well.",
        "an integer from 1 to 65536",
        within(1, 65_536),
    )
    reasoning_effort: str = documented(
        "auto",
        "`auto` follows the plan with Inception and is left to the model with OpenAI.",
        "`auto` or an effort that the endpoint knows, such as 'low'",
        bool,
    )
    diffusing: bool = documented(False, "Whether Inception streams its canvases while they denoise.", "true or false")

    def __post_init__(self) -> None:
        if self.diffusing and self.dialect != "inception":
            raise ConfigError("remote.diffusing", True, "remote.dialect = 'inception', which alone streams canvases")
        if self.api_key and self.api_key_env:
            raise ConfigError("remote.api_key_env", self.api_key_env, "nothing beside remote.api_key, or the other way")


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """What callers say to this agent: it steers the recogniser."""

    phrases: tuple[str, ...] = documented(
        (),
        "What callers say: `{slot}` is any entry of that slot, `[…]` may be left out, `(a\\|b)` is either.",
        "a list of phrases",
    )
    slots: Mapping[str, tuple[str, ...]] = documented(
        {}, "Lists of alternatives by name.", "a table of lists of phrases"
    )
