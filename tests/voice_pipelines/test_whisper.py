"""faster-whisper on a real converted checkpoint with random weights: format and plumbing, never accuracy.

Order of service and failures are shown with decoders that do as they are told.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import run_async
from tests.voice_pipelines.tiny_whisper import WORDS, add_languages, make_tiny_whisper
from voice_pipelines.adapters.whisper import (
    Decode,
    FasterWhisperTranscriber,
    WhisperDecoder,
    WhisperUtterance,
    window_s,
)
from voice_pipelines.adapters.whisper_guards import Segment
from voice_pipelines.adapters.whisper_window import WindowOptions
from voice_pipelines.models import WhisperChoice, choose_model, is_english_only
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Partial, Samples, Take, Transcript, Word
from voiceagent.clock import ManualClock
from voiceagent.errors import BackendError, OverloadedError

INFO = BackendInfo("asr", "faster-whisper tiny", "made in a test")
CHOICE = choose_model("cpu", 1, 4.0)
SHORT_WINDOWS = WindowOptions(trim_s=8.0, longest_s=10.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> WhisperDecoder:
    return WhisperDecoder(checkpoint, CHOICE, vocabulary=["flat white", "oat milk"])


@pytest.fixture(scope="module")
def orders(data_dir: Path) -> list[Samples]:
    return [soundfile.read(path, dtype="float32")[0] for path in sorted((data_dir / "order").glob("*.flac"))[:5]]


def pieces(audio: Samples, cuts: Sequence[int]) -> Iterator[Samples]:
    edges = [0, *cuts, len(audio)]
    return (audio[a:b] for a, b in itertools.pairwise(edges))


class Paced:
    """A decoder whose calls can be waited for and counted."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ended = threading.Event()
        self.calls = 0

    def __call__(self, samples: Samples, prompt: str) -> tuple[Segment, ...]:
        try:
            return self._decode(samples, prompt)
        finally:
            self.calls += 1
            self._ended.set()

    async def settle(self, utterance: WhisperUtterance) -> None:
        while utterance.is_decoding:
            self._ended.clear()
            await asyncio.to_thread(self._ended.wait, 0.02)
            await ManualClock.settle()


async def recognise(
    transcriber: FasterWhisperTranscriber, audio: Samples, cuts: Sequence[int], pace: Paced | None = None
) -> tuple[Transcript, list[Partial]]:
    """One utterance; with `pace` every decode ends before the next piece comes, as when the machine is quick."""
    partials: list[Partial] = []
    utterance = await transcriber.open(partials.append)
    for piece in pieces(audio, cuts):
        utterance.feed(piece)
        if pace is not None:
            await pace.settle(utterance)
    return await utterance.finish(), partials


def with_transcriber(decode: Decode, use: Callable[[FasterWhisperTranscriber], object], **options: Any) -> None:
    async def main() -> None:
        transcriber = FasterWhisperTranscriber(decode, INFO, **options)
        try:
            await use(transcriber)  # type: ignore[misc]
        finally:
            await transcriber.aclose()

    run_async(main(), timeout_s=120.0)


# --- the real format --------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_gives_words_with_times_and_probabilities(
    decoder: WhisperDecoder, orders: list[Samples]
) -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        transcript, _ = await recognise(transcriber, orders[0], [])
        assert transcript.text
        assert transcript.text == " ".join(word.text for word in transcript.words)
        assert set(transcript.text.split()) <= set(WORDS)
        duration_s = len(orders[0]) / INPUT_RATE_HZ
        for word in transcript.words:
            assert " " not in word.text
            assert 0.0 <= word.start_s <= word.end_s <= duration_s
            assert 0.0 <= word.probability <= 1.0
        assert transcript.confidence is not None and 0.0 <= transcript.confidence <= 1.0
        assert transcript.compute_s > 0.0

    with_transcriber(decoder, use)


def test_pieces_are_joined_to_words_but_not_where_a_language_puts_no_blanks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multilingual = shutil.copytree(checkpoint, tmp_path / "multilingual")
    add_languages(multilingual)

    def told(segments: list[list[dict[str, Any]]], *_: object) -> None:
        segments[0][0]["words"] = [
            {"word": piece, "start": 0.1 * i, "end": 0.1 * i + 0.1, "probability": 0.9}
            for i, piece in enumerate((" 20", "-ounce", " tea"))
        ]

    for language, words in (("en", ["20-ounce", "tea"]), ("ja", ["20", "-ounce", "tea"])):
        decoder = WhisperDecoder(multilingual, CHOICE, language=language)
        monkeypatch.setattr(decoder._model, "add_word_timestamps", told)
        assert [word.text for word in decoder(tone(1.0), "")[0].words] == words


