"""Running one draft for a command, and telling what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dllm.drafts import DraftSpec, Event, Failed, Finished, Usage

if TYPE_CHECKING:
    from dllm.engine import Engine
    from dllm.loader import Checkpoint
    from dllm.reply import Delta, Reply

Watch = Callable[[Event, "Sequence[Delta]"], None]


@dataclass(frozen=True, slots=True)
class Written:
    text: str
    reason: str
    """stop: the model ended, or a stop text was found. length: the canvas was too narrow."""
    usage: Usage
    seconds: float
    tokens: tuple[int, ...] = ()
    """Of the finished draft; empty when a stop text ended it."""

    def body(self) -> dict[str, Any]:
        """As JSON. `visible_tokens` counts what is in the text; forwards are those of this draft."""
        return {
            "text": self.text,
            "finish_reason": self.reason,
            "usage": asdict(self.usage) | {"tokens_per_forward": round(self.usage.tokens_per_forward, 3)},
            "seconds": round(self.seconds, 4),
        }

    def summary(self) -> str:
        usage = self.usage
        return (
            f"{usage.visible_tokens} tokens in {usage.forwards_denoise} steps ({usage.tokens_per_forward:.2f} per forward), "
            f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), {self.seconds:.2f} s"
        )


def reply_of(checkpoint: Checkpoint, width: int, stops: Sequence[str] = ()) -> Reply:
    """What puts a draft's events together to text."""
    from dllm.reply import Reply

    return Reply(checkpoint.codec, width, tuple(stops), drops_space=checkpoint.spec.dialogue is not None)


def write(engine: Engine, spec: DraftSpec, reply: Reply, watch: Watch | None = None) -> Written:
    """Run one draft to its end, or until a stop text is found.

    Raises:
        DllmError: If the engine refuses the draft or cannot go on with it.
    """
    start = time.perf_counter()
    draft = engine.submit(spec)
    tokens: tuple[int, ...] = ()
    try:
        while reply.reason is None and draft in engine.drafts:
            for event in engine.run_round():
                if isinstance(event, Failed):
                    raise event.error
                deltas = reply.feed(event)
                if isinstance(event, Finished):
                    tokens = event.tokens
                if watch is not None:
                    watch(event, deltas)
    finally:
        engine.cancel(draft)
    return Written(reply.text.strip(), reply.reason or "stop", reply.usage, time.perf_counter() - start, tokens)
