"""Silero VAD through onnxruntime: one worker thread looks at the windows of all callers in one call.

The ONNX file ships inside the `silero-vad` package and is found without importing it, since that would import torch.
"""

from __future__ import annotations

import asyncio
import importlib.util
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Samples
from voiceagent.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

_WINDOW_SAMPLES = 512
_CONTEXT_SAMPLES = 64
"""The end of the window before, which the model sees in front of each window at 16 kHz."""
_STATE_SIZE = 128
_MAX_BATCH = 64
"""64 windows take 4 ms on one core of a server CPU, 0.06 ms each; a window alone takes 0.2 ms."""

GATHER_LIMIT_S = 0.008
"""The longest that a window waits for those of other callers, beside the batch that is being looked at."""
_GATHER_WINDOWS = 16
"""Windows that make a batch cheap: 16 cost a third of what they cost one by one, and 64 hardly less."""
_GATHER_FROM = 8
"""Callers from which on windows wait for each other: two a batch. Fewer would wait in vain."""
CATCHING_UP_S = 0.008
"""A caller whose next window is there so soon has more of them: it came with the one before, in one message."""
CATCH_UP_LIMIT_S = 0.001
"""The longest that such a window waits, for those of others who are catching up: of a message of 0.2 s each would wait for itself."""
COUNTED_S = 0.3
"""Whose last window is older than this does not count as a caller: clients send at least every 0.2 s, and whoever hangs up says nothing."""


def find_model() -> Path:
    """The ONNX file in the installed `silero-vad` package.

    Raises:
        BackendError: If the package or the file in it is missing.
    """
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("vad", "the package silero-vad is not installed; run: pip install silero-vad")
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
    if not path.is_file():
        raise BackendError("vad", f"the installed silero-vad has no {path.name}; expected it in {path.parent}")
    return path


@dataclass(slots=True, eq=False)
class _Memory:
    """What the model remembers of one caller. Written by the worker only."""

    state: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, _STATE_SIZE), np.float32))
    context: NDArray[np.float32] = field(default_factory=lambda: np.zeros(_CONTEXT_SAMPLES, np.float32))


@dataclass(slots=True, eq=False)
class _Request:
    memory: _Memory
    window: Samples
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[float]


class Callers:
    """How many callers send audio now, told from their windows: who has hung up, or sends nothing, is none. Pure."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, float] = OrderedDict()

    def sent(self, callers: Iterable[Hashable], now: float) -> None:
        """A window of each of them was looked at, at the clock's reading `now` in seconds."""
        for caller in callers:
            self._seen[caller] = now
            self._seen.move_to_end(caller)

    def is_catching_up(self, caller: Hashable, now: float) -> bool:
        """Whether this caller's next window is there sooner than anybody speaks it."""
        seen = self._seen.get(caller)
        return seen is not None and now - seen < CATCHING_UP_S

    def count(self, now: float) -> int:
        """Those of the last `COUNTED_S`."""
        while self._seen and next(iter(self._seen.values())) < now - COUNTED_S:
            self._seen.popitem(last=False)
        return len(self._seen)


def gather_s(callers: int) -> float:
    """How long the first window of a batch waits for others: until there are about 16, but no longer than `GATHER_LIMIT_S`.

    Each caller brings a window every 32 ms, at a moment of its own. Without waiting nearly every window is looked at alone.
    """
    if callers < _GATHER_FROM:
        return 0.0
    return min(GATHER_LIMIT_S, _GATHER_WINDOWS * _WINDOW_SAMPLES / INPUT_RATE_HZ / callers)


