"""Replies to many prompts, each in many ways, and what each cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dllm.canvas import TokenTable
from dllm.draft import Draft
from dllm.drafts import Committed, DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.evaluate.prompts import Prompt
from dllm.models.family import Network
from dllm.options import DecodeOptions
from dllm.rounds import run_out

CHUNK = 16
"""Prompts that are in the cache at once."""
_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Way:
    """How a reply is written."""

    name: str
    plan: Plan
    options: DecodeOptions
    width: int
    is_pinned: bool = False
    """Whether the facts that the reference states are pinned."""


@dataclass(frozen=True, slots=True)
class Written:
    """One reply. Times are seconds, the prompt being in the cache."""

    tokens: tuple[int, ...]
    forwards: int
    """Denoising and committing ones."""
    steps_first: int
    steps_rest: int
    is_finished: bool
    """The model ended it before the canvas did, and no guard had to."""
    seconds: float = 0.0
    seconds_first: float = 0.0
    """Until the first tokens were certain."""


class Writer:
    """Writes replies with one network.

    Args:
        batch: Replies written together; 1 where times are taken.
        clock: Seconds.
    """

    def __init__(
        self, network: Network, table: TokenTable, batch: int = CHUNK, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._network, self._table, self._batch, self._clock = network, table, batch, clock

    def write(self, prompts: Sequence[Prompt], ways: Sequence[Way]) -> list[list[Written]]:
        """[ways][prompts] replies to at most `CHUNK` prompts, way by way.

        Raises:
            DllmError: What a draft failed with.
        """
        engine = Engine(self._network, self._table, max_batch=self._batch, cache_bytes=_CACHE_BYTES, clock=self._clock)
        for number, prompt in enumerate(prompts):
            engine.warm(str(number), prompt.tokens)
        written: list[list[Written]] = [[] for _ in ways]
        if self._batch > 1:
            return [self._run(engine, prompts, range(len(prompts)), way) for way in ways]
        # One after the other, ways in turns: load on the machine meets all of them alike.
        for number, prompt in enumerate(prompts):
            for index, way in enumerate(ways):
                written[index] += self._run(engine, [prompt], [number], way)
        return written

    def _run(self, engine: Engine, prompts: Sequence[Prompt], numbers: Sequence[int], way: Way) -> list[Written]:
        began = self._clock()
        drafts = [
            engine.submit(
                DraftSpec(
                    prompt.tokens, str(number), way.width, way.plan, prompt.pins if way.is_pinned else (), way.options
                )
            )
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        first: dict[Draft, float] = {}
        done: dict[Draft, Written] = {}
        for event in run_out(engine):
            match event:
                case Committed(draft=draft):
                    first.setdefault(draft, self._clock() - began)
                case Finished(draft=draft, usage=usage):
                    seconds = self._clock() - began
                    done[draft] = Written(
                        event.tokens,
                        usage.forwards_denoise + usage.forwards_commit,
                        event.steps_first,
                        event.steps_rest,
                        event.reason == "end_of_turn" and usage.guards == 0,
                        seconds,
                        first.get(draft, seconds),
                    )
                case _:
                    pass
        return [done[draft] for draft in drafts]
