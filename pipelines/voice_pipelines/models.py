"""Which models are on disk, which of them suits this machine, and where to get better ones.

Layout of the model folder (`$VOICEAGENT_MODELS`, else the user's data folder):

    whisper/NAME/      model.bin, config.json, tokenizer.json, vocabulary.*      (CTranslate2)
    piper/VOICE/       VOICE.onnx, VOICE.onnx.json
    endpoint/NAME/     NAME*.onnx                                                (Smart Turn)
    llm/ORG--NAME/     a checkpoint as the hub lays it out

Looking never touches the network; only `fetch` does, and only when asked.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from voice_pipelines import folders
from voice_pipelines.download import HUB_URL, FetchError, Hub, Progress, download_folder
from voiceagent.backends import BackendInfo

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model by the name a user types after `voiceagent models fetch`."""

    name: str
    part: Literal["asr", "tts", "endpoint", "llm"]
    repo: str
    patterns: tuple[str, ...]
    folder: str = ""
    """Folder inside the repository; empty for all of it."""
    note: str = ""

    @property
    def place(self) -> Path:
        """Where it lies below the model folder."""
        match self.part:
            case "asr":
                return Path("whisper") / self.name.removeprefix("whisper-")
            case "tts":
                return Path("piper") / Path(self.patterns[0]).stem
            case "endpoint":
                return Path("endpoint") / self.name
            case "llm":
                return Path("llm") / self.repo.replace("/", "--")


_WHISPER_FILES = ("model.bin", "config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.*")
_LLM_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja", "LICENSE*", "README.md")

WHISPER_REPOS = {
    "tiny": "Systran/faster-whisper-tiny",
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "base": "Systran/faster-whisper-base",
    "base.en": "Systran/faster-whisper-base.en",
    "small": "Systran/faster-whisper-small",
    "small.en": "Systran/faster-whisper-small.en",
    "medium": "Systran/faster-whisper-medium",
    "medium.en": "Systran/faster-whisper-medium.en",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "large-v3": "Systran/faster-whisper-large-v3",
}
"""Smallest first; the ids that faster-whisper itself uses."""

DEFAULT_VOICE = "en_US-ljspeech-medium"
"""Trained on public domain recordings; other voices carry the terms of their MODEL_CARD."""

SMART_TURN = CatalogueEntry(
    "smart-turn-v3",
    "endpoint",
    "pipecat-ai/smart-turn-v3",
    ("smart-turn-v3.2-cpu.onnx",),
    note="hears whether a turn is over, BSD-2-Clause",
)
"""The eight-bit one for processors, 9 MB; Pipecat's own wheel brings the same file."""

LLM_REPOS = {
    "llada-8b": "GSAI-ML/LLaDA-8B-Instruct",
    "dream-7b": "Dream-org/Dream-v0-Instruct-7B",
    "sdar-1.7b": "JetLM/SDAR-1.7B-Chat",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
}

_VOICE_NAME = re.compile(
    r"(?P<family>[a-z]{2,3})_(?P<region>[A-Z]{2})-(?P<name>\w+)-(?P<quality>x_low|low|medium|high)"
)
_REPO_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def _whisper_entry(size: str) -> CatalogueEntry:
    return CatalogueEntry(f"whisper-{size}", "asr", WHISPER_REPOS[size], _WHISPER_FILES, note="recognition, MIT")


def _voice_entry(name: str, voice: str) -> CatalogueEntry:
    parts = _VOICE_NAME.fullmatch(voice)
    assert parts is not None
    region = f"{parts['family']}_{parts['region']}"
    return CatalogueEntry(
        name,
        "tts",
        "rhasspy/piper-voices",
        (f"{voice}.onnx", f"{voice}.onnx.json", "MODEL_CARD"),
        folder=f"{parts['family']}/{region}/{parts['name']}/{parts['quality']}",
        note=f"voice {voice}; its licence is in MODEL_CARD",
    )


