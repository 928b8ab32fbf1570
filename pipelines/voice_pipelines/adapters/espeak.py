"""eSpeak NG through the library that the package `espeakng-loader` carries; no system eSpeak, no subprocess.

eSpeak NG is global state, so one engine thread in the process owns it and serves the clauses of all synthesizers in the order of
their arrival. eSpeak NG is GPL-3.0: this module is the only one that loads it.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from voice_pipelines.silence import SilenceTrimmer
from voice_pipelines.speakable import split_for_speech
from voiceagent.backends import BackendInfo, Samples
from voiceagent.errors import BackendError

# speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_CHUNK_MS = 40
"""Length of eSpeak's own buffer: the callback, and so a cancellation, comes once per chunk."""
_NOISE_SEED = 1
"""eSpeak takes the time of day for the noise in its voices: a replay over such a voice came out otherwise from run to run."""
_MAX_PIECE_CHARS = 400
"""Longer clauses are spoken piece by piece, so that one caller's text neither fills memory nor holds up the others."""


@dataclass(frozen=True, slots=True)
class EspeakVoice:
    """How eSpeak sounds.

    Raises:
        ValueError: If a value is outside the range stated beside it.
    """

    name: str = "en-us+f5"
    """A voice of eSpeak NG, with a variant after a plus sign if wanted. Of 31 variants this is the one that a recogniser which
    has never heard eSpeak understands best: PocketSphinx without vocabulary gets 77 % of the words, of plain "en-us" 19 %."""
    words_per_minute: int = 170
    """80 to 450. eSpeak's own default is 175."""
    pitch: int = 45
    """0 to 100."""
    pitch_range: int = 55
    """0 to 100. 0 is monotone."""
    volume: int = 100
    """0 to 200; 100 is eSpeak's full scale without clipping."""

    def __post_init__(self) -> None:
        limits = {"words_per_minute": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100), "volume": (0, 200)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}: expected {low} to {high}")


_Item: TypeAlias = Samples | BackendError | None


