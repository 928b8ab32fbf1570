"""Piper through its own package and its own file format, with a voice of silence and clicks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voice_pipelines.tiny_piper import CLICK, LEAD_SAMPLES, RATE_HZ, SAMPLES_PER_PHONEME, make_tiny_piper
from voice_pipelines.adapters.piper import PiperSynthesizer
from voiceagent.backends import BackendInfo, Samples
from voiceagent.errors import BackendError

INFO = BackendInfo("tts", "Piper clicks", "made in a test")


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_piper(tmp_path_factory.mktemp("piper"))


async def chunks(synthesizer: PiperSynthesizer, clause: str) -> list[Samples]:
    return [audio async for audio in synthesizer.speak(clause)]


def spoken(voice: Path, *clauses: str, **options: float) -> list[Samples]:
    """Each clause's audio in one piece."""

    async def main() -> list[Samples]:
        synthesizer = PiperSynthesizer.load(voice, INFO, **options)  # type: ignore[arg-type]
        audio = [np.concatenate([np.zeros(0, np.float32), *await chunks(synthesizer, clause)]) for clause in clauses]
        await synthesizer.aclose()
        return audio

    return run_async(main())


def clicks(audio: Samples) -> list[int]:
    return np.flatnonzero(np.abs(audio) > CLICK / 2).tolist()


def test_a_clause_is_heard_at_once_and_phoneme_by_phoneme(voice: Path) -> None:
    (audio,) = spoken(voice, "Hello.")
    assert audio.dtype == np.float32
    assert np.abs(audio).max() <= 1.0
    at = clicks(audio)
    assert at[0] <= 0.01 * RATE_HZ, "the voice's 0.2 s of leading silence is cut"
    assert len(at) > 5
    assert set(np.diff(at)) == {SAMPLES_PER_PHONEME}


def test_only_the_clauses_own_leading_silence_is_cut(voice: Path) -> None:
    (audio,) = spoken(voice, "One tea. Two teas.")
    gaps = [gap for gap in np.diff(clicks(audio)).tolist() if gap != SAMPLES_PER_PHONEME]
    assert gaps == [LEAD_SAMPLES + SAMPLES_PER_PHONEME], "the pause between two sentences stays"


def test_each_sentence_is_handed_out_when_it_is_ready(voice: Path) -> None:
    async def main() -> None:
        synthesizer = PiperSynthesizer.load(voice, INFO)
        assert len(await chunks(synthesizer, "One tea. Two teas. Three teas.")) >= 3
        await synthesizer.aclose()

    run_async(main())


def test_figures_are_spoken_as_words(voice: Path) -> None:
    figures, words = spoken(voice, "That is $4.50.", "That is four dollars and fifty cents.")
    assert len(clicks(figures)) == len(clicks(words))


@pytest.mark.parametrize("clause", ["", "   ", "...", "**"])
def test_nothing_to_say_is_no_audio_and_no_error(voice: Path, clause: str) -> None:
    (audio,) = spoken(voice, clause)
    assert len(clicks(audio)) <= 10
    if not clause.strip():
        assert not len(audio)


def test_the_rate_and_the_speaker_come_from_the_voices_configuration(tmp_path: Path) -> None:
    voice = make_tiny_piper(tmp_path, speakers=2, rate_hz=22_050)
    synthesizer = PiperSynthesizer.load(voice, INFO)
    assert synthesizer.rate_hz == 22_050
    assert synthesizer.info is INFO
    run_async(synthesizer.aclose())
    (first,), (second,) = spoken(voice, "Tea.", speaker=0), spoken(voice, "Tea.", speaker=1)
    assert (first.max(), first.min()) == (1.0, 0.0)
    assert (second.max(), second.min()) == (0.0, -1.0)


def test_closing_the_iterator_stops_between_sentences(voice: Path) -> None:
    async def main() -> None:
        synthesizer = PiperSynthesizer.load(voice, INFO)
        runs = 0
        real = synthesizer._voice.phoneme_ids_to_audio

        def counting(*args: object, **kwargs: object) -> object:
            nonlocal runs
            runs += 1
            return real(*args, **kwargs)

        synthesizer._voice.phoneme_ids_to_audio = counting
        stream = synthesizer.speak("One tea. Two teas. Three teas. Four teas. Five teas.")
        await anext(stream)
        await stream.aclose()
        await synthesizer.aclose()
        assert runs < 5

    run_async(main())


def test_callers_that_speak_at_once_get_their_own_words(voice: Path) -> None:
    clauses = ["Tea.", "A flat white with oat milk.", "Goodbye then."]

    async def main() -> list[int]:
        synthesizer = PiperSynthesizer.load(voice, INFO, workers=2)
        audio = await asyncio.gather(*(chunks(synthesizer, clause) for clause in clauses))
        await synthesizer.aclose()
        return [len(clicks(np.concatenate(parts))) for parts in audio]

    assert run_async(main()) == [len(clicks(audio)) for audio in spoken(voice, *clauses)]


def test_a_failing_graph_is_the_clauses_own_trouble(voice: Path) -> None:
    async def main() -> None:
        synthesizer = PiperSynthesizer.load(voice, INFO)
        config, synthesizer._config.length_scale = synthesizer._config.length_scale, "slow"  # no number: the run fails
        with pytest.raises(BackendError, match="Piper failed on"):
            await chunks(synthesizer, "A tea, please.")
        synthesizer._config.length_scale = config
        assert await chunks(synthesizer, "A tea, please.")
        await synthesizer.aclose()

    run_async(main())


def test_a_closed_voice_says_so_and_leaves_no_thread(voice: Path) -> None:
    async def main() -> None:
        synthesizer = PiperSynthesizer.load(voice, INFO)
        assert await chunks(synthesizer, "Tea.")
        await synthesizer.aclose()
        await synthesizer.aclose()
        with pytest.raises(BackendError, match="closed"):
            await chunks(synthesizer, "Tea.")

    run_async(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("piper")]


def test_a_missing_voice_names_the_command_that_fetches_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="voiceagent models fetch piper"):
        PiperSynthesizer.load(tmp_path / "nowhere.onnx", INFO)


@pytest.mark.parametrize("damage", ["config is no JSON", "config lacks keys", "graph is noise", "graph is no voice"])
def test_damaged_files_are_backend_errors(voice: Path, tmp_path: Path, damage: str) -> None:
    path, config = tmp_path / "v.onnx", tmp_path / "v.onnx.json"
    path.write_bytes(voice.read_bytes())
    config.write_bytes(voice.with_name(voice.name + ".json").read_bytes())
    match damage:
        case "config is no JSON":
            config.write_text("{")
        case "config lacks keys":
            config.write_text("{}")
        case "graph is noise":
            path.write_bytes(b"\x08\x07noise" * 100)
        case _:
            path.write_bytes(path.read_bytes().replace(b"input_lengths", b"input_breadths"[:13]))
    with pytest.raises(BackendError, match="tts: "):
        PiperSynthesizer.load(path, INFO)


def test_a_pace_that_is_no_factor_is_refused(voice: Path) -> None:
    with pytest.raises(ValueError, match="pace = 0"):
        PiperSynthesizer.load(voice, INFO, pace=0.0)
