"""An engine's rounds until its drafts are done, for whoever has no other work meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from dllm.drafts import Event, Failed
from dllm.engine import Engine


def run_out(engine: Engine) -> Iterator[Event]:
    """What the drafts tell, in order, until none is left. Stopping early leaves the others where they are.

    Raises:
        Exception: What a draft failed with.
    """
    while engine.drafts:
        for event in engine.run_round():
            if isinstance(event, Failed):
                raise event.error
            yield event