def test_loading_by_folder_needs_no_network(checkpoint: Path, orders: list[Samples]) -> None:
    async def main() -> None:
        transcriber = await asyncio.to_thread(FasterWhisperTranscriber.load, checkpoint, CHOICE, INFO, vocabulary=WORDS)
        transcript, _ = await recognise(transcriber, orders[1], [])
        assert transcript.words
        assert transcriber.info.part == "asr"
        await transcriber.aclose()

    run_async(main(), timeout_s=120.0)


def test_a_whisper_of_english_alone_is_known_by_its_files_as_ctranslate2_knows_it_and_hears_no_other_language(
    checkpoint: Path, tmp_path: Path
) -> None:
    multilingual = shutil.copytree(checkpoint, tmp_path / "multilingual")
    add_languages(multilingual)
    for folder, is_one in ((checkpoint, True), (multilingual, False)):
        assert is_english_only(folder) is is_one
        assert WhisperDecoder(folder, CHOICE)._model.model.is_multilingual is not is_one
    with pytest.raises(BackendError, match="is English only, and the language is 'de'"):
        WhisperDecoder(checkpoint, CHOICE, language="de")
    with pytest.raises(BackendError, match="Whisper knows no language 'xx'"):
        WhisperDecoder(multilingual, CHOICE, language="xx")


def test_partials_arrive_while_the_caller_speaks_and_stable_words_stay(
    decoder: WhisperDecoder, orders: list[Samples]
) -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        for audio in orders[:3]:
            _, partials = await recognise(transcriber, audio, range(320, len(audio), 320), paced)
            assert len(partials) >= 2
            for earlier, later in itertools.pairwise(partials):
                assert later.stable.split()[: len(earlier.stable.split())] == earlier.stable.split()
            assert partials[-1].stable

    paced = Paced(decoder)
    with_transcriber(paced, use)


def test_the_final_is_the_same_however_the_audio_is_cut(decoder: WhisperDecoder, orders: list[Samples]) -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        long = np.concatenate(orders)[: 22 * INPUT_RATE_HZ]
        assert len(long) > 2 * SHORT_WINDOWS.longest_s * INPUT_RATE_HZ, "long enough to be cut into several windows"
        rng = np.random.default_rng(5)
        for audio, frame in ((orders[0][: 5 * INPUT_RATE_HZ], 320), (long, 50_011)):
            whole, _ = await recognise(transcriber, audio, [])
            cuts = sorted(rng.integers(0, len(audio), 8).tolist())
            for transcript, _ in [
                await recognise(transcriber, audio, range(frame, len(audio), frame), paced),
                await recognise(transcriber, audio, range(997, len(audio), 997)),
                await recognise(transcriber, audio, cuts, paced),
            ]:
                assert (transcript.text, transcript.words) == (whole.text, whole.words)

    paced = Paced(decoder)
    with_transcriber(paced, use, options=SHORT_WINDOWS)


def test_callers_that_speak_at_once_hear_what_they_would_hear_alone(checkpoint: Path, orders: list[Samples]) -> None:
    decoder = WhisperDecoder(checkpoint, WhisperChoice("tiny.en", "cpu", "int8", 1, 2, 1, "two at a time"))

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        alone = [(await recognise(transcriber, audio, []))[0].text for audio in orders]
        both = await asyncio.gather(*(recognise(transcriber, audio, range(1600, len(audio), 1600)) for audio in orders))
        assert [transcript.text for transcript, _ in both] == alone
        assert len(set(alone)) > 1, "the checkpoint tells recordings apart"

    with_transcriber(decoder, use, workers=2)


def test_after_a_pause_the_final_is_there_without_another_decode(
    decoder: WhisperDecoder, orders: list[Samples]
) -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        audio = np.concatenate((orders[0], np.zeros(INPUT_RATE_HZ, np.float32)))
        utterance = await transcriber.open(lambda partial: None)
        for piece in pieces(audio, range(320, len(audio), 320)):
            utterance.feed(piece)
            await paced.settle(utterance)
        before = paced.calls
        transcript = await utterance.finish()
        assert transcript.text
        assert paced.calls == before

    paced = Paced(decoder)
    with_transcriber(paced, use)


