"""Parts of the coming steps, made in between or by processes ahead of time. A step's parts do not depend on who makes them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import torch

from dllm.train.tasks import Part, Task

_AHEAD = 2
"""Steps that each worker is ahead."""

_task: Task | None = None
"""In a worker: the task it was started with."""


class Feed:
    """The parts of one process's steps, asked for in order."""

    def __init__(self, task: Task, rank: int = 0, ranks: int = 1, workers: int = 0) -> None:
        self._task, self._rank, self._ranks, self._workers = task, rank, ranks, workers
        self._pool: ProcessPoolExecutor | None = None
        self._coming: deque[tuple[int, Future[list[Part]]]] = deque()

    def parts(self, step: int) -> list[Part]:
        if not self._workers:
            return self._task.parts(step, self._rank, self._ranks)
        if self._pool is None:
            # The task is sent once. A forked process would inherit threads and CUDA.
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), _receive, (self._task,))
        if self._coming and self._coming[0][0] != step:
            self._coming.clear()
        begin = self._coming[-1][0] + 1 if self._coming else step
        for number in range(begin, step + 1 + self._workers * _AHEAD):
            self._coming.append((number, self._pool.submit(_make, number, self._rank, self._ranks)))
        return self._coming.popleft()[1].result()

    def close(self) -> None:
        """End the workers; what they were ahead is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._coming.clear()


def _receive(task: Task) -> None:
    global _task
    torch.set_num_threads(1)
    # Shared memory by name: one open file per tensor would soon be too many.
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    _task = task


def _make(step: int, rank: int, ranks: int) -> list[Part]:
    assert _task is not None
    return _task.parts(step, rank, ranks)
