"""The whole agent in one process: chooses the models, loads them, learns how fast they are here, and opens conversations."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voice_pipelines.models import (
    PIPER_UPGRADE,
    choose_model,
    find_llm,
    find_piper,
    find_whisper,
    models_folder,
    whisper_upgrade,
)
from voice_pipelines.settings import agent_profile
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    BackendInfo,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    StepPlan,
    Synthesizer,
    Transcriber,
)
from voiceagent.budget import BudgetController, BudgetSettings, CostModel, Stage
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.config import Config
from voiceagent.conversation import Backends, Conversation
from voiceagent.errors import ConfigError
from voiceagent.events import ConversationEvent
from voiceagent.session import SessionSettings

if TYPE_CHECKING:
    from voice_pipelines.adapters.diffusion import DiffusionDrafter

CALIBRATION_CLAUSES = (
    "Sure.",
    "One large mocha with oat milk.",
    "Your total is $13.75, and it will be ready in 10 minutes.",
)


@dataclass(slots=True)
class LocalRuntime:
    """Models and agent, ready to talk. Implements `voiceagent.server.Runtime`."""

    config: Config
    agent: AgentProfile
    backends: Backends
    budget: BudgetController
    clock: Clock
    is_closed: bool = False

    @property
    def ready(self) -> bool:
        return not self.is_closed

    @property
    def infos(self) -> Sequence[BackendInfo]:
        parts = self.backends
        return (parts.vad.info, parts.asr.info, parts.llm.info, parts.tts.info)

    @property
    def default_settings(self) -> SessionSettings:
        return self.config.session_settings()

    def open_conversation(
        self, emit: Callable[[ConversationEvent], None], settings: SessionSettings | None = None
    ) -> Conversation:
        """A conversation with this agent; nothing runs before it is entered."""
        return Conversation(
            backends=self.backends,
            agent=self.agent,
            settings=settings or self.default_settings,
            clock=self.clock,
            emit=emit,
            budget=self.budget,
        )

    async def aclose(self) -> None:
        """Stop all models; threads and worker processes end."""
        self.is_closed = True
        parts = self.backends
        await asyncio.gather(*(part.aclose() for part in (parts.vad, parts.asr, parts.llm, parts.tts)))


async def build(config: Config, *, report: Callable[[BackendInfo], None] = lambda info: None) -> LocalRuntime:
    """Choose and load every part, then calibrate. `report` gets each part's choice as soon as it is loaded.

    Raises:
        ConfigError: If the configuration asks for something that is not there.
        BackendError: If a model cannot be loaded.
    """
    from voice_pipelines.adapters.silero import SileroDetector

    agent = agent_profile(config)
    if config.models.vad != "silero":
        raise ConfigError("models.vad", config.models.vad, "`silero`, the only voice detector there is")
    vad = SileroDetector()
    report(vad.info)
    # The recogniser's worker processes load while this process loads the language model.
    asr_loading = asyncio.create_task(_load_asr(config))
    try:
        llm = await asyncio.to_thread(_load_llm, config)
        asr = await asr_loading
    except BaseException:
        asr_loading.cancel()
        await asyncio.gather(asr_loading, return_exceptions=True)
        raise
    report(asr.info)
    report(llm.info)
    tts = await asyncio.to_thread(_load_tts, config)
    report(tts.info)
    budget = BudgetController(_with_floor(config, llm), CostModel(), llm.quality_curve)
    runtime = LocalRuntime(config, agent, Backends(vad, asr, llm, tts), budget, MonotonicClock())
    await calibrate(runtime)
    return runtime


def _with_floor(config: Config, llm: DiffusionDrafter) -> BudgetSettings:
    """The configured limits, with the model's own floor: below it a reply is not worth hearing, however late it is."""
    limits = config.budget.settings()
    floor = min(max(limits.min_steps, llm.min_steps), limits.max_steps)
    return replace(limits, min_steps=floor)


def root_folder(config: Config) -> Path:
    """Where fetched models are."""
    return Path(config.models.folder).expanduser() if config.models.folder else models_folder()


def device_of(config: Config) -> str:
    """The device that the configuration means; `auto` is CUDA where there is one."""
    import torch

    if config.models.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.models.device


async def _load_asr(config: Config) -> Transcriber:
    from voice_pipelines.adapters.pocketsphinx import PocketSphinxTranscriber
    from voice_pipelines.adapters.whisper import FasterWhisperTranscriber
    from voice_pipelines.asr.vocabulary import Vocabulary

    wanted = config.models.asr
    language = config.agent.language
    choice = choose_model(_whisper_device(config), os.cpu_count() or 1, _free_memory_gib(), language)
    vocabulary = Vocabulary(config.vocabulary.phrases, config.vocabulary.slots) if config.vocabulary.phrases else None
    if wanted not in ("auto", "pocketsphinx") and not wanted.startswith(("whisper", "faster-whisper")):
        raise ConfigError("models.asr", wanted, "`auto`, `pocketsphinx`, `faster-whisper` or `faster-whisper:SIZE`")
    if wanted != "pocketsphinx":
        _, _, size = wanted.partition(":")
        found = find_whisper(root_folder(config), choice, language)
        if size:
            folder = root_folder(config) / "whisper" / size
            if not (folder / "model.bin").is_file():
                raise ConfigError("models.asr", wanted, f"a fetched model; run: voiceagent models fetch whisper-{size}")
            info = BackendInfo("asr", f"faster-whisper {size}", "chosen in the configuration")
            return await asyncio.to_thread(
                FasterWhisperTranscriber.load, folder, choice, info, vocabulary=hot_words(config), language=language
            )
        if found is not None:
            return await asyncio.to_thread(
                FasterWhisperTranscriber.load,
                found.path,
                choice,
                found.info,
                vocabulary=hot_words(config),
                language=language,
            )
        if wanted != "auto":
            raise ConfigError("models.asr", wanted, f"a fetched model; run: {whisper_upgrade(choice)}")
    if language != "en":
        raise ConfigError(
            "agent.language", language, "'en': the PocketSphinx fallback knows English only; fetch Whisper"
        )
    return await PocketSphinxTranscriber.create(vocabulary)