def test_hot_words_change_what_is_written_and_too_many_are_cut_short(checkpoint: Path, orders: list[Samples]) -> None:
    without, many = WhisperDecoder(checkpoint, CHOICE), WhisperDecoder(checkpoint, CHOICE, vocabulary=WORDS * 50)
    assert without.hot_words == ""
    assert many.hot_words.startswith("could, i, get") and len(many.hot_words.split(", ")) < len(WORDS) * 50
    audio = orders[0][: 4 * INPUT_RATE_HZ]
    assert many(audio, "") != without(audio, "")
    assert many(np.concatenate(orders)[: 28 * INPUT_RATE_HZ], "please " * 1000), "everything fits Whisper's positions"


@pytest.mark.parametrize("duration_s", [0.0001, 0.01, 0.05])
def test_a_click_is_no_utterance(decoder: WhisperDecoder, duration_s: float) -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        click = np.full(max(round(duration_s * INPUT_RATE_HZ), 1), 0.5, np.float32)
        transcript, _ = await recognise(transcriber, click, [])
        assert isinstance(transcript.text, str)

    with_transcriber(decoder, use)


@pytest.mark.parametrize("lost", ["model.bin", "tokenizer.json"])
def test_a_folder_without_its_files_is_refused_before_any_network(checkpoint: Path, tmp_path: Path, lost: str) -> None:
    for path in checkpoint.iterdir():
        if path.name != lost:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(BackendError, match="no converted Whisper checkpoint"):
        WhisperDecoder(tmp_path, CHOICE)


def test_a_damaged_checkpoint_is_a_backend_error(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if path.name == "model.bin" else data)
    with pytest.raises(BackendError, match="could not load Whisper"):
        WhisperDecoder(tmp_path, CHOICE)


# --- order of service and failures ------------------------------------------------------------------------------------


def tone(seconds: float, level: float = 0.2) -> Samples:
    return np.full(round(seconds * INPUT_RATE_HZ), level, np.float32)


def saying(text: str) -> tuple[Segment, ...]:
    words = tuple(Word(word, 0.3 * i, 0.3 * i + 0.3, 0.9) for i, word in enumerate(text.split()))
    return (Segment(text, words, -0.2, 0.01, 1.0),)


def by_level(samples: Samples, prompt: str) -> tuple[Segment, ...]:
    """Names a caller by the level of its tone."""
    return saying(f"caller-{round(float(samples[0]) * 10)}")


