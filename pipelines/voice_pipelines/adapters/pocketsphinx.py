"""Speech recognition with PocketSphinx: decoders in worker processes, a language model from the agent's vocabulary.

Each process hosts several decoders and serves its callers by turns. A process that dies takes only its own utterances with it and is
replaced. Audio goes out and text comes back over pipes; nothing here waits for a decoder except `finish`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from voice_pipelines import folders
from voice_pipelines.asr.decoder import DecoderOptions
from voice_pipelines.asr.model import LanguageOptions, ModelFiles, cached_files
from voice_pipelines.asr.process import RecogniserProcess, environment
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.asr.wire import Kind, Message
from voice_pipelines.asr.worker import WorkerRequest
from voice_pipelines.processors import available_cores
from voiceagent.backends import BackendInfo, Partial, Samples, Transcript, Word
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.errors import BackendError, OverloadedError
from voiceagent.foresight import Need

_log = logging.getLogger(__name__)

_PCM_SCALE = 32_767.0
MOST_WORKERS = 8
NEED = Need(mean=0.035, variance=0.005)
"""A tenth of a core while the caller speaks: a guess, until there are callers to learn from."""


@dataclass(frozen=True, slots=True)
class PocketSphinxOptions:
    """How many processes and decoders there are, and how they decode.

    `workers` of 0 means one per core the process may use, at most `MOST_WORKERS`. Each loads `decoders` at start and more on demand, up to
    `max_decoders`; a decoder takes 0.04 s to load and 12 MB. A caller beyond all of them waits with queued audio; beyond
    `max_waiting` per worker `open` refuses.
    """

    workers: int = 0
    decoders: int = 2
    max_decoders: int = 16
    max_waiting: int = 48
    language: LanguageOptions = field(default_factory=LanguageOptions)
    search: DecoderOptions = field(default_factory=DecoderOptions)

    def __post_init__(self) -> None:
        if self.workers < 0 or not 1 <= self.decoders <= self.max_decoders <= self.max_waiting:
            raise ValueError(f"{self}: expected workers >= 0 and 1 <= decoders <= max_decoders <= max_waiting")


class PocketSphinxTranscriber:
    """A `Transcriber` on worker processes. Made by `create`, which loads everything; `open` finds a decoder ready."""

    words_after_s = 0.0
    need = NEED

    def __init__(
        self, request: WorkerRequest, max_waiting: int, info: BackendInfo, clock: Clock, *, has_vocabulary: bool
    ) -> None:
        self.info = info
        self.clock = clock
        self.tells_confidence = has_vocabulary
        """With everyday language alone the number tells nothing (docs/asr.md)."""
        self._request = request
        self._max_waiting = max_waiting
        self._workers: list[RecogniserProcess] = []
        self._dead_cpu_s = 0.0
        self._utterances: dict[int, PocketSphinxUtterance] = {}
        self._ids = itertools.count(1)
        self._replacements: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @staticmethod
    async def create(
        vocabulary: Vocabulary | None,
        options: PocketSphinxOptions | None = None,
        *,
        cache: Path | None = None,
        clock: Clock | None = None,
        upgrade: str | None = None,
    ) -> PocketSphinxTranscriber:
        """Build or find the language model, start the workers in parallel, and wait until all are ready.

        Args:
            vocabulary: What the agent's callers say; None decodes with everyday language alone.
            cache: Folder for built language models; None is the user's cache folder.
            upgrade: The command that fetches something better.

        Raises:
            BackendError: If the model cannot be built or a worker cannot load it.
        """
        options = options or PocketSphinxOptions()
        files = await _model_files(vocabulary, options.language, cache or default_cache())
        request = WorkerRequest(files, options.search, options.decoders, options.max_decoders)
        words = (
            f"built from {len(vocabulary.phrases)} phrases of the agent"
            if vocabulary
            else "with everyday language only"
        )
        info = BackendInfo("asr", "pocketsphinx", f"fallback, {words}; no Whisper model on disk", upgrade)
        transcriber = PocketSphinxTranscriber(
            request, options.max_waiting, info, clock or MonotonicClock(), has_vocabulary=vocabulary is not None
        )
        try:
            async with asyncio.TaskGroup() as starting:
                for _ in range(options.workers or min(available_cores(), MOST_WORKERS)):
                    starting.create_task(transcriber._add_worker())
        except BaseExceptionGroup as group:
            await transcriber.aclose()
            raise group.exceptions[0] from None
        except BaseException:
            await transcriber.aclose()
            raise
        return transcriber

    async def open(self, on_partial: Callable[[Partial], None]) -> PocketSphinxUtterance:
        """Start one utterance with the least busy worker; waits only when the last worker died and its replacement is still loading.

        Raises:
            BackendError: If the recogniser is closed or no worker is alive.
            OverloadedError: If even the least busy worker has `max_waiting` utterances.
        """
        if self._is_closed:
            raise BackendError("asr", "the recogniser is closed")
        while not self._workers and self._replacements:
            await asyncio.wait(self._replacements)
        if not self._workers:
            raise BackendError("asr", "no recogniser process is alive")
        worker = min(self._workers, key=lambda worker: len(worker.utterances))
        if len(worker.utterances) >= self._max_waiting:
            raise OverloadedError(len(self._utterances), self._max_waiting * len(self._workers))
        utterance = PocketSphinxUtterance(self, worker, next(self._ids), on_partial)
        self._utterances[utterance.id] = utterance
        worker.utterances.add(utterance.id)
        worker.send(Message(Kind.OPEN, utterance.id))
        return utterance

    async def aclose(self) -> None:
        """End all workers; utterances that still wait for a result fail."""
        self._is_closed = True
        for utterance in list(self._utterances.values()):
            utterance.fail(BackendError("asr", "the recogniser was closed"))
        for task in self._replacements:
            task.cancel()
        await asyncio.gather(*self._replacements, return_exceptions=True)
        workers, self._workers = self._workers, []
        await asyncio.gather(*(worker.aclose() for worker in workers))

    def forget(self, utterance: PocketSphinxUtterance) -> None:
        """An utterance is over."""
        self._utterances.pop(utterance.id, None)
        utterance.worker.utterances.discard(utterance.id)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the live workers."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def cpu_s(self) -> float:
        """Processor time of all workers so far, those that died included, as they have told."""
        return self._dead_cpu_s + sum(worker.cpu_s for worker in self._workers)

    async def _add_worker(self) -> None:
        self._workers.append(await RecogniserProcess.start(self._request, self._take, self._replace))

    def _take(self, message: Message) -> None:
        utterance = self._utterances.get(message.utterance)
        if utterance is not None:
            utterance.take(message)

    def _replace(self, dead: RecogniserProcess) -> None:
        """A worker died: its utterances fail, another takes its place."""
        _log.error("recogniser process %d died with %d utterances; starting another", dead.pid, len(dead.utterances))
        self._workers.remove(dead)
        self._dead_cpu_s += dead.cpu_s
        for id in list(dead.utterances):
            self._utterances[id].fail(BackendError("asr", f"recogniser process {dead.pid} died"))
        if not self._is_closed:
            replacement = asyncio.create_task(self._restart())
            self._replacements.add(replacement)
            replacement.add_done_callback(self._replacements.discard)

    async def _restart(self) -> None:
        try:
            await self._add_worker()
        except BackendError:
            # Started once and no longer starts: trying again would only spin. The other workers carry on.
            _log.exception("the recogniser process could not be replaced; %d are left", len(self._workers))


class PocketSphinxUtterance:
    """One utterance; made by `PocketSphinxTranscriber.open`."""

    def __init__(
        self, owner: PocketSphinxTranscriber, worker: RecogniserProcess, id: int, on_partial: Callable[[Partial], None]
    ) -> None:
        self.id = id
        self.worker = worker
        self._owner = owner
        self._on_partial = on_partial
        self._result: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()
        self._finished_at: float | None = None

    def feed(self, samples: Samples) -> None:
        if self._finished_at is not None:
            raise ValueError("audio after the end of the utterance")
        if samples.size and not self._result.done():
            pcm = np.rint(np.clip(samples, -1.0, 1.0) * _PCM_SCALE).astype("<i2")
            self.worker.send(Message(Kind.AUDIO, self.id, pcm.tobytes()))

    async def finish(self) -> Transcript:
        """The hypothesis of the first pass once the last audio is decoded; empty after `cancel`.

        Raises:
            BackendError: If the worker died or PocketSphinx failed.
        """
        self._finished_at = self._owner.clock.now()
        if not self._result.done():
            self.worker.send(Message(Kind.FINISH, self.id))
        try:
            return await asyncio.shield(self._result)
        finally:
            self.cancel()

    def cancel(self) -> None:
        if not self._result.done():
            self._result.set_result(Transcript(""))
            self.worker.send(Message(Kind.CANCEL, self.id))
        self._owner.forget(self)

    def take(self, message: Message) -> None:
        """Act on what the worker says about this utterance."""
        if self._result.done():
            return
        body = json.loads(message.payload)
        confidence: float | None = body.get("confidence") if self._owner.tells_confidence else None
        match message.kind:
            case Kind.PARTIAL:
                self._on_partial(Partial(body["stable"], body["unstable"], confidence))
            case Kind.FINAL:
                words = tuple(Word(**word) for word in body["words"])
                now = self._owner.clock.now()
                compute_s = 0.0 if self._finished_at is None else now - self._finished_at
                text = " ".join(word.text for word in words)
                self._result.set_result(Transcript(text, words, confidence, compute_s))
                self._owner.forget(self)
            case Kind.FAILED:
                self.fail(BackendError("asr", body["reason"]))
            case _:
                self.fail(BackendError("asr", f"the recogniser said {message.kind.name} about an utterance"))

    def fail(self, error: BackendError) -> None:
        """The utterance cannot be completed: whoever waits in `finish`, now or later, gets the error."""
        if not self._result.done():
            self._result.set_exception(error)
            # Nobody may ever ask: that is no reason for a warning.
            self._result.exception()
        self._owner.forget(self)


def default_cache() -> Path:
    """The user's folder for things that can be built again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else folders.home() / ".cache") / "voiceagent"


async def _model_files(vocabulary: Vocabulary | None, options: LanguageOptions, cache: Path) -> ModelFiles:
    """The model's files, built in a process of their own when they are not in the cache.

    Raises:
        BackendError: With the last line the builder wrote, if it failed.
    """
    files, is_there = cached_files(cache, vocabulary, options)
    if is_there:
        return files
    if not folders.can_be_filled(cache):
        try:
            cache, refused = folders.of_this_process(), cache
        except OSError as error:
            raise BackendError("asr", f"neither {cache} nor temporary files can be written: {error}") from error
        _log.info("%s cannot be written: the recogniser's language model is built for this process alone", refused)
        files, is_there = cached_files(cache, vocabulary, options)
        if is_there:
            return files
    table = None if vocabulary is None else {"phrases": vocabulary.phrases, "slots": dict(vocabulary.slots)}
    request = json.dumps({"vocabulary": table, "options": asdict(options)}).encode()
    builder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "voice_pipelines.asr.model",
        str(cache),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        _, errors = await builder.communicate(request)
    except BaseException:
        builder.kill()
        await builder.wait()
        raise
    if builder.returncode != 0:
        reason = (errors.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise BackendError("asr", f"the language model could not be built: {reason}")
    return files