@dataclass(slots=True, eq=False)
class _Job:
    """One piece of text and who takes its audio, on the engine thread. The last item is None or an error."""

    text: str
    voice: EspeakVoice
    put: Callable[[_Item], None]
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class _Engine:
    """The one owner of the eSpeak library in this process."""

    def __init__(self) -> None:
        self._library, self.rate_hz = _load()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._current: _Job | None = None
        self._callback = _CALLBACK(self._on_audio)  # kept: ctypes does not hold callbacks alive
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._users = 0

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="espeak", daemon=True)
                self._thread.start()

    def release(self) -> None:
        """The last user's release stops the thread; the library stays loaded. Blocks for the chunk in work."""
        with self._lock:
            self._users -= 1
            if self._users or self._thread is None:
                return
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def submit(self, job: _Job) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.is_cancelled.is_set():
                continue
            try:
                self._speak(job)
            except BackendError as error:
                job.put(error)
            except Exception as error:  # the thread serves everyone: it outlives any one clause
                job.put(BackendError("tts", f"eSpeak NG failed: {error}"))
            else:
                job.put(None)

    def _speak(self, job: _Job) -> None:
        self._use(job.voice)
        text = job.text.encode("utf-8", errors="ignore").replace(b"\0", b" ") + b"\0"
        self._current = job
        try:
            # Neither espeakSSML nor espeakPHONEMES is set: markup in the text is text.
            status = self._library.espeak_Synth(text, len(text), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        finally:
            self._current = None
        if status != 0:
            raise BackendError("tts", f"eSpeak NG could not speak {len(text)} bytes of text (status {status})")

    def _use(self, voice: EspeakVoice) -> None:
        """Set everything for each clause (0.2 ms): whatever else in the process uses eSpeak cannot change how a caller is spoken to."""
        self._library.espeak_SetSynthCallback(self._callback)
        status = self._library.espeak_SetVoiceByName(voice.name.encode())
        if status != 0:
            raise BackendError("tts", f"eSpeak NG has no voice {voice.name!r} (status {status})")
        for parameter, value in (
            (_PARAMETER_RATE, voice.words_per_minute),
            (_PARAMETER_VOLUME, voice.volume),
            (_PARAMETER_PITCH, voice.pitch),
            (_PARAMETER_RANGE, voice.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)

    def _on_audio(self, wave: Any, count: int, _events: int | None) -> int:
        """eSpeak's callback, on the engine thread inside `espeak_Synth`; 1 stops the synthesis."""
        job = self._current
        if job is None or job.is_cancelled.is_set():
            return 1
        if wave and count > 0:
            pcm = np.ctypeslib.as_array(wave, shape=(count,))
            job.put(pcm.astype(np.float32) / np.float32(32768.0))
        return 0


_engine: _Engine | None = None
_engine_lock = threading.Lock()


def _shared_engine() -> _Engine:
    global _engine
    with _engine_lock:
        if _engine is None:
            _engine = _Engine()
        return _engine


class EspeakSynthesizer:
    """A `Synthesizer`. Any number of them share the process's one engine, each with its own voice.

    Making one blocks for about 40 ms: eSpeak loads the voice and says a word, which the first caller would wait for otherwise.

    Raises:
        BackendError: If the library cannot be loaded or has no such voice.
    """

    def __init__(self, voice: EspeakVoice | None = None) -> None:
        self.info = BackendInfo(
            "tts",
            "espeak",
            "eSpeak NG inside the installed package espeakng-loader; no Piper voice is on disk",
            "voiceagent models fetch piper",
        )
        self._voice = voice or EspeakVoice()
        self._engine = _shared_engine()
        self.rate_hz = self._engine.rate_hz
        self._engine.acquire()
        self._is_closed = False
        try:
            self._warm()
        except BackendError:
            self._engine.release()
            raise

    async def speak(self, clause: str) -> AsyncGenerator[Samples]:
        """Audio of one clause at `rate_hz`, leading silence (below -50 dBFS) cut to 2 ms and trailing silence to 120 ms.

        Nothing is yielded for text without anything to say. Closing the iterator stops the work within one chunk of about 50 ms.

        Raises:
            BackendError: If eSpeak failed on this clause, or the synthesizer is closed.
        """
        trimmer = SilenceTrimmer(self.rate_hz)
        for piece in split_for_speech(clause, _MAX_PIECE_CHARS):
            if self._is_closed:
                raise BackendError("tts", "the synthesizer is closed")
            audio: asyncio.Queue[_Item] = asyncio.Queue()
            job = _Job(piece, self._voice, _onto_loop(asyncio.get_running_loop(), audio))
            self._engine.submit(job)
            try:
                while (item := await audio.get()) is not None:
                    if isinstance(item, BackendError):
                        raise item
                    if len(audible := trimmer.push(item)):
                        yield audible
            finally:
                job.is_cancelled.set()
        if len(tail := trimmer.flush()):
            yield tail

    def _warm(self) -> None:
        said: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._engine.submit(_Job("Hello.", self._voice, said.put))
        while (item := said.get()) is not None:
            if isinstance(item, BackendError):
                raise item

    async def aclose(self) -> None:
        """Let go of the engine; may be called twice. Iterators still open end with an error or with their clause."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._engine.release)


def _onto_loop(loop: asyncio.AbstractEventLoop, audio: asyncio.Queue[_Item]) -> Callable[[_Item], None]:
    """A way for the engine thread to put audio into a queue of the event loop."""

    def put(item: _Item) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody listens any more
            loop.call_soon_threadsafe(audio.put_nowait, item)

    return put


def _load() -> tuple[Any, int]:
    """The initialised library and its sample rate."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise BackendError(
            "tts", "the package espeakng-loader is not installed; run: pip install espeakng-loader"
        ) from error
    try:
        library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path())
    except (OSError, RuntimeError) as error:
        raise BackendError("tts", f"cannot load eSpeak NG: {error}") from error
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_Initialize.restype = ctypes.c_int
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetVoiceByName.restype = ctypes.c_int
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_SetParameter.restype = ctypes.c_int
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    library.espeak_Synth.restype = ctypes.c_int
    rate_hz = library.espeak_Initialize(
        _AUDIO_OUTPUT_SYNCHRONOUS, _CHUNK_MS, str(data.parent).encode(), _INITIALIZE_DONT_EXIT
    )
    if rate_hz <= 0:
        raise BackendError("tts", f"eSpeak NG would not start with the data in {data} (status {rate_hz})")
    seed_noise(library)
    return library, int(rate_hz)


def seed_noise(library: Any) -> None:
    """The same noise whenever a process starts, where the library can be told: eSpeak NG before 1.52 takes what it finds."""
    set_seed = getattr(library, "espeak_ng_SetRandSeed", None)
    if set_seed is not None:
        set_seed.argtypes, set_seed.restype = [ctypes.c_long], ctypes.c_int
        set_seed(_NOISE_SEED)
