"""Who listens to callers: which recognisers and judges of turn ends a configuration chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import run_async
from tests.voice_pipelines.test_local import configure
from tests.voice_pipelines.test_smart_turn import make_smart_turn
from tests.voice_pipelines.tiny_whisper import make_tiny_whisper
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedTranscriber,
    ToneSynthesizer,
)
from voice_pipelines import local
from voice_pipelines.adapters import pocketsphinx, whisper
from voice_pipelines.adapters.diffusion_turns import DiffusionTurnScorer
from voice_pipelines.adapters.paired import PairedTranscriber
from voice_pipelines.adapters.smart_turn import SmartTurnScorer
from voice_pipelines.adapters.turn_words import TurnWordsScorer
from voice_pipelines.adapters.whisper import WORDS_AFTER_S, FasterWhisperTranscriber
from voice_pipelines.choices import choose_asr, find_asr, find_smart_turn, is_paired
from voice_pipelines.doctor import device_choice
from voice_pipelines.local import build, choose_scorer, with_words_after
from voice_pipelines.models import whisper_upgrade
from voiceagent import endpoint_sound
from voiceagent.backends import (
    BackendInfo,
    HasProcesses,
    Transcriber,
    TurnScorer,
)
from voiceagent.clock import ManualClock
from voiceagent.config import Config
from voiceagent.config_conversation import AgentConfig, TurnConfig
from voiceagent.config_models import ModelsConfig, VocabularyConfig
from voiceagent.errors import BackendError, ConfigError

# --- recognisers ------------------------------------------------------------------------------------------------------


def test_the_fallback_names_the_recogniser_that_suits_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    async def create(*_: object, upgrade: str) -> None:
        told.append(upgrade)

    monkeypatch.setattr("voice_pipelines.adapters.pocketsphinx.PocketSphinxTranscriber.create", create)
    for cores in (2, 64):
        monkeypatch.setattr("voice_pipelines.doctor.available_cores", lambda cores=cores: cores)
        run_async(choose_asr(configure(tmp_path, "models.device=cpu"))())
        told.append(whisper_upgrade(device_choice(use_cuda=False)))
    assert told[0] == told[1] != told[2] == told[3]


def test_auto_takes_the_whisper_that_was_fetched(tmp_path: Path) -> None:
    (tmp_path / "whisper").mkdir()
    make_tiny_whisper(tmp_path / "made").rename(tmp_path / "whisper" / "tiny.en")

    async def name_of(asr: str) -> str:
        alone = configure(tmp_path, f"models.asr={asr}", "models.device=cpu", "asr.partials=whisper")
        transcriber = await choose_asr(alone)()
        await transcriber.aclose()
        assert isinstance(transcriber, FasterWhisperTranscriber) and transcriber.need == whisper.NEED
        return transcriber.info.name

    assert run_async(name_of("auto"), timeout_s=120.0).startswith("faster-whisper tiny.en")
    assert run_async(name_of("faster-whisper:tiny.en"), timeout_s=120.0) == "faster-whisper tiny.en"
    (tmp_path / "whisper" / "tiny.en").rename(tmp_path / "mine")
    assert run_async(name_of(str(tmp_path / "mine")), timeout_s=120.0) == "faster-whisper mine (int8 on cpu)"


def test_beside_a_whisper_pocketsphinx_is_loaded_and_the_report_names_both(tmp_path: Path) -> None:
    (tmp_path / "whisper").mkdir()
    make_tiny_whisper(tmp_path / "made").rename(tmp_path / "whisper" / "tiny.en")

    async def load() -> Transcriber:
        transcriber = await choose_asr(configure(tmp_path, "models.device=cpu"))()
        await transcriber.aclose()
        return transcriber

    pair = run_async(load(), timeout_s=120.0)
    assert isinstance(pair, PairedTranscriber) and isinstance(pair, HasProcesses)
    assert (pair.words_after_s, pair.tells_confidence) == (0.0, True)
    assert pair.need == pocketsphinx.NEED + whisper.NEED_IN_PAUSES
    assert pair.info.name.startswith("faster-whisper tiny.en") and pair.info.name.endswith("and pocketsphinx")
    assert "phrases of the agent" in pair.info.reason


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["asr.partials=pocketsphinx", "preset=open"], r"asr\.partials = 'pocketsphinx': .*without a vocabulary"),
        (["asr.partials=pocketsphinx", "agent.language=de"], r"asr\.partials = .*English only.*'de'"),
        (["asr.partials=whisper", "models.asr=pocketsphinx"], r"asr\.partials = 'whisper': .*no Whisper listens"),
        (["asr.partials=sphinx"], "expected 'auto', 'pocketsphinx' or 'whisper'"),
    ],
)
def test_partials_of_a_recogniser_that_cannot_tell_them_are_refused_before_anything_is_loaded(
    tmp_path: Path, assignments: list[str], expected: str
) -> None:
    whisper_of_any_language(tmp_path / "whisper" / "tiny")
    with pytest.raises(ConfigError, match=expected):
        choose_asr(configure(tmp_path, "models.device=cpu", *assignments))


@pytest.mark.parametrize(
    ("assignments", "is_pair"),
    [
        ([], True),
        (["asr.partials=pocketsphinx"], True),
        (["asr.partials=whisper"], False),
        (["preset=open"], False),
        (["agent.language=de"], False),
    ],
)
def test_a_whisper_has_pocketsphinx_beside_it_where_that_knows_language_and_vocabulary(
    tmp_path: Path, assignments: list[str], is_pair: bool
) -> None:
    whisper_of_any_language(tmp_path / "whisper" / "tiny")
    config = configure(tmp_path, "models.device=cpu", *assignments)
    found = find_asr(config)
    assert found is not None
    assert is_paired(config) is found.info.name.endswith("and pocketsphinx") is is_pair


def test_without_its_package_pocketsphinx_is_beside_no_whisper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voice_pipelines.choices.importlib.util.find_spec", lambda name: None)
    assert not is_paired(configure(tmp_path))
    with pytest.raises(ConfigError, match="the package pocketsphinx is not installed"):
        is_paired(configure(tmp_path, "asr.partials=pocketsphinx"))


def test_of_a_pair_that_cannot_be_loaded_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Quick:
        async def aclose(self) -> None:
            closed.append(True)

    async def create(*_: object, upgrade: str) -> Quick:
        return Quick()

    monkeypatch.setattr("voice_pipelines.adapters.pocketsphinx.PocketSphinxTranscriber.create", create)
    whisper_of_any_language(tmp_path / "whisper" / "tiny")
    with pytest.raises(BackendError, match="could not load Whisper"):
        run_async(choose_asr(configure(tmp_path, "models.device=cpu"))())
    assert closed == [True]


def whisper_of_any_language(place: Path) -> None:
    """Files that pass for a converted Whisper until it is loaded."""
    place.mkdir(parents=True)
    for file in ("model.bin", "config.json", "tokenizer.json"):
        (place / file).touch()
    (place / "vocabulary.txt").write_text("a\n\nb\n")


@pytest.mark.parametrize("name", ["folder", "faster-whisper:tiny.en", "faster-whisper:tiny"])
def test_a_whisper_of_english_alone_is_refused_to_an_agent_of_another_language_before_it_is_loaded(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / "folder" if name == "folder" else tmp_path / "whisper" / name.partition(":")[2]
    whisper_of_any_language(place)
    (place / "vocabulary.txt").write_text("a\nb\n")
    wanted = str(place) if name == "folder" else name
    assert find_asr(configure(tmp_path, f"models.asr={wanted}"))
    german = configure(tmp_path, f"models.asr={wanted}", "agent.language=de")
    with pytest.raises(ConfigError, match=r"models\.asr = .* a Whisper that hears agent\.language = 'de'") as caught:
        choose_asr(german)
    assert (caught.value.key, caught.value.value) == ("models.asr", wanted)
    (place / "vocabulary.txt").write_text("a\n\nb\n")
    assert find_asr(german)


def test_no_turn_is_ended_by_words_before_the_recogniser_has_those_of_its_last_pause(tmp_path: Path) -> None:
    config = configure(tmp_path)
    assert with_words_after(config, 0.0) is config
    assert with_words_after(config, WORDS_AFTER_S).turn == replace(config.turn, min_silence_s=WORDS_AFTER_S)
    assert with_words_after(config, 9.0).turn.min_silence_s == config.turn.max_silence_s
    patient = configure(tmp_path, "turn.min_silence_s=0.8")
    assert with_words_after(patient, WORDS_AFTER_S) is patient


# --- judges of turn ends ----------------------------------------------------------------------------------------------


def test_the_judge_of_sound_has_been_called_once_before_anybody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[str] = []
    monkeypatch.setattr(endpoint_sound, "warm_up", lambda: warmed.append("the sound"))
    drafter = ScriptedDrafter(ManualClock())
    run_async(choose_scorer(Config(turn=TurnConfig(endpoint="silence")), drafter))
    assert not warmed, "nobody listens"
    run_async(choose_scorer(Config(turn=TurnConfig(sound=False)), drafter))
    assert warmed == ["the sound"], "a client may switch it on"


def test_who_judges_the_words_is_said_and_asking_for_it_in_vain_is_an_error() -> None:
    async def main(endpoint: str, language: str = "en") -> tuple[object, BackendInfo]:
        drafter = ScriptedDrafter(ManualClock())
        config = Config(agent=AgentConfig(language=language), turn=TurnConfig(endpoint=endpoint))
        return await choose_scorer(config, drafter)

    assert run_async(main("silence")) == (None, BackendInfo("endpoint", "silence", "turn.endpoint is silence"))
    for endpoint in ("auto", "words"):
        scorer, info = run_async(main(endpoint))
        assert isinstance(scorer, TurnWordsScorer), "whatever model replies"
        assert info == replace(scorer.info, reason=f"{scorer.info.reason}; the sound of the voice counts too")
    _, info = run_async(choose_scorer(Config(turn=TurnConfig(sound=False)), ScriptedDrafter(ManualClock())))
    assert info == scorer.info
    scorer, info = run_async(main("auto", "de"))
    assert scorer is None and info.name == "silence" and "knows English, and agent.language is de" in info.reason
    with pytest.raises(
        ConfigError, match=r"turn\.endpoint = 'words': expected `auto` or `silence`: the turn-end model"
    ):
        run_async(main("words", "de"))


def test_the_built_in_model_is_asked_too_only_where_the_recogniser_does_not_tell_what_it_misheard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scorer_of(tells: bool) -> tuple[TurnScorer | None, BackendInfo]:
        class Recogniser(ScriptedTranscriber):
            tells_confidence = tells

        async def asr() -> ScriptedTranscriber:
            return Recogniser()

        monkeypatch.setattr(local, "choose_asr", lambda config: asr)
        runtime = await build(configure(tmp_path, "models.device=cpu"))
        await runtime.aclose()
        return runtime.backends.scorer, runtime.endpoint_info

    parts = {"vad": LevelDetector, "tts": ToneSynthesizer}
    for part, load in parts.items():
        monkeypatch.setattr(local, f"choose_{part}", lambda config, load=load: load)
    both, info = run_async(scorer_of(False), timeout_s=120.0)
    assert isinstance(both, DiffusionTurnScorer) and info.name == both.info.name
    words, info = run_async(scorer_of(True), timeout_s=120.0)
    assert isinstance(words, TurnWordsScorer) and info.name == "turn-end model"
    assert info.reason.endswith("; the recogniser tells which it misheard and the agent's phrases where they end")
    bare = Config(vocabulary=VocabularyConfig())
    _, info = run_async(choose_scorer(bare, ScriptedDrafter(ManualClock()), tells_confidence=True))
    assert info.reason.endswith("; the recogniser tells which it misheard")


def test_a_judge_of_turn_ends_that_silence_alone_does_without_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "smart-turn.onnx"
    config = Config(models=ModelsConfig(endpoint=str(file)), turn=TurnConfig(endpoint="silence"))
    scorer, info = run_async(choose_scorer(config, ScriptedDrafter(ManualClock()), file))
    assert scorer is None
    assert info.reason == f"turn.endpoint is silence, so that {file} is not used"


def test_a_fetched_smart_turn_hears_the_voice_beside_the_words_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEAGENT_MODELS", str(tmp_path))
    assert find_smart_turn(Config()) is None
    folder = tmp_path / "endpoint" / "smart-turn-v3"
    folder.mkdir(parents=True)
    file = make_smart_turn(folder / "smart-turn-v3.2-cpu.onnx")
    assert find_smart_turn(Config()) == file
    monkeypatch.delenv("VOICEAGENT_MODELS")
    assert find_smart_turn(Config(models=ModelsConfig(folder=str(tmp_path)))) == file
    named = ModelsConfig(folder=str(tmp_path), endpoint="smart-turn-v3")
    assert find_smart_turn(Config(models=named)) == file
    with pytest.raises(ConfigError, match="voiceagent models fetch smart-turn-v3"):
        find_smart_turn(Config(models=replace(named, folder=str(tmp_path / "empty"))))
    for unwanted in ("none", ""):
        assert find_smart_turn(Config(models=ModelsConfig(endpoint=unwanted))) is None

    async def chosen(language: str, *, sound: bool = True) -> tuple[TurnScorer, BackendInfo]:
        config = Config(agent=AgentConfig(language=language), turn=TurnConfig(sound=sound))
        scorer, info = await choose_scorer(config, ScriptedDrafter(ManualClock()), file)
        assert scorer is not None
        await scorer.aclose()
        return scorer, info

    words, info = run_async(chosen("en"))
    assert isinstance(words, TurnWordsScorer) and words.hears_voice and not words.weighs_sound
    assert info.reason == f"{words.info.reason}; Smart Turn smart-turn-v3.2-cpu hears the voice"
    words, info = run_async(chosen("en", sound=False))
    assert words.hears_voice, "a client may switch it on"
    assert info == words.info
    deaf, info = run_async(chosen("de", sound=False))
    assert isinstance(deaf, SmartTurnScorer), "a client may switch it on"
    assert info.name == "silence" and info.reason.startswith("turn.sound is false")
    alone, info = run_async(chosen("de"))
    assert isinstance(alone, SmartTurnScorer)
    assert info.name == "Smart Turn smart-turn-v3.2-cpu" and "knows English, and agent.language is de" in info.reason
