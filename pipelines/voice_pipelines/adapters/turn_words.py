"""The turn-end model as a `TurnScorer`: words alone, beside any language model or none."""

from __future__ import annotations

from pathlib import Path

from voice_pipelines.turn_end.model import WEIGHTS, TurnEndModel
from voiceagent.backends import BackendInfo, TurnSoFar


def said_before(turn: TurnSoFar) -> str:
    """What the agent said last; "" where it has said nothing."""
    return next((said.text for said in reversed(turn.turns[:-1]) if said.role == "agent" and said.text), "")


class TurnWordsScorer:
    """Answers at once, on the caller's thread: less than a millisecond of it.

    Raises:
        BackendError: If the weights cannot be loaded.
    """

    ask_again_s: float | None = None

    def __init__(self, path: Path = WEIGHTS) -> None:
        self.info = BackendInfo("endpoint", "turn-end model", "judges the words, whatever model replies")
        self._model = TurnEndModel.load(path)

    async def completeness(self, turn: TurnSoFar) -> float:
        return self._model.completeness(turn.turns[-1].text, said_before(turn))

    async def aclose(self) -> None:
        """Nothing is held."""