class SileroDetector:
    """A `VoiceDetector`. What a caller gets does not depend on who else is in the batch.

    With `_GATHER_FROM` callers and more, windows wait for each other, at most `GATHER_LIMIT_S`; those behind the first of a long message hardly.

    Raises:
        BackendError: If the model cannot be found or loaded.
    """

    window_samples = _WINDOW_SAMPLES

    def __init__(self, model: Path | None = None) -> None:
        self.info = BackendInfo("vad", "silero", "Silero VAD (ONNX) inside the installed package silero-vad")
        self._session = _load(model or find_model())
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._callers = Callers()
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="silero-vad", daemon=True)
        self._worker.start()

    def open(self) -> SileroStream:
        return SileroStream(self)

    async def aclose(self) -> None:
        """Stop the worker. Windows that wait are answered with a `BackendError`."""
        if not self._is_closed:
            self._is_closed = True
            self._requests.put(None)
        await asyncio.to_thread(self._worker.join)

    def probability(self, memory: _Memory, window: Samples, loop: asyncio.AbstractEventLoop) -> asyncio.Future[float]:
        """One window of the caller whose memory this is, whom `loop` runs; see `VoiceDetectorStream.probability`."""
        if window.shape != (_WINDOW_SAMPLES,):
            raise ValueError(f"a window of shape {window.shape}: expected ({_WINDOW_SAMPLES},)")
        if self._is_closed:
            raise BackendError("vad", "the detector is closed")
        request = _Request(memory, window.astype(np.float32), loop, loop.create_future())
        self._requests.put(request)
        return request.answer

    def _work(self) -> None:
        waiting: list[_Request] = []
        while True:
            is_last = self._collect(waiting)
            if is_last:
                _deliver(waiting, BackendError("vad", "the detector was closed"))
                return
            batch, waiting = _choose(waiting)
            self._callers.sent((request.memory for request in batch), time.monotonic())
            try:
                probabilities = self._infer(batch)
            except Exception as error:  # onnxruntime has no common base class for its errors
                _deliver(batch, BackendError("vad", f"onnxruntime failed: {error}"))
            else:
                _deliver(batch, probabilities)

    def _collect(self, waiting: list[_Request]) -> bool:
        """Move everything that is queued into `waiting`, and wait for some only when that is empty; True when it is time to stop."""
        if not waiting:
            request = self._requests.get()
            if request is None:
                return True
            waiting.append(request)
            if (wait_s := self._gather_s(request, time.monotonic())) > 0:
                time.sleep(wait_s)
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return False
            if request is None:
                return True
            waiting.append(request)

    def _gather_s(self, first: _Request, now: float) -> float:
        wait_s = gather_s(self._callers.count(now))
        return min(wait_s, CATCH_UP_LIMIT_S) if self._callers.is_catching_up(first.memory, now) else wait_s

    def _infer(self, batch: list[_Request]) -> list[float]:
        """Probabilities in the order of `batch`; advances the memories."""
        samples = np.stack([np.concatenate([r.memory.context, r.window]) for r in batch])  # [B, 576]
        state = np.stack([r.memory.state for r in batch], axis=1)  # [2, B, 128]
        rate = np.array(INPUT_RATE_HZ, dtype=np.int64)
        output, new_state = self._session.run(None, {"input": samples, "state": state, "sr": rate})
        for row, request in enumerate(batch):
            request.memory.state = new_state[:, row].copy()
            request.memory.context = request.window[-_CONTEXT_SAMPLES:]
        return [float(p) for p in output[:, 0]]


class SileroStream:
    """One caller's windows, in order, all on the event loop of the first."""

    def __init__(self, detector: SileroDetector) -> None:
        self._detector = detector
        self._memory = _Memory()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def probability(self, window: Samples) -> float:
        """Probability in [0, 1] that `window` ([512], 16 kHz) holds speech.

        Raises:
            BackendError: If the model failed or the detector is closed.
            ValueError: If the window has another length.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return await self._detector.probability(self._memory, window, self._loop)

    def reset(self) -> None:
        """Forget the recurrent state. A window still being looked at keeps the old one and changes nothing here."""
        self._memory = _Memory()


def _load(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise BackendError("vad", f"cannot load {path}: {error}") from error


def _choose(waiting: list[_Request]) -> tuple[list[_Request], list[_Request]]:
    """The next batch and what has to wait: the oldest first, one window per caller, since a caller's windows build on each other."""
    batch: list[_Request] = []
    later: list[_Request] = []
    chosen: set[int] = set()
    for request in waiting:
        if len(batch) == _MAX_BATCH or id(request.memory) in chosen:
            later.append(request)
        else:
            chosen.add(id(request.memory))
            batch.append(request)
    return batch, later


def _deliver(batch: list[_Request], result: list[float] | BackendError) -> None:
    """Answer each request on its own event loop, one wake-up per loop."""
    answers: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[float], float | BackendError]]] = {}
    for row, request in enumerate(batch):
        answer = result if isinstance(result, BackendError) else result[row]
        answers.setdefault(request.loop, []).append((request.answer, answer))
    for loop, pairs in answers.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[asyncio.Future[float], float | BackendError]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, BackendError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