class Gate:
    """A decoder that waits for permission, and notes whom it decoded."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.started = threading.Event()
        self.open = threading.Event()

    def __call__(self, samples: Samples, prompt: str) -> tuple[Segment, ...]:
        self.started.set()
        assert self.open.wait(20.0)
        segments = by_level(samples, prompt)
        self.decoded.append(segments[0].text)
        return segments


def test_ended_callers_come_first_in_the_order_in_which_they_ended() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        callers = [await transcriber.open(lambda partial: None) for _ in range(5)]
        callers[0].feed(tone(1.0, 0.1))
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        for i in (1, 2, 3, 4):
            callers[i].feed(tone(1.0, 0.1 * (i + 1)))
        finals = [asyncio.ensure_future(callers[i].finish()) for i in (3, 1)]
        await asyncio.sleep(0)
        gate.open.set()
        assert [(await final).text for final in finals] == ["caller-4", "caller-2"]
        for i in (2, 4):
            await callers[i].finish()

    with_transcriber(gate, use)
    assert gate.decoded[:3] == ["caller-1", "caller-4", "caller-2"]


def test_a_busy_recogniser_skips_partials_but_not_the_final() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        utterance = await transcriber.open(lambda partial: None)
        for _ in range(500):
            utterance.feed(tone(0.02))
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        final = asyncio.ensure_future(utterance.finish())
        await asyncio.sleep(0)
        gate.open.set()
        assert (await final).text == "caller-2"

    with_transcriber(gate, use)
    assert len(gate.decoded) == 2, "one partial, then the final"


def test_a_failed_final_is_the_callers_own_trouble() -> None:
    def breaks_on_loud(samples: Samples, prompt: str) -> tuple[Segment, ...]:
        if samples[0] > 0.5:
            raise RuntimeError("out of memory")
        return by_level(samples, prompt)

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        broken, fine = [await transcriber.open(lambda partial: None) for _ in range(2)]
        broken.feed(tone(1.0, 0.9))
        fine.feed(tone(1.0, 0.3))
        with pytest.raises(BackendError, match="out of memory"):
            await broken.finish()
        assert (await fine.finish()).text == "caller-3"
        again = await transcriber.open(lambda partial: None)
        again.feed(tone(1.0, 0.4))
        assert (await again.finish()).text == "caller-4"

    with_transcriber(breaks_on_loud, use)


def test_a_failed_partial_is_forgiven() -> None:
    calls: list[int] = []

    def breaks_once(samples: Samples, prompt: str) -> tuple[Segment, ...]:
        calls.append(len(samples))
        if len(calls) == 1:
            raise RuntimeError("a hiccup")
        return saying("tea")

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        utterance = await transcriber.open(lambda partial: None)
        utterance.feed(tone(1.0))
        await paced.settle(utterance)
        utterance.feed(tone(1.0))
        assert (await utterance.finish()).text == "tea"

    paced = Paced(breaks_once)
    with_transcriber(paced, use)


def test_neither_partials_nor_the_final_end_with_the_comma_of_a_list_of_hot_words() -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        final, partials = await recognise(transcriber, tone(3.0), range(320, 48_000, 320), paced)
        assert final.text == " ".join(word.text for word in final.words) == "4, 8, 6"
        assert partials and all(f"{partial.stable} {partial.unstable}".strip() == "4, 8, 6" for partial in partials)

    paced = Paced(lambda samples, prompt: saying("4, 8, 6,"))
    with_transcriber(paced, use)


def test_cancel_frees_the_place_at_any_time_and_twice() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        partials: list[Partial] = []
        first = await transcriber.open(partials.append)
        with pytest.raises(OverloadedError):
            await transcriber.open(partials.append)
        first.feed(tone(1.0))
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        first.cancel()
        first.cancel()
        first.feed(tone(1.0))
        second = await transcriber.open(partials.append)
        second.feed(tone(1.0, 0.7))
        final = asyncio.ensure_future(second.finish())
        await asyncio.sleep(0)
        second.cancel()
        assert await final == Transcript("")
        third = await transcriber.open(partials.append)
        third.feed(tone(0.5, 0.8))
        gate.open.set()
        assert (await third.finish()).text == "caller-8"
        third.cancel()
        assert (await first.finish()).text == ""
        assert partials == []

    with_transcriber(gate, use, max_utterances=1)


def test_a_short_voice_is_decoded_once_and_an_utterance_that_has_as_much_at_once_twice() -> None:
    voice = np.concatenate([tone(0.9), tone(0.1, 0.0)])

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        for is_whole in (True, False):
            paced.calls = 0
            assert [take async for take in transcriber.takes(voice, is_whole=is_whole, likely=())] == [Take("caller-2")]
            assert paced.calls == 1
        paced.calls = 0
        assert (await recognise(transcriber, voice, ()))[0].text == "caller-2"
        assert paced.calls == 2, "a partial, and the final behind it"
        assert not transcriber._open

    paced = Paced(by_level)
    with_transcriber(paced, use)


def test_before_a_short_voice_stands_what_is_likely_there_and_no_hot_word(
    checkpoint: Path, decoder: WhisperDecoder, orders: list[Samples]
) -> None:
    prompts: list[str] = []

    def voice(samples: Samples, prompt: str) -> tuple[Segment, ...]:
        prompts.append(prompt)
        return saying("Mm-hmm.")

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        takes = transcriber.takes(tone(0.5), is_whole=True, likely=("stop", "mm-hmm", "i see"))
        assert [take async for take in takes] == [Take("Mm-hmm.")]

    with_transcriber(by_level, use, decode_voice=voice)
    assert prompts == ["Stop. Mm-hmm. I see."]
    plain = WhisperDecoder(checkpoint, CHOICE)
    voice_s = orders[0][: INPUT_RATE_HZ // 2]
    assert decoder.without_hot_words(voice_s, "Stop.") == plain.without_hot_words(voice_s, "Stop.")
    assert decoder(voice_s, "Stop.") != decoder.without_hot_words(voice_s, "Stop.")


def test_a_short_voice_takes_a_place_as_an_utterance_does_and_leaves_it() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        async def listen() -> None:
            async for _ in transcriber.takes(tone(0.5), is_whole=True, likely=()):
                raise AssertionError("nobody waits for it any more")

        listening = asyncio.create_task(listen())
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        with pytest.raises(OverloadedError):
            await transcriber.open(lambda partial: None)
        listening.cancel()
        await asyncio.wait([listening])
        (await transcriber.open(lambda partial: None)).cancel()
        gate.open.set()

    with_transcriber(gate, use, max_utterances=1)


def test_finish_twice_is_an_error_of_the_caller() -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        utterance = await transcriber.open(lambda partial: None)
        assert (await utterance.finish()).text == ""
        with pytest.raises(RuntimeError, match="once"):
            await utterance.finish()

    with_transcriber(by_level, use)


def test_a_cancelled_wait_for_the_final_frees_the_place() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        utterance = await transcriber.open(lambda partial: None)
        utterance.feed(tone(1.0))
        final = asyncio.ensure_future(utterance.finish())
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        final.cancel()
        with pytest.raises(asyncio.CancelledError):
            await final
        await transcriber.open(lambda partial: None)
        gate.open.set()

    with_transcriber(gate, use, max_utterances=1)


def test_closing_fails_who_waits_and_leaves_no_thread() -> None:
    gate = Gate()

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        waiting, speaking = [await transcriber.open(lambda partial: None) for _ in range(2)]
        waiting.feed(tone(1.0))
        final = asyncio.ensure_future(waiting.finish())
        assert await asyncio.to_thread(gate.started.wait, 20.0)
        closing = asyncio.ensure_future(transcriber.aclose())
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(BackendError, match="closed"):
            await final
        with pytest.raises(BackendError, match="closed"):
            await speaking.finish()
        await closing
        with pytest.raises(BackendError, match="closed"):
            await transcriber.open(lambda partial: None)

    with_transcriber(gate, use)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("whisper")]


def test_silence_is_answered_without_asking_the_model() -> None:
    def never(samples: Samples, prompt: str) -> tuple[Segment, ...]:
        raise AssertionError("silence was decoded")

    async def use(transcriber: FasterWhisperTranscriber) -> None:
        transcript, partials = await recognise(transcriber, tone(40.0, 0.0005), [16000, 400000])
        assert (transcript.text, transcript.words, partials) == ("", (), [])

    with_transcriber(never, use)


def test_what_whisper_writes_for_hiss_is_not_believed() -> None:
    async def use(transcriber: FasterWhisperTranscriber) -> None:
        hiss = np.random.default_rng(3).normal(0.0, 0.004, 2 * INPUT_RATE_HZ).astype(np.float32)
        assert (await recognise(transcriber, hiss, []))[0].text == ""
        assert (await recognise(transcriber, hiss * 25, []))[0].text == "Thanks for watching!"

    with_transcriber(lambda samples, prompt: saying("Thanks for watching!"), use)


# --- how much the encoder is given ------------------------------------------------------------------------------------


def test_a_window_is_as_long_as_the_speech_and_some_silence_and_never_longer_than_whispers() -> None:
    assert [window_s(duration_s) for duration_s in (0.1, 5.9, 6.1, 12.0, 25.9, 26.5, 40.0)] == [
        10,
        10,
        11,
        16,
        30,
        30,
        30,
    ]


def encoded_s(decoder: WhisperDecoder, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of sound in each window that is encoded from now on."""
    lengths: list[float] = []
    encode = decoder._model.encode

    def noting(features: Any) -> Any:
        lengths.append(features.shape[-1] / 100)
        return encode(features)

    monkeypatch.setattr(decoder._model, "encode", noting)
    return lengths


def test_a_short_order_costs_a_short_window(
    decoder: WhisperDecoder, orders: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voice_pipelines.adapters.whisper.repeats_itself", lambda segment: False)
    lengths = encoded_s(decoder, monkeypatch)
    decoder(orders[0][: 3 * INPUT_RATE_HZ], "")
    decoder(np.concatenate(orders)[: 28 * INPUT_RATE_HZ], "")
    assert lengths == [10.0, 30.0]


def test_what_repeats_itself_is_heard_once_more_in_a_whole_window(
    decoder: WhisperDecoder, orders: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voice_pipelines.adapters.whisper.repeats_itself", lambda segment: True)
    lengths = encoded_s(decoder, monkeypatch)
    (again,) = decoder(orders[0][: 3 * INPUT_RATE_HZ], "")
    assert lengths == [10.0, 30.0], "once, whatever the second says"
    monkeypatch.setattr("voice_pipelines.adapters.whisper.window_s", lambda duration_s: 30.0)
    assert decoder(orders[0][: 3 * INPUT_RATE_HZ], "") == (again,), "the second hearing counts"
    assert lengths == [10.0, 30.0, 30.0]