def hot_words(config: Config) -> tuple[str, ...]:
    """Words that Whisper should expect: the entries of the vocabulary's slots that are plain phrases."""
    entries = (entry for slot in config.vocabulary.slots.values() for entry in slot)
    return tuple(dict.fromkeys(entry for entry in entries if not set("{}[]()|") & set(entry)))


def _whisper_device(config: Config) -> Literal["cpu", "cuda"]:
    import ctranslate2

    return "cuda" if config.models.device in ("auto", "cuda") and ctranslate2.get_cuda_device_count() else "cpu"


def _free_memory_gib() -> float:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return pages * size / 2**30


def _load_llm(config: Config) -> DiffusionDrafter:
    import torch

    from dllm import loader
    from voice_pipelines.adapters.diffusion import DiffusionDrafter

    wanted = config.models.llm
    device = device_of(config)
    if config.models.threads:
        torch.set_num_threads(config.models.threads)
    elif device == "cpu":
        torch.set_num_threads(max((os.cpu_count() or 2) - 1, 1))
    if wanted in ("auto", "builtin"):
        checkpoint = loader.load(None, device)
        size = sum(parameter.numel() for parameter in checkpoint.model.parameters()) / 1e6
        info = BackendInfo(
            "llm",
            f"built-in diffusion model, {size:.1f} M parameters on {device}",
            "chosen in the configuration" if wanted == "builtin" else "no other model is configured (models.llm)",
        )
        return DiffusionDrafter(checkpoint, info)
    path = Path(wanted).expanduser()
    if not path.is_dir():
        found = find_llm(root_folder(config), wanted) if "/" in wanted else None
        if found is None:
            raise ConfigError("models.llm", wanted, "`auto`, `builtin`, a checkpoint folder or a fetched hub id")
        path = found
    checkpoint = loader.load(path, device)
    return DiffusionDrafter(checkpoint, BackendInfo("llm", f"{path.name} on {device}", "chosen in the configuration"))


def _load_tts(config: Config) -> Synthesizer:
    from voice_pipelines.adapters.espeak import EspeakSynthesizer
    from voice_pipelines.adapters.piper import PiperSynthesizer

    wanted = config.models.tts
    kind, _, voice = wanted.partition(":")
    if kind not in ("auto", "piper", "espeak"):
        raise ConfigError("models.tts", wanted, "`auto`, `espeak`, `piper` or `piper:VOICE`")
    if kind != "espeak":
        found = find_piper(root_folder(config), voice or None)
        if found is not None:
            return PiperSynthesizer.load(found.path, found.info)
        if kind == "piper":
            raise ConfigError("models.tts", wanted, f"a fetched voice; run: {PIPER_UPGRADE}")
    return EspeakSynthesizer()


async def calibrate(runtime: LocalRuntime) -> None:
    """Learn how long each stage takes on this machine, so that the first caller's plan is no guess.

    Two short drafts for each canvas width (the second prompt is the first plus one turn, as in a call) and three clauses spoken
    twice: about a second. Recognition is learned from calls, since its cost after the end of audio depends on how far the decoder
    is behind, which only real speech shows.
    """
    costs, backends = runtime.budget.costs, runtime.backends
    opening = (PromptTurn("system", runtime.agent.instructions or "Be brief."), PromptTurn("user", "hello"))
    followed = (
        *opening,
        PromptTurn("agent", "Hello."),
        PromptTurn("user", "can i have a large coffee with milk please"),
    )
    for width in backends.llm.canvas_widths:
        for prompt in (opening, followed):
            await _time_draft(runtime, DraftRequest(f"calibration-{width}", prompt, _calibration_plan(runtime, width)))
        backends.llm.forget(f"calibration-{width}")
    for clause in CALIBRATION_CLAUSES * 2:
        asked = time.monotonic()
        async with contextlib.aclosing(backends.tts.speak(clause)) as audio:
            async for _ in audio:
                costs.observe(Stage.TTS, time.monotonic() - asked, len(clause))
                break


def _calibration_plan(runtime: LocalRuntime, width: int) -> StepPlan:
    return StepPlan(width, 4, 4, runtime.budget.settings.threshold)


async def _time_draft(runtime: LocalRuntime, request: DraftRequest) -> None:
    costs = runtime.budget.costs
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    runtime.backends.llm.start(request, events.put_nowait)
    is_first_step = True
    while True:
        match await events.get():
            case DraftPrefilled(new_tokens=tokens, compute_s=seconds):
                if tokens > 0:
                    costs.observe(Stage.PREFILL, seconds, tokens)
            case DraftStepped(compute_s=seconds, batch=batch):
                # The first forward of a draft allocates its buffers; the later ones show what a step costs.
                if not is_first_step:
                    costs.observe(Stage.STEP, seconds, request.plan.canvas_width * batch)
                is_first_step = False
            case DraftFailed(error=error):
                raise error
            case DraftFinished():
                return
