"""Speech with Piper: a neural voice that speaks one sentence of a clause after the other.

Piper is GPL-3.0; it is imported here only, and only when a voice is loaded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voice_pipelines.silence import SilenceTrimmer
from voice_pipelines.speakable import split_for_speech
from voiceagent.backends import BackendInfo, Samples
from voiceagent.errors import BackendError

if TYPE_CHECKING:
    from piper import PiperVoice, SynthesisConfig

MAX_PIECE_CHARS = 400
"""Longer clauses are spoken piece by piece, so that one caller's text does not hold up the others."""


class PiperSynthesizer:
    """Implements `Synthesizer` with one loaded voice for all callers.

    Args:
        workers: Clauses synthesised at a time; more wait in the order they came.
    """

    def __init__(
        self,
        voice: PiperVoice,
        info: BackendInfo,
        *,
        speaker: int | None = None,
        pace: float = 1.0,
        workers: int = 1,
    ) -> None:
        from piper import SynthesisConfig

        if pace <= 0:
            raise ValueError(f"pace = {pace}: expected a positive factor, 1 is the voice's own")
        self.info = info
        self.rate_hz = voice.config.sample_rate
        self._voice = voice
        self._config: SynthesisConfig = SynthesisConfig(
            speaker_id=speaker, length_scale=voice.config.length_scale / pace
        )
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="piper")
        self._closed = False

    @classmethod
    def load(
        cls,
        voice: Path,
        info: BackendInfo,
        *,
        speaker: int | None = None,
        pace: float = 1.0,
        threads: int = 1,
        workers: int = 1,
    ) -> PiperSynthesizer:
        """Load VOICE.onnx with VOICE.onnx.json beside it and speak one word to warm up; blocks, so call it on a thread.

        Args:
            pace: Speed of speech relative to the voice's own.
            threads: Cores for one clause.

        Raises:
            BackendError: If the files are missing or no Piper voice.
        """
        synthesizer = cls(_load_voice(voice, threads), info, speaker=speaker, pace=pace, workers=workers)
        for _ in synthesizer._sentences("Yes."):
            pass
        return synthesizer

    async def speak(self, clause: str) -> AsyncGenerator[Samples]:
        """Audio of one clause, a sentence at a time; leading silence is cut, trailing silence shortened.

        Closing the iterator stops the work between two sentences. Nothing is yielded for text without anything to say.

        Raises:
            BackendError: If Piper failed on this clause, or the voice is closed.
        """
        loop = asyncio.get_running_loop()
        trimmer = SilenceTrimmer(self.rate_hz)
        for piece in split_for_speech(clause, MAX_PIECE_CHARS):
            sentences = self._sentences(piece)
            while not self._closed:
                audio = await loop.run_in_executor(self._threads, next, sentences, None)
                if audio is None:
                    break
                if len(audible := trimmer.push(audio)):
                    yield audible
            if self._closed:
                raise BackendError("tts", "the voice is closed")
        if len(tail := trimmer.flush()):
            yield tail

    async def aclose(self) -> None:
        """Wait for the sentences begun; clauses not yet finished fail. Safe twice."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, wait=True)

    def _sentences(self, text: str) -> Iterator[Samples]:
        try:
            for chunk in self._voice.synthesize(text, self._config):
                yield np.atleast_1d(chunk.audio_float_array)
        except Exception as error:  # onnxruntime and the phonemizer raise classes of their own
            raise BackendError("tts", f"Piper failed on {text!r}: {error}") from error


def _load_voice(path: Path, threads: int) -> PiperVoice:
    import onnxruntime
    from piper import PiperConfig, PiperVoice

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while no clause is due would take the cores from recognition and the language model.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        config = PiperConfig.from_dict(json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8")))
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise BackendError(
            "tts", f"{error.filename or path} cannot be read; fetch it with: voiceagent models fetch piper"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackendError("tts", f"{path}.json is no Piper voice configuration: {error!r}") from error
    except Exception as error:  # onnxruntime raises classes of its own for unreadable graphs
        raise BackendError("tts", f"{path} is no ONNX model that can be run: {error}") from error
    inputs = {node.name for node in session.get_inputs()}
    if not {"input", "input_lengths", "scales"} <= inputs:
        raise BackendError(
            "tts", f"{path} has the inputs {sorted(inputs)}; a Piper voice has input, input_lengths, scales"
        )
    return PiperVoice(session=session, config=config)
