"""Smart Turn through onnxruntime: whether a turn is over by how it sounds, beside whoever judges the words, or alone as a `TurnScorer`.

The ONNX file is fetched or the user's own (`models.endpoint`). Format of Smart Turn v3 (pipecat-ai/smart-turn, BSD-2-Clause): input `input_features`
[1, 80, 800] float32, Whisper's log-mel spectrogram of the last 8 s of 16 kHz audio, silence in front of what is shorter, scaled to zero mean and unit variance;
one output of one value, the probability. Sizes and names are read from the file and checked.

It is asked with each question about the words, about the voice up to that moment: more silence behind the voice does not help it (docs/endpointing.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voice_pipelines.turn_end.odds import Heard, log_odds
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Samples, TurnJudgement, TurnSoFar
from voiceagent.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger(__name__)

WINDOW_S = 8
MELS, FRAMES = 80, 100 * WINDOW_S
BESIDE_SENSE = (0.5, -0.8)
"""What its log-odds are multiplied by and moved by beside words that make sense. It finds pauses that were put between callers' words 57 % complete and true ends 97 %
on average, and is far too sure of both (docs/endpointing.md has what else was tried)."""
BESIDE_STRANGE = (0.3, -0.5)
"""The same beside words that were probably misheard. Of readers it tells ends from pauses of their own less well (area 0.75; callers 0.85)."""
MOST_ODDS = 3.0
_VARIANCE_FLOOR = 1e-7


class SmartTurn:
    """Listens on a thread of its own. Whoever was given it closes it.

    Raises:
        BackendError: If the file cannot be loaded or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.info = BackendInfo("endpoint", f"Smart Turn {path.stem}", "hears the voice")
        self._session = _load(path)
        self._features = _feature_extractor()
        self._thread = ThreadPoolExecutor(1, "smart-turn")
        self.probability(np.zeros(INPUT_RATE_HZ, np.float32))

    async def hear(self, voice: Samples) -> Heard | None:
        """What the voice is worth beside words; None where there is none, or nothing can be said of it.

        Args:
            voice: 16 kHz, up to now; the last 8 s of it are heard.
        """
        if not voice.size:
            return None
        try:
            return worth(await asyncio.get_running_loop().run_in_executor(self._thread, self.probability, voice))
        except BackendError as error:
            _log.warning("a voice was not heard: %s", error)
            return None

    def probability(self, voice: Samples) -> float:
        """Its own answer, in [0, 1].

        Raises:
            BackendError: If onnxruntime fails.
        """
        try:
            (output,) = self._session.run(None, {"input_features": log_mel(voice, self._features)[None]})
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise BackendError("endpoint", f"onnxruntime failed: {error}") from error
        return float(np.asarray(output).reshape(-1)[0])

    async def aclose(self) -> None:
        """Wait for the question under way, if any."""
        await asyncio.to_thread(self._thread.shutdown)


class SmartTurnScorer:
    """A `TurnScorer` where nobody knows the language of the words."""

    weighs_sound = False
    hears_voice = True

    def __init__(self, ear: SmartTurn) -> None:
        self.info = ear.info
        self._ear = ear

    async def judge(self, turn: TurnSoFar) -> TurnJudgement | None:
        heard = await self._ear.hear(turn.audio)
        return None if heard is None else TurnJudgement(heard.beside_sense)

    async def aclose(self) -> None:
        await self._ear.aclose()


def worth(probability: float) -> Heard:
    """What its own answer is worth beside words."""

    def of(times: float, plus: float) -> float:
        odds = min(max(times * log_odds(probability) + plus, -MOST_ODDS), MOST_ODDS)
        return 1 / (1 + math.exp(-odds))

    return Heard(of(*BESIDE_SENSE), of(*BESIDE_STRANGE))


def log_mel(audio: Samples, features: Any) -> NDArray[np.float32]:
    """What the model sees of a turn's audio: [80, 800]."""
    size = WINDOW_S * INPUT_RATE_HZ
    window = np.concatenate([np.zeros(max(size - audio.size, 0), np.float32), audio[-size:]])
    level = (window - window.mean()) / np.sqrt(window.var() + _VARIANCE_FLOOR)
    return np.asarray(features(level.astype(np.float32), padding=0), np.float32)


def _feature_extractor() -> Any:
    from faster_whisper.feature_extractor import FeatureExtractor

    return FeatureExtractor(feature_size=MELS, sampling_rate=INPUT_RATE_HZ, chunk_length=WINDOW_S)


def _load(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise BackendError("endpoint", f"cannot load {path}: {error}") from error
    inputs = [(each.name, each.type, list(each.shape)[1:]) for each in session.get_inputs()]
    if inputs != [("input_features", "tensor(float)", [MELS, FRAMES])] or len(session.get_outputs()) != 1:
        expected = f"expected Smart Turn v3: input_features [1, {MELS}, {FRAMES}] of floats, one output"
        raise BackendError("endpoint", f"{path}: inputs {inputs}, {len(session.get_outputs())} outputs; {expected}")
    return session
