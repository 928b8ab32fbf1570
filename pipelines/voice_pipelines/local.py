"""The whole agent in one process: chooses the models, loads them, learns how fast they are here, and opens conversations."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from voice_pipelines import processors
from voice_pipelines.choices import (
    check_repair,
    choose_asr,
    choose_llm,
    choose_tts,
    choose_vad,
    find_smart_turn,
    vocabulary_of,
)
from voice_pipelines.processors import Spared, available_cores, helped
from voice_pipelines.remembering import Memory, memory_folder
from voice_pipelines.settings import agent_profile
from voice_pipelines.toolbox import Toolbox
from voiceagent import endpoint_sound
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    BackendInfo,
    Backends,
    Drafter,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    GuessesNeed,
    HasEngine,
    HasProcesses,
    IsAsked,
    PromptTurn,
    StepPlan,
    Transcriber,
    TranscriptRepairer,
    TurnScorer,
)
from voiceagent.budget import BudgetController
from voiceagent.budget_load import LOAD_HIGH
from voiceagent.budget_terms import BudgetSettings
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.config import Config
from voiceagent.conversation import Conversation
from voiceagent.costs import CostModel, Stage
from voiceagent.errors import BackendError, ConfigError, EngineFullError
from voiceagent.events import ConversationEvent, TurnTraced
from voiceagent.foresight import PERIOD_S, REPLY_ON_PROCESSORS
from voiceagent.lag import watch_lag
from voiceagent.session import SessionSettings

if TYPE_CHECKING:
    from voice_pipelines.adapters.smart_turn import SmartTurn
    from voice_pipelines.adapters.turn_words import TurnWordsScorer

CALIBRATION_CLAUSES = (
    "Sure.",
    "One large mocha with oat milk.",
    "Your total is $13.75, and it will be ready in 10 minutes.",
)


SILENCE_ALONE = BackendInfo("endpoint", "silence", "turn.endpoint is silence")
DOUBTED = "the recogniser tells which it misheard"
LISTED = "and the agent's phrases where they end"


@dataclass(slots=True)
class LocalRuntime:
    """Models and agent, ready to talk. Implements `voiceagent.server.Runtime`."""

    config: Config
    agent: AgentProfile
    backends: Backends
    budget: BudgetController
    clock: Clock
    is_closed: bool = False
    toolbox: Toolbox | None = None
    endpoint_info: BackendInfo = SILENCE_ALONE
    memory: Memory | None = None
    """Where stage times and timelines outlive this process; None forgets them."""
    spared: Spared = field(default_factory=Spared)
    """What fewer steps would have saved of the processors, which is no need."""
    _watching: tuple[asyncio.Task[None], ...] = ()

    @property
    def ready(self) -> bool:
        return not self.is_closed

    @property
    def infos(self) -> Sequence[BackendInfo]:
        parts = self.backends
        repair = () if parts.repairer is None else (parts.repairer.info,)
        return (parts.vad.info, parts.asr.info, parts.llm.info, parts.tts.info, self.endpoint_info, *repair)

    @property
    def default_settings(self) -> SessionSettings:
        settings = self.config.session_settings()
        detection = settings.turn_detection
        if detection is None or self.backends.scorer is not None:
            return settings
        return replace(settings, turn_detection=replace(detection, weighs_words=False))

    @property
    def fullness(self) -> Mapping[str, float]:
        foresight = self.budget.room.foresight
        engine = self.budget.room.load.share(self.clock.now()) / LOAD_HIGH
        return {"processors": foresight.fullness(foresight.callers), "engine": engine}

    def unready(self) -> str | None:
        refusal = self.budget.room.unready(self.clock.now())
        return None if refusal is None else refusal.reason

    def open_conversation(
        self, emit: Callable[[ConversationEvent], None], settings: SessionSettings | None = None
    ) -> Conversation:
        """A conversation with this agent; nothing runs before it is entered.

        Raises:
            EngineFullError: If one more caller would make those who are there late.
        """
        if (refusal := self.budget.room.refusal(self.clock.now())) is not None:
            raise EngineFullError(refusal.code, refusal.reason)
        return Conversation(
            backends=self.backends,
            agent=self.agent,
            settings=settings or self.default_settings.for_client(),
            clock=self.clock,
            emit=emit if self.memory is None else self._remembering(emit, self.memory),
            budget=self.budget,
        )

    def watch_processors(self) -> None:
        """From now on, until closed, read every second what callers need of the processors and what questions take of the engine, and notice
        when the event loop is held."""
        foresight = self.budget.room.foresight
        foresight.cores = float(len(processors.usable()))
        asr = self.backends.asr
        if isinstance(asr, GuessesNeed) and asr.need is not None:
            foresight.guess = REPLY_ON_PROCESSORS + asr.need
        self._watching = (
            asyncio.create_task(self._watch()),
            asyncio.create_task(watch_lag(self.clock, lambda lag_s: self.budget.room.lagged(self.clock.now(), lag_s))),
        )

    async def _watch(self) -> None:
        asr, llm, budget, asked_s = self.backends.asr, self.backends.llm, self.budget, None
        foresight, groups, nice = budget.room.foresight, processors.quota_folders(), processors.niceness()
        while True:
            now = self.clock.now()
            worked_s = time.process_time() + (asr.cpu_s if isinstance(asr, HasProcesses) else 0.0)
            # Who may use how much can change while callers are there.
            usable, quota = processors.usable(), processors.quota(groups)
            busy_s, used_s = processors.busy_s(usable, nice), None if quota is None else quota.used_s
            foresight.cores, foresight.quota = float(len(usable)), math.inf if quota is None else quota.cores
            foresight.least_free = min(processors.least_share(nice), processors.group_share(groups))
            foresight.read(
                now,
                worked_s - self.spared.read(budget.spare_s, llm.work if isinstance(llm, HasEngine) else None),
                0.0 if busy_s is None else busy_s - worked_s,
                mates_s=0.0 if used_s is None else used_s - worked_s,
                held_s=0.0 if quota is None else quota.held_s,
            )
            budget.room.look(now)
            if isinstance(llm, IsAsked):
                before, asked_s = asked_s, llm.asked_s
                budget.room.load.worked(now, 0.0 if before is None else asked_s - before)
            await self.clock.sleep_until(now + PERIOD_S)

    def _remembering(
        self, emit: Callable[[ConversationEvent], None], memory: Memory
    ) -> Callable[[ConversationEvent], None]:
        def tell(event: ConversationEvent) -> None:
            if isinstance(event, TurnTraced):
                memory.keep(event.response_id, event.timeline, self.budget.costs)
            emit(event)

        return tell

    async def aclose(self) -> None:
        """Stop all models; threads and worker processes end."""
        if self.memory is not None and not self.is_closed:
            self.memory.save(self.budget.costs)
        self.is_closed = True
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        parts = self.backends
        others = [part for part in (parts.scorer, parts.repairer, self.toolbox) if part is not None]
        await asyncio.gather(*(part.aclose() for part in (parts.vad, parts.asr, parts.llm, parts.tts, *others)))


async def build(
    config: Config, *, report: Callable[[BackendInfo], None] = lambda info: None, remembers: bool = False
) -> LocalRuntime:
    """Choose and load every part, then calibrate. `report` gets each part's choice as soon as it is loaded.

    With `remembers` what an earlier process learned is taken over and what this one learns is kept, unless `budget.remember` is false.

    Raises:
        ConfigError: If the configuration asks for something that is not there; said before anything is loaded.
        BackendError: If a model cannot be loaded. What was loaded before it is closed again.
    """
    toolbox = Toolbox.open(config, os.environ)
    agent = replace(agent_profile(config), tools=toolbox.tools)
    load_vad, load_asr = choose_vad(config), choose_asr(config)
    load_llm, load_tts = choose_llm(config), choose_tts(config)
    smart_turn = find_smart_turn(config)
    check_repair(config)
    async with contextlib.AsyncExitStack() as loaded:
        vad = load_vad()
        loaded.push_async_callback(vad.aclose)
        report(vad.info)
        # The recogniser's worker processes load while this process loads the language model.
        asr_loading = asyncio.create_task(load_asr())
        loaded.push_async_callback(_close_loading, asr_loading)
        llm = await asyncio.to_thread(load_llm)
        loaded.push_async_callback(llm.aclose)
        asr = await asr_loading
        report(asr.info)
        shortest_s = config.turn.min_silence_s
        config = with_words_after(config, asr.words_after_s)
        report(llm.info)
        tts = await asyncio.to_thread(load_tts)
        loaded.push_async_callback(tts.aclose)
        report(tts.info)
        scorer, endpoint_info = await choose_scorer(config, llm, smart_turn, tells_confidence=asr.tells_confidence)
        if scorer is not None:
            loaded.push_async_callback(scorer.aclose)
            if config.turn.min_silence_s > shortest_s:
                when = f"from {config.turn.min_silence_s:g} s of silence on, when the recogniser's words are there"
                endpoint_info = replace(endpoint_info, reason=f"{endpoint_info.reason}; {when}")
        report(endpoint_info)
        repairer = await choose_repairer(config, llm)
        if repairer is not None:
            loaded.push_async_callback(repairer.aclose)
            report(repairer.info)
        budget = BudgetController(_with_floor(config, llm), CostModel(), llm.quality_curve)
        budget.room.refuses = config.server.refuse_when_full
        runtime = LocalRuntime(
            config, agent, Backends(vad, asr, llm, tts, scorer, repairer), budget, MonotonicClock(), toolbox=toolbox
        )
        runtime.endpoint_info = endpoint_info
        if remembers and config.budget.remember:
            runtime.memory = Memory(memory_folder(config), _owners(runtime.backends))
            runtime.memory.restore(budget.costs)
        # Also what is remembered is held against a few times of today: a slower machine shows within them.
        await calibrate(runtime)
        runtime.watch_processors()
        loaded.pop_all()
    return runtime


def with_words_after(config: Config, after_s: float) -> Config:
    """With no turn ended by its words before those of its last pause are there.

    Args:
        after_s: How long into a pause the recogniser's words are.
    """
    turn = config.turn
    shortest_s = min(max(turn.min_silence_s, after_s), turn.max_silence_s)
    return config if shortest_s <= turn.min_silence_s else replace(config, turn=replace(turn, min_silence_s=shortest_s))


async def choose_scorer(
    config: Config, llm: Drafter, smart_turn: Path | None = None, *, tells_confidence: bool = False
) -> tuple[TurnScorer | None, BackendInfo]:
    """Who says whether a caller's words are a whole turn, and the line of the start-up report.

    Args:
        tells_confidence: Whether the recogniser says how sure it is of its words. Then nobody else need say which were misheard, and the turn-end model
            judges alone, whatever model replies: sooner, more rightly and off the engine (docs/endpointing.md).

    Raises:
        ConfigError: If `turn.endpoint` asks for the words and nobody can judge them.
        BackendError: If the file is no Smart Turn.
    """
    from voice_pipelines.adapters.smart_turn import SmartTurn, SmartTurnScorer

    if config.turn.endpoint == "silence":
        if smart_turn is None:
            return None, SILENCE_ALONE
        reason = f"{SILENCE_ALONE.reason}, so that {smart_turn} is not used"
        return None, replace(SILENCE_ALONE, reason=reason)
    ear = None if smart_turn is None else await asyncio.to_thread(SmartTurn, smart_turn)
    if config.agent.language == "en":
        words = await asyncio.to_thread(_turn_words, config, ear, knows_phrases=tells_confidence)
        doubted = f"{DOUBTED} {LISTED}" if config.vocabulary.phrases else DOUBTED
        scorer, reason = (words, doubted) if tells_confidence else await _know_topics(words, llm)
        if scorer.weighs_sound:  # Whatever `turn.sound` says: a client may switch it on.
            await asyncio.to_thread(endpoint_sound.warm_up)
        listens = "the sound of the voice counts too" if ear is None else f"{ear.info.name} hears the voice"
        sound = listens if config.turn.sound else ""
        return scorer, replace(scorer.info, reason="; ".join(filter(None, (scorer.info.reason, sound, reason))))
    reason = f"the turn-end model knows English, and agent.language is {config.agent.language}"
    alone = None if ear is None else SmartTurnScorer(ear)
    if alone is not None and config.turn.sound:
        return alone, replace(alone.info, reason=f"{alone.info.reason}; {reason}")
    if config.turn.endpoint == "words":
        if alone is not None:
            await alone.aclose()
        raise ConfigError("turn.endpoint", "words", f"`auto` or `silence`: {reason}")
    if alone is not None:
        reason = f"turn.sound is false, so that {alone.info.name} hears only where a client switches it on; {reason}"
    return alone, BackendInfo("endpoint", "silence", reason)


def _turn_words(config: Config, ear: SmartTurn | None, *, knows_phrases: bool) -> TurnWordsScorer:
    """The turn-end model, with where the agent's own phrases end if it `knows_phrases` and has any."""
    from voice_pipelines.adapters.turn_words import TurnWordsScorer
    from voice_pipelines.turn_end.phrases import PhraseEnds

    vocabulary = vocabulary_of(config) if knows_phrases else None
    return TurnWordsScorer(ear=ear, phrases=None if vocabulary is None else PhraseEnds(vocabulary.grammar))


