"""Which models a configuration means on this machine, known before any of them is loaded.

Each function looks at the configuration and at what is on disk, and returns how to load its choice. `auto` never downloads.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from voice_pipelines import folders
from voice_pipelines.doctor import device_choice
from voice_pipelines.download import FetchError
from voice_pipelines.models import (
    PIPER_UPGRADE,
    SMART_TURN,
    FoundModel,
    WhisperChoice,
    entry_for,
    find_fetched_smart_turn,
    find_llm,
    find_piper,
    find_whisper,
    is_english_only,
    is_whisper,
    models_folder,
    whisper_upgrade,
)
from voice_pipelines.processors import available_cores
from voice_pipelines.settings import remote_endpoint
from voiceagent.backends import BackendInfo, Drafter, Synthesizer, Transcriber, VoiceDetector
from voiceagent.config import Config
from voiceagent.config_keys import without_secrets
from voiceagent.errors import BackendError, ConfigError

if TYPE_CHECKING:
    import torch

    from voice_pipelines.adapters.diffusion import DiffusionDrafter
    from voice_pipelines.adapters.remote_wire import RemoteEndpoint
    from voice_pipelines.adapters.whisper_window import WindowOptions
    from voice_pipelines.asr.vocabulary import Vocabulary

LoadTranscriber: TypeAlias = Callable[[], Coroutine[Any, Any, Transcriber]]


CPU_BATCH = 2
"""Canvases per forward on a CPU, where each costs two thirds of one alone: eight at once would make all of them late
(turns replayed at a target of 0.7 s and twice the nominal load: 93 % of answers on time with two, 78 % with eight)."""
DEVICE_BATCH = 8

_DEVICE = re.compile(r"cpu|mps|cuda(:(?P<index>0|[1-9][0-9]*))?")


def root_folder(config: Config) -> Path:
    """Where fetched models are."""
    return folders.named("models.folder", config.models.folder) if config.models.folder else models_folder()


def device_of(config: Config) -> str:
    """The language model's device; `auto` is CUDA where there is one.

    Raises:
        ConfigError: If `models.device` is none of those that the engine knows, or one that is not there.
    """
    import torch

    wanted = config.models.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    found = _DEVICE.fullmatch(wanted)
    if found is None:  # PyTorch has others (`xpu`, `meta`), on which loading or the first step would fail.
        raise ConfigError("models.device", wanted, "`auto`, `cpu`, `cuda`, `cuda:1` or `mps`")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.startswith("cuda") and not count:
        raise ConfigError("models.device", wanted, "`auto` or `cpu`: PyTorch finds no CUDA device here")
    if int(found["index"] or 0) >= max(count, 1):
        raise ConfigError(
            "models.device", wanted, f"`auto`, or `cuda:{count - 1}` at most: so many CUDA devices are here"
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("models.device", wanted, "`auto` or `cpu`: PyTorch finds no Metal device here")
    return wanted


def _check_device(config: Config) -> None:
    if config.models.device not in ("auto", "cpu"):  # Those are always there, and PyTorch takes seconds to be imported.
        device_of(config)
    if config.models.graphs and not (device := device_of(config)).startswith("cuda"):
        raise ConfigError("models.graphs", True, f"false: steps are recorded on a CUDA device only, not on {device!r}")


def choose_vad(config: Config) -> Callable[[], VoiceDetector]:
    """Silero, the only one.

    Raises:
        ConfigError: If `models.vad` is not one of ours.
    """
    from voice_pipelines.adapters.silero import SileroDetector

    if config.models.vad != "silero":
        raise ConfigError("models.vad", config.models.vad, "`silero`, the only voice detector there is")
    return SileroDetector


def choose_asr(config: Config) -> LoadTranscriber:
    """A fetched Whisper, with PocketSphinx beside it where `is_paired`, else PocketSphinx on the agent's vocabulary, unless `models.asr` names one of them.

    Raises:
        ConfigError: As `find_asr`.
    """
    found = find_asr(config)
    if found is None:
        return functools.partial(_load_sphinx, config)
    return functools.partial(_load_pair if is_paired(config) else _load_whisper, config, found)


def find_asr(config: Config) -> FoundModel | None:
    """The Whisper that the configuration means, and what the start-up report says of it; None where PocketSphinx alone listens.

    Raises:
        ConfigError: If `models.asr` is unknown or names a Whisper that is not there, or if the agent does not speak English and only the
            fallback is there, or a Whisper that hears nothing else is chosen. As `is_paired` and `vocabulary_of`.
    """
    vocabulary_of(config)  # A phrase with a mistake is told at once, also by the doctor, and not once a model is there.
    found = _find_asr(config)
    language = config.agent.language
    if found is not None and language != "en" and is_english_only(found.path):
        expected = f"a Whisper that hears agent.language = {language!r}: the vocabulary of this one is English only"
        raise ConfigError("models.asr", config.models.asr, expected)
    if found is None and config.asr.partials == "whisper":
        raise ConfigError("asr.partials", config.asr.partials, "'auto': no Whisper listens (models.asr)")
    if found is None or not is_paired(config):
        return found
    phrases = len(config.vocabulary.phrases)
    reason = f"{found.info.reason}; pocketsphinx, built from {phrases} phrases of the agent, hears when turns end (asr.partials)"
    return replace(found, info=replace(found.info, name=f"{found.info.name} and pocketsphinx", reason=reason))


def is_paired(config: Config) -> bool:
    """Whether PocketSphinx tells what it hears while the caller speaks, where a Whisper writes what they said.

    Raises:
        ConfigError: If `asr.partials` asks for PocketSphinx, which cannot.
    """
    missing = _unfit_for_partials(config)
    if missing and config.asr.partials == "pocketsphinx":
        raise ConfigError("asr.partials", config.asr.partials, f"'auto' or 'whisper': {missing}")
    return config.asr.partials != "whisper" and not missing


def _unfit_for_partials(config: Config) -> str:
    """Why PocketSphinx cannot tell what callers say, or empty."""
    if config.agent.language != "en":
        return f"PocketSphinx knows English only, and agent.language is {config.agent.language!r}"
    if not config.vocabulary.phrases:
        return "without a vocabulary of the agent PocketSphinx mishears most of what is said"
    if importlib.util.find_spec("pocketsphinx") is None:
        return "the package pocketsphinx is not installed"
    return ""


def _find_asr(config: Config) -> FoundModel | None:
    wanted, language = config.models.asr, config.agent.language
    folder = folders.named("models.asr", wanted)
    if is_whisper(folder):
        name = (
            f"faster-whisper {folder.name} ({_whisper_choice(config).compute_type} on {_whisper_choice(config).device})"
        )
        return FoundModel(folder.name, folder, BackendInfo("asr", name, "chosen in the configuration"))
    kind, _, size = wanted.partition(":")
    if kind not in ("auto", "pocketsphinx", "whisper", "faster-whisper") or (size and not kind.endswith("whisper")):
        expected = "`auto`, `pocketsphinx`, `faster-whisper`, `faster-whisper:SIZE` or a folder with model.bin, config.json and tokenizer.json"
        raise ConfigError("models.asr", wanted, expected)
    if kind != "pocketsphinx" and (found := _find_whisper(config, size)) is not None:
        return found
    if language != "en":
        raise ConfigError(
            "agent.language", language, "'en': the PocketSphinx fallback knows English only; fetch Whisper"
        )
    return None


def vocabulary_of(config: Config) -> Vocabulary | None:
    """The agent's vocabulary; None where it has none.

    Raises:
        ConfigError: If a phrase cannot be read, or has figures and nothing says how they are spoken.
    """
    from voice_pipelines.asr.vocabulary import Vocabulary

    try:
        return Vocabulary(config.vocabulary.phrases, config.vocabulary.slots) if config.vocabulary.phrases else None
    except ImportError as error:
        raise ConfigError(
            "vocabulary", str(error), "num2words, as phrases have figures: pip install 'voiceagent[local]'"
        ) from error


async def _load_sphinx(config: Config) -> Transcriber:
    from voice_pipelines.adapters.pocketsphinx import PocketSphinxTranscriber

    return await PocketSphinxTranscriber.create(vocabulary_of(config), upgrade=whisper_upgrade(_whisper_choice(config)))


async def _load_whisper(config: Config, found: FoundModel, options: WindowOptions | None = None) -> Transcriber:
    from voice_pipelines.adapters.whisper import FasterWhisperTranscriber
    from voice_pipelines.asr.vocabulary import Vocabulary

    words = Vocabulary(config.vocabulary.phrases, config.vocabulary.slots).hot_words()
    choice, language = _whisper_choice(config), config.agent.language
    return await asyncio.to_thread(
        FasterWhisperTranscriber.load,
        found.path,
        choice,
        found.info,
        vocabulary=words,
        language=language,
        options=options,
    )


async def _load_pair(config: Config, found: FoundModel) -> Transcriber:
    from voice_pipelines.adapters.paired import PairedTranscriber
    from voice_pipelines.adapters.whisper_window import IN_PAUSES

    quick = await _load_sphinx(config)
    try:
        careful = await _load_whisper(config, found, IN_PAUSES)
    except BaseException:
        await quick.aclose()
        raise
    return PairedTranscriber(quick, careful, found.info)


def _find_whisper(config: Config, size: str) -> FoundModel | None:
    """The fetched Whisper of that size, or the one that suits the machine; None when `auto` finds none on disk."""
    root, language, choice = root_folder(config), config.agent.language, _whisper_choice(config)
    if size:
        path = root / "whisper" / size
        info = BackendInfo("asr", f"faster-whisper {size}", "chosen in the configuration")
        found = FoundModel(size, path, info) if is_whisper(path) else None
    else:
        found = find_whisper(root, choice, language)
    if found is None and config.models.asr != "auto":
        command = f"voiceagent models fetch whisper-{size}" if size else whisper_upgrade(choice)
        raise ConfigError("models.asr", config.models.asr, f"a fetched model; run: {command}")
    return found


def _whisper_choice(config: Config) -> WhisperChoice:
    """The Whisper that suits the machine and the language."""
    return device_choice(config.agent.language, use_cuda=config.models.device.startswith(("auto", "cuda")))


def choose_llm(config: Config) -> Callable[[], Drafter]:
    """The built-in model unless `models.llm` names a checkpoint folder, a fetched model, one on the hub or a remote endpoint.

    Raises:
        ConfigError: If it names none of them, `models.device` is not there, or `models.graphs` is asked for on one without CUDA. What is in
            the folder, or whether hub and endpoint answer, is seen when it is loaded, which raises `BackendError`.
    """
    wanted = config.models.llm
    endpoint = remote_endpoint(config, os.environ)
    if endpoint is not None:
        return functools.partial(_connect_llm, endpoint)
    _check_device(config)
    if wanted in ("auto", "builtin"):
        reason = "chosen in the configuration" if wanted == "builtin" else "no other model is configured (models.llm)"
        if config.remote.url and wanted == "auto":
            reason = "remote.url is used only with models.llm = 'remote'"
        return lambda: _load_llm(config, None, reason)
    path = folders.named("models.llm", wanted)
    source = path if path.is_dir() else _fetched_llm(config)
    if source is None and _is_hub_name(wanted):
        # The loader looks into the hub's local cache, and fetches what is not there.
        return lambda: _load_llm(config, wanted, "chosen in the configuration")
    if source is None:
        raise ConfigError(
            "models.llm",
            without_secrets(wanted),
            "`auto`, `builtin`, `remote`, a URL, ORG/NAME on the hub, a checkpoint folder or a fetched model",
        )
    return lambda: _load_llm(config, source, "chosen in the configuration")


def _is_hub_name(name: str) -> bool:
    try:
        return entry_for(name).repo == name
    except FetchError:
        return False


def _connect_llm(endpoint: RemoteEndpoint) -> Drafter:
    try:
        from voice_pipelines.adapters.remote import RemoteDrafter
    except ImportError as error:
        raise BackendError(
            "llm", f"a remote model needs {error.name}; run: pip install 'voiceagent[remote]'"
        ) from error

    return RemoteDrafter.connect(endpoint)


def _fetched_llm(config: Config) -> Path | None:
    try:
        return find_llm(root_folder(config), config.models.llm)
    except FetchError:  # no name of a model at all
        return None


def _load_llm(config: Config, source: Path | str | None, reason: str) -> DiffusionDrafter:
    import torch

    from dllm import loader
    from dllm.errors import DllmError
    from dllm.models.family import EIGHT_BITS
    from dllm.packing import LAYERS_COMPILED
    from dllm.quantize import Quantisation
    from voice_pipelines.adapters.diffusion import DiffusionDrafter

    device, weights = device_of(config), _weights(config.models.dtype)
    in_eight_bits = config.models.cache_dtype == "e4m3"
    wants_layers_compiled = (
        config.models.compile and device == "cpu" and config.models.threads in (0, 1) and not in_eight_bits
    )
    if config.models.threads:
        torch.set_num_threads(config.models.threads)
    elif device == "cpu":
        # The other core listens and speaks meanwhile.
        torch.set_num_threads(max(available_cores() - 1, 1))
    try:
        # Nobody hears what a model thinks to itself: templates that offer it are told to do without.
        checkpoint = loader.load(
            source,
            device,
            _dtype(config.models.dtype, device, is_small=source is None),
            quantize=Quantisation(weights) if weights is not None else None,
            template_options={"enable_thinking": False},
            packed=True,
            compiled=wants_layers_compiled,
        )
    except (DllmError, RuntimeError) as error:  # RuntimeError: torch has no such device, or no memory on it
        raise BackendError("llm", f"could not load {config.models.llm!r} on {device}: {error}") from error
    if checkpoint.compiled == LAYERS_COMPILED:
        torch.set_num_threads(1)
    size = sum(parameter.numel() for parameter in checkpoint.model.parameters()) / 1e6
    name = (
        "built-in diffusion model" if source is None else checkpoint.path.name if isinstance(source, Path) else source
    )
    stored = next(checkpoint.model.parameters()).dtype
    numbers = weights or str(stored).removeprefix("torch.")
    numbers += f"; {checkpoint.compiled}" if checkpoint.compiled else ""
    numbers += "; prefix cache in e4m3" if in_eight_bits else ""
    visit = config.models.steps_per_visit
    numbers += f"; up to {visit} steps per visit" if visit > 1 else ""
    info = BackendInfo("llm", f"{name}, {size:.1f} M parameters on {device} ({numbers})", reason)
    batch = CPU_BATCH if device == "cpu" else DEVICE_BATCH
    return DiffusionDrafter(
        checkpoint,
        info,
        max_batch=batch,
        cache_dtype=EIGHT_BITS if in_eight_bits else None,
        steps_per_visit=visit,
        graphs=config.models.graphs,
    )


_FEW_BITS: tuple[Literal["int8", "fp8", "int4"], ...] = ("int8", "fp8", "int4")


def _weights(wanted: str) -> Literal["int8", "fp8", "int4"] | None:
    """In how many bits weights are held, where that is less than they are computed in."""
    return next((mode for mode in _FEW_BITS if mode == wanted), None)


def _dtype(wanted: str, device: str, *, is_small: bool) -> torch.dtype | None:
    """What weights are loaded as; None leaves it to the loader. A small model is not short of memory: bfloat16 is for speed alone there."""
    import torch

    from dllm import machine

    if wanted == "auto" or _weights(wanted) is not None:
        pays = machine.bfloat16_is_faster if is_small else machine.has_bfloat16_units
        return torch.bfloat16 if device == "cpu" and pays() else None
    found: torch.dtype = getattr(torch, wanted)
    return found


def find_smart_turn(config: Config) -> Path | None:
    """The file of the Smart Turn that listens: a fetched one, unless `models.endpoint` names another or none.

    Raises:
        ConfigError: If there is no such file.
    """
    if config.models.endpoint == "auto":
        return find_fetched_smart_turn(root_folder(config))
    if config.models.endpoint in ("none", ""):
        return None
    path = folders.named("models.endpoint", config.models.endpoint)
    if config.models.endpoint == SMART_TURN.name and not path.exists():
        found = find_fetched_smart_turn(root_folder(config))
        if found is None:
            missing = f"a fetched one: voiceagent models fetch {SMART_TURN.name}"
            raise ConfigError("models.endpoint", config.models.endpoint, missing)
        return found
    if not path.is_file():
        raise ConfigError("models.endpoint", config.models.endpoint, "`auto`, `none` or the path of an ONNX file")
    return path


def check_repair(config: Config) -> None:
    """What `asr.repair` asks for and cannot have, as far as it shows before a model is loaded.

    Raises:
        ConfigError: If it asks a remote model, lacks the dictionary of sounds, or the agent has no vocabulary.
    """
    if config.asr.repair == "off":
        return
    if remote_endpoint(config, os.environ) is not None:
        raise ConfigError("asr.repair", config.asr.repair, "'off': a remote model is not asked about transcripts")
    if importlib.util.find_spec("pocketsphinx") is None:
        raise ConfigError("asr.repair", config.asr.repair, "'off': the dictionary of sounds comes with PocketSphinx")
    if not config.vocabulary.phrases:
        raise ConfigError("asr.repair", config.asr.repair, "'off': the agent has no vocabulary to look for words in")


def choose_tts(config: Config) -> Callable[[], Synthesizer]:
    """A fetched Piper voice, else eSpeak NG, unless `models.tts` names one of them.

    Raises:
        ConfigError: As `find_tts`.
    """
    from voice_pipelines.adapters.espeak import EspeakSynthesizer

    found = find_tts(config)
    return EspeakSynthesizer if found is None else functools.partial(_load_piper, found)


def find_tts(config: Config) -> FoundModel | None:
    """The Piper voice that would speak; None where eSpeak NG does.

    Raises:
        ConfigError: If `models.tts` is unknown or names a voice that was not fetched.
    """
    wanted = config.models.tts
    kind, _, voice = wanted.partition(":")
    if kind not in ("auto", "piper", "espeak") or (voice and kind != "piper"):
        raise ConfigError("models.tts", wanted, "`auto`, `espeak`, `piper` or `piper:VOICE`")
    if kind == "espeak":
        return None
    found = find_piper(root_folder(config), voice or None)
    if found is None and kind == "piper":
        command = f"voiceagent models fetch {voice}" if voice else PIPER_UPGRADE
        raise ConfigError("models.tts", wanted, f"a fetched voice; run: {command}")
    return found


def _load_piper(voice: FoundModel) -> Synthesizer:
    from voice_pipelines.adapters.piper import PiperSynthesizer

    return PiperSynthesizer.load(voice.path, voice.info)
