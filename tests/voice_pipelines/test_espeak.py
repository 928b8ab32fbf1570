"""eSpeak NG behind the synthesizer protocol: real speech from the packaged library."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soxr

from tests.conftest import run_async
from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice, seed_noise
from voice_pipelines.adapters.silero import SileroDetector
from voice_pipelines.silence import AUDIBLE_DBFS
from voiceagent.backends import Samples
from voiceagent.errors import BackendError
from voiceagent.vad import Windower

ORDER = "Sure, one large iced latte with oat milk."


async def said(synthesizer: EspeakSynthesizer, clause: str) -> Samples:
    chunks = [chunk async for chunk in synthesizer.speak(clause)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def speak(*clauses: str, voice: EspeakVoice | None = None) -> list[Samples]:
    async def main() -> list[Samples]:
        synthesizer = EspeakSynthesizer(voice)
        try:
            return [await said(synthesizer, clause) for clause in clauses]
        finally:
            await synthesizer.aclose()

    return run_async(main())


def loudness(audio: Samples) -> Samples:
    """Level of every 10 ms."""
    return np.sqrt(np.mean(audio[: len(audio) // 220 * 220].reshape(-1, 220) ** 2, axis=1))


def sound_alike(first: Samples, second: Samples) -> bool:
    """The same words in the same voice. eSpeak's breath is noise that goes on from text to text, so samples and lengths differ a little each time."""
    one, other = loudness(first), loudness(second)
    if abs(len(first) - len(second)) > 661:  # 30 ms; ten were exceeded once in some tens of runs
        return False
    count = min(len(one), len(other))
    return float(np.corrcoef(one[:count], other[:count])[0, 1]) > 0.98


def test_a_sentence_sounds_like_speech() -> None:
    (audio,) = speak(ORDER)
    duration_s = len(audio) / 22_050
    assert audio.dtype == np.float32
    assert 1.5 < duration_s < 4.0  # eight words at 170 words a minute take 2.8 s
    assert -30 < 20 * np.log10(np.sqrt(np.mean(audio**2))) < -10
    assert np.abs(audio).max() < 1.0

    async def voiced() -> float:
        detector = SileroDetector()
        stream = detector.open()
        windows = Windower().push(soxr.resample(audio, 22_050, 16_000))
        speech = [await stream.probability(window) > 0.5 for window in windows]
        await detector.aclose()
        return float(np.mean(speech))

    assert run_async(voiced()) > 0.7


def test_it_begins_and_ends_where_it_is_heard() -> None:
    (audio,) = speak(ORDER)
    audible = np.flatnonzero(np.abs(audio) > 10 ** (AUDIBLE_DBFS / 20))
    assert audible[0] <= round(0.002 * 22_050)
    assert len(audio) - 1 - audible[-1] <= round(0.12 * 22_050)


def test_the_same_clause_sounds_the_same_and_more_words_take_longer() -> None:
    first, second, longer = speak(ORDER, ORDER, ORDER + " Anything else for you today?")
    assert sound_alike(first, second)
    assert len(longer) > len(first)
    assert not sound_alike(first, longer[: len(first)][::-1])


def test_a_process_says_the_same_to_the_sample_whenever_it_starts() -> None:
    """Replays over a made voice are compared between runs. eSpeak itself would take the time of day, in seconds, for its noise."""
    program = f"""
import asyncio, hashlib, time
from voice_pipelines.adapters.espeak import EspeakSynthesizer

async def say():
    return b"".join([chunk.tobytes() async for chunk in EspeakSynthesizer().speak({ORDER!r})])

print(time.time() // 1, hashlib.sha256(asyncio.run(say())).hexdigest())
"""
    runs: dict[str, str] = {}
    while len(runs) < 2:  # Two that began in different seconds; each takes one or so.
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        second, digest = run.stdout.split()
        runs[second] = digest
    assert len(set(runs.values())) == 1


def test_a_library_that_takes_no_seed_speaks_all_the_same() -> None:
    seeds: list[int] = []

    def set_seed(seed: int) -> None:
        seeds.append(seed)

    seed_noise(SimpleNamespace())
    seed_noise(SimpleNamespace(espeak_ng_SetRandSeed=set_seed))
    assert len(seeds) == 1


def test_a_faster_voice_takes_less_time() -> None:
    (slow,), (fast,) = (speak(ORDER, voice=EspeakVoice(words_per_minute=rate)) for rate in (120, 240))
    assert len(fast) < 0.7 * len(slow)


def test_figures_are_made_speakable() -> None:
    figures, words = speak("$4.50", "four dollars and fifty cents")
    assert sound_alike(figures, words)