CATALOGUE: Mapping[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        *(_whisper_entry(size) for size in WHISPER_REPOS),
        _voice_entry("piper", DEFAULT_VOICE),
        SMART_TURN,
        *(CatalogueEntry(name, "llm", repo, _LLM_FILES, note="diffusion model") for name, repo in LLM_REPOS.items()),
    )
}
"""The names that `voiceagent models list` shows; any Piper voice and any hub id work too."""


def entry_for(name: str) -> CatalogueEntry:
    """The entry of a catalogue name, a Piper voice ("de_DE-thorsten-medium") or a language model's hub id ("ORG/NAME").

    Raises:
        FetchError: If it is none of these.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if _VOICE_NAME.fullmatch(name):
        return _voice_entry(name, name)
    if _REPO_NAME.fullmatch(name) and ".." not in name:
        return CatalogueEntry(name, "llm", name, _LLM_FILES)
    known = ", ".join(CATALOGUE)
    raise FetchError(
        f"there is no model {name!r}; known are {known}, every Piper voice by its name and ORG/NAME of the hub"
    )


def models_folder(
    environ: Mapping[str, str] = os.environ, home: Path | None = None, platform: str = sys.platform
) -> Path:
    """Where models are kept; it need not exist."""
    if chosen := environ.get("VOICEAGENT_MODELS"):
        return folders.named("VOICEAGENT_MODELS", chosen)
    home = home or folders.home()
    if platform == "darwin":
        return home / "Library" / "Application Support" / "voiceagent" / "models"
    data = environ.get("XDG_DATA_HOME")
    return (Path(data) if data else home / ".local" / "share") / "voiceagent" / "models"


# --- what suits this machine ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WhisperChoice:
    """The recogniser that suits a machine, and how to run whichever size is there."""

    size: str
    device: Device
    compute_type: str
    threads: int
    workers: int
    beam_size: int
    reason: str


def choose_model(device: Device, cores: int, memory_gib: float, language: str = "en") -> WhisperChoice:
    """The largest Whisper whose decode of one window fits into the endpoint's wait.

    Args:
        cores: CPU cores this process may use.
        memory_gib: Free memory of the device.

    The encoder's pass over a window decides, so the size does. Measured with random weights in the real geometries, int8, one thread
    of a two-core machine that was also busy with other work, over 30 s: 0.8 s (tiny), 1.2 s (base), 5.0 s (small); most windows are
    of 10 s now, a sixth of that. That more cores take proportionally less, and the memory limits, are estimates. A core is left to
    whoever writes the reply.
    """
    suffix = ".en" if language == "en" else ""
    if device == "cuda":
        if memory_gib >= 5.0:
            size, why = "large-v3-turbo", "the best that fits its memory"
        else:
            size, why = f"{'small' if memory_gib >= 2.0 else 'base'}{suffix}", f"{memory_gib:.1f} GiB free hold no more"
        return WhisperChoice(size, "cuda", "float16", 0, 2, 5, f"CUDA: {why}")
    if cores >= 8 and memory_gib >= 2.0:
        size = "small"
    elif cores >= 4 and memory_gib >= 1.0:
        size = "base"
    else:
        size = "tiny"
    reason = f"{cores} CPU cores and {memory_gib:.0f} GiB decode no larger one in time"
    return WhisperChoice(size + suffix, "cpu", "int8", max(1, min(cores - 1, 8)), 1, 1, reason)


# --- what is on disk --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on disk."""

    name: str
    path: Path
    info: BackendInfo


def find_whisper(root: Path, choice: WhisperChoice, language: str = "en") -> FoundModel | None:
    """The fetched Whisper nearest to what suits the machine: the largest not above it, else the smallest above it."""
    sizes = [size for size in WHISPER_REPOS if language == "en" or not size.endswith(".en")]
    here = [size for size in sizes if is_whisper(root / "whisper" / size)]
    if not here:
        return None
    limit = sizes.index(choice.size)
    fitting = [size for size in here if sizes.index(size) <= limit]
    size = fitting[-1] if fitting else here[0]
    if size == choice.size:
        reason, upgrade = f"fetched, and {choice.reason}", None
    elif fitting:
        reason, upgrade = f"the largest fetched that {choice.device} decodes in time", whisper_upgrade(choice)
    else:
        reason, upgrade = f"the only one fetched; it may be slow: {choice.reason}", whisper_upgrade(choice)
    name = f"faster-whisper {size} ({choice.compute_type} on {choice.device})"
    return FoundModel(size, root / "whisper" / size, BackendInfo("asr", name, reason, upgrade))


