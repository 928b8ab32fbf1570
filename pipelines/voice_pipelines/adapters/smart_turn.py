"""Smart Turn through onnxruntime: the probability that a turn is complete, from how it sounds, as a `TurnScorer`.

The ONNX file is the user's own (`models.endpoint`). Format of Smart Turn v3 (pipecat-ai/smart-turn, BSD-2-Clause): input `input_features`
[1, 80, 800] float32, Whisper's log-mel spectrogram of the last 8 s of 16 kHz audio, silence in front of what is shorter, scaled to zero mean and unit variance;
one output of one value, the probability. Sizes and names are read from the file and checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voice_pipelines.turn_end.odds import together
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Samples, TurnScorer, TurnSoFar
from voiceagent.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

WINDOW_S = 8
MELS, FRAMES = 80, 100 * WINDOW_S
ASK_AGAIN_S = 0.1
"""It hears the silence after the words, which grows."""
_VARIANCE_FLOOR = 1e-7


class SmartTurnScorer:
    """A `TurnScorer` on a thread of its own.

    Raises:
        BackendError: If the file cannot be loaded or has another format.
    """

    ask_again_s: float | None = ASK_AGAIN_S
    weighs_sound = False

    def __init__(self, path: Path) -> None:
        self.info = BackendInfo("endpoint", f"Smart Turn {path.stem}", "chosen in the configuration")
        self._session = _load(path)
        self._features = _feature_extractor()
        self._thread = ThreadPoolExecutor(1, "smart-turn")

    async def completeness(self, turn: TurnSoFar) -> float:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, turn.audio)

    async def aclose(self) -> None:
        """Wait for the question under way, if any."""
        await asyncio.to_thread(self._thread.shutdown)

    def _ask(self, audio: Samples) -> float:
        try:
            (output,) = self._session.run(None, {"input_features": log_mel(audio, self._features)[None]})
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise BackendError("endpoint", f"onnxruntime failed: {error}") from error
        return float(np.asarray(output).reshape(-1)[0])


class JointScorer:
    """Several scorers at once: the mean of their log-odds. One that fails is left out; all of them must, for it to fail.

    The built-in judge of sound has no part in it: one of them listens."""

    weighs_sound = False

    def __init__(self, scorers: Sequence[TurnScorer]) -> None:
        self._scorers = tuple(scorers)
        self.ask_again_s = min((each.ask_again_s for each in scorers if each.ask_again_s is not None), default=None)
        name = " with ".join(scorer.info.name for scorer in scorers)
        self.info = BackendInfo("endpoint", name, "the mean of what they say")

    async def completeness(self, turn: TurnSoFar) -> float:
        asked = [scorer.completeness(turn) for scorer in self._scorers]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        known = [answer for answer in answers if isinstance(answer, float)]
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        unforeseen = [failure for failure in failures if not isinstance(failure, BackendError)]
        if unforeseen or not known:
            raise (unforeseen or failures)[0]
        return together(known)

    async def aclose(self) -> None:
        await asyncio.gather(*(scorer.aclose() for scorer in self._scorers))


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
