"""A recogniser process: decodes several utterances by turns. `python -m voice_pipelines.asr.worker` with a request as JSON argument.

The decoder holds Python's lock while it works, so it must not share a process with the runtime. The process reads messages
(`asr/wire.py`) from its standard input and answers on its standard output; it ends when its input ends, which also happens when
the runtime is killed.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import assert_never

from voice_pipelines.asr.cepstrum import MeanOptions
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, DecoderOptions, Hypothesis, SphinxDecoder, level_dbfs
from voice_pipelines.asr.junk import JunkOptions
from voice_pipelines.asr.model import ModelFiles
from voice_pipelines.asr.wire import Kind, Message, MessageReader
from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.transcript import LocalAgreement

_BLOCK_BYTES = 2 * BLOCK_SAMPLES
_READ_BYTES = 1 << 16
PAUSE_S, PAUSE_DB = 0.1, 15.0
"""A caller pauses whose audio has been so much quieter than their loudest for so long: `MeanOptions` takes two blocks for it."""
SHOW_BLOCKS = 10
"""A second of speech: so often at least what was heard is told while a worker is behind."""
TELL_EVERY_S = 0.1
"""Processor time between two messages about it."""


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """What a worker is started with. `decoders` are loaded before it says READY; more are added on demand up to `max_decoders`."""

    files: ModelFiles
    options: DecoderOptions
    decoders: int
    max_decoders: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> WorkerRequest:
        table = json.loads(text)
        files = ModelFiles(Path(table["files"]["language_model"]), Path(table["files"]["dictionary"]))
        options = table["options"]
        mean = MeanOptions(**{**options["mean"], "prior": tuple(options["mean"]["prior"])})
        search = DecoderOptions(**{**options, "mean": mean, "junk": JunkOptions(**options["junk"])})
        return WorkerRequest(files, search, table["decoders"], table["max_decoders"])


@dataclass(slots=True)
class _Utterance:
    id: int
    audio: bytearray = field(default_factory=bytearray)
    """What has come while there was no decoder."""
    unshown_blocks: int = 0
    """Decoded since the last partial."""
    loudest_dbfs: float = -math.inf
    quiet_s: float = 0.0
    """How long its newest audio has been quiet."""
    is_finished: bool = False
    decoder: SphinxDecoder | None = None
    agreement: LocalAgreement = field(default_factory=lambda: LocalAgreement(agreeing=3, holdback=1))
    shown: tuple[str, ...] = ()

    @property
    def has_work(self) -> bool:
        if self.is_finished:
            return True
        return len(self.audio) >= _BLOCK_BYTES if self.decoder is None else self.decoder.has_work

    @property
    def waiting_bytes(self) -> int:
        return len(self.audio) + (0 if self.decoder is None else self.decoder.waiting_bytes)

    @property
    def is_pausing(self) -> bool:
        """Whether the newest audio is quiet: the caller has probably finished, and their words are wanted soon."""
        return self.quiet_s >= PAUSE_S

    def push(self, pcm: bytes) -> None:
        level = level_dbfs(pcm)
        self.loudest_dbfs = max(self.loudest_dbfs, level)
        is_quiet = level < self.loudest_dbfs - PAUSE_DB
        self.quiet_s = self.quiet_s + len(pcm) / 2 / INPUT_RATE_HZ if is_quiet else 0.0
        if self.decoder is None:
            self.audio += pcm
        else:
            self.decoder.push(pcm)


class Worker:
    """Decides what to decode next and does it, a block at a time, so that no caller waits for another's whole backlog.

    The 1.2 s that every utterance begins with, in which its mean is taken, are such a backlog too.
    """

    def __init__(self, request: WorkerRequest, out: int) -> None:
        self._request = request
        self._out = out
        self._idle = [SphinxDecoder(request.files, request.options) for _ in range(request.decoders)]
        self._loaded = request.decoders
        self._utterances: dict[int, _Utterance] = {}
        self._told_s = 0.0
        self._began_s = time.process_time()
        self._turns: deque[int] = deque()
        """Utterances in the order of their last turn, longest ago first."""
        self._send(Kind.READY, 0, {"decoders": self._loaded})

    def take(self, message: Message) -> None:
        """Act on one message; those for utterances that are over are ignored."""
        utterance = self._utterances.get(message.utterance)
        match message.kind:
            case Kind.OPEN:
                self._utterances[message.utterance] = _Utterance(message.utterance)
                self._turns.append(message.utterance)
            case Kind.AUDIO:
                if utterance is not None:
                    utterance.push(message.payload)
            case Kind.FINISH:
                if utterance is not None:
                    utterance.is_finished = True
            case Kind.CANCEL:
                if utterance is not None:
                    self._close(utterance)
            case Kind.READY | Kind.PARTIAL | Kind.FINAL | Kind.FAILED | Kind.WORKED:
                raise ValueError(f"{message.kind.name} is said by workers, not to them")
            case _:
                assert_never(message.kind)

    def work(self) -> bool:
        """Decode one block of the utterance whose turn it is. False when there is nothing to do."""
        utterance = self._next()
        if utterance is None:
            return False
        self._turns.remove(utterance.id)
        self._turns.append(utterance.id)
        assert utterance.decoder is not None
        try:
            if utterance.decoder.step():
                utterance.unshown_blocks += 1
                # Catching up: text that is about to be overtaken is not worth a message, but who never catches up is heard, too.
                if not utterance.has_work or (utterance.unshown_blocks >= SHOW_BLOCKS and not utterance.is_finished):
                    utterance.unshown_blocks = 0
                    self._show(utterance, utterance.decoder.hypothesis())
            elif utterance.is_finished:
                heard = utterance.decoder.finish()
                self._send(
                    Kind.FINAL,
                    utterance.id,
                    {"words": [asdict(word) for word in heard.words], "confidence": heard.confidence},
                )
                self._close(utterance)
        except RuntimeError as error:
            self._send(Kind.FAILED, utterance.id, {"reason": str(error)})
            self._close(utterance)
        self._tell_work()
        return True

    def _next(self) -> _Utterance | None:
        """The utterance with work and a decoder whose turn it is, the earliest needed first.

        First come callers who have finished, the least left to do first; then those who pause, for their words will be wanted next; then those who
        speak. Among equals it goes round.
        """
        waiting = [utterance for id in self._turns if (utterance := self._utterances[id]).has_work]
        waiting.sort(
            key=lambda utterance: (
                not utterance.is_finished,
                utterance.waiting_bytes if utterance.is_finished else 0,
                not utterance.is_pausing,
            )
        )
        return next((utterance for utterance in waiting if self._equip(utterance)), None)

    def _equip(self, utterance: _Utterance) -> bool:
        """Give the utterance a decoder, loading one if there may be more."""
        if utterance.decoder is None:
            if not self._idle and self._loaded < self._request.max_decoders:
                self._idle.append(SphinxDecoder(self._request.files, self._request.options))
                self._loaded += 1
            if not self._idle:
                return False
            utterance.decoder = self._idle.pop()
            utterance.decoder.start()
            utterance.decoder.push(bytes(utterance.audio))
            utterance.audio.clear()
        return True

    def _show(self, utterance: _Utterance, hypothesis: Hypothesis) -> None:
        words = tuple(word.text for word in hypothesis.words)
        before = utterance.agreement
        utterance.agreement = before.hear(words)
        if (words, before.stable) != (utterance.shown, utterance.agreement.stable):
            utterance.shown = words
            partial = utterance.agreement.partial
            body: dict[str, object] = {
                "stable": partial.stable,
                "unstable": partial.unstable,
                "confidence": hypothesis.confidence,
            }
            self._send(Kind.PARTIAL, utterance.id, body)

    def _tell_work(self) -> None:
        worked_s = time.process_time() - self._began_s
        if worked_s - self._told_s >= TELL_EVERY_S:
            self._told_s = worked_s
            self._send(Kind.WORKED, 0, {"cpu_s": round(worked_s, 3)})

    def _close(self, utterance: _Utterance) -> None:
        del self._utterances[utterance.id]
        self._turns.remove(utterance.id)
        if utterance.decoder is not None:
            utterance.decoder.drop()
            self._idle.append(utterance.decoder)

    def _send(self, kind: Kind, utterance: int, body: dict[str, object]) -> None:
        data = Message(kind, utterance, json.dumps(body).encode()).encode()
        while data:
            data = data[os.write(self._out, data) :]


def serve(source: int, out: int, request: WorkerRequest) -> None:
    """Work until `source` ends.

    Raises:
        BrokenPipeError: If nobody reads `out` any more.
    """
    worker = Worker(request, out)
    reader = MessageReader()
    is_busy = True
    while True:
        if select.select([source], [], [], 0 if is_busy else None)[0]:
            data = os.read(source, _READ_BYTES)
            if not data:
                return
            for message in reader.feed(data):
                worker.take(message)
        is_busy = worker.work()


def main() -> None:
    # Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the service; the runtime decides when a caller
    # has been served, and a worker whose runtime is gone finds its input at an end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever a library prints must not end up between the messages.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        serve(0, out, WorkerRequest.from_json(sys.argv[1]))
    except BrokenPipeError:
        return


if __name__ == "__main__":
    main()