def test_ssml_is_not_obeyed() -> None:
    plain, marked, phonemes = speak("hello world", '<speak>hello <break time="9s"/>world</speak>', "[[h@loU]]")
    assert sound_alike(plain, marked)
    assert len(phonemes) > 0


@pytest.mark.parametrize("text", ["", " \n", "😀", "...", "\0", "—"])
def test_text_with_nothing_to_say_is_silence(text: str) -> None:
    (audio,) = speak(text)
    assert len(audio) == 0


@pytest.mark.parametrize("text", ["Hi\0there", "\ud800 lone", "שלום 你好", "a" * 3000, "ok " * 600, "%s %n {} \\x"])
def test_odd_text_is_spoken_somehow(text: str) -> None:
    (audio,) = speak(text)
    assert len(audio) > 0


def test_audio_arrives_while_the_rest_is_still_being_made() -> None:
    async def main() -> tuple[int, int]:
        synthesizer = EspeakSynthesizer()
        chunks = [chunk async for chunk in synthesizer.speak(ORDER)]
        await synthesizer.aclose()
        return len(chunks), len(chunks[0])

    count, first_samples = run_async(main())
    assert count > 10
    assert first_samples <= round(0.06 * 22_050)


def test_closing_the_iterator_frees_the_engine_for_the_next_caller() -> None:
    async def main() -> Samples:
        synthesizer = EspeakSynthesizer()
        iterator = synthesizer.speak("word " * 2_000)
        async for _ in iterator:
            break
        await iterator.aclose()
        after = await said(synthesizer, ORDER)
        await synthesizer.aclose()
        return after

    (alone,) = speak(ORDER)
    assert sound_alike(run_async(main()), alone)


def test_a_clause_cancelled_before_its_turn_is_never_spoken() -> None:
    async def main() -> list[Samples]:
        synthesizer = EspeakSynthesizer()
        tasks = [asyncio.ensure_future(said(synthesizer, ORDER)) for _ in range(6)]
        await asyncio.sleep(0)
        for task in tasks[1:5]:
            task.cancel()
        results = await asyncio.gather(tasks[0], tasks[5])
        await synthesizer.aclose()
        return list(results)

    first, last = run_async(main())
    assert sound_alike(first, last)


def test_callers_with_different_voices_share_one_engine_thread_without_mixing() -> None:
    voices = [EspeakVoice(), EspeakVoice("en-us+m3", words_per_minute=200)]
    alone = [speak(ORDER, voice=voice)[0] for voice in voices]

    async def main() -> list[Samples]:
        synthesizers = [EspeakSynthesizer(voices[i % 2]) for i in range(6)]
        together = await asyncio.gather(*(said(synthesizer, ORDER) for synthesizer in synthesizers))
        assert sum(thread.name == "espeak" for thread in threading.enumerate()) == 1
        for synthesizer in synthesizers:
            await synthesizer.aclose()
        return together

    for index, audio in enumerate(run_async(main())):
        assert sound_alike(audio, alone[index % 2])


def test_others_in_the_process_who_use_the_library_do_not_change_the_voice() -> None:
    import espeakng_loader

    (before,) = speak(ORDER)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_SetVoiceByName(b"de")
    library.espeak_SetParameter(1, 300, 0)
    (after,) = speak(ORDER)
    assert sound_alike(before, after)


def test_closing_ends_the_thread_and_later_clauses_are_refused() -> None:
    async def main() -> None:
        synthesizer = EspeakSynthesizer()
        await said(synthesizer, ORDER)
        await synthesizer.aclose()
        await synthesizer.aclose()
        gc.collect()
        assert not any(thread.name == "espeak" for thread in threading.enumerate())
        with pytest.raises(BackendError, match="closed"):
            await said(synthesizer, ORDER)

    run_async(main())


def test_an_unknown_voice_is_refused_at_the_start() -> None:
    with pytest.raises(BackendError, match="no voice 'klingon-9'"):
        EspeakSynthesizer(EspeakVoice("klingon-9"))
    assert not any(thread.name == "espeak" for thread in threading.enumerate())


def test_voice_settings_out_of_range_name_the_key() -> None:
    with pytest.raises(ValueError, match="words_per_minute = 20"):
        EspeakVoice(words_per_minute=20)


def test_the_start_up_report_names_the_better_voice() -> None:
    async def main() -> None:
        synthesizer = EspeakSynthesizer()
        assert (synthesizer.info.part, synthesizer.info.name) == ("tts", "espeak")
        assert synthesizer.info.upgrade == "voiceagent models fetch piper"
        await synthesizer.aclose()

    run_async(main())