async def _know_topics(words: TurnWordsScorer, llm: Drafter) -> tuple[TurnScorer, str]:
    """The turn-end model with the language model beside it, where that was taught the question, or alone and why."""
    if not llm.info.is_remote:  # Whoever has a remote model may lack the packages of ours.
        from voice_pipelines.adapters.diffusion import DiffusionDrafter
        from voice_pipelines.adapters.diffusion_turns import DiffusionTurnScorer

        if isinstance(llm, DiffusionDrafter):
            try:
                return await DiffusionTurnScorer.create(llm, words), ""
            except BackendError as error:
                return words, str(error).removeprefix("endpoint: ")
    return words, ""


async def choose_repairer(config: Config, llm: Drafter) -> TranscriptRepairer | None:
    """Who finds misheard words; None where nobody is asked for.

    Raises:
        ConfigError: If `asr.repair` asks for it and nobody can.
    """
    if config.asr.repair == "off":
        return None
    reason = f"{llm.info.name} was not taught to judge transcripts"
    if not llm.info.is_remote:
        try:
            from voice_pipelines.adapters.diffusion import DiffusionDrafter
            from voice_pipelines.adapters.diffusion_repair import DiffusionRepairer
            from voice_pipelines.asr.vocabulary import Vocabulary

            if isinstance(llm, DiffusionDrafter):
                phrases = config.vocabulary.phrases
                words = Vocabulary(phrases, config.vocabulary.slots).grammar.words() if phrases else frozenset()
                settings = config.asr.settings()
                return await asyncio.to_thread(
                    DiffusionRepairer, llm, words, below=settings.below, farthest=settings.distance
                )
        except ImportError as error:
            reason = f"the dictionary of sounds comes with PocketSphinx ({error})"
        except BackendError as error:
            reason = str(error).removeprefix("repair: ")
    raise ConfigError("asr.repair", config.asr.repair, f"'off': {reason}")


