"""A recogniser process seen from the event loop: start it, talk to it, notice when it dies, end it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable

from voice_pipelines.asr.wire import Kind, Message, MessageReader
from voice_pipelines.asr.worker import WorkerRequest
from voiceagent.errors import BackendError

_READ_BYTES = 1 << 16
_END_WAIT_S = 5.0
"""How long a process may take to notice that its input has ended: one decoder call holds it for up to 0.7 s."""


def environment() -> dict[str, str]:
    """The environment of a helper process that imports from where this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


class RecogniserProcess:
    """One worker process. Made by `start`; `on_message` and `on_death` are called on the event loop, `on_death` at most once."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        on_message: Callable[[Message], None],
        on_death: Callable[[RecogniserProcess], None],
    ) -> None:
        self._process = process
        self._on_message = on_message
        self._on_death = on_death
        self._is_ending = False
        self.is_alive = True
        self.cpu_s = 0.0
        """Processor time that it has told of."""
        self.utterances: set[int] = set()
        """Utterances this process works on; kept by the owner."""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    @staticmethod
    async def start(
        request: WorkerRequest,
        on_message: Callable[[Message], None],
        on_death: Callable[[RecogniserProcess], None],
    ) -> RecogniserProcess:
        """Start a process and wait until its decoders are loaded.

        Raises:
            BackendError: If it ends before that; its own standard error says why.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "voice_pipelines.asr.worker",
            request.to_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        recogniser = RecogniserProcess(process, on_message, on_death)
        try:
            await recogniser._ready
        except BaseException:
            await recogniser.aclose()
            raise
        return recogniser

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queue a message; dropped when the process is gone, whose utterances have then failed already."""
        if self.is_alive and not self._is_ending:
            assert self._process.stdin is not None
            self._process.stdin.write(message.encode())

    async def aclose(self) -> None:
        """End the process: its input ends, and if that does not help it is killed."""
        self._is_ending = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_WAIT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        reader = MessageReader()
        try:
            while data := await self._process.stdout.read(_READ_BYTES):
                for message in reader.feed(data):
                    if message.kind is Kind.READY:
                        self._ready.set_result(None)
                    elif message.kind is Kind.WORKED:
                        self.cpu_s = float(json.loads(message.payload)["cpu_s"])
                    else:
                        self._on_message(message)
        except ValueError:
            # Not messages: the process can no longer be understood.
            self._process.kill()
        code = await self._process.wait()
        self.is_alive = False
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._ready.done():
            self._ready.set_exception(
                BackendError("asr", f"a recogniser process ended with status {code} before it was ready")
            )
        elif not self._is_ending:
            self._on_death(self)
