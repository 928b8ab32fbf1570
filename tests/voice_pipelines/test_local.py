"""What a configuration makes of the models on disk, and how the runtime comes up and learns its speed."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_kernels.native import Prepared
from tests.conftest import run_async
from tests.voice_pipelines.tiny_piper import make_tiny_piper
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedScorer,
    ScriptedTranscriber,
    ToneSynthesizer,
)
from voice_pipelines import local, processors, settings
from voice_pipelines.choices import choose_llm, choose_tts, device_of
from voice_pipelines.local import LocalRuntime, build, calibrate
from voice_pipelines.processors import Quota
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    BackendInfo,
    Backends,
    Drafter,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftRequest,
    EngineWork,
    PromptTurn,
    StepPlan,
)
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock, ManualClock, MonotonicClock
from voiceagent.config import Config
from voiceagent.config_conversation import TurnConfig
from voiceagent.costs import CostModel, Stage
from voiceagent.errors import BackendError, ConfigError, EngineFullError
from voiceagent.foresight import REPLY_ON_PROCESSORS, Need


def configure(folder: Path, *assignments: str) -> Config:
    return settings.load(assignments=[f"models.folder={folder}", *assignments])


# --- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("models.vad=webrtc", "expected `silero`"),
        ("models.asr=kaldi", "expected `auto`, `pocketsphinx`, `faster-whisper`, `faster-whisper:SIZE` or a folder"),
        ("models.asr=faster-whisperer", "expected `auto`"),
        ("models.asr=pocketsphinx:large", "expected `auto`"),
        ("models.asr=./some/where", "a folder with model.bin, config.json and tokenizer.json"),
        ("models.asr=faster-whisper", "voiceagent models fetch whisper-"),
        ("models.asr=whisper:small.en", "voiceagent models fetch whisper-small.en"),
        ("models.llm=gpt", "a checkpoint folder or a fetched model"),
        ("models.llm=llada-8b", "a checkpoint folder or a fetched model"),
        ("models.llm=./some/where", "a checkpoint folder or a fetched model"),
        ("models.endpoint=no/such.onnx", "the path of an ONNX file"),
        ("models.tts=festival", "expected `auto`, `espeak`, `piper` or `piper:VOICE`"),
        ("models.tts=espeak:whisper", "expected `auto`"),
        ("models.tts=piper", "voiceagent models fetch piper"),
        ("models.tts=piper:de_DE-thorsten-medium", "voiceagent models fetch de_DE-thorsten-medium"),
        ("agent.language=de", "the PocketSphinx fallback knows English only; fetch Whisper"),
    ],
)
def test_a_model_that_is_not_there_is_named_before_any_is_loaded(
    tmp_path: Path, assignment: str, expected: str
) -> None:
    loaded: list[BackendInfo] = []
    key, _, value = assignment.partition("=")
    with pytest.raises(ConfigError) as caught:
        run_async(build(configure(tmp_path, assignment), report=loaded.append))
    assert (caught.value.key, caught.value.value) == (key, value)
    assert expected in str(caught.value)
    assert loaded == []


def test_what_a_mistyped_url_of_a_model_may_hold_of_a_secret_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_llm(configure(tmp_path, "models.llm=https:/u:pass@host/v1?key=pass"))
    assert caught.value.value == "(hidden)@host/v1?(hidden)"


@pytest.mark.parametrize(
    "device",
    ["gpu", "xpu", "hpu", "meta", "cpu:7", "cpu:0", "mps:0", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "cuda0"],
)
def test_a_device_that_the_engine_does_not_know_is_named_before_anything_is_loaded(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    expected = "expected `auto`, `cpu`, `cuda`, `cuda:1` or `mps`$"
    with pytest.raises(ConfigError, match=f"models.device = '{device}': {expected}"):
        choose_llm(configure(tmp_path, f"models.device={device}"))


def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert device_of(configure(tmp_path)) == "cpu"
    for device, why in (("cuda", "no CUDA device"), ("mps", "no Metal device")):
        with pytest.raises(ConfigError, match=f"models.device = '{device}': expected .*{why}"):
            choose_llm(configure(tmp_path, f"models.device={device}"))
    choose_llm(configure(tmp_path, "models.device=cuda", "models.llm=http://127.0.0.1:9/v1"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    for device in ("cuda", "cuda:1", "mps"):
        assert device_of(configure(tmp_path, f"models.device={device}")) == device
    with pytest.raises(ConfigError, match="`cuda:1` at most"):
        device_of(configure(tmp_path, "models.device=cuda:2"))


def test_a_folder_without_a_checkpoint_is_a_readable_error(tmp_path: Path) -> None:
    load = choose_llm(configure(tmp_path, f"models.llm={tmp_path}", "models.device=cpu"))
    with pytest.raises(BackendError, match=r"llm: could not load .*config\.json: no such file"):
        load()


@pytest.mark.parametrize(
    ("wanted", "is_faster", "numbers"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float32", True, "float32"),
        ("bfloat16", False, "bfloat16"),
        ("int8", False, "int8"),
        ("int4", False, "int4"),
    ],
)
def test_the_diffusion_model_computes_in_what_the_machine_is_good_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, is_faster: bool, numbers: str
) -> None:
    monkeypatch.setattr("dllm.machine.bfloat16_is_faster", lambda: is_faster)
    drafter = choose_llm(configure(tmp_path, f"models.dtype={wanted}", "models.device=cpu"))()
    told = drafter.info.name.partition(" on cpu (")[2].rstrip(")").split("; ")
    assert told[0] == numbers, "what was chosen is told"
    assert all(part.startswith("layers ") for part in told[1:]), "and whether its layers are compiled, or why not"
    finished: list[DraftFinished] = []

    async def write() -> None:
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        turns = (PromptTurn("system", "Be brief."), PromptTurn("user", "hello"))
        drafter.start(DraftRequest("a", turns, StepPlan(16, 4, 4, 0.9)), events.put_nowait)
        while not isinstance(event := await events.get(), DraftFinished):
            assert not isinstance(event, DraftFailed), event
        finished.append(event)
        await drafter.aclose()

    run_async(write())
    assert finished[0].text.strip()


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_missing_compiler_is_told_of_where_layers_should_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    monkeypatch.setattr("dllm_kernels.native._prepared", Prepared(None, "no C compiler on the path"))
    monkeypatch.setattr("dllm.packing.can_pack", lambda weight: True)
    monkeypatch.setattr("dllm.packing.pack", lambda network: 0)
    made = choose_llm(configure(tmp_path, "models.dtype=float32", f"models.compile={str(is_asked).lower()}"))()
    run_async(made.aclose())
    assert ("(float32; layers not compiled: no C compiler on the path)" in made.info.name) == is_asked


def written_by(drafter: Drafter) -> str:
    finished: list[DraftFinished] = []

    async def write() -> None:
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        turns = (PromptTurn("system", "Be brief."), PromptTurn("user", "hello"))
        drafter.start(DraftRequest("a", turns, StepPlan(16, 8, 8, 0.9)), events.put_nowait)
        while not isinstance(event := await events.get(), DraftFinished):
            assert not isinstance(event, DraftFailed), event
        finished.append(event)
        await drafter.aclose()

    run_async(write())
    return finished[0].text


def test_the_agent_s_model_keeps_its_prefix_in_eight_bits_and_says_so(tmp_path: Path) -> None:
    drafter = choose_llm(configure(tmp_path, "models.cache_dtype=e4m3", "models.dtype=float32", "models.device=cpu"))()
    assert drafter.info.name.endswith("on cpu (float32; prefix cache in e4m3)"), "its layers are not compiled"
    assert written_by(drafter).strip()
    with pytest.raises(ConfigError, match=r"cache_dtype.*expected 'auto' or 'e4m3'"):
        configure(tmp_path, "models.cache_dtype=int3")


def test_the_agent_s_model_may_take_several_steps_before_it_is_looked_at(tmp_path: Path) -> None:
    settings = ("models.dtype=float32", "models.device=cpu")
    one = choose_llm(configure(tmp_path, *settings))()
    four = choose_llm(configure(tmp_path, *settings, "models.steps_per_visit=4"))()
    assert four.info.name.endswith("; up to 4 steps per visit)") and "visit" not in one.info.name
    assert written_by(four) == written_by(one) != ""
    with pytest.raises(ConfigError, match=r"steps_per_visit.*an integer from 1 to 16"):
        configure(tmp_path, "models.steps_per_visit=0")


def test_steps_are_recorded_on_a_gpu_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.graphs = True: expected false.*CUDA device.*cpu"):
        choose_llm(configure(tmp_path, "models.graphs=true", "models.device=cpu"))
    choose_llm(configure(tmp_path, "models.graphs=true", "models.llm=http://127.0.0.1:9/v1"))


def test_numbers_that_nobody_computes_in_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 'auto', 'float32', 'bfloat16', 'float16', 'int8', 'fp8' or 'int4'"):
        configure(tmp_path, "models.dtype=float8")


def test_auto_takes_the_voice_that_was_fetched(tmp_path: Path) -> None:
    assert choose_tts(configure(tmp_path))().info.name == "espeak"
    make_tiny_piper(tmp_path / "piper" / "en_US-clicks-medium")
    for name in ("auto", "piper", "piper:en_US-clicks-medium"):
        voice = choose_tts(configure(tmp_path, f"models.tts={name}"))()
        assert voice.info.name == "Piper en_US-clicks-medium" and voice.info.reason
        run_async(voice.aclose())
    assert choose_tts(configure(tmp_path, "models.tts=espeak"))().info.name == "espeak"


# --- coming up --------------------------------------------------------------------------------------------------------


def test_what_was_loaded_before_a_failure_is_closed_again(tmp_path: Path) -> None:
    voice = make_tiny_piper(tmp_path / "piper" / "en_US-clicks-medium")
    voice.write_bytes(b"no network")
    before = set(threading.enumerate())
    loaded: list[str] = []
    config = configure(tmp_path, "models.device=cpu", "models.asr=pocketsphinx")
    with pytest.raises(BackendError, match="tts: "):
        run_async(build(config, report=lambda info: loaded.append(info.part)), timeout_s=300.0)
    assert loaded == ["vad", "asr", "llm"]
    assert not any(thread.name == "diffusion-engine" for thread in set(threading.enumerate()) - before)


def test_words_are_not_weighed_where_nobody_can_judge_them() -> None:
    clock = ManualClock()
    runtime = made_of(clock, ScriptedDrafter(clock))
    detection = runtime.default_settings.turn_detection
    assert detection is not None and not detection.weighs_words
    runtime.backends = replace(runtime.backends, scorer=ScriptedScorer(0.9))
    detection = runtime.default_settings.turn_detection
    assert detection is not None and detection.weighs_words
    runtime.config = replace(runtime.config, turn=TurnConfig(endpoint="silence"))
    detection = runtime.default_settings.turn_detection
    assert detection is not None and not detection.weighs_words


# --- what callers need ------------------------------------------------------------------------------------------------


def test_what_recognisers_in_processes_of_their_own_take_is_learned_and_a_full_machine_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Worker(ScriptedTranscriber):
        cpu_s = 0.0
        need = Need(mean=0.035, variance=0.005)

    async def main() -> None:
        clock = ManualClock()
        runtime = made_of(clock, ScriptedDrafter(clock))
        asr = Worker()
        runtime.backends = replace(runtime.backends, asr=asr)
        on_processors(monkeypatch)
        runtime.watch_processors()
        foresight = runtime.budget.room.foresight
        assert foresight.cores == 2.0 and foresight.need == REPLY_ON_PROCESSORS + asr.need
        foresight.callers = 8
        for _ in range(60):
            await clock.advance(1.0)
            asr.cpu_s += 1.7
        assert foresight.need is not None and foresight.need.mean == pytest.approx(0.21, rel=0.1)
        assert runtime.fullness["processors"] >= 0.9
        with pytest.raises(EngineFullError, match="9 callers would at times need") as refused:
            runtime.open_conversation(lambda event: None)
        assert refused.value.code == "processors_full" and runtime.unready() == str(refused.value)
        runtime.budget.room.refuses = False
        assert runtime.unready() is None
        runtime.open_conversation(lambda event: None)
        await runtime.aclose()

    run_async(main())


def on_processors(
    monkeypatch: pytest.MonkeyPatch, *, cores: int = 2, quota: Quota | None = None, worked_s: float = 0.0
) -> None:
    """A machine of so many processors, of which nobody but this process, which has worked so long, takes any."""
    monkeypatch.setattr(processors, "usable", lambda: frozenset(range(cores)))
    monkeypatch.setattr(processors, "busy_s", lambda used, nice: None)
    monkeypatch.setattr(processors, "quota", lambda folders: quota)
    monkeypatch.setattr(processors, "niceness", lambda: 5)
    monkeypatch.setattr(processors, "quota_folders", lambda: ())
    monkeypatch.setattr(time, "process_time", lambda: worked_s)


def test_a_quota_that_is_used_up_refuses_on_a_machine_of_many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = ManualClock()
        runtime = made_of(clock, ScriptedDrafter(clock))
        foresight = runtime.budget.room.foresight
        on_processors(monkeypatch, cores=64)
        runtime.watch_processors()
        await clock.settle()
        assert foresight.least_free == pytest.approx(0.25, abs=0.01), "it is polite"
        foresight.callers = 8
        for second in range(60):
            worked_s = 0.8 * second
            on_processors(monkeypatch, cores=64, quota=Quota(2.0, worked_s + 0.1 * second, 0.0), worked_s=worked_s)
            await clock.advance(1.0)
        assert foresight.need is not None and foresight.need.mean == pytest.approx(0.1, rel=0.05)
        assert foresight.free == pytest.approx(1.9, rel=0.05) and runtime.budget.room.refusal(clock.now()) is None
        for second in range(60, 120):
            worked_s = 0.8 * second
            held_s = float(second - 59)
            on_processors(monkeypatch, cores=64, quota=Quota(2.0, worked_s + 0.1 * second, held_s), worked_s=worked_s)
            await clock.advance(1.0)
        refusal = runtime.budget.room.refusal(clock.now())
        assert refusal is not None and refusal.code == "processors_full", "nobody knows how much more they needed"
        await runtime.aclose()

    run_async(main())


def test_what_held_the_event_loop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = ManualClock()
        runtime = made_of(clock, ScriptedDrafter(clock))
        on_processors(monkeypatch)
        runtime.watch_processors()
        await clock.advance(10.0)
        await clock.hold(3.0)
        assert runtime.budget.room.held_s(0.0, clock.now()) == pytest.approx(3.0, abs=0.15)
        assert runtime.budget.room.held_s(0.0, 9.9) == 0.0
        await runtime.aclose()

    run_async(main())


def test_what_fewer_steps_would_have_saved_is_taken_off_as_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(ScriptedDrafter):
        work = EngineWork(0.0, 0.0, threads=3)

    async def main() -> None:
        clock = ManualClock()
        drafter = Engine(clock)
        runtime = made_of(clock, drafter)
        runtime.spared.helped = 3.0
        foresight = runtime.budget.room.foresight
        on_processors(monkeypatch)
        runtime.watch_processors()
        foresight.callers = 5
        for second in range(60):
            # Of a second of the engine, half of it waiting for a processor, callers could have done without a half; three threads take part.
            drafter.work = EngineWork(1.0 * second, 0.5 * second, threads=3)
            runtime.budget.spare_s = 0.5 * second
            on_processors(monkeypatch, worked_s=1.0 * second)
            await clock.advance(1.0)
        assert foresight.need is not None and foresight.need.mean == pytest.approx((1.0 - 0.75) / 5, rel=0.05)
        await runtime.aclose()

    run_async(main())


def test_callers_who_come_in_the_same_moment_find_each_other_counted() -> None:
    async def main() -> None:
        clock = ManualClock()
        runtime = made_of(clock, ScriptedDrafter(clock))
        foresight = runtime.budget.room.foresight
        foresight.cores, foresight.guess = 2.0, Need(0.5, 0.0)
        made = [runtime.open_conversation(lambda event: None) for _ in range(3)]
        with pytest.raises(EngineFullError, match="4 callers would at times need 2.00 cores"):
            runtime.open_conversation(lambda event: None)  # Though none of them listens yet.
        for conversation in made:
            await conversation.aclose()
            await conversation.aclose()
        assert foresight.callers == 0
        await runtime.aclose()

    run_async(main())


# --- calibration ------------------------------------------------------------------------------------------------------


def made_of(clock: Clock, drafter: ScriptedDrafter) -> LocalRuntime:
    backends = Backends(LevelDetector(), ScriptedTranscriber(), drafter, ToneSynthesizer())
    return LocalRuntime(Config(), AgentProfile("test"), backends, BudgetController(costs=CostModel()), clock)


def test_calibration_fills_the_cost_model_with_what_was_measured() -> None:
    async def main() -> tuple[LocalRuntime, ScriptedDrafter]:
        clock = ManualClock(10.0)
        drafter = ScriptedDrafter(clock, "One large coffee with milk.", steps=4, step_s=0.012)
        runtime = made_of(clock, drafter)
        calibrating = asyncio.create_task(calibrate(runtime))
        while not calibrating.done():
            await clock.advance(0.004)
        await calibrating
        return runtime, drafter

    runtime, drafter = run_async(main())
    costs = runtime.budget.costs
    # Two drafts for each of two widths; the first of a draft's four steps does not count.
    assert costs.observations(Stage.STEP) == 2 * 2 * 3
    for width in drafter.canvas_widths:
        assert costs.predict(Stage.STEP, width).p95 == pytest.approx(0.012)
    assert costs.observations(Stage.PREFILL) == 4
    assert costs.observations(Stage.TTS) == 6
    assert costs.observations(Stage.ASR) == 0, "only real speech shows it"
    assert {draft.request.plan.canvas_width for draft in drafter.drafts} == set(drafter.canvas_widths)
    assert set(drafter.forgotten) == {draft.request.conversation_id for draft in drafter.drafts}


def test_calibration_finds_the_helpers_of_the_engine_s_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(ScriptedDrafter):
        @property
        def work(self) -> EngineWork:
            return EngineWork(2.0 * len(self.drafts), 1.0 * len(self.drafts), threads=4)

    async def main() -> float:
        clock = ManualClock()
        drafter = Engine(clock)
        runtime = made_of(clock, drafter)
        monkeypatch.setattr(time, "process_time", lambda: 2.5 * len(drafter.drafts))
        calibrating = asyncio.create_task(calibrate(runtime))
        while not calibrating.done():
            await clock.advance(0.004)
        await calibrating
        return runtime.spared.helped

    assert run_async(main()) == pytest.approx(2.5)


def test_a_model_that_cannot_draft_is_told_at_the_start() -> None:
    async def main() -> None:
        clock = MonotonicClock()
        await calibrate(made_of(clock, ScriptedDrafter(clock, BackendError("llm", "out of memory"))))

    with pytest.raises(BackendError, match="llm: out of memory"):
        run_async(main())


def test_stage_times_of_an_earlier_run_are_taken_over_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def asr() -> ScriptedTranscriber:
        return ScriptedTranscriber()

    parts = {"vad": LevelDetector, "asr": asr, "llm": lambda: ScriptedDrafter(MonotonicClock()), "tts": ToneSynthesizer}
    for part, load in parts.items():
        monkeypatch.setattr(local, f"choose_{part}", lambda config, load=load: load)
    config = configure(tmp_path, f"budget.folder={tmp_path / 'state'}", "turn.endpoint=silence")

    async def start(seconds: float | None = None, remembers: bool = True) -> float:
        runtime = await build(config, remembers=remembers)
        try:
            predicted = runtime.budget.costs.predict(Stage.ASR).p50
            for _ in range(10 if seconds else 0):
                runtime.budget.costs.observe(Stage.ASR, seconds or 0.0)
        finally:
            await runtime.aclose()
        return predicted

    first = run_async(start(7.5), timeout_s=60.0)
    assert first < 1.0
    assert run_async(start(), timeout_s=60.0) == 7.5
    assert run_async(start(remembers=False), timeout_s=60.0) == first


@pytest.mark.parametrize("after_s", [0.0, 0.7])
def test_a_recogniser_whose_words_come_late_says_how_long_a_turn_is_not_ended_by_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after_s: float
) -> None:
    class Late(ScriptedTranscriber):
        words_after_s = after_s

    async def asr() -> ScriptedTranscriber:
        return Late()

    parts = {"vad": LevelDetector, "asr": asr, "llm": lambda: ScriptedDrafter(MonotonicClock()), "tts": ToneSynthesizer}
    for part, load in parts.items():
        monkeypatch.setattr(local, f"choose_{part}", lambda config, load=load: load)
    config = configure(tmp_path, "turn.endpoint=silence")

    async def shortest_s() -> float:
        runtime = await build(config)
        await runtime.aclose()
        return runtime.config.turn.min_silence_s

    assert run_async(shortest_s(), timeout_s=60.0) == max(after_s, config.turn.min_silence_s)