def find_piper(root: Path, voice: str | None = None) -> FoundModel | None:
    """A fetched Piper voice: the one asked for, else the default, else the first by name. `path` is its .onnx file."""
    folder = root / "piper"
    here = sorted(path for path in folder.glob("*/*.onnx") if path.with_name(path.name + ".json").is_file())
    if voice is not None:
        here = [path for path in here if path.stem == voice]
    if not here:
        return None
    chosen = next((path for path in here if path.stem == DEFAULT_VOICE), here[0])
    if voice is not None:
        reason = "chosen in the configuration"
    else:
        reason = "a fetched neural voice" + (f", the default of {len(here)}" if len(here) > 1 else "")
    return FoundModel(chosen.stem, chosen, BackendInfo("tts", f"Piper {chosen.stem}", reason))


def find_llm(root: Path, name: str) -> Path | None:
    """A fetched language model by catalogue name or hub id."""
    path = root / entry_for(name).place
    return path if (path / "config.json").is_file() and any(path.glob("*.safetensors")) else None


def find_fetched_smart_turn(root: Path | None = None) -> Path | None:
    """The file of a fetched Smart Turn; None when there is none."""
    path = (root or models_folder()) / SMART_TURN.place / SMART_TURN.patterns[0]
    return path if path.is_file() else None


def is_whisper(folder: Path) -> bool:
    """Whether a folder holds a converted Whisper that loads without the network."""
    return all((folder / name).is_file() for name in ("model.bin", "config.json", "tokenizer.json"))


def is_english_only(folder: Path) -> bool:
    """Whether a converted Whisper hears English whatever language it is told; False where that cannot be read.

    As CTranslate2 4.8 tells: the vocabulary of every other has one token without text. Of two files it reads the JSON.
    """
    try:
        if (folder / "vocabulary.json").is_file():
            tokens = json.loads((folder / "vocabulary.json").read_bytes())
        else:
            tokens = (folder / "vocabulary.txt").read_bytes().removesuffix(b"\n").split(b"\n")
    except (OSError, ValueError):
        return False
    return isinstance(tokens, list) and bool(tokens) and "" not in tokens and b"" not in tokens


def whisper_upgrade(choice: WhisperChoice) -> str:
    """The command that brings the recogniser that suits the machine."""
    return f"voiceagent models fetch whisper-{choice.size}"


PIPER_UPGRADE = "voiceagent models fetch piper"


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch(
    name: str,
    progress: Callable[[Progress], None] = lambda progress: None,
    *,
    root: Path | None = None,
    hub: Hub | None = None,
) -> Path:
    """Bring a model into the model folder; at once when it is there.

    Returns:
        Its folder.

    Raises:
        FetchError: If the name is unknown, the hub cannot be reached, or what arrived is damaged; says what to do.
    """
    entry = entry_for(name)
    target = (root or models_folder()) / entry.place
    if target.exists():
        return target
    hub = hub or Hub(os.environ.get("HF_ENDPOINT") or HUB_URL)
    listed = hub.list_files(entry.repo, folder=entry.folder)
    files = [file for file in listed if any(fnmatch(Path(file.path).name, pattern) for pattern in entry.patterns)]
    if entry.part != "llm":
        files = [file for file in files if str(Path(file.path).parent) in (".", entry.folder)]
    needed = {
        "asr": ("model.bin", "config.json", "tokenizer.json"),
        "tts": entry.patterns[:2],
        "endpoint": entry.patterns,
        "llm": ("config.json",),
    }[entry.part]
    missing = set(needed) - {Path(file.path).name for file in files}
    if missing:
        raise FetchError(
            f"{entry.repo} on {hub.url} lacks {', '.join(sorted(missing))}; is it a model for {entry.part}?"
        )
    download_folder(hub, entry.repo, files, target, strip=entry.folder, on_progress=progress)
    return target