async def _close_loading(loading: asyncio.Task[Transcriber]) -> None:
    """Close a recogniser whether or not it has come up; its own error, if any, is told by whoever awaits it."""
    loading.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await (await loading).aclose()


def _owners(backends: Backends) -> dict[Stage, str]:
    cores = f"{available_cores()} cores"
    llm = f"{backends.llm.info.name}, {cores}"
    return {
        Stage.ASR: f"{backends.asr.info.name}, {cores}",
        Stage.PREFILL: llm,
        Stage.STEP: llm,
        Stage.TTS: f"{backends.tts.info.name}, {cores}",
        Stage.TRANSPORT: cores,
    }


def _with_floor(config: Config, llm: Drafter) -> BudgetSettings:
    """The configured limits, with the model's own floor: below it a reply is not worth hearing, however late it is."""
    limits = config.budget.settings()
    floor = min(max(limits.min_steps, llm.min_steps), limits.max_steps)
    return replace(limits, min_steps=floor)


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
    llm, began_s = backends.llm, time.process_time()
    before = llm.work if isinstance(llm, HasEngine) else None
    # A remote model would be billed for these, and its times follow from its first replies.
    for width in () if backends.llm.info.is_remote else backends.llm.canvas_widths:
        for prompt in (opening, followed):
            await _time_draft(runtime, DraftRequest(f"calibration-{width}", prompt, _calibration_plan(runtime, width)))
        backends.llm.forget(f"calibration-{width}")
    if before is not None and isinstance(llm, HasEngine):
        runtime.spared.helped = helped(time.process_time() - began_s, before, llm.work)
    for clause in CALIBRATION_CLAUSES * 2:
        asked = runtime.clock.now()
        async with contextlib.aclosing(backends.tts.speak(clause)) as audio:
            async for _ in audio:
                costs.observe(Stage.TTS, runtime.clock.now() - asked, len(clause))
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
                    costs.observe(Stage.STEP, seconds, request.plan.canvas_width, batch)
                is_first_step = False
            case DraftFailed(error=error):
                raise error
            case DraftFinished():
                return
